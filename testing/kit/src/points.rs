//! The fail-points that the sources name.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The crates that skepd is made of.
const CRATES: [&str; 7] = ["agent", "netlb", "images", "manager", "manager/store", "skepd", "ca"];
const CALL: &str = "failpoint!(\"";

/// Every fail-point of the daemon whose name begins in one of these ways (`""`: every one). None at all is an error: a test that
/// kills nobody shows nothing.
pub fn fail_points(beginnings: &[&str]) -> Result<BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut dirs: Vec<PathBuf> = CRATES.iter().map(|name| root.join(name).join("src")).collect();
    let mut found = BTreeSet::new();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path)?;
                for rest in text.split(CALL).skip(1) {
                    let (name, _) = rest.split_once('"').with_context(|| format!("an unfinished name in {}", path.display()))?;
                    found.insert(name.to_owned());
                }
            }
        }
    }
    found.retain(|name| beginnings.iter().any(|beginning| name.starts_with(beginning)));
    ensure!(!found.is_empty(), "no fail-points begin with {beginnings:?}");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_how_they_begin() {
        let all = fail_points(&[""]).unwrap();
        assert!(all.len() > 100, "{}", all.len());
        let two = fail_points(&["skepd.", "store."]).unwrap();
        assert!(two.len() < all.len() && two.iter().all(|name| name.starts_with("skepd.") || name.starts_with("store.")), "{two:?}");
        assert!(fail_points(&["nowhere."]).is_err());
    }
}
