//! Notices that the node is no longer what the manager was told (wire-behaviour 9.3, step 5).

use super::Describe;
use skep_types::NodeDescription;
use std::time::Duration;
use tokio::sync::watch;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(20);

/// Returns when the node differs from `told`, or when its certificate or roots changed (`security`).
pub async fn changed(describe: &Describe, told: &NodeDescription, security: Option<watch::Receiver<u64>>) {
    let other = async {
        loop {
            tokio::time::sleep(EVERY).await;
            if describe() != *told {
                return;
            }
        }
    };
    let renewed = async {
        if let Some(mut security) = security
            && security.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    };
    tokio::select! {
        () = other => {}
        () = renewed => {}
    }
}
