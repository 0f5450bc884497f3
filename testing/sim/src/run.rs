//! From a scenario to a verdict.

use crate::desired::{is_paused, missing};
use crate::mutant::Mutant;
use crate::queue::Moment;
use crate::scenario::{Op, Scenario};
use crate::world::World;
use skep_types::ClusterView as _;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// What did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The invariant's name.
    pub name: String,
    pub words: String,
}

/// What became of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub verdict: Option<Verdict>,
    pub events: u64,
    pub simulated: Moment,
    /// When faults had stopped, so long until all was as it should be.
    pub recovery: Duration,
    /// Commits, to see that two runs are the same.
    pub revision: u64,
    pub lines: Vec<String>,
}

/// Faults stop so long after the last operation.
const LAST_FAULTS: Duration = Duration::from_secs(20);
/// And so long after that everything must be as it should be: a minute for tasks that do not stop, and updates one slot at a time
/// with their delays.
const PATIENCE: Duration = Duration::from_secs(400);
const LOOK: Duration = Duration::from_secs(2);
/// A node that is drained then is empty so soon.
const EMPTIED: Duration = Duration::from_secs(120);
/// A run with more events for each node does not come to rest; one whose operations take longer than usual may have more.
const MOST_EVENTS: u64 = 100_000;
const MOST_EVENTS_A_SECOND: u64 = 50;
const USUAL_END: Duration = Duration::from_secs(600);
/// How often users begin an update anew that was paused.
const MOST_PATIENT: u32 = 4;

/// Runs a scenario to its end, or until something does not hold. `traced`: with a line for each thing that happens.
#[must_use]
pub fn run(scenario: &Scenario, mutant: Option<Mutant>, traced: bool) -> Outcome {
    let mut world = World::new(scenario, mutant, traced);
    let recovery = match catch_unwind(AssertUnwindSafe(|| play(&mut world))) {
        Ok(recovery) => recovery,
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned()));
            world.watch.fail("panic", words.unwrap_or_default());
            Duration::ZERO
        }
    };
    let verdict = world.watch.violation.take().map(|(name, words)| Verdict { name: name.into(), words });
    let revision = world.raft.truth.version().0;
    Outcome { verdict, events: world.events, simulated: world.now, recovery, revision, lines: world.lines.take().unwrap_or_default() }
}

/// Returns how long it took until all was as it should be.
fn play(world: &mut World) -> Duration {
    let calm = world.scenario.end() + LAST_FAULTS;
    if !until(world, calm) {
        return Duration::ZERO;
    }
    world.heal();
    if !until(world, calm + Duration::from_secs(8)) {
        return Duration::ZERO;
    }
    world.tidy();
    let begin = world.now;
    let mut again = BTreeMap::<String, u32>::new();
    let mut last = String::new();
    let mut good = 0;
    while world.now < begin + PATIENCE {
        if !until(world, world.now + LOOK) {
            return Duration::ZERO;
        }
        match missing(world) {
            None => good += 1,
            Some(words) => {
                good = 0;
                last = words;
            }
        }
        if good == 3 {
            world.watch.check_acknowledged();
            let recovery = world.now - begin;
            drain(world);
            return recovery;
        }
        let paused: Vec<String> =
            world.raft.view().services().filter(|service| is_paused(service)).map(|service| service.name().to_owned()).collect();
        for name in paused {
            let count = again.entry(name.clone()).or_default();
            *count += 1;
            if let Some(service) = name[1..].parse().ok().filter(|_| *count <= MOST_PATIENT) {
                world.do_op(Op::Force { service });
            }
        }
    }
    world.watch.fail("I5", format!("{} s after faults stopped: {last}", PATIENCE.as_secs()));
    PATIENCE
}

/// Drains a node in place when nothing else happens: who serves is missed by nobody, and the node is empty soon.
fn drain(world: &mut World) {
    let nodes = world.scenario.nodes;
    if nodes < 2 {
        return;
    }
    let number = u8::try_from(world.scenario.seed % u64::from(nodes)).expect("below a u8");
    let node = world.id_of(number);
    world.watch.drain_begins();
    world.do_op(Op::DrainInPlace { node: number });
    let begin = world.now;
    let mut left = None;
    while world.now < begin + EMPTIED {
        if !until(world, world.now + LOOK) {
            return;
        }
        left = world.left_on(&node);
        if left.is_none() {
            return;
        }
    }
    world.watch.fail("I5", format!("{} s after a node was drained: {}", EMPTIED.as_secs(), left.unwrap_or_default()));
}

/// Lets everything happen that comes before `moment`; false if something did not hold.
fn until(world: &mut World, moment: Moment) -> bool {
    let longer = world.scenario.end().saturating_sub(USUAL_END).as_secs();
    let most = (MOST_EVENTS + MOST_EVENTS_A_SECOND * longer) * u64::from(world.scenario.nodes.max(4));
    while world.queue.next().is_some_and(|next| next <= moment) {
        if !world.happen() {
            return false;
        }
        if world.events > most {
            world.watch.fail("I5", "the cluster does not come to rest: too many events".into());
            return false;
        }
    }
    world.now = moment;
    true
}
