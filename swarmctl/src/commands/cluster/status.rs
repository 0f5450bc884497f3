//! `cluster status`.

use crate::connect::Connection;
use crate::failure::Failure;
use crate::{output, when};
use serde_json::{Value, json};
use skep_proto::skep::{AddressAudit, RefusedConnections, StatusRequest, StatusResponse, status_response};
use skep_types::Timestamp;

#[derive(Debug, clap::Args)]
pub struct StatusFlags {
    /// Show this manager's copy of the state too: its revision and a hash that equals the other managers' at the same revision
    #[arg(long)]
    replica: bool,
    /// json, or a Go template such as '{{.role}}'
    #[arg(long, short = 'f', value_name = "FORMAT")]
    format: Option<String>,
}

pub async fn run(flags: &StatusFlags, connection: &Connection) -> Result<(), Failure> {
    let status = connection.node().status(StatusRequest { replica: flags.replica }).await?.into_inner();
    match flags.format.as_deref() {
        None => output::put(&output::plain_lines(&text(&status))),
        Some("json") => output::put(&format!("{}\n", object(&status))),
        Some(template) => output::inspect(&[object(&status)], Some(template)),
    }
}

fn role(status: &StatusResponse) -> &'static str {
    match status.role() {
        status_response::Role::None => "none",
        status_response::Role::Worker => "worker",
        status_response::Role::Manager => "manager",
    }
}

fn time(at: Option<&prost_types::Timestamp>) -> Option<String> {
    at.map(|at| when::rfc3339(Timestamp::from_secs(at.seconds)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Connections that a manager refused, by the reason.
fn refused(counts: &RefusedConnections) -> [(&'static str, u64); 6] {
    [
        ("no_certificate", counts.no_certificate),
        ("foreign", counts.foreign),
        ("expired", counts.expired),
        ("unfinished", counts.unfinished),
        ("crowded", counts.crowded),
        ("malformed", counts.malformed),
    ]
}

/// What audits of addresses found, in the message's words.
fn audited(audit: &AddressAudit) -> [(&'static str, u64); 5] {
    let AddressAudit { audits, doubled, leaked, missed, mended } = audit;
    [("audits", *audits), ("doubled", *doubled), ("leaked", *leaked), ("missed", *missed), ("mended", *mended)]
}

/// For programs; the names are those of the message.
fn object(status: &StatusResponse) -> Value {
    let replica = status
        .replica
        .as_ref()
        .map(|copy| json!({ "raft_id": copy.raft_id, "term": copy.term, "revision": copy.revision, "hash": hex(&copy.hash) }));
    let refused =
        status.refused.as_ref().map(|counts| refused(counts).into_iter().map(|(name, count)| (name.to_owned(), json!(count))).collect());
    let addresses =
        status.addresses.as_ref().map(|audit| audited(audit).into_iter().map(|(name, count)| (name.to_owned(), json!(count))).collect());
    json!({
        "version": status.version,
        "node_id": status.node_id,
        "cluster_id": status.cluster_id,
        "role": role(status),
        "leader": status.leader,
        "locked": status.locked,
        "listen_addr": status.listen_addr,
        "advertise_addr": status.advertise_addr,
        "managers": status.managers,
        "connected": status.connected,
        "problem": status.problem,
        "started_at": time(status.started_at.as_ref()),
        "certificate_expires_at": time(status.certificate_expires_at.as_ref()),
        "runtime": status.runtime,
        "refused": refused.map_or(Value::Null, Value::Object),
        "addresses": addresses.map_or(Value::Null, Value::Object),
        "replica": replica,
    })
}

fn text(status: &StatusResponse) -> String {
    let role = match status.role() {
        status_response::Role::None => "not in a cluster",
        status_response::Role::Manager if status.locked => "manager (locked: `swarmctl cluster unlock` opens it)",
        status_response::Role::Manager if status.leader => "manager (leader)",
        _ if status.locked => "locked: `swarmctl cluster unlock` opens it",
        _ => role(status),
    };
    let mut lines = vec![("Version", status.version.clone()), ("Role", role.to_owned())];
    if !status.node_id.is_empty() {
        lines.push(("Node", status.node_id.clone()));
        lines.push(("Cluster", status.cluster_id.clone()));
        let listening = if status.listen_addr.is_empty() { String::new() } else { format!(" (listening on {})", status.listen_addr) };
        if !status.advertise_addr.is_empty() {
            lines.push(("Address", format!("{}{listening}", status.advertise_addr)));
        }
        if !status.managers.is_empty() {
            lines.push(("Managers", status.managers.join(", ")));
        }
        if !status.locked {
            lines.push(("Session", if status.connected { "connected to a manager".into() } else { "no manager reached".into() }));
        }
        if let Some(at) = time(status.certificate_expires_at.as_ref()) {
            lines.push(("Certificate", format!("valid until {at}")));
        }
    }
    let mut reasons = status.refused.iter().flat_map(refused).filter(|(_, count)| *count > 0).peekable();
    if reasons.peek().is_some() {
        let told: Vec<_> = reasons.map(|(reason, count)| format!("{count} {}", reason.replace('_', " "))).collect();
        lines.push(("Refused", format!("connections: {}", told.join(", "))));
    }
    // That all is well is no news.
    if let Some(audit) = status.addresses.as_ref().filter(|audit| audit.doubled + audit.leaked + audit.missed > 0) {
        let AddressAudit { audits, doubled, leaked, missed, mended } = audit;
        lines.push((
            "Addresses",
            format!(
                "{audits} audits found {doubled} had by two, {leaked} leaked, {missed} missed; {mended} mended, the rest is in the log"
            ),
        ));
    }
    if let Some(copy) = &status.replica {
        lines.push((
            "Replica",
            format!("raft {} at term {}, revision {}, hash {}", copy.raft_id, copy.term, copy.revision, hex(&copy.hash)),
        ));
    }
    if !status.runtime.is_empty() {
        lines.push(("Runtime", status.runtime.clone()));
    }
    if !status.problem.is_empty() {
        lines.push(("Problem", status.problem.clone()));
    }
    lines.iter().map(|(name, value)| format!("{:<13}{value}\n", format!("{name}:"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_manager_says_how_it_is_opened() {
        let status = StatusResponse {
            version: "0.1.0".into(),
            node_id: "n".into(),
            cluster_id: "c".into(),
            role: status_response::Role::Manager as i32,
            locked: true,
            advertise_addr: "192.0.2.1:2377".into(),
            listen_addr: "0.0.0.0:2377".into(),
            managers: vec!["192.0.2.1:2377".into(), "192.0.2.2:2377".into()],
            refused: Some(RefusedConnections { no_certificate: 3, malformed: 1, ..RefusedConnections::default() }),
            addresses: Some(AddressAudit { audits: 3, doubled: 2, mended: 1, ..AddressAudit::default() }),
            ..StatusResponse::default()
        };
        let wanted = "Version:     0.1.0\n\
                      Role:        manager (locked: `swarmctl cluster unlock` opens it)\n\
                      Node:        n\n\
                      Cluster:     c\n\
                      Address:     192.0.2.1:2377 (listening on 0.0.0.0:2377)\n\
                      Managers:    192.0.2.1:2377, 192.0.2.2:2377\n\
                      Refused:     connections: 3 no certificate, 1 malformed\n\
                      Addresses:   3 audits found 2 had by two, 0 leaked, 0 missed; 1 mended, the rest is in the log\n";
        assert_eq!(text(&status), wanted);
        assert_eq!(object(&status)["locked"], true);
        assert_eq!(object(&status)["refused"]["no_certificate"], 3);
        assert_eq!(object(&status)["addresses"]["doubled"], 2);
        let well = StatusResponse { addresses: Some(AddressAudit { audits: 7, ..AddressAudit::default() }), ..status };
        assert!(!text(&well).contains("Addresses"));
    }

    #[test]
    fn a_node_without_a_cluster_has_nothing_else_to_say() {
        let status = StatusResponse { version: "0.1.0".into(), runtime: "containerd 1.6.20".into(), ..StatusResponse::default() };
        assert_eq!(text(&status), "Version:     0.1.0\nRole:        not in a cluster\nRuntime:     containerd 1.6.20\n");
    }
}
