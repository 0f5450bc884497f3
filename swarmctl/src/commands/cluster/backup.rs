//! `cluster backup`, `cluster restore`, `cluster recover`.

use super::join::Addresses;
use crate::connect::Connection;
use crate::failure::Failure;
use crate::{output, secret};
use indicatif::BinaryBytes;
use skep_proto::skep::{BackupRequest, RecoverRequest, RestoreChunk, RestoreStart};
use std::ffi::OsString;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt;

const KEY: &str = "key of the backup";

/// Bytes per message of a restore; well below the 4 MiB that a server takes.
const CHUNK: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub struct Backup {
    /// Where the backup goes; what is there is replaced when the new one is complete
    file: PathBuf,
    /// File with the key that seals the backup, made if it is not there; without it a key is made and printed
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct Restore {
    /// The backup
    file: PathBuf,
    /// File with the key that the backup was sealed with (- = standard input); without it the key is read from standard input, or
    /// typed unseen
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    addresses: Addresses,
    /// Go on although a manager of this cluster may still be running elsewhere
    #[arg(long, short = 'f')]
    force: bool,
}

#[derive(Debug, clap::Args)]
pub struct Recover {
    #[command(flatten)]
    addresses: Addresses,
    /// Do it without asking
    #[arg(long, short = 'y')]
    yes: bool,
}

pub async fn backup(flags: &Backup, connection: &Connection) -> Result<(), Failure> {
    let key = match flags.key_file.as_deref() {
        Some(path) if path.as_os_str() == "-" || path.exists() => secret::read_key(KEY, Some(path))?,
        Some(path) => {
            let key = secret::new_key();
            // Before the backup: one whose key was never written is lost.
            secret::write_key(path, &key)?;
            key
        }
        None => secret::new_key(),
    };
    let mut side = Side::create(&flags.file)?;
    let mut stream = connection.node().backup(BackupRequest { key: key.text().0 }).await.map_err(Failure::of_daemon)?.into_inner();
    loop {
        let chunk = tokio::select! {
            chunk = stream.message() => chunk?,
            _ = tokio::signal::ctrl_c() => return Err(Failure::failed("interrupted; nothing was written")),
        };
        match chunk {
            Some(chunk) => side.write(&chunk.data)?,
            None => break,
        }
    }
    let size = side.finish()?;
    let mut text = format!("Backup of {} written to {}.\n", BinaryBytes(size), flags.file.display());
    if flags.key_file.is_none() {
        text += &format!("\nOnly this key opens it, and it is not shown again:\n\n    {}\n", key.text().0);
    }
    output::put(&text)
}

/// A file written beside its place and moved there when it is complete; removed if it never is.
struct Side {
    file: File,
    side: PathBuf,
    place: PathBuf,
    size: u64,
    done: bool,
}

impl Side {
    fn create(place: &Path) -> Result<Self, Failure> {
        let name = place.file_name().filter(|_| !place.is_dir());
        let name = name.ok_or_else(|| Failure::failed(format!("{} is not the name of a file", place.display())))?;
        let mut beside = OsString::from(".");
        beside.push(name);
        beside.push(format!(".{}.partial", std::process::id()));
        let side = place.with_file_name(beside);
        Ok(Self { file: secret::create(&side)?, side, place: place.to_owned(), size: 0, done: false })
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        Failure::failed(format!("cannot write {}: {error}", self.place.display()))
    }

    fn write(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.file.write_all(data).map_err(|error| self.failed(&error))?;
        self.size += data.len() as u64;
        Ok(())
    }

    /// How many bytes there are.
    fn finish(mut self) -> Result<u64, Failure> {
        if self.size == 0 {
            return Err(Failure::failed("the manager sent an empty backup; nothing was written"));
        }
        let folder = match self.place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let moved = self.file.sync_all().and_then(|()| std::fs::rename(&self.side, &self.place));
        // The name is on disk when its directory is.
        moved.and_then(|()| File::open(folder)?.sync_all()).map_err(|error| self.failed(&error))?;
        self.done = true;
        Ok(self.size)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_file(&self.side);
        }
    }
}

pub async fn restore(flags: Restore, connection: &Connection) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::failed(format!("cannot read {}: {error}", flags.file.display()));
    let mut reader = tokio::fs::File::open(&flags.file).await.map_err(cannot)?;
    let key = secret::read_key(KEY, flags.key_file.as_deref())?;
    let start = RestoreStart {
        key: key.text().0,
        listen_addr: flags.addresses.listen_addr.unwrap_or_default(),
        advertise_addr: flags.addresses.advertise_addr.unwrap_or_default(),
        force: flags.force,
    };
    // Two chunks under way keep disk and daemon busy; a slower daemon holds the reader back.
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    let reading = tokio::spawn(async move {
        let mut start = Some(start);
        loop {
            let mut data = vec![0; CHUNK];
            let count = reader.read(&mut data).await?;
            data.truncate(count);
            // An empty file still sends its start, and gets its answer from the daemon.
            let is_over = count == 0 && start.is_none();
            if is_over || sender.send(RestoreChunk { start: start.take(), data }).await.is_err() {
                return Ok::<_, std::io::Error>(());
            }
        }
    });
    let restored =
        connection.node().restore(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.map_err(Failure::of_daemon)?.into_inner();
    reading.await.map_err(|error| Failure::failed(error.to_string()))?.map_err(cannot)?;
    output::put(&format!(
        "{}This node ({}) is now the only manager of cluster {}.\n",
        lines(&restored.report),
        restored.node_id,
        restored.cluster_id
    ))
}

pub async fn recover(flags: Recover, connection: &Connection) -> Result<(), Failure> {
    let request = |confirm| RecoverRequest {
        listen_addr: flags.addresses.listen_addr.clone().unwrap_or_default(),
        advertise_addr: flags.addresses.advertise_addr.clone().unwrap_or_default(),
        confirm,
    };
    if !flags.yes {
        let found = connection.node().recover(request(false)).await.map_err(Failure::of_daemon)?.into_inner();
        output::put(&output::plain_lines(&lines(&found.report)))?;
        if !std::io::stdin().is_terminal() {
            return Err(Failure::failed("recovering needs a yes; repeat it with --yes"));
        }
        eprint!("\nMake this node the only manager? Other managers of this cluster must never run again with their old state. [yes/no] ");
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if answer.trim() != "yes" {
            return Err(Failure::failed("nothing was changed"));
        }
    }
    let done = connection.node().recover(request(true)).await.map_err(Failure::of_daemon)?.into_inner();
    let report = if flags.yes { output::plain_lines(&lines(&done.report)) } else { String::new() };
    output::put(&format!(
        "{report}This node is now the only manager. Add others with the command that `swarmctl cluster join-token manager` prints, and remove \
         those that are gone with `swarmctl node rm --force`.\n"
    ))
}

fn lines(report: &[String]) -> String {
    report.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_backup_takes_its_place_only_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("state.backup");
        std::fs::write(&place, "the last one").unwrap();
        let mut side = Side::create(&place).unwrap();
        side.write(b"half").unwrap();
        assert_eq!(std::fs::read(&place).unwrap(), b"the last one");
        drop(side);
        assert_eq!(names(dir.path()), ["state.backup"]);
        let mut side = Side::create(&place).unwrap();
        side.write(b"who").unwrap();
        side.write(b"le").unwrap();
        assert_eq!(side.finish().unwrap(), 5);
        assert_eq!(std::fs::read(&place).unwrap(), b"whole");
        assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path()), ["state.backup"]);
    }

    #[test]
    fn an_empty_backup_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Side::create(&dir.path().join("x")).unwrap().finish().is_err());
        assert!(Side::create(dir.path()).is_err());
        assert!(names(dir.path()).is_empty());
    }
}
