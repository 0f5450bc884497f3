//! Containers that are no tasks on networks of the cluster: joined with each life of their process, left with its end, and joined and left
//! while it runs.

use super::record::{HeldPlace, Place};
use super::{Entry, Local, Locals};
use crate::board::NetworkName;
use crate::containers::ContainersError;
use crate::error::ExecError;
use crate::network::{is_lan, uses_host_network};
use crate::places::{Claim, PlaceError, PlaceWish};
use skep_failpoint::failpoint;
use skep_types::{Task, TaskId};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// Whether others can ask for it in DNS. A container may be called otherwise.
fn is_name(text: &str) -> bool {
    let is_label =
        |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'));
    text.len() <= 253 && text.split('.').all(is_label)
}

/// What a container is called on a network, its own name first.
fn names(local: &Local, place: &Place) -> Vec<String> {
    let own = [&local.task.annotations.name].into_iter().filter(|name| is_name(name));
    let mut names: Vec<String> = Vec::new();
    for name in own.chain(&place.aliases).chain(&[local.short_id.clone()]).filter(|name| !name.is_empty()) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// An address that was wished for and passed over.
fn not_given(place: &Place, held: &HeldPlace) -> Option<IpAddr> {
    let is_given = |wish: &IpAddr| held.place.addresses.iter().any(|text| text.split('/').next() == Some(wish.to_string().as_str()));
    place.addresses.iter().copied().find(|wish| !is_given(wish))
}

/// The first number that no link of these has.
fn free_link(places: &[Place]) -> u32 {
    let used: BTreeSet<u32> = places.iter().filter_map(|place| Some(place.held.as_ref()?.link)).collect();
    (0..).find(|link| !used.contains(link)).unwrap_or_default()
}

impl Local {
    /// Its places as they would be named; those of a container that has none but what every node has.
    fn places_now(&self) -> Result<Vec<Place>, ContainersError> {
        if let Some(places) = &self.places {
            return Ok(places.clone());
        }
        if uses_host_network(&self.task) {
            return Err(ContainersError::HostNetwork);
        }
        if !self.task.networks.is_empty() {
            return Err(ContainersError::NoNetwork);
        }
        let held = if self.is_running() { HeldPlace::new(None, 0) } else { None };
        Ok(vec![Place { held, ..PlaceWish { network: Place::OWN.into(), ..PlaceWish::default() }.into() }])
    }
}

impl Locals {
    /// Has managers give it its places, for a life of its process. Returns its task as it is with these.
    pub(super) async fn join(&self, entry: &Entry) -> Result<Arc<Task>, ExecError> {
        let mut local = entry.local();
        let Some(mut places) = local.places.clone() else { return Ok(local.task) };
        let claim = self.0.places.claim(&local.task.id);
        for (link, place) in (0..).zip(&mut places) {
            place.held = Some(self.take(&local, place, link, &claim).await?);
        }
        local = self.change(entry, |local| local.set_places(places));
        failpoint!("agent.local.places_recorded");
        claim.keep(local.attachments().cloned());
        Ok(local.task)
    }

    /// One place, as it was wished for.
    async fn take(&self, local: &Local, place: &Place, link: u32, claim: &Claim) -> Result<HeldPlace, ExecError> {
        let late = || PlaceError::Late { network: place.network.clone() };
        if place.is_own() {
            return HeldPlace::new(None, link).ok_or_else(|| late().into());
        }
        let taking = async {
            let id = self.0.allocator.attach(&place.wish(), &names(local, place), &local.task.id).await?;
            failpoint!("agent.local.place_asked");
            match claim.wait(&id).await.and_then(|task| HeldPlace::new(Some(&task), link)) {
                Some(held) => match not_given(place, &held) {
                    Some(address) => Err(PlaceError::Refused {
                        network: place.network.clone(),
                        reason: format!("no configured subnet contains IP address {address}"),
                    }),
                    None => Ok(held),
                },
                None => {
                    self.0.allocator.detach(&id).await;
                    Err(late())
                }
            }
        };
        tokio::select! {
            () = self.0.stop.cancelled() => Err(ExecError::Cancelled),
            taken = taking => Ok(taken?),
        }
    }

    /// Gives its places back; it does not run.
    pub(super) fn let_go(&self, entry: &Entry) {
        let local = entry.local();
        if let Some(places) = local.places.as_ref().filter(|places| places.iter().any(|place| place.held.is_some())) {
            let places = places.iter().cloned().map(|place| Place { held: None, ..place }).collect();
            self.change(entry, |local| local.set_places(places));
        }
        self.0.places.release(&local.task.id, None);
    }

    /// What runs gets the networks that it is to be on now.
    async fn rewire(&self, after: &Local) -> Result<(), ContainersError> {
        let sandbox = self.0.network.change(&after.task).await.map_err(ExecError::from)?;
        self.0.executor.rewrite_names(&after.task, &sandbox)?;
        // One without ports on the node's own network did not need to be led to.
        self.0.network.serve(&after.task).await.map_err(ExecError::from)?;
        Ok(())
    }

    /// Puts it on one more network: now if it runs, else from its next start on.
    ///
    /// # Errors
    /// If it is there already, or has its host's network or none, or managers give no place.
    pub async fn connect(&self, id: &TaskId, wish: PlaceWish) -> Result<(), ContainersError> {
        let (this, entry) = (self.clone(), self.entry(id)?);
        self.owned(async move {
            let _turn = entry.turn.lock().await;
            let before = entry.local();
            if before.is_gone || before.going.is_some() {
                return Err(ContainersError::NotFound { container: before.task.id.to_string() });
            }
            let mut places = before.places_now()?;
            if places.iter().any(|place| place.is_on(&wish.network)) {
                return Err(ContainersError::OnNetwork { name: before.task.annotations.name.clone(), network: wish.network });
            }
            let mut place = Place::from(wish);
            if !before.is_running() {
                places.push(place);
                this.change(&entry, |local| local.set_places(places));
                return Ok(());
            }
            let claim = this.0.places.claim(&before.task.id);
            let held = this.take(&before, &place, free_link(&places), &claim).await?;
            if is_lan(&held.place.network) {
                return Err(ContainersError::HostsOwnNetwork { network: place.network });
            }
            if let Some(other) = places.iter().find(|other| other.is_on(held.place.network.id.as_str())) {
                return Err(ContainersError::OnNetwork { name: before.task.annotations.name.clone(), network: other.network.clone() });
            }
            let (attachment, network) = (held.attachment.clone(), NetworkName::from(&*held.place.network));
            place.held = Some(held);
            places.push(place);
            // Remembered first: what comes after a crash has the link made, and knows whose the address is.
            let after = this.change(&entry, |local| local.set_places(places));
            claim.keep(attachment.clone());
            failpoint!("agent.local.connect_recorded");
            let rewired = this.rewire(&after).await;
            if rewired.is_err() {
                this.change(&entry, |local| (local.places, local.task) = (before.places.clone(), Arc::clone(&before.task)));
                if let Err(error) = this.rewire(&before).await {
                    tracing::warn!(container = %before.task.id, error = %error.words(), "something of a network may be left in a container");
                }
                if let Some(attachment) = &attachment {
                    this.0.places.release(&before.task.id, Some(attachment));
                }
            } else {
                this.0.board.connected(&after.task, network);
            }
            rewired
        })
        .await
    }

    /// Takes it off a network: now if it runs.
    ///
    /// # Errors
    /// If it is not on it, or the link cannot be removed.
    pub async fn disconnect(&self, id: &TaskId, network: &str) -> Result<(), ContainersError> {
        let (this, entry, network) = (self.clone(), self.entry(id)?, network.to_owned());
        self.owned(async move {
            let _turn = entry.turn.lock().await;
            let before = entry.local();
            let not_on = || ContainersError::NotOnNetwork { container: before.task.id.to_string(), network: network.clone() };
            let places = before.places_now()?;
            let at = places.iter().position(|place| place.is_on(&network)).ok_or_else(not_on)?;
            this.part(&entry, &before, places, at).await
        })
        .await
    }

    /// It leaves one of its places.
    async fn part(&self, entry: &Entry, before: &Local, mut places: Vec<Place>, at: usize) -> Result<(), ContainersError> {
        let place = places.remove(at);
        let Some(held) = place.held.filter(|_| before.is_running()) else {
            self.change(entry, |local| local.set_places(places));
            return Ok(());
        };
        if is_lan(&held.place.network) {
            return Err(ContainersError::HostsOwnNetwork { network: place.network });
        }
        let mut after = before.clone();
        after.set_places(places);
        // Remembered last: until the link is gone the address is the container's.
        self.rewire(&after).await?;
        failpoint!("agent.local.disconnected");
        self.change(entry, |local| (local.places, local.task) = (after.places, after.task));
        if let Some(attachment) = &held.attachment {
            self.0.places.release(&before.task.id, Some(attachment));
        }
        self.0.board.disconnected(&before.task, NetworkName::from(&*held.place.network));
        Ok(())
    }

    /// Takes containers off networks that managers took them off. For ever.
    pub(super) async fn follow_losses(&self) {
        loop {
            let (container, attachment) = self.0.places.lost().await;
            let this = self.clone();
            self.0.work.spawn(async move { this.lost(&container, &attachment).await });
        }
    }

    async fn lost(&self, container: &TaskId, attachment: &TaskId) {
        let Ok(entry) = self.entry(container) else { return self.0.places.release(container, Some(attachment)) };
        let _turn = entry.turn.lock().await;
        let before = entry.local();
        let places = before.places.clone().unwrap_or_default();
        let is_it = |place: &Place| place.held.as_ref().is_some_and(|held| held.attachment.as_ref() == Some(attachment));
        let Some(at) = places.iter().position(is_it) else { return self.0.places.release(container, Some(attachment)) };
        let network = places[at].network.clone();
        tracing::warn!(container = %container, network, "managers took a container off a network; it is on it again when it is put there or started");
        if let Err(error) = self.part(&entry, &before, places, at).await {
            tracing::warn!(container = %container, network, error = %error.words(), "a container is still on a network that managers took it off");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locals::{LocalWish, RestartWish};
    use skep_types::{ContainerSpec, Network, NetworkAttachment, NetworkId, NetworkSpec, Timestamp};
    use std::collections::BTreeMap;

    fn local(name: &str, places: Option<Vec<PlaceWish>>) -> Local {
        let wish = LocalWish {
            id: TaskId::for_test(1),
            name: name.into(),
            spec: ContainerSpec::default(),
            resources: None,
            ports: Vec::new(),
            ranges: BTreeMap::new(),
            networks: Vec::new(),
            places,
            short_id: "0123456789ab".into(),
            log_driver: None,
            reference: "box:1".into(),
            restart: RestartWish::Never,
            auto_remove: false,
            stdin_once: false,
            asked: String::new(),
        };
        Local::new(wish, Timestamp(0))
    }

    fn wish(network: &str, aliases: &[&str]) -> PlaceWish {
        let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
        PlaceWish { network: network.into(), aliases, ..PlaceWish::default() }
    }

    fn given(number: u64, name: &str) -> Task {
        let mut network = Network::new(NetworkId::for_test(number), NetworkSpec::default());
        network.spec.annotations.name = name.into();
        let addresses = vec![format!("10.0.{number}.5/24")];
        let place =
            NetworkAttachment { network: Arc::new(network), addresses, aliases: vec![], driver_attachment_opts: Default::default() };
        Task { networks: vec![place], ..crate::testing::task(number, "x") }
    }

    #[test]
    fn it_is_called_by_its_name_its_aliases_and_its_id() {
        let one = local("a", Some(vec![wish("net", &["x", "a"])]));
        assert_eq!(names(&one, &one.places.as_ref().unwrap()[0]), ["a", "x", "0123456789ab"]);
        let odd = local("a..b", Some(vec![wish("net", &[])]));
        assert_eq!(names(&odd, &odd.places.as_ref().unwrap()[0]), ["0123456789ab"], "nobody could ask for it");
    }

    #[test]
    fn its_task_is_on_what_is_held_and_links_keep_their_numbers() {
        let mut one = local("a", Some(vec![wish("one", &[]), wish("bridge", &[])]));
        assert!(one.task.networks.is_empty());
        let mut places = one.places.clone().unwrap();
        places[0].held = HeldPlace::new(Some(&given(7, "one")), 0);
        places[1].held = HeldPlace::new(None, 1);
        one.set_places(places.clone());
        assert_eq!(one.task.networks.len(), 2);
        assert_eq!(one.attachments().collect::<Vec<_>>(), [&TaskId::for_test(7)]);
        assert!(places[0].is_on("one") && places[0].is_on(NetworkId::for_test(7).as_str()) && !places[0].is_on("bridge"));
        assert!(crate::network::is_on_bridge(&one.task));
        places.remove(0);
        assert_eq!(free_link(&places), 0);
        one.set_places(places);
        assert_eq!(one.places.as_ref().unwrap()[0].held.as_ref().unwrap().link, 1);
        one.set_places(Vec::new());
        assert!(!crate::network::is_on_bridge(&one.task), "it is on none, which is not the node's own");
    }

    #[test]
    fn one_on_its_host_s_network_gets_no_other() {
        let mut one = local("a", None);
        assert_eq!(one.places_now().unwrap().len(), 1);
        one.set_places(Vec::new());
        let none = one.task.networks.clone();
        let mut closed = local("b", None);
        closed.change_task(|task| task.networks = none);
        assert!(matches!(closed.places_now(), Err(ContainersError::NoNetwork)));
    }
}
