//! What a byte costs on its way from the receive buffer to staging memory, and what a request head
//! costs. The fast code stands beside its naive twin; the results are in `doc/benchmarks/`.
//!
//! Goals: see a regression, and choose sizes by numbers. No goal: predicting the server's rate,
//! which the kernel decides.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::limits::RECEIVE_BUFFER_BYTES;
use engine::mask::{naive, unmask_into};
use incoming::codec::frame::{Decoder, Piece};
use incoming::codec::request::{HeadLimits, parse_head};
use tungstenite::protocol::frame::coding::{Data, OpCode};

criterion_group!(benches, one_touch, frames, heads);
criterion_main!(benches);

/// One pass over one piece, from a warm source to memory that no core cache holds.
fn one_touch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one_touch");
    for length in [16, 256, 1024, 4096, 16 * KIB, 131_000, MIB, 8 * MIB] {
        group.throughput(Throughput::Bytes(length as u64));
        let source = bytes(length);
        let mut staging = Staging::new();
        group.bench_function(BenchmarkId::new("unmask_into", length), |bencher| {
            bencher.iter(|| unmask_into(staging.next(length), black_box(&source), MASK));
        });
        group.bench_function(BenchmarkId::new("naive", length), |bencher| {
            bencher.iter(|| naive::unmask_into(staging.next(length), black_box(&source), MASK));
        });
        group.bench_function(BenchmarkId::new("copy_only", length), |bencher| {
            bencher.iter(|| staging.next(length).copy_from_slice(black_box(&source)));
        });
    }
    group.finish();
}

/// A client's stream in receive buffers: decode, and unmask into staging.
fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames");
    for payload_length in [16 * KIB, 131_000, MIB] {
        let wire = stream(payload_length);
        group.throughput(Throughput::Bytes(wire.len() as u64));
        let mut staging = Staging::new();
        group.bench_function(BenchmarkId::new("decode_and_unmask", payload_length), |bencher| {
            bencher.iter(|| {
                let decoded = decode(black_box(&wire), |bytes, mask| {
                    unmask_into(staging.next(bytes.len()), bytes, mask);
                });
                assert_eq!(decoded, PAYLOAD_BYTES / payload_length * payload_length);
            });
        });
        group.bench_function(BenchmarkId::new("naive", payload_length), |bencher| {
            bencher.iter(|| {
                let decoded = naive_decode(black_box(&wire), &mut staging);
                assert_eq!(decoded, PAYLOAD_BYTES / payload_length * payload_length);
            });
        });
    }
    group.finish();

    // Without touching the payload, bytes a second say nothing: this is the time of one frame.
    let wire = stream(125);
    let mut group = criterion.benchmark_group("frame_heads");
    group.throughput(Throughput::Elements((PAYLOAD_BYTES / 125) as u64));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| decode(black_box(&wire), |bytes, _| _ = black_box(bytes)));
    });
    group.finish();
}

fn heads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request_head");
    let limits = HeadLimits::default();
    for (name, text) in [("short", SHORT), ("long", LONG)] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(BenchmarkId::new("parse_head", name), |bencher| {
            bencher.iter_batched(
                || text.as_bytes(),
                |bytes| {
                    let parsed = parse_head(black_box(bytes), &limits).expect("valid");
                    assert_eq!(parsed.as_ref().map(|it| it.1), Some(text.len()));
                    parsed
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// Memory that is written once around before a place is written again, as a core's staging is.
struct Staging {
    memory: Vec<u8>,
    at: usize,
}

impl Staging {
    fn new() -> Self {
        // Written, not only reserved: page faults are not what is measured.
        Self { memory: vec![1; STAGING_BYTES], at: 0 }
    }

    fn next(&mut self, length: usize) -> &mut [u8] {
        if self.at + length > self.memory.len() {
            self.at = 0;
        }
        let place = self.at..self.at + length;
        self.at = place.end;
        &mut self.memory[place]
    }
}

/// How many payload bytes were handed to `payload`.
fn decode(wire: &[u8], mut payload: impl FnMut(&[u8], [u8; 4])) -> usize {
    let mut decoder = Decoder::default();
    let mut payload_bytes = 0;
    for mut input in wire.chunks(RECEIVE_BUFFER_BYTES as usize) {
        while let Some(piece) = decoder.decode(&mut input).expect("valid") {
            if let Piece::Payload { bytes, mask, .. } = piece {
                payload(bytes, mask);
                payload_bytes += bytes.len();
            }
        }
    }
    payload_bytes
}

/// The naive twin: gathers each frame, then unmasks it byte by byte, then copies it.
fn naive_decode(wire: &[u8], staging: &mut Staging) -> usize {
    let mut gathered = Vec::new();
    let mut payload_bytes = 0;
    for input in wire.chunks(RECEIVE_BUFFER_BYTES as usize) {
        gathered.extend_from_slice(input);
        while let Some((start, length)) = naive_head(&gathered) {
            if gathered.len() < start + length {
                break;
            }
            let mask: [u8; 4] = gathered[start - 4..start].try_into().expect("four bytes");
            for index in 0..length {
                gathered[start + index] ^= mask[index % 4];
            }
            staging.next(length).copy_from_slice(&gathered[start..start + length]);
            gathered.drain(..start + length);
            payload_bytes += length;
        }
    }
    payload_bytes
}

/// Where the payload begins, and its length.
fn naive_head(bytes: &[u8]) -> Option<(usize, usize)> {
    let number = |field: &[u8]| field.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    match bytes.get(1)? & 0x7f {
        126 => Some((8, number(bytes.get(2..4)?))),
        127 => Some((14, number(bytes.get(2..10)?))),
        short => Some((6, usize::from(short))),
    }
}

/// [`PAYLOAD_BYTES`] or a little less in masked frames, written by an independent implementation.
fn stream(payload_length: usize) -> Vec<u8> {
    let mut wire = Vec::new();
    for _ in 0..PAYLOAD_BYTES / payload_length {
        let opcode = OpCode::Data(Data::Binary);
        let payload = bytes(payload_length);
        let mut frame = tungstenite::protocol::frame::Frame::message(payload, opcode, true);
        frame.header_mut().mask = Some(MASK);
        frame.format(&mut wire).expect("memory takes everything");
    }
    wire
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|it| (it * 31 + it / 251) as u8).collect()
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// Of the streams of frames.
const PAYLOAD_BYTES: usize = 8 * MIB;
/// As much as a core has.
const STAGING_BYTES: usize = 64 * MIB;

/// What a web app's backend sends.
const SHORT: &str = "POST /incoming/0.1/backend/new_upload?signalFinishURL=http%3A%2F%2F127.0.0.1%3A8080 \
    HTTP/1.1\r\nHost: 127.0.0.1:4000\r\nContent-Length: 0\r\n\r\n";

/// What a browser sends through a proxy.
const LONG: &str = "GET /incoming/0.1/frontend/upload_ws HTTP/1.1\r\n\
    Host: uploads.example.org\r\n\
    X-Forwarded-For: 203.0.113.195\r\n\
    X-Forwarded-Proto: https\r\n\
    X-Real-IP: 203.0.113.195\r\n\
    Upgrade: websocket\r\n\
    Connection: upgrade\r\n\
    Pragma: no-cache\r\n\
    Cache-Control: no-cache\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/131.0.0.0 Safari/537.36\r\n\
    Origin: https://www.example.org\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-US,en;q=0.9,de;q=0.8\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef; \
    theme=dark; consent=necessary%2Cstatistics; last_visit=1733000000\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
