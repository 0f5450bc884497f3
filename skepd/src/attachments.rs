//! `ResourceAllocator` on a worker's local socket: passed on to the manager of its agent's session, with this node's certificate.

use crate::agent::AgentState;
use skep_agent::{Dial as _, TlsDial};
use skep_ca::SecurityConfig;
use skep_proto::v1::resource_allocator_client::ResourceAllocatorClient;
use skep_proto::v1::resource_allocator_server::{ResourceAllocator, ResourceAllocatorServer};
use skep_proto::v1::{AttachNetworkRequest, AttachNetworkResponse, DetachNetworkRequest, DetachNetworkResponse};
use std::time::Duration;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// For a manager to answer, its leader included.
const LIMIT: Duration = Duration::from_secs(20);

/// The service of a node that is no manager.
pub struct WorkerAttachments {
    agent: watch::Receiver<AgentState>,
    dial: TlsDial,
}

impl WorkerAttachments {
    pub fn routes(agent: watch::Receiver<AgentState>, security: &SecurityConfig) -> tonic::service::Routes {
        tonic::service::Routes::new(ResourceAllocatorServer::new(Self { agent, dial: TlsDial::new(security) }))
    }

    async fn manager(&self) -> Result<ResourceAllocatorClient<Channel>, Status> {
        let address = self.agent.borrow().session.manager.clone();
        if address.is_empty() {
            return Err(Status::unavailable("this node has no session with a manager yet; try again"));
        }
        let channel = self.dial.dial(&address).await;
        let channel =
            channel.map_err(|error| Status::unavailable(format!("the manager cannot be asked: {}", crate::agent::chain(&error))))?;
        Ok(ResourceAllocatorClient::new(channel))
    }
}

fn late(_: tokio::time::error::Elapsed) -> Status {
    Status::deadline_exceeded(format!("no manager answered within {} s", LIMIT.as_secs()))
}

#[tonic::async_trait]
impl ResourceAllocator for WorkerAttachments {
    async fn attach_network(&self, request: Request<AttachNetworkRequest>) -> Result<Response<AttachNetworkResponse>, Status> {
        let asked = async { self.manager().await?.attach_network(request.into_inner()).await };
        tokio::time::timeout(LIMIT, asked).await.map_err(late)?
    }

    async fn detach_network(&self, request: Request<DetachNetworkRequest>) -> Result<Response<DetachNetworkResponse>, Status> {
        let asked = async { self.manager().await?.detach_network(request.into_inner()).await };
        tokio::time::timeout(LIMIT, asked).await.map_err(late)?
    }
}
