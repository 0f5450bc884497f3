//! The containers of this node: those of its tasks, as the agent knows them.

mod describe; // the agent's facts in the API's words
mod make; // containers that somebody asks for
mod networks; // that they are on
mod refuse; // the agent's refusals in the API's words

use crate::status::Board;
use async_trait::async_trait;
use describe::{describe, exec, usage};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use make::{changed, local_wish, place_wish};
pub(super) use refuse::refusal;
use skep_agent::{ChangeKind as Kind, ExecWish as Wish, FileFacts as Facts, LogQuery, LogStream, Program, Tail, Until};
use skep_docker_api::{
    ApiError, AttachWish, Attached, ChangeKind, Chunk, Connection, Container, ContainerLine, ContainerUpdate, Containers, Ending, Exec,
    ExecWish, FileChange, FileFacts, LinesWanted, NetworkHere, NewContainer, Patience, PlaceWish, Processes, StdStream, Tar, Usage,
    WaitFor, WindowSize, container_id, task_of_container,
};
use skep_types::TaskId;
use tokio::sync::mpsc;

/// Pieces of an archive on their way to the agent.
const IN_FLIGHT: usize = 4;

/// Asks the agent of the moment: it may be begun again, and there is none on a node in no cluster.
pub struct NodeContainers {
    board: Board,
}

/// The agent of the moment, if there is one.
pub(super) fn current_agent(board: &Board) -> Option<skep_agent::Containers> {
    board.shown().and_then(|shown| shown.agent.borrow().containers.clone())
}

impl NodeContainers {
    pub fn new(board: Board) -> Self {
        Self { board }
    }

    fn agent(&self) -> Result<Option<skep_agent::Containers>, ApiError> {
        let Some(shown) = self.board.shown() else { return Ok(None) };
        let state = shown.agent.borrow();
        match &state.containers {
            Some(containers) => Ok(Some(containers.clone())),
            None => Err(ApiError::unavailable(match state.problem.as_str() {
                "" => "the agent of this node is starting; try again in a moment".to_owned(),
                problem => format!("the agent of this node does not run: {problem}"),
            })),
        }
    }

    fn of(&self, id: &str) -> Result<(skep_agent::Containers, TaskId), ApiError> {
        let none = || ApiError::not_found(format!("No such container: {id}"));
        Ok((self.agent()?.ok_or_else(none)?, task_of_container(id).ok_or_else(none)?))
    }

    fn for_exec(&self, exec: &str) -> Result<skep_agent::Containers, ApiError> {
        self.agent()?.ok_or_else(|| ApiError::not_found(format!("No such exec instance: {exec}")))
    }
}

fn std_stream(stream: LogStream) -> StdStream {
    match stream {
        LogStream::Stdout => StdStream::Stdout,
        LogStream::Stderr => StdStream::Stderr,
    }
}

/// The items of a channel until its end.
fn items<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> BoxStream<'static, T> {
    stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }).boxed()
}

fn talking(attached: skep_agent::Attached) -> Attached {
    let chunk = |chunk: skep_agent::Chunk| Chunk { stream: std_stream(chunk.stream), data: chunk.data };
    Attached { input: attached.input, output: items(attached.output).map(chunk).boxed(), has_terminal: attached.has_terminal }
}

/// As Go's `os.FileMode`, whose kinds of files and special bits are elsewhere than the kernel's.
fn go_mode(mode: u32) -> u32 {
    let kind = match mode & 0o170_000 {
        0o040_000 => 1 << 31,
        0o120_000 => 1 << 27,
        0o060_000 => 1 << 26,
        0o020_000 => 1 << 26 | 1 << 21,
        0o010_000 => 1 << 25,
        0o140_000 => 1 << 24,
        _ => 0,
    };
    let bit = |from: u32, to: u32| if mode & from != 0 { 1 << to } else { 0 };
    kind | bit(0o4000, 23) | bit(0o2000, 22) | bit(0o1000, 20) | (mode & 0o777)
}

fn file(facts: Facts) -> FileFacts {
    let Facts { name, size, mode, modified, link_target } = facts;
    FileFacts { name, size, mode: go_mode(mode), modified, link_target }
}

fn patience(asked: Option<Patience>) -> skep_agent::Patience {
    match asked {
        None => skep_agent::Patience::Own,
        Some(Patience::For(length)) => skep_agent::Patience::For(length),
        Some(Patience::Forever) => skep_agent::Patience::Forever,
    }
}

#[async_trait]
impl Containers for NodeContainers {
    async fn list(&self) -> Result<Vec<Container>, ApiError> {
        let Some(agent) = self.agent()? else { return Ok(Vec::new()) };
        // It reads a small file of each.
        let listed = tokio::task::spawn_blocking(move || agent.list().into_iter().map(describe).collect()).await;
        listed.map_err(|error| ApiError::internal(format!("the containers could not be listed: {error}")))
    }

    async fn networks(&self) -> Result<Vec<NetworkHere>, ApiError> {
        let Some(agent) = self.agent()? else { return Ok(Vec::new()) };
        let listed = tokio::task::spawn_blocking(move || networks::of(&agent.list())).await;
        listed.map_err(|error| ApiError::internal(format!("the containers could not be listed: {error}")))
    }

    fn is_made_by_hand(&self, id: &str) -> bool {
        self.of(id).is_ok_and(|(agent, task)| agent.is_local(&task))
    }

    async fn connect(&self, id: &str, wish: PlaceWish) -> Result<(), ApiError> {
        let (agent, task) = self.of(id)?;
        agent.connect(&task, place_wish(wish)).await.map_err(refusal)
    }

    async fn disconnect(&self, id: &str, network: &str) -> Result<(), ApiError> {
        let (agent, task) = self.of(id)?;
        agent.disconnect(&task, network).await.map_err(refusal)
    }

    async fn logs(&self, id: &str, wanted: LinesWanted) -> Result<BoxStream<'static, Vec<ContainerLine>>, ApiError> {
        let (agent, task) = self.of(id)?;
        let LinesWanted { stdout, stderr, since, tail, follow } = wanted;
        let query = LogQuery { stdout, stderr, since, tail: tail.map_or(Tail::All, Tail::Last), follow };
        let line = |line: skep_agent::LogLine| ContainerLine { time: line.time, stream: std_stream(line.stream), data: line.data };
        let lines = agent.lines(&task, query).map_err(refusal)?;
        Ok(items(lines).map(move |batch| batch.into_iter().map(line).collect()).boxed())
    }

    async fn usage(&self, id: &str) -> Result<Option<Usage>, ApiError> {
        let (agent, task) = self.of(id)?;
        Ok(agent.usage(&task).map_err(refusal)?.map(usage))
    }

    async fn processes(&self, id: &str, ps_arguments: &str) -> Result<Processes, ApiError> {
        let (agent, task) = self.of(id)?;
        let (titles, rows) = agent.processes(&task, ps_arguments).await.map_err(refusal)?;
        Ok(Processes { titles, rows })
    }

    async fn kill(&self, id: &str, signal: &str) -> Result<(), ApiError> {
        let (agent, task) = self.of(id)?;
        agent.kill(&task, signal).await.map_err(refusal)
    }

    async fn stop(&self, id: &str, ending: Ending) -> Result<(), ApiError> {
        let (agent, task) = self.of(id)?;
        agent.stop(&task, ending.signal.as_deref(), patience(ending.patience)).await.map(drop).map_err(refusal)
    }

    async fn start(&self, id: &str) -> Result<(), ApiError> {
        let (agent, task) = self.of(id)?;
        agent.start(&task).await.map_err(refusal)
    }

    /// As with dockerd: a task ends, and its service puts another one in its place.
    async fn restart(&self, id: &str, ending: Ending) -> Result<(), ApiError> {
        let (agent, task) = self.of(id)?;
        agent.restart(&task, ending.signal.as_deref(), patience(ending.patience)).await.map_err(refusal)
    }

    async fn create(&self, wish: NewContainer) -> Result<String, ApiError> {
        let none =
            || ApiError::unavailable("containers are run by this node's agent, and it has one only in a swarm: `docker swarm init` first");
        let agent = self.agent()?.ok_or_else(none)?;
        let made = agent.create(local_wish(wish)).await.map_err(refusal)?;
        Ok(container_id(&made))
    }

    async fn rename(&self, id: &str, name: &str) -> Result<(), ApiError> {
        let (agent, task) = self.of(id)?;
        agent.rename(&task, name).await.map_err(refusal)
    }

    async fn update(&self, id: &str, update: ContainerUpdate) -> Result<(), ApiError> {
        let (agent, task) = self.of(id)?;
        agent.update(&task, move |local| changed(local, update)).await.map_err(refusal)
    }

    async fn attach(&self, id: &str, wish: AttachWish) -> Result<Option<Attached>, ApiError> {
        let (agent, task) = self.of(id)?;
        let AttachWish { stdin, stdout, stderr } = wish;
        let attached = agent.attach(&task, skep_agent::AttachWish { stdin, stdout, stderr }).await.map_err(refusal)?;
        Ok(attached.map(talking))
    }

    async fn pause(&self, id: &str) -> Result<(), ApiError> {
        let (agent, task) = self.of(id)?;
        agent.pause(&task).await.map_err(refusal)
    }

    async fn unpause(&self, id: &str) -> Result<(), ApiError> {
        let (agent, task) = self.of(id)?;
        agent.unpause(&task).await.map_err(refusal)
    }

    async fn wait(&self, id: &str, until: WaitFor) -> Result<BoxFuture<'static, Result<i32, ApiError>>, ApiError> {
        let (agent, task) = self.of(id)?;
        let of_local = match until {
            WaitFor::NotRunning => Until::NotRunning,
            WaitFor::NextExit => Until::NextExit,
            WaitFor::Removed => Until::Removed,
        };
        if let Some(waiting) = agent.waiting(&task, of_local) {
            return Ok(async move { waiting.wait().await.map_err(refusal) }.boxed());
        }
        let waiting = async move {
            let waited = match until {
                WaitFor::NotRunning => agent.wait(&task, false).await,
                WaitFor::NextExit => agent.wait(&task, true).await,
                WaitFor::Removed => agent.wait_removed(&task).await,
            };
            waited.map_err(refusal)
        };
        Ok(waiting.boxed())
    }

    async fn resize(&self, id: &str, window: WindowSize) -> Result<(), ApiError> {
        let (agent, task) = self.of(id)?;
        agent.resize(&task, window.width, window.height).await.map_err(refusal)
    }

    async fn remove(&self, id: &str, with_volumes: bool) -> Result<(), ApiError> {
        let (agent, task) = self.of(id)?;
        agent.remove(&task, with_volumes).await.map_err(refusal)
    }

    async fn create_exec(&self, wish: ExecWish) -> Result<String, ApiError> {
        let (agent, task) = self.of(&wish.container)?;
        let ExecWish { command, env, user, dir, has_stdin, has_stdout, has_stderr, has_terminal, is_privileged, detach_keys, .. } = wish;
        let program = Program { command, env, user, dir, has_stdin, has_terminal, is_privileged };
        agent.create_exec(&task, Wish { program, has_stdout, has_stderr, detach_keys }).map_err(refusal)
    }

    async fn exec(&self, id: &str) -> Result<Exec, ApiError> {
        Ok(exec(self.for_exec(id)?.exec(id).map_err(refusal)?))
    }

    async fn start_exec(&self, exec: &str, is_detached: bool, window: Option<WindowSize>) -> Result<Attached, ApiError> {
        let size = window.map(|window| (window.width, window.height));
        let attached = self.for_exec(exec)?.start_exec(exec, !is_detached, size).await.map_err(refusal)?;
        Ok(talking(attached))
    }

    async fn resize_exec(&self, exec: &str, window: WindowSize) -> Result<(), ApiError> {
        self.for_exec(exec)?.resize_exec(exec, window.width, window.height).await.map_err(refusal)
    }

    async fn dial(&self, id: &str, port: u16) -> Result<Box<dyn Connection>, ApiError> {
        let (agent, task) = self.of(id)?;
        Ok(Box::new(agent.dial(&task, port).await.map_err(refusal)?))
    }

    async fn file(&self, id: &str, path: &str) -> Result<FileFacts, ApiError> {
        let (agent, task) = self.of(id)?;
        agent.file(&task, path).await.map(file).map_err(refusal)
    }

    async fn read_archive(&self, id: &str, path: &str) -> Result<(FileFacts, Tar), ApiError> {
        let (agent, task) = self.of(id)?;
        let (facts, archive) = agent.read_archive(&task, path).await.map_err(refusal)?;
        Ok((file(facts), items(archive)))
    }

    async fn write_archive(&self, id: &str, path: &str, keep_kind: bool, mut archive: Tar) -> Result<(), ApiError> {
        let (agent, task) = self.of(id)?;
        let (sender, incoming) = mpsc::channel(IN_FLIGHT);
        let pump = async move {
            while let Some(piece) = archive.next().await {
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        };
        let ((), written) = tokio::join!(pump, agent.write_archive(&task, path, keep_kind, incoming));
        written.map_err(refusal)
    }

    async fn changes(&self, id: &str) -> Result<Vec<FileChange>, ApiError> {
        let (agent, task) = self.of(id)?;
        let kind = |kind| match kind {
            Kind::Modified => ChangeKind::Modified,
            Kind::Added => ChangeKind::Added,
            Kind::Deleted => ChangeKind::Deleted,
        };
        let changes = agent.changes(&task).await.map_err(refusal)?;
        Ok(changes.into_iter().map(|change| FileChange { path: change.path, kind: kind(change.kind) }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::go_mode;

    #[test]
    fn modes_are_go_s() {
        assert_eq!(go_mode(0o100_644), 0o644);
        assert_eq!(go_mode(0o040_755), 1 << 31 | 0o755);
        assert_eq!(go_mode(0o120_777), 1 << 27 | 0o777);
        assert_eq!(go_mode(0o041_777), 1 << 31 | 1 << 20 | 0o777);
        assert_eq!(go_mode(0o020_666), 1 << 26 | 1 << 21 | 0o666);
    }
}
