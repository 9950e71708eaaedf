//! The canonical workload: many uploads at once, measured.
