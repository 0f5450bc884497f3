//! Places on networks of the cluster for containers that are no tasks.
//!
//! ```text
//!  locals ── attach ──► manager ── a task of this node ──► worker ── offer ──► claim: its addresses ──► locals
//!  locals ── let go ──────────────────────────────────────► the task is COMPLETE ──► manager deletes it
//! ```
//!
//! Managers make a task for each place (`ResourceAllocator`). On this node it only stands for the place: it runs as long as its container
//! holds it. One that nobody holds or claims ends at once, so that whatever a crash leaves is given back by itself.

use crate::session::{Dial, SessionState};
use async_trait::async_trait;
use skep_proto::v1::resource_allocator_client::ResourceAllocatorClient;
use skep_proto::v1::{AttachNetworkRequest, DetachNetworkRequest, NetworkAttachmentConfig};
use skep_types::{Task, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// For a manager to be found, to answer, and for the place to come (as dockerd).
const LIMIT: Duration = Duration::from_secs(20);
/// Between two attempts while nobody leads.
const AGAIN: Duration = Duration::from_millis(300);
/// For a place that nobody waits for any more to be given back.
const LAST_WORD: Duration = Duration::from_secs(5);
/// For a running container to be taken off a network that managers took it off.
const LOSING: Duration = Duration::from_secs(10);

/// A place on a network that a container is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlaceWish {
    /// Name or id; `bridge` is this node's own.
    pub network: String,
    /// Names beside the container's own.
    pub aliases: Vec<String>,
    /// At most one per family; of a family that is absent the managers choose one.
    pub addresses: Vec<IpAddr>,
}

/// There is no place on a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    #[error("Could not attach to network {network}: rpc error: code = NotFound desc = network {network} not found")]
    NoNetwork { network: String },
    #[error("Could not attach to network {network}: rpc error: code = PermissionDenied desc = network {network} not manually attachable")]
    NotAttachable { network: String },
    #[error("network {network}: {reason}")]
    Refused { network: String, reason: String },
    #[error("Could not attach to network {network}: {reason}")]
    Unreachable { network: String, reason: String },
    #[error(
        "attaching to network {network} failed: the managers gave no place within {} s; an address that is wished for may be another's \
         (`swarmctl network inspect --verbose {network}`)",
        LIMIT.as_secs()
    )]
    Late { network: String },
}

impl PlaceError {
    fn of(network: &str, status: &Status) -> Self {
        let (network, reason) = (network.to_owned(), status.message().to_owned());
        match status.code() {
            Code::NotFound => Self::NoNetwork { network },
            Code::PermissionDenied => Self::NotAttachable { network },
            Code::InvalidArgument => Self::Refused { network, reason },
            _ => Self::Unreachable { network, reason },
        }
    }
}

/// Who gives places.
#[async_trait]
pub(crate) trait Allocator: Send + Sync + 'static {
    /// Asks for one under these names, the first of which is the container's. Returns the task that stands for it and is on its way.
    async fn attach(&self, wish: &PlaceWish, names: &[String], container: &TaskId) -> Result<TaskId, PlaceError>;

    /// Gives back one that never came, as far as somebody can be told.
    async fn detach(&self, attachment: &TaskId);
}

/// The manager of this node's session, by a connection of its own.
pub(crate) struct ManagerAllocator {
    dial: Arc<dyn Dial>,
    session: OnceLock<watch::Receiver<SessionState>>,
}

impl ManagerAllocator {
    pub(crate) fn new(dial: Arc<dyn Dial>) -> Self {
        Self { dial, session: OnceLock::new() }
    }

    /// Once, before which nobody is asked.
    pub(crate) fn follow(&self, session: watch::Receiver<SessionState>) {
        let _ = self.session.set(session); // a second one would be the same
    }

    async fn client(&self) -> Result<ResourceAllocatorClient<Channel>, String> {
        let none = || "this node has no session with a manager".to_owned();
        let mut session = self.session.get().cloned().ok_or_else(none)?;
        let found = session.wait_for(|state| state.connected && !state.manager.is_empty()).await;
        let address = found.map_err(|_| none())?.manager.clone();
        let channel = self.dial.dial(&address).await.map_err(|error| crate::error::chain(&error))?;
        Ok(ResourceAllocatorClient::new(channel))
    }
}

#[async_trait]
impl Allocator for ManagerAllocator {
    async fn attach(&self, wish: &PlaceWish, names: &[String], container: &TaskId) -> Result<TaskId, PlaceError> {
        let config = NetworkAttachmentConfig {
            target: wish.network.clone(),
            aliases: names.to_vec(),
            addresses: wish.addresses.iter().map(ToString::to_string).collect(),
            ..NetworkAttachmentConfig::default()
        };
        let request = AttachNetworkRequest { config: Some(config), container_id: crate::attachment::of_container(container) };
        let end = Instant::now() + LIMIT;
        let mut why = format!("no manager answered within {} s", LIMIT.as_secs());
        loop {
            let asked = async {
                let mut client = self.client().await.map_err(Status::unavailable)?;
                client.attach_network(request.clone()).await
            };
            match timeout_at(end, asked).await {
                Ok(Ok(answer)) => {
                    let text = answer.into_inner().attachment_id;
                    let bad = |_| PlaceError::Unreachable { network: wish.network.clone(), reason: format!("{text:?} is no id of a task") };
                    return text.parse().map_err(bad);
                }
                // One that was made all the same is claimed by nobody, and ends.
                Ok(Err(status)) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::DeadlineExceeded | Code::Aborted) => {
                    status.message().clone_into(&mut why);
                    tokio::time::sleep(AGAIN).await;
                }
                Ok(Err(status)) => return Err(PlaceError::of(&wish.network, &status)),
                Err(_) => return Err(PlaceError::Unreachable { network: wish.network.clone(), reason: why }),
            }
        }
    }

    async fn detach(&self, attachment: &TaskId) {
        let request = DetachNetworkRequest { attachment_id: attachment.to_string() };
        let told = async { self.client().await.map_err(Status::unavailable)?.detach_network(request).await };
        if !matches!(timeout(LAST_WORD, told).await, Ok(Ok(_))) {
            tracing::info!(%attachment, "a place that did not come in time could not be given back; it is when it comes");
        }
    }
}

/// Who holds and who waits for which place. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(Arc<watch::Sender<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// By container: what came for it since it began to ask.
    claims: BTreeMap<TaskId, BTreeMap<TaskId, Arc<Task>>>,
    /// Attachments, and their containers.
    held: BTreeMap<TaskId, TaskId>,
    /// Of those held: managers took them back.
    lost: BTreeSet<TaskId>,
}

impl Table {
    fn is_wanted(&self, attachment: &TaskId, container: &TaskId) -> bool {
        self.held.contains_key(attachment) || self.claims.contains_key(container)
    }
}

impl Places {
    fn change<R>(&self, change: impl FnOnce(&mut Table) -> R) -> R {
        let mut result = None;
        self.0.send_modify(|table| result = Some(change(table)));
        result.expect("it was called")
    }

    /// A container holds these since an earlier life of the agent.
    pub(crate) fn hold(&self, container: &TaskId, attachments: impl IntoIterator<Item = TaskId>) {
        self.change(|table| table.held.extend(attachments.into_iter().map(|attachment| (attachment, container.clone()))));
    }

    /// From now until the claim is dropped what comes for the container is kept for it. One claim of a container at a time.
    pub(crate) fn claim(&self, container: &TaskId) -> Claim {
        self.change(|table| drop(table.claims.insert(container.clone(), BTreeMap::new())));
        Claim { places: self.clone(), container: container.clone() }
    }

    /// Managers gave a place.
    pub(crate) fn offer(&self, container: &TaskId, attachment: &Task) {
        self.change(|table| {
            if let Some(offers) = table.claims.get_mut(container) {
                offers.insert(attachment.id.clone(), Arc::new(attachment.clone()));
            }
        });
    }

    /// Whether a container of this node holds it.
    pub(crate) fn is_held(&self, attachment: &TaskId) -> bool {
        self.0.borrow().held.contains_key(attachment)
    }

    /// Returns when nobody holds it or may still come to hold it.
    pub(crate) async fn unwanted(&self, attachment: &TaskId, container: &TaskId) {
        // The sender lives in self.
        let _ = self.0.subscribe().wait_for(|table| !table.is_wanted(attachment, container)).await;
    }

    /// The container needs none of its places any more, or not this one.
    pub(crate) fn release(&self, container: &TaskId, attachment: Option<&TaskId>) {
        self.change(|table| {
            table.held.retain(|id, holder| holder != container || attachment.is_some_and(|one| one != id));
            let Table { held, lost, .. } = table;
            lost.retain(|id| held.contains_key(id));
        });
    }

    /// Managers took the place back. Returns when its container has left it; bounded in time.
    pub(crate) async fn lose(&self, attachment: &TaskId) {
        let is_held = self.change(|table| {
            table.held.contains_key(attachment) && {
                table.lost.insert(attachment.clone());
                true
            }
        });
        let left = async { drop(self.0.subscribe().wait_for(|table| !table.held.contains_key(attachment)).await) };
        if is_held && timeout(LOSING, left).await.is_err() {
            tracing::warn!(%attachment, "a container is still on a network that managers took it off");
        }
    }

    /// Waits until managers took one back; its container and itself. Each is told once.
    pub(crate) async fn lost(&self) -> (TaskId, TaskId) {
        let take = |table: &mut Table| {
            let id = table.lost.pop_first()?;
            Some((table.held.get(&id)?.clone(), id))
        };
        let mut following = self.0.subscribe();
        loop {
            let any = !following.borrow_and_update().lost.is_empty();
            if any && let Some(found) = self.change(take) {
                return found;
            }
            // The sender lives in self.
            let _ = following.changed().await;
        }
    }
}

/// A container that asks for places. What came for it and was not kept ends when this is dropped.
pub(crate) struct Claim {
    places: Places,
    container: TaskId,
}

impl Claim {
    /// The place that a manager promised.
    pub(crate) async fn wait(&self, attachment: &TaskId) -> Option<Arc<Task>> {
        let found = |table: &Table| table.claims.get(&self.container).and_then(|offers| offers.get(attachment)).cloned();
        let mut following = self.places.0.subscribe();
        let came = timeout(LIMIT, following.wait_for(|table| found(table).is_some())).await.ok()?.ok()?;
        found(&came)
    }

    /// These are the container's from now on.
    pub(crate) fn keep(self, attachments: impl IntoIterator<Item = TaskId>) {
        self.places.hold(&self.container, attachments);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.places.change(|table| drop(table.claims.remove(&self.container)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::task;

    fn id(number: u64) -> TaskId {
        TaskId::for_test(number)
    }

    #[tokio::test]
    async fn a_place_is_wanted_while_it_is_claimed_or_held() {
        let places = Places::default();
        let container = id(1);
        // Nobody asked for it: it is over at once.
        places.offer(&container, &task(7, "x"));
        places.unwanted(&id(7), &container).await;
        let claim = places.claim(&container);
        for number in [8, 9] {
            places.offer(&container, &task(number, "x"));
        }
        assert_eq!(claim.wait(&id(8)).await.unwrap().id, id(8));
        claim.keep([id(8)]);
        places.unwanted(&id(9), &container).await;
        assert!(places.is_held(&id(8)) && !places.is_held(&id(9)));
        let waiting = {
            let (places, container) = (places.clone(), container.clone());
            tokio::spawn(async move { places.unwanted(&id(8), &container).await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        places.release(&id(2), None);
        assert!(places.is_held(&id(8)), "it is another's");
        places.release(&container, None);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn one_that_managers_take_back_is_told_to_its_container_once() {
        let places = Places::default();
        places.hold(&id(1), [id(8), id(9)]);
        let losing = {
            let places = places.clone();
            tokio::spawn(async move { places.lose(&id(8)).await })
        };
        assert_eq!(places.lost().await, (id(1), id(8)));
        assert!(timeout(Duration::from_millis(10), places.lost()).await.is_err());
        places.release(&id(1), Some(&id(8)));
        losing.await.unwrap();
        assert!(!places.is_held(&id(8)) && places.is_held(&id(9)));
        places.lose(&id(8)).await; // of nobody: nobody is waited for
    }

    #[test]
    fn refusals_of_managers_are_dockerd_s() {
        let words = |status: Status| PlaceError::of("net", &status).to_string();
        assert_eq!(
            words(Status::not_found("")),
            "Could not attach to network net: rpc error: code = NotFound desc = network net not found"
        );
        assert_eq!(
            words(Status::permission_denied("")),
            "Could not attach to network net: rpc error: code = PermissionDenied desc = network net not manually attachable"
        );
        assert_eq!(words(Status::invalid_argument("config.aliases[1]: no")), "network net: config.aliases[1]: no");
    }
}
