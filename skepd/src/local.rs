//! `skep.v1.LocalNode`: the life of this node in a cluster, for root on this machine.

use prost_types::Timestamp;
use skep_proto::skep::{
    InitRequest, InitResponse, LeaveRequest, LeaveResponse, StatusRequest, StatusResponse, local_node_server::LocalNode,
};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

/// What the daemon's main loop is asked to do; it does one at a time.
pub enum Order {
    Init(InitRequest, oneshot::Sender<Result<InitResponse, Status>>),
    Leave(LeaveRequest, oneshot::Sender<Result<LeaveResponse, Status>>),
    Status(oneshot::Sender<StatusResponse>),
}

/// The service: hands every call to the daemon's main loop.
pub struct LocalNodeService {
    orders: mpsc::Sender<Order>,
}

impl LocalNodeService {
    pub fn new(orders: mpsc::Sender<Order>) -> Self {
        Self { orders }
    }

    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, Status> {
        let stopping = || Status::unavailable("the daemon is stopping");
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}

#[tonic::async_trait]
impl LocalNode for LocalNodeService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.ask(Order::Status).await.map(Response::new)
    }

    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        self.ask(|reply| Order::Init(request.into_inner(), reply)).await?.map(Response::new)
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        self.ask(|reply| Order::Leave(request.into_inner(), reply)).await?.map(Response::new)
    }
}

/// A clock reading as it travels.
pub fn wire_time(at: std::time::SystemTime) -> Timestamp {
    Timestamp::from(at)
}
