//! (to come) One core's logic.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use engine::op::CoreId;
use engine::ticket::TicketId;

/// What a worker is told at start. Nothing in it changes afterwards.
#[expect(missing_debug_implementations, reason = "holds a closure")]
pub struct WorkerConfig {
    pub core: CoreId,
    pub core_count: u16,
    /// Absolute. Holds `parts/` and `arrived/`, which exist.
    pub storage_dir: PathBuf,
    /// Whether files there are written without the page cache.
    pub direct: bool,
    /// Staging memory of this core, in bytes.
    pub staging_bytes: u32,
    /// Connections that this core holds at a time; further ones wait in the listener's queue.
    pub connections_max: u32,
    /// Tickets that this core holds at a time, finished ones included; `new_upload` answers 503
    /// beyond.
    pub tickets_max: u32,
    /// A ticket that nothing happens to for so long is cancelled ("upload timed out").
    pub idle_timeout: Duration,
    /// How long after `wait` the web app may take to call `finish_upload` before it is asked again.
    pub finish_timeout: Duration,
    /// Answer backend routes also to requests that come through a proxy or from a browser.
    pub backend_behind_proxy: bool,
    /// Uploads per core, for placing new ones. Index: core.
    pub loads: Arc<[AtomicU32]>,
    /// Draws a random ticket id.
    pub draw_id: Box<dyn FnMut() -> TicketId + Send>,
}
