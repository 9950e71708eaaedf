//! The Incoming!! server beside its peers and its floor.

fn main() {}
