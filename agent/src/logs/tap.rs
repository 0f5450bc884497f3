//! Output as it comes, for people who attach to a container: every byte at once, also where a line has no end yet.
//!
//! The writer reads the fifos, and nobody else can; whoever wants the bytes as well has a connection of its own, on which they come in
//! frames: one byte for the stream (1, 2), four for the length (big-endian), the bytes. A container's output waits for a client that
//! does not take it, as with dockerd; but its end never does.

use super::line::LogStream;
use bytes::{Bytes, BytesMut};
use skep_types::TaskId;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Pieces that a client may be behind before the container waits for it.
const BEHIND: usize = 32;
/// Room for what is left in the fifos at the end, whatever the client does: two streams, read so often ([`super::writer`]).
pub const LAST: usize = 2 * 65;

/// A piece of output.
pub type Piece = (LogStream, Bytes);

/// Who wants the output of which task. Shared within the one thread of the writer.
#[derive(Clone, Default)]
pub struct Taps(Rc<RefCell<BTreeMap<TaskId, Vec<mpsc::Sender<Piece>>>>>);

impl Taps {
    /// From now on; before the container runs and after it ended, too: then for its next life.
    pub fn open(&self, task: &TaskId) -> mpsc::Receiver<Piece> {
        let (sender, pieces) = mpsc::channel(BEHIND + LAST);
        self.0.borrow_mut().entry(task.clone()).or_default().push(sender);
        pieces
    }

    fn of(&self, task: &TaskId) -> Vec<mpsc::Sender<Piece>> {
        let mut taps = self.0.borrow_mut();
        let Some(list) = taps.get_mut(task) else { return Vec::new() };
        list.retain(|tap| !tap.is_closed());
        let list = list.clone();
        if list.is_empty() {
            taps.remove(task);
        }
        list
    }

    /// Nobody listens to most tasks.
    pub fn are_on(&self, task: &TaskId) -> bool {
        self.0.borrow().contains_key(task)
    }

    /// Waits for those that are behind, until the output ends.
    pub async fn tell(&self, task: &TaskId, piece: Piece, ending: &CancellationToken) {
        for tap in self.of(task) {
            tokio::select! {
                biased;
                room = tap.reserve_many(LAST + 1) => if let Some(permit) = room.ok().and_then(|mut room| room.next()) {
                    permit.send(piece.clone());
                },
                () = ending.cancelled() => drop(tap.try_send(piece.clone())), // there is room for the last
            }
        }
    }

    /// Everything was told.
    pub fn close(&self, task: &TaskId) {
        self.0.borrow_mut().remove(task);
    }
}

/// The writer's end of a connection: until the output ends or the client goes.
pub async fn pour(
    mut pieces: mpsc::Receiver<Piece>,
    lines: &mut tokio::io::Lines<BufReader<OwnedReadHalf>>,
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let pouring = async {
        while let Some((stream, data)) = pieces.recv().await {
            let mut head = [if stream == LogStream::Stdout { 1 } else { 2 }, 0, 0, 0, 0];
            head[1..].copy_from_slice(&u32::try_from(data.len()).map_err(io::Error::other)?.to_be_bytes());
            writer.write_all(&head).await?;
            writer.write_all(&data).await?;
        }
        Ok(())
    };
    tokio::select! {
        poured = pouring => poured,
        // It has nothing more to say.
        _ = lines.next_line() => Ok(()),
    }
}

/// The agent's end of such a connection. Dropping it ends the listening.
pub struct Tap {
    pub(super) reader: BufReader<OwnedReadHalf>,
    /// Its end would be taken for ours.
    pub(super) _writer: OwnedWriteHalf,
}

impl Tap {
    /// `None`: the output ended.
    ///
    /// # Errors
    /// If the writer is gone.
    pub async fn next(&mut self) -> io::Result<Option<Piece>> {
        if self.reader.fill_buf().await?.is_empty() {
            return Ok(None);
        }
        let mut head = [0; 5];
        self.reader.read_exact(&mut head).await?;
        let stream = if head[0] == 1 { LogStream::Stdout } else { LogStream::Stderr };
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut data = BytesMut::zeroed(usize::try_from(length).map_err(io::Error::other)?.min(1 << 20));
        self.reader.read_exact(&mut data).await?;
        Ok(Some((stream, data.freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_does_not_wait_for_a_client_that_takes_nothing() {
        let (taps, task, ending) = (Taps::default(), TaskId::for_test(1), CancellationToken::new());
        let mut pieces = taps.open(&task);
        let piece = || (LogStream::Stdout, Bytes::from_static(b"x"));
        for _ in 0..BEHIND {
            taps.tell(&task, piece(), &ending).await;
        }
        let one_more = tokio::time::timeout(std::time::Duration::from_millis(20), taps.tell(&task, piece(), &ending)).await;
        assert!(one_more.is_err(), "the container waits");
        ending.cancel();
        for _ in 0..LAST {
            taps.tell(&task, piece(), &ending).await;
        }
        taps.close(&task);
        let mut count = 0;
        while pieces.recv().await.is_some() {
            count += 1;
        }
        assert_eq!(count, BEHIND + LAST);
        assert!(!taps.are_on(&task));
    }

    #[tokio::test]
    async fn who_is_gone_is_not_waited_for() {
        let (taps, task, ending) = (Taps::default(), TaskId::for_test(1), CancellationToken::new());
        drop(taps.open(&task));
        for _ in 0..=BEHIND + LAST {
            taps.tell(&task, (LogStream::Stderr, Bytes::new()), &ending).await;
        }
    }
}
