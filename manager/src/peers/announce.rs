//! Telling the other managers where this one is now: identity is the certificate, addresses may change.

use super::join::join_managers;
use super::membership::MembershipService;
use crate::drive::chain;
use crate::shared::Shared;
use std::sync::Arc;
use std::time::Duration;

/// Between tries; the others may be away.
const RETRY: Duration = Duration::from_secs(2);

/// Sees to it that the group has this manager's address, until the manager stops.
pub(crate) async fn announce(shared: Arc<Shared>) {
    let own = shared.store.raft_id();
    let wanted = shared.local.advertise;
    let mut group = shared.store.members();
    let mut leadership = shared.store.leadership();
    loop {
        let members = group.borrow_and_update().clone();
        let known = members.iter().find(|member| member.raft_id == own).map(|member| member.member.addr.clone());
        if known.is_none_or(|known| known == wanted.to_string()) {
            tokio::select! {
                () = shared.stop.cancelled() => return,
                changed = group.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            }
        }
        let leads = leadership.borrow_and_update().is_leader;
        let telling = async {
            if leads {
                let service = MembershipService::new(shared.clone());
                service.admit(&shared.local.id, own, &wanted.to_string()).await.map_err(|status| status.message().to_owned())
            } else {
                let others = members.iter().filter(|member| member.raft_id != own).map(|member| member.member.addr.clone());
                let others: Vec<String> = others.filter(|addr| !addr.is_empty()).collect();
                join_managers(&shared.security, &others, own, wanted).await.map_err(|error| chain(&error))
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            // The others pass the call on to the leader; if that is this manager by now, to its former address.
            true = async { leadership.wait_for(|now| now.is_leader != leads).await.is_ok() } => continue,
            told = telling => match told {
                Ok(()) => tracing::info!(addr = %wanted, "the managers know this one's address"),
                Err(why) => tracing::warn!(addr = %wanted, why, "the managers could not be told this one's address"),
            },
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}
