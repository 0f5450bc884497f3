//! `swarmctl`: the cluster from the command line, in the grammar docker users know.

mod commands; // one module per noun
mod connect; // TLS on the local socket
mod credentials; // what docker login left behind
mod failure; // errors and exit statuses
mod flags; // flags to specs
mod output; // tables, JSON, templates
mod progress; // waiting until a service is as wanted
mod resolve; // names to ids
mod secret; // keys from files and terminals
mod when; // times for people

use clap::{CommandFactory, Parser, Subcommand};
use failure::Failure;
use std::path::PathBuf;
use std::process::ExitCode;

/// Docker Swarm mode without the Docker daemon: the cluster's command line.
///
/// Exit status: 0 done, 1 refused or failed, 2 bad command line, 3 not found, 4 changed by somebody else or taken, 5 no daemon or manager
/// reached, 6 accepted but not converged.
#[derive(Debug, Parser)]
#[command(name = "swarmctl", version, arg_required_else_help = true, infer_subcommands = false)]
struct Cli {
    /// The daemon's local socket
    #[arg(long, short = 's', global = true, env = "SKEP_SOCKET", default_value = "/run/skep/skep.sock", value_name = "PATH")]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make, join, change and save the cluster
    #[command(subcommand, arg_required_else_help = true)]
    Cluster(commands::cluster::Command),
    /// Show and change nodes
    #[command(subcommand, arg_required_else_help = true)]
    Node(commands::node::Command),
    /// Make, show and remove networks
    #[command(subcommand, arg_required_else_help = true)]
    Network(commands::network::Command),
    /// Run and change services
    #[command(subcommand, arg_required_else_help = true)]
    Service(commands::service::Command),
    /// Show tasks, and run programs in them
    #[command(subcommand, arg_required_else_help = true)]
    Task(commands::task::Command),
    /// Make, show and remove secrets: payloads that only their tasks see
    #[command(subcommand, arg_required_else_help = true)]
    Secret(commands::payload::Command),
    /// Make, show and remove configs: payloads that are no secret
    #[command(subcommand, arg_required_else_help = true)]
    Config(commands::payload::Command),
    /// Tell why something runs where it does, or not at all
    #[command(subcommand, arg_required_else_help = true)]
    Explain(commands::explain::Command),
    /// Show, pull and load images of this node
    #[command(subcommand, arg_required_else_help = true)]
    Image(commands::image::Command),
    /// Print a completion script for a shell
    Completion { shell: clap_complete::Shell },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Completion { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "swarmctl", &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("swarmctl: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(run(cli));
    // Nothing that still waits (a reader of standard input) may hold the exit back.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure.exit, failure::Exit::Program(_)) {
                eprintln!("swarmctl: {failure}");
            }
            ExitCode::from(failure.exit.status())
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let connection = connect::Connection::open(&cli.socket).await?;
    match cli.command {
        Command::Cluster(command) => commands::cluster::run(command, &connection).await,
        Command::Node(command) => commands::node::run(command, &connection).await,
        Command::Network(command) => commands::network::run(command, &connection).await,
        Command::Service(command) => commands::service::run(*Box::new(command), &connection).await,
        Command::Task(command) => commands::task::run(command, &connection).await,
        Command::Secret(command) => commands::payload::run::<skep_types::Secret>(command, &connection).await,
        Command::Config(command) => commands::payload::run::<skep_types::Config>(command, &connection).await,
        Command::Explain(command) => commands::explain::run(command, &connection).await,
        Command::Image(command) => commands::image::run(command, &connection).await,
        Command::Completion { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
