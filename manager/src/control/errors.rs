//! How refusals look to clients: each of ours has one code, mapped here and nowhere else.

use crate::drive::chain;
use crate::forward::not_leader;
use skep_store::{ApplyError, ProposeError};
use skep_types::{BadId, FieldError, Kind};
use tonic::{Code, Status};

/// Clients match this text (spec wire-behaviour 18.1).
pub(crate) const OUT_OF_SEQUENCE: &str = "update out of sequence";
/// Clients match the beginning of this text (18.2).
const NAME_CONFLICT: &str = "name conflicts with an existing object";

/// A field that cannot be accepted.
pub(crate) fn invalid(error: FieldError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The id in a request: missing and malformed ones are refused alike, naming the field.
pub(crate) fn id<T: std::str::FromStr<Err = BadId>>(field: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|error: BadId| invalid(FieldError::new(field, error.to_string())))
}

/// An object that is not there.
pub(crate) fn missing(kind: Kind, id: &str) -> Status {
    Status::not_found(format!("{} {id} not found", word(kind)))
}

pub(crate) fn out_of_sequence() -> Status {
    Status::unknown(OUT_OF_SEQUENCE)
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Cluster => "cluster",
        Kind::Node => "node",
        Kind::Service => "service",
        Kind::Task => "task",
        Kind::Network => "network",
        Kind::Secret => "secret",
        Kind::Config => "config",
    }
}

/// Why a write did not happen.
pub(crate) fn propose(error: ProposeError) -> Status {
    match error {
        ProposeError::Refused(refused) => match refused {
            ApplyError::Stale { .. } => out_of_sequence(),
            ApplyError::NameTaken { kind, name, .. } => {
                let text = format!("{NAME_CONFLICT}: {} {name} already exists", word(kind));
                // The original gives networks no code (18.1).
                if kind == Kind::Network { Status::unknown(text) } else { Status::already_exists(text) }
            }
            ApplyError::IdTaken { kind, id } => Status::already_exists(format!("{} {id} already exists", word(kind))),
            ApplyError::Missing { kind, id } => missing(kind, &id),
        },
        ProposeError::TooLarge { .. } => Status::invalid_argument(error.to_string()),
        ProposeError::NotLeader { .. } => not_leader(Code::Unavailable, format!("{error} any more; try again")),
        ProposeError::LeadershipLost { .. } | ProposeError::Timeout(_) | ProposeError::Disk(_) | ProposeError::Stopped => {
            tracing::warn!(error = %chain(&error), "a write failed");
            Status::unavailable(chain(&error))
        }
    }
}
