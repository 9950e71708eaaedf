//! What the servers of this package do with an upload: each takes it whole, whatever it is cut into.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::{Message, WebSocket};

#[test]
fn floor_on_monoio_takes_every_byte() {
    check_probe(&["floor", "--runtime", "monoio"]);
}

#[test]
fn floor_on_tokio_uring_takes_every_byte() {
    check_probe(&["floor", "--runtime", "tokio-uring"]);
}

#[test]
fn ring_takes_every_byte() {
    check_probe(&["ring"]);
}

#[test]
fn multishot_ring_takes_every_byte() {
    check_probe(&["ring", "--multishot"]);
}

#[test]
fn naive_stack_stores_every_byte() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&["naive", "--directory", directory.path().to_str().unwrap()]);
    for (length, cut) in [(0, WHOLE), (1, SPLIT), (5_000_003, WHOLE), (5_000_003, SPLIT)] {
        let file = pattern(length, 7);
        upload(server.address, "file-0", &file, cut);
        let stored = directory.path().join("file-0");
        assert!(std::fs::read(&stored).unwrap() == file, "{length} bytes, {cut:?}");
        std::fs::remove_file(stored).unwrap();
    }
}

/// Uploads beside each other and one after the other, whole messages and split ones.
fn check_probe(arguments: &[&str]) {
    let mut server = Server::start(&[arguments, &["--checksum"]].concat());
    for length in [0, 1, 5_000_003] {
        for cut in [WHOLE, SPLIT] {
            let clients: Vec<_> = (0..3)
                .map(|number| {
                    let (id, bytes) = (format!("file-{number}"), pattern(length, number));
                    let checksum = crc32c::crc32c(&bytes);
                    let address = server.address;
                    let thread = {
                        let id = id.clone();
                        std::thread::spawn(move || upload(address, &id, &bytes, cut))
                    };
                    (thread, format!("{id} {checksum:08x}"))
                })
                .collect();
            let mut expected = Vec::new();
            for (thread, line) in clients {
                thread.join().expect("the upload ends well");
                expected.push(line);
            }
            let mut printed: Vec<String> = (0..3).map(|_| server.line()).collect();
            printed.sort();
            assert_eq!(printed, expected, "{length} bytes, {cut:?}");
        }
    }
}

/// What a file is cut into.
#[derive(Clone, Copy, Debug)]
struct Cut {
    message_bytes: usize,
    frame_bytes: usize,
}

const WHOLE: Cut = Cut { message_bytes: 1 << 20, frame_bytes: usize::MAX };
const SPLIT: Cut = Cut { message_bytes: 512 << 10, frame_bytes: 131_000 };

/// One upload, from the connection to the close.
fn upload(server: SocketAddr, id: &str, file: &[u8], cut: Cut) {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let url = format!("ws://{server}/incoming/0.1/frontend/upload_ws");
    let (mut socket, _) = tungstenite::client(url, stream).unwrap();
    let length = file.len();
    say(
        &mut socket,
        &format!(
            r#"{{"MsgType":"MsgUploadReq","MsgData":{{"Id":"{id}","LengthBytes":{length},"Name":"n"}}}}"#
        ),
    );
    let confirmed = hear(&mut socket);
    assert!(confirmed.contains(r#""MsgUploadConf""#), "{confirmed}");
    assert!(confirmed.contains(r#""FilePos":0"#), "{confirmed}");
    say(&mut socket, r#"{"MsgType":"MsgAck","MsgData":{"Ack":true}}"#);
    for message in file.chunks(cut.message_bytes) {
        send_binary(&mut socket, message, cut.frame_bytes);
    }
    for message in file.chunks(cut.message_bytes) {
        let length = message.len();
        let expected = format!(r#"{{"MsgType":"MsgChunkAck","MsgData":{{"ChunkSize":{length}}}}}"#);
        assert_eq!(hear(&mut socket), expected);
    }
    assert_eq!(hear(&mut socket), r#"{"MsgType":"MsgAllDone","MsgData":{"Success":true}}"#);
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
}

fn send_binary(socket: &mut WebSocket<TcpStream>, message: &[u8], frame_bytes: usize) {
    let mut frames = message.chunks(frame_bytes).peekable();
    let mut kind = Data::Binary;
    while let Some(payload) = frames.next() {
        let is_last = frames.peek().is_none();
        let frame = Frame::message(payload.to_vec(), OpCode::Data(kind), is_last);
        socket.send(Message::Frame(frame)).unwrap();
        kind = Data::Continue;
    }
}

fn say(socket: &mut WebSocket<TcpStream>, text: &str) {
    socket.send(Message::text(text)).unwrap();
}

fn hear(socket: &mut WebSocket<TcpStream>) -> String {
    match socket.read().unwrap() {
        Message::Text(text) => text.to_string(),
        other => panic!("a text is expected: {other:?}"),
    }
}

/// `peers` with a sub-command that serves; it ends with this value.
struct Server {
    child: Child,
    address: SocketAddr,
    printed: BufReader<ChildStdout>,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_peers"))
            .args(arguments)
            .args(["--listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        printed.read_line(&mut line).unwrap();
        let address = line.trim().rsplit('/').next().unwrap().parse().unwrap();
        Self { child, address, printed }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.printed.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that differ at every place that matters.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed as u8).collect()
}

/// After so long without an answer a test has failed; it never decides anything else.
const PATIENCE: Duration = Duration::from_secs(20);
