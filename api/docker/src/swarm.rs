//! `/swarm`: beginning, joining, leaving a cluster; its settings, tokens and keys.

use crate::body::Json;
use crate::query::Query;
use crate::types::swarm::{InitRequest, JoinRequest, Swarm, UnlockKey, availability};
use crate::{ApiError, Backend, ClusterEntry, ErrorKind, Founding, Joining, LocalState, Rotation, Select, SwarmState};
use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use skep_types::{ClusterSpec, NodeRole, Reachability, Sensitive};

pub(crate) fn routes() -> Router<Backend> {
    Router::new()
        .route("/swarm", get(inspect))
        .route("/swarm/init", post(init))
        .route("/swarm/join", post(join))
        .route("/swarm/leave", post(leave))
        .route("/swarm/update", post(update))
        .route("/swarm/unlockkey", get(unlock_key))
        .route("/swarm/unlock", post(unlock))
}

const IN_A_SWARM: &str = "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.";

async fn inspect(State(backend): State<Backend>) -> Result<Json<Swarm>, ApiError> {
    Ok(Json(Swarm::from(&backend.cluster.cluster().await?)))
}

/// Settings that a cluster does not begin with are made in a second step; if that fails, the node is in no cluster again.
async fn init(State(backend): State<Backend>, Json(request): Json<InitRequest>) -> Result<Json<String>, ApiError> {
    let mut spec = request.spec.into_spec()?;
    check_name(&spec)?;
    spec.auto_lock_managers |= request.auto_lock_managers;
    let founding = Founding {
        listen_addr: request.listen_addr,
        advertise_addr: request.advertise_addr,
        data_path_addr: request.data_path_addr,
        data_path_port: request.data_path_port,
        force_new_cluster: request.force_new_cluster,
        default_addr_pool: request.default_addr_pool,
        subnet_size: request.subnet_size,
        availability: availability(&request.availability)?,
        spec: spec.clone(),
    };
    // Forced on a node that is in a swarm, it goes on with what there is.
    let is_new = backend.node.swarm().await.local == LocalState::Inactive;
    if !is_new && !founding.force_new_cluster {
        return Err(ApiError::unavailable(IN_A_SWARM));
    }
    let node = backend.node.init(founding).await?;
    if is_new && let Err(error) = settle(&backend, spec).await {
        if let Err(left) = backend.node.leave(true).await {
            tracing::warn!(%left, "a swarm whose settings were refused could not be left");
        }
        return Err(error);
    }
    Ok(Json(node))
}

fn check_name(spec: &ClusterSpec) -> Result<(), ApiError> {
    match spec.annotations.name.as_str() {
        "default" => Ok(()),
        _ => Err(ApiError::invalid("swarm spec must be named \"default\"")),
    }
}

/// Gives a new cluster its settings.
async fn settle(backend: &Backend, spec: ClusterSpec) -> Result<(), ApiError> {
    let ClusterEntry { cluster, .. } = backend.cluster.cluster().await?;
    if cluster.spec == spec {
        return Ok(());
    }
    backend.cluster.update_cluster(cluster.meta.version.0, spec, Rotation::default()).await
}

async fn join(State(backend): State<Backend>, Json(request): Json<JoinRequest>) -> Result<(), ApiError> {
    let JoinRequest { listen_addr, advertise_addr, data_path_addr, remote_addrs, join_token, availability: word } = request;
    if backend.node.swarm().await.local != LocalState::Inactive {
        return Err(ApiError::unavailable(IN_A_SWARM));
    }
    if remote_addrs.iter().all(String::is_empty) {
        return Err(ApiError::invalid("at least 1 RemoteAddr is required to join"));
    }
    let availability = availability(&word)?;
    let token = Sensitive(join_token);
    backend.node.join(Joining { listen_addr, advertise_addr, data_path_addr, remote_addrs, token, availability }).await
}

async fn leave(State(backend): State<Backend>, query: Query) -> Result<(), ApiError> {
    let force = query.is("force");
    let state = backend.node.swarm().await;
    if state.local == LocalState::Inactive {
        return Err(ApiError::unavailable("This node is not part of a swarm"));
    }
    if state.local == LocalState::Locked && !force {
        return Err(ApiError::unavailable(
            "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.",
        ));
    }
    if state.role == Some(NodeRole::Manager) && !force {
        return Err(ApiError::unavailable(departure(&backend, &state).await));
    }
    backend.node.leave(force).await
}

/// Why a manager does not leave without force, in dockerd's words.
async fn departure(backend: &Backend, state: &SwarmState) -> String {
    let mut text = "You are attempting to leave the swarm on a node that is participating as a manager. ".to_owned();
    let nodes = if state.is_manager { backend.cluster.list_nodes(&Select::default()).await.unwrap_or_default() } else { Vec::new() };
    let managers: Vec<_> = nodes.iter().filter_map(|node| node.manager.as_ref()).collect();
    match managers.len() {
        all @ 1.. => {
            let reachable = managers.iter().filter(|manager| manager.reachability == Reachability::Reachable).count();
            let left = reachable.saturating_sub(1);
            if all == 1 {
                text.push_str("Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ");
                return text;
            }
            // A majority of those that would be there.
            if left < all / 2 + 1 {
                text.push_str(&format!(
                    "Removing this node leaves {left} managers out of {all}. Without a Raft quorum your swarm will be inaccessible. "
                ));
            }
        }
        0 => text.push_str("Doing so may lose the consensus of your cluster. "),
    }
    text.push_str(
        "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to \
         suppress this message.",
    );
    text
}

async fn update(State(backend): State<Backend>, query: Query, Json(spec): Json<crate::types::swarm::SwarmSpec>) -> Result<(), ApiError> {
    let version = query.version("swarm")?;
    let rotation = Rotation {
        worker_token: query.strict("rotateWorkerToken")?,
        manager_token: query.strict("rotateManagerToken")?,
        unlock_key: query.strict("rotateManagerUnlockKey")?,
    };
    backend.cluster.update_cluster(version, spec.into_spec()?, rotation).await
}

async fn unlock_key(State(backend): State<Backend>) -> Result<Json<UnlockKey>, ApiError> {
    let key = backend.cluster.unlock_key().await?;
    Ok(Json(UnlockKey { unlock_key: key.map(|key| key.0).unwrap_or_default() }))
}

async fn unlock(State(backend): State<Backend>, Json(request): Json<UnlockKey>) -> Result<(), ApiError> {
    let state = backend.node.swarm().await;
    if state.local != LocalState::Locked {
        return Err(state.refusal().unwrap_or_else(|| ApiError::new(ErrorKind::AlreadyExists, "swarm is not locked")));
    }
    backend.node.unlock(Sensitive(request.unlock_key)).await
}
