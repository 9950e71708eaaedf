//! A file arrives as it was sent, whatever its length, its chunks and its frames.

use std::os::unix::fs::MetadataExt;

use crate::backend::{Answer, Backend};
use crate::client::{Client, binary_frame, text_frame};
use crate::content::{Content, Random, sha256_of_file};
use crate::server::{Setup, on_every_driver, wait_until};

on_every_driver! {
    a_file_arrives_bit_exact,
    every_length_arrives,
    odd_chunks_arrive,
    fragmented_messages_arrive,
    dribbled_frames_arrive,
    everything_in_one_packet_is_understood,
}

fn a_file_arrives_bit_exact(setup: &Setup) {
    let server = setup.start();
    let content = Content::new(30, 5 * MIB + 3);
    let hash = content.sha256();
    let backend = Backend::scripted(move |call| {
        assert_eq!(sha256_of_file(&call.path()), hash);
        Answer::Done
    });
    let id = backend.ticket(&server);
    Client::upload(&server, &id, content, 512 * 1024);
    let path = backend.call(&id, 1).path();
    assert_eq!(backend.call_count(&id), 1);
    wait_until("the file is removed after `done`", || !path.exists());
    server.wait_without_files();
}

fn every_length_arrives(setup: &Setup) {
    let server = setup.start();
    let backend = Backend::done();
    let mut lengths = vec![0, 1, 4095, 4096, 4097, 5 * MIB + 3];
    lengths.extend([65_535, 65_536, 65_537, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 4095]);
    for length in lengths {
        for chunk_bytes in [512 * 1024, length.max(1)] {
            let content = Content::new(length, length);
            let id = backend.ticket_kept(&server);
            Client::upload(&server, &id, content, chunk_bytes);
            let path = backend.call(&id, 1).path();
            content.assert_file(&path);
            assert_eq!(path.metadata().unwrap().nlink(), 1);
        }
    }
}

fn odd_chunks_arrive(setup: &Setup) {
    let server = setup.start();
    let backend = Backend::done();
    let mut random = Random(31);
    for sizes in [
        &[1, 0, 2][..],
        &[4095, 4097, 0],
        &[131_000, 1, 65_537, 0, 0, 999_999],
        &[8 * MIB, 0, 8 * MIB - 1, 12_345],
    ] {
        let content = Content::new(31, sizes.iter().sum::<u64>() * 3 + 17);
        let id = backend.ticket_kept(&server);
        let mut client = Client::open(&server, &id, content.length_bytes);
        client.send_rest(content, || sizes[random.below(sizes.len() as u64) as usize]);
        client.finish();
        content.assert_file(&backend.call(&id, 1).path());
    }
}

fn fragmented_messages_arrive(setup: &Setup) {
    let server = setup.start();
    let backend = Backend::done();
    for (length, chunk_bytes, frame_bytes) in
        [(3 * MIB + 7, MIB, 131_000), (3000, 1000, 1), (300_000, 100_000, 16_383), (9, 3, 1)]
    {
        let content = Content::new(32, length);
        let id = backend.ticket_kept(&server);
        let mut client = Client::open(&server, &id, length);
        while client.position < length {
            let bytes = content.piece(client.position, chunk_bytes);
            client.chunk_in_frames(&bytes, frame_bytes);
        }
        client.all_acks();
        client.finish();
        content.assert_file(&backend.call(&id, 1).path());
    }
}

fn dribbled_frames_arrive(setup: &Setup) {
    let server = setup.start();
    let backend = Backend::done();
    let content = Content::new(33, 3000);
    let id = backend.ticket_kept(&server);
    let mut client = Client::connect(&server);
    let request = format!(
        "{{\"MsgType\":\"MsgUploadReq\",\"MsgData\":{{\"Id\":\"{id}\",\"LengthBytes\":3000,\
         \"Name\":\"dribble\"}}}}"
    );
    dribble(&mut client, &text_frame(&request));
    client.conf();
    dribble(&mut client, &text_frame("{\"MsgType\":\"MsgAck\",\"MsgData\":{\"Ack\":true}}"));
    for length in [1, 125, 126, 1000, 0, 1748] {
        let bytes = content.piece(client.position, length);
        client.note_sent(bytes.len());
        dribble(&mut client, &binary_frame(&bytes));
    }
    client.all_acks();
    client.finish();
    content.assert_file(&backend.call(&id, 1).path());
}

fn everything_in_one_packet_is_understood(setup: &Setup) {
    let server = setup.start();
    let backend = Backend::done();
    for (length, with_handshake) in
        [(0, false), (10, false), (100_000, false), (3 * MIB, false), (0, true), (100_000, true)]
    {
        let content = Content::new(34, length);
        let id = backend.ticket_kept(&server);
        let request = format!(
            "{{\"MsgType\":\"MsgUploadReq\",\"MsgData\":{{\"Id\":\"{id}\",\
             \"LengthBytes\":{length},\"Name\":\"at once\"}}}}"
        );
        let mut bytes = text_frame(&request);
        bytes.extend(text_frame("{\"MsgType\":\"MsgAck\",\"MsgData\":{\"Ack\":true}}"));
        let mut sent = Vec::new();
        for offset in (0..length).step_by(30_000) {
            let piece = content.piece(offset, 30_000);
            bytes.extend(binary_frame(&piece));
            sent.push(piece.len());
        }
        // No browser speaks before the handshake is over, but it costs nothing to understand it.
        let mut client = if with_handshake {
            Client::connect_and_say(&server, &bytes)
        } else {
            let mut client = Client::connect(&server);
            client.raw(&bytes);
            client
        };
        assert_eq!(client.conf(), 0);
        for length in sent {
            client.note_sent(length);
        }
        client.all_acks();
        client.finish();
        content.assert_file(&backend.call(&id, 1).path());
    }
}

#[test]
fn the_window_is_advice() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let content = Content::new(35, 200 * 3000);
    let id = backend.ticket_kept(&server);
    let mut client = Client::open(&server, &id, content.length_bytes);
    for _ in 0..200 {
        let bytes = content.piece(client.position, 3000);
        client.chunk(bytes);
    }
    client.all_acks();
    client.finish();
    content.assert_file(&backend.call(&id, 1).path());
}

#[test]
fn an_empty_file_is_handed_over() {
    let server = Setup::default().start();
    let backend = Backend::scripted(|call| {
        assert_eq!(std::fs::metadata(call.path()).expect("the empty file").len(), 0);
        Answer::Done
    });
    let id = backend.ticket(&server);
    Client::upload(&server, &id, Content::new(0, 0), 1);
    let call = backend.call(&id, 1);
    assert!(call.path().is_absolute());
    wait_until("the empty file is removed after `done`", || !call.path().exists());

    // An empty chunk of an empty file is acknowledged like any other, or comes too late.
    let id = backend.ticket(&server);
    let mut client = Client::open(&server, &id, 0);
    client.chunk(Vec::new());
    client.message_after_acks("MsgAllDone");
    client.assert_closed(1000);
}

#[test]
fn only_acknowledged_chunks_count_before_the_hand_over() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let content = Content::new(36, 1_000_000);
    let id = backend.ticket(&server);
    let mut client = Client::open(&server, &id, content.length_bytes);
    for _ in 0..9 {
        client.chunk(content.piece(client.position, 100_000));
        client.chunk_ack();
        assert_eq!(backend.call_count(&id), 0);
        let handed_over = server.storage_dir().join("arrived");
        let count = std::fs::read_dir(handed_over).map_or(0, Iterator::count);
        assert_eq!(count, 0, "an unfinished file is not among the arrived ones");
    }
    client.send_rest(content, || 100_000);
    client.finish();
    assert_eq!(client_calls(&backend, &id), 1);
}

fn client_calls(backend: &Backend, id: &str) -> usize {
    backend.call(id, 1);
    backend.call_count(id)
}

fn dribble(client: &mut Client, bytes: &[u8]) {
    for byte in bytes {
        client.raw(&[*byte]);
    }
}

const MIB: u64 = 1024 * 1024;
