//! What happens on this node, to the containers of its tasks, its images and volumes; and on a manager in the cluster.

mod cluster; // changes of the cluster's objects

use super::containers::current_agent;
use crate::status::Board;
use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use skep_agent::{Happened, NetworkName, What};
use skep_docker_api::{ApiError, Happening, Happenings, container_id, predefined_network_id};
use skep_store::{Feed, FeedEvent};
use skep_types::{ClusterView as _, Labels, Timestamp};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

/// As dockerd: so many are told again. A listener that falls behind by as many misses some.
const REMEMBERED: usize = 256;
/// How often it is looked for an agent, or a manager, while there is none.
const LOOK_EVERY: Duration = Duration::from_secs(1);

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// What is done to images and volumes through this API, and what happens in the cluster while this node is a manager
/// ([`remember_cluster`]). Clones share it.
#[derive(Clone)]
pub struct Local(Arc<Shared>);

struct Shared {
    past: Mutex<VecDeque<Happening>>,
    live: broadcast::Sender<Happening>,
}

impl Default for Local {
    fn default() -> Self {
        let (live, _) = broadcast::channel(REMEMBERED);
        Self(Arc::new(Shared { past: Mutex::default(), live }))
    }
}

impl Local {
    pub fn tell<'a>(&self, kind: &'static str, action: &str, id: &str, attributes: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let attributes = attributes.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        self.add(Happening { kind, action: action.to_owned(), id: id.to_owned(), attributes, time: now(), is_local: true });
    }

    fn add(&self, one: Happening) {
        let mut past = self.0.past.lock().unwrap_or_else(PoisonError::into_inner);
        if past.len() >= REMEMBERED {
            past.pop_front();
        }
        past.push_back(one.clone());
        let _ = self.0.live.send(one); // nobody listening is as good
    }

    fn listen(&self) -> (Vec<Happening>, broadcast::Receiver<Happening>) {
        let past = self.0.past.lock().unwrap_or_else(PoisonError::into_inner);
        (past.iter().cloned().collect(), self.0.live.subscribe())
    }
}

/// What happens to something that a container has.
fn of_other<const N: usize>(
    happened: &Happened,
    (kind, action, id): (&'static str, &str, String),
    facts: [(&str, String); N],
) -> Happening {
    let own = ("container", container_id(&happened.task.id));
    let attributes = facts.into_iter().chain([own]).map(|(name, value)| (name.to_owned(), value)).collect();
    Happening { kind, action: action.to_owned(), id, attributes, time: happened.time, is_local: true }
}

fn without_container(mut told: Happening) -> Happening {
    told.attributes.remove("container");
    told
}

/// A command as dockerd writes it: the program, a space, the arguments.
fn words(command: &[String]) -> String {
    match command.split_first() {
        Some((program, arguments)) => format!("{program} {}", arguments.join(" ")),
        None => String::new(),
    }
}

fn of_network(happened: &Happened, action: &str, network: &NetworkName) -> Happening {
    let id = predefined_network_id(&network.name).filter(|_| network.id.starts_with("node-"));
    let facts = [("name", network.name.clone()), ("type", network.driver.clone())];
    of_other(happened, ("network", action, id.unwrap_or_else(|| network.id.clone())), facts)
}

fn of_volume<const N: usize>(happened: &Happened, action: &str, name: &str, facts: [(&str, String); N]) -> Happening {
    let mut told = of_other(happened, ("volume", action, name.to_owned()), facts);
    told.attributes.insert("driver".into(), "local".into());
    told
}

fn of_container(happened: &Happened) -> Happening {
    let task = &happened.task;
    let spec = task.spec.container();
    let mut attributes: Labels = spec.map(|spec| spec.labels.clone()).unwrap_or_default();
    let mut add = |name: &str, value: String| drop(attributes.insert(name.to_owned(), value));
    let of_service = [
        ("node.id", task.node_id.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("service.id", task.service_id.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("service.name", task.service_annotations.name.clone()),
        ("task", String::new()),
        ("task.id", task.id.to_string()),
        ("task.name", task.name()),
    ];
    for (name, value) in of_service.into_iter().filter(|_| task.service_id.is_some()) {
        add(&format!("com.docker.swarm.{name}"), value);
    }
    add("image", spec.map(|spec| spec.image.clone()).unwrap_or_default());
    add("name", task.name());
    let action = match &happened.what {
        What::Create => "create".to_owned(),
        What::Attach => "attach".into(),
        What::Restart => "restart".into(),
        What::Resize { width, height } => {
            add("height", height.to_string());
            add("width", width.to_string());
            "resize".into()
        }
        What::Top => "top".into(),
        What::ReadFiles => "archive-path".into(),
        What::WriteFiles => "extract-to-dir".into(),
        What::Update => "update".into(),
        What::Rename { old } => {
            add("oldName", format!("/{old}"));
            "rename".into()
        }
        What::Start => "start".into(),
        What::Stop => "stop".into(),
        What::Pause => "pause".into(),
        What::Unpause => "unpause".into(),
        What::OutOfMemory => "oom".into(),
        What::Destroy => "destroy".into(),
        What::Kill { signal } => {
            add("signal", signal.to_string());
            "kill".into()
        }
        What::Die { exit_code, ran } => {
            add("exitCode", exit_code.to_string());
            if let Some(ran) = ran {
                add("execDuration", ran.as_secs().to_string());
            }
            "die".into()
        }
        What::Health { is_healthy } => format!("health_status: {}", if *is_healthy { "healthy" } else { "unhealthy" }),
        What::ExecCreate { exec, command } => {
            add("execID", exec.clone());
            format!("exec_create: {}", words(command))
        }
        What::ExecStart { exec, command } => {
            add("execID", exec.clone());
            format!("exec_start: {}", words(command))
        }
        What::ExecDie { exec, exit_code } => {
            add("execID", exec.clone());
            add("exitCode", exit_code.to_string());
            "exec_die".into()
        }
        What::Connect(network) => return of_network(happened, "connect", network),
        What::Disconnect(network) => return of_network(happened, "disconnect", network),
        What::Mount(mount) => {
            let facts = [
                ("destination", mount.target.clone()),
                // Of binds only, as dockerd.
                ("propagation", String::new()),
                ("read/write", mount.is_writable.to_string()),
            ];
            return of_volume(happened, "mount", &mount.name, facts);
        }
        What::Unmount { volume } => return of_volume(happened, "unmount", volume, []),
        What::CreateVolume { volume } => return without_container(of_volume(happened, "create", volume, [])),
        What::DestroyVolume { volume } => return without_container(of_volume(happened, "destroy", volume, [])),
        What::CreateNetwork(network) => return without_container(of_network(happened, "create", network)),
        What::DestroyNetwork(network) => return without_container(of_network(happened, "destroy", network)),
    };
    Happening { kind: "container", action, id: container_id(&task.id), attributes, time: happened.time, is_local: true }
}

/// Listens to the agents of this node, one after the other, and to what else is told.
pub struct NodeHappenings {
    board: Board,
    local: Local,
}

impl NodeHappenings {
    pub fn new(board: Board, local: Local) -> Self {
        Self { board, local }
    }
}

/// The agent's, then the next agent's.
async fn next_of_agents(board: &Board, live: &mut Option<broadcast::Receiver<Arc<Happened>>>) -> Happening {
    loop {
        let Some(receiver) = live else {
            tokio::time::sleep(LOOK_EVERY).await;
            *live = current_agent(board).map(|agent| agent.board().listen().1);
            continue;
        };
        match receiver.recv().await {
            Ok(happened) => return of_container(&happened),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => *live = None,
        }
    }
}

/// From now on; `None` on a node that is no manager.
fn follow(board: &Board) -> Option<Feed> {
    let shown = board.shown()?;
    let store = shown.store.as_ref()?;
    Some(store.feed(store.view().version()))
}

/// Tells of the cluster as long as this node is a manager, and when it is one again, until it is to stop: once for all listeners,
/// so that those who come later are told again. Where it falls behind some is missed.
pub async fn remember_cluster(board: Board, told: Local, stop: CancellationToken) {
    let mut changes = board.changes();
    let mut feed = None;
    loop {
        let Some(following) = &mut feed else {
            changes.mark_unchanged();
            feed = follow(&board);
            if feed.is_none() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = tokio::time::timeout(LOOK_EVERY, changes.changed()) => {}
                }
            }
            continue;
        };
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = Feed::next(following) => event,
        };
        match event {
            Some(FeedEvent::Commit(commit)) => {
                let happened = commit.changes.iter().filter_map(|change| cluster::happening(change, now()));
                happened.for_each(|one| told.add(one));
            }
            Some(FeedEvent::Resync) | None => feed = None,
        }
    }
}

/// Where a listener is.
struct Listening {
    board: Board,
    agent: Option<broadcast::Receiver<Arc<Happened>>>,
    own: broadcast::Receiver<Happening>,
}

impl Listening {
    /// `None`: the daemon ends.
    async fn next(&mut self) -> Option<Happening> {
        let Self { board, agent, own } = self;
        loop {
            tokio::select! {
                one = next_of_agents(board, agent) => return Some(one),
                one = own.recv() => match one {
                    Ok(one) => return Some(one),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                },
            }
        }
    }
}

#[async_trait]
impl Happenings for NodeHappenings {
    async fn listen(&self) -> Result<(Vec<Happening>, BoxStream<'static, Happening>), ApiError> {
        let (mut past, own) = self.local.listen();
        let mut live = None;
        if let Some(agent) = current_agent(&self.board) {
            let (earlier, receiver) = agent.board().listen();
            past.extend(earlier.iter().map(|happened| of_container(happened)));
            live = Some(receiver);
        }
        past.sort_by_key(|one| one.time);
        let listening = Listening { board: self.board.clone(), agent: live, own };
        let coming = stream::unfold(listening, |mut listening| async move { Some((listening.next().await?, listening)) });
        Ok((past, coming.boxed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_remembered_within_limits() {
        let local = Local::default();
        for number in 0..REMEMBERED + 5 {
            local.tell("volume", "create", &number.to_string(), [("driver", "local")]);
        }
        let (past, _) = local.listen();
        assert_eq!((past.len(), past[0].id.as_str(), past[0].attributes["driver"].as_str()), (REMEMBERED, "5", "local"));
    }
}
