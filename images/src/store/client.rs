//! The connection to containerd: namespace and lease on each call, deadlines, reconnection.

use std::fmt::Display;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use super::StoreError;
use crate::backoff::Backoff;

/// For a call that touches containerd's database only.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// For unpacking one layer on a slow and busy disk.
pub(super) const APPLY_DEADLINE: Duration = Duration::from_secs(20 * 60);
/// containerd itself sends up to 16 MiB (`defaults.DefaultMaxSendMsgSize`); tonic's own limit is 4.
pub(super) const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// A lazily connected channel to one containerd, in one of its namespaces. Cheap to clone.
#[derive(Clone)]
pub(super) struct Containerd {
    channel: Channel,
    socket: Arc<Path>,
    namespace: MetadataValue<Ascii>,
    name: Arc<str>,
}

/// What is being done to what: the head of every error and of every call.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub doing: &'static str,
    pub object: &'a (dyn Display + Sync),
    pub lease: Option<&'a str>,
}

impl<'a> Step<'a> {
    pub fn new(doing: &'static str, object: &'a (dyn Display + Sync)) -> Self {
        Self { doing, object, lease: None }
    }

    /// The call's results are kept from the garbage collector by this lease.
    pub fn under(self, lease: &'a str) -> Self {
        Self { lease: Some(lease), ..self }
    }
}

impl Containerd {
    pub fn new(socket: PathBuf, namespace: &str) -> Result<Self, StoreError> {
        let bad = || StoreError::BadNamespace { namespace: namespace.chars().take(100).collect() };
        // As containerd `pkg/identifiers`.
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if namespace.is_empty() || namespace.len() > 76 || !namespace.bytes().all(good) {
            return Err(bad());
        }
        let value = namespace.parse().map_err(|_| bad())?;
        let socket: Arc<Path> = socket.into();
        let path = Arc::clone(&socket);
        let connector = tower::service_fn(move |_: Uri| {
            let path = Arc::clone(&path);
            async move { UnixStream::connect(&path).await.map(TokioIo::new) }
        });
        // The address is never used: the connector knows the socket.
        let channel = Endpoint::from_static("http://containerd.invalid").connect_with_connector_lazy(connector);
        Ok(Self { channel, socket, namespace: value, name: namespace.into() })
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn namespace(&self) -> &str {
        &self.name
    }

    /// Puts namespace and lease on a request.
    pub fn request<T>(&self, message: T, lease: Option<&str>) -> Result<Request<T>, StoreError> {
        let mut request = Request::new(message);
        let headers = request.metadata_mut();
        headers.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = lease {
            let value = lease.parse().map_err(|_| StoreError::BadKey { key: lease.chars().take(100).collect() })?;
            headers.insert("containerd-lease", value);
        }
        Ok(request)
    }

    /// Makes one call; waits out a restart of containerd for some seconds.
    ///
    /// A repeated call may find its first attempt done: callers take `AlreadyExists` and `NotFound` accordingly.
    pub async fn call<M, A, F>(&self, step: Step<'_>, message: M, send: impl Fn(Request<M>) -> F) -> Result<A, StoreError>
    where
        M: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.call_within(CALL_DEADLINE, step, message, send).await
    }

    pub async fn call_within<M, A, F>(
        &self,
        deadline: Duration,
        step: Step<'_>,
        message: M,
        send: impl Fn(Request<M>) -> F,
    ) -> Result<A, StoreError>
    where
        M: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut backoff = reconnecting();
        loop {
            let request = self.request(message.clone(), step.lease)?;
            let status = match tokio::time::timeout(deadline, send(request)).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => {
                    return Err(StoreError::Timeout { doing: step.doing, object: step.object.to_string() });
                }
            };
            match backoff.wait() {
                Some(wait) if is_passing(&status) => tokio::time::sleep(wait).await,
                _ => return Err(self.explain(step, status)),
            }
        }
    }

    /// Sorts a status by what a caller can do about it.
    pub fn explain(&self, step: Step<'_>, status: Status) -> StoreError {
        let (doing, object) = (step.doing, step.object.to_string());
        if is_transport_failure(&status) {
            return StoreError::Unreachable { socket: self.socket.to_path_buf(), source: status };
        }
        match status.code() {
            // So it answers a second writer of one blob (`content/local/locks.go`), and when it is shutting down.
            Code::Unavailable => StoreError::Busy { doing, object, source: status },
            Code::NotFound => StoreError::NotFound { doing, object, source: status },
            Code::AlreadyExists => StoreError::AlreadyExists { doing, object, source: status },
            _ if is_no_space(&status) => StoreError::NoSpace { doing, object, source: status },
            _ => StoreError::Refused { doing, object, source: status },
        }
    }
}

/// Waits for a restarting containerd: some six seconds in all.
pub(super) fn reconnecting() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(1), 12)
}

/// Whether the same call may succeed a moment later.
pub(super) fn is_passing(status: &Status) -> bool {
    status.code() == Code::Unavailable || is_transport_failure(status)
}

/// Whether containerd was not there, as opposed to having answered with an error.
fn is_transport_failure(status: &Status) -> bool {
    // A status made from a transport failure has a cause; one that came over the wire has none.
    std::error::Error::source(status).is_some()
}

/// containerd sends ENOSPC and EDQUOT as `Unknown` with the text of errno, so the text is all there is to go by.
fn is_no_space(status: &Status) -> bool {
    ["no space left on device", "disk quota exceeded"].iter().any(|text| status.message().contains(text))
}

/// The client of one containerd service, with its message limits raised.
macro_rules! service {
    ($containerd:expr, $client:ty) => {
        <$client>::new($containerd.channel()).max_decoding_message_size($crate::store::client::MAX_MESSAGE)
    };
}
pub(super) use service;
