//! `peers floor`: the floor on the server's own driver.

use std::io;
use std::path::Path;
use std::sync::Arc;

use engine::driver::{self, Backend, Helper, Runtime, Setup, StorageDir};

use super::Common;
use super::machine::Probe;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Floor {
    /// monoio or tokio-uring
    #[arg(long, default_value_t)]
    runtime: Runtime,
    #[command(flatten)]
    common: Common,
}

impl Floor {
    /// Runs until the process ends.
    pub(crate) fn run(self) -> io::Result<()> {
        driver::probe_io_uring()?;
        let (sender, mailbox) = driver::mailbox()?;
        let setup = Setup {
            listeners: vec![self.common.listen()?],
            mailbox,
            cores: vec![sender],
            control: Box::new(|()| {}),
            // The probe has no business with files; the driver wants a directory.
            helper: Helper::start(Backend::IoUring, Arc::new(StorageDir::open(Path::new("/"))?))?,
            backend: Backend::IoUring,
        };
        driver::run(self.runtime, Probe::new(self.common.checksum)?, setup)
    }
}
