//! What `swarmctl secret` and `swarmctl config` share.

use super::{ListFlags, short};
use crate::failure::Failure;
use crate::output::{self, Table};
use crate::when;
use skep_types::{Annotations, Meta};
use std::fs::File;
use std::io::Read;

/// The payload in a file, or on standard input for `-`; of a file that is too long no more than that is read.
pub fn read(kind: &str, from: &str, most: usize) -> Result<Vec<u8>, Failure> {
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

pub fn print(mut found: Vec<Listed<'_>>, flags: &ListFlags) -> Result<(), Failure> {
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
