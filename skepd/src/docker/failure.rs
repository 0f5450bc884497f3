//! Refusals of the node's own gRPC services as refusals of the Docker API.

use skep_docker_api::{ApiError, ErrorKind};
use tonic::{Code, Status};

fn kind(code: Code) -> ErrorKind {
    match code {
        Code::Cancelled => ErrorKind::Cancelled,
        // A call that succeeded refuses nothing.
        Code::Ok | Code::Unknown => ErrorKind::Unknown,
        Code::InvalidArgument => ErrorKind::InvalidArgument,
        Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::PermissionDenied => ErrorKind::PermissionDenied,
        Code::ResourceExhausted => ErrorKind::ResourceExhausted,
        Code::FailedPrecondition => ErrorKind::FailedPrecondition,
        Code::Aborted => ErrorKind::Aborted,
        Code::OutOfRange => ErrorKind::OutOfRange,
        Code::Unimplemented => ErrorKind::Unimplemented,
        Code::Internal => ErrorKind::Internal,
        Code::Unavailable => ErrorKind::Unavailable,
        Code::DataLoss => ErrorKind::DataLoss,
        Code::Unauthenticated => ErrorKind::Unauthenticated,
    }
}

/// Of the manager: with the wrapping that dockerd leaves round it.
pub(super) fn of_manager(status: &Status) -> ApiError {
    ApiError::rpc(kind(status.code()), status.message())
}

/// Of the node itself. What only another state of the node would allow is 503, as dockerd has it.
pub(super) fn of_node(status: &Status) -> ApiError {
    let kind = match kind(status.code()) {
        ErrorKind::FailedPrecondition => ErrorKind::Unavailable,
        other => other,
    };
    ApiError::new(kind, status.message())
}
