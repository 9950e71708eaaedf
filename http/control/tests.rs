//! The control thread against a scripted web app on loopback.

mod hostile;
mod shares;
mod signed;
mod tls;

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use engine::handover::{Answer, Callback, Outcome};
use engine::ticket::TicketId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A web app that answers by path: [`script`] says what. It hands out what it was asked.
struct App {
    port: u16,
    requests: mpsc::Receiver<String>,
}

/// What a web app does with a request for `path`: pieces of its answer, and whether it closes then.
fn script(path: &str, port: u16) -> (Vec<String>, bool) {
    let full = |status: &str, fields: &str, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n{body}")
    };
    let one = |it: String| (vec![it], true);
    if let Some(status) = path.strip_prefix("/redirect/") {
        return one(full(&format!("{status} Go"), "Location: ../done?x=1\r\n", ""));
    }
    match path {
        "/done" | "/done?x=1" => one(full("200 OK", "", "done")),
        "/newline" => one(full("200 OK", "", "done\n")),
        "/wait" => one(full("200 OK", "", "wait")),
        "/kept" => (vec![full("200 OK", "", "done")], false),
        "/500" => one(full("500 Oops", "Retry-After: 7\r\n", "boom")),
        "/201" => one(full("201 Created", "", "done")),
        "/204" => one("HTTP/1.1 204 No Content\r\n\r\n".to_owned()),
        "/else" => one(full("200 OK", "", "perhaps")),
        "/garbage" => one("this is no HTTP\r\n\r\n".to_owned()),
        "/truncated" => one("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ndone".to_owned()),
        "/old" => one("HTTP/1.0 200 OK\r\n\r\ndone".to_owned()),
        "/chunked" => one(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ndo\r\n2\r\nne\r\n0\r\n\r\n"
                .to_owned(),
        ),
        "/continue" => one(format!("HTTP/1.1 100 Continue\r\n\r\n{}", full("200 OK", "", "done"))),
        "/long" => one(full("200 OK", "", &"x".repeat(answer::REPLY_BYTES_MAX + 1))),
        "/loop" => one(full("307 Go", "Location: /loop\r\n", "")),
        "/nowhere" => one(full("302 Go", "", "")),
        "/ftp" => one(full("302 Go", "Location: ftp://127.0.0.1/\r\n", "")),
        "/other" => one(full("307 Go", &format!("Location: http://localhost:{port}/done\r\n"), "")),
        "/hang" => (vec![], false),
        "/headers-only" => (vec!["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n".to_owned()], false),
        "/dribble" => {
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n".to_owned();
            (std::iter::once(head).chain(std::iter::repeat_n("d".to_owned(), 5000)).collect(), true)
        }
        _ => one(full("404 Not Found", "", "")),
    }
}

impl App {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, requests) = mpsc::channel();
        let serve = async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(Self::answer(socket, sender.clone(), port));
            }
        };
        std::thread::spawn(move || runtime.block_on(serve));
        Self { port, requests }
    }

    async fn answer(mut socket: tokio::net::TcpStream, requests: mpsc::Sender<String>, port: u16) {
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        while !is_complete(&request) {
            match socket.read(&mut buffer).await {
                Ok(length) if length > 0 => request.extend(&buffer[..length]),
                _ => return,
            }
        }
        let request = String::from_utf8(request).unwrap();
        let path = request.split(' ').nth(1).unwrap().to_owned();
        let _ = requests.send(request);
        let (pieces, close) = script(&path, port);
        for (index, piece) in pieces.iter().enumerate() {
            if index > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if socket.write_all(piece.as_bytes()).await.is_err() {
                return;
            }
        }
        if !close {
            // Until the client has enough of it.
            let _ = socket.read(&mut buffer).await;
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn next_request(&self) -> String {
        self.requests.recv_timeout(PATIENCE).expect("a request")
    }
}

fn is_complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.to_ascii_lowercase();
    let length = length
        .split("content-length: ")
        .nth(1)
        .map_or(0, |it| it.split("\r\n").next().unwrap().parse().unwrap());
    body.len() >= length
}

/// The control thread, with the test as its only core.
struct Bench {
    sender: ControlSender,
    answers: mpsc::Receiver<(CoreId, Mail)>,
    thread: JoinHandle<()>,
}

impl Bench {
    fn start(timeout: Duration) -> Self {
        Self::with(Settings { timeout, secret: None, own_ca: Vec::new(), core_count: 7 })
    }

    fn with(settings: Settings) -> Self {
        let (post, answers) = mpsc::channel();
        let (control, sender) = Control::new(settings, move |core, mail| {
            let _ = post.send((core, mail));
        })
        .unwrap();
        let thread = std::thread::spawn(|| control.run());
        Self { sender, answers, thread }
    }

    fn ask(&self, ticket: u128, url: &str, outcome: Outcome) {
        self.send(callback(ticket, url, outcome));
    }

    fn send(&self, callback: Callback) {
        self.sender.send(Mail::Callback { from: CoreId(5), callback });
    }

    /// The next answer; that a host is back is heard elsewhere.
    fn next_answer(&self) -> (TicketId, Answer) {
        let (core, mail) = loop {
            match self.answers.recv_timeout(PATIENCE).expect("an answer") {
                (_, Mail::HostBack { .. }) => {}
                other => break other,
            }
        };
        assert_eq!(core, CoreId(5));
        let Mail::CallbackAnswer { ticket, attempt, answer } = mail else { panic!("{mail:?}") };
        assert_eq!(attempt, 3);
        (ticket, answer)
    }

    fn arrived(&self, url: &str) -> Answer {
        self.ask(1, url, arrived());
        self.next_answer().1
    }

    fn cancelled(&self, url: &str) -> Answer {
        self.ask(1, url, Outcome::Cancelled { reason: "zu groß".to_owned() });
        self.next_answer().1
    }
}

fn callback(ticket: u128, url: &str, outcome: Outcome) -> Callback {
    Callback {
        ticket: TicketId(ticket),
        url: url.to_owned(),
        backend_secret: "Ein Geheimnis ü".to_owned(),
        signing_secret: String::new(),
        metadata: String::new(),
        filename_from_browser: "größe 1+1 & 大.bin".to_owned(),
        outcome,
        attempt: 3,
    }
}

fn arrived() -> Outcome {
    Outcome::Arrived { path: PathBuf::from("/srv/arrived/1") }
}

#[track_caller]
fn assert_unreached(answer: Answer, text: &str) {
    let Answer::Unreached { error, .. } = answer else { panic!("{answer:?}") };
    assert!(error.contains(text), "{error}");
}

#[track_caller]
fn assert_refused(answer: Answer, text: &str) {
    let Answer::Refused { error, .. } = answer else { panic!("{answer:?}") };
    assert!(error.contains(text), "{error}");
}

#[test]
fn answers_that_are_understood() {
    let (app, bench) = (App::start(), Bench::start(PATIENCE));
    for path in ["/done", "/newline", "/old", "/chunked", "/continue", "/kept"] {
        assert_eq!(bench.arrived(&app.url(path)), Answer::Done, "{path}");
    }
    assert_eq!(bench.arrived(&app.url("/wait")), Answer::Wait);
}

#[test]
fn answers_that_are_no_success() {
    let (app, bench) = (App::start(), Bench::start(PATIENCE));
    let answer = bench.arrived(&app.url("/500"));
    assert_eq!(
        answer,
        Answer::Unreached {
            error: "status 500 Internal Server Error, not 200: \"boom\"".to_owned(),
            retry_after: Some(Duration::from_secs(7)),
        }
    );
    for (path, text) in [
        ("/garbage", "invalid HTTP version parsed"),
        ("/truncated", "end of file before message length reached"),
    ] {
        assert_unreached(bench.arrived(&app.url(path)), text);
    }
    for (path, text) in [
        ("/201", "status 201 Created, not 200"),
        ("/204", "status 204 No Content, not 200"),
        ("/404", "status 404 Not Found, not 200"),
        ("/else", "neither done nor wait: \"perhaps\""),
        ("/long", "longer than 65536 bytes"),
        ("/nowhere", "status 302 Found, not 200"),
        ("/ftp", "neither http nor https"),
        ("/loop", "more than 5 redirects"),
    ] {
        assert_refused(bench.arrived(&app.url(path)), text);
    }
}

#[test]
fn urls_that_cannot_work_say_why() {
    let bench = Bench::start(PATIENCE);
    for (url, text) in [
        ("/only/a/path", "the URL has no scheme and host; signalFinishURL must be like http://"),
        ("ftp://127.0.0.1/", "neither http nor https"),
        ("mailto:ada", "neither http nor https"),
        ("http://", "the URL is invalid: empty host"),
        ("http://[::1/", "the URL is invalid: invalid IPv6 address"),
    ] {
        assert_refused(bench.arrived(url), text);
        assert_eq!(bench.cancelled(url), Answer::Done);
    }
    let unknown = "http://no-such-host.invalid/";
    assert_unreached(bench.arrived(unknown), "the host name has no address");
    assert_unreached(bench.cancelled(unknown), "the host name has no address");
}

#[test]
fn a_refused_connection_is_a_failure_that_names_it() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let bench = Bench::start(PATIENCE);
    assert_unreached(bench.arrived(&format!("http://{free}/")), "Connection refused");
    assert_unreached(bench.cancelled(&format!("http://{free}/")), "Connection refused");
}

#[test]
fn the_request_is_a_form_and_keeps_the_query() {
    let (app, bench) = (App::start(), Bench::start(PATIENCE));
    bench.arrived(&app.url("/done?x=1#fragment"));
    let request = app.next_request();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("post /done?x=1 http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\ncontent-type: application/x-www-form-urlencoded"), "{head}");
    assert!(head.contains(&format!("\r\ncontent-length: {}", body.len())), "{head}");
    assert!(head.contains(&format!("\r\nuser-agent: incoming/{}", env!("CARGO_PKG_VERSION"))));
    assert!(head.contains("\r\nidempotency-key: 00000000-0000-0000-0000-000000000001\r\n"));
    assert!(head.contains("\r\nincoming-attempt: 3\r\n"), "{head}");
    for absent in ["accept-encoding", "authorization", "incoming-signature"] {
        assert!(!head.contains(absent), "{head}");
    }
    assert_eq!(
        body,
        "backendSecret=Ein+Geheimnis+%C3%BC&cancelReason=&cancelled=no\
         &filename=%2Fsrv%2Farrived%2F1\
         &filenameFromBrowser=gr%C3%B6%C3%9Fe+1%2B1+%26+%E5%A4%A7.bin\
         &id=00000000-0000-0000-0000-000000000001&secret=Ein+Geheimnis+%C3%BC"
    );
}

#[test]
fn a_user_in_the_url_becomes_basic_credentials() {
    let (app, bench) = (App::start(), Bench::start(PATIENCE));
    bench.arrived(&format!("http://ada:p%40ss@127.0.0.1:{}/done", app.port));
    let request = app.next_request();
    assert!(request.contains("authorization: Basic YWRhOnBAc3M=\r\n"), "{request}");
    assert!(request.starts_with("POST /done HTTP/1.1\r\n"), "{request}");
}

#[test]
fn redirects_keep_the_form_or_become_get() {
    let (app, bench) = (App::start(), Bench::start(PATIENCE));
    for (status, kept) in [(301, false), (302, false), (303, false), (307, true), (308, true)] {
        assert_eq!(bench.arrived(&app.url(&format!("/redirect/{status}"))), Answer::Done);
        let first = app.next_request();
        let second = app.next_request();
        let body = |it: &str| it.split_once("\r\n\r\n").unwrap().1.to_owned();
        assert!(second.starts_with(if kept { "POST /done?x=1 " } else { "GET /done?x=1 " }));
        assert_eq!(body(&second), if kept { body(&first) } else { String::new() }, "{status}");
    }
    assert_eq!(bench.arrived(&app.url("/other")), Answer::Done);
}

#[test]
fn of_a_cancellation_nearly_any_answer_will_do() {
    let (app, bench) = (App::start(), Bench::start(PATIENCE));
    for path in ["/done", "/404", "/else", "/nowhere", "/headers-only", "/truncated"] {
        assert_eq!(bench.cancelled(&app.url(path)), Answer::Done, "{path}");
    }
    let request = app.next_request();
    assert!(request.contains("&cancelReason=zu+gro%C3%9F&cancelled=yes&filename=&"), "{request}");
    assert_unreached(bench.cancelled(&app.url("/500")), "status 500");
    assert_unreached(bench.cancelled(&app.url("/garbage")), "invalid HTTP version");
}

#[test]
fn hanging_and_dribbling_answers_are_cut_off() {
    let (app, bench) = (App::start(), Bench::start(Duration::from_millis(300)));
    for path in ["/hang", "/headers-only", "/dribble"] {
        assert_unreached(bench.arrived(&app.url(path)), "no answer within 300ms");
    }
    assert_unreached(bench.cancelled(&app.url("/hang")), "no answer within 300ms");
}

#[test]
fn stop_gives_up_what_has_no_answer() {
    let (app, bench) = (App::start(), Bench::start(PATIENCE * 10));
    bench.ask(1, &app.url("/hang"), arrived());
    app.next_request();
    bench.sender.send(Mail::Stop);
    bench.thread.join().unwrap();
}

/// How long a test waits for what must come; it is never reached when all is well.
const PATIENCE: Duration = Duration::from_secs(30);
