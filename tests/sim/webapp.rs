//! A web app: its requests to the server, and its answers to callbacks.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::handover::{Answer, Callback, Outcome};
use engine::op::CoreId;
use engine::ticket::TicketId;
use incoming::mail::Mail;

use crate::disk::Disk;
use crate::net::{Pipe, PipeId};
use crate::rng::Rng;
use crate::server::KEYS;
use crate::upload::{Plan, STORAGE_DIR, Upload};

/// One HTTP request on a connection of its own.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) upload: usize,
    pub(crate) pipe: PipeId,
    pub(crate) kind: CallKind,
    request: Vec<u8>,
    response: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallKind {
    New,
    Cancel,
    Finish,
    Retry,
}

/// An answer to a callback on its way.
#[derive(Debug)]
pub(crate) struct Told {
    at: Instant,
    from: CoreId,
    callback: Callback,
    /// Which start of the server waits for it.
    run: u32,
}

impl Call {
    pub(crate) fn new(kind: CallKind, index: usize, upload: &Upload, pipe: PipeId) -> Self {
        let id = upload.ticket.map(|it| it.to_string()).unwrap_or_default();
        let (path, body) = match kind {
            CallKind::New => (
                format!(
                    "new_upload?removeFileWhenFinished={}{}",
                    upload.is_removed_when_finished,
                    if upload.has_dest_dir { "&destDir=%2Fapp%2Ffiles" } else { "" }
                ),
                "signalFinishURL=http%3A%2F%2Fapp%2F&backendSecret=s%26cret".to_owned(),
            ),
            CallKind::Cancel => ("cancel_upload".into(), format!("id={id}&backendSecret=s%26cret")),
            CallKind::Finish => (format!("finish_upload?id={id}"), "backendSecret=s%26cret".into()),
            CallKind::Retry => (format!("retry_upload?id={id}"), "backendSecret=s%26cret".into()),
        };
        let request = format!(
            "POST /incoming/0.1/backend/{path} HTTP/1.1\r\nHost: localhost\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\
             Authorization: Bearer {}\r\n\r\n{body}",
            body.len(),
            KEYS[index % KEYS.len()].1
        );
        Self { upload: index, pipe, kind, request: request.into(), response: Vec::new() }
    }

    /// Sends and receives. Some: status and body of the whole response.
    pub(crate) fn step(&mut self, rng: &mut Rng, pipe: &mut Pipe) -> Option<(u16, String)> {
        if !pipe.is_accepted {
            return None;
        }
        assert!(!pipe.is_reset && !pipe.down.has_ended(), "a well-behaved web app is not cut off");
        let most = self.request.len().min(pipe.up.space());
        let count = rng.below(most + 1);
        pipe.up.push(&self.request.drain(..count).collect::<Vec<u8>>());
        let count = rng.below(pipe.down.len() + 1);
        self.response.extend(pipe.down.take(count));
        let text = std::str::from_utf8(&self.response).expect("text");
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.lines().find_map(|it| it.strip_prefix("Content-Length: "));
        if body.len() < length.expect("a length").parse().unwrap() {
            return None;
        }
        pipe.up.end();
        let status = head.split(' ').nth(1).expect("a status").parse().unwrap();
        Some((status, body.to_owned()))
    }
}

impl Told {
    /// The server tells the web app: what must be true then.
    pub(crate) fn new(
        rng: &mut Rng,
        now: Instant,
        run: u32,
        (from, callback): (CoreId, Callback),
        upload: &mut Upload,
        disk: &Disk,
    ) -> Self {
        assert_eq!(callback.backend_secret, "s&cret");
        // A try that was cut off is made again, and another try is counted from the beginning.
        assert!((1..=upload.attempt + 1).contains(&callback.attempt), "{callback:?}");
        upload.attempt = callback.attempt;
        upload.call_count += 1;
        match &callback.outcome {
            Outcome::Arrived { path } => {
                assert!(!upload.was_cancelled_by_app && upload.cancel_told.is_none());
                assert!(!upload.is_finish_known, "the server knows that it has it");
                let may_be_told_again = upload.was_cut_off || upload.was_unheard;
                assert!(!upload.is_handed_over || may_be_told_again, "it has it");
                assert_eq!(callback.filename_from_browser, "a \"file\"");
                assert_eq!(*path, PathBuf::from(STORAGE_DIR).join(upload.arrived_path()));
                if !upload.is_taken_away {
                    let path = upload.arrived_path();
                    assert!(disk.data(&path).unwrap() == upload.bytes, "the file is the file");
                    assert!(disk.is_durable(&path), "its bytes, its length and its name are safe");
                }
                upload.check_arrived(disk);
                upload.has_arrived = true;
            }
            Outcome::Cancelled { reason } => {
                assert!(!upload.has_arrived, "it came, or it did not");
                let is_right = match reason.as_str() {
                    "no more" => upload.was_cancelled_by_browser,
                    "upload timed out" => upload.may_time_out,
                    TOO_MUCH => upload.plan == Plan::SendTooMuch,
                    "storage error" => disk.has_failed(),
                    _ => false,
                };
                let shown = Upload { bytes: &[], ..upload.clone() };
                assert!(is_right, "cancelled: {reason}: {shown:?}");
                upload.cancel_told = Some(reason.clone());
            }
        }
        let at = now + Duration::from_millis(rng.below(3_000) as u64);
        Self { at, from, callback, run }
    }

    pub(crate) fn ticket(&self) -> TicketId {
        self.callback.ticket
    }

    pub(crate) fn at(&self) -> Instant {
        self.at
    }

    pub(crate) fn run(&self) -> u32 {
        self.run
    }

    /// What the web app answers, and whom.
    pub(crate) fn answer(
        self,
        rng: &mut Rng,
        upload: &mut Upload,
        disk: &mut Disk,
    ) -> (CoreId, Mail) {
        let is_dead = upload.app_dead_until.is_some_and(|it| self.at < it);
        let answer = if is_dead {
            Answer::Unreached { error: "connection refused".into(), retry_after: None }
        } else if upload.failed_answers_left > 0 && rng.chance(40) {
            upload.failed_answers_left -= 1;
            fault(rng, upload, disk)
        } else if !upload.has_arrived {
            Answer::Done
        } else if rng.chance(30) && !upload.is_handed_over {
            upload.is_waiting = true;
            Answer::Wait
        } else {
            take(rng, upload, disk);
            Answer::Done
        };
        (self.from, done(&self.callback, answer))
    }
}

/// The web app has the file from now on.
fn take(rng: &mut Rng, upload: &mut Upload, disk: &mut Disk) {
    upload.is_handed_over = true;
    if !upload.is_removed_when_finished && !upload.is_taken_away && rng.chance(30) {
        upload.is_taken_away = true;
        disk.take_away(&upload.arrived_path());
    }
}

/// What goes wrong with web apps, as the control thread sees it.
fn fault(rng: &mut Rng, upload: &mut Upload, disk: &mut Disk) -> Answer {
    let retry_after = rng.chance(30).then(|| Duration::from_secs(rng.below(200) as u64));
    match rng.below(4) {
        0 if upload.has_arrived => {
            take(rng, upload, disk);
            upload.was_unheard = true;
            Answer::Unreached { error: "the answer was cut off".into(), retry_after: None }
        }
        // Of a cancellation it is only told: nothing that it answers is wrong.
        1 if upload.has_arrived => Answer::Refused { error: "rubbish".into(), retry_after },
        _ => Answer::Unreached { error: "out of order".into(), retry_after },
    }
}

/// The answer to a callback.
pub(crate) fn done(callback: &Callback, answer: Answer) -> Mail {
    let Callback { ticket, attempt, .. } = *callback;
    Mail::CallbackAnswer { ticket, attempt, answer }
}

/// The web app has an answer to its request.
pub(crate) fn on_response(
    now: Instant,
    call: &Call,
    (status, body): (u16, &str),
    it: &mut Upload,
    disk: &mut Disk,
) {
    match (call.kind, status) {
        (CallKind::New, 200) => {
            it.ticket = TicketId::parse(body);
            disk.expect(body.to_owned(), it.bytes);
            it.check_known(disk);
        }
        (CallKind::Cancel, 200) => {
            it.was_cancelled_by_app = true;
            it.check_cancelled(disk);
        }
        (CallKind::Cancel, 412) => assert_eq!(body, "too late to cancel"),
        (CallKind::Cancel, 400) => assert!(it.is_cancelled() || it.may_time_out),
        (CallKind::Finish, 200) => {
            (it.is_handed_over, it.is_finish_known, it.is_done_heard) = (true, true, true);
            it.check_finished(disk);
        }
        (CallKind::Finish, 400) => assert!(it.may_time_out),
        // No room on the disk, or no disk: it asks again.
        (CallKind::New, 400 | 503 | 507) => {
            assert!(disk.has_failed());
            it.back_at = Some(now + ASK_AGAIN_AFTER);
        }
        // Too early; or it was asked again and has said `done`.
        (CallKind::Finish, 412) => {}
        // It asks whether there is need or not.
        (CallKind::Retry, 200 | 412) => {}
        (CallKind::Retry, 400) => assert!(it.may_time_out),
        _ => panic!("{:?} is answered with {status} {body}", call.kind),
    }
}

const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Why an upload ends that is longer than was said, in the words of the original.
const TOO_MUCH: &str = "Error while consuming file chunk: File would get larger than declared";
