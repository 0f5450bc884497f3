use crate::support::on_own_host;
use crate::tools::*;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use skep_netlb::dns::DnsLimits;
use std::time::Duration;

/// As systemd-resolved listens: on the host's loopback, where no task gets by itself.
const STUB: &str = "127.0.0.53";

#[test]
fn a_foreign_name_is_asked_of_the_hosts_resolver_once() {
    on_own_host("foreign::a_foreign_name_is_asked_of_the_hosts_resolver_once", async |_world| {
        let (dns, outside, inside) = (dns(), namespace(1), namespace(2));
        let stub = FakeResolver::start(None, STUB, Manner::Honest { last: 7 });
        dns.set_host_resolvers(vec![stub.resolver]);
        dns.serve(&task_id(1), &outside, asking(true)).await.unwrap();
        dns.serve(&task_id(2), &inside, asking(false)).await.unwrap();
        for name in ["example.org", "EXAMPLE.org.", "Example.Org"] {
            let answer = ask(&outside, name, RecordType::A);
            assert_eq!(addresses(&answer), ["192.0.2.7"]);
            assert!(!answer.authoritative && answer.recursion_available && answer.answers[0].ttl <= 300);
        }
        assert_eq!(stub.asked(), 1, "the others were answered from memory");
        assert_eq!(addresses(&ask_tcp(&outside, "other.example", RecordType::A)), ["192.0.2.7"]);
        assert_eq!(stub.asked(), 2);
        // From an internal network nothing goes out, not even what is remembered.
        for name in ["example.org", "secret.attacker.example", "nobody"] {
            assert_eq!(ask(&inside, name, RecordType::A).response_code, ResponseCode::NXDomain);
        }
        // Nor do names and addresses of the cluster.
        assert_eq!(ask(&outside, "99.1.0.10.in-addr.arpa", RecordType::PTR).response_code, ResponseCode::NoError, "a task of big");
        assert_eq!(ask(&outside, "249.1.0.10.in-addr.arpa", RecordType::PTR).response_code, ResponseCode::NXDomain);
        assert_eq!((stub.asked(), dns.counters().forwarded, dns.counters().remembered), (2, 2, 2));
        dns.stop_all().await;
    });
}

#[test]
fn a_resolver_of_the_service_is_asked_from_within_the_task() {
    on_own_host("foreign::a_resolver_of_the_service_is_asked_from_within_the_task", async |_world| {
        let (dns, one, other) = (dns(), namespace(1), namespace(2));
        // The same address in both, but not the same server.
        let first = FakeResolver::start(Some(&one), "127.0.0.99", Manner::Honest { last: 1 });
        let second = FakeResolver::start(Some(&other), "127.0.0.99", Manner::Long);
        dns.serve(&task_id(1), &one, with_resolvers(&[first.resolver])).await.unwrap();
        dns.serve(&task_id(2), &other, with_resolvers(&[second.resolver])).await.unwrap();
        assert_eq!(addresses(&ask(&one, "example.org", RecordType::A)), ["192.0.2.1"]);
        assert_eq!(addresses(&ask_tcp(&other, "example.org", RecordType::A)).len(), 100);
        assert_eq!((first.asked(), second.asked()), (1, 2));
        dns.stop_all().await;
    });
}

#[test]
fn a_dead_resolver_is_passed_over_and_a_failing_one_as_well() {
    on_own_host("foreign::a_dead_resolver_is_passed_over_and_a_failing_one_as_well", async |_world| {
        // So long for the dead one, and for the others on a busy machine.
        let dns = dns_with(DnsLimits { patience: Duration::from_secs(5), ..patient() });
        let netns = namespace(1);
        let dead = FakeResolver::start(None, "127.0.0.61", Manner::Dead);
        let failing = FakeResolver::start(None, "127.0.0.62", Manner::Failing);
        let honest = FakeResolver::start(None, "127.0.0.63", Manner::Honest { last: 3 });
        // Nobody is at that one at all.
        let nobody = skep_netlb::dns::Resolver::of_host("127.0.0.64:53".parse().unwrap());
        dns.serve(&task_id(1), &netns, with_resolvers(&[dead.resolver, nobody, failing.resolver, honest.resolver])).await.unwrap();
        assert_eq!(addresses(&ask(&netns, "example.org", RecordType::A)), ["192.0.2.3"]);
        // With none that knows, what the failing one says is handed over.
        dns.serve(&task_id(1), &netns, with_resolvers(&[failing.resolver, nobody])).await.unwrap();
        assert_eq!(ask(&netns, "example.org", RecordType::A).response_code, ResponseCode::ServFail);
        // And with none that answers, it is a failure after a while, not silence.
        dns.serve(&task_id(1), &netns, with_resolvers(&[nobody])).await.unwrap();
        assert_eq!(ask(&netns, "example.org", RecordType::A).response_code, ResponseCode::ServFail);
        dns.serve(&task_id(1), &netns, with_resolvers(&[])).await.unwrap();
        assert_eq!(ask(&netns, "example.org", RecordType::A).response_code, ResponseCode::ServFail);
        assert_eq!(dns.counters().failed, 2);
        dns.stop_all().await;
    });
}

#[test]
fn a_long_foreign_answer_is_fetched_over_tcp() {
    on_own_host("foreign::a_long_foreign_answer_is_fetched_over_tcp", async |_world| {
        let (dns, netns) = (dns(), namespace(1));
        let long = FakeResolver::start(None, STUB, Manner::Long);
        dns.set_host_resolvers(vec![long.resolver]);
        dns.serve(&task_id(1), &netns, asking(true)).await.unwrap();
        let cut = ask(&netns, "long.example", RecordType::A);
        assert!(cut.truncation && cut.answers.len() > 20, "as many as fit a datagram");
        let whole = ask_tcp(&netns, "long.example", RecordType::A);
        assert!(!whole.truncation && whole.answers.len() == 100);
        dns.stop_all().await;
    });
}

#[test]
fn forged_answers_are_not_believed() {
    on_own_host("foreign::forged_answers_are_not_believed", async |_world| {
        let (dns, netns) = (dns(), namespace(1));
        let besieged = FakeResolver::start(None, STUB, Manner::Amid { lies: 20 });
        dns.set_host_resolvers(vec![besieged.resolver]);
        dns.serve(&task_id(1), &netns, asking(true)).await.unwrap();
        assert_eq!(addresses(&ask(&netns, "bank.example", RecordType::A)), ["192.0.2.1"]);
        dns.stop_all().await;
    });
}

#[test]
fn a_dead_resolver_holds_up_no_name_of_the_cluster() {
    on_own_host("foreign::a_dead_resolver_holds_up_no_name_of_the_cluster", async |_world| {
        // Nine questions that wait for ever.
        let dns = dns_with(DnsLimits {
            asked_at_once: 9,
            patience: Duration::from_secs(86_400),
            patience_in_all: Duration::from_secs(86_400),
            ..patient()
        });
        let netns = namespace(1);
        let dead = FakeResolver::start(None, STUB, Manner::Dead);
        dns.set_host_resolvers(vec![dead.resolver]);
        dns.serve(&task_id(1), &netns, asking(true)).await.unwrap();
        let socket = client(&netns);
        for id in 0..8 {
            socket.send(&query(id, &format!("n{id}.example"), RecordType::A)).unwrap();
        }
        // The ninth over a connection: what is ready first comes first there, too.
        let mut stream = connection(&netns);
        write(&mut stream, &query(1_001, "late.example", RecordType::A));
        write(&mut stream, &query(1_002, "web", RecordType::A));
        assert_eq!(read(&mut stream).id, 1_002);
        for id in 8..40 {
            socket.send(&query(id, &format!("n{id}.example"), RecordType::A)).unwrap();
            let turned_away = receive(&socket);
            assert_eq!((turned_away.id, turned_away.response_code), (id, ResponseCode::ServFail));
            socket.send(&query(100 + id, "web", RecordType::A)).unwrap();
            let ours = receive(&socket);
            assert_eq!((ours.id, addresses(&ours)), (100 + id, vec![WEB.to_owned()]));
        }
        assert_eq!(dns.counters().turned_away, 32);
        dns.stop_all().await;
    });
}
