//! A browser's connection for an upload: impatient, slow, gone, back, never wrong.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::disk::Disk;
use crate::net::{Pipe, PipeId};
use crate::rng::Rng;
use crate::upload::{End, Plan, Upload};
use crate::websocket::{BINARY, CLOSE, PING, PONG, TEXT, read_frame, write_close, write_message};

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) upload: usize,
    pub(crate) pipe: PipeId,
    stage: Stage,
    out: VecDeque<u8>,
    input: Vec<u8>,
    /// Messages without an acknowledgement, by length.
    unacked: VecDeque<usize>,
    position: usize,
    acked: usize,
    /// When it connected.
    acked_before: usize,
    /// It connected when the web app knew already that the upload is cancelled.
    is_after_cancel: bool,
    /// Or that it has the file.
    is_after_finish: bool,
    window_count: usize,
    /// How much it moves at a time.
    move_bytes_max: usize,
    silent_until: Instant,
    is_pipelining: bool,
    /// It reads and says nothing any more.
    is_lazy: bool,
    has_ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Upgrading,
    Requesting,
    Sending,
    Cancelling,
    /// Nothing is expected; what comes is thrown away.
    Leaving,
    Gone,
}

impl Link {
    pub(crate) fn new(
        rng: &mut Rng,
        now: Instant,
        index: usize,
        it: &Upload,
        pipe: PipeId,
    ) -> Self {
        let mut link = Self {
            upload: index,
            pipe,
            stage: Stage::Upgrading,
            out: UPGRADE.as_bytes().iter().copied().collect(),
            input: Vec::new(),
            unacked: VecDeque::new(),
            position: 0,
            acked: 0,
            acked_before: it.acked,
            is_after_cancel: it.was_cancelled_by_app,
            is_after_finish: it.is_handed_over,
            window_count: rng.pick(&[1, 4, 4, 8]),
            move_bytes_max: (it.bytes.len() / rng.within(1..60)).max(60),
            silent_until: now,
            is_pipelining: rng.chance(30) && it.may_pipeline,
            is_lazy: rng.chance(10),
            has_ended: false,
        };
        if link.is_pipelining {
            link.request(rng, it);
            link.say(rng, "MsgAck", json!({"Ack": true}));
        }
        link
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.stage == Stage::Gone
    }

    pub(crate) fn wakes_at(&self) -> Instant {
        self.silent_until
    }

    pub(crate) fn step(
        &mut self,
        rng: &mut Rng,
        now: Instant,
        pipe: &mut Pipe,
        upload: &mut Upload,
        disk: &Disk,
        churn: usize,
    ) {
        if upload.end.is_some() && self.stage != Stage::Leaving {
            // Sometimes rudely.
            self.leave(rng, pipe);
        }
        if pipe.is_reset {
            self.stage = Stage::Gone;
        }
        if self.is_gone() || now < self.silent_until {
            return;
        }
        if self.stage != Stage::Leaving && rng.below(1_000) < churn {
            return self.misbehave(rng, now, pipe);
        }
        match rng.below(10) {
            0..4 => self.write(rng, pipe),
            4..8 => self.read(rng, pipe, upload, disk),
            _ => self.produce(rng, upload),
        }
    }

    /// Nothing is on its way in either direction, and still the server owes an answer: which? The
    /// web app has nothing to say.
    pub(crate) fn is_owed(&self, pipe: &Pipe, upload: &Upload) -> Option<&'static str> {
        let is_live = pipe.is_accepted && !pipe.is_reset && !pipe.is_closed && !self.has_ended;
        let is_quiet = self.out.is_empty() && pipe.up.is_quiet() && pipe.down.is_quiet();
        if !is_live || !is_quiet || upload.end.is_some() {
            return None;
        }
        match self.stage {
            Stage::Upgrading => Some("the upgrade"),
            Stage::Requesting => Some("MsgUploadConf"),
            Stage::Sending if !self.unacked.is_empty() => Some("MsgChunkAck"),
            Stage::Sending if upload.is_done_heard => Some("MsgAllDone"),
            Stage::Cancelling => Some("MsgCancelAck"),
            Stage::Sending | Stage::Leaving | Stage::Gone => None,
        }
    }

    /// The page is closed, or the network is.
    pub(crate) fn leave(&mut self, rng: &mut Rng, pipe: &mut Pipe) {
        if rng.chance(50) {
            pipe.reset();
            self.stage = Stage::Gone;
        } else {
            if rng.chance(30) {
                self.say(rng, "MsgPause", json!({"Pause": true}));
            }
            let mut close = Vec::new();
            write_close(rng, &mut close);
            self.out.extend(close);
            self.stage = Stage::Leaving;
        }
    }

    fn misbehave(&mut self, rng: &mut Rng, now: Instant, pipe: &mut Pipe) {
        match rng.below(4) {
            0 => self.leave(rng, pipe),
            // Gone in the middle of whatever it said, politely for TCP.
            1 => {
                self.out.clear();
                self.stage = Stage::Leaving;
            }
            _ => self.silent_until = now + Duration::from_millis(rng.below(45_000) as u64),
        }
    }

    fn write(&mut self, rng: &mut Rng, pipe: &mut Pipe) {
        if pipe.is_closed && !self.out.is_empty() {
            return pipe.reset();
        }
        if self.has_ended {
            return;
        }
        let most = self.out.len().min(pipe.up.space()).min(self.move_bytes_max);
        let count = if rng.chance(50) { most } else { rng.below(most + 1) };
        let bytes: Vec<u8> = self.out.drain(..count).collect();
        pipe.up.push(&bytes);
        if self.stage == Stage::Leaving && self.out.is_empty() && !self.is_lazy {
            self.has_ended = true;
            pipe.up.end();
        }
    }

    fn read(&mut self, rng: &mut Rng, pipe: &mut Pipe, upload: &mut Upload, disk: &Disk) {
        let most = pipe.down.len().min(self.move_bytes_max);
        let count = if rng.chance(50) { most } else { rng.below(most + 1) };
        self.input.extend(pipe.down.take(count));
        if self.stage == Stage::Leaving {
            self.input.clear();
        } else {
            self.understand(rng, upload, disk);
        }
        if pipe.down.has_ended() && (!self.is_lazy || pipe.is_closed) {
            if !self.has_ended {
                pipe.up.end();
            }
            self.stage = Stage::Gone;
        }
    }

    fn understand(&mut self, rng: &mut Rng, upload: &mut Upload, disk: &Disk) {
        if self.stage == Stage::Upgrading {
            let Some(end) = self.input.windows(4).position(|it| it == b"\r\n\r\n") else { return };
            assert!(self.input.starts_with(b"HTTP/1.1 101 "), "the upgrade is accepted");
            self.input.drain(..end + 4);
            self.stage = Stage::Requesting;
            if !self.is_pipelining {
                self.request(rng, upload);
            }
        }
        while let Some((opcode, payload)) = read_frame(&mut self.input) {
            match opcode {
                TEXT => {
                    let message: Value = serde_json::from_slice(&payload).expect("JSON");
                    self.on_message(rng, &message, upload, disk);
                }
                PING => {
                    let mut pong = Vec::new();
                    write_message(rng, &mut pong, PONG, &payload);
                    self.out.extend(pong);
                }
                PONG => {}
                CLOSE => {
                    let mut close = Vec::new();
                    write_close(rng, &mut close);
                    self.out.extend(close);
                    self.stage = Stage::Leaving;
                    return;
                }
                other => panic!("opcode {other} from a server"),
            }
        }
    }

    fn on_message(&mut self, rng: &mut Rng, message: &Value, upload: &mut Upload, disk: &Disk) {
        let data = &message["MsgData"];
        match message["MsgType"].as_str().expect("a type") {
            "MsgUploadConf" => {
                assert_eq!(self.stage, Stage::Requesting);
                let position = data["FilePos"].as_u64().expect("FilePos") as usize;
                assert!(!self.is_after_cancel, "the web app was told that it is cancelled");
                let is_whole = position == upload.bytes.len();
                assert!(is_whole || !self.is_after_finish, "the web app has it already");
                upload.on_confirmed(position, self.acked_before, disk);
                if self.is_pipelining {
                    assert_eq!(position, self.acked, "nobody else has sent anything");
                } else {
                    self.say(rng, "MsgAck", json!({"Ack": true}));
                    (self.position, self.acked) = (position, position);
                }
                self.stage = Stage::Sending;
            }
            "MsgChunkAck" => {
                assert!(matches!(self.stage, Stage::Sending | Stage::Cancelling));
                let length = data["ChunkSize"].as_u64().expect("ChunkSize") as usize;
                assert_eq!(self.unacked.pop_front(), Some(length), "one ack each, in order");
                self.acked += length;
                upload.on_acked(self.acked, disk);
            }
            "MsgAllDone" => {
                assert_eq!(self.stage, Stage::Sending);
                assert_eq!(self.acked, upload.bytes.len(), "only after every acknowledgement");
                assert!(self.unacked.is_empty());
                // The answer to `finish_upload` may still be on its way.
                assert!(upload.is_handed_over || upload.is_waiting, "the web app has the file");
                upload.is_handed_over = true;
                upload.check_finished(disk);
                upload.end = Some(End::AllDone);
            }
            "MsgCancel" => {
                assert!(upload.was_cancel_asked);
                assert_eq!(self.stage, Stage::Sending);
                self.say(rng, "MsgCancel", json!({"Reason": data["Reason"]}));
                self.stage = Stage::Cancelling;
            }
            "MsgCancelAck" => {
                assert_eq!(self.stage, Stage::Cancelling);
                assert!(upload.was_cancel_asked || upload.cancel_told.is_some());
                upload.check_cancelled(disk);
                upload.end = Some(End::Cancelled);
            }
            "MsgError" => upload.on_error(data["ErrorCode"].as_u64().expect("ErrorCode"), disk),
            other => panic!("{other} from a server"),
        }
    }

    fn produce(&mut self, rng: &mut Rng, upload: &mut Upload) {
        let may_send = self.stage == Stage::Sending
            || self.is_pipelining && matches!(self.stage, Stage::Upgrading | Stage::Requesting);
        let length = upload.bytes.len();
        if !may_send || self.position >= length || self.out.len() > 2 * self.move_bytes_max {
            return;
        }
        if let Plan::CancelByBrowser(at) = upload.plan
            && self.position >= at
            && self.stage == Stage::Sending
        {
            upload.was_cancelled_by_browser = true;
            self.say(rng, "MsgCancel", json!({"Reason": "no more"}));
            self.stage = Stage::Cancelling;
            return;
        }
        if self.unacked.len() >= self.window_count {
            return;
        }
        let most = upload.chunk_bytes_max.min(length - self.position);
        let count = if rng.chance(60) { most } else { rng.below(most + 1) };
        let mut bytes = upload.bytes[self.position..self.position + count].to_vec();
        if upload.plan == Plan::SendTooMuch && self.position + count == length {
            bytes.extend(b"and more");
        }
        let mut message = Vec::new();
        write_message(rng, &mut message, BINARY, &bytes);
        self.out.extend(message);
        self.unacked.push_back(bytes.len());
        self.position += count;
        upload.sent = upload.sent.max(self.position);
    }

    fn request(&mut self, rng: &mut Rng, upload: &Upload) {
        let id = upload.ticket.expect("a ticket").to_string();
        let data = json!({"Id": id, "LengthBytes": upload.bytes.len(), "Name": "a \"file\""});
        self.say(rng, "MsgUploadReq", data);
    }

    fn say(&mut self, rng: &mut Rng, kind: &str, data: Value) {
        let text = json!({"MsgType": kind, "MsgData": data}).to_string();
        let mut message = Vec::new();
        write_message(rng, &mut message, TEXT, text.as_bytes());
        self.out.extend(message);
    }
}

const UPGRADE: &str = "GET /incoming/0.1/frontend/upload_ws HTTP/1.1\r\nHost: localhost\r\n\
    Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
