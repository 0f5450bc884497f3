//! What the machine itself takes: a durable write, a message there and back.

use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

const BLOCK: usize = 4096;
/// Blocks written before, so that none has to be found on the disk while the clock runs.
const BLOCKS: usize = 1024;

/// Seconds each of so many writes took: a block of a file that is there already, then `fdatasync`.
///
/// # Errors
/// If the disk refuses.
pub fn syncs(dir: &Path, rounds: usize) -> Result<Vec<f64>> {
    let file = tempfile::tempfile_in(dir).with_context(|| format!("no file in {}", dir.display()))?;
    file.write_all_at(&vec![0; BLOCK * BLOCKS], 0)?;
    file.sync_all()?;
    let block = vec![7; BLOCK];
    let mut taken = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let begin = Instant::now();
        file.write_all_at(&block, ((round % BLOCKS) * BLOCK) as u64)?;
        file.sync_data()?;
        taken.push(begin.elapsed().as_secs_f64());
    }
    Ok(taken)
}

/// Seconds each of so many messages took over loopback, there and back, between two threads.
///
/// # Errors
/// If there is no loopback.
pub fn round_trips(bytes: usize, rounds: usize) -> Result<Vec<f64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(move || -> Result<()> {
            let mut message = vec![0; bytes];
            for _ in 0..rounds {
                far.read_exact(&mut message)?;
                far.write_all(&message)?;
            }
            Ok(())
        });
        let mut message = vec![1; bytes];
        let mut taken = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let begin = Instant::now();
            near.write_all(&message)?;
            near.read_exact(&mut message)?;
            taken.push(begin.elapsed().as_secs_f64());
        }
        echo.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(taken)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_can_write_and_talk() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(syncs(dir.path(), 3).unwrap().len(), 3);
        assert!(round_trips(100, 5).unwrap().iter().all(|seconds| *seconds > 0.0));
    }
}
