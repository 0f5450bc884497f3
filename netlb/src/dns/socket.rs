//! Sockets inside a task's namespace. They stay in it wherever they are used from.

use super::error::DnsError;
use super::{ADDRESS, redirect};
use crate::netns::STACK;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Ports to listen on, the first one that is free. A program of the task that listens on one of these on all addresses would be
/// refused, so they are ports nobody listens on: two for experiments (RFC 4727) and some that IANA gave to no one. Not one
/// that the kernel picks: tomorrow the task might want that.
const PORTS: [u16; 8] = [1021, 1022, 1011, 1012, 1013, 1014, 1015, 1016];

/// A task's network namespace, open.
#[derive(Debug, Clone)]
pub(super) struct Place(Arc<File>);

/// What a server listens on.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
    pub(super) port: u16,
}

impl Place {
    pub(super) fn open(path: &Path) -> Result<Self, DnsError> {
        let file = File::open(path).map_err(|source| DnsError::Namespace { path: path.to_owned(), source })?;
        Ok(Self(Arc::new(file)))
    }

    /// Whether the path leads to this namespace still.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let same = || -> io::Result<bool> {
            let (there, held) = (std::fs::metadata(path)?, self.0.metadata()?);
            Ok((there.dev(), there.ino()) == (held.dev(), held.ino()))
        };
        same().unwrap_or(false)
    }

    /// Opens what a server needs and leads port 53 to it. Takes about a millisecond.
    pub(super) async fn listen(&self, path: &Path) -> Result<Sockets, DnsError> {
        let inside = path.to_owned();
        let entered = self.within(move || {
            let sockets = listen().map_err(|source| DnsError::Listen { path: inside.clone(), source })?;
            redirect::install(sockets.port).map_err(|source| DnsError::Redirect { path: inside, source })?;
            Ok(sockets)
        });
        entered.await.map_err(|source| DnsError::Namespace { path: path.to_owned(), source })?
    }

    /// Leads port 53 there again, should the task have flushed its tables.
    pub(super) async fn redirect(&self, path: &Path, port: u16) -> Result<(), DnsError> {
        let entered = self.within(move || redirect::install(port)).await;
        let installed = entered.map_err(|source| DnsError::Namespace { path: path.to_owned(), source })?;
        installed.map_err(|source| DnsError::Redirect { path: path.to_owned(), source })
    }

    /// Runs `work` in the namespace, on a thread that ends with it: one of a pool would stay there for the next caller.
    pub(super) async fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (reply, answer) = oneshot::channel();
        let file = self.0.clone();
        let run = move || {
            let outcome = setns(&*file, CloneFlags::CLONE_NEWNET).map(|()| work());
            // Who does not wait any more needs no answer.
            drop(reply.send(outcome.map_err(io::Error::from)));
        };
        std::thread::Builder::new().name("skep-dns".into()).stack_size(STACK).spawn(run)?;
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    }
}

fn listen() -> io::Result<Sockets> {
    let mut failed = io::Error::from(io::ErrorKind::AddrInUse);
    for port in PORTS {
        match listen_on(port) {
            Ok(sockets) => return Ok(sockets),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => failed = error,
            Err(error) => return Err(error),
        }
    }
    Err(failed)
}

fn listen_on(port: u16) -> io::Result<Sockets> {
    let address = SocketAddr::from((ADDRESS, port));
    let (udp, tcp) = (UdpSocket::bind(address)?, TcpListener::bind(address)?);
    // Whatever `route_localnet` says in there: nobody on the task's networks gets answers.
    setsockopt(&udp, sockopt::BindToDevice, &"lo".into())?;
    setsockopt(&tcp, sockopt::BindToDevice, &"lo".into())?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok(Sockets { udp, tcp, port })
}
