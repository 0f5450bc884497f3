//! The agent's side of the log writer: starts it, tells it what to read, starts it again if it died.

use super::protocol::{Answer, Open, Request};
use super::tap::Tap;
use crate::error::ExecError;
use skep_types::TaskId;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex as SyncMutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// For one answer.
const ANSWER_LIMIT: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 4_000 });
/// For everything round a request: waiting for one's turn, for a new writer, for the answer. After it the task that needs the
/// writer says why it waits, and tries again.
const ASK_LIMIT: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5_000 });
/// For a new writer to listen.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Between two attempts to bring a dead writer back.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// How the log writer is started: skepd itself with its hidden subcommand.
#[derive(Debug, Clone)]
pub struct LogWriterCommand {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub envs: Vec<(OsString, OsString)>,
}

struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

struct Shared {
    socket: PathBuf,
    command: LogWriterCommand,
    /// What must be read at any time.
    live: SyncMutex<BTreeMap<TaskId, Open>>,
    connection: Mutex<Option<Connection>>,
    /// Writers that we started, to take their exit status; normally one.
    children: SyncMutex<Vec<Child>>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct LogWriter(Arc<Shared>);

fn lost(reason: impl std::fmt::Display) -> ExecError {
    ExecError::LogWriter { reason: reason.to_string() }
}

impl LogWriter {
    #[must_use]
    pub fn new(socket: PathBuf, command: LogWriterCommand) -> Self {
        Self(Arc::new(Shared { socket, command, live: SyncMutex::default(), connection: Mutex::new(None), children: SyncMutex::default() }))
    }

    /// Has the task's fifos read from now on.
    ///
    /// # Errors
    /// If no writer can be had or it cannot open them.
    pub async fn open(&self, open: Open) -> Result<(), ExecError> {
        self.0.live.lock().expect("no panic while held").insert(open.task.clone(), open.clone());
        self.ask(Request::Open(open)).await.map(drop)
    }

    /// Everything the task wrote is in its files when this returns.
    ///
    /// # Errors
    /// If no writer can be had.
    pub async fn finish(&self, task: &TaskId) -> Result<(), ExecError> {
        let known = self.0.live.lock().expect("no panic while held").remove(task).is_some();
        // An earlier agent may have had it opened; if there is no writer at all, nobody needs one for that.
        let unconnected = self.0.connection.try_lock().is_ok_and(|slot| slot.is_none());
        if !known && unconnected && UnixStream::connect(&self.0.socket).await.is_err() {
            return Ok(());
        }
        self.ask(Request::Finish { task: task.clone() }).await.map(drop)
    }

    /// The output of a task as it comes, until its end: from now on, or from its next start.
    ///
    /// # Errors
    /// If no writer can be had, or it is one of an earlier version that cannot do this.
    pub async fn tap(&self, task: &TaskId) -> Result<Tap, ExecError> {
        let tapping = async {
            let mut connection = self.connect().await?;
            checked(answered(&mut connection, &Request::Tap { task: task.clone() }).await?)?;
            Ok(Tap { reader: connection.reader, _writer: connection.writer })
        };
        tokio::time::timeout(ASK_LIMIT, tapping).await.map_err(|_| lost("no answer in time"))?
    }

    /// Keeps a writer there while any task is open; ends with `stop`.
    pub async fn keep(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.broken() => {}
            }
            self.0.children.lock().expect("no panic while held").retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            let needed = !self.0.live.lock().expect("no panic while held").is_empty();
            if needed && let Err(error) = self.ask(Request::List).await {
                tracing::warn!(error = %error.words(), "no log writer; output of tasks waits in their pipes");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RESTART_DELAY) => {}
            }
        }
    }

    /// Waits until the writer at the socket, if any, is gone: by a second connection that only ever sees its end.
    async fn broken(&self) {
        if let Ok(mut stream) = UnixStream::connect(&self.0.socket).await {
            let mut end = [0];
            let _ = stream.read(&mut end).await; // either way there is nobody any more
            *self.0.connection.lock().await = None;
        }
    }

    async fn ask(&self, request: Request) -> Result<Answer, ExecError> {
        let silent = |_| {
            let seconds = ASK_LIMIT.as_secs_f32();
            lost(format!(
                "it was silent for {seconds} s; if its process (skepd log-writer) is stopped or hangs, end it: a new one is started"
            ))
        };
        tokio::time::timeout(ASK_LIMIT, self.ask_patiently(request)).await.map_err(silent)?
    }

    /// May be dropped at any moment: a connection in the middle of an exchange is not used again.
    async fn ask_patiently(&self, request: Request) -> Result<Answer, ExecError> {
        let mut slot = self.0.connection.lock().await;
        if let Some(mut connection) = slot.take() {
            match tokio::time::timeout(ANSWER_LIMIT, exchange(&mut connection, &request)).await {
                Ok(Ok(answer)) => {
                    *slot = Some(connection);
                    return checked(answer);
                }
                Ok(Err(error)) => tracing::debug!(%error, "the log writer went away"),
                Err(_) => tracing::warn!("the log writer does not answer"),
            }
        }
        let mut connection = self.connect().await?;
        // A new writer, or a new agent at an old writer: both know the same afterwards.
        let live: Vec<Open> = self.0.live.lock().expect("no panic while held").values().cloned().collect();
        for open in live {
            let task = open.task.clone();
            // One that does not answer is asked no further: there may be hundreds.
            let answer = answered(&mut connection, &Request::Open(open)).await?;
            if let Err(error) = checked(answer) {
                tracing::warn!(%task, error = %error.words(), "the output of a task is not written");
            }
        }
        let answer = checked(answered(&mut connection, &request).await?)?;
        *slot = Some(connection);
        Ok(answer)
    }

    async fn connect(&self) -> Result<Connection, ExecError> {
        let stream = match UnixStream::connect(&self.0.socket).await {
            Ok(stream) => stream,
            Err(_) => {
                self.start().await?;
                UnixStream::connect(&self.0.socket).await.map_err(lost)?
            }
        };
        let (reader, writer) = stream.into_split();
        Ok(Connection { reader: BufReader::new(reader), writer })
    }

    /// Starts a writer and waits until it listens, or until it says that another one does.
    async fn start(&self) -> Result<(), ExecError> {
        let LogWriterCommand { program, args, envs } = &self.0.command;
        let mut child = Command::new(program)
            .args(args)
            .envs(envs.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Not ours: a daemon's standard error may be closed any time.
            .stderr(Stdio::null())
            .current_dir("/")
            .kill_on_drop(false)
            .spawn()
            .map_err(lost)?;
        skep_failpoint::failpoint!("agent.logs.writer_spawned");
        let stdout = child.stdout.take().ok_or_else(|| lost("it has no output"))?;
        let mut lines = BufReader::new(stdout).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                if line.trim_end().ends_with("ready") {
                    break;
                }
            }
            Ok::<_, std::io::Error>(())
        };
        let waited = tokio::time::timeout(START_LIMIT, ready).await;
        self.0.children.lock().expect("no panic while held").push(child);
        waited.map_err(|_| lost("it did not start in time"))?.map_err(lost)
    }
}

async fn exchange(connection: &mut Connection, request: &Request) -> std::io::Result<Answer> {
    let mut text = serde_json::to_vec(request).map_err(std::io::Error::other)?;
    text.push(b'\n');
    connection.writer.write_all(&text).await?;
    let mut line = String::new();
    if connection.reader.read_line(&mut line).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_str(&line).map_err(std::io::Error::other)
}

async fn answered(connection: &mut Connection, request: &Request) -> Result<Answer, ExecError> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, exchange(connection, request)).await;
    answer.map_err(|_| lost("no answer in time"))?.map_err(lost)
}

fn checked(answer: Answer) -> Result<Answer, ExecError> {
    match answer.error {
        None => Ok(answer),
        Some(error) => Err(lost(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::LogOptions;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_writer_that_hangs_costs_every_task_a_bounded_time_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("logs.sock");
        // Connections are taken, by the kernel; nobody answers.
        let _stopped = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let command = LogWriterCommand { program: "/nonexistent".into(), args: Vec::new(), envs: Vec::new() };
        let writer = LogWriter::new(socket, command);
        let open = |number| {
            let (task, dir) = (TaskId::for_test(number), dir.path().to_owned());
            writer.open(Open { task, stdout: dir.join("out"), stderr: None, dir, options: LogOptions::default() })
        };
        let begin = tokio::time::Instant::now();
        let (one, two, three) = tokio::join!(open(1), open(2), open(3));
        assert!(begin.elapsed() < 4 * ASK_LIMIT, "they do not wait for one another: {:?}", begin.elapsed());
        for error in [one, two, three].map(Result::unwrap_err) {
            assert!(error.is_temporary());
            assert!(error.words().contains("log writer did not answer"), "{}", error.words());
        }
    }
}
