//! Which request goes where, and what a web app's requests must hold.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::ticket::TicketId;
use engine::tickets::TicketError;

use crate::assets::Library;
use crate::codec::params::Params;
use crate::codec::request::{Head, Method};
use crate::codec::response::Response;
use crate::keys::{BackendKeys, KeyId};
use crate::query::{Query, json_error};

/// What becomes of a request.
#[derive(Debug)]
pub enum Route {
    /// It is answered at once.
    Answer(Response),
    /// The worker answers it.
    Backend(BackendCall),
    /// It wants to become a WebSocket.
    Upload,
}

/// A web app's request, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendCall {
    /// `None`: there are no keys.
    pub key: Option<KeyId>,
    pub request: BackendRequest,
}

/// A web app's request, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendRequest {
    NewUpload(NewUpload),
    CancelUpload { id: TicketId, secret: String },
    FinishUpload { id: TicketId, secret: Option<String> },
    RetryUpload { id: TicketId, secret: String },
    ShowUpload { id: TicketId },
    ListUploads(Query),
}

/// The parameters of `new_upload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewUpload {
    pub url: String,
    pub secret: String,
    /// The secret came as `signalFinishSecret`.
    pub finish_without_secret: bool,
    pub remove_when_finished: bool,
    /// Where the file is to arrive, below one of the roots; empty: where all do.
    pub dest_dir: String,
    pub owner_uid: Option<u32>,
    /// Longer files are refused.
    pub max_size_bytes: Option<u64>,
    /// What is not whole after so long is cancelled, in seconds.
    pub expires_in_s: Option<u64>,
    /// Given back in the callback.
    pub metadata: String,
    /// Callbacks are signed with it; empty: with the server's, if it has one.
    pub signing_secret: String,
}

/// What routing depends on. The same for all connections of a run.
#[derive(Clone, Debug)]
pub struct Router {
    pub library: Library,
    /// Answer backend routes also to requests that come through a proxy or from a browser.
    pub backend_behind_proxy: bool,
    /// The server stops: the health route says so.
    pub is_draining: bool,
    /// Absolute. Files may arrive in them and below.
    pub dest_roots: Vec<PathBuf>,
    pub keys: Arc<BackendKeys>,
}

impl Router {
    /// `body` is complete.
    pub fn route(&self, head: &Head, body: &[u8]) -> Route {
        let Some(target) = Target::find(&head.path) else {
            let response = Response::text(404, "404 page not found\n");
            return Route::Answer(response.with_header("X-Content-Type-Options", "nosniff"));
        };
        let foreign = FOREIGN_FIELDS.iter().find(|it| head.header(it).is_some());
        let is_guarded = target.is_backend() && !self.backend_behind_proxy;
        if let Some(field) = foreign.filter(|_| is_guarded) {
            return Route::Answer(Response::text(403, refusal(field)));
        }
        let method = match head.method {
            Method::Post => "POST",
            Method::Get => "GET",
            Method::Head => "HEAD",
            _ => "",
        };
        if !target.allow().split(", ").any(|it| it == method) {
            return Route::Answer(Response::text(405, "").with_header("Allow", target.allow()));
        }
        let key = match target.is_backend().then(|| self.authorize(target, head)).transpose() {
            Ok(key) => key.flatten(),
            Err(refusal) => return Route::Answer(refusal),
        };
        match target {
            Target::Library => Route::Answer(self.library.response(head)),
            Target::Health => {
                let (status, text) = if self.is_draining { (503, "stopping") } else { (200, "ok") };
                let response = Response::text(status, text);
                Route::Answer(response.with_header("Cache-Control", "no-store"))
            }
            Target::UploadWs => Route::Upload,
            Target::NewUpload
            | Target::CancelUpload
            | Target::FinishUpload
            | Target::RetryUpload => match backend_request(target, head, body, &self.dest_roots) {
                Ok(request) => Route::Backend(BackendCall { key, request }),
                Err(message) => Route::Answer(Response::text(400, message)),
            },
            Target::Upload(None) => Route::Answer(json_error(404, "id unknown")),
            Target::Upload(Some(id)) => {
                Route::Backend(BackendCall { key, request: BackendRequest::ShowUpload { id } })
            }
            Target::Uploads => match list_request(head) {
                Ok(request) => Route::Backend(BackendCall { key, request }),
                Err(message) => Route::Answer(json_error(400, &message)),
            },
        }
    }

    /// Whose request it is. Where there are no keys, whoever reaches the server may do everything
    /// but look at what others have.
    fn authorize(&self, target: Target, head: &Head) -> Result<Option<KeyId>, Response> {
        if self.keys.is_empty() && target.is_query() {
            return Err(Response::text(403, QUERY_REFUSAL));
        }
        self.keys.authorize(head.header("authorization")).map_err(|_| {
            let message = "this request needs a key: send Authorization: Bearer <key>";
            Response::text(401, message).with_header("WWW-Authenticate", "Bearer")
        })
    }
}

/// What a web app is told when its request is refused.
pub fn ticket_error_response(error: TicketError, is_cancel: bool) -> Response {
    match error {
        TicketError::Unknown => Response::text(400, "id unknown"),
        TicketError::WrongSecret => Response::text(403, "backendSecret not given or wrong"),
        TicketError::TooLateToCancel => Response::text(412, "too late to cancel"),
        TicketError::NotWaiting if !is_cancel => Response::text(412, "no waiting handover routine"),
        TicketError::NotWaiting | TicketError::NotHandingOver => {
            Response::text(412, "uploader is not in 'handing over' state")
        }
        TicketError::NothingToRetry => {
            Response::text(412, "nothing to retry: no hand-over of this upload has failed")
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    NewUpload,
    CancelUpload,
    FinishUpload,
    RetryUpload,
    Uploads,
    /// What is no id is that of no upload.
    Upload(Option<TicketId>),
    UploadWs,
    Library,
    Health,
}

impl Target {
    /// Both generations of paths: with the version, and without as in the oldest documents.
    fn find(path: &str) -> Option<Self> {
        let rest = path.strip_prefix("/incoming/")?;
        let rest = rest.strip_prefix("0.1/").unwrap_or(rest);
        if let Some(id) = rest.strip_prefix("backend/uploads/") {
            return Some(Self::Upload(TicketId::parse(id)));
        }
        Some(match rest {
            "backend/new_upload" => Self::NewUpload,
            "backend/cancel_upload" => Self::CancelUpload,
            "backend/finish_upload" => Self::FinishUpload,
            "backend/retry_upload" => Self::RetryUpload,
            "backend/uploads" => Self::Uploads,
            "frontend/upload_ws" => Self::UploadWs,
            "frontend/incoming.js" => Self::Library,
            "health" => Self::Health,
            _ => return None,
        })
    }

    fn is_backend(self) -> bool {
        match self {
            Self::NewUpload | Self::CancelUpload | Self::FinishUpload | Self::RetryUpload => true,
            Self::Uploads | Self::Upload(_) => true,
            Self::UploadWs | Self::Library | Self::Health => false,
        }
    }

    fn is_query(self) -> bool {
        matches!(self, Self::Uploads | Self::Upload(_))
    }

    /// RFC 9110 section 15.5.6 asks for it.
    fn allow(self) -> &'static str {
        match self {
            Self::NewUpload | Self::CancelUpload | Self::FinishUpload | Self::RetryUpload => "POST",
            // A HEAD that upgrades is nothing that exists.
            Self::UploadWs => "GET",
            Self::Library | Self::Health | Self::Uploads | Self::Upload(_) => "GET, HEAD",
        }
    }
}

fn backend_request(
    target: Target,
    head: &Head,
    body: &[u8],
    dest_roots: &[PathBuf],
) -> Result<BackendRequest, String> {
    let params = Params::from_request(head.query.as_deref(), head.header("content-type"), body)
        .map_err(|it| it.message().to_owned())?;
    if target == Target::NewUpload {
        return new_upload(&params, dest_roots).map(BackendRequest::NewUpload);
    }
    let id = given(&params, "id").ok_or("id not given")?;
    let id = TicketId::parse(id).ok_or("id unknown")?;
    let secret = secret(&params).map(|it| it.0.to_owned());
    Ok(match target {
        Target::CancelUpload => {
            BackendRequest::CancelUpload { id, secret: secret.unwrap_or_default() }
        }
        Target::RetryUpload => {
            BackendRequest::RetryUpload { id, secret: secret.unwrap_or_default() }
        }
        _ => BackendRequest::FinishUpload { id, secret },
    })
}

fn list_request(head: &Head) -> Result<BackendRequest, String> {
    let params = Params::from_request(head.query.as_deref(), None, &[])
        .map_err(|it| it.message().to_owned())?;
    Query::parse(|name| params.value(name)).map(BackendRequest::ListUploads)
}

/// Checked in the order of the original: URL, remove, uid.
fn new_upload(params: &Params, dest_roots: &[PathBuf]) -> Result<NewUpload, String> {
    let url = params.value("signalFinishURL").unwrap_or("");
    check_url(url).map_err(|it| format!("signalFinishURL invalid: {it}: {url:?}"))?;
    let dest_dir = match given(params, "destDir") {
        None => String::new(),
        Some(text) => {
            dest_dir(text, dest_roots).map_err(|it| format!("destDir invalid: {it}: {text:?}"))?
        }
    };
    let remove_when_finished = match given(params, "removeFileWhenFinished") {
        // Who says where the file goes wants to have it there.
        None => dest_dir.is_empty(),
        Some("1" | "t" | "T" | "TRUE" | "true" | "True") => true,
        Some("0" | "f" | "F" | "FALSE" | "false" | "False") => false,
        Some(other) => {
            return Err(format!(
                "removeFileWhenFinished invalid: neither true nor false: {other:?}"
            ));
        }
    };
    let owner_uid = match given(params, "fileOwnerUid") {
        None => None,
        // The highest number means "nobody" to the kernel.
        Some(text) => match text.parse::<u32>() {
            Ok(uid) if uid != u32::MAX => Some(uid),
            _ => return Err(format!("fileOwnerUid invalid: not a user id: {text:?}")),
        },
    };
    let max_size_bytes = number(params, "maxSize", "a number of bytes")?;
    let expires_in_s = number(params, "expiresIn", "a number of seconds from 1 on")?;
    if expires_in_s == Some(0) {
        return Err("expiresIn invalid: not a number of seconds from 1 on: \"0\"".to_owned());
    }
    let metadata = params.value("metadata").unwrap_or("");
    let signing_secret = params.value("signingSecret").unwrap_or("");
    check_length("metadata", metadata)?;
    check_length("signingSecret", signing_secret)?;
    let secret = secret(params);
    let finish_without_secret = secret.is_some_and(|it| it.1 == Age::Old);
    let secret = secret.map_or("", |it| it.0);
    check_length("signalFinishURL", url)?;
    check_length("backendSecret", secret)?;
    Ok(NewUpload {
        url: url.to_owned(),
        secret: secret.to_owned(),
        finish_without_secret,
        remove_when_finished,
        dest_dir,
        owner_uid,
        max_size_bytes,
        expires_in_s,
        metadata: metadata.to_owned(),
        signing_secret: signing_secret.to_owned(),
    })
}

/// A directory by its one spelling. Whether it is there is the worker's question.
fn dest_dir(text: &str, roots: &[PathBuf]) -> Result<String, &'static str> {
    if roots.is_empty() {
        return Err("this server has no dest_roots");
    }
    if text.len() > PATH_BYTES_MAX {
        return Err("longer than a path may be");
    }
    if !text.starts_with('/') || text.contains('\0') {
        return Err("not an absolute path");
    }
    if text.split('/').any(|it| it == "." || it == "..") {
        return Err("a path without . and .. is wanted");
    }
    let path: PathBuf = Path::new(text).components().collect();
    if !roots.iter().any(|it| path.starts_with(it)) {
        return Err("not below one of dest_roots");
    }
    Ok(path.into_os_string().into_string().expect("it was text"))
}

/// JavaScript counts exactly up to 2^53 - 1.
fn number(params: &Params, name: &str, what: &str) -> Result<Option<u64>, String> {
    let Some(text) = given(params, name) else { return Ok(None) };
    let number = text.parse().ok().filter(|it| *it < 1 << 53);
    number.map(Some).ok_or_else(|| format!("{name} invalid: not {what}: {text:?}"))
}

/// An absolute http or https URL: nothing else could ever be told. The client checks the rest when
/// it uses it.
fn check_url(url: &str) -> Result<(), &'static str> {
    if url.is_empty() {
        return Err("empty url");
    }
    if url.bytes().any(|it| it <= b' ' || it == 0x7f) {
        return Err("a URL has no blanks and no control characters");
    }
    let (scheme, rest) = url.split_once("://").ok_or("must be an absolute http or https URL")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err("must be an absolute http or https URL");
    }
    match rest.bytes().next() {
        None | Some(b'/' | b'?' | b'#' | b':') => Err("the URL names no host"),
        Some(_) => Ok(()),
    }
}

fn check_length(name: &str, value: &str) -> Result<(), String> {
    if value.len() <= VALUE_BYTES_MAX {
        return Ok(());
    }
    Err(format!("{name} invalid: longer than {VALUE_BYTES_MAX} bytes"))
}

/// A parameter that is there and not empty.
fn given<'a>(params: &'a Params, name: &str) -> Option<&'a str> {
    params.value(name).filter(|it| !it.is_empty())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    New,
    Old,
}

/// The secret, under its name or one of its older ones.
fn secret(params: &Params) -> Option<(&str, Age)> {
    let new = params.value("backendSecret").map(|it| (it, Age::New));
    let older = ["signalFinishSecret", "secret"].into_iter().find_map(|it| params.value(it));
    new.or(older.map(|it| (it, Age::Old)))
}

fn refusal(field: &str) -> String {
    format!(
        "backend routes are for web apps, not for browsers or proxies: the request carries {field}. \
         Call the server directly, or set backend_behind_proxy."
    )
}

const QUERY_REFUSAL: &str = "\
    uploads are shown to web apps that have a key: set backend_keys, and send \
    Authorization: Bearer <key>. An operator on the server's machine runs: incoming status";

/// Browsers and proxies that announce themselves are stopped by these. Nothing more: whoever runs a
/// proxy denies the backend paths there.
const FOREIGN_FIELDS: [&str; 5] = ["Origin", "Forwarded", "Via", "X-Forwarded-For", "X-Real-IP"];

/// Of a directory: the kernel's limit, and the file's name comes after it.
const PATH_BYTES_MAX: usize = 4000;

/// Of a URL or a secret: they are kept as long as the ticket.
const VALUE_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::codec::request::parse_head;
    use crate::keys::BackendKey;

    fn route(line: &str, fields: &str, body: &str) -> Route {
        route_with(BackendKeys::default(), line, fields, body)
    }

    fn route_with(keys: BackendKeys, line: &str, fields: &str, body: &str) -> Route {
        let text = format!("{line} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let (head, _) = parse_head(text.as_bytes(), &Default::default()).unwrap().unwrap();
        let library = Library::new(SystemTime::UNIX_EPOCH);
        let dest_roots = vec!["/srv/a".into(), "/srv/b/c".into()];
        let (is_draining, keys) = (false, Arc::new(keys));
        Router { library, backend_behind_proxy: false, is_draining, dest_roots, keys }
            .route(&head, body.as_bytes())
    }

    fn shop_key() -> BackendKeys {
        let key = "0123456789abcdef".to_owned();
        let name = "shop".to_owned();
        BackendKeys::new([BackendKey { name, key, quota_bytes: None, tickets_max: None }])
    }

    fn new_upload_of(line: &str) -> NewUpload {
        match route(line, "", "") {
            Route::Backend(BackendCall { key: None, request: BackendRequest::NewUpload(it) }) => it,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn answer(line: &str, fields: &str, body: &str) -> (u16, String) {
        match route(line, fields, body) {
            Route::Answer(it) => (it.status, String::from_utf8_lossy(&it.body).into_owned()),
            other => panic!("{line}: {other:?}"),
        }
    }

    const NEW: &str = "POST /incoming/0.1/backend/new_upload";
    const URL: &str = "signalFinishURL=http%3A%2F%2Fh%2Fp";

    #[test]
    fn paths_and_methods() {
        for prefix in ["/incoming/0.1", "/incoming"] {
            let line = |rest: &str| rest.replace('~', prefix);
            assert!(matches!(route(&line("GET ~/frontend/upload_ws"), "", ""), Route::Upload));
            assert_eq!(answer(&line("GET ~/health"), "", "").0, 200);
            assert_eq!(answer(&line("HEAD ~/frontend/incoming.js"), "", "").0, 200);
            assert_eq!(answer(&line("OPTIONS ~/frontend/incoming.js"), "", "").0, 405);
            assert_eq!(answer(&line("GET ~/backend/new_upload"), "", "").0, 405);
            assert_eq!(answer(&line("POST ~/frontend/upload_ws"), "", "").0, 405);
            assert_eq!(answer(&line("GET ~/frontend/incoming.js/"), "", "").0, 404);
            assert_eq!(answer(&line("GET ~/../frontend/incoming.js"), "", "").0, 404);
        }
        assert_eq!(answer("GET /", "", ""), (404, "404 page not found\n".into()));
    }

    #[test]
    fn new_upload_parameters() {
        let full = format!(
            "{NEW}?{URL}&removeFileWhenFinished=false&fileOwnerUid=1000&backendSecret=s&destType=x"
        );
        let new = new_upload_of(&full);
        let expected = NewUpload {
            url: "http://h/p".into(),
            secret: "s".into(),
            finish_without_secret: false,
            remove_when_finished: false,
            dest_dir: String::new(),
            owner_uid: Some(1000),
            max_size_bytes: None,
            expires_in_s: None,
            metadata: String::new(),
            signing_secret: String::new(),
        };
        assert_eq!(new, expected);
        let more = format!(
            "{NEW}?{URL}&maxSize=9007199254740991&expiresIn=60&metadata=a%26b&signingSecret=k"
        );
        let new = new_upload_of(&more);
        assert_eq!((new.max_size_bytes, new.expires_in_s), (Some((1 << 53) - 1), Some(60)));
        assert_eq!((new.metadata.as_str(), new.signing_secret.as_str()), ("a&b", "k"));
        for (given, spelled) in
            [("/srv/a", "/srv/a"), ("//srv//a/b//", "/srv/a/b"), ("/srv/b/c/d%20e", "/srv/b/c/d e")]
        {
            let line = format!("{NEW}?{URL}&destDir={given}");
            let new = new_upload_of(&line);
            assert_eq!((new.dest_dir.as_str(), new.remove_when_finished), (spelled, false));
            let line = format!("{line}&removeFileWhenFinished=true");
            let new = new_upload_of(&line);
            assert!(new.remove_when_finished);
        }
        let old = format!("{NEW}?{URL}&signalFinishSecret=s");
        let new = new_upload_of(&old);
        assert!(new.finish_without_secret && new.secret == "s" && new.remove_when_finished);
    }

    #[test]
    fn new_upload_errors() {
        let table = [
            ("", "signalFinishURL invalid: "),
            ("?signalFinishURL=foo", "signalFinishURL invalid: "),
            ("?signalFinishURL=/rel", "signalFinishURL invalid: "),
            ("?signalFinishURL=ftp://h/", "signalFinishURL invalid: "),
            ("?signalFinishURL=http://", "signalFinishURL invalid: "),
            ("?signalFinishURL=http://:80/", "signalFinishURL invalid: "),
            ("?signalFinishURL=http://h/%0d%0ax", "signalFinishURL invalid: "),
            (
                "?signalFinishURL=http://h&removeFileWhenFinished=yes",
                "removeFileWhenFinished invalid: ",
            ),
            ("?signalFinishURL=http://h&fileOwnerUid=bob", "fileOwnerUid invalid: "),
            ("?signalFinishURL=http://h&fileOwnerUid=-1", "fileOwnerUid invalid: "),
            ("?signalFinishURL=http://h&fileOwnerUid=4294967295", "fileOwnerUid invalid: "),
            ("?signalFinishURL=http://h&maxSize=1GB", "maxSize invalid: not a number of bytes"),
            ("?signalFinishURL=http://h&maxSize=9007199254740992", "maxSize invalid: "),
            ("?signalFinishURL=http://h&expiresIn=0", "expiresIn invalid: "),
            ("?signalFinishURL=http://h&destDir=a", "destDir invalid: not an absolute path"),
            ("?signalFinishURL=http://h&destDir=/srv/a/../b", "destDir invalid: a path without"),
            ("?signalFinishURL=http://h&destDir=/srv/a/./b", "destDir invalid: a path without"),
            ("?signalFinishURL=http://h&destDir=/srv/a%00", "destDir invalid: not an absolute"),
            ("?signalFinishURL=http://h&destDir=/srv", "destDir invalid: not below one of"),
            ("?signalFinishURL=http://h&destDir=/srv/ab", "destDir invalid: not below one of"),
            ("?signalFinishURL=http://h&destDir=/srv/b", "destDir invalid: not below one of"),
            ("?signalFinishURL=http://h&expiresIn=-1", "expiresIn invalid: "),
            ("?signalFinishURL=x&removeFileWhenFinished=yes&fileOwnerUid=z", "signalFinishURL"),
        ];
        for (query, start) in table {
            let (status, body) = answer(&format!("{NEW}{query}"), "", "");
            assert_eq!(status, 400, "{query}");
            assert!(body.starts_with(start), "{query}: {body}");
        }
        let long = format!("{NEW}?{URL}&backendSecret={}", "x".repeat(5000));
        assert_eq!(answer(&long, "", "").0, 400);
    }

    #[test]
    fn ids() {
        for action in ["cancel", "finish", "retry"] {
            let line = format!("POST /incoming/0.1/backend/{action}_upload");
            assert_eq!(answer(&line, "", ""), (400, "id not given".into()));
            assert_eq!(answer(&format!("{line}?id="), "", ""), (400, "id not given".into()));
            assert_eq!(answer(&format!("{line}?id=x"), "", ""), (400, "id unknown".into()));
            let id = "?id=00112233-4455-6677-8899-aabbccddeeff";
            assert!(matches!(route(&format!("{line}{id}"), "", ""), Route::Backend(_)));
        }
    }

    #[test]
    fn browsers_and_proxies_are_refused() {
        for field in FOREIGN_FIELDS {
            let (status, body) = answer(&format!("{NEW}?{URL}"), &format!("{field}: x\r\n"), "");
            assert_eq!(status, 403);
            assert!(body.contains(field));
            let line = "GET /incoming/0.1/health";
            assert_eq!(answer(line, &format!("{field}: x\r\n"), "").0, 200);
        }
    }

    const UPLOADS: &str = "/incoming/0.1/backend/uploads";
    const BEARER: &str = "Authorization: Bearer 0123456789abcdef\r\n";

    #[test]
    fn with_keys_every_backend_request_needs_one() {
        let lines = [
            format!("{NEW}?{URL}"),
            format!("{}?id=x", NEW.replace("new", "cancel")),
            format!("{}?id=x", NEW.replace("new", "finish")),
            format!("{}?id=x", NEW.replace("new", "retry")),
            format!("GET {UPLOADS}"),
            format!("HEAD {UPLOADS}/x"),
        ];
        for line in &lines {
            let others = ["", "Authorization: Bearer 0123456789abcdee\r\n"];
            for fields in others {
                let Route::Answer(it) = route_with(shop_key(), line, fields, "") else { panic!() };
                assert_eq!(it.status, 401, "{line}");
                assert_eq!(it.header("WWW-Authenticate"), Some("Bearer"));
            }
            match route_with(shop_key(), line, BEARER, "") {
                Route::Answer(it) => assert!(matches!(it.status, 400 | 404), "{line}: {it:?}"),
                Route::Backend(it) => assert_eq!(it.key, shop_key().find("shop")),
                Route::Upload => panic!("{line}"),
            }
        }
        // Browsers have none.
        for path in ["frontend/incoming.js", "health"] {
            let line = format!("GET /incoming/0.1/{path}");
            let Route::Answer(it) = route_with(shop_key(), &line, "", "") else { panic!() };
            assert_eq!(it.status, 200);
        }
    }

    #[test]
    fn questions_need_a_key_and_right_parameters() {
        let (status, body) = answer(&format!("GET {UPLOADS}"), "", "");
        assert_eq!(status, 403);
        assert!(body.contains("set backend_keys") && body.contains("incoming status"), "{body}");
        assert_eq!(answer(&format!("GET {UPLOADS}/x"), "", "").0, 403);
        assert_eq!(answer(&format!("POST {UPLOADS}"), "", "").0, 405);

        let ask = |line: &str| route_with(shop_key(), line, BEARER, "");
        let Route::Answer(it) = ask(&format!("GET {UPLOADS}?limit=0")) else { panic!() };
        assert_eq!((it.status, it.header("Cache-Control")), (400, Some("no-store")));
        let body = String::from_utf8(it.body.to_vec()).unwrap();
        assert!(body.starts_with(r#"{"error":"limit invalid: "#), "{body}");
        let Route::Answer(it) = ask(&format!("GET {UPLOADS}/x")) else { panic!() };
        assert_eq!((it.status, &it.body[..]), (404, &br#"{"error":"id unknown"}"#[..]));

        let Route::Backend(it) = ask(&format!("HEAD {UPLOADS}?limit=7")) else { panic!() };
        let query = Query { limit: 7, ..Query::new() };
        assert_eq!(it.request, BackendRequest::ListUploads(query));
        let id = TicketId(0x11 << 64);
        let Route::Backend(it) = ask(&format!("GET {UPLOADS}/{id}")) else { panic!() };
        assert_eq!(it.request, BackendRequest::ShowUpload { id });
    }
}
