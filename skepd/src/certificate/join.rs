//! The first certificate, by a join token (wire-behaviour 4.2).

use crate::certificate::error::CertificateError;
use crate::certificate::request::{Wish, download_roots, request, unlock_key};
use skep_ca::{Connector, Identity, JoinToken, NodeKey, NodeRole, RootBundle, SecurityConfig, UnlockKey};
use std::time::{Duration, SystemTime};
use tokio::time::{sleep, timeout};

/// Rounds over all addresses, and the pause between them.
const ROUNDS: usize = 5;
const PAUSE: Duration = Duration::from_secs(2);
/// How often, and with which pause, a new manager asks what it is to be locked with.
const KEY_TRIES: usize = 20;
const KEY_PAUSE: Duration = Duration::from_millis(500);
/// For the whole; whoever typed the command waits for it.
const LIMIT: Duration = Duration::from_secs(60);

/// What a node is invited with.
pub struct Invitation {
    pub token: JoinToken,
    /// `host:port`, at least one.
    pub remotes: Vec<String>,
    /// `NodeSpec.Availability`
    pub availability: i32,
}

/// What a node that was let in has.
#[derive(Debug)]
pub struct Admission {
    pub identity: Identity,
    /// On managers: what they are locked with.
    pub unlock: Option<UnlockKey>,
}

/// Gets the first certificate. Nothing is written.
///
/// The roots are checked against the token before its secret is sent to anybody. One manager after the other is asked, five
/// times round.
///
/// # Errors
/// The first that no repetition would cure, else the last.
pub async fn join(invitation: &Invitation) -> Result<Admission, CertificateError> {
    if invitation.token.fips() {
        return Err(CertificateError::Fips);
    }
    check_addresses(&invitation.remotes)?;
    let key = NodeKey::generate()?;
    let mut last = CertificateError::NobodyKnown;
    let all = async {
        for round in 0..ROUNDS {
            if round > 0 {
                sleep(PAUSE).await;
            }
            for address in &invitation.remotes {
                match by_one(invitation, address, &key).await {
                    Err(error) if !error.is_final() => {
                        tracing::warn!(manager = address, error = %crate::agent::chain(&error), "no certificate yet");
                        last = error;
                    }
                    outcome => return Some(outcome),
                }
            }
        }
        None
    };
    let outcome = timeout(LIMIT, all).await;
    match outcome {
        Ok(Some(outcome)) => outcome,
        Ok(None) => Err(last),
        Err(_) => Err(CertificateError::GaveUp { limit: LIMIT, last: crate::agent::chain(&last) }),
    }
}

/// Errors that could be seen without asking anybody.
fn check_addresses(remotes: &[String]) -> Result<(), CertificateError> {
    if remotes.is_empty() {
        return Err(CertificateError::Address { address: String::new() });
    }
    let good = |address: &str| {
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        matches!(port, Some(Ok(port)) if port != 0)
    };
    match remotes.iter().find(|address| !good(address)) {
        Some(address) => Err(CertificateError::Address { address: address.clone() }),
        None => Ok(()),
    }
}

async fn by_one(invitation: &Invitation, address: &str, key: &NodeKey) -> Result<Admission, CertificateError> {
    let roots = download_roots(address).await?;
    if !invitation.token.pins(&roots) {
        return Err(CertificateError::Digest { address: address.to_owned() });
    }
    let connector = Connector::bootstrap(&roots)?;
    let csr = key.request()?;
    let token = invitation.token.text();
    let wish = Wish { csr: &csr, token: token.expose(), availability: invitation.availability };
    let chain = request(&connector, address, &invitation.remotes, &wish).await?;
    let identity = issued(key, &chain, roots, address)?;
    let unlock = match identity.role() {
        NodeRole::Manager => first_unlock_key(&identity, address).await?,
        NodeRole::Worker => None,
    };
    Ok(Admission { identity, unlock })
}

fn issued(key: &NodeKey, chain: &str, roots: RootBundle, address: &str) -> Result<Identity, CertificateError> {
    let identity = Identity::new(key.clone(), chain, roots, SystemTime::now());
    identity.map_err(|source| CertificateError::Issued { address: address.to_owned(), source })
}

/// The manager asked may not have heard of the new node yet. The node exists by now: to begin anew would make another one.
async fn first_unlock_key(identity: &Identity, address: &str) -> Result<Option<UnlockKey>, CertificateError> {
    let connector = Connector::node(&SecurityConfig::new(identity.clone())?);
    for _ in 1..KEY_TRIES {
        match unlock_key(&connector, address).await {
            Err(error) if !error.is_final() => tracing::debug!(error = %crate::agent::chain(&error), "no unlock key yet"),
            outcome => return outcome,
        }
        sleep(KEY_PAUSE).await;
    }
    unlock_key(&connector, address).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_ca::RootCa;

    fn invitation(remotes: &[&str]) -> Invitation {
        let root = RootCa::generate(SystemTime::now()).unwrap();
        let remotes = remotes.iter().map(|remote| (*remote).to_owned()).collect();
        Invitation { token: JoinToken::new(root.bundle(), [7; 16]), remotes, availability: 0 }
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_one_is_said_at_once() {
        for wrong in ["", "host", "host:", ":2377", "10.0.0.1:0", "host:99999"] {
            let refused = join(&invitation(&["10.0.0.1:2377", wrong])).await.unwrap_err();
            assert!(matches!(&refused, CertificateError::Address { address } if address == wrong), "{wrong}: {refused}");
        }
        assert!(matches!(join(&invitation(&[])).await, Err(CertificateError::Address { .. })));
        assert!(check_addresses(&["[fd00::1]:2377".into(), "manager.example:2377".into()]).is_ok());
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_names_the_address() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let refused = download_roots(&free).await.unwrap_err();
        assert!(!refused.is_final() && refused.to_string().contains(&free), "{refused}");
    }

    #[tokio::test]
    async fn a_port_that_speaks_something_else_is_no_manager() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-OpenSSH_9.2\r\n").await;
            }
        });
        let refused = download_roots(&address).await.unwrap_err();
        assert!(matches!(refused, CertificateError::NotAManager { .. }), "{refused}");
        serving.abort();
    }
}
