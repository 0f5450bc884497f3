//! `swarmctl cluster …`

mod backup; // backup, restore, recover
mod ca; // the root certificate
mod client_cert; // for the Docker API on TCP
mod edit; // reading and changing the cluster object
mod join; // init, join, tokens
mod lock; // unlock, unlock-key
mod rotation; // watching a root rotation
mod status; // what this node is

use super::InspectFlags;
use crate::connect::Connection;
use crate::failure::Failure;
use crate::flags::ClusterFlags;
use crate::output;
use skep_proto::skep::LeaveRequest;
use skep_proto::{FromWire, v1};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make this node the first manager of a new cluster
    Init(join::Init),
    /// Make this node a member of a cluster; the token says whether a worker or a manager
    Join(join::Join),
    /// Stop this node's tasks and forget the cluster
    Leave {
        /// Leave although the cluster loses its majority or, with the last manager, its state
        #[arg(long, short = 'f')]
        force: bool,
    },
    /// Print the command with which a machine joins
    JoinToken(join::JoinToken),
    /// Give a locked manager the key that opens its state
    Unlock(lock::Unlock),
    /// Print the key that opens locked managers
    UnlockKey(lock::UnlockKeyFlags),
    /// Print the root certificate, or replace it
    Ca(ca::Ca),
    /// Make a certificate for the docker command on another machine (see skepd --docker-tls-listen)
    ClientCert(client_cert::ClientCert),
    /// Change the cluster's settings
    Update(ClusterFlags),
    /// Show the cluster's settings
    Inspect(InspectFlags),
    /// Show what this node is, in the cluster or not
    Status(status::StatusFlags),
    /// Write the cluster's whole state, sealed, to a file
    Backup(backup::Backup),
    /// Make this node the only manager of the cluster in a backup
    Restore(backup::Restore),
    /// Make this manager the only one, when the majority is lost for good
    Recover(backup::Recover),
}

pub async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Init(flags) => join::init(flags, connection).await,
        Command::Join(flags) => join::join(flags, connection).await,
        Command::Leave { force } => {
            connection.node().leave(LeaveRequest { force }).await.map_err(Failure::of_daemon)?;
            output::put("This node has left the cluster.\n")
        }
        Command::JoinToken(flags) => join::join_token(&flags, connection).await,
        Command::Unlock(flags) => lock::unlock(&flags, connection).await,
        Command::UnlockKey(flags) => lock::unlock_key(&flags, connection).await,
        Command::Ca(flags) => ca::run(&flags, connection).await,
        Command::ClientCert(flags) => client_cert::run(&flags, connection).await,
        Command::Update(flags) => update(&flags, connection).await,
        Command::Inspect(flags) => {
            let cluster = skep_types::Cluster::from_wire(edit::cluster(connection).await?)?;
            output::inspect(&[output::readable(&cluster)?], flags.format.as_deref())
        }
        Command::Status(flags) => status::run(&flags, connection).await,
        Command::Backup(flags) => backup::backup(&flags, connection).await,
        Command::Restore(flags) => backup::restore(flags, connection).await,
        Command::Recover(flags) => backup::recover(flags, connection).await,
    }
}

async fn update(flags: &ClusterFlags, connection: &Connection) -> Result<(), Failure> {
    if flags.is_empty() {
        return Err(Failure::failed("nothing to change was given; `swarmctl cluster update --help` lists the settings"));
    }
    let (before, _) = edit::change(connection, v1::KeyRotation::default(), |spec| flags.apply(spec).map_err(Failure::failed)).await?;
    output::put("Cluster updated.\n")?;
    match flags.autolock {
        Some(true) if !before.spec.auto_lock_managers => lock::print_key(connection).await,
        _ => Ok(()),
    }
}
