//! What tasks cost in the store: `cargo run --release -p skep-store --example scale [TASKS] [DIR]`.
//!
//! Each task is created, given an address, given a node and reported four times, as a manager does it.

use skep_store::{Alone, Member, Store, StoreConfig};
use skep_types::{
    Action, Annotations, ClusterView, ContainerSpec, Network, NetworkAttachment, NetworkId, NetworkSpec, NodeId, Object, Service,
    ServiceId, ServiceMode, ServiceSpec, Task, TaskId, TaskSpec, TaskState, TaskStatus, Timestamp,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("getrusage of oneself works");
    let time =
        |value: nix::sys::time::TimeVal| Duration::from_micros(u64::try_from(value.tv_sec() * 1_000_000 + value.tv_usec()).unwrap_or(0));
    time(usage.user_time()) + time(usage.system_time())
}

fn size(dir: &std::path::Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}

fn service() -> Service {
    let container = ContainerSpec {
        image: "registry.example.org/team/web:1.2.3@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".into(),
        env: (0..10).map(|n| format!("VARIABLE_{n}=some value of it")).collect(),
        ..ContainerSpec::default()
    };
    let task = TaskSpec {
        resources: Some(Default::default()),
        restart: Some(Default::default()),
        placement: Some(Default::default()),
        ..TaskSpec::new(container)
    };
    Service::new(
        ServiceId::for_test(1),
        ServiceSpec {
            annotations: Annotations { name: "web".into(), ..Annotations::default() },
            task: Arc::new(task),
            mode: ServiceMode::Replicated { replicas: 1 },
            update: None,
            rollback: None,
            networks: vec![],
            endpoint: None,
        },
    )
}

fn task(service: &Service, number: u64) -> Task {
    Task {
        id: TaskId::for_test(number),
        meta: Default::default(),
        spec: Arc::clone(&service.spec.task),
        spec_version: None,
        service_id: Some(service.id.clone()),
        slot: number,
        node_id: None,
        annotations: Annotations { name: format!("web.{number}.{}", TaskId::for_test(number)), ..Annotations::default() },
        service_annotations: service.spec.annotations.clone(),
        status: TaskStatus::default(),
        desired_state: TaskState::Running,
        networks: vec![],
        endpoint: None,
        log_driver: None,
        assigned_generic_resources: vec![],
        job_iteration: None,
    }
}

/// All tasks through one step, 200 a transaction, 4 transactions at a time.
async fn step(store: &Store, name: &str, tasks: u64, make: impl Fn(u64) -> Action) {
    let (begin, cpu_before) = (Instant::now(), cpu());
    let numbers: Vec<u64> = (0..tasks).collect();
    let mut running = tokio::task::JoinSet::new();
    for chunk in numbers.chunks(200) {
        let actions = chunk.iter().map(|number| make(*number)).collect();
        let store = store.clone();
        running.spawn(async move { store.propose(actions).await.expect("the only voter commits") });
        if running.len() == 4 {
            running.join_next().await;
        }
    }
    while running.join_next().await.is_some() {}
    let cpu_each = (cpu() - cpu_before) / u32::try_from(tasks).unwrap_or(u32::MAX);
    println!("{name:10} {:8.0} tasks/s, CPU per task {cpu_each:?}, RSS {} KiB", tasks as f64 / begin.elapsed().as_secs_f64(), rss_kib());
}

#[tokio::main]
async fn main() {
    let tasks: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let dir = std::env::args().nth(2).map_or_else(std::env::temp_dir, Into::into).join(format!("skep-scale-{}", std::process::id()));
    let config = || StoreConfig::new(dir.join("raft"));
    let store = Store::bootstrap(config(), 1, Member::default(), Arc::new(Alone)).await.expect("a new store");
    println!("empty: RSS {} KiB", rss_kib());
    let service = service();
    store.propose(vec![Action::Create(Object::Service(Arc::new(service.clone())))]).await.expect("the only voter commits");
    step(&store, "create", tasks, |number| Action::Create(Object::Task(Arc::new(task(&service, number))))).await;
    let mut spec = NetworkSpec::default();
    spec.annotations.name = "ingress".into();
    let network = Arc::new(Network::new(NetworkId::for_test(1), spec));
    let view = store.view();
    let change = |number: u64, change: &dyn Fn(&mut Task)| {
        let mut task = Task::clone(view.task(&TaskId::for_test(number)).expect("it was created"));
        change(&mut task);
        Action::Update(Object::Task(Arc::new(task)))
    };
    let attach = |task: &mut Task| {
        let attachment = NetworkAttachment {
            network: Arc::clone(&network),
            addresses: vec!["10.0.0.5/24".into()],
            aliases: vec![],
            driver_attachment_opts: Default::default(),
        };
        task.networks = vec![attachment];
        task.status.state = TaskState::Pending;
    };
    step(&store, "allocate", tasks, |number| change(number, &attach)).await;
    let view = store.view();
    let place = |number: u64, task: &mut Task| {
        task.node_id = Some(NodeId::for_test(number % 100));
        task.status.state = TaskState::Assigned;
    };
    step(&store, "assign", tasks, |number| {
        let mut task = Task::clone(view.task(&TaskId::for_test(number)).expect("it was created"));
        place(number, &mut task);
        Action::Update(Object::Task(Arc::new(task)))
    })
    .await;
    for state in [TaskState::Accepted, TaskState::Preparing, TaskState::Starting, TaskState::Running] {
        step(&store, &state.to_string(), tasks, |number| Action::SetTaskStatus {
            task: TaskId::for_test(number),
            status: TaskStatus { state, timestamp: Timestamp(5), message: "started".into(), ..TaskStatus::default() },
        })
        .await;
    }
    drop(view);
    let before = store.status().snapshot_index;
    let begin = Instant::now();
    store.trigger_snapshot().await.expect("the store runs");
    while store.status().snapshot_index == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!(
        "snapshot: {:?}, {} bytes; log directory {} bytes",
        begin.elapsed(),
        size(&dir.join("raft/snapshot")),
        size(&dir.join("raft/log"))
    );
    let begin = Instant::now();
    let hash = store.state_hash();
    println!("state hash {hash}: {:?}", begin.elapsed());
    store.shutdown().await;
    drop(store);
    let begin = Instant::now();
    let store = Store::open(config(), Arc::new(Alone)).await.expect("it opens again");
    store.wait_leader(Duration::from_secs(60)).await.expect("the only voter leads");
    println!("open: {:?}, RSS {} KiB, same state: {}", begin.elapsed(), rss_kib(), store.state_hash() == hash);
    tokio::time::sleep(Duration::from_secs(2)).await; // the next segment is being zeroed
    let (begin, cpu_before, syncs) = (Instant::now(), cpu(), store.status().syncs);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let used = (cpu() - cpu_before).as_secs_f64() / begin.elapsed().as_secs_f64();
    println!("idle 10 s: {:.3} % of a core, {} syncs", used * 100.0, store.status().syncs - syncs);
    store.shutdown().await;
    if let Err(error) = std::fs::remove_dir_all(&dir) {
        eprintln!("could not remove {}: {error}", dir.display());
    }
}
