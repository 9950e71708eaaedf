//! Heads, bodies and parameters.

use incoming::codec::body::BodyDecoder;
use incoming::codec::handshake::accept;
use incoming::codec::params::Params;
use incoming::codec::request::{Head, HeadLimits, RequestError, parse_head};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::{config, cut};

const BODY_BYTES_MAX: usize = 100;

const HEADS: [&str; 4] = [
    "GET / HTTP/1.0\r\n\r\n",
    "GET http://a:80/x?y HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
    "POST /incoming/0.1/backend/new_upload?a=b HTTP/1.1\r\nHost: 127.0.0.1:4000\r\n\
     Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n",
    "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Content-Length: 0\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
     Sec-WebSocket-Version: 13\r\n\r\n",
];

const CHUNKED: &[u8] = b"5\r\nhello\r\n0A;x=\"y\"\r\n0123456789\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1";

const MULTIPART: &[u8] = b"--b\r\nContent-Disposition: form-data; name=\"id\"\r\n\r\n1\r\n--b \r\n\
    content-disposition: form-data; filename=\"\\\"\"; name=file\r\nContent-Type: a/b\r\n\r\n\r\n\
    \r\n--b--\r\n";

/// A few bytes replaced, put in or taken out, preferably such as have a meaning.
fn damaged(bytes: &[u8], damages: &[(Index, u8, Option<u8>)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, kind, byte) in damages {
        let at = at.index(bytes.len());
        match (kind % 2, byte) {
            (0, Some(byte)) => bytes[at] = *byte,
            (_, Some(byte)) => bytes.insert(at, *byte),
            (_, None) if bytes.len() > 1 => drop(bytes.remove(at)),
            (_, None) => {}
        }
    }
    bytes
}

fn damage() -> impl Strategy<Value = Vec<(Index, u8, Option<u8>)>> {
    let byte =
        prop_oneof![prop::sample::select(b"\r\n :;=,\"\\-/?*%#\0\t0f".to_vec()), any::<u8>(),];
    vec((any::<Index>(), any::<u8>(), proptest::option::weighted(0.7, byte)), 0..4)
}

/// How a body ends: complete, waiting, or refused; its data; what was left of the input.
fn decode(head: &Head, pieces: &[&[u8]]) -> (Result<bool, RequestError>, Vec<u8>, usize) {
    let mut body = Vec::new();
    let mut decoder = match BodyDecoder::new(head, BODY_BYTES_MAX) {
        Ok(decoder) => decoder,
        Err(error) => return (Err(error), body, 0),
    };
    let mut left: usize = pieces.iter().map(|it| it.len()).sum();
    let mut outcome = decoder.decode(&mut &b""[..], &mut body);
    for piece in pieces {
        if outcome != Ok(false) {
            break;
        }
        let mut input = *piece;
        outcome = decoder.decode(&mut input, &mut body);
        left -= piece.len() - input.len();
    }
    assert!(body.capacity() <= BODY_BYTES_MAX);
    (outcome, body, left)
}

fn head(text: &str) -> Head {
    parse_head(text.as_bytes(), &HeadLimits::default()).expect("valid").expect("complete").0
}

proptest! {
    #![proptest_config(config())]

    /// A longer look at the same bytes never changes what was said before.
    #[test]
    fn heads_cut_anywhere(which in 0..HEADS.len(), damage in damage(), head_bytes_max in 20usize..300) {
        let bytes = damaged(HEADS[which].as_bytes(), &damage);
        let limits = HeadLimits { head_bytes_max, ..HeadLimits::default() };
        let whole = parse_head(&bytes, &limits);
        if let Ok(Some((head, length))) = &whole {
            prop_assert!(*length <= head_bytes_max);
            let _ = accept(head);
        }
        for length in 0..bytes.len() {
            let part = parse_head(&bytes[..length], &limits);
            prop_assert!(part == Ok(None) || part == whole, "{length}: {part:?}, {whole:?}");
        }
    }

    #[test]
    fn chunked_bodies_cut_anywhere(damage in damage(), lengths in vec(1usize..9, 1..6)) {
        let head = head(HEADS[2]);
        let bytes = damaged(CHUNKED, &damage);
        let whole = decode(&head, &[&bytes]);
        let parts = decode(&head, &cut(&bytes, &lengths));
        prop_assert_eq!(&parts.0, &whole.0);
        prop_assert_eq!(&parts.1, &whole.1);
        prop_assert_eq!(parts.2, whole.2);
    }

    #[test]
    fn bodies_of_a_length_cut_anywhere(
        length in 0usize..120,
        bytes in vec(any::<u8>(), 0..150),
        lengths in vec(1usize..50, 1..6),
    ) {
        let head = head(&format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
        let (outcome, body, left) = decode(&head, &cut(&bytes, &lengths));
        if length > BODY_BYTES_MAX {
            prop_assert_eq!(outcome, Err(RequestError::BodyTooLong));
        } else {
            let taken = length.min(bytes.len());
            prop_assert_eq!(outcome, Ok(taken == length));
            prop_assert_eq!(body.as_slice(), &bytes[..taken]);
            prop_assert_eq!(left, bytes.len() - taken);
        }
    }

    #[test]
    fn chunks_come_back_as_they_were_cut(
        bytes in vec(any::<u8>(), 0..BODY_BYTES_MAX),
        chunks in vec(1usize..40, 1..6),
        lengths in vec(1usize..50, 1..6),
    ) {
        let mut wire = Vec::new();
        for chunk in cut(&bytes, &chunks) {
            wire.extend(format!("{:x}\r\n", chunk.len()).bytes());
            wire.extend(chunk);
            wire.extend(b"\r\n");
        }
        wire.extend(b"0\r\n\r\n");
        let (outcome, body, left) = decode(&head(HEADS[2]), &cut(&wire, &lengths));
        prop_assert_eq!((outcome, left), (Ok(true), 0));
        prop_assert_eq!(body, bytes);
    }

    #[test]
    fn any_parameters(
        query in ".{0,40}",
        content_type in prop_oneof![
            Just("multipart/form-data; boundary=b".to_owned()),
            "multipart/form-data;.{0,30}",
        ],
        damage in damage(),
    ) {
        let body = damaged(MULTIPART, &damage);
        let params = Params::from_request(Some(&query), Some(&content_type), &body);
        if damage.is_empty() && content_type.ends_with("=b") {
            let params = params.expect("undamaged");
            prop_assert_eq!(params.value("id"), Some("1"));
            prop_assert_eq!(params.value("file"), Some("\r\n"));
        }
    }

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..300)) {
        let limits = HeadLimits { head_bytes_max: 200, ..HeadLimits::default() };
        if let Ok(Some((_, length))) = parse_head(&bytes, &limits) {
            prop_assert!(length <= 200);
        }
        let _ = decode(&head(HEADS[2]), &[&bytes]);
        let text = String::from_utf8_lossy(&bytes);
        let _ = Params::from_request(Some(&text), Some(&text), &bytes);
        let form = Some("application/x-www-form-urlencoded");
        let _ = Params::from_request(None, form, &bytes);
    }
}
