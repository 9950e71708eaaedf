//! A new server takes the place of the one that runs: nobody is refused, nothing is lost; and one
//! that does not come up changes nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::backend::Backend;
use crate::client::Client;
use crate::content::Content;
use crate::http::{Connection, request_bytes};
use crate::server::{Driver, PATIENCE, Place, Server, Setup, start_refused, storage, wait_until};

/// Browsers, a web app and a monitor that use a server all the time, whatever becomes of it.
struct World {
    backend: Backend,
    uploads: Vec<Upload>,
    /// Take your time until then.
    is_hurried: AtomicBool,
    is_over: AtomicBool,
    health_count: AtomicU64,
    longest_wait_ms: AtomicU64,
}

struct Upload {
    id: String,
    content: Content,
    acknowledged: AtomicU64,
    connection_count: AtomicU64,
}

/// Nobody takes his time any more, also when a test fails.
struct Hurry<'w>(&'w World);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.is_hurried.store(true, Ordering::Relaxed);
        if thread::panicking() {
            self.0.is_over.store(true, Ordering::Relaxed);
        }
    }
}

/// Why a browser's connection ended.
enum End {
    Done,
    Again,
}

impl World {
    fn new(server: &Server, upload_count: u64) -> Self {
        let backend = Backend::done();
        let uploads = (0..upload_count).map(|seed| Upload {
            id: backend.ticket_kept(server),
            content: Content::new(300 + seed, FILE_BYTES + seed),
            acknowledged: AtomicU64::new(0),
            connection_count: AtomicU64::new(0),
        });
        Self {
            uploads: uploads.collect(),
            backend,
            is_hurried: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            health_count: AtomicU64::new(0),
            longest_wait_ms: AtomicU64::new(0),
        }
    }

    /// Everybody uses the server at `address` while `change` does something to it. Afterwards all
    /// uploads come to their end.
    fn use_while<T>(&self, address: SocketAddr, change: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            let uploads: Vec<_> = self
                .uploads
                .iter()
                .map(|it| scope.spawn(move || self.upload(address, it)))
                .collect();
            let monitors: Vec<_> =
                (0..4).map(|_| scope.spawn(move || self.monitor(address))).collect();
            let hurry = Hurry(self);
            let changed = change();
            drop(hurry);
            let uploads: Vec<_> = uploads.into_iter().map(|it| it.join()).collect();
            self.is_over.store(true, Ordering::Relaxed);
            let monitors: Vec<_> = monitors.into_iter().map(|it| it.join()).collect();
            let failed = uploads.iter().chain(&monitors).filter(|it| it.is_err()).count();
            assert_eq!(failed, 0, "somebody was refused or lost something");
            changed
        })
    }

    /// Waits until every upload has gone on.
    fn wait_for_progress(&self) {
        let acknowledged = |it: &Upload| it.acknowledged.load(Ordering::Relaxed);
        let before: Vec<u64> = self.uploads.iter().map(acknowledged).collect();
        wait_until("every upload has gone on", || {
            self.uploads.iter().zip(&before).all(|(it, before)| acknowledged(it) > *before)
        });
    }

    fn check_files(&self) {
        for it in &self.uploads {
            it.content.assert_file(&self.backend.call(&it.id, 1).path());
        }
    }

    /// A browser: it comes back until it has heard that all is done.
    fn upload(&self, address: SocketAddr, upload: &Upload) {
        while let End::Again = self.upload_on_one_connection(address, upload) {
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn upload_on_one_connection(&self, address: SocketAddr, upload: &Upload) -> End {
        upload.connection_count.fetch_add(1, Ordering::Relaxed);
        let stream = TcpStream::connect(address).expect("nobody is refused");
        stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let url = format!("ws://{address}/incoming/0.1/frontend/upload_ws");
        let mut socket = match tungstenite::client(url, stream) {
            Ok((socket, _)) => socket,
            Err(error) => panic!("cut off before an answer: {error}"),
        };
        let length = upload.content.length_bytes;
        let request = json!({ "Id": upload.id, "LengthBytes": length, "Name": "it.bin" });
        if !say(&mut socket, "MsgUploadReq", request) {
            return End::Again;
        }
        let Some((kind, conf)) = hear(&mut socket) else { return End::Again };
        assert_eq!(kind, "MsgUploadConf");
        let mut position = conf["FilePos"].as_u64().expect("FilePos");
        let acknowledged = upload.acknowledged.load(Ordering::Relaxed);
        assert!(position >= acknowledged, "acknowledged {acknowledged}, and now at {position}");
        if !say(&mut socket, "MsgAck", json!({ "Ack": true })) {
            return End::Again;
        }
        let (mut acknowledged, mut in_flight_count) = (position, 0);
        loop {
            while position < length && in_flight_count < 3 {
                let is_hurried = self.is_hurried.load(Ordering::Relaxed);
                // It always goes on, and comes to no end before it is time.
                let slowly = ((length - position) / 100).clamp(1, CHUNK_BYTES);
                let chunk_bytes = if is_hurried { CHUNK_BYTES } else { slowly };
                let piece = upload.content.piece(position, chunk_bytes);
                position += piece.len() as u64;
                in_flight_count += 1;
                if socket.send(Message::binary(piece)).is_err() {
                    break;
                }
            }
            match hear(&mut socket) {
                Some((kind, data)) if kind == "MsgChunkAck" => {
                    acknowledged += data["ChunkSize"].as_u64().expect("ChunkSize");
                    in_flight_count -= 1;
                    upload.acknowledged.fetch_max(acknowledged, Ordering::Relaxed);
                }
                Some((kind, _)) if kind == "MsgAllDone" => return End::Done,
                Some((kind, data)) => panic!("{kind}: {data}"),
                None => return End::Again,
            }
            if !self.is_hurried.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Connects anew each time, and wants an answer each time.
    fn monitor(&self, address: SocketAddr) {
        let request = request_bytes("GET", HEALTH, &[], "");
        while !self.is_over.load(Ordering::Relaxed) {
            let asked_at = Instant::now();
            let mut connection = Connection::open(address);
            connection.send(&request);
            let response = connection.response();
            let wait_ms = asked_at.elapsed().as_millis() as u64;
            self.longest_wait_ms.fetch_max(wait_ms, Ordering::Relaxed);
            assert!(matches!(response.status, 200 | 503), "{}", response.status);
            self.health_count.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn say(socket: &mut WebSocket<TcpStream>, kind: &str, data: Value) -> bool {
    let text = json!({ "MsgType": kind, "MsgData": data }).to_string();
    socket.send(Message::text(text)).is_ok()
}

/// The next message. `None`: the connection has ended in a way that lets a browser come back.
fn hear(socket: &mut WebSocket<TcpStream>) -> Option<(String, Value)> {
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => {
                let mut message: Value = serde_json::from_str(&text).expect("JSON");
                let kind = message["MsgType"].as_str().expect("MsgType").to_owned();
                return Some((kind, message["MsgData"].take()));
            }
            Ok(Message::Close(frame)) => {
                let code = frame.map(|it| u16::from(it.code));
                assert_eq!(code, Some(1001), "the only reason to go");
            }
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

/// Starts the next server while this one runs, and sees this one go.
fn update(mut server: Server, setup: &Setup) -> Server {
    let next = server.start_again(setup);
    assert_eq!(next.address, server.address);
    assert_eq!(server.exit_status().code(), Some(0));
    assert!(server.log().contains("another server has taken over"), "{}", server.log());
    next
}

#[test]
fn three_updates_under_200_uploads() {
    let setup = Setup::default();
    let mut server = setup.start();
    let world = World::new(&server, 200);
    let server = world.use_while(server.address, || {
        for _ in 0..3 {
            world.wait_for_progress();
            server = update(server, &setup);
        }
        world.wait_for_progress();
        server
    });
    world.check_files();
    let connections: u64 =
        world.uploads.iter().map(|it| it.connection_count.load(Ordering::Relaxed)).sum();
    assert!(connections > 200, "nobody noticed anything: there was no update");
    println!(
        "3 updates, 200 uploads over {connections} connections, {} other requests: none refused, none \
         reset, the longest wait for an answer {} ms, no byte lost",
        world.health_count.load(Ordering::Relaxed),
        world.longest_wait_ms.load(Ordering::Relaxed)
    );
    drop(server);
}

#[test]
fn the_next_server_may_have_another_driver_and_other_cores() {
    let drivers =
        [Driver::MonoioRefused, Driver::TokioUring, Driver::Monoio, Driver::MonoioRefused];
    let setups = drivers
        .into_iter()
        .zip([3, 1, 4, 2])
        .map(|(driver, cores)| Setup { cores, ..Setup::new(driver, Place::Disk) });
    let mut server = Setup::default().start();
    let world = World::new(&server, 12);
    let _server = world.use_while(server.address, || {
        for setup in setups {
            world.wait_for_progress();
            server = update(server, &setup);
        }
        world.wait_for_progress();
        server
    });
    world.check_files();
}

/// What a process says that wants to take over.
struct FakeSuccessor(BufReader<UnixStream>);

impl FakeSuccessor {
    fn ask(server: &Server) -> Self {
        let stream = UnixStream::connect(server.storage_dir().join("admin.sock")).expect("socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
        let mut it = Self(BufReader::new(stream));
        it.say(json!({
            "command": "replace",
            "pid": std::process::id(),
            "listen": [server.address],
            "durability": "synced",
        }));
        it
    }

    fn say(&mut self, message: Value) {
        writeln!(self.0.get_mut(), "{message}").expect("say");
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).expect("JSON")
    }
}

#[test]
fn a_successor_that_goes_away_at_any_point_changes_nothing() {
    for driver in [Driver::Monoio, Driver::MonoioRefused, Driver::TokioUring] {
        let server = Setup::new(driver, Place::Disk).start();
        let world = World::new(&server, 8);
        world.use_while(server.address, || {
            for step in 1..4 {
                world.wait_for_progress();
                let mut successor = FakeSuccessor::ask(&server);
                assert_eq!(successor.hear()["status"], "draining");
                if step >= 2 {
                    assert_eq!(successor.hear()["status"], "drained");
                }
                if step >= 3 {
                    successor.say(json!({ "status": "send" }));
                    successor.0.get_mut().read_exact(&mut [0]).expect("the descriptors");
                }
                drop(successor);
                wait_until("it serves again", || {
                    server.log().matches("serving again").count() == step
                });
            }
            // This one does not even wait for an answer.
            drop(FakeSuccessor::ask(&server));
            world.wait_for_progress();
        });
        world.check_files();
    }
}

#[test]
fn a_successor_that_fails_or_is_killed_leaves_the_old_one_serving() {
    let server = Setup::default().start();
    let world = World::new(&server, 8);
    world.use_while(server.address, || {
        // It recovers the journal, and then there is no memory for its cores.
        let without_memory = Setup {
            memory_mib: 1024,
            within: Some(|_| {
                ["sh", "-c", "ulimit -v 700000; exec \"$0\" \"$@\""].map(str::to_owned).into()
            }),
            ..Setup::default()
        };
        world.wait_for_progress();
        let (status, said) = start_refused(without_memory.command(server.storage_dir()));
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("the journal is read"), "{said}");
        wait_until("it serves again", || server.log().contains("serving again"));

        for times in 2..5 {
            world.wait_for_progress();
            let mut killed = Setup::default().command(server.storage_dir()).spawn().expect("start");
            let said = BufReader::new(killed.stderr.take().expect("piped"));
            let mut lines = said.lines().map_while(Result::ok);
            assert!(lines.any(|it| it.contains("taking over from the server that runs")));
            killed.kill().expect("kill");
            killed.wait().expect("wait");
            wait_until("it serves again", || {
                server.log().matches("serving again").count() == times
            });
        }
        world.wait_for_progress();
        let holder = std::fs::read_to_string(server.storage_dir().join("lock")).expect("the lock");
        assert_eq!(holder.trim(), server.process_id().to_string());
    });
    world.check_files();
}

#[test]
fn who_would_serve_something_else_is_refused() {
    let server = Setup::default().start();
    let process = format!("another server uses it (process {})", server.process_id());
    let elsewhere = Setup { listen: "127.0.0.1:1".to_owned(), ..Setup::default() };
    let (status, said) = start_refused(elsewhere.command(server.storage_dir()));
    assert_eq!(status.code(), Some(1));
    assert!(said.contains(&process) && said.contains("remedy: "), "{said}");
    assert!(said.contains("at 127.0.0.1:1"), "{said}");

    let mut otherwise = Setup::default().command(server.storage_dir());
    let (status, said) = start_refused({
        otherwise.args(["--durability", "written"]);
        otherwise
    });
    assert_eq!(status.code(), Some(1));
    assert!(said.contains(&process) && said.contains("remedy: "), "{said}");
    assert!(said.contains(r#"durability is "synced""#), "{said}");
    assert_eq!(server.get(HEALTH).status, 200, "the first one is unharmed");
    assert!(!server.log().contains("handing over"));
}

#[test]
fn a_signal_to_the_one_that_hands_over_is_no_harm() {
    let setup = Setup::default();
    let mut server = setup.start();
    let world = World::new(&server, 8);
    let _server = world.use_while(server.address, || {
        for _ in 0..3 {
            world.wait_for_progress();
            let next = thread::scope(|scope| {
                scope.spawn(|| {
                    let has_begun = || server.log().contains("handing over to another server");
                    wait_until("it hands over", has_begun);
                    server.signal(Signal::TERM);
                });
                server.start_again(&setup)
            });
            assert_eq!(next.address, server.address);
            assert_eq!(server.exit_status().code(), Some(0));
            server = next;
        }
        world.wait_for_progress();
        server
    });
    world.check_files();
}

#[test]
fn a_server_that_stops_hands_over_to_who_asks_meanwhile() {
    let mut server = Setup { cores: 1, ..Setup::default() }.start();
    let backend = Backend::done();
    let id = backend.ticket(&server);
    let mut upload = Client::open(&server, &id, 1000);
    // It waits for the rest of this request.
    let mut half = Connection::open(server.address);
    half.send("GET /incoming/0.1/heal");
    assert_eq!(server.get(HEALTH).status, 200);
    server.signal(Signal::TERM);
    upload.assert_closed(1001);
    let mut successor = FakeSuccessor::ask(&server);
    assert_eq!(successor.hear()["status"], "draining");
    drop(half);
    assert_eq!(successor.hear(), json!({ "status": "drained", "listeners": 1 }));
    successor.say(json!({ "status": "send" }));
    successor.0.get_mut().read_exact(&mut [0]).expect("the descriptors");
    assert_eq!(server.exit_status().code(), Some(0));
}

#[test]
fn a_socket_unit_lets_servers_come_and_go() {
    let temp = tempfile::tempdir().unwrap();
    let notified = temp.path().join("notify");
    let manager = UnixDatagram::bind(&notified).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut state = [0; 200];
        let length = manager.recv(&mut state).expect("a notification");
        String::from_utf8(state[..length].to_vec()).unwrap()
    };
    // One socket for all cores, which outlives every server.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let setup = Setup {
        listen: listener.local_addr().unwrap().to_string(),
        cores: 3,
        socket: Some(Arc::new(listener)),
        ..Setup::default()
    };
    let setup = setup.with_environment("NOTIFY_SOCKET", notified.to_str().unwrap());
    let mut server = setup.start();
    assert_eq!(heard(), format!("READY=1\nMAINPID={}", server.process_id()));
    let world = World::new(&server, 40);
    let _server = world.use_while(server.address, || {
        for _ in 0..3 {
            world.wait_for_progress();
            server.signal(Signal::TERM);
            assert_eq!(heard(), "STOPPING=1");
            assert_eq!(server.exit_status().code(), Some(0));
            server = server.start_again(&setup);
            assert_eq!(heard(), format!("READY=1\nMAINPID={}", server.process_id()));
        }
        // And the new one first.
        world.wait_for_progress();
        server = update(server, &setup);
        world.wait_for_progress();
        server
    });
    world.check_files();
}

#[test]
fn a_socket_of_another_address_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let bound = listener.local_addr().unwrap().to_string();
    let setup = Setup { socket: Some(Arc::new(listener)), ..Setup::default() };
    let setup = Setup { listen: "127.0.0.1:4000".to_owned(), ..setup };
    let storage = storage(Place::Disk);
    let (status, said) = start_refused(setup.command(storage.path()));
    assert_eq!(status.code(), Some(1));
    assert!(said.contains(&bound) && said.contains("remedy: make ListenStream="), "{said}");
}

/// The files of a package for systemd: it understands every line of them.
#[test]
fn systemd_understands_the_units() {
    let temp = tempfile::tempdir().unwrap();
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deploy");
    let names = ["incoming.service", "incoming.socket"];
    for name in names {
        let unit = std::fs::read_to_string(deploy.join(name)).unwrap();
        let unit = unit.replace("/usr/local/bin/incoming", env!("CARGO_BIN_EXE_incoming"));
        std::fs::write(temp.path().join(name), unit).unwrap();
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).args(names.map(|it| temp.path().join(it)));
    let output = verify.output().expect("systemd-analyze (apt-get install systemd)");
    // It succeeds also where it has ignored a line, and says so.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

const HEALTH: &str = "/incoming/0.1/health";
const CHUNK_BYTES: u64 = 8_000;
const FILE_BYTES: u64 = 3_000_000;
