//! Blobs on their way out of containerd's content store.

use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{ReadContentRequest, ReadContentResponse};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use tonic::Streaming;

use super::client::{Containerd, MAX_MESSAGE, Step};
use super::error::StoreError;
use crate::digest::{Digest, Hasher};
use crate::manifest::Descriptor;

/// For one piece, from when it is asked for.
const READ_DEADLINE: Duration = Duration::from_secs(60);

/// A blob that is being read.
struct Reading {
    containerd: Containerd,
    blob: Descriptor,
    pieces: Streaming<ReadContentResponse>,
    hasher: Hasher,
}

impl Containerd {
    /// The bytes of a blob, piece by piece as they are asked for. The last item is an error if they were not what the digest says: whoever
    /// sends them on must not end as if all were well.
    pub fn stream_blob(&self, blob: &Descriptor) -> BoxStream<'static, Result<Bytes, StoreError>> {
        let (containerd, blob) = (self.clone(), blob.clone());
        stream::once(Reading::begin(containerd, blob)).map_ok(|reading| stream::try_unfold(reading, Reading::next)).try_flatten().boxed()
    }
}

impl Reading {
    async fn begin(containerd: Containerd, blob: Descriptor) -> Result<Self, StoreError> {
        let step = Step::new("reading blob", &blob.digest);
        let message = ReadContentRequest { digest: blob.digest.to_string(), offset: 0, size: 0 };
        let request = containerd.request(message, None)?;
        let mut client = ContentClient::new(containerd.channel()).max_decoding_message_size(MAX_MESSAGE);
        let pieces = match tokio::time::timeout(READ_DEADLINE, client.read(request)).await {
            Err(_) => return Err(late(&blob)),
            Ok(Err(status)) => return Err(containerd.explain(step, status)),
            Ok(Ok(answer)) => answer.into_inner(),
        };
        Ok(Self { containerd, blob, pieces, hasher: Hasher::default() })
    }

    async fn next(mut self) -> Result<Option<(Bytes, Self)>, StoreError> {
        let piece = match tokio::time::timeout(READ_DEADLINE, self.pieces.message()).await {
            Err(_) => return Err(late(&self.blob)),
            Ok(Err(status)) => return Err(self.containerd.explain(Step::new("reading blob", &self.blob.digest), status)),
            Ok(Ok(piece)) => piece,
        };
        let broken = |digest: &Digest| StoreError::WrongDigest { expected: digest.clone() };
        let Some(piece) = piece else {
            let is_whole = self.hasher.length() == self.blob.length() && self.hasher.finish() == self.blob.digest;
            return if is_whole { Ok(None) } else { Err(broken(&self.blob.digest)) };
        };
        self.hasher.update(&piece.data);
        if self.hasher.length() > self.blob.length() {
            return Err(broken(&self.blob.digest));
        }
        Ok(Some((piece.data.into(), self)))
    }
}

fn late(blob: &Descriptor) -> StoreError {
    StoreError::Timeout { doing: "reading blob", object: blob.digest.to_string() }
}
