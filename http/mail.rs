//! What cores and the control thread say to each other. Plain data.

use std::net::SocketAddr;
use std::time::Instant;

use engine::handover::{Answer, Callback};
use engine::op::{CoreId, Errno};
use engine::ticket::TicketId;
use engine::tickets::ClientKey;

use crate::codec::response::Response;
use crate::connection::Connection;
use crate::dialect::message::UploadRequest;
use crate::keys::KeyId;
use crate::query::{Asker, Page, Query, Retry, RetryResult};
use crate::routes::BackendRequest;

/// A message to a core, or from a core to the control thread.
#[derive(Debug)]
pub enum Mail {
    /// Core to control: make this HTTP request and answer with [`Mail::CallbackAnswer`].
    Callback { from: CoreId, callback: Callback },
    /// Control to the core that asked.
    CallbackAnswer { ticket: TicketId, attempt: u32, answer: Answer },
    /// Control to every core: the web app at this host ([`engine::handover::host_of`]) has taken
    /// something again, after it had not.
    HostBack { host: String },
    /// A web app's request, to the core that owns its ticket.
    Backend { reply_to: ReplyTo, request: OwnedRequest },
    /// What the owner says, to the core that holds the web app's connection.
    BackendAnswer { client: ClientKey, response: Response },
    /// A question for what a core knows of its uploads.
    Query { asker: Asker, query: Query },
    /// To the core that asked, or to the control thread.
    QueryAnswer { asker: Asker, page: Page },
    /// Control to a core: web apps are to be told again, as the operator wants.
    Retry { number: u64, retry: Retry },
    /// When that is recorded.
    RetryAnswer { number: u64, result: RetryResult },
    /// A browser's connection, to the core that owns its ticket. Its socket comes along.
    Client(Box<MovedClient>),
    /// Core to control: nothing can be recorded any more, so the server has to end.
    JournalFailed { from: CoreId, errno: Errno },
    /// Server to every core: end what can be ended, then stop.
    Stop,
}

/// A web app's request on its way to the owner of the ticket.
#[derive(Debug)]
pub struct OwnedRequest {
    pub id: TicketId,
    /// Whose it is, if there are keys.
    pub key: Option<KeyId>,
    pub request: BackendRequest,
}

/// A connection that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    pub core: CoreId,
    pub client: ClientKey,
}

/// A connection between two cores.
#[derive(Debug)]
pub struct MovedClient {
    pub peer: SocketAddr,
    pub accepted_at: Instant,
    pub connection: Connection,
    /// Received, not yet understood.
    pub input: Vec<u8>,
    /// What it said last: the reason for the move.
    pub ticket: TicketId,
    pub request: UploadRequest,
}
