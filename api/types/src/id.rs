//! Identifiers: 25 characters of base 36, one newtype per kind.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::str::FromStr;

/// Length of an object id (`SK/identity/randomid.go`).
pub const ID_LENGTH: usize = 25;

/// Longest id accepted from outside: a task-specific secret id is `<secret id>.<task id>`, a FIPS cluster id has a prefix.
pub const ID_MAX_LENGTH: usize = 64;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadId {
    #[error("the id is empty")]
    Empty,
    #[error("the id is longer than {ID_MAX_LENGTH} characters")]
    TooLong,
    #[error("the id contains {0:?}; ids are made of letters, digits, '.', '_' and '-'")]
    Character(char),
}

/// Writes `bytes` as an unsigned big-endian number in base 36, padded with zeros on the left to `width` digits.
///
/// Join tokens (digest: 50 digits, secret: 25) and ids are made of it.
#[must_use]
pub fn base36(bytes: &[u8], width: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = Vec::with_capacity(width);
    while number.iter().any(|byte| *byte != 0) {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = (rest << 8) | u32::from(*byte);
            *byte = u8::try_from(value / 36).expect("the quotient of (rest < 36) * 256 + byte by 36 is below 256");
            rest = value % 36;
        }
        digits.push(DIGITS[rest as usize]);
    }
    while digits.len() < width {
        digits.push(b'0');
    }
    digits.reverse();
    String::from_utf8(digits).expect("base 36 digits are ASCII")
}

/// The inverse of [`base36`]: `None` for a foreign character or a number that needs more than `size` bytes.
#[must_use]
pub fn from_base36(text: &str, size: usize) -> Option<Vec<u8>> {
    let mut number = vec![0u8; size];
    for character in text.bytes() {
        let mut carry = u32::try_from(DIGITS.iter().position(|digit| *digit == character)?).ok()?;
        for byte in number.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            *byte = (value & 0xff) as u8;
            carry = value >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

/// An object id from 17 random bytes: the top bit is set, so that the number has 27 digits, of which the first is
/// dropped and the next 25 are kept (`SK/identity/randomid.go`). This crate has no source of random bytes.
#[must_use]
pub fn id_text(mut random: [u8; 17]) -> String {
    random[0] |= 0x80;
    base36(&random, 0)[1..=ID_LENGTH].to_owned()
}

fn check(text: &str) -> Result<(), BadId> {
    if text.is_empty() {
        return Err(BadId::Empty);
    }
    if text.len() > ID_MAX_LENGTH {
        return Err(BadId::TooLong);
    }
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        Some(odd) => Err(BadId::Character(odd)),
        None => Ok(()),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Made from 17 random bytes, see [`id_text`].
            #[must_use]
            pub fn from_random(random: [u8; 17]) -> Self {
                Self(id_text(random).into())
            }

            /// A readable id for tests: the number, padded with zeros to 25 digits.
            #[must_use]
            pub fn for_test(number: u64) -> Self {
                Self(format!("{number:0>25}").into())
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(/// Names a cluster; the O of every certificate in it.
    ClusterId);
id!(/// Names a node; the CN of its certificate.
    NodeId);
id!(/// Names a service.
    ServiceId);
id!(/// Names a task: one attempt at running one slot of a service.
    TaskId);
id!(/// Names a network.
    NetworkId);
id!(/// Names a secret.
    SecretId);
id!(/// Names a config.
    ConfigId);
id!(/// Names a session of an agent with the dispatcher.
    SessionId);
id!(/// Names a subscription to logs.
    SubscriptionId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_made_as_swarmkit_makes_it() {
        let random: [u8; 17] = std::array::from_fn(|n| n as u8);
        assert_eq!(id_text(random), "hw05xdvcpbrfi4jekqvbjy4b2");
    }

    #[test]
    fn base36_is_undone_by_its_inverse() {
        let secret: [u8; 16] = std::array::from_fn(|n| n as u8);
        let text = base36(&secret, 25);
        assert_eq!(text, "000avh9he7dy896m08s18udxr");
        assert_eq!(from_base36(&text, 16), Some(secret.to_vec()));
        assert_eq!(from_base36("zzzzzzzzzz", 2), None);
        assert_eq!(from_base36("ABC", 16), None);
    }

    #[test]
    fn texts_that_could_leave_a_directory_are_no_ids() {
        assert_eq!("".parse::<TaskId>(), Err(BadId::Empty));
        assert_eq!("../../etc".parse::<TaskId>(), Err(BadId::Character('/')));
        assert_eq!("a\0b".parse::<TaskId>(), Err(BadId::Character('\0')));
        assert_eq!("x".repeat(65).parse::<TaskId>(), Err(BadId::TooLong));
    }
}
