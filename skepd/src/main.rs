//! `skepd`: the daemon of a node. Reads its configuration, wires the crates together, nothing else.
//!
//! Start with [`daemon::run`]. The tasks it owns are named there.

mod address; // what others reach us at
mod agent; // kept running
mod attachments; // for containers of a worker
mod certificate; // getting and renewing it
mod config; // defaults, file, flags
mod daemon; // starting, requests, stopping
mod docker; // the Docker API
mod local; // skep.v1.LocalNode
mod logging; // journald or text
mod parts; // what a node has in a cluster and without
mod router; // services that come and go
mod state; // what is remembered between starts
mod status; // what the node tells of itself
mod swarm; // everything that runs while the node is in a cluster
mod vault; // identity on disk, sealed or not

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Docker Swarm mode without the Docker daemon: the daemon of a node.
#[derive(Debug, Parser)]
#[command(name = "skepd", version)]
struct Cli {
    #[command(flatten)]
    flags: config::Flags,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes the tasks' logs; started by the daemon and outlives it
    #[command(hide = true)]
    LogWriter {
        #[arg(long)]
        run_dir: PathBuf,
    },
    /// Prints the configuration in force and ends
    CheckConfig,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Some(Command::LogWriter { run_dir }) => skep_agent::run_log_writer(&run_dir).context("the log writer ended"),
        Some(Command::CheckConfig) => config::Config::load(&cli.flags).map(|config| println!("{config:#?}")),
        None => run(&cli.flags),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The log may not be set up yet, so that people see it in any case.
            eprintln!("skepd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &config::Flags) -> Result<()> {
    let config = config::Config::load(flags)?;
    logging::init(&config)?;
    skep_ca::install_crypto_provider();
    // Two workers: the daemon waits far more than it computes, and threads cost memory on every node.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(16).enable_all().build()?;
    let outcome = runtime.block_on(daemon::run(config));
    // Tasks have owners that waited for them; what is left can only be a blocked read of a dead disk.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    outcome
}
