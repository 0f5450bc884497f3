//! Times, versions, ids, annotations, drivers.

use super::{FromWire, ToWire, message, plain};
use crate::v1;
use skep_types::{
    Annotations, ClusterId, ConfigId, Driver, FieldError, Meta, NetworkId, NodeId, SecretId, ServiceId, SessionId, SubscriptionId, TaskId,
    Timestamp, Version,
};
use std::time::Duration;

message!(Meta <=> v1::Meta { version => full, created_at => unset_is_zero, updated_at => unset_is_zero } keeps { created });
message!(Driver <=> v1::Driver { name, options });
message!(Annotations <=> v1::Annotations { name, labels, indices });

impl FromWire for Version {
    type Wire = v1::Version;
    fn from_wire(wire: v1::Version) -> Result<Self, FieldError> {
        Ok(Self(wire.index))
    }
}

impl ToWire for Version {
    type Wire = v1::Version;
    fn to_wire(&self) -> v1::Version {
        v1::Version { index: self.0 }
    }
}

impl FromWire for (String, String) {
    type Wire = v1::IndexEntry;
    fn from_wire(wire: v1::IndexEntry) -> Result<Self, FieldError> {
        Ok((plain::from("key", wire.key)?, plain::from("val", wire.val)?))
    }
}

impl ToWire for (String, String) {
    type Wire = v1::IndexEntry;
    fn to_wire(&self) -> v1::IndexEntry {
        v1::IndexEntry { key: self.0.clone(), val: self.1.clone() }
    }
}

const NANOS: i32 = 1_000_000_000;

impl FromWire for Timestamp {
    type Wire = prost_types::Timestamp;

    /// Nanoseconds count forward from the second, also before 1970 (`google/protobuf/timestamp.proto`).
    fn from_wire(wire: prost_types::Timestamp) -> Result<Self, FieldError> {
        if !(0..NANOS).contains(&wire.nanos) {
            return Err(FieldError::new("nanos", format!("{} is not within 0..=999999999", wire.nanos)));
        }
        let nanos = i128::from(wire.seconds) * i128::from(NANOS) + i128::from(wire.nanos);
        match i64::try_from(nanos) {
            Ok(nanos) => Ok(Self(nanos)),
            Err(_) => Err(FieldError::new("", "is not a time between the years 1677 and 2262")),
        }
    }
}

impl ToWire for Timestamp {
    type Wire = prost_types::Timestamp;
    fn to_wire(&self) -> prost_types::Timestamp {
        let (seconds, nanos) = self.parts();
        prost_types::Timestamp { seconds, nanos }
    }
}

impl FromWire for Duration {
    type Wire = prost_types::Duration;

    /// No length of time in the API may be negative, and genuine peers hold nanoseconds in an `int64`.
    fn from_wire(wire: prost_types::Duration) -> Result<Self, FieldError> {
        if wire.seconds < 0 || wire.seconds == 0 && (-NANOS + 1..0).contains(&wire.nanos) {
            return Err(FieldError::new("", "is negative; a length of time is 0 or more"));
        }
        if !(0..NANOS).contains(&wire.nanos) {
            return Err(FieldError::new("nanos", format!("{} is not within 0..=999999999", wire.nanos)));
        }
        let length = Self::new(wire.seconds.unsigned_abs(), wire.nanos.unsigned_abs());
        if length > LONGEST {
            return Err(FieldError::new("", "is longer than 292 years, the most that genuine peers can hold"));
        }
        Ok(length)
    }
}

const LONGEST: Duration = Duration::from_nanos(i64::MAX.unsigned_abs());

impl ToWire for Duration {
    type Wire = prost_types::Duration;

    /// Longer than 292 years becomes 292 years.
    fn to_wire(&self) -> prost_types::Duration {
        let length = (*self).min(LONGEST);
        let seconds = i64::try_from(length.as_secs()).expect("LONGEST in seconds is below i64::MAX");
        let nanos = i32::try_from(length.subsec_nanos()).expect("below a thousand million");
        prost_types::Duration { seconds, nanos }
    }
}

macro_rules! id {
    ($($id:ty),+) => {
        $(
            impl FromWire for $id {
                type Wire = String;
                fn from_wire(wire: String) -> Result<Self, FieldError> {
                    wire.parse().map_err(|error: skep_types::BadId| FieldError::new("", error.to_string()))
                }
            }
            impl ToWire for $id {
                type Wire = String;
                fn to_wire(&self) -> String {
                    self.to_string()
                }
            }
        )+
    };
}
id!(ClusterId, NodeId, ServiceId, TaskId, NetworkId, SecretId, ConfigId, SessionId, SubscriptionId);
