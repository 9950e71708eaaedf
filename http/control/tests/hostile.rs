//! Web apps at their worst: each way to answer has one meaning, and costs little.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use engine::handover::Answer;
use socket2::SockRef;

use super::{App, Bench, PATIENCE, assert_refused, assert_unreached, is_complete};

/// A web app that does to each connection what its script says, once the request is there.
struct Rogue {
    url: String,
}

impl Rogue {
    fn start(script: impl Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let script = Arc::new(script);
        thread::spawn(move || {
            for socket in listener.incoming() {
                let script = Arc::clone(&script);
                thread::spawn(move || {
                    let mut socket = socket.unwrap();
                    if read_request(&mut socket).is_ok() {
                        // That the server hangs up is what some of them wait for.
                        let _ = script(&mut socket);
                    }
                });
            }
        });
        Self { url }
    }

    fn saying(answer: &'static [u8]) -> Self {
        Self::start(move |socket| socket.write_all(answer))
    }
}

fn read_request(socket: &mut TcpStream) -> io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !is_complete(&request) {
        let length = socket.read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        request.extend_from_slice(&buffer[..length]);
    }
    Ok(())
}

/// Closes with a reset.
fn reset(socket: &TcpStream) {
    SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
}

fn hang(socket: &mut TcpStream) -> io::Result<()> {
    socket.read(&mut [0]).map(|_| ())
}

/// What a rogue has to say, cut at every byte, by a reset and by a close.
#[test]
fn a_cut_answer_is_no_answer() {
    let bench = Bench::start(PATIENCE);
    for (answer, head_bytes) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"[..], 38),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndone\r\n0\r\n\r\n", 47),
    ] {
        assert!(answer[..head_bytes].ends_with(b"\r\n\r\n"));
        for cut in 0..=answer.len() {
            for with_reset in [true, false] {
                let rogue = Rogue::start(move |socket| {
                    socket.write_all(&answer[..cut])?;
                    if with_reset {
                        reset(socket);
                    }
                    Ok(())
                });
                let arrival = bench.arrived(&rogue.url);
                if cut == answer.len() {
                    assert_eq!(arrival, Answer::Done);
                } else {
                    assert!(matches!(arrival, Answer::Unreached { .. }), "{cut}: {arrival:?}");
                }
                let cancellation = bench.cancelled(&rogue.url);
                if cut >= head_bytes {
                    assert_eq!(cancellation, Answer::Done, "its head says it was told");
                } else {
                    let is_unreached = matches!(cancellation, Answer::Unreached { .. });
                    assert!(is_unreached, "{cut}: {cancellation:?}");
                }
            }
        }
    }
}

#[test]
fn a_reset_before_the_request_is_read_is_no_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    thread::spawn(move || listener.incoming().for_each(|it| reset(&it.unwrap())));
    let bench = Bench::start(PATIENCE);
    assert_unreached(bench.arrived(&url), "");
    assert_unreached(bench.cancelled(&url), "");
}

#[test]
fn what_takes_too_long_is_cut_off() {
    let bench = Bench::start(Duration::from_millis(150));
    let dribble = |text: &'static [u8]| {
        move |socket: &mut TcpStream| {
            for byte in text.iter().cycle() {
                socket.write_all(&[*byte])?;
                thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        }
    };
    let late = "no answer within 150ms";
    for script in [
        Rogue::start(hang),
        Rogue::start(|socket| socket.write_all(b"HTTP/1.1 2").and_then(|()| hang(socket))),
        Rogue::start(dribble(b"HTTP/1.1 200 OK and so on and so on and so on and so on and on")),
        Rogue::start(dribble(b"HTTP/1.1 100 Continue\r\n\r\n")),
        Rogue::start(|socket| {
            loop {
                socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
        }),
    ] {
        assert_unreached(bench.arrived(&script.url), late);
        assert_unreached(bench.cancelled(&script.url), late);
    }
    for script in [
        Rogue::start(|socket| {
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndon")?;
            hang(socket)
        }),
        Rogue::start(move |socket| {
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n")?;
            dribble(b" ")(socket)
        }),
        Rogue::start(move |socket| {
            socket.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            dribble(b"1\r\n \r\n")(socket)
        }),
        // Without a length only the end of the connection ends it.
        Rogue::start(|socket| {
            socket.write_all(b"HTTP/1.1 200 OK\r\n\r\ndone").and_then(|()| hang(socket))
        }),
    ] {
        assert_unreached(bench.arrived(&script.url), late);
        // A head is enough of an answer, and on a busy machine it may take its time.
        assert_eq!(Bench::start(PATIENCE).cancelled(&script.url), Answer::Done);
    }
}

#[test]
fn what_is_no_http_is_no_answer() {
    let bench = Bench::start(PATIENCE);
    for answer in [
        &b""[..],
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"220 mail.example ESMTP\r\n",
        b"done",
        b"<html>done</html>",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0\0\x12\x04\0\0\0\0\0",
        b"\x15\x03\x01\0\x02\x02\x46",
        b"HTTP/2 200 OK\r\n\r\ndone",
        b"HTTP/1.1 99 Early\r\n\r\ndone",
        b"HTTP/1.1 2000 OK\r\n\r\ndone",
        b"HTTP/1.1 OK\r\n\r\ndone",
        b"HTTP/1.1 200 OK\r\nContent-Length: four\r\n\r\ndone",
        b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\ndone",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\ndone!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\ndone",
        b"HTTP/1.1 200 OK\r\n: no name\r\n\r\ndone",
        b"HTTP/1.1 200 OK\r\nfield\x01: x\r\n\r\ndone",
    ] {
        let (app, text) = (Rogue::saying(answer), String::from_utf8_lossy(answer));
        for outcome in [bench.arrived(&app.url), bench.cancelled(&app.url)] {
            assert!(matches!(outcome, Answer::Unreached { .. }), "{text}: {outcome:?}");
        }
    }
    for answer in [
        &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfour\r\ndone\r\n0\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\ndone",
    ] {
        let app = Rogue::saying(answer);
        assert_unreached(bench.arrived(&app.url), "");
    }
}

#[test]
fn rubbish_is_a_refusal() {
    let bench = Bench::start(PATIENCE);
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nrubbish"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ndone wait",
        b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nd\0o\0n\0e\0",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\xff\xfe\xfd\xfc",
        b"HTTP/1.1 200 OK\r\n\r\ndon",
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\n\r\ndone",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 300 Choose\r\nLocation: /\r\nContent-Length: 4\r\n\r\ndone",
        b"HTTP/1.1 401 Who\r\nContent-Length: 4\r\n\r\ndone",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ndone",
        b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 999 What\r\nContent-Length: 4\r\n\r\ndone",
    ] {
        let app = Rogue::saying(answer);
        assert_refused(bench.arrived(&app.url), "");
        assert_eq!(bench.cancelled(&app.url), Answer::Done);
    }
}

#[test]
fn redirects_without_end_are_a_refusal() {
    let (app, bench) = (App::start(), Bench::start(PATIENCE));
    assert_refused(bench.arrived(&app.url("/loop")), "more than 5 redirects");
    assert_eq!(bench.cancelled(&app.url("/loop")), Answer::Done);
    let moved = Rogue::saying(b"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n");
    assert_refused(bench.arrived(&moved.url), "more than 5 redirects");
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let bench = Bench::start(PATIENCE);
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3000));
    for status in ["429 Too Many Requests", "503 Service Unavailable", "404 Not Found"] {
        for (value, seconds) in [("120".to_owned(), 120..=120), (date.clone(), 2000..=3000)] {
            let app = Rogue::start(move |socket| {
                let head = format!("HTTP/1.1 {status}\r\nRetry-After: {value}\r\n");
                socket.write_all(format!("{head}Content-Length: 0\r\n\r\n").as_bytes())
            });
            let answer = bench.arrived(&app.url);
            let (Answer::Unreached { retry_after, .. } | Answer::Refused { retry_after, .. }) =
                &answer
            else {
                panic!("{answer:?}")
            };
            assert!(seconds.contains(&retry_after.unwrap().as_secs()), "{answer:?}");
            assert_eq!(matches!(answer, Answer::Refused { .. }), status.starts_with("404"));
        }
    }
}

#[test]
fn of_two_answers_the_first_counts() {
    let bench = Bench::start(PATIENCE);
    let app = Rogue::saying(
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone\
          HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nboom",
    );
    assert_eq!(bench.arrived(&app.url), Answer::Done);
    let app = Rogue::saying(
        b"HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\nboom\
          HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone",
    );
    assert_refused(bench.arrived(&app.url), "status 404");
}

/// The web app finds out how much of it was taken: next to nothing.
#[test]
fn what_is_too_long_is_not_read_to_its_end() {
    const ALL: usize = 100 << 20;
    let bench = Bench::start(PATIENCE);
    for (head, unit, is_head) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n", "d".repeat(65536), false),
        ("HTTP/1.1 200 OK\r\n\r\n", "d".repeat(65536), false),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            format!("10000\r\n{}\r\n", "d".repeat(65536)),
            false,
        ),
        ("HTTP/1.1 200 OK\r\n", "Field: value\r\n".repeat(50), true),
        ("HTTP/1.1 200 OK\r\nField: ", "d".repeat(65536), true),
        ("HTTP/1.1 200 ", "d".repeat(65536), true),
        ("", "d".repeat(65536), true),
    ] {
        let (report, taken) = std::sync::mpsc::channel();
        let app = Rogue::start(move |socket| {
            socket.write_all(head.as_bytes())?;
            let mut sent = 0;
            while sent < ALL && socket.write_all(unit.as_bytes()).is_ok() {
                sent += unit.len();
            }
            report.send(sent).map_err(io::Error::other)
        });
        let answer = bench.arrived(&app.url);
        if is_head {
            assert!(matches!(answer, Answer::Unreached { .. }), "{answer:?}");
        } else {
            assert_refused(answer, "longer than 65536 bytes");
        }
        let sent = taken.recv_timeout(PATIENCE).unwrap();
        assert!(sent < ALL, "the server hung up");
    }
}
