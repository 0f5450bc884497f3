//! Generic netlink: families of messages that the kernel numbers when they are loaded (`include/uapi/linux/genetlink.h`).

use super::socket::{ACK, DUMP, REQUEST, Socket};
use super::wire::{self, Writer};
use std::io;

/// `GENL_ID_CTRL`, the family that knows the others.
const CONTROLLER: u16 = 16;
/// `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID`, `CTRL_ATTR_FAMILY_NAME`
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `struct genlmsghdr`: command, version, two bytes reserved
pub(crate) const FIXED: usize = 4;

/// One family of messages, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Generic {
    socket: Socket,
    family: u16,
    version: u8,
}

impl Generic {
    /// Asks the kernel for the family, which loads its module if there is one; `NotFound` if the kernel has none.
    pub(crate) fn open(family: &str, version: u8) -> io::Result<Self> {
        let mut socket = Socket::generic()?;
        let sequence = socket.next_sequence();
        let mut out = Writer::default();
        out.begin(CONTROLLER, REQUEST, sequence).put(&[GET_FAMILY, 1, 0, 0]).text(FAMILY_NAME, family);
        out.end();
        let mut id = None;
        socket.dump(out.as_bytes(), sequence, |message| {
            id = wire::attribute(message.body, FIXED, FAMILY_ID).and_then(|value| wire::u16_at(value, 0));
        })?;
        let family = id.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { socket, family, version })
    }

    /// Sends one command and waits for its acknowledgement. What was sent is wiped: it may hold a key.
    pub(crate) fn request(&mut self, command: u8, body: impl FnOnce(&mut Writer)) -> io::Result<()> {
        let sequence = self.socket.next_sequence();
        let mut out = self.message(command, REQUEST | ACK, sequence, body);
        let answer = self.socket.acknowledged(out.as_bytes(), sequence, 1);
        out.wipe();
        answer?.remove(0)
    }

    /// Sends one question and calls `each` with every message of the answer; its attributes begin after [`FIXED`] bytes.
    pub(crate) fn dump(&mut self, command: u8, body: impl FnOnce(&mut Writer), each: impl FnMut(wire::Message<'_>)) -> io::Result<()> {
        let sequence = self.socket.next_sequence();
        let out = self.message(command, REQUEST | DUMP, sequence, body);
        self.socket.dump(out.as_bytes(), sequence, each)
    }

    fn message(&self, command: u8, flags: u16, sequence: u32, body: impl FnOnce(&mut Writer)) -> Writer {
        let mut out = Writer::default();
        out.begin(self.family, flags, sequence).put(&[command, self.version, 0, 0]);
        body(&mut out);
        out.end();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_every_kernel_has_is_found_and_one_that_none_has_is_not() {
        let family = Generic::open("nlctrl", 1).unwrap();
        assert_eq!(family.family, CONTROLLER);
        assert_eq!(Generic::open("skep-none", 1).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
