//! Every route: what it answers, to which methods, with which headers.

use crate::http::Connection;
use crate::server::Setup;

const BACKEND: [&str; 6] = [
    "/incoming/0.1/backend/new_upload",
    "/incoming/0.1/backend/cancel_upload",
    "/incoming/0.1/backend/finish_upload",
    "/incoming/backend/new_upload",
    "/incoming/backend/cancel_upload",
    "/incoming/backend/finish_upload",
];
const FRONTEND: [&str; 5] = [
    "/incoming/0.1/health",
    "/incoming/0.1/frontend/incoming.js",
    "/incoming/frontend/incoming.js",
    "/incoming/0.1/frontend/upload_ws",
    "/incoming/frontend/upload_ws",
];

#[test]
fn health_answers() {
    let server = Setup::default().start();
    let got = server.get("/incoming/0.1/health");
    assert_eq!(got.status, 200);
    let head = server.request("HEAD", "/incoming/0.1/health", &[], "");
    assert_eq!(head.status, 200);
    assert_eq!(head.header("Content-Length"), got.header("Content-Length"));
}

#[test]
fn unknown_paths_are_404() {
    let server = Setup::default().start();
    for target in [
        "/",
        "/incoming",
        "/incoming/",
        "/incoming/0.2/health",
        "/incoming/0.1/health/",
        "/incoming/0.1/backend/new_upload/",
        "/incoming/0.1/backend/New_Upload",
        "/incoming/0.1/frontend/incoming.js.map",
        "/incoming/0.1/frontend/../../../etc/passwd",
        "/incoming/0.1/frontend/%2e%2e/incoming.js",
        "/index.html?a=/incoming/0.1/health",
    ] {
        for method in ["GET", "POST"] {
            let response = server.request(method, target, &[], "");
            // A path with dots may also be pointed at its clean form.
            if target.contains("/../") && response.status == 301 {
                continue;
            }
            response.assert(404, "404 page not found\n");
            assert_eq!(response.header("X-Content-Type-Options"), Some("nosniff"));
            assert_eq!(response.header("Content-Type"), Some("text/plain; charset=utf-8"));
        }
    }
}

#[test]
fn wrong_methods_are_405_with_allow() {
    let server = Setup::default().start();
    for target in BACKEND {
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
            let response = server.request(method, target, &[], "");
            assert_eq!(response.status, 405, "{method} {target}");
            assert!(response.header_lists("Allow", "POST"), "{method} {target}");
            assert!(!response.header_lists("Allow", "GET"), "{method} {target}");
            assert_eq!(response.text(), "", "{method} {target}");
        }
    }
    for target in FRONTEND {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
            let response = server.request(method, target, &[], "");
            assert_eq!(response.status, 405, "{method} {target}");
            assert!(response.header_lists("Allow", "GET"), "{method} {target}");
            assert!(!response.header_lists("Allow", "POST"), "{method} {target}");
        }
    }
}

#[test]
fn there_is_no_cors_on_backend_routes() {
    let server = Setup::default().start();
    for target in BACKEND {
        let response = server.request("OPTIONS", target, &[("Origin", "http://evil.example")], "");
        assert!(response.status >= 400);
        assert_eq!(response.header("Access-Control-Allow-Origin"), None);
    }
}

#[test]
fn backend_routes_refuse_browsers_and_proxies() {
    let server = Setup::default().start();
    for target in BACKEND {
        for name in ["Origin", "Forwarded", "Via", "X-Forwarded-For", "X-Real-IP", "x-real-ip"] {
            let form = "signalFinishURL=http%3A%2F%2F127.0.0.1%3A1%2F&id=x";
            let response = server.request("POST", &format!("{target}?{form}"), &[(name, "x")], "");
            assert_eq!(response.status, 403, "{name} {target}");
            assert_ne!(response.text(), "", "{name} {target}");
        }
    }
}

#[test]
fn frontend_routes_are_for_proxies_too() {
    let server = Setup::default().start();
    for name in ["Origin", "Forwarded", "Via", "X-Forwarded-For", "X-Real-IP"] {
        let target = "/incoming/0.1/frontend/incoming.js";
        assert_eq!(server.request("GET", target, &[(name, "x")], "").status, 200, "{name}");
    }
}

#[test]
fn the_library_is_served_with_validators() {
    let server = Setup::default().start();
    for target in ["/incoming/0.1/frontend/incoming.js", "/incoming/frontend/incoming.js"] {
        let got = server.get(target);
        assert_eq!(got.status, 200);
        assert!(got.text().contains("Uploader"), "{}", got.text());
        assert_eq!(got.header("Content-Type"), Some("text/javascript; charset=utf-8"));
        assert!(got.header_lists("Cache-Control", "max-age=3600"));
        assert_eq!(got.header("Access-Control-Allow-Origin"), Some("*"));
        assert_eq!(got.header("Cross-Origin-Resource-Policy"), Some("cross-origin"));
        assert_eq!(got.header("X-Content-Type-Options"), Some("nosniff"));
        let etag = got.header("ETag").expect("ETag");
        assert!(etag.starts_with('"') && etag.ends_with('"'), "a strong validator: {etag}");
        let modified = got.header("Last-Modified").expect("Last-Modified");
        httpdate::parse_http_date(modified).expect("a date");

        let head = server.request("HEAD", target, &[], "");
        assert_eq!(head.status, 200);
        for name in ["Content-Length", "Content-Type", "ETag", "Last-Modified", "Cache-Control"] {
            assert_eq!(head.header(name), got.header(name), "{name}");
        }
    }
}

#[test]
fn the_library_is_not_sent_again_to_who_has_it() {
    let server = Setup::default().start();
    let target = "/incoming/0.1/frontend/incoming.js";
    let got = server.get(target);
    let etag = got.header("ETag").unwrap();
    let modified = got.header("Last-Modified").unwrap();
    let weak = format!("W/{etag}");
    let listed = format!("\"other\", {etag}");
    let later = "Fri, 01 Jan 2100 00:00:00 GMT";
    let earlier = "Thu, 01 Jan 1970 00:00:00 GMT";
    for (headers, status) in [
        (vec![("If-None-Match", etag)], 304),
        (vec![("If-None-Match", weak.as_str())], 304),
        (vec![("If-None-Match", listed.as_str())], 304),
        (vec![("If-None-Match", "*")], 304),
        (vec![("If-None-Match", "\"other\"")], 200),
        (vec![("If-Modified-Since", modified)], 304),
        (vec![("If-Modified-Since", later)], 304),
        (vec![("If-Modified-Since", earlier)], 200),
        (vec![("If-Modified-Since", "yesterday")], 200),
        // With If-None-Match the date is not looked at (RFC 9110, section 13.1.3).
        (vec![("If-None-Match", "\"other\""), ("If-Modified-Since", modified)], 200),
        (vec![("If-None-Match", etag), ("If-Modified-Since", earlier)], 304),
    ] {
        for method in ["GET", "HEAD"] {
            let response = server.request(method, target, &headers, "");
            assert_eq!(response.status, status, "{method} {headers:?}");
            if status == 304 {
                assert_eq!(response.header("ETag"), Some(etag));
                assert_eq!(response.text(), "");
            }
        }
    }
}

#[test]
fn not_modified_leaves_the_connection_usable() {
    let server = Setup::default().start();
    let mut connection = Connection::open(server.address);
    let target = "GET /incoming/0.1/frontend/incoming.js HTTP/1.1\r\nHost: a\r\n";
    connection.send(format!("{target}If-None-Match: *\r\n\r\n{target}\r\n"));
    assert_eq!(connection.response().status, 304);
    assert_eq!(connection.response().status, 200);
}
