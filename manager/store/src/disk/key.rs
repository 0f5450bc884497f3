//! The data key and the keys derived from it.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use skep_types::UnlockKey;
use zeroize::Zeroizing;

/// Bytes that AES-256-GCM adds to what it seals.
pub(crate) const TAG_BYTES: usize = 16;
pub(crate) const NONCE_BYTES: usize = 12;
pub(crate) type Tag = [u8; TAG_BYTES];

/// The key of everything the store writes. Never printed; wiped when dropped.
#[derive(Clone)]
pub struct DataKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for DataKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("DataKey(sensitive)")
    }
}

impl DataKey {
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// From the operating system's random source.
    #[must_use]
    pub fn generate() -> Self {
        Self::new(random())
    }

    /// The key that what is sealed for an unlock key is sealed with, by way of [`DataKey::derive`].
    pub(crate) fn of_unlock_key(key: &UnlockKey) -> Self {
        Self::new(*key.bytes())
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key for one purpose and one file, told apart by `salt`.
    pub(crate) fn derive(&self, purpose: &[u8], salt: &[u8]) -> SealKey {
        struct Length;
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                32
            }
        }
        let mut key = Zeroizing::new([0; 32]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
            .extract(&*self.0)
            .expand(&[b"skep store ", purpose], Length)
            .and_then(|out| out.fill(&mut *key))
            .expect("32 bytes are within what HKDF-SHA256 gives");
        let unbound = UnboundKey::new(&AES_256_GCM, &*key).expect("the key has the 32 bytes that AES-256 wants");
        SealKey(LessSafeKey::new(unbound))
    }
}

/// Seals and opens the parts of one file.
pub(crate) struct SealKey(LessSafeKey);

impl SealKey {
    /// Encrypts `data[from..]` in place and appends the tag, which is also returned.
    pub(crate) fn seal(&self, nonce: [u8; NONCE_BYTES], aad: &[u8], data: &mut Vec<u8>, from: usize) -> Tag {
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut data[from..])
            .expect("records are far below the 64 GiB limit of AES-GCM");
        let mut bytes = [0; TAG_BYTES];
        bytes.copy_from_slice(tag.as_ref());
        data.extend_from_slice(&bytes);
        bytes
    }

    /// Decrypts `data` (with its tag at the end) in place; `None` if it is not what was sealed.
    pub(crate) fn open<'a>(&self, nonce: [u8; NONCE_BYTES], aad: &[u8], data: &'a mut [u8]) -> Option<&'a [u8]> {
        self.0.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), data).ok().map(|plain| &*plain)
    }
}

/// Bytes from the operating system's random source.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[cfg(feature = "sim")]
    if let Some(simulator) = crate::sim::simulator() {
        simulator.fill(&mut bytes);
        return bytes;
    }
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_for_other_purposes_and_files_open_nothing() {
        let key = DataKey::generate();
        let mut sealed = b"text".to_vec();
        key.derive(b"log", b"1").seal([1; NONCE_BYTES], b"", &mut sealed, 0);
        for (purpose, salt) in [(&b"log"[..], &b"2"[..]), (b"snapshot", b"1")] {
            assert!(key.derive(purpose, salt).open([1; NONCE_BYTES], b"", &mut sealed.clone()).is_none());
        }
        assert_eq!(key.derive(b"log", b"1").open([1; NONCE_BYTES], b"", &mut sealed), Some(&b"text"[..]));
        assert_eq!(format!("{key:?}"), "DataKey(sensitive)");
    }
}
