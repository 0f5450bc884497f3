//! Who listens on the cable: counters of the bridge that joins the hosts.

use crate::support::*;

/// Counts what goes from host to host, by UDP port.
pub struct Cable;

impl Cable {
    pub fn watch() -> Self {
        sh("nft add table bridge cable; nft delete table bridge cable; nft add table bridge cable
            nft add chain bridge cable pass '{ type filter hook forward priority 0; }'
            nft add rule bridge cable pass udp dport 4789 counter comment clear
            nft add rule bridge cable pass udp dport 51820-51821 counter comment wireguard");
        Self
    }

    pub fn shows(&self) -> String {
        sh("nft list table bridge cable")
    }

    pub fn reset(&self) {
        Self::watch();
    }

    /// VXLAN packets.
    pub fn clear(&self) -> u64 {
        self.count("clear")
    }

    pub fn wireguard(&self) -> u64 {
        self.count("wireguard")
    }

    fn count(&self, what: &str) -> u64 {
        let shown = self.shows();
        let line = shown.lines().find(|line| line.contains(&format!("\"{what}\""))).unwrap();
        let after = line.split("packets ").nth(1).unwrap();
        after.split(' ').next().unwrap().parse().unwrap()
    }
}
