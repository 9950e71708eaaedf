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
    let more =
        format!("{NEW}?{URL}&maxSize=9007199254740991&expiresIn=60&metadata=a%26b&signingSecret=k");
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
