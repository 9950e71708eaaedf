//! Speaking to the server that runs on a storage directory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::{SOCKET_NAME, reachable};

/// A connection to a server's admin socket. Its calls block.
#[derive(Debug)]
pub struct AdminClient {
    reader: BufReader<UnixStream>,
}

impl AdminClient {
    /// Connects to the server of a storage directory.
    ///
    /// # Errors
    /// `NotFound` and `ConnectionRefused`: no server runs there. `PermissionDenied`: it is somebody
    /// else's.
    pub fn connect(storage_dir: &Path) -> io::Result<Self> {
        let directory = File::open(storage_dir)?;
        let stream = UnixStream::connect(reachable(storage_dir, &directory, SOCKET_NAME))?;
        stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
        stream.set_write_timeout(Some(ANSWER_PATIENCE))?;
        Ok(Self::over(stream))
    }

    /// A conversation that the other side has begun.
    pub fn over(stream: UnixStream) -> Self {
        Self { reader: BufReader::new(stream) }
    }

    /// What it goes over. Between an answer and the next request nothing of it is buffered here.
    pub fn stream(&self) -> &UnixStream {
        self.reader.get_ref()
    }

    /// Asks for one thing. An answer with `error` is a refusal.
    ///
    /// # Errors
    /// The server went away, or does not speak JSON.
    pub fn ask(&mut self, request: &Value) -> io::Result<Value> {
        self.tell(request)?;
        self.hear()
    }

    /// Sends one line.
    ///
    /// # Errors
    /// The server went away.
    pub fn tell(&mut self, message: &Value) -> io::Result<()> {
        self.reader.get_ref().write_all(format!("{message}\n").as_bytes())
    }

    /// Reads one line.
    ///
    /// # Errors
    /// See [`Self::ask`].
    pub fn hear(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        (&mut self.reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_slice(&line).map_err(|_| ErrorKind::InvalidData.into())
    }
}

/// An answer takes milliseconds, unless a core waits for its disk.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// A page of a listing is much shorter.
const LINE_BYTES_MAX: u64 = 16 << 20;
