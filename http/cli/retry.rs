//! `incoming retry`: web apps that could not be told of a file are told again.

use clap::Args;
use serde_json::json;

use super::Failure;
use super::operator::{Place, error_of};

/// Tell web apps again that could not be told of their files
///
/// Their uploads are those that `incoming status --state failed` shows.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The upload; one that waits for its next try is tried at once
    #[arg(value_name = "ID", required_unless_present = "all")]
    id: Option<String>,

    /// All uploads that have failed
    #[arg(long, conflicts_with = "id")]
    all: bool,

    #[command(flatten)]
    place: Place,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut client = arguments.place.connect()?;
    let answer = client.ask(&match &arguments.id {
        Some(id) => json!({ "command": "retry", "id": id }),
        None => json!({ "command": "retry", "all": true }),
    })?;
    if let Some(error) = error_of(&answer) {
        return Err(Failure::run(&error));
    }
    match answer["retried"].as_u64() {
        Some(1) => println!("1 upload is handed over again"),
        count => println!("{} uploads are handed over again", count.unwrap_or(0)),
    }
    Ok(())
}
