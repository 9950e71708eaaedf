//! What the demo's web app answers.

use std::fs::File;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::{AsyncRead, ReadBuf};

/// A short text, or a file that is read while it is sent.
#[derive(Debug)]
pub(super) enum Content {
    Text(Option<Bytes>),
    File { file: tokio::fs::File, left_bytes: u64 },
}

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Text(text) => Poll::Ready(text.take().map(|it| Ok(Frame::data(it)))),
            Self::File { left_bytes: 0, .. } => Poll::Ready(None),
            Self::File { file, left_bytes } => {
                let mut bytes = vec![0; PIECE_BYTES.min(*left_bytes) as usize];
                let mut buffer = ReadBuf::new(&mut bytes);
                ready!(Pin::new(file).poll_read(context, &mut buffer))?;
                let length = buffer.filled().len();
                if length == 0 {
                    return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
                }
                bytes.truncate(length);
                *left_bytes -= length as u64;
                Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Text(text) => text.as_ref().map_or(0, |it| it.len() as u64),
            Self::File { left_bytes, .. } => *left_bytes,
        })
    }
}

pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Content> {
    with_type(status, "text/plain; charset=utf-8", text.into())
}

pub(super) fn json(text: String) -> Response<Content> {
    with_type(StatusCode::OK, "application/json", text.into())
}

pub(super) fn html(text: String) -> Response<Content> {
    with_type(StatusCode::OK, "text/html; charset=utf-8", text.into())
}

pub(super) fn method_not_allowed(allowed: &'static str) -> Response<Content> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    response.headers_mut().insert(ALLOW, allowed.parse().expect("a constant"));
    response
}

/// A file to keep; it is never shown as a page of this site.
pub(super) fn download(name: &str, file: File, length_bytes: u64) -> Response<Content> {
    let encoded = utf8_percent_encode(name, NON_ALPHANUMERIC);
    let content = Content::File { file: tokio::fs::File::from_std(file), left_bytes: length_bytes };
    Response::builder()
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(CONTENT_DISPOSITION, format!("attachment; filename*=UTF-8''{encoded}"))
        .header(X_CONTENT_TYPE_OPTIONS, "nosniff")
        .body(content)
        .expect("encoded")
}

fn with_type(status: StatusCode, content_type: &'static str, text: Bytes) -> Response<Content> {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .header(CACHE_CONTROL, "no-store")
        .header(X_CONTENT_TYPE_OPTIONS, "nosniff")
        .body(Content::Text(Some(text)))
        .expect("constants")
}

const PIECE_BYTES: u64 = 256 * 1024;
