//! Why a server cannot be measured.

use std::fmt;
use std::io;

#[derive(Debug)]
pub(crate) enum ServerError {
    NotInstalled {
        server: &'static str,
        /// The command that installs it.
        remedy: &'static str,
    },
    /// What the operating system says when it is started or stopped.
    Machine { server: &'static str, what: &'static str, error: io::Error },
    /// It ended, or did not answer in time.
    NotReady {
        server: &'static str,
        /// The end of what it printed.
        log: String,
    },
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled { server, remedy } => {
                write!(f, "{server} is not installed; {remedy} installs it")
            }
            Self::Machine { server, what, error } => write!(f, "{server}: cannot {what}: {error}"),
            Self::NotReady { server, log } if log.is_empty() => {
                write!(f, "{server} does not answer, and has printed nothing")
            }
            Self::NotReady { server, log } => {
                write!(f, "{server} does not answer. It has printed:\n{log}")
            }
        }
    }
}

impl std::error::Error for ServerError {}
