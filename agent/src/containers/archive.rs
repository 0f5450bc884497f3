//! Files out of a container and into it, as tar archives: of one that runs, or of one that is no task and does not run.
//!
//! A container's processes may change its files while we look: every step goes by descriptors from the container's own root, so that no
//! link of theirs leads to the host's files ([`inside`]).

mod asleep; // the files of one that does not run
mod inside; // names to descriptors, never out of the root
mod pack; // files to an archive
mod unpack; // an archive to files

use super::{Containers, ContainersError};
use crate::board::What;
use asleep::Asleep;
use bytes::Bytes;
use inside::Root;
use skep_types::{TaskId, Timestamp};
use std::io::{self, Read, Write};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};

/// Pieces on their way; full: the disk waits for the client, or the client for the disk.
const IN_FLIGHT: usize = 8;
const PIECE: usize = 64 * 1024;
/// At once: each holds a thread for as long as its client takes.
const AT_ONCE: usize = 4;

/// An archive on its way to a client.
pub type Outgoing = mpsc::Receiver<io::Result<Bytes>>;
/// An archive on its way from a client.
pub type Incoming = mpsc::Receiver<io::Result<Bytes>>;

/// A file of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileFacts {
    pub name: String,
    pub size: i64,
    /// As the kernel has it, with the kind of file.
    pub mode: u32,
    pub modified: Timestamp,
    /// Of a symbolic link; else empty.
    pub link_target: String,
}

/// Writes pieces for a client that takes them elsewhere.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.buffer);
        if piece.is_empty() {
            return Ok(());
        }
        self.sender.blocking_send(Ok(piece.into())).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

/// Reads what a client sends from elsewhere.
struct Arriving {
    receiver: Incoming,
    rest: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.rest = piece?,
                None => return Ok(0),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(out.len()));
        out[..piece.len()].copy_from_slice(&piece);
        Ok(piece.len())
    }
}

/// Those that run now.
fn turns() -> &'static Arc<Semaphore> {
    static TURNS: std::sync::OnceLock<Arc<Semaphore>> = std::sync::OnceLock::new();
    TURNS.get_or_init(|| Arc::new(Semaphore::new(AT_ONCE)))
}

/// Where a container's files are.
enum Files {
    /// With its process.
    Running(Root),
    /// Nowhere, until somebody looks. The container is held meanwhile.
    Asleep(Asleep, tokio::sync::OwnedMutexGuard<()>),
}

impl Files {
    /// What `work` makes of them, on a thread that may wait.
    async fn with<T: Send + 'static>(self, work: impl FnOnce(&Root) -> T + Send + 'static) -> Result<T, ContainersError> {
        match self {
            Self::Running(root) => tokio::task::spawn_blocking(move || work(&root)).await.map_err(|_| ContainersError::Ending),
            Self::Asleep(asleep, held) => {
                let place = asleep.place.clone();
                // Held until the thread is done, whoever is gone by then.
                let work = move |root: &Root| {
                    let made = work(root);
                    drop(held);
                    made
                };
                asleep.with(work).await.map_err(ContainersError::io("mount the files of a container on", place))
            }
        }
    }
}

impl Containers {
    async fn files(&self, id: &TaskId) -> Result<Files, ContainersError> {
        let facts = self.facts(id)?;
        let not_running = || ContainersError::NotRunning { container: id.to_string() };
        if !facts.is_running
            && facts.local.is_some()
            && let Some(held) = self.0.locals.hold(id).await?
        {
            let layers = self.0.executor.root_mounts(id).await?;
            let mounts = facts.story.map(|story| story.mounts).unwrap_or_default();
            let place = self.0.executor.config().run_dir.join("files");
            return Ok(Files::Asleep(Asleep { layers, mounts, place }, held));
        }
        let pid = self.running(id)?.status.container.map_or(0, |container| container.pid);
        Root::of(pid, id).map(Files::Running).ok_or_else(not_running)
    }

    /// What is at a path, links in its last part not followed.
    ///
    /// # Errors
    /// If the container is a task's and does not run, or has no such file.
    pub async fn file(&self, id: &TaskId, path: &str) -> Result<FileFacts, ContainersError> {
        let (files, path, id) = (self.files(id).await?, path.to_owned(), id.clone());
        files.with(move |root| pack::facts(root, &path).map_err(|error| not_found(error, &id, &path))).await?
    }

    /// The file, or the directory with everything in it, as an archive whose first name is the path's last.
    ///
    /// # Errors
    /// If the container is a task's and does not run, or has no such file.
    pub async fn read_archive(&self, id: &TaskId, path: &str) -> Result<(FileFacts, Outgoing), ContainersError> {
        let facts = self.file(id, path).await?;
        let turn = Arc::clone(turns()).acquire_owned().await.map_err(|_| ContainersError::Ending)?;
        let files = self.files(id).await?;
        let (sender, outgoing) = mpsc::channel(IN_FLIGHT);
        let (path, failed) = (path.to_owned(), sender.clone());
        self.0.work.spawn(async move {
            let packing = files.with(move |root| {
                let _turn = turn;
                let mut pieces = Pieces { sender, buffer: Vec::new() };
                if let Err(error) = pack::pack(root, &path, &mut pieces).and_then(|()| pieces.flush()) {
                    let _ = pieces.sender.blocking_send(Err(error)); // a client that is gone needs no reason
                }
            });
            if let Err(error) = packing.await {
                let _ = failed.send(Err(io::Error::other(error.words()))).await;
            }
        });
        self.0.engine.board.tell(&self.facts(id)?.task, What::ReadFiles);
        Ok((facts, outgoing))
    }

    /// Unpacks an archive into the directory at a path. `keep_kind`: what is a directory stays one, and what is none, none.
    ///
    /// # Errors
    /// If the container is a task's and does not run, there is no such directory, or something cannot be written; what was written stays.
    pub async fn write_archive(&self, id: &TaskId, path: &str, keep_kind: bool, archive: Incoming) -> Result<(), ContainersError> {
        let facts = self.file(id, &format!("{}/.", path.trim_end_matches('/'))).await?;
        if facts.mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(ContainersError::BadFile { path: path.to_owned(), problem: "extraction point is not a directory".into() });
        }
        let turn = Arc::clone(turns()).acquire_owned().await.map_err(|_| ContainersError::Ending)?;
        let (files, to) = (self.files(id).await?, path.to_owned());
        let work = self.0.work.spawn(files.with(move |root| {
            let _turn = turn;
            unpack::unpack(root, &to, keep_kind, Arriving { receiver: archive, rest: Bytes::new() })
        }));
        let unpacked = work.await.map_err(|_| ContainersError::Ending)??;
        unpacked.map_err(|error| ContainersError::BadFile { path: path.to_owned(), problem: error.to_string() })?;
        self.0.engine.board.tell(&self.facts(id)?.task, What::WriteFiles);
        Ok(())
    }
}

fn not_found(error: io::Error, id: &TaskId, path: &str) -> ContainersError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => {
            ContainersError::NoSuchFile { container: id.to_string(), path: path.to_owned() }
        }
        _ => ContainersError::BadFile { path: path.to_owned(), problem: error.to_string() },
    }
}
