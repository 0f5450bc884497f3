//! A connection that cannot keep the server busy with nothing.
//!
//! Some frames of HTTP/2 ask for work and carry none: pings, settings, priorities, empty data. The HTTP/2 stack answers as many as
//! come, and one peer can send hundreds of thousands a second (CVE-2019-9512, 9515, 9518). So they are counted where they are read, and from a
//! peer that sends more of them than any honest one nothing is read for a while: it waits alone, and nobody is cut off by mistake.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// What a peer may send at once, and in each second. A ping for each piece of data, as grpc-go sends them, and a window update for
/// each 16 KiB at a gigabyte a second stay below.
const BURST: u32 = 20_000;
const EACH_SECOND: u32 = 20_000;
/// What is answered costs more than what is only read.
const ANSWERED: u32 = 8;
/// The shortest wait: a timer for each frame would cost more than the frame.
const PAUSE: Duration = Duration::from_millis(20);

const PREFACE: u32 = 24;
const HEAD: usize = 9;

/// Follows the frames of one direction.
#[derive(Debug)]
struct Frames {
    head: [u8; HEAD],
    filled: u8,
    /// Bytes before the next head.
    skip: u32,
}

impl Frames {
    fn new() -> Self {
        Self { head: [0; HEAD], filled: 0, skip: PREFACE }
    }

    /// What these bytes cost.
    fn cost(&mut self, mut bytes: &[u8]) -> u32 {
        let mut cost = 0u32;
        while !bytes.is_empty() {
            let skipped = bytes.len().min(self.skip as usize);
            bytes = &bytes[skipped..];
            self.skip -= u32::try_from(skipped).unwrap_or(self.skip);
            if bytes.is_empty() {
                break;
            }
            let filled = usize::from(self.filled);
            let taken = bytes.len().min(HEAD - filled);
            self.head[filled..filled + taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if filled + taken < HEAD {
                self.filled += u8::try_from(taken).unwrap_or(0);
                break;
            }
            self.filled = 0;
            let [high, middle, low, kind, flags, ..] = self.head;
            self.skip = u32::from_be_bytes([0, high, middle, low]);
            cost = cost.saturating_add(price(kind, flags, self.skip));
        }
        cost
    }
}

/// RFC 9113, section 6.
fn price(kind: u8, flags: u8, length: u32) -> u32 {
    const END_STREAM: u8 = 1;
    const ACK: u8 = 1;
    match kind {
        // Data that is none, and does not even end.
        0 if length == 0 && flags & END_STREAM == 0 => 1,
        // Calls, and what belongs to them: limits of their own.
        0 | 1 => 0,
        4 | 6 if flags & ACK == 0 => ANSWERED,
        _ => 1,
    }
}

/// The connection.
pub(super) struct Calm<IO> {
    io: IO,
    frames: Frames,
    left: u32,
    filled_at: Instant,
    /// `None`: the peer is within its limits.
    pause: Option<Pin<Box<Sleep>>>,
}

impl<IO> Calm<IO> {
    pub(super) fn new(io: IO) -> Self {
        Self { io, frames: Frames::new(), left: BURST, filled_at: Instant::now(), pause: None }
    }

    fn pay(&mut self, cost: u32) {
        if cost == 0 {
            return;
        }
        if self.left <= cost {
            let now = Instant::now();
            let earned = now.duration_since(self.filled_at).as_secs_f64() * f64::from(EACH_SECOND);
            self.left = self.left.saturating_add(earned as u32).min(BURST);
            self.filled_at = now;
        }
        match self.left.checked_sub(cost) {
            Some(left) => self.left = left,
            None => {
                let debt = Duration::from_secs(1) * (cost - self.left) / EACH_SECOND;
                // What is waited for is paid by waiting.
                self.left = 0;
                let until = Instant::now() + debt.max(PAUSE);
                self.filled_at = until;
                self.pause = Some(Box::pin(tokio::time::sleep_until(until)));
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Calm<IO> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(context));
            this.pause = None;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(context, buffer))?;
        let cost = this.frames.cost(&buffer.filled()[before..]);
        this.pay(cost);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Calm<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, 0];
        frame.extend(payload);
        frame
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let frames = [
            frame(4, 0, &[0; 12]),
            frame(4, 1, &[]),
            frame(1, 5, b"headers"),
            frame(0, 0, b"data"),
            frame(0, 0, &[]),
            frame(0, 1, &[]),
            frame(6, 0, &[0; 8]),
            frame(8, 0, &[0; 4]),
        ];
        let mut bytes = vec![b'P'; PREFACE as usize];
        bytes.extend(frames.concat());
        for size in 1..bytes.len() {
            let mut seen = Frames::new();
            let cost: u32 = bytes.chunks(size).map(|some| seen.cost(some)).sum();
            assert_eq!(cost, 2 * ANSWERED + 3, "in pieces of {size}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_often_waits_and_who_says_something_does_not() {
        let (near, mut far) = tokio::io::duplex(1 << 24);
        let mut calm = Calm::new(near);
        let begun = Instant::now();
        far.write_all(&[b'P'; PREFACE as usize]).await.unwrap();
        let call = [frame(1, 4, b"headers"), frame(0, 1, b"message")].concat();
        far.write_all(&call.repeat(50_000)).await.unwrap();
        far.write_all(&frame(6, 0, &[0; 8]).repeat(10_000)).await.unwrap();
        drop(far);
        let (mut all, mut some) = (0, vec![0; 1000]);
        let mut calls_done = None;
        loop {
            let count = calm.read(&mut some).await.unwrap();
            if count == 0 {
                break;
            }
            all += count;
            if all >= PREFACE as usize + 50_000 * call.len() {
                calls_done.get_or_insert(begun.elapsed());
            }
        }
        assert_eq!(all, PREFACE as usize + 50_000 * call.len() + 10_000 * 17, "nothing is lost");
        assert_eq!(calls_done, Some(Duration::ZERO));
        // 80,000 to be paid, a quarter of it at once.
        let waited = begun.elapsed();
        assert!(waited > Duration::from_millis(2_500) && waited < Duration::from_millis(4_000), "{waited:?}");
    }
}
