//! `make sim`: runs seeds, tells the first that fails, shrinks it and writes it down.

use clap::Parser;
use skep_sim::{Mutant, Scenario, Verdict, run, shrink};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Runs whole clusters on virtual time, one per seed.
#[derive(Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// This one only, with all that happens.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// The scenario of a file, with all that happens.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Puts every fault in, one after the other, and tells which seed finds it.
    #[arg(long)]
    mutants: bool,
    /// With `--mutants`: this one only.
    #[arg(long)]
    mutant: Option<String>,
    /// Groups of managers on real raft, with disks that lose what was not synced, instead of whole clusters.
    #[arg(long)]
    group: bool,
    /// The last lines of the trace that are shown of a failure.
    #[arg(long, default_value_t = 60)]
    lines: usize,
    /// Do not look for the fewest operations that fail.
    #[arg(long)]
    whole: bool,
    /// Go on after a failure and count.
    #[arg(long)]
    count: bool,
    /// So many managers in every run, and not as many as its seed says.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=7))]
    managers: Option<u8>,
    /// The same of nodes.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=99))]
    nodes: Option<u8>,
    /// Operations of users and faults come so many seconds apart, and not as close behind each other as the seed says.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    every: Option<u64>,
    /// So many seeds at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

impl Args {
    fn scenario(&self, seed: u64) -> Scenario {
        let scenario = Scenario::of_size(seed, self.managers, self.nodes);
        self.every.map(Duration::from_secs).into_iter().fold(scenario, Scenario::spaced)
    }
}

/// CPU time of this process so far, in seconds; `proc(5)`: fields 14 and 15 of `stat`, in hundredths.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// A run makes and drops small things by the million, one thread each. The allocator keeps more of them at hand than by default, which it
/// is told before it starts: the program begins anew once.
const ALLOCATOR: (&str, &str) =
    ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=1000:glibc.malloc.top_pad=16777216:glibc.malloc.trim_threshold=1000000000");

fn main() -> anyhow::Result<ExitCode> {
    if std::env::var_os(ALLOCATOR.0).is_none() {
        // If that fails, everything is as right and slower.
        let _ = Command::new("/proc/self/exe").arg0("skep-sim").args(std::env::args_os().skip(1)).env(ALLOCATOR.0, ALLOCATOR.1).exec();
    }
    let args = Args::parse();
    if args.group {
        return Ok(if group(&args) { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if args.mutants {
        return Ok(mutants(&args));
    }
    if let Some(path) = &args.file {
        return Ok(one(&Scenario::from_text(&std::fs::read_to_string(path)?)?, &args));
    }
    if let Some(seed) = args.seed {
        return Ok(one(&args.scenario(seed), &args));
    }
    many(&args)
}

/// The other world: whether all held.
fn group(args: &Args) -> bool {
    use skep_sim::group::{Mutant, report};
    if let Some(seed) = args.seed {
        let mutant = Mutant::ALL.into_iter().find(|mutant| args.mutant.as_ref().is_some_and(|name| *name == format!("{mutant:?}")));
        return report::one(seed, mutant, args.lines);
    }
    if args.mutants {
        return report::mutants(args.from, args.seeds, args.jobs, args.mutant.as_deref());
    }
    report::many(args.from, args.seeds, args.jobs, args.count)
}

/// One run, told in full.
fn one(scenario: &Scenario, args: &Args) -> ExitCode {
    let outcome = run(scenario, None, true);
    let skipped = outcome.lines.len().saturating_sub(args.lines);
    outcome.lines.iter().skip(skipped).for_each(|line| println!("{line}"));
    println!("seed {}: {} events in {:.0} s of its time", scenario.seed, outcome.events, outcome.simulated.as_secs_f64());
    match outcome.verdict {
        None => {
            println!("all held; as it should be {:.0} s after faults stopped", outcome.recovery.as_secs_f64());
            ExitCode::SUCCESS
        }
        Some(verdict) => {
            println!("{}: {}", verdict.name, verdict.words);
            ExitCode::FAILURE
        }
    }
}

/// What came of many seeds so far.
#[derive(Default)]
struct Sum {
    seeds: u64,
    simulated: f64,
    events: u64,
    failed: BTreeMap<u64, Verdict>,
}

fn many(args: &Args) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let next = AtomicU64::new(args.from);
    let sum = Mutex::new(Sum::default());
    let lock = || sum.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= args.from + args.seeds || !(args.count || lock().failed.is_empty()) {
                    return;
                }
                let outcome = run(&args.scenario(seed), None, false);
                let mut sum = lock();
                sum.seeds += 1;
                sum.simulated += outcome.simulated.as_secs_f64();
                sum.events += outcome.events;
                if let Some(verdict) = outcome.verdict {
                    println!("seed {seed}: {}: {}", verdict.name, verdict.words);
                    sum.failed.insert(seed, verdict);
                }
            }
        };
        // One in this thread: its allocator is the fastest.
        for _ in 1..args.jobs {
            scope.spawn(work);
        }
        work();
    });
    let Sum { seeds, simulated, events, failed } = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((seed, verdict)) = failed.first_key_value().filter(|_| !args.count) {
        tell(*seed, verdict, args)?;
        return Ok(ExitCode::FAILURE);
    }
    let (spent, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds().max(0.01));
    println!(
        "{seeds} seeds, {} failed, {:.1} days of their time, {events} events in {spent:.0} s; a second of CPU is {:.0} seeds, {:.0} minutes",
        failed.len(),
        simulated / 86_400.0,
        seeds as f64 / cpu,
        simulated / 60.0 / cpu
    );
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shrinks a seed that fails, shows how it fails and writes it down.
fn tell(seed: u64, verdict: &Verdict, args: &Args) -> anyhow::Result<()> {
    let scenario = args.scenario(seed);
    let small = if args.whole { scenario } else { shrink(&scenario, None, &verdict.name) };
    let last = run(&small, None, true);
    let words = last.verdict.map_or_else(|| verdict.words.clone(), |verdict| verdict.words);
    let skipped = last.lines.len().saturating_sub(args.lines);
    last.lines.iter().skip(skipped).for_each(|line| println!("{line}"));
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("seeds/found-{seed}.txt"));
    std::fs::write(&path, small.to_text(&format!("{}: {words}", verdict.name)))?;
    println!("{}: {words}", verdict.name);
    println!("again: make sim SEED={seed}; {} of its operations are in {}", small.ops.len(), path.display());
    Ok(())
}

/// Each fault must be found by one of the seeds.
fn mutants(args: &Args) -> ExitCode {
    // What panics tell is in the verdict.
    std::panic::set_hook(Box::new(|_| {}));
    let wanted: Vec<Mutant> =
        Mutant::ALL.iter().copied().filter(|mutant| args.mutant.as_ref().is_none_or(|name| *name == format!("{mutant:?}"))).collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                while let Some(mutant) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let what = find(*mutant, args);
                    found.lock().unwrap_or_else(PoisonError::into_inner).insert(*mutant, what);
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("| fault | found by | seeds |\n|---|---|---|");
    for (mutant, what) in &found {
        match what {
            Some((seed, name)) => println!("| {mutant:?}: {} | {name} | {} |", mutant.words(), seed - args.from + 1),
            None => println!("| {mutant:?}: {} | **nothing** | |", mutant.words()),
        }
    }
    let missed = found.values().filter(|what| what.is_none()).count();
    println!("{missed} of {} not found in {} seeds", found.len(), args.seeds);
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The first seed that finds a fault, and by what.
fn find(mutant: Mutant, args: &Args) -> Option<(u64, String)> {
    (args.from..args.from + args.seeds).find_map(|seed| {
        let scenario = args.scenario(seed);
        let verdict = run(&scenario, Some(mutant), false).verdict?;
        // A seed that fails anyhow proves nothing.
        run(&scenario, None, false).verdict.is_none().then_some((seed, verdict.name))
    })
}
