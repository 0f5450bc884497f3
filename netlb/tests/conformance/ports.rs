//! Published ports, as clients outside and the hosts themselves use them.

use crate::hosts::*;
use crate::scene::*;
use crate::support::*;

/// The hosts' addresses, with the client's in that family.
fn entries() -> Vec<(String, &'static str)> {
    [1, 2].into_iter().flat_map(|index| [(address(index), CLIENT), (address6(index), CLIENT6)]).collect()
}

pub async fn every_host_answers_and_tasks_see_the_client(mut scene: Scene) {
    scene.three_on(network(1, true)).await;
    scene.publish_to(&[1, 2, 3]).await;
    let (client, names) = (World::client(), ["T1", "T2", "T3"]);
    for (entry, seen_as) in entries() {
        all_answer(&names, seen_as, || within(&client, || ask(&entry, 8080)));
        all_answer(&names, seen_as, || within(&client, || ask_udp(&entry, 8080)));
    }
    // The host itself, and a task that is behind the port.
    let host = scene.hosts[0].netns();
    all_answer(&names, "169.254.64.1", || within(&host, || ask("127.0.0.1", 8080)));
    all_answer(&names, "fd73:6b65:7000::1", || within(&host, || ask("::1", 8080)));
    all_answer(&names, &address(1), || within(&host, || ask(&address(1), 8080)));
    all_answer(&names, "169.254.64.1", || within(&scene.tasks[0], || ask(&address(1), 8080)));
    all_answer(&names, "fd73:6b65:7000::1", || within(&scene.tasks[0], || ask(&address6(1), 8080)));
    scene.all_are_as_wanted().await;
}

pub async fn a_backend_that_left_gets_nothing_new_of_a_port_and_keeps_what_it_has(mut scene: Scene) {
    scene.three_on(network(1, true)).await;
    let client = World::client();
    for leaving in [1, 2] {
        scene.publish_to(&[leaving]).await;
        let keep = |(entry, seen_as): (String, &str)| {
            Kept::open(|| within(&client, || connect(&entry, 8080)), &format!("T{leaving} saw {seen_as}"))
        };
        let kept: Vec<Kept> = entries().into_iter().map(keep).collect();
        scene.publish_to(&[leaving, 3]).await;
        scene.publish_to(&[3]).await;
        for (entry, seen_as) in entries() {
            for _ in 0..10 {
                assert_eq!(within(&client, || ask(&entry, 8080)).unwrap(), format!("T3 saw {seen_as}"));
            }
        }
        scene.all_are_as_wanted().await;
        kept.into_iter().for_each(Kept::still_answers);
    }
}

pub async fn udp_flows_of_a_port_go_to_another_backend_when_theirs_goes(mut scene: Scene) {
    scene.three_on(network(1, true)).await;
    for (entry, seen_as) in entries() {
        scene.publish_to(&[1, 2, 3]).await;
        let socket = udp_client(&World::client(), &entry);
        let ask = || ask_udp_from(&socket, entry.parse().unwrap(), 8080);
        let first = who(ask());
        assert_eq!(who(ask()), first, "a flow stays where it is");
        let rest: Vec<u8> = (1..=3).filter(|number| format!("T{number}") != first).collect();
        scene.publish_to(&rest).await;
        let second = who(ask());
        assert_ne!(second, first);
        scene.publish_to(&[1, 2, 3]).await;
        assert_eq!(ask().unwrap(), format!("{second} saw {seen_as}"), "and is left alone when others come");
    }
    scene.all_are_as_wanted().await;
}

pub async fn a_port_that_is_published_no_more_refuses(mut scene: Scene) {
    scene.three_on(network(1, true)).await;
    scene.publish_to(&[1, 2]).await;
    let client = World::client();
    let kept: Vec<_> = entries().into_iter().map(|(entry, _)| within(&client, || connect(&entry, 8080)).unwrap()).collect();
    scene.publish_to(&[]).await;
    for (entry, _) in entries() {
        let error = within(&client, || ask(&entry, 8080)).unwrap_err();
        assert!(error.contains("refused"), "{error}");
    }
    drop(kept);
    scene.cluster.ports.clear();
    scene.cluster.tell(&scene.hosts).await;
    scene.all_are_as_wanted().await;
}
