//! The files that the server hosts for pages.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::SystemTime;

use bytes::Bytes;

use crate::codec::request::Head;
use crate::codec::response::{Response, http_date};

/// `incoming.js`, and what caches may know of it.
#[derive(Clone, Debug)]
pub struct Library {
    etag: String,
    last_modified: String,
}

impl Library {
    /// `modified`: when the library came to this server, such as the time of the executable.
    pub fn new(modified: SystemTime) -> Self {
        let mut hasher = DefaultHasher::new();
        SOURCE.hash(&mut hasher);
        Self { etag: format!("\"{:016x}\"", hasher.finish()), last_modified: http_date(modified) }
    }

    /// Answers GET and HEAD, also conditional ones (RFC 9110 section 13). Pages of other origins
    /// may load it, with integrity checks and in isolated contexts too.
    pub fn response(&self, head: &Head) -> Response {
        let response = if self.is_fresh(head) {
            Response::empty(304)
        } else {
            let source = Bytes::from_static(SOURCE.as_bytes());
            Response::with_type(200, "text/javascript; charset=utf-8", source)
        };
        response
            .with_header("ETag", self.etag.as_str())
            .with_header("Last-Modified", self.last_modified.as_str())
            .with_header("Cache-Control", "max-age=3600")
            .with_header("Access-Control-Allow-Origin", "*")
            .with_header("Cross-Origin-Resource-Policy", "cross-origin")
            .with_header("X-Content-Type-Options", "nosniff")
    }

    fn is_fresh(&self, head: &Head) -> bool {
        if head.header("if-none-match").is_some() {
            let mut tags = head.headers("if-none-match").flat_map(|it| it.split(','));
            return tags.any(|it| {
                let tag = it.trim();
                tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag
            });
        }
        let since =
            head.header("if-modified-since").and_then(|it| httpdate::parse_http_date(it).ok());
        let modified = httpdate::parse_http_date(&self.last_modified).ok();
        since.zip(modified).is_some_and(|(since, modified)| modified <= since)
    }
}

const SOURCE: &str = include_str!("../js/incoming.js");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::request::parse_head;

    fn status(fields: &str) -> u16 {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let (head, _) = parse_head(text.as_bytes(), &Default::default()).unwrap().unwrap();
        library().response(&head).status
    }

    fn library() -> Library {
        Library::new(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000))
    }

    #[test]
    fn conditional_requests() {
        let etag = library().etag;
        assert_eq!(status(""), 200);
        assert_eq!(status(&format!("If-None-Match: {etag}\r\n")), 304);
        assert_eq!(status(&format!("If-None-Match: \"x\", W/{etag}\r\n")), 304);
        assert_eq!(status("If-None-Match: *\r\n"), 304);
        assert_eq!(status("If-None-Match: \"x\"\r\n"), 200);
        assert_eq!(status("If-Modified-Since: Sun, 09 Sep 2001 01:46:40 GMT\r\n"), 304);
        assert_eq!(status("If-Modified-Since: Sun, 09 Sep 2001 01:46:39 GMT\r\n"), 200);
        assert_eq!(status("If-Modified-Since: yesterday\r\n"), 200);
        let both = "If-None-Match: \"x\"\r\nIf-Modified-Since: Sun, 09 Sep 2001 01:46:40 GMT\r\n";
        assert_eq!(status(both), 200, "the tag decides");
    }
}
