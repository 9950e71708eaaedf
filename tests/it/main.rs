//! The whole server from outside: the real binary on a real socket and a real disk.
//!
//! `server` starts it, `http` speaks raw HTTP to it, `client` uploads with tungstenite, `backend`
//! plays the web app, `hostile_app` one that does everything wrong, `content` is what files hold.
//! Everything else is tests, a promise each.
//!
//! `INCOMING_TEST_LONG=1` makes the 64-file test move 8 GB on each driver, chaos last longer, and a
//! restart read 100,000 tickets.
#![forbid(unsafe_code)]
#![expect(
    unreachable_pub,
    reason = "a test binary has no public interface; `pub` marks modules' own"
)]

mod backend;
mod client;
mod content;
mod hostile_app;
mod http;
mod server;

mod backend_api;
mod cancel;
mod chaos;
mod clock_jumps;
mod disk;
mod faulty_handovers;
mod given_up;
mod handover;
mod hanging;
mod http_framing;
mod http_routes;
mod lifecycle;
mod limits;
mod many;
mod messages;
mod peers;
mod places;
mod query;
mod restart;
mod resume;
mod settings;
mod storage;
mod take_over;
mod ten_thousand;
mod upload;
mod vanished;
mod websocket;
