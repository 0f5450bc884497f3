//! The kernel's WireGuard, over generic netlink (`include/uapi/linux/wireguard.h`; the numbers below are from there).

use super::backend::Tunnels;
use super::device::{Device, DeviceChange, Found, FoundPeer, Place};
use super::error::SecureError;
use super::key::{KEY_LENGTH, PrivateKey, PublicKey};
use crate::netlink::generic::{FIXED, Generic};
use crate::netlink::route::RouteSocket;
use crate::netlink::wire::{self, Writer};
use ipnet::IpNet;
use nix::libc;
use skep_failpoint::failpoint;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const FAMILY: &str = "wireguard";
const VERSION: u8 = 1;
/// `WG_CMD_*`
const GET: u8 = 0;
const SET: u8 = 1;
/// `WGDEVICE_A_*`
const NAME: u16 = 2;
const PRIVATE: u16 = 3;
const PUBLIC: u16 = 4;
const PORT: u16 = 6;
const PEERS: u16 = 8;
/// `WGPEER_A_*` and `WGPEER_F_*`
const PEER_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_HANDSHAKE: u16 = 6;
const PEER_ALLOWED: u16 = 9;
const REMOVE: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
/// `WGALLOWEDIP_A_*`
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_LENGTH: u16 = 3;
/// Steps per message: each takes below 200 bytes, and a list of them at most 64 KiB.
const STEPS_PER_MESSAGE: usize = 128;
/// Room for a message with a key, which must not be moved while it is written.
const IDENTITY: usize = 256;

/// See the module's description.
pub(super) struct Kernel {
    wireguard: Generic,
    route: RouteSocket,
}

impl Kernel {
    /// Whether the kernel has it, loading its module.
    pub(super) fn is_there() -> io::Result<()> {
        Generic::open(FAMILY, VERSION).map(drop)
    }

    pub(super) fn open() -> Result<Self, SecureError> {
        let failed = |source| SecureError::NoKernel { source };
        Ok(Self { wireguard: Generic::open(FAMILY, VERSION).map_err(failed)?, route: RouteSocket::open().map_err(failed)? })
    }
}

fn failed<'a>(link: &'a str, step: &'static str) -> impl Fn(io::Error) -> SecureError + 'a {
    move |source| SecureError::Device { link: link.to_owned(), step, source }
}

impl Tunnels for Kernel {
    fn read(&mut self, name: &str) -> Result<Option<Found>, SecureError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut found = Found::default();
        let ask = |out: &mut Writer| {
            out.text(NAME, name);
        };
        match self.wireguard.dump(GET, ask, |message| read(message.body, now, &mut found)) {
            // There is none, or a link of another kind.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EOPNOTSUPP)) => Ok(None),
            Err(error) => Err(failed(name, "read")(error)),
            Ok(()) => Ok(Some(found)),
        }
    }

    fn make(&mut self, device: &Device) -> Result<(), SecureError> {
        self.remove(&device.name)?;
        self.route.create_wireguard(&device.name).map_err(failed(&device.name, "make"))
    }

    fn change(&mut self, device: &Device, changes: &[DeviceChange]) -> Result<(), SecureError> {
        let name = &device.name;
        if changes.contains(&DeviceChange::Identity) {
            let identity = |out: &mut Writer| write_identity(out, name, &device.key, device.port);
            self.wireguard.request(SET, identity).map_err(|source| match source.raw_os_error() {
                Some(libc::EADDRINUSE) => SecureError::Port { link: name.clone(), port: device.port, source },
                _ => failed(name, "give its key to")(source),
            })?;
            failpoint!("netlb.secure.identity");
        }
        let peers: Vec<&DeviceChange> = changes.iter().filter(|change| **change != DeviceChange::Identity).collect();
        for part in peers.chunks(STEPS_PER_MESSAGE) {
            self.wireguard.request(SET, |out| write_peers(out, name, part)).map_err(failed(name, "tell the peers of"))?;
            failpoint!("netlb.secure.peers");
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), SecureError> {
        self.route.delete_link(name).map_err(failed(name, "remove"))
    }
}

fn write_identity(out: &mut Writer, name: &str, key: &PrivateKey, port: u16) {
    out.reserve(IDENTITY).text(NAME, name).attribute(PRIVATE, key.bytes()).attribute(PORT, &port.to_ne_bytes());
}

fn write_peers(out: &mut Writer, name: &str, changes: &[&DeviceChange]) {
    out.text(NAME, name).nest(PEERS, |out| {
        for change in changes {
            out.nest(0, |out| match change {
                DeviceChange::Identity => {}
                DeviceChange::RemovePeer(key) => {
                    out.attribute(PEER_KEY, &key.0).host_u32(PEER_FLAGS, REMOVE);
                }
                DeviceChange::SetPeer(key, place) => write_peer(out, key, place),
            });
        }
    });
}

fn write_peer(out: &mut Writer, key: &PublicKey, place: &Place) {
    let v6 = u16::try_from(libc::AF_INET6).expect("families are small");
    out.attribute(PEER_KEY, &key.0).host_u32(PEER_FLAGS, REPLACE_ALLOWED).attribute(PEER_ENDPOINT, &socket_address(place.endpoint));
    out.attribute(PEER_KEEPALIVE, &super::KEEPALIVE_SECONDS.to_ne_bytes());
    out.nest(PEER_ALLOWED, |out| {
        out.nest(0, |out| {
            out.attribute(ALLOWED_FAMILY, &v6.to_ne_bytes())
                .attribute(ALLOWED_ADDRESS, &place.inner.octets())
                .attribute(ALLOWED_LENGTH, &[128]);
        });
    });
}

/// `struct sockaddr_in` or `sockaddr_in6`: the family in host order, the port in network order.
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let family = |family: i32| u16::try_from(family).expect("families are small").to_ne_bytes();
    match address {
        SocketAddr::V4(v4) => [&family(libc::AF_INET)[..], &v4.port().to_be_bytes(), &v4.ip().octets(), &[0; 8]].concat(),
        SocketAddr::V6(v6) => {
            let (flow, scope) = (v6.flowinfo().to_be_bytes(), v6.scope_id().to_ne_bytes());
            [&family(libc::AF_INET6)[..], &v6.port().to_be_bytes(), &flow, &v6.ip().octets(), &scope].concat()
        }
    }
}

fn read_socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(wire::u16_at(bytes, 0)?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let address: IpAddr = match family {
        libc::AF_INET => <[u8; 4]>::try_from(bytes.get(4..8)?).ok()?.into(),
        libc::AF_INET6 => <[u8; 16]>::try_from(bytes.get(8..24)?).ok()?.into(),
        _ => return None,
    };
    Some((address, port).into())
}

/// Adds what one message of the answer says. A long list of peers comes in several.
fn read(body: &[u8], now: Duration, found: &mut Found) {
    for (kind, value) in wire::attributes(body, FIXED) {
        match kind {
            PUBLIC => found.key = key(value),
            PORT => found.port = wire::u16_at(value, 0).unwrap_or(0),
            PEERS => {
                for (_, peer) in wire::attributes(value, 0) {
                    read_peer(peer, now, found);
                }
            }
            _ => {}
        }
    }
}

fn read_peer(peer: &[u8], now: Duration, found: &mut Found) {
    let of = |kind| wire::attribute(peer, 0, kind);
    let Some(key) = of(PEER_KEY).and_then(key) else { return };
    // One whose addresses did not fit into a message goes on in the next.
    let entry: &mut FoundPeer = found.peers.entry(key).or_default();
    entry.endpoint = of(PEER_ENDPOINT).and_then(read_socket_address).or(entry.endpoint);
    entry.handshake = of(PEER_HANDSHAKE).and_then(|time| handshake(time, now)).or(entry.handshake);
    entry.allowed.extend(wire::attributes(of(PEER_ALLOWED).unwrap_or(&[]), 0).filter_map(|(_, address)| read_allowed(address)));
}

fn key(value: &[u8]) -> Option<PublicKey> {
    let bytes: [u8; KEY_LENGTH] = value.try_into().ok()?;
    Some(PublicKey(bytes))
}

/// `struct __kernel_timespec`: seconds and nanoseconds, 64 bits each, since 1970; 0 is never.
fn handshake(time: &[u8], now: Duration) -> Option<Duration> {
    let seconds = u64::from_ne_bytes(time.get(..8)?.try_into().ok()?);
    (seconds != 0).then(|| now.saturating_sub(Duration::from_secs(seconds)))
}

fn read_allowed(allowed: &[u8]) -> Option<IpNet> {
    let of = |kind| wire::attribute(allowed, 0, kind);
    let address: IpAddr = match i32::from(wire::u16_at(of(ALLOWED_FAMILY)?, 0)?) {
        libc::AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(of(ALLOWED_ADDRESS)?).ok()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(<[u8; 16]>::try_from(of(ALLOWED_ADDRESS)?).ok()?).into(),
        _ => return None,
    };
    IpNet::new(address, *of(ALLOWED_LENGTH)?.first()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel answers has the layout of what it is told, so the one is read as the other.
    fn told(write: impl FnOnce(&mut Writer)) -> Found {
        let mut out = Writer::default();
        out.begin(0, 0, 0).put(&[SET, VERSION, 0, 0]);
        write(&mut out);
        out.end();
        let mut found = Found::default();
        read(wire::messages(out.as_bytes()).next().unwrap().body, Duration::from_secs(100), &mut found);
        found
    }

    #[test]
    fn a_peer_has_an_endpoint_and_one_address() {
        for endpoint in ["198.18.0.2:51820", "[2001:db8::2]:51821"] {
            let place = Place { endpoint: endpoint.parse().unwrap(), inner: "fd4e::2".parse().unwrap() };
            let key = PublicKey([9; 32]);
            let found = told(|out| write_peers(out, "w0", &[&DeviceChange::SetPeer(key, place)]));
            let peer = &found.peers[&key];
            assert_eq!(peer.endpoint, Some(place.endpoint));
            assert_eq!(peer.allowed, ["fd4e::2/128".parse().unwrap()].into());
        }
    }

    #[test]
    fn the_private_half_is_sent_and_the_message_never_moved() {
        let key = PrivateKey::generate().unwrap();
        let mut out = Writer::default();
        out.begin(0, 0, 0).reserve(IDENTITY);
        let before = out.as_bytes().as_ptr();
        write_identity(&mut out, "swabcde0", &key, 51820);
        assert_eq!(out.as_bytes().as_ptr(), before);
        assert!(out.as_bytes().windows(32).any(|window| window == key.bytes()));
        out.wipe();
        assert!(out.as_bytes().is_empty());
    }

    #[test]
    fn a_handshake_that_never_was_is_none() {
        let time = |seconds: u64| [seconds.to_ne_bytes(), 7u64.to_ne_bytes()].concat();
        assert_eq!(handshake(&time(0), Duration::from_secs(100)), None);
        assert_eq!(handshake(&time(90), Duration::from_secs(100)), Some(Duration::from_secs(10)));
        assert_eq!(handshake(&[1], Duration::from_secs(100)), None);
    }

    #[test]
    fn a_peer_in_two_messages_is_one() {
        let peer = |last: u16| {
            let mut out = Writer::default();
            out.begin(0, 0, 0).attribute(PEER_KEY, &[9; 32]);
            let address = Ipv6Addr::new(0xfd4e, 0, 0, 0, 0, 0, 0, last).octets();
            out.nest(PEER_ALLOWED, |out| {
                out.nest(0, |out| {
                    out.attribute(ALLOWED_FAMILY, &10u16.to_ne_bytes())
                        .attribute(ALLOWED_ADDRESS, &address)
                        .attribute(ALLOWED_LENGTH, &[128]);
                });
            });
            out.end();
            out.as_bytes()[16..].to_vec()
        };
        let mut found = Found::default();
        read_peer(&peer(1), Duration::ZERO, &mut found);
        read_peer(&peer(2), Duration::ZERO, &mut found);
        assert_eq!(found.peers[&PublicKey([9; 32])].allowed.len(), 2);
    }
}
