//! Whether the storage directory is still what it was: there, writable, with room.
//!
//! Looked at before a ticket is given out, at most once a second, before a new file is begun, and
//! every other second while files are written. While it is bad nothing is promised: no tickets, no
//! acknowledgements.

use std::time::{Duration, Instant};

use engine::op::{Errno, Op, Output, StorageHealth, StorageState, Token};
use engine::tickets::ClientKey;
use tracing::{error, info};

use super::Worker;
use super::room::{Claim, Look};
use super::uploads::Failure;
use crate::codec::close_code;
use crate::codec::response::Response;
use crate::mail::{OwnedRequest, ReplyTo};

/// What is known of the storage directory.
#[derive(Debug)]
pub(super) struct Watch {
    state: StorageState,
    checked_at: Option<Instant>,
    is_checking: bool,
    /// When to look again, whoever asks.
    pub(super) check_at: Option<Instant>,
    /// Requests for tickets, until the storage has been looked at.
    waiting: Vec<(ReplyTo, OwnedRequest)>,
    /// Browsers that come with a new file, likewise.
    claims: Vec<(ClientKey, Claim)>,
    /// What all cores had still to allocate when the look that is under way began.
    pub(super) unallocated_before: u64,
    /// Uploads that could not be stored, likewise.
    failures: Vec<Failure>,
    /// Something has failed since the look that is under way began.
    check_again: bool,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            state: StorageState { free_bytes: u64::MAX, health: StorageHealth::Good },
            checked_at: None,
            is_checking: false,
            check_at: None,
            waiting: Vec::new(),
            claims: Vec::new(),
            unallocated_before: 0,
            failures: Vec::new(),
            check_again: false,
        }
    }

    pub(super) fn is_good(&self) -> bool {
        self.state.health == StorageHealth::Good
    }

    /// As the last look saw it.
    pub(super) fn free_bytes(&self) -> u64 {
        self.state.free_bytes
    }

    pub(super) fn is_quiet(&self) -> bool {
        !self.is_checking
    }
}

impl Worker {
    /// A request for a ticket is answered with fresh knowledge of the storage.
    pub(super) fn on_ticket_wanted(
        &mut self,
        now: Instant,
        reply_to: ReplyTo,
        request: OwnedRequest,
    ) {
        let is_fresh = |at| now.duration_since(at) < FRESH_FOR;
        if self.watch.checked_at.is_some_and(is_fresh) && self.watch.waiting.is_empty() {
            return self.answer_backend(now, reply_to, request);
        }
        self.watch.waiting.push((reply_to, request));
        self.check_storage();
    }

    /// So is a browser with a new file. A look that began before this came is as good: whatever
    /// was allocated since is counted.
    pub(super) fn claim_later(&mut self, key: ClientKey, claim: Claim) {
        self.watch.claims.push((key, claim));
        self.check_storage();
    }

    /// Files are being written.
    pub(super) fn watch_storage(&mut self, now: Instant) {
        self.watch.check_at.get_or_insert(now + WATCH_EVERY);
    }

    pub(super) fn on_watch_timeout(&mut self, now: Instant) {
        if self.watch.check_at.is_some_and(|it| it <= now) {
            self.watch.check_at = None;
            self.check_storage();
        }
    }

    pub(super) fn on_storage_checked(&mut self, now: Instant, result: Result<Output, Errno>) {
        self.watch.is_checking = false;
        self.watch.checked_at = Some(now);
        let was_good = self.watch.is_good();
        self.watch.state = match result {
            Ok(Output::Storage(state)) => state,
            Ok(_) | Err(_) => StorageState { free_bytes: 0, health: StorageHealth::Gone },
        };
        match (was_good, self.watch.is_good()) {
            (true, false) => {
                error!(
                    dir = %self.config.storage_dir.display(),
                    health = ?self.watch.state.health,
                    "the storage directory cannot be used any more; uploads wait"
                );
                self.send_browsers_away(now);
            }
            (false, true) => info!("the storage directory is back"),
            _ => {}
        }
        if !self.watch.is_good() {
            self.watch_storage(now);
        }
        if std::mem::take(&mut self.watch.check_again) {
            self.check_storage();
        } else {
            for failure in std::mem::take(&mut self.watch.failures) {
                self.judge(now, failure);
            }
            self.on_store_events(now);
        }
        for (reply_to, request) in std::mem::take(&mut self.watch.waiting) {
            self.answer_backend(now, reply_to, request);
        }
        for (key, claim) in std::mem::take(&mut self.watch.claims) {
            // It may have left meanwhile.
            if self.clients.get(key).is_some_and(|it| it.connection.is_claiming()) {
                self.claim(now, key, claim, Look::IsDone);
                self.pump_later(key);
            }
        }
    }

    /// Why there are no new tickets now.
    pub(super) fn refuse_for_storage(&self) -> Option<Response> {
        let StorageState { free_bytes, health } = self.watch.state;
        let (status, message) = match health {
            StorageHealth::Gone => (503, "the storage directory is gone"),
            StorageHealth::ReadOnly => (503, "the storage directory is read-only"),
            StorageHealth::Good if free_bytes < self.config.reserve_bytes => {
                (507, "the disk is full: no new uploads before there is room")
            }
            StorageHealth::Good => return None,
        };
        Some(Response::text(status, message).with_header("Retry-After", "60"))
    }

    /// Has the storage looked at, then judges.
    pub(super) fn judge_later(&mut self, failure: Failure) {
        self.watch.check_again = self.watch.is_checking;
        self.watch.failures.push(failure);
        self.check_storage();
    }

    fn check_storage(&mut self) {
        if !std::mem::replace(&mut self.watch.is_checking, true) {
            self.watch.unallocated_before = self.config.unallocated_total();
            self.ops.push_back((Token::Storage, Op::CheckStorage));
        }
    }

    /// Browsers that send, or want to: they come back by themselves.
    fn send_browsers_away(&mut self, now: Instant) {
        for slot in self.clients.slots() {
            if self.clients.find(slot).is_some() && self.upload_of(slot).is_some() {
                let key = self.clients.key(slot);
                self.close(now, key, close_code::TRY_AGAIN_LATER, STORAGE_AWAY);
            }
        }
    }
}

pub(super) const STORAGE_AWAY: &str = "the storage is not available";

const FRESH_FOR: Duration = Duration::from_secs(1);
const WATCH_EVERY: Duration = Duration::from_secs(2);
