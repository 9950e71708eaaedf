//! `incoming demo`: its web app as a page uses it, and the whole way of a file through it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

#[test]
fn the_page_names_the_server_by_the_host_it_was_asked_for() {
    let demo = Demo::start();
    let port = demo.server.port();
    for (host, name) in [
        ("127.0.0.1:4080", "127.0.0.1"),
        ("box.example:4080", "box.example"),
        ("[::1]:4080", "[::1]"),
        ("<script>", "127.0.0.1"),
    ] {
        let (status, head, body) = demo.request("GET", "/", &[("Host", host)], "");
        assert_eq!(status, 200);
        assert!(head.contains("content-type: text/html; charset=utf-8"), "{head}");
        let page = String::from_utf8(body).unwrap();
        let script = format!("src=\"http://{name}:{port}/incoming/0.1/frontend/incoming.js\"");
        assert!(page.contains(&script), "{script}");
        assert!(!page.contains("{{"));
    }
    let (status, _, library) =
        http(demo.server, "GET", "/incoming/0.1/frontend/incoming.js", &[], "");
    assert_eq!(status, 200);
    assert!(String::from_utf8(library).unwrap().contains("set_server_hostname"));
}

#[test]
fn files_go_all_the_way_and_come_back() {
    let demo = Demo::start();
    for (content, name, kept_as) in [
        (content(3_000_001), "Größe 1+1 大.bin", "Größe 1+1 大.bin"),
        (content(1), "../../etc/a.txt", "a.txt"),
        (content(5), "a.txt", "a (2).txt"),
        (Vec::new(), "empty", "empty"),
    ] {
        demo.upload(&demo.ticket(), &content, name);
        assert_eq!(fs::read(demo.uploaded.join(kept_as)).unwrap(), content);
        let encoded: String = kept_as.bytes().map(|it| format!("%{it:02x}")).collect();
        let (status, head, body) = demo.request("GET", &format!("/files/{encoded}"), &[], "");
        assert_eq!(status, 200);
        assert!(head.contains("content-disposition: attachment; filename*=utf-8''"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        assert!(body == content, "{kept_as}");
    }
    let listed = demo.files();
    let mut names: Vec<&str> = listed.iter().map(|it| it["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["Größe 1+1 大.bin", "a (2).txt", "a.txt", "empty"]);
    let large = listed.iter().find(|it| it["name"] == "Größe 1+1 大.bin").unwrap();
    assert_eq!(large["length_bytes"], 3_000_001);
    // Nothing is left with the server.
    for dir in ["parts", "arrived"] {
        let path = demo.storage.path().join(dir);
        assert_eq!(fs::read_dir(path).unwrap().count(), 0, "{dir}");
    }
}

#[test]
fn a_cancelled_upload_leaves_nothing() {
    let demo = Demo::start();
    let mut socket = demo.connect(&demo.ticket(), 1000, "x");
    say(&mut socket, "MsgCancel", &json!({ "Reason": "test" }));
    assert_eq!(hear(&mut socket)["MsgType"], "MsgCancelAck");
    assert!(demo.files().is_empty());
}

#[test]
fn callbacks_need_the_secret() {
    let demo = Demo::start();
    let id = demo.ticket();
    let victim = demo.storage.path().join("victim");
    fs::write(&victim, "x").unwrap();
    for secret in ["", "backendSecret=guess&"] {
        let form = format!("{secret}id={id}&cancelled=no&filename={}", victim.display());
        let (status, _, _) = demo.request("POST", "/callback", &[], &form);
        assert_eq!(status, 403);
    }
    assert!(victim.exists());
}

#[test]
fn other_sites_get_no_tickets() {
    let demo = Demo::start();
    let host = demo.page.to_string();
    let own = format!("http://{host}");
    for (origin, status) in [("http://evil.example", 403), ("null", 403), (own.as_str(), 200)] {
        let fields = [("Host", host.as_str()), ("Origin", origin)];
        assert_eq!(demo.request("POST", "/tickets", &fields, "").0, status, "{origin}");
    }
}

#[test]
fn everything_else_is_refused() {
    let demo = Demo::start();
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("GET", "/files/", 404),
        ("GET", "/files/..", 404),
        ("GET", "/files/..%2flock", 404),
        ("GET", "/files/%2fetc%2fpasswd", 404),
        ("GET", "/files/%ff", 404),
        ("POST", "/", 405),
        ("GET", "/tickets", 405),
        ("DELETE", "/files/a", 405),
        ("HEAD", "/", 200),
    ] {
        assert_eq!(demo.request(method, path, &[], "").0, status, "{method} {path}");
    }
}

/// A running demo; killed at the end.
struct Demo {
    child: Child,
    server: SocketAddr,
    page: SocketAddr,
    uploaded: PathBuf,
    storage: tempfile::TempDir,
}

impl Demo {
    fn start() -> Self {
        let storage = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_incoming"));
        command.args(["demo", "--listen", "127.0.0.1:0", "--page", "127.0.0.1:0"]);
        command.args(["--cores", "2", "--memory", "8MiB", "--log", "warn", "--storage-dir"]);
        command.arg(storage.path()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut next = |start: &str| {
            let line = lines.next().unwrap().unwrap();
            line.strip_prefix(start).unwrap_or_else(|| panic!("{line}")).to_owned()
        };
        let server = next("listening on http://").parse().unwrap();
        let uploaded = PathBuf::from(next("files go to "));
        let page = next("open http://").parse().unwrap();
        assert!(Path::new(&uploaded).starts_with(storage.path()));
        Self { child, server, page, uploaded, storage }
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: &str,
    ) -> (u16, String, Vec<u8>) {
        http(self.page, method, path, fields, body)
    }

    fn ticket(&self) -> String {
        let (status, _, body) = self.request("POST", "/tickets", &[], "");
        assert_eq!(status, 200);
        let answer: Value = serde_json::from_slice(&body).unwrap();
        answer["id"].as_str().unwrap().to_owned()
    }

    fn files(&self) -> Vec<Value> {
        let (status, _, body) = self.request("GET", "/files", &[], "");
        assert_eq!(status, 200);
        serde_json::from_slice(&body).unwrap()
    }

    fn connect(&self, id: &str, length: usize, name: &str) -> WebSocket<TcpStream> {
        let url = format!("ws://{}/incoming/0.1/frontend/upload_ws", self.server);
        let stream = TcpStream::connect(self.server).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut socket, _) = tungstenite::client(url, stream).unwrap();
        say(&mut socket, "MsgUploadReq", &json!({ "Id": id, "LengthBytes": length, "Name": name }));
        assert_eq!(hear(&mut socket)["MsgType"], "MsgUploadConf");
        say(&mut socket, "MsgAck", &json!({ "Ack": true }));
        socket
    }

    fn upload(&self, id: &str, content: &[u8], name: &str) {
        let mut socket = self.connect(id, content.len(), name);
        for chunk in content.chunks(500_000) {
            socket.send(Message::binary(chunk.to_vec())).unwrap();
            assert_eq!(hear(&mut socket)["MsgData"]["ChunkSize"], chunk.len());
        }
        assert_eq!(hear(&mut socket)["MsgType"], "MsgAllDone");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(socket: &mut WebSocket<TcpStream>, kind: &str, data: &Value) {
    let text = json!({ "MsgType": kind, "MsgData": data }).to_string();
    socket.send(Message::text(text)).unwrap();
}

fn hear(socket: &mut WebSocket<TcpStream>) -> Value {
    let give_up = Instant::now() + PATIENCE;
    while Instant::now() < give_up {
        if let Message::Text(text) = socket.read().unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
    panic!("the server says nothing");
}

/// Bytes that do not repeat soon.
fn content(length: usize) -> Vec<u8> {
    (0..length as u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// One request on a connection of its own: status, head in lower case, body.
fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
    body: &str,
) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\n",
        body.len()
    );
    if !fields.iter().any(|(name, _)| *name == "Host") {
        request.push_str("Host: demo\r\n");
    }
    for (name, value) in fields {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{request}\r\n{body}").as_bytes()).unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).unwrap();
    let end = response.windows(4).position(|it| it == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(response[..end].to_vec()).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, response[end + 4..].to_vec())
}

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);
