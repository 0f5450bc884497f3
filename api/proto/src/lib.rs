//! The wire: SwarmKit's gRPC API ([`v1`]) and our additions to it ([`skep`]), with clients and servers.
//!
//! The messages are generated from `proto/`. [`FromWire`] parses them into `skep-types` at this edge or fails with a
//! `FieldError` that names the field; [`ToWire`] is the way back. [`redact_cluster`] and [`redact_secret`] take out of an
//! answer what no client may see.

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

mod codec; // messages to bytes
mod convert; // messages to types and back
mod redact; // what answers leave out
mod redacted; // no secret in a debug print
mod tunnel; // connections in pieces
mod weight; // what a request becomes in memory

/// In [`skep::NetworkReport::programmed`]: what the node was told is not in place, for it could not do it; it goes on trying. As a revision
/// that is the founding of a cluster, before there was any network, so that who does not know the word takes it for no progress.
pub const NOT_PROGRAMMED: u64 = 1;

pub use codec::{LeanCodec, LeanDecoder, LeanEncoder, Unreadable};
pub use convert::{FromWire, ToWire, parse, parse_required};
pub use redact::{redact_cluster, redact_secret};
pub use tunnel::{LONGEST_PIECE, MOST_PIECES, TunnelEnd, TunnelError, WINDOW as TUNNEL_WINDOW, check as check_piece, cost as piece_cost};
