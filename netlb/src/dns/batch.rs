//! Datagrams by the dozen: a system call for those that wait, and one for what is answered (`recvmmsg(2)`, `sendmmsg(2)`).
//!
//! What they are read into belongs to the thread: servers read without waiting, one after the other, so a thousand of them need no
//! more than one.

use super::query::OUR_PAYLOAD;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};
use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Datagrams of one call.
const MOST: usize = 16;
const LARGEST: usize = OUR_PAYLOAD as usize;

thread_local! {
    static SPACE: RefCell<Space> = RefCell::new(Space::new());
}

/// What the kernel fills.
struct Space {
    bytes: Vec<u8>,
    came: MultiHeaders<SockaddrIn>,
    /// Another one: the kernel's view of it points to the addresses that were sent to.
    sent: MultiHeaders<SockaddrIn>,
}

impl Space {
    fn new() -> Self {
        // Pages that nothing was read into take no memory.
        Self { bytes: vec![0; MOST * LARGEST], came: MultiHeaders::preallocate(MOST, None), sent: MultiHeaders::preallocate(MOST, None) }
    }
}

/// An answer on its way.
pub(super) type Reply = (Vec<u8>, SocketAddrV4);

/// Reads what waits, at most so many, and sends what `each` answers. How many were read; `WouldBlock` if there were none.
pub(super) fn exchange(socket: &UdpSocket, most: u32, mut each: impl FnMut(&[u8], SocketAddrV4) -> Option<Vec<u8>>) -> io::Result<u32> {
    SPACE.with_borrow_mut(|Space { bytes, came, sent }| {
        let most = usize::try_from(most).unwrap_or(MOST).clamp(1, MOST);
        let read: Vec<(usize, Option<SockaddrIn>)> = {
            let mut places: Vec<[IoSliceMut<'_>; 1]> =
                bytes.chunks_exact_mut(LARGEST).take(most).map(|place| [IoSliceMut::new(place)]).collect();
            let read = socket.try_io(Interest::READABLE, || {
                let all = recvmmsg(socket.as_raw_fd(), came, places.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
                Ok(all.map(|one| (one.bytes, one.address)).collect())
            });
            read?
        };
        let mut replies: Vec<Reply> = Vec::with_capacity(read.len());
        for ((length, client), place) in read.iter().zip(bytes.chunks_exact(LARGEST)) {
            let Some(client) = client.map(|client| SocketAddrV4::new(client.ip(), client.port())) else { continue };
            replies.extend(each(&place[..(*length).min(LARGEST)], client).map(|bytes| (bytes, client)));
        }
        send(socket, sent, &replies);
        Ok(u32::try_from(read.len()).unwrap_or(u32::MAX))
    })
}

/// A client that is gone, or takes nothing, is no matter of ours; it will ask again.
fn send(socket: &UdpSocket, headers: &mut MultiHeaders<SockaddrIn>, mut replies: &[Reply]) {
    while let [(bytes, client), rest @ ..] = replies {
        if rest.is_empty() {
            drop(socket.try_send_to(bytes, SocketAddr::V4(*client)));
            return;
        }
        let parts: Vec<[IoSlice<'_>; 1]> = replies.iter().map(|(bytes, _)| [IoSlice::new(bytes)]).collect();
        let clients: Vec<Option<SockaddrIn>> = replies.iter().map(|(_, client)| Some(SockaddrIn::from(*client))).collect();
        let sent = socket.try_io(Interest::WRITABLE, || {
            Ok(sendmmsg(socket.as_raw_fd(), headers, parts.iter(), clients, [], MsgFlags::MSG_DONTWAIT)?.count())
        });
        replies = match sent {
            Ok(count) => replies.get(count.max(1)..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // It is about the first one: the others are no matter of its client's.
            Err(_) => rest,
        };
    }
}
