//! Our own API, as any client speaks it: gRPC with TLS on the local socket.

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use skep_ca::Connector;
use skep_proto::v1::control_client::ControlClient;
use skep_proto::v1::{self, list_tasks_request::Filters};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

/// Connects to a local socket and shakes hands.
#[derive(Debug, Clone)]
struct Dial {
    tls: Connector,
    path: PathBuf,
}

impl tower::Service<http::Uri> for Dial {
    type Response = TokioIo<TlsStream<UnixStream>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let Self { tls, path } = self.clone();
        Box::pin(async move {
            let stream = UnixStream::connect(&path).await?;
            let (stream, _) = tls.connect(stream).await.map_err(std::io::Error::other)?;
            Ok(TokioIo::new(stream))
        })
    }
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://swarm-manager").connect_timeout(Duration::from_secs(5))
}

/// A connection to a local socket that is made when it is first used, and again when it broke. Inside a tokio runtime.
///
/// # Errors
/// If TLS cannot be set up.
pub fn lazy_channel(socket: &Path) -> Result<Channel> {
    Ok(endpoint().connect_with_connector_lazy(Dial { tls: Connector::local()?, path: socket.to_owned() }))
}

/// One connection on a runtime of its own; every call blocks.
#[derive(Debug)]
pub struct Api {
    runtime: Runtime,
    control: ControlClient<Channel>,
}

impl Api {
    /// # Errors
    /// If nobody answers there.
    pub fn connect(socket: &Path) -> Result<Self> {
        // A thread of its own answers skepd's pings while others are measured; without it skepd would close the connection.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let dial = Dial { tls: Connector::local()?, path: socket.to_owned() };
        let channel = runtime.block_on(endpoint().connect_with_connector(dial));
        let channel = channel.with_context(|| format!("nobody answers on {}", socket.display()))?;
        Ok(Self { runtime, control: ControlClient::new(channel).max_decoding_message_size(64 << 20) })
    }

    /// # Errors
    /// The API's refusal.
    pub fn create(&mut self, spec: v1::ServiceSpec) -> Result<String> {
        let request = v1::CreateServiceRequest { spec: Some(spec) };
        let answer = self.runtime.block_on(self.control.create_service(request))?.into_inner();
        Ok(answer.service.context("no service in the answer")?.id)
    }

    /// Every task anew, without any other change. Gives the new version of the spec.
    ///
    /// # Errors
    /// The API's refusal.
    pub fn force(&mut self, service: &str) -> Result<Option<v1::Version>> {
        let request = v1::GetServiceRequest { service_id: service.to_owned(), insert_defaults: false };
        let found = self.runtime.block_on(self.control.get_service(request))?.into_inner().service.context("no service in the answer")?;
        let mut spec = found.spec.context("a service without a spec")?;
        spec.task.get_or_insert_default().force_update += 1;
        let version = found.meta.and_then(|meta| meta.version);
        let request = v1::UpdateServiceRequest {
            service_id: service.to_owned(),
            service_version: version,
            spec: Some(spec),
            ..v1::UpdateServiceRequest::default()
        };
        let answer = self.runtime.block_on(self.control.update_service(request))?.into_inner();
        Ok(answer.service.context("no service in the answer")?.spec_version)
    }

    /// # Errors
    /// The API's refusal.
    pub fn remove(&mut self, service: &str) -> Result<()> {
        let request = v1::RemoveServiceRequest { service_id: service.to_owned() };
        self.runtime.block_on(self.control.remove_service(request))?;
        Ok(())
    }

    /// Tasks of a service.
    ///
    /// # Errors
    /// The API's refusal.
    pub fn tasks(&mut self, service: &str) -> Result<Vec<v1::Task>> {
        let filters = Filters { service_ids: vec![service.to_owned()], ..Filters::default() };
        let request = v1::ListTasksRequest { filters: Some(filters) };
        Ok(self.runtime.block_on(self.control.list_tasks(request))?.into_inner().tasks)
    }
}
