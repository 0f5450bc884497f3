//! `node inspect --pretty`: a node for people.

use super::{Found, availability, reachability, state};
use crate::when;
use indicatif::BinaryBytes;
use skep_types::{GenericResource, Labels, NodeDescription};
use std::fmt::Write as _;

/// Names in a column of this width.
const WIDTH: usize = 22;

/// Lines of name and value, indented by groups.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, depth: usize, name: &str, value: &str) {
        let name = format!("{}{name}:", " ".repeat(depth));
        let line = if value.is_empty() { name } else { format!("{name:<WIDTH$}{value}") };
        writeln!(self.0, "{line}").expect("a string takes everything");
    }

    fn labels(&mut self, name: &str, labels: &Labels) {
        if !labels.is_empty() {
            self.add(0, name, "");
        }
        for (key, value) in labels {
            writeln!(self.0, " - {key}={value}").expect("a string takes everything");
        }
    }
}

pub fn text(found: &Found) -> String {
    let node = &found.node;
    let mut lines = Lines::default();
    lines.add(0, "ID", node.id.as_str());
    if !node.spec.annotations.name.is_empty() {
        lines.add(0, "Name", &node.spec.annotations.name);
    }
    lines.labels("Labels", &node.spec.annotations.labels);
    lines.add(0, "Hostname", node.description.as_ref().map(|known| known.hostname.as_str()).unwrap_or_default());
    lines.add(0, "Joined at", &when::rfc3339(node.meta.created_at));
    let role = if node.role == node.spec.desired_role {
        node.role.to_string()
    } else {
        format!("{} (asked to be a {})", node.role, node.spec.desired_role)
    };
    lines.add(0, "Role", &role);
    lines.add(0, "Status", "");
    lines.add(1, "State", state(node.status.state));
    if !node.status.message.is_empty() {
        lines.add(1, "Message", &node.status.message);
    }
    lines.add(1, "Availability", availability(node.spec.availability));
    lines.add(1, "Address", &node.status.addr);
    if let Some(manager) = &found.manager {
        lines.add(0, "Manager Status", "");
        lines.add(1, "Address", &manager.addr);
        lines.add(1, "Raft Status", reachability(manager.reachability));
        lines.add(1, "Leader", if manager.leader { "Yes" } else { "No" });
    }
    if let Some(description) = &node.description {
        describe(&mut lines, description);
    }
    lines.0
}

fn describe(lines: &mut Lines, description: &NodeDescription) {
    lines.add(0, "Platform", "");
    lines.add(1, "Operating System", &description.platform.os);
    lines.add(1, "Architecture", &description.platform.architecture);
    lines.add(0, "Resources", "");
    lines.add(1, "CPUs", &(description.resources.nano_cpus as f64 / 1e9).to_string());
    lines.add(1, "Memory", &BinaryBytes(u64::try_from(description.resources.memory_bytes).unwrap_or(0)).to_string());
    for generic in &description.resources.generic {
        match generic {
            GenericResource::Named { kind, value } => lines.add(1, kind, value),
            GenericResource::Discrete { kind, value } => lines.add(1, kind, &value.to_string()),
        }
    }
    if let Some(engine) = &description.engine {
        lines.add(0, "Engine Version", &engine.engine_version);
        lines.labels("Engine Labels", &engine.labels);
        if !engine.plugins.is_empty() {
            lines.add(0, "Plugins", "");
        }
        for plugin in &engine.plugins {
            lines.add(1, &plugin.kind, &plugin.name);
        }
    }
    if let Some(tls) = &description.tls_info {
        lines.add(0, "TLS Info", "");
        lines.add(1, "Trust Root", "");
        for line in String::from_utf8_lossy(&tls.trust_root).trim_end().lines() {
            writeln!(lines.0, "  {line}").expect("a string takes everything");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::found;
    use super::*;
    use skep_types::{ManagerStatus, NodeRole, Reachability};

    #[test]
    fn a_node_for_people() {
        let place = ManagerStatus { raft_id: 1, addr: "192.0.2.1:2377".into(), leader: false, reachability: Reachability::Reachable };
        let mut found = found(1, Some(place));
        found.node.spec.desired_role = NodeRole::Worker;
        found.node.status.addr = "192.0.2.1".into();
        found.node.spec.annotations.labels.insert("disk".into(), "ssd".into());
        let description = found.node.description.as_mut().unwrap();
        description.resources.nano_cpus = 2_500_000_000;
        description.resources.memory_bytes = 4 << 30;
        description.platform = skep_types::Platform { architecture: "x86_64".into(), os: "linux".into() };
        let wanted = "ID:                   0000000000000000000000001\n\
                      Labels:\n \
                       - disk=ssd\n\
                      Hostname:             n1\n\
                      Joined at:            1970-01-01T00:00:00Z\n\
                      Role:                 manager (asked to be a worker)\n\
                      Status:\n \
                       State:               Ready\n \
                       Availability:        Active\n \
                       Address:             192.0.2.1\n\
                      Manager Status:\n \
                       Address:             192.0.2.1:2377\n \
                       Raft Status:         Reachable\n \
                       Leader:              No\n\
                      Platform:\n \
                       Operating System:    linux\n \
                       Architecture:        x86_64\n\
                      Resources:\n \
                       CPUs:                2.5\n \
                       Memory:              4.00 GiB\n\
                      Engine Version:       0.1.0\n\
                      TLS Info:\n \
                       Trust Root:\n  \
                        root\n";
        assert_eq!(text(&found), wanted);
    }
}
