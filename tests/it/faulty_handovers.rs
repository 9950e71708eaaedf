//! Hand-overs to a web app that does everything wrong, by a server that is killed again and again:
//! every upload reaches it, and nothing is deleted before it said that it has the file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tungstenite::Message;

use crate::content::{Content, Random};
use crate::hostile_app::{App, Deed, SECRET, post};
use crate::server::{PATIENCE, Server, Setup, wait_until};

#[test]
fn no_faulty_hand_over_is_lost_and_nothing_is_deleted_early() {
    let setup = Setup::default()
        .with_environment("INCOMING_CALLBACK_TIMEOUT", "2s")
        .with_environment("INCOMING_FINISH_TIMEOUT", "2s")
        .with_environment("INCOMING_REFUSALS_MAX", "1000");
    let first = setup.start();
    // Each run listens where the first one did.
    let setup = Setup { listen: first.address.to_string(), ..setup };
    let kept = tempfile::tempdir_in(first.storage_dir().parent().unwrap()).unwrap();
    let app = App::start(first.address, kept.path().to_owned(), HOST_COUNT);
    for index in 0..UPLOAD_COUNT {
        let mut random = Random(index as u64);
        let length = match index % 25 {
            0 => 0,
            _ => [1, 4096, 10_000, 250_000][random.below(4) as usize],
        };
        let content = Content::new(index as u64, length + random.below(1 + length / 5));
        let mut script: Vec<Deed> =
            (0..random.below(5)).map(|_| Deed::fault(&mut random)).collect();
        script.push(Deed::success(&mut random));
        app.expect(content, index % 2 == 0, script);
    }

    let sent_count = AtomicUsize::new(0);
    let mut servers = vec![first];
    thread::scope(|scope| {
        for browser in 0..BROWSER_COUNT {
            let (app, sent_count, address) = (&app, &sent_count, servers[0].address);
            scope.spawn(move || {
                for index in (browser..UPLOAD_COUNT).step_by(BROWSER_COUNT) {
                    browse(address, app, index);
                    sent_count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for kill in 1..=KILL_COUNT {
            let due = 2 * UPLOAD_COUNT * kill / (KILL_COUNT + 1);
            wait_until("the next kill is due", || {
                sent_count.load(Ordering::Relaxed) + app.taken_count() >= due
            });
            let killed = servers.last_mut().unwrap();
            killed.signal(Signal::KILL);
            killed.exit_status();
            app.on_kill();
            servers.push(servers[0].start_again(&setup));
        }
    });
    let server = servers.last().unwrap();
    let is_over = || app.taken_count() == UPLOAD_COUNT && names(server) == kept_in_place(&app);
    let (patient_until, deadline) = (Instant::now() + PATIENCE / 4, Instant::now() + PATIENCE);
    while !is_over() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
        // Those that had most faults wait for minutes, when no other success brings them forward.
        if Instant::now() > patient_until {
            retry_all(server.address, &app);
        }
    }
    thread::sleep(QUIET);
    check(&app, &servers);
    assert_eq!(names(server), kept_in_place(&app));
}

/// As an operator would. Most have nothing to retry.
fn retry_all(server: SocketAddr, app: &App) {
    for index in 0..UPLOAD_COUNT {
        let upload = app.upload(index);
        let (id, is_taken) = {
            let upload = upload.lock().unwrap();
            (upload.id.clone(), upload.is_taken)
        };
        if !is_taken {
            let form = [("id", id.as_str()), ("backendSecret", SECRET)];
            post(server, "/incoming/0.1/backend/retry_upload", &form);
        }
    }
    thread::sleep(Duration::from_secs(1));
}

/// Uploads whose file stays where it is, because the web app wants it so.
fn kept_in_place(app: &App) -> BTreeSet<String> {
    let uploads = (0..UPLOAD_COUNT).map(|it| app.upload(it));
    let kept = uploads.filter_map(|it| {
        let it = it.lock().unwrap();
        (!it.is_removed_when_finished && it.moved_to.is_none()).then(|| it.id.clone())
    });
    kept.collect()
}

fn names(server: &Server) -> BTreeSet<String> {
    let name = |it: &std::path::PathBuf| it.file_name().unwrap().to_str().unwrap().to_owned();
    server.upload_files().iter().map(name).collect()
}

fn check(app: &App, servers: &[Server]) {
    // Attempts that never came to the web app are in the log.
    let mut logged: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for line in
        servers.iter().flat_map(|it| it.log().lines().map(str::to_owned).collect::<Vec<_>>())
    {
        let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
        if let (Some(id), Some(attempt)) = (line["upload"].as_str(), line["attempt"].as_u64()) {
            logged.entry(id.to_owned()).or_default().insert(attempt as u32);
        }
    }
    let (mut callbacks, mut duplicates, mut repeated, mut late, mut lost) = (0, 0, 0, 0, 0);
    let mut faults: BTreeMap<String, usize> = BTreeMap::new();
    let mut gaps = Vec::new();
    for upload in (0..UPLOAD_COUNT).map(|it| app.upload(it)) {
        let upload = upload.lock().unwrap();
        callbacks += upload.attempts.len();
        duplicates += upload.duplicate_count;
        repeated += upload.repeated_count;
        late += upload.late_count;
        lost += usize::from(!upload.is_taken);
        for deed in upload.script.iter().take(upload.attempts.len()) {
            let name = format!("{deed:?}");
            let name = name.split_once(['(', '{']).map_or(name.as_str(), |it| it.0);
            *faults.entry(name.to_owned()).or_default() += 1;
        }
        let mut known: BTreeSet<u32> = upload.attempts.iter().copied().collect();
        known.extend(logged.get(&upload.id[..8]).into_iter().flatten());
        if known.last() != Some(&(known.len() as u32)) {
            gaps.push(format!("{}: {known:?}, came: {:?}", upload.id, upload.attempts));
        }
        if let Some(path) = &upload.moved_to {
            upload.content.assert_file(path);
        }
    }
    let violations = app.violations();
    let is_early = |it: &&String| it.contains("the file is not there");
    println!(
        "{UPLOAD_COUNT} uploads, {callbacks} callbacks, {} kills: {lost} lost, {} deleted early; \
         {duplicates} duplicates, {repeated} of them after a kill though done was heard, \
         {late} on their way at the end",
        servers.len() - 1,
        violations.iter().filter(is_early).count(),
    );
    println!("what the web app did: {faults:?}");
    assert_eq!(violations, [""; 0]);
    assert_eq!(gaps, [""; 0], "attempts are counted one by one");
    assert_eq!(lost, 0);
}

/// A browser that sends a file, whatever becomes of the server meanwhile.
fn browse(server: SocketAddr, app: &App, index: usize) {
    let (upload, url) = (app.upload(index), app.url(index));
    let (content, remove) = {
        let upload = upload.lock().unwrap();
        (upload.content, if upload.is_removed_when_finished { "true" } else { "false" })
    };
    let form = [
        ("signalFinishURL", url.as_str()),
        ("removeFileWhenFinished", remove),
        ("backendSecret", SECRET),
    ];
    let mut id = String::new();
    wait_until("there is a ticket", || {
        match post(server, "/incoming/0.1/backend/new_upload", &form) {
            Some((200, text)) => {
                id = text;
                true
            }
            None => false,
            other => panic!("new_upload: {other:?}"),
        }
    });
    upload.lock().unwrap().id.clone_from(&id);
    // Some wait for the end, and those of empty files, for nothing else says that they are there.
    let stays = content.length_bytes == 0 || index.is_multiple_of(32);
    let is_sent = || try_upload(server, &id, content, stays).is_some();
    wait_until("the file is on the server", is_sent);
}

/// Sends the rest of a file, on one connection. `None`: it was lost, or the server closed it.
fn try_upload(server: SocketAddr, id: &str, content: Content, stays: bool) -> Option<()> {
    let stream = TcpStream::connect(server).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let url = format!("ws://{server}/incoming/0.1/frontend/upload_ws");
    let (mut socket, _) = tungstenite::client(url, stream).ok()?;
    let request = json!({ "Id": id, "LengthBytes": content.length_bytes, "Name": "it.bin" });
    let say = |kind: &str, data: Value| {
        Message::text(json!({ "MsgType": kind, "MsgData": data }).to_string())
    };
    socket.send(say("MsgUploadReq", request)).ok()?;
    let mut unacknowledged = None;
    loop {
        let Message::Text(text) = socket.read().ok()? else { continue };
        let message: Value = serde_json::from_str(&text).expect("JSON");
        match message["MsgType"].as_str().expect("MsgType") {
            "MsgUploadConf" => {
                socket.send(say("MsgAck", json!({ "Ack": true }))).ok()?;
                let mut position = message["MsgData"]["FilePos"].as_u64().expect("FilePos");
                if position == content.length_bytes && !stays {
                    return Some(());
                }
                while position < content.length_bytes {
                    let piece = content.piece(position, CHUNK_BYTES);
                    position += piece.len() as u64;
                    *unacknowledged.get_or_insert(0) += 1;
                    socket.send(Message::binary(piece)).ok()?;
                }
            }
            "MsgChunkAck" => {
                unacknowledged = unacknowledged.map(|it: u32| it - 1);
                if unacknowledged == Some(0) && !stays {
                    return Some(());
                }
            }
            "MsgAllDone" => return Some(()),
            other => panic!("{other}: {message}"),
        }
    }
}

const UPLOAD_COUNT: usize = 500;
const BROWSER_COUNT: usize = 16;
/// So many names under which the web app is reached: what is silent under one is not under others.
const HOST_COUNT: usize = 8;
const KILL_COUNT: usize = 12;
const CHUNK_BYTES: u64 = 100_000;
/// Long enough for a callback too many to come.
const QUIET: Duration = Duration::from_secs(3);
