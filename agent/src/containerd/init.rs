//! The init process of tasks that ask for one: which program it is, and whether it can run in any image.

use crate::error::ExecError;
use skep_types::ContainerSpec;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where containers find it: Docker's place, which some images look at.
pub const TARGET: &str = "/sbin/docker-init";
const NAME: &str = "skep-init";

/// Where a node has it: next to the running program, else where packages put such programs.
pub fn places() -> Vec<PathBuf> {
    let own = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_path_buf));
    own.into_iter().chain(["/usr/local/libexec/skep".into(), "/usr/libexec/skep".into()]).map(|dir| dir.join(NAME)).collect()
}

/// The program to put before the container's own; `None` = none is wanted. An absent wish means the node's default: none.
///
/// # Errors
/// If it is wanted and not here, or cannot run in a container.
pub fn wanted(spec: &ContainerSpec, places: &[PathBuf]) -> Result<Option<PathBuf>, ExecError> {
    if spec.init != Some(true) {
        return Ok(None);
    }
    let found = places.iter().find(|path| path.is_file());
    let missing = || ExecError::InitMissing { places: places.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ") };
    let path = found.ok_or_else(missing)?;
    match problem(path) {
        Ok(None) => Ok(Some(path.clone())),
        Ok(Some(reason)) => Err(ExecError::InitUnusable { path: path.clone(), reason }),
        Err(error) => Err(ExecError::io("read", path)(error)),
    }
}

/// Why a program would not run in any image.
fn problem(path: &Path) -> io::Result<Option<&'static str>> {
    let mut file = std::fs::File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o111 != 0o111 {
        return Ok(Some("not everybody may execute it"));
    }
    let mut header = [0; 64];
    if file.read_exact(&mut header).is_err() || &header[..5] != b"\x7fELF\x02" {
        return Ok(Some("not a 64-bit program"));
    }
    // ELF-64 object file format, program header: offset, size of an entry and count are at 32, 54 and 56 of the file's header;
    // an entry begins with its type. All machines we build for are little-endian.
    let short = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let offset = u64::from_le_bytes(header[32..40].try_into().expect("eight bytes"));
    let mut entries = vec![0; usize::from(short(54)) * usize::from(short(56))];
    file.seek(SeekFrom::Start(offset))?;
    if short(54) < 4 || file.read_exact(&mut entries).is_err() {
        return Ok(Some("a damaged program"));
    }
    let interpreter = entries.chunks(usize::from(short(54))).any(|entry| entry[..4] == PT_INTERP.to_le_bytes());
    Ok(interpreter.then_some("linked dynamically, and images need not have the libraries"))
}

/// Names the dynamic linker: a static program has none.
const PT_INTERP: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn asked() -> ContainerSpec {
        ContainerSpec { init: Some(true), ..ContainerSpec::default() }
    }

    /// A program of two entries, one of this type.
    fn elf(kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 2 * 56];
        bytes[..5].copy_from_slice(b"\x7fELF\x02");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 2;
        bytes[64] = 1;
        bytes[64 + 56..][..4].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    fn program(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn without_a_wish_there_is_none_and_nothing_is_looked_for() {
        for init in [None, Some(false)] {
            assert_eq!(wanted(&ContainerSpec { init, ..ContainerSpec::default() }, &[]).unwrap(), None);
        }
    }

    #[test]
    fn the_first_that_is_there_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let here = program(dir.path(), "here", &elf(1), 0o755);
        let later = program(dir.path(), "later", &elf(1), 0o755);
        assert_eq!(wanted(&asked(), &[dir.path().join("missing"), here.clone(), later]).unwrap(), Some(here));
    }

    #[test]
    fn a_missing_one_is_told_with_the_places_and_the_cure() {
        let text = wanted(&asked(), &["/a/skep-init".into(), "/b/skep-init".into()]).unwrap_err().words();
        assert!(text.contains("/a/skep-init, /b/skep-init") && text.contains("make release") && text.contains("--init"), "{text}");
    }

    #[test]
    fn a_program_that_would_not_run_in_an_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |path: PathBuf, words: &str| {
            let text = wanted(&asked(), &[path]).unwrap_err().words();
            assert!(text.contains(words), "{text}");
        };
        refused(program(dir.path(), "dynamic", &elf(PT_INTERP), 0o755), "linked dynamically");
        refused(program(dir.path(), "private", &elf(1), 0o700), "not everybody may execute it");
        refused(program(dir.path(), "script", b"#!/bin/sh\n", 0o755), "not a 64-bit program");
        refused(program(dir.path(), "cut", &elf(1)[..80], 0o755), "a damaged program");
        let own = std::env::current_exe().unwrap();
        assert!(problem(&own).unwrap().is_some(), "tests are linked dynamically");
    }

    #[test]
    fn it_is_looked_for_next_to_the_program_first() {
        let places = places();
        assert_eq!(places[0], std::env::current_exe().unwrap().with_file_name("skep-init"));
        assert_eq!(places[1..], ["/usr/local/libexec/skep/skep-init", "/usr/libexec/skep/skep-init"].map(PathBuf::from));
    }
}
