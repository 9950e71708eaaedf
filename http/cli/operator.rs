//! What commands that speak to a running server have in common: where it is, and why it is not.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::Failure;
use crate::config::Home;
use crate::control::admin::AdminClient;

/// The server that is meant.
#[derive(Args, Debug)]
pub(super) struct Place {
    /// The server's storage directory [default: as for serve]
    #[arg(long, value_name = "DIR", env = "INCOMING_STORAGE_DIR", hide_env = true)]
    storage_dir: Option<PathBuf>,
}

/// A connection to it.
#[derive(Debug)]
pub(super) struct Client {
    client: AdminClient,
    storage_dir: PathBuf,
}

impl Place {
    /// Speaks to the server of the storage directory.
    pub(super) fn connect(&self) -> Result<Client, Failure> {
        let given = self.storage_dir.clone().filter(|it| !it.as_os_str().is_empty());
        let Some(storage_dir) = given.or_else(|| Home::find().storage_dir()) else {
            return Err(Failure::run(
                &"no storage directory is known\n  remedy: give --storage-dir",
            ));
        };
        match AdminClient::connect(&storage_dir) {
            Ok(client) => Ok(Client { client, storage_dir }),
            Err(error) => {
                Err(Failure::run(&format!("{}: {}", storage_dir.display(), no_server(&error))))
            }
        }
    }
}

impl Client {
    pub(super) fn ask(&mut self, request: &Value) -> Result<Value, Failure> {
        self.client.ask(request).map_err(|error| {
            Failure::run(&format!(
                "{}: the server does not answer: {error}\n  remedy: see its log, and try again",
                self.storage_dir.display()
            ))
        })
    }
}

/// Why the server refuses.
pub(super) fn error_of(answer: &Value) -> Option<&str> {
    answer["error"].as_str()
}

fn no_server(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
            "no server runs on this directory\n  remedy: name that of a running one with \
             --storage-dir (its log says it at start), or start it: incoming serve"
                .to_owned()
        }
        ErrorKind::PermissionDenied => {
            "only root and the user that the server runs as may ask\n  remedy: sudo, or sudo -u \
             that user"
                .to_owned()
        }
        _ => format!("the server cannot be reached: {error}\n  remedy: see its log"),
    }
}
