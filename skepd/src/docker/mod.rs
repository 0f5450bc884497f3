//! The Docker Engine API of this node, on Unix sockets and by mutual TLS: starting and stopping it, and what its endpoints are answered from.
//!
//! The translator is `skep-docker-api`; here are its traits: [`ClusterCalls`] over the services that the manager of this node
//! offers on the local socket, and [`ThisNode`] over `skep.v1.LocalNode`. Both go the way that `swarmctl` goes, so that the two can
//! never differ in what they may. What is this node's own, its containers, images and volumes, is asked of the agent and the stores.

mod cluster; // objects of the cluster
mod containers; // of this node's tasks
mod facts; // what this machine is
mod failure; // refusals of gRPC as refusals of this API
mod happenings; // what happens here
mod images; // of this node, and what registries say
mod login; // do credentials work
mod manager; // asked within this process
mod node; // beginning, joining, leaving
mod outside; // on TCP
mod place; // addresses by interface
mod state; // membership in dockerd's words
mod visits; // from other hosts
mod volumes; // of this node

pub use cluster::ClusterCalls;
pub use containers::NodeContainers;
pub use happenings::{Local, NodeHappenings, remember_cluster};
pub use images::NodeImages;
pub use node::ThisNode;
pub use outside::Outside;
pub use visits::Visits;
pub use volumes::NodeVolumes;

use crate::config::{Config, DockerView};
use anyhow::{Context, Result};
use skep_docker_api::{Backend, Front, Listener, Reach};
use skep_systemd::PassedSockets;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// `FileDescriptorName=` of a socket that systemd opened for this.
const PASSED: &str = "docker";
/// The same for the TCP port, which is served with TLS like the one of `docker_tls_listen`.
const PASSED_TLS: &str = "docker-tls";

/// What lets the group in besides root.
const MODE: u32 = 0o660;

/// The servers of the API and what works for them; all end with the token they were started with.
#[derive(Default)]
pub struct DockerApi {
    servers: JoinSet<()>,
}

impl DockerApi {
    /// Opens the sockets, of this node and of the cluster as one host, and the TCP port; they answer from now on, and so do those that
    /// systemd opened. Nothing is opened if the configuration says `off`.
    ///
    /// # Errors
    /// If a socket cannot be opened or given to the group, or systemd passed one that is not what it should be; says what to do.
    pub fn start(
        config: &Config,
        (backend, reach): (Backend, Arc<dyn Reach>),
        outside: &Outside,
        mut passed: PassedSockets,
        stop: &CancellationToken,
    ) -> Result<Self> {
        let mut servers = JoinSet::new();
        let (front, of_cluster) = (Front::new(backend.clone()), Front::of_cluster(backend, reach));
        let (mut listeners, mut ports) = (passed.take_unix(PASSED)?, passed.take_tcp(PASSED_TLS)?);
        for name in passed.unclaimed() {
            tracing::warn!(
                name,
                "a socket passed by the service manager is not used; FileDescriptorName= is {PASSED} for the Docker API's Unix socket and \
                 {PASSED_TLS} for its TCP port"
            );
        }
        if !listeners.is_empty() {
            tracing::info!(sockets = listeners.len(), "the Docker API answers on sockets of the service manager");
        }
        if let Some(path) = &config.docker_socket {
            listeners.push(bind(path, config.docker_group.as_deref())?);
            tracing::info!(socket = %path.display(), "the Docker API answers");
        }
        if let Some(address) = config.docker_tls_listen {
            ports.push(outside::bind(address)?);
            tracing::info!(%address, "the Docker API listens for TLS");
        }
        if !ports.is_empty() {
            servers.spawn(outside.clone().keep(stop.child_token()));
        }
        for port in ports {
            let front = match config.docker_tls_view {
                DockerView::Node => front.clone(),
                DockerView::Cluster => of_cluster.clone(),
            };
            servers.spawn(skep_docker_api::serve(outside.listen(port), front, stop.child_token()));
        }
        if let Some(path) = &config.docker_cluster_socket {
            // The run directory is root's alone.
            let group = config.docker_group.as_deref().filter(|_| !path.starts_with(&config.run_dir));
            servers.spawn(skep_docker_api::serve(bind(path, group)?, of_cluster, stop.child_token()));
            tracing::info!(socket = %path.display(), "the cluster answers as one Docker host");
        }
        for listener in listeners {
            servers.spawn(skep_docker_api::serve(listener, front.clone(), stop.child_token()));
        }
        Ok(Self { servers })
    }

    /// Does this beside the servers. It must end with their token.
    pub fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.servers.spawn(work);
    }

    /// Returns when all connections have ended. Call it after the token was cancelled.
    pub async fn ended(mut self) {
        while self.servers.join_next().await.is_some() {}
    }
}

fn bind(path: &Path, group: Option<&str>) -> Result<Listener> {
    let group = group.map(group_id).transpose()?;
    let listener = skep_ca::bind_local(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    let open = || {
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, Some(group))?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))
    };
    open().with_context(|| format!("cannot give {} to its group", path.display()))?;
    Ok(listener)
}

fn group_id(name: &str) -> Result<u32> {
    let found = nix::unistd::Group::from_name(name).with_context(|| format!("docker_group: cannot look up the group {name:?}"))?;
    let found = found.with_context(|| format!("docker_group: there is no group {name:?}; `groupadd {name}` makes one"))?;
    Ok(found.gid.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_open_to_its_group_and_to_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let _listener = bind(&path, None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    }

    #[test]
    fn a_group_that_is_not_there_is_named() {
        let refused = group_id("no-such-group-here").unwrap_err();
        assert!(format!("{refused:#}").contains("no-such-group-here"), "{refused:#}");
        assert_eq!(group_id("root").unwrap(), 0);
    }
}
