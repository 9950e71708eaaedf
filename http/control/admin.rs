//! The admin socket: `admin.sock` in the storage directory. Through it the operator's commands,
//! and the next server, speak to the one that runs.
//!
//! One JSON object per line each way: a request has a `command`, an answer that is a refusal has an
//! `error`. Nobody but root and the server's own user gets an answer. A new command is a line in
//! `Desk::answer`.

mod client;
mod operator;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

pub use client::AdminClient;
pub use operator::Operator;

/// The socket, bound and listening.
#[derive(Debug)]
pub struct AdminSocket(StdUnixListener);

impl AdminSocket {
    /// Binds the socket of a storage directory whose lock the caller has: one that is there belongs
    /// to a server that is gone, or to one that goes, and is replaced.
    ///
    /// # Errors
    /// The directory cannot be written, or its file system has no sockets.
    pub fn bind(storage_dir: &Path) -> io::Result<Self> {
        let directory = File::open(storage_dir)?;
        let [new, path] =
            [NEW_NAME, SOCKET_NAME].map(|name| reachable(storage_dir, &directory, name));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = StdUnixListener::bind(&new)?;
        fs::set_permissions(&new, Permissions::from_mode(SOCKET_MODE))?;
        listener.set_nonblocking(true)?;
        // Only now it has its name: who finds it finds it ready.
        fs::rename(&new, &path)?;
        Ok(Self(listener))
    }
}

/// What the socket's commands know and can do.
#[expect(missing_debug_implementations, reason = "holds a closure")]
pub struct Desk {
    /// Where the server listens.
    pub listen: Vec<SocketAddr>,
    pub operator: Operator,
    /// Gets those who want to be the next server, if this one hands over.
    pub on_replace: Option<Box<dyn Fn(Candidate) + Send + Sync>>,
}

/// A process that wants to be the next server. What is said to it from here on is not the control
/// thread's business.
#[derive(Debug)]
pub struct Candidate {
    pub request: Value,
    pub stream: StdUnixStream,
}

impl Desk {
    /// What one request is answered with.
    async fn answer(&self, request: &Value) -> Value {
        match request["command"].as_str() {
            Some("version") => json!({
                "pid": std::process::id(),
                "version": env!("CARGO_PKG_VERSION"),
                "listen": self.listen,
            }),
            Some("status") => self.operator.status(request, &self.listen).await,
            Some("retry") => self.operator.retry(request).await,
            Some(REPLACE) => refusal("it is not one that hands over"),
            Some(other) => {
                refusal(format!("this server (version {VERSION}) has no command {other:?}"))
            }
            None => refusal(format!("a request is {{\"command\": ...}}, not {request}")),
        }
    }

    /// Serves everybody who comes, until the runtime ends.
    ///
    /// # Errors
    /// The socket cannot be waited for.
    pub(super) async fn serve(self, socket: AdminSocket) -> io::Result<()> {
        let listener = UnixListener::from_std(socket.0)?;
        let desk = Arc::new(self);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection at the admin socket");
                    tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                    continue;
                }
            };
            let desk = Arc::clone(&desk);
            tokio::spawn(async move {
                // Somebody who goes away in the middle of it wants no answer.
                let _ = tokio::time::timeout(CONNECTION_TIMEOUT, desk.converse(stream)).await;
                drop(place);
            });
        }
    }

    async fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        let peer_uid = stream.peer_cred()?.uid();
        if peer_uid != 0 && peer_uid != rustix::process::geteuid().as_raw() {
            return say(&mut stream, &refusal("this socket is for root and the server's own user"))
                .await;
        }
        let mut received = Vec::new();
        while let Some(line) = read_line(&mut stream, &mut received).await? {
            let answer = match serde_json::from_slice::<Value>(&line) {
                Ok(request) => match &self.on_replace {
                    Some(on_replace) if request["command"] == REPLACE => {
                        let stream = stream.into_std()?;
                        stream.set_nonblocking(false)?;
                        on_replace(Candidate { request, stream });
                        return Ok(());
                    }
                    _ => self.answer(&request).await,
                },
                Err(error) => refusal(format!("a request is a JSON object on one line: {error}")),
            };
            say(&mut stream, &answer).await?;
        }
        Ok(())
    }
}

fn refusal(why: impl Into<String>) -> Value {
    json!({ "error": why.into() })
}

/// The next line without its end; `received` keeps what follows it. `None`: there are no more.
async fn read_line(stream: &mut UnixStream, received: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(end) = received.iter().position(|it| *it == b'\n') {
            let mut line: Vec<u8> = received.drain(..=end).collect();
            line.pop();
            return Ok(Some(line));
        }
        if received.len() > LINE_BYTES_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        if stream.read_buf(received).await? == 0 {
            return Ok(None);
        }
    }
}

async fn say(stream: &mut UnixStream, answer: &Value) -> io::Result<()> {
    stream.write_all(format!("{answer}\n").as_bytes()).await
}

/// The path of a name in the storage directory, as a socket's address can hold it.
fn reachable(storage_dir: &Path, directory: &File, name: &str) -> PathBuf {
    let path = storage_dir.join(name);
    if OsStr::as_bytes(path.as_os_str()).len() <= ADDRESS_BYTES_MAX {
        return path;
    }
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// The command of a process that wants to take over.
const REPLACE: &str = "replace";
const SOCKET_NAME: &str = "admin.sock";
const NEW_NAME: &str = "admin.sock.new";
const SOCKET_MODE: u32 = 0o600;
/// `sun_path` of unix(7), without the byte that ends it.
const ADDRESS_BYTES_MAX: usize = 107;
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A request and what names one ticket are far shorter.
const LINE_BYTES_MAX: usize = 64 * 1024;
const CONNECTIONS_MAX: usize = 16;
/// For everything that one connection asks.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);
