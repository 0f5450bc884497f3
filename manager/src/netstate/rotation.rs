//! New keys for encrypted networks, step by step: no node sends by a tunnel that its peers may not have yet.
//!
//! The steps and why no packet is lost between them are in `netlb/docs/encryption.md`. What is due is decided from the state alone,
//! so that the next leader goes on where this one stopped.

use super::index::Index;
use crate::shared::Shared;
use skep_store::ProposeError;
use skep_types::{Action, Cluster, ClusterView as _, Encrypting, KeyStep, Object, Timestamp, TunnelEpochs};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether a step is due; nodes tell and acknowledge without being asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a step waits for nodes that do not answer. One that is away for longer is cut off from encrypted networks until it is back;
/// till then it may still send to the others, whether or not it reaches a manager.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What the nodes have done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Some network is encrypted.
    pub(super) is_needed: bool,
    /// Every node that can encrypt told its key of the newest epoch.
    pub(super) all_told: bool,
    /// Every one of them has in place what the present step asks for.
    pub(super) all_in_place: bool,
}

impl Index {
    /// O(nodes + networks).
    pub(super) fn progress(&self) -> Progress {
        let newest = self.epochs.newest();
        let mut progress = Progress {
            is_needed: self.networks.values().filter_map(|net| net.network.as_ref()).any(|network| network.is_encrypted()),
            all_told: true,
            all_in_place: true,
        };
        for seat in self.nodes.values().filter(|seat| seat.exists) {
            let Some(place) = seat.place.as_ref().filter(|place| place.encrypting == Encrypting::Able) else { continue };
            progress.all_told &= place.tunnel_keys.iter().any(|key| key.epoch == newest);
            progress.all_in_place &= seat.programmed >= self.epochs_since;
        }
        progress
    }
}

/// The next step, if it is due. Pure.
pub(super) fn next(is: &TunnelEpochs, progress: Progress, lifetime: Duration, now: Timestamp) -> Option<TunnelEpochs> {
    let for_longer_than = |time: Duration| is.since.is_none_or(|since| since + time <= now);
    let (oldest, step) = match is.step {
        KeyStep::Settled if is.oldest == 0 => progress.is_needed.then_some((1, KeyStep::Settled))?,
        KeyStep::Settled => (progress.is_needed && for_longer_than(lifetime)).then_some((is.oldest, KeyStep::Making))?,
        KeyStep::Making => (progress.all_told || for_longer_than(PATIENCE)).then_some((is.oldest, KeyStep::Both))?,
        KeyStep::Both => (progress.all_in_place || for_longer_than(PATIENCE)).then_some((is.oldest, KeyStep::Sending))?,
        KeyStep::Sending => (progress.all_in_place || for_longer_than(PATIENCE)).then_some((is.newest(), KeyStep::Settled))?,
    };
    Some(TunnelEpochs { oldest, step, since: Some(now) })
}

/// Until dropped.
pub(super) async fn follow(shared: &Shared) -> Infallible {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        look(shared).await;
    }
}

/// Takes the next step, if it is due. What cannot be written now is tried again later.
async fn look(shared: &Shared) {
    let due = {
        let state = shared.netstate.lock();
        let Some(leading) = state.as_ref() else { return };
        let index = &leading.barrier.index;
        let next = next(&index.epochs, index.progress(), shared.tunnel_key_lifetime, shared.now());
        next.map(|next| (index.epochs.clone(), next))
    };
    let Some((is, next)) = due else { return };
    // Decided on what is not the latest state: then it is looked again.
    let view = shared.store.view();
    let Some(cluster) = view.cluster().filter(|cluster| cluster.tunnel_epochs == is) else { return };
    let changed = Cluster { tunnel_epochs: next.clone(), ..Cluster::clone(cluster) };
    match shared.propose(vec![Action::Update(Object::Cluster(Arc::new(changed)))]).await {
        Ok(_) => tracing::info!(oldest = next.oldest, newest = next.newest(), sending = next.sending(), "keys of encrypted networks"),
        Err(ProposeError::Refused(_)) => {}
        Err(error) => tracing::warn!(%error, "the next step to new keys of encrypted networks could not be written"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(100);
    const NOTHING: Progress = Progress { is_needed: false, all_told: false, all_in_place: false };
    const ALL: Progress = Progress { is_needed: true, all_told: true, all_in_place: true };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_secs(seconds)
    }

    fn epochs(oldest: u32, step: KeyStep, since: i64) -> TunnelEpochs {
        TunnelEpochs { oldest, step, since: Some(at(since)) }
    }

    #[test]
    fn there_are_no_keys_before_a_network_is_encrypted() {
        let none = TunnelEpochs::default();
        assert_eq!(next(&none, NOTHING, LIFETIME, at(5)), None);
        assert_eq!(next(&none, ALL, LIFETIME, at(5)), Some(epochs(1, KeyStep::Settled, 5)));
    }

    #[test]
    fn a_change_of_keys_goes_through_all_steps_and_each_waits_for_all() {
        let mut is = epochs(4, KeyStep::Settled, 0);
        assert_eq!(next(&is, ALL, LIFETIME, at(99)), None);
        assert_eq!(next(&is, Progress { is_needed: false, ..ALL }, LIFETIME, at(100)), None, "nothing is encrypted by them");
        let told = Progress { all_in_place: false, ..ALL };
        let in_place = Progress { all_told: false, ..ALL };
        for (step, enough) in [(KeyStep::Making, in_place), (KeyStep::Both, told), (KeyStep::Sending, in_place)] {
            is = next(&is, enough, LIFETIME, at(100)).unwrap();
            assert_eq!(is, epochs(4, step, 100));
        }
        assert_eq!(next(&is, in_place, LIFETIME, at(100)), Some(epochs(5, KeyStep::Settled, 100)));
    }

    #[test]
    fn a_step_waits_for_what_it_is_about_and_not_for_ever() {
        let told = Progress { all_in_place: false, ..ALL };
        let in_place = Progress { all_told: false, ..ALL };
        for (step, lacking) in [(KeyStep::Making, in_place), (KeyStep::Both, told), (KeyStep::Sending, told)] {
            assert_eq!(next(&epochs(4, step, 0), lacking, LIFETIME, at(3599)), None, "{step:?}");
            assert!(next(&epochs(4, step, 0), lacking, LIFETIME, at(3600)).is_some(), "{step:?}");
            assert!(next(&epochs(4, step, 0), ALL, LIFETIME, at(0)).is_some(), "{step:?}");
        }
    }
}
