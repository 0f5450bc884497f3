//! Disks that lose what was not synced.
//!
//! As strict as POSIX allows: a synced file has its content, but its name only when its directory was synced, too. When the power
//! goes, what was written and not synced is there or not, sector by sector; names of one directory appear in the order in which they
//! were made, up to some point.

use skep_kit::Dice;
use skep_store::sim::Opening;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

/// What the disk writes as a whole or not at all.
const SECTOR: usize = 512;

/// Syncs that a faulty disk only claims to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lie {
    Log,
    Vote,
    Snapshot,
    Names,
}

#[derive(Clone)]
enum Pending {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Clone, Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Content {
    fn sync(&mut self) {
        for pending in self.pending.drain(..) {
            match pending {
                Pending::Write { at, bytes } => put(&mut self.durable, at, &bytes),
                Pending::Length(length) => self.durable.resize(length, 0),
            }
        }
    }

    /// What is left of it when the power goes.
    fn cut(&mut self, dice: &mut Dice) {
        // Nothing, everything, or some of it.
        let mode = dice.roll(4);
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Length(length) if mode == 1 || (mode > 1 && dice.coin()) => self.durable.resize(length, 0),
                Pending::Write { at, bytes } if mode > 0 => {
                    let mut from = 0;
                    while from < bytes.len() {
                        let end = ((at + from) / SECTOR + 1) * SECTOR - at;
                        let end = end.min(bytes.len());
                        if mode == 1 || dice.coin() {
                            put(&mut self.durable, at + from, &bytes[from..end]);
                        }
                        from = end;
                    }
                }
                Pending::Length(_) | Pending::Write { .. } => {}
            }
        }
        self.live.clone_from(&self.durable);
    }
}

type Changes = Vec<(String, Option<u64>)>;

#[derive(Clone, Default)]
struct Names {
    live: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    /// Each is one step.
    pending: Vec<Changes>,
}

fn take_in(names: &mut BTreeMap<String, u64>, changes: &Changes) {
    for (name, inode) in changes {
        match inode {
            Some(inode) => drop(names.insert(name.clone(), *inode)),
            None => drop(names.remove(name)),
        }
    }
}

impl Names {
    fn change(&mut self, changes: Changes) {
        take_in(&mut self.live, &changes);
        self.pending.push(changes);
    }

    fn sync(&mut self) {
        for changes in self.pending.drain(..) {
            take_in(&mut self.durable, &changes);
        }
    }

    fn cut(&mut self, dice: &mut Dice) {
        let kept = usize::try_from(dice.roll(self.pending.len() as u64 + 1)).unwrap_or(0);
        for changes in self.pending.drain(..).take(kept) {
            take_in(&mut self.durable, &changes);
        }
        self.live.clone_from(&self.durable);
    }
}

#[derive(Clone)]
enum Inode {
    File(Content),
    Dir(Names),
}

const ROOT: u64 = 0;

/// The disk of one machine. Paths are those below its root.
pub struct Disk {
    inodes: BTreeMap<u64, Inode>,
    next: u64,
    locked: BTreeSet<u64>,
    /// Steps until the power goes.
    pub cut_in: Option<u64>,
    /// The power is off.
    pub off: bool,
    /// Which start of the machine it is; what earlier ones opened is dead.
    pub boot: u64,
    pub lie: Option<Lie>,
    dice: Dice,
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

impl Disk {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let inodes = BTreeMap::from([(ROOT, Inode::Dir(Names::default()))]);
        Self { inodes, next: 1, locked: BTreeSet::new(), cut_in: None, off: false, boot: 0, lie: None, dice: Dice::of_seed(seed) }
    }

    /// Each change of the disk is one step; it may be the last.
    fn step(&mut self) -> io::Result<()> {
        match &mut self.cut_in {
            Some(0) => {
                self.off = true;
                Err(off())
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The power goes, if it has not gone already, and comes back: what was not synced is lost or torn.
    pub fn power_cut(&mut self) {
        for inode in self.inodes.values_mut() {
            match inode {
                Inode::File(content) => content.cut(&mut self.dice),
                Inode::Dir(names) => names.cut(&mut self.dice),
            }
        }
        let mut reached = BTreeSet::new();
        let mut next = vec![ROOT];
        while let Some(inode) = next.pop() {
            if reached.insert(inode)
                && let Some(Inode::Dir(names)) = self.inodes.get(&inode)
            {
                next.extend(names.durable.values());
            }
        }
        self.inodes.retain(|inode, _| reached.contains(inode));
        self.reboot();
    }

    /// The machine starts, or only the process: what is in memory is lost.
    pub fn reboot(&mut self) {
        (self.off, self.cut_in) = (false, None);
        self.locked.clear();
        self.boot += 1;
    }

    fn dir(&mut self, inode: u64) -> io::Result<&mut Names> {
        match self.inodes.get_mut(&inode) {
            Some(Inode::Dir(names)) => Ok(names),
            Some(Inode::File(_)) => Err(ErrorKind::NotADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn file(&mut self, inode: u64) -> io::Result<&mut Content> {
        match self.inodes.get_mut(&inode) {
            Some(Inode::File(content)) => Ok(content),
            Some(Inode::Dir(_)) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        let mut inode = ROOT;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            let Some(Inode::Dir(names)) = self.inodes.get(&inode) else { return Err(ErrorKind::NotADirectory.into()) };
            inode = *names.live.get(&*name.to_string_lossy()).ok_or(ErrorKind::NotFound)?;
        }
        Ok(inode)
    }

    /// The directory and the name in it.
    fn place(&self, path: &Path) -> io::Result<(u64, String)> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        Ok((self.find(path.parent().unwrap_or(Path::new("")))?, name))
    }

    fn make(&mut self, dir: u64, name: String, inode: Inode) -> io::Result<u64> {
        self.step()?;
        let number = self.next;
        self.next += 1;
        self.inodes.insert(number, inode);
        self.dir(dir)?.change(vec![(name, Some(number))]);
        Ok(number)
    }

    pub fn open(&mut self, path: &Path, how: Opening) -> io::Result<u64> {
        let found = match self.find(path) {
            Ok(_) if how.create_new => return Err(ErrorKind::AlreadyExists.into()),
            Ok(inode) => inode,
            Err(error) if error.kind() == ErrorKind::NotFound && (how.create || how.create_new) => {
                let (dir, name) = self.place(path)?;
                return self.make(dir, name, Inode::File(Content::default()));
            }
            Err(error) => return Err(error),
        };
        if how.truncate && !self.file(found)?.live.is_empty() {
            self.set_len(found, 0)?;
        }
        Ok(found)
    }

    pub fn read_at(&mut self, inode: u64, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let content = self.file(inode)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.live.len());
        let count = out.len().min(content.live.len() - from);
        out[..count].copy_from_slice(&content.live[from..from + count]);
        Ok(count)
    }

    pub fn write_at(&mut self, inode: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let last = self.step();
        let content = self.file(inode)?;
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        put(&mut content.live, at, bytes);
        // Of a write in which the power goes, a part may get through.
        content.pending.push(Pending::Write { at, bytes: bytes.to_vec() });
        last
    }

    pub fn set_len(&mut self, inode: u64, size: u64) -> io::Result<()> {
        self.step()?;
        let content = self.file(inode)?;
        let length = usize::try_from(size).map_err(io::Error::other)?;
        content.live.resize(length, 0);
        content.pending.push(Pending::Length(length));
        Ok(())
    }

    pub fn len(&mut self, inode: u64) -> io::Result<u64> {
        Ok(self.file(inode)?.live.len() as u64)
    }

    /// `name`: what it was opened as.
    pub fn sync(&mut self, inode: u64, name: &str) -> io::Result<()> {
        self.step()?;
        let kind = match self.inodes.get(&inode) {
            Some(Inode::Dir(_)) => Some(Lie::Names),
            _ if name.ends_with(".seg") || name == "spare" => Some(Lie::Log),
            _ if name == "state" || name == "state.new" => Some(Lie::Vote),
            _ if name.ends_with(".snap") || name == "built.new" || name == "received.new" => Some(Lie::Snapshot),
            _ => None,
        };
        if kind.is_some() && kind == self.lie {
            return Ok(());
        }
        match self.inodes.get_mut(&inode) {
            Some(Inode::File(content)) => content.sync(),
            Some(Inode::Dir(names)) => names.sync(),
            None => return Err(ErrorKind::NotFound.into()),
        }
        Ok(())
    }

    pub fn lock(&mut self, inode: u64) -> io::Result<()> {
        if self.locked.insert(inode) { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) }
    }

    pub fn unlock(&mut self, inode: u64) {
        self.locked.remove(&inode);
    }

    #[must_use]
    pub fn exists(&self, path: &Path) -> bool {
        self.find(path).is_ok()
    }

    pub fn list(&mut self, dir: &Path) -> io::Result<Vec<String>> {
        let inode = self.find(dir)?;
        Ok(self.dir(inode)?.live.keys().cloned().collect())
    }

    pub fn create_dirs(&mut self, path: &Path) -> io::Result<()> {
        let mut so_far = PathBuf::new();
        for part in path.components() {
            so_far.push(part);
            if !self.exists(&so_far) {
                let (dir, name) = self.place(&so_far)?;
                self.make(dir, name, Inode::Dir(Names::default()))?;
            }
        }
        Ok(())
    }

    /// Within one directory, which is all that is needed.
    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.find(from)?;
        let ((dir, old), (there, new)) = (self.place(from)?, self.place(to)?);
        if dir != there {
            return Err(ErrorKind::CrossesDevices.into());
        }
        self.step()?;
        self.dir(dir)?.change(vec![(old, None), (new, Some(inode))]);
        Ok(())
    }

    pub fn exchange(&mut self, one: &Path, other: &Path) -> io::Result<()> {
        let (first, second) = (self.find(one)?, self.find(other)?);
        let ((dir, one), (there, other)) = (self.place(one)?, self.place(other)?);
        if dir != there {
            return Err(ErrorKind::CrossesDevices.into());
        }
        self.step()?;
        self.dir(dir)?.change(vec![(one, Some(second)), (other, Some(first))]);
        Ok(())
    }

    /// A directory with all that is in it, too.
    pub fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        let (dir, name) = self.place(path)?;
        self.step()?;
        self.dir(dir)?.change(vec![(name, None)]);
        Ok(())
    }

    /// All files with their sizes.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        let mut found = Vec::new();
        let mut next = vec![(PathBuf::new(), ROOT)];
        while let Some((path, inode)) = next.pop() {
            match self.inodes.get(&inode) {
                Some(Inode::Dir(names)) => next.extend(names.live.iter().map(|(name, inode)| (path.join(name), *inode))),
                Some(Inode::File(content)) => found.push((path, content.live.len())),
                None => {}
            }
        }
        found.sort();
        found
    }

    /// Another disk with the same on it.
    #[must_use]
    pub fn image(&self) -> Self {
        Self { inodes: self.inodes.clone(), next: self.next, boot: self.boot, lie: self.lie, ..Self::new(self.boot) }
    }

    /// The file is shorter than it was.
    pub fn cut_off(&mut self, path: &Path, length: usize) {
        let Ok(inode) = self.find(path) else { return };
        let Ok(content) = self.file(inode) else { return };
        content.live.truncate(length);
        content.durable.truncate(length);
    }

    /// Everything on it is gone.
    pub fn wipe(&mut self) {
        self.inodes = BTreeMap::from([(ROOT, Inode::Dir(Names::default()))]);
    }

    pub fn byte(&mut self, path: &Path, byte: usize) -> Option<u8> {
        let inode = self.find(path).ok()?;
        self.file(inode).ok()?.live.get(byte).copied()
    }

    /// Changes one bit of what is on the disk; the same again changes it back.
    pub fn flip(&mut self, path: &Path, byte: usize, bit: u8) {
        let Ok(inode) = self.find(path) else { return };
        let Ok(content) = self.file(inode) else { return };
        for bytes in [&mut content.live, &mut content.durable] {
            if let Some(byte) = bytes.get_mut(byte) {
                *byte ^= 1 << bit;
            }
        }
    }
}
