//! Notices that the node is no longer what the manager was told (wire-behaviour 9.3, step 5).

use super::Describe;
use skep_types::NodeDescription;
use std::time::Duration;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(20);

/// Returns when the node differs from `told`.
pub async fn changed(describe: &Describe, told: &NodeDescription) {
    loop {
        tokio::time::sleep(EVERY).await;
        if describe() != *told {
            return;
        }
    }
}
