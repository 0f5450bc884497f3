//! The TUN device as `gotatun` wants it: packets in, packets out.

use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use std::io;
use std::iter;
use std::sync::Arc;
use tokio_tun::{Tun, TunBuilder};

/// A TUN device, for as long as any clone of it lives.
#[derive(Clone)]
pub(super) struct Wire {
    tun: Arc<Tun>,
    mtu: u16,
}

impl Wire {
    /// Makes it, down, in the network namespace of the calling thread. Must be called within a runtime.
    pub(super) fn make(name: &str, mtu: u32) -> io::Result<Self> {
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        let tun = TunBuilder::new().name(name).build().map_err(io::Error::other)?.pop().ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { tun: Arc::new(tun), mtu })
    }
}

impl IpSend for Wire {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        match self.tun.send(&packet.into_bytes()).await {
            // It is down: being set up, or taken away. The packet is lost as on a wire that is not plugged in.
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => Ok(()),
            other => other.map(drop),
        }
    }
}

impl IpRecv for Wire {
    async fn recv<'a>(&'a mut self, pool: &mut PacketBufPool) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        loop {
            let mut packet = pool.get();
            let length = self.tun.recv(&mut packet).await?;
            packet.truncate(length);
            // What is no IP is for nobody; there may be some, for whoever may open raw sockets may write it.
            if let Ok(packet) = packet.try_into_ip() {
                return Ok(iter::once(packet));
            }
        }
    }

    fn mtu(&self) -> MtuWatcher {
        MtuWatcher::new(self.mtu)
    }
}
