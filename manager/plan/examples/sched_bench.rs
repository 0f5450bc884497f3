//! B5: what placing a task costs, purely in memory. One JSON line per shape; called by `make bench B=B5`.
//!
//! `schedule_us` is the decision with the finished actions, `observe_us` feeding the tasks and the committed result back. Both are
//! CPU time of this thread per task. Shapes: tasks/nodes of one service, then with constraints, resources, ports and spread,
//! then one task at a time. A service that was not looked at for a while catches up with its first task; that is a shape of its own, per
//! task of the others. `sched_bench TEXT` runs only the shapes whose name has it.
//! `schedule_allocations` and `observe_allocations` are calls of the allocator per task in the same stretches, `kept` those of what the
//! decisions are handed over in: a finished task each, and a list of them for each plan.
#![allow(unsafe_code, reason = "a counting allocator, and one call of clock_gettime, which the standard library has no form of")]

use skep_plan::Scheduler;
use skep_types::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the calls that ask for memory.
struct Counting;

static CALLS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `alloc`, so from the system's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn calls() -> f64 {
    CALLS.load(Ordering::Relaxed) as f64
}

/// CPU time of this thread, exact to the nanosecond (`/proc` is only brought up to date by the timer tick).
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid, writable timespec that lives across the call; the clock id is a constant of the system.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "every Linux has this clock");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn node(number: u64) -> Arc<Node> {
    let mut node = Node::new(NodeId::for_test(number));
    node.status.state = NodeState::Ready;
    node.spec.annotations.labels.insert("rack".into(), format!("r{}", number % 10));
    node.spec.annotations.labels.insert("disk".into(), if number.is_multiple_of(2) { "ssd" } else { "hdd" }.into());
    node.description = Some(NodeDescription {
        hostname: format!("node{number}"),
        resources: Resources { nano_cpus: 64_000_000_000_000, memory_bytes: 1 << 50, generic: Vec::new() },
        ..NodeDescription::default()
    });
    Arc::new(node)
}

fn task_spec(rich: bool) -> TaskSpec {
    TaskSpec {
        resources: rich.then(|| ResourceRequirements {
            reservations: Resources { nano_cpus: 100_000_000, memory_bytes: 64 << 20, generic: Vec::new() },
            ..ResourceRequirements::default()
        }),
        placement: rich.then(|| Placement {
            constraints: vec!["node.labels.disk == ssd".into()],
            spread: vec!["node.labels.rack".into()],
            ..Placement::default()
        }),
        ..TaskSpec::new(ContainerSpec { image: "web:1".into(), ..ContainerSpec::default() })
    }
}

fn task(number: u64, service: u64, spec: &Arc<TaskSpec>) -> Arc<Task> {
    Arc::new(Task {
        id: TaskId::for_test(number),
        meta: Meta::default(),
        spec: Arc::clone(spec),
        spec_version: Some(Version(1)),
        service_id: Some(ServiceId::for_test(service)),
        slot: number,
        node_id: None,
        annotations: Annotations::default(),
        service_annotations: Annotations { name: "web".into(), ..Annotations::default() },
        status: TaskStatus { state: TaskState::Pending, message: "pending task scheduling".into(), ..TaskStatus::default() },
        desired_state: TaskState::Running,
        networks: Vec::new(),
        endpoint: None,
        log_driver: None,
        assigned_generic_resources: Vec::new(),
        job_iteration: None,
    })
}

struct Bench {
    scheduler: Scheduler,
    schedule: f64,
    observe: f64,
    schedule_calls: f64,
    observe_calls: f64,
    /// Calls that copies of the placed tasks take, and one for each plan's list of them.
    kept_calls: f64,
    placed: usize,
}

impl Bench {
    fn new(nodes: u64) -> Self {
        let mut scheduler = Scheduler::default();
        for number in 0..nodes {
            scheduler.observe(&Change::Created(Object::Node(node(number))));
        }
        Self { scheduler, schedule: 0.0, observe: 0.0, schedule_calls: 0.0, observe_calls: 0.0, kept_calls: 0.0, placed: 0 }
    }

    /// Begins to measure anew.
    fn forget(&mut self) {
        (self.schedule, self.observe, self.placed) = (0.0, 0.0, 0);
        (self.schedule_calls, self.observe_calls, self.kept_calls) = (0.0, 0.0, 0.0);
    }

    /// Feeds pending tasks, schedules until all are placed, feeds the result.
    fn run(&mut self, tasks: Vec<Arc<Task>>) {
        let mut pending: std::collections::HashMap<_, _> = std::collections::HashMap::with_capacity(tasks.len());
        for task in &tasks {
            pending.insert(task.id.clone(), Arc::clone(task));
        }
        let changes: Vec<_> = tasks.into_iter().map(|task| Change::Created(Object::Task(task))).collect();
        self.take_in(&changes);
        while !pending.is_empty() {
            let (start, before) = (cpu_seconds(), calls());
            let plan = self.scheduler.schedule(Timestamp::from_secs(1));
            self.schedule += cpu_seconds() - start;
            self.schedule_calls += calls() - before;
            assert!(!plan.changes.is_empty(), "all tasks fit");
            self.kept_calls += 1.0;
            let changes: Vec<_> = plan
                .changes
                .into_iter()
                .map(|action| match action {
                    Action::Update(Object::Task(new)) => {
                        let old = pending.remove(&new.id).expect("placed once");
                        self.placed += 1;
                        let before = calls();
                        drop(std::hint::black_box(Arc::new(Task::clone(&new))));
                        self.kept_calls += calls() - before;
                        Change::Updated { old: Object::Task(old), new: Object::Task(new) }
                    }
                    other => panic!("not placed: {other:?}"),
                })
                .collect();
            self.take_in(&changes);
        }
    }

    fn take_in(&mut self, changes: &[Change]) {
        let (start, before) = (cpu_seconds(), calls());
        for change in changes {
            self.scheduler.observe(change);
        }
        self.observe += cpu_seconds() - start;
        self.observe_calls += calls() - before;
    }

    fn print(&self, shape: &str, tasks: u64, nodes: u64) {
        let per_task = |seconds: f64| seconds * 1e6 / self.placed as f64;
        println!(
            "{{\"bench\":\"sched\",\"shape\":\"{shape}\",\"tasks\":{tasks},\"nodes\":{nodes},\"schedule_us\":{:.3},\"observe_us\":{:.3},\"schedule_allocations\":{:.3},\"observe_allocations\":{:.3},\"kept\":{:.3},\"tasks_per_cpu_second\":{:.0}}}",
            per_task(self.schedule),
            per_task(self.observe),
            self.schedule_calls / self.placed as f64,
            self.observe_calls / self.placed as f64,
            self.kept_calls / self.placed as f64,
            self.placed as f64 / (self.schedule + self.observe)
        );
    }
}

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    for (tasks, nodes) in [(1_000, 1_000), (10_000, 1_000), (100_000, 1_000), (10_000, 10_000), (100_000, 100_000)] {
        for (shape, rich) in [("plain", false), ("constraints+resources+spread", true)] {
            if !shape.contains(&wanted) {
                continue;
            }
            let spec = Arc::new(task_spec(rich));
            let mut sum = Bench::new(0);
            while sum.placed < 30_000 {
                let mut bench = Bench::new(nodes);
                bench.run((0..tasks).map(|number| task(number, 1, &spec)).collect());
                sum.schedule += bench.schedule;
                sum.observe += bench.observe;
                sum.placed += bench.placed;
                sum.schedule_calls += bench.schedule_calls;
                sum.observe_calls += bench.observe_calls;
                sum.kept_calls += bench.kept_calls;
            }
            sum.print(shape, tasks, nodes);
        }
    }
    // New services of ten tasks each, and one task more for a large service, on a cluster in use.
    let (small, large) = ("services of ten", "one more of a large service");
    for nodes in [1_000, 10_000, 100_000] {
        if !small.contains(&wanted) && !large.contains(&wanted) {
            continue;
        }
        let spec = Arc::new(task_spec(false));
        let mut bench = Bench::new(nodes);
        bench.run((0..2 * nodes).map(|number| task(number, 1, &spec)).collect());
        bench.forget();
        for service in 0..1_000 {
            bench.run((0..10).map(|number| task(1_000_000 + service * 10 + number, 10 + service, &spec)).collect());
        }
        bench.print(small, 10_000, nodes);
        // The large service was not looked at meanwhile: its first task pays for the order to catch up with the 10,000 others.
        bench.forget();
        bench.run(vec![task(2_999_999, 1, &spec)]);
        bench.placed = 10_000;
        bench.print("a large service catching up", 10_000, nodes);
        bench.forget();
        for number in 0..1_000 {
            bench.run(vec![task(2_000_000 + number, 1, &spec)]);
        }
        bench.print(large, 1_000, nodes);
    }
}
