//! Certificates of the cluster that are no node's: those with which people reach the Docker API over TCP, and the one that it shows
//! them.
//!
//! A client's is good for clients only, the server's for servers only, and each has a unit of its own, which no other listener of
//! the cluster takes (see [`crate::PeerIdentity::of_chain`]). A client's common name has a colon in it, which no node's id can have.

use crate::root::{CaError, Issued, MANAGER_NAME, MIN_LIFETIME, ROOT_NAME, RootCa, WORKER_NAME};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, SanType};
use rustls::pki_types::CertificateDer;
use skep_types::ClusterId;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Organisational unit of a client of the Docker API.
pub const CLIENT_UNIT: &str = "skep-client";
/// Organisational unit of the certificate that the Docker API shows.
pub const SERVER_UNIT: &str = "skep-docker";

/// How long a client's certificate lives unless asked otherwise.
pub const CLIENT_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// The longest: there is no way to take one back but another root.
pub const LONGEST_CLIENT_LIFETIME: Duration = Duration::from_secs(366 * 86_400);

const CLIENT_PREFIX: &str = "client:";
const LONGEST_NAME: usize = 48;
/// Names and addresses of one server.
const MOST_NAMES: usize = 64;

/// Why there is no certificate by this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadGuest {
    #[error("{0:?} is no name for a client; give 1 to {LONGEST_NAME} letters, digits, '.', '_', '-' or '@'")]
    Client(String),
    #[error("{0:?} is neither an IP address nor a host name; host names are letters, digits, '-' and '.'")]
    Server(String),
    #[error("{0:?} is what nodes of the cluster are called; it cannot be a server's name")]
    Reserved(String),
    #[error("a server needs 1 to {MOST_NAMES} names, not {0}")]
    Count(usize),
    #[error(
        "a client's certificate lives {} hour to {} days; choose a time between",
        MIN_LIFETIME.as_secs() / 3600,
        LONGEST_CLIENT_LIFETIME.as_secs() / 86_400
    )]
    Lifetime,
}

/// Whom a certificate is for that is no node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guest {
    /// A person or program that uses the Docker API.
    Client { name: String },
    /// The Docker API under these host names and IP addresses.
    Server { names: Vec<String> },
}

impl Guest {
    /// # Errors
    /// If the name has characters that could be taken for something else.
    pub fn client(name: &str) -> Result<Self, BadGuest> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
        match (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(good) {
            true => Ok(Self::Client { name: name.to_owned() }),
            false => Err(BadGuest::Client(name.to_owned())),
        }
    }

    /// # Errors
    /// Names the one that is none, or that belongs to nodes.
    pub fn server(names: &[String]) -> Result<Self, BadGuest> {
        if !(1..=MOST_NAMES).contains(&names.len()) {
            return Err(BadGuest::Count(names.len()));
        }
        names.iter().try_for_each(|name| check_server_name(name))?;
        Ok(Self::Server { names: names.to_vec() })
    }

    fn unit(&self) -> &'static str {
        match self {
            Self::Client { .. } => CLIENT_UNIT,
            Self::Server { .. } => SERVER_UNIT,
        }
    }

    fn describe(&self, params: &mut CertificateParams) -> Result<(), CaError> {
        match self {
            Self::Client { name } => {
                params.distinguished_name.push(DnType::CommonName, format!("{CLIENT_PREFIX}{name}"));
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
            Self::Server { names } => {
                params.distinguished_name.push(DnType::CommonName, SERVER_UNIT);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                let san = |name: &String| match name.parse::<IpAddr>() {
                    Ok(ip) => Ok(SanType::IpAddress(ip)),
                    Err(_) => name.as_str().try_into().map(SanType::DnsName),
                };
                params.subject_alt_names =
                    names.iter().map(san).collect::<Result<_, _>>().map_err(|error: rcgen::Error| CaError::Sign(error.to_string()))?;
            }
        }
        Ok(())
    }
}

/// Whether this can be a name of the Docker API's server: an IP address or a host name, and none that nodes have.
///
/// # Errors
/// Says which of these it is not.
pub fn check_server_name(name: &str) -> Result<(), BadGuest> {
    if name.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    if [MANAGER_NAME, WORKER_NAME, ROOT_NAME].iter().any(|taken| name.eq_ignore_ascii_case(taken)) {
        return Err(BadGuest::Reserved(name.to_owned()));
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // What ends in a number is read as an address by some.
    let is_number = |label: &str| label.bytes().all(|c| c.is_ascii_digit());
    let is_name = name.len() <= 253 && name.split('.').all(label) && !name.rsplit('.').next().is_some_and(is_number);
    if is_name { Ok(()) } else { Err(BadGuest::Server(name.to_owned())) }
}

/// How long a client's certificate shall live; `None`: as usual.
///
/// # Errors
/// If that is too short or too long.
pub fn client_lifetime(asked: Option<Duration>) -> Result<Duration, BadGuest> {
    let asked = asked.unwrap_or(CLIENT_LIFETIME);
    if (MIN_LIFETIME..=LONGEST_CLIENT_LIFETIME).contains(&asked) { Ok(asked) } else { Err(BadGuest::Lifetime) }
}

impl RootCa {
    /// Signs a certificate that is no node's. Of `request` only the public key is taken; dates as for [`Self::issue`].
    ///
    /// # Errors
    /// If the request is refused, or signing fails.
    pub fn issue_guest(
        &self,
        request: &[u8],
        guest: &Guest,
        cluster: &ClusterId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let mut params = self.leaf(cluster, guest.unit());
        guest.describe(&mut params)?;
        self.sign_leaf(params, request, lifetime, now)
    }
}

/// The name of a client in a chain of the cluster's; `None` if the leaf is not a client's.
pub(crate) fn client_of_chain(chain: &[CertificateDer<'_>]) -> Option<GuestIdentity> {
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    let one = |mut all: Vec<&str>| (all.len() == 1).then(|| all.remove(0).to_owned());
    let subject = leaf.subject();
    let unit = one(subject.iter_organizational_unit().filter_map(|unit| unit.as_str().ok()).collect())?;
    let cluster = one(subject.iter_organization().filter_map(|name| name.as_str().ok()).collect())?;
    let common = one(subject.iter_common_name().filter_map(|name| name.as_str().ok()).collect())?;
    let name = common.strip_prefix(CLIENT_PREFIX).filter(|_| unit == CLIENT_UNIT)?;
    let seconds = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0);
    Some(GuestIdentity {
        name: name.to_owned(),
        cluster_id: cluster.parse().ok()?,
        not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
    })
}

/// A client of the Docker API, as its verified certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestIdentity {
    pub name: String,
    pub cluster_id: ClusterId,
    pub not_after: SystemTime,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BadSubject, Identity, NodeKey, PeerIdentity};
    use rustls_pki_types::pem::PemObject as _;

    fn issue(root: &RootCa, guest: &Guest) -> (NodeKey, Issued) {
        let key = NodeKey::generate().unwrap();
        let request = key.request().unwrap();
        let issued = root.issue_guest(request.as_bytes(), guest, &ClusterId::for_test(2), CLIENT_LIFETIME, SystemTime::now()).unwrap();
        (key, issued)
    }

    #[test]
    fn a_client_is_a_client_and_nothing_that_a_node_is() {
        let root = RootCa::generate(SystemTime::now()).unwrap();
        let (key, issued) = issue(&root, &Guest::client("ann@laptop").unwrap());
        root.bundle().verify_pem(&issued.chain_pem, SystemTime::now()).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap()];
        let client = client_of_chain(&chain).unwrap();
        assert_eq!((client.name.as_str(), client.cluster_id), ("ann@laptop", ClusterId::for_test(2)));
        assert_eq!(PeerIdentity::of_chain(&chain).unwrap_err(), BadSubject::Guest(CLIENT_UNIT.into()));
        assert!(Identity::new(key, &issued.chain_pem, root.bundle().clone(), SystemTime::now()).is_err());
    }

    #[test]
    fn a_server_is_no_client() {
        let root = RootCa::generate(SystemTime::now()).unwrap();
        let (_, issued) = issue(&root, &Guest::server(&["box.example".into(), "192.0.2.7".into(), "::1".into()]).unwrap());
        let chain = vec![CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap()];
        assert_eq!(client_of_chain(&chain), None);
        assert!(PeerIdentity::of_chain(&chain).is_err());
        // The verifier of clients wants a client's certificate.
        assert!(root.bundle().verify_pem(&issued.chain_pem, SystemTime::now()).is_err());
    }

    #[test]
    fn names_that_mean_something_else_are_refused() {
        for name in ["", "a:b", "a b", "a\0", "ä", &"x".repeat(49)] {
            assert!(Guest::client(name).is_err(), "{name:?}");
        }
        for name in ["swarm-manager", "Swarm-Manager", "swarm-worker", "swarm-ca"] {
            assert_eq!(check_server_name(name), Err(BadGuest::Reserved(name.into())));
        }
        for name in ["", "*.example", "a..b", "-a", "a-", "a_b", "1.2.3", "a.1", "a:1", "[::1]", "a."] {
            assert!(check_server_name(name).is_err(), "{name:?}");
        }
        for name in ["box", "box.example", "1a", "192.0.2.1", "fe80::1"] {
            assert_eq!(check_server_name(name), Ok(()), "{name:?}");
        }
        assert_eq!(Guest::server(&[]), Err(BadGuest::Count(0)));
        let day = Duration::from_secs(86_400);
        assert_eq!(client_lifetime(None), Ok(CLIENT_LIFETIME));
        assert_eq!(client_lifetime(Some(day)), Ok(day));
        assert_eq!(client_lifetime(Some(Duration::from_secs(60))), Err(BadGuest::Lifetime));
        assert_eq!(client_lifetime(Some(day * 400)), Err(BadGuest::Lifetime));
    }
}
