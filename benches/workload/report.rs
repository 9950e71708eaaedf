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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hdrhistogram::Histogram;

    use super::*;
    use crate::{Cpu, Memory, Phase, Phases, Rates};

    #[test]
    fn sizes_have_the_unit_that_fits() {
        for (number, text) in [
            (0.0, "0 B"),
            (999.0, "999 B"),
            (1000.0, "0.98 KiB"),
            (1024.0, "1 KiB"),
            (1536.0, "1.50 KiB"),
            (268435456.0, "256 MiB"),
            (1.5 * 1024.0 * 1024.0 * 1024.0, "1.50 GiB"),
            (2048.0 * 1024.0 * 1024.0 * 1024.0, "2.00 TiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn a_report_says_what_was_measured_and_survives_json() {
        let workload = Workload {
            clients: 2,
            file_bytes: 1 << 29,
            idle_clients: 7,
            ..Workload::new(([127, 0, 0, 1], 1).into())
        };
        let phase = |ms, process_ns, kernel_threads_ns| Phase {
            wall: Duration::from_millis(ms),
            cpu: Some(Cpu { process_ns, kernel_threads_ns }),
        };
        let mut ack_latency_us = Histogram::new(3).unwrap();
        ack_latency_us.record_n(1000, 99).unwrap();
        ack_latency_us.record(50_000).unwrap();
        let mut outcome = Outcome {
            payload_bytes: 1 << 30,
            phases: Phases {
                prepare: phase(10, 5_000_000, 0),
                transfer: phase(500, 200_000_000, 40_000_000),
                finish: phase(20, 10_000_000, 1_000_000),
            },
            ack_latency_us,
            memory: Some(Memory::default()),
            fairness: 0.5,
            client_bytes_per_s: Rates { min: 1.0, median: 2.0, max: 3.0 },
            client_busy: 0.25,
            verified_count: 2,
        };
        let report = Report::new(&workload, &outcome);
        // Tickets and connections do not count.
        assert_eq!(report.cpu_s_per_gib, Some(0.251));
        assert_eq!(outcome.transfer_cpu_s_per_gib(), Some(0.24));
        assert_eq!(report.bytes_per_s, 2.0 * f64::from(1 << 30));
        assert_eq!((report.ack_p50_us, report.ack_p99_us), (1000, 1000));
        assert!(report.ack_p999_us >= 50_000);
        let table = report.to_string();
        for line in [
            "uploads             2 × 512 MiB, chunks of 1 MiB, 2 ahead\n",
            "idle beside them    7\n",
            "throughput          2 GiB/s\n",
            "server's CPU        0.251 s/GiB (0.20 s + 0.04 s in kernel threads)\n",
            "verified            2 of 2 files\n",
        ] {
            assert!(table.contains(line), "{line}{table}");
        }
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        outcome.phases.transfer.cpu = None;
        outcome.memory = None;
        let report = Report::new(&Workload { announced: true, ..workload }, &outcome);
        assert_eq!((report.cpu_s_per_gib, report.chunk_bytes), (None, None));
        assert!(!report.to_string().contains("server's"), "nothing that was not measured");
    }
}
