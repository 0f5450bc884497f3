//! One netlink socket: send requests, read their acknowledgements; send a dump, read all of it.

use super::wire;
pub(crate) use netlink_packet_core::{
    NLM_F_ACK as ACK, NLM_F_CREATE as CREATE, NLM_F_DUMP as DUMP, NLM_F_EXCL as EXCL, NLM_F_MULTIPART as MULTIPART,
    NLM_F_REPLACE as REPLACE, NLM_F_REQUEST as REQUEST,
};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use std::cell::RefCell;
use std::io;
use std::os::fd::AsRawFd;

/// The kernel answers within the call; this only keeps a lost answer from hanging us for ever.
const ANSWER_WITHIN_SECONDS: i64 = 10;
/// The kernel fills at most 32 KiB per datagram of a dump; an acknowledgement takes 36 bytes.
const RECEIVE: usize = 32 * 1024;
/// A batch of some ten thousand elements takes half a megabyte and must fit the send buffer in one piece.
const SEND_BUFFER: usize = 8 << 20;

thread_local! {
    /// One for all sockets of a thread: a node with hundreds of networks has as many sockets, read one at a time.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; RECEIVE]);
}

/// A netlink socket of one protocol, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: netlink_sys::Socket,
    sequence: u32,
}

impl Socket {
    /// Routing: links, addresses, routes.
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(NETLINK_ROUTE)
    }

    /// Netfilter: nf_tables.
    pub(crate) fn netfilter() -> io::Result<Self> {
        let socket = Self::open(NETLINK_NETFILTER)?;
        setsockopt(&socket.fd, sockopt::SndBufForce, &SEND_BUFFER)?;
        Ok(socket)
    }

    /// Generic: see [`super::generic`].
    pub(super) fn generic() -> io::Result<Self> {
        Self::open(NETLINK_GENERIC)
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut fd = netlink_sys::Socket::new(protocol)?;
        fd.bind_auto()?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_WITHIN_SECONDS))?;
        // Answers without a copy of what they answer, which may be longer than our buffer.
        fd.set_cap_ack(true)?;
        // Dumps are filtered by what the request says, and a request that cannot be understood is refused.
        fd.set_netlink_get_strict_chk(true)?;
        Ok(Self { fd, sequence: 0 })
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

    pub(crate) fn send(&mut self, out: &[u8]) -> io::Result<()> {
        let sent = self.fd.send(out, 0)?;
        if sent == out.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Reads one datagram and hands every message in it to `each` until that returns `true`: then all is read.
    pub(crate) fn receive(&self, mut each: impl FnMut(wire::Message<'_>) -> io::Result<bool>) -> io::Result<()> {
        BUFFER.with_borrow_mut(|buffer| {
            loop {
                let length = match recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty()) {
                    Err(Errno::EINTR) => continue,
                    Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                    other => other?,
                };
                for message in wire::messages(&buffer[..length]) {
                    if each(message)? {
                        return Ok(());
                    }
                }
            }
        })
    }

    /// Sends messages that all ask for an acknowledgement, numbered `first..first + count`, and returns one result each.
    pub(crate) fn acknowledged(&mut self, out: &[u8], first: u32, count: usize) -> io::Result<Vec<io::Result<()>>> {
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
    pub(crate) fn dump(&mut self, out: &[u8], sequence: u32, mut each: impl FnMut(wire::Message<'_>)) -> io::Result<()> {
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
                    Ok(message.flags & MULTIPART == 0)
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
