//! This node: its facts, and its way into a cluster and out again.

use super::outside::Outside;
use super::state::swarm_state;
use super::{facts, failure, login, place};
use crate::config::Config;
use crate::local::LocalNodeService;
use crate::status::Board;
use async_trait::async_trait;
use skep_ca::JoinToken;
use skep_docker_api::{ApiError, ErrorKind, Founding, Joining, LocalState, Login, NodeFacts, NodeLife, SwarmState};
use skep_proto::ToWire as _;
use skep_proto::skep::local_node_server::LocalNode as _;
use skep_proto::skep::{InitRequest, JoinRequest, LeaveRequest, RecoverRequest, UnlockRequest};
use skep_types::{Sensitive, UnlockKey};
use std::sync::Arc;
use tokio::sync::OnceCell;
use tonic::Request;

/// Answers from what the daemon shows of itself, and hands what changes something to its main loop.
pub struct ThisNode {
    config: Arc<Config>,
    board: Board,
    local: LocalNodeService,
    engine_id: String,
    outside: Outside,
    runc: OnceCell<Option<String>>,
}

impl ThisNode {
    /// # Errors
    /// If the installation's id cannot be kept.
    pub fn new(config: Arc<Config>, board: Board, local: LocalNodeService, outside: Outside) -> anyhow::Result<Self> {
        let engine_id = facts::engine_id(&config.data_dir)?;
        Ok(Self { config, board, local, engine_id, outside, runc: OnceCell::new() })
    }
}

#[async_trait]
impl NodeLife for ThisNode {
    fn engine_version(&self) -> &str {
        env!("CARGO_PKG_VERSION")
    }

    async fn swarm(&self) -> SwarmState {
        self.board.started().await;
        let board = self.board.clone();
        // It reads a file.
        tokio::task::spawn_blocking(move || swarm_state(&board, true)).await.unwrap_or_default()
    }

    async fn facts(&self) -> Result<NodeFacts, ApiError> {
        let runc = self.runc.get_or_init(facts::runc_version).await.clone();
        let (config, board, engine_id) = (Arc::clone(&self.config), self.board.clone(), self.engine_id.clone());
        let problems = self.outside.problem().into_iter().collect();
        let gathered = tokio::task::spawn_blocking(move || NodeFacts { engine_id, runc, problems, ..facts::gather(&config, &board) });
        gathered.await.map_err(|error| ApiError::internal(format!("the facts of this machine could not be gathered: {error}")))
    }

    async fn init(&self, founding: Founding) -> Result<String, ApiError> {
        let listen_addr = place::listen(&founding.listen_addr)?;
        let advertise_addr = place::advertise(&founding.advertise_addr)?;
        place::check_data_path(&founding.data_path_addr, self.config.data_path_addr, &advertise_addr)?;
        if founding.force_new_cluster && self.swarm().await.local != LocalState::Inactive {
            let request = RecoverRequest { listen_addr, advertise_addr, confirm: true };
            self.local.recover(Request::new(request)).await.map_err(|status| failure::of_node(&status))?;
            return Ok(self.swarm().await.node_id);
        }
        let request = InitRequest {
            listen_addr,
            advertise_addr,
            default_address_pool: founding.default_addr_pool,
            subnet_size: founding.subnet_size,
            node_cert_expiry: founding.spec.ca_config.node_cert_expiry.map(|expiry| expiry.to_wire()),
            availability: founding.availability.to_wire(),
            auto_lock_managers: founding.spec.auto_lock_managers,
            data_path_port: founding.data_path_port,
        };
        let answer = self.local.init(Request::new(request)).await.map_err(|status| failure::of_node(&status))?;
        Ok(answer.into_inner().node_id)
    }

    async fn join(&self, joining: Joining) -> Result<(), ApiError> {
        joining.token.0.parse::<JoinToken>().map_err(|error| ApiError::invalid(format!("invalid join token: {error}")))?;
        let advertise_addr = place::advertise(&joining.advertise_addr)?;
        place::check_data_path(&joining.data_path_addr, self.config.data_path_addr, &advertise_addr)?;
        let request = JoinRequest {
            token: joining.token.0,
            remote_addrs: joining.remote_addrs,
            listen_addr: place::listen(&joining.listen_addr)?,
            advertise_addr,
            availability: joining.availability.to_wire(),
        };
        self.local.join(Request::new(request)).await.map_err(|status| failure::of_node(&status))?;
        Ok(())
    }

    async fn leave(&self, force: bool) -> Result<(), ApiError> {
        self.local.leave(Request::new(LeaveRequest { force })).await.map_err(|status| failure::of_node(&status))?;
        Ok(())
    }

    async fn unlock(&self, key: Sensitive<String>) -> Result<(), ApiError> {
        key.0.parse::<UnlockKey>().map_err(|error| ApiError::invalid(error.to_string()))?;
        let answer = self.local.unlock(Request::new(UnlockRequest { key: key.0 })).await;
        answer.map(drop).map_err(|status| match failure::of_node(&status) {
            // The key is one, but another's.
            error if error.kind == ErrorKind::InvalidArgument => {
                ApiError::new(ErrorKind::Unauthenticated, "swarm could not be unlocked: invalid key provided")
            }
            error => error,
        })
    }

    async fn check_login(&self, login: Login) -> Result<(), ApiError> {
        login::check(&self.config.insecure_registries, login).await
    }
}
