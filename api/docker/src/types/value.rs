//! What the fields of all objects have in common: Go's idea of absence, lengths of time, words for numbers.

use skep_types::FieldError;
use std::time::Duration;

/// What Go's `omitempty` leaves out: zero, `false`, the empty text, the empty list, the absent pointer.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A length of time as this API writes it: nanoseconds. Longer than 292 years becomes 292 years.
pub(crate) fn nanos(length: Duration) -> i64 {
    i64::try_from(length.as_nanos()).unwrap_or(i64::MAX)
}

/// A length of time as it came, under the name of its field.
pub(crate) fn length(field: &str, nanos: i64) -> Result<Duration, FieldError> {
    match u64::try_from(nanos) {
        Ok(nanos) => Ok(Duration::from_nanos(nanos)),
        Err(_) => Err(FieldError::new(field, format!("{nanos} is negative; a length of time is 0 or more nanoseconds"))),
    }
}

/// One that may be absent.
pub(crate) fn maybe_length(field: &str, nanos: Option<i64>) -> Result<Option<Duration>, FieldError> {
    nanos.map(|nanos| length(field, nanos)).transpose()
}

/// One for which zero says "not given".
pub(crate) fn given_length(field: &str, nanos: i64) -> Result<Option<Duration>, FieldError> {
    maybe_length(field, (nanos != 0).then_some(nanos))
}

/// Converts each item of a list; an error names its place.
pub(crate) fn list<J, T: TryFrom<J, Error = FieldError>>(field: &str, items: Vec<J>) -> Result<Vec<T>, FieldError> {
    items.into_iter().enumerate().map(|(index, item)| T::try_from(item).map_err(|error| error.at(index).inside(field))).collect()
}

/// Converts what may be absent; an error names its field.
pub(crate) fn maybe<J, T: TryFrom<J, Error = FieldError>>(field: &str, item: Option<J>) -> Result<Option<T>, FieldError> {
    item.map(T::try_from).transpose().map_err(|error| error.inside(field))
}

/// Both ways between the words of this API and the variants of an enum. Words are read in any case, as the daemon does; the empty
/// word is for the caller to understand. The type is named by its full path.
macro_rules! words {
    ($(#[$doc:meta])* $module:ident: $type:ty { $($word:literal = $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        pub(crate) mod $module {
            use skep_types::FieldError;
            type Type = $type;

            pub(crate) fn to(value: $type) -> &'static str {
                match value {
                    $(Type::$variant => $word,)+
                }
            }

            /// The empty word is the default.
            pub(crate) fn from(field: &str, word: &str) -> Result<$type, FieldError> {
                match word.to_ascii_lowercase().as_str() {
                    "" => Ok(Type::default()),
                    $($word => Ok(Type::$variant),)+
                    _ => Err(FieldError::new(field, format!("{word:?} is not known; use one of {}", [$($word),+].join(", ")))),
                }
            }
        }
    };
}
pub(crate) use words;

/// A number with a fraction, written as Go does: without one where there is none, in as few digits as tell it apart.
pub(crate) mod ratio {
    use serde::Serializer;

    pub(crate) fn serialize<S: Serializer>(value: &f32, out: S) -> Result<S::Ok, S::Error> {
        // No fraction, and within what a byte holds.
        if value.fract() == 0.0 && (0.0..=100.0).contains(value) {
            return out.serialize_u8(*value as u8);
        }
        out.serialize_f32(*value)
    }
}
