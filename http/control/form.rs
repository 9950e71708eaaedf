//! What a callback says: the form that a web app's backend gets.

use std::os::unix::ffi::OsStrExt;

use engine::handover::{Callback, Outcome};
use form_urlencoded::byte_serialize;

/// The body of a callback, `application/x-www-form-urlencoded`: always the same fields, sorted, and
/// `secret`, which is what web apps of the protocol's first days read instead of `backendSecret`.
/// Only who gave `metadata` gets it back.
pub(super) fn encode(callback: &Callback) -> String {
    let (cancelled, reason, path) = match &callback.outcome {
        Outcome::Arrived { path } => ("no", "", path.as_os_str().as_bytes()),
        Outcome::Cancelled { reason } => ("yes", reason.as_str(), &b""[..]),
    };
    let id = callback.ticket.to_string();
    let secret = callback.backend_secret.as_bytes();
    let fields: [(&str, &[u8]); 8] = [
        ("backendSecret", secret),
        ("cancelReason", reason.as_bytes()),
        ("cancelled", cancelled.as_bytes()),
        // Bytes, because a path need not be UTF-8.
        ("filename", path),
        ("filenameFromBrowser", callback.filename_from_browser.as_bytes()),
        ("id", id.as_bytes()),
        ("metadata", callback.metadata.as_bytes()),
        ("secret", secret),
    ];
    let mut body = String::new();
    for (name, value) in fields {
        if name == "metadata" && value.is_empty() {
            continue;
        }
        if !body.is_empty() {
            body.push('&');
        }
        body.push_str(name);
        body.push('=');
        body.extend(byte_serialize(value));
    }
    body
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::PathBuf;

    use engine::ticket::TicketId;

    use super::*;

    fn callback(outcome: Outcome) -> Callback {
        Callback {
            ticket: TicketId::parse("00112233-4455-6677-8899-aabbccddeeff").unwrap(),
            url: "http://127.0.0.1/".to_owned(),
            backend_secret: "s&=%".to_owned(),
            signing_secret: String::new(),
            metadata: String::new(),
            filename_from_browser: "../Über 1+1.txt\0".to_owned(),
            outcome,
            attempt: 1,
        }
    }

    #[test]
    fn arrived() {
        assert_eq!(
            encode(&callback(Outcome::Arrived { path: PathBuf::from("/a b/c") })),
            "backendSecret=s%26%3D%25&cancelReason=&cancelled=no&filename=%2Fa+b%2Fc\
             &filenameFromBrowser=..%2F%C3%9Cber+1%2B1.txt%00\
             &id=00112233-4455-6677-8899-aabbccddeeff&secret=s%26%3D%25"
        );
    }

    #[test]
    fn cancelled() {
        let body = encode(&callback(Outcome::Cancelled { reason: "no more".to_owned() }));
        assert!(body.contains("&cancelReason=no+more&cancelled=yes&filename=&"), "{body}");
    }

    #[test]
    fn metadata_comes_back_to_who_gave_some() {
        let mut it = callback(Outcome::Cancelled { reason: String::new() });
        assert!(!encode(&it).contains("metadata"));
        it.metadata = "{\"order\": 7}".to_owned();
        let body = encode(&it);
        assert!(body.contains("&metadata=%7B%22order%22%3A+7%7D&secret="), "{body}");
    }

    #[test]
    fn a_path_that_is_not_utf_8_arrives_byte_by_byte() {
        let path = PathBuf::from(OsStr::from_bytes(b"/\xff\xc3\x9c"));
        let body = encode(&callback(Outcome::Arrived { path }));
        assert!(body.contains("&filename=%2F%FF%C3%9C&"), "{body}");
    }

    #[test]
    fn fields_are_sorted() {
        let mut it = callback(Outcome::Cancelled { reason: String::new() });
        it.metadata = "x".to_owned();
        let body = encode(&it);
        let names: Vec<&str> = body.split('&').map(|it| it.split('=').next().unwrap()).collect();
        assert!(names.is_sorted());
    }
}
