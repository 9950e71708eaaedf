//! Clocks that jump: no upload expires because of them.

use std::net::SocketAddr;
use std::path::Path;

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use crate::backend::{Answer, Backend};
use crate::client::Client;
use crate::content::Content;
use crate::server::{Server, Setup, wait_until};

/// Needs faketime: apt-get install faketime.
#[test]
fn a_clock_that_jumps_by_ten_years_expires_nothing() {
    // As a clock that somebody sets: the monotonic one goes on.
    let setup = Setup::default().with_environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let mut server = setup.start();
    let year = year_of(&server);
    // A port that nothing listens on for now, and that nobody else can take meanwhile.
    let dead = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    dead.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let url = format!("http://{}/", dead.local_addr().unwrap().as_socket().unwrap());
    let ticket = || {
        let form = [("signalFinishURL", url.as_str()), ("removeFileWhenFinished", "false")];
        server.post("/incoming/0.1/backend/new_upload", &form).text().to_owned()
    };
    let (fresh, half, whole) = (ticket(), ticket(), ticket());
    let content = Content::new(140, 1_000_000);
    let mut client = Client::open(&server, &whole, content.length_bytes);
    client.send_rest(content, || 300_000);
    let mut position = send_some(&server, &half, content, 0);

    let in_10_years = Some(in_10_years as fn(&Path) -> Vec<String>);
    let jumps = [(in_10_years, 10), (Some(ago), -10), (None, 0)];
    for (within, years) in jumps {
        let log = format!(r#""the web app could not be told","upload":"{}""#, &whole[..8]);
        wait_until("the hand-over is tried", || server.log().contains(&log));
        server.signal(Signal::TERM);
        server.exit_status();
        server = server.start_again(&Setup { within, ..setup.clone() });
        let jumped = year_of(&server) - year;
        assert!((jumped - years).abs() <= 1, "{jumped} years (apt-get install faketime)");
        position = send_some(&server, &half, content, position);
        assert!(!server.log().contains("timed out"), "{}", server.log());
    }

    dead.listen(16).unwrap();
    let backend = Backend::on(dead.into(), |_| Answer::Done);
    for id in [&whole, &half, &fresh] {
        let mut client = Client::open(&server, id, content.length_bytes);
        client.send_rest(content, || 300_000);
        client.finish();
        content.assert_file(&backend.call(id, 1).path());
    }
}

fn in_10_years(_: &Path) -> Vec<String> {
    at("+10y")
}

fn ago(_: &Path) -> Vec<String> {
    at("-10y")
}

/// The faketime command would stay between us and the server: only its library is used.
fn at(offset: &str) -> Vec<String> {
    let script = format!(
        "LD_PRELOAD=$(faketime -f +0 printenv LD_PRELOAD) FAKETIME={offset} exec \"$0\" \"$@\""
    );
    ["sh", "-c", &script].map(str::to_owned).into()
}

/// The year that the server believes in.
fn year_of(server: &Server) -> i64 {
    let response = server.get("/incoming/0.1/health");
    let date = response.header("Date").unwrap();
    date.split(' ').nth(3).and_then(|it| it.parse().ok()).unwrap_or_else(|| panic!("{date}"))
}

/// Sends a piece of a file that goes on where it should. Returns where the next one does.
fn send_some(server: &Server, id: &str, content: Content, position: u64) -> u64 {
    let mut client = Client::open(server, id, content.length_bytes);
    assert_eq!(client.position, position);
    client.chunk(content.piece(position, 200_001));
    client.chunk_ack();
    client.position
}
