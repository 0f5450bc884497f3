//! `make sim`: runs seeds, tells the first that fails, shrinks it and writes it down.

use clap::Parser;
use skep_sim::{Mutant, Scenario, run, shrink};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

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
    /// The last lines of the trace that are shown of a failure.
    #[arg(long, default_value_t = 60)]
    lines: usize,
    /// Do not look for the fewest operations that fail.
    #[arg(long)]
    whole: bool,
    /// Go on after a failure and count.
    #[arg(long)]
    count: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if args.mutants {
        return Ok(mutants(&args));
    }
    if let Some(path) = &args.file {
        return Ok(one(&Scenario::from_text(&std::fs::read_to_string(path)?)?, &args));
    }
    if let Some(seed) = args.seed {
        return Ok(one(&Scenario::of_seed(seed), &args));
    }
    many(&args)
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

fn many(args: &Args) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let (mut simulated, mut events, mut failures) = (0.0, 0, 0);
    for seed in args.from..args.from + args.seeds {
        let scenario = Scenario::of_seed(seed);
        let outcome = run(&scenario, None, false);
        simulated += outcome.simulated.as_secs_f64();
        events += outcome.events;
        let Some(verdict) = outcome.verdict else { continue };
        println!("seed {seed}: {}: {}", verdict.name, verdict.words);
        failures += 1;
        if args.count {
            continue;
        }
        let small = if args.whole { scenario } else { shrink(&scenario, None, &verdict.name) };
        let last = run(&small, None, true);
        let words = last.verdict.map_or(verdict.words, |verdict| verdict.words);
        let skipped = last.lines.len().saturating_sub(args.lines);
        last.lines.iter().skip(skipped).for_each(|line| println!("{line}"));
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("seeds/found-{seed}.txt"));
        std::fs::write(&path, small.to_text(&format!("{}: {words}", verdict.name)))?;
        println!("{}: {words}", verdict.name);
        println!("again: make sim SEED={seed}; {} of its operations are in {}", small.ops.len(), path.display());
        return Ok(ExitCode::FAILURE);
    }
    let spent = began.elapsed().as_secs_f64();
    println!(
        "{} seeds, {failures} failed, {:.1} days of their time, {events} events in {spent:.0} s: {:.0} minutes a second",
        args.seeds,
        simulated / 86_400.0,
        simulated / 60.0 / spent.max(0.001)
    );
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Each fault must be found by one of the seeds. Two of them are looked for at a time.
fn mutants(args: &Args) -> ExitCode {
    // What panics tell is in the verdict.
    std::panic::set_hook(Box::new(|_| {}));
    let wanted: Vec<Mutant> =
        Mutant::ALL.iter().copied().filter(|mutant| args.mutant.as_ref().is_none_or(|name| *name == format!("{mutant:?}"))).collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
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
        let scenario = Scenario::of_seed(seed);
        let verdict = run(&scenario, Some(mutant), false).verdict?;
        // A seed that fails anyhow proves nothing.
        run(&scenario, None, false).verdict.is_none().then_some((seed, verdict.name))
    })
}
