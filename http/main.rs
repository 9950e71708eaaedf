//! The `incoming` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    incoming::cli::run()
}
