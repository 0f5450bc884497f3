//! Who may call what: one line per method, from the `tls_authorization` options of the original's protocol files.

use std::fmt;

/// Who may call a method on the TCP port. On the local socket everybody may: the socket is root's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// No certificate is needed: how a node gets its first one.
    Anyone,
    Manager,
    ManagerOrWorker,
    /// A manager of this cluster for itself, not passed on; who exactly is decided by the method.
    Peer,
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Anyone => "anyone",
            Self::Manager => "a manager",
            Self::Peer => "a manager itself",
            Self::ManagerOrWorker => "a node of this cluster",
        })
    }
}

/// Whole services have one rule each but for the CA.
const RULES: &[(&str, Rule)] = &[
    ("CA/GetRootCACertificate", Rule::Anyone),
    ("CA/GetUnlockKey", Rule::Manager),
    ("NodeCA/IssueNodeCertificate", Rule::Anyone),
    ("NodeCA/NodeCertificateStatus", Rule::Anyone),
    ("Control/", Rule::Manager),
    ("Dispatcher/", Rule::ManagerOrWorker),
    ("Health/", Rule::Manager),
    ("Logs/", Rule::Manager),
    ("LogBroker/", Rule::ManagerOrWorker),
    ("ResourceAllocator/", Rule::ManagerOrWorker),
    ("Watch/", Rule::Manager),
];

/// The same for what is ours.
const OWN_RULES: &[(&str, Rule)] = &[
    ("Raft/", Rule::Peer),
    ("Explanations/", Rule::Manager),
    ("Membership/", Rule::Manager),
    ("NetworkSettings/", Rule::Manager),
    ("NetworkState/", Rule::ManagerOrWorker),
    ("Tunnels/Dial", Rule::Manager),
    ("Tunnels/Listen", Rule::ManagerOrWorker),
    ("Tunnels/Serve", Rule::ManagerOrWorker),
];

/// Calls that live long: they end when the right to make them does.
const STREAMS: &[&str] = &[
    "Dispatcher/Session",
    "Dispatcher/Tasks",
    "Dispatcher/Assignments",
    "Logs/SubscribeLogs",
    "LogBroker/ListenSubscriptions",
    "LogBroker/PublishLogs",
    "Watch/Watch",
];

/// The same of ours.
const OWN_STREAMS: &[&str] = &["NetworkState/Follow", "Tunnels/Dial", "Tunnels/Listen", "Tunnels/Serve"];

/// The rule for a gRPC path; `None` for a method that has none, which nobody may call.
pub(crate) fn rule_for(path: &str) -> Option<Rule> {
    let (rules, method) = match path.strip_prefix("/docker.swarmkit.v1.") {
        Some(method) => (RULES, method),
        None => (OWN_RULES, path.strip_prefix("/skep.v1.")?),
    };
    rules
        .iter()
        .find(|(prefix, _)| if prefix.ends_with('/') { method.starts_with(prefix) } else { method == *prefix })
        .map(|(_, rule)| *rule)
}

/// Whether the method has a stream in either direction.
pub(crate) fn is_stream(path: &str) -> bool {
    let is_one = |prefix: &str, streams: &[&str]| path.strip_prefix(prefix).is_some_and(|method| streams.contains(&method));
    is_one("/docker.swarmkit.v1.", STREAMS) || is_one("/skep.v1.", OWN_STREAMS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_protocol_has_a_rule() {
        let proto = include_str!("../../../api/proto/proto/docker/swarmkit/v1/swarmkit.proto");
        let (mut service, mut methods) = (String::new(), 0);
        for line in proto.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("service") => service = words.next().unwrap().to_owned(),
                Some("rpc") => {
                    let method = words.next().unwrap().split('(').next().unwrap();
                    let path = format!("/docker.swarmkit.v1.{service}/{method}");
                    assert!(rule_for(&path).is_some(), "{path}");
                    assert_eq!(is_stream(&path), line.contains("stream "), "{path}");
                    methods += 1;
                }
                _ => {}
            }
        }
        assert!(methods > 55, "{methods}");
    }

    /// Of what is ours, the services with a rule are on the cluster's port; the others are on the local socket only.
    #[test]
    fn every_method_of_ours_on_the_cluster_s_port_ends_with_the_right_to_it_if_it_lives_long() {
        let proto = include_str!("../../../api/proto/proto/skep/v1/skep.proto");
        let (mut service, mut streams) = (String::new(), 0);
        for line in proto.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("service") => service = words.next().unwrap().to_owned(),
                Some("rpc") => {
                    let method = words.next().unwrap().split('(').next().unwrap();
                    let path = format!("/skep.v1.{service}/{method}");
                    if rule_for(&path).is_some() {
                        assert_eq!(is_stream(&path), line.contains("stream "), "{path}");
                        streams += usize::from(is_stream(&path));
                    }
                }
                _ => {}
            }
        }
        assert!(streams > 0);
    }

    #[test]
    fn what_is_not_in_the_table_may_be_called_by_nobody() {
        assert_eq!(rule_for("/docker.swarmkit.v1.CA/Other"), None);
        assert_eq!(rule_for("/docker.swarmkit.v1.CA/GetRootCACertificateX"), None);
        assert_eq!(rule_for("/skep.v1.LocalNode/Init"), None);
        assert_eq!(rule_for("/skep.v1.LocalImages/List"), None);
        assert_eq!(rule_for("/skep.v1.Certificates/IssueClient"), None);
        assert_eq!(rule_for("/skep.v1.Explanations/GetPlacement"), Some(Rule::Manager));
        assert_eq!(rule_for("/skep.v1.Raft/Call"), Some(Rule::Peer));
        assert_eq!(rule_for("/skep.v1.Membership/Join"), Some(Rule::Manager));
        assert_eq!(rule_for("/skep.v1.NetworkState/Follow"), Some(Rule::ManagerOrWorker));
        assert_eq!(rule_for("/skep.v1.NetworkSettings/Update"), Some(Rule::Manager));
        assert_eq!(rule_for("/docker.swarmkit.v1.Control/CreateService"), Some(Rule::Manager));
        assert_eq!(rule_for("/docker.swarmkit.v1.Dispatcher/Session"), Some(Rule::ManagerOrWorker));
    }
}
