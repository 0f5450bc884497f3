//! Published ports, as clients outside and the hosts themselves use them.

use crate::hosts::*;
use crate::scene::*;
use crate::support::*;
use skep_netlb::{Affinity, PublishPlace, PublishedPort};
use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;

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

pub async fn a_backend_that_is_gone_resets_what_it_had_of_a_port(mut scene: Scene) {
    scene.three_on(network(1, true)).await;
    let client = World::client();
    for (gone, rest) in [(3, &[1][..]), (2, &[])] {
        scene.publish_to(&[gone]).await;
        let keep =
            |(entry, seen_as): (String, &str)| Kept::open(|| within(&client, || connect(&entry, 8080)), &format!("T{gone} saw {seen_as}"));
        let kept: Vec<Kept> = entries().into_iter().map(keep).collect();
        scene.publish_to(rest).await;
        scene.end(gone).await;
        kept.into_iter().for_each(Kept::ends_with_a_reset);
    }
    scene.all_are_as_wanted().await;
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
    scene.tell().await;
    scene.all_are_as_wanted().await;
}

fn refused(answer: Result<String, String>) {
    let error = answer.unwrap_err();
    assert!(error.to_lowercase().contains("refused"), "at once, as where nobody listens: {error}");
}

/// A UDP socket that hears that it was refused.
fn ask_udp_once(entry: &str) -> Result<String, String> {
    let socket = UdpSocket::bind(if entry.contains(':') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket.connect((entry, 8080)).unwrap();
    socket.send(b"hello").map_err(|error| error.to_string())?;
    let mut buffer = [0; 200];
    let length = patiently(|| socket.recv(&mut buffer)).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

pub async fn clients_that_may_not_come_are_refused(mut scene: Scene) {
    scene.three_on(network(1, true)).await;
    let client = World::client();
    let from = |ranges: &[&str]| {
        let allow: Vec<_> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        move |port| PublishedPort { allow: allow.clone(), ..port }
    };
    let own = [format!("{CLIENT}/32"), format!("{CLIENT6}/128")];
    // Among ranges of other lengths, and one that has it twice.
    scene.publish_as(&[1, 2, 3], from(&["203.0.113.0/24", "10.0.0.0/8", &own[0], "2001:db8:ffff::/48", &own[1], "2001:db8::/64"])).await;
    let names = ["T1", "T2", "T3"];
    for (entry, seen_as) in entries() {
        all_answer(&names, seen_as, || within(&client, || ask(&entry, 8080)));
        all_answer(&names, seen_as, || within(&client, || ask_udp(&entry, 8080)));
    }
    refused(within(&scene.hosts[0].netns(), || ask(&address(1), 8080)));
    refused(within(&scene.tasks[0], || ask(&address(1), 8080)));
    scene.all_are_as_wanted().await;
    // What is connected when a list grows narrower stays; a UDP flow does not.
    let (entry, entry6) = (address(1), address6(1));
    scene.publish_as(&[1], from(&[&own[0]])).await;
    let kept = Kept::open(|| within(&client, || connect(&entry, 8080)), &format!("T1 saw {CLIENT}"));
    let socket = udp_client(&client, &entry);
    ask_udp_from(&socket, entry.parse().unwrap(), 8080).unwrap();
    scene.publish_as(&[1], from(&["203.0.113.0/24", "2001:db8::/32"])).await;
    refused(within(&client, || ask(&entry, 8080)));
    refused(within(&client, || ask_udp_once(&entry)));
    socket.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    socket.send_to(b"hello", (entry.as_str(), 8080)).unwrap();
    assert!(socket.recv(&mut [0; 9]).is_err(), "it is refused, or hears nothing");
    all_answer(&["T1"], CLIENT6, || within(&client, || ask(&entry6, 8080)));
    kept.still_answers();
    // A list of one family shuts the other out.
    scene.publish_as(&[1, 2, 3], from(&["0.0.0.0/0"])).await;
    all_answer(&names, CLIENT, || within(&client, || ask(&entry, 8080)));
    refused(within(&client, || ask(&entry6, 8080)));
    refused(within(&client, || ask_udp_once(&entry6)));
    scene.all_are_as_wanted().await;
    scene.publish_to(&[1, 2, 3]).await;
    all_answer(&names, CLIENT6, || within(&client, || ask(&entry6, 8080)));
    scene.all_are_as_wanted().await;
}

pub async fn a_client_keeps_its_task_by_whichever_host_it_comes(mut scene: Scene) {
    const CLIENTS: u8 = 24;
    scene.three_on(network(1, true)).await;
    let client = World::client();
    let sources = |entry: &str| -> Vec<String> {
        let of = |last| if entry.contains(':') { format!("2001:db8::c{last:x}") } else { format!("198.18.0.{}", 150 + last) };
        (0..CLIENTS).map(of).collect()
    };
    let link = within(&client, || sh("ip -o -4 addr show to 198.18.0.0/24 | head -1")).split_whitespace().nth(1).unwrap().to_owned();
    for source in sources("").iter().map(|v4| format!("{v4}/24")).chain(sources("::").iter().map(|v6| format!("{v6}/64 nodad"))) {
        within(&client, || sh(&format!("ip addr add {source} dev {link}")));
    }
    // By UDP, each time from a port of its own: whom every source is answered by, which must be the same by all hosts.
    let answers = |family: &[String]| {
        let mut by = BTreeMap::new();
        for (entry, source) in family.iter().flat_map(|entry| sources(entry).into_iter().map(move |source| (entry, source))) {
            let socket = within(&client, || UdpSocket::bind((source.as_str(), 0)).unwrap());
            let name = who(ask_udp_from(&socket, entry.parse().unwrap(), 8080));
            let known = by.entry(source.clone()).or_insert_with(|| name.clone());
            assert_eq!(*known, name, "{source} by {entry}");
        }
        by
    };
    let sticky = |port| PublishedPort { affinity: Affinity::Source, ..port };
    for family in [[address(1), address(2)], [address6(1), address6(2)]] {
        scene.publish_as(&[1, 2, 3], sticky).await;
        let all = answers(&family);
        assert_eq!(all.values().collect::<BTreeSet<_>>().len(), 3, "every task has clients: {all:?}");
        let tcp: BTreeSet<String> = (0..6).map(|_| who(within(&client, || ask(&family[0], 8080)))).collect();
        assert_eq!(tcp.len(), 1, "{tcp:?}");
        // One leaves: the clients of the others keep theirs; it comes back: so do its clients.
        scene.publish_as(&[1, 3], sticky).await;
        let rest = answers(&family);
        let moved: Vec<_> = all.iter().filter(|(source, name)| rest[*source] != **name).map(|(_, name)| name.as_str()).collect();
        assert!(!moved.is_empty() && moved.iter().all(|name| *name == "T2"), "{moved:?}");
        scene.publish_as(&[2, 3, 1], sticky).await;
        assert_eq!(answers(&family), all);
    }
    scene.all_are_as_wanted().await;
}

pub async fn a_port_answers_at_its_place_only(mut scene: Scene) {
    scene.three_on(network(1, true)).await;
    let (client, host) = (World::client(), scene.hosts[0].netns());
    let ask_all = |answering: &[String]| {
        for (entry, seen_as) in entries() {
            if answering.contains(&entry) {
                all_answer(&["T1", "T2", "T3"], seen_as, || within(&client, || ask(&entry, 8080)));
                all_answer(&["T1", "T2", "T3"], seen_as, || within(&client, || ask_udp(&entry, 8080)));
            } else {
                refused(within(&client, || ask(&entry, 8080)));
                refused(within(&client, || ask_udp_once(&entry)));
            }
        }
    };
    let at = |place: PublishPlace| move |port| PublishedPort { place: place.clone(), ..port };
    scene.publish_as(&[1, 2, 3], at(PublishPlace::Address(address(1).parse().unwrap()))).await;
    ask_all(&[address(1)]);
    all_answer(&["T1", "T2", "T3"], &address(1), || within(&host, || ask(&address(1), 8080)));
    refused(within(&host, || ask("127.0.0.1", 8080)));
    scene.all_are_as_wanted().await;
    scene.publish_as(&[1, 2, 3], at(PublishPlace::Address("127.0.0.1".parse().unwrap()))).await;
    ask_all(&[]);
    all_answer(&["T1", "T2", "T3"], "169.254.64.1", || within(&host, || ask("127.0.0.1", 8080)));
    scene.publish_as(&[1, 2, 3], at(PublishPlace::Interface("eth0".into()))).await;
    ask_all(&[address(1), address6(1), address(2), address6(2)]);
    refused(within(&host, || ask(&address(1), 8080)));
    scene.all_are_as_wanted().await;
    scene.publish_as(&[1, 2, 3], at(PublishPlace::Interface("eth1".into()))).await;
    ask_all(&[]);
    // Everything about a port at once.
    let narrow = |port: PublishedPort| PublishedPort {
        place: PublishPlace::Interface("eth0".into()),
        affinity: Affinity::Source,
        allow: vec![format!("{CLIENT}/32").parse().unwrap()],
        ..port
    };
    scene.publish_as(&[1, 2, 3], narrow).await;
    let entry = address(2);
    let answered: BTreeSet<String> = (0..6).map(|_| who(within(&client, || ask(&entry, 8080)))).collect();
    assert_eq!(answered.len(), 1);
    refused(within(&client, || ask(&address6(2), 8080)));
    scene.all_are_as_wanted().await;
}
