//! What callers are told whose message could not be read, or whose refusal would be too long.
//!
//! tonic says INTERNAL when a message does not decode, and OUT_OF_RANGE when it is too long, before any method sees it. Both are the
//! caller's fault, and of the second genuine managers say RESOURCE_EXHAUSTED (grpc-go, `rpc_util.go`).
//!
//! A refusal names what it refuses, and a name may have 64 KiB. It travels in a header, and a client that gets more than 16 KiB of
//! headers ends the connection with everything on it.

use bytes::Bytes;
use http::{Extensions, Response};
use skep_proto::Unreadable;
use std::error::Error as _;
use tonic::body::Body;
use tonic::{Code, Status};

/// What a text may have; in a header each byte may take three.
const TEXT: usize = 4 << 10;

/// The answer with the code that fits.
pub(super) fn told(answer: Response<Body>) -> Response<Body> {
    match better(answer.extensions()) {
        Some(status) => status.into_http(),
        None => answer,
    }
}

/// Refusals carry their status; answers have none.
fn better(extensions: &Extensions) -> Option<Status> {
    let status = extensions.get::<Status>()?;
    let code = match status.code() {
        // No method of ours says it: there, too, a message was too long.
        Code::OutOfRange => Code::ResourceExhausted,
        Code::Internal if status.source().is_some_and(|source| source.is::<Unreadable>()) => Code::InvalidArgument,
        code if status.message().len() > TEXT => code,
        _ => return None,
    };
    let details = Bytes::copy_from_slice(status.details());
    Some(Status::with_details_and_metadata(code, brief(status.message()), details, status.metadata().clone()))
}

fn brief(text: &str) -> String {
    if text.len() <= TEXT {
        return text.to_owned();
    }
    let mut end = TEXT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}… ({} bytes more)", &text[..end], text.len() - end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_as_long_as_a_client_takes() {
        let short: Response<Body> = Status::not_found("service web").into_http();
        assert!(better(short.extensions()).is_none());
        let long: Response<Body> = Status::not_found("ä".repeat(1 << 16)).into_http();
        let status = better(long.extensions()).unwrap();
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().len() < TEXT + 64 && status.message().ends_with("bytes more)"));
        let much: Response<Body> = Status::out_of_range("too long").into_http();
        assert_eq!(better(much.extensions()).unwrap().code(), Code::ResourceExhausted);
    }
}
