//! Medians, and how far the values lie apart.

use serde::{Deserialize, Serialize};

/// The middle of some values, with the smallest and the largest.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) count: usize,
}

impl Summary {
    /// `None` when there are no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let (min, max) = (*values.first()?, *values.last()?);
        // Of an even number of values the two in the middle count alike.
        let median = f64::midpoint(values[(count - 1) / 2], values[count / 2]);
        Some(Self { median, min, max, count })
    }
}

/// One value of each round: what was measured in the same round was measured on the same machine,
/// as fast or as disturbed as it was just then.
#[derive(Clone, PartialEq, Default, Debug)]
pub(crate) struct Series(Vec<(u32, f64)>);

impl Series {
    pub(crate) fn summary(&self) -> Option<Summary> {
        Summary::of(self.0.iter().map(|it| it.1))
    }

    /// How many times `other` this is, round by round. Rounds that one of both lacks are left out.
    pub(crate) fn ratio_to(&self, other: &Self) -> Self {
        let with = |&(round, value): &(u32, f64)| {
            let base = other.0.iter().find(|it| it.0 == round)?.1;
            (base != 0.0).then(|| (round, value / base))
        };
        Self(self.0.iter().filter_map(with).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(u32, f64)> for Series {
    fn from_iter<I: IntoIterator<Item = (u32, f64)>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_whatever_the_order() {
        let odd = Summary::of([9.0, 1.0, 4.0]).unwrap();
        assert_eq!(odd, Summary { median: 4.0, min: 1.0, max: 9.0, count: 3 });
        let even = Summary::of([9.0, 1.0, 4.0, 5.0]).unwrap();
        assert_eq!(even, Summary { median: 4.5, min: 1.0, max: 9.0, count: 4 });
        let one = Summary::of([2.5]).unwrap();
        assert_eq!(one, Summary { median: 2.5, min: 2.5, max: 2.5, count: 1 });
        assert_eq!(Summary::of([]), None);
    }

    /// The second round was three times slower for both; that must not show in the ratio, as it
    /// would in the ratio of the medians (3 / 2).
    #[test]
    fn ratio_is_taken_within_each_round() {
        let ours: Series = [(1, 2.0), (2, 6.0), (3, 3.0)].into_iter().collect();
        let base: Series = [(3, 2.0), (1, 1.0), (2, 3.0)].into_iter().collect();
        let ratio = ours.ratio_to(&base).summary().unwrap();
        assert_eq!(ratio, Summary { median: 2.0, min: 1.5, max: 2.0, count: 3 });
    }

    #[test]
    fn ratio_leaves_out_what_has_no_counterpart() {
        let ours: Series = [(1, 2.0), (2, 6.0)].into_iter().collect();
        let base: Series = [(2, 3.0), (3, 1.0), (1, 0.0)].into_iter().collect();
        assert_eq!(ours.ratio_to(&base), [(2, 2.0)].into_iter().collect());
        assert!(ours.ratio_to(&Series::default()).is_empty());
    }
}
