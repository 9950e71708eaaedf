//! Keeps the house tidy: floors, the kernel's edge, `unsafe`, lengths, leftovers.
//!
//! It reads the sources as text. Each rule has a test that gives it a bad source and sees it
//! complain, so that a rule which no longer works does not pass for a tidy house.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Which floor a file stands on: the file of that name and the directory of that name.
const FLOORS: &[(&str, u8)] = &[
    ("engine/buffer", 0),
    ("engine/durability", 0),
    ("engine/error", 0),
    ("engine/limits", 0),
    ("engine/mask", 0),
    ("engine/op", 0),
    ("engine/handover", 1),
    ("engine/outbox", 1),
    ("engine/pool", 1),
    ("engine/record", 1),
    ("engine/service", 1),
    ("engine/ticket", 1),
    ("engine/timer", 1),
    ("engine/upload", 1),
    ("engine/journal", 2),
    ("engine/store", 2),
    ("engine/tickets", 2),
    ("engine/driver", 3),
    ("http/codec", 4),
    ("http/assets", 5),
    ("http/connection", 5),
    ("http/dialect", 5),
    ("http/keys", 5),
    ("http/mail", 5),
    ("http/query", 5),
    ("http/routes", 5),
    ("http/worker", 6),
    ("http/config", 7),
    ("http/control", 7),
    ("http/server", 7),
    ("http/cli", 8),
    ("http/demo", 8),
    ("http/main", 8),
];

/// What stands outside: the list of modules.
const ROOTS: &[&str] = &["engine/lib.rs", "http/lib.rs"];

/// From which floors a file may import (index: its own floor). Never from above. The drivers
/// (floor 3) are seen by those only who choose one.
const IMPORTS: [&[u8]; 9] = [
    &[0],
    &[0, 1],
    &[0, 1, 2],
    &[0, 3],
    &[0, 4],
    &[0, 1, 2, 4, 5],
    &[0, 1, 2, 4, 5, 6],
    &[0, 1, 2, 3, 4, 5, 6, 7],
    &[0, 1, 2, 3, 4, 5, 6, 7, 8],
];

/// Which libraries a floor may use beside `core`, `alloc` and `std`; floors that are not listed may
/// use them all.
const LIBRARIES: &[(u8, &[&str])] = &[
    (0, &["bytes"]),
    (1, &["bytes"]),
    (2, &["bytes"]),
    (4, &["bytes", "form_urlencoded", "httparse", "httpdate", "tungstenite"]),
    (5, &["bytes", "httpdate", "serde", "serde_json"]),
    (6, &["bytes", "httpdate", "tracing"]),
];

/// Who may use one library more than its floor.
const LIBRARY_EXCEPTIONS: &[(&str, &str)] =
    &[("engine/buffer", "rustix"), ("engine/journal", "crc32c")];

/// Client libraries with a runtime of their own: on the control thread, and in the demo's web app.
const RUNTIME_LIBRARIES: &[&str] =
    &["http_body_util", "hyper", "hyper_util", "tokio", "tokio_rustls"];
const RUNTIME_PLACES: &[&str] = &["engine/driver", "http/control", "http/demo"];

/// Floors that talk to the kernel, or may do what std offers.
const KERNEL_FLOORS: &[u8] = &[3, 7, 8];

/// What the other floors may not call.
const KERNEL_PATHS: &[&str] = &[
    "std::env",
    "std::fs",
    "std::io::stderr",
    "std::io::stdin",
    "std::io::stdout",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
];

/// The Date of responses is the one thing that a core asks a clock for by itself.
const KERNEL_EXCEPTIONS: &[(&str, &str)] = &[("http/worker", "SystemTime::now")];

const UNSAFE_PLACES: &[&str] = &["engine/buffer", "engine/driver", "engine/mask"];

const FILE_LINES_MAX: usize = 700;
const FUNCTION_LINES_MAX: usize = 100;

/// Never in a text of the project. Split, so that this file is not its own first finding.
const LEFTOVERS: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("/ro", "ot/."), concat!("/wo", "rk/")];

/// A text of the project. The path is relative to the root.
struct Text {
    path: String,
    content: String,
}

/// The complaints about all sources, each with file, line, rule and remedy.
fn complaints(texts: &[Text], libraries: &BTreeSet<String>) -> Vec<String> {
    let sources: Vec<&Text> = texts.iter().filter(|it| is_source(&it.path)).collect();
    let modules: BTreeMap<String, &str> =
        sources.iter().map(|it| (module_of(&it.path), it.path.as_str())).collect();
    let mut found = Vec::new();
    for source in &sources {
        let code = product_code(&source.content);
        let Some(floor) = floor_of(&source.path) else {
            if !ROOTS.contains(&source.path.as_str()) {
                found.push(format!("{}: has no floor; give it one in FLOORS", source.path));
            }
            continue;
        };
        check_declared(source, &sources, &mut found);
        check_unsafe(source, &code, &mut found);
        check_lengths(source, &code, &mut found);
        for (line, path) in paths(&code) {
            let mut complain = |what: String| {
                found.push(format!("{}:{line}: {what}", source.path));
            };
            check_import(source, floor, &path, &modules, &mut complain);
            check_library(source, floor, &path, libraries, &mut complain);
            check_kernel(source, floor, &path, &mut complain);
        }
    }
    for text in texts {
        for (index, line) in text.content.lines().enumerate() {
            for leftover in LEFTOVERS.iter().filter(|it| line.contains(**it)) {
                found.push(format!("{}:{}: holds {leftover:?}", text.path, index + 1));
            }
        }
    }
    found
}

fn check_import(
    source: &Text,
    floor: u8,
    path: &[String],
    modules: &BTreeMap<String, &str>,
    complain: &mut impl FnMut(String),
) {
    let Some(module) = resolve(&module_of(&source.path), path) else { return };
    let target = (1..=module.len()).rev().find_map(|it| modules.get(&module[..it].join("::")));
    let Some(target) = target.filter(|it| !ROOTS.contains(*it)) else {
        return complain(format!("`{}` does not name a module", path.join("::")));
    };
    let Some(other) = floor_of(target) else { return };
    if !IMPORTS[usize::from(floor)].contains(&other) {
        complain(format!("floor {floor} imports {target} from floor {other}"));
    }
}

fn check_library(
    source: &Text,
    floor: u8,
    path: &[String],
    libraries: &BTreeSet<String>,
    complain: &mut impl FnMut(String),
) {
    let library = path[0].as_str();
    if path.len() < 2 || !libraries.contains(library) {
        return;
    }
    let excepted =
        LIBRARY_EXCEPTIONS.iter().any(|it| stands_in(&source.path, it.0) && it.1 == library);
    let allowed = LIBRARIES.iter().find(|it| it.0 == floor);
    if allowed.is_some_and(|it| !it.1.contains(&library)) && !excepted {
        complain(format!("floor {floor} does not use the library {library}"));
    }
    let runtime_place = RUNTIME_PLACES.iter().any(|it| stands_in(&source.path, it));
    if RUNTIME_LIBRARIES.contains(&library) && !runtime_place {
        complain(format!("{library} is for {RUNTIME_PLACES:?} only"));
    }
}

fn check_kernel(source: &Text, floor: u8, path: &[String], complain: &mut impl FnMut(String)) {
    if KERNEL_FLOORS.contains(&floor) {
        return;
    }
    let path = path.join("::");
    for banned in KERNEL_PATHS {
        let found = match banned.strip_prefix("std::") {
            Some(_) => path == *banned || path.starts_with(&format!("{banned}::")),
            None => path == *banned || path.ends_with(&format!("::{banned}")),
        };
        let excepted =
            KERNEL_EXCEPTIONS.iter().any(|it| stands_in(&source.path, it.0) && it.1 == *banned);
        if found && !excepted {
            complain(format!("floor {floor} is inert, but uses {banned}"));
        }
    }
}

fn check_unsafe(source: &Text, code: &str, found: &mut Vec<String>) {
    if UNSAFE_PLACES.iter().any(|it| stands_in(&source.path, it)) {
        return;
    }
    for (index, line) in code.lines().enumerate() {
        if words(line).any(|it| it == "unsafe") {
            let at = index + 1;
            found.push(format!("{}:{at}: `unsafe` is for {UNSAFE_PLACES:?}", source.path));
        }
    }
}

fn check_lengths(source: &Text, code: &str, found: &mut Vec<String>) {
    let line_count = code.lines().count();
    if line_count > FILE_LINES_MAX {
        found.push(format!("{}: {line_count} lines; more than {FILE_LINES_MAX}", source.path));
    }
    let lines: Vec<&str> = code.lines().collect();
    for (start, line) in lines.iter().enumerate() {
        if !words(line).any(|it| it == "fn") {
            continue;
        }
        // What rustfmt has formatted ends where a brace stands below the line that began it.
        let indent = line.len() - line.trim_start().len();
        let end = format!("{}}}", " ".repeat(indent));
        let length =
            lines[start..].iter().position(|it| it.trim_end() == end).map_or(0, |it| it + 1);
        let bodiless = lines[start..].iter().find(|it| it.contains(['{', ';']));
        if bodiless.is_none_or(|it| it.contains('{')) && length > FUNCTION_LINES_MAX {
            let at = start + 1;
            found.push(format!(
                "{}:{at}: function of {length} lines; more than {FUNCTION_LINES_MAX}",
                source.path
            ));
        }
    }
}

/// A file that no `mod` names is not compiled, and rots.
fn check_declared(source: &Text, sources: &[&Text], found: &mut Vec<String>) {
    if source.path == "http/main.rs" {
        return;
    }
    let module = module_of(&source.path);
    let (parent, name) = module.rsplit_once("::").expect("a file outside the roots has a parent");
    let declaration = format!("mod {name};");
    let declared = sources.iter().any(|it| {
        (module_of(&it.path) == parent || it.path == "http/main.rs" && parent == "http")
            && it.content.lines().any(|line| line.trim_end().ends_with(&declaration))
    });
    if !declared {
        found.push(format!("{}: no `{declaration}` names it", source.path));
    }
}

/// What becomes part of the product. Tests in files of their own may do what tests do.
fn is_source(path: &str) -> bool {
    let is_ours = path.starts_with("engine/") || path.starts_with("http/");
    let is_test = path.ends_with("/tests.rs") || path.contains("/tests/");
    path.ends_with(".rs") && is_ours && !is_test
}

fn floor_of(path: &str) -> Option<u8> {
    FLOORS.iter().find(|it| stands_in(path, it.0)).map(|it| it.1)
}

fn stands_in(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|it| it == ".rs" || it.starts_with('/'))
}

/// `engine/store/part.rs` is `engine::store::part`; roots are `engine` and `http`.
fn module_of(path: &str) -> String {
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let path = path.strip_suffix("/lib").or(path.strip_suffix("/mod")).unwrap_or(path);
    path.replace('/', "::")
}

/// The full path of an import from our own crates; `None` for everything else.
fn resolve(module: &str, path: &[String]) -> Option<Vec<String>> {
    let own = |count: usize| {
        let parts: Vec<String> = module.split("::").map(str::to_owned).collect();
        parts[..parts.len().saturating_sub(count).max(1)].to_vec()
    };
    if path.len() < 2 {
        return None;
    }
    let supers = path.iter().take_while(|it| *it == "super").count();
    let (mut full, rest) = match path[0].as_str() {
        "crate" => (vec![module.split("::").next()?.to_owned()], 1),
        "engine" => (vec!["engine".to_owned()], 1),
        "incoming" => (vec!["http".to_owned()], 1),
        "super" => (own(supers), supers),
        _ => return None,
    };
    full.extend_from_slice(&path[rest..]);
    Some(full)
}

/// The code without comments, without what stands in literals, and without the tests at its end.
fn product_code(text: &str) -> String {
    let blank = |from: &str| -> String {
        from.chars().map(|it| if it == '\n' { '\n' } else { ' ' }).collect()
    };
    let mut code = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let in_word = code.ends_with(|it: char| it.is_alphanumeric() || it == '_');
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |it| it + 2),
            '"' => string_length(rest),
            'r' if !in_word && raw_hashes(rest).is_some() => {
                let end = format!("\"{}", "#".repeat(raw_hashes(rest).unwrap_or(0)));
                let body = rest.find('"').unwrap_or(0) + 1;
                rest[body..].find(&end).map_or(rest.len(), |it| body + it + end.len())
            }
            '\'' => char_length(rest),
            _ => 0,
        };
        if length == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.push_str(&blank(&rest[..length]));
            rest = &rest[length..];
        }
    }
    let tests = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
    code.truncate(tests);
    code
}

fn string_length(rest: &str) -> usize {
    let mut escaped = false;
    for (at, it) in rest.char_indices().skip(1) {
        match it {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// `'a'` and `'\n'`, but not the lifetime `'a`.
fn char_length(rest: &str) -> usize {
    let mut after = rest.char_indices().skip(1);
    match after.next() {
        Some((_, '\\')) => rest[3..].find('\'').map_or(0, |it| it + 4),
        Some(_) => after.next().filter(|it| it.1 == '\'').map_or(0, |it| it.0 + 1),
        None => 0,
    }
}

fn raw_hashes(rest: &str) -> Option<usize> {
    let after = rest[1..].trim_start_matches('#');
    after.starts_with('"').then(|| rest.len() - 1 - after.len())
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|it: char| !it.is_alphanumeric() && it != '_').filter(|it| !it.is_empty())
}

/// Every path with `::` in it, groups of a `use` taken apart, with its line.
fn paths(code: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut path: Vec<String> = Vec::new();
    // What stands before each open brace of a group.
    let mut groups: Vec<Vec<String>> = Vec::new();
    let mut rest = code;
    let mut joined = false;
    while let Some(first) = rest.chars().next() {
        let mut length = first.len_utf8();
        if first.is_alphanumeric() || first == '_' {
            length = rest.find(|it: char| !it.is_alphanumeric() && it != '_').unwrap_or(rest.len());
            if !joined {
                path = groups.last().cloned().unwrap_or_default();
            }
            path.push(rest[..length].to_owned());
            joined = false;
            if !rest[length..].starts_with("::") && path.len() > 1 {
                found.push((line, path.clone()));
            }
        } else if rest.starts_with("::") {
            length = 2;
            joined = true;
        } else if first == '{' && joined {
            groups.push(path.clone());
            joined = false;
        } else {
            if first == '*' && joined {
                found.push((line, path.clone()));
            } else if first == '{' && !groups.is_empty() {
                groups.push(Vec::new());
            } else if first == '}' {
                groups.pop();
            } else if first == '\n' {
                line += 1;
            }
            joined = joined && first.is_whitespace();
        }
        rest = &rest[length..];
    }
    found
}

/// The names under `[dependencies]`, as code writes them.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let section = manifest.split("\n[").find(|it| it.starts_with("dependencies]")).unwrap_or("");
    section
        .lines()
        .filter_map(|it| it.split_once(" = "))
        .map(|it| it.0.replace('-', "_"))
        .filter(|it| it != "engine" && !it.starts_with('#'))
        .collect()
}

fn read_texts(directory: &Path, root: &Path, texts: &mut Vec<Text>) {
    for entry in fs::read_dir(directory).expect("a directory of the project") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let skipped = ["target", "node_modules", "__pycache__", "uploads", "storage", "corpus"];
        if name.starts_with('.') || skipped.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            read_texts(&path, root, texts);
        } else if let Ok(content) = fs::read_to_string(&path) {
            let path = path.strip_prefix(root).expect("below the root");
            let path = path.to_string_lossy().into_owned();
            if path != "Cargo.toml" && path != "Cargo.lock" {
                texts.push(Text { path, content });
            }
        }
    }
}

#[test]
fn house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = Vec::new();
    read_texts(root, root, &mut texts);
    assert!(texts.iter().filter(|it| is_source(&it.path)).count() > 10, "sources not found");
    let mut libraries = BTreeSet::new();
    for manifest in ["Cargo.toml", "engine/Cargo.toml"] {
        libraries.append(&mut dependencies(&fs::read_to_string(root.join(manifest)).unwrap()));
    }
    assert!(libraries.contains("tokio") && libraries.contains("io_uring"));
    let found = complaints(&texts, &libraries);
    assert!(found.is_empty(), "{} complaints:\n{}", found.len(), found.join("\n"));
}

/// Complaints about one bad file, in a house that is otherwise tidy.
fn complaints_about(path: &str, content: &str) -> Vec<String> {
    let text =
        |path: &str, content: &str| Text { path: path.to_owned(), content: content.to_owned() };
    let mut texts = vec![
        text(
            "engine/lib.rs",
            "pub mod op;\npub mod mask;\npub mod store;\npub mod upload;\npub mod driver;",
        ),
        text("engine/op.rs", ""),
        text("engine/store.rs", "mod part;"),
        text("engine/driver/mod.rs", "mod monoio;\n"),
        text(
            "http/lib.rs",
            "pub mod codec;\npub mod worker;\npub mod server;\npub mod connection;",
        ),
        text("http/codec/mod.rs", "pub mod frame;"),
    ];
    texts.retain(|it| it.path != path);
    texts.push(text(path, content));
    let libraries = ["tokio", "rustix", "bytes", "tracing"].map(str::to_owned).into();
    complaints(&texts, &libraries)
}

#[track_caller]
fn assert_complaint(path: &str, content: &str, expected: &str) {
    let found = complaints_about(path, content);
    assert!(found.len() == 1 && found[0].contains(expected), "{expected:?} expected: {found:?}");
}

#[test]
fn upward_import_is_found_however_it_is_written() {
    let expected = "engine/upload.rs:1: floor 1 imports engine/store.rs from floor 2";
    for content in [
        "use crate::store::Store;",
        "use crate::{op::Op, store::{Store, StoreEvent}};",
        "pub(crate) use super::store::Store as Other;",
        "use crate::store::*;",
        "fn f(it: &crate::store::Store) {}",
    ] {
        assert!(
            complaints_about("engine/upload.rs", content).iter().all(|it| it == expected)
                && !complaints_about("engine/upload.rs", content).is_empty(),
            "{content}: {:?}",
            complaints_about("engine/upload.rs", content)
        );
    }
    let second_line = complaints_about("engine/upload.rs", "use crate::{\n    store::Store,\n};");
    assert_eq!(second_line, ["engine/upload.rs:2: floor 1 imports engine/store.rs from floor 2"]);
}

#[test]
fn drivers_are_out_of_sight_of_the_logic() {
    assert_complaint("http/worker.rs", "use engine::driver::run;", "from floor 3");
    assert_complaint("http/codec/frame.rs", "use engine::store::Store;", "from floor 2");
    assert_complaint("engine/driver/monoio.rs", "use crate::store::Store;", "from floor 2");
    assert_eq!(complaints_about("http/server.rs", "use engine::driver::run;"), [""; 0]);
}

#[test]
fn imports_from_below_and_beside_are_fine() {
    for (path, content) in [
        ("engine/store.rs", "mod part;\nuse crate::op::{Op, Token};"),
        ("engine/store/part.rs", "use super::Store;\nuse super::super::op::Op;"),
        ("http/connection.rs", "use engine::store::Store;\nuse crate::codec::frame::Decoder;"),
        ("engine/upload.rs", "//! [`crate::store`]\nconst A: &str = \"crate::store::Store\";"),
        ("engine/upload.rs", "#[cfg(test)]\nmod tests {\n    use crate::store::Store;\n}\n"),
    ] {
        assert_eq!(complaints_about(path, content), [""; 0], "{path}: {content}");
    }
}

#[test]
fn import_without_a_module_is_found() {
    assert_complaint("engine/upload.rs", "use crate::Everything;", "does not name a module");
}

#[test]
fn foreign_library_is_found() {
    assert_complaint("engine/upload.rs", "use rustix::fs::open;", "the library rustix");
    assert_complaint("http/server.rs", "fn f() { tokio::spawn(x) }", "tokio is for");
    assert_eq!(complaints_about("http/worker.rs", "use tracing::info;"), [""; 0]);
}

#[test]
fn kernel_call_in_the_logic_is_found() {
    assert_complaint("engine/store.rs", "use std::{fs::File, mem};", "is inert");
    assert_complaint("http/connection.rs", "fn f() { let it = Instant::now(); }", "is inert");
    assert_complaint("http/worker.rs", "use std::net::TcpStream;", "is inert");
    assert_eq!(complaints_about("http/worker.rs", "use std::net::SocketAddr;"), [""; 0]);
}

#[test]
fn unsafe_outside_its_places_is_found() {
    assert_complaint("engine/store.rs", "fn f() {\n    unsafe { g() }\n}", "engine/store.rs:2");
    assert_eq!(complaints_about("engine/mask.rs", "unsafe fn f() {}"), [""; 0]);
    assert_eq!(complaints_about("engine/store.rs", "// unsafe\n#![deny(unsafe_code)]"), [""; 0]);
}

#[test]
fn length_is_found() {
    let long_file = "const A: u8 = 1;\n".repeat(FILE_LINES_MAX + 1);
    assert_complaint("engine/store.rs", &long_file, "701 lines");
    let long_function = format!("fn f() {{\n{}}}\n", "    g();\n".repeat(FUNCTION_LINES_MAX));
    assert_complaint("engine/store.rs", &long_function, "function of 102 lines");
    let tests_are_free = format!("#[cfg(test)]\nmod tests {{\n{long_file}}}");
    assert_eq!(complaints_about("engine/store.rs", &tests_are_free), [""; 0]);
}

#[test]
fn leftover_and_stray_file_are_found() {
    for leftover in LEFTOVERS {
        assert_complaint("doc/api.md", &format!("a {leftover} b"), "doc/api.md:1: holds");
    }
    assert_complaint("engine/store/lost.rs", "", "no `mod lost;` names it");
    assert_complaint("http/new.rs", "", "has no floor");
}

#[test]
fn literals_and_comments_are_not_code() {
    let text = "a(\"// \\\" unsafe\"); b(r#\"unsafe \" \"#); '\"'; 'x'; f::<'a>(); /* unsafe */ c";
    let code = product_code(text);
    assert_eq!(words(&code).collect::<Vec<_>>(), ["a", "b", "f", "a", "c"]);
    assert_eq!(code.len(), text.len());
}

#[test]
fn dependencies_are_read_by_section() {
    let manifest = "[package]\nname = \"x\"\n\n[dependencies]\n# A = comment.\nhyper-util = \"1\"\n\
                    engine = { path = \"e\" }\n\n[dev-dependencies]\nproptest = \"1\"\n";
    assert_eq!(dependencies(manifest), ["hyper_util".to_owned()].into());
}
