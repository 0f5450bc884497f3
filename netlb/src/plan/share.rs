//! Which task each client of a sticky port gets, without anybody remembering it.
//!
//! The kernel hashes the client's address into one of [`BUCKETS`], and each bucket is one backend's: of all backends the one whose
//! own hash with the bucket's number is the greatest (rendezvous hashing, Thaler and Ravishankar 1998). So every node that has the
//! same backends gives a client the same one, also after a restart; a backend that leaves gives up its own clients only, and one
//! that comes takes its share, 1/N, from all others alike.

use crate::wanted::Backend;
use std::net::IpAddr;

/// How many parts the clients are divided into. Each is an element of a map, so not too many; with ten backends the shares of two
/// differ by a tenth or so. To change it, or a hash, gives nearly every client another task.
pub(crate) const BUCKETS: u32 = 1024;

/// What the kernel's hash begins with; on all nodes the same.
pub(crate) const SEED: u32 = 0x736b_6570;

/// Mixes all bits with all others (the end of SplitMix64).
fn mixed(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn hash(backend: &Backend) -> u64 {
    let (high, low) = match backend.address {
        IpAddr::V4(address) => (0, u64::from(u32::from(address))),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            ((bits >> 64) as u64, bits as u64)
        }
    };
    mixed(mixed(mixed(high) ^ low) ^ u64::from(backend.port))
}

/// The backend of each bucket; the order of `backends` means nothing. None has none.
pub(crate) fn shares(backends: &[Backend]) -> Vec<Backend> {
    let hashed: Vec<(u64, Backend)> = backends.iter().map(|backend| (hash(backend), *backend)).collect();
    let of_bucket = |bucket: u32| {
        let bucket = mixed(u64::from(bucket) + 1);
        hashed.iter().max_by_key(|(hash, backend)| (mixed(hash ^ bucket), *backend)).map(|(_, backend)| *backend)
    };
    (0..BUCKETS).filter_map(of_bucket).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn backend(last: u8) -> Backend {
        Backend { address: IpAddr::from([10, 0, 0, last]), port: 80 }
    }

    fn list(lasts: impl IntoIterator<Item = u8>) -> Vec<Backend> {
        lasts.into_iter().map(backend).collect()
    }

    #[test]
    fn the_order_means_nothing_and_nobody_means_no_share() {
        assert_eq!(shares(&list([1, 2, 3])), shares(&list([3, 1, 2, 2])));
        assert_eq!(shares(&[]), []);
        assert_eq!(shares(&list([7])), vec![backend(7); BUCKETS as usize]);
    }

    #[test]
    fn all_get_about_as_much() {
        for count in [2u8, 3, 10, 50] {
            let mut got = BTreeMap::new();
            shares(&list(1..=count)).into_iter().for_each(|backend| *got.entry(backend).or_insert(0u32) += 1);
            let fair = f64::from(BUCKETS) / f64::from(count);
            // Five standard deviations of a fair draw; what is checked is the same in every run.
            let most = 5.0 * fair.sqrt();
            assert_eq!(got.len(), usize::from(count));
            assert!(got.values().all(|got| (f64::from(*got) - fair).abs() < most), "{count}: {got:?}");
        }
    }

    #[test]
    fn who_leaves_gives_up_its_own_and_who_comes_takes_from_all() {
        let (three, four) = (shares(&list(1..=3)), shares(&list(1..=4)));
        let moved: Vec<_> = three.iter().zip(&four).filter(|(before, after)| before != after).collect();
        assert!(moved.iter().all(|(_, after)| **after == backend(4)), "nobody else got anything");
        let share = moved.len() as f64 / f64::from(BUCKETS);
        assert!((0.18..0.32).contains(&share), "a quarter: {share}");
    }

    #[test]
    fn buckets_do_not_change_between_versions() {
        // Nodes of two versions must agree.
        let shares = shares(&list(1..=4));
        let number = |of: &Backend| (1..=4).find(|last| backend(*last) == *of).unwrap();
        let first: Vec<u8> = shares[..16].iter().map(number).collect();
        assert_eq!(first, [2, 3, 1, 2, 4, 2, 1, 4, 2, 2, 3, 3, 3, 1, 3, 4]);
    }
}
