//! The browser's end of one connection, and requests of the web app: on tungstenite and a plain
//! socket, for a server that may die at any moment.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use socket2::SockRef;
use tungstenite::{Error, Message, WebSocket};

use crate::http;
use crate::server::PATIENCE;

/// How a conversation ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// No connection, or its end without a word.
    Lost,
    /// A close frame.
    Closed(Option<u16>),
    /// `MsgError`: do not come back.
    Refused(u64, String),
    /// Nothing came for [`PATIENCE`].
    Silent,
    /// A message that does not belong there.
    Unexpected(String),
}

/// One connection to `upload_ws`.
#[derive(Debug)]
pub struct Browser {
    socket: WebSocket<TcpStream>,
}

impl Browser {
    pub fn connect(address: SocketAddr) -> Result<Self, End> {
        let stream = connect(address).map_err(|_| End::Lost)?;
        let url = format!("ws://{address}/incoming/0.1/frontend/upload_ws");
        let (socket, _) = tungstenite::client(url, stream).map_err(|_| End::Lost)?;
        Ok(Self { socket })
    }

    /// Whether it went out shows at the next [`Self::receive`], which may still get what the
    /// server said before it went away.
    pub fn say(&mut self, kind: &str, data: Value) {
        let text = json!({ "MsgType": kind, "MsgData": data }).to_string();
        let _ = self.socket.send(Message::text(text));
    }

    pub fn chunk(&mut self, bytes: Vec<u8>) {
        let _ = self.socket.send(Message::binary(bytes));
    }

    /// The next message: its type and data.
    pub fn receive(&mut self) -> Result<(String, Value), End> {
        loop {
            return match self.socket.read() {
                Ok(Message::Text(text)) => {
                    let Ok(value) = serde_json::from_str::<Value>(&text) else {
                        return Err(End::Unexpected(text.to_string()));
                    };
                    let kind = value["MsgType"].as_str().unwrap_or_default().to_owned();
                    let data = value["MsgData"].clone();
                    if kind == "MsgError" {
                        let code = data["ErrorCode"].as_u64().unwrap_or_default();
                        return Err(End::Refused(code, data["Msg"].to_string()));
                    }
                    Ok((kind, data))
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => continue,
                Ok(Message::Close(frame)) => Err(End::Closed(frame.map(|it| it.code.into()))),
                Ok(other) => Err(End::Unexpected(format!("{other:?}"))),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    Err(End::Silent)
                }
                Err(_) => Err(End::Lost),
            };
        }
    }

    /// The data of the next message, which must be of this type.
    pub fn expect(&mut self, expected: &str) -> Result<Value, End> {
        match self.receive()? {
            (kind, data) if kind == expected => Ok(data),
            (kind, data) => Err(End::Unexpected(format!("{kind} {data} where {expected} was due"))),
        }
    }

    /// How long [`Self::receive`] waits from now on.
    pub fn be_patient_for(&mut self, time: Duration) {
        let _ = self.socket.get_ref().set_read_timeout(Some(time));
    }

    /// Ends the connection with RST, as a dying network does.
    pub fn reset(self) {
        let _ = SockRef::from(self.socket.get_ref()).set_linger(Some(Duration::ZERO));
    }
}

/// A request of the web app: status and body, or `None` if no whole answer came.
pub fn post(address: SocketAddr, route: &str, form: &[(&str, &str)]) -> Option<(u16, String)> {
    let target = format!("/incoming/0.1/backend/{route}");
    let headers = [("Content-Type", http::URLENCODED), ("Connection", "close")];
    let request = http::request_bytes("POST", &target, &headers, &http::encode(form));
    let mut stream = connect(address).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).ok()?;
    let response = String::from_utf8(response).ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|it| it.strip_prefix("content-length: "))?;
    (length.parse() == Ok(body.len())).then(|| (status, body.to_owned()))
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
