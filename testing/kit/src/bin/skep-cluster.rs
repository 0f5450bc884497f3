//! Many hosts on this machine, each a network namespace with a containerd and a skepd of its own, joined to one cluster.
//!
//! `skep-cluster start [MANAGERS [WORKERS]]` makes them and leaves them running; `skep-cluster stop` removes everything.
//! `SKEP_CLUSTER_DIR` says where they live.

use anyhow::{Context, Result, bail};
use skep_kit::{Size, Standing, need_root};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            eprintln!("skep-cluster: {}", causes.join(": "));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let dir = std::env::var_os("SKEP_CLUSTER_DIR").map_or_else(|| PathBuf::from("/var/lib/skep-cluster"), PathBuf::from);
    if !need_root("a cluster of hosts") {
        bail!("run it as root, with what `scripts/setup run test` installs");
    }
    let number = |text: &String| text.parse::<usize>().with_context(|| format!("{text:?} is not a number of hosts"));
    let standing = Standing::in_dir(dir);
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["start", ..] if arguments.len() <= 3 => {
            let managers = arguments.get(1).map_or(Ok(3), number)?;
            let workers = arguments.get(2).map_or(Ok(3), number)?;
            print!("{}", standing.start(Size { managers, workers })?);
        }
        ["stop"] => {
            standing.stop()?;
            println!("The cluster is gone.");
        }
        _ => bail!("usage: skep-cluster start [MANAGERS [WORKERS]] | stop"),
    }
    Ok(())
}
