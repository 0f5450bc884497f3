//! A sandbox's tables: virtual addresses to backends, tasks out of the network.

use super::balanced::Balanced;
use super::*;
use crate::names::{GATEWAY_LINK, SANDBOX_TABLE, TASK_LINK_PREFIX};
use crate::nft::flows::Flow;
use crate::nft::model::Holds;
use crate::nft::{Elements, Set, Table, Value};
use crate::wanted::{Network, Vip};
use std::collections::BTreeMap;

/// A sandbox's table of one family.
#[derive(Debug, Clone)]
pub(crate) struct SandboxTable {
    family: Family,
    gateway: Option<IpAddr>,
    vips: Balanced<IpAddr, IpAddr>,
    /// Local tasks that are backends: one that reaches itself must not see its own address as the client's.
    hairpin: BTreeSet<IpAddr>,
    counts: BTreeSet<usize>,
}

impl SandboxTable {
    pub(crate) fn new(family: Family, network: &Network) -> Self {
        let mut gateways = network.subnets.iter().map(|subnet| subnet.gateway);
        Self {
            family,
            gateway: gateways.find(|gateway| Family::of(*gateway) == family),
            vips: Balanced::new("vips", |address| address_bytes(*address), |address| address_bytes(*address)),
            hairpin: BTreeSet::new(),
            counts: BTreeSet::new(),
        }
    }

    pub(crate) fn table_family(&self) -> Family {
        self.family
    }

    /// Takes over the virtual addresses and says what that changes.
    pub(crate) fn update(&mut self, vips: &[Vip], local: &BTreeSet<IpAddr>) -> Update {
        let mut wanted: BTreeMap<IpAddr, Vec<IpAddr>> = BTreeMap::new();
        for vip in vips.iter().filter(|vip| Family::of(vip.address) == self.family) {
            let backends = vip.backends.iter().filter(|backend| Family::of(**backend) == self.family);
            wanted.entry(vip.address).or_default().extend(backends);
        }
        let mut changes = self.vips.update(&wanted);
        let hairpin: BTreeSet<IpAddr> = wanted.values().flatten().copied().filter(|a| local.contains(a)).collect();
        for address in self.hairpin.difference(&hairpin) {
            let (key, value) = (pair(*address), Value::Nothing);
            changes.push(ElementChange::Remove { set: "hairpin", key, value });
        }
        for address in hairpin.difference(&self.hairpin) {
            let (key, value) = (pair(*address), Value::Nothing);
            changes.push(ElementChange::Add { set: "hairpin", key, value });
        }
        self.hairpin = hairpin;
        let chains = new_chains(&mut self.counts, self.vips.counts(), |count| vip_chain(self.family, count));
        let flows_change = !changes.is_empty();
        Update { chains, changes, flows_change }
    }

    /// Whether a flow to a virtual address leads to none of its backends.
    pub(crate) fn is_stale(&self, flow: &Flow) -> bool {
        self.vips.get(&flow.original.destination.0).is_some_and(|backends| !backends.contains(&flow.reply.source.0))
    }

    /// The whole table.
    pub(crate) fn table(&self) -> Table {
        let family = self.family;
        let mut elements = Elements::new();
        self.vips.fill(&mut elements);
        for address in &self.hairpin {
            elements.entry("hairpin").or_default().insert(pair(*address), Value::Nothing);
        }
        let address = address_kind(family);
        let sets = vec![
            Set { name: "vips", key_kind: address, key_length: family.width(), holds: Holds::Verdicts },
            Set {
                name: "be",
                key_kind: kind::joined(&[address, kind::MARK]),
                key_length: family.width() + 4,
                holds: Holds::Data { kind: address, length: family.width() },
            },
            Set { name: "hairpin", key_kind: kind::joined(&[address, address]), key_length: family.width() * 2, holds: Holds::Nothing },
        ];
        let mut chains: Vec<Chain> = self.counts.iter().map(|count| vip_chain(family, *count)).collect();
        chains.extend(sandbox_chains(family, self.gateway));
        Table { family, name: SANDBOX_TABLE.into(), sets, chains, elements }
    }
}

fn pair(address: IpAddr) -> Vec<u8> {
    let bytes = address_bytes(address);
    [bytes.as_slice(), &bytes].concat()
}

/// `dnat to daddr . random map @be`
fn vip_chain(family: Family, count: usize) -> Chain {
    let to = Register(8);
    let steps = [
        destination(family, R0),
        Expr::Random { below: u32::try_from(count).expect("fewer than 2^32 backends"), to: after(R0, family.width()) },
        Expr::Map { set: "be", key: R0, to },
        Expr::Dnat { family, address: to, port: None },
    ];
    Chain { name: chain_name(count), hook: None, rules: vec![rule("to one of the backends", steps)] }
}

fn sandbox_chains(family: Family, gateway: Option<IpAddr>) -> Vec<Chain> {
    let enter = vec![rule("virtual addresses", [destination(family, R0), Expr::VerdictMap { set: "vips", key: R0 }])];
    let source = Expr::Network { offset: family.source_offset(), length: family.width(), to: R0 };
    let mut leave = Vec::new();
    if let Some(gateway) = gateway {
        let steps = [Expr::CtStatus { to: R0 }].into_iter().chain(any_bit(DESTINATION_CHANGED)).chain([
            source,
            destination(family, after(R0, family.width())),
            Expr::Contains { set: "hairpin", key: R0 },
            Expr::Constant { value: address_bytes(gateway), to: R0 },
            Expr::Snat { family, address: R0 },
        ]);
        leave.push(rule("a task that reached itself", steps));
    }
    let name = || [GATEWAY_LINK.as_bytes(), &[0]].concat();
    let out = || [Expr::OutLinkName { to: R0 }, Expr::Equal { register: R0, value: name() }].into_iter();
    leave.push(rule("out of the network", out().chain([Expr::Masquerade])));
    let invalid = [Expr::CtState { to: R0 }].into_iter().chain(any_bit(INVALID));
    // A task has the addresses that a route to its link says, and speaks for no other.
    let from_task = [Expr::InLinkName { to: R0 }, Expr::Equal { register: R0, value: TASK_LINK_PREFIX.as_bytes().to_vec() }];
    let no_way_back = [Expr::SourceLink { to: R0 }, Expr::Equal { register: R0, value: vec![0; 4] }];
    let honest = rule("no address but one's own", from_task.into_iter().chain(no_way_back).chain([Expr::Drop]));
    vec![
        base("enter", "nat", PREROUTING, DSTNAT, enter),
        base("leave", "nat", POSTROUTING, SRCNAT, leave),
        base("closed", "filter", FORWARD, FILTER, vec![rule("nothing untranslated", out().chain(invalid).chain([Expr::Drop]))]),
        base("guard", "filter", PREROUTING, RAW, vec![honest]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_backends_are_kept_from_seeing_themselves() {
        let network = Network {
            id: skep_types::NetworkId::for_test(1),
            name: "n".into(),
            vni: 4097,
            subnets: vec![],
            mtu: 1450,
            internal: false,
            ingress: false,
        };
        let mut table = SandboxTable::new(Family::V4, &network);
        let backends = vec![IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
        let vip = Vip { address: IpAddr::from([10, 0, 0, 100]), backends };
        let update = table.update(&[vip], &[IpAddr::from([10, 0, 0, 1])].into());
        let key = vec![10, 0, 0, 1, 10, 0, 0, 1];
        assert!(update.changes.contains(&ElementChange::Add { set: "hairpin", key, value: Value::Nothing }));
        assert_eq!((update.chains.len(), update.changes.len()), (1, 4), "two slots, the verdict and the pair");
    }
}
