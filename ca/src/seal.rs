//! The node's private key under the unlock key.
//!
//! One PEM block per unlock key that opens it; while the unlock key changes there are two. A block holds a version byte, a nonce
//! and the key's PKCS#8 PEM under AES-256-GCM. What it is sealed with is derived from the unlock key, for the store's data key is
//! wrapped by the same one.

use crate::der::pem_block;
use crate::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use skep_types::UnlockKey;
use zeroize::Zeroizing;

const LABEL: &str = "SKEP SEALED PRIVATE KEY";
const BEGIN: &str = "-----BEGIN SKEP SEALED PRIVATE KEY-----";
const END: &str = "-----END SKEP SEALED PRIVATE KEY-----";
const VERSION: u8 = 1;
const NONCE: usize = 12;
const TAG: usize = 16;
/// Part of what is authenticated: a sealed text of another purpose does not open here.
const PURPOSE: &[u8] = b"skep node key 1";

/// Why a sealed key does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unopened {
    /// No block opens with this unlock key; or its bytes were changed, which looks the same.
    Wrong,
    /// Not of a form this version writes.
    Damaged,
}

pub(crate) fn is_sealed(text: &str) -> bool {
    text.trim_start().starts_with(BEGIN)
}

/// The text of the key file that each of these unlock keys opens.
pub(crate) fn seal(plain: &Secret, unlock: &[&UnlockKey]) -> Secret {
    Secret::new(unlock.iter().map(|unlock| seal_one(plain, unlock)).collect())
}

fn seal_one(plain: &Secret, unlock: &UnlockKey) -> String {
    let nonce: [u8; NONCE] = rand::random();
    let mut sealed = Zeroizing::new(plain.expose().as_bytes().to_vec());
    sealing_key(unlock)
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(PURPOSE), &mut *sealed)
        .expect("a key is far shorter than what AES-GCM seals at once");
    let mut block = vec![VERSION];
    block.extend_from_slice(&nonce);
    block.extend_from_slice(&sealed);
    pem_block(LABEL, &block)
}

pub(crate) fn open(text: &str, unlock: &UnlockKey) -> Result<Secret, Unopened> {
    let blocks = blocks(text).ok_or(Unopened::Damaged)?;
    blocks.iter().find_map(|block| open_one(block, unlock)).ok_or(Unopened::Wrong)
}

fn open_one(block: &[u8], unlock: &UnlockKey) -> Option<Secret> {
    let (nonce, sealed) = block[1..].split_at(NONCE);
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut sealed = Zeroizing::new(sealed.to_vec());
    let plain = sealing_key(unlock).open_in_place(nonce, Aad::from(PURPOSE), &mut sealed).ok()?;
    std::str::from_utf8(plain).ok().map(|plain| Secret::new(plain.to_owned()))
}

/// `None` unless the text is one or more whole blocks of version 1.
fn blocks(text: &str) -> Option<Vec<Vec<u8>>> {
    let mut blocks = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (content, after) = rest.strip_prefix(BEGIN)?.split_once(END)?;
        let content: String = content.split_ascii_whitespace().collect();
        let block = STANDARD.decode(content).ok()?;
        if block.first() != Some(&VERSION) || block.len() < 1 + NONCE + TAG {
            return None;
        }
        blocks.push(block);
        rest = after.trim_start();
    }
    (!blocks.is_empty()).then_some(blocks)
}

fn sealing_key(unlock: &UnlockKey) -> LessSafeKey {
    struct Length;
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            32
        }
    }
    let mut key = Zeroizing::new([0; 32]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, b"skep")
        .extract(unlock.bytes())
        .expand(&[PURPOSE], Length)
        .and_then(|out| out.fill(&mut *key))
        .expect("32 bytes are within what HKDF-SHA256 gives");
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).expect("the key has the 32 bytes that AES-256 wants"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain() -> Secret {
        Secret::new("-----BEGIN PRIVATE KEY-----\nhello\n-----END PRIVATE KEY-----\n".into())
    }

    #[test]
    fn only_the_right_key_opens() {
        let (right, wrong) = (UnlockKey::new([1; 32]), UnlockKey::new([2; 32]));
        let sealed = seal(&plain(), &[&right]);
        assert!(is_sealed(sealed.expose()) && !is_sealed(plain().expose()));
        assert!(!sealed.expose().contains("hello"));
        assert_eq!(open(sealed.expose(), &right), Ok(plain()));
        assert_eq!(open(sealed.expose(), &wrong), Err(Unopened::Wrong));
        assert_ne!(sealed, seal(&plain(), &[&right]), "each sealing has its own nonce");
    }

    #[test]
    fn while_the_unlock_key_changes_both_open() {
        let (old, new, other) = (UnlockKey::new([1; 32]), UnlockKey::new([2; 32]), UnlockKey::new([3; 32]));
        let sealed = seal(&plain(), &[&old, &new]);
        assert_eq!(open(sealed.expose(), &old), Ok(plain()));
        assert_eq!(open(sealed.expose(), &new), Ok(plain()));
        assert_eq!(open(sealed.expose(), &other), Err(Unopened::Wrong));
    }

    proptest! {
        #[test]
        fn no_changed_byte_goes_unseen(at in 0usize..4096, to: u8) {
            let key = UnlockKey::new([1; 32]);
            let sealed = seal(&plain(), &[&key]);
            let mut bytes = sealed.expose().as_bytes().to_vec();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != to && to.is_ascii() && !to.is_ascii_whitespace() && !bytes[at].is_ascii_whitespace());
            bytes[at] = to;
            prop_assert!(open(std::str::from_utf8(&bytes).unwrap(), &key).is_err());
        }

        #[test]
        fn no_text_makes_the_reader_panic(junk in "(-----BEGIN SKEP SEALED PRIVATE KEY-----)?[A-Za-z0-9+/=\n]{0,90}(-----END SKEP SEALED PRIVATE KEY-----)?") {
            let _ = open(&junk, &UnlockKey::new([1; 32]));
        }
    }
}
