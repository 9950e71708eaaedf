//! A raw HTTP/1.1 client: sends bytes as they are given, reads responses strictly, and checks what
//! every response must have.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::server::{PATIENCE, Server};

/// One response.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    /// The value of the only header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|it| it.0.eq_ignore_ascii_case(name));
        let value = values.next();
        assert!(values.next().is_none(), "{name} stands twice in {self:?}");
        value.map(|it| it.1.as_str())
    }

    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("the body is text")
    }

    /// Whether the header's comma-separated value has this member.
    pub fn header_lists(&self, name: &str, member: &str) -> bool {
        let value = self.header(name).unwrap_or_default();
        value.split(',').any(|it| it.trim().eq_ignore_ascii_case(member))
    }

    pub fn assert(&self, status: u16, text: &str) {
        assert_eq!((self.status, self.text()), (status, text));
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
        stream.set_write_timeout(Some(PATIENCE)).expect("time-out");
        Self { reader: BufReader::new(stream) }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("send");
    }

    /// For requests that the server may refuse before it has them whole.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes.as_ref())
    }

    pub fn shutdown_write(&self) {
        self.reader.get_ref().shutdown(Shutdown::Write).expect("shutdown");
    }

    /// The next response to anything but HEAD.
    pub fn response(&mut self) -> Response {
        let response = self.response_head();
        self.body_of(response)
    }

    /// A response without a body, whatever its Content-Length says: the answer to HEAD.
    pub fn response_head(&mut self) -> Response {
        let status_line = self.line();
        let mut words = status_line.splitn(3, ' ');
        assert_eq!(words.next(), Some("HTTP/1.1"), "{status_line}");
        let status = words.next().and_then(|it| it.parse().ok()).expect("a status code");
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').expect("a header line");
            assert!(name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-'), "{line}");
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let response = Response { status, headers, body: Vec::new() };
        if status >= 200 {
            let date = response.header("Date").expect("Date stands in every response");
            httpdate::parse_http_date(date).expect("a valid date");
        }
        assert_eq!(response.header("Transfer-Encoding"), None);
        response
    }

    /// Panics unless the server closes without another byte. A reset counts: it means that the
    /// server closed and did not want what was still on its way.
    pub fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => assert_eq!(String::from_utf8_lossy(&rest), "", "after the last response"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
        }
    }

    /// Panics unless the server closes, silently or with this refusal.
    pub fn assert_closed_after_error(&mut self, status: u16) {
        if self.reader.fill_buf().is_ok_and(|it| !it.is_empty()) {
            assert_eq!(self.response().status, status);
        }
        self.assert_closed();
    }

    /// The stream, and what has been read from it behind the last response.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        let read = self.reader.buffer().to_vec();
        (self.reader.into_inner(), read)
    }

    fn body_of(&mut self, mut response: Response) -> Response {
        if response.status >= 200 && response.status != 304 {
            let length = response.header("Content-Length").expect("Content-Length");
            response.body = vec![0; length.parse().expect("a length")];
            self.reader.read_exact(&mut response.body).expect("the whole body");
        }
        response
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line of the response head");
        let line = line.strip_suffix("\r\n");
        line.unwrap_or_else(|| panic!("the connection ended in the response head")).to_owned()
    }
}

impl Server {
    pub fn get(&self, target: &str) -> Response {
        self.request("GET", target, &[], "")
    }

    /// POST with an urlencoded body.
    pub fn post(&self, target: &str, form: &[(&str, &str)]) -> Response {
        let body = encode(form);
        self.request("POST", target, &[("Content-Type", URLENCODED)], &body)
    }

    /// One request on a connection of its own.
    pub fn request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response {
        let mut connection = Connection::open(self.address);
        connection.send(request_bytes(method, target, headers, body));
        if method == "HEAD" { connection.response_head() } else { connection.response() }
    }
}

/// A whole request as bytes, with Host and, unless the body is empty, Content-Length.
pub fn request_bytes(method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut out = format!("{method} {target} HTTP/1.1\r\nHost: it.example\r\n");
    for (name, value) in headers {
        out += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || method == "POST" {
        out += &format!("Content-Length: {}\r\n", body.len());
    }
    out + "\r\n" + body
}

/// Pairs in `application/x-www-form-urlencoded` form.
pub fn encode(form: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish()
}

pub const URLENCODED: &str = "application/x-www-form-urlencoded";
