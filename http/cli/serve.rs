//! `incoming serve`: the server.

use std::io::Write;

use clap::Args;

use super::settings::Settings;
use super::{Failure, HELP_FOOTER, log};
use crate::config::Home;
use crate::server::Server;

/// Run the server
#[derive(Args, Debug)]
#[command(after_help = HELP_FOOTER)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.settings.resolve(&Home::find())?;
    log::start(&config);
    let server = Server::start_or_take_over(&config)?;
    server.stop_on_signals()?;
    // For scripts, which wait for this line. Nobody listening to it is no error.
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, "listening on http://{}", server.address());
    let _ = stdout.flush();
    Ok(server.run()?)
}
