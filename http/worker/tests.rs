//! One worker, one connection, a kernel that does everything at once, and a clock that is moved.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use engine::durability::Durability;
use engine::journal::{CommitSync, FILE_BYTES_MIN, NewFile, Side};
use engine::op::{SocketId, StorageHealth, StorageState};
use engine::tickets::State;

use super::*;

/// What a browser's system sees of a server: bytes, and the end.
struct Harness {
    worker: Worker,
    now: Instant,
    /// What the server is to receive.
    input: Vec<u8>,
    /// What it has sent.
    output: Vec<u8>,
    /// It waits for bytes.
    readable: Option<Token>,
    accept: Option<Token>,
    is_closed: bool,
    /// From how many bytes on the socket is readable.
    low_water_bytes: u32,
}

impl Harness {
    fn new() -> Self {
        let now = Instant::now();
        let file = NewFile::new(0, 1, 1, CommitSync::StatesOnly, 0, []);
        let config = WorkerConfig {
            core: CoreId(0),
            core_count: 1,
            storage_dir: "/storage".into(),
            direct: false,
            durability: Durability::Written,
            staging_bytes: 1 << 20,
            connections_max: 10,
            tickets_max: 10,
            idle_timeout: Duration::from_secs(3600),
            lifetime: Duration::from_secs(86_400),
            finish_timeout: Duration::from_secs(600),
            patience: Patience { timeout: Duration::from_secs(259_200), refusals_max: 10 },
            service: ServiceClock::new(0, now),
            backend_behind_proxy: false,
            keys: Default::default(),
            library_modified: UNIX_EPOCH,
            loads: Arc::new([AtomicU32::new(0)]),
            unallocated: Arc::new([AtomicU64::new(0)]),
            reserve_bytes: 0,
            max_size_bytes: None,
            dest_roots: Vec::new(),
            handover_mode: None,
            handover_gid: None,
            run: 1,
            log_start: file.start(Side::A, [FILE_BYTES_MIN; 2]),
            recovered: Vec::new(),
            draw_id: Box::new(|| TicketId(1)),
        };
        let worker = Worker::new(now, config).unwrap();
        let (input, output) = (Vec::new(), Vec::new());
        let mut it = Self {
            worker,
            now,
            input,
            output,
            readable: None,
            accept: None,
            is_closed: false,
            low_water_bytes: 1,
        };
        it.run();
        it
    }

    /// Starts ops, and ends those that wait for nobody, until none is left.
    fn run(&mut self) {
        while let Some((token, op)) = self.worker.poll_op() {
            let output = match op {
                Op::Accept => {
                    self.accept = Some(token);
                    continue;
                }
                Op::Readable { .. } => {
                    self.readable = Some(token);
                    continue;
                }
                Op::Recv { .. } => {
                    let count = self.input.len();
                    self.worker.receive_buffer()[..count].copy_from_slice(&self.input);
                    self.input.clear();
                    Output::Received { count: count as u32, has_more: false }
                }
                Op::Send { bytes, .. } => {
                    self.output.extend_from_slice(&bytes);
                    Output::Bytes(bytes.len() as u32)
                }
                Op::Shutdown { .. } | Op::Close { .. } => {
                    self.is_closed = true;
                    continue;
                }
                Op::Write { bytes, .. } => Output::Bytes(bytes.length),
                Op::CheckStorage => Output::Storage(StorageState {
                    free_bytes: u64::MAX,
                    health: StorageHealth::Good,
                }),
                Op::LowWater { bytes, .. } => {
                    self.low_water_bytes = bytes;
                    continue;
                }
                Op::CloseFile { .. } | Op::Post { .. } => continue,
                _ => Output::Done,
            };
            self.complete(token, output);
        }
    }

    fn complete(&mut self, token: Token, output: Output) {
        let completion = Completion { token, result: Ok(output) };
        self.worker.on_event(self.now, Event::Completion(completion));
    }

    fn connect(&mut self) {
        let token = self.accept.take().expect("it accepts");
        let peer = ([127, 0, 0, 1], 1).into();
        self.complete(token, Output::Accepted { socket: SocketId(0), peer });
        self.run();
    }

    fn say(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        let token = self.readable.take().expect("it listens");
        self.complete(token, Output::Done);
        self.run();
    }

    /// A client whose chunks may come.
    fn uploading(length_bytes: u64) -> Self {
        let mut it = Self::new();
        it.connect();
        it.say(NEW_UPLOAD);
        let id = TicketId(1).to_string();
        assert!(String::from_utf8_lossy(&it.output).ends_with(&id));
        it.say(
            b"GET /incoming/0.1/frontend/upload_ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
              Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        );
        let data = format!(r#"{{"Id":"{id}","LengthBytes":{length_bytes},"Name":"n"}}"#);
        it.say_message(&format!(r#"{{"MsgType":"MsgUploadReq","MsgData":{data}}}"#));
        it.say_message(r#"{"MsgType":"MsgAck","MsgData":{"Ack":true}}"#);
        it.output.clear();
        it
    }

    /// A masked text message; the mask is 0.
    fn say_message(&mut self, text: &str) {
        let length = u8::try_from(text.len()).expect("short");
        assert!(length < 126);
        self.say(&[&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat());
    }

    /// Lets the time pass until the server says or does something on the connection.
    fn wait(&mut self) -> Duration {
        let (begun, said) = (self.now, self.output.len());
        while self.output.len() == said && !self.is_closed {
            self.now = self.worker.poll_timeout().expect("something is left to do").max(self.now);
            self.worker.on_timeout(self.now);
            self.run();
        }
        self.now - begun
    }
}

/// A web app asks for the ticket with id 1.
const NEW_UPLOAD: &[u8] = b"POST /incoming/0.1/backend/new_upload?signalFinishURL=http://a/ \
    HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";

#[test]
fn whoever_could_not_come_while_the_process_was_stopped_has_time_to_come() {
    let mut it = Harness::new();
    it.connect();
    it.say(NEW_UPLOAD);
    let mut after = |seconds| {
        it.now += Duration::from_secs(seconds);
        it.worker.on_timeout(it.now);
        it.run();
        it.worker.tickets.get(TicketId(1)).unwrap().state.clone()
    };
    // Stopped when its hour began, and woken much later.
    assert_eq!(after(7_200), State::Issued);
    assert_eq!(after(119), State::Issued);
    assert!(matches!(after(1), State::Telling { .. }), "nobody has come");
}

#[test]
fn a_silent_upload_is_asked_after_15_seconds_and_given_up_after_30() {
    let mut it = Harness::uploading(9);

    assert_eq!(it.wait(), Duration::from_secs(15));
    assert_eq!(it.output, [0x89, 0], "a ping");
    assert_eq!(it.wait(), Duration::from_secs(15));
    assert!(it.is_closed);
}

#[test]
fn nobody_is_woken_for_a_few_bytes_of_a_frame_that_comes_quickly() {
    let mut it = Harness::uploading(3 << 20);
    let frame = [&[0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0][..], &[7; 1 << 20]].concat();
    let (head, rest) = frame.split_at(30_000);
    it.say(head);
    assert_eq!(it.low_water_bytes, 29_986 / 10, "what a client of this rate sends in 100 ms");
    let (middle, tail) = rest.split_at(rest.len() - 50_000);
    middle.chunks(200_000).for_each(|piece| it.say(piece));
    assert_eq!(it.low_water_bytes, 50_000, "the rest of the frame");
    it.say(tail);
    assert_eq!(it.low_water_bytes, 1, "who knows what comes next");
    frame.chunks(200_000).take(3).for_each(|piece| it.say(piece));
    assert_eq!(it.low_water_bytes, 128 * 1024, "half of the receive buffer");

    // It falls silent. Its answer to a ping may be short.
    it.output.clear();
    it.wait();
    assert_eq!((&it.output[..], it.low_water_bytes), (&[0x89, 0][..], 1));
}
