//! What all objects have: versions and times.

use super::value::is_default;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use skep_types::{Meta, Timestamp, Version};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// `{"Index":7}`; `{}` for 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ObjectVersion {
    #[serde(skip_serializing_if = "is_default")]
    pub index: u64,
}

impl From<Version> for ObjectVersion {
    fn from(version: Version) -> Self {
        Self { index: version.0 }
    }
}

/// A point in time: RFC 3339 in UTC, with as many digits as needed. Go's zero time where nobody set it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(pub Option<Timestamp>);

/// Go's zero time.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

impl From<Timestamp> for Time {
    fn from(at: Timestamp) -> Self {
        Self((at != Timestamp::default()).then_some(at))
    }
}

impl Time {
    pub fn text(self) -> String {
        let at = self.0.and_then(|at| OffsetDateTime::from_unix_timestamp_nanos(at.0.into()).ok());
        at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| ZERO_TIME.into())
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        if text.is_empty() || text == ZERO_TIME {
            return Ok(Self(None));
        }
        let at =
            OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| serde::de::Error::custom(format!("{text:?} is no time of RFC 3339")))?;
        Ok(Self(i64::try_from(at.unix_timestamp_nanos()).ok().map(Timestamp)))
    }
}

/// The head of every object of the cluster. `flatten` it into answers only: requests are read without.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Head {
    pub version: ObjectVersion,
    pub created_at: Time,
    pub updated_at: Time,
}

impl From<&Meta> for Head {
    fn from(meta: &Meta) -> Self {
        Self { version: meta.version.into(), created_at: meta.created_at.into(), updated_at: meta.updated_at.into() }
    }
}

/// What a call that makes something answers.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Id {
    #[serde(rename = "ID")]
    pub id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        assert_eq!(Time::from(Timestamp(1_700_000_000_120_000_000)).text(), "2023-11-14T22:13:20.12Z");
        assert_eq!(Time::from(Timestamp::default()).text(), ZERO_TIME);
        let read = |text: &str| serde_json::from_str::<Time>(text).unwrap();
        assert_eq!(read("\"2023-11-14T23:13:20.12+01:00\""), Time::from(Timestamp(1_700_000_000_120_000_000)));
        assert_eq!(read("\"0001-01-01T00:00:00Z\""), Time(None));
    }

    #[test]
    fn a_version_of_zero_is_left_out() {
        assert_eq!(serde_json::to_string(&ObjectVersion::default()).unwrap(), "{}");
        assert_eq!(serde_json::to_string(&ObjectVersion { index: 3 }).unwrap(), r#"{"Index":3}"#);
    }
}
