//! A small web app, to try the server out. It is what any web app is to the server: a page that
//! loads the server's library, and a backend that fetches tickets and takes files over HTTP.

mod directory;
mod reply;
mod tickets;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Semaphore;

use directory::Directory;
use reply::Content;
use tickets::{Tickets, Verdict};

/// The running web app. It ends with the process.
#[derive(Debug)]
pub struct Demo {
    address: SocketAddr,
    app: Arc<App>,
}

/// Why the demo does not start.
#[derive(Debug)]
pub enum DemoError {
    Listen { page: SocketAddr, error: io::Error },
    Directory { path: PathBuf, error: io::Error },
    Thread(io::Error),
}

#[derive(Debug)]
struct App {
    /// Where browsers find the upload server, but for the host name.
    server_port: u16,
    /// Where this backend finds it.
    server: SocketAddr,
    /// Where it finds us.
    callback_url: String,
    directory: Directory,
    tickets: Mutex<Tickets>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Demo {
    /// Serves the page at `page` and keeps files in the directory `uploaded` of `storage_dir`.
    ///
    /// # Errors
    /// See [`DemoError`].
    pub fn start(
        page: SocketAddr,
        server: SocketAddr,
        storage_dir: &Path,
    ) -> Result<Self, DemoError> {
        let listen = |error| DemoError::Listen { page, error };
        let listener = TcpListener::bind(page).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let path = storage_dir.join(UPLOADED_NAME);
        let directory =
            Directory::open(path.clone()).map_err(|error| DemoError::Directory { path, error })?;
        let app = Arc::new(App {
            server_port: server.port(),
            server: on_this_machine(server),
            callback_url: format!("http://{}/callback", on_this_machine(address)),
            directory,
            tickets: Mutex::default(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(DemoError::Thread)?;
        let served = Arc::clone(&app);
        std::thread::Builder::new()
            .name("demo".to_owned())
            .spawn(move || runtime.block_on(serve(listener, served)))
            .map_err(DemoError::Thread)?;
        Ok(Self { address, app })
    }

    /// Where the page is, seen from this machine.
    pub fn address(&self) -> SocketAddr {
        on_this_machine(self.address)
    }

    pub fn upload_dir(&self) -> &Path {
        self.app.directory.path()
    }
}

async fn serve(listener: TcpListener, app: Arc<App>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("is non-blocking");
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("never closed");
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                // Out of file descriptors, mostly; some will be given back.
                tracing::warn!(%error, "the demo cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let app = Arc::clone(&app);
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let app = Arc::clone(&app);
                async move { Ok::<_, Infallible>(app.answer(request).await) }
            });
            let mut connection = http1::Builder::new();
            connection.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE);
            // A browser that goes away is no news.
            let _ = connection.serve_connection(TokioIo::new(socket), answer).await;
            drop(slot);
        });
    }
}

impl App {
    async fn answer(&self, request: Request<Incoming>) -> Response<Content> {
        let path = request.uri().path().to_owned();
        let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
        let is_post = *request.method() == Method::POST;
        match path.as_str() {
            "/" if is_get => self.page(request.headers().get(HOST)),
            "/files" if is_get => self.files(),
            "/tickets" if is_post => self.new_ticket(&request).await,
            "/callback" if is_post => self.callback(request).await,
            "/" | "/files" => reply::method_not_allowed("GET, HEAD"),
            "/tickets" | "/callback" => reply::method_not_allowed("POST"),
            _ => match path.strip_prefix("/files/") {
                Some(name) if is_get => self.file(name),
                Some(_) => reply::method_not_allowed("GET, HEAD"),
                None => reply::text(StatusCode::NOT_FOUND, "not found"),
            },
        }
    }

    fn page(&self, host: Option<&HeaderValue>) -> Response<Content> {
        let host = host.and_then(|it| it.to_str().ok()).and_then(host_name).unwrap_or("127.0.0.1");
        let server = format!("{host}:{}", self.server_port);
        reply::html(PAGE.replace(SERVER_PLACEHOLDER, &server))
    }

    fn files(&self) -> Response<Content> {
        match self.directory.list() {
            Ok(entries) => reply::json(serde_json::to_string(&entries).expect("plain data")),
            Err(error) => failed("cannot list the files", &error),
        }
    }

    fn file(&self, encoded: &str) -> Response<Content> {
        let name = percent_encoding::percent_decode_str(encoded).decode_utf8();
        match name.map(|it| (self.directory.read(&it), it)) {
            Ok((Ok((file, length_bytes)), name)) => reply::download(&name, file, length_bytes),
            _ => reply::text(StatusCode::NOT_FOUND, "not found"),
        }
    }

    /// Asks the upload server for a ticket, as any backend does.
    async fn new_ticket(&self, request: &Request<Incoming>) -> Response<Content> {
        let field = |name| request.headers().get(name).and_then(|it| it.to_str().ok());
        if let Some(origin) = field(ORIGIN)
            && Some(origin) != field(HOST).map(|it| format!("http://{it}")).as_deref()
        {
            return reply::text(StatusCode::FORBIDDEN, "only the demo's own page gets tickets");
        }
        let secret = uuid::Uuid::new_v4().to_string();
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("signalFinishURL", &self.callback_url)
            .append_pair("removeFileWhenFinished", "false")
            .append_pair("backendSecret", &secret)
            .finish();
        let request = Request::post(format!("http://{}{NEW_UPLOAD_PATH}", self.server))
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(Full::new(form.into()))
            .expect("constants");
        match tokio::time::timeout(SERVER_PATIENCE, self.ask(request)).await {
            Ok(Ok((StatusCode::OK, id))) => {
                let answer = serde_json::json!({ "id": id }).to_string();
                self.tickets.lock().expect("nothing panics with it").add(id, secret);
                reply::json(answer)
            }
            Ok(Ok((status, text))) => {
                failed("the upload server answers", &format!("{status} {text}"))
            }
            Ok(Err(error)) => failed("cannot ask the upload server", &error),
            Err(_) => failed("the upload server", &"does not answer"),
        }
    }

    async fn ask(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, String), Box<dyn std::error::Error + Send + Sync>> {
        let response = self.client.request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), FORM_BYTES_MAX).collect().await?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    }

    /// The upload server says what became of an upload.
    async fn callback(&self, request: Request<Incoming>) -> Response<Content> {
        let body = Limited::new(request.into_body(), FORM_BYTES_MAX).collect();
        let Ok(Ok(body)) = tokio::time::timeout(SERVER_PATIENCE, body).await else {
            return reply::text(StatusCode::BAD_REQUEST, "cannot read the form");
        };
        let body = body.to_bytes();
        let field = |name: &str| {
            let found = form_urlencoded::parse(&body).find(|(it, _)| it == name);
            found.map(|(_, value)| value.into_owned()).unwrap_or_default()
        };
        let (id, secret) = (field("id"), field("backendSecret"));
        let verdict = self.tickets.lock().expect("nothing panics with it").check(&id, &secret);
        match verdict {
            Verdict::Refuse => {
                return reply::text(StatusCode::FORBIDDEN, "id unknown or backendSecret wrong");
            }
            Verdict::DoneBefore => return reply::text(StatusCode::OK, "done"),
            Verdict::Take => {}
        }
        if field("cancelled") != "yes" {
            let path = PathBuf::from(field("filename"));
            match self.directory.take(&path, &field("filenameFromBrowser")) {
                Ok(name) => tracing::info!(name, "the demo has a new file"),
                Err(error) => return failed("cannot take the file", &error),
            }
        }
        self.tickets.lock().expect("nothing panics with it").set_done(&id);
        reply::text(StatusCode::OK, "done")
    }
}

fn failed(what: &str, error: &dyn fmt::Display) -> Response<Content> {
    tracing::warn!(%error, "demo: {what}");
    reply::text(StatusCode::BAD_GATEWAY, format!("{what}: {error}"))
}

/// The host name of a `Host` field, without its port. `None` unless it is safe in a page.
fn host_name(field: &str) -> Option<&str> {
    let name = match field.strip_prefix('[') {
        Some(rest) => &field[..rest.find(']')? + 2],
        None => field.split(':').next()?,
    };
    let safe = |it: u8| it.is_ascii_alphanumeric() || b".-_:[]".contains(&it);
    (!name.is_empty() && name.bytes().all(safe)).then_some(name)
}

/// How this machine reaches an address that may stand for all of them.
fn on_this_machine(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(it) if it.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(it) if it.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    };
    SocketAddr::new(ip, address.port())
}

impl fmt::Display for DemoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen { page, error } => write!(
                f,
                "--page {page}: cannot listen there: {error}\n  remedy: stop what uses the port \
                 (ss -ltnp shows it), or choose another one"
            ),
            Self::Directory { path, error } => {
                write!(f, "cannot make the directory {}: {error}", path.display())
            }
            Self::Thread(error) => write!(f, "cannot start the demo's thread: {error}"),
        }
    }
}

impl std::error::Error for DemoError {}

const PAGE: &str = include_str!("demo.html");
/// In the page: where the upload server is.
const SERVER_PLACEHOLDER: &str = "{{server}}";
const UPLOADED_NAME: &str = "uploaded";
const NEW_UPLOAD_PATH: &str = "/incoming/0.1/backend/new_upload";
/// A file name may be long, and each of its bytes three in a form.
const FORM_BYTES_MAX: usize = 1024 * 1024;
const CONNECTIONS_MAX: usize = 256;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
const SERVER_PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_the_page_is_the_host_of_the_server() {
        for (field, name) in [
            ("127.0.0.1:4080", Some("127.0.0.1")),
            ("localhost", Some("localhost")),
            ("files.example.org:80", Some("files.example.org")),
            ("[::1]:4080", Some("[::1]")),
            ("[::1]", Some("[::1]")),
            ("[::1", None),
            ("", None),
            (":80", None),
            ("\"><script>", None),
            ("a b", None),
        ] {
            assert_eq!(host_name(field), name, "{field}");
        }
    }

    #[test]
    fn this_machine_reaches_itself() {
        for (address, reached) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:2", "[::1]:2"),
            ("192.0.2.1:3", "192.0.2.1:3"),
            ("127.0.0.1:4", "127.0.0.1:4"),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(on_this_machine(address), reached.parse().unwrap());
        }
    }

    #[test]
    fn the_page_names_the_server() {
        assert!(PAGE.contains(SERVER_PLACEHOLDER));
    }
}
