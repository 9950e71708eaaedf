//! A server that was killed with many tickets open knows every one of them.

use std::thread;

use rustix::process::Signal;

use crate::backend::Backend;
use crate::client::Client;
use crate::content::Content;
use crate::http::{Connection, request_bytes};
use crate::server::{Server, Setup};

/// The CPU time until it listens is printed, never judged.
#[test]
fn ten_thousand_tickets_are_there_after_a_kill() {
    let is_long = std::env::var_os("INCOMING_TEST_LONG").is_some();
    let count = if is_long { 100_000 } else { 10_000 };
    let mut first = Setup::default().start();
    let backend = Backend::done();
    let before = first.cpu_time();
    let ids = issue(&first, &backend.url(), count);
    let issuing = (first.cpu_time() - before).as_secs_f64();
    first.signal(Signal::KILL);
    first.exit_status();

    let second = first.start_again(&Setup { cores: 1, ..Setup::default() });
    let restarting = second.cpu_time().as_secs_f64();
    println!("{count} tickets: {issuing:.2} CPU-s to issue, {restarting:.3} CPU-s to start again");
    let content = Content::new(160, 10_000);
    for id in [&ids[0], &ids[count / 2], &ids[count - 1]] {
        Client::upload(&second, id, content, 10_000);
        backend.call(id, 1);
    }
    // The others are known as well: cancelling says so.
    let mut connection = Connection::open(second.address);
    for id in ids.iter().skip(1).step_by(count / 500) {
        let path = format!("/incoming/0.1/backend/cancel_upload?id={id}");
        connection.send(request_bytes("POST", &path, &[], ""));
        assert!(matches!(connection.response().status, 200 | 412), "{id} is known");
    }
}

/// On several connections, as an app does that is busy.
fn issue(server: &Server, url: &str, count: usize) -> Vec<String> {
    let issue_some = || {
        let mut connection = Connection::open(server.address);
        let path = format!("/incoming/0.1/backend/new_upload?signalFinishURL={url}");
        let ids = (0..count / CONNECTIONS).map(|_| {
            connection.send(request_bytes("POST", &path, &[], ""));
            let response = connection.response();
            assert_eq!(response.status, 200, "{}", response.text());
            response.text().to_owned()
        });
        ids.collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(issue_some)).collect();
        threads.into_iter().flat_map(|it| it.join().expect("issued")).collect()
    })
}

const CONNECTIONS: usize = 50;
