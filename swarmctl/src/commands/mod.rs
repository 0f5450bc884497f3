//! One module per noun of the command line.

pub mod attach;
pub mod cluster;
mod config;
mod copy; // files of tasks
mod exec; // programs in tasks
pub mod explain;
mod forward; // ports into tasks
pub mod image;
pub mod logs;
pub mod network;
pub mod node;
pub mod payload; // what secrets and configs share
mod pin; // what registries say of images
mod secret;
pub mod service;
pub mod task;
mod terminal; // the one we run in
mod visit; // the node of a task

use crate::failure::Failure;

/// How often a change that somebody else overtook is looked at again and repeated.
const TRIES: usize = 5;

/// Flags of every list.
#[derive(Debug, clap::Args)]
pub struct ListFlags {
    /// Only print ids
    #[arg(long, short = 'q')]
    pub quiet: bool,
    /// table, json, or a Go template such as '{{.Name}}'
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    pub format: crate::output::Format,
    /// Print ids and texts in full
    #[arg(long)]
    pub no_trunc: bool,
}

/// Flags of every `inspect`.
#[derive(Debug, clap::Args)]
pub struct InspectFlags {
    /// json, or a Go template such as '{{.spec.annotations.name}}'
    #[arg(long, short = 'f', value_name = "FORMAT")]
    pub format: Option<String>,
}

/// Does something to each object named. Goes on after one that fails; the first failure is the command's.
async fn each(names: &[String], change: impl AsyncFn(&str) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut first_failure = None;
    for name in names {
        if let Err(failure) = change(name).await {
            match &first_failure {
                None => first_failure = Some(failure),
                Some(_) => eprintln!("swarmctl: {failure}"),
            }
        }
    }
    first_failure.map_or(Ok(()), Err)
}

/// The first 12 characters, as tables show ids.
pub fn short(id: &str, in_full: bool) -> String {
    if in_full { id.to_owned() } else { id.chars().take(12).collect() }
}
