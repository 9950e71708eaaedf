//! The command line of each server, and the files that it wants to find.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Durability, Runtime, Server, Setup};

/// How to start `server` so that it listens on this port of 127.0.0.1.
pub(super) fn command(server: Server, setup: &Setup<'_>, port: u16) -> io::Result<Command> {
    let files = stored(server, setup.directory);
    let address = format!("127.0.0.1:{port}");
    let mut command = Command::new(program(server)?);
    match server {
        Server::Ours { runtime, durability } => {
            command.args(["serve", "--listen", &address, "--reserve", "0B", "--log", "warn"]);
            command.args(["--runtime", runtime_name(runtime)]);
            command.args(["--durability", durability_name(durability)]);
            command.args(["--cores", &setup.cpus.len().to_string()]);
            command.arg("--storage-dir").arg(setup.directory.join(STORAGE));
            if let Some(bytes) = setup.memory_bytes {
                command.args(["--memory", &format!("{bytes}B")]);
            }
            if let Some(count) = setup.connections_max {
                command.args(["--connections-max", &count.to_string()]);
            }
        }
        Server::Floor { runtime } => {
            command.args(["floor", "--listen", &address, "--runtime", runtime_name(runtime)]);
        }
        Server::Ring => {
            command.args(["ring", "--listen", &address]);
        }
        Server::Naive => {
            command.args(["naive", "--listen", &address, "--directory"]).arg(files);
        }
        Server::Nginx256k | Server::NginxDefault => {
            let configuration = setup.directory.join("nginx.conf");
            fs::write(&configuration, nginx_configuration(server, setup.directory, port))?;
            command.arg("-p").arg(setup.directory).arg("-c").arg(configuration);
        }
        Server::NodeWs | Server::TusNode => {
            command.arg(node_program(server)?).arg(port.to_string()).arg(files);
        }
        Server::Copyparty => {
            // Without the checksums of what is uploaded, and without TLS on the same port.
            command.args(["-m", "copyparty", "-q", "--http-only", "--put-ck", "no"]);
            command.args(["-i", "127.0.0.1", "-p", &port.to_string(), "-v"]);
            let mut volume = files.into_os_string();
            volume.push(":files:w");
            command.arg(volume);
        }
        Server::Rustus => {
            let body_bytes_max = (2 * super::RUSTUS_PATCH_BYTES).to_string();
            command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
            command.args(["--workers", &setup.cpus.len().to_string(), "--log-level", "ERROR"]);
            command.args(["--max-body-size", &body_bytes_max]);
            command.arg("--data-dir").arg(&files).arg("--info-dir").arg(files);
        }
    }
    Ok(command)
}

/// The executable of a server.
///
/// # Errors
/// `NotFound`: it is not installed.
pub(super) fn program(server: Server) -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    match server {
        Server::Ours { .. } => existing(program.with_file_name("incoming")),
        Server::Floor { .. } | Server::Ring | Server::Naive => Ok(program),
        Server::Nginx256k | Server::NginxDefault => in_path("nginx"),
        Server::NodeWs | Server::TusNode => {
            existing(node_program(server)?)?;
            in_path("node")
        }
        Server::Copyparty => {
            existing(installed()?.join("python/installed"))?;
            existing(installed()?.join("python/bin/python3"))
        }
        Server::Rustus => existing(installed()?.join("rustus/bin/rustus")),
    }
}

/// What installs a server.
pub(super) fn remedy(server: Server) -> &'static str {
    match server {
        Server::Ours { .. } => "cargo build --release --bin incoming",
        Server::Floor { .. } | Server::Ring | Server::Naive => "cargo build --release --bin peers",
        Server::Nginx256k | Server::NginxDefault => "benches/peers/install nginx",
        Server::NodeWs | Server::TusNode => "benches/peers/install node",
        Server::Copyparty => "benches/peers/install copyparty",
        Server::Rustus => "benches/peers/install rustus",
    }
}

/// Where a server that was started in `directory` keeps the files that have arrived.
pub(super) fn stored(server: Server, directory: &Path) -> PathBuf {
    match server {
        Server::Ours { .. } => directory.join(STORAGE).join("arrived"),
        _ => directory.join("files"),
    }
}

fn runtime_name(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Monoio => "monoio",
        Runtime::TokioUring => "tokio-uring",
    }
}

fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Written => "written",
        Durability::Synced => "synced",
    }
}

fn nginx_configuration(server: Server, directory: &Path, port: u16) -> String {
    let body_buffer = match server {
        Server::Nginx256k => "client_body_buffer_size 256k;",
        _ => "",
    };
    NGINX_CONFIGURATION
        .replace("{directory}", &directory.display().to_string())
        .replace("{port}", &port.to_string())
        .replace("{body_buffer}", body_buffer)
}

fn node_program(server: Server) -> io::Result<PathBuf> {
    let name = if server == Server::NodeWs { "ws_server.mjs" } else { "tus_server.mjs" };
    existing(installed()?.join("node/installed"))?;
    existing(installed()?.join("node").join(name))
}

/// Where `benches/peers/install` puts things: `target/peers`, this program being in
/// `target/release`.
fn installed() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(Path::parent).ok_or(io::ErrorKind::NotFound)?;
    Ok(target.join("peers"))
}

/// `PATH`, and where Debian keeps servers.
fn in_path(name: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let mut places = directories.map(|it| it.join(name));
    places.find(|it| it.is_file()).ok_or(io::ErrorKind::NotFound.into())
}

fn existing(path: PathBuf) -> io::Result<PathBuf> {
    if path.is_file() { Ok(path) } else { Err(io::ErrorKind::NotFound.into()) }
}

const STORAGE: &str = "storage";
const NGINX_CONFIGURATION: &str = include_str!("../nginx.conf");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nginx_configurations_differ_in_the_buffer_only() {
        let directory = Path::new("/data/run");
        let [large, default] = [Server::Nginx256k, Server::NginxDefault]
            .map(|it| nginx_configuration(it, directory, 4711));
        assert!(large.contains("listen 127.0.0.1:4711;"));
        assert!(large.contains("client_body_temp_path /data/run/body;"));
        assert_eq!(large.replace("client_body_buffer_size 256k;", ""), default);
        // What is left in braces are nginx's own blocks.
        assert!(!large.contains("{directory}") && !large.contains("{body_buffer}"));
    }
}
