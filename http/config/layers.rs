//! Where settings come from: a file, over it the environment, over it flags. Everything here is
//! text; what it means is decided in one place, by the parser of its key.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::secrets::shown;
use super::units::{Problem, nearest};

/// The settings that were given, each with the place that decides it.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    given: BTreeMap<&'static str, Given>,
}

/// One setting as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    pub text: String,
    pub source: Source,
}

/// The place of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Default,
    File {
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    Environment(String),
    Flag(String),
}

/// A setting that stops the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub source: Source,
    /// Empty when the error is not about one key.
    pub key: String,
    pub value: String,
    pub problem: Problem,
}

impl Layers {
    /// Adds the settings of a TOML file. Every wrong line is reported, not only the first.
    pub fn add_file(
        &mut self,
        path: &Path,
        text: &str,
        keys: &[&'static str],
    ) -> Result<(), Vec<ConfigError>> {
        let source = |offset| Source::File { path: path.to_owned(), line: line_at(text, offset) };
        let table = DeTable::parse(text).map_err(|it| vec![not_toml(path, text, &it)])?;
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut errors = Vec::new();
        for (key, value) in entries {
            let written = text[value.span()].to_owned();
            let read = known(key.get_ref(), keys, str::to_owned)
                .and_then(|it| Ok((it, text_of(it, value.get_ref())?)));
            match read {
                Ok((name, text)) => {
                    self.given.insert(name, Given { text, source: source(key.span().start) });
                }
                Err(problem) => errors.push(ConfigError {
                    source: source(key.span().start),
                    key: key.get_ref().to_string(),
                    value: shown(key.get_ref(), written),
                    problem,
                }),
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Adds the settings among `variables`. A variable with an empty value is as good as none:
    /// that is how compose files and unit files leave one out.
    pub fn add_environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
        keys: &[&'static str],
    ) -> Result<(), Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut variables: Vec<_> = variables.into_iter().collect();
        variables.sort();
        for (variable, text) in variables {
            let Some(name) = variable.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            if name == CONFIG_VARIABLE || is_service_link(name) || text.is_empty() {
                continue;
            }
            let source = Source::Environment(variable.clone());
            match known(&name.to_ascii_lowercase(), keys, variable_of) {
                Ok(key) => {
                    self.given.insert(key, Given { text, source });
                }
                Err(problem) => {
                    let value = shown(name, text);
                    errors.push(ConfigError { source, key: variable, value, problem });
                }
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Adds one flag. `key` is one of the known keys.
    pub fn add_flag(&mut self, key: &'static str, text: String) {
        let flag = format!("--{}", key.replace('_', "-"));
        self.given.insert(key, Given { text, source: Source::Flag(flag) });
    }

    pub fn find(&self, key: &str) -> Option<&Given> {
        self.given.get(key)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Environment(_) => f.write_str("environment"),
            Self::Flag(_) => f.write_str("command line"),
        }
    }
}

/// Two lines: where and what; then what to do about it.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { what, remedy } = &self.problem;
        write!(f, "{}: ", self.source)?;
        match &self.source {
            _ if self.key.is_empty() => {}
            Source::Default => write!(f, "{}: ", self.key)?,
            Source::File { .. } if self.value.is_empty() => write!(f, "{}: ", self.key)?,
            Source::File { .. } => write!(f, "{} = {}: ", self.key, self.value)?,
            Source::Environment(name) => write!(f, "{name}={}: ", self.value)?,
            Source::Flag(flag) => write!(f, "{flag} {}: ", self.value)?,
        }
        write!(f, "{what}\n  remedy: {remedy}")
    }
}

impl std::error::Error for ConfigError {}

pub(super) fn known(
    name: &str,
    keys: &[&'static str],
    spell: fn(&str) -> String,
) -> Result<&'static str, Problem> {
    if let Some(key) = keys.iter().find(|it| **it == name) {
        return Ok(key);
    }
    let remedy = match nearest(name, keys.iter().copied()) {
        Some(key) => format!("did you mean {}?", spell(key)),
        None => {
            let all: Vec<String> = keys.iter().map(|it| spell(it)).collect();
            format!("remove it; known are {}", all.join(", "))
        }
    };
    Err(Problem::new("this key is not known", remedy))
}

/// Lists are written with commas between where there is only text.
fn text_of(key: &str, value: &DeValue<'_>) -> Result<String, Problem> {
    match value {
        DeValue::Array(items) if LIST_KEYS.contains(&key) => {
            let items: Result<Vec<_>, _> = items.iter().map(|it| scalar(it.get_ref())).collect();
            Ok(items?.join(","))
        }
        value => scalar(value),
    }
}

pub(super) fn scalar(value: &DeValue<'_>) -> Result<String, Problem> {
    match value {
        DeValue::String(it) => Ok(it.to_string()),
        DeValue::Integer(it) if it.radix() == 10 => Ok(it.as_str().to_owned()),
        DeValue::Boolean(it) => Ok(it.to_string()),
        _ => Err(Problem::new(
            "the value is neither text nor a whole number nor true or false",
            "write it like the example in the documentation, for instance memory = \"64MiB\"",
        )),
    }
}

pub(super) fn line_at(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|it| **it == b'\n').count()
}

pub(super) fn not_toml(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = line_at(text, error.span().map_or(0, |it| it.start));
    ConfigError {
        source: Source::File { path: path.to_owned(), line },
        key: String::new(),
        value: String::new(),
        problem: Problem::new(
            format!("it is not TOML: {}", error.message()),
            "write one `key = value` in each line; text stands in \"quotes\"",
        ),
    }
}

/// Variables that Kubernetes sets in every pod for a service that is called "incoming".
fn is_service_link(name: &str) -> bool {
    name == "PORT" || name.starts_with("PORT_") || name.starts_with("SERVICE_")
}

/// A key as it is spelled in the environment.
fn variable_of(key: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", key.to_ascii_uppercase())
}

const ENVIRONMENT_PREFIX: &str = "INCOMING_";
/// Those that hold any number of values.
const LIST_KEYS: [&str; 1] = ["dest_roots"];
/// Names the file itself, so it is no setting of the file.
const CONFIG_VARIABLE: &str = "CONFIG";
