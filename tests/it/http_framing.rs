//! HTTP/1.1 on the wire: framing, pipelining, limits, and what must not be let through.

use crate::http::{Connection, request_bytes};
use crate::server::{Server, Setup};

const NEW: &str = "/incoming/0.1/backend/new_upload";
const FORM: &str = "signalFinishURL=http%3A%2F%2F127.0.0.1%3A9%2F";
const HEALTH: &str = "GET /incoming/0.1/health HTTP/1.1\r\nHost: a\r\n\r\n";

/// Sends bytes and expects a refusal with one of these codes, then the end of the connection:
/// nothing that follows a request whose end is in doubt may be read as another request.
fn assert_refused(server: &Server, request: &str, statuses: &[u16]) {
    let mut connection = Connection::open(server.address);
    connection.send(format!("{request}{HEALTH}"));
    let response = connection.response();
    assert!(statuses.contains(&response.status), "{} for {request:?}", response.status);
    assert!(response.header_lists("Connection", "close"), "{request:?}");
    connection.assert_closed();
}

fn post_head(headers: &str) -> String {
    format!("POST {NEW} HTTP/1.1\r\nHost: a\r\n{headers}\r\n")
}

#[test]
fn a_connection_serves_many_requests() {
    let server = Setup::default().start();
    let mut connection = Connection::open(server.address);
    for _ in 0..50 {
        connection.send(HEALTH);
        assert_eq!(connection.response().status, 200);
        connection.send(request_bytes("POST", &format!("{NEW}?{FORM}"), &[], ""));
        assert_eq!(connection.response().text().len(), 36);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Setup::default().start();
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    let once = [
        HEALTH.to_owned(),
        request_bytes("POST", NEW, &[form], FORM),
        request_bytes("GET", "/nothing", &[], ""),
        request_bytes("HEAD", "/incoming/0.1/health", &[], ""),
        request_bytes("POST", NEW, &[form], "signalFinishURL=foo"),
    ]
    .concat();
    let mut connection = Connection::open(server.address);
    connection.send(once.repeat(20));
    for _ in 0..20 {
        assert_eq!(connection.response().status, 200);
        assert_eq!(connection.response().text().len(), 36);
        assert_eq!(connection.response().status, 404);
        assert_eq!(connection.response_head().status, 200);
        assert_eq!(connection.response().status, 400);
    }
    connection.shutdown_write();
    connection.assert_closed();
}

#[test]
fn requests_may_come_byte_by_byte() {
    let server = Setup::default().start();
    let mut connection = Connection::open(server.address);
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    let request = request_bytes("POST", NEW, &[form], FORM) + HEALTH;
    for byte in request.as_bytes() {
        connection.send([*byte]);
    }
    assert_eq!(connection.response().text().len(), 36);
    assert_eq!(connection.response().status, 200);
}

#[test]
fn empty_lines_before_a_request_are_skipped() {
    let server = Setup::default().start();
    let mut connection = Connection::open(server.address);
    connection.send(format!("\r\n{HEALTH}\r\n{HEALTH}"));
    assert_eq!(connection.response().status, 200);
    assert_eq!(connection.response().status, 200);
}

#[test]
fn the_absolute_form_of_a_target_is_understood() {
    let server = Setup::default().start();
    let mut connection = Connection::open(server.address);
    connection.send("GET http://a/incoming/0.1/health HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(connection.response().status, 200);
}

#[test]
fn chunked_bodies_are_read() {
    let server = Setup::default().start();
    let head = post_head(
        "Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n",
    );
    let (first, rest) = FORM.split_at(11);
    let body = format!(
        "{:x};name=\"a;b\"\r\n{first}\r\n{:X}\r\n{rest}\r\n000\r\nTrailer: x\r\n\r\n",
        first.len(),
        rest.len()
    );
    let mut connection = Connection::open(server.address);
    connection.send(format!("{head}{body}{HEALTH}"));
    assert_eq!(connection.response().text().len(), 36);
    assert_eq!(connection.response().status, 200);
    for byte in format!("{head}{body}").as_bytes() {
        connection.send([*byte]);
    }
    assert_eq!(connection.response().text().len(), 36);
}

#[test]
fn a_client_that_waits_for_100_gets_it() {
    let server = Setup::default().start();
    let mut connection = Connection::open(server.address);
    let length = FORM.len();
    connection.send(post_head(&format!(
        "Content-Type: application/x-www-form-urlencoded\r\nExpect: 100-continue\r\n\
         Content-Length: {length}\r\n"
    )));
    assert_eq!(connection.response().status, 100);
    connection.send(FORM);
    assert_eq!(connection.response().text().len(), 36);
    connection.send(HEALTH);
    assert_eq!(connection.response().status, 200);
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let server = Setup::default().start();
    let mut connection = Connection::open(server.address);
    connection.send("GET /incoming/0.1/health HTTP/1.0\r\n\r\n");
    assert_eq!(connection.response().status, 200);
    connection.assert_closed();

    let mut connection = Connection::open(server.address);
    let length = FORM.len();
    connection.send(format!(
        "POST {NEW} HTTP/1.0\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {length}\r\n\r\n{FORM}"
    ));
    assert_eq!(connection.response().text().len(), 36);
    connection.assert_closed();
}

#[test]
fn connection_close_is_honoured() {
    let server = Setup::default().start();
    let mut connection = Connection::open(server.address);
    let request = request_bytes("GET", "/incoming/0.1/health", &[("Connection", "close")], "");
    connection.send(request + HEALTH);
    let response = connection.response();
    assert_eq!(response.status, 200);
    assert!(response.header_lists("Connection", "close"));
    connection.assert_closed();
}

#[test]
fn heads_have_a_limit() {
    let server = Setup::default().start();
    let long = "x".repeat(100_000);
    let many = "A: b\r\n".repeat(2000);
    for headers in [format!("Long: {long}\r\n"), many] {
        let request = format!("GET /incoming/0.1/health HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        let mut connection = Connection::open(server.address);
        // The server may close before it has been sent all of it.
        let _ = connection.try_send(&request);
        let response = connection.response();
        assert_eq!(response.status, 431);
        connection.assert_closed();
    }
    let mut connection = Connection::open(server.address);
    let _ = connection.try_send(format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"));
    let status = connection.response().status;
    assert!(matches!(status, 414 | 431), "{status}");
    connection.assert_closed();
}

#[test]
fn a_head_of_a_real_browser_fits() {
    let server = Setup::default().start();
    let cookie = "c".repeat(4000);
    let mut headers = vec![("Cookie", cookie.as_str())];
    headers.extend(std::iter::repeat_n(("Sec-Fetch-Dest", "script"), 40));
    assert_eq!(server.request("GET", "/incoming/0.1/health", &headers, "").status, 200);
}

#[test]
fn bodies_have_a_limit() {
    let server = Setup::default().start();
    for headers in [
        "Content-Length: 1000000000000\r\n",
        "Content-Length: 99999999999999999999999999\r\n",
        "Transfer-Encoding: chunked\r\n",
    ] {
        let mut connection = Connection::open(server.address);
        connection.send(post_head(headers));
        if headers.starts_with("Transfer") {
            let _ = connection.try_send("3b9aca00\r\n");
            let piece = "x".repeat(65_536);
            for _ in 0..64 {
                if connection.try_send(&piece).is_err() {
                    break;
                }
            }
        }
        let response = connection.response();
        assert!(matches!(response.status, 400 | 413), "{}", response.status);
        connection.assert_closed();
    }
}

#[test]
fn doubtful_framing_is_refused() {
    let server = Setup::default().start();
    for headers in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length:\r\n",
        "Content-Length: 5;a\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length : 5\r\n",
        " Content-Length: 5\r\n",
        "X: a\r\n Content-Length: 5\r\n",
        "X: a\0b\r\n",
        "X: a\rContent-Length: 5\r\n",
        "X\r\n",
        ": x\r\n",
        "X Y: z\r\n",
        "Host: b\r\n",
    ] {
        assert_refused(&server, &post_head(headers), &[400, 501]);
    }
    let chunked = post_head("Transfer-Encoding: chunked\r\n");
    for body in [
        "x\r\n",
        "-1\r\n",
        "+1\r\na\r\n0\r\n\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "\r\n",
        " 1\r\na\r\n0\r\n\r\n",
        "ffffffffffffffff1\r\n",
        "1\na\n0\n\n",
    ] {
        assert_refused(&server, &format!("{chunked}{body}"), &[400, 413]);
    }
}

#[test]
fn broken_request_lines_are_refused() {
    let server = Setup::default().start();
    for (line, statuses) in [
        ("GET /incoming/0.1/health HTTP/1.1\r\n", &[400][..]),
        ("GET /incoming/0.1/health HTTP/2.0\r\nHost: a\r\n", &[400, 505]),
        ("GET /incoming/0.1/health HTTP/0.9\r\nHost: a\r\n", &[400, 505]),
        ("GET /incoming/0.1/health\r\nHost: a\r\n", &[400]),
        ("GET  /incoming/0.1/health HTTP/1.1\r\nHost: a\r\n", &[400]),
        ("GET /incoming/0.1/health HTTP/1.1 \r\nHost: a\r\n", &[400]),
        ("GET /incoming /0.1 HTTP/1.1\r\nHost: a\r\n", &[400]),
        ("G(T /incoming/0.1/health HTTP/1.1\r\nHost: a\r\n", &[400]),
        ("GET incoming/0.1/health HTTP/1.1\r\nHost: a\r\n", &[400]),
        ("\u{16}\u{3}\u{1}\u{2}\r\n", &[400]),
    ] {
        assert_refused(&server, &format!("{line}\r\n"), statuses);
    }
}

#[test]
fn a_half_sent_request_is_no_harm() {
    let server = Setup::default().start();
    for request in
        ["", "G", "GET / HT", "GET / HTTP/1.1\r\nHost:", &post_head("Content-Length: 9\r\n")]
    {
        let mut connection = Connection::open(server.address);
        connection.send(request);
        connection.shutdown_write();
        drop(connection);
    }
    assert_eq!(server.get("/incoming/0.1/health").status, 200);
}
