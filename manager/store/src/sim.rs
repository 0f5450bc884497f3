//! What a simulator puts in the place of files, threads and chance. Only with the feature `sim`, and only on a thread where a
//! simulator is [installed](install): everywhere else the store uses the operating system.
//!
//! On such a thread nothing runs on threads of its own: the writer of the log is a task, and what blocks is done at once.

use crate::raft::types::RaftId;
use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// A number that [`Simulator::open`] gave out.
pub type Handle = u64;

/// How a file is opened; as [`std::fs::OpenOptions`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opening {
    pub write: bool,
    pub create: bool,
    pub create_new: bool,
    pub truncate: bool,
}

/// A fault put into the store on purpose, which the simulator has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A follower answers before its entries are on the disk.
    AnswerBeforeSync,
    /// A leader applies, and answers who proposed, before its entries are on the disk.
    ApplyBeforeSync,
    /// A leader that starts again goes on in its term.
    OldOffice,
}

/// Files, chance and faults of a simulated machine. Errors are those of the system calls.
#[expect(clippy::missing_errors_doc, reason = "said of all of them above")]
pub trait Simulator {
    /// Whether the path is on a disk of the simulator; all others are the operating system's.
    fn owns(&self, path: &Path) -> bool;
    /// Directories can be opened, to be synced.
    fn open(&self, path: &Path, how: Opening) -> io::Result<Handle>;
    fn close(&self, file: Handle);
    fn read_at(&self, file: Handle, offset: u64, out: &mut [u8]) -> io::Result<usize>;
    fn write_at(&self, file: Handle, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn set_len(&self, file: Handle, size: u64) -> io::Result<()>;
    fn len(&self, file: Handle) -> io::Result<u64>;
    fn sync(&self, file: Handle) -> io::Result<()>;
    /// Held until it is closed; `WouldBlock` while another holds it.
    fn lock(&self, file: Handle) -> io::Result<()>;
    fn exists(&self, path: &Path) -> bool;
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    fn create_dirs(&self, dir: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    fn remove_dirs(&self, dir: &Path) -> io::Result<()>;
    /// How long the disk takes for what the log of `who` writes next.
    fn delay(&self, who: RaftId) -> Duration;
    /// From 0 up to but without 1.
    fn chance(&self, who: RaftId) -> f64;
    /// Bytes for keys, salts and nonces.
    fn fill(&self, out: &mut [u8]);
    fn has(&self, fault: Fault) -> bool;
}

thread_local! {
    static INSTALLED: RefCell<Option<Rc<dyn Simulator>>> = const { RefCell::new(None) };
}

/// From here on, until it is dropped, stores of this thread run on the simulator.
#[must_use]
pub struct Installed(());

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = INSTALLED.try_with(RefCell::take);
    }
}

pub fn install(simulator: Rc<dyn Simulator>) -> Installed {
    INSTALLED.with(|installed| installed.replace(Some(simulator)));
    Installed(())
}

/// The simulator of this thread.
pub(crate) fn simulator() -> Option<Rc<dyn Simulator>> {
    INSTALLED.try_with(|installed| installed.borrow().clone()).ok().flatten()
}

/// The simulator that has the path.
pub(crate) fn owner(path: &Path) -> Option<Rc<dyn Simulator>> {
    simulator().filter(|simulator| simulator.owns(path))
}
