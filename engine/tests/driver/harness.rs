//! A machine that does what a test thread tells it, one op at a time, and the thread that runs it.

use std::collections::HashMap;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use incoming_engine::buffer::{Memory, Slice};
use incoming_engine::driver::{self, Backend, Helper, Runtime, Sender, Setup, StorageDir};
use incoming_engine::limits::RECEIVE_BUFFER_BYTES;
use incoming_engine::op::{
    Address, Completion, CoreId, Errno, Event, Machine, Op, Output, SocketId, SocketOp, Token,
};

/// A runtime and what it waits with.
pub(crate) type Variant = (Runtime, Backend);

/// What a test says to a core.
#[derive(Debug)]
pub(crate) enum Mail {
    /// Start an op; the core reports its completion by this number.
    Start(u32, Box<Op<Mail>>),
    Fill(Slice, Vec<u8>),
    Show(Slice),
    /// Call `on_timeout` then.
    TimeoutAt(Instant),
    Stop,
    /// A mistake in the machine.
    Panic,
    /// To be reported as it is.
    Hello(String),
    Report(Report),
}

/// What a core says to its test.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Report {
    Completed { number: u32, result: Result<Output, Errno>, received: Vec<u8> },
    Shown(Vec<u8>),
    Timeout { late: bool },
    Hello { core: CoreId, text: String },
    Arrived { core: CoreId, socket: SocketId, text: String },
}

/// Cores that run until they are dropped.
pub(crate) struct Cores {
    pub(crate) addresses: Vec<SocketAddr>,
    mailboxes: Vec<Sender<Mail>>,
    reports: mpsc::Receiver<Report>,
    early: Vec<Report>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
    /// As the kernel names them.
    pub(crate) thread_ids: Vec<i32>,
    next: u32,
}

impl Cores {
    /// For tests that have no business with files.
    pub(crate) fn start(variant: Variant, count: usize) -> Self {
        Self::start_in("/".as_ref(), variant, count)
    }

    /// With a storage directory.
    pub(crate) fn start_in(dir: &Path, variant: Variant, count: usize) -> Self {
        Self::start_on(StorageDir::open(dir).unwrap(), variant, count)
    }

    /// One core, with a storage directory in which these directories are made and watched.
    pub(crate) fn start_watching(dir: &Path, names: &[&str], variant: Variant) -> Self {
        let mut storage = StorageDir::open(dir).unwrap();
        names.iter().for_each(|it| storage.make_dir(it.as_ref(), 0o700).unwrap());
        Self::start_on(storage, variant, 1)
    }

    fn start_on(storage: StorageDir, (runtime, backend): Variant, count: usize) -> Self {
        let (report, reports) = mpsc::channel();
        let helper = Helper::start(backend, Arc::new(storage)).unwrap();
        let (mailboxes, receivers): (Vec<_>, Vec<_>) =
            (0..count).map(|_| driver::mailbox::<Mail>().unwrap()).unzip();
        let mut addresses = Vec::new();
        let mut threads = Vec::new();
        let (thread_id, thread_ids) = mpsc::channel();
        for (index, mailbox) in receivers.into_iter().enumerate() {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            addresses.push(listener.local_addr().unwrap());
            let report = report.clone();
            let setup = Setup {
                listeners: vec![listener],
                mailbox,
                cores: mailboxes.clone(),
                control: Box::new(move |mail| {
                    if let Mail::Report(it) = mail {
                        // The test may have ended before its cores.
                        let _ = report.send(it);
                    }
                }),
                helper: helper.clone(),
                backend,
            };
            let thread_id = thread_id.clone();
            threads.push(std::thread::spawn(move || {
                let id = rustix::thread::gettid().as_raw_nonzero().get();
                thread_id.send((index, id)).unwrap();
                driver::run(runtime, Puppet::new(CoreId(index as u16)), setup)
            }));
        }
        let mut thread_ids: Vec<_> = thread_ids.iter().take(count).collect();
        thread_ids.sort_unstable();
        let thread_ids = thread_ids.into_iter().map(|(_, id)| id).collect();
        Self { addresses, mailboxes, reports, early: Vec::new(), threads, thread_ids, next: 0 }
    }

    pub(crate) fn tell(&self, core: usize, mail: Mail) {
        self.mailboxes[core].send(mail);
    }

    /// Starts an op on a core. Its number is for [`Cores::wait`].
    pub(crate) fn start_op(&mut self, core: usize, op: Op<Mail>) -> u32 {
        self.next += 1;
        self.tell(core, Mail::Start(self.next, Box::new(op)));
        self.next
    }

    /// Waits for the completion of an op.
    pub(crate) fn wait(&mut self, number: u32) -> Result<Output, Errno> {
        self.wait_received(number).0
    }

    /// Starts an op on core 0 and waits for its completion.
    pub(crate) fn run(&mut self, op: Op<Mail>) -> Result<Output, Errno> {
        let number = self.start_op(0, op);
        self.wait(number)
    }

    pub(crate) fn receive(&mut self, core: usize, socket: SocketId) -> Result<Vec<u8>, Errno> {
        let op = Op::Recv { socket, length_bytes: RECEIVE_BUFFER_BYTES };
        let number = self.start_op(core, op);
        let (result, received) = self.wait_received(number);
        result.map(|_| received)
    }

    fn wait_received(&mut self, expected: u32) -> (Result<Output, Errno>, Vec<u8>) {
        let is_it =
            |it: &Report| matches!(it, Report::Completed { number, .. } if *number == expected);
        match self.report_where(is_it) {
            Report::Completed { result, received, .. } => (result, received),
            _ => unreachable!(),
        }
    }

    /// The next report that fits; the others are kept.
    pub(crate) fn report_where(&mut self, fits: impl Fn(&Report) -> bool) -> Report {
        if let Some(index) = self.early.iter().position(&fits) {
            return self.early.remove(index);
        }
        loop {
            let report = self.reports.recv_timeout(PATIENCE).expect("the core reports");
            if fits(&report) {
                return report;
            }
            self.early.push(report);
        }
    }

    /// Whether the op has completed, of what can be done at once.
    pub(crate) fn has_completed(&mut self, expected: u32) -> bool {
        // The first answer shows that the op was started, the second that its end was reported.
        for _ in 0..2 {
            self.show(Slice { start: 0, length: 0 });
        }
        self.early
            .iter()
            .any(|it| matches!(it, Report::Completed { number, .. } if *number == expected))
    }

    /// Sends until nothing more goes into the socket's buffers. Returns the send that waits, and
    /// how many bytes have gone.
    pub(crate) fn fill_socket(&mut self, socket: SocketId, bytes: &Bytes) -> (u32, usize) {
        let mut sent = 0;
        loop {
            let send = self.start_op(0, Op::Send { socket, bytes: bytes.slice(sent..) });
            // The kernel may still be moving bytes from one buffer to the other.
            let is_full = (0..3).all(|_| {
                std::thread::sleep(Duration::from_millis(10));
                !self.has_completed(send)
            });
            if is_full {
                return (send, sent);
            }
            let Ok(Output::Bytes(count)) = self.wait(send) else { panic!("send failed") };
            assert!(count > 0);
            sent += count as usize;
        }
    }

    pub(crate) fn fill(&self, slice: Slice, bytes: &[u8]) {
        self.tell(0, Mail::Fill(slice, bytes.to_vec()));
    }

    pub(crate) fn show(&mut self, slice: Slice) -> Vec<u8> {
        self.tell(0, Mail::Show(slice));
        match self.report_where(|it| matches!(it, Report::Shown(_))) {
            Report::Shown(bytes) => bytes,
            _ => unreachable!(),
        }
    }

    /// Connects a client to a core and accepts it there.
    pub(crate) fn connect(&mut self, core: usize) -> (TcpStream, SocketId) {
        let accept = self.start_op(core, Op::Accept);
        let client = TcpStream::connect(self.addresses[core]).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        match self.wait(accept) {
            Ok(Output::Accepted { socket, peer }) => {
                assert_eq!(peer, client.local_addr().unwrap());
                (client, socket)
            }
            result => panic!("not accepted: {result:?}"),
        }
    }

    /// Ends all cores and waits for them.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.mailboxes.iter().for_each(|it| it.send(Mail::Stop));
        for thread in self.threads.drain(..) {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

/// The error of a core that cannot run.
pub(crate) fn first_error(variant: Variant) -> std::io::Error {
    let mut cores = Cores::start(variant, 1);
    cores.threads.pop().unwrap().join().unwrap().unwrap_err()
}

/// Reads exactly so many bytes.
pub(crate) fn read_exactly(client: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

/// Bytes that differ at every place that matters.
pub(crate) fn pattern(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed as u8).collect()
}

struct Puppet {
    core: CoreId,
    memory: Memory,
    receive_buffer: Vec<u8>,
    ops: std::collections::VecDeque<(Token, Op<Mail>)>,
    in_flight: HashMap<u32, ()>,
    timeout_at: Option<Instant>,
    stopping: bool,
}

impl Puppet {
    fn new(core: CoreId) -> Self {
        Self {
            core,
            memory: Memory::new(MEMORY_BYTES).unwrap(),
            receive_buffer: vec![0; RECEIVE_BUFFER_BYTES as usize],
            ops: Default::default(),
            in_flight: HashMap::new(),
            timeout_at: None,
            stopping: false,
        }
    }

    fn report(&mut self, report: Report) {
        let op = Op::Post { to: Address::Control, mail: Mail::Report(report) };
        self.ops.push_back((Token::None, op));
    }

    fn on_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Start(number, op) => {
                let what =
                    if matches!(*op, Op::Recv { .. }) { SocketOp::Recv } else { SocketOp::Send };
                if !matches!(*op, Op::Accept) {
                    self.in_flight.insert(number, ());
                }
                self.ops.push_back((Token::Socket { slot: number, generation: 0, what }, *op));
            }
            Mail::Fill(slice, bytes) => self.memory.bytes_mut(slice).copy_from_slice(&bytes),
            Mail::Show(slice) => {
                let shown = self.memory.bytes(slice).to_vec();
                self.report(Report::Shown(shown));
            }
            Mail::TimeoutAt(at) => self.timeout_at = Some(at),
            Mail::Stop => self.stopping = true,
            Mail::Panic => panic!("as the test wants it"),
            Mail::Hello(text) => self.report(Report::Hello { core: self.core, text }),
            Mail::Report(report) => unreachable!("{report:?} is for the test"),
        }
    }
}

impl Machine for Puppet {
    type Mail = Mail;

    fn on_event(&mut self, _now: Instant, event: Event<Mail>) {
        match event {
            Event::Mail(mail) => self.on_mail(mail),
            Event::Arrived { socket, mail: Mail::Hello(text) } => {
                self.report(Report::Arrived { core: self.core, socket, text });
            }
            Event::Arrived { mail, .. } => unreachable!("{mail:?}"),
            Event::Completion(Completion { token, result }) => {
                let Token::Socket { slot: number, what, .. } = token else {
                    unreachable!("{token:?}");
                };
                self.in_flight.remove(&number);
                let received = match (what, result) {
                    (SocketOp::Recv, Ok(Output::Received { count, .. })) => {
                        self.receive_buffer[..count as usize].to_vec()
                    }
                    _ => Vec::new(),
                };
                self.report(Report::Completed { number, result, received });
            }
        }
    }

    fn on_timeout(&mut self, now: Instant) {
        let late = self.timeout_at.take().is_some_and(|at| at <= now);
        self.report(Report::Timeout { late });
    }

    fn poll_op(&mut self) -> Option<(Token, Op<Mail>)> {
        let (token, op) = self.ops.pop_front()?;
        if op_has_no_completion(&op)
            && let Token::Socket { slot, .. } = token
        {
            self.in_flight.remove(&slot);
        }
        Some((token, op))
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.timeout_at
    }

    fn receive_buffer(&mut self) -> &mut [u8] {
        &mut self.receive_buffer
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn is_stopped(&self) -> bool {
        self.stopping && self.in_flight.is_empty() && self.ops.is_empty()
    }
}

fn op_has_no_completion(op: &Op<Mail>) -> bool {
    matches!(
        op,
        Op::Shutdown { .. }
            | Op::Close { .. }
            | Op::Migrate { .. }
            | Op::Post { .. }
            | Op::CloseFile { .. }
    )
}

const MEMORY_BYTES: usize = 8 * 1024 * 1024;

/// After so long without a report a test has failed; it never decides anything else.
const PATIENCE: Duration = Duration::from_secs(20);
