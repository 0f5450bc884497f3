//! Makes managers and workers of nodes as it is wished, while this manager leads. What to do is decided by
//! [`plan_roles`](skep_plan::plan_roles).

use crate::drive::{DriveError, Failed, Term, after_failure};
use crate::peers::{Departure, depart};
use crate::shared::Shared;
use skep_failpoint::failpoint;
use skep_plan::{RoleStep, is_plain_worker, plan_roles};
use skep_store::FeedEvent;
use skep_types::{Action, Change, ClusterView as _, Node, NodeId, NodeRole, Object};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A step that failed, or waits for other managers, is tried again after this time (spec wire-behaviour 7).
const RETRY: Duration = Duration::from_secs(5);
/// A majority that was lost is looked for more often, and so is what became of a step: it only takes a look.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A role that loses a race with another write of the node is decided anew this often.
const ATTEMPTS: usize = 20;

/// Whether the change has to do with who is a manager: ten thousand workers that join do not.
fn concerns(change: &Change) -> bool {
    match change {
        Change::Created(Object::Node(node)) | Change::Removed(Object::Node(node)) => !is_plain_worker(node),
        Change::Updated { old: Object::Node(old), new: Object::Node(new) } => {
            (old.role, old.spec.desired_role) != (new.role, new.spec.desired_role)
        }
        _ => false,
    }
}

/// What a round came to.
enum Round {
    Done,
    /// Not everything that is wished can be done now, or something was done.
    Waiting,
    Failed,
}

/// Runs until the term ends.
pub(crate) async fn run(shared: Arc<Shared>, term: Term) -> Result<(), DriveError> {
    tokio::select! {
        () = term.stop.cancelled() => Ok(()),
        outcome = follow(&shared) => outcome,
    }
}

async fn follow(shared: &Shared) -> Result<(), DriveError> {
    let (_, mut feed) = shared.watch();
    let mut members = shared.store.members();
    let mut told = BTreeSet::new();
    loop {
        members.mark_unchanged();
        let wait = match round(shared, &mut told).await? {
            Round::Done => None,
            Round::Waiting => Some(LOOK_AGAIN),
            Round::Failed => Some(RETRY),
        };
        let wake = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(wake);
        loop {
            tokio::select! {
                event = feed.next() => match event {
                    Some(FeedEvent::Commit(commit)) if commit.changes.iter().any(concerns) => break,
                    Some(FeedEvent::Commit(_)) => {}
                    Some(FeedEvent::Resync) => {
                        feed.resume(shared.store.view().version());
                        break;
                    }
                    None => return Err(DriveError::StoreClosed),
                },
                changed = members.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return Err(DriveError::StoreClosed),
                },
                () = &mut wake => break,
            }
        }
    }
}

/// Looks and acts once. `told` are the nodes of which it was said that they have to wait.
async fn round(shared: &Shared, told: &mut BTreeSet<String>) -> Result<Round, DriveError> {
    let plan = {
        let view = shared.store.view();
        plan_roles(view.nodes().map(|node| &**node), &shared.raft_members(), shared.store.raft_id())
    };
    told.retain(|node| plan.waiting.iter().any(|(waiting, _)| waiting == node));
    for (node, reason) in &plan.waiting {
        if told.insert(node.clone()) {
            tracing::warn!(node, %reason, "a manager is to be demoted and cannot go yet");
        }
    }
    // After steps it looks once more: a member that asks to come in while it is taken out is there again, and a list of members
    // that is what it was wakes nobody.
    let mut outcome = if plan.waiting.is_empty() && plan.steps.is_empty() { Round::Done } else { Round::Waiting };
    for step in plan.steps {
        let done = match step {
            RoleStep::SetRole { node, role } => set_role(shared, &node, role).await?,
            RoleStep::Expel { raft_id } => leave(shared, raft_id).await,
            RoleStep::HandOver => leave(shared, shared.store.raft_id()).await,
        };
        if !done {
            outcome = Round::Failed;
        }
    }
    Ok(outcome)
}

async fn set_role(shared: &Shared, id: &NodeId, role: NodeRole) -> Result<bool, DriveError> {
    for _ in 0..ATTEMPTS {
        let new = {
            let view = shared.store.view();
            match view.node(id) {
                // It is as wished already, or the wish is another by now: the next round knows.
                Some(node) if node.role == role || node.spec.desired_role != role => return Ok(true),
                Some(node) => Node { role, ..Node::clone(node) },
                None => return Ok(true),
            }
        };
        failpoint!("manager.roles.setting");
        match shared.propose(vec![Action::Update(Object::Node(Arc::new(new)))]).await.map_err(after_failure) {
            Ok(_) => {
                tracing::info!(node = %id, %role, "node has a new role");
                return Ok(true);
            }
            Err(Failed::Stale) => {}
            Err(Failed::Pause) => return Ok(false),
            Err(Failed::End(error)) => return Err(error),
        }
    }
    Ok(false)
}

async fn leave(shared: &Shared, raft_id: u64) -> bool {
    match depart(shared, raft_id).await {
        Ok(Departure::Gone | Departure::HandedOver) => true,
        Err(status) => {
            tracing::warn!(raft_id, why = status.message(), "a manager could not be taken out of the raft group yet");
            false
        }
    }
}
