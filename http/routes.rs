//! Which request goes where. What a web app's requests must hold: `parameters`.

mod parameters;

use std::path::PathBuf;
use std::sync::Arc;

use engine::ticket::TicketId;
use engine::tickets::TicketError;

use crate::assets::Library;
use crate::codec::params::Params;
use crate::codec::request::{Head, Method};
use crate::codec::response::Response;
use crate::keys::{BackendKeys, KeyId};
use crate::query::{Query, json_error};
pub use parameters::NewUpload;
use parameters::{given, new_upload, secret};

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

#[cfg(test)]
mod tests;
