//! Changing links, addresses, routes, neighbours and rules (`rtnetlink(7)`).
//!
//! The messages are those of `netlink-packet-route` (see [`super::message`]); they go out here, many to a system call, on a
//! socket of the namespace they are for. `rtnetlink`'s own connections would be a task each, per namespace, and a system
//! call and a wake-up per message.

use super::message::{self, Body, VethEnd};
use super::socket::{ACK, REQUEST, Socket};
use super::wire;
use crate::plan::{Change, Vxlan};
use crate::wanted::{LanMode, Mac};
use netlink_packet_route::link::LinkHeader;
use nix::libc;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;

/// Steps per `send`: each takes below 100 bytes, and their answers must fit the receive buffer.
const STEPS_PER_SEND: usize = 256;
const USUAL_STEP: usize = 80;

/// Routing netlink in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct RouteSocket(pub(super) Socket);

/// What could not be done, and why.
pub(crate) type Failed = (Change, io::Error);

impl RouteSocket {
    pub(crate) fn open() -> io::Result<Self> {
        Socket::route().map(Self)
    }

    /// Sends one message and waits for its acknowledgement.
    fn request(&mut self, (body, flags): message::Asked) -> io::Result<()> {
        let sequence = self.0.next_sequence();
        let mut out = Vec::new();
        message::append(&mut out, body, REQUEST | ACK | flags, sequence);
        self.0.acknowledged(&out, sequence, 1)?.remove(0)
    }

    /// The index of a link, `None` if there is none of that name.
    pub(crate) fn link_index(&mut self, name: &str) -> io::Result<Option<u32>> {
        self.link(name, |message| Some(LinkHeader::parse(message.body).ok()?.index))
    }

    /// What `read` makes of the kernel's description of a link.
    pub(super) fn link<T>(&mut self, name: &str, read: impl Fn(wire::Message<'_>) -> Option<T>) -> io::Result<Option<T>> {
        let mut found = None;
        match self.answers(message::get_link(name), REQUEST, |message| found = read(message)) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// Sends a question and calls `each` with every message of the answer.
    pub(super) fn answers(&mut self, question: impl Into<Body>, flags: u16, each: impl FnMut(wire::Message<'_>)) -> io::Result<()> {
        let sequence = self.0.next_sequence();
        let mut out = Vec::new();
        message::append(&mut out, question, flags, sequence);
        self.0.dump(&out, sequence, each)
    }

    /// Makes a veth pair, the other end in the namespace `peer_in` and still down: the kernel refuses to bring an end up
    /// that has no other yet (ENOTCONN), and the other end is made first.
    pub(crate) fn create_veth(&mut self, here: &VethEnd<'_>, peer: &VethEnd<'_>, peer_in: BorrowedFd<'_>, mtu: u32) -> io::Result<()> {
        self.request(message::new_veth(here, peer, peer_in, mtu))
    }

    /// Makes a VXLAN device, up, in the namespace `place`. Its packets go by this socket's namespace: `EEXIST` if that has
    /// another one with the same id and port, wherever it is.
    pub(crate) fn create_vxlan(&mut self, name: &str, vxlan: &Vxlan, mac: Mac, mtu: u32, place: BorrowedFd<'_>) -> io::Result<()> {
        self.request(message::new_vxlan(name, vxlan, mac, mtu, place))
    }

    /// Makes a device on the link `parent` of this socket's namespace, down, in the namespace `place`.
    pub(crate) fn create_macvlan(
        &mut self,
        name: &str,
        parent: u32,
        mode: LanMode,
        mac: Option<Mac>,
        place: BorrowedFd<'_>,
    ) -> io::Result<()> {
        self.request(message::new_macvlan(name, parent, mode, mac, place))
    }

    /// Makes a WireGuard device, down, in the namespace of this socket.
    pub(crate) fn create_wireguard(&mut self, name: &str) -> io::Result<()> {
        self.request(message::new_wireguard(name))
    }

    /// Deletes a link and waits until it is gone (about 20 ms); one that is not there is no error.
    pub(crate) fn delete_link(&mut self, name: &str) -> io::Result<()> {
        match self.request(message::delete_link(name)) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Carries out the changes in order, many to a system call, and goes on after a failure.
    pub(crate) fn apply(&mut self, changes: &[Change]) -> Vec<Failed> {
        let mut failed = Vec::new();
        let mut indexes = BTreeMap::new();
        for part in changes.chunks(STEPS_PER_SEND) {
            let mut sent = Vec::with_capacity(part.len());
            for change in part {
                match change_link(change).map_or(Ok(0), |name| self.index_of(name, &mut indexes)) {
                    Ok(index) => sent.push((change, index)),
                    Err(error) if is_done(change, &error) => {}
                    Err(error) => failed.push((change.clone(), error)),
                }
            }
            let mut out = Vec::with_capacity(sent.len() * USUAL_STEP);
            let first = self.0.take_sequences(sent.len());
            for (sequence, (change, index)) in (first..).zip(&sent) {
                let (body, flags) = message::change(change, *index);
                message::append(&mut out, body, REQUEST | ACK | flags, sequence);
            }
            let sent: Vec<&Change> = sent.into_iter().map(|(change, _)| change).collect();
            match self.0.acknowledged(&out, first, sent.len()) {
                Ok(results) => {
                    let refused = sent.into_iter().zip(results).filter_map(|(change, result)| Some((change, result.err()?)));
                    failed.extend(refused.filter(|(c, e)| !is_done(c, e)).map(|(change, error)| (change.clone(), error)));
                }
                Err(error) => {
                    let kind = error.kind();
                    failed.extend(sent.into_iter().map(|change| (change.clone(), io::Error::from(kind))));
                }
            }
        }
        failed
    }

    fn index_of(&mut self, name: &str, known: &mut BTreeMap<String, u32>) -> io::Result<u32> {
        if let Some(index) = known.get(name) {
            return Ok(*index);
        }
        let index = self.link_index(name)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        known.insert(name.to_owned(), index);
        Ok(index)
    }
}

/// The link a change is about, if it is about one.
pub(crate) fn change_link(change: &Change) -> Option<&str> {
    match change {
        Change::RemoveLink(name) | Change::SetLink { name, .. } => Some(name),
        Change::RemoveAddress { link, .. } | Change::AddAddress { link, .. } => Some(link),
        Change::AddNeighbour(neighbour) | Change::RemoveNeighbour(neighbour) => Some(&neighbour.link),
        Change::AddForwarding(forwarding) | Change::RemoveForwarding(forwarding) => Some(&forwarding.link),
        // To remove it its number is enough.
        Change::AddNextHop(hop) => Some(&hop.link),
        Change::RemoveNextHop(_) => None,
        Change::AddRoute(route) | Change::RemoveRoute(route) => route.link(),
        Change::AddRule(_) | Change::RemoveRule(_) => None,
    }
}

/// Whether the error says that things are as they should be: it is there already, or gone already.
fn is_done(change: &Change, error: &io::Error) -> bool {
    let code = error.raw_os_error().unwrap_or(0);
    match change {
        Change::SetLink { .. } | Change::AddForwarding(_) | Change::AddNextHop(_) => false,
        Change::AddAddress { .. } | Change::AddNeighbour(_) | Change::AddRoute(_) | Change::AddRule(_) => code == libc::EEXIST,
        Change::RemoveLink(_)
        | Change::RemoveRule(_)
        | Change::RemoveRoute(_)
        | Change::RemoveNextHop(_)
        | Change::RemoveForwarding(_)
        | Change::RemoveNeighbour(_)
        | Change::RemoveAddress { .. } => [libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL].contains(&code),
    }
}
