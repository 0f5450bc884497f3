//! Names of containers.

use crate::{ApiError, Backend};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

/// Two words make a name that people can say.
const FIRST: [&str; 24] = [
    "amber", "brisk", "calm", "deft", "eager", "fleet", "glad", "hardy", "ivory", "jolly", "keen", "lucid", "mellow", "noble", "olive",
    "plain", "quick", "rosy", "steady", "tidy", "upbeat", "vivid", "warm", "zesty",
];
const SECOND: [&str; 24] = [
    "aster", "birch", "clover", "dahlia", "elder", "fennel", "ginger", "heath", "iris", "juniper", "kale", "lilac", "maple", "nettle",
    "oak", "poppy", "quince", "rowan", "sage", "thyme", "umber", "violet", "willow", "yarrow",
];

/// # Errors
/// 400 in dockerd's words.
pub(in crate::container) fn check_name(name: &str) -> Result<String, ApiError> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let is_good = bare.len() > 1
        && bare.starts_with(|first: char| first.is_ascii_alphanumeric())
        && bare.chars().all(|one| one.is_ascii_alphanumeric() || matches!(one, '_' | '.' | '-'));
    match is_good && bare.len() <= 255 {
        true => Ok(bare.to_owned()),
        false => Err(ApiError::invalid(format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"))),
    }
}

/// One that no container of this node has.
pub(super) async fn any(backend: &Backend) -> Result<String, ApiError> {
    let taken: Vec<String> = backend.containers.list().await?.into_iter().map(|one| one.name).collect();
    // Keyed anew each time.
    let seed = RandomState::new().hash_one(taken.len());
    let pick = |list: &[&'static str; 24], at: u64| list[usize::try_from(at % 24).unwrap_or(0)];
    let plain = format!("{}_{}", pick(&FIRST, seed), pick(&SECOND, seed >> 16));
    if !taken.contains(&plain) {
        return Ok(plain);
    }
    Ok(format!("{plain}_{:08x}", seed >> 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(check_name("/web-1").unwrap(), "web-1");
        for bad in ["", "/", "a", "-a", "a b", "a/b", "ä1"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
