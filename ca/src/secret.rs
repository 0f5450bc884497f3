//! Text that must not be seen.

use std::fmt;
use zeroize::Zeroizing;

/// A private key, token or password. It prints as `[secret]` and its memory is wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself. The long name is there so that a reader stops at it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("[secret]")
    }
}

/// Compares without telling by its duration where two texts differ. The lengths are not hidden: those of tokens are public.
#[must_use]
pub fn equal_in_constant_time(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    // `black_box` keeps the compiler from leaving the loop at the first difference.
    let difference = left.iter().zip(right).fold(0u8, |seen, (l, r)| std::hint::black_box(seen | (l ^ r)));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print() {
        let secret = Secret::new("hunter2".to_owned());
        assert_eq!(format!("{secret:?}"), "[secret]");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn the_comparison_sees_every_byte() {
        assert!(equal_in_constant_time(b"abc", b"abc"));
        assert!(!equal_in_constant_time(b"abc", b"abd"));
        assert!(!equal_in_constant_time(b"xbc", b"abc"));
        assert!(!equal_in_constant_time(b"abc", b"abcd"));
    }
}
