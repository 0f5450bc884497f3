//! `skep-agents`: as many agents as wished in one process, for tests of scale.
//!
//! Joins the nodes by token (or takes them from a file of an earlier run), holds their sessions, prints a line now and then, and at the
//! end writes what it counted as JSON.

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;
use skep_agents::{Behaviour, Fleet, FleetOptions, JoinOptions, Member, join, load_members, raise_open_files, save_members, usage_of};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Simulated agents: real sessions with real managers, played tasks
#[derive(Debug, Parser)]
#[command(name = "skep-agents", version)]
struct Cli {
    /// Managers, host:port separated by commas
    #[arg(long, value_delimiter = ',', required = true, value_name = "HOST:PORT")]
    managers: Vec<String>,
    /// Worker token; needed unless all nodes come from --members
    #[arg(long, env = "SKEP_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Agents
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// File with the nodes' keys and certificates: read if it exists, written after joining
    #[arg(long, value_name = "FILE")]
    members: Option<PathBuf>,
    /// Nodes that join at the same time
    #[arg(long, default_value_t = 128)]
    at_once: usize,
    /// The first sessions begin within this time, in milliseconds
    #[arg(long, default_value_t = 0, value_name = "MS")]
    spread: u64,
    /// From being wanted running to running, in milliseconds
    #[arg(long, default_value_t = 0, value_name = "MS")]
    start_delay: u64,
    /// Share of tasks that fail, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "RATE")]
    tasks_fail_rate: f64,
    /// From running to that failure, in milliseconds
    #[arg(long, default_value_t = 1_000, value_name = "MS")]
    fail_after: u64,
    /// End after so many seconds; otherwise at SIGINT or SIGTERM
    #[arg(long, value_name = "SECONDS")]
    run_for: Option<u64>,
    /// Where to write the figures at the end, as JSON; otherwise to standard output
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Only join and write --members
    #[arg(long, requires = "members")]
    join_only: bool,
}

/// A line with the present figures.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// Open files besides the connections.
const OTHER_FILES: u64 = 256;

fn main() -> Result<()> {
    let cli = Cli::parse();
    anyhow::ensure!((0.0..=1.0).contains(&cli.tasks_fail_rate), "--tasks-fail-rate {}: write a number from 0 to 1", cli.tasks_fail_rate);
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_writer(std::io::stderr).init();
    skep_ca::install_crypto_provider();
    // A node that joins has two connections for a moment.
    raise_open_files(cli.count as u64 + 2 * cli.at_once as u64 + OTHER_FILES)?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(run(cli))
}

async fn members(cli: &Cli) -> Result<(Vec<Member>, Duration)> {
    let begin = Instant::now();
    let mut members = match &cli.members {
        Some(path) if path.exists() => load_members(path)?,
        _ => Vec::new(),
    };
    members.truncate(cli.count);
    let missing = cli.count - members.len();
    if missing > 0 {
        let token = cli.token.clone().with_context(|| format!("{missing} nodes have to join: give --token"))?;
        let options = JoinOptions { managers: cli.managers.clone(), token, at_once: cli.at_once, roots_each: true };
        members.extend(join(options, missing).await.context("a node could not join")?);
        if let (Some(path), Some(first)) = (&cli.members, members.first()) {
            save_members(path, first.trust.bundle(), &members)?;
        }
    }
    Ok((members, begin.elapsed()))
}

async fn run(cli: Cli) -> Result<()> {
    let (members, joined_in) = members(&cli).await?;
    eprintln!("{} members after {:.1} s", members.len(), joined_in.as_secs_f64());
    if cli.join_only {
        return Ok(());
    }
    let options = FleetOptions {
        managers: cli.managers.clone(),
        behaviour: Behaviour {
            start_delay: Duration::from_millis(cli.start_delay),
            fail_rate: cli.tasks_fail_rate,
            fail_after: Duration::from_millis(cli.fail_after),
        },
        spread: Duration::from_millis(cli.spread),
    };
    let begin = Instant::now();
    let fleet = Fleet::start(members, options);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let end = async {
        match cli.run_for {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    let mut say = tokio::time::interval(SAY_EVERY);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = &mut end => break,
            _ = say.tick() => {
                let (count, usage) = (fleet.tally().count(), usage_of(std::process::id()));
                eprintln!(
                    "{:6.0} s: {} of {} connected, {} tasks running, {} started, {} failed, {} sessions lost, RSS {} MiB, CPU {:.1} s {}",
                    begin.elapsed().as_secs_f64(), count.connected, fleet.size(), count.tasks_running, count.tasks_started,
                    count.tasks_failed, count.lost, usage.rss_kib / 1024, usage.cpu_seconds, fleet.tally().last_problem(),
                );
            }
        }
    }
    let figures = json!({
        "agents": fleet.size(),
        "joined_in_seconds": joined_in.as_secs_f64(),
        "seconds": begin.elapsed().as_secs_f64(),
        "count": fleet.tally().count(),
        "own": usage_of(std::process::id()),
        "managers": fleet.managers(),
        "last_problem": fleet.tally().last_problem(),
    });
    let text = serde_json::to_string_pretty(&figures)? + "\n";
    match &cli.report {
        Some(path) => std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?,
        None => print!("{text}"),
    }
    fleet.stop().await;
    Ok(())
}
