//! Ports that every node answers.

use super::ranges::Serial;
use skep_types::{Protocol, ServiceId};
use std::collections::HashMap;

/// Ports for services that do not name one (`SK/manager/allocator/portallocator.go`).
const FIRST_DYNAMIC: u128 = 30_000;
const LAST_DYNAMIC: u128 = 32_767;

#[derive(Debug)]
pub(crate) struct Ports {
    holders: HashMap<(Protocol, u16), ServiceId>,
    dynamic: HashMap<Protocol, Serial>,
}

impl Default for Ports {
    fn default() -> Self {
        let dynamic = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| (protocol, Serial::new(FIRST_DYNAMIC, LAST_DYNAMIC)));
        Self { holders: HashMap::new(), dynamic: dynamic.into() }
    }
}

impl Ports {
    fn serial(&mut self, protocol: Protocol) -> &mut Serial {
        self.dynamic.get_mut(&protocol).expect("every protocol has its range")
    }

    pub fn holder(&self, protocol: Protocol, port: u16) -> Option<&ServiceId> {
        self.holders.get(&(protocol, port))
    }

    pub fn claim(&mut self, protocol: Protocol, port: u16, holder: &ServiceId) {
        self.serial(protocol).claim(u128::from(port));
        self.holders.insert((protocol, port), holder.clone());
    }

    pub fn take(&mut self, protocol: Protocol, holder: &ServiceId) -> Option<u16> {
        let port = self.serial(protocol).take().and_then(|port| u16::try_from(port).ok())?;
        self.holders.insert((protocol, port), holder.clone());
        Some(port)
    }

    pub fn release(&mut self, protocol: Protocol, port: u16) {
        self.serial(protocol).release(u128::from(port));
        self.holders.remove(&(protocol, port));
    }

    pub fn cancel(&mut self, protocol: Protocol, port: u16) {
        self.serial(protocol).cancel(u128::from(port));
        self.holders.remove(&(protocol, port));
    }

    pub fn seek_end(&mut self) {
        self.dynamic.values_mut().for_each(Serial::seek_end);
    }
}
