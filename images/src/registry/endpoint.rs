//! Which host serves a registry name, and whether it is spoken to in the clear. Pure.

use std::net::IpAddr;

/// The host behind `docker.io`; a fact of Docker Hub.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// What an operator says about registries.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// `host` or `host:port` of registries that are spoken to in plain HTTP. Those on loopback always are.
    pub insecure: Vec<String>,
}

/// Where requests for one registry go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub host: String,
    pub plain: bool,
    pub loopback: bool,
}

impl Endpoint {
    pub fn of(domain: &str, config: &RegistryConfig) -> Self {
        let host = if domain == "docker.io" { DOCKER_HUB_HOST } else { domain };
        let loopback = is_loopback(host);
        let plain = loopback || config.insecure.iter().any(|listed| listed == domain);
        Self { host: host.to_owned(), plain, loopback }
    }

    pub fn base(&self) -> String {
        let scheme = if self.plain { "http" } else { "https" };
        format!("{scheme}://{}", self.host)
    }

    /// Host and port to look up and connect to.
    pub fn address(&self) -> String {
        let has_port = match self.host.rsplit_once(']') {
            Some((_, after)) => after.starts_with(':'),
            None => self.host.contains(':'),
        };
        match (has_port, self.plain) {
            (true, _) => self.host.clone(),
            (false, true) => format!("{}:80", self.host),
            (false, false) => format!("{}:443", self.host),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_listed_registries_are_spoken_to_in_plain_http() {
        let config = RegistryConfig { insecure: ["reg.lan:5000".to_owned()].into() };
        let base = |domain| Endpoint::of(domain, &config).base();
        assert_eq!(base("127.0.0.1:5000"), "http://127.0.0.1:5000");
        assert_eq!(base("127.9.9.9"), "http://127.9.9.9");
        assert_eq!(base("localhost:5000"), "http://localhost:5000");
        assert_eq!(base("[::1]:5000"), "http://[::1]:5000");
        assert_eq!(base("reg.lan:5000"), "http://reg.lan:5000");
        assert_eq!(base("reg.lan"), "https://reg.lan");
        assert_eq!(base("docker.io"), "https://registry-1.docker.io");
        assert_eq!(base("localhost.evil.example"), "https://localhost.evil.example");
        assert_eq!(base("127.0.0.1.evil.example"), "https://127.0.0.1.evil.example");
    }

    #[test]
    fn the_address_has_the_port_of_the_scheme_unless_one_is_named() {
        let address = |domain| Endpoint::of(domain, &RegistryConfig::default()).address();
        assert_eq!(address("ghcr.io"), "ghcr.io:443");
        assert_eq!(address("[::1]"), "[::1]:80");
        assert_eq!(address("[::1]:5000"), "[::1]:5000");
    }
}
