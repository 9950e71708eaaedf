//! Why a request is refused, and what its client is told.

/// Why a request is refused. [`RequestError::status`] says how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    LineEndInvalid,
    LineFolded,
    RequestLineInvalid,
    MethodNotImplemented,
    TargetInvalid,
    TargetTooLong,
    VersionUnsupported,
    HeadTooLong,
    FieldInvalid,
    FieldsTooMany,
    HostMissing,
    HostRepeated,
    HostInvalid,
    ContentLengthInvalid,
    ContentLengthRepeated,
    TransferEncodingUnsupported,
    /// HTTP/1.0 does not know it (RFC 9112 section 6.1).
    TransferEncodingInOldVersion,
    BothLengths,
    ExpectationUnknown,
    BodyTooLong,
    ChunkInvalid,
    ChunkExtensionsTooLong,
    TrailersTooLong,
}

impl RequestError {
    /// The status of the response. The connection is closed after it.
    pub fn status(self) -> u16 {
        match self {
            Self::LineEndInvalid
            | Self::LineFolded
            | Self::RequestLineInvalid
            | Self::TargetInvalid
            | Self::FieldInvalid
            | Self::HostMissing
            | Self::HostRepeated
            | Self::HostInvalid
            | Self::ContentLengthInvalid
            | Self::ContentLengthRepeated
            | Self::TransferEncodingInOldVersion
            | Self::BothLengths
            | Self::ChunkInvalid
            | Self::ChunkExtensionsTooLong => 400,
            Self::BodyTooLong => 413,
            Self::TargetTooLong => 414,
            Self::ExpectationUnknown => 417,
            Self::HeadTooLong | Self::FieldsTooMany | Self::TrailersTooLong => 431,
            Self::MethodNotImplemented | Self::TransferEncodingUnsupported => 501,
            Self::VersionUnsupported => 505,
        }
    }

    /// One sentence for the body of the response.
    pub fn message(self) -> &'static str {
        match self {
            Self::LineEndInvalid => "A line of the request head does not end with CR LF.",
            Self::LineFolded => "A header field continues on a second line.",
            Self::RequestLineInvalid => "The request line is not `METHOD target HTTP/1.1`.",
            Self::MethodNotImplemented => "The request method is not implemented.",
            Self::TargetInvalid => "The request target is not a path or an http URI.",
            Self::TargetTooLong => "The request target is too long.",
            Self::VersionUnsupported => "Only HTTP/1.0 and HTTP/1.1 are spoken here.",
            Self::HeadTooLong => "The request head is too long.",
            Self::FieldInvalid => "A header field is not `Name: value`.",
            Self::FieldsTooMany => "The request has too many header fields.",
            Self::HostMissing => "The Host header field is missing.",
            Self::HostRepeated => "There is more than one Host header field.",
            Self::HostInvalid => "The Host header field is not `host` or `host:port`.",
            Self::ContentLengthInvalid => "The Content-Length is not a number of bytes.",
            Self::ContentLengthRepeated => "There is more than one Content-Length.",
            Self::TransferEncodingUnsupported => "The only Transfer-Encoding here is `chunked`.",
            Self::TransferEncodingInOldVersion => "HTTP/1.0 has no Transfer-Encoding.",
            Self::BothLengths => "There are both a Content-Length and a Transfer-Encoding.",
            Self::ExpectationUnknown => "The only expectation met here is `100-continue`.",
            Self::BodyTooLong => "The request body is too long.",
            Self::ChunkInvalid => "The chunked body is malformed.",
            Self::ChunkExtensionsTooLong => "The chunked body has too long chunk extensions.",
            Self::TrailersTooLong => "The chunked body has too long trailers.",
        }
    }
}
