//! From a question's bytes to the answer's. Pure: no clock, no socket, and the random number is given.

use super::foreign::Foreign;
use super::names::{Asker, NamedPort, Names};
use super::query::{Question, Transport, Unanswerable};
use super::response::{Origin, Response};
use super::reverse::{self, Reverse};
use super::shuffle::Shuffle;
use super::table::Target;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How long a client may keep one of our answers, in seconds. A task that is to stop leaves the names first; who kept its
/// address longer would run into it. Asking again costs a packet over loopback, so there is nothing to save. Not 0, which some
/// clients take for "for ever" and some for an error.
const TTL: u32 = 1;

/// What to do about a message.
#[derive(Debug)]
pub enum Answer {
    /// Send this back.
    Reply(Vec<u8>),
    /// Ask others for it: nobody here has the name.
    Forward(Foreign),
    /// Send nothing back: it was no question.
    Ignore,
}

/// What a name leads to, as far as we know.
enum Found<'a> {
    Targets(Vec<Target<'a>>),
    /// SRV: those targets, with this port of theirs.
    Ports(Vec<(Target<'a>, u16)>),
    /// The host's own addresses, as RFC 6761 wants it.
    Loopback,
    /// The name is there, what was asked for is not.
    Nothing,
    /// The name cannot be there.
    Never,
    Unknown,
}

/// Answers a message from the names that the asker may see. `random` orders the addresses: each question another one.
#[must_use]
pub fn answer(message: &[u8], over: Transport, names: &Names, asker: &Asker, random: u64) -> Answer {
    let question = match Question::read(message, over) {
        Ok(question) => question,
        Err(Unanswerable::Ignore) => return Answer::Ignore,
        Err(Unanswerable::Refuse(bytes)) => return Answer::Reply(bytes),
    };
    let text = question.text();
    let found = text.as_deref().map_or(Found::Unknown, |name| look_up(name, &question, names, asker));
    let response = |code| Response::new(&question.head, question.bytes, code, Origin::Ours { forwards: asker.outside });
    let mut reply = match found {
        Found::Unknown if asker.outside => return Answer::Forward(Foreign::new(&question)),
        // As seen from an internal network nothing else exists. REFUSED would be truer, but resolvers take it for a failure
        // that passes: glibc then does not go on with the next search domain.
        Found::Unknown | Found::Never => response(ResponseCode::NXDomain),
        _ => response(ResponseCode::NoError),
    };
    let mut random = Shuffle::new(random);
    match (found, question.kind) {
        (Found::Targets(targets), kind @ (RecordType::A | RecordType::AAAA)) => put_addresses(&mut reply, kind, &targets, &mut random),
        (Found::Targets(targets), RecordType::PTR) if reverse::is_reverse(text.as_deref()) => put_names(&mut reply, &targets),
        (Found::Targets(_), RecordType::TXT) => put_revision(&mut reply, text.as_deref(), names, asker),
        (Found::Ports(targets), RecordType::SRV) => put_services(&mut reply, targets, &mut random),
        (Found::Loopback, kind) => put_loopback(&mut reply, kind),
        _ => {}
    }
    Answer::Reply(reply.finish())
}

fn look_up<'a>(name: &str, question: &Question<'_>, names: &'a Names, asker: &'a Asker) -> Found<'a> {
    if name == "localhost" || name.ends_with(".localhost") {
        return Found::Loopback;
    }
    if name == "invalid" || name.ends_with(".invalid") {
        return Found::Never;
    }
    if let Some(reverse) = reverse::read(name, question.name()) {
        return look_back(reverse, names, asker);
    }
    let found = look_up_plain(name, names, asker);
    let inside = asker.domains.iter().filter_map(|domain| without_domain(name, domain));
    match found {
        // A domain of ours is asked of nobody else, whether the name is there or not.
        Found::Unknown => inside.map(|name| look_up_plain(name, names, asker)).fold(Found::Unknown, |so_far, next| match (so_far, next) {
            (Found::Unknown | Found::Never, Found::Unknown) => Found::Never,
            (Found::Unknown | Found::Never, next) => next,
            (so_far, _) => so_far,
        }),
        found => found,
    }
}

/// The name as it is, in each network; then in the network it names, as in `web.backend`.
fn look_up_plain<'a>(name: &str, names: &'a Names, asker: &'a Asker) -> Found<'a> {
    let stack = asker.stack.as_deref();
    let places = || {
        let named = names.of(asker).filter_map(|network| without_domain(name, network.name()).map(|name| (network, name)));
        names.of(asker).map(|network| (network, name)).chain(named)
    };
    if let Some(targets) = places().find_map(|(network, name)| network.find(name, stack)) {
        return Found::Targets(targets);
    }
    for (network, name) in places() {
        let Some((port, protocol, service)) = srv_name(name) else { continue };
        let Some(targets) = network.find(service, stack) else { continue };
        let with_port = |target: Target<'a>| target.ports.iter().find(|is| is_port(is, port, protocol)).map(|found| (target, found.port));
        let found: Vec<_> = targets.iter().copied().filter_map(with_port).collect();
        // Without a task nobody can tell which ports there are.
        return if found.is_empty() && !targets.is_empty() { Found::Never } else { Found::Ports(found) };
    }
    Found::Unknown
}

fn look_back<'a>(reverse: Reverse, names: &'a Names, asker: &'a Asker) -> Found<'a> {
    let ours = |is: &dyn Fn(&ipnet::IpNet) -> bool| names.of(asker).flat_map(|network| network.subnets()).any(is);
    match reverse {
        Reverse::Address(address) if address.is_loopback() => {
            Found::Targets(vec![Target { name: "localhost", network: "", addresses: &[], ports: &[] }])
        }
        Reverse::Address(address) => {
            let found = names.of(asker).find_map(|network| network.find_address(address));
            let nobody = || if ours(&|subnet| subnet.contains(&address)) { Found::Never } else { Found::Unknown };
            found.map_or_else(nobody, Found::Targets)
        }
        // Above addresses there are names, but nothing at them.
        Reverse::Part(part) if ours(&|subnet| subnet.contains(&part)) => Found::Nothing,
        Reverse::Part(_) => Found::Unknown,
    }
}

/// What is before `.<domain>`.
fn without_domain<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let cut = name.len().checked_sub(domain.len())?;
    let (before, end) = (name.get(..cut)?, name.get(cut..)?);
    let inner = before.strip_suffix('.').filter(|inner| !inner.is_empty())?;
    (!domain.is_empty() && end.eq_ignore_ascii_case(domain)).then_some(inner)
}

/// `_http._tcp.web` (RFC 2782).
fn srv_name(name: &str) -> Option<(&str, &str, &str)> {
    let (port, rest) = name.strip_prefix('_')?.split_once("._")?;
    let (protocol, service) = rest.split_once('.')?;
    (!port.contains('.')).then_some((port, protocol, service))
}

fn is_port(port: &NamedPort, asked: &str, protocol: &str) -> bool {
    let named = port.name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(asked));
    (named || port.port.to_string() == asked) && port.protocol.to_string() == protocol
}

fn put_addresses(reply: &mut Response, kind: RecordType, targets: &[Target<'_>], random: &mut Shuffle) {
    let addresses = targets.iter().flat_map(|target| target.addresses);
    let mut wanted: Vec<IpAddr> = addresses.filter(|address| kind_of(address) == kind).copied().collect();
    random.each(&mut wanted, |address| put_address(address, |data| reply.answer(kind, TTL, data)));
}

fn put_services(reply: &mut Response, mut targets: Vec<(Target<'_>, u16)>, random: &mut Shuffle) {
    let mut put = Vec::new();
    random.each(&mut targets, |(target, port)| {
        let Some(name) = full_name(target) else { return true };
        // Priority and weight are the same for all.
        let fits = reply.answer(RecordType::SRV, TTL, &[&[0; 4], &port.to_be_bytes()[..], &name].concat());
        put.extend(fits.then_some((name, target.addresses)));
        fits
    });
    for (name, addresses) in put {
        for address in addresses {
            put_address(address, |data| reply.additional(&name, kind_of(address), TTL, data));
        }
    }
}

fn put_names(reply: &mut Response, targets: &[Target<'_>]) {
    for name in targets.iter().filter_map(full_name) {
        reply.answer(RecordType::PTR, TTL, &name);
    }
}

/// From which state of the cluster the answer is, for people who doubt it: `dig web txt`.
fn put_revision(reply: &mut Response, name: Option<&str>, names: &Names, asker: &Asker) {
    let stack = asker.stack.as_deref();
    let has = |network: &&super::table::NetworkNames| name.is_some_and(|name| network.find(name, stack).is_some());
    let revision = names.of(asker).find(has).and_then(super::table::NetworkNames::revision);
    if let Some(text) = revision.map(|revision| format!("revision={revision}")) {
        let length = u8::try_from(text.len()).expect("a word and a number");
        reply.answer(RecordType::TXT, TTL, &[&[length], text.as_bytes()].concat());
    }
}

fn put_loopback(reply: &mut Response, kind: RecordType) {
    match kind {
        RecordType::A => drop(reply.answer(kind, TTL, &Ipv4Addr::LOCALHOST.octets())),
        RecordType::AAAA => drop(reply.answer(kind, TTL, &Ipv6Addr::LOCALHOST.octets())),
        _ => {}
    }
}

fn kind_of(address: &IpAddr) -> RecordType {
    if address.is_ipv4() { RecordType::A } else { RecordType::AAAA }
}

fn put_address<T>(address: &IpAddr, put: impl FnOnce(&[u8]) -> T) -> T {
    match address {
        IpAddr::V4(address) => put(&address.octets()),
        IpAddr::V6(address) => put(&address.octets()),
    }
}

/// `<name>.<network>.` in a message's form; `None` if that is no name of DNS.
fn full_name(target: &Target<'_>) -> Option<Vec<u8>> {
    let network = Some(target.network).filter(|network| !network.is_empty());
    let labels = target.name.split('.').chain(network.into_iter().flat_map(|network| network.split('.')));
    let mut bytes = Vec::with_capacity(target.name.len() + target.network.len() + 3);
    for label in labels {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= 255).then_some(bytes)
}

#[cfg(test)]
mod tests;
