use super::*;
use crate::applied::Applied;
use crate::board::Board;
use crate::error::{ExecError, NetworkError};
use crate::executor::{Executor, Network, Probe, Sandbox, Started};
use crate::payloads::Payloads;
use crate::reach::Reach;
use crate::records::Records;
use crate::reports::Reports;
use crate::task::Outcome;
use crate::testing::task;
use async_trait::async_trait;
use skep_types::{ContainerStatus, HealthConfig, PortConfig, RestartCondition, RestartPolicy, TaskStatus};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::Notify;

/// Remembers what it was asked and ends processes when told.
#[derive(Default)]
pub(crate) struct Fake {
    calls: Mutex<Vec<String>>,
    ends: Mutex<HashMap<TaskId, oneshot::Sender<Outcome>>>,
    found: Mutex<BTreeMap<TaskId, Found>>,
    refuse: Mutex<Option<ExecError>>,
    /// Opened when the task is stopped: a health check goes on until then, as a shim has it that does one thing after the other.
    probing: Option<Notify>,
    /// Tasks end as slowly as their grace period allows: one stop is over each time this is told.
    grace: Option<Notify>,
}

impl Fake {
    fn note(&self, what: &str, task: &TaskId) {
        self.calls.lock().unwrap().push(format!("{what} {}", task.as_str().trim_start_matches('0')));
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn end(&self, task: &TaskId, code: i32) {
        let sender = self.ends.lock().unwrap().remove(task).unwrap();
        sender.send(Outcome { exit_code: code, words: None }).unwrap();
    }
}

#[async_trait]
impl Executor for Fake {
    async fn survey(&self) -> Result<BTreeMap<TaskId, Found>, ExecError> {
        Ok(std::mem::take(&mut *self.found.lock().unwrap()))
    }
    async fn prepare(&self, task: &Task, _: &Payloads, _: &CancellationToken) -> Result<(), ExecError> {
        self.note("prepare", &task.id);
        self.refuse.lock().unwrap().take().map_or(Ok(()), Err)
    }
    async fn start(&self, task: &Task) -> Result<Started, ExecError> {
        self.note("start", &task.id);
        Ok(Started {
            container: ContainerStatus { container_id: task.id.to_string(), pid: 1, exit_code: 0 },
            health: self.probing.is_some().then(every_millisecond),
        })
    }
    fn ended(&self, task: &TaskId) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        self.ends.lock().unwrap().insert(task.clone(), sender);
        receiver
    }
    async fn drain(&self, _: &TaskId) {}
    async fn stop(&self, task: &Task) -> Result<Option<Outcome>, ExecError> {
        self.note("stop", &task.id);
        if let Some(grace) = self.grace.as_ref().filter(|_| self.ends.lock().unwrap().contains_key(&task.id)) {
            grace.notified().await;
            self.note("stopped", &task.id);
        }
        if let Some(probing) = &self.probing {
            probing.notify_one();
            until(|| self.calls().iter().any(|call| call.starts_with("probed"))).await;
        }
        Ok(None)
    }
    async fn release(&self, task: &TaskId) -> Result<(), ExecError> {
        self.note("release", task);
        Ok(())
    }
    async fn forget(&self, task: &TaskId) -> Result<(), ExecError> {
        self.note("forget", task);
        Ok(())
    }
    async fn probe(&self, task: &TaskId, _: &[String], _: Duration) -> Result<Probe, ExecError> {
        self.note("probe", task);
        self.probing.as_ref().ok_or(ExecError::Cancelled)?.notified().await;
        self.note("probed", task);
        Ok(Probe { exit_code: Some(0), output: String::new() })
    }
}

#[async_trait]
impl Network for Fake {
    async fn attach(&self, _: &Task) -> Result<Sandbox, NetworkError> {
        Ok(Sandbox::default())
    }
    async fn serve(&self, task: &Task) -> Result<Vec<PortConfig>, NetworkError> {
        self.note("serve", &task.id);
        Ok(Vec::new())
    }
    async fn withdraw(&self, task: &TaskId) {
        self.note("withdraw", task);
    }
    async fn detach(&self, _: &TaskId) -> Result<(), NetworkError> {
        Ok(())
    }
    async fn recover(&self, _: &[(Task, bool)]) -> Result<(), NetworkError> {
        Ok(())
    }
}

fn every_millisecond() -> HealthConfig {
    let every = Some(Duration::from_millis(1));
    HealthConfig { test: vec!["CMD".into(), "true".into()], interval: every, start_interval: every, ..HealthConfig::default() }
}

async fn until(is_so: impl Fn() -> bool) {
    let soon = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), soon).await.unwrap();
}

struct Bench {
    reach: Reach,
    applied: Applied,
    fake: Arc<Fake>,
    reports: Reports,
    inbox: mpsc::Sender<Assign>,
    running: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

/// No manager for so long, and a node is on its own.
const GRACE: Duration = Duration::from_millis(30);

async fn bench(dir: &std::path::Path, fake: Arc<Fake>) -> Bench {
    bench_with(dir, fake, GRACE).await
}

async fn bench_with(dir: &std::path::Path, fake: Arc<Fake>, grace: Duration) -> Bench {
    let (reports, reach, applied) = (Reports::default(), Reach::with_least_grace(grace), Applied::default());
    let context = Arc::new(Context {
        executor: Arc::clone(&fake) as Arc<dyn Executor>,
        network: Arc::clone(&fake) as Arc<dyn Network>,
        payloads: Payloads::default(),
        records: Records::open(dir).unwrap(),
        reports: reports.clone(),
        reach: reach.clone(),
        board: Board::default(),
        slots: watch::Sender::default(),
    });
    let stop = CancellationToken::new();
    let ledger = Ledger::new(&dir.join("applied"), "n1", applied.clone());
    let (mut worker, _) = Worker::new(context, ledger, stop.clone());
    worker.recover().await.unwrap();
    let (inbox, messages) = mpsc::channel(8);
    Bench { reach, applied, fake, reports, inbox, running: tokio::spawn(worker.run(messages)), stop }
}

impl Bench {
    async fn wait(&self, id: &TaskId, state: TaskState) -> TaskStatus {
        for _ in 0..30_000 {
            if let Some(status) = self.reports.newest(id).filter(|status| status.state == state) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{id} is not {state} but {:?}", self.reports.newest(id));
    }

    async fn quiet(&self) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_assigned_task_runs_and_a_removed_one_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(dir.path(), Arc::default()).await;
    let one = task(1, "busybox");
    bench.inbox.send(Assign::Complete(vec![one.clone()])).await.unwrap();
    bench.wait(&one.id, TaskState::Running).await;
    assert_eq!(Records::open(dir.path()).unwrap().load().unwrap().len(), 1);
    bench.inbox.send(Assign::Remove(one.id.clone())).await.unwrap();
    let (done, waiter) = oneshot::channel();
    bench.inbox.send(Assign::Leave(done)).await.unwrap();
    waiter.await.unwrap();
    assert_eq!(bench.fake.calls(), ["prepare 1", "start 1", "serve 1", "withdraw 1", "stop 1", "forget 1"]);
    assert!(Records::open(dir.path()).unwrap().load().unwrap().is_empty());
    assert_eq!(bench.reports.newest(&one.id), None);
}

#[tokio::test]
async fn a_health_check_that_has_begun_is_finished_when_its_task_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(dir.path(), Arc::new(Fake { probing: Some(Notify::new()), ..Fake::default() })).await;
    let one = task(1, "busybox");
    bench.inbox.send(Assign::Complete(vec![one.clone()])).await.unwrap();
    until(|| bench.fake.calls().contains(&"probe 1".to_owned())).await;
    bench.inbox.send(Assign::Remove(one.id.clone())).await.unwrap();
    until(|| bench.fake.calls().contains(&"forget 1".to_owned())).await;
    assert_eq!(bench.fake.calls(), ["prepare 1", "start 1", "probe 1", "withdraw 1", "stop 1", "probed 1", "forget 1"]);
}

#[tokio::test]
async fn a_complete_assignment_removes_tasks_it_does_not_name() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(dir.path(), Arc::default()).await;
    let (one, two) = (task(1, "busybox"), task(2, "busybox"));
    bench.inbox.send(Assign::Complete(vec![one.clone(), two.clone()])).await.unwrap();
    bench.wait(&one.id, TaskState::Running).await;
    bench.wait(&two.id, TaskState::Running).await;
    bench.inbox.send(Assign::Complete(vec![two.clone()])).await.unwrap();
    until(|| bench.fake.calls().contains(&"forget 1".to_owned())).await;
    bench.quiet().await;
    assert!(!bench.fake.calls().contains(&"stop 2".to_owned()));
}

#[tokio::test]
async fn a_refusal_is_reported_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    *fake.refuse.lock().unwrap() = Some(ExecError::MountSourceMissing { path: "/nowhere".into() });
    let bench = bench(dir.path(), fake).await;
    let one = task(1, "busybox");
    bench.inbox.send(Assign::Update(Box::new(one.clone()))).await.unwrap();
    let status = bench.wait(&one.id, TaskState::Rejected).await;
    assert_eq!(status.err, "mount source /nowhere does not exist on this node; make it or use a volume");
}

#[tokio::test]
async fn stopping_the_agent_leaves_tasks_and_the_next_one_adopts_them() {
    let dir = tempfile::tempdir().unwrap();
    let first = bench(dir.path(), Arc::default()).await;
    let one = task(1, "busybox");
    first.inbox.send(Assign::Complete(vec![one.clone()])).await.unwrap();
    first.wait(&one.id, TaskState::Running).await;
    first.stop.cancel();
    first.running.await.unwrap();
    assert_eq!(first.fake.calls(), ["prepare 1", "start 1", "serve 1"]);

    let fake = Arc::new(Fake::default());
    let container = ContainerStatus { container_id: one.id.to_string(), pid: 1, exit_code: 0 };
    fake.found.lock().unwrap().insert(one.id.clone(), Found::Running(Started { container, health: None }));
    fake.found.lock().unwrap().insert(TaskId::for_test(9), Found::Remains);
    let second = bench(dir.path(), fake).await;
    second.inbox.send(Assign::Complete(vec![one.clone()])).await.unwrap();
    until(|| second.fake.calls().len() >= 3).await;
    second.quiet().await;
    assert_eq!(second.fake.calls(), ["serve 1", "release 9", "forget 9"]);
    // The end is seen as if the agent had never been away.
    second.fake.end(&one.id, 4);
    let status = second.wait(&one.id, TaskState::Failed).await;
    assert_eq!((status.err.as_str(), status.container.unwrap().exit_code), ("task: non-zero exit (4)", 4));
}

/// A task that may be restarted `attempts` times, at once.
fn restartable(number: u64, attempts: u64) -> Task {
    let mut task = task(number, "busybox");
    let policy = RestartPolicy {
        condition: RestartCondition::OnFailure,
        delay: Some(Duration::from_millis(10)),
        max_attempts: attempts,
        window: None,
    };
    Arc::make_mut(&mut task.spec).restart = Some(policy);
    task
}

impl Bench {
    /// Runs the task and has a manager hear of it, then cuts the node off.
    async fn run_and_cut_off(&self, task: &Task) {
        self.reach.connected();
        self.inbox.send(Assign::Complete(vec![task.clone()])).await.unwrap();
        self.wait(&task.id, TaskState::Running).await;
        self.reports.told(&self.reports.take(10).await);
        self.reach.lost(Some(Duration::ZERO));
    }

    /// Until the process was started so often.
    async fn started(&self, times: usize) {
        for _ in 0..30_000 {
            if self.fake.calls().iter().filter(|call| call.starts_with("serve")).count() == times {
                return self.quiet().await;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("not started {times} times: {:?}", self.fake.calls());
    }
}

#[tokio::test]
async fn without_a_manager_a_failed_task_runs_again_and_stays_running_for_managers() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(dir.path(), Arc::default()).await;
    let one = restartable(1, 0);
    bench.run_and_cut_off(&one).await;
    bench.fake.end(&one.id, 3);
    bench.started(2).await;
    let status = bench.reports.newest(&one.id).unwrap();
    assert_eq!((status.state, status.err.as_str()), (TaskState::Running, ""));
    assert_eq!(status.message, "started; restarted once on this node while no manager could be reached");
    let again = ["prepare 1", "start 1", "serve 1"];
    assert_eq!(bench.fake.calls(), [&again[..], &["withdraw 1", "release 1"], &again[..]].concat());
    bench.fake.end(&one.id, 3);
    bench.started(3).await;
    assert!(bench.reports.newest(&one.id).unwrap().message.contains("restarted 2 times"));

    // With a manager everything is as ever.
    bench.reach.connected();
    bench.reports.told(&bench.reports.take(10).await);
    bench.fake.end(&one.id, 4);
    bench.wait(&one.id, TaskState::Failed).await;
    bench.reports.told(&bench.reports.take(10).await);
    bench.reach.lost(Some(Duration::ZERO));
    tokio::time::sleep(5 * GRACE).await;
    assert_eq!(bench.reports.newest(&one.id).unwrap().state, TaskState::Failed, "a manager knows, it is its turn");
}

#[tokio::test]
async fn a_failure_during_a_short_reconnect_is_reported_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench_with(dir.path(), Arc::default(), Duration::from_secs(3_600)).await;
    let one = restartable(1, 0);
    bench.run_and_cut_off(&one).await;
    bench.fake.end(&one.id, 3);
    bench.wait(&one.id, TaskState::Failed).await;
    bench.reach.connected();
    assert_eq!(bench.reports.take(10).await[0].1.state, TaskState::Failed);
    tokio::time::sleep(5 * GRACE).await;
    assert_eq!(bench.reports.newest(&one.id).unwrap().state, TaskState::Failed);
}

#[tokio::test]
async fn attempts_without_a_manager_are_limited_also_over_a_restart_of_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let first = bench(dir.path(), Arc::default()).await;
    let one = restartable(1, 2);
    first.run_and_cut_off(&one).await;
    first.fake.end(&one.id, 3);
    first.started(2).await;
    first.stop.cancel();
    first.running.await.unwrap();

    // The machine was restarted: the process is gone, and there is still no manager.
    let second = bench(dir.path(), Arc::default()).await;
    second.reach.lost(Some(Duration::ZERO));
    second.started(1).await;
    assert!(second.reports.newest(&one.id).unwrap().message.contains("restarted 2 times"));
    second.fake.end(&one.id, 3);
    second.wait(&one.id, TaskState::Failed).await;
    tokio::time::sleep(5 * GRACE).await;
    let status = second.reports.newest(&one.id).unwrap();
    assert_eq!((status.state, status.err.as_str()), (TaskState::Failed, "task: non-zero exit (3)"), "both attempts are used up");
    // A failure that nobody heard of is not forgotten either, and a manager that comes hears of it.
    second.stop.cancel();
    second.running.await.unwrap();
    let third = bench(dir.path(), Arc::default()).await;
    third.reports.resend_all();
    assert_eq!(third.reports.take(10).await[0].1.state, TaskState::Failed);
}

#[tokio::test]
async fn a_task_that_is_removed_while_it_starts_again_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(dir.path(), Arc::default()).await;
    let one = restartable(1, 0);
    bench.run_and_cut_off(&one).await;
    *bench.fake.refuse.lock().unwrap() = Some(ExecError::Timeout { step: "answer", seconds: 1 });
    bench.fake.end(&one.id, 3);
    while !bench.reports.newest(&one.id).unwrap().err.contains("did not answer") {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(bench.reports.newest(&one.id).unwrap().state, TaskState::Running);
    bench.inbox.send(Assign::Remove(one.id.clone())).await.unwrap();
    let (done, waiter) = oneshot::channel();
    bench.inbox.send(Assign::Leave(done)).await.unwrap();
    waiter.await.unwrap();
    assert_eq!(bench.fake.calls().last().map(String::as_str), Some("forget 1"));
    assert!(Records::open(dir.path()).unwrap().load().unwrap().is_empty());
}

/// A node whose task 1 takes its time to stop, and has been told that task 2 is to run in its place.
async fn replaced(dir: &std::path::Path, set: impl FnOnce(Task, Task) -> Vec<Task>) -> (Bench, TaskId) {
    let bench = bench(dir, Arc::new(Fake { grace: Some(Notify::new()), ..Fake::default() })).await;
    let (one, two) = (task(1, "busybox"), task(2, "busybox"));
    bench.inbox.send(Assign::Complete(vec![one.clone()])).await.unwrap();
    bench.wait(&one.id, TaskState::Running).await;
    bench.inbox.send(Assign::Complete(set(one, two.clone()))).await.unwrap();
    until(|| bench.reports.newest(&two.id).is_some_and(|status| status.err.contains("still being stopped"))).await;
    bench.quiet().await;
    assert_eq!(bench.reports.newest(&two.id).unwrap().state, TaskState::Starting);
    assert!(bench.has("stop 1") && bench.has("prepare 2") && !bench.has("start 2"), "{:?}", bench.fake.calls());
    (bench, two.id)
}

impl Bench {
    fn has(&self, call: &str) -> bool {
        self.fake.calls().iter().any(|other| other == call)
    }
}

#[tokio::test]
async fn a_task_waits_until_the_one_it_replaces_has_stopped_on_this_node() {
    let to_stop = |one: Task| Task { desired_state: TaskState::Shutdown, ..one };
    let sets: [fn(Task, Task) -> Vec<Task>; 2] = [|_, two| vec![two], |one, two| vec![two, one]];
    for (number, set) in sets.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let (bench, two) = replaced(dir.path(), |one, two| set(to_stop(one), two)).await;
        bench.fake.grace.as_ref().unwrap().notify_one();
        let status = bench.wait(&two, TaskState::Running).await;
        assert_eq!(status.err, "", "set {number}");
        let calls = bench.fake.calls();
        let position = |call: &str| calls.iter().position(|other| other == call);
        assert!(position("stopped 1") < position("start 2"), "{calls:?}");
    }
}

#[tokio::test]
async fn a_task_that_waits_for_another_to_stop_is_removed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (bench, two) = replaced(dir.path(), |_, two| vec![two]).await;
    bench.inbox.send(Assign::Remove(two)).await.unwrap();
    until(|| bench.has("forget 2")).await;
    assert!(!bench.has("stopped 1") && !bench.has("start 2"), "{:?}", bench.fake.calls());
}

#[tokio::test]
async fn a_task_waits_for_the_one_it_replaces_also_after_a_restart_of_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let (first, two) = replaced(dir.path(), |_, two| vec![two]).await;
    first.stop.cancel();
    first.running.await.unwrap();

    let fake = Fake { grace: Some(Notify::new()), ..Fake::default() };
    let container = ContainerStatus { container_id: "c1".into(), pid: 1, exit_code: 0 };
    fake.found.lock().unwrap().insert(TaskId::for_test(1), Found::Running(Started { container, health: None }));
    let second = bench(dir.path(), Arc::new(fake)).await;
    until(|| second.has("stop 1") && second.has("prepare 2")).await;
    second.quiet().await;
    assert!(!second.has("start 2") && !second.has("serve 1"), "no manager has to say again that it is to go: {:?}", second.fake.calls());
    second.fake.grace.as_ref().unwrap().notify_one();
    second.wait(&two, TaskState::Running).await;
    assert!(Records::open(dir.path()).unwrap().load().unwrap().iter().all(|record| record.task.id == two));
}

#[tokio::test]
async fn what_was_applied_outlives_the_agent_only_with_its_records() {
    let dir = tempfile::tempdir().unwrap();
    let first = bench(dir.path(), Arc::default()).await;
    let one = task(1, "busybox");
    first.inbox.send(Assign::Complete(vec![one.clone()])).await.unwrap();
    first.inbox.send(Assign::Applied { name: "1@7".into(), bare: true }).await.unwrap();
    first.wait(&one.id, TaskState::Running).await;
    until(|| first.applied.offer().is_some()).await;
    assert_eq!(first.applied.offer().as_deref(), Some("1@7"));
    first.stop.cancel();
    first.running.await.unwrap();
    let second = bench(dir.path(), Arc::default()).await;
    assert_eq!(second.applied.offer().as_deref(), Some("1@7"));
    second.stop.cancel();
    second.running.await.unwrap();

    let fake = Arc::new(Fake::default());
    fake.found.lock().unwrap().insert(TaskId::for_test(9), Found::Remains);
    let third = bench(dir.path(), fake).await;
    assert_eq!(third.applied.offer(), None, "only a complete message says what becomes of remains");
    third.stop.cancel();
    third.running.await.unwrap();
    Records::open(dir.path()).unwrap().remove(&one.id).unwrap();
    let fourth = bench(dir.path(), Arc::default()).await;
    assert_eq!(fourth.applied.offer(), None);
}
