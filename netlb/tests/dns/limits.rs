use crate::support::{on_own_host, patiently};
use crate::tools::*;
use hickory_proto::rr::RecordType;
use skep_netlb::dns::DnsLimits;
use std::io::{Read, Write};

#[test]
fn a_container_that_floods_waits_and_others_do_not() {
    on_own_host("limits::a_container_that_floods_waits_and_others_do_not", async |_world| {
        // So slow that the flood is not through when the test ends, however long that takes.
        let dns = dns_with(DnsLimits { messages_per_second: 1, messages_at_once: 20, ..patient() });
        let (flooding, other) = (namespace(1), namespace(2));
        dns.serve(&task_id(1), &flooding, asking(false)).await.unwrap();
        dns.serve(&task_id(2), &other, asking(false)).await.unwrap();
        let socket = client(&flooding);
        for id in 0..5_000 {
            socket.send(&query(id, "web", RecordType::A)).unwrap();
        }
        for _ in 0..20 {
            assert_eq!(addresses(&receive(&socket)), [WEB]);
        }
        assert_eq!(addresses(&ask(&other, "web", RecordType::A)), [WEB]);
        assert!(dns.counters().held_back > 0);
        assert!(dns.counters().messages < 2_500, "{:?}", dns.counters());
        dns.stop_all().await;
    });
}

#[test]
fn a_foreign_name_counts_as_many_messages() {
    on_own_host("limits::a_foreign_name_counts_as_many_messages", async |_world| {
        let dns = dns_with(DnsLimits { messages_per_second: 1, messages_at_once: 60, ..patient() });
        let netns = namespace(1);
        let honest = FakeResolver::start(None, "127.0.0.53", Manner::Honest { last: 1 });
        dns.set_host_resolvers(vec![honest.resolver]);
        dns.serve(&task_id(1), &netns, asking(true)).await.unwrap();
        let socket = client(&netns);
        for id in 0..30 {
            socket.send(&query(id, &format!("n{id}.example"), RecordType::A)).unwrap();
        }
        for _ in 0..3 {
            assert_eq!(addresses(&receive(&socket)), ["192.0.2.1"]);
        }
        // Twenty seconds or more lie between those that follow.
        assert!(honest.asked() < 20, "{}", honest.asked());
        dns.stop_all().await;
    });
}

#[test]
fn nonsense_is_survived() {
    on_own_host("limits::nonsense_is_survived", async |_world| {
        let dns = dns_with(DnsLimits { connections: 4, ..patient() });
        let netns = namespace(1);
        dns.serve(&task_id(1), &netns, asking(false)).await.unwrap();
        let socket = client(&netns);
        let good = query(1, "web", RecordType::A);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            socket.send(&bad).unwrap();
            socket.send(&good[..at]).unwrap();
        }
        socket.send(&[0xff; 9_000]).unwrap();
        // Connections that say nothing, half of something, nonsense, or are gone at once.
        let mut held: Vec<_> = (0..2).map(|_| connection(&netns)).collect();
        held[0].write_all(&[1]).unwrap();
        for _ in 0..20 {
            let mut stream = connection(&netns);
            stream.write_all(&[0, 3, 1, 2, 3]).unwrap();
            assert_eq!(patiently(|| stream.read(&mut [0; 9])).unwrap(), 0, "closed");
        }
        let mut many = connection(&netns);
        for id in 0..500 {
            write(&mut many, &query(id, "web", RecordType::A));
        }
        for id in 0..500 {
            assert_eq!(read(&mut many).id, id);
        }
        assert_eq!(addresses(&ask(&netns, "web", RecordType::A)), [WEB]);
        dns.stop_all().await;
    });
}
