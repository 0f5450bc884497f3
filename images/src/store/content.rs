//! Blobs in containerd's content store.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::client::{Containerd, MAX_MESSAGE, Step, is_passing, reconnecting, service};
use super::error::{StoreError, found};
use crate::digest::Digest;

/// containerd takes messages of up to 16 MiB; small pieces keep memory low and cost little on a unix socket.
const CHUNK: usize = 1024 * 1024;
/// For one piece; a commit syncs the whole blob and may take longer on a slow disk.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);
const COMMIT_DEADLINE: Duration = Duration::from_secs(5 * 60);

pub(super) type Labels = HashMap<String, String>;

/// What opening a blob for writing found.
pub(crate) enum OpenBlob {
    /// It is complete already, and now also held by the lease.
    Exists,
    Writing(BlobWriter),
}

/// One blob being written. Dropped without [`commit`](Self::commit), what was written stays for a later attempt.
pub(crate) struct BlobWriter {
    containerd: Containerd,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    name: String,
    offset: u64,
}

impl Containerd {
    /// Opens the blob under the ingest name `name`, to go on where an earlier attempt stopped.
    ///
    /// `expected` is unknown for parts of archives that carry no digest.
    pub async fn open_blob(&self, lease: &str, name: &str, total: u64, expected: Option<&Digest>) -> Result<OpenBlob, StoreError> {
        let step = Step::new("writing blob", &name).under(lease);
        // The name stays locked until containerd has noticed that an earlier stream ended: `Unavailable`, for a moment.
        let mut backoff = reconnecting();
        loop {
            let status = match self.try_open_blob(step, name, total, expected).await? {
                Ok(writer) => return Ok(OpenBlob::Writing(writer)),
                Err(status) if status.code() == Code::AlreadyExists => return Ok(OpenBlob::Exists),
                Err(status) => status,
            };
            match backoff.wait() {
                Some(wait) if is_passing(&status) => tokio::time::sleep(wait).await,
                _ => return Err(self.explain(step, status)),
            }
        }
    }

    async fn try_open_blob(
        &self,
        step: Step<'_>,
        name: &str,
        total: u64,
        expected: Option<&Digest>,
    ) -> Result<Result<BlobWriter, Status>, StoreError> {
        // One request is in flight at a time, so one place is enough and sending never waits for long.
        let (requests, receiver) = mpsc::channel(1);
        let stat = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: name.to_owned(),
            total: signed(total),
            expected: expected.map(ToString::to_string).unwrap_or_default(),
            ..Default::default()
        };
        // containerd sends nothing, not even headers, before it has the first request.
        let _ = requests.send(stat).await;
        let request = self.request(ReceiverStream::new(receiver), step.lease)?;
        let mut client = service!(self, ContentClient<_>);
        let opened = async {
            let mut answers = client.write(request).await?.into_inner();
            let first = answers.message().await?.ok_or_else(|| Status::unknown("no answer to the first request"))?;
            Ok((answers, first))
        };
        match tokio::time::timeout(WRITE_DEADLINE, opened).await {
            Err(_) => Err(timeout(step)),
            Ok(Err(status)) => Ok(Err(status)),
            Ok(Ok((answers, first))) => Ok(Ok(BlobWriter {
                containerd: self.clone(),
                requests,
                answers,
                name: name.to_owned(),
                offset: u64::try_from(first.offset).unwrap_or(0),
            })),
        }
    }

    /// Throws away what was written under an ingest name.
    pub async fn abort_blob(&self, name: &str) -> Result<(), StoreError> {
        let message = AbortRequest { r#ref: name.to_owned() };
        let send = |request| {
            let mut client = service!(self, ContentClient<_>);
            async move { client.abort(request).await }
        };
        found(self.call(Step::new("giving up blob", &name), message, send).await).map(|_| ())
    }

    /// Writes a small blob whose digest has been checked, and sees to its labels.
    pub async fn put_blob(&self, lease: &str, data: &Bytes, digest: &Digest, labels: Labels) -> Result<(), StoreError> {
        let name = blob_name(digest);
        match self.open_blob(lease, &name, data.len() as u64, Some(digest)).await? {
            OpenBlob::Exists => self.label_blob(digest, labels).await,
            OpenBlob::Writing(mut writer) => {
                let rest = usize::try_from(writer.offset).unwrap_or(usize::MAX).min(data.len());
                writer.write(data.slice(rest..)).await?;
                writer.commit(Some(digest), labels).await
            }
        }
    }

    /// Adds labels to a blob that is there.
    pub async fn label_blob(&self, digest: &Digest, labels: Labels) -> Result<(), StoreError> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_string(), labels, ..Default::default() };
        let message = UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        let send = |request| {
            let mut client = service!(self, ContentClient<_>);
            async move { client.update(request).await }
        };
        self.call(Step::new("labelling blob", digest), message, send).await.map(|_| ())
    }

    /// Whether the blob is complete in the content store.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        let message = InfoRequest { digest: digest.to_string() };
        let send = |request| {
            let mut client = service!(self, ContentClient<_>);
            async move { client.info(request).await }
        };
        Ok(found(self.call(Step::new("looking for blob", digest), message, send).await)?.is_some())
    }

    /// Reads a small blob and checks its digest: the disk under containerd is not trusted more than a registry.
    pub async fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Bytes, StoreError> {
        let step = Step::new("reading blob", digest);
        let mut backoff = reconnecting();
        loop {
            let read = self.try_read_blob(step, digest, limit);
            let status = match tokio::time::timeout(WRITE_DEADLINE, read).await {
                Err(_) => return Err(timeout(step)),
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Ok(data))) if digest.matches(&data) => return Ok(data.into()),
                Ok(Ok(Ok(_))) => return Err(StoreError::WrongDigest { expected: digest.clone() }),
                Ok(Ok(Err(status))) => status,
            };
            match backoff.wait() {
                Some(wait) if is_passing(&status) => tokio::time::sleep(wait).await,
                _ => return Err(self.explain(step, status)),
            }
        }
    }

    async fn try_read_blob(&self, step: Step<'_>, digest: &Digest, limit: u64) -> Result<Result<Vec<u8>, Status>, StoreError> {
        let message = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let request = self.request(message, step.lease)?;
        let mut client = ContentClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE);
        let mut data = Vec::new();
        let mut pieces = match client.read(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        loop {
            match pieces.message().await {
                Ok(None) => return Ok(Ok(data)),
                Ok(Some(piece)) => data.extend_from_slice(&piece.data),
                Err(status) => return Ok(Err(status)),
            }
            if data.len() as u64 > limit {
                return Err(StoreError::TooLong { digest: digest.clone(), length: data.len() as u64, limit });
            }
        }
    }
}

impl BlobWriter {
    /// How many bytes are there.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes back to the start: the next write at offset 0 makes containerd truncate.
    pub fn restart(&mut self) {
        self.offset = 0;
    }

    /// Appends; waits until containerd has taken it.
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), StoreError> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(CHUNK));
            let length = piece.len() as u64;
            let message = WriteContentRequest {
                action: WriteAction::Write.into(),
                offset: signed(self.offset),
                data: piece.into(),
                ..Default::default()
            };
            let answer = self.exchange(message, WRITE_DEADLINE).await.map_err(|failure| self.failed(failure))?;
            self.offset += length;
            if u64::try_from(answer.offset) != Ok(self.offset) {
                return Err(StoreError::Protocol { doing: "writing blob", object: self.name.clone() });
            }
        }
        Ok(())
    }

    /// Completes the blob, which containerd checks against `expected` and syncs.
    pub async fn commit(mut self, expected: Option<&Digest>, labels: Labels) -> Result<(), StoreError> {
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: signed(self.offset),
            offset: signed(self.offset),
            expected: expected.map(ToString::to_string).unwrap_or_default(),
            labels: labels.clone(),
            ..Default::default()
        };
        match self.exchange(message, COMMIT_DEADLINE).await {
            Ok(_) => Ok(()),
            Err(Failure::Status(status)) if status.code() == Code::AlreadyExists => {
                // Someone else wrote the same blob meanwhile.
                match expected {
                    Some(digest) => self.containerd.label_blob(digest, labels).await,
                    None => Ok(()),
                }
            }
            // content/local writer.go: a commit fails so only when size or digest are not the expected ones.
            Err(Failure::Status(status)) if status.code() == Code::FailedPrecondition => {
                let containerd = self.containerd.clone();
                let name = std::mem::take(&mut self.name);
                drop(self);
                containerd.abort_blob(&name).await?;
                match expected {
                    Some(digest) => Err(StoreError::WrongDigest { expected: digest.clone() }),
                    None => Err(containerd.explain(Step::new("completing blob", &name), status)),
                }
            }
            Err(failure) => Err(self.failed(failure)),
        }
    }

    async fn exchange(&mut self, message: WriteContentRequest, deadline: Duration) -> Result<WriteContentResponse, Failure> {
        let exchange = async {
            // A closed channel means that the call ended; the answer stream says why.
            let _ = self.requests.send(message).await;
            self.answers.message().await
        };
        match tokio::time::timeout(deadline, exchange).await {
            Err(_) => Err(Failure::Timeout),
            Ok(Err(status)) => Err(Failure::Status(status)),
            Ok(Ok(None)) => Err(Failure::Ended),
            Ok(Ok(Some(answer))) => Ok(answer),
        }
    }

    fn failed(&self, failure: Failure) -> StoreError {
        let step = Step::new("writing blob", &self.name);
        match failure {
            Failure::Timeout => timeout(step),
            Failure::Ended => StoreError::Protocol { doing: step.doing, object: self.name.clone() },
            Failure::Status(status) => self.containerd.explain(step, status),
        }
    }
}

enum Failure {
    Timeout,
    Ended,
    Status(Status),
}

fn timeout(step: Step<'_>) -> StoreError {
    StoreError::Timeout { doing: step.doing, object: step.object.to_string() }
}

/// The ingest name of a blob: the same in every attempt, so that a broken pull goes on where it stopped.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("skep-{digest}")
}

fn signed(length: u64) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}
