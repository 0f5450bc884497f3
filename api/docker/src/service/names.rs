//! Names for services that are created without one.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

const HOW: [&str; 32] = [
    "airy", "amber", "brave", "bright", "calm", "careful", "clever", "crisp", "deft", "eager", "early", "fair", "fleet", "gentle", "glad",
    "golden", "hardy", "humble", "keen", "kind", "lively", "mellow", "merry", "nimble", "patient", "quiet", "ready", "sturdy", "sunny",
    "tidy", "warm", "wise",
];

const WHO: [&str; 32] = [
    "aster",
    "basil",
    "bee",
    "borage",
    "burdock",
    "chicory",
    "clover",
    "comb",
    "cornflower",
    "drone",
    "fennel",
    "foxglove",
    "heather",
    "hive",
    "hyssop",
    "lavender",
    "linden",
    "lupin",
    "mallow",
    "meadow",
    "melilot",
    "mint",
    "nectar",
    "pollen",
    "privet",
    "sage",
    "sainfoin",
    "swarm",
    "thistle",
    "thyme",
    "vetch",
    "willow",
];

/// Two words and a number, such as `calm_heather42`.
pub(super) fn made_up_name() -> String {
    // The standard library's keys differ from call to call; a name needs no better chance than that.
    let chance = RandomState::new().build_hasher().finish();
    let pick = |words: &[&'static str; 32], shift: u32| words[usize::try_from((chance >> shift) & 31).unwrap_or_default()];
    format!("{}_{}{}", pick(&HOW, 0), pick(&WHO, 8), (chance >> 16) % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_names_and_differ() {
        let names: std::collections::BTreeSet<String> = (0..50).map(|_| made_up_name()).collect();
        assert!(names.len() > 10, "{names:?}");
        let is_plain = |name: &String| name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_') && name.len() < 63;
        assert!(names.iter().all(is_plain), "{names:?}");
    }
}
