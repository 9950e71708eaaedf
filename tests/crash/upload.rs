//! One upload as the browser knows it, and one session of it, which checks what the server says
//! against what it has promised.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::browser::{Browser, End, post};
use crate::content::Content;
use crate::server::PATIENCE;
use crate::world::{Answers, Promise, World};

/// What the browser knows for sure, whatever becomes of the server.
#[derive(Clone, Debug)]
pub struct Upload {
    pub id: String,
    pub content: Content,
    pub chunk_bytes: u64,
    /// Acknowledged, or told as `FilePos`, on any connection so far.
    pub acknowledged: u64,
    /// Sent on any connection so far.
    pub sent: u64,
    /// Somebody has asked to cancel it: it may be gone.
    pub may_be_cancelled: bool,
    /// A cancellation was confirmed: it must be gone.
    pub is_cancelled: bool,
    /// `MsgAllDone` came.
    pub is_finished: bool,
}

impl Upload {
    /// Gets a ticket. `None` if no answer came, which is the server's right when it is killed.
    pub fn issue(
        world: &World,
        address: SocketAddr,
        content: Content,
        chunk_bytes: u64,
        is_removed_by_server: bool,
        answers: Answers,
    ) -> Option<Self> {
        let url = world.callback_url();
        let removed = is_removed_by_server.to_string();
        let form = [("signalFinishURL", url.as_str()), ("removeFileWhenFinished", &removed)];
        let (status, id) = post(address, "new_upload", &form)?;
        if status != 200 {
            world.find(|it| it.stuck.push(format!("no new ticket: {status} {id}")));
            return None;
        }
        world.issued(&id, content, is_removed_by_server, answers);
        Some(Self {
            id,
            content,
            chunk_bytes,
            acknowledged: 0,
            sent: 0,
            may_be_cancelled: false,
            is_cancelled: false,
            is_finished: false,
        })
    }

    pub fn is_over(&self) -> bool {
        self.is_finished || self.is_cancelled
    }

    /// The web app cancels it.
    pub fn cancel_by_app(&mut self, world: &World, address: SocketAddr) -> Result<(), End> {
        self.may_be_cancelled = true;
        world.promised(&self.id, Promise::CancelAsked);
        match post(address, "cancel_upload", &[("id", &self.id)]) {
            Some((200, _)) => {
                self.cancelled(world);
                Ok(())
            }
            // Too late, or unknown since it was cancelled before.
            Some(_) => Ok(()),
            None => Err(End::Lost),
        }
    }

    fn cancelled(&mut self, world: &World) {
        self.is_cancelled = true;
        world.find(|it| it.cancelled += 1);
        world.promised(&self.id, Promise::Cancelled);
    }

    /// Asks about an upload that is over: it must stay over.
    pub fn check_over(&self, world: &World, address: SocketAddr) -> Result<(), End> {
        let mut browser = Browser::connect(address)?;
        browser.say("MsgUploadReq", self.request());
        let answer = browser.receive();
        if self.is_cancelled {
            return match answer {
                Err(End::Refused(..)) => Ok(()),
                Err(end) => Err(end),
                Ok((kind, data)) => {
                    let what = format!("{}: cancelled, but {kind} {data}", self.id);
                    world.find(|it| it.lost.push(what));
                    Ok(())
                }
            };
        }
        let length = self.content.length_bytes;
        match answer {
            Ok((kind, data)) if kind == "MsgUploadConf" && data["FilePos"] == length => {}
            Err(end @ (End::Lost | End::Closed(_))) => return Err(end),
            other => {
                world.find(|it| it.lost.push(format!("{}: finished, but {other:?}", self.id)));
                return Ok(());
            }
        }
        browser.say("MsgAck", json!({ "Ack": true }));
        match browser.receive() {
            Ok((kind, _)) if kind == "MsgAllDone" => {}
            Err(end @ (End::Lost | End::Closed(_))) => return Err(end),
            other => {
                world.find(|it| it.lost.push(format!("{}: finished, but {other:?}", self.id)));
            }
        }
        Ok(())
    }

    fn request(&self) -> serde_json::Value {
        json!({ "Id": self.id, "LengthBytes": self.content.length_bytes, "Name": "crash.bin" })
    }
}

/// One connection of an upload, after the handshake.
pub struct Session {
    browser: Browser,
    position: u64,
    in_flight: VecDeque<u64>,
    send_ahead: usize,
}

impl Session {
    /// Connects, and checks what the server has of the upload.
    pub fn open(world: &World, address: SocketAddr, upload: &mut Upload) -> Result<Self, End> {
        let mut browser = Browser::connect(address)?;
        browser.say("MsgUploadReq", upload.request());
        let conf = match browser.expect("MsgUploadConf") {
            Err(End::Refused(code, text)) => {
                if upload.may_be_cancelled {
                    upload.is_cancelled = true;
                } else {
                    let id = &upload.id;
                    let bytes = upload.acknowledged;
                    let what = format!("{id}: ticket with {bytes} bytes: {code} {text}");
                    world.find(|it| it.lost.push(what));
                }
                return Err(End::Refused(code, text));
            }
            other => other?,
        };
        let number = |name: &str| conf[name].as_u64().unwrap_or(u64::MAX);
        let position = number("FilePos");
        let id = &upload.id;
        if position < upload.acknowledged && !world.may_be_lower.load(Ordering::Relaxed) {
            let what = format!("{id}: FilePos {position}, acknowledged {}", upload.acknowledged);
            world.find(|it| it.lost.push(what));
        }
        if position > upload.sent {
            let what = format!("{id}: FilePos {position}, but only {} were sent", upload.sent);
            world.find(|it| it.wrong.push(what));
        }
        if world.is_cancelled(id) {
            let what = format!("{id}: goes on, but the web app was told that it is cancelled");
            world.find(|it| it.lost.push(what));
        }
        let position = position.min(upload.content.length_bytes);
        world.check_prefix(id, upload.content, position);
        upload.acknowledged = position;
        world.promised(id, Promise::Acknowledged(position));
        browser.say("MsgAck", json!({ "Ack": true }));
        let send_ahead = number("SendAhead").clamp(1, 64) as usize;
        Ok(Self { browser, position, in_flight: VecDeque::new(), send_ahead })
    }

    pub fn is_all_sent(&self, upload: &Upload) -> bool {
        self.position == upload.content.length_bytes
    }

    /// Sends the next chunk, and waits for an acknowledgement if the window is full.
    pub fn step(&mut self, world: &World, upload: &mut Upload) -> Result<(), End> {
        while self.in_flight.len() >= self.send_ahead {
            self.acknowledgement(world, upload)?;
        }
        let bytes = upload.content.piece(self.position, upload.chunk_bytes);
        self.in_flight.push_back(bytes.len() as u64);
        self.position += bytes.len() as u64;
        upload.sent = upload.sent.max(self.position);
        self.browser.chunk(bytes);
        Ok(())
    }

    pub fn all_acknowledgements(&mut self, world: &World, upload: &mut Upload) -> Result<(), End> {
        while !self.in_flight.is_empty() {
            self.acknowledgement(world, upload)?;
        }
        Ok(())
    }

    fn acknowledgement(&mut self, world: &World, upload: &mut Upload) -> Result<(), End> {
        let data = self.browser.expect("MsgChunkAck")?;
        let Some(length) = self.in_flight.pop_front().filter(|it| data["ChunkSize"] == *it) else {
            return Err(End::Unexpected(format!("MsgChunkAck {data}")));
        };
        upload.acknowledged += length;
        world.find(|it| it.acknowledged_bytes += length);
        world.promised(&upload.id, Promise::Acknowledged(upload.acknowledged));
        Ok(())
    }

    /// Sends the rest, and stays until the web app has the file.
    pub fn finish(
        mut self,
        world: &World,
        address: SocketAddr,
        upload: &mut Upload,
    ) -> Result<(), End> {
        while !self.is_all_sent(upload) {
            self.step(world, upload)?;
        }
        self.all_acknowledgements(world, upload)?;
        self.all_done(world, address, upload)
    }

    /// Waits until the web app has the file.
    pub fn all_done(
        mut self,
        world: &World,
        address: SocketAddr,
        upload: &mut Upload,
    ) -> Result<(), End> {
        let deadline = Instant::now() + PATIENCE;
        self.browser.be_patient_for(LOOK_AGAIN);
        loop {
            match self.browser.receive() {
                Ok((kind, _)) if kind == "MsgAllDone" => break,
                // What is cancelled is acknowledged all the same.
                Ok((kind, _)) if kind == "MsgChunkAck" && upload.may_be_cancelled => {}
                Ok((kind, _)) if kind == "MsgCancelAck" && upload.may_be_cancelled => {
                    upload.cancelled(world);
                    return Ok(());
                }
                Ok((kind, data)) => return Err(End::Unexpected(format!("{kind} {data}"))),
                Err(End::Silent) if Instant::now() < deadline => {
                    world.finish_if_asked(&upload.id, address);
                }
                Err(end) => return Err(end),
            }
        }
        upload.is_finished = true;
        world.promised(&upload.id, Promise::Finished);
        if !world.finished(&upload.id) {
            let what = format!("{}: MsgAllDone, but the web app has not said so", upload.id);
            world.find(|it| it.lost.push(what));
        }
        Ok(())
    }

    /// The browser cancels, which may be too late.
    pub fn cancel(
        mut self,
        world: &World,
        address: SocketAddr,
        upload: &mut Upload,
    ) -> Result<(), End> {
        upload.may_be_cancelled = true;
        world.promised(&upload.id, Promise::CancelAsked);
        self.browser.say("MsgCancel", json!({ "Reason": "by browser" }));
        self.all_done(world, address, upload)
    }

    pub fn reset(self) {
        self.browser.reset();
    }
}

/// How often the web app looks whether it should call `finish_upload`.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
