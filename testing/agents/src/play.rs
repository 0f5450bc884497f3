//! What the tasks of one agent do, without containers. Pure: the caller brings time and chance.

use prost_types::Timestamp;
use skep_proto::v1::{self, TaskState};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::time::{Duration, Instant};
use v1::update_task_status_request::TaskStatusUpdate;

/// How tasks behave. By default they run at once and for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Behaviour {
    /// From being wanted running to running.
    pub start_delay: Duration,
    /// The share of tasks that fail, within 0..1.
    pub fail_rate: f64,
    /// From running to that failure.
    pub fail_after: Duration,
}

/// What a message brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// Tasks not known before.
    pub new: u64,
    /// Known tasks told again that are wanted as they were before. (Versions say nothing: each of our own reports makes a new one.)
    pub resent: u64,
    /// Known tasks that are wanted otherwise than before.
    pub changed: u64,
    pub removed: u64,
    /// Secrets and configs, told or taken back.
    pub payloads: u64,
}

#[derive(Debug, Clone)]
struct Played {
    desired: i32,
    state: TaskState,
    since: Timestamp,
}

/// The tasks of one agent and the reports it owes.
#[derive(Debug, Default)]
pub struct Play {
    tasks: HashMap<String, Played>,
    owed: BTreeSet<String>,
    later: BinaryHeap<Reverse<(Instant, String, i32)>>,
    running: u64,
    started: u64,
    failed: u64,
}

/// The moment of something, as both clocks have it.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub instant: Instant,
    pub time: Timestamp,
}

impl Now {
    #[must_use]
    pub fn get() -> Self {
        Self { instant: Instant::now(), time: std::time::SystemTime::now().into() }
    }
}

fn is_terminal(state: TaskState) -> bool {
    state as i32 > TaskState::Running as i32
}

/// What a task becomes that is wanted in this state; `None` if it stays as it is.
fn obeyed(desired: i32) -> Option<TaskState> {
    match TaskState::try_from(desired).ok()? {
        TaskState::Ready => Some(TaskState::Ready),
        TaskState::Running => Some(TaskState::Running),
        TaskState::Complete => Some(TaskState::Complete),
        TaskState::Shutdown | TaskState::Remove => Some(TaskState::Shutdown),
        _ => None,
    }
}

impl Play {
    /// Tasks that run now.
    #[must_use]
    pub fn running(&self) -> u64 {
        self.running
    }

    /// How often a task began to run.
    #[must_use]
    pub fn started(&self) -> u64 {
        self.started
    }

    /// How many tasks failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// Takes in a message. `random` gives numbers within 0..1.
    pub fn apply(&mut self, message: v1::AssignmentsMessage, now: Now, behaviour: &Behaviour, mut random: impl FnMut() -> f64) -> Applied {
        use v1::assignment::Item;
        use v1::assignment_change::AssignmentAction::Remove;
        let is_complete = message.r#type == v1::assignments_message::Type::Complete as i32;
        let mut told: Option<BTreeSet<String>> = is_complete.then(BTreeSet::new);
        let mut applied = Applied::default();
        for change in message.changes {
            let gone = change.action == Remove as i32;
            match change.assignment.and_then(|assignment| assignment.item) {
                Some(Item::Task(task)) if gone => applied.removed += u64::from(self.forget(&task.id)),
                Some(Item::Task(task)) => {
                    if let Some(told) = &mut told {
                        told.insert(task.id.clone());
                    }
                    self.take(&task, now, behaviour, random(), &mut applied);
                }
                Some(Item::Secret(_) | Item::Config(_) | Item::Volume(_)) => applied.payloads += 1,
                None => {}
            }
        }
        if let Some(told) = told {
            let gone: Vec<String> = self.tasks.keys().filter(|id| !told.contains(*id)).cloned().collect();
            applied.removed += gone.iter().map(|id| u64::from(self.forget(id))).sum::<u64>();
        }
        applied
    }

    fn take(&mut self, task: &v1::Task, now: Now, behaviour: &Behaviour, random: f64, applied: &mut Applied) {
        match self.tasks.get_mut(&task.id) {
            // What was wanted never goes back (spec wire-behaviour 9.4).
            Some(known) if known.desired >= task.desired_state => {
                applied.resent += 1;
                return;
            }
            Some(known) => {
                applied.changed += 1;
                known.desired = task.desired_state;
            }
            None => {
                applied.new += 1;
                let state = task.status.as_ref().map_or(TaskState::Assigned, v1::TaskStatus::state);
                let played = Played { desired: task.desired_state, state, since: now.time };
                self.running += u64::from(state == TaskState::Running);
                self.tasks.insert(task.id.clone(), played);
            }
        }
        let Some(wanted) = self.tasks.get(&task.id).and_then(|known| obeyed(known.desired)) else { return };
        let starts = matches!(wanted, TaskState::Running | TaskState::Complete);
        if starts && !behaviour.start_delay.is_zero() {
            self.later.push(Reverse((now.instant + behaviour.start_delay, task.id.clone(), wanted as i32)));
        } else {
            self.become_state(&task.id, wanted, now);
        }
        if starts && random < behaviour.fail_rate {
            let at = now.instant + behaviour.start_delay + behaviour.fail_after;
            self.later.push(Reverse((at, task.id.clone(), TaskState::Failed as i32)));
        }
    }

    fn forget(&mut self, id: &str) -> bool {
        let Some(known) = self.tasks.remove(id) else { return false };
        self.owed.remove(id);
        self.running -= u64::from(known.state == TaskState::Running);
        true
    }

    /// States go forward only; a task that ended stays so.
    fn become_state(&mut self, id: &str, state: TaskState, now: Now) {
        let Some(known) = self.tasks.get_mut(id) else { return };
        if is_terminal(known.state) || state as i32 <= known.state as i32 {
            return;
        }
        self.running -= u64::from(known.state == TaskState::Running);
        self.running += u64::from(state == TaskState::Running);
        self.started += u64::from(state == TaskState::Running);
        self.failed += u64::from(state == TaskState::Failed);
        known.state = state;
        known.since = now.time;
        self.owed.insert(id.to_owned());
    }

    /// Does what is due. Returns when there is more to do.
    pub fn tick(&mut self, now: Now) -> Option<Instant> {
        while let Some(Reverse((at, _, _))) = self.later.peek() {
            if *at > now.instant {
                return Some(*at);
            }
            if let Some(Reverse((_, id, state))) = self.later.pop()
                && let Ok(state) = TaskState::try_from(state)
            {
                self.become_state(&id, state, now);
            }
        }
        None
    }

    /// Lets one running task fail. `false` if none runs.
    pub fn fail_one(&mut self, now: Now) -> bool {
        let found = self.tasks.iter().find(|(_, task)| task.state == TaskState::Running && task.desired == TaskState::Running as i32);
        let Some(id) = found.map(|(id, _)| id.clone()) else { return false };
        self.become_state(&id, TaskState::Failed, now);
        true
    }

    /// All tasks are reported again, as after a registration (spec wire-behaviour 9.3, step 3).
    pub fn owe_all(&mut self) {
        let reported = self.tasks.iter().filter(|(_, task)| task.state as i32 > TaskState::Assigned as i32);
        self.owed.extend(reported.map(|(id, _)| id.clone()));
    }

    /// Reports to send, at most so many.
    pub fn take_reports(&mut self, most: usize) -> Vec<TaskStatusUpdate> {
        let mut reports = Vec::new();
        while reports.len() < most
            && let Some(id) = self.owed.pop_first()
        {
            if let Some(task) = self.tasks.get(&id) {
                reports.push(report(&id, task));
            }
        }
        reports
    }

    /// Reports that did not arrive.
    pub fn put_back(&mut self, reports: &[TaskStatusUpdate]) {
        self.owed.extend(reports.iter().map(|report| report.task_id.clone()).filter(|id| self.tasks.contains_key(id)));
    }
}

/// As long as a real one: with a container's id.
fn report(id: &str, task: &Played) -> TaskStatusUpdate {
    let failed = task.state == TaskState::Failed;
    let container = v1::ContainerStatus { container_id: format!("{id:0<64}"), pid: 4321, exit_code: i32::from(failed) };
    let status = v1::TaskStatus {
        timestamp: Some(task.since),
        state: task.state as i32,
        message: if failed { "failed".into() } else { "started".into() },
        err: if failed { "task: non-zero exit (1)".into() } else { String::new() },
        runtime_status: Some(v1::task_status::RuntimeStatus::Container(container)),
        ..v1::TaskStatus::default()
    };
    TaskStatusUpdate { task_id: id.to_owned(), status: Some(status) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::assignment_change::AssignmentAction::{Remove, Update};
    use v1::assignments_message::Type::{Complete, Incremental};

    fn task(id: &str, desired: TaskState) -> v1::Task {
        let status = v1::TaskStatus { state: TaskState::Assigned as i32, ..v1::TaskStatus::default() };
        v1::Task { id: id.into(), status: Some(status), desired_state: desired as i32, ..v1::Task::default() }
    }

    fn message(
        kind: v1::assignments_message::Type,
        changes: Vec<(v1::Task, v1::assignment_change::AssignmentAction)>,
    ) -> v1::AssignmentsMessage {
        let change = |(task, action)| v1::AssignmentChange {
            assignment: Some(v1::Assignment { item: Some(v1::assignment::Item::Task(task)) }),
            action: action as i32,
        };
        v1::AssignmentsMessage {
            r#type: kind as i32,
            changes: changes.into_iter().map(change).collect(),
            ..v1::AssignmentsMessage::default()
        }
    }

    fn states(play: &mut Play) -> Vec<(String, i32)> {
        play.take_reports(100).into_iter().map(|report| (report.task_id, report.status.unwrap().state)).collect()
    }

    #[test]
    fn a_task_runs_at_once_and_is_reported_once() {
        let mut play = Play::default();
        let first = message(Complete, vec![(task("t1", TaskState::Running), Update)]);
        let applied = play.apply(first.clone(), Now::get(), &Behaviour::default(), || 0.5);
        assert_eq!(applied, Applied { new: 1, ..Applied::default() });
        assert_eq!(states(&mut play), [("t1".into(), TaskState::Running as i32)]);
        assert_eq!((play.running(), play.started()), (1, 1));
        // Another manager tells all of it again.
        let applied = play.apply(first, Now::get(), &Behaviour::default(), || 0.5);
        assert_eq!(applied, Applied { resent: 1, ..Applied::default() });
        assert_eq!((states(&mut play), play.started()), (Vec::new(), 1));
    }

    #[test]
    fn what_a_complete_message_does_not_name_is_gone() {
        let mut play = Play::default();
        let both = ["t1", "t2"].map(|id| (task(id, TaskState::Running), Update)).to_vec();
        play.apply(message(Complete, both), Now::get(), &Behaviour::default(), || 0.5);
        let one = message(Complete, vec![(task("t2", TaskState::Running), Update)]);
        assert_eq!(play.apply(one, Now::get(), &Behaviour::default(), || 0.5).removed, 1);
        let none = message(Incremental, vec![(task("t2", TaskState::Running), Remove)]);
        assert_eq!(play.apply(none, Now::get(), &Behaviour::default(), || 0.5).removed, 1);
        assert_eq!((play.running(), states(&mut play)), (0, Vec::new()));
    }

    #[test]
    fn a_task_that_is_to_stop_stops_and_never_starts_again() {
        let mut play = Play::default();
        let change = |desired| message(Incremental, vec![(task("t1", desired), Update)]);
        play.apply(change(TaskState::Running), Now::get(), &Behaviour::default(), || 0.5);
        play.apply(change(TaskState::Shutdown), Now::get(), &Behaviour::default(), || 0.5);
        play.apply(change(TaskState::Running), Now::get(), &Behaviour::default(), || 0.5);
        assert_eq!(states(&mut play), [("t1".into(), TaskState::Shutdown as i32)]);
        assert_eq!(play.running(), 0);
    }

    #[test]
    fn delays_and_failures_happen_when_they_are_due() {
        let mut play = Play::default();
        let second = Duration::from_secs(1);
        let behaviour = Behaviour { start_delay: second, fail_rate: 0.5, fail_after: 2 * second };
        let begin = Now::get();
        let at = |seconds: u32| Now { instant: begin.instant + seconds * second, ..begin };
        play.apply(message(Incremental, vec![(task("t1", TaskState::Running), Update)]), begin, &behaviour, || 0.1);
        assert_eq!(play.tick(at(0)), Some(at(1).instant));
        assert_eq!(play.tick(at(1)), Some(at(3).instant));
        assert_eq!(play.running(), 1);
        assert_eq!(play.tick(at(3)), None);
        assert_eq!((play.running(), play.failed()), (0, 1));
        assert_eq!(states(&mut play), [("t1".into(), TaskState::Failed as i32)]);
    }

    #[test]
    fn reports_that_were_lost_are_owed_again_unchanged() {
        let mut play = Play::default();
        play.apply(message(Complete, vec![(task("t1", TaskState::Running), Update)]), Now::get(), &Behaviour::default(), || 0.5);
        let first = play.take_reports(10);
        play.put_back(&first);
        assert_eq!(play.take_reports(10), first);
        play.owe_all();
        assert_eq!(play.take_reports(10), first, "the same moment: the manager sees that it is nothing new");
        assert!(play.fail_one(Now::get()) && !play.fail_one(Now::get()));
    }
}
