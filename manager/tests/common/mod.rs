//! What tests with real managers share: the authority of a cluster, a manager that serves, and who talks to it.

mod authority;
mod client;
mod dice;
mod serving;

pub use self::authority::Authority;
pub use self::client::{dial, dial_local, enrol, eventually};
pub use self::dice::Dice;
pub use self::serving::{Place, Serving};

use skep_store::{StoreConfig, Timing};
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait for anything; far above what is needed on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A store whose leader is not lost to a machine or a disk that stands still for some seconds: a test that is not about elections has none.
pub fn steady(dir: PathBuf) -> StoreConfig {
    let beat = Duration::from_millis(100);
    let timing = Timing { heartbeat: beat, election_min: Duration::from_secs(5), election_max: Duration::from_secs(6) };
    StoreConfig { timing, propose_timeout: PATIENCE, ..StoreConfig::new(dir) }
}

/// RUST_LOG=debug shows what the managers think.
pub fn prepare() {
    skep_ca::install_crypto_provider();
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init(); // the first test has done it
}
