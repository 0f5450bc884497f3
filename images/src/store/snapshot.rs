//! Snapshots: the root file systems of containers, and the layers under them.

use std::time::SystemTime;

use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
    StatSnapshotRequest,
};
use containerd_client::services::v1::{AddResourceRequest, ApplyRequest, Resource};
use containerd_client::types::{Descriptor as WireDescriptor, Mount};
use skep_failpoint::failpoint;

use super::client::{APPLY_DEADLINE, Containerd, Step, is_passing, reconnecting, service};
use super::content::Labels;
use super::error::{StoreError, found};
use super::lease::rfc3339;
use crate::digest::Digest;
use crate::image::Layer;

/// The one snapshotter we use: in every containerd, and the kernel has overlayfs wherever containers run.
pub(super) const SNAPSHOTTER: &str = "overlayfs";
/// A snapshot with this label is a root for the garbage collector.
const GC_ROOT: &str = "containerd.io/gc.root";

/// How many directories without an owner are waited for in one call: each death of containerd leaves one.
const ORPHANS: usize = 5;

/// How often a layer is unpacked when its snapshot vanishes or is there already.
const UNPACKINGS: usize = 3;

/// A container's snapshot, as the agent's audit wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub key: String,
    /// The chain id it stands on; empty for an empty root.
    pub parent: String,
    pub labels: Labels,
}

impl Containerd {
    async fn stat_snapshot(&self, key: &str) -> Result<Option<Info>, StoreError> {
        let message = StatSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned() };
        let send = |request| {
            let mut client = service!(self, SnapshotsClient<_>);
            async move { client.stat(request).await }
        };
        let answer = found(self.call(Step::new("looking for snapshot", &key), message, send).await)?;
        Ok(answer.and_then(|answer| answer.info))
    }

    pub async fn is_unpacked(&self, chain_id: &Digest) -> Result<bool, StoreError> {
        let info = self.stat_snapshot(&chain_id.to_string()).await?;
        Ok(info.is_some_and(|info| info.kind() == Kind::Committed))
    }

    /// Like [`is_unpacked`](Self::is_unpacked), and from then on held by the lease.
    pub async fn hold_if_unpacked(&self, lease: &str, chain_id: &Digest) -> Result<bool, StoreError> {
        // First hold, then look: the other way round it could be collected in between.
        let resource = Resource { id: chain_id.to_string(), r#type: format!("snapshots/{SNAPSHOTTER}") };
        let message = AddResourceRequest { id: lease.to_owned(), resource: Some(resource) };
        let send = |request| {
            let mut client = service!(self, LeasesClient<_>);
            async move { client.add_resource(request).await }
        };
        self.call(Step::new("holding snapshot", chain_id), message, send).await?;
        self.is_unpacked(chain_id).await
    }

    async fn prepare(&self, step: Step<'_>, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, StoreError> {
        let message =
            PrepareSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned(), parent: parent.to_owned(), labels };
        let send = |request| {
            let mut client = service!(self, SnapshotsClient<_>);
            async move { client.prepare(request).await }
        };
        // A containerd that dies between moving a snapshot's directory into place and committing its number gives out that number again.
        // The attempt that meets the directory fails and removes it (`snapshots/overlay`, `createSnapshot`); the next one succeeds.
        for _ in 0..ORPHANS {
            match self.call(step, message.clone(), send).await {
                Err(error) if error.is_orphan_in_the_way() => tracing::warn!(%error, "what a dying containerd left is out of the way now"),
                result => return Ok(result?.mounts),
            }
        }
        Ok(self.call(step, message, send).await?.mounts)
    }

    /// A writable snapshot on `parent`, safe from the garbage collector until it is removed. May be repeated.
    pub async fn prepare_container(&self, key: &str, parent: &str, mut labels: Labels) -> Result<Vec<Mount>, StoreError> {
        labels.insert(GC_ROOT.to_owned(), rfc3339(SystemTime::now()));
        let prepared = self.prepare(Step::new("preparing snapshot", &key), key, parent, labels).await;
        failpoint!("images.snapshot.prepared");
        match prepared {
            Err(error) if error.is_already_exists() => self.mounts_of(key, parent).await,
            result => result,
        }
    }

    async fn mounts_of(&self, key: &str, parent: &str) -> Result<Vec<Mount>, StoreError> {
        let info = self.stat_snapshot(key).await?;
        if !info.is_some_and(|info| info.kind() == Kind::Active && info.parent == parent) {
            return Err(StoreError::SnapshotTaken { key: key.to_owned() });
        }
        let message = MountsRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned() };
        let send = |request| {
            let mut client = service!(self, SnapshotsClient<_>);
            async move { client.mounts(request).await }
        };
        Ok(self.call(Step::new("finding mounts of snapshot", &key), message, send).await?.mounts)
    }

    /// Removes a snapshot; one that is not there is fine.
    pub async fn remove_snapshot(&self, key: &str) -> Result<(), StoreError> {
        let message = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned() };
        let send = |request| {
            let mut client = service!(self, SnapshotsClient<_>);
            async move { client.remove(request).await }
        };
        let removed = found(self.call(Step::new("removing snapshot", &key), message, send).await).map(|_| ());
        failpoint!("images.snapshot.removed");
        removed
    }

    /// The snapshots of containers: active and kept by their own label, so made by `prepare_container`.
    pub async fn container_snapshots(&self) -> Result<Vec<SnapshotInfo>, StoreError> {
        let step = Step::new("listing", &"snapshots");
        let mut backoff = reconnecting();
        loop {
            let status = match self.try_list_snapshots().await? {
                Ok(list) => return Ok(list),
                Err(status) => status,
            };
            match backoff.wait() {
                Some(wait) if is_passing(&status) => tokio::time::sleep(wait).await,
                _ => return Err(self.explain(step, status)),
            }
        }
    }

    async fn try_list_snapshots(&self) -> Result<Result<Vec<SnapshotInfo>, tonic::Status>, StoreError> {
        let message =
            ListSnapshotsRequest { snapshotter: SNAPSHOTTER.to_owned(), filters: vec![format!("kind==active,labels.\"{GC_ROOT}\"")] };
        let mut client = service!(self, SnapshotsClient<_>);
        let mut pages = match client.list(self.request(message, None)?).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        let mut list = Vec::new();
        loop {
            match pages.message().await {
                Ok(None) => return Ok(Ok(list)),
                Ok(Some(page)) => {
                    list.extend(page.info.into_iter().map(|info| SnapshotInfo { key: info.name, parent: info.parent, labels: info.labels }))
                }
                Err(status) => return Ok(Err(status)),
            }
        }
    }

    /// Unpacks one layer onto `parent` and commits it as `chain_id`.
    ///
    /// A containerd that dies meanwhile may come back with half of a snapshot: known to its own database and not to the snapshotter's,
    /// or the other way round. Then all of it is done once more, under another key.
    pub async fn unpack_layer(&self, lease: &str, layer: &Layer, parent: Option<&Digest>, chain_id: &Digest) -> Result<(), StoreError> {
        for _ in 1..UNPACKINGS {
            match self.try_unpack(lease, layer, parent, chain_id).await {
                Err(error) if error.is_not_found() || error.is_already_exists() => {
                    tracing::warn!(%error, layer = %layer.blob.digest, "unpacking the layer once more");
                }
                result => return result,
            }
        }
        self.try_unpack(lease, layer, parent, chain_id).await
    }

    async fn try_unpack(&self, lease: &str, layer: &Layer, parent: Option<&Digest>, chain_id: &Digest) -> Result<(), StoreError> {
        let key = format!("extract-{:016x}-{chain_id}", rand::random::<u64>());
        let parent = parent.map(ToString::to_string).unwrap_or_default();
        let step = Step::new("unpacking layer", &layer.blob.digest).under(lease);
        let mounts = self.prepare(step, &key, &parent, Labels::new()).await?;
        failpoint!("images.extract.prepared");
        let done = self.apply_and_commit(step, layer, mounts, &key, chain_id).await;
        if done.is_err() {
            // Best effort: under the lease it cannot outlive this pull by much, and the first error is the one to tell.
            if let Err(error) = self.remove_snapshot(&key).await {
                tracing::warn!(%key, %error, "half-unpacked snapshot left to the garbage collector");
            }
        }
        done
    }

    async fn apply_and_commit(
        &self,
        step: Step<'_>,
        layer: &Layer,
        mounts: Vec<Mount>,
        key: &str,
        chain_id: &Digest,
    ) -> Result<(), StoreError> {
        let diff = WireDescriptor {
            media_type: layer.blob.media_type.clone(),
            digest: layer.blob.digest.to_string(),
            size: layer.blob.size,
            ..Default::default()
        };
        let message = ApplyRequest { diff: Some(diff), mounts, ..Default::default() };
        let send = |request| {
            let mut client = service!(self, DiffClient<_>);
            async move { client.apply(request).await }
        };
        let applied = self.call_within(APPLY_DEADLINE, step, message, send).await?.applied.unwrap_or_default();
        failpoint!("images.extract.applied");
        if applied.digest != layer.diff_id.to_string() {
            return Err(StoreError::WrongDiffId {
                layer: layer.blob.digest.clone(),
                expected: layer.diff_id.clone(),
                actual: applied.digest,
            });
        }
        let message = CommitSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            name: chain_id.to_string(),
            key: key.to_owned(),
            labels: Labels::new(),
        };
        let send = |request| {
            let mut client = service!(self, SnapshotsClient<_>);
            async move { client.commit(request).await }
        };
        let committed = self.call(step, message, send).await;
        failpoint!("images.extract.committed");
        match committed {
            Ok(()) => Ok(()),
            // Someone else unpacked the same layer meanwhile: theirs is as good.
            Err(error) if error.is_already_exists() => self.remove_snapshot(key).await,
            // The answer to a first attempt was lost, or the key was: the name tells.
            Err(error) if error.is_not_found() && self.is_unpacked(chain_id).await? => Ok(()),
            Err(error) => Err(error),
        }
    }
}
