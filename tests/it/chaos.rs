//! Everything at once, by seed: uploads that are cut, taken over, paused, cancelled and resumed at
//! random while others do the same, with too little memory for all of them.

use std::thread;

use serde_json::json;

use crate::backend::{Answer, Backend};
use crate::client::{Client, Event, binary_frame};
use crate::content::{Content, Random};
use crate::server::{Server, Setup, on_every_driver};

on_every_driver! { whatever_happens_every_file_is_exact }

fn whatever_happens_every_file_is_exact(setup: &Setup) {
    let server = Setup { memory_mib: 8, ..setup.clone() }.start();
    let backend = Backend::scripted(|call| match (call.attempt, &call.field("id")[..1]) {
        // For some, the web app is away at first.
        (1, "0" | "1" | "2") => Answer::Raw(""),
        _ => Answer::Done,
    });
    let rounds = if std::env::var_os("INCOMING_TEST_LONG").is_some() { 25 } else { 1 };
    for round in 0..rounds {
        thread::scope(|scope| {
            for index in 0..UPLOAD_COUNT {
                let (server, backend) = (&server, &backend);
                let seed = round * UPLOAD_COUNT + index;
                scope.spawn(move || Life::new(server, backend, seed).live());
            }
        });
    }
    server.wait_without_files();
}

/// One upload and what is known about it.
struct Life<'s> {
    server: &'s Server,
    backend: &'s Backend,
    random: Random,
    content: Content,
    id: String,
    /// Acknowledged on any connection so far.
    acknowledged: u64,
    /// Sent on any connection so far, acknowledged or not, whole or not.
    sent: u64,
}

impl<'s> Life<'s> {
    fn new(server: &'s Server, backend: &'s Backend, seed: u64) -> Self {
        let mut random = Random(seed);
        let length = [0, 1, 10_000, 1_000_000, 5_000_000][seed as usize % 5];
        let content = Content::new(seed, length + random.below(length + 1));
        let id = backend.ticket_kept(server);
        Self { server, backend, random, content, id, acknowledged: 0, sent: 0 }
    }

    fn live(&mut self) {
        for _ in 0..CONNECTION_COUNT_MAX {
            let mut client = self.connect();
            for _ in 0..self.random.below(6) {
                if client.position < self.content.length_bytes {
                    self.send_chunk(&mut client);
                }
            }
            self.acknowledged = self.acknowledged.max(client.acknowledged());
            // Complete: from here on only the end is possible.
            if client.position == self.content.length_bytes {
                return self.finish(client);
            }
            match self.random.below(16) {
                0 => return self.cancel_by_browser(client),
                1 => return self.cancel_by_backend(client),
                2..6 => self.cut(client),
                6..9 => drop(client),
                9..12 => {
                    client.say("MsgPause", json!({ "Pause": true }));
                    client.close(None);
                }
                _ => self.take_over(client),
            }
        }
        let client = self.connect();
        self.finish(client);
    }

    /// Opens, or is taken over by itself before it has come far.
    fn connect(&mut self) -> Client {
        let length = self.content.length_bytes;
        if self.random.below(4) == 0 {
            let mut client = Client::connect(self.server);
            client.request(&self.id, length, "first");
            // Which of two connections is the newer one is known from here on.
            self.check(client.conf());
            if self.random.below(2) == 0 {
                client.reset();
            }
        }
        let client = Client::open(self.server, &self.id, length);
        self.check(client.position);
        client
    }

    fn check(&self, file_pos: u64) {
        let range = self.acknowledged..=self.sent;
        assert!(range.contains(&file_pos), "FilePos {file_pos} outside of {range:?}");
    }

    fn send_chunk(&mut self, client: &mut Client) {
        let length = match self.random.below(8) {
            0 => self.random.below(3),
            1 => 1 + self.random.below(3_000_000),
            _ => 1 + self.random.below(200_000),
        };
        let bytes = self.content.piece(client.position, length);
        self.sent = self.sent.max(client.position + bytes.len() as u64);
        match self.random.below(3) {
            0 => client.chunk_in_frames(&bytes, 1 + self.random.below(131_000) as usize),
            _ => client.chunk(bytes),
        }
        if self.random.below(2) == 0 {
            client.all_acks();
        }
    }

    fn finish(&mut self, mut client: Client) {
        let content = self.content;
        let chunk_bytes = 1 + self.random.below(1_000_000);
        client.send_rest(content, || chunk_bytes);
        client.finish();
        let path = self.backend.call(&self.id, 1).path();
        content.assert_file(&path);
        std::fs::remove_file(path).expect("the web app takes the file");
        // Late, and welcome.
        Client::open(self.server, &self.id, content.length_bytes).finish();
    }

    fn cut(&mut self, mut client: Client) {
        let length = 1 + self.random.below(400_000);
        let bytes = self.content.piece(client.position, length);
        let frame = binary_frame(&bytes);
        let cut = self.random.below(frame.len() as u64) as usize;
        self.sent = self.sent.max(client.position + bytes.len() as u64);
        client.raw(&frame[..cut]);
        client.reset();
    }

    fn take_over(&mut self, mut older: Client) {
        let length = self.content.length_bytes;
        let newer = Client::open(self.server, &self.id, length);
        let reason = older.assert_closed(4001);
        assert_eq!(reason, "taken over");
        self.acknowledged = self.acknowledged.max(older.acknowledged());
        self.check(newer.position);
        newer.reset();
    }

    fn cancel_by_browser(&mut self, mut client: Client) {
        client.cancel("by browser");
        client.finish_cancelled();
        assert_eq!(self.backend.call(&self.id, 1).cancel_reason(), "by browser");
        self.server.wait_until_cancelled(&self.id);
    }

    fn cancel_by_backend(&mut self, mut client: Client) {
        client.sync();
        let target = "/incoming/0.1/backend/cancel_upload";
        self.server.post(target, &[("id", &self.id)]).assert(200, "ok");
        match client.receive_after_acks() {
            Event::Message { kind, .. } if kind == "MsgCancel" => {}
            other => panic!("{other:?} instead of MsgCancel"),
        }
        client.cancel("as you say");
        client.finish_cancelled();
        assert_eq!(self.backend.call_count(&self.id), 0);
        self.server.wait_until_cancelled(&self.id);
    }
}

const UPLOAD_COUNT: u64 = 40;
const CONNECTION_COUNT_MAX: usize = 12;
