//! Connections to what runs in a container, as from its own loopback address.

use super::{Containers, ContainersError};
use nix::sched::{CloneFlags, setns};
use skep_types::TaskId;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::oneshot;

/// On a loopback address whoever listens is there at once.
const LIMIT: Duration = Duration::from_secs(5);

impl Containers {
    /// # Errors
    /// If the container does not run, has its host's network, or nothing listens there.
    pub async fn dial(&self, id: &TaskId, port: u16) -> Result<tokio::net::TcpStream, ContainersError> {
        self.running(id)?;
        let container = id.to_string();
        let namespace = self.0.executor.config().run_dir.join("netns").join(id.as_str());
        if !namespace.exists() {
            return Err(ContainersError::OnHostNetwork { container });
        }
        let (sender, receiver) = oneshot::channel();
        // A thread that enters a namespace stays there until it ends: it is nobody else's.
        let begun = std::thread::Builder::new().name("skep-dial".into()).spawn(move || {
            let _ = sender.send(connect(&namespace, port)); // nobody may wait any more
        });
        begun.map_err(ContainersError::io("begin a thread for", PathBuf::from(&container)))?;
        let connected = receiver.await.map_err(|_| ContainersError::Ending)?;
        let made = connected.and_then(tokio::net::TcpStream::from_std);
        made.map_err(|error| ContainersError::NoPort { container, port, reason: error.to_string() })
    }
}

/// IPv4 first: what listens on both is reached so as well.
fn connect(namespace: &Path, port: u16) -> io::Result<TcpStream> {
    setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
    let connect = |address: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(address, port), LIMIT);
    let stream = connect(Ipv4Addr::LOCALHOST.into()).or_else(|error| connect(Ipv6Addr::LOCALHOST.into()).map_err(|_| error))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}
