//! One renewal: a new key, a new certificate, shown the one before (wire-behaviour 4.5).

use crate::certificate::error::CertificateError;
use crate::certificate::request::{Wish, ask_roots, request, unlock_key};
use crate::vault::{AdoptError, Vault};
use skep_ca::{BadIdentity, Connector, Identity, NodeKey, NodeRole, SecurityConfig};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// Managers asked in one try, one after the other (wire-behaviour 4.2, step 6).
const TRIES: usize = 5;
/// For one manager, including the wait for the CA.
const LIMIT: Duration = Duration::from_secs(30);

/// Renews once: asks the managers in order, saves and installs what comes.
pub async fn renew(security: &SecurityConfig, vault: &Vault, remotes: &[String]) -> Result<Arc<Identity>, CertificateError> {
    let mut last = CertificateError::NobodyKnown;
    for address in remotes.iter().take(TRIES) {
        let outcome = timeout(LIMIT, by_one(security, vault, address, remotes))
            .await
            .unwrap_or_else(|_| Err(CertificateError::TimedOut { address: address.clone(), step: "issue a certificate", limit: LIMIT }));
        match outcome {
            Err(error) if !error.is_final() => {
                tracing::debug!(manager = address, error = %crate::agent::chain(&error), "no renewal here");
                last = error;
            }
            outcome => return outcome,
        }
    }
    Err(last)
}

async fn by_one(security: &SecurityConfig, vault: &Vault, address: &str, others: &[String]) -> Result<Arc<Identity>, CertificateError> {
    let before = security.identity().ok_or(skep_ca::SecurityError::NoIdentity)?;
    let key = NodeKey::generate()?;
    let csr = key.request()?;
    let connector = Connector::node(security);
    let chain = request(&connector, address, others, &Wish { csr: &csr, token: "", availability: 0 }).await?;
    let now = SystemTime::now();
    let issued = |source| CertificateError::Issued { address: address.to_owned(), source };
    let identity = match Identity::new(key.clone(), &chain, before.roots().clone(), now) {
        // A manager trusts nobody here: its roots come with its own log.
        Err(BadIdentity::Untrusted(_)) if before.role() == NodeRole::Worker => {
            // Over a connection that holds under the present roots, unlike the original, which asks anybody: a bundle with the
            // right root and a wrong one would pass the check that follows.
            let roots = ask_roots(&connector, address).await?;
            let trusted = before.with_roots(roots.clone(), now).map_err(|source| issued(source.into()))?;
            vault.save_roots(trusted.roots()).await?;
            security.install_roots(roots.clone(), now)?;
            tracing::info!(roots = roots.digest_text(), "took new roots under which this node's own certificate holds");
            Identity::new(key, &chain, roots, now).map_err(issued)?
        }
        other => other.map_err(issued)?,
    };
    if identity.role() == NodeRole::Manager && before.role() == NodeRole::Worker {
        // Before anything of the manager is written: what it writes must be sealed from the first byte on.
        let probe = SecurityConfig::new(identity.clone())?;
        vault.hold(unlock_key(&Connector::node(&probe), address).await?).await;
    }
    vault.adopt(security, identity).await.map_err(|error| match error {
        AdoptError::File(error) => CertificateError::File(error),
        AdoptError::Security(error) => CertificateError::Security(error),
    })?;
    security.identity().ok_or_else(|| skep_ca::SecurityError::NoIdentity.into())
}
