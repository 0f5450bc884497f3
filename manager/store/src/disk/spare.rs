//! The next segment, made ready before it is needed, so that appending never asks the disk for space.

use super::files::{self, File, FileExt, OpenOptions, OpenOptionsExt};
use super::{DiskError, failed};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A failed preparation is tried again when somebody asks, but not more often than this.
const RETRY: Duration = Duration::from_secs(1);
const ZEROS: usize = 256 * 1024;

/// A zeroed file of full size at the place named `spare`.
pub(crate) struct SpareFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
}

enum Stock {
    /// Nobody has asked, or the last one was taken.
    Empty,
    Preparing,
    Ready(SpareFile),
    /// The log is making a segment of it, which has the name `spare` until then: nobody else may touch that file.
    Taken,
    Failed {
        error: Arc<DiskError>,
        at: Instant,
    },
}

struct Inner {
    stock: Mutex<Stock>,
    changed: Condvar,
    size: u64,
    dir: PathBuf,
}

/// Prepares one segment at a time on a thread of its own, which ends when the segment is ready.
#[derive(Clone)]
pub(crate) struct Spare(Arc<Inner>);

/// What there is.
pub(crate) enum Readiness {
    Ready,
    Preparing,
    Failed(Arc<DiskError>),
}

impl Spare {
    pub(crate) fn new(dir: &Path, size: u64) -> Self {
        Self(Arc::new(Inner { stock: Mutex::new(Stock::Empty), changed: Condvar::new(), size, dir: dir.to_owned() }))
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.0.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that a segment is there or being made. Cheap; never waits. `recycled` is a file to use again.
    pub(crate) fn ensure(&self, recycled: Option<PathBuf>) -> Readiness {
        let mut stock = self.stock();
        match &*stock {
            Stock::Ready(_) => Readiness::Ready,
            Stock::Preparing | Stock::Taken => Readiness::Preparing,
            Stock::Failed { error, at } if at.elapsed() < RETRY => Readiness::Failed(Arc::clone(error)),
            Stock::Failed { .. } | Stock::Empty => {
                *stock = Stock::Preparing;
                drop(stock);
                let worker = self.clone();
                #[cfg(feature = "sim")]
                if crate::sim::simulator().is_some() {
                    worker.prepare(recycled);
                    return Readiness::Preparing;
                }
                let spawned = std::thread::Builder::new().name("store-spare".into()).spawn(move || worker.prepare(recycled));
                match spawned {
                    Ok(_detached) => Readiness::Preparing, // it ends by itself and touches nothing but its file and the stock
                    Err(source) => {
                        let error = Arc::new(DiskError::Io { step: "start a thread to prepare", path: self.0.dir.clone(), source });
                        *self.stock() = Stock::Failed { error: Arc::clone(&error), at: Instant::now() };
                        Readiness::Failed(error)
                    }
                }
            }
        }
    }

    fn prepare(&self, recycled: Option<PathBuf>) {
        let path = self.0.dir.join("spare");
        let made = prepare(&path, recycled.as_deref(), self.0.size);
        *self.stock() = match made {
            Ok(file) => Stock::Ready(SpareFile { file, path }),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "could not prepare the next log segment");
                // What was allocated in vain is given back, others may need it more.
                let _ = files::remove_file(&path);
                Stock::Failed { error: Arc::new(error), at: Instant::now() }
            }
        };
        self.0.changed.notify_all();
    }

    /// Takes the segment, making it first if need be. Waits for it. No other is made before [`Spare::placed`].
    ///
    /// # Errors
    /// Why it could not be prepared.
    pub(crate) fn take(&self) -> Result<SpareFile, Arc<DiskError>> {
        loop {
            self.ensure(None);
            let mut stock = self.stock();
            while matches!(*stock, Stock::Preparing) {
                stock = self.0.changed.wait(stock).unwrap_or_else(PoisonError::into_inner);
            }
            match std::mem::replace(&mut *stock, Stock::Empty) {
                Stock::Ready(file) => {
                    *stock = Stock::Taken;
                    return Ok(file);
                }
                Stock::Failed { error, at } => {
                    *stock = Stock::Failed { error: Arc::clone(&error), at };
                    return Err(error);
                }
                Stock::Empty | Stock::Preparing | Stock::Taken => {} // begin anew
            }
        }
    }

    /// What was taken has a name of its own now.
    pub(crate) fn placed(&self) {
        *self.stock() = Stock::Empty;
        self.0.changed.notify_all();
    }

    /// Waits until no thread is at work.
    pub(crate) fn settle(&self) {
        let mut stock = self.stock();
        while matches!(*stock, Stock::Preparing) {
            stock = self.0.changed.wait(stock).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until there is news or the time is up.
    pub(crate) fn wait_ready(&self, timeout: Duration) -> Readiness {
        let deadline = Instant::now() + timeout;
        let mut stock = self.stock();
        while matches!(*stock, Stock::Preparing | Stock::Taken) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Readiness::Preparing;
            }
            stock = self.0.changed.wait_timeout(stock, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        match &*stock {
            Stock::Ready(_) => Readiness::Ready,
            Stock::Failed { error, .. } => Readiness::Failed(Arc::clone(error)),
            Stock::Empty | Stock::Preparing | Stock::Taken => Readiness::Preparing,
        }
    }
}

/// A file of `size` zeros that are really on the disk: written, not only reserved, so that a later write changes no
/// metadata and `fdatasync` has one thing to do.
fn prepare(path: &Path, recycled: Option<&Path>, size: u64) -> Result<File, DiskError> {
    if let Some(old) = recycled {
        files::rename(old, path).map_err(failed("rename a used log segment to", path))?;
    }
    skep_failpoint::failpoint!("store.spare.renamed");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed("create the next log segment", path))?;
    file.set_len(size).map_err(failed("size the next log segment", path))?;
    // Where that cannot be done, the zeros below reserve it just as well.
    files::allocate(&file, size).map_err(failed("reserve space for the next log segment", path))?;
    let zeros = vec![0; ZEROS];
    let mut offset = 0;
    while offset < size {
        let length = ZEROS.min(usize::try_from(size - offset).unwrap_or(ZEROS));
        file.write_all_at(&zeros[..length], offset).map_err(failed("zero the next log segment", path))?;
        offset += length as u64;
    }
    super::counted_sync();
    file.sync_all().map_err(failed("sync the next log segment", path))?;
    skep_failpoint::failpoint!("store.spare.ready");
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_was_taken_is_left_alone_until_it_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let spare = Spare::new(dir.path(), 4096);
        let taken = spare.take().unwrap();
        taken.file.write_all_at(b"entries", 0).unwrap();
        // Somebody asks for room just now.
        assert!(matches!(spare.ensure(None), Readiness::Preparing));
        spare.settle();
        let named = dir.path().join("named");
        std::fs::rename(&taken.path, &named).unwrap();
        spare.placed();
        spare.ensure(None);
        spare.settle();
        assert!(matches!(spare.ensure(None), Readiness::Ready));
        assert!(std::fs::read(&named).unwrap().starts_with(b"entries"));
        assert_eq!(std::fs::read(dir.path().join("spare")).unwrap(), vec![0; 4096]);
    }
}
