//! From a scenario to a verdict.

use super::disk::Disk;
use super::host::{Host, Machines};
use super::net::{End, Up, World};
use super::scenario::{Op, Scenario};
use super::{Mutant, client, lock};
use crate::run::Verdict;
use skep_store::{FeedEvent, Member, RaftId, Store, StoreConfig, StoreError, Timing, sim};
use skep_types::{ClusterView as _, Object, Timestamp};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// When faults have stopped, a group agrees again within this time.
const SETTLED: Duration = Duration::from_secs(120);
const ADMIN: Duration = Duration::from_secs(10);

/// What became of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub verdict: Option<Verdict>,
    pub simulated: Duration,
    pub writes: u64,
    pub reads: u64,
    /// Crashes of processes and machines.
    pub crashes: u64,
    /// Of everything that was noted.
    pub digest: u64,
    pub lines: Vec<String>,
}

thread_local! {
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Panics of tasks are caught by their runtime and would be seen by nobody.
fn hear_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let heard = PANICS.with(|panics| panics.borrow_mut().as_mut().map(|panics| panics.push(info.to_string())).is_some());
            if !heard {
                before(info);
            }
        }));
    });
}

/// Runs a scenario to its end, or until something does not hold.
///
/// # Panics
/// When there is no memory for a runtime.
#[must_use]
pub fn run(scenario: &Scenario, mutant: Option<Mutant>, trace: bool) -> Outcome {
    hear_panics();
    PANICS.with(|panics| panics.replace(Some(Vec::new())));
    let machines = Arc::new(Mutex::new(Machines::new(scenario.seed, mutant)));
    let cut = Arc::new(Notify::new());
    let host = Host { machines: Arc::clone(&machines), cut: Arc::clone(&cut) };
    let installed = sim::install(Rc::new(host));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime of one thread");
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let world = World::new(machines, mutant, trace);
            let mut group = Group { world, cut, scenario: scenario.clone(), tasks: JoinSet::new(), control: Arc::default() };
            group.live().await;
            group.outcome()
        })
    }));
    drop(runtime);
    drop(installed);
    let panics = PANICS.with(RefCell::take).unwrap_or_default();
    let mut outcome = outcome.unwrap_or_else(|_| Outcome {
        verdict: None,
        simulated: Duration::ZERO,
        writes: 0,
        reads: 0,
        crashes: 0,
        digest: 0,
        lines: Vec::new(),
    });
    if let Some(words) = panics.first() {
        outcome.verdict = Some(Verdict { name: "panic".into(), words: words.clone() });
    }
    outcome
}

fn panicked() -> bool {
    PANICS.with(|panics| panics.borrow().as_ref().is_some_and(|panics| !panics.is_empty()))
}

/// How a process ends next.
struct Control {
    machine: u64,
    group: usize,
    life: CancellationToken,
    power: bool,
    down: Duration,
    flip: Option<u64>,
    /// What changed in that way, until the manager has been started with it.
    flipped: Option<Flipped>,
    /// Not to be started again.
    gone: bool,
    /// It was added to the group, or made it.
    member: bool,
}

type Controls = Arc<Mutex<BTreeMap<RaftId, Control>>>;

pub(super) struct Group {
    pub(super) world: Arc<World>,
    cut: Arc<Notify>,
    pub(super) scenario: Scenario,
    pub(super) tasks: JoinSet<()>,
    control: Controls,
}

pub(super) fn member(id: RaftId) -> Member {
    Member { node_id: format!("node-{id}"), addr: format!("10.0.0.{id}:2377") }
}

/// As the product keeps its store, but for sizes; clocks of managers differ, and go faster or slower.
pub(super) fn config(world: &World, scenario: &Scenario, machine: u64) -> StoreConfig {
    let (dir, drift, offset) = {
        let mut machines = lock(&world.machines);
        let draw = machines.chance.number(20, machine, 0);
        (machines.dir(machine), 970 + u32::try_from(draw % 61).unwrap_or(0), i64::try_from(draw % 7_200).unwrap_or(0) - 3_600)
    };
    let real = Timing::default();
    let drifted = |time: Duration| time * drift / 1_000;
    let began = world.began;
    StoreConfig {
        timing: Timing {
            heartbeat: drifted(real.heartbeat),
            election_min: drifted(real.election_min),
            election_max: drifted(real.election_max),
        },
        clock: Arc::new(move || {
            let since = i64::try_from(began.elapsed().as_nanos()).unwrap_or(i64::MAX);
            Timestamp(1_700_000_000_000_000_000 + offset * 1_000_000_000 + since)
        }),
        snapshot_entries: scenario.snapshot_entries,
        keep_entries: 5,
        segment_bytes: 128 * 1024,
        cache_bytes: 2 * 1024,
        propose_timeout: Duration::from_secs(4),
        ..StoreConfig::new(dir)
    }
}

/// One manager's process, started again and again.
async fn supervise(world: Arc<World>, scenario: Scenario, id: RaftId, machine: u64, controls: Controls) {
    loop {
        let life = CancellationToken::new();
        let (group, first) = {
            let mut controls = lock(&controls);
            let Some(control) = controls.get_mut(&id) else { return };
            (control.life, control.power, control.down) = (life.clone(), false, Duration::from_millis(300));
            (control.group, !control.member && id == 1)
        };
        let boot = {
            let mut machines = lock(&world.machines);
            let Some(disk) = machines.disks.get_mut(&machine) else { return };
            if disk.off {
                disk.power_cut(); // the power went while nothing ran
            }
            disk.boot
        };
        let end = || Arc::new(End { world: Arc::clone(&world), me: id, machine, boot });
        let opening = async {
            match Store::open(config(&world, &scenario, machine), end()).await {
                Err(StoreError::Empty { .. }) if first => Store::bootstrap(config(&world, &scenario, machine), id, member(id), end()).await,
                Err(StoreError::Empty { .. }) => Store::join(config(&world, &scenario, machine), id, end()).await,
                opened => opened,
            }
        };
        let opened = tokio::select! {
            biased;
            () = life.cancelled() => None,
            opened = opening => Some(opened),
        };
        let cut_short = opened.as_ref().is_none_or(Result::is_err) && !world.is_alive(machine, boot);
        let flipped = lock(&controls).get_mut(&id).and_then(|control| control.flipped.take_if(|_| opened.is_some() && !cut_short));
        match opened {
            None => {}
            Some(Err(_)) if cut_short => life.cancelled().await,
            Some(Err(error)) if flipped.is_some() => {
                world.note(|| format!("manager {id} refuses: {error}"));
                mend(&world, machine, flipped);
                continue;
            }
            Some(Err(error)) => {
                let mut words = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(error) = source {
                    words = format!("{words}: {error}");
                    source = error.source();
                }
                world.fail(group, "opens", format!("manager {id} cannot be started: {words}"));
                return;
            }
            Some(Ok(store)) => {
                world.note(|| format!("manager {id} runs, at revision {}", store.view().revision().0));
                let up = Up { machine, boot, group, store, life: life.clone() };
                lock(&world.lines).up.insert(id, up.clone());
                tokio::spawn(watch(Arc::clone(&world), id, up));
                life.cancelled().await;
                let up = lock(&world.lines).up.remove(&id);
                drop(up);
            }
        }
        let (down, gone) = {
            let controls = lock(&controls);
            let Some(control) = controls.get(&id) else { return };
            let mut machines = lock(&world.machines);
            let Some(disk) = machines.disks.get_mut(&machine) else { return };
            let power = control.power || disk.off;
            if power {
                disk.power_cut();
            } else {
                disk.reboot();
            }
            (control.down, control.gone)
        };
        world.note(|| format!("manager {id} is down"));
        if gone {
            return;
        }
        sleep(down).await;
        if let Some(control) = lock(&controls).get_mut(&id)
            && let Some(place) = control.flip.take()
        {
            control.flipped = flip(&world, id, machine, place).or(control.flipped.take());
        }
    }
}

/// A bit that changed.
struct Flipped {
    path: PathBuf,
    byte: usize,
    bit: u8,
    /// What the byte is since.
    now: u8,
}

/// Changes one bit of what is on a disk.
fn flip(world: &World, id: RaftId, machine: u64, place: u64) -> Option<Flipped> {
    let mut machines = lock(&world.machines);
    let disk = machines.disks.get_mut(&machine)?;
    let files: Vec<_> = disk.files().into_iter().filter(|(_, size)| *size > 0).collect();
    let (path, size) = files.get(usize::try_from(place.checked_rem(files.len() as u64)?).ok()?)?.clone();
    // Most of a segment is not written yet: half of all flips are in the first part.
    let within = if (place >> 8).is_multiple_of(2) { size.min(12_000) } else { size };
    let byte = usize::try_from((place >> 16) % within as u64).ok()?;
    let bit = u8::try_from((place >> 12) % 8).ok()?;
    disk.flip(&path, byte, bit);
    world.note(|| format!("a bit of byte {byte} of {} of manager {id} changes", path.display()));
    Some(Flipped { now: disk.byte(&path, byte)?, path, byte, bit })
}

/// The bit changes back, as a good copy of the disk would do, unless the byte was written since.
fn mend(world: &World, machine: u64, flipped: Option<Flipped>) {
    let mut machines = lock(&world.machines);
    let Some(disk) = machines.disks.get_mut(&machine) else { return };
    if world.mutant == Some(Mutant::NumberTwice) {
        disk.wipe();
    } else if let Some(Flipped { path, byte, bit, now }) = flipped
        && disk.byte(&path, byte) == Some(now)
    {
        disk.flip(&path, byte, bit);
    }
    disk.reboot();
}

/// Looks at what a manager applies, and whether it leads.
pub(super) async fn watch(world: Arc<World>, id: RaftId, up: Up) {
    let Up { machine, boot, group, store, life } = up;
    let mut leadership = store.leadership();
    let mut led = 0;
    let view = store.view();
    let mut feed = store.feed(view.version());
    lock(&world.truth)[group].state(id, view.version().0, view.state_hash());
    drop(view);
    loop {
        let event = tokio::select! {
            biased;
            () = life.cancelled() => return,
            changed = leadership.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = leadership.borrow_and_update().clone();
                world.note(|| format!("manager {id}: leads {}, leader {:?}, term {}", now.is_leader, now.leader.map(|(leader, _)| leader), now.term));
                if now.is_leader && now.term != led {
                    led = now.term;
                    let removed = lock(&world.truth)[group].removed.contains(&id);
                    if removed {
                        world.fail(group, "I9", format!("manager {id} leads in term {led} and was removed before"));
                    }
                }
                continue;
            }
            event = feed.next() => event,
        };
        if !world.is_alive(machine, boot) {
            return;
        }
        let view = store.view();
        match event {
            None => return,
            Some(FeedEvent::Resync) => feed.resume(view.version()),
            Some(FeedEvent::Commit(commit)) => {
                let done = commit.changes.iter().map(|change| {
                    let Object::Config(config) = change.object() else { return (String::new(), None) };
                    let removed = matches!(change, skep_types::Change::Removed(_));
                    (config.id.as_str().to_owned(), (!removed).then(|| client::content(config)))
                });
                lock(&world.truth)[group].committed(id, commit.version.0, done.collect());
            }
        }
        lock(&world.truth)[group].state(id, view.version().0, view.state_hash());
    }
}

impl Group {
    fn outcome(&self) -> Outcome {
        let truth = lock(&self.world.truth);
        Outcome {
            verdict: truth.iter().find_map(|truth| truth.verdict.clone()),
            simulated: self.world.began.elapsed(),
            writes: truth.iter().map(|truth| truth.writes).sum(),
            reads: truth.iter().map(|truth| truth.reads).sum(),
            crashes: lock(&self.world.machines).disks.values().map(|disk| disk.boot).sum(),
            digest: self.world.digest(),
            lines: self.world.lines_of_trace(),
        }
    }

    pub(super) fn failed(&self) -> bool {
        panicked() || lock(&self.world.truth).iter().any(|truth| truth.verdict.is_some())
    }

    /// A machine with an empty disk, and the manager on it.
    fn begin(&mut self, id: RaftId) {
        let mut disk = Disk::new(self.scenario.seed.wrapping_mul(31).wrapping_add(id));
        if let Some(Mutant::Disk(lie)) = self.world.mutant {
            disk.lie = Some(lie);
        }
        if id == 1 {
            disk.cut_in = self.scenario.early;
        }
        lock(&self.world.machines).disks.insert(id, disk);
        let control = Control {
            machine: id,
            group: 0,
            life: CancellationToken::new(),
            power: false,
            down: Duration::ZERO,
            flip: None,
            flipped: None,
            gone: false,
            member: false,
        };
        lock(&self.control).insert(id, control);
        self.tasks.spawn(supervise(Arc::clone(&self.world), self.scenario.clone(), id, id, Arc::clone(&self.control)));
    }

    async fn live(&mut self) {
        self.tasks.spawn(see_cuts(Arc::clone(&self.world), Arc::clone(&self.cut), Arc::clone(&self.control)));
        self.begin(1);
        if self.leader(SETTLED).await.is_none() {
            return self.world.fail(0, "I5", "the first manager does not lead".into());
        }
        if let Some(control) = lock(&self.control).get_mut(&1) {
            control.member = true;
        }
        for id in 2..=self.scenario.managers {
            self.begin(id);
            if !add(&self.world, &self.control, id, SETTLED).await {
                return self.world.fail(0, "I5", format!("manager {id} is not taken in"));
            }
        }
        let mut clients = JoinSet::new();
        for client in 0..self.scenario.clients {
            clients.spawn(client::work(Arc::clone(&self.world), 1_000 + client, 0));
        }
        self.faults().await;
        clients.abort_all();
        while clients.join_next().await.is_some() {}
        if self.failed() {
            return;
        }
        self.end().await;
        if self.scenario.managers > 1 && self.scenario.seed.is_multiple_of(2) && !self.failed() {
            self.succeed().await;
        }
    }

    /// All processes end for good.
    pub(super) fn stop_all(&self) {
        for id in self.there() {
            self.crash(id, true, 0, None);
            if let Some(control) = lock(&self.control).get_mut(&id) {
                control.gone = true;
            }
        }
    }

    /// One that ended for good is started all the same.
    pub(super) fn start_again(&mut self, id: RaftId) {
        let machine = {
            let mut controls = lock(&self.control);
            let Some(control) = controls.get_mut(&id) else { return };
            control.gone = false;
            control.machine
        };
        self.tasks.spawn(supervise(Arc::clone(&self.world), self.scenario.clone(), id, machine, Arc::clone(&self.control)));
    }

    async fn faults(&mut self) {
        let began = Instant::now();
        let mut admin: JoinSet<()> = JoinSet::new();
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        let ops = self.scenario.ops.clone();
        for (at, op) in ops {
            while began.elapsed() < Duration::from_millis(at) {
                let left = Duration::from_millis(at).saturating_sub(began.elapsed());
                sleep(left.min(Duration::from_millis(500))).await;
                if self.failed() {
                    return;
                }
            }
            self.world.note(|| format!("{op:?}"));
            self.carry_out(&op, &mut admin, &turn);
        }
        // What users asked for is finished or given up, and what was broken is mended.
        while admin.join_next().await.is_some() {}
    }

    /// Those that were begun and not taken away.
    fn there(&self) -> Vec<RaftId> {
        lock(&self.control).iter().filter(|(_, control)| !control.gone).map(|(id, _)| *id).collect()
    }

    fn pick(&self, place: u64) -> Option<RaftId> {
        self.there().get(usize::try_from(place).unwrap_or(0)).copied()
    }

    fn carry_out(&mut self, op: &Op, admin: &mut JoinSet<()>, turn: &Arc<tokio::sync::Mutex<()>>) {
        let world = Arc::clone(&self.world);
        match *op {
            Op::Power { manager, steps, down } => {
                let Some(id) = self.pick(manager) else { return };
                let mut controls = lock(&self.control);
                let Some(control) = controls.get_mut(&id) else { return };
                control.down = Duration::from_millis(down);
                if let Some(disk) = lock(&world.machines).disks.get_mut(&control.machine) {
                    disk.cut_in = Some(steps);
                }
            }
            Op::PowerOfAll { down } => self.there().into_iter().for_each(|id| self.crash(id, true, down, None)),
            Op::Kill { manager, down } => {
                if let Some(id) = self.pick(manager) {
                    self.crash(id, false, down, None);
                }
            }
            Op::Flip { manager, place, down } => {
                if let Some(id) = self.pick(manager) {
                    self.crash(id, true, down, Some(place));
                }
            }
            Op::Cut { from, to, millis } => {
                if let (Some(from), Some(to)) = (self.pick(from), self.pick(to)) {
                    self.cut(BTreeSet::from([(from, to)]), millis);
                }
            }
            Op::Isolate { manager, deaf, mute, millis } => {
                let Some(id) = self.pick(manager) else { return };
                let others = self.there().into_iter().filter(|other| *other != id);
                let ways = others.flat_map(|other| {
                    let both = deaf == mute;
                    [(deaf || both).then_some((other, id)), (mute || both).then_some((id, other))]
                });
                self.cut(ways.flatten().collect(), millis);
            }
            Op::Weather { loss, late, millis } => {
                (lock(&world.lines).loss, lock(&world.lines).late) = (loss, late);
                self.tasks.spawn(async move {
                    sleep(Duration::from_millis(millis)).await;
                    (lock(&world.lines).loss, lock(&world.lines).late) = (0, 0);
                });
            }
            Op::Slow { manager, most, millis } => {
                let Some(id) = self.pick(manager) else { return };
                lock(&world.machines).slow.insert(id, most);
                self.tasks.spawn(async move {
                    sleep(Duration::from_millis(millis)).await;
                    lock(&world.machines).slow.remove(&id);
                });
            }
            Op::HandOver => {
                let turn = Arc::clone(turn);
                admin.spawn(async move {
                    let _turn = turn.lock().await;
                    if let Some((id, store)) = leading(&world) {
                        let to = timeout(ADMIN, store.hand_over(Duration::from_secs(3))).await;
                        world.note(|| format!("manager {id} hands over: {to:?}"));
                    }
                });
            }
            Op::Snapshot { manager } => {
                let Some(up) = self.pick(manager).and_then(|id| lock(&world.lines).up.get(&id).cloned()) else { return };
                admin.spawn(async move { drop(up.store.trigger_snapshot().await) });
            }
            Op::Add => {
                let id = lock(&self.control).keys().max().copied().unwrap_or(0) + 1;
                if self.there().len() < 6 {
                    self.begin(id);
                    let (turn, controls) = (Arc::clone(turn), Arc::clone(&self.control));
                    admin.spawn(async move {
                        let _turn = turn.lock().await;
                        let added = add(&world, &controls, id, ADMIN).await;
                        world.note(|| format!("manager {id} is added: {added}"));
                    });
                }
            }
            Op::Remove { manager } => {
                let Some(id) = self.pick(manager) else { return };
                let turn = Arc::clone(turn);
                admin.spawn(async move {
                    let _turn = turn.lock().await;
                    remove(&world, id).await;
                });
            }
        }
    }

    fn crash(&self, id: RaftId, power: bool, down: u64, flip: Option<u64>) {
        let mut controls = lock(&self.control);
        let Some(control) = controls.get_mut(&id) else { return };
        (control.power, control.down, control.flip) = (power, Duration::from_millis(down), flip);
        control.life.cancel();
        // What it does in the moments until its tasks are gone does not count.
        if let Some(disk) = lock(&self.world.machines).disks.get_mut(&control.machine) {
            disk.off |= power;
        }
    }

    fn cut(&mut self, ways: BTreeSet<(RaftId, RaftId)>, millis: u64) {
        let world = Arc::clone(&self.world);
        lock(&world.lines).cut.extend(ways.iter().copied());
        self.tasks.spawn(async move {
            sleep(Duration::from_millis(millis)).await;
            lock(&world.lines).cut.retain(|way| !ways.contains(way));
        });
    }

    async fn leader(&self, limit: Duration) -> Option<(RaftId, Store)> {
        let began = Instant::now();
        while began.elapsed() < limit && !self.failed() {
            if let Some(found) = leading(&self.world) {
                return Some(found);
            }
            sleep(Duration::from_millis(50)).await;
        }
        None
    }

    /// Faults stop, everybody agrees, and nothing is lost; also not when the power of all goes once more.
    async fn end(&mut self) {
        for round in ["at the end", "after the power of all was gone"] {
            {
                let mut lines = lock(&self.world.lines);
                lines.cut.clear();
                (lines.loss, lines.late) = (0, 0);
                let mut machines = lock(&self.world.machines);
                machines.slow.clear();
                machines.disks.values_mut().for_each(|disk| disk.cut_in = None);
            }
            if !self.agree().await {
                if !self.failed() {
                    let states =
                        lock(&self.world.lines).up.iter().map(|(id, up)| format!("{id}: {:?}", up.store.status())).collect::<Vec<_>>();
                    self.world.fail(0, "I5", format!("{round} the managers do not agree: {}", states.join("; ")));
                }
                return;
            }
            if round == "at the end" {
                self.there().into_iter().for_each(|id| self.crash(id, true, 100, None));
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Waits until all members have the same state, and looks whether it is the one they should have.
    async fn agree(&self) -> bool {
        let began = Instant::now();
        while began.elapsed() < SETTLED && !self.failed() {
            sleep(Duration::from_millis(200)).await;
            let Some((_, leader)) = leading(&self.world) else { continue };
            if leader.read_barrier().await.is_err() {
                continue;
            }
            let revision = leader.view().version();
            let members = leader.status().members;
            let up = lock(&self.world.lines).up.clone();
            let agrees = |id: &RaftId| {
                up.get(id).is_some_and(|up| up.store.view().version() == revision && up.store.state_hash() == leader.state_hash())
            };
            if members.iter().all(|member| agrees(&member.raft_id)) {
                self.world.note(|| format!("all agree at revision {}", revision.0));
                lock(&self.world.truth)[0].settle(revision.0);
                return !self.failed();
            }
        }
        false
    }
}

/// Where the power has gone, the process is gone, too.
async fn see_cuts(world: Arc<World>, cut: Arc<Notify>, controls: Controls) {
    loop {
        cut.notified().await;
        let off: Vec<u64> = lock(&world.machines).disks.iter().filter(|(_, disk)| disk.off).map(|(machine, _)| *machine).collect();
        for control in lock(&controls).values().filter(|control| off.contains(&control.machine)) {
            control.life.cancel();
        }
    }
}

fn leading(world: &World) -> Option<(RaftId, Store)> {
    let up = lock(&world.lines).up.clone();
    up.into_iter().find(|(_, up)| up.store.leads()).map(|(id, up)| (id, up.store))
}

/// As the product takes a manager in: first without a vote, then with one.
async fn add(world: &Arc<World>, controls: &Controls, id: RaftId, limit: Duration) -> bool {
    let began = Instant::now();
    while began.elapsed() < limit && !panicked() {
        if let Some((_, leader)) = leading(world) {
            let adding = async {
                leader.add_learner(id, member(id)).await?;
                leader.add_voter(id).await
            };
            match timeout(ADMIN, adding).await {
                Ok(Ok(())) => {
                    if let Some(control) = lock(controls).get_mut(&id) {
                        control.member = true;
                    }
                    return true;
                }
                other => world.note(|| format!("manager {id} is not taken in yet: {other:?}")),
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
    false
}

async fn remove(world: &Arc<World>, id: RaftId) {
    let Some((_, leader)) = leading(world) else { return };
    let voters = leader.status().members.iter().filter(|member| member.voter).count();
    if voters < 3 {
        return;
    }
    let done = timeout(ADMIN, leader.remove_member(id)).await;
    world.note(|| format!("manager {id} is removed: {done:?}"));
    if matches!(done, Ok(Ok(()))) {
        lock(&world.truth)[0].removed.insert(id);
    }
}
