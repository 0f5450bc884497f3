//! The one crypto provider: ring.

use rustls::crypto::{CryptoProvider, ring};
use std::sync::{Arc, LazyLock};

/// Makes ring the process's default provider. Call it first in `main`; more calls do nothing.
///
/// Our own configurations name their provider and do not need it. Libraries that build a rustls configuration with the
/// process's default would otherwise panic as soon as a second provider is linked in.
pub fn install_crypto_provider() {
    // An error means that somebody was first, which is as good.
    let _ = ring::default_provider().install_default();
}

/// ring with all its suites: TLS 1.3, and for older SwarmKit peers TLS 1.2 with ECDHE and AES-GCM or ChaCha20
/// (spec wire-behaviour 2.1).
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
    PROVIDER.clone()
}
