//! The text messages of the Incoming!! 0.1 protocol, read and written.
//!
//! Each is a JSON object `{"MsgType": name, "MsgData": {...}}`. Reading is as lenient as the
//! original server (keys in any case, unknown ones ignored), writing as exact as it: compact,
//! fields in its order.

use bytes::BytesMut;
use engine::error::PeerError;
use serde_json::Value;

use crate::codec::frame::{OpCode, encode};

/// A message from a server to a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage<'a> {
    UploadConf { chunk_size_kb: u32, file_pos: u64, send_ahead: u32 },
    ChunkAck { chunk_size_bytes: u64 },
    AllDone,
    Cancel { reason: &'a str },
    CancelAck,
    Error(PeerError),
}

impl ServerMessage<'_> {
    /// Writes the message as one frame.
    pub fn encode(&self, out: &mut BytesMut) {
        encode(out, OpCode::Text, self.to_text().as_bytes());
    }

    fn to_text(&self) -> String {
        match self {
            Self::UploadConf { chunk_size_kb, file_pos, send_ahead } => format!(
                r#"{{"MsgType":"MsgUploadConf","MsgData":{{"ChunkSizeKB":{chunk_size_kb},"FilePos":{file_pos},"SendAhead":{send_ahead}}}}}"#
            ),
            Self::ChunkAck { chunk_size_bytes } => format!(
                r#"{{"MsgType":"MsgChunkAck","MsgData":{{"ChunkSize":{chunk_size_bytes}}}}}"#
            ),
            Self::AllDone => r#"{"MsgType":"MsgAllDone","MsgData":{"Success":true}}"#.into(),
            Self::Cancel { reason } => {
                let reason = quote(reason);
                format!(r#"{{"MsgType":"MsgCancel","MsgData":{{"Reason":{reason}}}}}"#)
            }
            Self::CancelAck => r#"{"MsgType":"MsgCancelAck","MsgData":{"Ack":true}}"#.into(),
            Self::Error(error) => {
                let (code, text) = (error.code(), quote(error.message()));
                format!(r#"{{"MsgType":"MsgError","MsgData":{{"ErrorCode":{code},"Msg":{text}}}}}"#)
            }
        }
    }
}

/// A message from a browser, its data not yet looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientMessage {
    kind: String,
    data: Option<serde_json::Map<String, Value>>,
}

/// What a browser wants to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadRequest {
    /// As it was said: perhaps no ticket id at all.
    pub id: String,
    pub length_bytes: u64,
    pub name: String,
}

impl ClientMessage {
    /// `None`: not a JSON object, or its data is not one.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let Value::Object(envelope) = serde_json::from_slice(text).ok()? else { return None };
        let kind = match field(&envelope, "MsgType") {
            Some(Value::String(it)) => it.clone(),
            None | Some(Value::Null) => String::new(),
            Some(_) => return None,
        };
        let data = match field(&envelope, "MsgData") {
            Some(Value::Object(it)) => Some(it.clone()),
            None | Some(Value::Null) => None,
            Some(_) => return None,
        };
        Some(Self { kind, data })
    }

    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The data of a `MsgUploadReq`. Lengths are JSON integers; a missing or null one is 0.
    pub fn upload_request(&self) -> Option<UploadRequest> {
        let data = self.data.as_ref()?;
        let length_bytes = match field(data, "LengthBytes") {
            None | Some(Value::Null) => 0,
            Some(it) => it.as_u64().filter(|it| *it <= engine::limits::FILE_BYTES_MAX)?,
        };
        let id = text(data, "Id")?;
        Some(UploadRequest { id, length_bytes, name: text(data, "Name")? })
    }

    /// The data of a `MsgAck`: a missing `Ack` is false.
    pub fn ack(&self) -> Option<bool> {
        match field(self.data.as_ref()?, "Ack") {
            None | Some(Value::Null) => Some(false),
            Some(it) => it.as_bool(),
        }
    }

    /// The `Reason` of a `MsgCancel`, or nothing if it gives none.
    pub fn reason(&self) -> String {
        self.data.as_ref().and_then(|it| text(it, "Reason")).unwrap_or_default()
    }

    /// The `Msg` of a `MsgError`.
    pub fn error_text(&self) -> String {
        self.data.as_ref().and_then(|it| text(it, "Msg")).unwrap_or_default()
    }
}

/// A field by its name, in any case; the exact name wins.
fn field<'a>(object: &'a serde_json::Map<String, Value>, name: &str) -> Option<&'a Value> {
    let exact = object.get(name);
    exact.or_else(|| object.iter().find(|it| it.0.eq_ignore_ascii_case(name)).map(|it| it.1))
}

/// A string field; a missing or null one is empty, another type is an error.
fn text(object: &serde_json::Map<String, Value>, name: &str) -> Option<String> {
    match field(object, name) {
        None | Some(Value::Null) => Some(String::new()),
        Some(Value::String(it)) => Some(it.clone()),
        Some(_) => None,
    }
}

/// A JSON string that is also harmless inside HTML, as the original writes it.
fn quote(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_as_the_original_writes() {
        let conf = ServerMessage::UploadConf { chunk_size_kb: 512, file_pos: 7, send_ahead: 4 };
        let table = [
            (
                conf,
                r#"{"MsgType":"MsgUploadConf","MsgData":{"ChunkSizeKB":512,"FilePos":7,"SendAhead":4}}"#,
            ),
            (
                ServerMessage::ChunkAck { chunk_size_bytes: 524_288 },
                r#"{"MsgType":"MsgChunkAck","MsgData":{"ChunkSize":524288}}"#,
            ),
            (ServerMessage::AllDone, r#"{"MsgType":"MsgAllDone","MsgData":{"Success":true}}"#),
            (
                ServerMessage::Cancel { reason: "a<b> & \"c\"" },
                r#"{"MsgType":"MsgCancel","MsgData":{"Reason":"a\u003cb\u003e \u0026 \"c\""}}"#,
            ),
            (ServerMessage::CancelAck, r#"{"MsgType":"MsgCancelAck","MsgData":{"Ack":true}}"#),
            (
                ServerMessage::Error(PeerError::Nacked),
                r#"{"MsgType":"MsgError","MsgData":{"ErrorCode":102,"Msg":"you nack-ed"}}"#,
            ),
        ];
        for (message, text) in table {
            assert_eq!(message.to_text(), text);
        }
    }

    #[test]
    fn upload_requests() {
        let read = |data: &str| {
            let text = format!(r#"{{"MsgType":"MsgUploadReq","MsgData":{data}}}"#);
            ClientMessage::parse(text.as_bytes())?.upload_request()
        };
        let request = |id: &str, length_bytes, name: &str| {
            Some(UploadRequest { id: id.into(), length_bytes, name: name.into() })
        };
        let table = [
            (r#"{"Id":"x","LengthBytes":5,"Name":"n"}"#, request("x", 5, "n")),
            (r#"{"id":"x","lengthbytes":5,"NAME":"n"}"#, request("x", 5, "n")),
            (r#"{"Id":"x","LengthBytes":null}"#, request("x", 0, "")),
            (r#"{"Id":"x","LengthBytes":5,"More":[]}"#, request("x", 5, "")),
            (r#"{"Id":"x","LengthBytes":5.0}"#, None),
            (r#"{"Id":"x","LengthBytes":1e3}"#, None),
            (r#"{"Id":"x","LengthBytes":"5"}"#, None),
            (r#"{"Id":"x","LengthBytes":-1}"#, None),
            (r#"{"Id":"x","LengthBytes":9007199254740992}"#, None),
            (r#"{"Id":"x","LengthBytes":9223372036854775808}"#, None),
            (r#"{"Id":5,"LengthBytes":5}"#, None),
            ("null", None),
        ];
        for (data, expected) in table {
            assert_eq!(read(data), expected, "{data}");
        }
        for text in ["", "[]", "5", r#"{"MsgType":5}"#, r#"{"MsgType":"x","MsgData":5}"#, "{"] {
            assert_eq!(ClientMessage::parse(text.as_bytes()), None, "{text}");
        }
    }
}
