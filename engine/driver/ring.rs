//! How a ring is made, and whether this kernel lets us have one.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, opcode};

/// Whether io_uring works here: makes a ring as the drivers do, asks for the operations they use,
/// and runs one.
///
/// # Errors
/// The kernel's, so that the operator sees the reason; [`io_uring_remedy`] says what helps.
pub fn probe_io_uring() -> io::Result<()> {
    let mut ring = build(|ring| ring.build(ENTRY_COUNT))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if !OPERATIONS.iter().all(|it| probe.is_supported(*it)) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: an operation without any memory.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    assert!(pushed.is_ok(), "a new ring has room");
    ring.submit_and_wait(1).map(drop)
}

/// What an operator can do about an error of [`probe_io_uring`]: half a sentence.
pub fn io_uring_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(EPERM | EACCES) => {
            "allow it in the container's seccomp profile, or set sysctl kernel.io_uring_disabled=0"
        }
        Some(ENOMEM) => "raise the limit of locked memory (LimitMEMLOCK=, ulimit -l)",
        Some(EMFILE | ENFILE) => "raise the limit of open files (LimitNOFILE=, ulimit -n)",
        _ => "use Linux 5.11 or newer, or allow it in the container's seccomp profile",
    }
}

/// Builds with the flags of a ring that one thread uses, which save interrupts; kernels before 6.1
/// do not know them.
pub(super) fn build<T>(
    mut build: impl FnMut(&mut io_uring::Builder) -> io::Result<T>,
) -> io::Result<T> {
    let mut one_thread = plain();
    one_thread.setup_single_issuer().setup_defer_taskrun();
    let mut build_either = || match build(&mut one_thread) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => build(&mut plain()),
        result => result,
    };
    patiently(&mut build_either)
}

/// Makes a ring, again and again while there is no memory for it: a process that was killed gives
/// its locked memory back some time after its end, and a restart must not fail for that.
pub(super) fn patiently<T>(mut make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let give_up = Instant::now() + MEMORY_PATIENCE;
    loop {
        match make() {
            Err(error) if error.raw_os_error() == Some(ENOMEM) && Instant::now() < give_up => {
                thread::sleep(MEMORY_PAUSE);
            }
            result => return result,
        }
    }
}

/// Room for the completions of many idle connections at once; what does not fit, the kernel keeps.
pub(super) fn plain() -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(4 * ENTRY_COUNT);
    builder
}

/// Requests that one turn of the loop gives to the kernel in one call; more take more calls.
pub(super) const ENTRY_COUNT: u32 = 1024;

const MEMORY_PATIENCE: Duration = Duration::from_secs(3);
const MEMORY_PAUSE: Duration = Duration::from_millis(50);

const OPERATIONS: [u8; 5] = [
    opcode::PollAdd::CODE,
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Fsync::CODE,
    opcode::Close::CODE,
];

const EPERM: i32 = 1;
const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_memory_and_for_nothing_else() {
        let mut left = 3;
        let made = patiently(|| {
            left -= 1;
            if left > 0 { Err(io::Error::from_raw_os_error(ENOMEM)) } else { Ok("a ring") }
        });
        assert_eq!(made.unwrap(), "a ring");
        let mut tries = 0;
        let refused = patiently(|| {
            tries += 1;
            Err::<(), _>(io::Error::from_raw_os_error(EPERM))
        });
        assert_eq!((refused.unwrap_err().raw_os_error(), tries), (Some(EPERM), 1));
    }
}
