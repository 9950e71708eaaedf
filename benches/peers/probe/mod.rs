//! The physical floor under an upload server: receive, unmask where the bytes lie, discard them,
//! acknowledge. What the real server costs more is what storing costs.

mod conversation;
pub(crate) mod floor;
mod machine;
pub(crate) mod ring;
mod uring;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};

/// What every probe is told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Common {
    /// Where clients connect; port 0 is any free one. The first line printed tells the address
    #[arg(long)]
    listen: SocketAddr,
    /// Print the id and the CRC-32C of every upload that is complete
    #[arg(long)]
    checksum: bool,
}

impl Common {
    fn listen(&self) -> io::Result<TcpListener> {
        let listener = TcpListener::bind(self.listen)?;
        println!("listening on http://{}", listener.local_addr()?);
        io::stdout().flush()?;
        Ok(listener)
    }
}
