//! The service `ResourceAllocator`: networks for containers outside any service. Not built yet.

use skep_proto::v1;
use tonic::{Request, Response, Status};

/// Refuses in words.
#[derive(Clone, Copy)]
pub(crate) struct ResourceService;

fn refuse<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("attaching containers that are not part of a service to cluster networks is not supported"))
}

#[tonic::async_trait]
impl v1::resource_allocator_server::ResourceAllocator for ResourceService {
    async fn attach_network(&self, _: Request<v1::AttachNetworkRequest>) -> Result<Response<v1::AttachNetworkResponse>, Status> {
        refuse()
    }

    async fn detach_network(&self, _: Request<v1::DetachNetworkRequest>) -> Result<Response<v1::DetachNetworkResponse>, Status> {
        refuse()
    }
}
