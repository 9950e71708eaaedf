//! No web app holds back another.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::control::turns::HOST_CALLS_MAX;

#[test]
fn a_hanging_web_app_holds_back_only_its_own() {
    let (hanging, healthy) = (App::start(), App::start());
    // Long enough that only an answer that does not wait for the hanging ones comes in time.
    let bench = Bench::start(PATIENCE * 10);
    for _ in 0..3 * HOST_CALLS_MAX {
        bench.ask(1, &hanging.url("/hang"), arrived());
    }
    for _ in 0..HOST_CALLS_MAX {
        hanging.next_request();
    }
    for _ in 0..100 {
        bench.ask(2, &healthy.url("/done"), arrived());
    }
    for _ in 0..100 {
        assert_eq!(bench.next_answer(), (TicketId(2), Answer::Done));
    }
    // Of the hanging one's requests no more than its share is under way.
    assert!(hanging.requests.try_recv().is_err());
}

#[test]
fn a_thousand_hanging_hosts_hold_back_nobody() {
    let bench = Bench::start(PATIENCE * 10);
    // Every address of 127.0.0.0/8 is this machine: a thousand hosts, one listener.
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for host in 0..1000 {
        let url = format!("http://127.1.{}.{}:{port}/", host / 250, 1 + host % 250);
        bench.ask(1, &url, arrived());
    }
    let accepted: Vec<_> = (0..1000).map(|_| listener.accept().unwrap()).collect();
    let healthy = App::start();
    for _ in 0..100 {
        bench.ask(2, &healthy.url("/done"), arrived());
    }
    for _ in 0..100 {
        assert_eq!(bench.next_answer(), (TicketId(2), Answer::Done));
    }
    drop(accepted);
}

#[test]
fn every_callback_to_a_host_that_hangs_gets_one_answer_in_time() {
    let (app, bench) = (App::start(), Bench::start(Duration::from_millis(100)));
    let count = 10 * HOST_CALLS_MAX as u128;
    for ticket in 0..count {
        bench.ask(ticket, &app.url("/hang"), arrived());
    }
    let (mut tickets, mut texts) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..count {
        let (ticket, answer) = bench.next_answer();
        let Answer::Unreached { error, retry_after: None } = answer else { panic!("{answer:?}") };
        assert!(tickets.insert(ticket.0), "one answer");
        texts.insert(error);
    }
    assert!(bench.answers.try_recv().is_err());
    let expected =
        ["no answer within 100ms", "not sent: the host gave no answer to others within 100ms"];
    assert_eq!(texts.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn a_silent_host_gets_one_call_at_a_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let bench = Bench::start(PATIENCE);
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let highest = Arc::clone(&most);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            highest.fetch_max(1 + open.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
            let open = Arc::clone(&open);
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(10));
                open.fetch_sub(1, Ordering::SeqCst);
                drop(socket);
            });
        }
    });
    bench.ask(0, &url, arrived());
    bench.next_answer();
    for ticket in 1..20 {
        bench.ask(ticket, &url, arrived());
    }
    for _ in 1..20 {
        assert!(matches!(bench.next_answer().1, Answer::Unreached { .. }));
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[test]
fn all_cores_hear_that_a_host_is_back() {
    let (app, bench) = (App::start(), Bench::start(PATIENCE));
    let hear = |path: &str| {
        bench.ask(1, &app.url(path), arrived());
        assert!(matches!(
            bench.answers.recv_timeout(PATIENCE).unwrap().1,
            Mail::CallbackAnswer { .. }
        ));
    };
    for fault in ["/garbage", "/500"] {
        hear("/done");
        hear(fault);
        hear("/404");
        hear("/done");
        for core in 0..7 {
            let (to, mail) = bench.answers.recv_timeout(PATIENCE).unwrap();
            let Mail::HostBack { host } = mail else { panic!("{mail:?}") };
            assert_eq!((to, host), (CoreId(core), format!("http://127.0.0.1:{}", app.port)));
        }
    }
    hear("/wait");
    assert!(bench.answers.try_recv().is_err());
}
