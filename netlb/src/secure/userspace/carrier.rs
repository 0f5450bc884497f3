//! One device: WireGuard's state and its packets.

use super::super::device::{Device, DeviceChange, Found, FoundPeer, Place};
use super::super::error::SecureError;
use super::super::key::{PrivateKey, PublicKey};
use super::tun::Wire;
use gotatun::device::{self, DeviceBuilder, Peer};
use gotatun::udp::socket::UdpSocketFactory;
use gotatun::x25519;
use ipnet::IpNet;
use ipnetwork::IpNetwork;
use skep_failpoint::failpoint;
use std::io;
use std::net::{Ipv6Addr, UdpSocket};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// A burst from a peer at full speed is some hundred packets; the default of most kernels is 208 KiB.
const SOCKET_BUFFER: usize = 4 << 20;

/// Tasks that are told to end do so at their next wake-up, micro- to milliseconds later.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

type Tunnel = device::Device<(UdpSocketFactory, Wire, Wire)>;

/// See the module's description.
pub(super) struct Carrier {
    tunnel: Tunnel,
    name: String,
    identity: Identity,
    /// That it was told last, whether or not it has it.
    port: u16,
}

/// What a device was told of itself.
enum Identity {
    None,
    Is(PublicKey, u16),
    /// A step failed. What it has now is not known, and some of it cannot be told twice: another one must take its place.
    Unknown,
}

impl Carrier {
    /// The device without key and peers.
    pub(super) async fn make(wanted: &Device) -> Result<Self, SecureError> {
        let name = wanted.name.clone();
        let failed = |source| SecureError::Device { link: name.clone(), step: "make", source };
        let wire = Wire::make(&wanted.name, wanted.mtu).map_err(failed)?;
        failpoint!("netlb.secure.tun");
        let sockets = UdpSocketFactory { recv_buffer_size: Some(SOCKET_BUFFER), send_buffer_size: Some(SOCKET_BUFFER) };
        let built = DeviceBuilder::new().with_udp(sockets).with_ip(wire).build().await;
        let tunnel = built.map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self { tunnel, name, identity: Identity::None, port: wanted.port })
    }

    /// `None` if it has ended, such as because somebody deleted its link.
    pub(super) async fn read(&mut self) -> Option<Found> {
        if timeout(Duration::ZERO, self.tunnel.wait()).await.is_ok() {
            return None;
        }
        let mut found = match self.identity {
            Identity::Unknown => return None,
            Identity::None => Found::default(),
            Identity::Is(key, port) => Found { key: Some(key), port, ..Found::default() },
        };
        for peer in self.tunnel.peers().await {
            let allowed = peer.peer.allowed_ips.iter().filter_map(|net| IpNet::new(net.network(), net.prefix()).ok()).collect();
            let entry = FoundPeer { endpoint: peer.peer.endpoint, allowed, handshake: peer.stats.last_handshake };
            found.peers.insert(PublicKey(peer.peer.public_key.to_bytes()), entry);
        }
        Some(found)
    }

    pub(super) async fn change(&mut self, wanted: &Device, changes: &[DeviceChange]) -> Result<(), SecureError> {
        self.port = wanted.port;
        let before = std::mem::replace(&mut self.identity, Identity::Unknown);
        let written = self.tunnel.write(async |tunnel| {
            for change in changes {
                match change {
                    DeviceChange::Identity => {
                        tunnel.set_private_key(secret(&wanted.key)).await;
                        tunnel.set_listen_port(wanted.port);
                    }
                    DeviceChange::RemovePeer(key) => drop(tunnel.remove_peer(&x25519::PublicKey::from(key.0)).await),
                    DeviceChange::SetPeer(key, place) => tunnel.add_or_update_peer(peer(key, place)).await,
                }
            }
        });
        written.await.map_err(|error| self.refused(wanted, error))?;
        failpoint!("netlb.secure.carried");
        let is_new = changes.contains(&DeviceChange::Identity);
        self.identity = if is_new { Identity::Is(wanted.key.public(), wanted.port) } else { before };
        Ok(())
    }

    fn refused(&self, wanted: &Device, error: device::Error) -> SecureError {
        let link = self.name.clone();
        match error {
            device::Error::Bind(source, _) => SecureError::Port { link, port: wanted.port, source },
            other => SecureError::Device { link, step: "tell the peers of", source: io::Error::other(other) },
        }
    }

    /// Waits for its tasks and until its port is free for the next, but not for ever.
    pub(super) async fn stop(self, at_most: Duration) {
        let Self { tunnel, port, .. } = self;
        let ended = async {
            tunnel.stop().await;
            // `gotatun` does not wait for the tasks that have the socket.
            while UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
                sleep(LOOK_AGAIN).await;
            }
        };
        if timeout(at_most, ended).await.is_err() {
            tracing::warn!(link = %self.name, "a WireGuard device does not end; it ends with its thread");
        }
    }
}

fn secret(key: &PrivateKey) -> x25519::StaticSecret {
    x25519::StaticSecret::from(*key.bytes())
}

fn peer(key: &PublicKey, place: &Place) -> Peer {
    let mut peer = Peer::new(x25519::PublicKey::from(key.0))
        .with_endpoint(place.endpoint)
        .with_allowed_ip(IpNetwork::from(std::net::IpAddr::V6(place.inner)));
    peer.keepalive = Some(super::super::KEEPALIVE_SECONDS);
    peer
}
