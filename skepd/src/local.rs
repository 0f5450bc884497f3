//! `skep.v1.LocalNode`: the life of this node in a cluster, for root on this machine.

use crate::agent::chain;
use crate::status::Board;
use futures_util::stream;
use prost_types::Timestamp;
use skep_ca::UnlockKey;
use skep_proto::skep::{
    BackupChunk, BackupRequest, InitRequest, InitResponse, JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, RecoverRequest,
    RecoverResponse, RestoreChunk, RestoreResponse, RestoreStart, StatusRequest, StatusResponse, UnlockRequest, UnlockResponse,
    local_node_server::LocalNode,
};
use skep_store::Store;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, Streaming};

/// What a locked manager says to everything but `Status`, `Unlock` and a forced `Leave`.
pub const LOCKED: &str = "this manager is locked; `swarmctl cluster unlock`";

type Reply<T> = oneshot::Sender<Result<T, Status>>;

/// What the daemon's main loop is asked to do; it does one at a time.
pub enum Order {
    Init(InitRequest, Reply<InitResponse>),
    Join(JoinRequest, Reply<JoinResponse>),
    Leave(LeaveRequest, Reply<LeaveResponse>),
    Unlock(UnlockKey, Reply<UnlockResponse>),
    /// The store of this manager.
    Store(Reply<Store>),
    Restore(Box<Restoration>, Reply<RestoreResponse>),
    Recover(RecoverRequest, Reply<RecoverResponse>),
}

/// A backup on its way back.
pub struct Restoration {
    pub start: RestoreStart,
    pub key: UnlockKey,
    /// At its beginning.
    pub backup: File,
}

/// The service: answers `Status` by itself and hands every other call to the daemon's main loop. Clones share it.
#[derive(Clone)]
pub struct LocalNodeService {
    orders: mpsc::Sender<Order>,
    board: Board,
    /// Where a backup is put together before it is restored.
    scratch: PathBuf,
}

impl LocalNodeService {
    pub fn new(orders: mpsc::Sender<Order>, board: Board, data_dir: &Path) -> Self {
        Self { orders, board, scratch: data_dir.join("restore.part") }
    }

    async fn ask<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, Status> {
        let stopping = || Status::unavailable("the daemon is stopping");
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}

fn key(text: &str) -> Result<UnlockKey, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("key: {error}")))
}

#[tonic::async_trait]
impl LocalNode for LocalNodeService {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let (board, replica) = (self.board.clone(), request.get_ref().replica);
        board.started().await;
        // Hashing every object takes a while.
        let status = tokio::task::spawn_blocking(move || board.status(replica)).await;
        status.map(Response::new).map_err(|_| Status::internal("the status could not be put together"))
    }

    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        self.ask(|reply| Order::Init(request.into_inner(), reply)).await.map(Response::new)
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        self.ask(|reply| Order::Join(request.into_inner(), reply)).await.map(Response::new)
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        self.ask(|reply| Order::Leave(request.into_inner(), reply)).await.map(Response::new)
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let key = key(&request.get_ref().key)?;
        self.ask(|reply| Order::Unlock(key, reply)).await.map(Response::new)
    }

    type BackupStream = Pin<Box<dyn futures_util::Stream<Item = Result<BackupChunk, Status>> + Send>>;

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let key = key(&request.get_ref().key)?;
        let store = self.ask(Order::Store).await?;
        let chunks = stream::unfold(store.backup(&key), |mut backup| async move {
            let chunk = backup.next().await?;
            let chunk = chunk.map(|data| BackupChunk { data }).map_err(|error| Status::internal(chain(&error)));
            Some((chunk, backup))
        });
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn restore(&self, request: Request<Streaming<RestoreChunk>>) -> Result<Response<RestoreResponse>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.ok_or_else(|| Status::invalid_argument("start: is missing"))?;
        let start = first.start.ok_or_else(|| Status::invalid_argument("start: must be in the first message"))?;
        let key = key(&start.key)?;
        let full = |error: std::io::Error| Status::internal(format!("cannot write {}: {error}", self.scratch.display()));
        let mut backup = scratch(&self.scratch).map_err(full)?;
        backup.write_all(&first.data).map_err(full)?;
        while let Some(chunk) = chunks.message().await? {
            backup.write_all(&chunk.data).map_err(full)?;
        }
        backup.rewind().map_err(full)?;
        let restoration = Box::new(Restoration { start, key, backup });
        self.ask(|reply| Order::Restore(restoration, reply)).await.map(Response::new)
    }

    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<RecoverResponse>, Status> {
        self.ask(|reply| Order::Recover(request.into_inner(), reply)).await.map(Response::new)
    }
}

/// A file that is gone when nobody has it open any more.
fn scratch(path: &Path) -> std::io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

/// A clock reading as it travels.
pub fn wire_time(at: std::time::SystemTime) -> Timestamp {
    Timestamp::from(at)
}
