//! The connection to containerd: the namespace on each call, a deadline on each call, errors with the step's name.

use crate::error::ExecError;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

/// For calls that start or end a process; a machine with a hundred starts under way is slow.
pub const PROCESS_LIMIT: Duration = Duration::from_secs(60);
/// For calls that only touch containerd's database or disk.
pub const CALL_LIMIT: Duration = Duration::from_secs(30);
/// containerd sends up to 16 MiB in one message; tonic's own limit is 4.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// A channel that connects when it is used and again when it broke. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    socket: Arc<Path>,
    namespace: MetadataValue<Ascii>,
    name: Arc<str>,
}

impl Client {
    /// # Errors
    /// If the namespace is not one.
    pub fn new(socket: &Path, namespace: &str) -> Result<Self, ExecError> {
        let bad = |_| ExecError::BadSpec { field: "containerd namespace", problem: "only ASCII letters, digits, '.', '_' and '-'".into() };
        let socket: Arc<Path> = socket.into();
        let path = Arc::clone(&socket);
        let connector = tower::service_fn(move |_: Uri| {
            let path = Arc::clone(&path);
            async move { UnixStream::connect(&path).await.map(TokioIo::new) }
        });
        // The address is never looked at: the connector knows the socket.
        let channel = Endpoint::from_static("http://containerd.invalid").connect_with_connector_lazy(connector);
        Ok(Self { channel, socket, namespace: namespace.parse().map_err(bad)?, name: namespace.into() })
    }

    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    #[must_use]
    pub fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    #[must_use]
    pub fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    #[must_use]
    pub fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel.clone())
    }

    #[must_use]
    pub fn version(&self) -> VersionClient<Channel> {
        VersionClient::new(self.channel.clone())
    }

    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// Waits for an answer at most `limit`, and names the step if none comes or it is an error.
    ///
    /// # Errors
    /// As [`Self::explain`], or [`ExecError::Timeout`].
    pub async fn call<A>(
        &self,
        step: &'static str,
        limit: Duration,
        answer: impl Future<Output = Result<Response<A>, Status>>,
    ) -> Result<A, CallError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(CallError::Status(step, status)),
            Err(_) => Err(CallError::Timeout(step, limit)),
        }
    }

    /// Sorts an error by what can be done about it.
    pub fn explain(&self, error: CallError) -> ExecError {
        match error {
            CallError::Timeout(step, limit) => ExecError::Timeout { step, seconds: limit.as_secs() },
            CallError::Status(_, status) if is_disconnected(&status) => {
                ExecError::Unreachable { socket: PathBuf::from(&*self.socket), reason: status.message().to_owned() }
            }
            CallError::Status(step, status) => super::failure::explain(step, status.message()),
        }
    }
}

/// Why a call has no answer.
#[derive(Debug)]
pub enum CallError {
    Timeout(&'static str, Duration),
    Status(&'static str, Status),
}

impl CallError {
    #[must_use]
    pub fn is(&self, code: Code) -> bool {
        matches!(self, Self::Status(_, status) if status.code() == code)
    }
}

/// Whether containerd was away rather than of another opinion. A connection that breaks under a call ends it with
/// `Unavailable` or, from hyper, with `Unknown` and a transport error inside.
fn is_disconnected(status: &Status) -> bool {
    use std::error::Error;
    status.code() == Code::Unavailable || matches!(status.code(), Code::Unknown | Code::Cancelled) && status.source().is_some()
}
