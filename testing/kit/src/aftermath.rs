use crate::cluster::{Cluster, Replica, Task};
use crate::journal::Record;
use crate::wait::eventually;
use anyhow::{Context, Result, ensure};
use skep_proto::v1;
use std::collections::BTreeSet;
use std::time::Duration;

/// A node that was cut off is down only after its grace, and its tasks are made anew after that; and machines are slow.
const SETTLED: Duration = Duration::from_secs(60);

impl Cluster {
    /// What must hold again after every fault, however long that takes within reason: these managers hold the same state, in one term
    /// and with one leader; every write that was acknowledged is on each of them; every slot of every service runs once; and on no host
    /// runs anything else. Tells who leads.
    ///
    /// # Errors
    /// What does not hold.
    pub fn aftermath(&self, managers: impl IntoIterator<Item = usize> + Clone, records: &[&Record]) -> Result<Replica> {
        let leader = self.wait_converged(managers.clone(), SETTLED)?;
        for manager in managers {
            let there = self.api(manager)?.configs()?;
            records.iter().try_for_each(|record| record.all_in(&there)).with_context(|| format!("on {}", self[manager].name()))?;
        }
        self.every_slot_runs_once(leader.host)?;
        Ok(leader)
    }

    /// Waits until every slot of every replicated service has its task, and the containers that run are those tasks'.
    ///
    /// # Errors
    /// What is lost, or runs twice.
    pub fn every_slot_runs_once(&self, through: usize) -> Result<()> {
        eventually(SETTLED, "every slot runs once", || {
            let api = self.api(through)?;
            let services = api.ask(|mut control| async move { control.list_services(v1::ListServicesRequest::default()).await })?.services;
            let tasks = self.all_tasks(through)?;
            let running: Vec<&Task> = tasks.iter().filter(|task| task.runs()).collect();
            for service in services {
                let spec = service.spec.unwrap_or_default();
                let Some(v1::service_spec::Mode::Replicated(wanted)) = spec.mode else { continue };
                let slots: Vec<u64> = running.iter().filter(|task| task.service == service.id).map(|task| task.slot).collect();
                let once: BTreeSet<u64> = slots.iter().copied().collect();
                let name = spec.annotations.unwrap_or_default().name;
                ensure!(slots.len() == once.len(), "{name} runs twice in a slot: {slots:?}");
                ensure!(once.len() as u64 == wanted.replicas, "{name} has {} tasks instead of {}: {tasks:#?}", once.len(), wanted.replicas);
            }
            self.nothing_else_runs(&running)
        })
    }

    /// The processes that containerd runs on each host are those of the tasks that the managers know.
    fn nothing_else_runs(&self, running: &[&Task]) -> Result<()> {
        for host in self.managers().chain(self.workers()) {
            if !self[host].is_up() || self[host].containerd_pid().is_none() {
                continue;
            }
            let here = self[host].running_pids()?;
            let known: BTreeSet<i32> = running.iter().filter(|task| task.host == Some(host)).map(|task| task.pid).collect();
            ensure!(here == known, "on {} run {here:?}, and the managers know {known:?}", self[host].name());
        }
        Ok(())
    }
}
