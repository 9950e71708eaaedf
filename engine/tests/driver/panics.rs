//! A machine that panics while the kernel has its memory.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use incoming_engine::driver::{Backend, Runtime};
use incoming_engine::op::Op;

use crate::harness::{Cores, Mail, Variant};

crate::on_every_variant! {
    ends_the_process_while_an_op_is_in_flight
}

fn ends_the_process_while_an_op_is_in_flight(variant: Variant) {
    if std::env::var_os(IN_CHILD).is_some() {
        let mut cores = Cores::start(variant, 1);
        let (_client, socket) = cores.connect(0);
        let readable = cores.start_op(0, Op::Readable { socket });
        assert!(!cores.has_completed(readable));
        cores.tell(0, Mail::Panic);
        // Only the end of the process ends this.
        let _ = cores.wait(readable);
        return;
    }
    let module = match variant {
        (Runtime::Monoio, Backend::IoUring) => "monoio_io_uring",
        (Runtime::Monoio, Backend::Epoll) => "monoio_epoll",
        (Runtime::TokioUring, _) => "tokio_uring",
    };
    // The same test once more, in a process that may die of it.
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("panics::{module}::ends_the_process_while_an_op_is_in_flight")])
        .env(IN_CHILD, "1")
        .output()
        .unwrap()
        .status;
    assert_eq!(status.signal(), Some(SIGABRT), "{status}");
}

const IN_CHILD: &str = "INCOMING_TEST_IN_CHILD";
const SIGABRT: i32 = 6;
