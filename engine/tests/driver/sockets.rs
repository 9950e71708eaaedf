//! Sockets, mail and time.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use incoming_engine::op::{Address, CoreId, Direction, Errno, Op, Output};

use crate::harness::{Cores, Mail, Report, Variant, pattern, read_exactly};

crate::on_every_variant! {
    accepts_and_receives
    never_waits_in_recv
    sends_to_a_slow_reader
    wakes_what_waits_when_it_is_shut_down
    tells_the_end_and_the_reset
    uses_closed_slots_again
    carries_mail_between_cores
    migrates_a_socket_with_early_bytes
    keeps_time
    serves_many_connections_at_once
    stops_with_an_accept_waiting
    sleeps_when_nothing_happens
}

fn accepts_and_receives(variant: Variant) {
    let mut cores = Cores::start(variant, 1);
    let (mut client, socket) = cores.connect(0);
    let readable = cores.start_op(0, Op::Readable { socket });
    assert!(!cores.has_completed(readable));
    client.write_all(b"hello").unwrap();
    assert_eq!(cores.wait(readable), Ok(Output::Done));
    assert_eq!(cores.receive(0, socket).unwrap(), b"hello");

    // What was left behind makes it readable again, although nothing new has come.
    client.write_all(&pattern(1000, 1)).unwrap();
    assert_eq!(cores.run(Op::Readable { socket }), Ok(Output::Done));
    assert_eq!(
        cores.run(Op::Recv { socket, length_bytes: 10 }),
        Ok(Output::Received { count: 10, has_more: true })
    );
    assert_eq!(cores.run(Op::Readable { socket }), Ok(Output::Done));
    assert_eq!(cores.receive(0, socket).unwrap(), &pattern(1000, 1)[10..]);
}

fn never_waits_in_recv(variant: Variant) {
    let mut cores = Cores::start(variant, 1);
    let (_client, socket) = cores.connect(0);
    assert_eq!(cores.receive(0, socket), Err(Errno::EAGAIN));
}

fn sends_to_a_slow_reader(variant: Variant) {
    let mut cores = Cores::start(variant, 1);
    let (mut client, socket) = cores.connect(0);
    let all = Bytes::from(pattern(16 * 1024 * 1024, 2));
    let (waiting, sent) = cores.fill_socket(socket, &all);
    let mut unsent = all.slice(sent..);
    let reader = std::thread::spawn(move || read_exactly(&mut client, 16 * 1024 * 1024));
    let mut waiting = Some(waiting);
    while !unsent.is_empty() {
        let send = waiting
            .take()
            .unwrap_or_else(|| cores.start_op(0, Op::Send { socket, bytes: unsent.clone() }));
        let Ok(Output::Bytes(count)) = cores.wait(send) else { panic!("send failed") };
        assert!(count > 0);
        unsent = unsent.slice(count as usize..);
    }
    assert!(reader.join().unwrap() == all);
}

fn wakes_what_waits_when_it_is_shut_down(variant: Variant) {
    let mut cores = Cores::start(variant, 1);
    let (mut client, socket) = cores.connect(0);
    let readable = cores.start_op(0, Op::Readable { socket });
    let (send, _) = cores.fill_socket(socket, &Bytes::from(vec![7; 64 * 1024 * 1024]));
    assert!(!cores.has_completed(readable));
    cores.start_op(0, Op::Shutdown { socket, how: Direction::Both });
    assert_eq!(cores.wait(readable), Ok(Output::Done));
    assert_eq!(cores.wait(send), Err(EPIPE));
    assert_eq!(cores.receive(0, socket).unwrap(), b"");
    cores.start_op(0, Op::Close { socket });
    // The client gets what was sent, then the end.
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert!(!rest.is_empty());
}

fn tells_the_end_and_the_reset(variant: Variant) {
    let mut cores = Cores::start(variant, 1);
    let (client, socket) = cores.connect(0);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(cores.run(Op::Readable { socket }), Ok(Output::Done));
    assert_eq!(cores.receive(0, socket).unwrap(), b"");
    // The other direction still works, until we end it too.
    let bytes = Bytes::from_static(b"bye");
    assert_eq!(cores.run(Op::Send { socket, bytes }), Ok(Output::Bytes(3)));
    cores.start_op(0, Op::Shutdown { socket, how: Direction::Write });
    let mut said = String::new();
    (&client).read_to_string(&mut said).unwrap();
    assert_eq!(said, "bye");

    let (mut client, socket) = cores.connect(0);
    let bytes = Bytes::from_static(b"never read");
    assert_eq!(cores.run(Op::Send { socket, bytes }), Ok(Output::Bytes(10)));
    client.read_exact(&mut [0]).unwrap();
    let readable = cores.start_op(0, Op::Readable { socket });
    // Closing with unread bytes resets the connection.
    drop(client);
    assert_eq!(cores.wait(readable), Ok(Output::Done));
    assert_eq!(cores.receive(0, socket), Err(ECONNRESET));
}

fn uses_closed_slots_again(variant: Variant) {
    let mut cores = Cores::start(variant, 1);
    let (mut first, socket) = cores.connect(0);
    let (mut second, other) = cores.connect(0);
    cores.start_op(0, Op::Close { socket });
    assert_eq!(first.read(&mut [0]).unwrap(), 0);
    let (mut third, again) = cores.connect(0);
    assert_eq!(again, socket);
    assert_ne!(again, other);
    for (client, socket, says) in [(&mut second, other, b"2"), (&mut third, again, b"3")] {
        client.write_all(says).unwrap();
        assert_eq!(cores.run(Op::Readable { socket }), Ok(Output::Done));
        assert_eq!(cores.receive(0, socket).unwrap(), says);
    }
}

fn carries_mail_between_cores(variant: Variant) {
    let mut cores = Cores::start(variant, 2);
    for (from, to) in [(0, 1), (1, 0), (0, 0)] {
        for count in 0..100 {
            let to = Address::Core(CoreId(to));
            cores.start_op(from, Op::Post { to, mail: Mail::Hello(count.to_string()) });
        }
        for count in 0..100 {
            let hello = cores.report_where(|it| matches!(it, Report::Hello { .. }));
            assert_eq!(hello, Report::Hello { core: CoreId(to), text: count.to_string() });
        }
    }
}

fn migrates_a_socket_with_early_bytes(variant: Variant) {
    let mut cores = Cores::start(variant, 2);
    let (mut client, socket) = cores.connect(0);
    client.write_all(b"early ").unwrap();
    assert_eq!(cores.run(Op::Readable { socket }), Ok(Output::Done));
    let early = String::from_utf8(cores.receive(0, socket).unwrap()).unwrap();
    // In the socket's buffer while it moves.
    client.write_all(b"late").unwrap();
    cores.start_op(0, Op::Migrate { socket, to: CoreId(1), mail: Mail::Hello(early) });
    let arrived = cores.report_where(|it| matches!(it, Report::Arrived { .. }));
    let Report::Arrived { core: CoreId(1), socket: moved, text } = arrived else {
        panic!("{arrived:?}");
    };
    assert_eq!(text, "early ");
    let readable = cores.start_op(1, Op::Readable { socket: moved });
    assert_eq!(cores.wait(readable), Ok(Output::Done));
    assert_eq!(cores.receive(1, moved).unwrap(), b"late");
    let send = cores.start_op(1, Op::Send { socket: moved, bytes: "answer".into() });
    assert_eq!(cores.wait(send), Ok(Output::Bytes(6)));
    assert_eq!(read_exactly(&mut client, 6), b"answer");
    // It is open on one core only: closing it there ends the connection.
    cores.start_op(1, Op::Close { socket: moved });
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    let (_client, again) = cores.connect(0);
    assert_eq!(again, socket);
}

fn keeps_time(variant: Variant) {
    let mut cores = Cores::start(variant, 1);
    let now = Instant::now();
    // The future, the past (twice, so that a timer is set after one has fired), and a change.
    for at in [now + Duration::from_millis(30), now, now] {
        cores.tell(0, Mail::TimeoutAt(at));
        let timeout = cores.report_where(|it| matches!(it, Report::Timeout { .. }));
        assert_eq!(timeout, Report::Timeout { late: true });
    }
    cores.tell(0, Mail::TimeoutAt(now + Duration::from_secs(3600)));
    cores.tell(0, Mail::TimeoutAt(Instant::now() + Duration::from_millis(5)));
    let timeout = cores.report_where(|it| matches!(it, Report::Timeout { .. }));
    assert_eq!(timeout, Report::Timeout { late: true });
}

fn serves_many_connections_at_once(variant: Variant) {
    let mut cores = Cores::start(variant, 1);
    let connections: Vec<_> = (0..300).map(|_| cores.connect(0)).collect();
    let (clients, sockets): (Vec<TcpStream>, Vec<_>) = connections.into_iter().unzip();
    for round in 0..3_u8 {
        let waiting: Vec<u32> = sockets
            .iter()
            .map(|socket| cores.start_op(0, Op::Readable { socket: *socket }))
            .collect();
        for (index, mut client) in clients.iter().enumerate() {
            client.write_all(&[round, index as u8]).unwrap();
        }
        for (index, (number, socket)) in waiting.into_iter().zip(&sockets).enumerate() {
            assert_eq!(cores.wait(number), Ok(Output::Done));
            assert_eq!(cores.receive(0, *socket).unwrap(), [round, index as u8]);
        }
    }
    cores.stop();
}

fn stops_with_an_accept_waiting(variant: Variant) {
    let mut cores = Cores::start(variant, 2);
    let (mut client, socket) = cores.connect(0);
    cores.start_op(0, Op::Accept);
    let readable = cores.start_op(0, Op::Readable { socket });
    cores.start_op(0, Op::Shutdown { socket, how: Direction::Write });
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    // The machine is not stopped while an op of its own waits.
    cores.tell(0, Mail::Stop);
    assert!(!cores.has_completed(readable));
    client.write_all(b"last words").unwrap();
    assert_eq!(cores.wait(readable), Ok(Output::Done));
    let address = cores.addresses[0];
    cores.stop();
    // Nobody listens any more, as soon as the kernel has cleaned up.
    let is_refused = || {
        std::thread::sleep(Duration::from_millis(20));
        TcpStream::connect(address).is_err()
    };
    assert!((0..100).any(|_| is_refused()), "still listening");
    assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
}

fn sleeps_when_nothing_happens(variant: Variant) {
    let mut cores = Cores::start(variant, 1);
    let connections: Vec<_> = (0..10).map(|_| cores.connect(0)).collect();
    for (_, socket) in &connections {
        cores.start_op(0, Op::Readable { socket: *socket });
    }
    cores.start_op(0, Op::Accept);
    cores.tell(0, Mail::TimeoutAt(Instant::now() + Duration::from_secs(3600)));
    // How often the core went to sleep: once more for each time that it woke.
    let path = format!("/proc/self/task/{}/status", cores.thread_ids[0]);
    let sleeps = || {
        let status = std::fs::read_to_string(&path).unwrap();
        let line = status.lines().find(|it| it.starts_with("voluntary_ctxt_switches"));
        line.unwrap().to_owned()
    };
    let quiet = || {
        let before = sleeps();
        std::thread::sleep(Duration::from_millis(200));
        before == sleeps()
    };
    // The first try may see it work off what was just asked for.
    assert!((0..5).any(|_| quiet()), "an idle core wakes");
    for (client, _) in &connections {
        client.shutdown(Shutdown::Both).unwrap();
    }
    for _ in &connections {
        cores.report_where(|it| matches!(it, Report::Completed { result: Ok(Output::Done), .. }));
    }
}

const EPIPE: Errno = Errno(32);
const ECONNRESET: Errno = Errno(104);
