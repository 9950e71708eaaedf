//! Bar charts as SVG.
//!
//! The ground is transparent and every colour in the middle between black and white, so that a plot
//! can be read on light and on dark pages. Texts are drawn by the viewer; no font is needed here.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::stats::Summary;
use crate::table::number;

/// Horizontal bars from zero, in groups; each as long as its median, with a line from the smallest
/// value to the largest.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) title: String,
    /// What the length of a bar is.
    pub(crate) unit: String,
    /// Names of the bars of each group, in the order of [`Group::bars`]. With one name there is no
    /// legend.
    pub(crate) series: Vec<String>,
    pub(crate) groups: Vec<Group>,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    /// One for each series; `None`: not measured.
    pub(crate) bars: Vec<Option<Summary>>,
}

impl Chart {
    /// The SVG document. What was measured for no group is left out.
    pub(crate) fn svg(mut self) -> String {
        for index in (0..self.series.len()).rev() {
            if self.groups.iter().all(|it| it.bars[index].is_none()) {
                self.series.remove(index);
                for group in &mut self.groups {
                    group.bars.remove(index);
                }
            }
        }
        let mut text = String::new();
        {
            let area = SVGBackend::with_string(&mut text, (WIDTH, self.height() as u32))
                .into_drawing_area();
            self.draw(&area).expect("a string takes everything");
            area.present().expect("a string takes everything");
        }
        text
    }

    fn height(&self) -> i32 {
        let groups = self.groups.len() as i32 * self.group_height();
        self.top() + groups + FOOT
    }

    fn group_height(&self) -> i32 {
        self.series.len() as i32 * BAR_STEP + GROUP_GAP
    }

    fn top(&self) -> i32 {
        if self.series.len() > 1 { HEAD + LEGEND } else { HEAD }
    }

    fn draw(&self, area: &Area<'_>) -> DrawResult {
        area.draw(&Text::new(self.title.clone(), (MARGIN, 18), text_style(18.0, HPos::Left)))?;
        if self.series.len() > 1 {
            self.draw_legend(area)?;
        }
        let longest = self.groups.iter().flat_map(|it| it.bars.iter().flatten());
        let step = axis_step(longest.map(|it| it.max).fold(0.0, f64::max));
        let x = |value: f64| LEFT + (value / (step * STEPS) * f64::from(RIGHT - LEFT)) as i32;
        self.draw_axis(area, step, &x)?;
        for (index, group) in self.groups.iter().enumerate() {
            let y = self.top() + index as i32 * self.group_height();
            group.draw(area, y, &x)?;
        }
        Ok(())
    }

    fn draw_legend(&self, area: &Area<'_>) -> DrawResult {
        let mut x = LEFT;
        for (name, color) in self.series.iter().zip(COLORS) {
            let y = HEAD + 2;
            area.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], color.filled()))?;
            area.draw(&Text::new(name.clone(), (x + 18, y + 6), text_style(14.0, HPos::Left)))?;
            x += 40 + 8 * name.chars().count() as i32;
        }
        Ok(())
    }

    fn draw_axis(&self, area: &Area<'_>, step: f64, x: &dyn Fn(f64) -> i32) -> DrawResult {
        let bottom = self.height() - FOOT;
        let style = text_style(13.0, HPos::Center);
        for index in 0..=STEPS as u32 {
            let value = f64::from(index) * step;
            let line = vec![(x(value), self.top() - 4), (x(value), bottom)];
            area.draw(&PathElement::new(line, TEXT.mix(0.3).stroke_width(1)))?;
            let label = axis_label(value, step);
            area.draw(&Text::new(label, (x(value), bottom + 12), &style))?;
        }
        let middle = (LEFT + RIGHT) / 2;
        area.draw(&Text::new(self.unit.clone(), (middle, bottom + 32), &style))
    }
}

impl Group {
    fn draw(&self, area: &Area<'_>, top: i32, x: &dyn Fn(f64) -> i32) -> DrawResult {
        let middle = top + self.bars.len() as i32 * BAR_STEP / 2;
        let name = text_style(14.0, HPos::Right);
        area.draw(&Text::new(self.name.clone(), (LEFT - 10, middle), &name))?;
        for (index, (bar, color)) in self.bars.iter().zip(COLORS).enumerate() {
            let y = top + index as i32 * BAR_STEP;
            let center = y + BAR / 2;
            let label = text_style(13.0, HPos::Left);
            let Some(bar) = bar else {
                area.draw(&Text::new("not measured", (LEFT + 6, center), &label))?;
                continue;
            };
            let corners = [(LEFT, y), (x(bar.median), y + BAR)];
            area.draw(&Rectangle::new(corners, color.filled()))?;
            if bar.count > 1 {
                let range = vec![(x(bar.min), center), (x(bar.max), center)];
                area.draw(&PathElement::new(range, TEXT.stroke_width(2)))?;
            }
            let end = x(bar.max.max(bar.median)) + 8;
            area.draw(&Text::new(number(bar.median), (end, center), &label))?;
        }
        Ok(())
    }
}

fn text_style(size: f64, horizontal: HPos) -> TextStyle<'static> {
    let style = TextStyle::from(("sans-serif", size * FONT_SCALE).into_font()).color(&TEXT);
    style.pos(Pos::new(horizontal, VPos::Center))
}

/// A round distance between lines, so that [`STEPS`] of them reach beyond `longest`.
fn axis_step(longest: f64) -> f64 {
    if longest <= 0.0 {
        return 1.0;
    }
    let magnitude = 10f64.powf((longest / STEPS).log10().floor());
    let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
    let step = factors.map(|it| it * magnitude).into_iter().find(|it| it * STEPS >= longest);
    step.unwrap_or(10.0 * magnitude)
}

/// With as many digits behind the point as the step has.
fn axis_label(value: f64, step: f64) -> String {
    let digits = (0..6).find(|it| {
        let scaled = step * 10f64.powi(*it);
        (scaled - scaled.round()).abs() < 1e-6
    });
    format!("{value:.*}", digits.unwrap_or(6) as usize)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawResult = Result<(), DrawingAreaErrorKind<std::io::Error>>;

const WIDTH: u32 = 820;
const MARGIN: i32 = 12;
/// Where bars begin, and where the last line of the axis stands.
const LEFT: i32 = 210;
const RIGHT: i32 = 740;
const HEAD: i32 = 40;
const LEGEND: i32 = 26;
const FOOT: i32 = 50;
const BAR: i32 = 16;
const BAR_STEP: i32 = 20;
const GROUP_GAP: i32 = 10;
/// Distances between the lines of the axis.
const STEPS: f64 = 5.0;
/// The backend writes sizes divided by this.
const FONT_SCALE: f64 = 1.24;

const TEXT: RGBColor = RGBColor(0x7a, 0x7f, 0x87);
/// Told apart also by those who see no difference between red and green.
const COLORS: [RGBColor; 4] = [
    RGBColor(0x2b, 0x7f, 0xc4),
    RGBColor(0xc4, 0x6f, 0x10),
    RGBColor(0x1f, 0x8f, 0x74),
    RGBColor(0xa8, 0x66, 0xb8),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let bars = |a: &[f64], b: &[f64]| {
            vec![Summary::of(a.iter().copied()), Summary::of(b.iter().copied())]
        };
        Chart {
            title: "CPU <time>".to_owned(),
            unit: "CPU-s/GiB".to_owned(),
            series: vec!["warm".to_owned(), "fresh".to_owned()],
            groups: vec![
                Group { name: "ours & theirs".to_owned(), bars: bars(&[0.2, 0.21, 0.3], &[0.4]) },
                Group { name: "other".to_owned(), bars: bars(&[1.7, 1.5], &[]) },
            ],
        }
    }

    /// Every tag is closed in its order, and no text breaks out.
    fn assert_well_formed(svg: &str) {
        let mut open = Vec::new();
        for piece in svg.split('<').skip(1) {
            let (tag, text) = piece.split_once('>').expect("a tag ends");
            assert!(!text.contains('>'), "{text}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
        }
        assert!(open.is_empty(), "{open:?} stay open");
    }

    #[test]
    fn plot_is_an_svg_with_everything_in_it() {
        let svg = chart().svg();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        assert_well_formed(&svg);
        for text in ["CPU &lt;time&gt;", "ours &amp; theirs", "fresh", "not measured", "CPU-s/GiB"]
        {
            assert!(svg.contains(text), "{text} is missing");
        }
        // Three bars and two pieces of legend; two bars have a range, six lines belong to the axis.
        assert_eq!(svg.matches("<rect").count(), 5);
        assert_eq!(svg.matches("<polyline").count(), 8);
    }

    #[test]
    fn same_figures_make_the_same_plot() {
        assert_eq!(chart().svg(), chart().svg());
    }

    #[test]
    fn nothing_measured_is_still_a_plot() {
        let empty = Chart { groups: Vec::new(), ..chart() };
        assert_well_formed(&empty.svg());
    }

    #[test]
    fn what_was_measured_for_nobody_has_no_bars() {
        let mut chart = chart();
        for group in &mut chart.groups {
            group.bars[1] = None;
        }
        let svg = chart.svg();
        assert!(!svg.contains("not measured") && !svg.contains("fresh"));
        assert_eq!(svg.matches("<rect").count(), 2);
    }

    #[test]
    fn bar_is_as_long_as_its_value() {
        let mut chart = chart();
        chart.series.truncate(1);
        let bar = |value| Group { name: "a".to_owned(), bars: vec![Summary::of([value])] };
        chart.groups = vec![bar(1.0), bar(0.5)];
        let svg = chart.svg();
        let widths = svg.lines().filter(|it| it.starts_with("<rect")).map(|it| {
            let width = it.split("width=\"").nth(1).unwrap().split('"').next().unwrap();
            width.parse::<i32>().unwrap()
        });
        assert_eq!(widths.collect::<Vec<_>>(), [RIGHT - LEFT, (RIGHT - LEFT) / 2]);
    }

    #[test]
    fn axis_is_round_and_long_enough() {
        for (longest, step) in [(1.0, 0.2), (0.21, 0.05), (12.4, 2.5), (3000.0, 1000.0), (0.0, 1.0)]
        {
            assert_eq!(axis_step(longest), step);
            assert!(axis_step(longest) * STEPS >= longest);
        }
        assert_eq!(axis_label(0.5, 0.25), "0.50");
        assert_eq!(axis_label(5.0, 2.5), "5.0");
        assert_eq!(axis_label(2000.0, 1000.0), "2000");
    }

    /// Contrast as WCAG 2 defines it, against the usual white and the usual dark ground.
    #[test]
    fn colours_can_be_read_on_light_and_dark() {
        let channel = |it: u8| {
            let it = f64::from(it) / 255.0;
            if it <= 0.040_45 { it / 12.92 } else { ((it + 0.055) / 1.055).powf(2.4) }
        };
        let luminance = |RGBColor(red, green, blue): RGBColor| {
            0.2126 * channel(red) + 0.7152 * channel(green) + 0.0722 * channel(blue)
        };
        let contrast = |a: f64, b: f64| (a.max(b) + 0.05) / (a.min(b) + 0.05);
        for ground in [RGBColor(255, 255, 255), RGBColor(0x0d, 0x11, 0x17)] {
            for color in COLORS.iter().chain([&TEXT]) {
                let found = contrast(luminance(*color), luminance(ground));
                assert!(found >= 3.5, "{color:?} on {ground:?}: {found}");
            }
        }
    }
}
