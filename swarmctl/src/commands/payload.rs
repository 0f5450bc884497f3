//! `swarmctl secret …` and `swarmctl config …`, which do the same with two kinds of objects.

use super::{InspectFlags, ListFlags, each, short};
use crate::connect::Connection;
use crate::failure::Failure;
use crate::flags::{PayloadFilter, PayloadFilters, PayloadFlags, payload_filter};
use crate::output::{self, Table};
use crate::when;
use serde_json::Value;
use skep_types::{Annotations, Meta};
use std::fs::File;
use std::io::Read;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make one of a file, or of standard input (-)
    Create {
        #[command(flatten)]
        flags: PayloadFlags,
        name: String,
        #[arg(value_name = "FILE|-")]
        file: String,
    },
    /// List them
    Ls {
        #[command(flatten)]
        flags: ListFlags,
        /// Only those with id=, name= (their beginnings), label=
        #[arg(long, short = 'f', value_name = "KEY=VALUE", value_parser = payload_filter)]
        filter: Vec<PayloadFilter>,
    },
    /// Show them in full; what a secret holds is never shown
    Inspect {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        flags: InspectFlags,
    },
    /// Remove them; one that is used stays, and it is said by whom
    Rm {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// One of the two kinds of objects, as `docker.swarmkit.v1.Control` has them.
pub trait Payload: Sized {
    const KIND: &str;
    /// Bytes.
    const MAX: usize;

    /// Stores one, and tells its id.
    async fn create(flags: PayloadFlags, name: String, data: Vec<u8>, connection: &Connection) -> Result<String, Failure>;
    async fn list(filters: PayloadFilters, connection: &Connection) -> Result<Vec<Self>, Failure>;
    /// As `inspect` shows it.
    async fn inspect(name: &str, connection: &Connection) -> Result<Value, Failure>;
    async fn remove(name: &str, connection: &Connection) -> Result<(), Failure>;
    fn listed(&self) -> Listed<'_>;
}

pub async fn run<P: Payload>(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Create { flags, name, file } => {
            let data = read(P::KIND, &file, P::MAX)?;
            output::put(&format!("{}\n", P::create(flags, name, data, connection).await?))
        }
        Command::Ls { flags, filter } => {
            let found = P::list(PayloadFilters::of(&filter), connection).await?;
            print(found.iter().map(P::listed).collect(), &flags)
        }
        Command::Inspect { names, flags } => {
            let mut found = Vec::new();
            for name in names {
                found.push(P::inspect(&name, connection).await?);
            }
            output::inspect(&found, flags.format.as_deref())
        }
        Command::Rm { names } => {
            each(&names, async |name| {
                P::remove(name, connection).await?;
                output::put(&format!("{name}\n"))
            })
            .await
        }
    }
}

/// The payload in a file, or on standard input for `-`; of a file that is too long no more than that is read.
fn read(kind: &str, from: &str, most: usize) -> Result<Vec<u8>, Failure> {
    let mut data = Vec::new();
    let limit = most as u64 + 1;
    let read = match from {
        "-" => std::io::stdin().lock().take(limit).read_to_end(&mut data),
        path => File::open(path).and_then(|file| file.take(limit).read_to_end(&mut data)),
    };
    let name = if from == "-" { "standard input" } else { from };
    match read {
        Err(error) => Err(Failure::failed(format!("cannot read {name}: {error}"))),
        Ok(0) => Err(Failure::failed(format!("{name} is empty; a {kind} holds at least one byte"))),
        Ok(size) if size > most => Err(Failure::failed(format!("{name} is too long: a {kind} holds at most {most} bytes"))),
        Ok(_) => Ok(data),
    }
}

/// One line of a list.
pub struct Listed<'a> {
    pub id: &'a str,
    pub annotations: &'a Annotations,
    pub meta: &'a Meta,
}

fn print(mut found: Vec<Listed<'_>>, flags: &ListFlags) -> Result<(), Failure> {
    found.sort_by_key(|item| &item.annotations.name);
    if flags.quiet {
        return output::put(&found.iter().map(|item| format!("{}\n", item.id)).collect::<String>());
    }
    let mut table = Table::new(&["ID", "NAME", "CREATED", "UPDATED"]);
    let now = when::now();
    for item in found {
        let ago = |at| format!("{} ago", when::about(now.since(at)));
        let labels: Vec<String> = item.annotations.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        table.row_with(
            vec![short(item.id, flags.no_trunc), item.annotations.name.clone(), ago(item.meta.created_at), ago(item.meta.updated_at)],
            vec![("Labels", labels.join(","))],
        );
    }
    table.print(&flags.format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_neither_empty_nor_too_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let read_of = |size: usize| {
            std::fs::write(&path, vec![7; size]).unwrap();
            read("secret", path.to_str().unwrap(), 10).map_err(|failure| failure.to_string())
        };
        assert_eq!(read_of(10).unwrap().len(), 10);
        assert!(read_of(0).unwrap_err().contains("is empty"));
        assert!(read_of(11).unwrap_err().contains("at most 10 bytes"));
        assert!(read("secret", "/no/such/file", 10).unwrap_err().to_string().contains("/no/such/file"));
    }
}
