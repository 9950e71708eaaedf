//! The `incoming` command.
#![forbid(unsafe_code)]

fn main() {}
