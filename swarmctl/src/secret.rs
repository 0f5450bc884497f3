//! Keys from files, pipes and terminals, and into files.

use crate::failure::Failure;
use console::Term;
use skep_types::UnlockKey;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longer than any key or token; what is longer is another file.
const LONGEST: u64 = 4096;

/// One secret line: from `file` (`-` is standard input), else from standard input, else typed on the terminal, unseen.
pub fn read_line(what: &str, file: Option<&Path>) -> Result<String, Failure> {
    let is_standard_input = |path: &Path| path.as_os_str() == "-";
    let text = match file {
        Some(path) if !is_standard_input(path) => {
            let opened = File::open(path).map_err(|error| Failure::failed(format!("cannot read {}: {error}", path.display())))?;
            read_small(opened, &path.display().to_string())?
        }
        None if std::io::stdin().is_terminal() => {
            let terminal = Term::stderr();
            if !terminal.is_term() {
                return Err(Failure::failed(format!("give the {what} with --key-file or on standard input")));
            }
            terminal.write_str(&format!("{what}: "))?;
            terminal.read_secure_line()?
        }
        _ => read_small(std::io::stdin().lock(), "standard input")?,
    };
    let line = text.trim();
    match line.is_empty() || line.contains(char::is_whitespace) {
        true => Err(Failure::failed(format!("no {what} was given: one line is expected, with nothing else"))),
        false => Ok(line.to_owned()),
    }
}

/// The key that opens managers and backups.
pub fn read_key(what: &str, file: Option<&Path>) -> Result<UnlockKey, Failure> {
    read_line(what, file)?.parse::<UnlockKey>().map_err(|error| Failure::failed(error.to_string()))
}

fn read_small(source: impl Read, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = source.take(LONGEST + 1).read_to_string(&mut text);
    match read {
        Ok(size) if size as u64 > LONGEST => Err(Failure::failed(format!("{name} is too long for a key; is it the right file?"))),
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::failed(format!("cannot read {name}: {error}"))),
    }
}

pub fn new_key() -> UnlockKey {
    UnlockKey::new(rand::random())
}

/// A new file that only its owner reads.
pub fn create(path: &Path) -> Result<File, Failure> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|error| Failure::failed(format!("cannot create {}: {error}", path.display())))
}

pub fn write_key(path: &Path, key: &UnlockKey) -> Result<(), Failure> {
    let mut file = create(path)?;
    let written = writeln!(file, "{}", key.text().0).and_then(|()| file.sync_all());
    written.map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_file_is_private_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = new_key();
        write_key(&path, &key).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_key("key", Some(&path)).unwrap(), key);
        assert!(write_key(&path, &key).is_err(), "a key that is there is never overwritten");
    }

    #[test]
    fn a_file_that_is_no_key_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for wrong in ["", "\n", "hunter2", "SWMKEY-1-AAAA", "one two"] {
            std::fs::write(&path, wrong).unwrap();
            let refused = read_key("key", Some(&path)).unwrap_err().to_string();
            assert!(!refused.contains("hunter2") && !refused.contains("AAAA"), "{refused}");
        }
        std::fs::write(&path, vec![b'A'; 5000]).unwrap();
        assert!(read_key("key", Some(&path)).unwrap_err().to_string().contains("too long"));
    }
}
