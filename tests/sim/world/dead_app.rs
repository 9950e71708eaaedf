//! A web app that is dead for days, in virtual time.

use std::time::{Duration, Instant};

use engine::record::{RecordState, Stand};

use super::World;
use crate::disk::Disk;
use crate::promise::check_removal;
use crate::server::PATIENCE;
use crate::start::recovered;
use crate::upload::{End, HANDOVER_FAILED, Plan};

/// How a web app was called that did not answer.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    /// Service time of each call since the first one.
    pub(crate) calls: Vec<Duration>,
    /// How long after each of the starts it was called.
    pub(crate) after_start: Vec<Duration>,
    first: Option<Instant>,
    started: Option<Instant>,
    down: Duration,
    last_attempt: u32,
}

impl World {
    /// One upload, a disk without faults, and a server that ends only when it is told to.
    fn calm(seed: u64) -> Self {
        let mut seeds = seed * 1_000..;
        let is_calm = |it: &Self| !it.server.is_impatient() && !it.server.has_short_tickets();
        let mut world = seeds.by_ref().map(Self::new).find(is_calm).expect("most are");
        world.kernel.disk.weather.faults_left = 0;
        world.chaos.calm();
        world.churn = 0;
        world.uploads.truncate(1);
        world.uploads[0].plan = Plan::Finish;
        world.uploads[0].failed_answers_left = 0;
        world
    }

    /// The web app is dead for longer than anybody waits; the server is killed, stopped and cut off
    /// from power on the way, and down for an hour each time. Then the operator has it told again.
    pub(crate) fn outlive_a_dead_app(seed: u64) -> Schedule {
        let mut world = Self::calm(seed);
        world.uploads[0].app_dead_until = Some(world.now + 100 * HOUR);
        world.uploads[0].may_be_given_up = true;
        let mut schedule = Schedule::default();
        for (hours, how) in [(10, How::Kill), (30, How::Stop), (50, How::PowerCut)] {
            world.watch(&mut schedule, |it, _| it.calls.last() >= Some(&(hours * HOUR)));
            world.restart(&mut schedule, how);
        }
        world.watch(&mut schedule, |_, world| world.uploads[0].end.is_some());
        assert_eq!(world.uploads[0].end, Some(End::Refused(HANDOVER_FAILED)));
        let quiet_until = world.now + 10 * HOUR;
        let call_count = schedule.calls.len();
        world.restart(&mut schedule, How::Kill);
        while world.now < quiet_until {
            world.move_on(&mut schedule);
            world.now += Duration::from_secs(1);
        }
        assert_eq!(schedule.calls.len(), call_count, "what is given up is left alone");
        world.check_failed();
        world.uploads[0].app_dead_until = None;
        // From here on the web app asks to be told again.
        world.run();
        schedule
    }

    fn watch(&mut self, schedule: &mut Schedule, is_over: impl Fn(&Schedule, &Self) -> bool) {
        for _ in 0..MOVES_MAX {
            if is_over(schedule, self) {
                return;
            }
            self.move_on(schedule);
        }
        self.panic_stuck();
    }

    fn move_on(&mut self, schedule: &mut Schedule) {
        let call_count = self.uploads[0].call_count;
        self.step();
        // Otherwise it is a matter of luck how long a call hangs, and when it is noticed.
        self.answer_step();
        while self.server.is_up() && self.server.is_busy(&self.kernel) {
            self.server_step();
            self.tick();
        }
        if self.uploads[0].call_count > call_count {
            schedule.on_call(self.now, self.uploads[0].attempt);
        }
        let upload = &self.uploads[0];
        // A dead web app asks for nothing either.
        if upload.ticket.is_none() || upload.end.is_none() && self.links.is_empty() {
            self.keep_going();
        }
    }

    fn restart(&mut self, schedule: &mut Schedule, how: How) {
        let (was, attempt) = (self.uploads[0].data(&self.kernel.disk).is_some(), self.attempt());
        match how {
            How::Kill => self.end_server(false),
            How::PowerCut => self.end_server(true),
            How::Stop => self.stop(),
        }
        for path in self.kernel.disk.take_removals() {
            check_removal(&path, &self.kernel.disk);
        }
        assert!(was && self.uploads[0].data(&self.kernel.disk) == Some(self.uploads[0].bytes));
        self.told.clear();
        self.now += HOUR;
        schedule.down += HOUR;
        while !self.server.is_up() {
            self.start_server();
        }
        let recorded = self.attempt();
        // A server that stops also records the try that is under way.
        assert!((attempt..=attempt + 1).contains(&recorded), "{recorded} after {attempt}");
        schedule.started = Some(self.now);
    }

    /// As the journal has it.
    fn attempt(&self) -> u32 {
        let recovery = recovered(&self.kernel.disk, Disk::data);
        self.uploads[0].record(&recovery).expect("a known ticket").telling.attempt
    }

    fn check_failed(&self) {
        let upload = &self.uploads[0];
        let recovery = recovered(&self.kernel.disk, Disk::durable);
        let record = upload.record(&recovery).expect("a known ticket");
        assert_eq!(record.state, RecordState::Arrived { stand: Stand::Failed });
        assert_eq!(record.telling.last_error, "connection refused");
        assert!(upload.data(&self.kernel.disk) == Some(upload.bytes), "the file is kept");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Kill,
    Stop,
    PowerCut,
}

impl Schedule {
    fn on_call(&mut self, now: Instant, attempt: u32) {
        let first = *self.first.get_or_insert(now);
        if let Some(started) = self.started.take() {
            self.after_start.push(now - started);
        } else {
            assert!(attempt == self.last_attempt + 1, "each try is counted");
        }
        self.last_attempt = attempt;
        self.calls.push(now - first - self.down);
    }

    /// What an operator wants to see of it.
    pub(crate) fn print(&self) {
        let seconds = |it: &Duration| format!("{:.1}", it.as_secs_f64());
        let first: Vec<String> = self.calls.iter().take(14).map(seconds).collect();
        println!("called {} times; the first ones after {} s", self.calls.len(), first.join(", "));
        for day in 0..3 {
            let hours = (day * 24..day * 24 + 24).map(|hour| {
                let hour = hour * HOUR..(hour + 1) * HOUR;
                self.calls.iter().filter(|it| hour.contains(it)).count().to_string()
            });
            println!(
                "day {}, calls in each hour: {}",
                day + 1,
                hours.collect::<Vec<_>>().join(" ")
            );
        }
        let after_start: Vec<String> = self.after_start.iter().map(seconds).collect();
        println!("called after {} s of the three starts on the way", after_start.join(", "));
        println!("given up after {:.2} h", self.calls.last().unwrap().as_secs_f64() / 3600.0);
    }

    pub(crate) fn check(&self) {
        assert_eq!(self.after_start.len(), 3);
        let second = Duration::from_secs(1);
        assert!(self.after_start.iter().all(|it| *it <= second), "{:?}", self.after_start);
        let last = *self.calls.last().unwrap();
        // A kill takes the service time since the last commit along: here, since the last try.
        let most = PATIENCE.timeout + 3 * Duration::from_secs(300);
        assert!(last >= PATIENCE.timeout - SLACK && last <= most, "{last:?}");
        for (number, pair) in self.calls.windows(2).enumerate() {
            let most = Duration::from_secs((1 << number.min(9)).min(300)) + SLACK;
            assert!(pair[1] - pair[0] <= most, "{pair:?}: at most {most:?}");
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);
/// How long a dead web app lets a call hang, at most, and what the world's steps take.
const SLACK: Duration = Duration::from_secs(20);
const MOVES_MAX: usize = 50_000_000;
