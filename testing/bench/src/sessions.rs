//! SC1, B7, B6, SC4: many agents and few managers. One run: the agents join, idle, get tasks, and lose some.

use crate::managers::until;
use crate::meter::{Meter, Used, between, thread_seconds};
use crate::report::{Goal, Report, Row};
use crate::side::Side;
use crate::stats::{exponent, median};
use anyhow::{Result, ensure};
use skep_agents::{Behaviour, Fleet, FleetOptions, JoinOptions, join_each, raise_open_files, usage_of};
use skep_proto::v1;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// How large.
#[derive(Debug, Clone)]
pub struct Scale {
    pub managers: usize,
    pub agents: usize,
    /// Replicas of the one service, step by step.
    pub steps: Vec<usize>,
    pub idle: Duration,
    /// Tasks that fail, one after the other, at each step.
    pub failures: usize,
}

impl Scale {
    #[must_use]
    pub fn quick() -> Self {
        Self { managers: 1, agents: 1_000, steps: vec![1_000, 10_000, 1_000], idle: Duration::from_secs(20), failures: 50 }
    }

    #[must_use]
    pub fn full() -> Self {
        Self { agents: 10_000, steps: vec![10_000, 100_000, 1_000], idle: Duration::from_secs(60), failures: 100, ..Self::quick() }
    }

    /// What dockerd manages within minutes.
    #[must_use]
    pub fn peer(&self) -> Self {
        Self { managers: 1, agents: self.agents.min(500), steps: vec![1_000], idle: Duration::from_secs(20), failures: 20 }
    }
}

const LIMIT: Duration = Duration::from_secs(600);
const STEP: Duration = Duration::from_millis(10);
/// Nodes that join at the same time: a burst, but not more than the machine has handshakes to give.
const AT_ONCE: usize = 256;
/// After the last registration: heartbeats spread, what the burst left behind is given back.
const CALM: Duration = Duration::from_secs(15);
/// The managers' own agents find no containerd: after six periods their nodes are DOWN, which is written once.
const NODES_DOWN: Duration = Duration::from_secs(45);
/// Idle means this share of a core, over what heartbeats take.
const IDLE_SHARE: f64 = 0.02;
const WINDOW: Duration = Duration::from_millis(100);
/// SwarmKit without executor on 11 nodes: milliseconds a task of 5,000 (spec/peers.md 5). A constant: it needs a Go tool chain.
const SWARMKIT_TASK_MS: f64 = 11_700.0 / 5_000.0;

/// Everybody who takes part, and what was learnt so far.
struct Arena {
    side: Side,
    fleet: Fleet,
    scale: Scale,
    /// CPU seconds a second that sessions take by themselves.
    idle: f64,
    rss_before: u64,
    begin: Instant,
    service: Option<String>,
}

/// Open files that take part in this size, on either side.
///
/// # Errors
/// If the system does not allow so many.
pub fn make_room(scale: &Scale) -> Result<()> {
    Ok(raise_open_files(scale.agents as u64 + 6_000)?)
}

/// # Errors
/// If a manager ends or a step takes far too long.
pub async fn measure(which: &BTreeSet<String>, scale: &Scale, side: Side) -> Result<Vec<Report>> {
    let (arena, joined) = Arena::fill(side, scale).await?;
    let outcome = arena.measure(which, joined).await;
    outcome.map_err(|(error, logs)| error.context(logs))
}

fn kib(pids: &[u32]) -> u64 {
    pids.iter().map(|pid| usage_of(*pid).rss_kib).sum()
}

fn files_below(dir: &Path) -> Vec<(std::path::PathBuf, u64, Option<std::time::SystemTime>)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => dirs.push(entry.path()),
                Ok(meta) => found.push((entry.path(), meta.len(), meta.modified().ok())),
                Err(_) => {}
            }
        }
    }
    found.sort();
    found
}

impl Arena {
    /// SC1: everybody joins by token, each with the connections a real node makes, and opens its session at once.
    async fn fill(side: Side, scale: &Scale) -> Result<(Self, Report)> {
        let mut report = Report::new("SC1", "join burst: token -> certificate -> session");
        report.rounds = 1;
        let pids = side.pids();
        let rss_before = kib(&pids);
        let before = side.revision().await?;
        let options = FleetOptions { managers: side.addresses(), behaviour: Behaviour::default(), spread: Duration::ZERO };
        let mut fleet = Fleet::start(Vec::new(), options);
        let (meter, begin) = (Meter::start(&pids), Instant::now());
        let joining = JoinOptions { managers: side.addresses(), token: side.worker_token(), at_once: AT_ONCE, roots_each: true };
        let joined = join_each(joining, scale.agents, |member| fleet.add(vec![member], Duration::ZERO)).await;
        joined.map_err(anyhow::Error::from).map_err(|error| error.context(side.log_tails()))?;
        let last_certificate = begin.elapsed().as_secs_f64();
        wait_connected(&fleet, scale.agents).await.map_err(|error| error.context(side.log_tails()))?;
        let used = meter.stop();
        let commits = side.revision().await? - before - 1;
        report.foreign.push(used.foreign);
        let agents = scale.agents as f64;
        let count = fleet.tally().count();
        report.rows = vec![
            Row::plain("CPU of the managers, a joining agent", "ms", Some(used.cpu / agents * 1e3), Some(Goal::Value(1.5))),
            Row::plain("wall, a joining agent", "ms", Some(used.wall / agents * 1e3), Some(Goal::Value(6.0))),
            Row::plain(format!("{} agents: all have certificates", scale.agents), "s", Some(last_certificate), None),
            Row::plain(format!("{} agents: all have sessions", scale.agents), "s", Some(used.wall), None),
            Row::plain("CPU of the managers", "s", Some(used.cpu), None),
            Row::plain("CPU of the agents, in one process", "s", Some(used.own), None),
            Row::plain("transactions, a joining agent", "commits", Some(commits as f64 / agents), None),
            Row::plain(
                "sessions refused or lost meanwhile",
                "sessions",
                Some((count.register_failures + count.lost) as f64),
                Some(Goal::Value(0.0)),
            ),
        ];
        report.remarks.push(format!(
            "{} manager(s) of {}; each agent fetches the roots, asks for a certificate and opens its session over a connection of its own, {AT_ONCE} at a time; \
             goals of 10,000 agents (60 s, 15 CPU s) are given for one",
            scale.managers,
            side.name()
        ));
        let arena = Self { side, fleet, scale: scale.clone(), idle: 0.0, rss_before, begin, service: None };
        Ok((arena, report))
    }

    async fn measure(mut self, which: &BTreeSet<String>, joined: Report) -> Result<Vec<Report>, (anyhow::Error, String)> {
        let outcome = self.steps(which, joined).await;
        let logs = self.side.log_tails();
        self.fleet.stop().await;
        outcome.map_err(|error| (error, logs))
    }

    async fn steps(&mut self, which: &BTreeSet<String>, joined: Report) -> Result<Vec<Report>> {
        let mut reports = vec![joined];
        eprintln!("{} agents have sessions; idling", self.scale.agents);
        reports.push(self.idling().await?);
        if which.contains("B6") || which.contains("SC4") {
            reports.extend(self.tasks().await?);
        }
        reports.retain(|report| which.contains(report.name));
        Ok(reports)
    }

    /// B7.
    async fn idling(&mut self) -> Result<Report> {
        let mut report = Report::new("B7", "heartbeats of idle sessions");
        report.rounds = 1;
        tokio::time::sleep(CALM.max(NODES_DOWN.saturating_sub(self.begin.elapsed()))).await;
        let pids = self.side.pids();
        let before = self.side.revision().await?;
        let (count, files) = (self.fleet.tally().count(), self.side.log_dir().map(|dir| files_below(&dir)));
        let (meter, rss_begin) = (Meter::start(&pids), kib(&pids));
        let mut half = 0;
        for part in 0..2 {
            tokio::time::sleep(self.scale.idle / 2).await;
            if part == 0 {
                half = kib(&pids);
            }
        }
        let (used, rss) = (meter.stop(), kib(&pids));
        let touched = self.side.log_dir().map(|dir| files_below(&dir)) != files;
        let after = self.fleet.tally().count();
        let commits = self.side.revision().await? - before - 1;
        self.idle = used.cpu / used.wall;
        report.foreign.push(used.foreign);
        let agents = self.scale.agents as f64;
        let beats = (after.beats - count.beats) as f64;
        ensure!(beats > 0.0, "no agent beat in {:?}: {}", self.scale.idle, self.fleet.tally().last_problem());
        let own = usage_of(std::process::id());
        report.rows = vec![
            Row::plain(
                "CPU of the managers for 10,000 agents",
                "% of a core",
                Some(self.idle * 100.0 * 1e4 / agents),
                Some(Goal::Value(5.0)),
            ),
            Row::plain("RSS of the managers, an agent", "KiB", Some((rss - self.rss_before) as f64 / agents), Some(Goal::Value(24.0))),
            Row::plain("transactions while idle", "commits", Some(commits as f64), Some(Goal::Value(0.0))),
            Row::plain("files of the log touched while idle", "yes = 1", Some(f64::from(u8::from(touched))), Some(Goal::Value(0.0))),
            Row::plain("sessions lost while idle", "sessions", Some((after.lost - count.lost) as f64), Some(Goal::Value(0.0))),
            Row::plain("CPU of the managers, a beat", "us", Some(used.cpu / beats * 1e6), None),
            Row::plain("beats", "a second", Some(beats / used.wall), None),
            Row::plain("growth of RSS in the second half", "KiB", Some(rss as f64 - half as f64), None),
            Row::plain("RSS of the managers", "MiB", Some(rss as f64 / 1024.0), None),
            Row::plain("CPU of the agents, in one process", "% of a core", Some(used.own / used.wall * 100.0), None),
            Row::plain("RSS of the agents, an agent", "KiB", Some(own.rss_kib as f64 / agents), None),
        ];
        report.remarks.push(format!(
            "{} agents, {} manager(s), period 5 s; each session: TLS, one HTTP/2 connection, streams for session, assignments and log \
             subscriptions; RSS began at {} MiB and was {} MiB when idling began",
            self.scale.agents,
            self.scale.managers,
            self.rss_before / 1024,
            rss_begin / 1024
        ));
        Ok(report)
    }

    /// B6 and SC4.
    async fn tasks(&mut self) -> Result<Vec<Report>> {
        let mut reconcile = Report::new("B6", "reconcile: replicas of one service on simulated agents");
        let mut failing = Report::new("SC4", "one task fails among many");
        (reconcile.rounds, failing.rounds) = (1, self.scale.failures);
        let mut costs = Vec::new();
        let mut from = 0;
        for to in self.scale.steps.clone() {
            eprintln!("{from} -> {to} tasks");
            let (used, settled, commits) = self.scale_to(to).await?;
            reconcile.foreign.push(used.foreign);
            let moved = (to as f64 - from as f64).abs();
            let step = format!("{from} -> {to}");
            let mut wall = Row::plain(format!("{step}: until all run or are gone"), "s", Some(used.wall), None);
            if to >= 100_000 {
                wall.goal = Some(Goal::Value(20.0 * to as f64 / 1e5));
            }
            reconcile.rows.push(wall);
            let mut each = Row::plain(format!("{step}: wall, a task"), "ms", Some(used.wall / moved * 1e3), None);
            if to > from {
                each = each.peer("SwarmKit, 5,000 tasks, 11 nodes, another run", SWARMKIT_TASK_MS);
            }
            reconcile.rows.push(each);
            reconcile.rows.push(Row::plain(format!("{step}: CPU of the managers, a task"), "ms", Some(used.cpu / moved * 1e3), None));
            reconcile.rows.push(Row::plain(format!("{step}: CPU of the agents, a task"), "ms", Some(used.own / moved * 1e3), None));
            reconcile.rows.push(Row::plain(format!("{step}: managers idle again after"), "s", Some(settled), Some(Goal::Value(1.0))));
            reconcile.rows.push(Row::plain(format!("{step}: transactions"), "commits", Some(commits as f64), None));
            let rss = kib(&self.side.pids());
            reconcile.rows.push(Row::plain(format!("{step}: RSS of the managers then"), "MiB", Some(rss as f64 / 1024.0), None));
            let (row, cost) = self.fail_some(to, &mut failing).await?;
            failing.rows.extend(row);
            costs.push((to as f64, cost));
            from = to;
        }
        // The smallest and the largest of a size count once: later ones are steps back.
        costs.sort_by(|a, b| a.0.total_cmp(&b.0));
        failing.rows.push(Row::plain(
            "growth of a failure's CPU with the number of tasks",
            "exponent",
            exponent(&costs),
            Some(Goal::Value(0.1)),
        ));
        let remark = format!(
            "{} agents, {} manager(s), no networks, restart delay 0; a simulated task runs as soon as it is wanted and reports only that",
            self.scale.agents, self.scale.managers
        );
        reconcile.remarks.push(remark.clone());
        failing.remarks.push(remark + "; CPU less what idle sessions take");
        Ok(vec![reconcile, failing])
    }

    /// Returns what it took, how long until the managers were idle again, and the transactions.
    async fn scale_to(&mut self, replicas: usize) -> Result<(Used, f64, u64)> {
        let pids = self.side.pids();
        let before = self.side.revision().await?;
        let meter = Meter::start(&pids);
        let id = self.side.scale(self.service.as_deref(), replicas).await?;
        self.service = Some(id.clone());
        self.wait_tasks(replicas).await?;
        // Only then is the manager asked: counting costs it something.
        until("the manager knows what runs", LIMIT, STEP, || async { Ok(self.side.running(&id).await? == replicas as u64) }).await?;
        let used = meter.stop();
        let settled = self.idle_again(&pids).await?;
        let commits = self.side.revision().await? - before - 1;
        Ok((used, settled, commits))
    }

    /// Until the agents run so many tasks and hold no others, but those that failed and are kept as history.
    async fn wait_tasks(&self, count: usize) -> Result<()> {
        let wanted = i64::try_from(count)?;
        let outcome = until("all tasks run", LIMIT, STEP, || async {
            let now = self.fleet.tally().count();
            Ok(now.tasks_running == wanted && now.tasks_new - now.tasks_removed <= wanted + now.tasks_failed)
        });
        let outcome = outcome.await;
        outcome.map_err(|error| error.context(format!("{:?} {}", self.fleet.tally().count(), self.fleet.tally().last_problem())))
    }

    /// Seconds until the managers use no more than idle sessions do, for three windows in a row; from the first of them.
    async fn idle_again(&self, pids: &[u32]) -> Result<f64> {
        let begin = Instant::now();
        let allowed = (self.idle * 1.3 + IDLE_SHARE) * WINDOW.as_secs_f64();
        let (mut calm, mut since) = (0, 0.0);
        let mut before = thread_seconds(pids);
        while calm < 3 {
            ensure!(begin.elapsed() < LIMIT, "the managers are still busy after {LIMIT:?}");
            let at = begin.elapsed().as_secs_f64();
            tokio::time::sleep(WINDOW).await;
            let now = thread_seconds(pids);
            if between(&before, &now) > allowed {
                calm = 0;
            } else {
                since = if calm == 0 { at } else { since };
                calm += 1;
            }
            before = now;
        }
        Ok(since)
    }

    /// SC4 with so many tasks: one fails and is replaced, then the next.
    async fn fail_some(&self, tasks: usize, report: &mut Report) -> Result<(Vec<Row>, f64)> {
        let pids = self.side.pids();
        let before = self.side.revision().await?;
        let count = self.fleet.tally().count();
        let meter = Meter::start(&pids);
        let mut healed = Vec::new();
        for _ in 0..self.scale.failures {
            let now = self.fleet.tally().count();
            let begin = Instant::now();
            // The next agent may have no task.
            until("a task fails", LIMIT, Duration::ZERO, || async {
                if self.fleet.tally().count().tasks_failed == now.tasks_failed {
                    self.fleet.fail_one();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok(self.fleet.tally().count().tasks_failed > now.tasks_failed)
            })
            .await?;
            until("the failed task is replaced", LIMIT, Duration::from_millis(1), || async {
                Ok(self.fleet.tally().count().tasks_started > now.tasks_started)
            })
            .await?;
            healed.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        self.idle_again(&pids).await?;
        let used = meter.stop();
        let commits = self.side.revision().await? - before - 1;
        let failed = (self.fleet.tally().count().tasks_failed - count.tasks_failed) as f64;
        report.foreign.push(used.foreign);
        let cost = (used.cpu - self.idle * used.wall).max(0.0) / failed;
        let rows = vec![
            Row::plain(format!("among {tasks}: CPU of the managers, a failure"), "ms", Some(cost * 1e3), Some(Goal::Value(1.0))),
            Row::plain(format!("among {tasks}: transactions, a failure"), "commits", Some(commits as f64 / failed), Some(Goal::Value(2.0))),
            Row::plain(format!("among {tasks}: failure -> replacement runs"), "ms wall", median(&healed), None),
        ];
        // A logarithm needs something above nothing.
        Ok((rows, cost.max(1e-5)))
    }
}

/// Puts the peer's figures beside ours: of the same row, or of the same cost of one task.
pub fn beside(ours: &mut [Report], theirs: &[Report], scale: &Scale) {
    let name = format!("dockerd 20.10, {} agents", scale.agents);
    for report in ours {
        let Some(other) = theirs.iter().find(|other| other.name == report.name) else { continue };
        for row in &mut report.rows {
            let found = other.rows.iter().find(|other| other.metric == row.metric).and_then(|other| Some((name.clone(), other.ours?)));
            let alike = || {
                let (_, each) = row.metric.split_once(": ").filter(|(_, what)| what.ends_with("a task") && !what.contains("agents"))?;
                let (grew, last) = (is_growth(&row.metric), other.rows.iter().rev().find(|other| other.metric.ends_with(each))?);
                (grew && is_growth(&last.metric)).then(|| Some((format!("{name}, {}", last.metric.split(':').next()?), last.ours?)))?
            };
            if let Some((name, value)) = found.or_else(alike) {
                row.peers.insert(name, value);
            }
        }
        report.remarks.push(format!("dockerd 20.10 with {} of the same agents, in a run of its own just after", scale.agents));
    }
}

/// Of a step such as `0 -> 1000: …`.
fn is_growth(metric: &str) -> bool {
    let numbers = metric.split(':').next().and_then(|step| step.split_once(" -> "));
    numbers.is_some_and(|(from, to)| matches!((from.parse::<usize>(), to.parse::<usize>()), (Ok(from), Ok(to)) if from < to))
}

async fn wait_connected(fleet: &Fleet, agents: usize) -> Result<()> {
    let wanted = i64::try_from(agents)?;
    let outcome = until("all sessions stand", LIMIT, STEP, || async { Ok(fleet.tally().count().connected == wanted) }).await;
    outcome.map_err(|error| error.context(format!("{:?} {}", fleet.tally().count(), fleet.tally().last_problem())))
}

/// A service whose tasks cost nothing but their objects.
#[must_use]
pub fn service(name: &str, replicas: u64) -> v1::ServiceSpec {
    let container = v1::ContainerSpec { image: "registry.example/nothing:1".into(), ..v1::ContainerSpec::default() };
    let restart = v1::RestartPolicy {
        condition: v1::restart_policy::RestartCondition::Any.into(),
        delay: Some(prost_types::Duration::default()),
        ..v1::RestartPolicy::default()
    };
    v1::ServiceSpec {
        annotations: Some(v1::Annotations { name: name.into(), ..v1::Annotations::default() }),
        task: Some(v1::TaskSpec {
            runtime: Some(v1::task_spec::Runtime::Container(container)),
            restart: Some(restart),
            ..v1::TaskSpec::default()
        }),
        endpoint: Some(v1::EndpointSpec { mode: v1::endpoint_spec::ResolutionMode::Dnsrr.into(), ports: Vec::new() }),
        mode: Some(v1::service_spec::Mode::Replicated(v1::ReplicatedService { replicas })),
        ..v1::ServiceSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_figures_stand_beside_ours() {
        let report = |rows: Vec<Row>| {
            let mut report = Report::new("B6", "reconcile");
            report.rows = rows;
            report
        };
        let row = |name: &str, value: f64| Row::plain(name, "ms", Some(value), None);
        let mut ours = [report(vec![
            row("0 -> 5000: wall, a task", 0.1),
            row("5000 -> 100: wall, a task", 0.1),
            row("0 -> 5000: CPU of the agents, a task", 0.1),
            row("beats", 9.0),
        ])];
        let theirs = [report(vec![row("0 -> 1000: wall, a task", 3.0), row("beats", 10.0)])];
        beside(&mut ours, &theirs, &Scale { agents: 7, ..Scale::quick() });
        let peers = |index: usize| ours[0].rows[index].peers.iter().map(|(name, value)| (name.as_str(), *value)).collect::<Vec<_>>();
        assert_eq!(peers(0), [("dockerd 20.10, 7 agents, 0 -> 1000", 3.0)]);
        assert_eq!(peers(3), [("dockerd 20.10, 7 agents", 10.0)]);
        assert!(peers(1).is_empty() && peers(2).is_empty());
    }
}
