//! Ten services that do not run as asked, two nodes and a few tasks: each explanation names the cause, and the nearest cure.

mod world;

use skep_plan::{Finding, Scheduler, Verdict, explain_node, explain_service, explain_task, plan_placement};
use skep_types::*;
use world::*;

/// As a person reads it.
fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        text += &format!("{:?} {}\n", finding.verdict, finding.text);
        for group in &finding.nodes {
            text += &format!("  {}: {}\n", group.names.join(","), group.reason);
        }
        for cure in &finding.cures {
            text += &format!("  > {cure}\n");
        }
    }
    text
}

fn service(world: &World, id: &ServiceId) -> String {
    text(&explain_service(world, world.service(id), world.now))
}

/// Makes the service's tasks, and places those that find a node.
fn begin(world: &mut World, id: &ServiceId) {
    world.settle(id);
    for task in world.all_tasks().into_iter().filter(|task| task.status.state == TaskState::New) {
        world.report(&task.id, TaskState::Pending);
    }
    let mut scheduler = Scheduler::new(world);
    for _ in 0..20 {
        let plan = scheduler.schedule(world.now);
        for change in world.commit(plan.changes) {
            scheduler.observe(&change);
        }
    }
}

fn fail(world: &mut World, id: &ServiceId, state: TaskState, err: &str) {
    let task = world.live().into_iter().find(|task| task.service_id.as_ref() == Some(id)).expect("it has a task");
    let status = TaskStatus { state, err: err.into(), timestamp: world.now, ..TaskStatus::default() };
    world.commit(vec![Action::SetTaskStatus { task: task.id.clone(), status }]);
}

fn has(text: &str, words: &[&str]) {
    for words in words {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
}

fn placed(spec: &mut ServiceSpec, change: impl FnOnce(&mut Placement)) {
    change(task_spec(spec).placement.get_or_insert_default());
}

fn reserved(spec: &mut ServiceSpec, reservations: Resources) {
    task_spec(spec).resources = Some(ResourceRequirements { reservations, ..ResourceRequirements::default() });
}

fn memory(bytes: i64) -> Resources {
    Resources { memory_bytes: bytes, ..Resources::default() }
}

fn host_port(spec: &mut ServiceSpec, number: u32) {
    let port = PortConfig { target_port: 80, published_port: number, publish_mode: PublishMode::Host, ..PortConfig::default() };
    spec.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
}

fn three_nodes() -> World {
    let mut world = World::new();
    for number in 1..=3 {
        world.add_node(number, |node| {
            let description = node.description.as_mut().expect("described");
            description.resources.memory_bytes = (number as i64) << 28;
            description.platform = Platform { os: "linux".into(), architecture: "x86_64".into() };
        });
    }
    world
}

#[test]
fn reservations_name_the_nearest_node_and_by_how_much() {
    let mut world = three_nodes();
    let id = world.add_service(1, |spec| reserved(spec, memory(968 << 20)));
    begin(&mut world, &id);
    has(
        &service(&world, &id),
        &[
            "Note 0 of 1 tasks run",
            "Wrong 1 task waits for a node: none takes it now",
            "node1,node2,node3: needs 968 MiB of memory, at most 768 MiB free",
            "> fits node3 with 200 MiB less reserved memory: --reserve-memory 768m",
        ],
    );
    let id = world.add_service(2, |spec| reserved(spec, Resources { nano_cpus: 4_500_000_000, ..Resources::default() }));
    begin(&mut world, &id);
    has(&service(&world, &id), &["needs 4.5 CPUs, at most 4 CPUs free", "with 0.5 CPUs less reserved: --reserve-cpu 4"]);
}

#[test]
fn a_constraint_is_named_with_the_nodes_it_excludes() {
    let mut world = three_nodes();
    world.change_node(&NodeId::for_test(3), |node| drop(node.spec.annotations.labels.insert("disk".into(), "ssd".into())));
    let id = world.add_service(1, |spec| {
        placed(spec, |placement| placement.constraints = vec!["node.labels.disk == ssd".into(), "node.hostname != node3".into()]);
    });
    begin(&mut world, &id);
    has(
        &service(&world, &id),
        &[
            "node1,node2: the constraint node.labels.disk == ssd does not hold",
            "node3: the constraint node.hostname != node3 does not hold",
            "without the constraint node.labels.disk == ssd, node1 would take it, or `swarmctl node update --label-add disk=ssd node1`",
            "without the constraint node.hostname != node3, node3 would take it",
        ],
    );
}

#[test]
fn host_ports_and_replicas_per_node_run_out() {
    let mut world = three_nodes();
    let first = world.add_service(1, |spec| {
        replicas(spec, 4);
        host_port(spec, 8080);
    });
    begin(&mut world, &first);
    has(
        &service(&world, &first),
        &["node1,node2,node3: host port 8080/tcp is taken", "one task of the service per node can have host port 8080/tcp"],
    );
    let other = world.add_service(2, |spec| host_port(spec, 8080));
    begin(&mut world, &other);
    has(&service(&world, &other), &["host port 8080/tcp of node1 is held by service1.1."]);
    let third = world.add_service(3, |spec| {
        replicas(spec, 4);
        placed(spec, |placement| placement.max_replicas = 1);
    });
    begin(&mut world, &third);
    has(&service(&world, &third), &["it has 1 of the service, as many as are allowed on a node", "--replicas-max-per-node 2"]);
}

#[test]
fn a_platform_and_more_than_one_obstacle() {
    let mut world = three_nodes();
    let id = world.add_service(1, |spec| {
        placed(spec, |placement| placement.platforms = vec![Platform { os: "linux".into(), architecture: "arm64".into() }]);
        reserved(spec, memory(600 << 20));
    });
    begin(&mut world, &id);
    has(
        &service(&world, &id),
        &[
            "node1,node2: needs 600 MiB of memory, at most 512 MiB free; the image is for linux/arm64, it is linux/amd64",
            "node3: the image is for linux/arm64, it is linux/amd64",
            "> an image for linux/amd64, which node3 is; or a node of linux/arm64",
        ],
    );
}

#[test]
fn nodes_that_take_nothing() {
    let mut world = World::new();
    let id = world.add_service(1, |_| {});
    begin(&mut world, &id);
    has(&service(&world, &id), &["1 task waits for a node: the cluster has none", "swarmctl cluster join-token worker"]);
    world.add_node(1, |node| node.status.state = NodeState::Down);
    world.add_node(2, |node| node.spec.availability = Availability::Drain);
    world.add_node(3, |node| node.spec.availability = Availability::Pause);
    let told = service(&world, &id);
    has(&told, &["node1: it is down", "node2: it is drained", "node3: it is paused"]);
    let cures: Vec<_> = told.lines().filter(|line| line.starts_with("  >")).collect();
    assert_eq!(cures.len(), 3, "{told}");
    has(cures[0], &["swarmctl node update --availability active node3"]);
    let drained = world.node(&NodeId::for_test(2)).expect("added");
    has(&text(&explain_node(&world, drained, world.now)), &["Note it is drained", "tasks of service1 wait, and this node: it is drained"]);
    let down = world.node(&NodeId::for_test(1)).expect("added");
    has(&text(&explain_node(&world, down, world.now)), &["Wrong it is down", "swarmctl node rm --force node1"]);
}

#[test]
fn what_cannot_start_and_what_keeps_failing() {
    let mut world = three_nodes();
    let id = world.add_service(1, |spec| restart(spec, RestartCondition::Any, secs(5), 1));
    begin(&mut world, &id);
    fail(&mut world, &id, TaskState::Rejected, "no such image: nowhere/at:all");
    has(&service(&world, &id), &["Wrong 1 task could not be started: no such image: nowhere/at:all (on node1, last 0 s ago)"]);
    let crashing = world.add_service(2, |spec| restart(spec, RestartCondition::Never, secs(0), 0));
    begin(&mut world, &crashing);
    fail(&mut world, &crashing, TaskState::Failed, "task: non-zero exit (7)");
    world.settle(&crashing);
    has(
        &service(&world, &crashing),
        &[
            "Wrong 1 task failed: task: non-zero exit (7)",
            "swarmctl service logs service2",
            "1 task is not restarted: --restart-condition is none",
        ],
    );
    let task = world.tasks_of_service(&crashing).next().expect("kept").clone();
    has(&text(&explain_task(&world, &task, world.now)), &["is failed on", "nothing took its place"]);
}

#[test]
fn an_update_that_stopped_says_why() {
    let mut world = three_nodes();
    let id = world.add_service(1, |spec| replicas(spec, 2));
    world.converge(&id);
    has(&service(&world, &id), &["Fine 2 of 2 tasks run, on node1, node2"]);
    let mut changed = Service::clone(world.service(&id));
    changed.update_status =
        Some(UpdateStatus { state: UpdateState::Paused, message: "update paused due to failure".into(), ..UpdateStatus::default() });
    world.replace_service(changed);
    has(&service(&world, &id), &["Wrong the update is paused: update paused due to failure", "> `swarmctl service rollback service1`"]);
}

#[test]
fn a_global_service_tells_where_it_is_not() {
    let mut world = three_nodes();
    world.change_node(&NodeId::for_test(2), |node| node.spec.availability = Availability::Drain);
    let id = world.add_service(1, |spec| {
        spec.mode = ServiceMode::Global;
        placed(spec, |placement| placement.constraints = vec!["node.hostname != node3".into()]);
    });
    begin(&mut world, &id);
    world.obey();
    let told = service(&world, &id);
    has(&told, &["global: ", "node2: it is drained", "node3: the constraint node.hostname != node3 does not hold"]);
    assert!(!told.contains("Wrong"), "{told}");
}

#[test]
fn addresses_that_ran_out_are_told_as_the_allocator_said() {
    let mut world = three_nodes();
    let id = world.add_service(1, |_| {});
    world.settle(&id);
    let task = world.live().remove(0);
    let status = TaskStatus { err: "no address is left in 10.0.0.0/30 of network back".into(), ..task.status.clone() };
    world.commit(vec![Action::SetTaskStatus { task: task.id.clone(), status }]);
    has(
        &service(&world, &id),
        &[
            "Wrong 1 task waits for networks and addresses: no address is left in 10.0.0.0/30 of network back",
            "> fewer replicas, or a network with a larger `--subnet`",
        ],
    );
}

#[test]
fn a_running_task_says_why_it_is_there() {
    let mut world = three_nodes();
    let id = world.add_service(1, |spec| reserved(spec, memory(700 << 20)));
    begin(&mut world, &id);
    world.obey();
    let task = world.running().remove(0);
    has(
        &text(&explain_task(&world, &task, world.now)),
        &["is running on node3", "where the service has fewest", "node1,node2: needs 700 MiB of memory, at most 512 MiB free"],
    );
    let node = world.node(&NodeId::for_test(3)).expect("added");
    has(
        &text(&explain_node(&world, node, world.now)),
        &["Fine it is ready and takes tasks", "1 task: service1; reserved are 0 CPUs of 4 CPUs and 700 MiB of 768 MiB"],
    );
}

#[test]
fn a_dry_run_is_what_the_scheduler_does() {
    let mut world = three_nodes();
    let wanted = |change: &dyn Fn(&mut ServiceSpec)| {
        let mut wanted = spec("dry", 4);
        change(&mut wanted);
        wanted
    };
    let tally = |world: &World, spec: ServiceSpec| {
        let placement = plan_placement(world, spec, world.now);
        let homes: Vec<_> = placement.placed.iter().map(|one| (one.node.display_name().to_owned(), one.tasks)).collect();
        (homes, placement.unplaced, text(&placement.findings))
    };
    let of = |homes: &[(&str, usize)]| homes.iter().map(|(name, tasks)| ((*name).to_owned(), *tasks)).collect::<Vec<_>>();
    assert_eq!(tally(&world, wanted(&|_| {})), (of(&[("node1", 2), ("node2", 1), ("node3", 1)]), 0, String::new()));
    let (homes, unplaced, told) = tally(&world, wanted(&|spec| reserved(spec, memory(300 << 20))));
    assert_eq!((homes, unplaced), (of(&[("node2", 1), ("node3", 2)]), 1));
    has(&told, &["1 task waits for a node", "node3: needs 300 MiB of memory"]);
    let (homes, unplaced, told) = tally(&world, wanted(&|spec| spec.mode = ServiceMode::Global));
    assert_eq!((homes, unplaced, told.as_str()), (of(&[("node1", 1), ("node2", 1), ("node3", 1)]), 0, ""));
    world.change_node(&NodeId::for_test(1), |node| node.spec.availability = Availability::Pause);
    let (homes, _, told) = tally(&world, wanted(&|spec| spec.mode = ServiceMode::Global));
    assert_eq!(homes, of(&[("node2", 1), ("node3", 1)]));
    has(&told, &["nodes that get no task", "node1: it is paused"]);
    assert!(world.all_tasks().is_empty(), "nothing is stored");
    // What is then created goes where it was said.
    let id = world.add_service(1, |spec| replicas(spec, 4));
    begin(&mut world, &id);
    let (said, ..) = tally(&three_nodes_paused(), wanted(&|_| {}));
    let real = |name: &str| {
        world
            .live()
            .iter()
            .filter(|task| task.node_id.as_ref().and_then(|id| world.node(id)).is_some_and(|node| node.display_name() == name))
            .count()
    };
    assert_eq!(said, of(&[("node2", real("node2")), ("node3", real("node3"))]));
}

fn three_nodes_paused() -> World {
    let mut world = three_nodes();
    world.change_node(&NodeId::for_test(1), |node| node.spec.availability = Availability::Pause);
    world
}

#[test]
fn ten_thousand_tasks_are_tried_and_no_more() {
    let mut world = World::new();
    world.add_node(1, |_| {});
    let placement = plan_placement(&world, spec("many", 20_000), world.now);
    assert_eq!((placement.placed[0].tasks, placement.unplaced), (10_000, 0));
    assert!(placement.findings.iter().any(|finding| finding.verdict == Verdict::Note && finding.text.contains("first 10000 of 20000")));
}

/// What a new user may get wrong, what is said of it, and what is said to help: docs/explain.md has the same table.
#[test]
fn each_broken_service_is_told_its_cause_and_the_nearest_cure() {
    type Break = fn(&mut ServiceSpec);
    let none: Break = |_| {};
    let unplaced: [(&str, Break, &[&str]); 8] = [
        (
            "constraint",
            |spec| placed(spec, |placement| placement.constraints = vec!["node.labels.disk==ssd".into()]),
            &[
                "the constraint node.labels.disk==ssd does not hold",
                "> without the constraint node.labels.disk==ssd, node1 would take it, or `swarmctl node update --label-add disk=ssd node1`",
            ],
        ),
        ("memory", |spec| reserved(spec, memory(968 << 20)), &["needs 968 MiB of memory", "> fits node3 with 200 MiB less"]),
        (
            "CPU",
            |spec| reserved(spec, Resources { nano_cpus: 4_500_000_000, ..Resources::default() }),
            &["needs 4.5 CPUs", "--reserve-cpu 4"],
        ),
        (
            "generic resource",
            |spec| {
                let generic = vec![GenericResource::Discrete { kind: "gpu".into(), value: 1 }];
                reserved(spec, Resources { generic, ..Resources::default() });
            },
            &[
                "needs 1 gpu, at most 0 free",
                "> nodes have what their skepd is told: if node1 has gpu, start it with --generic-resource gpu=1",
            ],
        ),
        (
            "platform",
            |spec| placed(spec, |placement| placement.platforms = vec![Platform { os: "linux".into(), architecture: "arm64".into() }]),
            &[
                "the image is for linux/arm64, it is linux/amd64",
                "> an image for linux/amd64, which node1 is; or a node of linux/arm64 (alike on 2 more nodes)",
            ],
        ),
        (
            "volume plugin",
            |spec| {
                let driver = Driver { name: "rexray".into(), ..Driver::default() };
                let volume = VolumeOptions { driver: Some(driver), ..VolumeOptions::default() };
                let mount = Mount { kind: MountType::Volume, target: "/data".into(), volume: Some(volume), ..Mount::default() };
                let mut container = task_spec(spec).container().expect("a container").clone();
                container.mounts = vec![mount];
                *task_spec(spec) = TaskSpec::new(container);
            },
            &["has no volume driver rexray", "> install the volume driver rexray on node1, or use another (alike on 2 more nodes)"],
        ),
        (
            "replicas per node",
            |spec| {
                replicas(spec, 4);
                placed(spec, |placement| placement.max_replicas = 1);
            },
            &["1 task waits for a node", "as many as are allowed on a node", "--replicas-max-per-node 2; or add a node"],
        ),
        ("none", none, &["0 of 1 tasks run"]),
    ];
    for (index, (what, change, words)) in unplaced.into_iter().enumerate() {
        let mut world = three_nodes();
        for node in [1, 2, 3].map(NodeId::for_test) {
            world.change_node(&node, |node| {
                let engine = node.description.as_mut().expect("described").engine.get_or_insert_default();
                engine.plugins = vec![Plugin { kind: "Volume".into(), name: "local".into() }];
            });
        }
        let id = world.add_service(index as u64 + 1, change);
        begin(&mut world, &id);
        let told = service(&world, &id);
        assert!(words.iter().all(|words| told.contains(words)), "{what}: {words:?}\n{told}");
    }
    for (state, said, cure) in [
        (TaskState::Rejected, "no such image: 127.0.0.1:1/no/such:image", "> is the name right, and is the tag there?"),
        (
            TaskState::Rejected,
            "image web:1 cannot be used: image has no variant for linux/amd64; it has linux/arm64",
            "> an image that has the nodes' platform",
        ),
        (
            TaskState::Rejected,
            "mount source /no/such does not exist on this node; make it or use a volume",
            "> make the directory on every node",
        ),
        (
            TaskState::Failed,
            "unhealthy container: its health check ended with exit code 1, 3 times in a row",
            "> try the `--health-cmd` in a task",
        ),
        (TaskState::Failed, "task: non-zero exit (7)", "> `swarmctl service logs service1` shows what the tasks wrote"),
        (
            TaskState::Rejected,
            "executable file not found: \"/x\"; is it in the image, in its PATH, with its interpreter?",
            "> is that program in the image?",
        ),
    ] {
        let mut world = three_nodes();
        let id = world.add_service(1, |spec| restart(spec, RestartCondition::Never, secs(0), 0));
        begin(&mut world, &id);
        fail(&mut world, &id, state, said);
        has(&service(&world, &id), &[said, cure]);
    }
}
