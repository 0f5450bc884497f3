//! The keys of WireGuard: X25519, 32 bytes each.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gotatun::x25519;
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use zeroize::Zeroizing;

pub(crate) const KEY_LENGTH: usize = 32;

/// By which a node's tunnel is known to the others. Text: base64, as `wg` shows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; KEY_LENGTH]);

/// A text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard key: these are 32 bytes in base64")]
pub struct NotAKey;

impl fmt::Display for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let bytes = STANDARD.decode(text).map_err(|_| NotAKey)?;
        bytes.try_into().map(Self).map_err(|_| NotAKey)
    }
}

/// What never leaves its node. Clones share the bytes, which are wiped with the last of them; nothing prints them. Two are
/// equal if their public halves are.
#[derive(Clone)]
pub struct PrivateKey(Arc<Pair>);

struct Pair {
    private: Zeroizing<[u8; KEY_LENGTH]>,
    public: PublicKey,
}

impl PrivateKey {
    /// A new one, from the kernel's random numbers.
    pub(super) fn generate() -> std::io::Result<Self> {
        let mut bytes = Zeroizing::new([0; KEY_LENGTH]);
        OsRng.try_fill_bytes(bytes.as_mut()).map_err(std::io::Error::other)?;
        Ok(Self::from_bytes(bytes))
    }

    fn from_bytes(mut private: Zeroizing<[u8; KEY_LENGTH]>) -> Self {
        // RFC 7748 §5: these bits do not count; the kernel shows a key with them set so.
        private[0] &= 248;
        private[31] = private[31] & 127 | 64;
        let public = x25519::PublicKey::from(&x25519::StaticSecret::from(*private));
        Self(Arc::new(Pair { public: PublicKey(public.to_bytes()), private }))
    }

    /// Reads what [`PrivateKey::text`] wrote.
    pub(super) fn parse(text: &str) -> Result<Self, NotAKey> {
        let mut bytes = Zeroizing::new([0; KEY_LENGTH]);
        match STANDARD.decode_slice(text.trim_end(), bytes.as_mut()) {
            Ok(KEY_LENGTH) => Ok(Self::from_bytes(bytes)),
            _ => Err(NotAKey),
        }
    }

    /// Base64, for a file that only its owner may read.
    pub(super) fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.bytes()))
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0.private
    }

    /// The half that others are told.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.0.public
    }
}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &Self) -> bool {
        self.public() == other.public()
    }
}

impl Eq for PrivateKey {}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "(private half of {})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_half_is_that_of_the_standard() {
        // RFC 7748 §5.2: the scalar 9 times the base point
        let mut nine = [0; KEY_LENGTH];
        nine[0] = 9;
        let key = PrivateKey::from_bytes(Zeroizing::new(nine));
        let hex: String = key.public().0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079");
        assert_eq!(PrivateKey::parse(&key.text()).unwrap().bytes(), key.bytes());
    }

    #[test]
    fn what_is_printed_is_the_public_half() {
        let key = PrivateKey::generate().unwrap();
        let shown = format!("{key:?}");
        assert!(shown.contains(&key.public().to_string()) && !shown.contains(key.text().as_str()), "{shown}");
        assert_eq!(key.public().to_string().parse(), Ok(key.public()));
        assert_eq!("too short".parse::<PublicKey>(), Err(NotAKey));
        assert_ne!(PrivateKey::generate().unwrap(), key);
    }
}
