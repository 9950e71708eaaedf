//! Frames and messages against tungstenite.

use std::io::{self, Read, Write};

use engine::mask::naive::unmask_into;
use incoming::codec::frame::{Decoder, FrameError, Piece};
use incoming::codec::message::{MessageDecoder, MessageError, MessageEvent, MessageLimits};
use proptest::collection::vec;
use proptest::prelude::*;
use tungstenite::protocol::{Role, WebSocket};
use tungstenite::{Error, Message};

use super::{config, cut};

const LIMITS: MessageLimits =
    MessageLimits { binary_bytes_max: 1 << 20, text_bytes_max: 1 << 20, frames_max: 1000 };

/// One frame as a client could send it, right or wrong.
#[derive(Clone, Debug)]
struct Frame {
    first: u8,
    mask: Option<[u8; 4]>,
    payload: Vec<u8>,
}

/// What a decoder makes of a conversation.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Binary(Vec<u8>),
    Text(String),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>, String),
    Violation,
}

fn wire(frames: &[Frame]) -> Vec<u8> {
    let mut wire = Vec::new();
    for it in frames {
        let masked = if it.mask.is_some() { 0x80 } else { 0 };
        wire.push(it.first);
        match it.payload.len() {
            length @ 0..=125 => wire.push(masked | length as u8),
            length @ 126..=0xffff => {
                wire.push(masked | 126);
                wire.extend((length as u16).to_be_bytes());
            }
            length => {
                wire.push(masked | 127);
                wire.extend((length as u64).to_be_bytes());
            }
        }
        wire.extend(it.mask.into_iter().flatten());
        let mut payload = it.payload.clone();
        unmask_into(&mut payload, &it.payload, it.mask.unwrap_or_default());
        wire.extend(payload);
    }
    wire
}

fn ours(wire: &[u8], lengths: &[usize]) -> Vec<Said> {
    let mut decoder = MessageDecoder::new(LIMITS);
    let mut said = Vec::new();
    let mut binary = Vec::new();
    for mut input in cut(wire, lengths) {
        loop {
            match decoder.decode(&mut input) {
                Ok(None) => break,
                Ok(Some(MessageEvent::BinaryData { bytes, mask })) => {
                    let before = binary.len();
                    binary.resize(before + bytes.len(), 0);
                    unmask_into(&mut binary[before..], bytes, mask);
                }
                Ok(Some(MessageEvent::BinaryEnd { length_bytes })) => {
                    assert_eq!(binary.len() as u64, length_bytes);
                    said.push(Said::Binary(std::mem::take(&mut binary)));
                }
                Ok(Some(MessageEvent::Text(text))) => said.push(Said::Text(text)),
                Ok(Some(MessageEvent::Ping(payload))) => said.push(Said::Ping(payload.to_vec())),
                Ok(Some(MessageEvent::Pong)) => said.push(Said::Pong),
                Ok(Some(MessageEvent::Close { code, reason })) => {
                    said.push(Said::Close(code, reason));
                }
                Err(_) => said.push(Said::Violation),
            }
        }
        assert!(input.is_empty());
    }
    said
}

fn theirs(wire: &[u8]) -> Vec<Said> {
    let mut socket = WebSocket::from_raw_socket(Wire(wire), Role::Server, None);
    let mut said = Vec::new();
    loop {
        said.push(match socket.read() {
            Ok(Message::Binary(bytes)) => Said::Binary(bytes.to_vec()),
            Ok(Message::Text(text)) => Said::Text(text.to_string()),
            Ok(Message::Ping(payload)) => Said::Ping(payload.to_vec()),
            Ok(Message::Pong(_)) => Said::Pong,
            Ok(Message::Close(None)) => Said::Close(None, String::new()),
            // tungstenite puts this in the place of a code that must not be sent.
            Ok(Message::Close(Some(frame))) if frame.reason == "Protocol violation" => {
                Said::Violation
            }
            Ok(Message::Close(Some(frame))) => {
                Said::Close(Some(frame.code.into()), frame.reason.to_string())
            }
            Ok(Message::Frame(_)) => unreachable!("reading gives whole messages"),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return said,
            Err(_) => Said::Violation,
        });
        if matches!(said.last(), Some(Said::Close(..) | Said::Violation)) {
            return said;
        }
    }
}

/// A socket on which nothing more comes, and which takes every answer.
struct Wire<'a>(&'a [u8]);

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            length => Ok(length),
        }
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..20),
        4 => ".{0,12}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 120..132),
        1 => vec(any::<u8>(), 65_530..65_540),
    ]
}

/// Any frame at all, mostly of the kinds there are.
fn any_frame() -> impl Strategy<Value = Frame> {
    let first = prop_oneof![
        30 => prop::sample::select(vec![0x00, 0x80, 0x01, 0x81, 0x02, 0x82, 0x89, 0x8a]),
        1 => any::<u8>(),
    ];
    let mask = prop_oneof![30 => any::<[u8; 4]>().prop_map(Some), 1 => Just(None)];
    (first, mask, payload()).prop_map(|(first, mask, payload)| Frame { first, mask, payload })
}

/// One message in fragments, with control frames between them.
fn message() -> impl Strategy<Value = Vec<Frame>> {
    let text = ".{0,40}".prop_map(|it| (0x01, it.into_bytes()));
    let binary = payload().prop_map(|it| (0x02, it));
    let control = (prop::sample::select(vec![0x89, 0x8a]), vec(any::<u8>(), 0..=125));
    let data = prop_oneof![text, binary];
    let parts = vec((0usize..40, any::<[u8; 4]>(), proptest::option::weighted(0.2, control)), 0..5);
    (data, parts, any::<[u8; 4]>()).prop_map(|((opcode, bytes), parts, last_mask)| {
        let mut frames = Vec::new();
        let mut rest = bytes.as_slice();
        let mut first = opcode;
        for (length, mask, control) in parts {
            let (payload, after) = rest.split_at(length.min(rest.len()));
            frames.push(Frame { first, mask: Some(mask), payload: payload.to_vec() });
            frames.extend(control.map(|it| Frame { first: it.0, mask: Some(mask), payload: it.1 }));
            (rest, first) = (after, 0x00);
        }
        frames.push(Frame { first: 0x80 | first, mask: Some(last_mask), payload: rest.to_vec() });
        frames
    })
}

fn close() -> impl Strategy<Value = Frame> {
    let code = prop_oneof![
        Just(vec![]),
        vec(any::<u8>(), 1),
        prop::sample::select(vec![
            1000u16, 1001, 1003, 1004, 1005, 1006, 1007, 1011, 1015, 3000, 4001, 5000
        ])
        .prop_map(|it| it.to_be_bytes().to_vec()),
    ];
    (code, payload()).prop_map(|(mut code, reason)| {
        if code.len() == 2 {
            code.extend(&reason[..reason.len().min(123)]);
        }
        Frame { first: 0x88, mask: Some([1, 2, 3, 4]), payload: code }
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn conversations_read_as_tungstenite_reads_them(
        messages in vec(message(), 0..6),
        end in proptest::option::of(close()),
        lengths in vec(1usize..300, 1..6),
    ) {
        let frames: Vec<Frame> = messages.into_iter().flatten().chain(end).collect();
        let wire = wire(&frames);
        prop_assert_eq!(ours(&wire, &lengths), theirs(&wire));
    }

    #[test]
    fn violations_are_what_tungstenite_calls_violations(
        frames in vec(any_frame(), 0..12),
        lengths in vec(1usize..300, 1..6),
    ) {
        let wire = wire(&frames);
        prop_assert_eq!(ours(&wire, &lengths), theirs(&wire));
    }

    #[test]
    fn frames_cut_anywhere_decode_the_same(
        frames in vec(any_frame(), 1..6),
        lengths in vec(1usize..40, 1..6),
    ) {
        let wire = wire(&frames);
        prop_assert_eq!(pieces(&wire, &lengths), pieces(&wire, &[wire.len()]));
    }

    #[test]
    fn no_bytes_exceed_the_limits(
        bytes in vec(prop_oneof![Just(0x81u8), Just(0x00), Just(0xfe), any::<u8>()], 0..400),
        text_bytes_max in 0usize..40,
    ) {
        let limits = MessageLimits { binary_bytes_max: 20, text_bytes_max, frames_max: 3 };
        let mut decoder = MessageDecoder::new(limits);
        let mut binary_bytes = 0;
        let mut input = bytes.as_slice();
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(MessageEvent::Text(text))) => prop_assert!(text.capacity() <= text_bytes_max),
                Ok(Some(MessageEvent::Ping(payload))) => prop_assert!(payload.len() <= 125),
                Ok(Some(MessageEvent::BinaryData { bytes, .. })) => binary_bytes += bytes.len(),
                Ok(Some(MessageEvent::BinaryEnd { length_bytes })) => {
                    prop_assert_eq!(length_bytes, binary_bytes as u64);
                    binary_bytes = 0;
                }
                Ok(Some(MessageEvent::Pong | MessageEvent::Close { .. })) => {}
                Ok(None) => break,
                Err(error) => prop_assert!(matches!(error.close_code(), 1002 | 1007 | 1009)),
            }
            prop_assert!(binary_bytes <= 20);
        }
        prop_assert!(input.is_empty());
    }
}

#[test]
fn a_frame_longer_than_any_file_is_refused_at_its_head() {
    let wire = [0x82, 0xff, 0x7f, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0];
    let mut decoder = MessageDecoder::new(LIMITS);
    assert_eq!(decoder.decode(&mut &wire[..]), Err(MessageError::BinaryTooLong));
}

/// Heads, and payloads joined and unmasked.
type Frames = Vec<(bool, String, u64, Vec<u8>)>;

fn pieces(wire: &[u8], lengths: &[usize]) -> (Frames, Option<FrameError>) {
    let mut decoder = Decoder::default();
    let mut frames = Frames::new();
    for mut input in cut(wire, lengths) {
        loop {
            match decoder.decode(&mut input) {
                Ok(None) => break,
                Ok(Some(Piece::Head { fin, opcode, length_bytes })) => {
                    frames.push((fin, format!("{opcode:?}"), length_bytes, Vec::new()));
                }
                Ok(Some(Piece::Payload { bytes, mask, last })) => {
                    let (.., length_bytes, payload) = frames.last_mut().expect("a head before");
                    let before = payload.len();
                    payload.resize(before + bytes.len(), 0);
                    unmask_into(&mut payload[before..], bytes, mask);
                    assert_eq!(last, payload.len() as u64 == *length_bytes);
                }
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}
