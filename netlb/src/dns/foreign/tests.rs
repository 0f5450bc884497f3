use super::*;
use crate::dns::query::Transport;
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::rdata::{A, SOA, TXT};
use hickory_proto::rr::{RData, Record};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use proptest::prelude::*;

fn raw(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.emit(&mut BinEncoder::new(&mut bytes)).unwrap();
    bytes
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn query(text: &str, edns: Option<u16>) -> Message {
    let mut message = Message::new(99, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), RecordType::A));
    if let Some(payload) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

fn foreign_over(text: &str, edns: Option<u16>, over: Transport) -> Foreign {
    Foreign::new(&Question::read(&raw(&query(text, edns)), over).unwrap())
}

fn foreign(text: &str) -> Foreign {
    foreign_over(text, None, Transport::Udp)
}

/// What a resolver says: `count` addresses and a longer text, or an absence with its SOA.
fn reply(text: &str, id: u16, count: u8) -> Message {
    let mut message = Message::new(id, MessageType::Response, OpCode::Query);
    message.metadata.recursion_available = true;
    message.add_query(Query::query(name(text), RecordType::A));
    for last in 0..count {
        let ttl = 300 - u32::from(last);
        message.add_answer(Record::from_rdata(name(text), ttl, RData::A(A::new(192, 0, 2, last))));
    }
    if count == 0 {
        message.metadata.response_code = ResponseCode::NXDomain;
        let soa = SOA::new(name("ns.example."), name("root.example."), 1, 2, 3, 4, 20);
        message.add_authority(Record::from_rdata(name("example."), 900, RData::SOA(soa)));
    }
    message.add_additional(Record::from_rdata(name("more.example."), 5, RData::TXT(TXT::new(vec!["hello".into()]))));
    message.set_edns(Edns::new());
    message
}

#[test]
fn a_question_is_sent_on_as_it_is_and_nothing_else() {
    let sent = Message::from_vec(&foreign("Www.Example.org").query(7)).unwrap();
    assert_eq!((sent.id, sent.recursion_desired, sent.edns.is_none(), sent.queries.len()), (7, true, true, 1));
    assert!(sent.queries[0].name().eq_case(&name("Www.Example.org.")));
    let sent = Message::from_vec(&foreign_over("a.example", Some(1400), Transport::Udp).query(7)).unwrap();
    assert_eq!(sent.max_payload(), 4096);
}

#[test]
fn only_an_answer_to_this_question_is_taken() {
    let asked = foreign("Www.Example.org");
    assert!(asked.check(7, &raw(&reply("www.example.ORG", 7, 2))).is_ok(), "some resolvers change the case");
    assert_eq!(asked.check(8, &raw(&reply("www.example.org", 7, 2))), Err(Unfit::NotAsked));
    assert_eq!(asked.check(7, &raw(&reply("www.example.net", 7, 2))), Err(Unfit::NotAsked));
    let mut question = reply("www.example.org", 7, 0);
    question.metadata.message_type = MessageType::Query;
    assert_eq!(asked.check(7, &raw(&question)), Err(Unfit::NotAsked));
    let mut other_kind = reply("www.example.org", 7, 1);
    other_kind.queries[0].set_query_type(RecordType::AAAA);
    assert_eq!(asked.check(7, &raw(&other_kind)), Err(Unfit::NotAsked));
    let whole = raw(&reply("www.example.org", 7, 2));
    for end in 0..whole.len() {
        assert!(asked.check(7, &whole[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn an_answer_is_handed_over_with_the_clients_id_and_case_and_less_time() {
    let asked = foreign("Www.Example.org");
    let received = asked.check(7, &raw(&reply("www.example.org", 7, 2))).unwrap();
    let handed = Message::from_vec(&asked.reply(&received, Duration::from_secs(100))).unwrap();
    assert_eq!((handed.id, handed.message_type, handed.recursion_available), (99, MessageType::Response, true));
    assert!(handed.queries[0].name().eq_case(&name("Www.Example.org.")));
    assert_eq!(handed.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [200, 199]);
    assert_eq!(handed.additionals[0].ttl, 0, "never below nothing");
    assert!(handed.edns.is_none(), "the client knows no EDNS");
    let modern = foreign_over("www.example.org", Some(1232), Transport::Udp);
    assert!(Message::from_vec(&modern.reply(&received, Duration::ZERO)).unwrap().edns.is_some());
    assert_eq!(asked.key(), modern.key());
}

#[test]
fn what_does_not_fit_is_cut_between_records() {
    let received = foreign("www.example.org").check(7, &raw(&reply("www.example.org", 7, 100))).unwrap();
    for (edns, over) in [(None, Transport::Udp), (Some(1232), Transport::Udp), (None, Transport::Tcp)] {
        let asked = foreign_over("www.example.org", edns, over);
        let bytes = asked.reply(&received, Duration::ZERO);
        let handed = Message::from_vec(&bytes).unwrap();
        assert!(bytes.len() <= asked.head.limit);
        assert_eq!(handed.truncation, over == Transport::Udp);
        assert_eq!(handed.answers.len() == 100, over == Transport::Tcp);
        assert!(handed.answers.len() > 20);
    }
}

#[test]
fn times_to_live_say_how_long_it_is_kept() {
    let keep = |message: &Message| foreign("www.example.org").check(7, &raw(message)).unwrap().keep();
    assert_eq!(keep(&reply("www.example.org", 7, 3)), Some(Lifetime::Answer(298)));
    assert_eq!(keep(&reply("www.example.org", 7, 0)), Some(Lifetime::Absence(20)));
    let mut without_soa = reply("www.example.org", 7, 0);
    without_soa.authorities.clear();
    assert_eq!(keep(&without_soa), None);
    let mut truncated = reply("www.example.org", 7, 3);
    truncated.metadata.truncation = true;
    assert_eq!(keep(&truncated), None);
    let mut failed = reply("www.example.org", 7, 3);
    failed.metadata.response_code = ResponseCode::ServFail;
    assert_eq!(keep(&failed), None);
    let mut endless = reply("www.example.org", 7, 1);
    endless.answers[0].ttl = u32::MAX;
    assert_eq!(keep(&endless), Some(Lifetime::Answer(0)));
}

#[test]
fn a_failure_is_told() {
    let failure = Message::from_vec(&foreign("www.example.org").failure()).unwrap();
    assert_eq!((failure.id, failure.response_code, failure.queries.len()), (99, ResponseCode::ServFail, 1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_answer_from_outside_breaks_it(
        count in 0u8..40, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in 0usize..60, age: u32, edns: Option<u16>,
    ) {
        let mut bytes = raw(&reply("www.example.org", 7, count));
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(40)));
        let asked = foreign_over("www.example.org", edns, Transport::Udp);
        if let Ok(received) = asked.check(7, &bytes) {
            let handed = asked.reply(&received, Duration::from_secs(u64::from(age)));
            prop_assert!(handed.len() <= asked.head.limit);
            let header = Message::from_vec(&handed).map(|message| message.id);
            // Data that resolvers garble is handed over as it came; the frame is sound.
            prop_assert!(header.is_err() || header.is_ok_and(|id| id == 99));
            let _ = received.keep();
        }
    }

    #[test]
    fn no_bytes_are_taken_for_an_answer_or_break_it(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(foreign("www.example.org").check(7, &bytes).is_err());
    }
}
