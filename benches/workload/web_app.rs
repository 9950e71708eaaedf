//! The web app of the workload: it takes every file, and remembers where it is.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::io::Errno;

use crate::error::WorkloadError;

/// Runs in a thread of its own until it is dropped.
#[derive(Debug)]
pub(crate) struct WebApp {
    pub(crate) url: String,
    listener: TcpListener,
    taken: Arc<Mutex<HashMap<String, String>>>,
    thread: Option<JoinHandle<()>>,
}

impl WebApp {
    /// `host`: by which the server reaches it, if not by the address.
    pub(crate) fn start(listen: SocketAddr, host: Option<&str>) -> Result<Self, WorkloadError> {
        let failed = |error: std::io::Error| WorkloadError::Machine {
            what: "cannot listen for the server's callbacks",
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let url = match host {
            Some(host) if host.contains(':') => format!("http://{host}/done"),
            Some(host) => format!("http://{host}:{}/done", address.port()),
            None => format!("http://{address}/done"),
        };
        let taken = Arc::default();
        let (own, shared) = (listener.try_clone().map_err(failed)?, Arc::clone(&taken));
        let thread = thread::spawn(move || {
            while let Ok((socket, _)) = own.accept() {
                // Who goes away in the middle of a callback asks again.
                let _ = answer(&socket, &shared);
            }
        });
        Ok(Self { url, listener, taken, thread: Some(thread) })
    }

    /// Where the file of a ticket is.
    pub(crate) fn path_of(&self, id: &str) -> Option<String> {
        self.taken.lock().ok()?.get(id).cloned()
    }

    /// Of everything that was handed over.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.taken.lock().map(|it| it.values().cloned().collect()).unwrap_or_default()
    }
}

impl Drop for WebApp {
    fn drop(&mut self) {
        // Ends the accept call.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(socket: &TcpStream, taken: &Mutex<HashMap<String, String>>) -> std::io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut request = BufReader::new(socket).take(REQUEST_BYTES_MAX);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if request.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = Vec::new();
    request.take(length).read_to_end(&mut body)?;
    let mut fields: HashMap<_, _> = form_urlencoded::parse(&body).into_owned().collect();
    if fields.get("cancelled").map(String::as_str) == Some("no")
        && let (Some(id), Some(path)) = (fields.remove("id"), fields.remove("filename"))
        && let Ok(mut taken) = taken.lock()
    {
        taken.insert(id, path);
    }
    let mut to = socket;
    to.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ndone")?;
    socket.shutdown(Shutdown::Write)
}

const PATIENCE: Duration = Duration::from_secs(5);
const REQUEST_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(app: &WebApp, request: &str) -> String {
        let mut socket = TcpStream::connect(app.listener.local_addr().unwrap()).unwrap();
        let mut answer = String::new();
        // Who says too much may be cut off at any of these.
        let _ = socket.write_all(request.as_bytes());
        let _ = socket.shutdown(Shutdown::Write);
        let _ = socket.read_to_string(&mut answer);
        answer
    }

    fn callback(form: &str) -> String {
        format!("POST /done HTTP/1.1\r\nHost: h\r\ncontent-length: {}\r\n\r\n{form}", form.len())
    }

    #[test]
    fn arrivals_are_remembered_and_nothing_else_disturbs() {
        let app = WebApp::start(([127, 0, 0, 1], 0).into(), None).unwrap();
        assert!(ask(&app, &callback("id=a&cancelled=no&filename=%2Fx%20y%2Fa")).ends_with("done"));
        assert_eq!(ask(&app, "GET"), "");
        ask(&app, &"x".repeat(100_000));
        ask(&app, "POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\nid=b");
        assert!(ask(&app, &callback("id=c&cancelled=yes&filename=")).ends_with("done"));
        assert_eq!(app.path_of("a").as_deref(), Some("/x y/a"));
        assert_eq!(app.paths(), ["/x y/a"]);
        assert_eq!(app.path_of("c"), None);
    }

    #[test]
    fn the_server_is_told_where_it_finds_the_web_app() {
        let url = |host| {
            let app = WebApp::start(([127, 0, 0, 1], 0).into(), host).unwrap();
            let port = app.listener.local_addr().unwrap().port().to_string();
            app.url.replace(&port, "PORT")
        };
        assert_eq!(url(None), "http://127.0.0.1:PORT/done");
        assert_eq!(url(Some("app.example")), "http://app.example:PORT/done");
        assert_eq!(url(Some("app.example:80")), "http://app.example:80/done");
    }
}
