//! The options that all commands which serve have in common.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::config::{Config, ConfigError, Home, KEYS, Layers, Problem, Source};

/// Options as they were written; their meaning is the configuration's business.
#[derive(Args, Debug)]
pub(super) struct Settings {
    /// Address and port for browsers and web apps; port 0: one that is free [default:
    /// 127.0.0.1:4000]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,

    /// Where files are stored [default: /var/lib/incoming for root and whoever may write there,
    /// otherwise $XDG_DATA_HOME/incoming, which is usually ~/.local/share/incoming; the demo takes
    /// the directory demo in it]
    #[arg(long, value_name = "DIR")]
    storage_dir: Option<String>,

    /// When a chunk is acknowledged: synced (it survives a power cut) or written (it survives a
    /// crash of the server) [default: synced]
    #[arg(long, value_name = "LEVEL")]
    durability: Option<String>,

    /// Keep so much of the disk free: no new tickets below, and no file that would need it
    /// [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    reserve: Option<String>,

    /// Refuse longer files [default: none; the disk is the limit]
    #[arg(long, value_name = "SIZE")]
    max_size: Option<String>,

    /// Directories that files may arrive in, or below, where the web app wants that; several with
    /// commas between [default: none]
    #[arg(long, value_name = "DIRS")]
    dest_roots: Option<String>,

    /// Permissions of files that are handed over, octal [default: 0644, or 0770 if the web app takes
    /// them away]
    #[arg(long, value_name = "MODE")]
    handover_mode: Option<String>,

    /// Group of files that are handed over, by name or number [default: that of the server]
    #[arg(long, value_name = "GROUP")]
    handover_group: Option<String>,

    /// What the threads run on: monoio (io_uring, or epoll where that is refused) or tokio-uring
    /// [default: monoio]
    #[arg(long, value_name = "NAME")]
    runtime: Option<String>,

    /// Number of threads [default: one for each CPU that this process may use]
    #[arg(long, value_name = "N")]
    cores: Option<String>,

    /// Memory of each core for bytes on their way to the disk [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,

    /// Connections that each core holds at a time; further ones wait [default: 10000]
    #[arg(long, value_name = "N")]
    connections_max: Option<String>,

    /// Cancel an upload that nothing happens to for so long [default: 12h]
    #[arg(long, value_name = "TIME")]
    idle_timeout: Option<String>,

    /// Cancel an upload that is not whole after so long [default: 30d]
    #[arg(long, value_name = "TIME")]
    lifetime: Option<String>,

    /// How long a web app may take to answer when it is told of a file [default: 55s]
    #[arg(long, value_name = "TIME")]
    callback_timeout: Option<String>,

    /// What callbacks are signed with. Other users can read a command line: better callback_secret
    /// in a file of settings, or callback_secret_file [default: they are not signed]
    #[arg(long, value_name = "SECRET")]
    callback_secret: Option<String>,

    /// A file that holds what callbacks are signed with [default: none]
    #[arg(long, value_name = "FILE")]
    callback_secret_file: Option<String>,

    /// A PEM file with authorities of your own that may vouch for web apps with https, beside those
    /// that this system trusts [default: none]
    #[arg(long, value_name = "FILE")]
    callback_ca: Option<String>,

    /// How long a web app that answered "wait" may take before it is asked again [default: 10m]
    #[arg(long, value_name = "TIME")]
    finish_timeout: Option<String>,

    /// For how long a web app that cannot be told of a file is told again [default: 3d]
    #[arg(long, value_name = "TIME")]
    handover_timeout: Option<String>,

    /// How often a web app may answer something else than done or wait, until the hand-over has
    /// failed [default: 10]
    #[arg(long, value_name = "N")]
    refusals_max: Option<String>,

    /// Answer web apps also through a proxy; only where nobody else gets through it to
    /// /incoming/0.1/backend/ [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    backend_behind_proxy: Option<String>,

    /// A file with the keys that web apps need, and what each may have; see the documentation
    /// [default: none, and they need no key]
    #[arg(long, value_name = "FILE")]
    backend_keys: Option<String>,

    /// auto (text on a terminal, JSON otherwise), text or json [default: auto]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,

    /// What is logged: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,

    /// A TOML file with settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Settings {
    /// The settings of file, environment and options together.
    pub(super) fn resolve(&self, home: &Home) -> Result<Config, Vec<ConfigError>> {
        let keys: Vec<&'static str> = KEYS.iter().map(|(it, _)| *it).collect();
        let mut layers = Layers::default();
        let mut errors = Vec::new();
        if let Some((path, source)) = self.config_file() {
            let added = read(&path, source).and_then(|it| layers.add_file(&path, &it, &keys));
            errors.extend(added.err().unwrap_or_default());
        }
        // A variable that is not UTF-8 is none of ours.
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .map(|(name, value)| (name, value.to_string_lossy().into_owned()));
        errors.extend(layers.add_environment(variables, &keys).err().unwrap_or_default());
        for (key, text) in self.flags() {
            if let Some(text) = text {
                layers.add_flag(key, text.clone());
            }
        }
        match Config::resolve(&layers, home) {
            Ok(config) if errors.is_empty() => Ok(config),
            result => {
                errors.extend(result.err().unwrap_or_default());
                Err(errors)
            }
        }
    }

    fn config_file(&self) -> Option<(PathBuf, Source)> {
        if let Some(path) = &self.config {
            return Some((path.clone(), Source::Flag("--config".to_owned())));
        }
        let path = std::env::var_os(CONFIG_VARIABLE).filter(|it| !it.is_empty())?;
        Some((path.into(), Source::Environment(CONFIG_VARIABLE.to_owned())))
    }

    fn flags(&self) -> [(&'static str, &Option<String>); KEYS.len()] {
        [
            ("listen", &self.listen),
            ("storage_dir", &self.storage_dir),
            ("durability", &self.durability),
            ("reserve", &self.reserve),
            ("max_size", &self.max_size),
            ("dest_roots", &self.dest_roots),
            ("handover_mode", &self.handover_mode),
            ("handover_group", &self.handover_group),
            ("runtime", &self.runtime),
            ("cores", &self.cores),
            ("memory", &self.memory),
            ("connections_max", &self.connections_max),
            ("idle_timeout", &self.idle_timeout),
            ("lifetime", &self.lifetime),
            ("callback_timeout", &self.callback_timeout),
            ("callback_secret", &self.callback_secret),
            ("callback_secret_file", &self.callback_secret_file),
            ("callback_ca", &self.callback_ca),
            ("finish_timeout", &self.finish_timeout),
            ("handover_timeout", &self.handover_timeout),
            ("refusals_max", &self.refusals_max),
            ("backend_behind_proxy", &self.backend_behind_proxy),
            ("backend_keys", &self.backend_keys),
            ("log_format", &self.log_format),
            ("log", &self.log),
        ]
    }
}

fn read(path: &Path, source: Source) -> Result<String, Vec<ConfigError>> {
    std::fs::read_to_string(path).map_err(|error| {
        vec![ConfigError {
            source,
            key: "config".to_owned(),
            value: path.display().to_string(),
            problem: Problem::new(
                format!("the file cannot be read: {error}"),
                "give a file that exists and that this user may read, or none",
            ),
        }]
    })
}

const CONFIG_VARIABLE: &str = "INCOMING_CONFIG";

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        settings: Settings,
    }

    #[test]
    fn every_key_is_an_option_whose_help_tells_the_default() {
        let command = Only::command();
        let parsed = Only::parse_from(["x"]);
        for ((key, default), (flag_key, _)) in KEYS.iter().zip(parsed.settings.flags()) {
            assert_eq!(*key, flag_key);
            let flag = key.replace('_', "-");
            let argument = command.get_arguments().find(|it| it.get_long() == Some(&flag));
            let help = argument.expect(&flag).get_help().unwrap().to_string();
            assert!(help.contains(&format!("[default: {default}")), "{flag}: {help}");
        }
    }

    #[test]
    fn every_option_reaches_its_own_key() {
        for (key, _) in KEYS {
            let flag = format!("--{}=value of {key}", key.replace('_', "-"));
            let parsed = Only::parse_from(["x", &flag]);
            for (other, text) in parsed.settings.flags() {
                let expected = (other == key).then(|| format!("value of {key}"));
                assert_eq!(*text, expected);
            }
        }
    }
}
