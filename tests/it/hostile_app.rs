//! A web app on raw sockets that does everything wrong that web apps do, by script, and remembers
//! what it was told: nothing may be lost, removed early or said under another name.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::content::{Content, Random};
use crate::http::{URLENCODED, encode, request_bytes};
use crate::server::PATIENCE;

/// What the web app does with one callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// Resets the connection, and the next ones are refused for a while.
    Refuse,
    /// So many bytes of an answer, then RST.
    ResetAt(usize),
    /// The head of a good answer, then the end.
    HeadOnly,
    Hang,
    /// A good answer, one byte at a time, that would take for ever.
    Dribble,
    /// Exactly this.
    Say(&'static str),
    /// Takes the file, and its answer is lost.
    DoneUnheard(usize),
    /// `wait`, and then it forgets the upload.
    WaitForgotten,
    WaitAndFinish(Finish),
    Done,
}

/// How the web app says that it has the file, after `wait`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finish {
    Once,
    Twice,
    /// Before the server has read the `wait`.
    Early,
}

/// The web app: one process, several hosts.
#[derive(Clone, Debug)]
pub struct App(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    server: SocketAddr,
    /// Where it moves files to.
    kept_dir: PathBuf,
    hosts: Vec<SocketAddr>,
    uploads: Mutex<Vec<Arc<Mutex<Upload>>>>,
    /// When the server was last killed.
    killed_at: Mutex<Option<Instant>>,
    violations: Mutex<Vec<String>>,
}

/// What the web app knows of one upload.
#[derive(Debug)]
pub struct Upload {
    pub content: Content,
    pub id: String,
    pub is_removed_when_finished: bool,
    /// What it does with the callbacks, in their order. The last one is for all that follow.
    pub script: Vec<Deed>,
    /// `Incoming-Attempt` of each callback.
    pub attempts: Vec<u32>,
    /// It has seen the whole file, and taken it.
    pub is_taken: bool,
    pub moved_to: Option<PathBuf>,
    /// Callbacks after it had taken the file.
    pub duplicate_count: usize,
    /// Callbacks after the server had heard `done`, and was killed.
    pub repeated_count: usize,
    /// Callbacks that were on their way when the server heard of the end.
    pub late_count: usize,
    /// When the callback came whose `done` the server has heard.
    heard_at: Option<Instant>,
    /// The server has been asked to finish it, and has perhaps done so.
    is_finishing: bool,
    is_finished: bool,
    last_at: Option<Instant>,
}

impl App {
    pub fn start(server: SocketAddr, kept_dir: PathBuf, host_count: usize) -> Self {
        let bind = |_| TcpListener::bind("127.0.0.1:0").expect("bind");
        let listeners: Vec<TcpListener> = (0..host_count).map(bind).collect();
        let hosts = listeners.iter().map(|it| it.local_addr().expect("address")).collect();
        let app = Self(Arc::new(Inner {
            server,
            kept_dir,
            hosts,
            uploads: Mutex::default(),
            killed_at: Mutex::default(),
            violations: Mutex::default(),
        }));
        for listener in listeners {
            let inner = Arc::clone(&app.0);
            thread::spawn(move || inner.listen(listener));
        }
        app
    }

    /// Where an upload is to be handed over.
    pub fn url(&self, index: usize) -> String {
        format!("http://{}/hand_over/{index}", self.0.hosts[index % self.0.hosts.len()])
    }

    /// Knows an upload from now on. They are numbered in this order.
    pub fn expect(&self, content: Content, is_removed_when_finished: bool, script: Vec<Deed>) {
        self.0.uploads.lock().unwrap().push(Arc::new(Mutex::new(Upload {
            content,
            id: String::new(),
            is_removed_when_finished,
            script,
            attempts: Vec::new(),
            is_taken: false,
            moved_to: None,
            duplicate_count: 0,
            repeated_count: 0,
            late_count: 0,
            heard_at: None,
            is_finishing: false,
            is_finished: false,
            last_at: None,
        })));
    }

    pub fn upload(&self, index: usize) -> Arc<Mutex<Upload>> {
        Arc::clone(&self.0.uploads.lock().unwrap()[index])
    }

    pub fn taken_count(&self) -> usize {
        let uploads = self.0.uploads.lock().unwrap();
        uploads.iter().filter(|it| it.lock().unwrap().is_taken).count()
    }

    /// The server was killed and is gone.
    pub fn on_kill(&self) {
        *self.0.killed_at.lock().unwrap() = Some(Instant::now());
    }

    /// What it was told and must not have been.
    pub fn violations(&self) -> Vec<String> {
        self.0.violations.lock().unwrap().clone()
    }
}

impl Inner {
    fn listen(self: &Arc<Self>, first: TcpListener) {
        let address = first.local_addr().expect("address");
        let mut listener = Arc::new(first);
        loop {
            let door = Arc::new(Door(Mutex::new(Some(Arc::clone(&listener)))));
            while let Ok((stream, _)) = listener.accept() {
                let (inner, door) = (Arc::clone(self), Arc::clone(&door));
                let accepted = Instant::now();
                thread::spawn(move || inner.serve(stream, accepted, &door));
            }
            drop(listener);
            thread::sleep(AWAY);
            listener = loop {
                // Somebody else may have the port for a moment.
                match TcpListener::bind(address) {
                    Ok(it) => break Arc::new(it),
                    Err(_) => thread::sleep(AWAY),
                }
            };
        }
    }

    fn serve(self: &Arc<Self>, stream: TcpStream, accepted: Instant, door: &Door) {
        stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let mut reader = BufReader::new(stream);
        // A server that is killed leaves requests unfinished.
        let Some(call) = read_call(&mut reader) else { return };
        let mut stream = reader.into_inner();
        let upload = Arc::clone(&self.uploads.lock().unwrap()[call.index]);
        let deed = self.on_call(&mut upload.lock().unwrap(), &call, accepted);
        let done = answer("done");
        match deed {
            Deed::Refuse => {
                reset(stream);
                door.shut();
            }
            Deed::ResetAt(count) | Deed::DoneUnheard(count) => {
                let _ = stream.write_all(&done.as_bytes()[..count.min(done.len() - 1)]);
                reset(stream);
            }
            Deed::HeadOnly => {
                let _ = stream.write_all(&done.as_bytes()[..done.len() - 4]);
            }
            Deed::Hang => drop(stream.read(&mut [0])),
            Deed::Dribble => {
                for byte in done.as_bytes().iter().take(done.len() - 1).chain([b'd'; 99].iter()) {
                    if stream.write_all(&[*byte]).is_err() {
                        break;
                    }
                    thread::sleep(DRIBBLE_EVERY);
                }
            }
            Deed::Say(text) => drop(stream.write_all(text.as_bytes())),
            Deed::WaitForgotten => drop(stream.write_all(answer("wait").as_bytes())),
            Deed::WaitAndFinish(how) => {
                let finish = {
                    let (inner, upload) = (Arc::clone(self), Arc::clone(&upload));
                    move || inner.finish(&upload, how)
                };
                let early = (how == Finish::Early).then(|| thread::spawn(finish.clone()));
                if early.is_some() {
                    thread::sleep(DRIBBLE_EVERY);
                }
                let _ = stream.write_all(answer("wait").as_bytes());
                drop(stream);
                if early.is_none() {
                    finish();
                }
            }
            Deed::Done => {
                let is_sent = stream.write_all(done.as_bytes()).is_ok();
                let is_read = stream.read(&mut [0]).is_ok_and(|count| count == 0);
                if is_sent && is_read && accepted.elapsed() < SURELY_IN_TIME {
                    upload.lock().unwrap().heard_at = Some(accepted);
                }
            }
        }
    }

    /// What must be true of a callback, and what is done with it.
    fn on_call(&self, upload: &mut Upload, call: &Call, accepted: Instant) -> Deed {
        let shown = format!("callback {} of {}", call.attempt, call.id);
        if call.id != upload.id || call.key != upload.id {
            self.violation(format!("{shown}: it is {}, its key is {}", upload.id, call.key));
        }
        let last_at = upload.last_at.replace(accepted);
        let was_killed = last_at.is_some_and(|it| self.was_killed_since(it));
        let last = upload.attempts.last().copied().unwrap_or(0);
        if call.attempt < 1 || call.attempt <= last && !was_killed {
            self.violation(format!("{shown}: it comes after {:?}", upload.attempts));
        }
        upload.attempts.push(call.attempt);
        upload.duplicate_count += usize::from(upload.is_taken);
        match upload.heard_at {
            Some(at) if !self.was_killed_since(at) => {
                self.violation(format!("{shown}: it was done"))
            }
            Some(_) => upload.repeated_count += 1,
            None => {}
        }
        if upload.is_finished {
            upload.late_count += 1;
            if upload.late_count > 1 {
                self.violation(format!("{shown}: it was finished"));
            }
        }
        let is_here = fs::read(&call.path).is_ok_and(|it| {
            it.len() as u64 == upload.content.length_bytes
                && it == upload.content.piece(0, upload.content.length_bytes)
        });
        let may_be_away = upload.moved_to.is_some() || upload.is_finishing;
        if !is_here && !may_be_away {
            self.violation(format!("{shown}: the file is not there, or not the file"));
        }
        let step = (upload.attempts.len() - 1).min(upload.script.len() - 1);
        let deed = upload.script[step];
        if matches!(deed, Deed::DoneUnheard(_) | Deed::WaitAndFinish(_) | Deed::Done) && is_here {
            self.take(upload, call);
        }
        deed
    }

    /// Also shortly before: what a killed server has sent is still read after its end.
    fn was_killed_since(&self, callback_at: Instant) -> bool {
        let killed_at = *self.killed_at.lock().unwrap();
        killed_at.is_some_and(|it| it + SURELY_IN_TIME >= callback_at)
    }

    /// Does with the file what the web app wants it for. If the server keeps it, sometimes
    /// nothing: it stays where it is.
    fn take(&self, upload: &mut Upload, call: &Call) {
        if !upload.is_removed_when_finished && call.index % 4 < 2 && upload.moved_to.is_none() {
            let path = self.kept_dir.join(&upload.id);
            fs::rename(&call.path, &path).expect("move the file away");
            upload.moved_to = Some(path);
        }
        upload.is_taken = true;
    }

    fn finish(&self, upload: &Mutex<Upload>, how: Finish) {
        let id = {
            let mut upload = upload.lock().unwrap();
            upload.is_finishing = true;
            upload.id.clone()
        };
        let deadline = Instant::now() + PATIENCE;
        let mut left = if how == Finish::Twice { 2 } else { 1 };
        while left > 0 && Instant::now() < deadline {
            let form = [("id", id.as_str()), ("backendSecret", SECRET)];
            match post(self.server, "/incoming/0.1/backend/finish_upload", &form) {
                Some((200, text)) if text == "ok" => left -= 1,
                // The server is away, or has not read the `wait`.
                None | Some((412, _)) => thread::sleep(Duration::from_millis(50)),
                other => return self.violation(format!("finish_upload of {id}: {other:?}")),
            }
        }
        upload.lock().unwrap().is_finished = left == 0;
    }

    fn violation(&self, what: String) {
        self.violations.lock().unwrap().push(what);
    }
}

impl Deed {
    /// Something that is not yet the end.
    pub fn fault(random: &mut Random) -> Self {
        let bytes = random.below(60) as usize;
        match random.below(16) {
            0 => Self::Refuse,
            1 | 2 => Self::ResetAt(bytes),
            3 => Self::HeadOnly,
            4 => Self::Hang,
            5 => Self::Dribble,
            6 => Self::Say("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n<html>Hi</ht"),
            7 => Self::Say("HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\n\r\n"),
            8 => Self::Say("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ndone"),
            9 => Self::Say("HTTP/1.1 429 Slow\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"),
            10 => Self::Say("HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 4\r\n\r\ndone"),
            11 => Self::Say("SSH-2.0-OpenSSH\r\n"),
            12 | 13 => Self::DoneUnheard(bytes),
            14 => Self::WaitForgotten,
            _ => Self::Say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ndone done"),
        }
    }

    pub fn success(random: &mut Random) -> Self {
        match random.below(8) {
            0 => Self::WaitAndFinish(Finish::Once),
            1 => Self::WaitAndFinish(Finish::Twice),
            2 => Self::WaitAndFinish(Finish::Early),
            _ => Self::Done,
        }
    }
}

/// A listener, until it is shut.
struct Door(Mutex<Option<Arc<TcpListener>>>);

impl Door {
    fn shut(&self) {
        if let Some(listener) = self.0.lock().unwrap().take() {
            SockRef::from(&*listener).shutdown(Shutdown::Both).expect("shut");
        }
    }
}

struct Call {
    index: usize,
    id: String,
    key: String,
    attempt: u32,
    path: PathBuf,
}

fn read_call(reader: &mut impl BufRead) -> Option<Call> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|it| *it > 0)?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let target = head.first()?.split(' ').nth(1)?;
    let index = target.strip_prefix("/hand_over/")?.parse().ok()?;
    let header = |name: &str| {
        let of_name = |it: &&str| it.to_ascii_lowercase().starts_with(&format!("{name}:"));
        let line = head.iter().map(String::as_str).find(of_name)?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let mut body = vec![0; header("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let form: BTreeMap<String, String> = form_urlencoded::parse(&body).into_owned().collect();
    assert_eq!(form["cancelled"], "no");
    assert_eq!(form["backendSecret"], SECRET);
    Some(Call {
        index,
        id: form["id"].clone(),
        key: header("idempotency-key").unwrap_or_default(),
        attempt: header("incoming-attempt").and_then(|it| it.parse().ok()).unwrap_or(0),
        path: form["filename"].clone().into(),
    })
}

fn answer(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Ends the connection with RST.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
}

/// A POST to a server that may die at any moment: `None` unless all of its answer comes.
pub fn post(server: SocketAddr, target: &str, form: &[(&str, &str)]) -> Option<(u16, String)> {
    let headers = [("Content-Type", URLENCODED), ("Connection", "close")];
    let request = request_bytes("POST", target, &headers, &encode(form));
    let exchange = || -> io::Result<String> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = exchange().ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|it| it.strip_prefix("Content-Length: "))?;
    let is_whole = length.parse() == Ok(body.len());
    let status = head.split(' ').nth(1)?.parse().ok()?;
    is_whole.then(|| (status, body.to_owned()))
}

/// What the web app gives with each ticket.
pub const SECRET: &str = "a s&cret";

const AWAY: Duration = Duration::from_millis(200);
const DRIBBLE_EVERY: Duration = Duration::from_millis(50);
/// An answer that took no longer than this was not too late. Half of the callback time-out.
const SURELY_IN_TIME: Duration = Duration::from_secs(1);
