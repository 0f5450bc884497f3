//! Connections to managers that may be needed in a hurry.

use super::Purpose;
use crate::shared::Shared;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether they stand.
const EVERY: Duration = Duration::from_secs(5);

/// Keeps a connection for clients' calls to each other manager. The next leader is then asked over one that stands, at the very moment
/// when it has to shake hands with all agents of the last.
pub(crate) async fn keep_warm(shared: Arc<Shared>) {
    let own = shared.store.raft_id();
    let (mut leadership, mut members) = (shared.store.leadership(), shared.store.members());
    loop {
        let group = shared.group.members();
        for member in group.iter().filter(|member| member.raft_id != own) {
            // Who needs one that does not stand tries again, and is told why.
            let dialled = shared.transport.link(Purpose::Forward, member.raft_id, &member.member);
            tokio::select! {
                () = shared.stop.cancelled() => return,
                _ = dialled => {}
            }
        }
        // One that is alone waits for company without a timer.
        let again = async {
            match group.len() > 1 {
                true => tokio::time::sleep(EVERY).await,
                false => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            () = shared.stop.cancelled() => return,
            changed = leadership.changed() => changed.is_err(),
            changed = members.changed() => changed.is_err(),
            () = again => false,
        };
        if ended {
            return;
        }
    }
}
