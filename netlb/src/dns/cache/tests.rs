use super::*;
use crate::dns::foreign::Foreign;
use crate::dns::query::{Question, Transport};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::net::SocketAddr;

fn message(number: u32, kind: MessageType) -> Message {
    let mut message = Message::new(7, kind, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(format!("n{number}.example.")).unwrap(), RecordType::A));
    message
}

fn foreign(number: u32) -> Foreign {
    let query = message(number, MessageType::Query).to_vec().unwrap();
    Foreign::new(&Question::read(&query, Transport::Udp).unwrap())
}

fn asked(number: u32) -> Asked {
    let resolvers = Arc::new([Resolver::of_host(SocketAddr::from(([192, 0, 2, 1], 53)))]);
    Asked { key: foreign(number).key(), resolvers, place: None }
}

fn received(number: u32, ttl: u32, records: u8) -> Arc<Received> {
    let mut message = message(number, MessageType::Response);
    for last in 0..records {
        message.add_answer(Record::from_rdata(message.queries[0].name().clone(), ttl, RData::A(A::new(192, 0, 2, last))));
    }
    Arc::new(foreign(number).check(7, &message.to_vec().unwrap()).unwrap())
}

#[test]
fn an_answer_is_kept_as_long_as_it_says_and_no_longer_than_an_hour() {
    let (mut cache, start) = (Cache::new(10), Instant::now());
    cache.insert(asked(1), received(1, 60, 1), start);
    cache.insert(asked(2), received(2, 1_000_000, 1), start);
    cache.insert(asked(3), received(3, 0, 1), start);
    let after = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(cache.get(&asked(1), after(59)).unwrap().1, Duration::from_secs(59));
    assert!(cache.get(&asked(1), after(60)).is_none());
    assert!(cache.get(&asked(2), after(3_599)).is_some());
    assert!(cache.get(&asked(2), after(3_600)).is_none());
    assert!(cache.get(&asked(3), start).is_none());
}

#[test]
fn there_are_never_too_many_and_the_first_to_end_makes_room() {
    let (mut cache, start) = (Cache::new(100), Instant::now());
    for number in 0..1_000 {
        cache.insert(asked(number), received(number, 1_000 - number % 500, 1), start);
        assert!(cache.len() <= 100);
    }
    cache.insert(asked(5), received(5, 30, 1), start);
    cache.insert(asked(5), received(5, 3_000, 1), start);
    assert_eq!(cache.len(), 100);
    assert!(cache.get(&asked(5), start + Duration::from_secs(2_000)).is_some());
}

#[test]
fn long_answers_and_other_resolvers_answers_are_not_given() {
    let (mut cache, start) = (Cache::new(10), Instant::now());
    cache.insert(asked(1), received(1, 60, 200), start);
    assert!(cache.get(&asked(1), start).is_none());
    cache.insert(asked(1), received(1, 60, 1), start);
    let other = Asked { resolvers: Arc::new([]), ..asked(1) };
    let elsewhere = Asked { place: Some(3), ..asked(1) };
    assert!(cache.get(&other, start).is_none() && cache.get(&elsewhere, start).is_none());
    assert!(cache.get(&asked(1), start).is_some());
}
