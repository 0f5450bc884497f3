//! D1: `docker service ls` with many services: what the request behind it costs the manager.

use crate::alone::{in_network, in_own_network};
use crate::http::Http;
use crate::managers::{Managers, until};
use crate::meter::{Meter, between, thread_seconds};
use crate::peers::Peer;
use crate::report::{Goal, Report, Row};
use crate::side::{Side, SwarmKit};
use crate::stats::median;
use anyhow::{Context as _, Result};
use skep_agents::{Behaviour, Fleet, FleetOptions, JoinOptions, join_each, raise_open_files, usage_of};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How large.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub services: usize,
    /// Of each.
    pub replicas: usize,
    pub agents: usize,
    pub calls: usize,
}

impl Size {
    pub const FULL: Self = Self { services: 1_000, replicas: 10, agents: 20, calls: 50 };
}

const LIMIT: Duration = Duration::from_secs(1_200);
const STEP: Duration = Duration::from_millis(50);
/// What tasks leave behind when all run.
const CALM: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(5);
/// Of a core: less than this is idle.
const CALM_SHARE: f64 = 0.05;
const LONGEST_CALM: Duration = Duration::from_secs(180);
/// As 20.10's client asks for `docker service ls`.
const PATH: &str = "/v1.41/services?status=true";

/// What the calls cost.
struct Costs {
    cpu: f64,
    wall: f64,
    bytes: f64,
    grown: f64,
    foreign: f64,
    /// Of a core, used without any call: more than [`CALM_SHARE`] if it never rested.
    idle: f64,
}

/// # Errors
/// If a side does not get so far.
pub fn listing(size: Size, with_ours: bool, with_dockerd: bool) -> Result<Report> {
    raise_open_files(8_000)?;
    let mut report = Report::new("D1", "docker service ls with 1,000 services of 10 tasks");
    report.rounds = size.calls;
    let mut ours = None;
    if with_ours {
        ours = Some(in_own_network(|| async {
            let managers = Managers::start(1).await?;
            let socket = managers.dir().join("m0/run/docker.sock");
            measure(Side::Ours(managers), socket, size).await
        })?);
    }
    let mut theirs = None;
    if with_dockerd {
        let peer = Peer::bare()?;
        let (namespace, socket) = (peer.namespace(), peer.path("SOCKET"));
        theirs = Some(in_network(&namespace, || async { measure(Side::Dockerd(SwarmKit::new(peer)?), socket, size).await })?);
    }
    let rows: [(&str, &'static str, fn(&Costs) -> f64); 4] = [
        ("a call", "ms CPU", |costs| costs.cpu * 1e3),
        ("a call", "ms wall", |costs| costs.wall * 1e3),
        ("growth of memory meanwhile", "MiB", |costs| costs.grown / 1024.0),
        ("an answer", "kB", |costs| costs.bytes / 1e3),
    ];
    for (metric, unit, value) in rows {
        let mut row = Row::plain(metric, unit, ours.as_ref().map(value), None);
        if let Some(theirs) = &theirs {
            row = row.peer("dockerd 20.10", value(theirs));
            // A tenth of dockerd's, as one figure: the two did not run in turns.
            if unit == "ms CPU" {
                row.goal = Some(Goal::Value(value(theirs) / 10.0));
            }
        }
        report.rows.push(row);
    }
    report.foreign = [&ours, &theirs].into_iter().flatten().map(|costs| costs.foreign).collect();
    report.remarks.push(format!(
        "{} services of {} tasks on {} simulated agents, all running; {} calls of GET {PATH} on one connection, CPU of the daemon less what it uses when idle; \
         the client's own CPU is the same for both and not in it",
        size.services, size.replicas, size.agents, size.calls
    ));
    for (name, costs) in [("ours", &ours), ("dockerd", &theirs)] {
        if let Some(costs) = costs.as_ref().filter(|costs| costs.idle >= CALM_SHARE) {
            report.remarks.push(format!(
                "{name} did not come to rest: {:.0} % of a core were used without any call and are taken off, so its CPU figure says little",
                costs.idle * 100.0
            ));
        }
    }
    Ok(report)
}

async fn measure(side: Side, socket: PathBuf, size: Size) -> Result<Costs> {
    let options = FleetOptions { managers: side.addresses(), behaviour: Behaviour::default(), spread: Duration::ZERO };
    let mut fleet = Fleet::start(Vec::new(), options);
    let joining = JoinOptions { managers: side.addresses(), token: side.worker_token(), at_once: 8, roots_each: true };
    let joined = join_each(joining, size.agents, |member| fleet.add(vec![member], Duration::ZERO)).await;
    let outcome = match joined {
        Ok(_) => run(&side, &fleet, socket, size).await,
        Err(error) => Err(error.into()),
    };
    let outcome = outcome.map_err(|error: anyhow::Error| error.context(side.log_tails()));
    fleet.stop().await;
    outcome
}

/// Waits until the daemon does little by itself; the share of a core that it goes on using.
async fn calm(pids: &[u32]) -> f64 {
    let begin = Instant::now();
    loop {
        let before = thread_seconds(pids);
        tokio::time::sleep(IDLE).await;
        let used = between(&before, &thread_seconds(pids)).max(0.0) / IDLE.as_secs_f64();
        if begin.elapsed() > CALM && (used < CALM_SHARE || begin.elapsed() > LONGEST_CALM) {
            return used;
        }
    }
}

async fn run(side: &Side, fleet: &Fleet, socket: PathBuf, size: Size) -> Result<Costs> {
    let wanted = i64::try_from(size.services * size.replicas)?;
    for number in 0..size.services {
        crate::interrupt::check()?;
        side.create(&format!("load-{number}"), size.replicas).await?;
    }
    eprintln!("{}: {} services made", side.name(), size.services);
    until("all tasks run", LIMIT, STEP, || async { Ok(fleet.tally().count().tasks_running >= wanted) }).await?;
    let pids = side.pids();
    let idle = calm(&pids).await;
    let mut http = Http::connect(&socket)?;
    // The first one warms caches of both.
    let body = http.call("GET", PATH, "application/json", b"")?;
    let services = serde_json::from_slice::<serde_json::Value>(&body)?.as_array().map_or(0, Vec::len);
    anyhow::ensure!(services == size.services, "{} lists {services} services", side.name());
    for pid in &pids {
        // From now on the peak is that of the calls (proc(5), clear_refs).
        let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
    }
    let memory: u64 = pids.iter().map(|pid| usage_of(*pid).rss_kib).sum();
    let (meter, mut walls) = (Meter::start(&pids), Vec::new());
    for _ in 0..size.calls {
        let began = Instant::now();
        http.call("GET", PATH, "application/json", b"")?;
        walls.push(began.elapsed().as_secs_f64());
    }
    let used = meter.stop();
    let peak: u64 = pids.iter().map(|pid| usage_of(*pid).peak_kib).sum();
    Ok(Costs {
        cpu: (used.cpu - idle * used.wall).max(0.0) / size.calls as f64,
        wall: median(&walls).context("no call was made")?,
        bytes: body.len() as f64,
        grown: peak.saturating_sub(memory) as f64,
        foreign: used.foreign,
        idle,
    })
}
