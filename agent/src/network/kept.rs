//! The last picture on this node's disk: a node that restarts while no manager can be reached serves on with it. The first
//! complete message of a manager takes its place.
//!
//! ```text
//! {"node":…,"picture":…}      whole, as the file began: written beside it and renamed
//! {"revision":…,"networks":…} a change since then, appended
//! …
//! ```
//! A change costs what it says. When the changes are as long as what they change, the file begins anew, so that it is never longer
//! than twice what is known. Nothing is synced: after a power cut nothing is served on. Who is killed while it appends leaves a line
//! that is not whole; that one, and what might follow, does not count.

use super::picture::{Changes, Picture};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of changes that are appended in any case, however little they change.
const LEAST_CHANGES: u64 = 64 << 10;

/// Peers, tasks and services in changes that wait to be written; with more the whole is written instead. Each is some 200 bytes.
const MOST_WAITING: usize = 4_096;

/// The file.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    /// What another node, or this machine in another cluster, was told does not count.
    node_id: String,
    /// `None` until it was begun by this process, and after a failure: its end is not known then.
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    file: File,
    /// Bytes of the whole, and of the changes behind it.
    whole: u64,
    changes: u64,
}

#[derive(Serialize, Deserialize)]
struct Head {
    node: String,
    picture: Picture,
}

/// What is to be written.
#[derive(Debug)]
pub enum Save {
    Whole(Picture),
    /// Since the last time, in order.
    Changes(Vec<Changes>),
}

/// What is not written yet.
#[derive(Debug, Default)]
pub struct News {
    changes: Vec<Changes>,
    parts: usize,
    is_whole: bool,
}

impl News {
    /// A message that changed something.
    pub fn add(&mut self, changes: Changes) {
        self.parts += 1 + changes.networks.iter().map(super::picture::Delta::parts).sum::<usize>();
        if changes.complete || self.parts > MOST_WAITING {
            self.everything();
        }
        if !self.is_whole {
            self.changes.push(changes);
        }
    }

    /// Nothing counts that was written before.
    pub fn everything(&mut self) {
        *self = Self { is_whole: true, ..Self::default() };
    }

    /// All that is to be written now, as a whole if that is wanted.
    pub fn take(&mut self, wants_whole: bool, picture: &Picture) -> Option<Save> {
        let news = std::mem::take(self);
        match (news.is_whole, news.changes.is_empty()) {
            (false, true) => None,
            (false, false) if !wants_whole => Some(Save::Changes(news.changes)),
            _ => Some(Save::Whole(picture.clone())),
        }
    }
}

impl Kept {
    pub fn new(path: &Path, node_id: &str) -> Self {
        Self { path: path.to_owned(), node_id: node_id.to_owned(), begun: None }
    }

    /// Nothing, if there is none for this node. A damaged one is as good as none; damage behind the whole costs what is behind it.
    pub fn load(&self) -> Option<Picture> {
        let text = fs::read(&self.path).ok()?;
        let mut lines = text.split_inclusive(|byte| *byte == b'\n');
        let head = match serde_json::from_slice::<Head>(lines.next().unwrap_or_default()) {
            Ok(head) => head,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "what is known of other nodes is damaged; a manager will tell it again");
                return None;
            }
        };
        let mut picture = (head.node == self.node_id).then_some(head.picture)?;
        // A line without its end was being written.
        for line in lines.take_while(|line| line.ends_with(b"\n")) {
            match serde_json::from_slice::<Changes>(line) {
                Ok(changes) => drop(picture.change(changes)),
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "the latest that is known of other nodes is damaged");
                    break;
                }
            }
        }
        Some(picture)
    }

    /// Whether the next thing to be written should be the whole.
    pub fn wants_whole(&self) -> bool {
        self.begun.as_ref().is_none_or(|begun| begun.changes > begun.whole.max(LEAST_CHANGES))
    }

    /// Returns how many bytes were written.
    ///
    /// # Errors
    /// Of the file system. What was written before is still there then, and the next thing to be written is the whole.
    pub fn save(&mut self, what: Save) -> io::Result<u64> {
        // Whatever fails on the way, the end of the file is not known then.
        let before = self.begun.take();
        let (begun, written) = match (what, before) {
            (Save::Whole(picture), _) => self.begin(picture)?,
            (Save::Changes(changes), Some(begun)) => begun.append(&changes)?,
            (Save::Changes(_), None) => return Err(io::Error::other("changes of a file that was not begun")),
        };
        self.begun = Some(begun);
        Ok(written)
    }

    fn begin(&self, picture: Picture) -> io::Result<(Begun, u64)> {
        let new = self.path.with_extension("new");
        let mut text = serde_json::to_vec(&Head { node: self.node_id.clone(), picture }).map_err(io::Error::other)?;
        text.push(b'\n');
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        skep_failpoint::failpoint!("agent.networks.written");
        fs::rename(&new, &self.path)?;
        let whole = text.len() as u64;
        Ok((Begun { file, whole, changes: 0 }, whole))
    }
}

impl Begun {
    fn append(mut self, changes: &[Changes]) -> io::Result<(Self, u64)> {
        let mut text = Vec::new();
        for change in changes {
            serde_json::to_writer(&mut text, change).map_err(io::Error::other)?;
            text.push(b'\n');
        }
        self.file.write_all(&text)?;
        skep_failpoint::failpoint!("agent.networks.appended");
        let written = text.len() as u64;
        self.changes += written;
        Ok((self, written))
    }
}

#[cfg(test)]
mod tests;
