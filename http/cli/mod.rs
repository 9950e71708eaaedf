//! The command line: sub-commands, exit codes, where logs go.

mod demo;
mod log;
mod operator;
mod retry;
mod serve;
mod settings;
mod status;
mod table;

use std::fmt::Display;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{ConfigError, Source};
use crate::server::ServerError;

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    // Wrong usage and --help end here, with clap's own texts and exit codes.
    let result = match Cli::parse().command {
        Command::Serve(it) => serve::run(&it),
        Command::Status(it) => status::run(&it),
        Command::Retry(it) => retry::run(&it),
        Command::Demo(it) => demo::run(&it),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.errors.iter().for_each(|it| eprintln!("error: {it}"));
            ExitCode::from(failure.exit_code)
        }
    }
}

/// Large-file uploads for any web app
///
/// Incoming!! takes large files from browsers, stores them safely, and hands them over to the
/// backend of your web app. See them work with `incoming demo`.
#[derive(Debug, Parser)]
#[command(name = "incoming", version, max_term_width = 98, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Arguments),
    Status(status::Arguments),
    Retry(retry::Arguments),
    Demo(demo::Arguments),
}

/// Why the command ends with an exit code that is not 0.
#[derive(Debug)]
struct Failure {
    errors: Vec<String>,
    exit_code: u8,
}

impl From<Vec<ConfigError>> for Failure {
    fn from(errors: Vec<ConfigError>) -> Self {
        let usage_only = errors.iter().all(|it| matches!(it.source, Source::Flag(_)));
        Self {
            exit_code: if usage_only { EXIT_USAGE } else { EXIT_CONFIG },
            errors: errors.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        Self::run(&error)
    }
}

impl Failure {
    /// For what goes wrong after all settings were right.
    fn run(error: &dyn Display) -> Self {
        Self { errors: vec![error.to_string()], exit_code: EXIT_FAILURE }
    }
}

const EXIT_FAILURE: u8 = 1;
/// As clap does.
const EXIT_USAGE: u8 = 2;
/// `EX_CONFIG` of sysexits.h, so that a service manager need not try again.
const EXIT_CONFIG: u8 = 78;

/// The end of every command's help.
const HELP_FOOTER: &str = "\
Every option but --config and --page can also stand in the file (memory = \"64MiB\") and in the
environment (INCOMING_MEMORY=64MiB; INCOMING_CONFIG names the file). Options win over the
environment, the environment wins over the file.

Sizes have a unit (B, KiB, MiB, GiB), durations too (ms, s, m, h, d).

Exit codes: 0 stopped by a signal, 1 could not start or go on, 2 wrong usage, 78 wrong setting in
the file or the environment.";
