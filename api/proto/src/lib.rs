//! The wire: SwarmKit's gRPC API ([`v1`]) and our additions to it ([`skep`]), with clients and servers.
//!
//! The messages are generated from `proto/`; their conversions to and from `skep-types` parse at this edge or fail with a
//! `FieldError` that names the field.

/// Package `docker.swarmkit.v1`.
#[allow(clippy::all, clippy::pedantic, clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("docker.swarmkit.v1");
}

/// Package `skep.v1`.
#[allow(clippy::all, clippy::pedantic, clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod skep {
    tonic::include_proto!("skep.v1");
}

mod redacted; // no secret in a debug print
