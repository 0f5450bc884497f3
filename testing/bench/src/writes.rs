//! B4: durable writes through three managers, beside etcd and what the machine itself takes.

use crate::floor;
use crate::managers::{Managers, config};
use crate::meter::Meter;
use crate::peers::{Etcd, EtcdClient, etcd_program};
use crate::report::{Goal, Report, Row, SEED};
use crate::stats::{Estimate, estimate, median};
use anyhow::{Context, Result};
use skep_agents::{Http2, Member, Roots, connect, fetch_roots, join_one, origin, raise_open_files};
use skep_ca::NodeKey;
use skep_proto::v1::control_client::ControlClient;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How much.
#[derive(Debug, Clone)]
pub struct Writes {
    pub managers: usize,
    pub clients: Vec<usize>,
    pub rounds: usize,
    pub seconds: f64,
}

impl Writes {
    #[must_use]
    pub fn quick() -> Self {
        Self { managers: 3, clients: vec![1, 16, 256], rounds: 3, seconds: 3.0 }
    }

    #[must_use]
    pub fn full() -> Self {
        Self { rounds: 10, seconds: 5.0, ..Self::quick() }
    }
}

const AFTER_FAILURE: Duration = Duration::from_millis(20);
/// Before the clock runs, on the same connections.
const WARM_UP: Duration = Duration::from_millis(500);
const VALUE: usize = 256;
const FLOOR_WRITES: usize = 1_500;

enum Client {
    Ours(ControlClient<Http2>),
    Etcd(EtcdClient),
}

/// Who is measured.
struct Field {
    ours: Managers,
    /// A manager's certificate, which the API asks for.
    member: Member,
    leader: String,
    etcd: Option<(Etcd, usize)>,
    names: AtomicU64,
}

/// One stretch of one contender.
#[derive(Debug, Clone)]
struct Stretch {
    rate: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
    /// Writes that were refused or got lost, as they are when the leader changes.
    failed: f64,
}

impl Client {
    async fn put(&mut self, name: String) -> Result<()> {
        match self {
            Self::Ours(control) => drop(control.create_config(config(&name)).await?),
            Self::Etcd(client) => client.put(name, vec![b'x'; VALUE]).await?,
        }
        Ok(())
    }
}

impl Field {
    async fn new(managers: usize) -> Result<Self> {
        let ours = Managers::start(managers).await?;
        let leader = ours.address(ours.leader().await?);
        let token = ours.manager_token.clone();
        let roots = Roots::new(&fetch_roots(&leader, &token.parse()?).await?)?;
        let member = join_one(&leader, &token, &roots, NodeKey::generate()?).await?;
        let etcd = match etcd_program() {
            Some(program) => {
                let etcd = Etcd::start(&program).await?;
                let leader = etcd.leader().await?;
                Some((etcd, leader))
            }
            None => None,
        };
        Ok(Self { ours, member, leader, etcd, names: AtomicU64::new(0) })
    }

    async fn clients(&self, ours: bool, count: usize) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(match (&self.etcd, ours) {
                (_, true) => {
                    let http2 = connect(&self.leader, |tcp| async move { self.member.secure(tcp).await }).await?;
                    Client::Ours(ControlClient::with_origin(http2, origin()))
                }
                (Some((etcd, leader)), false) => Client::Etcd(etcd.connect(*leader).await?),
                (None, false) => anyhow::bail!("etcd is not here"),
            });
        }
        Ok(clients)
    }

    async fn stretch(self: &Arc<Self>, ours: bool, count: usize, seconds: f64) -> Result<(Stretch, f64)> {
        let clients = self.clients(ours, count).await?;
        let pids = match &self.etcd {
            Some((etcd, _)) if !ours => etcd.pids(),
            _ => self.ours.pids(),
        };
        let begin = Instant::now() + WARM_UP;
        let end = begin + Duration::from_secs_f64(seconds);
        let mut writers = JoinSet::new();
        for mut client in clients {
            let this = self.clone();
            writers.spawn(async move {
                let (mut taken, mut failed) = (Vec::new(), 0u32);
                loop {
                    let start = Instant::now();
                    if start >= end {
                        return (taken, failed);
                    }
                    let name = format!("put-{}", this.names.fetch_add(1, Ordering::Relaxed));
                    if let Err(error) = client.put(name).await {
                        show(&error, failed);
                        failed += 1;
                        tokio::time::sleep(AFTER_FAILURE).await;
                        continue;
                    }
                    // Counted are those that ended within the time.
                    let now = Instant::now();
                    if now >= begin && now < end {
                        taken.push((now - start).as_secs_f64());
                    }
                }
            });
        }
        tokio::time::sleep_until(begin.into()).await;
        let meter = Meter::start(&pids);
        tokio::time::sleep_until(end.into()).await;
        let used = meter.stop();
        let (mut taken, mut failed): (Vec<f64>, u32) = (Vec::new(), 0);
        while let Some(writer) = writers.join_next().await {
            let (seconds, lost) = writer.context("a writer panicked")?;
            taken.extend(seconds);
            failed += lost;
        }
        taken.sort_by(f64::total_cmp);
        anyhow::ensure!(!taken.is_empty(), "no write ended within {seconds} s");
        let at = |share: f64| taken[((taken.len() - 1) as f64 * share) as usize];
        let done = taken.len() as f64;
        Ok((Stretch { rate: done / used.wall, p50: at(0.5), p99: at(0.99), cpu: used.cpu / done, failed: f64::from(failed) }, used.foreign))
    }
}

#[derive(Debug, Default)]
struct Samples {
    ours: Vec<Vec<Stretch>>,
    etcd: Vec<Vec<Stretch>>,
    floor: Vec<f64>,
}

/// The first failure of a client is shown; they are alike.
fn show(error: &anyhow::Error, before: u32) {
    if before == 0 {
        eprintln!("a write failed: {error:#}");
    }
}

fn mean(stretches: &[Stretch], value: &dyn Fn(&Stretch) -> f64) -> f64 {
    stretches.iter().map(value).sum::<f64>() / stretches.len().max(1) as f64
}

fn middle(rounds: &[Vec<Stretch>], value: &dyn Fn(&Stretch) -> f64) -> Option<f64> {
    median(&rounds.iter().flatten().map(value).collect::<Vec<_>>())
}

fn ratio(ours: &[Vec<Stretch>], theirs: &[Vec<Stretch>], value: &dyn Fn(&Stretch) -> f64) -> Option<Estimate> {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| mean(ours, value) / mean(theirs, value)).collect();
    estimate(&ratios, SEED)
}

/// # Errors
/// If a store does not come up or refuses a write.
pub async fn measure(size: &Writes) -> Result<Report> {
    raise_open_files(8_192)?;
    let mut report = Report::new("B4", "raft-write: durable writes of 256 bytes");
    report.rounds = size.rounds;
    let field = Arc::new(Field::new(size.managers).await?);
    for clients in &size.clients {
        let mut samples = Samples::default();
        for round in 0..size.rounds {
            eprint!("\r{clients} clients: round {} of {} ", round + 1, size.rounds);
            crate::interrupt::check()?;
            let (mut ours, mut etcd) = (Vec::new(), Vec::new());
            for mine in [true, false, false, true] {
                if !mine && field.etcd.is_none() {
                    continue;
                }
                let (stretch, foreign) = field
                    .stretch(mine, *clients, size.seconds)
                    .await
                    .map_err(|error| error.context(if mine { field.ours.log_tails() } else { "etcd".to_owned() }))?;
                report.foreign.push(foreign);
                if mine {
                    ours.push(stretch)
                } else {
                    etcd.push(stretch)
                }
                if ours.len() == 1 && samples.floor.len() == round {
                    samples.floor.push(machine(field.ours.dir().to_owned()).await?);
                }
            }
            samples.ours.push(ours);
            if field.etcd.is_some() {
                samples.etcd.push(etcd);
            }
        }
        eprintln!();
        report.rows.extend(rows(*clients, &samples));
    }
    let version = etcd_program().map_or("etcd is missing: scripts/etcd-peer fetches it".to_owned(), |program| Etcd::version(&program));
    report.remarks.push(format!(
        "{} managers (real skepds) and 3 members of etcd ({version}) on loopback, TLS with client certificates, data on the same file system; \
         ours: CreateConfig with 256 bytes of data and a new name, through the control API of the leader, sealed on disk; etcd: Put of a new key, not sealed; \
         one connection for each client; floor: a block of a preallocated file and fdatasync, plus a round trip over loopback TCP",
        size.managers
    ));
    Ok(report)
}

/// Seconds of a sync and a round trip, medians.
async fn machine(dir: std::path::PathBuf) -> Result<f64> {
    let measured = tokio::task::spawn_blocking(move || -> Result<(Vec<f64>, Vec<f64>)> {
        Ok((floor::syncs(&dir, FLOOR_WRITES)?, floor::round_trips(512, FLOOR_WRITES)?))
    });
    let (syncs, trips) = measured.await.context("measuring the floor panicked")??;
    Ok(median(&syncs).unwrap_or(0.0) + median(&trips).unwrap_or(0.0))
}

fn rows(clients: usize, samples: &Samples) -> Vec<Row> {
    let name = if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") };
    let figure = |what: &str, unit: &'static str, value: &dyn Fn(&Stretch) -> f64| {
        let mut row = Row::plain(format!("{name}: {what}"), unit, middle(&samples.ours, value), None);
        if let Some(theirs) = middle(&samples.etcd, value) {
            row = row.peer("etcd", theirs);
        }
        row.ratio = ratio(&samples.ours, &samples.etcd, value);
        row.against = row.ratio.map(|_| "etcd".to_owned());
        row
    };
    let mut cpu = figure("CPU of all three, a write", "us", &|stretch| stretch.cpu * 1e6);
    if clients >= 256 {
        cpu.goal = Some(Goal::Times { against: "etcd", at_least: 3.0 });
    }
    let mut spread = figure("p99 over p50", "times", &|stretch| stretch.p99 / stretch.p50);
    if clients >= 256 {
        spread.goal = Some(Goal::Value(5.0));
    }
    let mut latency = figure("p50", "us", &|stretch| stretch.p50 * 1e6);
    if let Some(floor) = median(&samples.floor) {
        latency.floor = Some(("fsync + round trip".into(), floor * 1e6));
    }
    let mut rows = vec![cpu, figure("writes", "a second", &|stretch| stretch.rate), latency];
    if clients == 1 {
        let ratios: Vec<f64> =
            samples.ours.iter().zip(&samples.floor).map(|(ours, floor)| mean(ours, &|stretch| stretch.p50) / floor).collect();
        let mut row = Row::plain("1 client: p50 over fsync and a round trip", "us", rows[2].ours, None);
        row.floor.clone_from(&rows[2].floor);
        row.ratio = estimate(&ratios, SEED);
        row.against = Some("fsync + round trip".into());
        row.goal = Some(Goal::Ratio { against: "fsync + round trip", at_most: 1.5 });
        rows.push(row);
    }
    let lost: f64 = samples.ours.iter().flatten().map(|stretch| stretch.failed).sum();
    let lost = Row::plain(format!("{name}: writes refused or lost"), "writes", Some(lost), Some(Goal::Value(0.0)));
    rows.extend([figure("p99", "us", &|stretch| stretch.p99 * 1e6), spread, lost]);
    rows
}

/// All of a benchmark's ratios by name, for tests.
#[cfg(test)]
fn held(rows: &[Row]) -> std::collections::BTreeMap<String, Option<bool>> {
    rows.iter().map(|row| (row.metric.clone(), row.held())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(p50: f64, cpu: f64) -> Stretch {
        Stretch { rate: 1.0 / p50, p50, p99: 3.0 * p50, cpu, failed: 0.0 }
    }

    #[test]
    fn goals_are_of_one_client_and_of_many() {
        let samples = Samples {
            ours: vec![vec![stretch(200e-6, 50e-6); 2]; 3],
            etcd: vec![vec![stretch(400e-6, 200e-6); 2]; 3],
            floor: vec![100e-6; 3],
        };
        let one = held(&rows(1, &samples));
        assert_eq!(one["1 client: p50 over fsync and a round trip"], Some(false), "twice the floor");
        assert_eq!(one["1 client: CPU of all three, a write"], None);
        let many = held(&rows(256, &samples));
        assert_eq!(many["256 clients: CPU of all three, a write"], Some(true), "a quarter");
        assert_eq!(many["256 clients: p99 over p50"], Some(true));
    }
}
