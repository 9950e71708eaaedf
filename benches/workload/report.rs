//! The outcome as a table and as JSON.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Outcome, Protocol, Workload};

/// What was asked for and what came out, in plain numbers. `Display` makes a table of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub protocol: String,
    pub clients: usize,
    pub idle_clients: usize,
    pub file_bytes: u64,
    /// Without a value: as the server announced.
    pub chunk_bytes: Option<u32>,
    pub send_ahead: Option<u32>,
    pub frame_bytes: Option<u32>,
    pub in_flight_bytes_max: Option<u64>,
    pub payload_bytes: u64,
    pub prepare_s: f64,
    pub transfer_s: f64,
    pub finish_s: f64,
    /// Of the transfer.
    pub bytes_per_s: f64,
    /// Of process and kernel threads in transfer and finish; none of these without a process.
    pub cpu_s_per_gib: Option<f64>,
    pub transfer_process_cpu_s: Option<f64>,
    pub transfer_kernel_cpu_s: Option<f64>,
    pub finish_process_cpu_s: Option<f64>,
    pub finish_kernel_cpu_s: Option<f64>,
    pub ack_p50_us: u64,
    pub ack_p99_us: u64,
    pub ack_p999_us: u64,
    pub ack_max_us: u64,
    pub rss_bytes_before: Option<u64>,
    pub rss_bytes_start: Option<u64>,
    pub rss_bytes_end: Option<u64>,
    pub rss_bytes_max: Option<u64>,
    pub fairness: f64,
    pub client_bytes_per_s_min: f64,
    pub client_bytes_per_s_median: f64,
    pub client_bytes_per_s_max: f64,
    pub client_busy: f64,
    pub verified_count: usize,
}

impl Report {
    pub fn new(workload: &Workload, outcome: &Outcome) -> Self {
        let over_websocket =
            matches!(workload.protocol, Protocol::Incoming | Protocol::WebSocketOnly);
        let given = over_websocket && !workload.announced;
        let phases = &outcome.phases;
        let seconds = |ns: u64| ns as f64 / 1e9;
        let latency = |quantile| outcome.ack_latency_us.value_at_quantile(quantile);
        let rates = outcome.client_bytes_per_s;
        Self {
            protocol: match workload.protocol {
                Protocol::Incoming => "incoming",
                Protocol::WebSocketOnly => "websocket",
                Protocol::Put { .. } => "put",
                Protocol::Tus { .. } => "tus",
            }
            .to_owned(),
            clients: workload.clients,
            idle_clients: workload.idle_clients,
            file_bytes: workload.file_bytes,
            chunk_bytes: given.then_some(workload.chunk_bytes),
            send_ahead: given.then_some(workload.send_ahead),
            frame_bytes: workload.frame_bytes,
            in_flight_bytes_max: workload.in_flight_bytes_max,
            payload_bytes: outcome.payload_bytes,
            prepare_s: phases.prepare.wall.as_secs_f64(),
            transfer_s: phases.transfer.wall.as_secs_f64(),
            finish_s: phases.finish.wall.as_secs_f64(),
            bytes_per_s: outcome.bytes_per_s(),
            cpu_s_per_gib: outcome.cpu_s_per_gib(),
            transfer_process_cpu_s: phases.transfer.cpu.map(|it| seconds(it.process_ns)),
            transfer_kernel_cpu_s: phases.transfer.cpu.map(|it| seconds(it.kernel_threads_ns)),
            finish_process_cpu_s: phases.finish.cpu.map(|it| seconds(it.process_ns)),
            finish_kernel_cpu_s: phases.finish.cpu.map(|it| seconds(it.kernel_threads_ns)),
            ack_p50_us: latency(0.5),
            ack_p99_us: latency(0.99),
            ack_p999_us: latency(0.999),
            ack_max_us: outcome.ack_latency_us.max(),
            rss_bytes_before: outcome.memory.map(|it| it.rss_bytes_before),
            rss_bytes_start: outcome.memory.map(|it| it.rss_bytes_start),
            rss_bytes_end: outcome.memory.map(|it| it.rss_bytes_end),
            rss_bytes_max: outcome.memory.map(|it| it.rss_bytes_max),
            fairness: outcome.fairness,
            client_bytes_per_s_min: rates.min,
            client_bytes_per_s_median: rates.median,
            client_bytes_per_s_max: rates.max,
            client_busy: outcome.client_busy,
            verified_count: outcome.verified_count,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(to, "{name:<20}{value}");
        let mut uploads = format!("{} × {}", self.clients, bytes(self.file_bytes as f64));
        match (self.chunk_bytes, self.send_ahead) {
            (Some(chunk_bytes), Some(send_ahead)) => {
                let chunk = bytes(f64::from(chunk_bytes));
                uploads.push_str(&format!(", chunks of {chunk}, {send_ahead} ahead"));
            }
            _ => uploads.push_str(", chunks as the server likes them"),
        }
        row("uploads", uploads)?;
        if self.idle_clients > 0 {
            row("idle beside them", self.idle_clients.to_string())?;
        }
        row("throughput", format!("{}/s", bytes(self.bytes_per_s)))?;
        row(
            "time",
            format!(
                "{:.2} s transfer, {:.2} s before, {:.2} s until all were handed over",
                self.transfer_s, self.prepare_s, self.finish_s
            ),
        )?;
        row(
            "acknowledged after",
            format!(
                "{} p50, {} p99, {} p99.9, {} at most",
                milliseconds(self.ack_p50_us),
                milliseconds(self.ack_p99_us),
                milliseconds(self.ack_p999_us),
                milliseconds(self.ack_max_us)
            ),
        )?;
        row(
            "rate of a client",
            format!(
                "{}/s slowest, {}/s median, {}/s fastest",
                bytes(self.client_bytes_per_s_min),
                bytes(self.client_bytes_per_s_median),
                bytes(self.client_bytes_per_s_max)
            ),
        )?;
        row("fairness", format!("{:.3}", self.fairness))?;
        if let (Some(cpu), Some(process), Some(kernel)) =
            (self.cpu_s_per_gib, self.transfer_process_cpu_s, self.transfer_kernel_cpu_s)
        {
            row(
                "server's CPU",
                format!("{cpu:.3} s/GiB ({process:.2} s + {kernel:.2} s in kernel threads)"),
            )?;
        }
        if let (Some(before), Some(start), Some(max)) =
            (self.rss_bytes_before, self.rss_bytes_start, self.rss_bytes_max)
        {
            row(
                "server's memory",
                format!(
                    "{} before, {} with all connected, {} at most",
                    bytes(before as f64),
                    bytes(start as f64),
                    bytes(max as f64)
                ),
            )?;
        }
        row("this client", format!("busy {:.0} % of the time", self.client_busy * 100.0))?;
        match self.verified_count {
            0 => row("verified", "no".to_owned()),
            count => row("verified", format!("{count} of {} files", self.clients)),
        }
    }
}

/// With a unit, three or four digits.
fn bytes(number: f64) -> String {
    let mut number = number;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if number < 1000.0 {
            let digits =
                if unit == "B" || number >= 100.0 || number.fract() == 0.0 { 0 } else { 2 };
            return format!("{number:.digits$} {unit}");
        }
        number /= 1024.0;
    }
    format!("{number:.2} TiB")
}

fn milliseconds(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}
