//! The whole harbour, by seed, in virtual time: servers of two to four cores that are stopped, killed
//! and cut off from power, and start again with other cores; sockets that cut anywhere; a disk that
//! reorders, tears, fails, fills up and forgets what was not synced; browsers that come and go; web
//! apps that cancel, wait and stumble. What was promised is compared with the disk at every promise
//! and at every start.
//!
//! `SEEDS=17 cargo test --test sim` runs one seed, `SEEDS=0..100000` many.

mod browser;
mod chaos;
mod core;
#[path = "../../engine/tests/store/disk/mod.rs"]
mod disk;
mod net;
mod promise;
#[path = "../../engine/tests/store/rng.rs"]
mod rng;
mod server;
mod start;
mod trace;
mod upload;
mod webapp;
mod websocket;
mod world;

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use rng::for_each_seed;
use world::World;

#[test]
fn every_upload_ends_well_whatever_happens() {
    for_each_seed(2_000, |seed| {
        World::new(seed).run();
    });
}

/// Whatever a seed shows can be shown again.
#[test]
fn the_same_seed_gives_the_same_trace() {
    for_each_seed(20, |seed| {
        assert_eq!(World::traced(seed).run(), World::traced(seed).run());
    });
}

/// `cargo test --test sim -- --nocapture dead` prints when a web app is called that is dead for three
/// days, with a kill, a stop and a power cut on the way.
#[test]
fn a_dead_web_app_is_called_for_three_days_and_then_everything_is_kept() {
    for seed in 0..3 {
        let schedule = World::outlive_a_dead_app(seed);
        schedule.print();
        schedule.check();
    }
}

/// Panics so far. A worker survives what a connection's bytes make it do; here it may not happen.
fn panic_count() -> u32 {
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            report(info);
        }));
    });
    PANICS.load(Ordering::Relaxed)
}

static HOOK: Once = Once::new();
static PANICS: AtomicU32 = AtomicU32::new(0);
