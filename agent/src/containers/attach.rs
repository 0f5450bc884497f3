//! Talking with a container's own process: its output as it comes, its input from somebody.

use super::exec::{Attached, Chunk, IN_FLIGHT};
use super::{Containers, ContainersError, Stream};
use crate::board::What;
use crate::locals::Local;
use crate::logs::Tap;
use skep_types::TaskId;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

/// What of a process somebody wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachWish {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

impl Containers {
    /// From now on; of one that does not run, from its start on. `None` for a task's, whose output is in its log only.
    ///
    /// # Errors
    /// If there is none, or its output cannot be had.
    pub async fn attach(&self, id: &TaskId, wish: AttachWish) -> Result<Option<Attached>, ContainersError> {
        let Some(local) = self.0.locals.get(id) else { return self.task(id).map(|_| None) };
        let spec = local.task.spec.container().cloned().unwrap_or_default();
        let following = self.0.locals.follow(id).ok_or_else(|| ContainersError::NotFound { container: id.to_string() })?;
        let tap = self.0.executor.tap(id).await?;
        self.0.engine.board.tell(&local.task, What::Attach);
        let (written, output) = mpsc::channel(IN_FLIGHT);
        let stop = self.0.stop.clone();
        self.0.work.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tell(tap, wish, written) => {}
            }
        });
        let mut input = None;
        if wish.stdin && spec.open_stdin {
            let (sender, typed) = mpsc::channel(IN_FLIGHT);
            input = Some(sender);
            let (this, id) = (self.clone(), id.clone());
            // With a terminal the end of one who attached is not the end of input: he may have left it running.
            let ends = local.stdin_once && !spec.tty;
            self.0.work.spawn(async move {
                tokio::select! {
                    () = this.0.stop.cancelled() => {}
                    () = this.feed(&id, typed, following, ends) => {}
                }
            });
        }
        Ok(Some(Attached { input, output, has_terminal: spec.tty }))
    }

    /// Writes what is typed into the container's input, from its start to its end.
    async fn feed(&self, id: &TaskId, mut typed: mpsc::Receiver<bytes::Bytes>, mut following: watch::Receiver<Local>, ends: bool) {
        let life = following.borrow().ends;
        let begun = following.wait_for(|local| local.is_running() || local.is_gone || local.ends > life).await;
        if !begun.is_ok_and(|local| local.is_running()) {
            return;
        }
        let path = self.0.executor.config().task_dir(id).join("stdin");
        // The shim holds the other end.
        let mut pipe = match pipe::OpenOptions::new().read_write(true).open_sender(&path) {
            Ok(pipe) => pipe,
            Err(error) => return tracing::warn!(container = %id, %error, "nobody can type into a container"),
        };
        let writing = async {
            while let Some(data) = typed.recv().await {
                if pipe.write_all(&data).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = writing => {}
            _ = following.wait_for(|local| !local.is_running()) => return,
        }
        drop(pipe);
        if ends && let Err(error) = self.0.executor.close_stdin(id, "").await {
            tracing::debug!(container = %id, error = %error.words(), "the input of a container could not be ended");
        }
    }
}

async fn tell(mut tap: Tap, wish: AttachWish, written: mpsc::Sender<Chunk>) {
    while let Ok(Some((stream, data))) = tap.next().await {
        let is_wanted = match stream {
            Stream::Stdout => wish.stdout,
            Stream::Stderr => wish.stderr,
        };
        if is_wanted && written.send(Chunk { stream, data }).await.is_err() {
            return;
        }
    }
}
