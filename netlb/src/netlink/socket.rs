//! One netlink socket: send requests, read their acknowledgements; send a dump, read all of it.

use super::wire::{self, Writer};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

pub(crate) const ACK: u16 = libc::NLM_F_ACK as u16;
pub(crate) const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
pub(crate) const DUMP: u16 = libc::NLM_F_DUMP as u16;
pub(crate) const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub(crate) const EXCL: u16 = libc::NLM_F_EXCL as u16;
pub(crate) const REPLACE: u16 = libc::NLM_F_REPLACE as u16;

/// The kernel answers within the call; this only keeps a lost answer from hanging us for ever.
const ANSWER_WITHIN_SECONDS: i64 = 10;
/// `netlink(7)` recommends at least 8 KiB; the kernel fills up to 32 KiB per datagram of a dump.
const RECEIVE: usize = 64 * 1024;
/// A batch of some ten thousand elements takes half a megabyte and must fit the send buffer in one piece.
const SEND_BUFFER: usize = 8 << 20;

/// A netlink socket of one protocol, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Routing: links, addresses, routes.
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// Netfilter: nf_tables.
    pub(crate) fn netfilter() -> io::Result<Self> {
        let socket = Self::open(SockProtocol::NetlinkNetFilter)?;
        setsockopt(&socket.fd, sockopt::SndBufForce, &SEND_BUFFER)?;
        Ok(socket)
    }

    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_WITHIN_SECONDS))?;
        Ok(Self { fd, sequence: 0, buffer: Vec::new() })
    }

    /// A sequence number no message on this socket had before.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// The first of `count` such numbers in a row.
    pub(crate) fn take_sequences(&mut self, count: usize) -> u32 {
        let first = self.next_sequence();
        self.sequence = first.wrapping_add(u32::try_from(count).expect("a batch is small"));
        first
    }

    pub(crate) fn send(&mut self, out: &Writer) -> io::Result<()> {
        let sent = send(self.fd.as_raw_fd(), out.as_bytes(), MsgFlags::empty())?;
        if sent == out.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Reads one datagram and hands every message in it to `each` until that returns `true`: then all is read.
    pub(crate) fn receive(&mut self, mut each: impl FnMut(wire::Message<'_>) -> io::Result<bool>) -> io::Result<()> {
        self.buffer.resize(RECEIVE, 0);
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(nix::errno::Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                other => other?,
            };
            for message in wire::messages(&self.buffer[..length]) {
                if each(message)? {
                    return Ok(());
                }
            }
        }
    }

    /// Sends messages that all ask for an acknowledgement, numbered `first..first + count`, and returns one result each.
    pub(crate) fn acknowledged(&mut self, out: &Writer, first: u32, count: usize) -> io::Result<Vec<io::Result<()>>> {
        let mut results: Vec<Option<io::Result<()>>> = (0..count).map(|_| None).collect();
        if count == 0 {
            return Ok(Vec::new());
        }
        self.send(out)?;
        let mut missing = count;
        self.receive(|message| {
            let at = message.sequence.wrapping_sub(first) as usize;
            if i32::from(message.kind) == libc::NLMSG_ERROR
                && let Some(slot) = results.get_mut(at)
                && slot.is_none()
            {
                *slot = Some(outcome(message.body));
                missing -= 1;
            }
            Ok(missing == 0)
        })?;
        Ok(results.into_iter().map(|result| result.expect("none is missing")).collect())
    }

    /// Sends one dump request and calls `each` with every message of the answer.
    pub(crate) fn dump(&mut self, out: &Writer, sequence: u32, mut each: impl FnMut(wire::Message<'_>)) -> io::Result<()> {
        self.send(out)?;
        self.receive(|message| {
            if message.sequence != sequence {
                return Ok(false);
            }
            match i32::from(message.kind) {
                libc::NLMSG_DONE => Ok(true),
                libc::NLMSG_ERROR => outcome(message.body).map(|()| true),
                _ => {
                    each(message);
                    Ok(message.flags & libc::NLM_F_MULTI as u16 == 0)
                }
            }
        })
    }
}

/// What an NLMSG_ERROR message says: zero is the acknowledgement.
pub(crate) fn outcome(body: &[u8]) -> io::Result<()> {
    match wire::u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
