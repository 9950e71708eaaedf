//! A server takes over from the one that runs: without a moment in which nobody listens, and never
//! so that two serve.
//!
//! ```text
//! new                                  old
//! {"command":"replace", ...}  ──►      fits? otherwise {"error": ...}
//!                             ◄──      {"status":"draining"}
//!                                      accepts nobody, drains, writes its last record, ends its threads
//!                             ◄──      {"status":"drained","listeners":2}
//! {"status":"send"}           ──►
//!                             ◄──      the descriptors: the storage lock, the listeners (SCM_RIGHTS)
//! recovers the journal, serves
//! {"status":"ready"}          ──►      exits
//! ```
//!
//! Connections that are made meanwhile wait in the listeners' queues, which both have open. Until
//! "ready" the old one keeps what it has given; when the connection ends before, the new one is gone
//! and the old one serves again.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde_json::{Value, json};

use super::Notice;
use super::life::Foundation;
use super::storage::StorageError;
use crate::config::Config;
use crate::control::admin::{AdminClient, Candidate};

/// The server before this one. It lives until it hears that this one serves.
#[derive(Debug)]
pub(super) struct Predecessor {
    conversation: AdminClient,
    process_id: u64,
}

/// What a predecessor leaves.
#[derive(Debug)]
pub(super) struct Legacy {
    pub(super) lock: OwnedFd,
    pub(super) listeners: Vec<TcpListener>,
    pub(super) predecessor: Predecessor,
}

impl Predecessor {
    /// Asks the server that has the storage directory to hand over, and waits until it has. `None`:
    /// it does not answer, or went away meanwhile.
    ///
    /// # Errors
    /// It serves something else than this one would, and says what.
    pub(super) fn ask(
        config: &Config,
        listen: &[SocketAddr],
    ) -> Result<Option<Legacy>, StorageError> {
        let Ok(mut conversation) = AdminClient::connect(&config.storage_dir) else {
            return Ok(None);
        };
        let request = json!({
            "command": "replace",
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "listen": listen,
            "durability": config.durability.to_string(),
        });
        let Ok(answer) = conversation.ask(&request) else { return Ok(None) };
        let process_id = answer["pid"].as_u64().unwrap_or_default();
        if let Some(why) = answer["error"].as_str() {
            return Err(StorageError::Refused { process_id, why: why.to_owned() });
        }
        tracing::info!(pid = process_id, "taking over from the server that runs");
        let predecessor = Self { conversation, process_id };
        match predecessor.inherit() {
            Ok(legacy) => Ok(Some(legacy)),
            Err(error) => {
                tracing::warn!(pid = process_id, %error, "it went away before it handed over");
                Ok(None)
            }
        }
    }

    fn inherit(mut self) -> io::Result<Legacy> {
        // It drains, which takes seconds, or what the disk takes.
        self.conversation.stream().set_read_timeout(None)?;
        let drained = self.conversation.hear()?;
        let count = drained["listeners"].as_u64().ok_or(ErrorKind::InvalidData)?;
        self.conversation.tell(&json!({ "status": "send" }))?;
        let mut fds = receive_fds(self.conversation.stream(), 1 + count as usize)?.into_iter();
        let lock = fds.next().ok_or(ErrorKind::InvalidData)?;
        Ok(Legacy { lock, listeners: fds.map(TcpListener::from).collect(), predecessor: self })
    }

    /// This server serves: the other one may go.
    pub(super) fn release(mut self) {
        // One that is gone needs not be told.
        let _ = self.conversation.tell(&json!({ "status": "ready" }));
        tracing::info!(pid = self.process_id, "has taken over");
    }

    /// This server does not come up. The other one serves again when this process is gone, and with
    /// it all threads that may still run: not earlier.
    pub(super) fn give_up(self) {
        std::mem::forget(self);
    }
}

/// The process that wants to be the next server.
#[derive(Debug)]
pub(super) struct Successor {
    conversation: AdminClient,
    pub(super) process_id: u64,
}

impl Successor {
    /// Accepts a candidate that would serve the same, and tells it so. Others hear why not.
    pub(super) fn accept(candidate: Candidate, foundation: &Foundation) -> Option<Self> {
        let Candidate { request, stream } = candidate;
        // The other side answers at once; who does not must not hold this server.
        stream.set_read_timeout(Some(ANSWER_PATIENCE)).ok()?;
        stream.set_write_timeout(Some(ANSWER_PATIENCE)).ok()?;
        let mut conversation = AdminClient::over(stream);
        let answer = match objection(&request, foundation) {
            Some(why) => refusal(&why),
            None => json!({ "pid": std::process::id(), "status": "draining" }),
        };
        let told = conversation.tell(&answer);
        let process_id = request["pid"].as_u64().unwrap_or_default();
        match answer["error"].as_str() {
            Some(why) => {
                tracing::warn!(
                    pid = process_id,
                    why,
                    "a server that wants to take over is refused"
                );
                None
            }
            None => told.ok().map(|()| Self { conversation, process_id }),
        }
    }

    /// Tells a candidate that it comes too late.
    pub(super) fn refuse(candidate: Candidate, why: &str) {
        // It is none of ours what becomes of it.
        let _ = AdminClient::over(candidate.stream).tell(&refusal(why));
    }

    /// Gives it everything that a server needs. Nothing of this one may run any more.
    pub(super) fn give(&mut self, foundation: &Foundation) -> io::Result<()> {
        let listeners = &foundation.listeners;
        let drained = json!({ "status": "drained", "listeners": listeners.len() });
        if self.conversation.ask(&drained)?["status"] != "send" {
            return Err(ErrorKind::InvalidData.into());
        }
        let lock = std::iter::once(foundation.storage.lock());
        let fds: Vec<BorrowedFd<'_>> = lock.chain(listeners.iter().map(AsFd::as_fd)).collect();
        send_fds(self.conversation.stream(), &fds)
    }

    /// Reports when it serves, or is gone.
    pub(super) fn watch(mut self, notifier: mpsc::Sender<Notice>) -> io::Result<()> {
        self.conversation.stream().set_read_timeout(None)?;
        let body = move || {
            let is_ready = self.conversation.hear().is_ok_and(|it| it["status"] == "ready");
            let _ = notifier.send(Notice::Successor { is_ready });
        };
        thread::Builder::new().name("successor".to_owned()).spawn(body).map(drop)
    }
}

/// Why this request does not fit the server that runs.
fn objection(request: &Value, foundation: &Foundation) -> Option<String> {
    let mut here: Vec<String> = vec![foundation.config.listen.to_string()];
    let bound = foundation.listeners.iter().filter_map(|it| it.local_addr().ok());
    here.extend(bound.map(|it| it.to_string()));
    let wanted: Vec<&str> =
        request["listen"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if wanted.is_empty() || wanted.iter().any(|it| !here.iter().any(|here| here == it)) {
        let (here, wanted) = (foundation.address, wanted.join(", "));
        return Some(format!("it listens at {here}, and the new one would at {wanted}"));
    }
    let durability = foundation.config.durability.to_string();
    let wanted = request["durability"].as_str().unwrap_or_default();
    (wanted != durability).then(|| {
        format!("its durability is \"{durability}\", and that of the new one would be \"{wanted}\"")
    })
}

fn refusal(why: &str) -> Value {
    json!({ "pid": std::process::id(), "error": why })
}

fn send_fds(stream: &UnixStream, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    for fds in fds.chunks(FDS_PER_MESSAGE) {
        let message = SendAncillaryMessage::ScmRights(fds);
        let mut space = vec![MaybeUninit::uninit(); message.size()];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(message), "there is space for it");
        // Descriptors travel with a byte.
        let byte = [IoSlice::new(b".")];
        retry_on_intr(|| sendmsg(stream, &byte, &mut control, SendFlags::NOSIGNAL))?;
    }
    Ok(())
}

fn receive_fds(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut fds = Vec::new();
    while fds.len() < count {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = retry_on_intr(|| recvmsg(stream, &mut bytes, &mut control, flags))?;
        if received.bytes == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
    }
    if fds.len() == count { Ok(fds) } else { Err(ErrorKind::InvalidData.into()) }
}

const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// The kernel takes 253 (`SCM_MAX_FD`).
const FDS_PER_MESSAGE: usize = 128;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn many_descriptors_arrive_in_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let files: Vec<File> = (0..300).map(|_| tempfile::tempfile().unwrap()).collect();
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        send_fds(&ours, &fds).unwrap();
        drop(ours);
        let received = receive_fds(&theirs, 300).unwrap();
        let inode = |it: &File| it.metadata().unwrap().ino();
        let received: Vec<u64> = received.into_iter().map(|it| inode(&it.into())).collect();
        assert_eq!(received, files.iter().map(inode).collect::<Vec<_>>());
        let none = receive_fds(&theirs, 1).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::UnexpectedEof);
    }
}
