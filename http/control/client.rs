//! One HTTP request to a web app: a form is posted, redirects are followed, the answer is bounded.

use std::error::Error;
use std::fmt;
use std::time::SystemTime;

use bytes::Bytes;
use data_encoding::BASE64;
use engine::handover::{Answer, Outcome};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use url::Url;

use super::answer::{REPLY_BYTES_MAX, Reply, parse_retry_after};

/// The HTTP client of the control thread.
///
/// Every request has a connection of its own. Callbacks are few, and a kept connection that the web
/// app's server closes in the same moment makes a request fail for no reason.
#[derive(Debug)]
pub(super) struct WebClient {
    plain: Client<HttpConnector, Full<Bytes>>,
    /// `None` if this system has no root certificates.
    tls: Option<Client<HttpsConnector<HttpConnector>, Full<Bytes>>>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum CallError {
    UrlRelative,
    UrlInvalid(url::ParseError),
    UrlNotHttp,
    /// From `https:` to `http:`; the secret would be readable on the way.
    RedirectToPlain,
    RedirectsTooMany,
    RootCertificatesMissing,
    Transport(hyper_util::client::legacy::Error),
    Body(Box<dyn Error + Send + Sync>),
}

impl CallError {
    /// Without an answer there will be another try; a URL that leads nowhere is an answer that
    /// will not change.
    pub(super) fn meaning(&self, outcome: &Outcome) -> Answer {
        let error = self.to_string();
        let is_arrival = matches!(outcome, Outcome::Arrived { .. });
        match self {
            Self::RootCertificatesMissing | Self::Transport(_) | Self::Body(_) => {
                Answer::Unreached { error, retry_after: None }
            }
            _ if is_arrival => Answer::Refused { error, retry_after: None },
            _ => Answer::Done,
        }
    }
}

impl WebClient {
    pub(super) fn new() -> Self {
        let connector = || {
            let mut it = HttpConnector::new();
            it.enforce_http(false);
            it.set_nodelay(true);
            it
        };
        let tls = HttpsConnectorBuilder::new()
            .with_native_roots()
            .ok()
            .map(|it| it.https_or_http().enable_http1().wrap_connector(connector()));
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_max_idle_per_host(0);
        Self { plain: builder.build(connector()), tls: tls.map(|it| builder.build(it)) }
    }

    /// Posts `form`. The time that all of it may take is the caller's business: dropping the future
    /// ends the request. Without `body_wanted` the answer's body is not waited for.
    pub(super) async fn post(
        &self,
        url: &str,
        form: String,
        body_wanted: bool,
    ) -> Result<Reply, CallError> {
        let mut url = parse_url(url)?;
        let mut form = Some(Bytes::from(form));
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send(request(&url, form.clone())?).await?;
            let Some((target, form_kept)) = redirect(&url, &response)? else {
                return reply(response, body_wanted).await;
            };
            url = target;
            if !form_kept {
                form = None;
            }
        }
        Err(CallError::RedirectsTooMany)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, CallError> {
        let sent = if request.uri().scheme_str() == Some("https") {
            let tls = self.tls.as_ref().ok_or(CallError::RootCertificatesMissing)?;
            tls.request(request).await
        } else {
            self.plain.request(request).await
        };
        sent.map_err(CallError::Transport)
    }
}

fn parse_url(text: &str) -> Result<Url, CallError> {
    let mut url = Url::parse(text).map_err(|error| match error {
        url::ParseError::RelativeUrlWithoutBase => CallError::UrlRelative,
        other => CallError::UrlInvalid(other),
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(CallError::UrlNotHttp);
    }
    url.set_fragment(None);
    Ok(url)
}

/// A POST with the form, or a GET if a redirect has taken the form away.
fn request(url: &Url, form: Option<Bytes>) -> Result<Request<Full<Bytes>>, CallError> {
    let mut target = url.clone();
    // Both fail only for URLs that cannot have a user, and those of http can.
    let _ = target.set_username("");
    let _ = target.set_password(None);
    let mut builder = Request::builder()
        .method(if form.is_some() { Method::POST } else { Method::GET })
        .uri(target.as_str())
        .header(USER_AGENT, USER_AGENT_VALUE)
        .header(CONNECTION, "close");
    if let Some(credentials) = basic_credentials(url) {
        builder = builder.header(AUTHORIZATION, credentials);
    }
    if form.is_some() {
        builder = builder.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    }
    // What `Url` lets through and the request's own grammar does not.
    builder
        .body(Full::new(form.unwrap_or_default()))
        .map_err(|_| CallError::UrlInvalid(url::ParseError::InvalidDomainCharacter))
}

/// A user and a password in the URL are sent as RFC 7617 says.
fn basic_credentials(url: &Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let decode = |text| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
    let mut plain = decode(url.username());
    plain.push(b':');
    plain.extend(decode(url.password().unwrap_or("")));
    let mut value = HeaderValue::try_from(format!("Basic {}", BASE64.encode(&plain))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Where a redirect leads and whether the form goes there too (RFC 9110, section 15.4). A redirect
/// without a usable target is an answer like any other.
fn redirect(from: &Url, response: &Response<Incoming>) -> Result<Option<(Url, bool)>, CallError> {
    let form_kept = match response.status() {
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => false,
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
        _ => return Ok(None),
    };
    let location = response.headers().get(LOCATION);
    let Some(location) = location.and_then(|it| std::str::from_utf8(it.as_bytes()).ok()) else {
        return Ok(None);
    };
    let target = parse_url(from.join(location).map_err(CallError::UrlInvalid)?.as_str())?;
    if from.scheme() == "https" && target.scheme() == "http" {
        return Err(CallError::RedirectToPlain);
    }
    Ok(Some((target, form_kept)))
}

async fn reply(response: Response<Incoming>, body_wanted: bool) -> Result<Reply, CallError> {
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|it| it.to_str().ok());
    let retry_after = retry_after.and_then(|it| parse_retry_after(it, SystemTime::now()));
    if !body_wanted {
        return Ok(Reply { status, body: Some(Vec::new()), retry_after });
    }
    let body = match Limited::new(response.into_body(), REPLY_BYTES_MAX).collect().await {
        Ok(it) => Some(it.to_bytes().to_vec()),
        Err(error) if error.is::<LengthLimitError>() => None,
        Err(error) => return Err(CallError::Body(error)),
    };
    Ok(Reply { status, body, retry_after })
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UrlRelative => f.write_str(
                "the URL has no scheme and host; signalFinishURL must be like http://app/path",
            ),
            Self::UrlInvalid(error) => write!(f, "the URL is invalid: {error}"),
            Self::UrlNotHttp => f.write_str("the URL is neither http nor https"),
            Self::RedirectToPlain => f.write_str("refused to follow a redirect from https to http"),
            Self::RedirectsTooMany => write!(f, "more than {REDIRECTS_MAX} redirects"),
            Self::RootCertificatesMissing => f.write_str(
                "this system has no root certificates for https; install ca-certificates and \
                 start again",
            ),
            Self::Transport(error) => write_chain(f, error),
            Self::Body(error) => write_chain(f, error.as_ref()),
        }
    }
}

/// The reason stands at the end of the chain: "connection refused", not "client error".
fn write_chain(f: &mut fmt::Formatter<'_>, error: &(dyn Error + 'static)) -> fmt::Result {
    write!(f, "{error}")?;
    let mut source = error.source();
    while let Some(it) = source {
        write!(f, ": {it}")?;
        source = it.source();
    }
    Ok(())
}

const REDIRECTS_MAX: usize = 5;
const USER_AGENT_VALUE: &str = concat!("incoming/", env!("CARGO_PKG_VERSION"));
