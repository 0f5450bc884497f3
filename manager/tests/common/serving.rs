//! A manager that serves on loopback and on its local socket.

use skep_ca::SecurityConfig;
use skep_manager::{Manager, ManagerConfig, ManagerHandle, PeerTransport, serve};
use skep_store::{Store, system_clock};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Where a manager serves.
pub struct Place {
    pub listener: TcpListener,
    pub socket: PathBuf,
}

pub struct Serving {
    pub manager: ManagerHandle,
    servers: JoinSet<()>,
    stop: CancellationToken,
}

impl Serving {
    pub fn start(store: Store, security: &SecurityConfig, transport: Arc<PeerTransport>, place: Place) -> Self {
        let stop = CancellationToken::new();
        let config = ManagerConfig {
            store,
            security: security.clone(),
            node_id: security.identity().unwrap().node_id().clone(),
            advertise_addr: place.listener.local_addr().unwrap(),
            clock: system_clock(),
            transport,
            tunnel_key_lifetime: Duration::from_secs(86_400),
        };
        let manager = Manager::start(config, &stop);
        let mut servers = JoinSet::new();
        let incoming = skep_ca::serve_remote(place.listener, security);
        let (routes, until) = (manager.remote_routes(), stop.clone());
        servers.spawn(async move { serve(incoming, routes, until).await.unwrap() });
        let _ = std::fs::remove_file(&place.socket);
        let incoming = skep_ca::serve_local(UnixListener::bind(&place.socket).unwrap(), security);
        let (routes, until) = (manager.local_routes(), stop.clone());
        servers.spawn(async move { serve(incoming, routes, until).await.unwrap() });
        Self { manager, servers, stop }
    }

    /// Ends it as a crash would: its connections close without a word.
    #[allow(dead_code, reason = "a manager that is alone is not killed")]
    pub async fn kill(mut self) {
        self.servers.shutdown().await;
        self.stop.cancel();
    }

    /// Ends it in order, without giving its leadership away.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.manager.stop().await;
        // What the streams were told last has to get out before their connections close.
        while self.servers.join_next().await.is_some() {}
    }
}
