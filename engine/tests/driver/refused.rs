//! Where io_uring is refused, as container runtimes do.

use std::io::ErrorKind;
use std::process::Command;

use incoming_engine::driver::{Backend, Runtime, io_uring_remedy, probe_io_uring};

use crate::harness::{Cores, first_error};

/// Here it works; the test below has it run where it does not.
#[test]
fn probe_tells_what_the_runtimes_meet() {
    match std::env::var(REFUSED_WITH) {
        Err(_) => {
            let probed = probe_io_uring();
            assert!(probed.is_ok(), "needs io_uring here: {probed:?}: {}", remedy(&probed));
            Cores::start((Runtime::Monoio, Backend::IoUring), 1).stop();
        }
        Ok(errno) => {
            let errno = Some(errno.parse().unwrap());
            assert_eq!(probe_io_uring().unwrap_err().raw_os_error(), errno);
            assert!(remedy(&probe_io_uring()).contains("seccomp"));
            // An error, never a panic.
            for runtime in [Runtime::Monoio, Runtime::TokioUring] {
                assert_eq!(first_error((runtime, Backend::IoUring)).raw_os_error(), errno);
            }
            Cores::start((Runtime::Monoio, Backend::Epoll), 1).stop();
        }
    }
}

#[test]
fn refusal_is_detected_and_epoll_needs_no_ring() {
    for (name, errno) in [("EPERM", "1"), ("ENOSYS", "38")] {
        for tests in ["refused::probe_tells_what_the_runtimes_meet", "::monoio_epoll::"] {
            let output = Command::new("python3")
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/it/without_io_uring.py"))
                .arg(name)
                .arg(std::env::current_exe().unwrap())
                .arg(tests)
                .env(REFUSED_WITH, errno)
                .output()
                .expect("needs Python: apt-get install python3");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
            assert!(!said.contains(" 0 passed"), "no test was run: {said}");
        }
    }
}

#[test]
fn tokio_uring_has_no_epoll() {
    let error = first_error((Runtime::TokioUring, Backend::Epoll));
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

fn remedy(probed: &std::io::Result<()>) -> &'static str {
    probed.as_ref().err().map_or("", io_uring_remedy)
}

/// Says to a test in a sandbox which error number io_uring has there.
const REFUSED_WITH: &str = "INCOMING_TEST_IO_URING_REFUSED_WITH";
