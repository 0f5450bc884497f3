//! The data key and the keys derived from it.

use super::{DiskError, failed, sync_dir};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use skep_types::UnlockKey;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
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

    /// Reads a key file that is not locked.
    ///
    /// # Errors
    /// As [`DataKey::read_with`].
    pub fn read(path: &Path) -> Result<Self, DiskError> {
        Self::read_with(path, None)
    }

    /// Reads the key file. An unlock key that is not needed is not looked at.
    ///
    /// Two lines: `skep data key 1`, then how the key is kept: `plain <hex>`, or `sealed <salt> <nonce> <key and tag>`, in hex as
    /// well, by AES-256-GCM with a key derived from the unlock key and the salt.
    ///
    /// # Errors
    /// [`DiskError::MissingFile`] if there is none, [`DiskError::Corrupt`] if it is not of that form, [`DiskError::Locked`] and
    /// [`DiskError::WrongUnlockKey`].
    pub fn read_with(path: &Path, unlock: Option<&UnlockKey>) -> Result<Self, DiskError> {
        let corrupt = |what| DiskError::Corrupt { path: path.to_owned(), offset: 0, what };
        match read_form(path)? {
            Form::Plain(key) => Ok(key),
            Form::Sealed { salt, nonce, mut sealed } => {
                let unlock = unlock.ok_or_else(|| DiskError::Locked { path: path.to_owned() })?;
                let seal = Self::of_unlock_key(unlock).derive(SEALED_FOR, &salt);
                let plain = seal.open(nonce, HEADING.as_bytes(), &mut sealed);
                let key = plain.ok_or_else(|| DiskError::WrongUnlockKey { path: path.to_owned() })?;
                let key: [u8; 32] = key.try_into().map_err(|_| corrupt("the sealed key has not 32 bytes"))?;
                Ok(Self::new(key))
            }
        }
    }

    /// Whether the key file can be read with an unlock key only.
    ///
    /// # Errors
    /// As [`DataKey::read_with`].
    pub(crate) fn is_locked(path: &Path) -> Result<bool, DiskError> {
        read_form(path).map(|form| matches!(form, Form::Sealed { .. }))
    }

    /// Writes the key file so that everybody who can read it has the key.
    ///
    /// # Errors
    /// As [`DataKey::write_with`].
    pub fn write(&self, path: &Path) -> Result<(), DiskError> {
        self.write_with(path, None)
    }

    /// Writes the key file (mode 0600), sealed by the unlock key if there is one; durable when this returns. An existing file is
    /// replaced at once or not at all.
    ///
    /// # Errors
    /// Any I/O error, naming the step.
    pub fn write_with(&self, path: &Path, unlock: Option<&UnlockKey>) -> Result<(), DiskError> {
        let mut text = Zeroizing::new(String::with_capacity(512));
        match unlock {
            None => {
                let _ = write!(text, "{HEADING}\nplain ");
                push_hex(&mut text, &*self.0);
            }
            Some(unlock) => {
                let (salt, nonce) = (random::<32>(), random::<NONCE_BYTES>());
                let mut sealed = Vec::with_capacity(32 + TAG_BYTES);
                sealed.extend_from_slice(&*self.0);
                Self::of_unlock_key(unlock).derive(SEALED_FOR, &salt).seal(nonce, HEADING.as_bytes(), &mut sealed, 0);
                let _ = write!(text, "{HEADING}\nsealed");
                for part in [&salt[..], &nonce[..], &sealed[..]] {
                    text.push(' ');
                    push_hex(&mut text, part);
                }
            }
        }
        text.push('\n');
        let temporary = path.with_extension("new");
        // What a crash left may be readable by others or hold a key in clear: it is not written into.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("remove", &temporary)(error)),
            Ok(()) | Err(_) => {}
        }
        let result = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        super::counted_sync();
        result.map_err(failed("write the data key", &temporary))?;
        skep_failpoint::failpoint!("store.key.written");
        let old = OpenOptions::new().write(true).open(path).ok();
        std::fs::rename(&temporary, path).map_err(failed("rename the data key to", path))?;
        skep_failpoint::failpoint!("store.key.renamed");
        sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        if let (Some(old), Some(_)) = (old, unlock) {
            // The key may have been there in clear. Where the file system writes in place, now it is not any more.
            let wiped = old.metadata().and_then(|meta| old.write_all_at(&vec![0; usize::try_from(meta.len()).unwrap_or(0)], 0));
            if let Err(error) = wiped.and_then(|()| old.sync_all()) {
                tracing::warn!(%error, "could not overwrite the former file of the data key");
            }
        }
        Ok(())
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
const SEALED_FOR: &[u8] = b"data key";

/// What a key file says.
enum Form {
    Plain(DataKey),
    Sealed { salt: [u8; 32], nonce: [u8; NONCE_BYTES], sealed: Vec<u8> },
}

fn read_form(path: &Path) -> Result<Form, DiskError> {
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
    let mut words = lines.next().unwrap_or_default().split(' ');
    let kept = words.next().unwrap_or_default();
    let mut part = || words.next().and_then(parse_hex);
    match kept {
        "plain" => {
            let bytes = part().map(Zeroizing::new).ok_or_else(|| corrupt("the key is not in hexadecimal digits"))?;
            let key = bytes.as_slice().try_into().map_err(|_| corrupt("the key has not 64 hexadecimal digits"))?;
            Ok(Form::Plain(DataKey::new(key)))
        }
        "sealed" => {
            let form = part().zip(part()).zip(part()).and_then(|((salt, nonce), sealed)| {
                Some(Form::Sealed { salt: salt.try_into().ok()?, nonce: nonce.try_into().ok()?, sealed })
            });
            form.ok_or_else(|| corrupt("the sealed key is incomplete"))
        }
        _ => Err(corrupt("the key is kept in an unknown way")),
    }
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "{byte:02x}"); // writing to a String does not fail
    }
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    if text.len() % 2 != 0 || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
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
        for text in
            ["", "skep data key 1\n", "skep data key 1\nplain 00\n", "skep data key 2\nplain 00\n", "skep data key 1\nsealed 00 00\n"]
        {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(DataKey::read(&path), Err(DiskError::Corrupt { .. })), "{text:?}");
        }
    }

    #[test]
    fn a_locked_key_opens_with_its_unlock_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dek");
        let (key, unlock, other) = (DataKey::generate(), UnlockKey::new([1; 32]), UnlockKey::new([2; 32]));
        key.write(&path).unwrap();
        assert!(!DataKey::is_locked(&path).unwrap());
        let plain = std::fs::read(&path).unwrap();
        key.write_with(&path, Some(&unlock)).unwrap();
        assert!(DataKey::is_locked(&path).unwrap());
        assert_eq!(*DataKey::read_with(&path, Some(&unlock)).unwrap().0, *key.0);
        let says = DataKey::read(&path).unwrap_err();
        assert!(matches!(says, DiskError::Locked { .. }) && says.to_string().contains("cluster unlock"), "{says}");
        assert!(matches!(DataKey::read_with(&path, Some(&other)), Err(DiskError::WrongUnlockKey { .. })));
        let hex = &plain["skep data key 1\nplain ".len()..plain.len() - 1];
        assert!(!std::fs::read(&path).unwrap().windows(hex.len()).any(|window| window == hex));
        // Rewrapped, and open again.
        key.write_with(&path, Some(&other)).unwrap();
        assert!(matches!(DataKey::read_with(&path, Some(&unlock)), Err(DiskError::WrongUnlockKey { .. })));
        assert_eq!(*DataKey::read_with(&path, Some(&other)).unwrap().0, *key.0);
        key.write_with(&path, None).unwrap();
        assert_eq!(*DataKey::read_with(&path, Some(&other)).unwrap().0, *key.0);
    }

    #[test]
    fn what_a_crash_left_beside_the_key_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dek");
        std::fs::write(path.with_extension("new"), "rests").unwrap();
        let key = DataKey::generate();
        key.write(&path).unwrap();
        assert_eq!(*DataKey::read(&path).unwrap().0, *key.0);
        assert!(!path.with_extension("new").exists());
    }
}
