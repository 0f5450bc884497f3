//! Join tokens: `SWMTKN-1-<digest of the roots>-<secret>`.
//!
//! The digest pins the cluster's root certificates, so that a node that joins need not trust the network; the secret
//! proves to the manager that the node was invited, and which of the two tokens it is decides the node's role.
//! Format: spec wire-behaviour 4.1 (`SK/ca/config.go`, `ParseJoinToken`, and `SK/ca/certificates.go`, `GenerateJoinToken`).

use crate::NodeRole;
use crate::roots::RootBundle;
use crate::secret::{Secret, equal_in_constant_time};
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// SHA-256 as a base 36 number.
const DIGEST_DIGITS: usize = 50;
/// 16 bytes as a base 36 number.
const SECRET_DIGITS: usize = 25;

/// Why a text is no join token. No variant repeats the text: part of it is a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    #[error("a join token starts with SWMTKN-1- or SWMTKN-2-; print the right one with `swarmctl cluster join-token worker`")]
    Prefix,
    #[error("the join token has {found} parts instead of {expected}; it was probably cut when it was copied")]
    Parts { found: usize, expected: usize },
    #[error("the {part} in the join token is {found} characters long instead of {expected}; it was probably cut when it was copied")]
    Length { part: &'static str, found: usize, expected: usize },
    #[error("the {part} in the join token is not a base 36 number of the right size")]
    Digits { part: &'static str },
    #[error("the FIPS mark in the join token is neither 0 nor 1")]
    Fips,
}

/// An invitation into a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the PEM bytes of the root bundle, exactly as served.
    digest: [u8; 32],
    secret: Zeroizing<[u8; 16]>,
    /// `None`: version 1. `Some`: version 2, which says whether the cluster insists on FIPS algorithms.
    fips: Option<bool>,
}

impl JoinToken {
    /// A version 1 token. `secret` comes from the caller's random source.
    #[must_use]
    pub fn new(roots: &RootBundle, secret: [u8; 16]) -> Self {
        Self::from_digest(roots.digest(), secret)
    }

    #[must_use]
    pub fn from_digest(digest: [u8; 32], secret: [u8; 16]) -> Self {
        Self { digest, secret: Zeroizing::new(secret), fips: None }
    }

    /// The token as people copy it.
    #[must_use]
    pub fn text(&self) -> Secret {
        let digest = skep_types::base36(&self.digest, DIGEST_DIGITS);
        let secret = Zeroizing::new(skep_types::base36(&*self.secret, SECRET_DIGITS));
        Secret::new(match self.fips {
            None => format!("SWMTKN-1-{digest}-{}", *secret),
            Some(fips) => format!("SWMTKN-2-{}-{digest}-{}", u8::from(fips), *secret),
        })
    }

    /// Whether this token was made for these roots.
    #[must_use]
    pub fn pins(&self, roots: &RootBundle) -> bool {
        self.digest == roots.digest()
    }

    /// SHA-256 of the root bundle the token was made for.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Whether the cluster insists on FIPS algorithms; version 1 tokens never do.
    #[must_use]
    pub fn fips(&self) -> bool {
        self.fips.unwrap_or(false)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "JoinToken(digest {}, [secret])", hex::encode(self.digest))
    }
}

impl FromStr for JoinToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let parts: Vec<&str> = text.trim().split('-').collect();
        let (fips, digest, secret) = match (parts.as_slice(), parts.get(1).copied()) {
            (["SWMTKN", "1", digest, secret], _) => (None, *digest, *secret),
            (["SWMTKN", "2", fips, digest, secret], _) => (Some(parse_fips(fips)?), *digest, *secret),
            (["SWMTKN", ..], Some("1")) => return Err(BadToken::Parts { found: parts.len(), expected: 4 }),
            (["SWMTKN", ..], Some("2")) => return Err(BadToken::Parts { found: parts.len(), expected: 5 }),
            _ => return Err(BadToken::Prefix),
        };
        Ok(Self {
            digest: number("digest", digest, DIGEST_DIGITS)?,
            secret: Zeroizing::new(number("secret", secret, SECRET_DIGITS)?),
            fips,
        })
    }
}

fn parse_fips(text: &str) -> Result<bool, BadToken> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(BadToken::Fips),
    }
}

fn number<const N: usize>(part: &'static str, text: &str, expected: usize) -> Result<[u8; N], BadToken> {
    if text.len() != expected {
        return Err(BadToken::Length { part, found: text.len(), expected });
    }
    let bytes = Zeroizing::new(skep_types::from_base36(text, N).ok_or(BadToken::Digits { part })?);
    Ok(<[u8; N]>::try_from(bytes.as_slice()).expect("from_base36 returns as many bytes as asked for"))
}

/// The role a presented token gives, or `None` if it is neither of the cluster's tokens.
///
/// Whole strings are compared, each in constant time, the manager's first, as `SK/ca/server.go` does; both comparisons
/// are always made.
#[must_use]
pub fn role_of_token(presented: &str, manager_token: &str, worker_token: &str) -> Option<NodeRole> {
    let manager = equal_in_constant_time(presented.as_bytes(), manager_token.as_bytes());
    let worker = equal_in_constant_time(presented.as_bytes(), worker_token.as_bytes());
    // A cluster object that lost its tokens must not let in who presents none.
    if presented.is_empty() {
        return None;
    }
    match (manager, worker) {
        (true, _) => Some(NodeRole::Manager),
        (false, true) => Some(NodeRole::Worker),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Self-made vector of the spec: bundle bytes `abc`, secret bytes 00 01 … 0f.
    const VECTOR: &str = "SWMTKN-1-4nb7oofka9ml8nasnokxxc1unhmtpr1wxsuwhpd9km3vt5as31-000avh9he7dy896m08s18udxr";

    fn vector() -> JoinToken {
        let digest = ring::digest::digest(&ring::digest::SHA256, b"abc");
        JoinToken::from_digest(digest.as_ref().try_into().unwrap(), std::array::from_fn(|n| n as u8))
    }

    #[test]
    fn a_token_is_written_as_swarmkit_writes_it() {
        assert_eq!(vector().text().expose(), VECTOR);
        assert_eq!(VECTOR.parse(), Ok(vector()));
        assert_eq!(format!(" {VECTOR}\n").parse(), Ok(vector()));
    }

    #[test]
    fn a_version_2_token_carries_the_fips_mark() {
        let text = VECTOR.replace("SWMTKN-1-", "SWMTKN-2-1-");
        let token: JoinToken = text.parse().unwrap();
        assert!(token.fips());
        assert_eq!(token.text().expose(), text);
        assert_eq!(VECTOR.replace("SWMTKN-1-", "SWMTKN-2-2-").parse::<JoinToken>(), Err(BadToken::Fips));
    }

    #[test]
    fn a_token_that_was_cut_says_so() {
        let refused = |text: &str| text.parse::<JoinToken>().unwrap_err();
        assert_eq!(refused(""), BadToken::Prefix);
        assert_eq!(refused("SWMTKN-3-a-b"), BadToken::Prefix);
        assert_eq!(refused("SWMTKN-1-abc"), BadToken::Parts { found: 3, expected: 4 });
        assert_eq!(refused(&format!("{VECTOR}-x")), BadToken::Parts { found: 5, expected: 4 });
        assert_eq!(refused(&VECTOR[..VECTOR.len() - 1]), BadToken::Length { part: "secret", found: 24, expected: 25 });
        assert_eq!(refused(&VECTOR.replace("as31-", "AS31-")), BadToken::Digits { part: "digest" });
        // 50 times z is far above 2^256
        assert_eq!(refused(&format!("SWMTKN-1-{}-{}", "z".repeat(50), "0".repeat(25))), BadToken::Digits { part: "digest" });
    }

    #[test]
    fn the_presented_token_decides_the_role() {
        assert_eq!(role_of_token("m", "m", "w"), Some(NodeRole::Manager));
        assert_eq!(role_of_token("w", "m", "w"), Some(NodeRole::Worker));
        assert_eq!(role_of_token("x", "m", "w"), None);
        assert_eq!(role_of_token("", "", ""), None);
    }

    #[test]
    fn printing_a_token_for_debugging_hides_the_secret() {
        let shown = format!("{:?}", vector());
        assert!(shown.contains("ba7816bf") && !shown.contains("000avh9he7dy896m08s18udxr"), "{shown}");
    }

    proptest! {
        #[test]
        fn parsing_undoes_writing(digest: [u8; 32], secret: [u8; 16], fips: Option<bool>) {
            let token = JoinToken { digest, secret: Zeroizing::new(secret), fips };
            prop_assert_eq!(token.text().expose().parse::<JoinToken>(), Ok(token));
        }

        #[test]
        fn base36_is_undone_by_its_inverse(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let text = skep_types::base36(&bytes, 0);
            prop_assert_eq!(skep_types::from_base36(&text, bytes.len()), Some(bytes));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(SWMTKN-[12]-)?[0-9a-zé-]{0,120}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
