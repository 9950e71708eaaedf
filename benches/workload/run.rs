//! The steps of a run, and what is measured in each.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::time::ClockId;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::content::{BLOCK_BYTES, Block};
use crate::conversation::{Conversation, Stage};
use crate::cpu::{Meter, Spent};
use crate::crowd::{Crowd, TICK};
use crate::error::{Step, WorkloadError};
use crate::outcome::{Memory, Outcome, Phase, Phases, rates};
use crate::verify::{Arrived, verify};
use crate::web_app::WebApp;
use crate::{Progress, Protocol, Verify, Workload, http, websocket};

pub(crate) fn run(
    workload: &Workload,
    on_progress: &mut dyn FnMut(&Progress),
) -> Result<Outcome, WorkloadError> {
    check(workload)?;
    let block = Block::shared();
    let web_app = match workload.protocol {
        Protocol::Incoming => {
            let host = workload.callback_host.as_deref();
            Some(WebApp::start(workload.callback_listen, host)?)
        }
        _ => None,
    };
    let mut run = Run {
        workload,
        meter: workload.server_process.map(Meter::new).transpose()?,
        crowd: crowd(workload, block, web_app.as_ref())?,
        memory: Memory::default(),
        step_began: Instant::now(),
        last_tick: Instant::now(),
        verified_count: 0,
        on_progress,
    };
    let result = run.measure().and_then(|mut outcome| {
        run.begin(Step::Verify);
        let files = run.arrived(web_app.as_ref())?;
        outcome.verified_count = run.verify(&files, block)?;
        Ok(outcome)
    });
    if result.is_err() {
        run.crowd.give_up();
    }
    run.remove_files(web_app.as_ref(), result.as_ref().err());
    result
}

struct Run<'a> {
    workload: &'a Workload,
    meter: Option<Meter>,
    crowd: Crowd,
    memory: Memory,
    step_began: Instant,
    last_tick: Instant,
    verified_count: usize,
    on_progress: &'a mut dyn FnMut(&Progress),
}

/// What had been spent when a phase ended.
struct Mark {
    at: Instant,
    spent: Option<Spent>,
}

impl Run<'_> {
    fn measure(&mut self) -> Result<Outcome, WorkloadError> {
        let (active, all) =
            (self.workload.clients, self.workload.clients + self.workload.idle_clients);
        self.memory.rss_bytes_before = self.rss_bytes();
        self.begin(Step::Prepare);
        let began = self.mark()?;
        self.turn_until(|it| it.reached(Stage::Ready) == all)?;
        let ready = self.mark()?;
        self.memory.rss_bytes_start = self.rss_bytes();

        self.begin(Step::Transfer);
        let busy_before = thread_cpu();
        let started = Mark { at: Instant::now(), spent: self.spent()? };
        self.crowd.start()?;
        self.turn_until(|it| it.active_reached(Stage::Whole) == active)?;
        let busy = thread_cpu().saturating_sub(busy_before);
        let whole = self.mark()?;
        self.memory.rss_bytes_end = self.rss_bytes();

        self.begin(Step::Finish);
        self.turn_until(|it| it.active_reached(Stage::Done) == active)?;
        let done = self.mark()?;
        self.crowd.cancel_idle()?;
        self.turn_until(|it| it.reached(Stage::Done) == all)?;

        let transfer = whole.since(&started);
        let rate = |whole_at: Instant| {
            let wall = whole_at.duration_since(started.at).as_secs_f64();
            self.workload.file_bytes as f64 / wall.max(f64::MIN_POSITIVE)
        };
        Ok(Outcome {
            payload_bytes: active as u64 * self.workload.file_bytes,
            phases: Phases { prepare: ready.since(&began), transfer, finish: done.since(&whole) },
            ack_latency_us: self.crowd.ack_latency_us.clone(),
            memory: self.meter.is_some().then_some(self.memory),
            fairness: self.crowd.fairness,
            client_bytes_per_s: rates(self.crowd.whole_at().map(rate).collect()),
            client_busy: busy.as_secs_f64() / transfer.wall.as_secs_f64(),
            verified_count: 0,
        })
    }

    fn turn_until(&mut self, is_reached: impl Fn(&Crowd) -> bool) -> Result<(), WorkloadError> {
        while !is_reached(&self.crowd) {
            self.crowd.turn(self.workload.stall_timeout)?;
            if self.last_tick.elapsed() >= TICK {
                self.rss_bytes();
                self.tell();
            }
        }
        Ok(())
    }

    fn begin(&mut self, step: Step) {
        self.crowd.begin(step);
        self.step_began = Instant::now();
        self.tell();
    }

    fn tell(&mut self) {
        self.last_tick = Instant::now();
        (self.on_progress)(&Progress {
            step: self.crowd.step(),
            elapsed: self.step_began.elapsed(),
            ready_count: self.crowd.reached(Stage::Ready),
            done_count: self.crowd.active_reached(Stage::Done),
            verified_count: self.verified_count,
            acked_bytes: self.crowd.acked_bytes,
            total_bytes: self.workload.clients as u64 * self.workload.file_bytes,
        });
    }

    fn mark(&mut self) -> Result<Mark, WorkloadError> {
        let at = Instant::now();
        Ok(Mark { at, spent: self.spent()? })
    }

    fn spent(&mut self) -> Result<Option<Spent>, WorkloadError> {
        self.meter.as_mut().map(Meter::spent).transpose()
    }

    /// Now; also keeps the most that was seen.
    fn rss_bytes(&mut self) -> u64 {
        let rss_bytes = self.meter.as_ref().map_or(0, Meter::rss_bytes);
        self.memory.rss_bytes_max = self.memory.rss_bytes_max.max(rss_bytes);
        rss_bytes
    }

    /// Where all files should be; none where nobody can know.
    fn arrived(&self, web_app: Option<&WebApp>) -> Result<Vec<Arrived>, WorkloadError> {
        if self.workload.verify == Verify::Off {
            return Ok(Vec::new());
        }
        let mut files = Vec::new();
        for (client, it) in self.crowd.conversations().enumerate() {
            let path = match (web_app, &self.workload.stored_in) {
                (Some(web_app), _) => match web_app.path_of(it.name()) {
                    Some(path) => PathBuf::from(path),
                    None => return Err(WorkloadError::NotHandedOver { client }),
                },
                (None, Some(directory)) => directory.join(it.name()),
                (None, None) => return Ok(Vec::new()),
            };
            files.push(Arrived { client, path, content: it.messages().content });
        }
        Ok(files)
    }

    fn verify(&mut self, files: &[Arrived], block: &'static Block) -> Result<usize, WorkloadError> {
        verify(files, block, &mut |count| {
            self.verified_count = count;
            self.tell();
        })
    }

    /// Also after a failure; what is not as it should be stays, for whoever looks for the reason.
    fn remove_files(&self, web_app: Option<&WebApp>, error: Option<&WorkloadError>) {
        let mut paths: Vec<PathBuf> = match (web_app, &self.workload.stored_in) {
            (Some(_), _) if self.workload.verify == Verify::Off => Vec::new(),
            (Some(web_app), _) => web_app.paths().into_iter().map(PathBuf::from).collect(),
            (None, Some(directory)) => {
                self.crowd.conversations().map(|it| directory.join(it.name())).collect()
            }
            (None, None) => Vec::new(),
        };
        if let Some(WorkloadError::Corrupt(wrong)) = error {
            paths.retain(|it| *it != wrong.path);
        }
        for path in paths {
            // It may not have come so far.
            let _ = fs::remove_file(path);
        }
    }
}

impl Mark {
    fn since(&self, before: &Self) -> Phase {
        let cpu = self.spent.as_ref().zip(before.spent.as_ref());
        let cpu = cpu.map(|(spent, before)| spent.since(before));
        Phase { wall: self.at.duration_since(before.at), cpu }
    }
}

fn crowd(
    workload: &Workload,
    block: &'static Block,
    web_app: Option<&WebApp>,
) -> Result<Crowd, WorkloadError> {
    let done_url = web_app.map(|it| it.url.as_str());
    let conversations = (0..workload.clients + workload.idle_clients).map(|client| {
        let conversation: Box<dyn Conversation> = match workload.protocol {
            Protocol::Incoming | Protocol::WebSocketOnly => {
                Box::new(websocket::Upload::new(workload, client, done_url))
            }
            Protocol::Put { .. } | Protocol::Tus { .. } => {
                Box::new(http::Upload::new(workload, client))
            }
        };
        conversation
    });
    Crowd::new(
        workload.server,
        block,
        conversations.collect(),
        workload.clients,
        workload.in_flight_bytes_max,
    )
}

fn check(workload: &Workload) -> Result<(), WorkloadError> {
    let refuse = |field, allowed| Err(WorkloadError::Setting { field, allowed });
    let over_http = matches!(workload.protocol, Protocol::Put { .. } | Protocol::Tus { .. });
    let message_bytes = match workload.protocol {
        Protocol::Put { .. } => workload.file_bytes,
        Protocol::Tus { patch_bytes, .. } => patch_bytes.unwrap_or(workload.file_bytes),
        Protocol::Incoming | Protocol::WebSocketOnly => u64::from(workload.chunk_bytes),
    };
    if workload.clients == 0 {
        return refuse("clients", "at least 1");
    }
    if workload.file_bytes == 0 {
        return refuse("file_bytes", "at least 1");
    }
    if message_bytes == 0 || !over_http && message_bytes > BLOCK_BYTES as u64 {
        return refuse("chunk_bytes", "1 B to 64 MiB");
    }
    if workload.send_ahead == 0 {
        return refuse("send_ahead", "at least 1");
    }
    if workload.frame_bytes == Some(0) {
        return refuse("frame_bytes", "at least 1");
    }
    if workload.in_flight_bytes_max.is_some_and(|it| it < message_bytes.min(workload.file_bytes)) {
        return refuse("in_flight_bytes_max", "at least one message");
    }
    if workload.in_flight_bytes_max.is_some() && workload.announced {
        return refuse("in_flight_bytes_max", "not with chunks as the server announces them");
    }
    if over_http && workload.idle_clients > 0 {
        return refuse("idle_clients", "0 with PUT and tus");
    }
    // A socket for each, and what else this process has open.
    let needed = (workload.clients + workload.idle_clients) as u64 + SPARE_FILES;
    let limits = getrlimit(Resource::Nofile);
    if limits.maximum.is_some_and(|it| it < needed) {
        return refuse("clients", "fewer than files may be open here (ulimit -Hn)");
    }
    if limits.current.is_some_and(|it| it < needed) {
        let raised = Rlimit { current: limits.maximum, ..limits };
        setrlimit(Resource::Nofile, raised)
            .map_err(|errno| WorkloadError::Machine { what: "the limit of open files", errno })?;
    }
    Ok(())
}

/// Of the calling thread.
fn thread_cpu() -> Duration {
    let now = ClockId::CLOCK_THREAD_CPUTIME_ID.now();
    now.map_or(Duration::ZERO, Duration::from)
}

const SPARE_FILES: u64 = 64;
