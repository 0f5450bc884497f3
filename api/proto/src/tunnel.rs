//! A connection in pieces: what `skep.v1.Tunnels` carries, at either end.
//!
//! gRPC's own flow control is shared by all calls of a connection, and of the connection between two managers: a tunnel whose reader
//! stands still would fill it. So each end sends no more than a [`WINDOW`] that the other end has not given back, and whoever is in
//! between never has more to keep. The end of a direction is said in a piece of its own, for gRPC has none of a server's half.

use crate::skep::TunnelPiece;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

/// Bytes on their way in one direction: what a local network carries within a few milliseconds.
pub const WINDOW: u32 = 256 << 10;
/// Of one piece.
pub const LONGEST_PIECE: usize = 16 << 10;
/// What the shortest piece takes of the window, so that there cannot be very many of them.
pub const LEAST_COST: u32 = 1024;
/// Pieces with data that may be on their way in one direction, and its end.
const MOST_DATA: usize = (WINDOW / LEAST_COST) as usize + 1;
/// The same with what is said of the other direction.
pub const MOST_PIECES: usize = 2 * MOST_DATA;
/// Pieces on their way to gRPC; full: whoever sends waits.
const IN_FLIGHT: usize = 8;
/// Between the tunnel and whoever uses it.
const BUFFER: usize = 64 << 10;

/// Why a tunnel broke off.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("the call that carried the tunnel ended: {}", .0.message())]
    Call(Status),
    #[error("the tunnel ended before all was said")]
    BrokenOff,
    #[error("the other end does not keep to the tunnel's window")]
    OutOfWindow,
    #[error("a piece of the tunnel names what only the first may, or is too long")]
    Odd,
}

/// How much of the window a piece takes; nothing if it has no data.
#[must_use]
pub fn cost(piece: &TunnelPiece) -> u32 {
    match u32::try_from(piece.data.len()) {
        Ok(0) => 0,
        Ok(length) => length.max(LEAST_COST),
        Err(_) => u32::MAX,
    }
}

/// Whether a piece may stand anywhere but at the beginning.
///
/// # Errors
/// See [`TunnelError::Odd`].
pub fn check(piece: &TunnelPiece) -> Result<(), TunnelError> {
    let is_first = !piece.node_id.is_empty() || !piece.token.is_empty();
    if is_first || piece.data.len() > LONGEST_PIECE { Err(TunnelError::Odd) } else { Ok(()) }
}

/// One end of a tunnel.
pub struct TunnelEnd {
    near: DuplexStream,
    outgoing: mpsc::Sender<TunnelPiece>,
}

impl TunnelEnd {
    /// The end, what its user reads and writes, and what the call is to be given, which begins with `first`.
    #[must_use]
    pub fn new(first: TunnelPiece) -> (Self, DuplexStream, mpsc::Receiver<TunnelPiece>) {
        let (near, far) = tokio::io::duplex(BUFFER);
        let (outgoing, pieces) = mpsc::channel(IN_FLIGHT);
        // There is room: it is the first.
        let _ = outgoing.try_send(first);
        (Self { near, outgoing }, far, pieces)
    }

    /// Carries both directions until both have ended, or the user has dropped its half and all it wrote is sent. Dropping the future
    /// breaks the tunnel off.
    ///
    /// # Errors
    /// Why it broke off; the user sees an early end.
    pub async fn carry<S>(self, incoming: S) -> Result<(), TunnelError>
    where
        S: Stream<Item = Result<TunnelPiece, Status>> + Unpin,
    {
        let (reader, writer) = tokio::io::split(self.near);
        let window = Arc::new(Semaphore::new(WINDOW as usize));
        let (queue, taken) = mpsc::channel(MOST_DATA);
        let sending = send(reader, &window, self.outgoing.clone());
        let receiving = receive(incoming, &window, queue);
        let writing = write(writer, taken, self.outgoing);
        // An error ends all three at once.
        tokio::try_join!(sending, receiving, writing).map(drop)
    }
}

async fn send(
    mut reader: tokio::io::ReadHalf<DuplexStream>,
    window: &Semaphore,
    outgoing: mpsc::Sender<TunnelPiece>,
) -> Result<(), TunnelError> {
    let mut buffer = vec![0; LONGEST_PIECE];
    loop {
        // A pipe in memory does not fail.
        let length = reader.read(&mut buffer).await.unwrap_or(0);
        let piece = match length {
            0 => TunnelPiece { end: true, ..TunnelPiece::default() },
            length => TunnelPiece { data: buffer[..length].to_vec(), ..TunnelPiece::default() },
        };
        if let Ok(permits) = window.acquire_many(cost(&piece)).await {
            permits.forget();
        }
        outgoing.send(piece).await.map_err(|_| TunnelError::BrokenOff)?;
        if length == 0 {
            return Ok(());
        }
    }
}

/// Never waits for the user: what credit there was for has room.
async fn receive<S>(mut incoming: S, window: &Semaphore, queue: mpsc::Sender<TunnelPiece>) -> Result<(), TunnelError>
where
    S: Stream<Item = Result<TunnelPiece, Status>> + Unpin,
{
    let mut has_ended = false;
    while let Some(piece) = incoming.next().await {
        let piece = piece.map_err(TunnelError::Call)?;
        check(&piece)?;
        let back = piece.credit as usize;
        if back > (WINDOW as usize).saturating_sub(window.available_permits()) || has_ended && (piece.end || !piece.data.is_empty()) {
            return Err(TunnelError::OutOfWindow);
        }
        window.add_permits(back);
        has_ended |= piece.end;
        if piece.end || !piece.data.is_empty() {
            match queue.try_send(piece) {
                // The user takes nothing more, and that is its right.
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
                Err(mpsc::error::TrySendError::Full(_)) => return Err(TunnelError::OutOfWindow),
            }
        }
    }
    if has_ended { Ok(()) } else { Err(TunnelError::BrokenOff) }
}

/// Gives back what the user has taken, and what it does not want.
async fn write(
    mut writer: tokio::io::WriteHalf<DuplexStream>,
    mut queue: mpsc::Receiver<TunnelPiece>,
    outgoing: mpsc::Sender<TunnelPiece>,
) -> Result<(), TunnelError> {
    let mut is_wanted = true;
    while let Some(piece) = queue.recv().await {
        if is_wanted {
            let written: io::Result<()> = writer.write_all(&piece.data).await;
            is_wanted = written.is_ok();
        }
        if piece.end {
            let _ = writer.shutdown().await; // nobody may be there any more
            return Ok(());
        }
        let credit = TunnelPiece { credit: cost(&piece), ..TunnelPiece::default() };
        // The other end may have all it wants; what it sent is still taken.
        let _ = outgoing.send(credit).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
