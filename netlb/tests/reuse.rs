//! Addresses that other tasks have on other hosts all at once, while one host hears of it late. See `support/hosts.rs`.

#[path = "support/hosts.rs"]
mod hosts;
mod support;

use hosts::*;
use skep_netlb::*;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::*;

/// Not a test: the program in the tasks' namespaces.
#[test]
fn responder() {
    support::responder();
}

/// The number of the task that asks.
const ASKS: u8 = 200;
const ADDRESSES: std::ops::RangeInclusive<u8> = 11..=16;

/// A task of that round at each of the addresses, on the next host each round. Those of the round before end.
async fn deal(round: u8, world: &mut World, cluster: &mut Cluster, hosts: &[Host]) {
    world.stop_responders();
    for (task, node) in std::mem::take(&mut cluster.tasks) {
        hosts[usize::from(node) - 1].netlb.remove_task(task.task).await.unwrap();
    }
    let network = cluster.networks[0].clone();
    // The kernel takes namespaces apart in its own time, on a busy machine after seconds, and a link that is still there is found by audits.
    let is_gone = |link: &str| !link.starts_with("t0") || link.contains(&format!("{ASKS}@"));
    eventually("the links of ended tasks are gone", || {
        round == 0 || hosts.iter().all(|host| host.in_sandbox(&network, "ip -br link").lines().all(is_gone))
    });
    for last in ADDRESSES {
        let host = &hosts[usize::from(last + round) % hosts.len()];
        cluster.place(world, host, number(round, last), vec![attach(&network, last)]).await;
    }
}

/// Who answers within a moment, if anybody does.
fn at_once(to: &str) -> Option<String> {
    answer_within(Duration::from_millis(300), to)
}

fn answer_within(moment: Duration, to: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to.parse().unwrap(), 80), moment).ok()?;
    stream.set_read_timeout(Some(moment)).unwrap();
    let mut buffer = [0; 200];
    let length = stream.read(&mut buffer).ok().filter(|length| *length > 0)?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// What is for a task that came to the host which hears late goes to and fro between that host and the one it came from, and the
/// sandbox that passes it on where it came in tells the asking task of a better way, by a neighbour that this task cannot have. Who
/// believed it would reach nobody for 15 s, also when all is told. On these short ways the first packet's redirect is there while the
/// kernel still holds the socket, and is not heard; so one more packet is waited for, which goes after a second.
fn going_round_redirects_nobody(client: &Path, round: u8, hosts: usize) {
    for last in ADDRESSES.filter(|last| round > 0 && usize::from(last + round).is_multiple_of(hosts)) {
        within(client, || answer_within(Duration::from_millis(1300), &format!("fd00:0:0:2::{last:x}")));
    }
    let known = within(client, || run_quietly("ip", &["-6", "neigh", "show", "dev", "eth0"]).unwrap());
    assert!(!known.contains("fe80::"), "round {round}: the gateway is the only neighbour: {known}");
}

fn number(round: u8, last: u8) -> u8 {
    round * 20 + last
}

/// Neighbours and forwarding entries of a sandbox that have any task's address, or any address but the other hosts'.
fn learned(host: &Host, network: &Network, hosts: usize) -> String {
    let neighbours = host.in_sandbox(network, "ip neigh show dev vx0; bridge fdb show dev vx0");
    assert_eq!(neighbours.matches("fe80::").count(), hosts - 1, "one per other host: {neighbours}");
    assert_eq!(neighbours.matches(" dst 198.18.0.").count(), hosts - 1, "one per other host: {neighbours}");
    neighbours.lines().filter(|line| line.contains("10.0.2.") || line.contains("fd00:")).collect()
}

/// In the original a mass redeploy left nodes with hardware addresses made of addresses that other tasks had by then, on other nodes, and
/// traffic went there (moby/moby#52661).
#[test]
fn moby_52661_an_address_leads_to_who_has_it_now_wherever_it_was() {
    overlay_test("moby_52661_an_address_leads_to_who_has_it_now_wherever_it_was", async |mut world| {
        let (hosts, mut cluster) = (hosts(3), Cluster::new(3, &[network(2, false)]));
        let network = cluster.networks[0].clone();
        // Asks on the host that hears late.
        let asking = task(ASKS, vec![attach(&network, 99)]);
        let client: PathBuf = hosts[0].netlb.ensure_task(asking.clone()).await.unwrap().path;
        for round in 0..4 {
            deal(round, &mut world, &mut cluster, &hosts).await;
            let placed = cluster.tasks.clone();
            cluster.tasks.push((asking.clone(), 1));
            let ask_all = |asked: &(dyn Fn(&str) -> Option<String> + Sync), is_right: &dyn Fn(u8, Option<String>)| {
                for last in ADDRESSES {
                    for to in [format!("10.0.2.{last}"), format!("fd00:0:0:2::{last:x}")] {
                        is_right(last, within(&client, || asked(&to)));
                    }
                }
            };
            let is_its_own = |last: u8, answer: &str| answer.starts_with(&format!("T{} saw ", number(round, last)));
            cluster.tell(&hosts[1..]).await;
            // Who is told later may reach nobody. Never another one than has the address.
            ask_all(&at_once, &|last, answer| assert!(answer.iter().all(|text| is_its_own(last, text)), "{last}: {answer:?}"));
            going_round_redirects_nobody(&client, round, hosts.len());
            cluster.tell(&hosts).await;
            ask_all(&|to| Some(tcp(to, 80).unwrap()), &|last, answer| {
                assert!(is_its_own(last, answer.as_ref().unwrap()), "{last}: {answer:?}")
            });
            for host in &hosts {
                assert_eq!(learned(host, &network, hosts.len()), "", "host {}", host.index);
            }
            all_are_as_wanted(&hosts).await;
            cluster.tasks = placed;
        }
    });
}
