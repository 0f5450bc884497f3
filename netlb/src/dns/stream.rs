//! Questions over TCP: for answers that do not fit a datagram (RFC 7766).

use super::query::Transport;
use super::serve::{FOREIGN_COST, Next, Server, told};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// A connection on which nothing happens is closed (RFC 7766 §6.2.3); longer than resolvers are waited for.
const IDLE: Duration = Duration::from_secs(10);
/// For a client to take an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Foreign names asked for at once for one connection; the next question is read when one is answered.
const ASKED_AT_ONCE: usize = 8;
/// Beyond this nothing is read until some of it is answered.
const READ_AHEAD: usize = 8 * 1024;
const PAUSE: Duration = Duration::from_millis(100);

impl Server {
    /// Takes connections until told to stop, a fixed number at once; others wait in the kernel.
    pub(super) async fn serve_tcp(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return connections.shutdown().await,
                Some(ended) = connections.join_next() => {
                    told(ended);
                    continue;
                }
                accepted = listener.accept(), if connections.len() < self.most_connections() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let server = self.clone();
                    connections.spawn(async move {
                        if let Err(error) = server.converse(stream).await {
                            debug!(%error, "a connection for questions ended");
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "could not take a connection for questions");
                    tokio::select! {
                        () = stop.cancelled() => return connections.shutdown().await,
                        () = sleep(PAUSE) => {}
                    }
                }
            }
        }
    }

    /// Answers come as they are ready, not as they were asked for: a foreign name holds up nobody.
    async fn converse(self: Arc<Self>, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (mut reader, mut writer) = stream.split();
        let mut read = Vec::with_capacity(512);
        let mut asked: JoinSet<Vec<u8>> = JoinSet::new();
        let mut ended = false;
        loop {
            while asked.len() < ASKED_AT_ONCE
                && let Some(message) = take_message(&mut read)
            {
                self.wait_for_turn().await;
                let next = self.next(&message, Transport::Tcp);
                self.take_turns(if matches!(next, Next::Ask(_)) { FOREIGN_COST } else { 1 });
                match next {
                    Next::Reply(bytes) => write(&mut writer, &bytes).await?,
                    Next::Ask(job) => {
                        let server = self.clone();
                        asked.spawn(async move { server.ask(job).await });
                    }
                    Next::Nothing => return Ok(()),
                }
            }
            if ended && asked.is_empty() {
                return Ok(());
            }
            tokio::select! {
                // What was read is in the buffer even if another branch is taken.
                length = reader.read_buf(&mut read), if !ended && asked.len() < ASKED_AT_ONCE && read.len() < READ_AHEAD => {
                    ended = length? == 0;
                }
                Some(answer) = asked.join_next() => write(&mut writer, &answer.map_err(io::Error::other)?).await?,
                () = sleep(IDLE) => return Ok(()),
            }
        }
    }
}

/// The first whole message: two bytes of length, then as many.
fn take_message(read: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes([*read.first()?, *read.get(1)?]));
    if read.len() < 2 + length {
        return None;
    }
    let rest = read.split_off(2 + length);
    let message = std::mem::replace(read, rest).split_off(2);
    Some(message)
}

async fn write(writer: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes()[..], bytes].concat();
    timeout(PATIENCE, writer.write_all(&framed)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_whole_and_in_order() {
        let mut read = vec![0, 2, 7, 8, 0, 0, 0, 1];
        assert_eq!(take_message(&mut read), Some(vec![7, 8]));
        assert_eq!(take_message(&mut read), Some(vec![]));
        assert_eq!(take_message(&mut read), None);
        read.push(9);
        assert_eq!(take_message(&mut read), Some(vec![9]));
        assert_eq!(take_message(&mut read), None);
    }
}
