//! What a run has measured.

use std::time::Duration;

use hdrhistogram::Histogram;

/// What a run has measured.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Of all files.
    pub payload_bytes: u64,
    pub phases: Phases,
    /// Microseconds from the moment when the kernel took a message's first byte to its
    /// acknowledgement. With `Put` and `Tus`: of a request, to its response.
    pub ack_latency_us: Histogram<u64>,
    /// Of the server; `None` without a process to look at.
    pub memory: Option<Memory>,
    /// Jain's index over what each client had acknowledged when the first one had everything:
    /// 1 is fair, 1 / clients is one for all.
    pub fairness: f64,
    /// Of the clients, from the common start to each one's last acknowledgement.
    pub client_bytes_per_s: Rates,
    /// The share of the transfer's time that the clients' thread was busy. Near 1, it is not the
    /// server that is measured.
    pub client_busy: f64,
    /// Files that were read and found right.
    pub verified_count: usize,
}

impl Outcome {
    /// Bytes per second of the transfer, all clients together.
    pub fn bytes_per_s(&self) -> f64 {
        self.payload_bytes as f64 / self.phases.transfer.wall.as_secs_f64()
    }

    /// CPU seconds for each GiB, of transfer and finish together: what an upload costs once it
    /// begins to flow. `None` without a process to look at.
    pub fn cpu_s_per_gib(&self) -> Option<f64> {
        let cpu = self.phases.transfer.cpu? + self.phases.finish.cpu?;
        Some(self.per_gib(cpu))
    }

    /// The same without the finish: of the transfer alone.
    pub fn transfer_cpu_s_per_gib(&self) -> Option<f64> {
        Some(self.per_gib(self.phases.transfer.cpu?))
    }

    fn per_gib(&self, cpu: Cpu) -> f64 {
        let gibibytes = self.payload_bytes as f64 / (1u64 << 30) as f64;
        (cpu.process_ns + cpu.kernel_threads_ns) as f64 / 1e9 / gibibytes
    }
}

/// A run in three parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phases {
    /// Tickets, connections, handshakes; ends when every client may send.
    pub prepare: Phase,
    /// Ends with the last acknowledgement.
    pub transfer: Phase,
    /// Ends when the server has said of every file that it is done.
    pub finish: Phase,
}

/// How long it took, and what the server's machine spent on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    pub wall: Duration,
    /// `None` without a process to look at.
    pub cpu: Option<Cpu>,
}

/// CPU time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Of the server's process and its descendants, all their threads.
    pub process_ns: u64,
    /// Of all threads of the kernel: the end of writes, the file system's journal, write-back.
    pub kernel_threads_ns: u64,
}

impl std::ops::Add for Cpu {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            process_ns: self.process_ns + other.process_ns,
            kernel_threads_ns: self.kernel_threads_ns + other.kernel_threads_ns,
        }
    }
}

/// Resident memory of the server's process and its descendants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Before the first client connects.
    pub rss_bytes_before: u64,
    /// When every client may send.
    pub rss_bytes_start: u64,
    /// With the last acknowledgement.
    pub rss_bytes_end: u64,
    /// The most that was seen, ten times a second.
    pub rss_bytes_max: u64,
}

/// Slowest, median and fastest client, in bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

/// Jain's fairness index: (sum of x)² / (n · sum of x²). Between 1 / n and 1.
pub(crate) fn jain(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|it| *it as f64).sum();
    let squares: f64 = shares.iter().map(|it| (*it as f64).powi(2)).sum();
    // Nobody has anything: nobody has more than the others.
    if squares == 0.0 { 1.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

/// Of at least one client.
pub(crate) fn rates(mut bytes_per_s: Vec<f64>) -> Rates {
    bytes_per_s.sort_by(f64::total_cmp);
    let last = bytes_per_s.len() - 1;
    Rates {
        min: bytes_per_s[0],
        median: bytes_per_s[bytes_per_s.len() / 2],
        max: bytes_per_s[last],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jains_index_is_one_for_equals_and_a_share_for_one_who_has_all() {
        assert_eq!(jain(&[7, 7, 7, 7]), 1.0);
        assert_eq!(jain(&[9, 0, 0]), 1.0 / 3.0);
        assert_eq!(jain(&[0, 0]), 1.0);
        // (1 + 2 + 3)² / (3 · (1 + 4 + 9))
        assert_eq!(jain(&[1, 2, 3]), 36.0 / 42.0);
    }

    #[test]
    fn rates_are_sorted_first() {
        assert_eq!(rates(vec![3.0, 1.0, 2.0]), Rates { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(rates(vec![5.0]), Rates { min: 5.0, median: 5.0, max: 5.0 });
    }
}
