//! B5: placing a task in a scheduler that has placed others asks for no memory but what the finished task is handed over in.
#![allow(unsafe_code, reason = "a counting allocator")]

use skep_plan::Scheduler;
use skep_types::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

/// Counts the calls of this thread that ask for memory.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends has no counter any more, and nobody who asks for it.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `alloc`, so from the system's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn calls<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let before = CALLS.get();
    let done = work();
    (CALLS.get() - before, done)
}

fn node(number: u64) -> Arc<Node> {
    let mut node = Node::new(NodeId::for_test(number));
    node.status.state = NodeState::Ready;
    Arc::new(node)
}

fn task(number: u64, spec: &Arc<TaskSpec>) -> Arc<Task> {
    Arc::new(Task {
        id: TaskId::for_test(number),
        meta: Meta::default(),
        spec: Arc::clone(spec),
        spec_version: Some(Version(1)),
        service_id: Some(ServiceId::for_test(1)),
        slot: number,
        node_id: None,
        annotations: Annotations::default(),
        service_annotations: Annotations { name: "web".into(), ..Annotations::default() },
        status: TaskStatus { state: TaskState::Pending, ..TaskStatus::default() },
        desired_state: TaskState::Running,
        networks: Vec::new(),
        endpoint: None,
        log_driver: None,
        assigned_generic_resources: Vec::new(),
        job_iteration: None,
    })
}

/// Feeds tasks, places them and feeds the result; returns the calls beyond those for the finished tasks and their list.
fn place(scheduler: &mut Scheduler, tasks: &[Arc<Task>]) -> u64 {
    let changes: Vec<Change> = tasks.iter().map(|task| Change::Created(Object::Task(Arc::clone(task)))).collect();
    let (mut all, _) = calls(|| changes.iter().for_each(|change| scheduler.observe(change)));
    let (asked, plan) = calls(|| scheduler.schedule(Timestamp::from_secs(1)));
    assert_eq!(plan.changes.len(), tasks.len());
    all += asked - 1;
    let mut changes = Vec::new();
    for action in plan.changes {
        let Action::Update(Object::Task(new)) = action else { panic!("not placed: {action:?}") };
        let (copied, _) = calls(|| Arc::new(Task::clone(&new)));
        all -= copied;
        let old = tasks.iter().find(|old| old.id == new.id).expect("one of those");
        changes.push(Change::Updated { old: Object::Task(Arc::clone(old)), new: Object::Task(new) });
    }
    all + calls(|| changes.iter().for_each(|change| scheduler.observe(change))).0
}

#[test]
fn a_task_more_asks_for_no_memory_of_the_scheduler() {
    let mut scheduler = Scheduler::default();
    for number in 0..300 {
        scheduler.observe(&Change::Created(Object::Node(node(number))));
    }
    let spec = Arc::new(TaskSpec::new(ContainerSpec { image: "web:1".into(), ..ContainerSpec::default() }));
    let first: Vec<_> = (0..3_000).map(|number| task(number, &spec)).collect();
    place(&mut scheduler, &first);
    let extra: Vec<u64> = (0..1_000).map(|number| place(&mut scheduler, &[task(3_000 + number, &spec)])).collect();
    // Tables and new pieces of orders grow to twice their size now and then.
    let total: u64 = extra.iter().sum();
    assert!(total <= 40, "{total} calls for 1,000 tasks");
    assert!(extra[500..].iter().filter(|calls| **calls > 0).count() <= 5, "{extra:?}");
}
