//! A client and a process that talk with each other over a connection.

use crate::hijack::{Input, Output};
use crate::stream::{self, FrameKind};
use crate::{ApiError, Attached, StdStream};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use std::future::pending;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Read from a client at once.
const PIECE: usize = 16 * 1024;

/// Keys that end a client's part and leave the process running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl DetachKeys {
    /// `ctrl-p,ctrl-q` unless other ones are given: letters, or `ctrl-` with a letter or one of `@[\]^_`.
    ///
    /// # Errors
    /// 400 for what is none.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let text = if text.is_empty() { "ctrl-p,ctrl-q" } else { text };
        let key = |word: &str| match (word.strip_prefix("ctrl-").unwrap_or_default().as_bytes(), word.as_bytes()) {
            (&[control @ (b'a'..=b'z' | b'A'..=b'Z')], _) => Some(control.to_ascii_lowercase() - b'a' + 1),
            (&[control @ (b'@' | b'['..=b'_')], _) => Some(control - b'@'),
            (_, &[plain]) => Some(plain),
            _ => None,
        };
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        keys.map(Self).ok_or_else(|| ApiError::invalid(format!("Invalid detach keys ({text}) provided")))
    }
}

/// Looks for the keys in what a client types; they are not passed on when they are all there.
struct Detaching {
    keys: Vec<u8>,
    /// Typed so far.
    seen: usize,
}

impl Detaching {
    /// What is to be passed on, and whether the client leaves.
    fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.keys.get(self.seen) == Some(byte) {
                self.seen += 1;
                if self.seen == self.keys.len() {
                    return (out, true);
                }
                continue;
            }
            // They were meant for the process after all.
            out.extend_from_slice(&self.keys[..std::mem::take(&mut self.seen)]);
            if self.keys.first() == Some(byte) {
                self.seen = 1;
            } else {
                out.push(*byte);
            }
        }
        (out, false)
    }
}

/// Says to a client that was answered already why there is no process to talk with.
pub(crate) async fn refuse(has_terminal: bool, error: &ApiError, mut output: Output) {
    let text = format!("{error}\r\n");
    let said = if has_terminal { Bytes::from(text) } else { stream::frame(FrameKind::Stderr, text.as_bytes()) };
    // A client that went away does not want to know.
    if output.write_all(&said).await.is_ok() {
        let _ = output.shutdown().await;
    }
}

/// Until the process writes no more, or the client goes away or leaves. The end of a client's input is told to the process, and its
/// output goes on.
pub(crate) async fn talk(attached: Attached, keys: DetachKeys, mut input: Input, mut output: Output) {
    let Attached { input: mut typed, output: mut written, has_terminal } = attached;
    let listening = async {
        let mut detaching = Detaching { keys: keys.0, seen: 0 };
        let mut buffer = vec![0; PIECE];
        loop {
            let count = match input.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            // Without a taker it is read all the same: a client that waits for its bytes to go would never hear the output.
            let Some(taker) = &typed else { continue };
            let (data, is_leaving) = if has_terminal { detaching.pass(&buffer[..count]) } else { (buffer[..count].to_vec(), false) };
            if !data.is_empty() && taker.send(Bytes::from(data)).await.is_err() {
                typed = None;
            }
            if is_leaving {
                return;
            }
        }
        typed = None;
        pending::<()>().await;
    };
    let telling = tell(&mut written, &mut output, has_terminal);
    tokio::select! {
        () = listening => {}
        () = telling => {}
    }
    let _ = output.shutdown().await; // the client may be gone
}

async fn tell(written: &mut BoxStream<'static, crate::Chunk>, output: &mut Output, has_terminal: bool) {
    while let Some(chunk) = written.next().await {
        let bytes = match (has_terminal, chunk.stream) {
            (true, _) => chunk.data,
            (false, StdStream::Stdout) => stream::frame(FrameKind::Stdout, &chunk.data),
            (false, StdStream::Stderr) => stream::frame(FrameKind::Stderr, &chunk.data),
        };
        if output.write_all(&bytes).await.is_err() || output.flush().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Chunk;
    use tokio::sync::mpsc;

    #[test]
    fn keys_are_named_by_letters() {
        assert_eq!(DetachKeys::parse("").unwrap().0, [16, 17]);
        assert_eq!(DetachKeys::parse("ctrl-A,x,ctrl-@,ctrl-_").unwrap().0, [1, b'x', 0, 31]);
        for odd in ["ctrl-1", "ab", "ctrl-", "a,,b"] {
            assert!(DetachKeys::parse(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn keys_that_are_not_all_there_are_passed_on() {
        let mut detaching = Detaching { keys: vec![16, 17], seen: 0 };
        assert_eq!(detaching.pass(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(detaching.pass(b"b\x10\x10"), (b"\x10b\x10".to_vec(), false));
        assert_eq!(detaching.pass(b"\x11c"), (Vec::new(), true));
    }

    #[tokio::test]
    async fn the_end_of_input_is_not_the_end_of_output() {
        let (typed, mut reads) = mpsc::channel(4);
        let (writes, written) = mpsc::channel(4);
        let output = futures_util::stream::unfold(written, |mut written| async move { Some((written.recv().await?, written)) });
        let attached = Attached { input: Some(typed), output: output.boxed(), has_terminal: false };
        let (client, server) = tokio::io::duplex(1024);
        let (server_in, server_out) = tokio::io::split(server);
        let session = tokio::spawn(talk(attached, DetachKeys::parse("").unwrap(), Box::pin(server_in), Box::pin(server_out)));
        let (mut client_in, mut client_out) = tokio::io::split(client);
        client_out.write_all(b"question").await.unwrap();
        client_out.shutdown().await.unwrap();
        assert_eq!(reads.recv().await.unwrap().as_ref(), b"question");
        assert_eq!(reads.recv().await, None);
        writes.send(Chunk { stream: StdStream::Stderr, data: Bytes::from_static(b"answer") }).await.unwrap();
        drop(writes);
        let mut answer = Vec::new();
        client_in.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"\x02\0\0\0\0\0\0\x06answer");
        session.await.unwrap();
    }
}
