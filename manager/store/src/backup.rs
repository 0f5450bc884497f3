//! The whole state in one sealed stream, for another place and another day.
//!
//! ```text
//! "SKEPBACK"  format (1)  zero (7)  salt (32)  length (u32) and BackupHead  check (8: SHA-256 over the bytes before)
//! chunks: length (u32, highest bit: the last one), then so many bytes and their tag, sealed with their number
//! ```
//! Inside the chunks as in a snapshot: length and object, one by one; a zero length; the state hash. The key of the chunks is
//! derived from the unlock key and all bytes before them, so that the head cannot be exchanged. A chunk that is missing, swapped
//! or of another backup does not open; one that was cut off has no last chunk.

use crate::codec::{self, CodecError};
use crate::compact::Record;
use crate::disk::key::{DataKey, NONCE_BYTES, SealKey, TAG_BYTES, random};
use crate::table::{StateHasher, Tables, encode_object};
use crate::view::View;
use ring::digest;
use serde::{Deserialize, Serialize};
use skep_types::{ClusterView, Timestamp, UnlockKey, Version};
use std::io::{self, ErrorKind, Read};
use tokio::sync::mpsc;

const MAGIC: [u8; 8] = *b"SKEPBACK";
const FORMAT: u8 = 1;
const SALT: usize = 32;
const FIXED: usize = 16 + SALT + 4;
const CHECK: usize = 8;
const CHUNK: usize = 64 * 1024;
const LAST: u32 = 1 << 31;
/// A head is some hundred bytes; one that claims more is none.
const MAX_HEAD: u32 = 64 * 1024;
/// Chunks made before somebody takes them; a full channel makes the writer wait.
const AHEAD: usize = 4;

/// What a backup says of itself to everybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHead {
    /// `None` if there was no cluster object.
    pub cluster_id: Option<String>,
    /// The revision of the state in it.
    pub revision: Version,
    /// When it was made, by the clock of the manager that made it.
    pub made_at: Timestamp,
    pub objects: u64,
    /// `host:port` of the managers at that time, for whoever wants to know whether one of them is alive.
    pub managers: Vec<String>,
}

/// Why a backup could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("this is no backup of a cluster; give a file that `swarmctl cluster backup` wrote")]
    NotABackup,
    #[error("the backup was made by a newer version of skep (format {format}); restore it with that version")]
    Newer { format: u8 },
    #[error("the backup cannot be opened with this key, or its beginning was changed; give the key it was made with")]
    WrongKey,
    #[error("the backup is damaged {offset} bytes into its sealed part ({what}); take another one")]
    Damaged { offset: u64, what: &'static str },
    #[error("the backup is cut off; copy it again or take another one")]
    Cut,
    #[error("could not read the backup")]
    Io(#[source] io::Error),
    #[error("could not encode or decode what the backup holds")]
    Codec(#[from] CodecError),
    #[error("the backup was not finished")]
    Unfinished,
}

/// A backup being made: chunks of at most a few ten KiB, in order. Dropping it ends the work.
pub struct Backup {
    head: BackupHead,
    chunks: mpsc::Receiver<Result<Vec<u8>, BackupError>>,
}

impl Backup {
    /// Starts to write `view` on a thread for blocking work.
    pub(crate) fn start(view: View, made_at: Timestamp, managers: Vec<String>, key: &UnlockKey) -> Self {
        let head = BackupHead {
            cluster_id: view.cluster().map(|cluster| cluster.id.to_string()),
            revision: view.revision(),
            made_at,
            objects: view.len() as u64,
            managers,
        };
        let (out, chunks) = mpsc::channel(AHEAD);
        let (key, written) = (DataKey::of_unlock_key(key), head.clone());
        // Ends when all is written or nobody takes chunks any more.
        tokio::task::spawn_blocking(move || {
            let mut send = |chunk| out.blocking_send(Ok(chunk)).map_err(|_| BackupError::Unfinished);
            if let Err(error) = write(&written, view.tables(), &key, &mut send) {
                let _ = out.blocking_send(Err(error));
            }
        });
        Self { head, chunks }
    }

    #[must_use]
    pub fn head(&self) -> &BackupHead {
        &self.head
    }

    /// The next bytes; `None` when there are no more.
    ///
    /// # Errors
    /// The backup is not complete then, and nothing follows.
    pub async fn next(&mut self) -> Option<Result<Vec<u8>, BackupError>> {
        self.chunks.recv().await
    }
}

type Sink<'a> = &'a mut dyn FnMut(Vec<u8>) -> Result<(), BackupError>;

struct Sealer<'a> {
    key: SealKey,
    number: u64,
    plain: Vec<u8>,
    send: Sink<'a>,
}

fn nonce(number: u64) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    nonce
}

impl Sealer<'_> {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), BackupError> {
        while !bytes.is_empty() {
            if self.plain.len() == CHUNK {
                self.flush(false)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.plain.len()));
            self.plain.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    fn part(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        self.write(&u32::try_from(bytes.len()).expect("an object is at most some MiB").to_le_bytes())?;
        self.write(bytes)
    }

    fn flush(&mut self, last: bool) -> Result<(), BackupError> {
        let length = u32::try_from(self.plain.len()).expect("a chunk is small") | if last { LAST } else { 0 };
        let length = length.to_le_bytes();
        let mut chunk = Vec::with_capacity(4 + self.plain.len() + TAG_BYTES);
        chunk.extend_from_slice(&length);
        chunk.append(&mut self.plain);
        self.key.seal(nonce(self.number), &length, &mut chunk, 4);
        self.number += 1;
        (self.send)(chunk)
    }
}

fn chunk_key(key: &DataKey, preface: &[u8]) -> SealKey {
    key.derive(b"backup", digest::digest(&digest::SHA256, preface).as_ref())
}

fn write(head: &BackupHead, tables: &Tables, key: &DataKey, send: Sink<'_>) -> Result<(), BackupError> {
    let encoded = codec::encode("backup head", head)?;
    let mut preface = Vec::with_capacity(FIXED + encoded.len() + CHECK);
    preface.extend_from_slice(&MAGIC);
    preface.extend_from_slice(&[FORMAT, 0, 0, 0, 0, 0, 0, 0]);
    preface.extend_from_slice(&random::<SALT>());
    preface.extend_from_slice(&u32::try_from(encoded.len()).expect("a head is small").to_le_bytes());
    preface.extend_from_slice(&encoded);
    let check = digest::digest(&digest::SHA256, &preface);
    preface.extend_from_slice(&check.as_ref()[..CHECK]);
    let key = chunk_key(key, &preface);
    send(preface)?;
    let mut out = Sealer { key, number: 0, plain: Vec::with_capacity(CHUNK), send };
    let mut hasher = StateHasher::new(tables.revision());
    let mut bytes = Vec::new();
    for object in tables.objects() {
        encode_object(tables, object, &mut bytes)?;
        hasher.add(&bytes);
        out.part(&bytes)?;
    }
    out.write(&[0; 4])?;
    out.write(&hasher.finish().0)?;
    out.flush(true)
}

fn fill(input: &mut dyn Read, out: &mut [u8]) -> Result<(), BackupError> {
    input.read_exact(out).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => BackupError::Cut,
        _ => BackupError::Io(error),
    })
}

fn read_preface(input: &mut dyn Read) -> Result<(BackupHead, Vec<u8>), BackupError> {
    let mut preface = vec![0; FIXED];
    let begin = fill(input, &mut preface[..8]);
    if matches!(begin, Err(BackupError::Cut)) || preface[..8] != MAGIC {
        return Err(BackupError::NotABackup);
    }
    begin?;
    fill(input, &mut preface[8..])?;
    if preface[8] != FORMAT {
        return Err(BackupError::Newer { format: preface[8] });
    }
    let length = u32::from_le_bytes(preface[FIXED - 4..].try_into().expect("4 bytes were asked for"));
    if length > MAX_HEAD {
        return Err(BackupError::NotABackup);
    }
    preface.resize(FIXED + length as usize + CHECK, 0);
    fill(input, &mut preface[FIXED..])?;
    let (bound, check) = preface.split_at(preface.len() - CHECK);
    if digest::digest(&digest::SHA256, bound).as_ref()[..CHECK] != *check {
        return Err(BackupError::NotABackup);
    }
    let head = codec::decode("backup head", &bound[FIXED..])?;
    Ok((head, preface))
}

impl BackupHead {
    /// What a backup says of itself. Without its key that is not proven.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn read(input: &mut dyn Read) -> Result<Self, BackupError> {
        read_preface(input).map(|(head, _)| head)
    }
}

struct Opener<'a> {
    input: &'a mut dyn Read,
    key: SealKey,
    number: u64,
    plain: Vec<u8>,
    at: usize,
    ended: bool,
    /// Sealed bytes before this chunk.
    offset: u64,
}

impl Opener<'_> {
    fn damaged(&self, what: &'static str) -> BackupError {
        BackupError::Damaged { offset: self.offset, what }
    }

    fn next_chunk(&mut self) -> Result<(), BackupError> {
        let mut length = [0; 4];
        fill(self.input, &mut length)?;
        let marked = u32::from_le_bytes(length);
        let size = (marked & !LAST) as usize;
        if size > CHUNK {
            return Err(self.damaged("a part is longer than any"));
        }
        let mut sealed = vec![0; size + TAG_BYTES];
        fill(self.input, &mut sealed)?;
        let opened = self.key.open(nonce(self.number), &length, &mut sealed).map(<[u8]>::len);
        let Some(opened) = opened else {
            return Err(if self.number == 0 { BackupError::WrongKey } else { self.damaged("a part does not match its seal") });
        };
        sealed.truncate(opened);
        self.offset += 4 + (size + TAG_BYTES) as u64;
        (self.plain, self.at, self.ended) = (sealed, 0, marked & LAST != 0);
        self.number += 1;
        Ok(())
    }

    fn exact(&mut self, out: &mut [u8]) -> Result<(), BackupError> {
        let mut filled = 0;
        while filled < out.len() {
            if self.at == self.plain.len() {
                if self.ended {
                    return Err(self.damaged("it ends too early"));
                }
                self.next_chunk()?;
                continue;
            }
            let count = (out.len() - filled).min(self.plain.len() - self.at);
            out[filled..filled + count].copy_from_slice(&self.plain[self.at..self.at + count]);
            filled += count;
            self.at += count;
        }
        Ok(())
    }

    fn part(&mut self, out: &mut Vec<u8>) -> Result<(), BackupError> {
        let mut length = [0; 4];
        self.exact(&mut length)?;
        // Sealed by whoever has the key, but a length is never trusted with all memory.
        let length = u32::from_le_bytes(length) as usize;
        if length > 64 << 20 {
            return Err(self.damaged("an object is larger than any"));
        }
        out.resize(length, 0);
        self.exact(out)
    }
}

/// Reads a backup in full and checks that it is the state it says it is. Blocking.
pub(crate) fn read(input: &mut dyn Read, key: &UnlockKey) -> Result<(BackupHead, Tables), BackupError> {
    let (head, preface) = read_preface(input)?;
    let key = chunk_key(&DataKey::of_unlock_key(key), &preface);
    let mut input = Opener { input, key, number: 0, plain: Vec::new(), at: 0, ended: false, offset: 0 };
    let mut tables = Tables::new();
    tables.set_revision(head.revision);
    let mut hasher = StateHasher::new(head.revision);
    let mut bytes = Vec::new();
    loop {
        input.part(&mut bytes)?;
        if bytes.is_empty() {
            break;
        }
        hasher.add(&bytes);
        let record: Record = codec::decode("object", &bytes)?;
        let object = record.object(|task| tables.service_spec(task));
        tables.restore(object.map_err(CodecError::from)?);
    }
    let mut hash = [0; 32];
    input.exact(&mut hash)?;
    if hasher.finish().0 != hash || tables.len() as u64 != head.objects {
        return Err(input.damaged("its objects are not those it was made of"));
    }
    // Whatever the cut, the last part has to have been seen; and nothing follows it.
    if !input.ended || input.at != input.plain.len() || !matches!(input.input.read(&mut [0]), Ok(0)) {
        return Err(input.damaged("something follows its end"));
    }
    Ok((head, tables))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Action, Node, NodeId, Object};
    use std::sync::Arc;

    fn tables(nodes: u64, size: usize) -> Tables {
        let mut tables = Tables::new();
        for number in 1..=nodes {
            let mut node = Node::new(NodeId::for_test(number));
            node.status.message = "m".repeat(size);
            tables.apply(Version(number), Timestamp(5), &[Action::Create(Object::Node(Arc::new(node)))]).unwrap();
        }
        tables
    }

    fn key() -> UnlockKey {
        UnlockKey::new([3; 32])
    }

    fn made(tables: &Tables) -> Vec<Vec<u8>> {
        let head = BackupHead {
            cluster_id: None,
            revision: tables.revision(),
            made_at: Timestamp(7),
            objects: tables.len() as u64,
            managers: Vec::new(),
        };
        let mut chunks = Vec::new();
        let mut send = |chunk| {
            chunks.push(chunk);
            Ok(())
        };
        write(&head, tables, &DataKey::of_unlock_key(&key()), &mut send).unwrap();
        chunks
    }

    #[tokio::test]
    async fn a_backup_reads_back_and_says_what_it_is() {
        let before = tables(500, 1000);
        let mut backup = Backup::start(View::from(before.clone()), Timestamp(9), vec!["m:1".into()], &key());
        let mut bytes = Vec::new();
        let mut largest = 0;
        while let Some(chunk) = backup.next().await {
            let chunk = chunk.unwrap();
            largest = largest.max(chunk.len());
            bytes.extend(chunk);
        }
        assert!(bytes.len() > 500_000 && largest <= CHUNK + 4 + TAG_BYTES);
        let head = BackupHead::read(&mut bytes.as_slice()).unwrap();
        assert_eq!(
            head,
            BackupHead { cluster_id: None, revision: Version(500), made_at: Timestamp(9), objects: 500, managers: vec!["m:1".into()] }
        );
        let (again, after) = read(&mut bytes.as_slice(), &key()).unwrap();
        assert_eq!((again, after.state_hash()), (head, before.state_hash()));
        assert!(!bytes.windows(8).any(|window| window == b"mmmmmmmm"));
    }

    #[test]
    fn an_empty_state_and_full_chunks_read_back() {
        for (nodes, size) in [(0, 0), (1, 0), (1, CHUNK), (3, 2 * CHUNK - 200)] {
            let before = tables(nodes, size);
            let bytes = made(&before).concat();
            assert_eq!(read(&mut bytes.as_slice(), &key()).unwrap().1.state_hash(), before.state_hash());
        }
    }

    #[test]
    fn another_key_another_head_and_other_files_are_refused() {
        let bytes = made(&tables(3, 10)).concat();
        assert!(matches!(read(&mut bytes.as_slice(), &UnlockKey::new([4; 32])), Err(BackupError::WrongKey)));
        assert!(matches!(read(&mut &b"SKEP"[..], &key()), Err(BackupError::NotABackup)));
        assert!(matches!(read(&mut &b"something else that is long enough"[..], &key()), Err(BackupError::NotABackup)));
        let mut newer = bytes.clone();
        newer[8] = 2;
        assert!(matches!(read(&mut newer.as_slice(), &key()), Err(BackupError::Newer { format: 2 })));
        // The head of another backup with the same key does not fit.
        let other = made(&tables(3, 10));
        let mixed = [other[0].clone(), made(&tables(3, 10))[1..].concat()].concat();
        assert!(matches!(read(&mut mixed.as_slice(), &key()), Err(BackupError::WrongKey)));
    }

    #[test]
    fn cuts_and_swaps_and_flips_are_noticed() {
        let chunks = made(&tables(300, 1000));
        assert!(chunks.len() > 4);
        let refused = |chunks: &[Vec<u8>]| read(&mut chunks.concat().as_slice(), &key()).is_err();
        assert!(!refused(&chunks));
        for cut in 1..chunks.len() {
            assert!(matches!(read(&mut chunks[..cut].concat().as_slice(), &key()), Err(BackupError::Cut)), "{cut}");
        }
        let mut swapped = chunks.clone();
        swapped.swap(2, 3);
        assert!(refused(&swapped));
        let mut without = chunks.clone();
        without.remove(2);
        assert!(refused(&without));
        let mut more = chunks.clone();
        more.push(vec![0]);
        assert!(refused(&more));
        let bytes = chunks.concat();
        for at in (0..bytes.len()).step_by(977) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(read(&mut flipped.as_slice(), &key()).is_err(), "byte {at}");
        }
    }
}
