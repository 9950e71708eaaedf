//! Why a WebSocket ends, as its close frame says: the codes of RFC 6455 section 7.4.1 and its
//! registry that a server chooses, and our own from the range for applications.

/// Everything is said.
pub const NORMAL: u16 = 1000;
/// The server stops.
pub const GOING_AWAY: u16 = 1001;
/// Nothing was said in time.
pub const POLICY_VIOLATION: u16 = 1008;
/// The disk failed.
pub const INTERNAL_ERROR: u16 = 1011;
/// Something is full.
pub const TRY_AGAIN_LATER: u16 = 1013;
/// Another connection has the upload now.
pub const TAKEN_OVER: u16 = 4001;
