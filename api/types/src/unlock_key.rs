//! The key that opens the state of a locked manager.

use crate::{Cluster, EncryptionKey, Sensitive};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// `EncryptionKey.subsystem` of the unlock key in the cluster object (spec wire-behaviour 5).
pub const UNLOCK_SUBSYSTEM: &str = "swarm-manager";

const PREFIX: &str = "SWMKEY-1-";
const LENGTH: usize = 32;

/// Why a text is no unlock key. The text is not repeated: it may be most of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUnlockKey {
    #[error("an unlock key starts with {PREFIX}; print the right one with `swarmctl cluster unlock-key` on a manager that is not locked")]
    Prefix,
    #[error("the unlock key is not base64 behind {PREFIX}; it was probably changed when it was copied")]
    Base64,
    #[error("the unlock key holds {0} bytes instead of {LENGTH}; it was probably cut when it was copied")]
    Length(usize),
}

/// 32 secret bytes. They print as `UnlockKey(sensitive)`, are compared in constant time and wiped when dropped.
#[derive(Clone)]
pub struct UnlockKey(Zeroizing<[u8; LENGTH]>);

impl UnlockKey {
    /// The bytes come from the caller's random source.
    #[must_use]
    pub fn new(bytes: [u8; LENGTH]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }

    /// The key as people copy it: `SWMKEY-1-` and standard base64 without padding (spec wire-behaviour 5).
    #[must_use]
    pub fn text(&self) -> Sensitive<String> {
        Sensitive(format!("{PREFIX}{}", STANDARD_NO_PAD.encode(*self.0)))
    }

    /// As the cluster object holds it.
    #[must_use]
    pub fn to_entry(&self) -> EncryptionKey {
        EncryptionKey { subsystem: UNLOCK_SUBSYSTEM.into(), key: Sensitive(self.0.to_vec()), lamport_time: 0 }
    }
}

impl TryFrom<&[u8]> for UnlockKey {
    type Error = BadUnlockKey;

    fn try_from(bytes: &[u8]) -> Result<Self, BadUnlockKey> {
        let bytes: [u8; LENGTH] = bytes.try_into().map_err(|_| BadUnlockKey::Length(bytes.len()))?;
        Ok(Self::new(bytes))
    }
}

impl FromStr for UnlockKey {
    type Err = BadUnlockKey;

    fn from_str(text: &str) -> Result<Self, BadUnlockKey> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(BadUnlockKey::Prefix)?;
        let bytes = Zeroizing::new(STANDARD_NO_PAD.decode(encoded).map_err(|_| BadUnlockKey::Base64)?);
        Self::try_from(bytes.as_slice())
    }
}

impl PartialEq for UnlockKey {
    fn eq(&self, other: &Self) -> bool {
        // `black_box` keeps the compiler from leaving the loop at the first difference.
        let difference = self.0.iter().zip(other.0.iter()).fold(0u8, |seen, (l, r)| std::hint::black_box(seen | (l ^ r)));
        std::hint::black_box(difference) == 0
    }
}
impl Eq for UnlockKey {}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("UnlockKey(sensitive)")
    }
}

impl Cluster {
    /// The key managers are locked with; `None` = they are not.
    #[must_use]
    pub fn unlock_key(&self) -> Option<UnlockKey> {
        let entry = self.unlock_keys.iter().find(|entry| entry.subsystem == UNLOCK_SUBSYSTEM)?;
        UnlockKey::try_from(entry.key.0.as_slice()).ok()
    }

    /// Locks managers with another key, or with none.
    pub fn set_unlock_key(&mut self, key: Option<&UnlockKey>) {
        self.unlock_keys.retain(|entry| entry.subsystem != UNLOCK_SUBSYSTEM);
        self.unlock_keys.extend(key.map(UnlockKey::to_entry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterId;
    use proptest::prelude::*;

    fn key() -> UnlockKey {
        UnlockKey::new(std::array::from_fn(|n| n as u8))
    }

    #[test]
    fn a_key_is_written_as_swarmkit_writes_it() {
        let text = key().text().0;
        assert_eq!(text, "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8");
        assert_eq!(format!(" {text}\n").parse(), Ok(key()));
    }

    #[test]
    fn a_key_that_was_cut_or_changed_says_so() {
        let refused = |text: &str| text.parse::<UnlockKey>().unwrap_err();
        let text = key().text().0;
        assert_eq!(refused(""), BadUnlockKey::Prefix);
        assert_eq!(refused(&text.replace("SWMKEY-1", "SWMKEY-2")), BadUnlockKey::Prefix);
        assert_eq!(refused(&text.replace("AAEC", "AA*C")), BadUnlockKey::Base64);
        assert_eq!(refused(&text[..text.len() - 3]), BadUnlockKey::Length(30));
        assert_eq!(refused(&format!("{text}A=")), BadUnlockKey::Base64);
    }

    #[test]
    fn a_key_does_not_print() {
        assert_eq!(format!("{:?} {:?}", key(), key().text()), "UnlockKey(sensitive) (sensitive)");
    }

    #[test]
    fn a_cluster_has_one_unlock_key_or_none() {
        let mut cluster = Cluster::new(ClusterId::for_test(1));
        let other = EncryptionKey { subsystem: "networking:gossip".into(), ..EncryptionKey::default() };
        cluster.unlock_keys.push(other.clone());
        assert_eq!(cluster.unlock_key(), None);
        cluster.set_unlock_key(Some(&UnlockKey::new([7; 32])));
        cluster.set_unlock_key(Some(&key()));
        assert_eq!(cluster.unlock_key(), Some(key()));
        assert_eq!(cluster.unlock_keys.len(), 2);
        cluster.set_unlock_key(None);
        assert_eq!(cluster.unlock_keys, [other]);
    }

    proptest! {
        #[test]
        fn parsing_undoes_writing(bytes: [u8; 32], other: [u8; 32]) {
            let key = UnlockKey::new(bytes);
            prop_assert_eq!(key.text().0.parse::<UnlockKey>(), Ok(key.clone()));
            prop_assert_eq!(key == UnlockKey::new(other), bytes == other);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(SWMKEY-1-)?[0-9A-Za-z+/=é-]{0,80}") {
            let _ = text.parse::<UnlockKey>();
        }
    }
}
