//! Leases: what keeps containerd's garbage collector away from work in progress.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{CreateRequest, DeleteRequest, ListRequest};
use skep_failpoint::failpoint;

use super::client::{Containerd, Step, service};
use super::error::{StoreError, found};

/// Marks leases as ours, so that those a crash left behind can be told from other people's.
const OWNER_LABEL: &str = "skep.images/lease";
/// containerd removes a lease after this time by itself, should we never come back.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// The leases this process works under.
#[derive(Clone, Default)]
pub(super) struct ActiveLeases(Arc<Mutex<HashMap<String, usize>>>);

/// One use of a lease. End it with [`Lease::release`]; if dropped instead (a cancelled pull), [`Containerd::sweep`] gets it.
pub(crate) struct Lease {
    id: String,
    active: ActiveLeases,
}

impl Lease {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The same lease for another holder.
    pub fn shared(&self) -> Self {
        *self.active.0.lock().expect("no panic while held").entry(self.id.clone()).or_default() += 1;
        Self { id: self.id.clone(), active: self.active.clone() }
    }

    /// Deletes the lease if nobody else works under it.
    pub(super) async fn release(self, containerd: &Containerd) -> Result<(), StoreError> {
        let id = self.id.clone();
        let last = self.active.count(&id) == 1;
        let result = if last { containerd.delete_lease(&id).await } else { Ok(()) };
        drop(self);
        result
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut active = self.active.0.lock().expect("no panic while held");
        if let Some(count) = active.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                active.remove(&self.id);
            }
        }
    }
}

impl ActiveLeases {
    fn count(&self, id: &str) -> usize {
        self.0.lock().expect("no panic while held").get(id).copied().unwrap_or(0)
    }
}

impl Containerd {
    /// Takes the lease `id`, making it if needed. The same work has the same id in every attempt, also after a crash:
    /// what a broken pull had fetched is still there when it is tried again.
    pub async fn lease(&self, active: &ActiveLeases, id: String) -> Result<Lease, StoreError> {
        *active.0.lock().expect("no panic while held").entry(id.clone()).or_default() += 1;
        let lease = Lease { id, active: active.clone() };
        let labels = HashMap::from([
            (OWNER_LABEL.to_owned(), "1".to_owned()),
            ("containerd.io/gc.expire".to_owned(), rfc3339(SystemTime::now() + LIFE)),
        ]);
        let message = CreateRequest { id: lease.id.clone(), labels };
        let send = |request| {
            let mut client = service!(self, LeasesClient<_>);
            async move { client.create(request).await }
        };
        match self.call(Step::new("making lease", &lease.id), message, send).await {
            Ok(_) => {}
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error),
        }
        failpoint!("images.lease.created");
        Ok(lease)
    }

    async fn delete_lease(&self, id: &str) -> Result<(), StoreError> {
        let message = DeleteRequest { id: id.to_owned(), sync: false };
        let send = |request| {
            let mut client = service!(self, LeasesClient<_>);
            async move { client.delete(request).await }
        };
        let deleted = found(self.call(Step::new("deleting lease", &id), message, send).await).map(|_| ());
        failpoint!("images.lease.deleted");
        deleted
    }

    /// Deletes leases of ours that nobody in this process works under; returns how many.
    pub async fn sweep_leases(&self, active: &ActiveLeases) -> Result<usize, StoreError> {
        let message = ListRequest { filters: vec![format!("labels.\"{OWNER_LABEL}\"==1")] };
        let send = |request| {
            let mut client = service!(self, LeasesClient<_>);
            async move { client.list(request).await }
        };
        let listed = found(self.call(Step::new("listing", &"leases"), message, send).await)?;
        let ids: HashSet<String> = listed.into_iter().flat_map(|list| list.leases).map(|lease| lease.id).collect();
        let mut swept = 0;
        for id in ids.iter().filter(|id| active.count(id) == 0) {
            self.delete_lease(id).await?;
            swept += 1;
        }
        Ok(swept)
    }
}

/// As containerd reads times in labels: RFC 3339.
pub(super) fn rfc3339(time: SystemTime) -> String {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    OffsetDateTime::from(time).format(&Rfc3339).expect("years of this era have four digits")
}
