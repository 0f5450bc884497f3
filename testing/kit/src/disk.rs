use crate::host::Host;
use crate::process::run;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

impl Host {
    /// Puts skepd's data directory, which must not be there yet, on a file system of its own.
    ///
    /// # Errors
    /// If it cannot be made or mounted.
    pub fn put_data_on_a_disk(&self, mebibytes: u64) -> Result<()> {
        let (image, data) = (self.dir().join("disk.img"), self.data_dir());
        File::create(&image)?.set_len(mebibytes << 20)?;
        std::fs::create_dir_all(&data)?;
        let (image, data) = (image.to_string_lossy(), data.to_string_lossy());
        run("mkfs.ext4", &["-q", "-F", &image])?.success()?;
        run("mount", &["-o", "loop", &image, &data])?.success()?;
        Ok(())
    }

    /// Leaves no byte free on the data directory's disk.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn fill_disk(&self) -> Result<()> {
        let mut file = File::create(self.ballast())?;
        for size in [1 << 16, 1 << 10, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        Ok(())
    }

    /// # Errors
    /// If the disk was not filled.
    pub fn free_disk(&self) -> Result<()> {
        std::fs::remove_file(self.ballast()).context("the disk was not filled")
    }

    fn ballast(&self) -> PathBuf {
        self.data_dir().join("ballast")
    }

    /// Makes the disk of [`put_data_on_a_disk`](Self::put_data_on_a_disk) stop for `stop` again and again, with `go` in between, until
    /// what is returned is dropped. A write waits; it does not fail.
    ///
    /// # Errors
    /// If the file system cannot be frozen.
    pub fn stall_disk(&self, stop: Duration, go: Duration) -> Result<Stall> {
        let data = self.data_dir().to_string_lossy().into_owned();
        run("fsfreeze", &["-f", &data])?.success()?;
        let ended = Arc::new(AtomicBool::new(false));
        let ended2 = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            loop {
                std::thread::sleep(stop);
                let _ = run("fsfreeze", &["-u", &data]);
                if ended2.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(go);
                let _ = run("fsfreeze", &["-f", &data]);
            }
        });
        Ok(Stall { ended, thread: Some(thread) })
    }
}

/// A disk that keeps stopping, until this is dropped.
#[derive(Debug)]
pub struct Stall {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
