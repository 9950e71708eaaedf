//! The web app: a small HTTP server that records the callbacks it gets and answers by script.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use crate::http::URLENCODED;
use crate::server::{PATIENCE, Server};

/// One callback as it came in.
#[derive(Clone, Debug)]
pub struct Call {
    pub target: String,
    pub form: BTreeMap<String, String>,
    /// The form as it was sent.
    pub body: Vec<u8>,
    /// `Incoming-Signature`.
    pub signature: Option<String>,
    /// `Incoming-Attempt`.
    pub attempt_said: usize,
    /// Which callback of its ticket this is, counted from 1.
    pub attempt: usize,
}

impl Call {
    pub fn field(&self, name: &str) -> &str {
        self.form.get(name).unwrap_or_else(|| panic!("no field {name} in {:?}", self.form))
    }

    pub fn path(&self) -> PathBuf {
        assert_eq!(self.field("cancelled"), "no");
        PathBuf::from(self.field("filename"))
    }

    /// Checks everything that a cancellation says, and returns its reason.
    pub fn cancel_reason(&self) -> &str {
        assert_eq!(self.field("cancelled"), "yes");
        assert_eq!(self.field("filename"), "");
        self.field("cancelReason")
    }
}

/// What the web app answers.
#[derive(Clone, Debug)]
pub enum Answer {
    Done,
    Wait,
    /// A status code and a body.
    Status(u16, &'static str),
    /// Exactly these bytes, then the end of the connection.
    Raw(&'static str),
}

/// A running web app.
#[derive(Clone)]
pub struct Backend {
    address: SocketAddr,
    calls: Arc<(Mutex<Vec<Call>>, Condvar)>,
}

impl Backend {
    /// Answers every callback with `done`.
    pub fn done() -> Self {
        Self::scripted(|_| Answer::Done)
    }

    /// Answers every callback with `done`, once the gate is open.
    pub fn gated() -> (Self, Gate) {
        let gate = Gate::default();
        let closed = gate.clone();
        let backend = Self::scripted(move |_| {
            closed.pass();
            Answer::Done
        });
        (backend, gate)
    }

    /// Answers by script. A script that blocks is a web app that is slow.
    pub fn scripted(script: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("bind"), script)
    }

    /// Behind a given listener.
    pub fn on(
        listener: TcpListener,
        script: impl Fn(&Call) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("address");
        let backend = Self { address, calls: Arc::default() };
        let (calls, script) = (Arc::clone(&backend.calls), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (calls, script) = (Arc::clone(&calls), Arc::clone(&script));
                let stream = stream.expect("accept");
                thread::spawn(move || serve(stream, &calls, &*script));
            }
        });
        backend
    }

    pub fn url(&self) -> String {
        format!("http://{}/api/backend/hand_over_upload", self.address)
    }

    /// A ticket with this web app's URL, everything else by default.
    pub fn ticket(&self, server: &Server) -> String {
        self.ticket_with(server, &[])
    }

    /// A ticket whose file stays when it is finished.
    pub fn ticket_kept(&self, server: &Server) -> String {
        self.ticket_with(server, &[("removeFileWhenFinished", "false")])
    }

    pub fn ticket_with(&self, server: &Server, parameters: &[(&str, &str)]) -> String {
        let url = self.url();
        let mut form = vec![("signalFinishURL", url.as_str())];
        form.extend_from_slice(parameters);
        let response = server.post("/incoming/0.1/backend/new_upload", &form);
        assert_eq!(response.status, 200, "{}", response.text());
        response.text().to_owned()
    }

    /// The `attempt`-th callback of a ticket, waited for.
    pub fn call(&self, id: &str, attempt: usize) -> Call {
        let (calls, arrived) = &*self.calls;
        let calls = calls.lock().unwrap();
        let found = |calls: &[Call]| {
            calls.iter().find(|it| it.attempt == attempt && it.field("id") == id).cloned()
        };
        let (calls, _) =
            arrived.wait_timeout_while(calls, PATIENCE, |calls| found(calls).is_none()).unwrap();
        found(&calls).unwrap_or_else(|| panic!("no callback {attempt} of {id}: {calls:?}"))
    }

    /// How many callbacks a ticket has had so far.
    pub fn call_count(&self, id: &str) -> usize {
        self.calls.0.lock().unwrap().iter().filter(|it| it.field("id") == id).count()
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({})", self.address)
    }
}

/// A door that a script waits at until the test opens it.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub fn pass(&self) {
        let open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_timeout_while(open, PATIENCE, |open| !*open).unwrap());
    }
}

fn serve(
    stream: TcpStream,
    calls: &(Mutex<Vec<Call>>, Condvar),
    script: &(dyn Fn(&Call) -> Answer + Send + Sync),
) {
    stream.set_nodelay(true).expect("TCP_NODELAY");
    let mut reader = BufReader::new(stream);
    while let Some(mut call) = read_call(&mut reader) {
        let mut all = calls.0.lock().unwrap();
        call.attempt = 1 + all.iter().filter(|it| it.field("id") == call.field("id")).count();
        all.push(call.clone());
        drop(all);
        calls.1.notify_all();
        let (status, body) = match script(&call) {
            Answer::Done => (200, "done"),
            Answer::Wait => (200, "wait"),
            Answer::Status(status, body) => (status, body),
            Answer::Raw(bytes) => {
                let _ = reader.get_mut().write_all(bytes.as_bytes());
                return;
            }
        };
        let length = body.len();
        let head = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: {length}\r\n\r\n{body}");
        // The server may have hung up: that is its right.
        let _ = reader.get_mut().write_all(head.as_bytes());
    }
}

/// The next request of a connection, or `None` at its end.
fn read_call(reader: &mut BufReader<TcpStream>) -> Option<Call> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|it| *it > 0)?;
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), Some("POST"), "{line}");
    let target = words.next().expect("a target").to_owned();
    let (mut length, mut content_type, mut host) = (None, String::new(), false);
    let (mut key, mut signature, mut attempt_said) = (String::new(), None, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|it| *it > 0)?;
        let line = line.trim_end().to_ascii_lowercase();
        let Some((name, value)) = line.split_once(':') else { break };
        match name {
            "content-length" => length = value.trim().parse().ok(),
            "content-type" => content_type = value.trim().to_owned(),
            "host" => host = true,
            "idempotency-key" => key = value.trim().to_owned(),
            "incoming-attempt" => attempt_said = value.trim().parse().ok(),
            "incoming-signature" => signature = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    assert!(host, "callbacks carry Host");
    assert_eq!(content_type, URLENCODED);
    let mut body = vec![0; length.expect("callbacks carry Content-Length")];
    reader.read_exact(&mut body).ok()?;
    let form: BTreeMap<String, String> = form_urlencoded::parse(&body).into_owned().collect();
    let fields = form.keys().map(String::as_str).filter(|it| *it != "metadata");
    assert_eq!(fields.collect::<Vec<_>>(), FIELDS);
    assert_eq!(key, form["id"], "every repetition has the same Idempotency-Key");
    let attempt_said = attempt_said.expect("callbacks carry Incoming-Attempt");
    Some(Call { target, form, body, signature, attempt_said, attempt: 0 })
}

/// What every callback carries: the fields of the protocol, and `secret` for the oldest web apps.
const FIELDS: [&str; 7] = [
    "backendSecret",
    "cancelReason",
    "cancelled",
    "filename",
    "filenameFromBrowser",
    "id",
    "secret",
];
