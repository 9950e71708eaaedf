//! `incoming status`: what a running server has.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::Failure;
use super::operator::{Place, error_of};
use super::table::{progress, rate, size, span, visible};

/// Show what a running server has under way
///
/// Without options: all uploads that are not over. With an ID: everything about one.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Only this upload
    #[arg(value_name = "ID", conflicts_with = "state")]
    id: Option<String>,

    /// Only uploads in these states: issued, receiving, storing, handing_over, waiting, failed,
    /// finished, cancelled; commas between, or all [default: those that are not over]
    #[arg(long, value_name = "STATES")]
    state: Option<String>,

    /// As one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    place: Place,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut client = arguments.place.connect()?;
    let mut request = json!({ "command": "status", "limit": PAGE_COUNT });
    match (&arguments.id, arguments.state.as_deref()) {
        (Some(id), _) => request["id"] = json!(id),
        (None, Some("all")) => {}
        (None, Some(states)) => request["state"] = json!(states),
        (None, None) => request["state"] = json!(OPEN_STATES),
    }
    let mut out = std::io::stdout().lock();
    let mut whole: Option<Value> = None;
    loop {
        let mut page = client.ask(&request)?;
        if let Some(error) = error_of(&page) {
            return Err(Failure::run(&error));
        }
        request["after"] = page["next"].take();
        // Who does not read to the end has seen enough.
        let written = match (&mut whole, arguments.json) {
            (Some(whole), true) => {
                extend(whole, page);
                Ok(())
            }
            (None, true) => {
                whole = Some(page);
                Ok(())
            }
            (Some(_), false) => write_rows(&mut out, &page),
            (None, false) => {
                let written = match arguments.id {
                    Some(_) => write_one(&mut out, &page["uploads"][0]),
                    None => write_head(&mut out, &page).and_then(|()| write_rows(&mut out, &page)),
                };
                whole = Some(page);
                written
            }
        };
        if written.is_err() || request["after"].is_null() {
            break;
        }
    }
    if let Some(whole) = whole.filter(|_| arguments.json) {
        let _ = writeln!(out, "{whole}");
    }
    Ok(())
}

fn extend(whole: &mut Value, mut page: Value) {
    if let (Some(uploads), Value::Array(more)) =
        (whole["uploads"].as_array_mut(), page["uploads"].take())
    {
        uploads.extend(more);
    }
}

fn write_head(out: &mut impl Write, status: &Value) -> std::io::Result<()> {
    let listen: Vec<&str> =
        status["listen"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let uptime = Duration::from_secs(status["uptime_s"].as_u64().unwrap_or(0));
    writeln!(
        out,
        "incoming {}, process {}, up {}, on {}",
        text(&status["version"]),
        status["pid"],
        span(uptime),
        listen.join(", ")
    )?;
    let room = status["storage_free_bytes"].as_u64();
    let room =
        room.map_or_else(|| text(&status["storage"]).to_owned(), |it| format!("{} free", size(it)));
    writeln!(out, "{}: {room}", text(&status["storage_dir"]))?;
    let cores = status["cores"].as_array().map_or(&[][..], Vec::as_slice);
    let connections: u64 = cores.iter().filter_map(|it| it["connections"].as_u64()).sum();
    let totals: Vec<String> = status["totals"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, count)| count.as_u64() != Some(0))
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let totals = if totals.is_empty() { "none".to_owned() } else { totals.join(", ") };
    writeln!(out, "uploads: {totals}; {connections} connections on {} cores", cores.len())?;
    if status["uploads"].as_array().is_some_and(|it| !it.is_empty()) {
        writeln!(
            out,
            "\n{:36} {:12} {:>9} {:>4} {:>11} {:>5} {:>6} NAME",
            "ID", "STATE", "SIZE", "DONE", "RATE", "TRIES", "NEXT"
        )?;
    }
    Ok(())
}

fn write_rows(out: &mut impl Write, status: &Value) -> std::io::Result<()> {
    for it in status["uploads"].as_array().into_iter().flatten() {
        let number = |name: &str| it[name].as_u64().unwrap_or(0);
        let next = it["next_attempt_in_ms"].as_u64();
        let row = format!(
            "{:36} {:12} {:>9} {:>4} {:>11} {:>5} {:>6} {}",
            text(&it["id"]),
            text(&it["state"]),
            size(number("length_bytes")),
            progress(number("committed_bytes"), number("length_bytes")),
            rate(number("rate_bytes_per_s")),
            number("attempts"),
            next.map_or_else(String::new, |ms| span(Duration::from_millis(ms))),
            visible(text(&it["filename_from_browser"])),
        );
        writeln!(out, "{}", row.trim_end())?;
        for reason in [&it["cancel_reason"], &it["last_error"]] {
            if let Some(reason) = reason.as_str() {
                writeln!(out, "    {}", visible(reason))?;
            }
        }
    }
    Ok(())
}

fn write_one(out: &mut impl Write, upload: &Value) -> std::io::Result<()> {
    for (name, value) in upload.as_object().into_iter().flatten() {
        let shown = match value {
            Value::Null => continue,
            Value::String(it) => visible(it),
            Value::Number(it) if name.ends_with("_ms") => {
                span(Duration::from_millis(it.as_u64().unwrap_or(0)))
            }
            other => other.to_string(),
        };
        writeln!(out, "{:22} {shown}", name.trim_end_matches("_ms"))?;
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

const OPEN_STATES: &str = "issued,receiving,storing,handing_over,waiting,failed";
/// Uploads in one answer.
const PAGE_COUNT: u32 = 100;
