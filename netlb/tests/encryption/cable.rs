//! Who listens on the cable: counters of what each host puts on it.

use crate::support::*;

/// Counts what goes from host to host, by UDP port.
pub struct Cable;

impl Cable {
    pub fn watch() -> Self {
        let ports = "$(ip -br link | grep -o '^p[0-9]*' | paste -s -d,)";
        sh(&format!(
            "nft add table netdev cable; nft delete table netdev cable; nft add table netdev cable
             nft add chain netdev cable sent \"{{ type filter hook ingress devices = {{ {ports} }} priority 0; }}\"
             nft add rule netdev cable sent udp dport 4789 counter comment clear
             nft add rule netdev cable sent udp dport 51820-51821 counter comment wireguard"
        ));
        Self
    }

    pub fn shows(&self) -> String {
        sh("nft list table netdev cable")
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
