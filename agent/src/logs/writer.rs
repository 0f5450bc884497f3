//! The log writer: one small single-threaded process per node.
//!
//! It opens fifos for reading and writing, so that they never report their end: containers come and go, skepd dies and
//! returns, and whatever is written waits in the pipe. A task's fifos are closed when the agent says that it ended. The
//! process ends by itself when there is nothing to read and no agent.

use super::line::{LogStream, Splitter, Stamp, encode};
use super::protocol::{Answer, Open, Request};
use super::rotate::Rotating;
use super::tap::{self, Taps};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long it waits for an agent when it has nothing to do.
const IDLE_LIMIT: Duration = Duration::from_secs(20);
/// Read at once; a fifo holds 64 KiB.
const READ: usize = 64 * 1024;
/// What a fifo may hold of a container that filled it: who writes and who reads it wait for each other less often.
const LARGE_PIPE: i32 = 1 << 20;
/// Room for entries that is kept from one read to the next: what is read, quoted.
const ENTRIES: usize = 4 * READ;

/// Reads of one stream before it is another one's turn.
const TURNS: usize = 8;
/// Reads of one stream after its end: the largest pipe (1 MiB) is empty long before. A container may have passed its output on to
/// another one, which goes on writing.
const LAST_TURNS: usize = 64;

/// Why the log writer cannot run.
#[derive(Debug, thiserror::Error)]
pub enum LogWriterError {
    #[error("could not {step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("a log writer already runs for {path}")]
    AlreadyRuns { path: PathBuf },
}

fn at(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogWriterError {
    let path = path.to_owned();
    move |source| LogWriterError::Io { step, path, source }
}

thread_local! {
    /// One buffer for all streams: reading and writing is never interleaved on one thread.
    static SCRATCH: RefCell<(Vec<u8>, Vec<u8>)> = RefCell::new((vec![0; READ], Vec::new()));
}

/// A task's open output.
struct Output {
    open: Open,
    /// Of its fifos: the same paths may have become other ones.
    inodes: Vec<u64>,
    finish: CancellationToken,
    streams: JoinSet<()>,
}

#[derive(Default)]
struct State {
    outputs: RefCell<BTreeMap<skep_types::TaskId, Output>>,
    taps: Taps,
    clients: RefCell<usize>,
    changed: tokio::sync::Notify,
}

/// Runs the log writer of the node whose directories these are; called by the hidden subcommand of skepd.
/// Writes `ready` to standard output when it listens on `<run_dir>/logs.sock`.
///
/// # Errors
/// If the socket cannot be made, or another one runs.
pub fn run_log_writer(run_dir: &Path) -> Result<(), LogWriterError> {
    // A session of its own: no signal meant for skepd's group or terminal reaches it. Fails only for a group leader, which
    // has one already.
    let _ = nix::unistd::setsid();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(run_dir).map_err(at("make the directory", run_dir))?;
    let lock_path = run_dir.join("logs.lock");
    let lock = std::fs::File::create(&lock_path).map_err(at("make the lock", &lock_path))?;
    let Ok(_lock) = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock) else {
        return Err(LogWriterError::AlreadyRuns { path: lock_path });
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(at("start", run_dir))?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(&run_dir.join("logs.sock")))
}

async fn serve(socket: &Path) -> Result<(), LogWriterError> {
    // Whoever held it is dead: we hold the lock.
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at("remove the old socket", socket)(error)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(at("listen on", socket))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(at("protect", socket))?;
    {
        use std::io::Write;
        let _ = writeln!(io::stdout(), "ready"); // nobody has to listen
    }
    let state = Rc::new(State::default());
    let mut clients = JoinSet::new();
    loop {
        let idle = *state.clients.borrow() == 0 && state.outputs.borrow().is_empty();
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                *state.clients.borrow_mut() += 1;
                let state = Rc::clone(&state);
                clients.spawn_local(async move {
                    let _ = converse(&state, stream).await; // the agent went away
                    *state.clients.borrow_mut() -= 1;
                    state.changed.notify_one();
                });
            }
            Some(_) = clients.join_next(), if !clients.is_empty() => {}
            () = state.changed.notified() => {}
            () = tokio::time::sleep(IDLE_LIMIT), if idle => {
                let _ = std::fs::remove_file(socket);
                return Ok(());
            }
        }
    }
}

async fn converse(state: &State, stream: UnixStream) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let mut pieces = None;
        let answer = match serde_json::from_str(&line) {
            Ok(Request::Tap { task }) => {
                pieces = Some(state.taps.open(&task));
                Answer::default()
            }
            Ok(request) => answer(state, request).await,
            Err(error) => Answer { error: Some(format!("this log writer does not understand that: {error}")), tasks: Vec::new() },
        };
        let mut text = serde_json::to_vec(&answer).map_err(io::Error::other)?;
        text.push(b'\n');
        writer.write_all(&text).await?;
        if let Some(pieces) = pieces {
            return tap::pour(pieces, &mut lines, &mut writer).await;
        }
    }
    Ok(())
}

async fn answer(state: &State, request: Request) -> Answer {
    match request {
        Request::Open(open) => {
            let same = state.outputs.borrow().get(&open.task).is_some_and(|output| output.open == open && output.inodes == inodes(&open));
            if same {
                return Answer::default();
            }
            finish(state, &open.task).await;
            match begin(open, &state.taps) {
                Ok(output) => {
                    state.outputs.borrow_mut().insert(output.open.task.clone(), output);
                    Answer::default()
                }
                Err(error) => Answer { error: Some(error.to_string()), tasks: Vec::new() },
            }
        }
        Request::Finish { task } => {
            finish(state, &task).await;
            state.taps.close(&task);
            state.changed.notify_one();
            Answer::default()
        }
        // A connection's own, see `converse`.
        Request::List | Request::Tap { .. } => Answer { error: None, tasks: state.outputs.borrow().keys().cloned().collect() },
    }
}

async fn finish(state: &State, task: &skep_types::TaskId) {
    let output = state.outputs.borrow_mut().remove(task);
    if let Some(mut output) = output {
        output.finish.cancel();
        while output.streams.join_next().await.is_some() {}
    }
}

fn begin(open: Open, taps: &Taps) -> io::Result<Output> {
    let file = match open.options.discard {
        true => None,
        false => Some(Rc::new(RefCell::new(Rotating::open(&open.dir, open.options)?))),
    };
    let finish = CancellationToken::new();
    let mut streams = JoinSet::new();
    let paths = [(LogStream::Stdout, Some(&open.stdout)), (LogStream::Stderr, open.stderr.as_ref())];
    for (stream, path) in paths {
        let Some(path) = path else { continue };
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(path)?;
        let reading = Reading { receiver, stream, task: open.task.clone(), taps: taps.clone() };
        streams.spawn_local(copy(reading, file.clone(), finish.clone()));
    }
    let inodes = inodes(&open);
    Ok(Output { open, inodes, finish, streams })
}

fn inodes(open: &Open) -> Vec<u64> {
    let inode = |path: &PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.ino());
    std::iter::once(&open.stdout).chain(&open.stderr).map(inode).collect()
}

/// One stream of a task.
struct Reading {
    receiver: pipe::Receiver,
    stream: LogStream,
    task: skep_types::TaskId,
    taps: Taps,
}

/// Copies one stream until it is told that nothing more comes.
async fn copy(reading: Reading, file: Option<Rc<RefCell<Rotating>>>, finish: CancellationToken) {
    let Reading { receiver, stream, task, taps } = reading;
    let mut splitter = Splitter::default();
    let mut is_large = false;
    loop {
        let last = tokio::select! {
            biased;
            ready = receiver.readable() => ready.is_err(),
            () = finish.cancelled() => true,
        };
        // A torrent on one stream must not keep the others waiting.
        let turns = if last { LAST_TURNS } else { TURNS };
        for _ in 0..turns {
            let mut heard = taps.are_on(&task).then(bytes::Bytes::new);
            let count = copy_once(&receiver, stream, file.as_deref(), &mut splitter, heard.as_mut());
            if count == 0 {
                break;
            }
            if count == READ && !std::mem::replace(&mut is_large, true) {
                // Only an advantage: one that may not be larger stays as it is.
                let _ = nix::fcntl::fcntl(&receiver, nix::fcntl::FcntlArg::F_SETPIPE_SZ(LARGE_PIPE));
            }
            if let Some(data) = heard.filter(|data| !data.is_empty()) {
                taps.tell(&task, (stream, data), &finish).await;
            }
        }
        if last {
            break;
        }
        tokio::task::yield_now().await;
    }
    if let Some(file) = file {
        let mut entries = Vec::new();
        splitter.finish(|line| encode(&mut entries, stream, line, &Stamp::now()));
        let _ = file.borrow_mut().write(&entries); // nobody is left to be told
    }
}

/// How much there was. `heard`: whether somebody wants it, and what it was.
fn copy_once(
    receiver: &pipe::Receiver,
    stream: LogStream,
    file: Option<&RefCell<Rotating>>,
    splitter: &mut Splitter,
    heard: Option<&mut bytes::Bytes>,
) -> usize {
    SCRATCH.with_borrow_mut(|(buffer, entries)| {
        let Ok(count) = receiver.try_read(buffer) else { return 0 };
        if let Some(heard) = heard {
            *heard = bytes::Bytes::copy_from_slice(&buffer[..count]);
        }
        if let Some(file) = file {
            entries.clear();
            let now = Stamp::now();
            splitter.feed(&buffer[..count], |line| encode(entries, stream, line, &now));
            // A full disk costs log lines, never the container.
            let _ = file.borrow_mut().write(entries);
            entries.shrink_to(ENTRIES);
        }
        count
    })
}
