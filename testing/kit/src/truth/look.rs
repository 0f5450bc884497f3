//! What one node does in one network: tables, routes and neighbours of the network's sandbox, and what a task's DNS server answers.

use super::store::Expected;
use crate::inside::inside;
use crate::process::run;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::time::Duration;

/// What fits into an answer of 512 bytes with room to spare.
pub(super) const MOST_ANSWERS: usize = 16;
const DNS: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);
const PATIENCE: Duration = Duration::from_secs(20);

/// What is otherwise than expected, in words.
pub(super) fn differences(namespaces: &Path, network: &str, task: &str, expected: &Expected) -> Result<Vec<String>> {
    let sandbox = namespaces.join(format!("sbx-{network}"));
    let mut found = Vec::new();
    for family in [&V4, &V6] {
        found.extend(differences_of(family, &sandbox, &expected.of(family.is_v4))?);
    }
    let namespace = namespaces.join(task);
    for (name, wanted) in &expected.names {
        let answers = inside(&namespace, || Ok([look_up(name, &V4)?, look_up(name, &V6)?].concat()))?;
        let answers: BTreeSet<IpAddr> = answers.into_iter().collect();
        if answers != *wanted {
            found.push(format!("{name} is {answers:?} for task {task} instead of {wanted:?}"));
        }
    }
    Ok(found)
}

/// One of IPv4 and IPv6.
struct Family {
    is_v4: bool,
    table: &'static str,
    option: &'static str,
    /// Type of a record, and the length of its address (RFC 1035 §3.4.1, RFC 3596 §2).
    record: u8,
    length: usize,
}

const V4: Family = Family { is_v4: true, table: "ip", option: "-4", record: 1, length: 4 };
const V6: Family = Family { is_v4: false, table: "ip6", option: "-6", record: 28, length: 16 };

fn differences_of(family: &Family, sandbox: &Path, expected: &Expected) -> Result<Vec<String>> {
    let mut found = Vec::new();
    if !family.is_v4 && !expected.names_addresses() {
        return Ok(found); // the network, or the host, has none of it
    }
    let backends = backends(sandbox, family)?;
    found.extend(expected.backends.difference(&backends).map(|(vip, backend)| format!("{vip} does not lead to {backend}")));
    found.extend(backends.difference(&expected.backends).map(|(vip, backend)| format!("{vip} leads to {backend}")));
    let routes = routes(sandbox, family)?;
    for (address, is_here) in &expected.reached {
        match routes.get(address) {
            None => found.push(format!("there is no route to {address}")),
            Some(link) if link.starts_with('t') != *is_here => found.push(format!("the route to {address} is by {link}")),
            Some(_) => {}
        }
    }
    let known = |address: &&IpAddr| expected.reached.contains_key(*address) || expected.may_be_reached.contains(*address);
    found
        .extend(routes.keys().filter(|address| !known(address)).map(|address| format!("there is a route to {address}, which no task has")));
    let neighbours = neighbours(sandbox, family)?;
    let here = expected.reached.iter().filter(|(address, is_here)| **is_here && !neighbours.contains(*address));
    found.extend(here.map(|(address, _)| format!("{address} has no hardware address")));
    Ok(found)
}

fn json(namespace: &Path, program: &[&str]) -> Result<Value> {
    let namespace = format!("--net={}", namespace.display());
    let text = run("nsenter", &[&[namespace.as_str()], program].concat())?.success()?;
    serde_json::from_str(&text).with_context(|| format!("{program:?}: {text}"))
}

/// What virtual addresses lead to: elements `address . slot : backend`.
fn backends(sandbox: &Path, family: &Family) -> Result<BTreeSet<(IpAddr, IpAddr)>> {
    let listed = json(sandbox, &["nft", "-j", "list", "map", family.table, "skep", "be"])?;
    let maps = listed["nftables"].as_array().into_iter().flatten().filter_map(|object| object["map"]["elem"].as_array());
    let address = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    let element = |element: &Value| Some((address(&element[0]["concat"][0])?, address(&element[1])?));
    maps.flatten().map(|one| element(one).with_context(|| format!("an element of another form: {one}"))).collect()
}

/// Single addresses with the link by which they are reached.
fn routes(sandbox: &Path, family: &Family) -> Result<BTreeMap<IpAddr, String>> {
    let listed = json(sandbox, &["ip", family.option, "-j", "route", "show"])?;
    let route = |route: &Value| Some((route["dst"].as_str()?.parse().ok()?, route["dev"].as_str().unwrap_or_default().to_owned()));
    Ok(listed.as_array().into_iter().flatten().filter_map(route).collect())
}

fn neighbours(sandbox: &Path, family: &Family) -> Result<BTreeSet<IpAddr>> {
    let listed = json(sandbox, &["ip", family.option, "-j", "neigh", "show", "nud", "permanent"])?;
    Ok(listed.as_array().into_iter().flatten().filter_map(|one| one["dst"].as_str()?.parse().ok()).collect())
}

/// The addresses of a name, none if there is no such name (RFC 1035 §4.1).
fn look_up(name: &str, family: &Family) -> Result<Vec<IpAddr>> {
    let mut question = vec![0x5e, 0xed, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, family.record, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(&question, DNS)?;
    let mut answer = [0; 1500];
    let length = socket.recv(&mut answer).with_context(|| format!("{name}: no answer"))?;
    let answer = &answer[..length];
    ensure!(length >= question.len() && answer[..2] == question[..2] && answer[2] & 2 == 0, "{name}: {answer:?}");
    ensure!(matches!(answer[3] & 15, 0 | 3), "{name}: code {}", answer[3] & 15);
    // Each record: a pointer to the question's name, type, class, time, length, the address.
    let records = answer[question.len()..].chunks_exact(12 + family.length).take(usize::from(answer[7]));
    let address = |record: &[u8]| match family.is_v4 {
        true => Ok(IpAddr::V4(<[u8; 4]>::try_from(&record[12..])?.into())),
        false => Ok(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&record[12..])?))),
    };
    records.filter(|record| record[2..4] == [0, family.record]).map(address).collect()
}
