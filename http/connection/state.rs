//! What a connection is waiting for, and so what its owner may do with its socket.

use super::{Connection, INPUT_BYTES_MAX, OUT_BYTES_MAX, Phase, UNACKED_COUNT_MAX};

/// How a connection may receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Not before the answer that is due.
    Nothing,
    /// At most so many bytes, kept ones included.
    Bytes(u32),
    /// Bytes of a file: as many as there is room for.
    FileBytes,
    /// Everything, to throw it away.
    Discard,
}

/// What the waiting for a client means, and so how long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Between requests.
    Idle,
    /// Within a request, or between the upgrade and the confirmed upload.
    Handshake,
    /// An upload, at its own pace.
    Upload,
    /// The client was asked to agree to a cancellation; what it has sent before comes first.
    Revoked,
    /// Somebody else is to act.
    Server,
    /// Only the end is to come.
    Ending,
}
impl Connection {
    pub fn wants(&self) -> Wants {
        if self.is_ending {
            return Wants::Discard;
        }
        if self.out.len() > OUT_BYTES_MAX {
            return Wants::Nothing;
        }
        match &self.phase {
            Phase::Head | Phase::Body(_) => Wants::Bytes(INPUT_BYTES_MAX),
            Phase::Answering(_) => Wants::Nothing,
            Phase::Upload(it) if it.session.is_claiming() => Wants::Nothing,
            Phase::Upload(it) if it.session.unacked_count() >= UNACKED_COUNT_MAX => Wants::Nothing,
            Phase::Upload(it) if it.session.is_receiving() => Wants::FileBytes,
            Phase::Upload(_) => Wants::Bytes(INPUT_BYTES_MAX),
        }
    }

    /// So many bytes of the file come before anything that wants an answer.
    pub fn expected_bytes(&self) -> u64 {
        match &self.phase {
            Phase::Upload(it) if it.session.is_receiving() => it.messages.expected_bytes(),
            _ => 0,
        }
    }

    pub fn pace(&self) -> Pace {
        if self.is_ending {
            return Pace::Ending;
        }
        match &self.phase {
            Phase::Head => Pace::Idle,
            Phase::Body(_) => Pace::Handshake,
            Phase::Answering(_) => Pace::Server,
            Phase::Upload(it) if it.session.is_in_handshake() => Pace::Handshake,
            Phase::Upload(it) if it.session.is_revoked() => Pace::Revoked,
            Phase::Upload(_) => Pace::Upload,
        }
    }

    /// The last byte has been written.
    pub fn is_ending(&self) -> bool {
        self.is_ending
    }

    /// The last byte has been written and our direction may be closed. That of a WebSocket only
    /// after both close frames (RFC 6455 section 7.1.1): proxies cut both directions when one ends,
    /// and with them what the client still has to hear.
    pub fn may_shut(&self) -> bool {
        self.is_ending && !matches!(&self.phase, Phase::Upload(it) if it.awaits_close)
    }

    /// Up to where acknowledgements are due, if any are.
    pub fn ack_due_bytes(&self) -> Option<u64> {
        match &self.phase {
            Phase::Upload(it) => it.session.ack_due_bytes(),
            _ => None,
        }
    }

    /// No message of the file is open or waits for its acknowledgement.
    pub fn is_settled(&self) -> bool {
        matches!(&self.phase, Phase::Upload(it) if it.session.is_settled())
    }

    /// It says which upload it is for, and has no answer to that yet.
    pub fn is_claiming(&self) -> bool {
        let is_claiming = matches!(&self.phase, Phase::Upload(it) if it.session.is_claiming());
        is_claiming && !self.is_ending
    }

    /// Chunks may come.
    pub fn is_receiving(&self) -> bool {
        matches!(&self.phase, Phase::Upload(it) if it.session.is_receiving())
    }

    /// After the opening handshake.
    pub fn is_websocket(&self) -> bool {
        matches!(self.phase, Phase::Upload(_))
    }

    /// Everything is stored; only the outcome is to come.
    pub fn is_waiting(&self) -> bool {
        matches!(&self.phase, Phase::Upload(it) if it.session.is_waiting())
    }
}
