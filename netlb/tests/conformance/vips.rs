//! Virtual addresses, as tasks use them.

use crate::hosts::*;
use crate::scene::*;
use crate::support::*;
use skep_netlb::*;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub async fn a_connection_goes_to_any_backend_whatever_its_port_and_protocol(mut scene: Scene) {
    let client = scene.with_client().await;
    scene.lead_to(&[1, 2, 3]).await;
    for (vip, seen_as, _) in FAMILIES {
        all_answer(&["T1", "T2", "T3"], seen_as, || within(&client, || ask(vip, 80)));
        all_answer(&["T1", "T2", "T3"], seen_as, || within(&client, || ask_udp(vip, 80)));
        let ping = format!("nsenter --net={} busybox ping -c1 -W20 {vip}", client.display());
        assert!(run_quietly("busybox", &["true"]).is_err() || sh(&ping).contains("1 packets received"));
    }
    // Another port, without a word to anybody.
    scene.lead_to(&[2]).await;
    let listener = within(&scene.tasks[1], || TcpListener::bind("[::]:4000").unwrap());
    for (vip, seen_as, _) in FAMILIES {
        let _stream = within(&client, || connect(vip, 4000)).unwrap();
        assert_eq!(listener.accept().unwrap().1.ip().to_canonical().to_string(), seen_as);
    }
    scene.all_are_as_wanted().await;
}

pub async fn a_backend_that_left_gets_nothing_new_and_keeps_what_it_has(mut scene: Scene) {
    let client = scene.with_client().await;
    for leaving in [1, 2] {
        scene.lead_to(&[leaving]).await;
        let kept = keep(&client, leaving);
        scene.lead_to(&[leaving, 3]).await;
        scene.lead_to(&[3]).await;
        for (vip, seen_as, _) in FAMILIES {
            for _ in 0..20 {
                assert_eq!(within(&client, || ask(vip, 80)).unwrap(), format!("T3 saw {seen_as}"));
            }
        }
        scene.all_are_as_wanted().await;
        kept.into_iter().for_each(Kept::still_answers);
    }
    // It may come back.
    scene.lead_to(&[1, 2]).await;
    for (vip, seen_as, _) in FAMILIES {
        all_answer(&["T1", "T2"], seen_as, || within(&client, || ask(vip, 80)));
    }
    scene.all_are_as_wanted().await;
}

/// A connection to each of the virtual addresses, which lead to the task of that number.
fn keep(client: &Path, number: u8) -> [Kept; 2] {
    FAMILIES.map(|(vip, seen_as, _)| Kept::open(|| within(client, || connect(vip, 80)), &format!("T{number} saw {seen_as}")))
}

pub async fn a_backend_that_is_gone_resets_what_it_had(mut scene: Scene) {
    let client = scene.with_client().await;
    // One on the client's host, with another one in its place, and one on the other host, with none. The last in the list first.
    for (gone, rest) in [(3, &[1][..]), (2, &[])] {
        scene.lead_to(&[gone]).await;
        let kept = keep(&client, gone);
        let own = FAMILIES.map(|(vip, seen_as, _)| {
            let own = vip.replace("2.100", &format!("2.1{gone}")).replace("::100", &format!("::{:x}", 10 + gone));
            Kept::open(|| within(&client, || connect(&own, 80)), &format!("T{gone} saw {seen_as}"))
        });
        let untouched = if rest.is_empty() { None } else { Some(keep_one_of(&mut scene, &client, rest[0]).await) };
        scene.lead_to(rest).await;
        scene.end(gone).await;
        kept.into_iter().chain(own).for_each(Kept::ends_with_a_reset);
        untouched.into_iter().flatten().for_each(Kept::still_answers);
    }
    scene.all_are_as_wanted().await;
}

pub async fn a_task_without_a_way_for_a_moment_keeps_its_connections(mut scene: Scene) {
    let client = scene.with_client().await;
    scene.lead_to(&[2]).await;
    let direct = FAMILIES.map(|(vip, seen_as, _)| {
        let own = vip.replace("2.100", "2.12").replace("::100", "::c");
        Kept::open(|| within(&client, || connect(&own, 80)), &format!("T2 saw {seen_as}"))
    });
    let mut kept: Vec<Kept> = keep(&client, 2).into_iter().chain(direct).collect();
    for way in ["ip route del 10.0.2.12", "ip -6 route del fd00:0:0:2::c"] {
        scene.hosts[0].in_sandbox(&network(2, false), way);
    }
    kept.iter_mut().for_each(|kept| kept.say("still"));
    assert_ne!(scene.hosts[0].netlb.audit().await.unwrap(), Audit::default());
    kept.into_iter().for_each(|kept| kept.hears("still"));
    scene.all_are_as_wanted().await;
}

/// [`keep`] of another task, to which the addresses lead meanwhile.
async fn keep_one_of(scene: &mut Scene, client: &Path, number: u8) -> [Kept; 2] {
    scene.lead_to(&[number]).await;
    keep(client, number)
}

/// Refused, not left to wait.
fn refused(answer: Result<String, String>) {
    let error = answer.unwrap_err();
    assert!(!error.contains("timed out"), "{error}");
}

pub async fn a_virtual_address_without_backends_refuses(mut scene: Scene) {
    let client = scene.with_client().await;
    scene.lead_to(&[]).await;
    for (vip, ..) in FAMILIES {
        refused(within(&client, || ask(vip, 80)));
    }
    scene.lead_to(&[1, 2]).await;
    let kept = FAMILIES.map(|(vip, ..)| within(&client, || connect(vip, 80)).unwrap());
    scene.lead_to(&[]).await;
    for (vip, ..) in FAMILIES {
        refused(within(&client, || ask(vip, 80)));
    }
    drop(kept);
    scene.lead_to(&[2]).await;
    for (vip, seen_as, _) in FAMILIES {
        assert_eq!(within(&client, || ask(vip, 80)).unwrap(), format!("T2 saw {seen_as}"));
    }
    scene.all_are_as_wanted().await;
}

pub async fn a_virtual_address_that_is_removed_keeps_what_is_connected(mut scene: Scene) {
    let client = scene.with_client().await;
    scene.lead_to(&[2]).await;
    let kept = keep(&client, 2);
    scene.cluster.vips.clear();
    scene.tell().await;
    for (vip, ..) in FAMILIES {
        refused(within(&client, || ask(vip, 80)));
    }
    kept.into_iter().for_each(Kept::still_answers);
    scene.all_are_as_wanted().await;
}

pub async fn udp_flows_go_to_another_backend_when_theirs_goes(mut scene: Scene) {
    let client = scene.with_client().await;
    for (vip, seen_as, _) in FAMILIES {
        scene.lead_to(&[1, 2, 3]).await;
        let socket = udp_client(&client, vip);
        let ask = || ask_udp_from(&socket, vip.parse().unwrap(), 80);
        let first = who(ask());
        for _ in 0..5 {
            assert_eq!(who(ask()), first, "a flow stays where it is");
        }
        let rest: Vec<u8> = (1..=3).filter(|number| format!("T{number}") != first).collect();
        scene.lead_to(&rest).await;
        let second = who(ask());
        assert_ne!(second, first);
        scene.lead_to(&[1, 2, 3]).await;
        assert_eq!(ask().unwrap(), format!("{second} saw {seen_as}"), "and is left alone when others come");
        scene.all_are_as_wanted().await;
    }
}

pub async fn a_task_that_reaches_itself_is_answered(mut scene: Scene) {
    scene.with_client().await;
    for number in [1, 2] {
        scene.lead_to(&[number]).await;
        let task = scene.tasks[usize::from(number) - 1].clone();
        for (vip, _, gateway) in FAMILIES {
            assert_eq!(within(&task, || ask(vip, 80)).unwrap(), format!("T{number} saw {gateway}"));
            assert_eq!(within(&task, || ask_udp(vip, 80)).unwrap(), format!("T{number} saw {gateway}"));
        }
    }
    // Where there are others, these see it.
    scene.lead_to(&[1, 2, 3]).await;
    for (vip, _, gateway) in FAMILIES {
        let own = gateway.replace(".1", ".11").replace("::1", "::b");
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            seen.insert(within(&scene.tasks[0], || ask(vip, 80)).unwrap());
            if seen.len() == 3 {
                break;
            }
        }
        assert_eq!(seen, [format!("T1 saw {gateway}"), format!("T2 saw {own}"), format!("T3 saw {own}")].into());
    }
}

pub async fn no_connection_fails_while_backends_come_and_go(mut scene: Scene) {
    let client = scene.with_client().await;
    scene.lead_to(&[1]).await;
    let (stop, answers) = (AtomicBool::new(false), FAMILIES.map(|_| AtomicUsize::new(0)));
    let runtime = tokio::runtime::Handle::current();
    std::thread::scope(|scope| {
        let askers: Vec<_> = std::iter::zip(FAMILIES, &answers)
            .map(|((vip, ..), answers)| {
                let (client, stop) = (&client, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        within(client, || ask(vip, 80)).unwrap();
                        answers.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        // On a busy machine few questions are asked meanwhile: the changes go on until there were some.
        let few = || answers.iter().any(|answers| answers.load(Ordering::Relaxed) <= 10);
        let change = async {
            for round in (0..).take_while(|round| *round < 10 || (few() && askers.iter().all(|asker| !asker.is_finished()))) {
                let other = [1, 2][round % 2];
                for numbers in [&[1, 2, 3][..], &[2, 3], &[3, 1], &[other]] {
                    scene.lead_to(numbers).await;
                }
            }
        };
        // On a thread of its own: this one may not wait within the runtime.
        let changed = tokio::task::block_in_place(|| runtime.block_on(tokio::time::timeout(LONG * 3, change)));
        stop.store(true, Ordering::Relaxed);
        for asker in askers {
            asker.join().unwrap();
        }
        changed.unwrap();
        assert!(!few());
    });
    scene.all_are_as_wanted().await;
}

pub async fn an_audit_mends_what_others_broke(mut scene: Scene) {
    let client = scene.with_client().await;
    scene.lead_to(&[1, 2, 3]).await;
    for damage in scene.damages() {
        scene.hosts[0].in_sandbox(&scene.cluster.networks[0], damage);
        let netlb = &scene.hosts[0].netlb;
        let audit = netlb.audit().await.unwrap_or_else(|error| panic!("after {damage}: {error:?}"));
        assert_ne!(audit.repaired, [""; 0], "after {damage}");
        assert_eq!(netlb.audit().await.unwrap(), Audit::default(), "second audit after {damage}");
        for (vip, seen_as, _) in FAMILIES {
            all_answer(&["T1", "T2", "T3"], seen_as, || within(&client, || ask(vip, 80)));
            all_answer(&["T1", "T2", "T3"], seen_as, || within(&client, || ask_udp(vip, 80)));
        }
    }
}

pub async fn a_restart_keeps_connections(mut scene: Scene) {
    let client = scene.with_client().await;
    scene.lead_to(&[2]).await;
    let kept = [keep(&client, 2), keep(&client, 2)];
    // One that is on its way out when the daemon goes must not get new connections afterwards.
    scene.lead_to(&[1]).await;
    let [without, after] = kept;
    scene.hosts.remove(0);
    without.into_iter().for_each(Kept::still_answers);
    for (vip, ..) in FAMILIES {
        assert_eq!(who(within(&client, || ask(vip, 80))), "T1", "while nobody looks after it");
    }
    scene.hosts.insert(0, scene.start(1));
    scene.cluster.ensure_tasks(&scene.hosts).await;
    scene.lead_to(&[1, 3]).await;
    after.into_iter().for_each(Kept::still_answers);
    for (vip, seen_as, _) in FAMILIES {
        all_answer(&["T1", "T3"], seen_as, || within(&client, || ask(vip, 80)));
    }
    scene.all_are_as_wanted().await;
}

pub async fn another_driver_takes_over_at_a_restart(mut scene: Scene) {
    if !kernel_has_ipvs() {
        eprintln!("SKIPPED: the kernel has no IPVS that could take over; make vm runs it");
        return;
    }
    let client = scene.with_client().await;
    scene.lead_to(&[1, 2]).await;
    for (vip, ..) in FAMILIES {
        within(&client, || ask(vip, 80)).unwrap();
    }
    scene.hosts.remove(0);
    scene.driver = if scene.driver == LbDriver::Ipvs { LbDriver::Nftables } else { LbDriver::Ipvs };
    scene.hosts.insert(0, scene.start(1));
    scene.cluster.ensure_tasks(&scene.hosts).await;
    scene.lead_to(&[2, 3]).await;
    for (vip, seen_as, _) in FAMILIES {
        all_answer(&["T2", "T3"], seen_as, || within(&client, || ask(vip, 80)));
        all_answer(&["T2", "T3"], seen_as, || within(&client, || ask_udp(vip, 80)));
    }
    // What the other one had may be found and taken away.
    scene.hosts[0].netlb.audit().await.unwrap();
    scene.all_are_as_wanted().await;
    scene.lead_to(&[1]).await;
    for (vip, seen_as, _) in FAMILIES {
        assert_eq!(within(&client, || ask(vip, 80)).unwrap(), format!("T1 saw {seen_as}"));
    }
}

pub async fn nothing_is_left_of_what_is_removed(mut scene: Scene) {
    let client = scene.with_client().await;
    let look = "nft list ruleset | sed \"/set here {/,/^\\t}/d\" | grep -E \"10.0.2.1|fd00:0:0:2::\" | grep -v snat || true; ip route show table all | grep 2.100 || true";
    let inside = |scene: &Scene| scene.hosts[0].in_sandbox(&scene.cluster.networks[0], &format!("{look}; {}", scene.shown_by()));
    scene.lead_to(&[]).await;
    let before = inside(&scene);
    scene.lead_to(&[1, 2]).await;
    for (vip, ..) in FAMILIES {
        within(&client, || ask(vip, 80)).unwrap();
        within(&client, || ask_udp(vip, 80)).unwrap();
    }
    assert_ne!(inside(&scene), before);
    scene.cluster.vips.clear();
    // What is connected may go on: it ends when the tasks end.
    scene.cluster.tasks.retain(|(task, _)| task.task == skep_types::TaskId::for_test(9));
    scene.tell().await;
    assert_eq!(inside(&scene), before);
    for host in &scene.hosts {
        for number in [1, 2, 3, 9] {
            host.netlb.remove_task(skep_types::TaskId::for_test(number)).await.unwrap();
        }
        host.netlb.set_wanted(Wanted::default());
        host.applied().await;
        assert_eq!(host.sh(&format!("ls /run/h{}/netns", host.index)), "");
        host.netlb.remove_everything().await.unwrap();
        assert_eq!(host.sh("nft list ruleset; ip -o link | grep sk || true"), "");
    }
}
