//! The file of backend keys: one table for each, named as the key.
//!
//! It holds secrets, so nobody but its owner may read it, and no error shows one.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::layers::{ConfigError, Source, known, line_at, not_toml, scalar};
use super::units::{Problem, parse_size};
use crate::keys::BackendKey;

/// Why there are no keys: one problem with the file, or some with what stands in it.
#[derive(Debug)]
pub(super) enum KeysError {
    File(Problem),
    Content(Vec<ConfigError>),
}

/// Reads the file at `path`.
pub(super) fn read_keys(path: &str) -> Result<Vec<BackendKey>, KeysError> {
    let text = read_private(Path::new(path)).map_err(KeysError::File)?;
    parse_keys(Path::new(path), &text).map_err(KeysError::Content)
}

fn read_private(path: &Path) -> Result<String, Problem> {
    let unreadable = |error| {
        Problem::new(
            format!("the file cannot be read: {error}"),
            "give a file that exists and that this user may read, or none",
        )
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & OTHERS != 0 {
        return Err(Problem::new(
            format!("others may read or change the keys in it (mode {mode:04o})"),
            format!("chmod 600 {}", path.display()),
        ));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

fn parse_keys(path: &Path, text: &str) -> Result<Vec<BackendKey>, Vec<ConfigError>> {
    let error = |offset: usize, key: &str, value: &str, problem| ConfigError {
        source: Source::File { path: path.to_owned(), line: line_at(text, offset) },
        key: key.to_owned(),
        value: value.to_owned(),
        problem,
    };
    let table = DeTable::parse(text).map_err(|it| vec![not_toml(path, text, &it)])?;
    let mut tables: Vec<_> = table.get_ref().iter().collect();
    tables.sort_by_key(|(name, _)| name.span().start);
    let (mut keys, mut errors): (Vec<BackendKey>, Vec<ConfigError>) = (Vec::new(), Vec::new());
    for (name, value) in tables {
        let at = name.span().start;
        let shown = format!("[{}]", name.get_ref());
        let DeValue::Table(entries) = value.get_ref() else {
            let problem = Problem::new("it stands in no table", EXAMPLE);
            errors.push(error(at, name.get_ref(), HIDDEN, problem));
            continue;
        };
        let mut key = BackendKey {
            name: name.get_ref().to_string(),
            key: String::new(),
            quota_bytes: None,
            tickets_max: None,
        };
        if let Err(problem) = check_name(&key.name) {
            errors.push(error(at, &shown, "", problem));
        }
        let error_count = errors.len();
        let mut entries: Vec<_> = entries.iter().collect();
        entries.sort_by_key(|(entry, _)| entry.span().start);
        for (entry, value) in entries {
            let entry_at = entry.span().start;
            let result = known(entry.get_ref(), &ENTRIES, str::to_owned)
                .and_then(|it| Ok((it, scalar(value.get_ref())?)))
                .and_then(|(it, text)| set(&mut key, it, &text));
            if let Err(problem) = result {
                let is_open = matches!(&**entry.get_ref(), "quota" | "tickets_max");
                let written = if is_open { &text[value.span()] } else { HIDDEN };
                errors.push(error(entry_at, entry.get_ref(), written, problem));
            }
        }
        if key.key.is_empty() && errors.len() == error_count {
            errors.push(error(at, &shown, "", Problem::new("it has no key", EXAMPLE)));
        }
        if keys.iter().any(|it| it.key == key.key && !key.key.is_empty()) {
            let problem = Problem::new(
                "it has the same key as another one",
                "give each a key of its own, such as the output of: openssl rand -hex 24",
            );
            errors.push(error(at, &shown, "", problem));
        }
        keys.push(key);
    }
    if keys.is_empty() && errors.is_empty() {
        errors.push(error(0, "", "", Problem::new("there is no key in it", EXAMPLE)));
    }
    if errors.is_empty() { Ok(keys) } else { Err(errors) }
}

fn set(key: &mut BackendKey, entry: &str, text: &str) -> Result<(), Problem> {
    match entry {
        "key" => {
            let is_visible = text.bytes().all(|it| it.is_ascii_graphic());
            if !(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&text.len()) || !is_visible {
                return Err(Problem::new(
                    format!(
                        "a key has {KEY_BYTES_MIN} to {KEY_BYTES_MAX} letters, digits and signs of \
                         ASCII, and no blanks"
                    ),
                    "write one that nobody can guess, such as the output of: openssl rand -hex 24",
                ));
            }
            key.key = text.to_owned();
        }
        "quota" => key.quota_bytes = Some(parse_size(text)?),
        _ => {
            let count = text.parse().ok().filter(|it| *it >= 1);
            key.tickets_max = Some(count.ok_or_else(|| {
                Problem::new("it is not a number of tickets", "write a whole number from 1 on")
            })?);
        }
    }
    Ok(())
}

/// Names stand in tickets, logs and tables.
fn check_name(name: &str) -> Result<(), Problem> {
    let is_plain = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'_' | b'-' | b'.');
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain) {
        return Ok(());
    }
    Err(Problem::new(
        format!("a name has 1 to {NAME_BYTES_MAX} letters, digits, _, - and . of ASCII"),
        "choose such a one, for instance that of the web app",
    ))
}

const ENTRIES: [&str; 3] = ["key", "quota", "tickets_max"];
/// Permission bits of group and others.
const OTHERS: u32 = 0o077;
const KEY_BYTES_MIN: usize = 16;
/// Less than what a request head may have.
const KEY_BYTES_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 64;
const EXAMPLE: &str = "write a table for each key: [shop] in a line, key = \"...\" in the next";
const HIDDEN: &str = "(hidden)";

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    fn parse(text: &str) -> Result<Vec<BackendKey>, String> {
        parse_keys(Path::new("/etc/keys.toml"), text)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn keys() {
        let text = "[shop]\nkey = '0123456789abcdef'\nquota = '500GiB'\ntickets_max = 1000\n\
                    [press]\nkey = \"fedcba9876543210\"\n";
        let keys = parse(text).unwrap();
        let key = |name: &str, key: &str, quota_bytes, tickets_max| BackendKey {
            name: name.into(),
            key: key.into(),
            quota_bytes,
            tickets_max,
        };
        let shop = key("shop", "0123456789abcdef", Some(500 << 30), Some(1000));
        assert_eq!(keys, [shop, key("press", "fedcba9876543210", None, None)]);
        assert!(!format!("{keys:?}").contains("0123456789abcdef"));
    }

    #[test]
    fn wrong_files() {
        for (text, told) in [
            ("", "/etc/keys.toml, line 1: there is no key in it\n  remedy: write a table"),
            ("[shop]\n[shop", "/etc/keys.toml, line 2: it is not TOML: "),
            ("\nshop = '0123456789abcdef'", ", line 2: shop = (hidden): it stands in no table"),
            ("\n[shop]\nquota = '1GiB'", ", line 2: [shop]: it has no key\n"),
            ("[shop]\nkey = 'short'", ", line 2: key = (hidden): a key has 16 to 1024"),
            ("[shop]\nkey = '0123456789 abcdef'", "and no blanks\n  remedy: "),
            ("[shop]\nkee = '0123456789abcdef'", "is not known\n  remedy: did you mean key?"),
            (
                "[shop]\nkey = '0123456789abcdef'\nquota = '5'",
                ", line 3: quota = '5': \"5\" has no unit\n",
            ),
            (
                "[shop]\nkey = '0123456789abcdef'\ntickets_max = 0",
                ", line 3: tickets_max = 0: it is not a number of tickets\n",
            ),
            ("['a b']\nkey = '0123456789abcdef'", ", line 1: [a b]: a name has 1 to 64 letters"),
            (
                "[a]\nkey = '0123456789abcdef'\n[b]\nkey = '0123456789abcdef'",
                ", line 3: [b]: it has the same key as another one\n",
            ),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(told), "{text}\n{error}");
            assert!(!error.contains("0123456789"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("keys.toml");
        let name = path.to_str().unwrap();
        assert!(matches!(read_keys(name), Err(KeysError::File(_))));
        fs::write(&path, "[shop]\nkey = '0123456789abcdef'\n").unwrap();
        for (mode, is_private) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match read_keys(name) {
                Ok(keys) => assert!(is_private && keys.len() == 1, "{mode:o}"),
                Err(KeysError::File(it)) => {
                    assert!(!is_private, "{mode:o}");
                    assert_eq!(it.remedy, format!("chmod 600 {name}"));
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}
