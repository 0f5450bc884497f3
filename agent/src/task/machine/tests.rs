use super::*;

fn container() -> ContainerStatus {
    ContainerStatus { container_id: "c1".into(), pid: 7, exit_code: 0 }
}

fn fresh(desired: TaskState) -> (Machine, Vec<Action>) {
    Machine::new(TaskState::Assigned, desired, Recovered::Nothing)
}

fn states(actions: &[Action]) -> Vec<TaskState> {
    actions.iter().filter_map(|action| if let Action::Report { state, .. } = action { Some(*state) } else { None }).collect()
}

fn running() -> Machine {
    let (mut machine, _) = fresh(TaskState::Running);
    machine.step(Event::Prepared);
    machine.step(Event::Started { container: container(), health: None });
    assert_eq!(machine.state(), TaskState::Running);
    machine
}

#[test]
fn a_task_goes_through_all_states_to_running() {
    let (mut machine, first) = fresh(TaskState::Running);
    assert_eq!(states(&first), [TaskState::Accepted, TaskState::Preparing]);
    assert_eq!(first.last(), Some(&Action::Prepare));
    let second = machine.step(Event::Prepared);
    assert_eq!(states(&second), [TaskState::Ready, TaskState::Starting]);
    assert_eq!(second.last(), Some(&Action::Start));
    let third = machine.step(Event::Started { container: container(), health: None });
    assert_eq!(states(&third), [TaskState::Running]);
    assert_eq!((&third[0], &third[2]), (&Action::Serve, &Action::Watch));
    assert_eq!(machine.container().map(|c| c.pid), Some(7));
}

#[test]
fn a_task_that_is_wanted_ready_is_prepared_and_then_waits() {
    let (mut machine, first) = fresh(TaskState::Ready);
    assert_eq!(first.last(), Some(&Action::Prepare));
    assert_eq!(states(&machine.step(Event::Prepared)), [TaskState::Ready]);
    let go = machine.step(Event::Desired(TaskState::Running));
    assert_eq!(go.last(), Some(&Action::Start));
}

#[test]
fn a_lower_wish_is_ignored() {
    let mut machine = running();
    assert_eq!(machine.step(Event::Desired(TaskState::Ready)), []);
    assert_eq!(machine.desired(), TaskState::Running);
}

#[test]
fn exit_codes_decide_between_complete_and_failed() {
    let mut good = running();
    let done = good.step(Event::Ended(Outcome::default()));
    assert_eq!(states(&done), [TaskState::Complete]);
    assert_eq!(done.last(), Some(&Action::Release));
    let mut bad = running();
    let done = bad.step(Event::Ended(Outcome { exit_code: 3, words: None }));
    assert_eq!(done[0], Action::Report { state: TaskState::Failed, message: "failed", err: "task: non-zero exit (3)".into() });
    assert_eq!(bad.container().map(|c| c.exit_code), Some(3));
    // What is left is kept until the manager lets go of the task.
    assert_eq!(bad.step(Event::Released), []);
    assert_eq!(bad.step(Event::Unassigned), [Action::Forget]);
}

#[test]
fn before_starting_an_error_rejects_and_after_it_fails() {
    let (mut machine, _) = fresh(TaskState::Running);
    let actions = machine.step(Event::OperationFailed { temporary: false, words: "no such image".into() });
    assert_eq!(states(&actions), [TaskState::Rejected]);
    let (mut machine, _) = fresh(TaskState::Running);
    machine.step(Event::Prepared);
    let actions = machine.step(Event::OperationFailed { temporary: false, words: "executable file not found".into() });
    assert_eq!(states(&actions), [TaskState::Failed]);
    assert_eq!(actions.last(), Some(&Action::Release));
}

#[test]
fn a_temporary_error_is_tried_again_after_a_second_in_the_same_state() {
    let (mut machine, _) = fresh(TaskState::Running);
    let actions = machine.step(Event::OperationFailed { temporary: true, words: "containerd is away".into() });
    assert_eq!(
        actions,
        [
            Action::Report { state: TaskState::Preparing, message: "will be tried again", err: "containerd is away".into() },
            Action::RetryAfter(RETRY_DELAY)
        ]
    );
    assert_eq!(machine.step(Event::RetryDue), [Action::Prepare]);
    // The same while starting: everything is made anew, but the observed state stays.
    machine.step(Event::Prepared);
    machine.step(Event::OperationFailed { temporary: true, words: "containerd is away".into() });
    assert_eq!(machine.step(Event::RetryDue), [Action::Prepare]);
    assert_eq!(machine.step(Event::Prepared), [Action::Start]);
    assert_eq!(machine.state(), TaskState::Starting);
}

#[test]
fn a_stop_while_preparing_cancels_and_ends_in_shutdown() {
    let (mut machine, _) = fresh(TaskState::Running);
    assert_eq!(machine.step(Event::Desired(TaskState::Shutdown)), [Action::Cancel]);
    let actions = machine.step(Event::OperationFailed { temporary: false, words: "cancelled".into() });
    assert_eq!(actions, [Action::Stop]);
    assert_eq!(states(&machine.step(Event::Stopped(None))), [TaskState::Shutdown]);
}

#[test]
fn a_stop_does_not_wait_for_a_retry_of_preparing() {
    let (mut machine, _) = fresh(TaskState::Running);
    machine.step(Event::OperationFailed { temporary: true, words: "later".into() });
    assert_eq!(machine.step(Event::Desired(TaskState::Shutdown)), [Action::Stop]);
}

#[test]
fn a_running_task_is_shut_down_and_only_forgotten_when_unassigned() {
    let mut machine = running();
    assert_eq!(machine.step(Event::Desired(TaskState::Shutdown)), [Action::Stop]);
    // The end of the process is part of stopping.
    assert_eq!(machine.step(Event::Ended(Outcome { exit_code: 143, words: None })), []);
    let actions = machine.step(Event::Stopped(Some(Outcome { exit_code: 143, words: None })));
    assert_eq!(states(&actions), [TaskState::Shutdown]);
    assert_eq!(machine.container().map(|c| c.exit_code), Some(143));
    assert_eq!(machine.step(Event::Desired(TaskState::Remove)), []);
    assert_eq!(machine.step(Event::Unassigned), [Action::Forget]);
}

#[test]
fn an_unassigned_running_task_is_stopped_and_forgotten() {
    let mut machine = running();
    assert_eq!(machine.step(Event::Unassigned), [Action::Stop]);
    assert_eq!(machine.step(Event::Stopped(None)).last(), Some(&Action::Forget));
}

#[test]
fn a_health_check_holds_running_back() {
    let (mut machine, _) = fresh(TaskState::Running);
    machine.step(Event::Prepared);
    let actions = machine.step(Event::Started { container: container(), health: Some(HealthConfig::default()) });
    assert_eq!(states(&actions), [TaskState::Starting]);
    assert!(!actions.contains(&Action::Serve));
    let actions = machine.step(Event::Healthy);
    assert_eq!(states(&actions), [TaskState::Running]);
    assert!(actions.contains(&Action::Serve));
    assert_eq!(machine.step(Event::Unhealthy("no answer".into())), [Action::Stop]);
    let actions = machine.step(Event::Stopped(Some(Outcome { exit_code: 137, words: None })));
    assert_eq!(actions[0], Action::Report { state: TaskState::Failed, message: "failed", err: "no answer".into() });
}

#[test]
fn a_running_task_is_adopted_without_a_word() {
    let (machine, actions) =
        Machine::new(TaskState::Running, TaskState::Running, Recovered::Running { container: container(), healthcheck: true });
    assert_eq!(actions, [Action::Serve, Action::Watch]);
    assert_eq!(machine.state(), TaskState::Running);
}

#[test]
fn a_task_that_started_while_the_agent_died_is_adopted_as_running() {
    let (machine, actions) =
        Machine::new(TaskState::Starting, TaskState::Running, Recovered::Running { container: container(), healthcheck: false });
    assert_eq!(states(&actions), [TaskState::Running]);
    assert_eq!(machine.state(), TaskState::Running);
}

#[test]
fn a_task_whose_process_is_gone_after_a_restart_failed() {
    let (_, actions) = Machine::new(TaskState::Running, TaskState::Running, Recovered::Nothing);
    assert_eq!(states(&actions), [TaskState::Failed]);
    assert_eq!(actions.last(), Some(&Action::Release));
    let (_, actions) = Machine::new(TaskState::Running, TaskState::Running, Recovered::Ended(Outcome { exit_code: 0, words: None }));
    assert_eq!(states(&actions), [TaskState::Complete]);
}

#[test]
fn a_stop_that_a_crash_interrupted_ends_in_shutdown() {
    for found in [Recovered::Nothing, Recovered::Remains, Recovered::Ended(Outcome { exit_code: 137, words: None })] {
        let (_, actions) = Machine::new(TaskState::Running, TaskState::Shutdown, found);
        assert_eq!(states(&actions), [TaskState::Shutdown]);
    }
}

#[test]
fn half_made_tasks_are_made_anew_after_a_restart() {
    for state in [TaskState::Preparing, TaskState::Ready, TaskState::Starting] {
        let (mut machine, actions) = Machine::new(state, TaskState::Running, Recovered::Nothing);
        assert_eq!(actions, [Action::Prepare], "{state}");
        let actions = machine.step(Event::Prepared);
        assert_eq!(actions.last(), Some(&Action::Start), "{state}");
    }
}

#[test]
fn a_terminal_task_is_released_once_after_a_restart() {
    let (_, actions) = Machine::new(TaskState::Failed, TaskState::Running, Recovered::Nothing);
    assert_eq!(actions, []);
    let (mut machine, actions) = Machine::new(TaskState::Failed, TaskState::Running, Recovered::Remains);
    assert_eq!(actions, [Action::Release]);
    assert_eq!(machine.step(Event::Released), []);
}

/// Any order of events: states never go back, and no operation begins while another is under way.
#[test]
fn no_order_of_events_moves_a_state_back_or_overlaps_operations() {
    let events = [
        Event::Desired(TaskState::Ready),
        Event::Desired(TaskState::Running),
        Event::Desired(TaskState::Shutdown),
        Event::Unassigned,
        Event::Healthy,
        Event::Unhealthy("u".into()),
        Event::Ended(Outcome { exit_code: 1, words: None }),
        Event::RetryDue,
        Event::Free,
    ];
    let mut seed = 88_172_645_463_325_252_u64;
    let mut random = move |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n as u64) as usize
    };
    for _ in 0..20_000 {
        let (mut machine, mut actions) = fresh(TaskState::Ready);
        let mut under_way: Option<Action> = None;
        let mut last = TaskState::Assigned;
        for _ in 0..24 {
            for action in actions.drain(..) {
                match action {
                    Action::Report { state, .. } => {
                        assert!(state >= last);
                        last = state;
                    }
                    Action::Prepare | Action::Start | Action::Stop | Action::Release => {
                        assert_eq!(under_way, None, "while {action:?} was begun");
                        under_way = Some(action);
                    }
                    Action::Forget => assert_eq!(under_way, None),
                    Action::Wait | Action::Cancel | Action::Watch | Action::Serve | Action::RetryAfter(_) => {}
                }
            }
            let event = match under_way.take() {
                Some(action) if random(2) == 0 => match (random(3), action) {
                    (0, _) => Event::OperationFailed { temporary: random(2) == 0, words: "w".into() },
                    (_, Action::Prepare) => Event::Prepared,
                    (1, Action::Start) => Event::Held { words: "h".into() },
                    (_, Action::Start) => Event::Started { container: container(), health: (random(2) == 0).then(HealthConfig::default) },
                    (_, Action::Stop) => Event::Stopped(None),
                    _ => Event::Released,
                },
                rest => {
                    under_way = rest;
                    events[random(events.len())].clone()
                }
            };
            actions = machine.step(event);
        }
    }
}

/// Task 1 may not be started yet.
fn held() -> Machine {
    let (mut machine, _) = fresh(TaskState::Running);
    machine.step(Event::Prepared);
    let waiting = machine.step(Event::Held { words: "task 2 is being stopped".into() });
    let told = Action::Report { state: TaskState::Starting, message: "waiting to be started", err: "task 2 is being stopped".into() };
    assert_eq!(waiting, [told, Action::Wait]);
    machine
}

#[test]
fn a_task_that_is_held_is_started_when_it_is_free() {
    let mut machine = held();
    assert_eq!(machine.step(Event::Free), [Action::Start]);
    assert_eq!(machine.step(Event::Free), [], "it is being started");
    let started = machine.step(Event::Started { container: container(), health: None });
    assert_eq!(states(&started), [TaskState::Running]);
}

#[test]
fn a_task_that_is_held_does_not_wait_when_it_is_to_stop() {
    for wish in [Event::Desired(TaskState::Shutdown), Event::Unassigned] {
        let mut machine = held();
        assert_eq!(machine.step(wish), [Action::Stop]);
        assert_eq!(machine.step(Event::Free), [], "nobody waits any more");
        assert_eq!(states(&machine.step(Event::Stopped(None))), [TaskState::Shutdown]);
    }
}

#[test]
fn a_task_that_failed_by_itself_can_be_started_again_under_the_same_state() {
    let mut machine = running();
    assert!(!machine.can_restart());
    machine.step(Event::Ended(Outcome { exit_code: 3, words: None }));
    assert!(!machine.can_restart(), "its remains are still there");
    assert_eq!(machine.step(Event::Restart), []);
    machine.step(Event::Released);
    assert!(machine.can_restart());
    let actions = machine.step(Event::Restart);
    assert_eq!(actions, [Action::Report { state: TaskState::Running, message: "starting again", err: String::new() }, Action::Prepare]);
    assert_eq!(machine.step(Event::Prepared), [Action::Start]);
    // Also with a health check the state stays RUNNING.
    let health = Some(HealthConfig::default());
    let actions = machine.step(Event::Started { container: container(), health });
    assert_eq!(states(&actions), [TaskState::Running]);
    assert_eq!(actions.last(), Some(&Action::Watch));
    assert_eq!(states(&machine.step(Event::Ended(Outcome { exit_code: 4, words: None }))), [TaskState::Failed]);
}

#[test]
fn starting_again_is_retried_given_up_or_stopped_like_starting() {
    let again = || {
        let mut machine = running();
        machine.step(Event::Ended(Outcome { exit_code: 3, words: None }));
        machine.step(Event::Released);
        machine.step(Event::Restart);
        machine
    };
    let failed = |temporary| Event::OperationFailed { temporary, words: "no".into() };
    let mut machine = again();
    assert_eq!(states(&machine.step(failed(true))), [TaskState::Running]);
    assert_eq!(machine.step(Event::RetryDue), [Action::Prepare]);
    assert_eq!(states(&machine.step(failed(false))), [TaskState::Failed]);
    machine.step(Event::Released);
    assert!(machine.can_restart());

    let mut machine = again();
    machine.step(failed(true));
    assert_eq!(machine.step(Event::Desired(TaskState::Shutdown)), [Action::Stop]);
    assert_eq!(states(&machine.step(Event::Stopped(None))), [TaskState::Shutdown]);
    assert!(!machine.can_restart());

    let mut machine = again();
    assert_eq!(machine.step(Event::Unassigned), [Action::Cancel]);
    assert_eq!(machine.step(Event::Prepared), [Action::Stop]);
}

#[test]
fn what_ended_on_request_or_is_wanted_gone_is_not_started_again() {
    let mut machine = running();
    machine.step(Event::Desired(TaskState::Shutdown));
    machine.step(Event::Stopped(None));
    assert!(!machine.can_restart());
    let mut machine = running();
    machine.step(Event::Ended(Outcome::default()));
    machine.step(Event::Released);
    assert!(machine.can_restart(), "an end without error may be against the policy, too");
    machine.step(Event::Desired(TaskState::Shutdown));
    assert!(!machine.can_restart());
}
