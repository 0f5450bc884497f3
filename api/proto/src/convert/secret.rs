//! Secrets, configs and the references to them.

use super::{FromWire, ToWire, message};
use crate::v1;
use skep_types::{Config, ConfigReference, ConfigSpec, ConfigTarget, FieldError, FileTarget, Secret, SecretReference, SecretSpec};
use v1::config_reference::Target;

message!(SecretSpec <=> v1::SecretSpec { annotations => full, data => sensitive, templating, driver });
message!(Secret <=> v1::Secret { id, meta => full, spec => full, internal });
message!(ConfigSpec <=> v1::ConfigSpec { annotations => full, data => sensitive, templating });
message!(Config <=> v1::Config { id, meta => full, spec => full });
message!(FileTarget <=> v1::FileTarget { name, uid, gid, mode });
message!(SecretReference <=> v1::SecretReference { secret_id, secret_name, file: target => file_target });
message!(ConfigReference <=> v1::ConfigReference { config_id, config_name, target });

impl FromWire for ConfigTarget {
    type Wire = Target;
    fn from_wire(wire: Target) -> Result<Self, FieldError> {
        match wire {
            Target::File(file) => super::plain::from("file", file).map(Self::File),
            Target::Runtime(v1::RuntimeTarget {}) => Ok(Self::Runtime),
        }
    }
}

impl ToWire for ConfigTarget {
    type Wire = Target;
    fn to_wire(&self) -> Target {
        match self {
            Self::File(file) => Target::File(file.to_wire()),
            Self::Runtime => Target::Runtime(v1::RuntimeTarget {}),
        }
    }
}

/// The target of a secret: a file, the only choice of its oneof.
pub(super) mod file_target {
    use super::{FieldError, FileTarget, ToWire};
    use crate::{convert::plain, v1::secret_reference::Target};

    pub fn from(_label: &str, wire: Option<Target>) -> Result<Option<FileTarget>, FieldError> {
        wire.map(|Target::File(file)| plain::from("file", file)).transpose()
    }

    pub fn to(value: &Option<FileTarget>) -> Option<Target> {
        value.as_ref().map(|file| Target::File(file.to_wire()))
    }
}
