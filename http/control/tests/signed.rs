//! Who signs, with which secret, and what a web app checks.

use std::time::{SystemTime, UNIX_EPOCH};

use super::*;
use crate::control::sign::signature;

fn signing(secret: Option<&str>) -> Bench {
    let secret = secret.map(Secret::from);
    Bench::with(Settings { timeout: PATIENCE, secret, own_ca: Vec::new(), core_count: 1 })
}

/// Checks a request as a web app does.
#[track_caller]
fn assert_signed(request: &str, secret: &str) {
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let field = head.lines().find_map(|it| it.strip_prefix("incoming-signature: ")).unwrap();
    let unix_s = field.strip_prefix("t=").unwrap().split(',').next().unwrap().parse().unwrap();
    let at = UNIX_EPOCH + Duration::from_secs(unix_s);
    assert_eq!(field, signature(secret, at, body.as_bytes()));
    let age = SystemTime::now().duration_since(at).unwrap_or_default();
    assert!(age < PATIENCE * 2, "it says when it was sent, not when it was issued");
}

#[test]
fn the_tickets_secret_wins_over_the_servers() {
    let app = App::start();
    let both = [("", Some("the server's own secret")), ("ticket", Some("x")), ("ticket", None)];
    for (of_ticket, of_server) in both {
        let bench = signing(of_server);
        let it = callback(1, &app.url("/done"), arrived());
        bench.send(Callback { signing_secret: of_ticket.to_owned(), ..it });
        assert_eq!(bench.next_answer().1, Answer::Done);
        let secret = if of_ticket.is_empty() { of_server.unwrap() } else { of_ticket };
        assert_signed(&app.next_request(), secret);
    }
}

#[test]
fn without_a_secret_there_is_no_signature() {
    let (app, bench) = (App::start(), signing(None));
    bench.arrived(&app.url("/done"));
    assert!(!app.next_request().contains("incoming-signature"));
}

#[test]
fn what_follows_a_redirect_is_signed_as_it_is_sent() {
    let (app, bench) = (App::start(), signing(Some("s")));
    for status in [303, 307] {
        bench.arrived(&app.url(&format!("/redirect/{status}")));
        assert_signed(&app.next_request(), "s");
        let second = app.next_request();
        assert_signed(&second, "s");
        assert!(second.contains("idempotency-key: 00000000-0000-0000-0000-000000000001\r\n"));
    }
}

#[test]
fn metadata_comes_back() {
    let (app, bench) = (App::start(), signing(None));
    let it = callback(1, &app.url("/done"), arrived());
    bench.send(Callback { metadata: "{\"a\": 1}".to_owned(), ..it });
    bench.next_answer();
    assert!(app.next_request().contains("&metadata=%7B%22a%22%3A+1%7D&secret="));
}
