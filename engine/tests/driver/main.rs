//! Every promise of an op, on real sockets and files, for every runtime and what it waits with.

mod files;
mod harness;
mod panics;
mod refused;
mod sockets;
mod storage;

/// Makes each function a test of every variant.
macro_rules! on_every_variant {
    ($($test:ident)*) => {
        mod monoio_io_uring {
            use incoming_engine::driver::{Backend, Runtime};
            $(#[test] fn $test() { super::$test((Runtime::Monoio, Backend::IoUring)); })*
        }
        mod monoio_epoll {
            use incoming_engine::driver::{Backend, Runtime};
            $(#[test] fn $test() { super::$test((Runtime::Monoio, Backend::Epoll)); })*
        }
        mod tokio_uring {
            use incoming_engine::driver::{Backend, Runtime};
            $(#[test] fn $test() { super::$test((Runtime::TokioUring, Backend::IoUring)); })*
        }
    };
}
pub(crate) use on_every_variant;
