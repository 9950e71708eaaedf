//! Uploads many files at once to a running server, verifies each, and says how it went: for
//! operators who want to know what their machine does.
//!
//! ```sh
//! cargo run --release --example load -- --server 127.0.0.1:4000 --clients 16 --file 256MiB
//! ```

use std::fs;
use std::io::{self, IsTerminal};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use workload::{Progress, Report, Step, Verify, Workload, WorkloadError, run};

/// Upload many files at once to a running server, and measure.
#[derive(Parser, Debug)]
#[command(name = "load", after_help = "Sizes have a unit (B, KiB, MiB, GiB).")]
struct Arguments {
    /// Where the server is, host:port
    #[arg(long, default_value = "127.0.0.1:4000", value_parser = parse_server)]
    server: Server,
    /// How many files are uploaded at once
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// How large each is
    #[arg(long, default_value = "256MiB", value_parser = parse_size)]
    file: u64,
    /// How large each message is [default: what the server announces]
    #[arg(long, requires = "ahead", value_parser = parse_size)]
    chunk: Option<u64>,
    /// How many messages of a client are under way [default: what the server announces]
    #[arg(long, requires = "chunk")]
    ahead: Option<u32>,
    /// Cut messages into frames of so many bytes; Chrome's have 131000
    #[arg(long)]
    frame: Option<u32>,
    /// How many bytes of all clients together are under way at most
    #[arg(long, requires = "chunk", value_parser = parse_size)]
    in_flight_max: Option<u64>,
    /// How many more are connected and send nothing
    #[arg(long, default_value_t = 0)]
    idle: usize,
    /// The server's process, to measure its CPU time and memory
    #[arg(long)]
    pid: Option<u32>,
    /// The key of a web app, if the server demands one
    #[arg(long, env = "INCOMING_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Do not read the files: for a server on another machine. It removes them itself
    #[arg(long)]
    no_verify: bool,
    /// Where this program takes the server's callbacks
    #[arg(long, default_value = "127.0.0.1:0")]
    callback_listen: SocketAddr,
    /// By which host the server reaches it [default: that of --callback-listen]
    #[arg(long)]
    callback_host: Option<String>,
    /// Other seeds make other contents
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the outcome as JSON to this file; with - instead of the table
    #[arg(long)]
    json: Option<String>,
}

#[derive(Clone, Debug)]
struct Server {
    host: String,
    address: SocketAddr,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match upload(&arguments) {
        Ok(report) => match write(&report, arguments.json.as_deref()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("cannot write the outcome: {error}")),
        },
        Err(error) => fail(&error.to_string()),
    }
}

fn upload(arguments: &Arguments) -> Result<Report, WorkloadError> {
    let mut workload = Workload {
        host: arguments.server.host.clone(),
        clients: arguments.clients,
        idle_clients: arguments.idle,
        file_bytes: arguments.file,
        announced: arguments.chunk.is_none(),
        frame_bytes: arguments.frame,
        in_flight_bytes_max: arguments.in_flight_max,
        seed: arguments.seed,
        verify: if arguments.no_verify { Verify::Off } else { Verify::Hash },
        server_process: arguments.pid,
        callback_listen: arguments.callback_listen,
        callback_host: arguments.callback_host.clone(),
        backend_key: arguments.key.clone(),
        ..Workload::new(arguments.server.address)
    };
    if let (Some(chunk), Some(ahead)) = (arguments.chunk, arguments.ahead) {
        workload.chunk_bytes = u32::try_from(chunk).unwrap_or(u32::MAX);
        workload.send_ahead = ahead;
    }
    let mut display = Display::new();
    let outcome = run(&workload, &mut |progress| display.show(progress));
    display.bar.finish_and_clear();
    Ok(Report::new(&workload, &outcome?))
}

/// A bar on a terminal, a line now and then in a log.
struct Display {
    bar: ProgressBar,
    is_terminal: bool,
    step: Option<Step>,
    last_line: Instant,
}

impl Display {
    fn new() -> Self {
        let style = "{msg:12} {bar:30} {binary_bytes} of {binary_total_bytes} {prefix}";
        let style = ProgressStyle::with_template(style).expect("a right template");
        let is_terminal = io::stderr().is_terminal();
        let bar = ProgressBar::no_length().with_style(style);
        Self { bar, is_terminal, step: None, last_line: Instant::now() }
    }

    fn show(&mut self, progress: &Progress) {
        let what = match progress.step {
            Step::Prepare => "connecting",
            Step::Transfer => "uploading",
            Step::Finish => "handing over",
            Step::Verify => "verifying",
        };
        let counted = match progress.step {
            Step::Prepare => format!("{} connected", progress.ready_count),
            Step::Transfer => {
                let seconds = progress.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
                let rate = BinaryBytes((progress.acked_bytes as f64 / seconds) as u64);
                format!("{} files done, {rate}/s", progress.done_count)
            }
            Step::Finish => format!("{} files done", progress.done_count),
            Step::Verify => format!("{} files verified", progress.verified_count),
        };
        if self.is_terminal {
            self.bar.set_length(progress.total_bytes);
            self.bar.set_position(progress.acked_bytes);
            self.bar.set_message(what);
            self.bar.set_prefix(counted);
        } else if self.step != Some(progress.step) || self.last_line.elapsed() >= LINE_INTERVAL {
            let percent = 100.0 * progress.acked_bytes as f64 / progress.total_bytes as f64;
            eprintln!("{what}: {percent:.0} %, {counted}");
            self.last_line = Instant::now();
        }
        self.step = Some(progress.step);
    }
}

fn write(report: &Report, json: Option<&str>) -> io::Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    match json {
        Some("-") => println!("{text}"),
        Some(path) => {
            fs::write(path, text + "\n")?;
            print!("{report}");
        }
        None => print!("{report}"),
    }
    Ok(())
}

fn fail(message: &str) -> ExitCode {
    eprintln!("load: {message}");
    ExitCode::FAILURE
}

fn parse_size(text: &str) -> Result<u64, String> {
    incoming::config::parse_size(text).map_err(|it| format!("{}; {}", it.what, it.remedy))
}

fn parse_server(text: &str) -> Result<Server, String> {
    let host = text.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let mut addresses = host.to_socket_addrs().map_err(|it| it.to_string())?;
    let address = addresses.next().ok_or("this name has no address")?;
    Ok(Server { host, address })
}

const LINE_INTERVAL: Duration = Duration::from_secs(5);
