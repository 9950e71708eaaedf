//! A harbour: the server, its disk, and everybody who talks to it.

mod dead_app;
mod ends;

use std::time::{Duration, Instant};

use engine::handover::{Answer, Outcome};
use incoming::mail::Mail;

use crate::browser::Link;
use crate::chaos::{Chaos, End as Crash};
use crate::core::Kernel;
use crate::disk::{Disk, Weather};
use crate::net::{Pipe, PipeId};
use crate::panic_count;
use crate::promise::check_removal;
use crate::rng::Rng;
use crate::server::Server;
use crate::trace::Trace;
use crate::upload::{End, HANDOVER_FAILED, Plan, Upload};
use crate::webapp::{Call, CallKind, Told, done, on_response};

pub(crate) struct World {
    rng: Rng,
    now: Instant,
    kernel: Kernel,
    server: Server,
    chaos: Chaos,
    uploads: Vec<Upload>,
    links: Vec<Link>,
    calls: Vec<Call>,
    told: Vec<Told>,
    /// Restlessness of the browsers, per mille and step.
    churn: usize,
    /// The server is about to end with an error.
    has_failed: bool,
    /// After it could not.
    starts_at: Instant,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let now = Instant::now();
        let is_fair = rng.chance(50);
        let weather = Weather::drawn(&mut rng, is_fair, 0..10, 1..10);
        let disk = Disk::new(rng.next(), weather);
        let server = Server::new(&mut rng, is_fair);
        let chaos = Chaos::new(&mut rng, is_fair);
        let churn = rng.pick(&[0, 1, 5, 20]);
        let count = rng.within(1..9);
        let length_max = rng.pick(&[1, 5_000, 70_000, 300_000, 2_000_000]).min(4_000_000 / count);
        let uploads = (0..count).map(|_| Upload {
            may_time_out: server.has_short_tickets(),
            may_pipeline: churn == 0,
            may_be_given_up: server.is_impatient(),
            is_synced: server.is_synced(),
            ..Upload::new(&mut rng, length_max)
        });
        let uploads = uploads.collect();
        Self {
            rng,
            now,
            kernel: Kernel { disk, pipes: Vec::new(), trace: Trace::default() },
            server,
            chaos,
            uploads,
            links: Vec::new(),
            calls: Vec::new(),
            told: Vec::new(),
            churn,
            has_failed: false,
            starts_at: now,
        }
    }

    /// Notes everything that happens.
    pub(crate) fn traced(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.kernel.trace = Trace::on();
        world
    }

    /// Until everybody knows how it went. Gives the trace.
    pub(crate) fn run(mut self) -> u64 {
        for step in 0.. {
            self.step();
            if step == STEPS_MAX {
                self.panic_stuck();
            }
            let is_over = self.uploads.iter().all(|it| it.end.is_some() && it.is_app_content());
            if is_over && self.told.is_empty() && self.server.is_up() {
                self.check_uploads();
                break;
            }
            self.keep_going();
        }
        self.stop();
        self.server.check_unallocated();
        self.check_files();
        self.kernel.trace.hash()
    }

    fn step(&mut self) {
        self.now += Duration::from_micros(self.rng.below(100) as u64);
        self.change_weather();
        match self.rng.below(100) {
            0..50 => self.server_step(),
            50..90 => self.link_step(),
            90..96 => self.call_step(),
            96..98 => self.answer_step(),
            _ => self.sleep(),
        }
        self.tick();
        if std::mem::take(&mut self.has_failed) {
            self.end_server(false);
        }
        match self.chaos.poll_end(&mut self.rng) {
            Some(Crash::Stop) if self.server.is_up() => self.stop(),
            Some(Crash::Kill) => self.end_server(false),
            Some(Crash::PowerCut) => self.end_server(true),
            Some(Crash::Stop) | None => {}
        }
        assert_eq!(panic_count(), 0, "a panic was caught on the way");
    }

    fn server_step(&mut self) {
        if !self.server.is_up() {
            return self.start_server();
        }
        let mails = self.server.step(self.now, &mut self.kernel, &mut self.rng);
        self.on_mails(mails);
    }

    fn tick(&mut self) {
        let mails = self.server.tick(self.now, &mut self.kernel, &mut self.rng);
        self.on_mails(mails);
        for path in self.kernel.disk.take_removals() {
            check_removal(&path, &self.kernel.disk);
        }
    }

    fn change_weather(&mut self) {
        let weather = &mut self.kernel.disk.weather;
        self.chaos.change_weather(self.now, weather, &mut self.rng);
    }

    fn link_step(&mut self) {
        if self.links.is_empty() {
            return;
        }
        let index = self.rng.below(self.links.len());
        let link = &mut self.links[index];
        let (pipe, upload) = (&mut self.kernel.pipes[link.pipe], &mut self.uploads[link.upload]);
        link.step(&mut self.rng, self.now, pipe, upload, &self.kernel.disk, self.churn);
        if link.is_gone() {
            let away = Duration::from_micros(self.rng.pick(&[0u64, 1_000, 300_000]));
            upload.back_at = Some(self.now + away);
            self.links.swap_remove(index);
        }
    }

    fn call_step(&mut self) {
        if !self.calls.is_empty() {
            let index = self.rng.below(self.calls.len());
            let call = &mut self.calls[index];
            let response = call.step(&mut self.rng, &mut self.kernel.pipes[call.pipe]);
            if let Some((status, body)) = response {
                let call = self.calls.swap_remove(index);
                let upload = &mut self.uploads[call.upload];
                on_response(self.now, &call, (status, &body), upload, &mut self.kernel.disk);
            }
        }
    }

    fn answer_step(&mut self) {
        let due = self.told.iter().position(|it| it.at() <= self.now);
        let Some(index) = due else { return };
        let told = self.told.swap_remove(index);
        let is_heard = self.server.is_up() && told.run() == self.server.run;
        let upload = self.uploads.iter_mut().find(|it| it.ticket == Some(told.ticket()));
        let upload = upload.expect("a known ticket");
        upload.was_cut_off |= !is_heard;
        let (to, mail) = told.answer(&mut self.rng, upload, &mut self.kernel.disk);
        upload.is_done_heard |=
            is_heard && matches!(mail, Mail::CallbackAnswer { answer: Answer::Done, .. });
        if is_heard {
            let is_success =
                matches!(mail, Mail::CallbackAnswer { answer: Answer::Done | Answer::Wait, .. });
            self.server.mail_from_control(to, mail);
            if is_success && self.rng.chance(30) {
                self.server.host_back("http://app");
            }
        }
    }

    /// Nothing happens for a while.
    fn sleep(&mut self) {
        let told = self.told.iter().map(Told::at);
        let links = self.links.iter().map(Link::wakes_at);
        let others = self.server.poll_timeout().into_iter().chain(self.chaos.clears_at());
        let absent = self.uploads.iter().filter(|it| it.end.is_none());
        let others = others.chain(absent.filter_map(|it| it.back_at)).chain(Some(self.starts_at));
        let next = others.chain(told).chain(links).filter(|it| *it > self.now).min();
        let Some(next) = next.filter(|it| *it - self.now < SLEEP_MAX) else { return };
        if next - self.now > Duration::from_secs(1) {
            self.check_debts();
        }
        let is_app_busy = self.calls.iter().any(|it| self.kernel.pipes[it.pipe].is_accepted);
        // A web app is never so slow that it is cut off.
        let percent = match (next - self.now < Duration::from_secs(2), is_app_busy) {
            (true, false) => 100,
            (false, false) => 10,
            (true, true) => 5,
            (false, true) => 0,
        };
        if self.rng.chance(percent) {
            self.now = next;
        }
    }

    /// Only time will make something happen: then the server owes nobody an answer.
    fn check_debts(&self) {
        let is_in_order = self.server.is_up()
            && self.chaos.clears_at().is_none()
            && !self.server.is_waiting_for_storage();
        if !is_in_order || self.server.is_busy(&self.kernel) || !self.told.is_empty() {
            return;
        }
        for link in &self.links {
            let owed = link.is_owed(&self.kernel.pipes[link.pipe], &self.uploads[link.upload]);
            assert_eq!(owed, None, "{link:?}");
        }
    }

    fn on_mails(&mut self, mails: Vec<Mail>) {
        for mail in mails {
            match mail {
                Mail::Callback { from, callback } => {
                    assert_eq!(from, self.server.owner(callback.ticket));
                    let ticket = Some(callback.ticket);
                    let Some(upload) = self.uploads.iter_mut().find(|it| it.ticket == ticket)
                    else {
                        // The web app never got this ticket: the server ended before it said so.
                        assert!(self.server.run > 1);
                        assert!(matches!(callback.outcome, Outcome::Cancelled { .. }));
                        let mail = done(&callback, Answer::Done);
                        self.server.mail_from_control(from, mail);
                        continue;
                    };
                    let (run, disk) = (self.server.run, &self.kernel.disk);
                    let said = (from, callback);
                    let told = Told::new(&mut self.rng, self.now, run, said, upload, disk);
                    self.told.push(told);
                }
                // It ends with an error; whoever runs it starts it again.
                Mail::JournalFailed { .. } => {
                    assert!(self.kernel.disk.has_failed());
                    self.has_failed = true;
                }
                other => panic!("not for the control thread: {other:?}"),
            }
        }
    }

    /// Who has to come, comes; some come twice.
    fn keep_going(&mut self) {
        let index = self.rng.below(self.uploads.len());
        let upload = &self.uploads[index];
        let is_calling = self.calls.iter().any(|it| it.upload == index);
        if !self.server.is_up() || upload.back_at.is_some_and(|it| it > self.now) {
            return;
        }
        if upload.ticket.is_none() {
            if !is_calling && self.rng.chance(10) {
                self.call(CallKind::New, index);
            }
            return;
        }
        let link_count = self.links.iter().filter(|it| it.upload == index).count();
        let is_wanted = match link_count {
            0 => self.rng.chance(10),
            1 => self.rng.below(10_000) < self.churn,
            _ => false,
        };
        if upload.end.is_none() && is_wanted {
            let pipe = self.connect(upload.bytes.len());
            let upload = &mut self.uploads[index];
            let link = Link::new(&mut self.rng, self.now, index, upload, pipe);
            upload.may_pipeline = false;
            self.links.push(link);
            return;
        }
        if is_calling || !self.rng.chance(2) {
            return;
        }
        let is_cancel_due = matches!(upload.plan, Plan::CancelByApp(at) if upload.sent >= at);
        if upload.is_waiting && !upload.is_handed_over {
            self.call(CallKind::Finish, index);
        } else if is_cancel_due && !upload.was_cancelled_by_app && !upload.has_arrived {
            self.call(CallKind::Cancel, index);
        } else if !upload.is_app_content() && self.rng.chance(20) {
            self.call(CallKind::Retry, index);
        }
    }

    fn call(&mut self, kind: CallKind, upload: usize) {
        self.uploads[upload].was_cancel_asked |= kind == CallKind::Cancel;
        let pipe = self.connect(0);
        self.calls.push(Call::new(kind, upload, &self.uploads[upload], pipe));
    }

    fn connect(&mut self, length: usize) -> PipeId {
        let bytes_max = self.rng.pick(&[50, 1_000, 65_536, 1 << 20]).max(length / 500);
        self.kernel.pipes.push(Pipe::new(bytes_max));
        let pipe = self.kernel.pipes.len() - 1;
        self.server.connect(pipe, &mut self.rng);
        pipe
    }

    /// Every browser knows how it went; so does every web app, and so does the disk.
    fn check_uploads(&self) {
        for upload in &self.uploads {
            match upload.end.expect("over") {
                End::AllDone => assert!(upload.is_handed_over),
                End::Cancelled => assert!(!upload.is_handed_over),
                End::Refused(HANDOVER_FAILED) => assert!(upload.is_handed_over),
                End::Refused(_) => assert!(!upload.is_handed_over || upload.may_time_out),
            }
            let is_apps = upload.is_handed_over && !upload.is_removed_when_finished;
            if is_apps && !upload.is_taken_away {
                let data = self.kernel.disk.data(&upload.arrived_path());
                assert!(data == Some(upload.bytes), "what was handed over is not touched");
            }
        }
        if self.server.run == 1 {
            self.server.check_loads();
            let is_over = |it: &Upload| it.end == Some(End::AllDone) || it.was_cancelled_by_app;
            if self.uploads.iter().all(is_over) {
                self.server.check_usage_is_over();
            }
        }
    }

    fn check_files(&self) {
        for upload in self.uploads.iter().filter(|it| it.ticket.is_some()) {
            let is_there = upload.data(&self.kernel.disk).is_some();
            // The web app has said so, and was not heard until it was given up.
            let is_kept = upload.was_unheard && upload.end == Some(End::Refused(HANDOVER_FAILED));
            let is_gone = upload.is_handed_over && upload.is_removed_when_finished && !is_kept
                || upload.cancel_told.as_deref() == Some("no more")
                || upload.was_cancelled_by_app;
            // A removal that a crash undid is made up for much later, by the file's age.
            let may_be = self.kernel.disk.has_failed_removals() || self.server.run > 1;
            let shown = Upload { bytes: &[], ..upload.clone() };
            assert!(!(is_there && is_gone) || may_be, "it was removed: {shown:?}");
        }
    }

    fn panic_stuck(&self) -> ! {
        for upload in self.uploads.iter().filter(|it| it.end.is_none()) {
            let shown = Upload { bytes: &[], ..upload.clone() };
            eprintln!("stuck at {} of {}: {shown:?}", upload.acked, upload.bytes.len());
        }
        eprintln!(
            "up {} run {} told {} weather {:?}",
            self.server.is_up(),
            self.server.run,
            self.told.len(),
            self.kernel.disk.weather
        );
        eprintln!("links: {:?}\ncalls: {:?}", self.links, self.calls);
        panic!("no progress in {STEPS_MAX} steps");
    }
}

/// Long enough for every retry, too short for tickets to run out.
const SLEEP_MAX: Duration = Duration::from_secs(700);

const STEPS_MAX: usize = 400_000;
