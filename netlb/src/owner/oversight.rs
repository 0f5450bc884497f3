//! Looking after the network without being asked, while something is wanted.
//!
//! Once a second the kernel is asked how many nf_tables transactions the host's namespace has seen (one short message).
//! If there were others than ours, tables of ours that are gone are made anew, so that ports answer again within that
//! second after a foreign `nft flush ruleset`, and at most every five seconds all elements are compared. Asked for, and not
//! listened to: a listener makes the kernel write a message for every rule and element that anybody changes, ours included.
//!
//! Once a minute links, addresses and routes are compared with what is wanted, a sandbox's tables only if somebody changed
//! them, a task's own namespace only if its link is gone; every tenth time all of it.

use super::audit::Depth;
use super::{Known, Owner};
use crate::error::NetlbError;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, warn};

const TABLES_EVERY: Duration = Duration::from_secs(1);
/// Comparing costs milliseconds with a thousand ports, and some hosts' tables change all the time.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// After a failure nothing is gained by trying each second.
const TABLES_AFTER_FAILURE: Duration = Duration::from_secs(30);
const ALL_EACH: u32 = 10;

/// Who looks after the network once something is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oversight {
    /// The owner: at the host's tables every second, at everything else about this often.
    Every(Duration),
    /// The caller, with [`crate::Netlb::audit`].
    OnDemand,
}

impl Default for Oversight {
    fn default() -> Self {
        Self::Every(LOOK_EVERY)
    }
}

/// What is looked at when.
#[derive(Debug)]
pub(super) struct Watch {
    oversight: Oversight,
    tables_due: Instant,
    /// Tables changed since they were compared.
    doubtful: bool,
    compare_due: Instant,
    look_due: Instant,
    looks: u32,
    /// The warning about the host's firewall that was given last.
    told: Option<String>,
}

impl Watch {
    pub(super) fn new(oversight: Oversight) -> Self {
        let now = Instant::now();
        let look_due = now + oversight.next_look();
        Self { oversight, tables_due: now + TABLES_EVERY, doubtful: false, compare_due: now, look_due, looks: 0, told: None }
    }
}

impl Oversight {
    /// A sixth more or less each time: not all nodes of a cluster at once, which may be guests of one machine.
    fn next_look(self) -> Duration {
        let Self::Every(every) = self else { return LOOK_EVERY };
        let random = std::hash::RandomState::new().build_hasher().finish() % 1000;
        every - every / 6 + every / 3 * u32::try_from(random).expect("below 1000") / 1000
    }
}

impl Owner {
    /// When to look next; `None` while there is nothing to look after.
    pub(super) fn watch_due(&self) -> Option<Instant> {
        let on_lans = || self.tasks.values().any(|task| !task.lans.is_empty());
        let something = !self.sandboxes.is_empty() || on_lans() || self.tables.iter().any(|(_, _, known)| *known != Known::No);
        let watched = self.watch.oversight != Oversight::OnDemand && self.wanted.is_some() && something;
        watched.then(|| self.watch.tables_due.min(self.watch.look_due))
    }

    /// Does what is due.
    pub(super) fn watch(&mut self) {
        let now = Instant::now();
        if now >= self.watch.look_due {
            self.watch.looks += 1;
            let depth = if self.watch.looks.is_multiple_of(ALL_EACH) { Depth::All } else { Depth::WhatMayDiffer };
            if let Err(error) = self.audit(depth) {
                warn!(reasons = error.chain(), "not all of the network could be looked over; it is tried again later");
            }
            self.watch.look_due = Instant::now() + self.watch.oversight.next_look();
        }
        if now < self.watch.tables_due {
            return;
        }
        let after = match self.watch_tables() {
            Ok(()) => TABLES_EVERY,
            Err(error) => {
                let retry_in_s = TABLES_AFTER_FAILURE.as_secs();
                warn!(reasons = error.chain(), retry_in_s, "the host's tables could not be looked over");
                self.watch.doubtful = true;
                TABLES_AFTER_FAILURE
            }
        };
        self.watch.tables_due = Instant::now() + after;
    }

    fn watch_tables(&mut self) -> Result<(), NetlbError> {
        self.watch.doubtful |= self.nft.changed_by_others().map_err(netlink)?;
        if !self.watch.doubtful || (Instant::now() < self.watch.compare_due && !self.a_table_is_missing()?) {
            return Ok(());
        }
        self.watch.doubtful = false;
        self.watch.compare_due = Instant::now() + COMPARE_EVERY;
        for mended in self.audit_guard()?.into_iter().chain(self.audit_host_tables()?) {
            warn!(what = %mended, "somebody changed our tables; mended");
        }
        let warning = self.firewall_warning()?;
        if self.watch.told != warning {
            match &warning {
                Some(warning) => warn!("{warning}"),
                None => debug!("the host's firewall lets tasks' packets pass now"),
            }
            self.watch.told = warning;
        }
        Ok(())
    }

    fn a_table_is_missing(&mut self) -> Result<bool, NetlbError> {
        let name = self.tag.table();
        for (family, ..) in self.tables.iter().filter(|(.., known)| *known != Known::No) {
            if !self.nft.tables(*family).map_err(netlink)?.contains(&name) {
                return Ok(true);
            }
        }
        self.guard_is_missing()
    }

    /// See [`crate::Netlb::host_firewall_warning`].
    pub(super) fn firewall_warning(&mut self) -> Result<Option<String>, NetlbError> {
        let links = self.tag.link_prefix();
        let barriers = self.nft.barriers(&links).map_err(netlink)?;
        let Some(first) = barriers.first() else { return Ok(None) };
        let chains: Vec<String> = barriers.iter().map(ToString::to_string).collect();
        Ok(Some(format!(
            "the host's firewall may drop the packets of tasks: policy drop in chain {}, where no rule accepts links {links}*; \
             to let them pass: nft insert rule {first} iifname \"{links}*\" accept; nft insert rule {first} oifname \"{links}*\" accept{}",
            chains.join(" and chain "),
            if barriers.len() > 1 { " (and the same for the others)" } else { "" },
        )))
    }
}

fn netlink(source: std::io::Error) -> NetlbError {
    NetlbError::Netlink { place: "the host".into(), source }
}
