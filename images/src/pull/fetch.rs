//! One layer on its way from the registry into the content store.

use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt;
use skep_failpoint::failpoint;

use super::{Job, asked_for};
use crate::backoff::Backoff;
use crate::error::ImageError;
use crate::image::Layer;
use crate::progress::Phase;
use crate::registry::BlobStream;
use crate::store::{BlobWriter, Lease, OpenBlob, StoreError, blob_name};

/// Pieces from the network are gathered to this before they go to containerd, which answers each.
const GATHER: usize = 512 * 1024;
/// Failures in a row without a single new byte before we give up; about a minute with the back-off.
const FRUITLESS_ATTEMPTS: u32 = 6;
/// Failures in all: a connection that gives one byte each time must not keep us for ever.
const ATTEMPTS: u32 = 100;

/// How one attempt at a layer ended.
enum Attempt {
    Complete,
    /// The connection ended early; this many bytes are here.
    Partial(u64),
}

impl Job {
    /// Brings one layer into the content store, verified.
    pub(super) async fn fetch_layer(&self, lease: &Lease, layer: &Layer) -> Result<(), ImageError> {
        let digest = &layer.blob.digest;
        let total = layer.blob.length();
        // Another image with this layer may be fetching it: then it is there when the gate opens.
        let _one_at_a_time = self.store.fetching().enter(digest).await;
        let mut reached = 0;
        let mut resumed = false;
        let mut again = false;
        let mut backoff = fresh_backoff();
        for _ in 0..ATTEMPTS {
            let (got, asked) = match self.attempt(lease, layer, &mut resumed).await {
                Ok(Attempt::Complete) => {
                    self.listeners.tell(digest, total, total, Phase::Downloaded);
                    return Ok(());
                }
                Ok(Attempt::Partial(got)) => (got, None),
                // The registry's passing faults and containerd's restarts alike.
                Err(error) if error.is_transient() => {
                    let Some(wait) = backoff.wait() else { return Err(error) };
                    let asked = match &error {
                        ImageError::Registry(error) => asked_for(error),
                        _ => None,
                    };
                    (reached, Some(asked.unwrap_or(wait)))
                }
                // Bytes of an earlier attempt may be to blame; they are thrown away now, so once more without them.
                Err(ImageError::Store(StoreError::WrongDigest { .. })) if resumed && !again => {
                    (resumed, again, reached) = (false, true, 0);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if got > reached {
                reached = got;
                backoff = fresh_backoff();
            }
            self.listeners.tell(digest, reached, total, Phase::Retrying);
            let Some(wait) = asked.or_else(|| backoff.wait()) else { break };
            tracing::debug!(layer = %digest, got = reached, total, "layer broke off, going on");
            tokio::time::sleep(wait).await;
        }
        Err(ImageError::CutShort { image: self.reference.to_string(), blob: digest.to_string(), got: reached, expected: total })
    }

    async fn attempt(&self, lease: &Lease, layer: &Layer, resumed: &mut bool) -> Result<Attempt, ImageError> {
        let digest = &layer.blob.digest;
        let total = layer.blob.length();
        let opened = self.store.open_blob(lease, &blob_name(digest), total, Some(digest)).await?;
        let OpenBlob::Writing(mut writer) = opened else { return Ok(Attempt::Complete) };
        failpoint!("images.blob.opened");
        if writer.offset() > total {
            writer.restart();
        }
        *resumed |= writer.offset() > 0;
        // Another namespace of this containerd may have it whole: then only the commit is left.
        if writer.offset() < total {
            self.listeners.tell(digest, writer.offset(), total, Phase::Downloading);
            let auth = self.auth.as_ref();
            let stream = self.store.registry().blob(&self.reference, digest, writer.offset(), auth).await?;
            if stream.offset != writer.offset() {
                writer.restart();
            }
            self.copy(stream, &mut writer, layer).await?;
            if writer.offset() < total {
                return Ok(Attempt::Partial(writer.offset()));
            }
        }
        failpoint!("images.blob.written");
        writer.commit(Some(digest), Default::default()).await?;
        failpoint!("images.blob.committed");
        Ok(Attempt::Complete)
    }

    /// Copies until the stream ends or breaks; what came is written in either case.
    async fn copy(&self, mut stream: BlobStream, writer: &mut BlobWriter, layer: &Layer) -> Result<(), ImageError> {
        let total = layer.blob.length();
        let mut gathered = BytesMut::new();
        loop {
            let piece = stream.bytes.next().await;
            let ended = !matches!(piece, Some(Ok(_)));
            match piece {
                Some(Ok(piece)) => gathered.extend_from_slice(&piece),
                Some(Err(error)) => tracing::debug!(layer = %layer.blob.digest, %error, "connection broke"),
                None => {}
            }
            if writer.offset() + gathered.len() as u64 > total {
                return Err(ImageError::TooMuch {
                    image: self.reference.to_string(),
                    blob: layer.blob.digest.to_string(),
                    expected: total,
                });
            }
            if gathered.len() >= GATHER || ended {
                writer.write(gathered.split().freeze()).await?;
                self.listeners.tell(&layer.blob.digest, writer.offset(), total, Phase::Downloading);
            }
            if ended {
                return Ok(());
            }
        }
    }
}

fn fresh_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(10), FRUITLESS_ATTEMPTS)
}
