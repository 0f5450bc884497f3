//! From wire messages to `skep-types` and back.
//!
//! [`FromWire`] parses: what it returns needs no second look at numbers of enums, ids, lengths of time or absent parts.
//! What a value *means* (is this name free, may memory be that low) is for whoever carries out the request.
//! [`ToWire`] never fails, and writes every field that genuine peers always write.
//!
//! Most messages are a table of fields, see [`message`]; the compiler refuses a table that forgets a field of either side.

mod cluster; // the cluster object and its CA
mod container; // what a container is made of
mod local; // what skep.v1 numbers itself
mod meta; // times, versions, ids, annotations, drivers
mod network; // networks, attachments
mod node; // machines and what they report
mod object; // any object, for Watch
mod resources; // amounts and platforms
mod secret; // secrets, configs, references to them
mod service; // services, task specs
mod task; // tasks and their status

use cluster::blacklist;
use container::{credential, pull_options};
use network::config_from;
use secret::file_target;
use service::spread;
use skep_types::FieldError;
use std::collections::BTreeMap;
use std::sync::Arc;
use task::{container_status, port_status};

/// Parsing at the edge.
pub trait FromWire: Sized {
    type Wire;

    /// # Errors
    /// [`FieldError`] with the path of the field below this message, in the wire's names.
    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError>;
}

/// The way out: what types hold, the wire can say.
pub trait ToWire {
    type Wire;

    fn to_wire(&self) -> Self::Wire;
}

/// Parses a message that must be there, such as the `spec` of a request.
///
/// # Errors
/// [`FieldError`] for `field` if it is absent, else for what is wrong inside it.
pub fn parse_required<T: FromWire>(field: &str, wire: Option<T::Wire>) -> Result<T, FieldError> {
    required::from(field, wire)
}

/// Parses a value under the name of its field, such as an id in a request.
///
/// # Errors
/// [`FieldError`] for `field` or what is inside it.
pub fn parse<T: FromWire>(field: &str, wire: T::Wire) -> Result<T, FieldError> {
    plain::from(field, wire)
}

/// Writes the conversions of a message both ways.
///
/// `field` is the name on both sides, `field: other` is `other` on the wire, `field => way` goes another way than
/// [`plain`]. `drops { … }` lists wire fields that types do not hold and that nobody misses,
/// `keeps { … }` fields of types that never travel.
macro_rules! message {
    (@label $field:ident) => { stringify!($field) };
    (@label $field:ident $other:ident) => { stringify!($other).trim_start_matches("r#") };
    (@from $label:expr, $wire:ident) => { $crate::convert::plain::from($label, $wire)? };
    (@from $label:expr, $wire:ident, $way:ident) => { $crate::convert::$way::from($label, $wire)? };
    (@to $value:ident) => { $crate::convert::plain::to($value) };
    (@to $value:ident, $way:ident) => { $crate::convert::$way::to($value) };
    ($types:ident <=> $wire:path { $($field:ident $(: $other:ident)? $(=> $way:ident)?),* $(,)? }
        $(drops { $($dropped:ident),* })? $(keeps { $($kept:ident),* })?) => {
        impl $crate::convert::FromWire for $types {
            type Wire = $wire;

            fn from_wire(wire: $wire) -> Result<Self, skep_types::FieldError> {
                let $wire { $($($other:)? $field,)* $($($dropped: _,)*)? } = wire;
                Ok(Self { $($field: message!(@from message!(@label $field $($other)?), $field $(, $way)?),)* $($($kept: Default::default(),)*)? })
            }
        }

        impl $crate::convert::ToWire for $types {
            type Wire = $wire;

            fn to_wire(&self) -> $wire {
                let Self { $($field,)* $($($kept: _,)*)? } = self;
                $(let $field = message!(@to $field $(, $way)?);)*
                $wire { $($($other:)? $field,)* $($($dropped: Default::default(),)*)? }
            }
        }
    };
}
use message;

/// Writes the conversions of an enum both ways; on the wire it is its number.
macro_rules! number {
    ($types:ty, $wire:path { $($variant:ident = $number:ident),+ $(,)? }) => {
        impl $crate::convert::FromWire for $types {
            type Wire = i32;

            fn from_wire(wire: i32) -> Result<Self, skep_types::FieldError> {
                use $wire as Number;
                match Number::try_from(wire) {
                    $(Ok(Number::$number) => Ok(Self::$variant),)+
                    Err(_) => {
                        let known = [$(Number::$number),+].map(|known| format!("{} ({})", known as i32, known.as_str_name()));
                        Err(skep_types::FieldError::new("", format!("{wire} is not known; use one of {}", known.join(", "))))
                    }
                }
            }
        }

        impl $crate::convert::ToWire for $types {
            type Wire = i32;

            fn to_wire(&self) -> i32 {
                use $wire as Number;
                match self {
                    $(Self::$variant => Number::$number as i32,)+
                }
            }
        }
    };
}
use number;

/// As the types themselves say.
mod plain {
    use super::{FieldError, FromWire, ToWire};

    pub fn from<T: FromWire>(label: &str, wire: T::Wire) -> Result<T, FieldError> {
        T::from_wire(wire).map_err(|error| error.inside(label))
    }

    pub fn to<T: ToWire>(value: &T) -> T::Wire {
        value.to_wire()
    }
}

/// A message that genuine peers always write; absent means empty.
mod full {
    use super::{FieldError, FromWire, ToWire, plain};

    pub fn from<T: FromWire<Wire: Default>>(label: &str, wire: Option<T::Wire>) -> Result<T, FieldError> {
        plain::from(label, wire.unwrap_or_default())
    }

    pub fn to<T: ToWire>(value: &T) -> Option<T::Wire> {
        Some(value.to_wire())
    }
}

/// A message without which the one around it has no meaning.
mod required {
    use super::{FieldError, FromWire, plain};

    pub fn from<T: FromWire>(label: &str, wire: Option<T::Wire>) -> Result<T, FieldError> {
        match wire {
            Some(wire) => plain::from(label, wire),
            None => Err(FieldError::new(label, "is missing")),
        }
    }
}

/// One of several fields of the wire; the value names them itself.
mod oneof {
    use super::{FieldError, FromWire, ToWire};

    pub fn from<T: FromWire>(_label: &str, wire: T::Wire) -> Result<T, FieldError> {
        T::from_wire(wire)
    }

    pub fn to<T: ToWire>(value: &T) -> T::Wire {
        value.to_wire()
    }
}

/// An id that may be absent, which is an empty text on the wire.
mod maybe_id {
    use super::{FieldError, FromWire, ToWire, plain};

    pub fn from<T: FromWire<Wire = String>>(label: &str, wire: String) -> Result<Option<T>, FieldError> {
        if wire.is_empty() { Ok(None) } else { plain::from(label, wire).map(Some) }
    }

    pub fn to<T: ToWire<Wire = String>>(value: &Option<T>) -> String {
        value.as_ref().map(T::to_wire).unwrap_or_default()
    }
}

/// A time that types hold as zero when nobody has set it.
mod unset_is_zero {
    use super::{FieldError, ToWire, plain};
    use skep_types::Timestamp;

    pub fn from(label: &str, wire: Option<prost_types::Timestamp>) -> Result<Timestamp, FieldError> {
        wire.map_or(Ok(Timestamp::default()), |wire| plain::from(label, wire))
    }

    pub fn to(value: &Timestamp) -> Option<prost_types::Timestamp> {
        (*value != Timestamp::default()).then(|| value.to_wire())
    }
}

/// Unseen: bytes, and texts of reports, which must not be lost because a program printed something odd.
mod as_is {
    use super::FieldError;

    pub fn from<T>(_label: &str, wire: T) -> Result<T, FieldError> {
        Ok(wire)
    }

    pub fn to<T: Clone>(value: &T) -> T {
        value.clone()
    }
}

/// What must not be printed.
mod sensitive {
    use super::FieldError;
    use skep_types::Sensitive;

    pub fn from<T>(_label: &str, wire: T) -> Result<Sensitive<T>, FieldError> {
        Ok(Sensitive(wire))
    }

    pub fn to<T: Clone>(value: &Sensitive<T>) -> T {
        value.0.clone()
    }
}

macro_rules! same {
    ($($scalar:ty),+) => {
        $(
            impl FromWire for $scalar {
                type Wire = Self;
                fn from_wire(wire: Self) -> Result<Self, FieldError> {
                    Ok(wire)
                }
            }
            impl ToWire for $scalar {
                type Wire = Self;
                fn to_wire(&self) -> Self {
                    *self
                }
            }
        )+
    };
}
same!(bool, i32, i64, u32, u64);

impl FromWire for String {
    type Wire = Self;

    /// No name, path, argument or label can have a NUL: kernel and runtime take it for the end of the text.
    fn from_wire(wire: Self) -> Result<Self, FieldError> {
        if wire.contains('\0') { Err(FieldError::new("", "contains a NUL character; remove it")) } else { Ok(wire) }
    }
}

impl FromWire for BTreeMap<String, String> {
    type Wire = Self;
    fn from_wire(wire: Self) -> Result<Self, FieldError> {
        match wire.iter().find(|(key, value)| key.contains('\0') || value.contains('\0')) {
            Some((key, _)) => Err(FieldError::new(format!("[{key:?}]"), "contains a NUL character; remove it")),
            None => Ok(wire),
        }
    }
}

impl ToWire for String {
    type Wire = Self;
    fn to_wire(&self) -> Self {
        self.clone()
    }
}

impl ToWire for BTreeMap<String, String> {
    type Wire = Self;
    fn to_wire(&self) -> Self {
        self.clone()
    }
}

impl<T: FromWire> FromWire for Option<T> {
    type Wire = Option<T::Wire>;
    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        wire.map(T::from_wire).transpose()
    }
}

impl<T: ToWire> ToWire for Option<T> {
    type Wire = Option<T::Wire>;
    fn to_wire(&self) -> Self::Wire {
        self.as_ref().map(T::to_wire)
    }
}

impl<T: FromWire> FromWire for Vec<T> {
    type Wire = Vec<T::Wire>;
    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        wire.into_iter().enumerate().map(|(index, item)| T::from_wire(item).map_err(|error| error.at(index))).collect()
    }
}

impl<T: ToWire> ToWire for Vec<T> {
    type Wire = Vec<T::Wire>;
    fn to_wire(&self) -> Self::Wire {
        self.iter().map(T::to_wire).collect()
    }
}

impl<T: FromWire> FromWire for Arc<T> {
    type Wire = T::Wire;
    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        T::from_wire(wire).map(Self::new)
    }
}

impl<T: ToWire> ToWire for Arc<T> {
    type Wire = T::Wire;
    fn to_wire(&self) -> Self::Wire {
        T::to_wire(self)
    }
}

#[cfg(test)]
mod tests;
