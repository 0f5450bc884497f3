//! What users and faults do in a run, and when: drawn from a seed, or read from a file.

use crate::spec::Wish;
use serde::{Deserialize, Serialize};
use skep_kit::Dice;
use std::collections::BTreeMap;
use std::time::Duration;

/// One thing done from outside. Numbers of nodes, managers and services that are not there make it do nothing, so that any part of a
/// scenario is one, too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Op {
    Create {
        service: u8,
        wish: Wish,
    },
    Update {
        service: u8,
        wish: Wish,
    },
    Scale {
        service: u8,
        replicas: u64,
    },
    Force {
        service: u8,
    },
    Rollback {
        service: u8,
    },
    Remove {
        service: u8,
    },
    Active {
        node: u8,
    },
    Pause {
        node: u8,
    },
    Drain {
        node: u8,
    },
    /// Drains the node; what starts first serves there until others do.
    DrainInPlace {
        node: u8,
    },
    /// Moves the node to the other zone; constraints of services ask for zones.
    Zone {
        node: u8,
        zone: u8,
    },
    RemoveNode {
        node: u8,
        force: bool,
    },
    AddNode {
        node: u8,
    },
    History {
        limit: i64,
    },
    /// The agent's process dies; containers go on.
    CrashAgent {
        node: u8,
        millis: u64,
    },
    /// The machine dies with all its containers.
    CrashHost {
        node: u8,
        millis: u64,
    },
    /// The node reaches no manager.
    Cut {
        node: u8,
        millis: u64,
    },
    /// The node does not reach one manager.
    CutFrom {
        node: u8,
        manager: u8,
        millis: u64,
    },
    /// All connections of the node break, with what is under way in them.
    Break {
        node: u8,
    },
    /// Everything the node does takes longer, so many times.
    Slow {
        node: u8,
        times: u8,
        millis: u64,
    },
    CrashManager {
        manager: u8,
        millis: u64,
    },
    /// The manager reaches neither the other managers nor agents.
    Isolate {
        manager: u8,
        millis: u64,
    },
    /// Somebody else is elected.
    Elect {
        manager: u8,
    },
    /// The follower applies late.
    Lag {
        manager: u8,
        millis: u64,
    },
    /// The manager's wall clock is set.
    Jump {
        manager: u8,
        seconds: i64,
    },
    /// So many of a hundred operations on containers fail.
    Flaky {
        percent: u8,
        millis: u64,
    },
    /// A container dies.
    Kill {
        which: u8,
    },
    /// A health check fails.
    Sicken {
        which: u8,
    },
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    /// Of everything the operations do not say: delays, who is chosen, what fails by itself.
    pub seed: u64,
    pub managers: u8,
    pub nodes: u8,
    /// Times in milliseconds, in their order.
    pub ops: Vec<(u64, Op)>,
}

/// How long users and faults go on.
const BUSY: u64 = 150_000;

impl Scenario {
    /// The scenario of a seed. Every eighth has no fault but clocks that jump, see I18; every sixteenth makes tasks anew until the
    /// addresses of their network come round.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        Self::of_size(seed, None, None)
    }

    /// The same with so many managers and nodes, which the seed settles otherwise.
    #[must_use]
    pub fn of_size(seed: u64, managers: Option<u8>, nodes: Option<u8>) -> Self {
        let mut dice = Dice::of_seed(seed);
        let drawn: [u8; 2] = [dice.one_of([1, 3, 3, 3, 5]), dice.one_of([2, 3, 4, 5, 6])];
        let (managers, nodes) = (managers.unwrap_or(drawn[0]), nodes.unwrap_or(drawn[1]));
        let mut this = Self { seed, managers, nodes, ops: Vec::new() };
        let calm = seed.is_multiple_of(8);
        let renews = seed % 16 == 9;
        let mut at = 500;
        let mut services = 0;
        let count = 8 + dice.roll(30);
        for number in 0..count {
            let mut op = match number {
                0 if renews => Op::Create { service: 0, wish: Wish::to_renew() },
                0 => Op::Create { service: 0, wish: Wish::draw(&mut dice, nodes) },
                _ if renews => this.draw_renewal(&mut dice),
                _ if calm => this.draw_calm(&mut dice, &mut services),
                _ => this.draw(&mut dice, &mut services),
            };
            if let Op::Create { wish, .. } = &mut op
                && calm
            {
                wish.bad = 0;
            }
            let cuts_off = matches!(op, Op::Isolate { .. });
            this.ops.push((at, op));
            if cuts_off && dice.coin() {
                // Perhaps it was the leader, and still believes to be.
                at += dice.roll(4_000);
                this.ops.push((at, Op::Force { service: one_below(&mut dice, services + 1) }));
            }
            // Often close behind each other, sometimes with time to settle in between.
            at += match dice.roll(4) {
                0 => dice.roll(300),
                1 => dice.roll(2_000),
                _ if renews => dice.roll(4_000),
                _ => dice.roll(2 * BUSY / count),
            };
        }
        this
    }

    /// Whether nothing fails in it: no task may be restarted but by the wish of a user.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        let calm = |op: &Op| matches!(op, Op::Create { .. } | Op::Jump { .. } | Op::Elect { .. } | Op::Lag { .. });
        self.seed.is_multiple_of(8) && self.ops.iter().all(|(_, op)| calm(op))
    }

    /// Addresses of a network that are enough for all services at once, even if each task is there twice.
    #[must_use]
    pub fn addresses(&self) -> u64 {
        let mut places = BTreeMap::<u8, u64>::new();
        let nodes = u64::from(self.nodes);
        for (_, op) in &self.ops {
            let (service, count) = match op {
                Op::Create { service, wish } | Op::Update { service, wish } => (service, wish.replicas.max(nodes)),
                Op::Scale { service, replicas } => (service, *replicas),
                _ => continue,
            };
            let most = places.entry(*service).or_default();
            *most = count.max(*most);
        }
        // A virtual address each, one for each node, and the gateway.
        places.values().map(|count| 2 * count + 1).sum::<u64>() + nodes + 1
    }

    /// The same operations, one every so often: a cluster in ordinary use, or nearly at rest.
    #[must_use]
    pub fn spaced(mut self, every: Duration) -> Self {
        let every = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
        for (index, (at, _)) in self.ops.iter_mut().enumerate() {
            *at = every.saturating_mul(index as u64).saturating_add(500);
        }
        self
    }

    /// When the last operation comes.
    #[must_use]
    pub fn end(&self) -> Duration {
        Duration::from_millis(self.ops.last().map_or(0, |(at, _)| *at))
    }

    fn draw_calm(&self, dice: &mut Dice, services: &mut u8) -> Op {
        let manager = one_below(dice, self.managers);
        match dice.roll(4) {
            0 if *services < 3 => create(dice, services, self.nodes),
            0 | 1 => Op::Elect { manager },
            2 => Op::Lag { manager, millis: dice.roll(5_000) },
            _ => jump(dice, manager),
        }
    }

    fn draw_renewal(&self, dice: &mut Dice) -> Op {
        let node = one_below(dice, self.nodes);
        match dice.roll(12) {
            0..=7 => Op::Force { service: 0 },
            8 | 9 => Op::Slow { node, times: 20, millis: dice.roll(20_000) },
            10 => Op::Break { node },
            _ => Op::Elect { manager: one_below(dice, self.managers) },
        }
    }

    fn draw(&self, dice: &mut Dice, services: &mut u8) -> Op {
        let node = one_below(dice, self.nodes);
        let manager = one_below(dice, self.managers);
        let service = one_below(dice, *services + 1);
        let millis = match dice.roll(3) {
            0 => dice.roll(1_000),
            1 => dice.roll(12_000),
            _ => dice.roll(60_000),
        };
        match dice.roll(40) {
            0..=2 if *services < 4 => create(dice, services, self.nodes),
            0..=7 => Op::Update { service, wish: Wish::draw(dice, self.nodes) },
            8 | 9 => Op::Scale { service, replicas: dice.roll(6) },
            10 => Op::Force { service },
            11 => Op::Rollback { service },
            12 => Op::Remove { service },
            13 => Op::Drain { node },
            14 => Op::DrainInPlace { node },
            15 => Op::Pause { node },
            16 | 17 => Op::Active { node },
            18 => Op::Zone { node, zone: one_below(dice, 2) },
            19 => Op::RemoveNode { node, force: dice.coin() },
            20 => Op::AddNode { node },
            21 => Op::History { limit: dice.one_of([-1, 0, 1, 2, 5]) },
            22 | 23 => Op::CrashAgent { node, millis },
            24 | 25 => Op::CrashHost { node, millis },
            26 | 27 => Op::Cut { node, millis },
            28 => Op::CutFrom { node, manager, millis },
            29 => Op::Break { node },
            30 => Op::Slow { node, times: 1 + one_below(dice, 20), millis },
            31 => Op::CrashManager { manager, millis },
            32 => Op::Isolate { manager, millis },
            33 | 34 => Op::Elect { manager },
            35 => Op::Lag { manager, millis },
            36 => jump(dice, manager),
            37 => Op::Flaky { percent: one_below(dice, 80), millis },
            38 => Op::Kill { which: one_below(dice, 100) },
            _ => Op::Sicken { which: one_below(dice, 100) },
        }
    }
}

fn create(dice: &mut Dice, services: &mut u8, nodes: u8) -> Op {
    *services += 1;
    Op::Create { service: *services, wish: Wish::draw(dice, nodes) }
}

fn jump(dice: &mut Dice, manager: u8) -> Op {
    let far = dice.one_of([10, 100, 3_600]);
    let seconds = i64::try_from(dice.roll(2 * far)).unwrap_or(0) - i64::try_from(far).unwrap_or(0);
    Op::Jump { manager, seconds }
}

fn one_below(dice: &mut Dice, count: u8) -> u8 {
    u8::try_from(dice.roll(u64::from(count.max(1)))).expect("below a u8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spaced_does_the_same_things_at_other_times() {
        let drawn = Scenario::of_size(3, Some(5), Some(50));
        let spaced = drawn.clone().spaced(Duration::from_secs(60));
        let ops = |scenario: &Scenario| scenario.ops.iter().map(|(_, op)| op.clone()).collect::<Vec<_>>();
        assert_eq!((ops(&spaced), spaced.seed, spaced.managers, spaced.nodes), (ops(&drawn), 3, 5, 50));
        assert!(spaced.ops.windows(2).all(|pair| pair[1].0 - pair[0].0 == 60_000));
        assert_eq!(spaced.end(), Duration::from_millis(500) + Duration::from_secs(60) * u32::try_from(drawn.ops.len() - 1).unwrap());
    }
}
