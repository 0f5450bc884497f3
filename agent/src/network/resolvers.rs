//! Who is asked for foreign names: the host's resolvers, as its `resolv.conf` has them now.

use skep_netlb::dns::{Dns, Resolver, resolvers_in};
use std::path::PathBuf;

/// The host's `resolv.conf`, read again when asked.
#[derive(Debug)]
pub struct HostResolvers {
    path: PathBuf,
    /// As it was read last; it has a few lines.
    text: Option<String>,
    all_on_loopback: bool,
}

impl HostResolvers {
    pub fn new(path: PathBuf) -> Self {
        Self { path, text: None, all_on_loopback: false }
    }

    /// Tells the servers of the tasks if anything changed.
    pub fn refresh(&mut self, dns: &Dns) {
        // A host without the file has no resolvers.
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        if self.text.as_ref() == Some(&text) {
            return;
        }
        let resolvers = resolvers_in(&text, |link| nix::net::if_::if_nametoindex(link).ok());
        tracing::debug!(path = %self.path.display(), ?resolvers, "resolvers of the host");
        self.all_on_loopback = !resolvers.is_empty() && resolvers.iter().all(|resolver: &Resolver| resolver.address.ip().is_loopback());
        self.text = Some(text);
        dns.set_host_resolvers(resolvers);
    }

    /// Whether no resolver of the host can be reached from a task, as with systemd-resolved.
    pub fn are_all_on_loopback(&self) -> bool {
        self.all_on_loopback
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_netlb::dns::DnsLimits;

    #[test]
    fn a_host_s_own_resolver_is_out_of_a_task_s_reach() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let dns = Dns::new(DnsLimits::default());
        let mut resolvers = HostResolvers::new(path.clone());
        let mut after = |text: &str| {
            std::fs::write(&path, text).unwrap();
            resolvers.refresh(&dns);
            resolvers.are_all_on_loopback()
        };
        assert!(after("nameserver 127.0.0.53\n"));
        assert!(!after("nameserver 127.0.0.53\nnameserver 192.0.2.1\n"));
        assert!(!after(""));
    }
}
