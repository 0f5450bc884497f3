//! Whether what objects hold and what is taken to be in use are the same: looked at when a manager begins to lead, and now and then.

use super::{DriveError, Driver, Failed, after_failure};
use skep_failpoint::failpoint;
use skep_plan::AddressAudit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Between two audits of one leader. Each reads all objects: 100,000 tasks take about a tenth of a second.
pub(super) const AUDIT_EVERY: Duration = Duration::from_secs(600);

/// Tries to write what an audit mends; what is lost in a race the next audit finds again.
const TRIES: u32 = 5;

/// What the audits of this manager found; sums since it started.
#[derive(Debug, Default)]
pub struct AddressCounts {
    audits: AtomicU64,
    doubled: AtomicU64,
    leaked: AtomicU64,
    missed: AtomicU64,
    mended: AtomicU64,
}

/// The counts at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddressTotals {
    pub audits: u64,
    /// Had by two.
    pub doubled: u64,
    /// In use, and nobody's.
    pub leaked: u64,
    /// Somebody's, and free.
    pub missed: u64,
    /// Of all these, set right.
    pub mended: u64,
}

impl AddressCounts {
    /// None before this manager led.
    #[must_use]
    pub fn totals(&self) -> Option<AddressTotals> {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Self { audits, doubled, leaked, missed, mended } = self;
        let totals =
            AddressTotals { audits: get(audits), doubled: get(doubled), leaked: get(leaked), missed: get(missed), mended: get(mended) };
        (totals.audits > 0).then_some(totals)
    }

    fn add(&self, audit: &AddressAudit, mended: usize) {
        let add = |count: &AtomicU64, more: usize| count.fetch_add(more as u64, Ordering::Relaxed);
        add(&self.audits, 1);
        add(&self.doubled, audit.doubled.len());
        add(&self.leaked, audit.leaked.len());
        add(&self.missed, audit.missed.len());
        add(&self.mended, mended);
    }
}

impl Driver {
    /// Looks, tells, mends.
    pub(super) async fn audit(&mut self) -> Result<(), DriveError> {
        let mut tries = 0;
        loop {
            let view = self.caught_up().await?;
            let audit = self.mind.audit(&view);
            for (what, found) in [("had by two", &audit.doubled), ("leaked", &audit.leaked), ("missed", &audit.missed)] {
                found.iter().for_each(|found| tracing::error!(found, "the audit of addresses found what should not be: {what}"));
            }
            failpoint!("manager.drive.audited");
            let written = match audit.changes.is_empty() {
                true => Ok(()),
                false => self.shared.propose(audit.changes.clone()).await.map(drop).map_err(after_failure),
            };
            match written {
                Err(Failed::End(error)) => return Err(error),
                Err(Failed::Stale) if tries < TRIES => tries += 1,
                Ok(()) => {
                    self.shared.addresses.add(&audit, audit.mended);
                    return Ok(());
                }
                Err(Failed::Stale | Failed::Pause) => {
                    self.shared.addresses.add(&audit, audit.leaked.len() + audit.missed.len());
                    return Ok(());
                }
            }
        }
    }
}
