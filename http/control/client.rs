//! One HTTP request to a web app: a form is posted, redirects are followed, the answer is bounded.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use data_encoding::BASE64;
use engine::handover::{Answer, Outcome};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use url::{Position, Url};

use super::answer::{REPLY_BYTES_MAX, Reply, parse_retry_after};
use super::dial::Dialer;
use super::sign::signature;
use crate::config::format_duration;

/// The HTTP client of the control thread.
///
/// Every request has a connection of its own. Callbacks are few, and a kept connection that the web
/// app's server closes in the same moment makes a request fail for no reason.
pub(super) struct WebClient {
    dialer: Dialer,
}

/// What is posted.
#[derive(Clone, Debug)]
pub(super) struct Post {
    pub(super) url: String,
    pub(super) form: Bytes,
    pub(super) idempotency_key: String,
    pub(super) attempt: u32,
    /// Empty: it is not signed.
    pub(super) secret: String,
    /// Whether the answer's body is waited for.
    pub(super) body_wanted: bool,
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
    TimedOut(Duration),
    Lookup(Arc<io::Error>),
    Connect(io::Error),
    Tls(io::Error),
    Http(hyper::Error),
    Body(Box<dyn Error + Send + Sync>),
}

impl CallError {
    /// Without an answer there will be another try; a URL that leads nowhere is an answer that
    /// will not change.
    pub(super) fn meaning(&self, outcome: &Outcome) -> Answer {
        let error = self.to_string();
        let is_arrival = matches!(outcome, Outcome::Arrived { .. });
        match self {
            _ if self.is_silence() => Answer::Unreached { error, retry_after: None },
            _ if is_arrival => Answer::Refused { error, retry_after: None },
            _ => Answer::Done,
        }
    }

    /// Nobody has answered.
    pub(super) fn is_silence(&self) -> bool {
        match self {
            Self::UrlRelative
            | Self::UrlInvalid(_)
            | Self::UrlNotHttp
            | Self::RedirectToPlain
            | Self::RedirectsTooMany => false,
            Self::RootCertificatesMissing
            | Self::TimedOut(_)
            | Self::Lookup(_)
            | Self::Connect(_)
            | Self::Tls(_)
            | Self::Http(_)
            | Self::Body(_) => true,
        }
    }
}

impl WebClient {
    /// `own_ca`: who may vouch for web apps beside the authorities that this system trusts.
    pub(super) fn new(own_ca: &[CertificateDer<'static>]) -> Self {
        Self { dialer: Dialer::new(own_ca) }
    }

    /// Posts a form. The time that all of it may take is the caller's business: dropping the future
    /// ends the request and closes its sockets.
    pub(super) async fn post(&self, post: &Post) -> Result<Reply, CallError> {
        let mut url = parse_url(&post.url)?;
        let mut form_kept = true;
        for _ in 0..=REDIRECTS_MAX {
            match self.send(post, &url, form_kept).await? {
                Step::Reply(it) => return Ok(it),
                Step::Redirect { target, with_form } => {
                    url = target;
                    form_kept &= with_form;
                }
            }
        }
        Err(CallError::RedirectsTooMany)
    }

    async fn send(&self, post: &Post, url: &Url, with_form: bool) -> Result<Step, CallError> {
        let request = request(post, url, with_form)?;
        let stream = self.dialer.open(url).await?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES_MAX);
        let handshake = builder.handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(CallError::Http)?;
        let exchange = async move {
            let response = sender.send_request(request).await.map_err(CallError::Http)?;
            match redirect(url, &response)? {
                Some((target, with_form)) => Ok(Step::Redirect { target, with_form }),
                None => Ok(Step::Reply(reply(response, post.body_wanted).await?)),
            }
        };
        let mut exchange = std::pin::pin!(exchange);
        // Both in this future, so that nothing of a call is left when it is dropped.
        tokio::select! {
            biased;
            step = &mut exchange => return step,
            // The web app has closed. If that was an error, the exchange hears of it.
            _ = connection => {}
        }
        exchange.await
    }
}

/// What came of one request.
enum Step {
    Reply(Reply),
    Redirect { target: Url, with_form: bool },
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
fn request(post: &Post, url: &Url, with_form: bool) -> Result<Request<Full<Bytes>>, CallError> {
    let body = if with_form { post.form.clone() } else { Bytes::new() };
    let mut builder = Request::builder()
        .method(if with_form { Method::POST } else { Method::GET })
        .uri(&url[Position::BeforePath..Position::AfterQuery])
        .header(HOST, &url[Position::BeforeHost..Position::AfterPort])
        .header(USER_AGENT, USER_AGENT_VALUE)
        .header(CONNECTION, "close")
        .header("idempotency-key", &post.idempotency_key)
        .header("incoming-attempt", post.attempt);
    if !post.secret.is_empty() {
        let signature = signature(&post.secret, SystemTime::now(), &body);
        builder = builder.header("incoming-signature", signature);
    }
    if let Some(credentials) = basic_credentials(url) {
        builder = builder.header(AUTHORIZATION, credentials);
    }
    if with_form {
        builder = builder.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    }
    // What `Url` lets through and the request's own grammar does not.
    builder
        .body(Full::new(body))
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
                "this system has no root certificates for https; install ca-certificates, or set \
                 callback_ca, and start again",
            ),
            Self::TimedOut(after) => write!(f, "no answer within {}", format_duration(*after)),
            Self::Lookup(error) => write!(f, "the host name has no address: {error}"),
            Self::Connect(error) => write!(f, "no connection: {error}"),
            Self::Tls(error) => write!(f, "no TLS session: {error}"),
            Self::Http(error) => write_chain(f, error),
            Self::Body(error) => write_chain(f, error.as_ref()),
        }
    }
}

/// The reason stands at the end of the chain.
fn write_chain(f: &mut fmt::Formatter<'_>, error: &(dyn Error + 'static)) -> fmt::Result {
    write!(f, "{error}")?;
    let mut source = error.source();
    while let Some(it) = source {
        write!(f, ": {it}")?;
        source = it.source();
    }
    Ok(())
}

/// More than any answer's head needs.
const HEAD_BYTES_MAX: usize = 64 << 10;
const REDIRECTS_MAX: usize = 5;
const USER_AGENT_VALUE: &str = concat!("incoming/", env!("CARGO_PKG_VERSION"));
