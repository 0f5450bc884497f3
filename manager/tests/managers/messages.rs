//! Messages of raft, changed in their fields, by a manager that may call and means harm.
//!
//! Raft holds against managers that are away, late or forgetful, not against one that lies: whoever has a manager's certificate can
//! say that it was elected, and is believed. So here one speaks that was a leader long ago. What is asked for is that none of its
//! messages makes another manager fall or hang, that it cannot speak for others, and that the group goes on as it was.

use crate::attacks::Tap;
use crate::support::{Dice, Lab, PATIENCE, create, eventually};
use skep_proto::skep::raft_client::RaftClient;
use skep_proto::skep::{RaftCallRequest, raft_call_request::Kind};
use skep_store::{Member, Store, StoreConfig};
use std::sync::Arc;
use tonic::Code;

/// A value of MessagePack, as the payloads are written.
#[derive(Debug, Clone)]
enum Value {
    Nil,
    Bool(bool),
    Number(u64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Map(Vec<(Value, Value)>),
}

fn big_endian(bytes: &mut &[u8], count: usize) -> u64 {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn take(bytes: &mut &[u8], count: u64) -> Vec<u8> {
    let (taken, rest) = bytes.split_at(usize::try_from(count).unwrap());
    *bytes = rest;
    taken.to_vec()
}

/// What a store wrote; other bytes end the test.
fn parse(bytes: &mut &[u8]) -> Value {
    let first = big_endian(bytes, 1) as u8;
    let text = |bytes: &mut &[u8], count| Value::Text(String::from_utf8(take(bytes, count)).unwrap());
    let list = |bytes: &mut &[u8], count: u64| Value::List((0..count).map(|_| parse(bytes)).collect());
    let map = |bytes: &mut &[u8], count: u64| Value::Map((0..count).map(|_| (parse(bytes), parse(bytes))).collect());
    match first {
        0..=0x7f => Value::Number(u64::from(first)),
        0x80..=0x8f => map(bytes, u64::from(first & 0xf)),
        0x90..=0x9f => list(bytes, u64::from(first & 0xf)),
        0xa0..=0xbf => text(bytes, u64::from(first & 0x1f)),
        0xc0 => Value::Nil,
        0xc2 | 0xc3 => Value::Bool(first == 0xc3),
        0xc4..=0xc6 => {
            let count = big_endian(bytes, 1 << (first - 0xc4));
            Value::Bytes(take(bytes, count))
        }
        0xcc..=0xcf => Value::Number(big_endian(bytes, 1 << (first - 0xcc))),
        0xd9..=0xdb => {
            let count = big_endian(bytes, 1 << (first - 0xd9));
            text(bytes, count)
        }
        0xdc | 0xdd => {
            let count = big_endian(bytes, 2 << (first - 0xdc));
            list(bytes, count)
        }
        0xde | 0xdf => {
            let count = big_endian(bytes, 2 << (first - 0xde));
            map(bytes, count)
        }
        other => panic!("no payload begins a value with {other:#x}"),
    }
}

fn write(value: &Value, out: &mut Vec<u8>) {
    let counted = |out: &mut Vec<u8>, kind: u8, count: usize| {
        out.push(kind);
        out.extend(u32::try_from(count).unwrap().to_be_bytes());
    };
    match value {
        Value::Nil => out.push(0xc0),
        Value::Bool(yes) => out.push(0xc2 + u8::from(*yes)),
        Value::Number(number) => {
            out.push(0xcf);
            out.extend(number.to_be_bytes());
        }
        Value::Text(text) => {
            counted(out, 0xdb, text.len());
            out.extend(text.as_bytes());
        }
        Value::Bytes(bytes) => {
            counted(out, 0xc6, bytes.len());
            out.extend(bytes);
        }
        Value::List(list) => {
            counted(out, 0xdd, list.len());
            list.iter().for_each(|value| write(value, out));
        }
        Value::Map(map) => {
            counted(out, 0xdf, map.len());
            for (key, value) in map {
                write(key, out);
                write(value, out);
            }
        }
    }
}

/// As if it had been said in the first of all terms.
fn long_ago(mut value: Value) -> Value {
    match &mut value {
        Value::Map(map) => {
            for (name, value) in map {
                let is_term = matches!(name, Value::Text(name) if name == "term");
                *value = if is_term { Value::Number(0) } else { long_ago(value.clone()) };
            }
        }
        Value::List(list) => list.iter_mut().for_each(|value| *value = long_ago(value.clone())),
        _ => {}
    }
    value
}

/// Changes one thing somewhere below, but no term.
fn mutate(value: &mut Value, dice: &mut Dice) {
    match value {
        Value::Map(map) if !map.is_empty() => {
            let at = dice.index(map.len());
            let is_term = matches!(&map[at].0, Value::Text(name) if name == "term");
            match dice.below(12) {
                0 => drop(map.remove(at)),
                1 => map.push(map[at].clone()),
                2 => map[at].0 = Value::Text("unknown".into()),
                _ if is_term => {}
                _ => mutate(&mut map[at].1, dice),
            }
        }
        Value::List(list) if !list.is_empty() => {
            let at = dice.index(list.len());
            match dice.below(8) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                2 => list.extend(vec![list[at].clone(); 200]),
                _ => mutate(&mut list[at], dice),
            }
        }
        Value::Bytes(bytes) if !bytes.is_empty() && dice.below(3) > 0 => {
            let at = dice.index(bytes.len());
            bytes[at] ^= 1 << dice.below(8);
        }
        other => {
            *other = match dice.below(6) {
                0 => Value::Nil,
                1 => Value::Bool(dice.below(2) == 0),
                2 => Value::Text("../../x\0".repeat(dice.index(50))),
                3 => Value::Bytes(vec![0xff; dice.index(5_000)]),
                4 => Value::List(vec![Value::Nil; dice.index(20)]),
                _ => Value::Number(dice.extreme()),
            }
        }
    }
}

fn map(entries: &[(&str, Value)]) -> Value {
    Value::Map(entries.iter().map(|(name, value)| (Value::Text((*name).into()), value.clone())).collect())
}

fn field(value: &Value, wanted: &str) -> Value {
    let Value::Map(map) = value else { panic!("no map: {value:?}") };
    map.iter().find(|(name, _)| matches!(name, Value::Text(name) if name == wanted)).expect(wanted).1.clone()
}

/// What a leader with this number says, made by a store of one's own.
async fn appends(raft_id: u64) -> Vec<Value> {
    let (dir, tap) = (tempfile::tempdir().unwrap(), Arc::new(Tap::default()));
    let member = Member { node_id: "x".into(), addr: "192.0.2.1:1".into() };
    let store = Store::bootstrap(StoreConfig::new(dir.path().join("raft")), raft_id, member.clone(), tap.clone()).await.unwrap();
    let mut appends = tap.appends(&store, member).await;
    store.shutdown().await;
    appends.dedup();
    appends.truncate(8);
    appends.iter().map(|payload| long_ago(parse(&mut payload.as_slice()))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_changed_message_of_raft_breaks_a_manager_or_lets_one_speak_for_others() {
    let mut dice = Dice::new();
    eprintln!("SKEP_SEED={} repeats this run", dice.seed);
    let lab = Lab::of(3).await;
    create(&mut lab.control(0).await, "before").await.unwrap();
    let leader = lab.leader().await;
    let followers = lab.followers().await;
    let (victim, forger) = (&lab.hosts[followers[0]], &lab.hosts[followers[1]]);
    let mut calls = Vec::new();
    for append in appends(forger.raft_id).await {
        let (vote, last) = (field(&append, "vote"), field(&append, "prev_log_id"));
        calls.push((Kind::Vote, map(&[("vote", vote.clone()), ("last_log_id", last.clone())])));
        calls.push((Kind::PreVote, map(&[("candidate", Value::Number(forger.raft_id)), ("last", last.clone())])));
        let meta = map(&[("last_log_id", last), ("last_membership", Value::Nil), ("snapshot_id", Value::Text("1-1-1".into()))]);
        let data = Value::Bytes(vec![7; 100]);
        let piece = [("vote", vote), ("meta", meta), ("offset", Value::Number(0)), ("data", data), ("done", Value::Bool(true))];
        calls.push((Kind::InstallSnapshot, map(&piece)));
        calls.push((Kind::AppendEntries, append));
    }
    calls.push((Kind::TimeoutNow, map(&[("leader", Value::Number(forger.raft_id)), ("term", Value::Number(1))])));
    let mut client = RaftClient::new(victim.channel(&forger.security).await);
    for _ in 0..dice.rounds(400) {
        let (kind, mut message) = calls[dice.index(calls.len())].clone();
        for _ in 0..dice.below(4) {
            mutate(&mut message, &mut dice);
        }
        let mut payload = Vec::new();
        write(&message, &mut payload);
        let request = RaftCallRequest { kind: kind as i32, from: forger.raft_id, target: victim.raft_id, payload };
        let answer = tokio::time::timeout(PATIENCE, client.call(request)).await;
        let answer = answer.unwrap_or_else(|_| panic!("{kind:?} {message:?} is not answered"));
        let code = answer.err().map_or(Code::Ok, |status| status.code());
        // A panic would end the call with another code.
        let known = [Code::Ok, Code::InvalidArgument, Code::PermissionDenied, Code::Unavailable];
        assert!(known.contains(&code), "{kind:?} {message:?}: {code:?}");
    }
    assert!(victim.status().broken.is_none(), "{:?}", victim.status().broken);
    let leading = &lab.hosts[leader];
    eventually("both have the same", async || leading.store().state_hash() == victim.store().state_hash(), |same| *same).await;
    // The group goes on, with everybody.
    let id = create(&mut lab.control(followers[0]).await, "after").await.unwrap();
    for host in &lab.hosts {
        let mut control = lab.control(0).await;
        let request = skep_proto::v1::GetServiceRequest { service_id: id.clone(), ..Default::default() };
        control.get_service(request).await.unwrap();
        assert_eq!(host.status().members.len(), 3);
    }
    lab.stop_all().await;
}
