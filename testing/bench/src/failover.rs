//! B13: the leader is killed, or told to stop, while many sessions stand and somebody writes.

use crate::managers::{Managers, config, until};
use crate::meter::{Meter, Used};
use crate::report::{Goal, Report, Row};
use crate::sessions::service;
use crate::stats::median;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use skep_agents::{Behaviour, Fleet, FleetOptions, JoinOptions, join, raise_open_files};
use skep_proto::v1::{self, control_client::ControlClient};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// How much.
#[derive(Debug, Clone)]
pub struct Failover {
    /// Sessions, smallest first; agents are added between.
    pub sessions: Vec<usize>,
    pub tasks_each: usize,
    /// Of each kind of end, for each number of sessions.
    pub rounds: usize,
}

impl Failover {
    #[must_use]
    pub fn quick() -> Self {
        Self { sessions: vec![1, 1_000], tasks_each: 2, rounds: 3 }
    }

    #[must_use]
    pub fn full() -> Self {
        Self { sessions: vec![1, 1_000, 10_000], rounds: 5, ..Self::quick() }
    }
}

const LIMIT: Duration = Duration::from_secs(300);
const STEP: Duration = Duration::from_millis(5);
/// A write is begun this often; one that hangs must not keep the next from finding the new leader.
const WRITE_EVERY: Duration = Duration::from_millis(5);
const WRITE_LIMIT: Duration = Duration::from_secs(3);
const WRITES_AT_ONCE: usize = 64;
/// The writer is at work this long before the signal, and goes on this long after all sessions are back.
const BEFORE: Duration = Duration::from_millis(500);
const AFTER: Duration = Duration::from_millis(1_500);
/// Between rounds: a node may register three times in eight seconds (spec wire-behaviour 8.1).
const CALM: Duration = Duration::from_secs(9);
/// dockerd 29.7.2 with three managers on this class of machine, seconds from the signal to a new leader; medians of spec/peers.md 3.
const DOCKERD_KILL: f64 = 12.3;
const DOCKERD_TERM: f64 = 23.1;

/// What one round showed.
#[derive(Debug, Clone, Default)]
struct Outcome {
    /// Longest time between two committed writes, seconds.
    pause: f64,
    /// Until so many sessions were back, seconds.
    half_back: f64,
    all_back: f64,
    resent: i64,
    complete: i64,
    restarts: i64,
    /// Connections that agents had to make.
    dialled: i64,
    writes: usize,
    /// From the signal until all were back and a little longer: CPU of the two managers that stay, and of the agents.
    used: Used,
}

struct Ring {
    managers: Managers,
    fleet: Fleet,
}

/// # Errors
/// If managers or sessions do not come back.
pub async fn measure(size: &Failover) -> Result<Report> {
    let most = size.sessions.iter().copied().max().unwrap_or(0);
    raise_open_files(most as u64 + 6_000)?;
    let managers = Managers::start(3).await?;
    let options = FleetOptions { managers: managers.addresses(), behaviour: Behaviour::default(), spread: Duration::ZERO };
    let fleet = Fleet::start(Vec::new(), options);
    let mut ring = Ring { managers, fleet };
    let outcome = ring.measure(size).await;
    let logs = ring.managers.log_tails();
    ring.fleet.stop().await;
    outcome.map_err(|error| error.context(logs))
}

/// Writes, all the time, through the managers given in turn. Returns when each write was acknowledged.
async fn write(mut doors: Vec<ControlClient<Channel>>, stop: CancellationToken) -> Vec<Instant> {
    let run: u64 = rand::random();
    let mut writing: JoinSet<Option<Instant>> = JoinSet::new();
    let mut done = Vec::new();
    let mut number = 0u64;
    let mut tick = tokio::time::interval(WRITE_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(written) = writing.join_next() => done.extend(written.ok().flatten()),
            _ = tick.tick(), if writing.len() < WRITES_AT_ONCE => {
                doors.rotate_left(1);
                let mut door = doors[0].clone();
                number += 1;
                let name = format!("failover-{run:x}-{number}");
                writing.spawn(async move {
                    let written = tokio::time::timeout(WRITE_LIMIT, door.create_config(config(&name))).await;
                    matches!(written, Ok(Ok(_))).then(Instant::now)
                });
            }
        }
    }
    while let Some(written) = writing.join_next().await {
        done.extend(written.ok().flatten());
    }
    done.sort();
    done
}

/// The longest time without a write between two moments.
fn longest_pause(written: &[Instant], begin: Instant, end: Instant) -> f64 {
    let within = written.iter().copied().filter(|at| *at >= begin && *at <= end);
    let (mut last, mut longest) = (begin, Duration::ZERO);
    for at in within.chain([end]) {
        longest = longest.max(at - last);
        last = at;
    }
    longest.as_secs_f64()
}

impl Ring {
    async fn measure(&mut self, size: &Failover) -> Result<Report> {
        let mut report = Report::new("B13", "failover: the leader ends while sessions stand");
        report.rounds = size.rounds;
        let mut service_id = None;
        for sessions in &size.sessions {
            self.grow(*sessions).await?;
            service_id = Some(self.give_tasks(service_id, sessions * size.tasks_each).await?);
            for (signal, name) in [(Signal::SIGKILL, "SIGKILL"), (Signal::SIGTERM, "SIGTERM")] {
                let mut outcomes = Vec::new();
                for round in 0..size.rounds {
                    eprintln!("{sessions} sessions, {name}: round {} of {}", round + 1, size.rounds);
                    outcomes.push(self.round(signal, *sessions).await?);
                }
                report.foreign.extend(outcomes.iter().map(|outcome| outcome.used.foreign));
                report.rows.extend(rows(name, *sessions, &outcomes));
            }
        }
        report.remarks.push(format!(
            "three skepds on loopback, {} task(s) an agent; writes begin every {} ms at the other two managers, which pass them on; the pause is the longest time \
             between two acknowledged writes around the signal, worst of the rounds; agents are told of all managers and come back with jitter; \
             dockerd's figures are constants of the same machine class, without sessions and tasks",
            size.tasks_each,
            WRITE_EVERY.as_millis()
        ));
        Ok(report)
    }

    async fn connected(&self, count: usize) -> Result<()> {
        let wanted = i64::try_from(count)?;
        let outcome = until("all sessions stand", LIMIT, STEP, || async { Ok(self.fleet.tally().count().connected == wanted) }).await;
        outcome.map_err(|error| error.context(format!("{:?} {}", self.fleet.tally().count(), self.fleet.tally().last_problem())))
    }

    async fn grow(&mut self, sessions: usize) -> Result<()> {
        let missing = sessions - self.fleet.size();
        let joining =
            JoinOptions { managers: self.managers.addresses(), token: self.managers.worker_token.clone(), at_once: 128, roots_each: false };
        self.fleet.add(join(joining, missing).await?, Duration::from_millis(missing as u64));
        self.connected(sessions).await
    }

    async fn give_tasks(&self, service_id: Option<String>, tasks: usize) -> Result<String> {
        let leader = self.managers.leader().await?;
        let mut control = self.managers.control(leader);
        let spec = Some(service("load", tasks as u64));
        let id = match service_id {
            None => {
                let answer = control.create_service(v1::CreateServiceRequest { spec }).await?.into_inner();
                answer.service.context("no service in the answer")?.id
            }
            Some(id) => {
                let request = v1::GetServiceRequest { service_id: id.clone(), insert_defaults: false };
                let old = control.get_service(request).await?.into_inner().service.context("no service in the answer")?;
                let service_version = old.meta.and_then(|meta| meta.version);
                control.update_service(v1::UpdateServiceRequest { service_id: id.clone(), service_version, spec, rollback: 0 }).await?;
                id
            }
        };
        let wanted = i64::try_from(tasks)?;
        until("all tasks run", LIMIT, STEP, || async { Ok(self.fleet.tally().count().tasks_running == wanted) }).await?;
        Ok(id)
    }

    async fn round(&mut self, signal: Signal, sessions: usize) -> Result<Outcome> {
        tokio::time::sleep(CALM).await;
        self.connected(sessions).await?;
        let leader = self.managers.leader().await?;
        let doors = (0..3).filter(|number| *number != leader).map(|number| self.managers.control(number)).collect();
        let stop = CancellationToken::new();
        let writer = tokio::spawn(write(doors, stop.clone()));
        tokio::time::sleep(BEFORE).await;
        let before = self.fleet.tally().count();
        self.fleet.tally().begin_round();
        let stay: Vec<u32> = self.managers.pids_but(leader);
        let (meter, begin) = (Meter::start(&stay), Instant::now());
        self.managers.signal(leader, signal)?;
        let back = until("all sessions are back", LIMIT, STEP, || async { Ok(self.fleet.tally().how_many_back() >= sessions) }).await;
        back.map_err(|error| error.context(format!("{:?} {}", self.fleet.tally().count(), self.fleet.tally().last_problem())))?;
        tokio::time::sleep(AFTER).await;
        let (used, end) = (meter.stop(), Instant::now());
        stop.cancel();
        let written = writer.await.context("the writer panicked")?;
        ensure!(!written.is_empty(), "no write was acknowledged at all");
        let (count, back) = (self.fleet.tally().count(), self.fleet.tally().back());
        let share = |share: f64| back[((back.len() - 1) as f64 * share) as usize].as_secs_f64();
        let outcome = Outcome {
            pause: longest_pause(&written, begin, end),
            half_back: share(0.5),
            all_back: share(1.0),
            resent: count.tasks_resent - before.tasks_resent,
            complete: count.complete - before.complete,
            restarts: count.tasks_started - before.tasks_started,
            dialled: count.dialled - before.dialled,
            writes: written.len(),
            used,
        };
        eprintln!("{outcome:?}");
        self.managers.ended(leader).await;
        self.managers.restart(leader).await?;
        Ok(outcome)
    }
}

fn rows(name: &str, sessions: usize, outcomes: &[Outcome]) -> Vec<Row> {
    let worst = |value: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(value).fold(0.0, f64::max);
    let typical = |value: &dyn Fn(&Outcome) -> f64| median(&outcomes.iter().map(value).collect::<Vec<_>>());
    let (goal, dockerd) = if name == "SIGKILL" { (1.5, DOCKERD_KILL) } else { (0.5, DOCKERD_TERM) };
    let label = |what: &str| format!("{name}, {sessions} sessions: {what}");
    vec![
        Row::plain(label("longest pause between writes, worst"), "s", Some(worst(&|one| one.pause)), Some(Goal::Value(goal)))
            .peer("dockerd 29.7, new leader", dockerd),
        Row::plain(label("longest pause between writes, median"), "s", typical(&|one| one.pause), None),
        Row::plain(label("half of the sessions back, median"), "s", typical(&|one| one.half_back), None),
        Row::plain(label("all sessions back, worst"), "s", Some(worst(&|one| one.all_back)), Some(Goal::Value(5.0))),
        Row::plain(label("tasks started again"), "tasks", Some(worst(&|one| one.restarts as f64)), Some(Goal::Value(0.0))),
        Row::plain(label("tasks sent again"), "tasks", Some(worst(&|one| one.resent as f64)), Some(Goal::Value(0.0))),
        Row::plain(label("complete lists sent"), "messages", Some(worst(&|one| one.complete as f64)), None),
        Row::plain(label("writes acknowledged, median"), "writes", typical(&|one| one.writes as f64), None),
        Row::plain(label("connections made anew, median"), "connections", typical(&|one| one.dialled as f64), None),
        Row::plain(label("CPU of the two managers that stay, median"), "s", typical(&|one| one.used.cpu), None),
        Row::plain(label("CPU of the agents, median"), "s", typical(&|one| one.used.own), None),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_counts_from_the_signal_and_to_the_end() {
        let begin = Instant::now();
        let at = |millis: u64| begin + Duration::from_millis(millis);
        let near = |seconds: f64, wanted: f64| (seconds - wanted).abs() < 1e-9;
        assert!(near(longest_pause(&[at(10), at(20), at(720), at(730)], begin, at(1_000)), 0.7));
        assert!(near(longest_pause(&[at(10)], begin, at(1_000)), 0.99), "nothing came after");
        assert!(near(longest_pause(&[], begin, at(300)), 0.3));
    }
}
