//! What a web app's requests must hold.

use std::path::{Path, PathBuf};

use crate::codec::params::Params;

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

/// Checked in the order of the original: URL, remove, uid.
pub(super) fn new_upload(params: &Params, dest_roots: &[PathBuf]) -> Result<NewUpload, String> {
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
pub(super) fn given<'a>(params: &'a Params, name: &str) -> Option<&'a str> {
    params.value(name).filter(|it| !it.is_empty())
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    New,
    Old,
}

/// The secret, under its name or one of its older ones.
pub(super) fn secret(params: &Params) -> Option<(&str, Age)> {
    let new = params.value("backendSecret").map(|it| (it, Age::New));
    let older = ["signalFinishSecret", "secret"].into_iter().find_map(|it| params.value(it));
    new.or(older.map(|it| (it, Age::Old)))
}

/// Of a directory: the kernel's limit, and the file's name comes after it.
const PATH_BYTES_MAX: usize = 4000;

/// Of a URL or a secret: they are kept as long as the ticket.
const VALUE_BYTES_MAX: usize = 4096;
