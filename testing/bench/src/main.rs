//! Benchmarks: `skep-bench [OPTIONS] [B1|B2|B3|B5|B16]...`, run by `make bench`.
//!
//! Everybody does the same on the same machine in the same run, interleaved; the figure that counts is the median of the
//! ratios within a round, of CPU time first. A result is a JSON file; `skep-bench table` prints them all.

mod api; // our API
mod contender; // what is compared, in general
mod cpu; // who used how much CPU time
mod field; // the machine with everybody's daemons
mod footprint; // B16
mod http; // dockerd's API
mod interrupt; // Ctrl-C
mod ours; // skep as a contender
mod peers; // the others
mod remains; // what a task leaves in the kernel
mod report; // result files and the table
mod round; // interleaved rounds
mod sched; // B5
mod stamp; // the first instruction
mod stats; // medians, intervals, exponents
mod tasks; // B1, B2, B3

use anyhow::{Context, Result, bail};
use field::Field;
use std::path::{Path, PathBuf};

const ALL: [&str; 5] = ["B1", "B2", "B3", "B5", "B16"];
const USAGE: &str = "usage: skep-bench [--out DIR] [--rounds N] [--cycles N] [--without skep|dockerd] [B1|B2|B3|B5|B16]... | table";

#[derive(Debug)]
struct Options {
    out: PathBuf,
    /// Of B1; the larger operations take fewer.
    rounds: usize,
    cycles: usize,
    with_ours: bool,
    with_dockerd: bool,
    which: Vec<String>,
}

fn options() -> Result<Options> {
    let beside = std::env::current_exe()?.parent().and_then(Path::parent).context("this program has no directory")?.join("bench");
    let mut options = Options { out: beside, rounds: 10, cycles: 1000, with_ours: true, with_dockerd: true, which: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
        match argument.as_str() {
            "--out" => options.out = value()?.into(),
            "--rounds" => options.rounds = value()?.parse().context("--rounds: write a number")?,
            "--cycles" => options.cycles = value()?.parse().context("--cycles: write a number")?,
            "--without" => match value()?.as_str() {
                "skep" => options.with_ours = false,
                "dockerd" => options.with_dockerd = false,
                other => bail!("--without {other}: only skep and dockerd can be left out"),
            },
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
    let mut field: Option<Field> = None;
    let mut failed = Vec::new();
    for which in options.which.iter().filter(|which| *which != "table") {
        eprintln!("{which}");
        if which != "B5" && field.is_none() {
            anyhow::ensure!(skep_kit::need_root("skep-bench"), "{which} needs a host of its own");
            field = Some(Field::new(options.with_ours, options.with_dockerd)?);
        }
        // The larger operations take so long that fewer rounds must do.
        let few = options.rounds.div_ceil(2);
        let report = match (which.as_str(), &field) {
            ("B5", _) => sched::sched(),
            ("B1", Some(field)) => tasks::start_one(field, options.rounds),
            ("B2", Some(field)) => tasks::start_burst(field, &[50, 100], few),
            ("B3", Some(field)) => tasks::stop_and_remove(field, &[1, 10, 50], few, options.cycles),
            ("B16", Some(field)) => footprint::footprint(field),
            _ => unreachable!("the names were checked"),
        };
        // One that fails must not hide the others.
        match report.and_then(|report| report.write(&options.out)) {
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
    print!("{}", report::table(&options.out)?);
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}
