//! Directories that files are to arrive in: each is looked at before a ticket is given out for it.

use std::collections::HashMap;
use std::time::Instant;

use engine::op::{Errno, Op, Output, Token};

use super::Worker;
use crate::codec::response::Response;
use crate::mail::{OwnedRequest, ReplyTo};

/// Requests that wait, each for its look.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    waiting: HashMap<u32, Waiting>,
    number_next: u32,
}

#[derive(Debug)]
struct Waiting {
    dest_dir: String,
    reply_to: ReplyTo,
    request: OwnedRequest,
}

impl Destinations {
    pub(super) fn is_quiet(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Worker {
    pub(super) fn on_destination_wanted(
        &mut self,
        dest_dir: String,
        reply_to: ReplyTo,
        request: OwnedRequest,
    ) {
        let it = &mut self.destinations;
        // Each waits on a connection of its own, so that there are never so many.
        it.number_next = it.number_next.wrapping_add(1);
        let path = dest_dir.clone().into();
        it.waiting.insert(it.number_next, Waiting { dest_dir, reply_to, request });
        self.ops.push_back((Token::Directory(it.number_next), Op::CheckDirectory { path }));
    }

    pub(super) fn on_destination_checked(
        &mut self,
        now: Instant,
        number: u32,
        result: Result<Output, Errno>,
    ) {
        let waiting = self.destinations.waiting.remove(&number);
        let Waiting { dest_dir, reply_to, request } = waiting.expect("looked at once");
        match result {
            Ok(_) => self.on_ticket_wanted(now, reply_to, request),
            Err(errno) => {
                let message = format!("destDir invalid: {}: {dest_dir:?}", why(errno));
                self.reply(now, reply_to, Response::text(400, message));
            }
        }
    }
}

fn why(errno: Errno) -> String {
    match errno {
        Errno::ENOENT => "there is no such directory".to_owned(),
        Errno::ENOTDIR => "it, or something on the way to it, is no directory".to_owned(),
        Errno::ELOOP => "a symbolic link is on the way to it".to_owned(),
        Errno::EACCES => "the server may not write there".to_owned(),
        Errno::EXDEV => "it is on another file system than the storage directory".to_owned(),
        errno => errno.to_string(),
    }
}
