//! Our own API, as any client speaks it: gRPC with TLS on the local socket; every call blocks and has an end.

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use skep_ca::Connector;
use skep_proto::skep::local_node_client::LocalNodeClient;
use skep_proto::skep::{StatusRequest, StatusResponse};
use skep_proto::v1;
use skep_proto::v1::control_client::ControlClient;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// A daemon that does not answer a question about itself within this is taken for dead.
const PATIENCE: Duration = Duration::from_secs(20);

/// Threads of their own: pings are answered while nobody calls.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME
        .get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads can be started"))
}

/// A connection to one skepd, made when it is first used and again when it broke.
#[derive(Debug, Clone)]
pub struct Api {
    channel: Channel,
}

impl Api {
    /// # Errors
    /// If TLS cannot be set up; whether anybody answers is seen at the first call.
    pub fn new(socket: &Path) -> Result<Self> {
        let tls = Connector::local()?;
        let path: PathBuf = socket.to_owned();
        let dial = tower::service_fn(move |_: http::Uri| {
            let (tls, path) = (tls.clone(), path.clone());
            async move {
                let stream = UnixStream::connect(&path).await?;
                let (stream, _) = tls.connect(stream).await.map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let _context = runtime().enter();
        let channel = Endpoint::from_static("http://swarm-manager").connect_timeout(PATIENCE).connect_with_connector_lazy(dial);
        Ok(Self { channel })
    }

    pub(crate) fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    /// What the node says of itself; with `replica` also the hash of its state.
    ///
    /// # Errors
    /// The refusal, or that nobody answered in time.
    pub fn status(&self, replica: bool) -> Result<StatusResponse> {
        let mut client = LocalNodeClient::new(self.channel.clone());
        within(client.status(StatusRequest { replica }))
    }

    /// Calls the control API: `api.ask(async |control| control.list_nodes(…).await)`.
    ///
    /// # Errors
    /// The refusal, or that nobody answered in time.
    pub fn ask<T, F>(&self, call: impl FnOnce(ControlClient<Channel>) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        within(call(self.control()))
    }

    /// All nodes, as this one knows them.
    ///
    /// # Errors
    /// See [`ask`](Self::ask).
    pub fn nodes(&self) -> Result<Vec<v1::Node>> {
        Ok(self.ask(|mut control| async move { control.list_nodes(v1::ListNodesRequest::default()).await })?.nodes)
    }

    /// All tasks, as this one knows them.
    ///
    /// # Errors
    /// See [`ask`](Self::ask).
    pub fn tasks(&self) -> Result<Vec<v1::Task>> {
        Ok(self.ask(|mut control| async move { control.list_tasks(v1::ListTasksRequest::default()).await })?.tasks)
    }

    /// Names of all configs.
    ///
    /// # Errors
    /// See [`ask`](Self::ask).
    pub fn configs(&self) -> Result<Vec<String>> {
        let found = self.ask(|mut control| async move { control.list_configs(v1::ListConfigsRequest::default()).await })?.configs;
        Ok(found.into_iter().filter_map(|config| Some(config.spec?.annotations?.name)).collect())
    }
}

fn within<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T> {
    let answer = runtime().block_on(async { tokio::time::timeout(PATIENCE, call).await });
    let answer = answer.with_context(|| format!("no answer within {PATIENCE:?}"))?;
    answer.map(Response::into_inner).map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))
}
