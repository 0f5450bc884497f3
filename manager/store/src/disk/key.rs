//! The data key and the keys derived from it.

use super::{DiskError, failed, sync_dir};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use zeroize::{Zeroize, Zeroizing};

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

    /// Reads the key file.
    ///
    /// Two lines: `skep data key 1`, then how the key is kept. `plain <hex>` is the only way so far; a key wrapped by
    /// the unlock key gets a word of its own.
    ///
    /// # Errors
    /// [`DiskError::MissingFile`] if there is none, [`DiskError::Corrupt`] if it is not of that form.
    pub fn read(path: &Path) -> Result<Self, DiskError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(DiskError::MissingFile { path: path.to_owned() }),
            Err(error) => return Err(failed("read the data key", path)(error)),
        };
        let corrupt = |what| DiskError::Corrupt { path: path.to_owned(), offset: 0, what };
        let mut lines = text.lines();
        if lines.next() != Some(HEADING) {
            return Err(corrupt("not a data key of format 1"));
        }
        let hex = lines.next().and_then(|line| line.strip_prefix("plain ")).ok_or_else(|| corrupt("the key is kept in an unknown way"))?;
        let mut key = [0; 32];
        parse_hex(hex, &mut key).ok_or_else(|| corrupt("the key is not 64 hexadecimal digits"))?;
        let made = Self::new(key);
        key.zeroize();
        Ok(made)
    }

    /// Writes the key file (mode 0600), durable when this returns. An existing file is replaced at once or not at all.
    ///
    /// # Errors
    /// Any I/O error, naming the step.
    pub fn write(&self, path: &Path) -> Result<(), DiskError> {
        let mut text = Zeroizing::new(format!("{HEADING}\nplain "));
        for byte in self.0.iter() {
            write!(text, "{byte:02x}").expect("writing to a String does not fail");
        }
        text.push('\n');
        let temporary = path.with_extension("new");
        let result = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        super::counted_sync();
        result.map_err(failed("write the data key", &temporary))?;
        skep_failpoint::failpoint!("store.key.written");
        std::fs::rename(&temporary, path).map_err(failed("rename the data key to", path))?;
        sync_dir(path.parent().unwrap_or(Path::new(".")))
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

const HEADING: &str = "skep data key 1";

fn parse_hex(text: &str, bytes: &mut [u8; 32]) -> Option<()> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(0..) {
        *byte = u8::from_str_radix(&text[pair * 2..pair * 2 + 2], 16).ok()?;
    }
    Some(())
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
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_reads_back_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dek");
        let key = DataKey::generate();
        key.write(&path).unwrap();
        assert_eq!(*DataKey::read(&path).unwrap().0, *key.0);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(format!("{key:?}"), "DataKey(sensitive)");
    }

    #[test]
    fn a_damaged_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dek");
        assert!(matches!(DataKey::read(&path), Err(DiskError::MissingFile { .. })));
        for text in ["", "skep data key 1\n", "skep data key 1\nplain 00\n", "skep data key 2\nplain 00\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(DataKey::read(&path), Err(DiskError::Corrupt { .. })), "{text:?}");
        }
    }
}
