//! A cheap client, with frames masked in advance, and a web app that takes everything.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

/// The whole job; returns when the server says that the web app has the file.
pub(crate) fn upload(server: SocketAddr, backend: SocketAddr, length: usize, frame: &[u8]) {
    let id = new_ticket(server, backend);
    let mut socket = TcpStream::connect(server).unwrap();
    socket.set_nodelay(true).unwrap();
    let upgrade = "GET /incoming/0.1/frontend/upload_ws HTTP/1.1\r\nHost: bench\r\n\
                   Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(upgrade.as_bytes()).unwrap();
    let mut answers = BufReader::new(socket.try_clone().unwrap());
    while read_line(&mut answers) != "\r\n" {}
    let request = format!(
        r#"{{"MsgType":"MsgUploadReq","MsgData":{{"Id":"{id}","LengthBytes":{length},"Name":"n"}}}}"#
    );
    socket.write_all(&masked(0x81, request.as_bytes())).unwrap();
    expect(&mut answers, "MsgUploadConf");
    let ack = br#"{"MsgType":"MsgAck","MsgData":{"Ack":true}}"#;
    socket.write_all(&masked(0x81, ack)).unwrap();
    let mut unacked = 0;
    for _ in 0..length / CHUNK_BYTES {
        if unacked == WINDOW {
            expect(&mut answers, "MsgChunkAck");
            unacked -= 1;
        }
        socket.write_all(frame).unwrap();
        unacked += 1;
    }
    if !length.is_multiple_of(CHUNK_BYTES) {
        socket.write_all(&masked_frame(length % CHUNK_BYTES)).unwrap();
        unacked += 1;
    }
    for _ in 0..unacked {
        expect(&mut answers, "MsgChunkAck");
    }
    expect(&mut answers, "MsgAllDone");
}

fn new_ticket(server: SocketAddr, backend: SocketAddr) -> String {
    let mut socket = TcpStream::connect(server).unwrap();
    let path = format!("/incoming/0.1/backend/new_upload?signalFinishURL=http://{backend}/done");
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).unwrap();
    response.rsplit("\r\n").next().unwrap().to_owned()
}

/// A web app that takes everything.
pub(crate) fn start_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut request = BufReader::new(socket.try_clone().unwrap());
            let mut length = 0;
            loop {
                let line = read_line(&mut request).to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line == "\r\n" {
                    break;
                }
            }
            request.read_exact(&mut vec![0; length]).unwrap();
            let response = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ndone";
            socket.write_all(response.as_bytes()).unwrap();
        }
    });
    address
}

/// Reads one message of the server and checks its kind.
fn expect(answers: &mut impl Read, kind: &str) {
    let mut head = [0; 2];
    answers.read_exact(&mut head).unwrap();
    assert_eq!(head[0], 0x81, "a whole text message");
    let mut payload = vec![0; usize::from(head[1])];
    assert!(payload.len() < 126, "the server's messages here are short");
    answers.read_exact(&mut payload).unwrap();
    let text = String::from_utf8(payload).unwrap();
    assert!(text.contains(kind), "{text}");
}

fn read_line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line
}

pub(crate) fn masked_frame(length: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..length).map(|it| (it * 7) as u8).collect();
    masked(0x82, &payload)
}

fn masked(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![first_byte];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | short as u8),
        medium @ 126..65536 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().enumerate().map(|(index, byte)| byte ^ mask[index % 4]));
    frame
}

pub(crate) const CHUNK_BYTES: usize = 512 * 1024;
const WINDOW: usize = 4;
