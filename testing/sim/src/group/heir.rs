//! A new group made of what one manager has (force-new-cluster), while the power goes again and again; and the old group beside it.

use super::net::{End, Up};
use super::run::{Group, config, member, watch};
use super::truth::Truth;
use super::{client, lock};
use skep_store::{Alone, RaftId, Store, StoreError};
use skep_types::ClusterView as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// The manager of the new group; no old one has such a number.
const HEIR: RaftId = 500;
/// The power goes at most so often while the group is made.
const CUTS: u64 = 5;
/// Both groups go on side by side for so long.
const BESIDE: Duration = Duration::from_secs(8);

impl Group {
    /// After all have agreed: everybody goes down, one manager becomes a group of its own, the others come back without it.
    pub(super) async fn succeed(&mut self) {
        let world = Arc::clone(&self.world);
        let up = lock(&world.lines).up.clone();
        let Some(leader) = up.values().find(|up| up.store.leads()) else { return };
        let voters = leader.store.status().members.into_iter().filter(|member| member.voter);
        let members: Vec<RaftId> = voters.map(|member| member.raft_id).collect();
        let Some((old, Up { machine, store, .. })) = up.into_iter().find(|(id, _)| members.contains(id)) else { return };
        let had = (store.view().version(), store.state_hash());
        drop(store);
        if members.len() < 2 {
            return;
        }
        self.stop_all();
        sleep(Duration::from_secs(1)).await;
        let Some(heir) = self.make_heir(machine, old).await else { return };
        let has = (heir.view().version(), heir.state_hash());
        if has != had {
            return world.fail(0, "I9", format!("the new group has {has:?}, manager {old} had {had:?}"));
        }
        lock(&world.truth).push(Truth::default());
        let boot = lock(&world.machines).disks.get(&machine).map_or(0, |disk| disk.boot);
        let up = Up { machine, boot, group: 1, store: heir.clone(), life: CancellationToken::new() };
        lock(&world.lines).up.insert(HEIR, up.clone());
        self.tasks.spawn(watch(Arc::clone(&world), HEIR, up));
        let back: Vec<RaftId> = members.iter().copied().filter(|id| *id != old).collect();
        back.iter().for_each(|id| self.start_again(*id));
        let new = client::write_straight(&heir, 900).await;
        sleep(BESIDE).await;
        let leader = lock(&world.lines).up.iter().find(|(_, up)| up.group == 0 && up.store.leads()).map(|(_, up)| up.store.clone());
        let majority = back.len() * 2 > members.len();
        if leader.is_some() != majority {
            return world.fail(
                0,
                "I9",
                format!("{} of {} old managers are there; one of them leads: {}", back.len(), members.len(), !majority),
            );
        }
        let theirs = match &leader {
            Some(leader) => Some(client::write_straight(leader, 901).await),
            None => None,
        };
        sleep(BESIDE).await;
        if !new || theirs == Some(false) {
            return world.fail(0, "I5", "a group takes no writes".into());
        }
        let mixed = lock(&world.lines).up.iter().find_map(|(id, up)| {
            let (mine, other) = if up.group == 1 { (900, 901) } else { (901, 900) };
            let strangers = up.store.status().members.iter().any(|member| (member.raft_id == HEIR) != (up.group == 1));
            let wrong = client::has(&up.store, other) || strangers || (*id == HEIR && !client::has(&up.store, mine));
            wrong.then(|| format!("manager {id} has something of the other group: {:?}", up.store.status().members))
        });
        if let Some(words) = mixed {
            world.fail(0, "I9", words);
        }
    }

    /// Whenever the power goes, the store is the old one or the new one, and whole.
    async fn make_heir(&self, machine: u64, old: RaftId) -> Option<Store> {
        let world = &self.world;
        for attempt in 0..=CUTS {
            let boot = {
                let mut machines = lock(&world.machines);
                let steps = machines.chance.number(30, machine, 0) % 90;
                let disk = machines.disks.get_mut(&machine)?;
                disk.power_cut();
                disk.cut_in = (attempt < CUTS).then_some(steps);
                disk.boot
            };
            let end = Arc::new(End { world: Arc::clone(world), me: HEIR, machine, boot });
            let found = match Store::recover(config(world, &self.scenario, machine), HEIR, member(HEIR), end).await {
                Ok((store, _)) if world.is_alive(machine, boot) => {
                    lock(&world.machines).disks.get_mut(&machine)?.cut_in = None;
                    return Some(store);
                }
                Err(error) if world.is_alive(machine, boot) => Err(error),
                Ok(_) | Err(_) => self.what_is_there(machine).await,
            };
            match found {
                Ok(id) if id == HEIR || id == old => world.note(|| format!("the power went; the store is that of manager {id}")),
                Ok(id) => world.fail(0, "I9", format!("the store is that of manager {id}")),
                Err(error) => world.fail(0, "opens", format!("the new group cannot be made, attempt {attempt}: {error}")),
            }
            if self.failed() {
                return None;
            }
            // What is the new group already is not made once more.
            if matches!(self.what_is_there(machine).await, Ok(HEIR)) {
                let boot = lock(&world.machines).disks.get(&machine)?.boot;
                let end = Arc::new(End { world: Arc::clone(world), me: HEIR, machine, boot });
                let store = Store::open(config(world, &self.scenario, machine), end).await.ok()?;
                return store.wait_leader(BESIDE).await.ok().map(|()| store);
            }
        }
        None
    }

    /// Whose store is on the machine, which starts anew before and after.
    async fn what_is_there(&self, machine: u64) -> Result<RaftId, StoreError> {
        let world = &self.world;
        let start_anew = || {
            if let Some(disk) = lock(&world.machines).disks.get_mut(&machine) {
                disk.power_cut();
            }
        };
        start_anew();
        let found = Store::open(config(world, &self.scenario, machine), Arc::new(Alone)).await.map(|store| store.raft_id());
        start_anew();
        found
    }
}
