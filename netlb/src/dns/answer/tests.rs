use super::*;
use crate::dns::names::{Reach, Readiness, ServiceNames, TaskNames};
use crate::dns::table::NetworkNames;
use crate::wanted::Protocol;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{DNSClass, Name, RData};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use proptest::prelude::*;
use skep_types::{NetworkId, ServiceId, TaskId};

fn net(number: u64) -> NetworkId {
    NetworkId::for_test(number)
}

fn v4(network: u8, last: u8) -> IpAddr {
    IpAddr::from([10, 0, network, last])
}

fn v6(network: u16, last: u16) -> IpAddr {
    IpAddr::from([0xfd00, 0, 0, network, 0, 0, 0, last])
}

fn ports() -> Vec<NamedPort> {
    vec![
        NamedPort { name: Some("http".into()), protocol: Protocol::Tcp, port: 80 },
        NamedPort { name: None, protocol: Protocol::Udp, port: 53 },
    ]
}

fn task(number: u8, service: u64, readiness: Readiness) -> TaskNames {
    TaskNames {
        id: TaskId::for_test(u64::from(number)),
        service: Some(ServiceId::for_test(service)),
        slot: Some(u64::from(number)),
        name: format!("s{service}.{number}.id{number}"),
        hostnames: vec![],
        addresses: vec![v4(1, number), v6(1, u16::from(number))],
        readiness,
    }
}

/// `front`: `web` with addresses, `each` with three tasks, one not ready, `empty` without, and `big` with a hundred. `back`: `db`.
fn names() -> Names {
    let mut front = NetworkNames::new("front", vec!["10.0.1.0/24".parse().unwrap(), "fd00:0:0:1::/64".parse().unwrap()]);
    front.set_revision(77);
    let service = |number, name: &str, reach| ServiceNames {
        id: ServiceId::for_test(number),
        name: name.into(),
        aliases: vec![],
        reach,
        ports: ports(),
    };
    front.set_service(service(1, "Web", Reach::Virtual(vec![v4(1, 250), v6(1, 0x250)])));
    front.set_service(service(2, "each", Reach::EachTask));
    front.set_service(service(3, "empty", Reach::EachTask));
    front.set_service(service(4, "big", Reach::EachTask));
    for (number, readiness) in [(2, Readiness::Ready), (3, Readiness::Ready), (4, Readiness::Starting)] {
        front.set_task(task(number, 2, readiness));
    }
    for number in 100..200 {
        front.set_task(task(number, 4, Readiness::Ready));
    }
    let mut back = NetworkNames::new("back.end", vec!["10.0.2.0/24".parse().unwrap()]);
    back.set_service(service(5, "db", Reach::Virtual(vec![v4(2, 250)])));
    back.set_service(service(6, "web", Reach::Virtual(vec![v4(2, 251)])));
    let mut names = Names::default();
    names.replace(net(1), front);
    names.replace(net(2), back);
    names
}

fn asker() -> Asker {
    Asker { networks: vec![net(1), net(2)], domains: vec!["cluster.example".into()], outside: true, ..Asker::default() }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn raw(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.emit(&mut BinEncoder::new(&mut bytes)).unwrap();
    bytes
}

/// The answer, read again; `None` if it was not for us to give.
fn ask_as(asker: &Asker, message: &Message, over: Transport) -> Option<Message> {
    match answer(&raw(message), over, &names(), asker, 1) {
        Answer::Reply(bytes) => Some(Message::from_vec(&bytes).unwrap()),
        Answer::Forward(_) => None,
        Answer::Ignore => panic!("ignored"),
    }
}

fn ask(name: &str, kind: RecordType) -> Option<Message> {
    ask_as(&asker(), &query(name, kind), Transport::Udp)
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let mut all: Vec<_> = message.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
    all.sort_unstable();
    all
}

fn code(name: &str, kind: RecordType) -> ResponseCode {
    let message = ask(name, kind).unwrap_or_else(|| panic!("{name} was forwarded"));
    assert!(message.answers.is_empty(), "{name}");
    message.response_code
}

#[test]
fn an_address_comes_with_everything_as_it_was_asked() {
    let message = ask("wEb.", RecordType::A).unwrap();
    assert_eq!(addresses(&message), [v4(1, 250)]);
    assert_eq!((message.id, message.response_code, message.message_type), (4711, ResponseCode::NoError, MessageType::Response));
    assert!(message.authoritative && message.recursion_desired && message.recursion_available && !message.truncation);
    assert!(message.queries[0].name().eq_case(&Name::from_ascii("wEb.").unwrap()), "clients check the case");
    assert!(message.answers[0].name.eq_case(&Name::from_ascii("wEb.").unwrap()));
    assert_eq!(message.answers[0].ttl, TTL);
    assert!(message.edns.is_none());
    assert_eq!(addresses(&ask("web", RecordType::AAAA).unwrap()), [v6(1, 0x250)]);
}

#[test]
fn each_name_has_its_answer() {
    for (name, expected) in [
        ("each", vec![v4(1, 2), v4(1, 3)]),
        ("tasks.each", vec![v4(1, 2), v4(1, 3)]),
        ("all.each", vec![v4(1, 2), v4(1, 3), v4(1, 4)]),
        ("each.4", vec![v4(1, 4)]),
        ("each-4.each", vec![v4(1, 4)]),
        ("s2.3.id3", vec![v4(1, 3)]),
        ("s2.3.id3.front", vec![v4(1, 3)]),
        ("web.front", vec![v4(1, 250)]),
        ("web.back.end", vec![v4(2, 251)]),
        ("WEB.Cluster.Example", vec![v4(1, 250)]),
        ("tasks.each.cluster.example.", vec![v4(1, 2), v4(1, 3)]),
        ("db", vec![v4(2, 250)]),
        ("localhost", vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]),
        ("a.localhost", vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]),
    ] {
        assert_eq!(addresses(&ask(name, RecordType::A).unwrap_or_else(|| panic!("{name}"))), expected, "{name}");
    }
}

#[test]
fn no_such_name_and_nothing_of_that_kind_are_told_apart() {
    // The name is there.
    assert_eq!(code("db", RecordType::AAAA), ResponseCode::NoError);
    assert_eq!(code("web", RecordType::MX), ResponseCode::NoError);
    assert_eq!(code("web", RecordType::HTTPS), ResponseCode::NoError);
    assert_eq!(code("web", RecordType::PTR), ResponseCode::NoError);
    assert_eq!(code("web", RecordType::SRV), ResponseCode::NoError);
    assert_eq!(code("empty", RecordType::A), ResponseCode::NoError);
    assert_eq!(code("tasks.empty", RecordType::AAAA), ResponseCode::NoError);
    assert_eq!(code("_http._tcp.web", RecordType::A), ResponseCode::NoError);
    assert_eq!(code("_http._tcp.empty", RecordType::SRV), ResponseCode::NoError);
    assert_eq!(code("1.0.10.in-addr.arpa", RecordType::PTR), ResponseCode::NoError);
    assert_eq!(code("250.1.0.10.in-addr.arpa", RecordType::TXT).low(), 0);
    // It cannot be.
    assert_eq!(code("_nope._tcp.web", RecordType::SRV), ResponseCode::NXDomain);
    assert_eq!(code("_http._udp.web", RecordType::SRV), ResponseCode::NXDomain);
    assert_eq!(code("nobody.cluster.example", RecordType::A), ResponseCode::NXDomain);
    assert_eq!(code("9.1.0.10.in-addr.arpa", RecordType::PTR), ResponseCode::NXDomain);
    assert_eq!(code("x.invalid", RecordType::A), ResponseCode::NXDomain);
}

#[test]
fn what_is_not_ours_is_forwarded_or_from_inside_does_not_exist() {
    let inside = Asker { outside: false, ..asker() };
    for name in [
        "example.org",
        "nobody",
        "tasks.nobody",
        "nobody.front",
        "4.3.2.1.in-addr.arpa",
        "10.in-addr.arpa",
        "cluster.example",
        ".",
        "we\\.b",
        "_http._tcp.nobody",
    ] {
        assert!(ask(name, RecordType::A).is_none(), "{name}");
        let closed = ask_as(&inside, &query(name, RecordType::A), Transport::Udp).unwrap();
        assert_eq!(closed.response_code, ResponseCode::NXDomain, "{name}");
        assert!(!closed.recursion_available);
    }
    let elsewhere = Asker { networks: vec![net(2), net(9)], ..asker() };
    assert!(ask_as(&elsewhere, &query("each", RecordType::A), Transport::Udp).is_none(), "names of other networks are foreign");
    let other_order = Asker { networks: vec![net(2), net(1)], ..asker() };
    assert_eq!(addresses(&ask_as(&other_order, &query("web", RecordType::A), Transport::Udp).unwrap()), [v4(2, 251)]);
}

#[test]
fn addresses_have_names() {
    let pointers = |name| -> Vec<String> {
        let message = ask(name, RecordType::PTR).unwrap();
        message.answers.iter().map(|record| record.data.to_string()).collect()
    };
    assert_eq!(pointers("250.1.0.10.in-addr.arpa"), ["Web.front."]);
    assert_eq!(pointers("250.2.0.10.IN-ADDR.ARPA"), ["db.back.end."]);
    assert_eq!(pointers("4.1.0.10.in-addr.arpa"), ["s2.4.id4.front."]);
    assert_eq!(pointers("3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa"), ["s2.3.id3.front."]);
    assert_eq!(pointers("1.0.0.127.in-addr.arpa"), ["localhost."]);
}

#[test]
fn services_tell_their_ports() {
    let found = |name| {
        let message = ask(name, RecordType::SRV).unwrap();
        let mut answers: Vec<_> = message.answers.iter().map(|record| record.data.to_string()).collect();
        answers.sort_unstable();
        let mut more: Vec<_> = message.additionals.iter().map(|record| format!("{} {}", record.name, record.data)).collect();
        more.sort_unstable();
        (answers, more)
    };
    let web = (vec!["0 0 80 Web.front.".to_owned()], vec!["Web.front. 10.0.1.250".to_owned(), "Web.front. fd00:0:0:1::250".to_owned()]);
    assert_eq!(found("_http._tcp.web"), web);
    assert_eq!(found("_80._tcp.web.front"), web);
    assert_eq!(found("_53._udp.web").0, ["0 0 53 Web.front."]);
    assert_eq!(found("_http._tcp.each").0, ["0 0 80 s2.2.id2.front.", "0 0 80 s2.3.id3.front."]);
    assert_eq!(found("_http._tcp.all.each").0.len(), 3);
}

#[test]
fn the_revision_is_there_for_whoever_asks() {
    let message = ask("web", RecordType::TXT).unwrap();
    assert_eq!(message.answers[0].data.to_string(), "revision=77");
    assert_eq!(code("db", RecordType::TXT), ResponseCode::NoError);
}

#[test]
fn a_long_answer_is_cut_for_udp_and_whole_over_tcp() {
    let plain = ask("big", RecordType::A).unwrap();
    assert!(plain.truncation);
    assert_eq!(plain.answers.len(), (512 - 12 - 9) / 16, "as many as fit, for clients that know no TCP");
    let mut with_edns = query("big", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_dnssec_ok(true);
    with_edns.set_edns(edns.clone());
    let larger = ask_as(&asker(), &with_edns, Transport::Udp).unwrap();
    assert!(larger.truncation && larger.answers.len() == (1232 - 12 - 9 - 11) / 16);
    assert!(larger.edns.as_ref().unwrap().flags().dnssec_ok && larger.max_payload() == OUR_PAYLOAD_FOR_TEST);
    edns.set_max_payload(65_535);
    with_edns.set_edns(edns);
    let all = ask_as(&asker(), &with_edns, Transport::Udp).unwrap();
    assert!(!all.truncation && all.answers.len() == 100);
    let over_tcp = ask_as(&asker(), &query("big", RecordType::AAAA), Transport::Tcp).unwrap();
    assert!(!over_tcp.truncation && over_tcp.answers.len() == 100);
}

const OUR_PAYLOAD_FOR_TEST: u16 = crate::dns::query::OUR_PAYLOAD;

#[test]
fn the_order_differs_from_question_to_question() {
    let (names, asker, bytes) = (names(), asker(), raw(&query("each", RecordType::A)));
    let first = |random| match answer(&bytes, Transport::Udp, &names, &asker, random) {
        Answer::Reply(bytes) => Message::from_vec(&bytes).unwrap().answers[0].data.ip_addr(),
        _ => None,
    };
    let seen: std::collections::BTreeSet<_> = (0..50).filter_map(first).collect();
    assert_eq!(seen.len(), 2);
}

fn refused(message: &[u8]) -> (ResponseCode, u16) {
    match answer(message, Transport::Udp, &names(), &asker(), 1) {
        Answer::Reply(bytes) => {
            let message = Message::from_vec(&bytes).unwrap();
            assert!(message.answers.is_empty() && message.message_type == MessageType::Response);
            (message.response_code, message.id)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_question_is_refused_by_its_kind() {
    for (kind, name) in [(RecordType::ANY, "web"), (RecordType::AXFR, "example.org"), (RecordType::IXFR, "web")] {
        assert_eq!(refused(&raw(&query(name, kind))), (ResponseCode::Refused, 4711));
    }
    let mut chaos = query("version.bind", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(refused(&raw(&chaos)).0, ResponseCode::Refused);
    let mut two = query("web", RecordType::A);
    two.add_query(Query::query(Name::from_ascii("each").unwrap(), RecordType::A));
    assert_eq!(refused(&raw(&two)), (ResponseCode::FormErr, 4711));
    let mut none = raw(&query("web", RecordType::A));
    none[5] = 0;
    assert_eq!(refused(&none).0, ResponseCode::FormErr);
    let mut update = query("web", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(refused(&raw(&update)).0, ResponseCode::NotImp);
    let whole = raw(&query("web", RecordType::A));
    for end in 12..whole.len() {
        assert_eq!(refused(&whole[..end]), (ResponseCode::FormErr, 4711), "cut at {end}");
    }
    let mut future = query("web", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    future.set_edns(edns);
    assert_eq!(u16::from(refused(&raw(&future)).0), u16::from(ResponseCode::BADVERS), "the same number is BADSIG, too");
    // A name that points into the header, which would read differently in the answer.
    let pointing = [18, 103, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 10, 0, 1, 0, 1];
    assert_eq!(refused(&pointing).0, ResponseCode::FormErr);
    // And one that points at itself.
    let circle = [18, 103, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1];
    assert_eq!(refused(&circle).0, ResponseCode::FormErr);
}

#[test]
fn what_is_an_answer_or_nothing_is_not_answered() {
    let mut reply = query("web", RecordType::A);
    reply.metadata.message_type = MessageType::Response;
    for message in [raw(&reply), vec![], vec![0; 11]] {
        assert!(matches!(answer(&message, Transport::Udp, &names(), &asker(), 1), Answer::Ignore));
    }
}

fn some_name() -> impl Strategy<Value = String> {
    let label = prop_oneof![
        Just("web".to_owned()),
        Just("each".to_owned()),
        Just("big".to_owned()),
        Just("tasks".to_owned()),
        Just("all".to_owned()),
        Just("front".to_owned()),
        Just("_http".to_owned()),
        Just("_tcp".to_owned()),
        Just("cluster".to_owned()),
        Just("example".to_owned()),
        Just("arpa".to_owned()),
        Just("in-addr".to_owned()),
        Just("10".to_owned()),
        Just("0".to_owned()),
        "[a-zA-Z0-9_-]{1,20}",
    ];
    prop::collection::vec(label, 0..6).prop_map(|labels| labels.join("."))
}

/// Whatever comes: no panic, nothing too long, and every answer can be read and belongs to its question.
fn check(message: &[u8], over: Transport, asker: &Asker, names: &Names, random: u64) {
    let Answer::Reply(bytes) = answer(message, over, names, asker, random) else { return };
    let reply = Message::from_vec(&bytes).expect("an answer can be read");
    assert_eq!(bytes[..2], message[..2], "the id");
    assert_eq!(reply.message_type, MessageType::Response);
    if over == Transport::Udp {
        assert!(bytes.len() <= 4096);
    }
    if let Some(question) = reply.queries.first() {
        assert_eq!(bytes[12..12 + question.name().len() + 4], message[12..12 + question.name().len() + 4]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..200), tcp: bool, outside: bool, random: u64) {
        let over = if tcp { Transport::Tcp } else { Transport::Udp };
        check(&bytes, over, &Asker { outside, ..asker() }, &shared_names(), random);
    }

    #[test]
    fn no_damaged_question_breaks_it(
        name in some_name(), kind in 0u16..260, edns: bool, payload: u16, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in 0usize..30, outside: bool, random: u64,
    ) {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        let labels = name.split('.').map(str::as_bytes).filter(|label| !label.is_empty());
        message.add_query(Query::query(Name::from_labels(labels).unwrap(), RecordType::from(kind)));
        if edns {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        let mut bytes = raw(&message);
        check(&bytes, Transport::Udp, &Asker { outside, ..asker() }, &shared_names(), random);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(20)));
        check(&bytes, Transport::Tcp, &Asker { outside, ..asker() }, &shared_names(), random);
    }
}

/// Made once: thousands of cases look into it.
fn shared_names() -> std::sync::Arc<Names> {
    static NAMES: std::sync::LazyLock<std::sync::Arc<Names>> = std::sync::LazyLock::new(|| names().into());
    NAMES.clone()
}

#[test]
fn a_name_too_long_for_dns_is_left_out() {
    let mut network = NetworkNames::new("n", vec!["10.0.1.0/24".parse().unwrap()]);
    network.set_task(TaskNames { name: "x".repeat(64), ..task(9, 1, Readiness::Ready) });
    let mut names = Names::default();
    names.replace(net(1), network);
    let bytes = raw(&query("9.1.0.10.in-addr.arpa", RecordType::PTR));
    let Answer::Reply(bytes) = answer(&bytes, Transport::Udp, &names, &asker(), 1) else { panic!("forwarded") };
    let reply = Message::from_vec(&bytes).unwrap();
    assert!(reply.response_code == ResponseCode::NoError && reply.answers.is_empty());
    assert!(!reply.answers.iter().any(|record| matches!(record.data, RData::PTR(_))));
}
