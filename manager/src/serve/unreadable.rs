//! What callers are told whose message could not be read.
//!
//! tonic says INTERNAL when a message does not decode, and OUT_OF_RANGE when it is too long, before any method sees it. Both are the
//! caller's fault, and of the second genuine managers say RESOURCE_EXHAUSTED (grpc-go, `rpc_util.go`).

use http::{Extensions, Response};
use skep_proto::Unreadable;
use std::error::Error as _;
use tonic::body::Body;
use tonic::{Code, Status};

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
        _ => return None,
    };
    Some(Status::new(code, status.message()))
}
