//! Benchmarks: `skep-bench [OPTIONS] [B1|B2|…]...`, run by `make bench`.
//!
//! B1, B2, B3, B16, B17, D2, D3, D4 run containers, B5 is arithmetic, B8, B9, B10, B11 make networks without containers; B4, B6, B7, B13, SC1, SC4, D1 need many connections to managers without containers
//! and run in a network of their own.
//!
//! Everybody does the same on the same machine in the same run, interleaved; the figure that counts is the median of the
//! ratios within a round, of CPU time first. A result is a JSON file; `skep-bench table` prints them all.

mod alone; // a network of one's own
mod api; // our API
mod contender; // what is compared, in general
mod cpu; // who used how much CPU time
mod docker; // D1 to D4
mod failover; // B13
mod field; // the machine with everybody's daemons
mod floor; // what the machine itself takes
mod footprint; // B16
mod http; // dockerd's API
mod interrupt; // Ctrl-C
mod managers; // skepds without containers
mod meter; // what a few processes used
mod network; // B8, B9, B10, B11
mod ours; // skep as a contender
mod peers; // the others
mod remains; // what a task leaves in the kernel
mod report; // result files and the table
mod round; // interleaved rounds
mod sched; // B5
mod sessions; // B6, B7, SC1, SC4
mod side; // whose managers many agents talk to
mod stamp; // the first instruction
mod stats; // medians, intervals, exponents
mod tasks; // B1, B2, B3, B17
mod writes; // B4

use alone::{in_network, in_own_network};
use anyhow::{Context, Result, bail};
use failover::Failover;
use field::Field;
use managers::Managers;
use report::Report;
use sessions::Scale;
use side::{Side, SwarmKit};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use writes::Writes;

/// Those that share daemons are neighbours.
const ALL: [&str; 21] =
    ["B5", "B8", "B9", "B10", "B11", "B15", "B1", "B2", "B3", "B17", "B16", "D2", "D3", "D4", "D1", "SC1", "B7", "B6", "SC4", "B4", "B13"];
/// Those that share one run.
const SESSIONS: [&str; 4] = ["SC1", "B7", "B6", "SC4"];
/// Of B1.
const ROUNDS: usize = 10;
const USAGE: &str = "usage: skep-bench [--out DIR] [--rounds N] [--cycles N] [--without skep|dockerd] [--full] [--managers N] [--agents N] \
     [--steps N,N,…] [B1|B2|B3|B4|B5|B6|B7|B8|B9|B10|B11|B13|B15|B16|B17|D1|D2|D3|D4|SC1|SC4]... | table";

#[derive(Debug)]
struct Options {
    out: PathBuf,
    /// Of B1, where the larger operations take fewer, and of B13; each has a number of its own if none is given.
    rounds: Option<usize>,
    cycles: usize,
    with_ours: bool,
    with_dockerd: bool,
    /// The sizes that were promised; otherwise some that take a few minutes.
    full: bool,
    managers: Option<usize>,
    agents: Option<usize>,
    steps: Option<Vec<usize>>,
    which: Vec<String>,
}

impl Options {
    fn scale(&self) -> Scale {
        let mut scale = if self.full { Scale::full() } else { Scale::quick() };
        scale.managers = self.managers.unwrap_or(scale.managers);
        scale.agents = self.agents.unwrap_or(scale.agents);
        if let Some(steps) = &self.steps {
            scale.steps.clone_from(steps);
        }
        scale
    }

    fn failover(&self) -> Failover {
        let mut size = if self.full { Failover::full() } else { Failover::quick() };
        if let Some(agents) = self.agents {
            size.sessions = vec![agents];
        }
        size.rounds = self.rounds.unwrap_or(size.rounds).max(1);
        size
    }

    fn writes(&self) -> Writes {
        let mut size = if self.full { Writes::full() } else { Writes::quick() };
        size.managers = self.managers.unwrap_or(size.managers);
        size
    }
}

fn options() -> Result<Options> {
    let beside = std::env::current_exe()?.parent().and_then(Path::parent).context("this program has no directory")?.join("bench");
    let mut options = Options {
        out: beside,
        rounds: None,
        cycles: 1000,
        with_ours: true,
        with_dockerd: true,
        full: false,
        managers: None,
        agents: None,
        steps: None,
        which: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
        match argument.as_str() {
            "--out" => options.out = value()?.into(),
            "--rounds" => options.rounds = Some(value()?.parse().context("--rounds: write a number")?),
            "--cycles" => options.cycles = value()?.parse().context("--cycles: write a number")?,
            "--without" => match value()?.as_str() {
                "skep" => options.with_ours = false,
                "dockerd" => options.with_dockerd = false,
                other => bail!("--without {other}: only skep and dockerd can be left out"),
            },
            "--full" => options.full = true,
            "--managers" => options.managers = Some(value()?.parse().context("--managers: write a number")?),
            "--agents" => options.agents = Some(value()?.parse().context("--agents: write a number")?),
            "--steps" => {
                let steps: Result<Vec<usize>, _> = value()?.split(',').map(str::parse).collect();
                options.steps = Some(steps.context("--steps: write numbers with commas between")?);
            }
            name if ALL.contains(&name) || name == "table" => options.which.push(name.to_owned()),
            other => bail!("{other}: no such benchmark or option\n{USAGE}"),
        }
    }
    if options.which.is_empty() {
        options.which = ALL.map(str::to_owned).to_vec();
    }
    Ok(options)
}

fn main() -> Result<()> {
    let options = options()?;
    interrupt::listen()?;
    skep_ca::install_crypto_provider();
    let mut field: Option<Field> = None;
    let mut failed = Vec::new();
    let mut sessions_done = false;
    for which in options.which.iter().filter(|which| *which != "table") {
        let together = SESSIONS.contains(&which.as_str());
        if together && std::mem::replace(&mut sessions_done, true) {
            continue;
        }
        eprintln!("{which}");
        let lonely = together || matches!(which.as_str(), "D1" | "B4" | "B8" | "B9" | "B10" | "B11" | "B13" | "B15");
        if which != "B5" {
            anyhow::ensure!(skep_kit::need_root("skep-bench"), "{which} needs a host of its own");
        }
        if lonely {
            // Their daemons would be in the way of measuring.
            field = None;
        } else if which != "B5" && field.is_none() {
            field = Some(Field::new(options.with_ours, options.with_dockerd)?);
        }
        // The larger operations take so long that fewer rounds must do.
        let rounds = options.rounds.unwrap_or(ROUNDS);
        let few = rounds.div_ceil(2);
        let reports = match (which.as_str(), &field) {
            ("B5", _) => sched::sched().map(one),
            ("B8" | "B9" | "B10" | "B11" | "B15", None) => network::measure(which, rounds).map(one),
            ("B1", Some(field)) => tasks::start_one(field, rounds).map(one),
            ("B2", Some(field)) => tasks::start_burst(field, &[50, 100], few).map(one),
            ("B3", Some(field)) => tasks::stop_and_remove(field, &[1, 10, 50], few, options.cycles).map(one),
            ("B17", Some(field)) => tasks::rolling_update(field, 10, few).map(one),
            ("B16", Some(field)) => footprint::footprint(field).map(one),
            ("D2", Some(field)) => docker::run(field, rounds).map(one),
            ("D3", Some(field)) => docker::exec(field, rounds).map(one),
            ("D4", Some(field)) => docker::follow(field, few).map(one),
            ("D1", None) => docker::listing(docker::Size::FULL, options.with_ours, options.with_dockerd).map(one),
            ("B4", None) => in_own_network(|| async { writes::measure(&options.writes()).await }).map(one),
            ("B13", None) => in_own_network(|| async { failover::measure(&options.failover()).await }).map(one),
            (_, None) if together => {
                let wanted: BTreeSet<String> = options.which.iter().cloned().collect();
                many_agents(&wanted, &options)
            }
            _ => unreachable!("the names were checked"),
        };
        // One that fails must not hide the others.
        match reports.and_then(|reports| reports.iter().try_for_each(|report| report.write(&options.out))) {
            Ok(()) => {}
            Err(error) => {
                eprintln!("{which} failed: {error:#}");
                if let Some(field) = field.as_ref().filter(|field| field.has_ours()) {
                    eprintln!("{}", field.lab.log_tail());
                }
                failed.push(which.clone());
                if interrupt::check().is_err() {
                    break;
                }
            }
        }
    }
    drop(field);
    std::fs::create_dir_all(&options.out)?;
    print!("{}", report::table(&options.out)?);
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

/// Ours at full size, then dockerd at the size it takes.
fn many_agents(wanted: &BTreeSet<String>, options: &Options) -> Result<Vec<Report>> {
    let scale = options.scale();
    sessions::make_room(&scale)?;
    let mut ours = Vec::new();
    if options.with_ours {
        ours = in_own_network(|| async { sessions::measure(wanted, &scale, Side::Ours(Managers::start(scale.managers).await?)).await })?;
    }
    if options.with_dockerd {
        let peer = peers::Peer::bare()?;
        let (namespace, small) = (peer.namespace(), scale.peer());
        let theirs = in_network(&namespace, || async { sessions::measure(wanted, &small, Side::Dockerd(SwarmKit::new(peer)?)).await })?;
        for row in theirs.iter().flat_map(|report| &report.rows) {
            eprintln!("dockerd 20.10, {} agents: {}: {:.3} {}", small.agents, row.metric, row.ours.unwrap_or(f64::NAN), row.unit);
        }
        sessions::beside(&mut ours, &theirs, &small);
    }
    Ok(ours)
}

fn one(report: Report) -> Vec<Report> {
    vec![report]
}
