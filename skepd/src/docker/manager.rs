//! This node's manager, asked within this process: the services of the local socket without the socket.

use super::failure;
use crate::router::Routes;
use axum::Router;
use skep_docker_api::{ApiError, CALL_LIMIT, ErrorKind};
use skep_manager::{InHand, TakesInHand};
use skep_proto::FromWire;
use skep_proto::skep::certificates_client::CertificatesClient;
use skep_proto::skep::tunnels_client::TunnelsClient;
use skep_proto::v1::ca_client::CaClient;
use skep_proto::v1::control_client::ControlClient;
use skep_proto::v1::logs_client::LogsClient;
use std::future::Future;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Largest answer taken: a list of very many tasks comes as one message.
const ANSWER_LIMIT: usize = 256 << 20;

/// Clients of a manager that comes and goes with the node's role. Clones share it.
#[derive(Clone)]
pub struct Manager(Router);

impl Manager {
    pub fn new(routes: &Routes) -> Self {
        Self(routes.router())
    }

    pub fn control(&self) -> ControlClient<Router> {
        ControlClient::new(self.0.clone()).max_decoding_message_size(ANSWER_LIMIT).max_encoding_message_size(ANSWER_LIMIT)
    }

    pub fn ca(&self) -> CaClient<Router> {
        CaClient::new(self.0.clone())
    }

    pub fn certificates(&self) -> CertificatesClient<Router> {
        CertificatesClient::new(self.0.clone())
    }

    pub fn tunnels(&self) -> TunnelsClient<Router> {
        TunnelsClient::new(self.0.clone())
    }

    pub fn logs(&self) -> LogsClient<Router> {
        LogsClient::new(self.0.clone()).max_decoding_message_size(ANSWER_LIMIT)
    }
}

/// Waits for an answer as long as dockerd does.
pub async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, ApiError> {
    response(call).await.map(Response::into_inner)
}

async fn response<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<Response<T>, ApiError> {
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) => Err(failure::of_manager(&status)),
        Err(_) => Err(ApiError::rpc(ErrorKind::DeadlineExceeded, "context deadline exceeded")),
    }
}

/// Reads an object out of an answer.
///
/// # Errors
/// 500 if a manager of another version sent what is not understood here.
pub fn read<T: FromWire>(what: &str, wire: T::Wire) -> Result<T, ApiError> {
    T::from_wire(wire).map_err(|error| ApiError::internal(format!("the manager's {what} is not understood: {error}")))
}

/// A request for a list that [`objects`] reads.
pub fn in_hand<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(TakesInHand);
    request
}

/// The objects of a list: those in the memory of this process's manager if it leads, copies of the leader's elsewhere.
///
/// # Errors
/// What the call ends with, and see [`read`].
pub async fn objects<T, A>(
    what: &str,
    call: impl Future<Output = Result<Response<A>, Status>>,
    wires: impl FnOnce(A) -> Vec<T::Wire>,
) -> Result<Vec<Arc<T>>, ApiError>
where
    T: FromWire + Send + Sync + 'static,
{
    let mut answer = response(call).await?;
    if let Some(InHand(objects)) = answer.extensions_mut().remove::<InHand<T>>() {
        return Ok(objects);
    }
    wires(answer.into_inner()).into_iter().map(|wire| read(what, wire).map(Arc::new)).collect()
}

/// The object of an answer that has one.
///
/// # Errors
/// See [`read`].
pub fn read_one<T: FromWire>(what: &str, wire: Option<T::Wire>) -> Result<T, ApiError> {
    read(what, wire.ok_or_else(|| ApiError::internal(format!("the manager answered without the {what}")))?)
}

/// All objects of an answer.
///
/// # Errors
/// See [`read`].
pub fn read_all<T: FromWire>(what: &str, wires: Vec<T::Wire>) -> Result<Vec<T>, ApiError> {
    wires.into_iter().map(|wire| read(what, wire)).collect()
}
