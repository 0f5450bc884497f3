//! How a task's namespace, a sandbox and the host's part look for a given network.
//!
//! ```text
//!   task            sandbox of the network                 host
//!   eth0 ────────── t<task>   lo: gateway addresses
//!   10.0.1.11/24    route 10.0.1.11/32 dev t<task>
//!   default via     unreachable 10.0.1.0/24
//!   10.0.1.1        gw 169.254.64.2/30 ─────────────────── sk…g1000 169.254.64.1/30
//!                   default via 169.254.64.1               10.0.1.0/24 via 169.254.64.2 (ingress only)
//! ```
//! What joins the sandboxes of several nodes is in [`super::overlay`].
//!
//! Every packet of a task goes to the sandbox, whose hardware address the task knows for good, so neither ARP nor
//! neighbour discovery is needed between the two; addresses carry the subnet's prefix for people to read, without the
//! on-link route that the kernel would make of it.

use super::namespace::{LOCAL, Link, Neighbour, Route, RouteKind, Rule, State, Which};
use crate::names;
use crate::wanted::{Attachment, Lan, LanMode, Mac, Network, TaskNetwork};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the links between host and sandboxes are numbered from; link-local, for it never leaves the host.
pub(crate) const LINK_RANGE_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 64, 0), 18);
/// The same for IPv6. A unique local range: masquerading wants a source that may be forwarded.
pub(crate) const LINK_RANGE_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd73, 0x6b65, 0x7000, 0, 0, 0, 0, 0), 64);
/// One /30 each out of the /18.
pub(crate) const LINK_SLOTS: u32 = 1 << 12;
/// Routing tables of a task for its second and further networks; in the task's own namespace nobody else has any.
const FIRST_SOURCE_TABLE: u32 = 100;
const SOURCE_RULE_PRIORITY: u32 = 1000;
/// After the kernel's own `::1 dev lo` (metric 0); a slot's number is added, for no two routes to one address may have
/// the same metric.
const LOOPBACK_METRIC: u32 = 4096;

/// Of routes in somebody else's namespace: none of its own is replaced by one of ours, whatever they lead to.
const FOREIGN_METRIC: u32 = 2048;

/// Which of a host-sandbox link's two addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Host,
    Sandbox,
}

/// A place in the range of links, unique on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(pub(crate) u32);

impl Slot {
    pub(crate) fn v4(self, end: End) -> IpNet {
        let base = u32::from(LINK_RANGE_V4.0) + self.0 * 4;
        IpNet::new(Ipv4Addr::from(base + end.offset()).into(), 30).expect("30 is a prefix length of IPv4")
    }

    pub(crate) fn v6(self, end: End) -> IpNet {
        let base = u128::from(LINK_RANGE_V6.0) + u128::from(self.0) * 4;
        IpNet::new(Ipv6Addr::from(base + u128::from(end.offset())).into(), 126).expect("126 is a prefix length of IPv6")
    }

    fn both(self, end: End, ipv6: bool) -> Vec<IpNet> {
        if ipv6 { vec![self.v4(end), self.v6(end)] } else { vec![self.v4(end)] }
    }

    fn of_family(self, end: End, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4(end).addr() } else { self.v6(end).addr() }
    }

    /// The hardware address of that end, so that the other one need not ask: the sandbox's end has no link-local address
    /// to ask from.
    fn mac(self, end: End) -> Mac {
        let [_, _, high, low] = self.0.to_be_bytes();
        Mac([0x02, 0x53, 0x4c, u8::try_from(end.offset()).expect("1 or 2"), high, low])
    }

    fn link(self, network: &Network, end: End, ipv6: bool) -> Link {
        let addresses = self.both(end, ipv6).into_iter().collect();
        Link { mtu: Some(network.mtu), mac: Some(self.mac(end)), up: true, addresses, prefix_routes: true, vxlan: None }
    }

    /// The other end, as a link's neighbour.
    fn neighbours(self, other: End, link: &str, ipv6: bool) -> impl Iterator<Item = Neighbour> {
        let addresses = self.both(other, ipv6).into_iter();
        addresses.map(move |address| Neighbour { address: address.addr(), mac: self.mac(other), link: link.to_owned() })
    }

    /// The slot whose address this is, if it is one.
    pub(crate) fn of_address(address: IpAddr) -> Option<Self> {
        let IpAddr::V4(address) = address else { return None };
        let offset = u32::from(address).checked_sub(u32::from(LINK_RANGE_V4.0))?;
        (offset / 4 < LINK_SLOTS).then_some(Self(offset / 4))
    }
}

impl End {
    fn offset(self) -> u32 {
        match self {
            Self::Host => 1,
            Self::Sandbox => 2,
        }
    }
}

/// A single address as a prefix.
pub(super) fn single(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

pub(super) fn everywhere(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => IpNet::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
    .expect("0 is a prefix length")
}

/// The hardware address of a task in a network.
pub(crate) fn mac_of(task: &TaskNetwork, attachment: &Attachment) -> Mac {
    attachment.mac.unwrap_or_else(|| names::task_mac(&task.task, &attachment.network.id))
}

fn usable(addresses: &[IpNet], ipv6: bool) -> impl Iterator<Item = IpNet> {
    addresses.iter().copied().filter(move |address| ipv6 || address.addr().is_ipv4())
}

fn gateway(network: &Network, like: IpAddr) -> Option<(IpNet, IpAddr)> {
    network.subnets.iter().find(|subnet| subnet.gateway.is_ipv4() == like.is_ipv4()).map(|s| (s.range, s.gateway))
}

/// Which of a task's networks takes what goes to the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WayOut {
    Attachment(usize),
    Lan(usize),
}

/// The network that takes what goes to the outside, as far as it is of the family of `like`. The hosts' own network goes before
/// ours, which would lead there as well.
///
/// Ingress goes first: an answer to a client outside must leave by the network it came in, also where the program
/// answers from an unbound UDP socket. Only where all other networks are internal it must not become a way out; then
/// answers find back by their source address.
fn way_out(task: &TaskNetwork, like: IpAddr) -> Option<WayOut> {
    let attachments = &task.attachments;
    let outside = |attachment: &Attachment| !attachment.network.internal;
    let others = || attachments.iter().filter(|a| !a.network.ingress);
    let ingress = attachments.iter().position(|a| a.network.ingress && outside(a));
    let has_others = others().next().is_some() || !task.lans.is_empty();
    let closed = has_others && !others().any(outside) && task.lans.iter().all(|lan| lan.internal);
    let leads = |lan: &Lan| !lan.internal && lan.addresses.iter().any(|address| address.addr().is_ipv4() == like.is_ipv4());
    match ingress {
        Some(_) if closed => None,
        Some(at) => Some(WayOut::Attachment(at)),
        None => task.lans.iter().position(leads).map(WayOut::Lan).or_else(|| attachments.iter().position(outside).map(WayOut::Attachment)),
    }
}

/// The hardware address of a task on the hosts' own network; the kernel's choice without an address.
pub(crate) fn lan_mac(lan: &Lan) -> Option<Mac> {
    // That of the host's link is the one address that a passthru link can have without changing the host's.
    if lan.mode == LanMode::Passthru {
        return None;
    }
    lan.addresses.first().map(|address| names::lan_mac(address.addr()))
}

/// The name of the link to one of the hosts' own networks inside the task's namespace.
pub(crate) fn lan_link(task: &TaskNetwork, index: usize) -> String {
    format!("eth{}", first_lan(task) + place_number(index))
}

fn place_number(index: usize) -> u32 {
    u32::try_from(index).expect("a task has few networks")
}

/// The number of the link to one of a task's networks.
fn link_number(task: &TaskNetwork, index: usize) -> u32 {
    task.attachments.get(index).and_then(|attachment| attachment.link).unwrap_or_else(|| place_number(index))
}

/// Behind all of the attachments.
fn first_lan(task: &TaskNetwork) -> u32 {
    (0..task.attachments.len()).map(|index| link_number(task, index) + 1).max().unwrap_or_default()
}

/// The name of a task's link inside its namespace. Nobody else's namespace has one like ours.
pub(crate) fn inside_link(task: &TaskNetwork, index: usize) -> String {
    if task.foreign.is_some() { names::task_link(&task.task) } else { format!("eth{}", link_number(task, index)) }
}

/// Of somebody else's namespace what is ours: its link, and by it the network's range. The way out stays as it is.
fn foreign_side(task: &TaskNetwork, ipv6: bool) -> State {
    let mut state = State::default();
    for (index, attachment) in task.attachments.iter().enumerate() {
        let (network, link) = (&attachment.network, inside_link(task, index));
        let addresses: BTreeSet<IpNet> = usable(&attachment.addresses, ipv6).collect();
        for address in &addresses {
            let Some((range, gateway)) = gateway(network, address.addr()) else { continue };
            state.neighbours.insert(Neighbour { address: gateway, mac: names::sandbox_mac(network), link: link.clone() });
            // The gateway first, by the link; then the rest, by the gateway.
            let by = |to, gateway| Route { metric: FOREIGN_METRIC, ..Route::new(to, RouteKind::Through { link: link.clone(), gateway }) };
            state.routes.insert(by(single(gateway), None));
            state.routes.insert(by(range.trunc(), Some(gateway)));
        }
        let mac = Some(mac_of(task, attachment));
        state.links.insert(link, Link { mtu: Some(network.mtu), mac, up: true, addresses, ..Link::default() });
    }
    state
}

/// The task's own namespace.
pub(crate) fn task_side(task: &TaskNetwork, ipv6: bool) -> State {
    if task.foreign.is_some() {
        return foreign_side(task, ipv6);
    }
    let mut state = State::default();
    state.links.insert("lo".into(), Link { up: true, ..Link::default() });
    for (index, attachment) in task.attachments.iter().enumerate() {
        let network = &attachment.network;
        let link = inside_link(task, index);
        let addresses: BTreeSet<IpNet> = usable(&attachment.addresses, ipv6).collect();
        for address in &addresses {
            let Some((range, gateway)) = gateway(network, address.addr()) else { continue };
            let through = RouteKind::Through { link: link.clone(), gateway: Some(gateway) };
            state.neighbours.insert(Neighbour { address: gateway, mac: names::sandbox_mac(network), link: link.clone() });
            if way_out(task, gateway) == Some(WayOut::Attachment(index)) {
                state.routes.insert(Route::new(everywhere(gateway), through));
                continue;
            }
            state.routes.insert(Route::new(range.trunc(), through.clone()));
            if !network.internal {
                let table = FIRST_SOURCE_TABLE + link_number(task, index);
                state.routes.insert(Route { table, ..Route::new(everywhere(gateway), through) });
                state.rules.insert(Rule { which: Which::From(single(address.addr())), table, priority: SOURCE_RULE_PRIORITY });
            }
        }
        let mac = Some(mac_of(task, attachment));
        state.links.insert(link, Link { mtu: Some(network.mtu), mac, up: true, addresses, ..Link::default() });
    }
    for (index, lan) in task.lans.iter().enumerate() {
        state.merge(lan_side(task, index, lan, ipv6));
    }
    state
}

/// One of the hosts' own networks: the kernel asks there who has which address, as on any host.
fn lan_side(task: &TaskNetwork, index: usize, lan: &Lan, ipv6: bool) -> State {
    let mut state = State::default();
    let link = lan_link(task, index);
    let addresses: BTreeSet<IpNet> = usable(&lan.addresses, ipv6).collect();
    for address in addresses.iter().filter(|_| !lan.internal) {
        let like = address.addr();
        let Some(subnet) = lan.subnets.iter().find(|subnet| subnet.gateway.is_ipv4() == like.is_ipv4()) else { continue };
        let through = RouteKind::Through { link: link.clone(), gateway: Some(subnet.gateway) };
        if way_out(task, like) == Some(WayOut::Lan(index)) {
            state.routes.insert(Route::new(everywhere(like), through));
            continue;
        }
        // What answers from this address goes back the way it came, neighbours directly.
        let table = FIRST_SOURCE_TABLE + first_lan(task) + place_number(index);
        let direct = RouteKind::Through { link: link.clone(), gateway: None };
        state.routes.insert(Route { table, ..Route::new(subnet.range.trunc(), direct) });
        state.routes.insert(Route { table, ..Route::new(everywhere(like), through) });
        state.rules.insert(Rule { which: Which::From(single(like)), table, priority: SOURCE_RULE_PRIORITY });
    }
    state.links.insert(link, Link { mtu: lan.mtu, mac: lan_mac(lan), up: true, addresses, prefix_routes: true, ..Link::default() });
    state
}

/// What a sandbox has whoever is in it.
pub(crate) fn sandbox(network: &Network, slot: Slot, ipv6: bool) -> State {
    let mut state = State::default();
    let subnets: Vec<_> = network.subnets.iter().filter(|subnet| ipv6 || subnet.gateway.is_ipv4()).collect();
    let addresses = subnets.iter().map(|subnet| single(subnet.gateway)).collect();
    state.links.insert("lo".into(), Link { up: true, addresses, ..Link::default() });
    for subnet in subnets {
        state.routes.insert(Route::new(subnet.range.trunc(), RouteKind::Unreachable));
    }
    if !network.internal {
        let link = names::GATEWAY_LINK.to_owned();
        for address in slot.both(End::Host, ipv6) {
            let through = RouteKind::Through { link: link.clone(), gateway: Some(address.addr()) };
            state.routes.insert(Route::new(everywhere(address.addr()), through));
        }
        state.neighbours.extend(slot.neighbours(End::Host, &link, ipv6));
        state.links.insert(link, slot.link(network, End::Sandbox, ipv6));
    }
    state
}

/// What a sandbox has for one task.
pub(crate) fn sandbox_for_task(task: &TaskNetwork, attachment: &Attachment, ipv6: bool) -> State {
    let mut state = State::default();
    let link = names::task_link(&task.task);
    for address in usable(&attachment.addresses, ipv6) {
        let address = address.addr();
        let through = RouteKind::Through { link: link.clone(), gateway: None };
        state.routes.insert(Route::new(single(address), through));
        state.neighbours.insert(Neighbour { address, mac: mac_of(task, attachment), link: link.clone() });
    }
    let mac = Some(names::sandbox_mac(&attachment.network));
    state.links.insert(link, Link { mtu: Some(attachment.network.mtu), mac, up: true, ..Link::default() });
    state
}

/// What the host has for one sandbox.
pub(crate) fn host(network: &Network, slot: Slot, tag: &names::Tag, led: &BTreeSet<IpAddr>, ipv6: bool) -> State {
    let mut state = State::default();
    if network.internal {
        return state;
    }
    let link = tag.host_link(network);
    let mut reached: BTreeSet<IpNet> = BTreeSet::new();
    if network.ingress {
        reached.extend(network.subnets.iter().map(|subnet| subnet.range.trunc()));
    }
    reached.extend(led.iter().map(|address| single(*address)));
    for to in reached.into_iter().filter(|to| ipv6 || to.addr().is_ipv4()) {
        let gateway = Some(slot.of_family(End::Sandbox, to.addr()));
        state.routes.insert(Route::new(to, RouteKind::Through { link: link.clone(), gateway }));
    }
    if ipv6 {
        // An answer to ::1 is looked up with the link it came in on, for the kernel routes loopback addresses by link
        // only (rt6_need_strict in net/ipv6/route.c). This makes `curl [::1]:8080` work, as route_localnet does for
        // 127.0.0.1. Nobody can send us such a packet: ip6_rcv_core drops ::1 that was on a wire.
        let to = single(Ipv6Addr::LOCALHOST.into());
        let kind = RouteKind::Local { link: link.clone() };
        state.routes.insert(Route { table: LOCAL, metric: LOOPBACK_METRIC + slot.0, ..Route::new(to, kind) });
    }
    state.neighbours.extend(slot.neighbours(End::Sandbox, &link, ipv6));
    state.links.insert(link, slot.link(network, End::Host, ipv6));
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wanted::Subnet;
    use skep_types::{NetworkId, TaskId};

    fn network(number: u64, ingress: bool, internal: bool) -> Network {
        let subnet = |range: String, gateway: String| Subnet { range: range.parse().unwrap(), gateway: gateway.parse().unwrap() };
        Network {
            id: NetworkId::for_test(number),
            name: format!("n{number}"),
            vni: 4096 + number as u32,
            subnets: vec![
                subnet(format!("10.0.{number}.0/24"), format!("10.0.{number}.1")),
                subnet(format!("fd00:{number}::/64"), format!("fd00:{number}::1")),
            ],
            mtu: 1450,
            internal,
            ingress,
        }
    }

    fn attach(network: Network) -> Attachment {
        let number = network.vni - 4096;
        let addresses = [format!("10.0.{number}.5/24"), format!("fd00:{number}::5/64")].map(|text| text.parse().unwrap()).to_vec();
        Attachment { network, addresses, mac: None, link: None }
    }

    fn task(attachments: Vec<Attachment>) -> TaskNetwork {
        TaskNetwork { task: TaskId::for_test(1), attachments, lans: vec![], foreign: None }
    }

    fn default_links(state: &State) -> Vec<(u32, String)> {
        let defaults = state.routes.iter().filter(|route| route.to.prefix_len() == 0 && route.to.addr().is_ipv4());
        defaults.map(|route| (route.table, route.link().unwrap().to_owned())).collect()
    }

    #[test]
    fn answers_to_the_outside_leave_by_ingress() {
        let state = task_side(&task(vec![attach(network(1, false, false)), attach(network(2, true, false))]), true);
        assert_eq!(default_links(&state), [(100, "eth0".into()), (254, "eth1".into())]);
    }

    #[test]
    fn ingress_is_no_way_out_of_an_internal_network() {
        let state = task_side(&task(vec![attach(network(1, false, true)), attach(network(2, true, false))]), true);
        assert_eq!(default_links(&state), [(101, "eth1".into())], "only what answers from the ingress address");
        assert_eq!(state.rules.len(), 2);
    }

    fn lan(internal: bool) -> Lan {
        let range = |range: &str, gateway: &str| Subnet { range: range.parse().unwrap(), gateway: gateway.parse().unwrap() };
        Lan {
            network: NetworkId::for_test(9),
            name: "lan".into(),
            parent: "up0".into(),
            mode: LanMode::Bridge,
            subnets: vec![range("192.0.2.0/24", "192.0.2.1")],
            mtu: None,
            internal,
            addresses: vec!["192.0.2.9/24".parse().unwrap()],
        }
    }

    #[test]
    fn the_hosts_own_network_is_a_way_out_before_ours_and_after_ingress() {
        let on = |networks: Vec<Attachment>, internal| task_side(&TaskNetwork { lans: vec![lan(internal)], ..task(networks) }, true);
        assert_eq!(default_links(&on(vec![], false)), [(254, "eth0".into())]);
        assert_eq!(default_links(&on(vec![attach(network(1, false, false))], false)), [(100, "eth0".into()), (254, "eth1".into())]);
        assert_eq!(default_links(&on(vec![attach(network(1, true, false))], false)), [(101, "eth1".into()), (254, "eth0".into())]);
        assert_eq!(default_links(&on(vec![attach(network(1, false, false))], true)), [(254, "eth0".into())]);
        assert_eq!(default_links(&on(vec![attach(network(1, true, false))], true)), [(100, "eth0".into())], "ingress is no way out");
        // Of a family that it has not, the other one leads out.
        let state = on(vec![attach(network(1, false, false))], false);
        let v6: Vec<_> = state.routes.iter().filter(|route| route.to.to_string() == "::/0" && route.table == 254).collect();
        assert_eq!(v6.len(), 1, "{v6:?}");
        assert_eq!(v6[0].link(), Some("eth0"));
    }

    #[test]
    fn who_takes_over_an_address_of_the_hosts_network_takes_over_its_hardware_address() {
        assert_eq!(lan_mac(&lan(false)), Some(Mac([0x02, 0x53, 192, 0, 2, 9])));
        assert_eq!(lan_mac(&Lan { mode: LanMode::Passthru, ..lan(false) }), None);
    }

    #[test]
    fn links_keep_their_numbers_when_others_go() {
        let numbered = |number, attachment| Attachment { link: Some(number), ..attachment };
        let both = vec![numbered(1, attach(network(1, false, false))), numbered(3, attach(network(2, false, false)))];
        let all = TaskNetwork { lans: vec![lan(false)], ..task(both) };
        let links = |task: &TaskNetwork| task_side(task, true).links.into_keys().collect::<Vec<_>>();
        assert_eq!(links(&all), ["eth1", "eth3", "eth4", "lo"]);
        let mut less = TaskNetwork { lans: vec![], ..all };
        less.attachments.remove(0);
        assert_eq!(links(&less), ["eth3", "lo"]);
        assert_eq!(default_links(&task_side(&less, true)), [(254, "eth3".into())], "the way out is the next one's");
    }

    #[test]
    fn somebody_else_s_namespace_keeps_its_way_out_and_its_links() {
        let task = TaskNetwork { foreign: Some("/run/netns/other".into()), ..task(vec![attach(network(1, false, false))]) };
        let state = task_side(&task, true);
        assert_eq!(default_links(&state), []);
        assert_eq!(state.links.keys().collect::<Vec<_>>(), [&names::task_link(&task.task)]);
        assert!(state.rules.is_empty());
        let ranges: Vec<String> = state.routes.iter().map(|route| route.to.to_string()).collect();
        assert_eq!(ranges.len(), 4, "{ranges:?}");
        assert!(ranges.contains(&"10.0.1.0/24".to_owned()) && ranges.contains(&"fd00:1::/64".to_owned()), "{ranges:?}");
    }

    #[test]
    fn an_internal_network_has_no_way_out_at_all() {
        let closed = network(1, false, true);
        let state = task_side(&task(vec![attach(closed.clone())]), true);
        assert_eq!(default_links(&state), []);
        assert!(!sandbox(&closed, Slot(0), true).links.contains_key("gw"));
        assert_eq!(host(&closed, Slot(0), &names::Tag::new("x"), &BTreeSet::new(), true), State::default());
    }

    #[test]
    fn without_ipv6_nothing_of_it_is_asked_for() {
        let only_v4 = |state: &State| {
            state.routes.iter().all(|route| route.to.addr().is_ipv4())
                && state.neighbours.iter().all(|neighbour| neighbour.address.is_ipv4())
                && state.links.values().all(|link| link.addresses.iter().all(|address| address.addr().is_ipv4()))
        };
        let task = task(vec![attach(network(1, true, false))]);
        let tag = names::Tag::new("x");
        assert!(only_v4(&task_side(&task, false)));
        assert!(only_v4(&sandbox(&task.attachments[0].network, Slot(3), false)));
        assert!(only_v4(&sandbox_for_task(&task, &task.attachments[0], false)));
        assert!(only_v4(&host(&task.attachments[0].network, Slot(3), &tag, &BTreeSet::new(), false)));
    }

    #[test]
    fn the_host_reaches_only_what_is_published() {
        let tag = names::Tag::new("x");
        let plain = network(1, false, false);
        let routes = |led: &[&str]| -> Vec<String> {
            let led = led.iter().map(|address| address.parse().unwrap()).collect();
            let state = host(&plain, Slot(0), &tag, &led, false);
            state.routes.iter().map(|route| route.to.to_string()).collect()
        };
        assert_eq!(routes(&[]), [""; 0]);
        assert_eq!(routes(&["10.0.1.5"]), ["10.0.1.5/32"]);
    }

    #[test]
    fn a_slot_is_known_by_its_address() {
        for slot in [Slot(0), Slot(1), Slot(LINK_SLOTS - 1)] {
            assert_eq!(Slot::of_address(slot.v4(End::Host).addr()), Some(slot));
            assert_eq!(Slot::of_address(slot.v4(End::Sandbox).addr()), Some(slot));
        }
        assert_eq!(Slot::of_address("169.254.128.1".parse().unwrap()), None);
        assert_eq!(Slot::of_address("10.0.0.1".parse().unwrap()), None);
    }
}
