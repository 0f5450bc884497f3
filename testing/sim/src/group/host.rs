//! The machines of a run, as the store's code sees them: their disks, their chance.

use super::disk::Disk;
use super::{Mutant, lock};
use skep_store::sim::{Fault, Handle, Opening, Simulator};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// Numbers by purpose: whoever draws is told the same numbers whatever others draw meanwhile.
#[derive(Default)]
pub struct Chance {
    seed: u64,
    drawn: BTreeMap<(u8, u64, u64), u64>,
}

fn mix(mut value: u64) -> u64 {
    // SplitMix64.
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Chance {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, drawn: BTreeMap::new() }
    }

    pub fn number(&mut self, purpose: u8, one: u64, other: u64) -> u64 {
        let drawn = self.drawn.entry((purpose, one, other)).or_default();
        *drawn += 1;
        mix(mix(mix(mix(self.seed) ^ u64::from(purpose)) ^ one).wrapping_add(mix(other)) ^ *drawn)
    }

    /// From 0 up to but without 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are left")]
    pub fn part(&mut self, purpose: u8, one: u64, other: u64) -> f64 {
        (self.number(purpose, one, other) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

struct Open {
    machine: u64,
    boot: u64,
    inode: u64,
    name: String,
    locked: bool,
}

/// All machines of a run.
pub struct Machines {
    pub disks: BTreeMap<u64, Disk>,
    open: BTreeMap<Handle, Open>,
    next: Handle,
    /// How long the disk of a manager takes for a write, in milliseconds at most.
    pub slow: BTreeMap<u64, u64>,
    pub chance: Chance,
    pub mutant: Option<Mutant>,
}

impl Machines {
    #[must_use]
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        Self { disks: BTreeMap::new(), open: BTreeMap::new(), next: 1, slow: BTreeMap::new(), chance: Chance::new(seed), mutant }
    }

    /// The disk of a path of the form `/sim/MACHINE/BOOT/...`, and the path on it; an error if the machine has started anew or is off.
    fn at<'a>(&mut self, path: &'a Path) -> io::Result<(u64, &mut Disk, &'a Path)> {
        let mut parts = path.components();
        parts.nth(1);
        let mut number = || parts.next().and_then(|part| part.as_os_str().to_str()).and_then(|part| part.parse::<u64>().ok());
        let (machine, boot) = number().zip(number()).ok_or(ErrorKind::NotFound)?;
        let disk = self.disks.get_mut(&machine).ok_or(ErrorKind::NotFound)?;
        if disk.off || disk.boot != boot {
            return Err(io::Error::other("the power is off"));
        }
        Ok((machine, disk, parts.as_path()))
    }

    fn of(&mut self, file: Handle) -> io::Result<(&Open, &mut Disk)> {
        let open = self.open.get(&file).ok_or(ErrorKind::InvalidInput)?;
        let disk = self.disks.get_mut(&open.machine).ok_or(ErrorKind::NotFound)?;
        if disk.off || disk.boot != open.boot {
            return Err(io::Error::other("the power is off"));
        }
        Ok((open, disk))
    }

    /// Where a manager keeps its store now.
    #[must_use]
    pub fn dir(&self, machine: u64) -> PathBuf {
        PathBuf::from(format!("/sim/{machine}/{}/raft", self.disks.get(&machine).map_or(0, |disk| disk.boot)))
    }
}

/// What is installed as the store's simulator.
pub struct Host {
    pub machines: Arc<Mutex<Machines>>,
    /// Wakes when the power of a machine has gone.
    pub cut: Arc<Notify>,
}

impl Host {
    fn with<T>(&self, step: impl FnOnce(&mut Machines) -> io::Result<T>) -> io::Result<T> {
        let mut machines = lock(&self.machines);
        let before = machines.disks.values().filter(|disk| disk.off).count();
        let done = step(&mut machines);
        if done.is_err() && machines.disks.values().filter(|disk| disk.off).count() != before {
            self.cut.notify_one();
        }
        done
    }
}

impl Simulator for Host {
    fn owns(&self, path: &Path) -> bool {
        path.starts_with("/sim")
    }

    fn open(&self, path: &Path, how: Opening) -> io::Result<Handle> {
        self.with(|machines| {
            let (machine, disk, path) = machines.at(path)?;
            let inode = disk.open(path, how)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let open = Open { machine, boot: disk.boot, inode, name, locked: false };
            machines.next += 1;
            machines.open.insert(machines.next, open);
            Ok(machines.next)
        })
    }

    fn close(&self, file: Handle) {
        let mut machines = lock(&self.machines);
        if let Some(open) = machines.open.remove(&file)
            && open.locked
            && let Some(disk) = machines.disks.get_mut(&open.machine).filter(|disk| disk.boot == open.boot)
        {
            disk.unlock(open.inode);
        }
    }

    fn read_at(&self, file: Handle, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        self.with(|machines| machines.of(file).and_then(|(open, disk)| disk.read_at(open.inode, offset, out)))
    }

    fn write_at(&self, file: Handle, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|machines| machines.of(file).and_then(|(open, disk)| disk.write_at(open.inode, offset, bytes)))
    }

    fn set_len(&self, file: Handle, size: u64) -> io::Result<()> {
        self.with(|machines| machines.of(file).and_then(|(open, disk)| disk.set_len(open.inode, size)))
    }

    fn len(&self, file: Handle) -> io::Result<u64> {
        self.with(|machines| machines.of(file).and_then(|(open, disk)| disk.len(open.inode)))
    }

    fn sync(&self, file: Handle) -> io::Result<()> {
        self.with(|machines| machines.of(file).and_then(|(open, disk)| disk.sync(open.inode, &open.name)))
    }

    fn lock(&self, file: Handle) -> io::Result<()> {
        self.with(|machines| {
            let (open, disk) = machines.of(file)?;
            disk.lock(open.inode)?;
            if let Some(open) = machines.open.get_mut(&file) {
                open.locked = true;
            }
            Ok(())
        })
    }

    fn exists(&self, path: &Path) -> bool {
        lock(&self.machines).at(path).is_ok_and(|(_, disk, path)| disk.exists(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let names = self.with(|machines| machines.at(dir).and_then(|(_, disk, path)| disk.list(path)))?;
        Ok(names.into_iter().map(|name| dir.join(name)).collect())
    }

    fn create_dirs(&self, dir: &Path) -> io::Result<()> {
        self.with(|machines| machines.at(dir).and_then(|(_, disk, path)| disk.create_dirs(path)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|machines| {
            let to = machines.at(to)?.2;
            machines.at(from).and_then(|(_, disk, from)| disk.rename(from, to))
        })
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        self.with(|machines| {
            let other = machines.at(other)?.2;
            machines.at(one).and_then(|(_, disk, one)| disk.exchange(one, other))
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.with(|machines| machines.at(path).and_then(|(_, disk, path)| disk.remove(path)))
    }

    fn remove_dirs(&self, dir: &Path) -> io::Result<()> {
        self.remove_file(dir)
    }

    fn delay(&self, who: u64) -> Duration {
        let mut machines = lock(&self.machines);
        let most = machines.slow.get(&who).copied().unwrap_or(2) * 1_000;
        Duration::from_micros(machines.chance.number(1, who, 0) % most.max(1))
    }

    fn chance(&self, who: u64) -> f64 {
        lock(&self.machines).chance.part(2, who, 0)
    }

    fn fill(&self, out: &mut [u8]) {
        let mut machines = lock(&self.machines);
        for bytes in out.chunks_mut(8) {
            let number = machines.chance.number(3, 0, 0).to_le_bytes();
            bytes.copy_from_slice(&number[..bytes.len()]);
        }
    }

    fn has(&self, fault: Fault) -> bool {
        lock(&self.machines).mutant == Some(Mutant::Store(fault))
    }
}
