//! What an assignment message means for the engine (wire-behaviour 9.4).

use crate::engine::Engine;
use crate::worker::Assign;
use skep_proto::{FromWire, v1};
use skep_types::{Config, Secret, Task, TaskId, TaskState, TaskStatus};
use v1::assignment::Item;
use v1::assignment_change::AssignmentAction;
use v1::assignments_message::Type;

/// What one message asks for, sorted; the order of changes within a message says nothing.
#[derive(Debug, Default)]
pub struct Sorted {
    pub complete: bool,
    pub secrets: Vec<Secret>,
    pub configs: Vec<Config>,
    pub tasks: Vec<Task>,
    pub removed_secrets: Vec<String>,
    pub removed_configs: Vec<String>,
    pub removed_tasks: Vec<TaskId>,
    /// Tasks that cannot run here whatever is done, and why.
    pub refused: Vec<(TaskId, String)>,
}

/// Where tasks of an overlay network are is told by gossip among genuine nodes, which we do not speak. Alone on such a network a
/// task would look as if it ran and reach nobody, so it is refused.
fn cut_off_overlay(task: &Task) -> Option<String> {
    let overlay = task.networks.iter().find(|attachment| !attachment.network.is_predefined())?;
    Some(format!(
        "network {} is an overlay network of a cluster with managers of another kind, which skepd cannot join; use the network host, or ports published with mode=host",
        overlay.network.spec.annotations.name
    ))
}

/// Sorts a message. What cannot be understood costs its own task only.
pub fn sort(message: v1::AssignmentsMessage) -> Sorted {
    let mut sorted = Sorted { complete: message.r#type == Type::Complete as i32, ..Sorted::default() };
    // Ours name the state that a message leads to, `<counter>@<revision>`; genuine ones only count.
    let genuine = !message.results_in.contains('@');
    for change in message.changes {
        let remove = change.action == AssignmentAction::Remove as i32;
        match change.assignment.and_then(|assignment| assignment.item) {
            Some(Item::Task(task)) => {
                let Ok(id) = task.id.parse::<TaskId>() else {
                    tracing::warn!(id = task.id, "an assigned task has no usable id");
                    continue;
                };
                if remove {
                    sorted.removed_tasks.push(id);
                    continue;
                }
                match Task::from_wire(task) {
                    Ok(task) => match cut_off_overlay(&task).filter(|_| genuine) {
                        Some(reason) => sorted.refused.push((id, reason)),
                        None => sorted.tasks.push(task),
                    },
                    Err(error) => sorted.refused.push((id, format!("this node does not understand the task: {error}"))),
                }
            }
            Some(Item::Secret(secret)) if remove => sorted.removed_secrets.push(secret.id),
            Some(Item::Config(config)) if remove => sorted.removed_configs.push(config.id),
            Some(Item::Secret(secret)) => match Secret::from_wire(secret) {
                Ok(secret) => sorted.secrets.push(secret),
                Err(error) => tracing::warn!(%error, "an assigned secret is not understood"),
            },
            Some(Item::Config(config)) => match Config::from_wire(config) {
                Ok(config) => sorted.configs.push(config),
                Err(error) => tracing::warn!(%error, "an assigned config is not understood"),
            },
            // Tasks that need a cluster volume are refused when they are prepared.
            Some(Item::Volume(_)) | None => {}
        }
    }
    sorted
}

/// Carries a message out: secrets, configs, then tasks. False when the engine has ended.
///
/// `name`: the message's, if the next manager may build on it.
pub async fn apply(sorted: Sorted, name: Option<String>, engine: &Engine) -> bool {
    if sorted.complete || name.is_none() {
        // Half of a complete message is no base for anything.
        engine.applied.doubt();
    }
    if sorted.complete {
        engine.payloads.replace(sorted.secrets, sorted.configs);
    } else {
        sorted.secrets.into_iter().for_each(|secret| engine.payloads.put_secret(secret));
        sorted.configs.into_iter().for_each(|config| engine.payloads.put_config(config));
    }
    for (id, reason) in sorted.refused {
        let status = TaskStatus {
            timestamp: crate::task::drive::now(),
            state: TaskState::Rejected,
            message: "rejected".into(),
            err: reason,
            ..TaskStatus::default()
        };
        engine.reports.put(&id, status);
    }
    skep_failpoint::failpoint!("agent.assign.payloads");
    let mut work = Vec::new();
    if sorted.complete {
        work.push(Assign::Complete(sorted.tasks));
    } else {
        // Who goes comes first: who takes its place has to know that it is still there.
        let (to_stop, others): (Vec<_>, Vec<_>) = sorted.tasks.into_iter().partition(|task| task.desired_state >= TaskState::Shutdown);
        work.extend(sorted.removed_tasks.into_iter().map(Assign::Remove));
        work.extend(to_stop.into_iter().chain(others).map(|task| Assign::Update(Box::new(task))));
    }
    for message in work {
        if engine.assign.send(message).await.is_err() {
            return false;
        }
    }
    // Payloads leave after the tasks that used them.
    for id in sorted.removed_secrets.iter().filter_map(|id| id.parse().ok()) {
        engine.payloads.remove_secret(&id);
    }
    for id in sorted.removed_configs.iter().filter_map(|id| id.parse().ok()) {
        engine.payloads.remove_config(&id);
    }
    let Some(name) = name else { return true };
    engine.assign.send(Assign::Applied { name, bare: engine.payloads.is_empty() }).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::task;
    use skep_proto::ToWire;
    use skep_types::{Labels, Network, NetworkAttachment, NetworkId, NetworkSpec};
    use std::sync::Arc;

    fn change(item: Item, action: AssignmentAction) -> v1::AssignmentChange {
        v1::AssignmentChange { assignment: Some(v1::Assignment { item: Some(item) }), action: action as i32 }
    }

    #[test]
    fn a_message_is_sorted_and_a_bad_task_is_refused_alone() {
        let good = task(1, "busybox").to_wire();
        let mut bad = task(2, "busybox").to_wire();
        bad.spec.as_mut().unwrap().runtime = None;
        let gone = v1::Task { id: TaskId::for_test(3).to_string(), ..v1::Task::default() };
        let message = v1::AssignmentsMessage {
            r#type: Type::Incremental as i32,
            changes: vec![
                change(Item::Task(good), AssignmentAction::Update),
                change(Item::Task(bad), AssignmentAction::Update),
                change(Item::Task(gone), AssignmentAction::Remove),
                change(Item::Secret(v1::Secret { id: "s1".into(), ..v1::Secret::default() }), AssignmentAction::Remove),
            ],
            ..v1::AssignmentsMessage::default()
        };
        let sorted = sort(message);
        assert!(!sorted.complete);
        assert_eq!(sorted.tasks.len(), 1);
        assert_eq!(sorted.refused[0].0, TaskId::for_test(2));
        assert_eq!(sorted.removed_tasks, [TaskId::for_test(3)]);
        assert_eq!(sorted.removed_secrets, ["s1"]);
    }

    #[test]
    fn an_overlay_network_of_genuine_managers_is_refused_and_one_of_ours_is_not() {
        let mut on_overlay = task(1, "busybox");
        let network = Arc::new(Network::new(NetworkId::for_test(1), NetworkSpec::default()));
        on_overlay.networks =
            vec![NetworkAttachment { network, addresses: Vec::new(), aliases: Vec::new(), driver_attachment_opts: Labels::new() }];
        for (name, refused) in [("1", 1), ("1@7.a", 0)] {
            let message = v1::AssignmentsMessage {
                results_in: name.into(),
                changes: [on_overlay.to_wire(), task(2, "busybox").to_wire()]
                    .map(|task| change(Item::Task(task), AssignmentAction::Update))
                    .into(),
                ..v1::AssignmentsMessage::default()
            };
            let sorted = sort(message);
            assert_eq!((sorted.refused.len(), sorted.tasks.len()), (refused, 2 - refused));
            assert!(sorted.refused.iter().all(|(_, reason)| reason.contains("overlay")));
        }
    }
}
