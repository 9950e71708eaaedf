//! What an operator may set: the keys, their defaults and their ranges.
//!
//! A setting exists only where two operators would choose differently and neither is wrong;
//! everything else is a constant. A wrong setting stops the start and says where it stands, what is
//! wrong with it and what to write instead.

mod keys;
mod layers;
mod secrets;
mod units;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::driver::Runtime;
use rustls::pki_types::CertificateDer;
use tracing_subscriber::EnvFilter;

use crate::keys::BackendKey;
use keys::KeysError;
pub use layers::{ConfigError, Given, Layers, Source};
pub use secrets::Secret;
pub use units::{Problem, format_duration, format_size, nearest, parse_duration, parse_size};

/// The settings of a server. Nothing in it changes after the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Port 0: one that is free.
    pub listen: SocketAddr,
    /// Somebody chose it: it is not the default.
    pub listen_is_chosen: bool,
    /// Absolute.
    pub storage_dir: PathBuf,
    pub durability: DurabilityLevel,
    /// Below this much free space there are no new tickets, and no file is begun that would not leave
    /// it free.
    pub reserve_bytes: u64,
    /// Longer files are refused.
    pub max_size_bytes: Option<u64>,
    /// Absolute. Files may arrive in them and below.
    pub dest_roots: Vec<PathBuf>,
    /// Permissions of files that are handed over. `None`: as the original has it.
    pub handover_mode: Option<u32>,
    /// Their group. `None`: the server's.
    pub handover_group: Option<Group>,
    pub runtime: Runtime,
    /// Threads. `None`: one for each CPU that this process may use.
    pub cores: Option<u16>,
    /// Staging memory of each core.
    pub memory_bytes: u32,
    /// Connections that each core holds at a time; further ones wait.
    pub connections_max: u32,
    /// A ticket that nothing happens to for so long is cancelled.
    pub idle_timeout: Duration,
    /// An upload that is not whole after so long is cancelled, whatever happens to it.
    pub lifetime: Duration,
    /// How long a web app may take to answer a callback.
    pub callback_timeout: Duration,
    /// What callbacks are signed with.
    pub callback_secret: Option<Secret>,
    /// Who may vouch for web apps beside the authorities that this system trusts.
    pub callback_ca: Vec<CertificateDer<'static>>,
    /// How long a web app may take after `wait` before it is asked again.
    pub finish_timeout: Duration,
    /// For how long a web app is told again that cannot be told.
    pub handover_timeout: Duration,
    /// How often a web app may answer something else than expected.
    pub refusals_max: u32,
    /// Answer backend routes also to requests that come through a proxy or from a browser.
    pub backend_behind_proxy: bool,
    /// Web apps need one of these; none: they need nothing.
    pub backend_keys: Vec<BackendKey>,
    pub log_format: LogFormat,
    /// In the syntax of [`EnvFilter`].
    pub log: String,
}

/// A group of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// As it was written: a name, or a number.
    pub name: String,
    pub gid: u32,
}

/// What an acknowledged byte survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurabilityLevel {
    /// A power cut.
    Synced,
    /// The end of the server, however sudden.
    Written,
}

impl fmt::Display for DurabilityLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = DURABILITY_LEVELS.iter().find(|(_, it)| it == self);
        f.write_str(found.expect("every level has a name").0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    Text,
    Json,
}

/// The keys of the file, the environment (`INCOMING_` and the key in capitals) and the command line
/// (`--` and the key with hyphens), with what holds if nobody sets them. An empty default is found
/// at start.
pub const KEYS: [(&str, &str); 25] = [
    ("listen", "127.0.0.1:4000"),
    ("storage_dir", ""),
    ("durability", "synced"),
    ("reserve", "64MiB"),
    ("max_size", ""),
    ("dest_roots", ""),
    ("handover_mode", ""),
    ("handover_group", ""),
    ("runtime", "monoio"),
    ("cores", ""),
    ("memory", "64MiB"),
    ("connections_max", "10000"),
    ("idle_timeout", "12h"),
    ("lifetime", "30d"),
    ("callback_timeout", "55s"),
    ("callback_secret", ""),
    ("callback_secret_file", ""),
    ("callback_ca", ""),
    ("finish_timeout", "10m"),
    ("handover_timeout", "3d"),
    ("refusals_max", "10"),
    ("backend_behind_proxy", "false"),
    ("backend_keys", ""),
    ("log_format", "auto"),
    ("log", "info"),
];

impl Config {
    /// The settings that `layers` and the defaults give, or everything that is wrong with them.
    pub fn resolve(layers: &Layers, home: &Home) -> Result<Self, Vec<ConfigError>> {
        let mut reader = Reader { layers, errors: Vec::new() };
        let it = &mut reader;
        let listen = it.read("listen", parse_listen);
        let storage_dir = it.read("storage_dir", |text| parse_storage_dir(text, home));
        let durability = it.read("durability", |text| choose(text, &DURABILITY_LEVELS));
        let reserve_bytes = it.read("reserve", parse_size);
        let max_size_bytes = it.read("max_size", |text| match text {
            "" => Ok(None),
            _ => parse_size(text).map(Some),
        });
        let dest_roots = it.read("dest_roots", parse_roots);
        let handover_mode = it.read("handover_mode", parse_mode);
        let handover_group = it.read("handover_group", parse_group);
        let runtime = it.read("runtime", |text| choose(text, &RUNTIMES));
        let cores = it.read("cores", |text| match text {
            "" => Ok(None),
            _ => within(number(text)?, 1, CORES_MAX).map(|it| Some(it as u16)),
        });
        let memory_bytes = it.read("memory", parse_memory);
        let connections_max = it.read("connections_max", |text| {
            within(number(text)?, 1, CONNECTIONS_MAX).map(|it| it as u32)
        });
        let idle_timeout = it.read("idle_timeout", duration_within(1, 365 * DAY_S));
        let lifetime = it.read("lifetime", duration_within(1, 10 * 365 * DAY_S));
        let callback_timeout = it.read("callback_timeout", duration_within(1, 3600));
        let callback_secret = it.read_callback_secret();
        let callback_ca = it.read("callback_ca", secrets::read_certificates);
        let finish_timeout = it.read("finish_timeout", duration_within(1, 30 * DAY_S));
        let handover_timeout = it.read("handover_timeout", duration_within(1, 365 * DAY_S));
        let refusals_max =
            it.read("refusals_max", |text| within(number(text)?, 1, 1_000_000).map(|it| it as u32));
        let behind_proxy = it.read("backend_behind_proxy", |text| choose(text, &BOOLEANS));
        let backend_keys = it.read_backend_keys();
        let log_format = it.read("log_format", |text| choose(text, &LOG_FORMATS));
        let log = it.read("log", parse_filter);
        let errors = reader.errors;
        let all = || {
            Some(Self {
                listen: listen?,
                listen_is_chosen: layers.find("listen").is_some(),
                storage_dir: storage_dir?,
                durability: durability?,
                reserve_bytes: reserve_bytes?,
                max_size_bytes: max_size_bytes?,
                dest_roots: dest_roots?,
                handover_mode: handover_mode?,
                handover_group: handover_group?,
                runtime: runtime?,
                cores: cores?,
                memory_bytes: memory_bytes?,
                connections_max: connections_max?,
                idle_timeout: idle_timeout?,
                lifetime: lifetime?,
                callback_timeout: callback_timeout?,
                callback_secret: callback_secret?,
                callback_ca: callback_ca?,
                finish_timeout: finish_timeout?,
                handover_timeout: handover_timeout?,
                refusals_max: refusals_max?,
                backend_behind_proxy: behind_proxy?,
                backend_keys: backend_keys?,
                log_format: log_format?,
                log: log?,
            })
        };
        all().ok_or(errors)
    }
}

/// What the default of `storage_dir` depends on.
#[derive(Clone, Debug, Default)]
pub struct Home {
    /// [`SYSTEM_STORAGE_DIR`] can be written, or made: the process is root, or its owner.
    pub system_usable: bool,
    /// `XDG_DATA_HOME`, if it is absolute.
    pub xdg_data_home: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// Appended to the default, so that a demo does not touch a server's files.
    pub subdirectory: Option<&'static str>,
}

impl Home {
    /// Asks this machine.
    pub fn find() -> Self {
        let absolute = |name| {
            std::env::var_os(name).map(PathBuf::from).filter(|it: &PathBuf| it.is_absolute())
        };
        let writable = rustix::fs::access(SYSTEM_STORAGE_DIR, rustix::fs::Access::WRITE_OK).is_ok();
        Self {
            system_usable: rustix::process::geteuid().is_root() || writable,
            xdg_data_home: absolute("XDG_DATA_HOME"),
            home: absolute("HOME"),
            subdirectory: None,
        }
    }

    /// Where files go if nobody says otherwise.
    pub fn storage_dir(&self) -> Option<PathBuf> {
        let base = if self.system_usable {
            PathBuf::from(SYSTEM_STORAGE_DIR)
        } else if let Some(it) = &self.xdg_data_home {
            it.join("incoming")
        } else {
            self.home.as_ref()?.join(".local/share/incoming")
        };
        Some(self.subdirectory.map_or_else(|| base.clone(), |it| base.join(it)))
    }
}

struct Reader<'l> {
    layers: &'l Layers,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    fn read<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Option<T> {
        let default = KEYS.iter().find(|(name, _)| *name == key).map_or("", |(_, it)| it);
        let given = self.layers.find(key);
        let text = given.map_or(default, |it| it.text.trim());
        parse(text)
            .map_err(|problem| {
                self.errors.push(ConfigError {
                    source: given.map_or(Source::Default, |it| it.source.clone()),
                    key: key.to_owned(),
                    value: secrets::shown(key, format!("\"{text}\"")),
                    problem,
                });
            })
            .ok()
    }

    /// What is wrong within the file of keys has its place there.
    fn read_backend_keys(&mut self) -> Option<Vec<BackendKey>> {
        let mut within = Vec::new();
        let keys = self.read("backend_keys", |text| match text {
            "" => Ok(Some(Vec::new())),
            path => match keys::read_keys(path) {
                Ok(keys) => Ok(Some(keys)),
                Err(KeysError::File(problem)) => Err(problem),
                Err(KeysError::Content(errors)) => {
                    within = errors;
                    Ok(None)
                }
            },
        });
        self.errors.extend(within);
        keys.flatten()
    }

    /// The secret itself or a file that holds it, not both.
    fn read_callback_secret(&mut self) -> Option<Option<Secret>> {
        let here = self.read("callback_secret", secrets::parse_secret);
        let is_here = !matches!(here, Some(None));
        let in_file = self.read("callback_secret_file", |text| match text {
            "" => Ok(None),
            _ if is_here => Err(Problem::new(
                "callback_secret is set as well",
                "remove one of the two; a file keeps the secret from other users' eyes",
            )),
            _ => secrets::read_secret(text).map(Some),
        });
        Some(here?.or(in_file?))
    }
}

fn parse_listen(text: &str) -> Result<SocketAddr, Problem> {
    text.parse().map_err(|_| {
        let port = text.rsplit(':').next().and_then(|it| it.parse::<u16>().ok());
        Problem::new(
            "it is not an IP address and a port",
            match port {
                Some(port) => format!(
                    "write 127.0.0.1:{port} for this machine only, 0.0.0.0:{port} or [::]:{port} \
                     for every network"
                ),
                None => "write it like 127.0.0.1:4000 or [::1]:4000".to_owned(),
            },
        )
    })
}

fn parse_storage_dir(text: &str, home: &Home) -> Result<PathBuf, Problem> {
    if text.is_empty() {
        return home.storage_dir().ok_or_else(|| {
            Problem::new(
                "there is no default, because neither HOME nor XDG_DATA_HOME is set",
                "give a directory with --storage-dir, INCOMING_STORAGE_DIR or storage_dir",
            )
        });
    }
    std::path::absolute(Path::new(text)).map_err(|error| {
        Problem::new(format!("it cannot be made absolute: {error}"), "write an absolute path")
    })
}

fn parse_memory(text: &str) -> Result<u32, Problem> {
    let bytes = parse_size(text)?;
    let megabyte = u64::from(MEMORY_STEP_BYTES);
    if !(u64::from(MEMORY_BYTES_MIN)..=u64::from(MEMORY_BYTES_MAX)).contains(&bytes) {
        return Err(out_of_range(
            &format_size(u64::from(MEMORY_BYTES_MIN)),
            &format_size(u64::from(MEMORY_BYTES_MAX)),
        ));
    }
    if !bytes.is_multiple_of(megabyte) {
        return Err(Problem::new(
            "it is not a whole number of MiB",
            format!("write {}MiB", bytes / megabyte),
        ));
    }
    Ok(bytes as u32)
}

fn parse_roots(text: &str) -> Result<Vec<PathBuf>, Problem> {
    let root = |text: &str| {
        let is_plain = text.split('/').all(|it| it != "." && it != "..");
        if text.starts_with('/') && is_plain {
            Ok(Path::new(text).components().collect())
        } else {
            Err(Problem::new(
                format!("\"{text}\" is no absolute path without . and .."),
                "write one like /srv/app/files, or several with commas between",
            ))
        }
    };
    text.split(',').map(str::trim).filter(|it| !it.is_empty()).map(root).collect()
}

fn parse_mode(text: &str) -> Result<Option<u32>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let is_octal = text.bytes().all(|it| matches!(it, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| is_octal);
    match mode {
        Some(mode) if mode > 0o777 => Err(Problem::new(
            "it sets more than permissions to read, write and execute",
            "write 777 or less, such as 0640",
        )),
        Some(mode) if mode & 0o400 == 0 => Err(Problem::new(
            "the file's owner could not read it",
            format!("write {:04o}", mode | 0o400),
        )),
        Some(mode) => Ok(Some(mode)),
        None => Err(Problem::new("it is no octal number", "write a mode such as 0640")),
    }
}

fn parse_group(text: &str) -> Result<Option<Group>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let group = |gid| Some(Group { name: text.to_owned(), gid });
    // The highest number means "nobody" to the kernel.
    if let Some(gid) = text.parse::<u32>().ok().filter(|it| *it != u32::MAX) {
        return Ok(group(gid));
    }
    match nix::unistd::Group::from_name(text) {
        Ok(Some(it)) => Ok(group(it.gid.as_raw())),
        Ok(None) => Err(Problem::new(
            "there is no such group",
            "write a group of this machine (getent group shows them), or its number",
        )),
        Err(error) => {
            Err(Problem::new(format!("the group cannot be looked up: {error}"), "write its number"))
        }
    }
}

fn parse_filter(text: &str) -> Result<String, Problem> {
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(Problem::new(
            format!("it is not a filter for the log: {error}"),
            "write error, warn, info, debug or trace, or target=level pairs with commas between",
        )),
    }
}

fn duration_within(min_s: u64, max_s: u64) -> impl Fn(&str) -> Result<Duration, Problem> {
    move |text| {
        let (min, max) = (Duration::from_secs(min_s), Duration::from_secs(max_s));
        let it = parse_duration(text)?;
        if it < min || it > max {
            return Err(out_of_range(&format_duration(min), &format_duration(max)));
        }
        Ok(it)
    }
}

fn number(text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_| Problem::new("it is not a whole number", "write digits only"))
}

fn within(value: u64, min: u64, max: u64) -> Result<u64, Problem> {
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        Err(out_of_range(&min.to_string(), &max.to_string()))
    }
}

fn out_of_range(min: &str, max: &str) -> Problem {
    Problem::new("it is out of range", format!("write a value from {min} to {max}"))
}

fn choose<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, Problem> {
    if let Some((_, it)) = choices.iter().find(|(name, _)| *name == text) {
        return Ok(*it);
    }
    let names: Vec<&str> = choices.iter().map(|(it, _)| *it).collect();
    Err(Problem::new(
        "it is none of the possible values",
        match nearest(text, names.iter().copied()) {
            Some(name) => format!("did you mean {name}? (possible: {})", names.join(", ")),
            None => format!("write one of {}", names.join(", ")),
        },
    ))
}

/// Where a service keeps its data on Debian and its relatives.
pub const SYSTEM_STORAGE_DIR: &str = "/var/lib/incoming";

const RUNTIMES: [(&str, Runtime); 2] =
    [("monoio", Runtime::Monoio), ("tokio-uring", Runtime::TokioUring)];
const DURABILITY_LEVELS: [(&str, DurabilityLevel); 2] =
    [("synced", DurabilityLevel::Synced), ("written", DurabilityLevel::Written)];
const BOOLEANS: [(&str, bool); 2] = [("true", true), ("false", false)];
const LOG_FORMATS: [(&str, LogFormat); 3] =
    [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];

/// More threads than any machine has CPUs.
const CORES_MAX: u64 = 1024;
const CONNECTIONS_MAX: u64 = 1_000_000;
/// Four uploads that write at full size.
const MEMORY_BYTES_MIN: u32 = 8 << 20;
/// Offsets into the memory of a core have 32 bits.
const MEMORY_BYTES_MAX: u32 = 2 << 30;
const MEMORY_STEP_BYTES: u32 = 1 << 20;
const DAY_S: u64 = 86_400;

#[cfg(test)]
mod tests;
