//! What the cluster object says about each manager, leader or not.
//!
//! Settings that only deciders, dispatcher and CA use are read by them when they use them; here are those of the store.

use crate::shared::Shared;
use skep_store::FeedEvent;
use skep_types::{Change, Cluster, ClusterView as _, Object};
use std::sync::Arc;

/// Applies the settings now and whenever they change, until the manager or the store stops.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let (view, mut feed) = shared.watch();
    if let Some(cluster) = view.cluster() {
        apply(&shared, cluster);
    }
    drop(view);
    loop {
        let event = tokio::select! {
            () = shared.stop.cancelled() => return,
            event = feed.next() => event,
        };
        match event {
            Some(FeedEvent::Commit(commit)) => {
                for change in &commit.changes {
                    if let Change::Created(Object::Cluster(cluster)) | Change::Updated { new: Object::Cluster(cluster), .. } = change {
                        apply(&shared, cluster);
                    }
                }
            }
            Some(FeedEvent::Resync) => {
                let view = shared.store.view();
                feed.resume(view.version());
                if let Some(cluster) = view.cluster() {
                    apply(&shared, cluster);
                }
            }
            None => return,
        }
    }
}

fn apply(shared: &Shared, cluster: &Cluster) {
    shared.store.set_snapshot_entries(cluster.spec.raft.snapshot_interval);
}
