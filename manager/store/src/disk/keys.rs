//! The data keys of one store, and the file that they are kept in.

use super::files::{self, FileExt, OpenOptions, OpenOptionsExt};
use super::key::{DataKey, NONCE_BYTES, SealKey, TAG_BYTES, random};
use super::{DiskError, failed, sync_dir};
use skep_types::UnlockKey;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use zeroize::Zeroizing;

/// More are never there at once: one is added when a store is locked, and those that no file needs go at the next start.
const MAX: usize = 64;

struct Held {
    /// The current one first.
    keys: RwLock<Vec<DataKey>>,
    /// Bit `n`: a file was opened with key `n`.
    used: AtomicU64,
}

/// Everything new is sealed with the current key; older ones only open what was sealed before. Clones are the same keys.
#[derive(Clone)]
pub(crate) struct Keys(Arc<Held>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Keys({}, sensitive)", self.keys().len())
    }
}

impl From<DataKey> for Keys {
    fn from(key: DataKey) -> Self {
        Self::new(vec![key])
    }
}

impl Keys {
    fn new(keys: Vec<DataKey>) -> Self {
        Self(Arc::new(Held { keys: RwLock::new(keys), used: AtomicU64::new(0) }))
    }

    fn keys(&self) -> RwLockReadGuard<'_, Vec<DataKey>> {
        self.0.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`DataKey::derive`]: of the current key.
    pub(crate) fn derive(&self, purpose: &[u8], salt: &[u8]) -> SealKey {
        self.keys().first().expect("there is always a key").derive(purpose, salt)
    }

    /// Derived likewise of each key, the current one first.
    pub(crate) fn each(&self, purpose: &[u8], salt: &[u8]) -> Vec<SealKey> {
        self.keys().iter().map(|key| key.derive(purpose, salt)).collect()
    }

    /// The key that `opens`, derived likewise. If none does, the current one, for whoever
    /// finds out what is wrong.
    pub(crate) fn find(&self, purpose: &[u8], salt: &[u8], opens: impl Fn(&SealKey) -> bool) -> SealKey {
        for (nth, key) in self.keys().iter().enumerate() {
            let derived = key.derive(purpose, salt);
            if opens(&derived) {
                self.0.used.fetch_or(1 << nth, Ordering::Relaxed);
                return derived;
            }
        }
        self.derive(purpose, salt)
    }

    /// These with a new one before them.
    pub(crate) fn with_new(&self) -> Self {
        let mut keys = vec![DataKey::generate()];
        keys.extend(self.keys().iter().take(MAX - 1).cloned());
        Self::new(keys)
    }

    /// From now on these are those.
    pub(crate) fn become_those(&self, those: &Self) {
        let new = those.keys().clone();
        *self.0.keys.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// After everything was opened once: the current key and the older ones that were needed, if others are there.
    pub(crate) fn needed(&self) -> Option<Self> {
        let used = self.0.used.load(Ordering::Relaxed);
        let keys = self.keys();
        let needed: Vec<DataKey> =
            keys.iter().enumerate().filter(|(nth, _)| *nth == 0 || used & (1 << nth) != 0).map(|(_, key)| key.clone()).collect();
        (needed.len() < keys.len()).then(|| Self::new(needed))
    }

    /// Reads the key file. An unlock key that is not needed is not looked at.
    ///
    /// Two lines: `skep data key 1`, then how the keys are kept: `plain <keys>`, or `sealed <salt> <nonce> <keys and tag>`, by
    /// AES-256-GCM with a key derived from the unlock key and the salt. Keys are 32 bytes each, the current one first, and
    /// everything is in hex.
    ///
    /// # Errors
    /// [`DiskError::MissingFile`] if there is none, [`DiskError::Corrupt`] if it is not of that form, [`DiskError::Locked`] and
    /// [`DiskError::WrongUnlockKey`].
    pub(crate) fn read(path: &Path, unlock: Option<&UnlockKey>) -> Result<Self, DiskError> {
        let plain = match read_form(path)? {
            Form::Plain(keys) => keys,
            Form::Sealed { salt, nonce, mut sealed } => {
                let unlock = unlock.ok_or_else(|| DiskError::Locked { path: path.to_owned() })?;
                let seal = DataKey::of_unlock_key(unlock).derive(SEALED_FOR, &salt);
                let plain = seal.open(nonce, HEADING.as_bytes(), &mut sealed).map(<[u8]>::len);
                sealed.truncate(plain.ok_or_else(|| DiskError::WrongUnlockKey { path: path.to_owned() })?);
                Zeroizing::new(sealed)
            }
        };
        let keys: Vec<DataKey> = plain.chunks_exact(32).map(|key| DataKey::new(key.try_into().expect("32 bytes each"))).collect();
        if keys.is_empty() || keys.len() > MAX || plain.len() % 32 != 0 {
            return Err(DiskError::Corrupt { path: path.to_owned(), offset: 0, what: "a key has not 64 hexadecimal digits" });
        }
        Ok(Self::new(keys))
    }

    /// Whether the key file can be read with an unlock key only.
    ///
    /// # Errors
    /// As [`Keys::read`].
    pub(crate) fn is_locked(path: &Path) -> Result<bool, DiskError> {
        read_form(path).map(|form| matches!(form, Form::Sealed { .. }))
    }

    /// Writes the key file (mode 0600), sealed by the unlock key if there is one; durable when this returns. An existing file is
    /// replaced at once or not at all.
    ///
    /// # Errors
    /// Any I/O error, naming the step.
    pub(crate) fn write(&self, path: &Path, unlock: Option<&UnlockKey>) -> Result<(), DiskError> {
        let text = self.text(unlock);
        let temporary = path.with_extension("new");
        // What a crash left may be readable by others or hold a key in clear: it is not written into.
        match files::remove_file(&temporary) {
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
        files::rename(&temporary, path).map_err(failed("rename the data key to", path))?;
        skep_failpoint::failpoint!("store.key.renamed");
        sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        if let (Some(old), Some(_)) = (old, unlock) {
            // A key may have been there in clear. Where the file system writes in place, now it is not any more.
            let wiped = files::size_of(&old).and_then(|size| old.write_all_at(&vec![0; usize::try_from(size).unwrap_or(0)], 0));
            if let Err(error) = wiped.and_then(|()| old.sync_all()) {
                tracing::warn!(%error, "could not overwrite the former file of the data key");
            }
        }
        Ok(())
    }

    fn text(&self, unlock: Option<&UnlockKey>) -> Zeroizing<String> {
        let keys = self.keys();
        let mut plain = Zeroizing::new(Vec::with_capacity(32 * keys.len() + TAG_BYTES));
        keys.iter().for_each(|key| plain.extend_from_slice(key.bytes()));
        // With room for all, so that no copy of a key is left behind by growing.
        let mut text = Zeroizing::new(String::with_capacity(256 + 2 * plain.capacity()));
        text.push_str(HEADING);
        match unlock {
            None => {
                text.push_str("\nplain ");
                push_hex(&mut text, &plain);
            }
            Some(unlock) => {
                let (salt, nonce) = (random::<32>(), random::<NONCE_BYTES>());
                DataKey::of_unlock_key(unlock).derive(SEALED_FOR, &salt).seal(nonce, HEADING.as_bytes(), &mut plain, 0);
                text.push_str("\nsealed");
                for part in [&salt[..], &nonce[..], &plain[..]] {
                    text.push(' ');
                    push_hex(&mut text, part);
                }
            }
        }
        text.push('\n');
        text
    }
}

const HEADING: &str = "skep data key 1";
const SEALED_FOR: &[u8] = b"data key";

/// What a key file says.
enum Form {
    Plain(Zeroizing<Vec<u8>>),
    Sealed { salt: [u8; 32], nonce: [u8; NONCE_BYTES], sealed: Vec<u8> },
}

fn read_form(path: &Path) -> Result<Form, DiskError> {
    let corrupt = |what| DiskError::Corrupt { path: path.to_owned(), offset: 0, what };
    let text = match files::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == ErrorKind::InvalidData => return Err(corrupt("it is not text")),
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(DiskError::MissingFile { path: path.to_owned() }),
        Err(error) => return Err(failed("read the data key", path)(error)),
    };
    let mut lines = text.lines();
    if lines.next() != Some(HEADING) {
        return Err(corrupt("not a data key of format 1"));
    }
    let mut words = lines.next().unwrap_or_default().split(' ');
    let kept = words.next().unwrap_or_default();
    let mut part = || words.next().and_then(parse_hex);
    match kept {
        "plain" => part().map(|keys| Form::Plain(Zeroizing::new(keys))).ok_or_else(|| corrupt("the key is not in hexadecimal digits")),
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
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(keys: &Keys) -> Vec<[u8; 32]> {
        keys.keys().iter().map(|key| *key.bytes()).collect()
    }

    #[test]
    fn a_key_file_reads_back_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dek");
        let keys = Keys::from(DataKey::generate());
        keys.write(&path, None).unwrap();
        assert_eq!(bytes(&Keys::read(&path, None).unwrap()), bytes(&keys));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(format!("{keys:?}"), "Keys(1, sensitive)");
        // As the first version wrote it.
        std::fs::write(&path, format!("skep data key 1\nplain {}\n", "07".repeat(32))).unwrap();
        assert_eq!(bytes(&Keys::read(&path, None).unwrap()), [[7; 32]]);
    }

    #[test]
    fn a_damaged_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dek");
        assert!(matches!(Keys::read(&path, None), Err(DiskError::MissingFile { .. })));
        let texts =
            ["", "skep data key 1\n", "skep data key 1\nplain 00\n", "skep data key 2\nplain 00\n", "skep data key 1\nsealed 00 00\n"];
        for text in texts {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(Keys::read(&path, None), Err(DiskError::Corrupt { .. })), "{text:?}");
        }
        std::fs::write(&path, b"skep data \xebey 1\nplain 00\n").unwrap();
        assert!(matches!(Keys::read(&path, None), Err(DiskError::Corrupt { .. })), "a bit has changed");
    }

    #[test]
    fn locked_keys_open_with_their_unlock_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dek");
        let (unlock, other) = (UnlockKey::new([1; 32]), UnlockKey::new([2; 32]));
        let keys = Keys::from(DataKey::generate()).with_new();
        keys.write(&path, None).unwrap();
        assert!(!Keys::is_locked(&path).unwrap());
        keys.write(&path, Some(&unlock)).unwrap();
        assert!(Keys::is_locked(&path).unwrap());
        assert_eq!(bytes(&Keys::read(&path, Some(&unlock)).unwrap()), bytes(&keys));
        let says = Keys::read(&path, None).unwrap_err();
        assert!(matches!(says, DiskError::Locked { .. }) && says.to_string().contains("cluster unlock"), "{says}");
        assert!(matches!(Keys::read(&path, Some(&other)), Err(DiskError::WrongUnlockKey { .. })));
        let mut clear = String::new();
        push_hex(&mut clear, &bytes(&keys)[1]);
        assert!(!std::fs::read_to_string(&path).unwrap().contains(&clear));
        // Sealed anew, and open again.
        keys.write(&path, Some(&other)).unwrap();
        assert!(matches!(Keys::read(&path, Some(&unlock)), Err(DiskError::WrongUnlockKey { .. })));
        keys.write(&path, None).unwrap();
        assert_eq!(bytes(&Keys::read(&path, Some(&other)).unwrap()), bytes(&keys));
    }

    #[test]
    fn what_a_crash_left_beside_the_keys_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dek");
        std::fs::write(path.with_extension("new"), "rests").unwrap();
        Keys::from(DataKey::generate()).write(&path, None).unwrap();
        assert!(Keys::read(&path, None).is_ok() && !path.with_extension("new").exists());
    }

    #[test]
    fn older_keys_open_and_go_when_nobody_needs_them() {
        let old = Keys::from(DataKey::generate());
        let mut sealed = b"text".to_vec();
        old.derive(b"log", b"1").seal([1; NONCE_BYTES], b"", &mut sealed, 0);
        let keys = old.with_new().with_new();
        let opens = |key: &SealKey| key.open([1; NONCE_BYTES], b"", &mut sealed.clone()).is_some();
        assert!(!opens(&keys.derive(b"log", b"1")), "the current key is another one");
        assert!(opens(&keys.find(b"log", b"1", opens)));
        let needed = keys.needed().unwrap();
        assert_eq!(bytes(&needed), [bytes(&keys)[0], bytes(&old)[0]], "the one in between is not needed");
        assert!(!opens(&needed.with_new().find(b"log", b"2", opens)), "nothing fits");
        assert!(old.needed().is_none(), "the current one stays");
        old.become_those(&needed);
        assert_eq!(bytes(&old), bytes(&needed));
    }
}
