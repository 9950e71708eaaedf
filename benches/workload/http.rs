//! HTTP as far as a client of uploads needs it: heads, responses, and uploads without WebSocket.

use crate::content::{Content, Shape};
use crate::conversation::{Conversation, Messages, Stage};
use crate::error::Problem;
use crate::outbox::Outbox;
use crate::{Protocol, Workload};

/// A client that sends a file with PUT, or with tus. Inert.
#[derive(Debug)]
pub(crate) struct Upload {
    state: State,
    host: String,
    protocol: Protocol,
    /// Of the file, once it is known.
    path: String,
    name: String,
    messages: Messages,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Creating,
    Sending,
}

impl Upload {
    pub(crate) fn new(workload: &Workload, client: usize) -> Self {
        let name = format!("file-{client}");
        let content = Content {
            seed: workload.seed,
            file: client as u64,
            length_bytes: workload.file_bytes,
            shape: Shape::Plain,
        };
        let (path, message_bytes) = match &workload.protocol {
            Protocol::Tus { path, patch_bytes } => (path.clone(), *patch_bytes),
            Protocol::Put { path } => (format!("{path}{name}"), None),
            Protocol::Incoming | Protocol::WebSocketOnly => (name.clone(), None),
        };
        let messages = Messages::of(content, message_bytes.unwrap_or(workload.file_bytes));
        let (host, protocol) = (workload.host.clone(), workload.protocol.clone());
        Self { state: State::Connecting, host, protocol, path, name, messages }
    }

    fn is_tus(&self) -> bool {
        matches!(self.protocol, Protocol::Tus { .. })
    }
}

impl Conversation for Upload {
    fn on_connected(&mut self, out: &mut Outbox) {
        if !self.is_tus() {
            self.state = State::Sending;
            return;
        }
        let length = self.messages.content.length_bytes.to_string();
        out.push(
            request_head("POST", &self.path, &self.host)
                .with("Tus-Resumable", "1.0.0")
                .with("Upload-Length", &length)
                .with("Content-Length", "0")
                .into_bytes(),
        );
        self.state = State::Creating;
    }

    fn on_bytes(&mut self, bytes: &[u8], _: &mut Outbox) -> Result<usize, Problem> {
        let Some((response, length)) = response(bytes)? else { return Ok(0) };
        response.success()?;
        match self.state {
            State::Creating => {
                let location = response.location.as_deref().unwrap_or_default();
                // An absolute URL as well as a path.
                let path = location.split_once("://").map_or(location, |(_, rest)| {
                    rest.find('/').map_or("", |start| &rest[start..])
                });
                if !path.starts_with('/') {
                    return Err(Problem::Garbage("tus: no Location of the new file"));
                }
                self.path = path.to_owned();
                self.name = path.rsplit('/').next().unwrap_or_default().to_owned();
                self.state = State::Sending;
            }
            State::Sending => {
                self.messages.acked(None)?;
                let acked_bytes = self.messages.acked_bytes();
                if self.is_tus() && response.upload_offset != Some(acked_bytes) {
                    return Err(Problem::Garbage("tus: a wrong Upload-Offset"));
                }
            }
            State::Connecting => return Err(Problem::Garbage("an answer without a question")),
        }
        Ok(length)
    }

    fn stage(&self) -> Stage {
        match self.state {
            State::Sending if self.messages.all_acked() => Stage::Done,
            State::Sending => Stage::Ready,
            State::Connecting | State::Creating => Stage::Preparing,
        }
    }

    fn messages(&self) -> &Messages {
        &self.messages
    }

    /// One request after the other.
    fn may_send(&self) -> bool {
        self.messages.under_way() == 0
    }

    fn send_message(&mut self, out: &mut Outbox) {
        let number = self.messages.sent_count;
        let mut offset = self.messages.offset_of(number);
        let end = offset + self.messages.bytes_of(number);
        let length = (end - offset).to_string();
        let head = match self.is_tus() {
            true => request_head("PATCH", &self.path, &self.host)
                .with("Tus-Resumable", "1.0.0")
                .with("Upload-Offset", &offset.to_string())
                .with("Content-Type", "application/offset+octet-stream"),
            false => request_head("PUT", &self.path, &self.host),
        };
        out.push_beginning(head.with("Content-Length", &length).into_bytes());
        while let Some(mut piece) = self.messages.content.piece_at(offset).filter(|_| offset < end)
        {
            piece.length_bytes = piece.length_bytes.min(end - offset);
            offset += piece.length_bytes;
            out.push_block(piece);
        }
        self.messages.sent_count += 1;
    }

    fn cancel(&mut self, _: &mut Outbox) {}

    fn name(&self) -> &str {
        &self.name
    }
}

/// The beginning of a request; header by header.
pub(crate) struct Head(String);

pub(crate) fn request_head(method: &str, path: &str, host: &str) -> Head {
    Head(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n"))
}

impl Head {
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        for part in [name, ": ", value, "\r\n"] {
            self.0.push_str(part);
        }
        self
    }

    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        self.0.push_str("\r\n");
        self.0.into_bytes()
    }
}

/// What of a response is of interest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) accept: Option<String>,
    location: Option<String>,
    upload_offset: Option<u64>,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn success(&self) -> Result<&Self, Problem> {
        match self.status {
            200..300 => Ok(self),
            status => Err(Problem::Status { status, body: self.body.trim().to_owned() }),
        }
    }
}

/// A whole response and its length. `None`: not all there yet.
pub(crate) fn response(bytes: &[u8]) -> Result<Option<(Response, usize)>, Problem> {
    let mut fields = [httparse::EMPTY_HEADER; FIELD_COUNT_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let parsed = head.parse(bytes).map_err(|_| Problem::Garbage("no HTTP response"))?;
    let httparse::Status::Complete(head_bytes) = parsed else { return Ok(None) };
    let mut response = Response { status: head.code.unwrap_or_default(), ..Response::default() };
    let (mut length, mut is_chunked) = (None, false);
    for field in &*head.headers {
        let value = String::from_utf8_lossy(field.value).trim().to_owned();
        match field.name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let number = value.parse::<usize>();
                length = Some(number.map_err(|_| Problem::Garbage("a wrong Content-Length"))?);
            }
            "transfer-encoding" => is_chunked = value.eq_ignore_ascii_case("chunked"),
            "sec-websocket-accept" => response.accept = Some(value),
            "location" => response.location = Some(value),
            "upload-offset" => response.upload_offset = value.parse().ok(),
            _ => {}
        }
    }
    let rest = &bytes[head_bytes..];
    let (body, body_bytes) = match (response.status, length) {
        (101 | 204 | 304, _) => (Vec::new(), 0),
        _ if is_chunked => match dechunked(rest)? {
            Some(it) => it,
            None => return Ok(None),
        },
        // Without a length a body goes on to the end of the connection (RFC 9112, 6.3); of what
        // is of interest here, everything is there.
        (_, None) => (rest.to_vec(), rest.len()),
        (_, Some(length)) => match rest.get(..length) {
            Some(body) => (body.to_vec(), length),
            None => return Ok(None),
        },
    };
    response.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some((response, head_bytes + body_bytes)))
}

/// A chunked body and its length on the wire (RFC 9112, 7.1).
fn dechunked(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Problem> {
    let garbage = Problem::Garbage("a wrong chunked body");
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let size = httparse::parse_chunk_size(&bytes[at..]).map_err(|_| garbage.clone())?;
        let httparse::Status::Complete((head_bytes, length)) = size else { return Ok(None) };
        let start = at + head_bytes;
        let end = usize::try_from(length).ok().and_then(|it| it.checked_add(start));
        let end = end.filter(|it| *it <= start + BODY_BYTES_MAX).ok_or(garbage.clone())?;
        let Some(chunk) = bytes.get(start..end) else { return Ok(None) };
        body.extend_from_slice(chunk);
        at = end + 2;
        match bytes.get(end..at) {
            None => return Ok(None),
            Some(b"\r\n") if length == 0 => return Ok(Some((body, at))),
            Some(b"\r\n") => {}
            Some(_) => return Err(garbage),
        }
    }
}

const FIELD_COUNT_MAX: usize = 64;
const BODY_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Block;

    fn upload(protocol: Protocol, file_bytes: u64) -> Upload {
        let server = ([127, 0, 0, 1], 1).into();
        Upload::new(&Workload { protocol, file_bytes, ..Workload::new(server) }, 3)
    }

    #[test]
    fn responses_are_read_when_they_are_whole() {
        for (text, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone", "done"),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\ndo\r\n2;x=y\r\nne\r\n0\r\n\r\n",
                "done",
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", ""),
        ] {
            for length in 0..text.len() {
                assert_eq!(response(&text.as_bytes()[..length]), Ok(None), "{length}");
            }
            let more = format!("{text}HTTP/1.1 ");
            let (found, length) = response(more.as_bytes()).unwrap().unwrap();
            assert_eq!((found.body.as_str(), length), (body, text.len()));
        }
        for garbage in [
            "SSH-2.0-OpenSSH",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        ] {
            let found = response(garbage.as_bytes());
            assert!(matches!(found, Err(Problem::Garbage(_))), "{garbage} {found:?}");
        }
    }

    #[test]
    fn put_sends_the_file_in_one_request() {
        let block = Block::shared();
        let mut upload = upload(Protocol::Put { path: "/dav/".into() }, 100_000);
        let mut out = Outbox::default();
        upload.on_connected(&mut out);
        assert_eq!((upload.stage(), upload.may_send()), (Stage::Ready, true));
        upload.send_message(&mut out);
        assert!(!upload.may_send());
        let mut expected = b"PUT /dav/file-3 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\
            Content-Length: 100000\r\n\r\n"
            .to_vec();
        let head_bytes = expected.len();
        expected.resize(head_bytes + 100_000, 0);
        upload.messages.content.fill(block, 0, &mut expected[head_bytes..]);
        assert!(out.flat(block) == expected);
        let refusal = b"HTTP/1.1 507 Full\r\nContent-Length: 3\r\n\r\nno\n";
        let refused = Problem::Status { status: 507, body: "no".into() };
        assert_eq!(upload.on_bytes(refusal, &mut out), Err(refused));
        let done = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(upload.on_bytes(done, &mut out), Ok(done.len()));
        assert_eq!(upload.stage(), Stage::Done);
        assert!(matches!(upload.on_bytes(done, &mut out), Err(Problem::Garbage(_))));
    }

    #[test]
    fn tus_makes_a_file_and_patches_it() {
        let block = Block::shared();
        let protocol = Protocol::Tus { path: "/files/".into(), patch_bytes: Some(60_000) };
        let mut upload = upload(protocol, 100_000);
        let mut out = Outbox::default();
        upload.on_connected(&mut out);
        let created = b"HTTP/1.1 201 Created\r\nLocation: http://h:1/files/abc\r\n\
            Content-Length: 0\r\n\r\n";
        assert_eq!(upload.on_bytes(created, &mut out), Ok(created.len()));
        assert_eq!((upload.stage(), upload.name()), (Stage::Ready, "abc"));
        let mut sent = Vec::new();
        for (offset, length, end) in [(0, 60_000, 60_000), (60_000, 40_000, 100_000)] {
            out = Outbox::default();
            upload.send_message(&mut out);
            let wire = out.flat(block);
            let (head, body) = wire.split_at(wire.len() - length);
            let head = std::str::from_utf8(head).unwrap();
            assert!(head.starts_with("PATCH /files/abc HTTP/1.1\r\n"), "{head}");
            assert!(head.contains(&format!("\r\nUpload-Offset: {offset}\r\n")), "{head}");
            assert!(head.ends_with(&format!("\r\nContent-Length: {length}\r\n\r\n")), "{head}");
            sent.extend_from_slice(body);
            let answer = format!("HTTP/1.1 204 No Content\r\nUpload-Offset: {end}\r\n\r\n");
            upload.on_bytes(answer.as_bytes(), &mut out).unwrap();
        }
        assert_eq!(upload.stage(), Stage::Done);
        let mut expected = vec![0; 100_000];
        upload.messages.content.fill(block, 0, &mut expected);
        assert!(sent == expected);
    }
}
