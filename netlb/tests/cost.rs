//! What things cost. Prints only, for a shared machine's times prove nothing; the shape (CPU per step) is what to read.
//! `cargo test -p skep-netlb --test cost --release -- --nocapture`

#[path = "support/hosts.rs"]
mod hosts;
mod support;

use hosts::*;
use skep_netlb::*;
use skep_types::TaskId;
use std::time::Instant;
use support::*;

const TASKS: u8 = 50;

/// CPU of all threads, wall, for `work`, divided by `count`, in milliseconds.
async fn measured(what: &str, count: u32, work: impl Future<Output = ()>) {
    let (cpu, wall) = (cpu_ms(), Instant::now());
    work.await;
    let (cpu, wall) = (cpu_ms() - cpu, wall.elapsed().as_secs_f64() * 1e3);
    println!("COST {what}: {:.3} ms CPU, {:.3} ms wall each ({count})", cpu / f64::from(count), wall / f64::from(count));
}

/// What it costs to be told each of these and have it in place.
async fn set_measured(netlb: &Netlb, what: &str, steps: Vec<Wanted>) {
    let count = u32::try_from(steps.len()).unwrap();
    measured(what, count, async {
        for step in steps {
            netlb.set_wanted(step);
            netlb.applied().await.unwrap();
        }
    })
    .await;
}

#[test]
fn tasks_made_one_by_one_and_many_at_once() {
    on_own_host("tasks_made_one_by_one_and_many_at_once", async |_world| {
        let netlb = World::netlb();
        let ingress = network(1, true);
        let first = task(1, vec![attach(&ingress, 11)]);
        measured("first task, with the sandbox", 1, async {
            netlb.ensure_task(first.clone()).await.unwrap();
        })
        .await;
        let tasks: Vec<TaskNetwork> = (2..2 + TASKS).map(|n| task(n, vec![attach(&ingress, 10 + n)])).collect();
        measured("task, one by one", u32::from(TASKS), async {
            for task in &tasks {
                netlb.ensure_task(task.clone()).await.unwrap();
            }
        })
        .await;
        measured("task that is there", u32::from(TASKS), async {
            for task in &tasks {
                netlb.ensure_task(task.clone()).await.unwrap();
            }
        })
        .await;
        measured("audit with 51 tasks", 1, async {
            let report = netlb.audit().await.unwrap();
            assert_eq!(report, Audit::default());
        })
        .await;
        measured("removal", u32::from(TASKS), async {
            for task in &tasks {
                netlb.remove_task(task.task.clone()).await.unwrap();
            }
        })
        .await;
        let again: Vec<TaskNetwork> = (100..100 + TASKS).map(|n| task(n, vec![attach(&ingress, 10 + n)])).collect();
        measured("task, all at once", u32::from(TASKS), async {
            let mut all = tokio::task::JoinSet::new();
            for task in again {
                let netlb = netlb.clone();
                all.spawn(async move { netlb.ensure_task(task).await.map(|_| ()) });
            }
            for result in all.join_all().await {
                result.unwrap();
            }
        })
        .await;
        netlb.remove_everything().await.unwrap();
    });
}

#[test]
fn watching_over_a_thousand_services() {
    on_own_host("watching_over_a_thousand_services", async |_world| {
        let netlb = World::watchful_netlb();
        let ingress = network(1, true);
        let address = |n: u16| std::net::IpAddr::from([10, 0, (n >> 8) as u8, n as u8]);
        let port = |n: u16| {
            let backends = (0..4).map(|backend| Backend { address: address(n * 4 + backend), port: 80 }).collect();
            PublishedPort::new(Protocol::Tcp, 2000 + n, PublishMode::Ingress { backends })
        };
        netlb.set_wanted(wanted(&[ingress], &[], (0..1000).map(port).collect()));
        netlb.applied().await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        measured("a second of watching, nobody changes tables", 3, tokio::time::sleep(std::time::Duration::from_secs(3))).await;
        measured("a second of watching, somebody changes tables all the time", 3, async {
            for _ in 0..12 {
                sh("nft add table ip other; nft delete table ip other");
                tokio::time::sleep(std::time::Duration::from_millis(250)).await;
            }
        })
        .await;
        netlb.remove_everything().await.unwrap();
    });
}

#[test]
fn one_backend_changes_among_many_services() {
    on_own_host("one_backend_changes_among_many_services", async |_world| {
        let netlb = World::netlb();
        let ingress = network(1, true);
        for services in [10u16, 200, 1_000] {
            let port = |number: u16, shift: u8| {
                let address = |n: u8| std::net::IpAddr::from([10, 0, (number >> 6) as u8, (number as u8 & 63) * 4 + n]);
                let backends = (0..4).map(|n| Backend { address: address((n + shift) % 250), port: 80 }).collect();
                PublishedPort::new(Protocol::Tcp, 2000 + number, PublishMode::Ingress { backends })
            };
            let ports = |shift: u8| {
                let mut ports: Vec<_> = (0..services).map(|number| port(number, 0)).collect();
                ports[3] = port(3, shift);
                ports
            };
            let with = |ports: Vec<PublishedPort>| wanted(&[ingress.clone()], &[], ports);
            let whole = with(ports(0));
            set_measured(&netlb, &format!("{services} services loaded"), vec![whole]).await;
            let steps: Vec<Wanted> = (0..20u8).map(|step| with(ports(1 + step % 2))).collect();
            set_measured(&netlb, &format!("one of 4 backends changes among {services} services"), steps).await;
            assert_eq!(netlb.audit().await.unwrap(), Audit::default());
        }
        netlb.remove_everything().await.unwrap();
    });
}

/// A network with so many tasks on other nodes, of which there are so many.
fn far(network: &Network, nodes: u16, tasks: u16, shift: u16) -> Wanted {
    let node = |index: u16| {
        let [high, low] = index.to_be_bytes();
        Peer { node_index: u32::from(index), underlay: std::net::IpAddr::from([198, 18, high, low]), mac: Mac([2, 0xab, 0, 0, high, low]) }
    };
    let task = |number: u16| {
        let [high, low] = number.to_be_bytes();
        // Only the fourth one moves from node to node.
        let node = 2 + if number == 3 { (number + shift) % nodes } else { number % nodes };
        Endpoint {
            task: TaskId::for_test(u64::from(number)),
            addresses: vec![std::net::IpAddr::from([10, 7, high, low]), std::net::IpAddr::from([0xfd00, 0, 0, 7, 0, 0, 0, number])],
            location: Location::Remote { node_index: u32::from(node) },
        }
    };
    let mut want = wanted(std::slice::from_ref(network), &[], vec![]);
    want.networks[0].overlay = Some(Overlay { this: node(1), port: 4789, peers: (2..2 + nodes).map(node).collect() });
    want.networks[0].endpoints = (0..tasks).map(task).collect();
    want
}

#[test]
fn a_task_moves_among_many_on_other_nodes() {
    on_own_host("a_task_moves_among_many_on_other_nodes", async |_world| {
        if !kernel_has_overlays("a_task_moves_among_many_on_other_nodes") {
            return;
        }
        let network = Network { ingress: true, ..network(7, false) };
        for tasks in [10u16, 1_000, 10_000] {
            let netlb = World::netlb();
            let whole = far(&network, 9, tasks, 0);
            set_measured(&netlb, &format!("{tasks} tasks on 9 other nodes loaded"), vec![whole]).await;
            let steps: Vec<Wanted> = (1..=20).map(|step| far(&network, 9, tasks, step)).collect();
            set_measured(&netlb, &format!("one moves among {tasks} tasks on other nodes"), steps).await;
            assert_eq!(netlb.audit().await.unwrap(), Audit::default());
            netlb.remove_everything().await.unwrap();
        }
        let netlb = World::netlb();
        for nodes in [10u16, 300, 1_000] {
            let whole = far(&network, nodes, 1_000, 0);
            set_measured(&netlb, &format!("up to {nodes} other nodes"), vec![whole]).await;
        }
        let mut fewer = far(&network, 1_000, 1_000, 0);
        fewer.networks[0].overlay.as_mut().unwrap().peers.pop();
        set_measured(&netlb, "one of 1000 nodes goes", vec![fewer]).await;
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
        netlb.remove_everything().await.unwrap();
    });
}
