//! The deciders on a draft and on what was written of it.

use super::deciders::Deciders;
use super::draft::Draft;
use skep_store::{Tables, View};
use skep_types::{
    Action, Annotations, ClusterView as _, ContainerSpec, Node, NodeId, NodeState, Object, Placement, Runtime, Service, ServiceId,
    ServiceMode, ServiceSpec, TaskSpec, TaskState, Timestamp, Version,
};
use std::sync::Arc;
use std::time::Duration;

fn waiting_service() -> Service {
    let container = ContainerSpec { image: "web:1".into(), ..ContainerSpec::default() };
    let task = TaskSpec {
        runtime: Runtime::Container(Box::new(container)),
        resources: None,
        restart: None,
        placement: Some(Placement { constraints: vec!["node.labels.disk == ssd".into()], ..Placement::default() }),
        log_driver: None,
        networks: Vec::new(),
        force_update: 0,
        resource_references: Vec::new(),
    };
    Service {
        id: ServiceId::for_test(1),
        meta: skep_types::Meta::default(),
        spec: ServiceSpec {
            annotations: Annotations { name: "web".into(), ..Annotations::default() },
            task: Arc::new(task),
            mode: ServiceMode::Replicated { replicas: 3 },
            update: None,
            rollback: None,
            networks: Vec::new(),
            endpoint: None,
        },
        spec_version: Some(Version(0)),
        previous_spec: None,
        previous_spec_version: None,
        endpoint: None,
        update_status: None,
        job_status: None,
        pending_delete: false,
    }
}

/// Asks all until nobody adds anything, as the loop does; a proposal that does not fit fails the test.
fn decide(deciders: &mut Deciders, draft: &mut Draft, now: Timestamp) {
    loop {
        let before = draft.len();
        for index in 0..Deciders::COUNT {
            let plan = deciders.plan(index, draft.view(), now);
            for change in draft.add(&plan.changes, now).expect("it fits") {
                deciders.observe(change, now);
            }
        }
        if draft.len() == before {
            return;
        }
    }
}

/// Services whose tasks cannot be placed at once, and large ones whose draft is written in pieces: the scheduler remembered the
/// versions of the draft.
#[test]
fn a_task_that_had_to_wait_is_placed_on_what_was_really_written() {
    let now = Timestamp::from_secs(1_000);
    let mut tables = Tables::new();
    tables.apply(Version(1), now, &[Action::Create(Object::Service(Arc::new(waiting_service())))]).unwrap();
    let mut deciders = Deciders::new(&View::from(tables.clone()), Duration::from_secs(86_400), now);
    let mut draft = Draft::new(View::from(tables.clone()));
    decide(&mut deciders, &mut draft, now);
    // Somebody else wrote first, so the store gives a version that no step of the draft had.
    for change in tables.apply(Version(20), now, &draft.actions()).unwrap() {
        deciders.confirm(&change);
    }
    let mut node = Node::new(NodeId::for_test(1));
    node.status.state = NodeState::Ready;
    node.spec.annotations.labels.insert("disk".into(), "ssd".into());
    for change in tables.apply(Version(21), now, &[Action::Create(Object::Node(Arc::new(node)))]).unwrap() {
        deciders.observe(&change, now);
    }
    let mut draft = Draft::new(View::from(tables.clone()));
    decide(&mut deciders, &mut draft, now + Duration::from_secs(60));
    tables.apply(Version(22), now, &draft.actions()).unwrap();
    let placed = View::from(tables).tasks().filter(|task| task.status.state == TaskState::Assigned).count();
    assert_eq!(placed, 3);
}
