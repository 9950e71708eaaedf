//! `incoming demo`: the server and a small web app beside it, to try it out.

use std::io::Write;
use std::net::SocketAddr;

use clap::Args;

use super::settings::Settings;
use super::{Failure, HELP_FOOTER, log};
use crate::config::Home;
use crate::demo::Demo;
use crate::server::Server;

/// Run the server and a web app to try it out, in one process
///
/// Open the page it names and drop files on it. What arrives lies in the directory `uploaded` of
/// the storage directory.
#[derive(Args, Debug)]
#[command(after_help = HELP_FOOTER)]
pub(super) struct Arguments {
    /// Address and port of the web app's page; port 0: one that is free
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:4080")]
    page: SocketAddr,

    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let home = Home { subdirectory: Some("demo"), ..Home::find() };
    let config = arguments.settings.resolve(&home)?;
    log::start(&config);
    let server = Server::start(&config)?;
    server.stop_on_signals()?;
    let demo = Demo::start(arguments.page, server.address(), &config.storage_dir)
        .map_err(|error| Failure::run(&error))?;
    let mut stdout = std::io::stdout();
    let _ = writeln!(
        stdout,
        "listening on http://{}\nfiles go to {}\nopen http://{}",
        server.address(),
        demo.upload_dir().display(),
        demo.address()
    );
    let _ = stdout.flush();
    Ok(server.run()?)
}
