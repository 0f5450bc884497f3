//! `task cp`: files out of a task's container and into it, on whatever node it is.

use super::visit::{Body, Visit, encoded, lost, nothing};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::output;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

pub const HELP: &str = "\
One of the two is TASK:PATH, the other a path here, or - for a tar archive on standard input or output. As with cp: into a directory
that is there, else under the name given. Files that come belong to whoever copies; links are copied as links. The task must run.";

/// Pieces on their way; full: one side waits for the other.
const IN_FLIGHT: usize = 8;
const PIECE: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct CopyFlags {
    /// TASK:PATH, a path here, or -
    #[arg(value_name = "FROM")]
    from: String,
    /// TASK:PATH, a path here, or -
    #[arg(value_name = "TO")]
    to: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Task {
        task: String,
        path: String,
    },
    Here(PathBuf),
    /// Standard input or output.
    Pipe,
}

impl Place {
    fn of(text: &str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Pipe,
            // What begins as a path is one, whatever is in it.
            Some((task, path)) if !text.starts_with(['/', '.']) && !task.is_empty() => {
                // A path in a container begins at its root.
                Self::Task { task: task.to_owned(), path: format!("/{}", path.trim_start_matches('/')) }
            }
            _ => Self::Here(PathBuf::from(text)),
        }
    }
}

pub async fn run(flags: CopyFlags, connection: &Connection) -> Result<(), Failure> {
    match (Place::of(&flags.from), Place::of(&flags.to)) {
        (Place::Task { task, path }, Place::Pipe) => to_pipe(Visit::to(connection, &task).await?, &path).await,
        (Place::Task { task, path }, Place::Here(to)) => fetch(Visit::to(connection, &task).await?, &path, to).await,
        (Place::Pipe, Place::Task { task, path }) => {
            let (sender, archive) = mpsc::channel(IN_FLIGHT);
            tokio::spawn(from_pipe(sender));
            unpack_there(Visit::to(connection, &task).await?, &path, archive).await
        }
        (Place::Here(from), Place::Task { task, path }) => send(Visit::to(connection, &task).await?, from, &path).await,
        _ => Err(Failure::failed("one of the two must be TASK:PATH, and the other a path here or -")),
    }
}

async fn archive_of(visit: &mut Visit, path: &str) -> Result<Incoming, Failure> {
    let path = visit.path(&format!("archive?path={}", encoded(path)));
    Ok(visit.send(Method::GET, &path, nothing(), false).await?.into_body())
}

async fn to_pipe(mut visit: Visit, path: &str) -> Result<(), Failure> {
    let mut archive = archive_of(&mut visit, path).await?;
    while let Some(frame) = archive.frame().await {
        if let Ok(data) = frame.map_err(lost)?.into_data() {
            output::put_bytes(&data)?;
        }
    }
    Ok(())
}

/// Beside its place first, then moved to it: half a copy has no name that anybody asked for.
async fn fetch(mut visit: Visit, path: &str, to: PathBuf) -> Result<(), Failure> {
    let is_inside = to.is_dir();
    if !is_inside && to.as_os_str().to_string_lossy().ends_with('/') {
        return Err(Failure::failed(format!("{}: no such directory", to.display())));
    }
    let parent = if is_inside {
        to.clone()
    } else {
        to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
    };
    let mut archive = archive_of(&mut visit, path).await?;
    let scratch = Scratch::below(&parent)?;
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let inside = scratch.0.clone();
    let unpacking = tokio::task::spawn_blocking(move || unpack(Arriving { receiver, rest: Bytes::new() }, &inside));
    while let Some(frame) = archive.frame().await {
        let piece = frame.map_err(io::Error::other).map(|frame| frame.into_data().unwrap_or_default());
        let is_over = piece.is_err();
        // Who unpacks has said why it does not go on.
        if sender.send(piece).await.is_err() || is_over {
            break;
        }
    }
    drop(sender);
    let problem = |error: io::Error| Failure::failed(format!("{}: {error}", to.display()));
    unpacking.await.map_err(lost)?.map_err(problem)?;
    for entry in std::fs::read_dir(&scratch.0).map_err(problem)? {
        let entry = entry.map_err(problem)?;
        let place = if is_inside { to.join(entry.file_name()) } else { to.clone() };
        std::fs::rename(entry.path(), &place).map_err(|error| Failure::failed(format!("{}: {error}", place.display())))?;
    }
    Ok(())
}

/// Never out of `into`, whatever a container says (the crate's promise).
fn unpack(archive: impl Read, into: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.unpack(into)
}

/// A directory that is gone when dropped, with what is left in it.
struct Scratch(PathBuf);

impl Scratch {
    fn below(parent: &Path) -> Result<Self, Failure> {
        let path = parent.join(format!(".swarmctl-cp-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&path).map_err(|error| Failure::failed(format!("{}: {error}", parent.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // people see it, and may remove it
    }
}

async fn send(mut visit: Visit, from: PathBuf, path: &str) -> Result<(), Failure> {
    let meta = std::fs::symlink_metadata(&from).map_err(|error| Failure::failed(format!("{}: {error}", from.display())))?;
    let own = std::fs::canonicalize(&from).unwrap_or_else(|_| from.clone());
    let own_name = from.file_name().or(own.file_name()).map(|name| name.to_string_lossy().into_owned());
    let own_name = own_name.ok_or_else(|| Failure::failed(format!("{}: name a file or directory", from.display())))?;
    let (dir, name) = if is_directory(&mut visit, path).await? {
        (path.to_owned(), own_name)
    } else {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() {
            return Err(Failure::failed(format!("{path}: no such directory in the container")));
        }
        (format!("{dir}/"), name.to_owned())
    };
    let (sender, archive) = mpsc::channel(IN_FLIGHT);
    let packing = tokio::task::spawn_blocking(move || {
        let mut leaving = Leaving { sender: sender.clone(), buffer: Vec::new() };
        let packed = pack(&from, &meta, &name, &mut leaving).and_then(|()| leaving.flush());
        if let Err(error) = packed {
            // It ends the request as well: half an archive must not look whole.
            let _ = sender.blocking_send(Err(io::Error::new(error.kind(), error.to_string())));
            return Err(Failure::failed(format!("{}: {error}", from.display())));
        }
        Ok(())
    });
    let unpacked = unpack_there(visit, &dir, archive).await;
    match packing.await.map_err(lost)? {
        // What the node refused says more than that it listened no longer.
        Err(failure) if unpacked.is_ok() => Err(failure),
        _ => unpacked,
    }
}

fn pack(from: &Path, meta: &std::fs::Metadata, name: &str, to: &mut Leaving) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    archive.follow_symlinks(false);
    if meta.is_dir() { archive.append_dir_all(name, from) } else { archive.append_path_with_name(from, name) }?;
    archive.finish()
}

async fn is_directory(visit: &mut Visit, path: &str) -> Result<bool, Failure> {
    let path = visit.path(&format!("archive?path={}", encoded(&format!("{}/.", path.trim_end_matches('/')))));
    let answer = visit.try_send(Method::HEAD, &path, nothing(), false).await?;
    match answer.status() {
        StatusCode::OK => Ok(true),
        // No such path, or a file with something behind it: the copy itself says what is wrong, if anything is.
        _ => Ok(false),
    }
}

async fn unpack_there(mut visit: Visit, dir: &str, archive: mpsc::Receiver<io::Result<Bytes>>) -> Result<(), Failure> {
    let path = visit.path(&format!("archive?noOverwriteDirNonDir=true&path={}", encoded(dir)));
    let body: Body = StreamBody::new(ReceiverStream::new(archive).map(|piece| piece.map(Frame::data))).boxed_unsync();
    visit.send(Method::PUT, &path, body, false).await.map(drop)
}

async fn from_pipe(sender: mpsc::Sender<io::Result<Bytes>>) {
    let mut input = tokio::io::stdin();
    loop {
        let mut piece = vec![0; PIECE];
        let piece = match input.read(&mut piece).await {
            Ok(0) => return,
            Ok(read) => {
                piece.truncate(read);
                Ok(Bytes::from(piece))
            }
            Err(error) => Err(error),
        };
        let is_over = piece.is_err();
        if sender.send(piece).await.is_err() || is_over {
            return;
        }
    }
}

/// Reads what comes from elsewhere.
struct Arriving {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
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

/// Writes for somebody elsewhere.
struct Leaving {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for Leaving {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_in_a_task_here_or_a_pipe() {
        let task = |task: &str, path: &str| Place::Task { task: task.into(), path: path.into() };
        assert_eq!(Place::of("web.1:/etc/motd"), task("web.1", "/etc/motd"));
        assert_eq!(Place::of("web.1:etc"), task("web.1", "/etc"));
        assert_eq!(Place::of("-"), Place::Pipe);
        for here in ["/a:b", "./a:b", "a", "../a:b", ":a"] {
            assert_eq!(Place::of(here), Place::Here(here.into()), "{here}");
        }
    }

    #[test]
    fn nothing_is_unpacked_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("into");
        std::fs::create_dir(&into).unwrap();
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..6].copy_from_slice(b"../out");
        header.set_size(1);
        header.set_mode(0o644);
        header.set_cksum();
        let mut archive = header.as_bytes().to_vec();
        archive.extend([b'x'; 512]);
        archive.extend([0; 1024]);
        let _ = unpack(archive.as_slice(), &into); // it may refuse, or leave it out
        assert!(!dir.path().join("out").exists());
    }
}
