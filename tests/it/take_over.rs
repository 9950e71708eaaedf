//! A connection that has died without a word does not stand in the way of the next one.

use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::client::Client;
use crate::content::Content;
use crate::server::{Setup, on_every_driver};

on_every_driver! { a_half_open_connection_is_taken_over_at_once }

/// The older connection neither reads nor closes: all that a server sees of a browser whose network
/// is gone. The time until the newer one hears where to go on is printed, never judged.
fn a_half_open_connection_is_taken_over_at_once(setup: &Setup) {
    let server = setup.start();
    let backend = Backend::done();
    let content = Content::new(150, 3_000_000);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let id = backend.ticket_kept(&server);
        let mut older = Client::open(&server, &id, content.length_bytes);
        for _ in 0..4 {
            older.chunk(content.piece(older.position, 500_000));
        }
        let begun = Instant::now();
        let mut newer = Client::open(&server, &id, content.length_bytes);
        times.push(begun.elapsed());
        newer.send_rest(content, || 500_000);
        newer.finish();
        content.assert_file(&backend.call(&id, 1).path());
    }
    times.sort();
    let ms = |it: Duration| it.as_secs_f64() * 1e3;
    let (median, worst) = (ms(times[ROUNDS / 2]), ms(times[ROUNDS - 1]));
    let Setup { driver, place, .. } = setup;
    println!("take-over, {driver:?} on {place:?}: median {median:.1} ms, worst {worst:.1} ms");
}

/// As when two tabs fight for one upload.
#[test]
fn twenty_take_overs_a_minute_are_enough() {
    let server = Setup::default().start();
    let backend = Backend::done();
    let content = Content::new(151, 1_000_000);
    let id = backend.ticket_kept(&server);
    let mut owner = Client::open(&server, &id, content.length_bytes);
    for _ in 0..20 {
        let newer = Client::open(&server, &id, content.length_bytes);
        assert_eq!(owner.assert_closed(4001), "taken over");
        owner = newer;
    }
    let mut refused = Client::connect(&server);
    refused.request(&id, content.length_bytes, "x");
    // No MsgError: its library tries again by itself.
    assert_eq!(refused.assert_closed(1013), "taken over too often");
    owner.send_rest(content, || 500_000);
    owner.finish();
    content.assert_file(&backend.call(&id, 1).path());
}

const ROUNDS: usize = 25;
