//! Which version of a server is measured.

use std::io;
use std::process::Command;

use super::command::{program, remedy};
use super::{Runtime, Server, ServerError};

/// Asks the program, or what pins it.
///
/// # Errors
/// [`ServerError::NotInstalled`], or it cannot be run.
pub(super) fn version(server: Server) -> Result<String, ServerError> {
    let name = server.name();
    asked(server).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            ServerError::NotInstalled { server: name, remedy: remedy(server) }
        }
        _ => ServerError::Machine { server: name, what: "ask for the version", error },
    })
}

fn asked(server: Server) -> io::Result<String> {
    let program = program(server)?;
    let said = |argument: &str| -> io::Result<String> {
        let output = Command::new(&program).arg(argument).output()?;
        // nginx says it on standard error.
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned())
    };
    Ok(match server {
        Server::Ours { .. } => said("--version")?,
        Server::Floor { runtime: Runtime::Monoio } => locked("monoio"),
        Server::Floor { runtime: Runtime::TokioUring } => locked("tokio-uring"),
        Server::Ring => locked("io-uring"),
        Server::Naive => format!("{}, {}", locked("tokio"), locked("tokio-tungstenite")),
        Server::Nginx256k | Server::NginxDefault => {
            said("-v")?.replace("nginx version: nginx/", "nginx ")
        }
        Server::NodeWs => format!("{}, Node {}", pinned("ws"), said("--version")?),
        Server::TusNode => {
            let packages = [pinned("@tus/server"), pinned("@tus/file-store")];
            format!("{}, Node {}", packages.join(", "), said("--version")?)
        }
        Server::Copyparty => {
            let package = REQUIREMENTS.lines().next().unwrap_or_default().replace("==", " ");
            format!("{package}, {}", said("--version")?)
        }
        Server::Rustus => said("--version")?,
    })
}

/// A crate of this build, as `Cargo.lock` has it. Of several versions the first.
fn locked(name: &str) -> String {
    let head = format!("name = \"{name}\"\nversion = \"");
    let version = CARGO_LOCK.split_once(&head).and_then(|it| it.1.split('"').next());
    format!("{name} {}", version.unwrap_or("of this build"))
}

/// A package for Node, as `package.json` has it.
fn pinned(name: &str) -> String {
    let head = format!("\"{name}\": \"");
    let version = PACKAGE_JSON.split_once(&head).and_then(|it| it.1.split('"').next());
    format!("{name} {}", version.unwrap_or_default())
}

const CARGO_LOCK: &str = include_str!("../../../Cargo.lock");
const PACKAGE_JSON: &str = include_str!("../node/package.json");
const REQUIREMENTS: &str = include_str!("../requirements.txt");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_pinned_things_are_numbers() {
        let crates = ["monoio", "tokio-uring", "io-uring", "tokio", "tokio-tungstenite"];
        let packages = ["ws", "@tus/server", "@tus/file-store"];
        let all = crates.map(locked).into_iter().chain(packages.map(pinned));
        for text in all {
            let (_, version) = text.split_once(' ').unwrap();
            assert!(version.split('.').all(|it| it.parse::<u32>().is_ok()), "{text}");
        }
    }
}
