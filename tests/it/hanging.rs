//! A healthy web app is told at once, however many others hang.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::{Answer, Backend, Call};
use crate::client::Client;
use crate::content::Content;
use crate::server::{Server, Setup, wait_until};

/// The times are printed, never judged: what is judged is that no healthy one waited for the end of
/// a hanging one, because none of those ends.
#[test]
fn a_thousand_hanging_web_apps_hold_back_nobody() {
    let setup = Setup::default().with_environment("INCOMING_CALLBACK_TIMEOUT", "1h");
    let server = setup.start();
    let hanging = Hanging::start();
    let content = Content::new(170, 1000);
    // Every address of 127.0.0.0/8 is this machine, and each is another host.
    let mut urls: Vec<String> = (0..HANGING_HOSTS)
        .map(|it| hanging.url(Ipv4Addr::new(127, 1, (it / 250) as u8, 1 + (it % 250) as u8)))
        .collect();
    urls.extend((0..HANGING_AT_ONE_HOST).map(|_| hanging.url(Ipv4Addr::LOCALHOST)));
    thread::scope(|scope| {
        for urls in urls.chunks(urls.len() / THREADS) {
            scope.spawn(|| urls.iter().for_each(|it| upload(&server, it, content)));
        }
    });
    wait_until("every hanging host is called", || {
        hanging.count() == HANGING_HOSTS + CALLS_PER_HOST
    });

    let told: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let noted = Arc::clone(&told);
    let healthy = Backend::scripted(move |call: &Call| {
        let id = call.field("id").to_owned();
        noted.lock().unwrap().entry(id).or_insert_with(Instant::now);
        Answer::Done
    });
    let mut delays: Vec<Duration> = (0..HEALTHY)
        .map(|_| {
            let id = healthy.ticket(&server);
            let mut client = Client::open(&server, &id, content.length_bytes);
            client.send_rest(content, || content.length_bytes);
            let acknowledged_at = Instant::now();
            client.finish();
            assert_eq!(healthy.call_count(&id), 1);
            told.lock().unwrap()[&id].saturating_duration_since(acknowledged_at)
        })
        .collect();
    delays.sort_unstable();
    println!(
        "{HANGING_HOSTS} hosts and {HANGING_AT_ONE_HOST} hand-overs to one host hang; {HEALTHY} \
         healthy ones: p50 {:?}, p99 {:?}, longest {:?} from the last acknowledgement to the \
         callback",
        delays[HEALTHY / 2],
        delays[HEALTHY * 99 / 100 - 1],
        delays[HEALTHY - 1]
    );
    assert!(hanging.all_hang(), "none of the hanging calls has ended");
    assert_eq!(hanging.count(), HANGING_HOSTS + CALLS_PER_HOST, "and no further one has begun");
}

/// Up to the last acknowledgement. The browser then leaves.
fn upload(server: &Server, url: &str, content: Content) {
    let form = [("signalFinishURL", url)];
    let response = server.post("/incoming/0.1/backend/new_upload", &form);
    assert_eq!(response.status, 200, "{}", response.text());
    let mut client = Client::open(server, response.text(), content.length_bytes);
    client.send_rest(content, || content.length_bytes);
}

/// A web app that takes connections at every address of this machine and says nothing.
struct Hanging {
    address: SocketAddr,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

impl Hanging {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
        let address = listener.local_addr().expect("address");
        let sockets: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let kept = Arc::clone(&sockets);
        thread::spawn(move || {
            for socket in listener.incoming() {
                let socket = socket.expect("accept (ulimit -n 10000)");
                socket.set_nonblocking(true).expect("O_NONBLOCK");
                kept.lock().unwrap().push(socket);
            }
        });
        Self { address, sockets }
    }

    fn url(&self, host: Ipv4Addr) -> String {
        format!("http://{host}:{}/", self.address.port())
    }

    fn count(&self) -> usize {
        self.sockets.lock().unwrap().len()
    }

    /// Each connection is still open: its request stands there, and no end.
    fn all_hang(&self) -> bool {
        self.sockets.lock().unwrap().iter().all(|socket| {
            let mut buffer = [0; 64 << 10];
            loop {
                match std::io::Read::read(&mut &*socket, &mut buffer) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(error) => return error.kind() == ErrorKind::WouldBlock,
                }
            }
        })
    }
}

const HANGING_HOSTS: usize = 1000;
const HANGING_AT_ONE_HOST: usize = 300;
/// How many calls one host gets at a time.
const CALLS_PER_HOST: usize = 16;
const HEALTHY: usize = 100;
const THREADS: usize = 20;
