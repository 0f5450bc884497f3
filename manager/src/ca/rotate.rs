//! The leader's loop that moves the cluster to a new root (spec wire-behaviour 4.7). What to do is decided by
//! [`skep_plan::plan_rotation`]; all that it needs is in the store, so that a new leader goes on where the last one ended.

use super::root::{finished, target};
use crate::drive::{DriveError, Failed, after_failure, chain};
use crate::shared::Shared;
use skep_failpoint::failpoint;
use skep_plan::{ROTATION_INTERVAL, Rotation, RotationTarget, plan_rotation};
use skep_store::View;
use skep_types::{Action, Cluster, ClusterView as _, Node, NodeId, Object, RootRotation};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a rotation under way is looked at: its end should not wait for the next batch.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the log says which node a rotation waits for.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// Rotates until the term ends.
pub(super) async fn rotate(shared: &Shared) -> Result<(), DriveError> {
    let mut underway: Option<Underway> = None;
    loop {
        let view = shared.store.view();
        let Some(cluster) = view.cluster().cloned() else {
            // A cluster's first objects are about to come.
            shared.store.changed_since(view.version()).await;
            continue;
        };
        underway = cluster.root_ca.root_rotation.as_ref().and_then(|rotation| Underway::of(rotation, underway.take()));
        let Some(rotation) = &mut underway else {
            drop(view);
            shared.ca.rotation.notified().await;
            continue;
        };
        rotation.step(shared, &view, &cluster).await?;
        drop(view);
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shared.ca.rotation.notified() => {}
        }
    }
}

/// The rotation this leader is busy with.
struct Underway {
    rotation: RootRotation,
    target: RotationTarget,
    next_batch: Instant,
    next_reminder: Instant,
}

impl Underway {
    /// Of the cluster's rotation; `before` if it is still the one. `None` if it cannot be read: then it cannot go on.
    fn of(rotation: &RootRotation, before: Option<Self>) -> Option<Self> {
        if let Some(before) = before.filter(|before| before.rotation == *rotation) {
            return Some(before);
        }
        match target(rotation) {
            Ok(target) => {
                tracing::info!("the root is being replaced; nodes are asked to renew their certificates");
                let now = Instant::now();
                Some(Self { rotation: rotation.clone(), target, next_batch: now, next_reminder: now + REMIND_EVERY })
            }
            Err(error) => {
                tracing::error!(error = %chain(&error), "the stored new root cannot be read; rotate to another one");
                None
            }
        }
    }

    async fn step(&mut self, shared: &Shared, view: &View, cluster: &Cluster) -> Result<(), DriveError> {
        let now = Instant::now();
        match plan_rotation(view.nodes(), &self.target) {
            Rotation::Ask(nodes) if now >= self.next_batch => {
                if ask(shared, nodes).await? {
                    self.next_batch = now + ROTATION_INTERVAL;
                }
            }
            Rotation::Ask(_) => {}
            Rotation::Wait { left, first } => self.remind(now, left, &first),
            Rotation::Finish => finish(shared, cluster).await?,
        }
        Ok(())
    }

    fn remind(&mut self, now: Instant, left: usize, first: &NodeId) {
        if now >= self.next_reminder {
            self.next_reminder = now + REMIND_EVERY;
            tracing::info!(left, node = %first, "the new root waits for nodes to renew; remove those that will not come back");
        }
    }
}

/// Asks nodes to renew. `false`: some were not, for they changed meanwhile; the next look sees how they are now.
async fn ask(shared: &Shared, nodes: Vec<Arc<Node>>) -> Result<bool, DriveError> {
    let update = |node: &Arc<Node>| Action::Update(Object::Node(node.clone()));
    match shared.propose(nodes.iter().map(update).collect()).await.map_err(after_failure) {
        Ok(_) => {}
        Err(Failed::Pause) => return Ok(false),
        Err(Failed::End(error)) => return Err(error),
        // One that changed spoils them all: each by itself.
        Err(Failed::Stale) => {
            for node in &nodes {
                match shared.propose(vec![update(node)]).await.map_err(after_failure) {
                    Ok(_) | Err(Failed::Stale) => {}
                    Err(Failed::Pause) => return Ok(false),
                    Err(Failed::End(error)) => return Err(error),
                }
            }
        }
    }
    failpoint!("manager.ca.rotation.asked");
    tracing::info!(nodes = nodes.len(), "asked to renew for the new root");
    Ok(true)
}

/// Puts the new root in place, unless somebody changed the cluster meanwhile.
async fn finish(shared: &Shared, cluster: &Cluster) -> Result<(), DriveError> {
    let root_ca = match finished(&cluster.root_ca, [rand::random(), rand::random()]) {
        Ok(Some(root_ca)) => root_ca,
        Ok(None) => return Ok(()),
        Err(error) => {
            tracing::error!(error = %chain(&error), "the stored new root cannot be read; rotate to another one");
            return Ok(());
        }
    };
    failpoint!("manager.ca.rotation.finishing");
    let hash = root_ca.ca_cert_hash.clone();
    let cluster = Cluster { root_ca, ..cluster.clone() };
    match shared.propose(vec![Action::Update(Object::Cluster(Arc::new(cluster)))]).await.map_err(after_failure) {
        Ok(_) => {
            failpoint!("manager.ca.rotation.finished");
            tracing::info!(root = %hash, "the new root is in place; both join tokens are new");
            Ok(())
        }
        Err(Failed::Stale | Failed::Pause) => Ok(()),
        Err(Failed::End(error)) => Err(error),
    }
}
