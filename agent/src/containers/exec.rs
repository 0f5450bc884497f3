//! A process that somebody runs in a container: from a wish to its exit code.
//!
//! Each has one task, which begins the process, copies its streams and cleans up after it, whatever becomes of the client: a client that
//! goes away leaves the process running and its output is thrown away, as with dockerd. When the agent ends, the process is killed.

use super::table::{ExecPhase, ExecView, ExecWish};
use super::{Containers, ContainersError, Stream};
use crate::board::What;
use crate::containerd::Begun;
use crate::error::ExecError;
use skep_types::{Task, TaskId};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Pieces on their way in each direction; full: whoever writes waits.
pub(super) const IN_FLIGHT: usize = 16;
const PIECE: usize = 32 * 1024;
/// After the end of a process, for its children to write something more.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
/// A process whose streams are closed ends at once, or its end was not heard of.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// Between two reads of what nobody wants to have: one that prints without end must not keep us busy.
const UNWANTED_PAUSE: Duration = Duration::from_millis(5);

/// Bytes that a process wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub stream: Stream,
    pub data: bytes::Bytes,
}

/// A process to talk with.
#[derive(Debug)]
pub struct Attached {
    /// Dropped: the end of input. `None`: the process reads nothing.
    pub input: Option<mpsc::Sender<bytes::Bytes>>,
    /// Ends after [`Containers::exec`] tells the exit code.
    pub output: mpsc::Receiver<Chunk>,
    pub has_terminal: bool,
}

impl Containers {
    /// Notes what is to be run; its id.
    ///
    /// # Errors
    /// If the container does not run, or there are too many already.
    pub fn create_exec(&self, id: &TaskId, wish: ExecWish) -> Result<String, ContainersError> {
        if wish.program.command.first().is_none_or(String::is_empty) {
            return Err(ContainersError::NoCommand);
        }
        let facts = self.running(id)?;
        if facts.is_paused {
            return Err(ContainersError::Paused { container: id.to_string() });
        }
        let exec = exec_id(rand::random(), id);
        let command = wish.program.command.clone();
        self.0.execs.create(&exec, id, wish, Instant::now())?;
        self.0.engine.board.tell(&facts.task, What::ExecCreate { exec: exec.clone(), command });
        Ok(exec)
    }

    /// # Errors
    /// If there is none, or none any more.
    pub fn exec(&self, exec: &str) -> Result<ExecView, ContainersError> {
        self.0.execs.get(exec)
    }

    /// # Errors
    /// If it does not run or has no terminal.
    pub async fn resize_exec(&self, exec: &str, width: u32, height: u32) -> Result<(), ContainersError> {
        let view = self.exec(exec)?;
        if !view.wish.program.has_terminal || !matches!(view.phase, ExecPhase::Running { .. }) {
            return Err(ContainersError::NoTerminal { exec: exec.to_owned() });
        }
        Ok(self.0.executor.resize(&view.task, &name(exec), width, height).await?)
    }

    /// Starts it. `is_attached`: one that cannot be started says why in its output, else it is an error.
    ///
    /// # Errors
    /// If it was started before, or its container does not run any more.
    pub async fn start_exec(&self, exec: &str, is_attached: bool, window: Option<(u32, u32)>) -> Result<Attached, ContainersError> {
        let task = self.0.execs.get(exec)?.task;
        let facts = self.running(&task)?;
        let view = self.0.execs.begin(exec)?;
        let has_terminal = view.wish.program.has_terminal;
        let (input, typed) = mpsc::channel(IN_FLIGHT);
        let (written, output) = mpsc::channel(IN_FLIGHT);
        let (ready, began) = oneshot::channel();
        let has_stdin = is_attached && view.wish.program.has_stdin;
        // Without a client input neither comes nor ends: the end of it would hang up a terminal.
        let kept = (!is_attached).then(|| input.clone());
        let run = Run { containers: self.clone(), task: facts.task, view, window, output: written, _input: kept };
        // A task of its own: a client that goes away must not leave a process half begun.
        self.0.work.spawn(run.run(typed, ready));
        match began.await {
            Ok(Err(error)) if !is_attached => Err(error),
            Ok(_) => Ok(Attached { input: has_stdin.then_some(input), output, has_terminal }),
            Err(_) => Err(ContainersError::Ending),
        }
    }
}

/// 64 hexadecimal digits: who has but the id of an exec, as clients do that started one through a manager, finds the task by it.
fn exec_id(random: [u8; 7], task: &TaskId) -> String {
    random.iter().copied().chain(task.as_str().bytes()).map(|byte| format!("{byte:02x}")).collect()
}

/// containerd's name for it; the whole id would be longer than it takes.
fn name(exec: &str) -> String {
    format!("exec-{}", &exec[..exec.len().min(32)])
}

/// As a shell's: not found, not executable, anything else.
fn code_of(error: &ExecError) -> i32 {
    match error {
        ExecError::CommandNotFound { .. } => 127,
        _ => 126,
    }
}

struct Run {
    containers: Containers,
    task: Arc<Task>,
    view: ExecView,
    /// Width and height.
    window: Option<(u32, u32)>,
    output: mpsc::Sender<Chunk>,
    /// Held open until the process has ended.
    _input: Option<mpsc::Sender<bytes::Bytes>>,
}

impl Run {
    fn ended(&self, exit_code: i32) {
        let shared = &self.containers.0;
        shared.execs.set(&self.view.id, ExecPhase::Ended { exit_code }, Instant::now());
        shared.engine.board.tell(&self.task, What::ExecDie { exec: self.view.id.clone(), exit_code });
    }

    async fn run(self, typed: mpsc::Receiver<bytes::Bytes>, ready: oneshot::Sender<Result<(), ContainersError>>) {
        let shared = Arc::clone(&self.containers.0);
        let (id, exec, program) = (&self.task.id, name(&self.view.id), &self.view.wish.program);
        let begun = match shared.executor.begin_exec(id, &exec, program).await {
            Ok(begun) => begun,
            Err(error) => {
                self.ended(code_of(&error));
                // There is room: it is the first.
                let words = format!("{}\r\n", error.words());
                let _ = self.output.try_send(Chunk { stream: Stream::Stdout, data: words.into() });
                let _ = ready.send(Err(error.into())); // the client may be gone
                return;
            }
        };
        shared.execs.set(&self.view.id, ExecPhase::Running { pid: begun.pid }, Instant::now());
        shared.engine.board.tell(&self.task, What::ExecStart { exec: self.view.id.clone(), command: program.command.clone() });
        if let Some((width, height)) = self.window.filter(|_| program.has_terminal) {
            let _ = shared.executor.resize(id, &exec, width, height).await; // the client says it again when it changes
        }
        let _ = ready.send(Ok(())); // the client may be gone
        self.talk(&exec, begun, typed).await;
        shared.executor.end_exec(id, &exec).await;
    }

    /// Until the process has ended and its last words are told.
    async fn talk(&self, exec: &str, begun: Begun, typed: mpsc::Receiver<bytes::Bytes>) {
        let shared = &self.containers.0;
        let Begun { stdin, stdout, stderr, ended, .. } = begun;
        let (over, silent) = (CancellationToken::new(), CancellationToken::new());
        let wish = &self.view.wish;
        let copying = async {
            // A terminal has one stream, whatever was asked for.
            let wants_stdout = wish.has_stdout || wish.program.has_terminal;
            let stdout = copy(stdout, Stream::Stdout, wants_stdout.then_some(&self.output), &over);
            let stderr = async {
                if let Some(pipe) = stderr {
                    copy(pipe, Stream::Stderr, wish.has_stderr.then_some(&self.output), &over).await;
                }
            };
            tokio::join!(stdout, stderr);
            silent.cancel();
        };
        let feeding = async {
            feed(stdin, typed).await;
            // What was written is read first; a process that is gone reads nothing.
            let _ = shared.executor.close_stdin(&self.task.id, exec).await;
            std::future::pending::<Infallible>().await
        };
        let ending = self.end_of(exec, ended, &silent);
        let stopping = async {
            shared.stop.cancelled().await;
            let _ = shared.executor.signal(&self.task.id, exec, libc::SIGKILL).await; // it is deleted in any case
        };
        tokio::pin!(copying, feeding, ending, stopping);
        let mut is_copied = false;
        let exit_code = loop {
            tokio::select! {
                code = &mut ending => break code,
                () = &mut copying, if !is_copied => is_copied = true,
                () = &mut stopping => break 128 + libc::SIGKILL,
                never = &mut feeding => match never {},
            }
        };
        // First, for whoever sees the end of the output asks for the code.
        self.ended(exit_code);
        over.cancel();
        if !is_copied {
            tokio::select! {
                () = copying => {}
                () = shared.stop.cancelled() => {}
            }
        }
    }

    async fn end_of(&self, exec: &str, mut ended: oneshot::Receiver<i32>, silent: &CancellationToken) -> i32 {
        let executor = &self.containers.0.executor;
        loop {
            let look = async {
                silent.cancelled().await;
                tokio::time::sleep(LOOK_AFTER).await;
            };
            tokio::select! {
                code = &mut ended => match code {
                    Ok(code) => return code,
                    // The container is gone, and all that ran in it.
                    Err(_) => return 128 + libc::SIGKILL,
                },
                () = look => if let Some(code) = executor.exec_status(&self.task.id, exec).await {
                    return code;
                },
            }
        }
    }
}

/// Until the stream ends; once the process has ended, until there is silence. Without a taker what comes is thrown away.
async fn copy(mut pipe: pipe::Receiver, stream: Stream, mut output: Option<&mpsc::Sender<Chunk>>, over: &CancellationToken) {
    let mut buffer = vec![0; PIECE];
    loop {
        let silence = async {
            over.cancelled().await;
            tokio::time::sleep(LAST_OUTPUT).await;
        };
        let count = tokio::select! {
            biased;
            read = pipe.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            },
            () = silence => return,
        };
        match output {
            Some(taker) => {
                let data = bytes::Bytes::copy_from_slice(&buffer[..count]);
                if taker.send(Chunk { stream, data }).await.is_err() {
                    output = None;
                }
            }
            None if over.is_cancelled() => return,
            None => tokio::time::sleep(UNWANTED_PAUSE).await,
        }
    }
}

/// Until the client ends its input or the process reads no more.
async fn feed(stdin: Option<pipe::Sender>, mut typed: mpsc::Receiver<bytes::Bytes>) {
    let Some(mut stdin) = stdin else { return std::future::pending().await };
    while let Some(data) = typed.recv().await {
        if stdin.write_all(&data).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fifo(dir: &std::path::Path) -> std::path::PathBuf {
        let path = dir.join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    #[tokio::test]
    async fn output_is_copied_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let held = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let receiver = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        let writer = tokio::task::spawn_blocking(move || std::io::Write::write_all(&mut &held, &vec![b'x'; 300_000]).unwrap());
        let (sender, mut chunks) = mpsc::channel(1);
        let over = CancellationToken::new();
        let copying = tokio::spawn(async move { copy(receiver, Stream::Stdout, Some(&sender), &over).await });
        let mut total = 0;
        while let Some(chunk) = chunks.recv().await {
            total += chunk.data.len();
        }
        assert_eq!(total, 300_000);
        writer.await.unwrap();
        copying.await.unwrap();
    }

    #[tokio::test]
    async fn a_process_does_not_wait_for_a_client_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let held = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let receiver = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        let writer = tokio::task::spawn_blocking(move || std::io::Write::write_all(&mut &held, &vec![b'x'; 300_000]).unwrap());
        let (sender, chunks) = mpsc::channel(1);
        drop(chunks);
        let over = CancellationToken::new();
        tokio::time::timeout(Duration::from_secs(60), copy(receiver, Stream::Stdout, Some(&sender), &over)).await.unwrap();
        writer.await.unwrap();
    }

    #[test]
    fn names_are_short_enough_for_containerd() {
        assert_eq!(name(&"a".repeat(64)).len(), 37);
        assert_eq!(code_of(&ExecError::CommandNotFound { command: "x".into() }), 127);
    }
}
