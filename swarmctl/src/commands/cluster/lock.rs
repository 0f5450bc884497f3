//! `cluster unlock`, `cluster unlock-key`.

use super::edit;
use crate::connect::Connection;
use crate::failure::Failure;
use crate::{output, secret};
use skep_proto::skep::UnlockRequest;
use skep_proto::v1;
use skep_types::UnlockKey;
use std::path::PathBuf;

const KEY: &str = "unlock key";

#[derive(Debug, clap::Args)]
pub struct Unlock {
    /// File with the key (- = standard input); without it the key is read from standard input, or typed unseen
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct UnlockKeyFlags {
    /// Make a new one first; managers that are down meanwhile still need the old one
    #[arg(long)]
    rotate: bool,
    /// Only print the key
    #[arg(long, short = 'q')]
    quiet: bool,
}

pub async fn unlock(flags: &Unlock, connection: &Connection) -> Result<(), Failure> {
    let key = secret::read_key(KEY, flags.key_file.as_deref())?;
    connection.node().unlock(UnlockRequest { key: key.text().0 }).await.map_err(Failure::of_daemon)?;
    output::put("This manager is unlocked.\n")
}

pub async fn unlock_key(flags: &UnlockKeyFlags, connection: &Connection) -> Result<(), Failure> {
    if flags.rotate {
        let rotation = v1::KeyRotation { manager_unlock_key: true, ..v1::KeyRotation::default() };
        let is_locked = |spec: &mut skep_types::ClusterSpec| match spec.auto_lock_managers {
            true => Ok(()),
            false => Err(not_locked()),
        };
        edit::change(connection, rotation, is_locked).await?;
    }
    match flags.quiet {
        true => output::put(&format!("{}\n", fetch(connection).await?.text().0)),
        false => print_key(connection).await,
    }
}

fn not_locked() -> Failure {
    Failure::failed("managers are not locked, so there is no key; `swarmctl cluster update --autolock` locks them and prints one")
}

async fn fetch(connection: &Connection) -> Result<UnlockKey, Failure> {
    let answer = connection.ca().get_unlock_key(v1::GetUnlockKeyRequest::default()).await?.into_inner();
    if answer.unlock_key.is_empty() {
        return Err(not_locked());
    }
    UnlockKey::try_from(answer.unlock_key.as_slice()).map_err(|error| Failure::failed(error.to_string()))
}

pub async fn print_key(connection: &Connection) -> Result<(), Failure> {
    output::put(&advice(&fetch(connection).await?.text().0))
}

/// What to do with the key; also printed by `cluster init`.
pub fn advice(key: &str) -> String {
    format!(
        "To unlock a manager after it starts, run `swarmctl cluster unlock` on it and give this key:\n\n    {key}\n\n\
         Keep it in a safe place outside the cluster: without it a manager cannot be started again.\n"
    )
}
