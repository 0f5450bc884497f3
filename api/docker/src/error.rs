//! Refusals: what kind, in which words, with which status.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// The kinds of gRPC, which are the cluster's own, and one that is Docker's alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    /// Also: what is asked conflicts with the object's present state.
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
    /// The object is in the wanted state already: 304 without a body.
    NotModified,
}

impl ErrorKind {
    /// As grpc-go prints its codes.
    fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "Canceled",
            Self::Unknown => "Unknown",
            Self::InvalidArgument => "InvalidArgument",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::PermissionDenied => "PermissionDenied",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::Aborted => "Aborted",
            Self::OutOfRange => "OutOfRange",
            Self::Unimplemented => "Unimplemented",
            Self::Internal => "Internal",
            Self::Unavailable => "Unavailable",
            Self::DataLoss => "DataLoss",
            Self::Unauthenticated => "Unauthenticated",
            Self::NotModified => "NotModified",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition | Self::OutOfRange => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists => StatusCode::CONFLICT,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotModified => StatusCode::NOT_MODIFIED,
            Self::Cancelled
            | Self::Unknown
            | Self::DeadlineExceeded
            | Self::ResourceExhausted
            | Self::Aborted
            | Self::Internal
            | Self::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Why a request is not carried out. Clients match the text, so that dockerd's words are used where there are any.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub kind: ErrorKind,
    pub message: String,
}

impl ApiError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// What a manager answered, in the wrapping that dockerd leaves round it.
    pub fn rpc(kind: ErrorKind, description: &str) -> Self {
        Self { kind, message: format!("rpc error: code = {} desc = {description}", kind.name()) }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::AlreadyExists, message)
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::PermissionDenied, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// What this system does not do; ends with what can be done instead, where there is something.
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unimplemented, message)
    }

    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }

    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.kind.status()
    }
}

#[derive(Serialize)]
struct Body<'a> {
    message: &'a str,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.kind == ErrorKind::NotModified {
            return StatusCode::NOT_MODIFIED.into_response();
        }
        let mut text = serde_json::to_string(&Body { message: &self.message }).unwrap_or_else(|_| "{}".into());
        text.push('\n');
        (self.status(), [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_manager_says_keeps_its_wrapping() {
        let error = ApiError::rpc(ErrorKind::NotFound, "service x not found");
        assert_eq!(error.to_string(), "rpc error: code = NotFound desc = service x not found");
        assert_eq!(error.status(), StatusCode::NOT_FOUND);
        // A conflict of clients that dockerd answers with 500 all the same (engine-api 0).
        assert_eq!(ApiError::rpc(ErrorKind::Unknown, "update out of sequence").status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
