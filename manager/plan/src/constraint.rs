//! The language of placement constraints: `node.labels.disk == ssd`, `node.role != manager`.
//!
//! Rules of `SK/manager/constraint/constraint.go`: one operator, blanks do not matter, values are compared ignoring case and
//! without globs. A missing label is an empty text. An unknown key is well-formed but matches no node.

use ipnet::IpNet;
use skep_types::{Node, NodeRole, Placement};
use std::net::IpAddr;

/// Why a text is not a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadConstraint {
    #[error("constraint {0:?} has no operator; write KEY == VALUE or KEY != VALUE, such as node.role == worker")]
    NoOperator(String),
    #[error(
        "the key {key:?} of constraint {constraint:?} is not valid; a key starts with a letter or '_' and goes on with letters, digits, '-', '_' or '.', such as node.labels.disk"
    )]
    Key { constraint: String, key: String },
    #[error(
        "the value {value:?} of constraint {constraint:?} is not valid; use letters, digits, blanks and any of : - _ . * ( ) ? + [ ] \\ ^ $ | /"
    )]
    Value { constraint: String, value: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Equal,
    NotEqual,
}

/// What of a node is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    Id,
    Hostname,
    Ip,
    Role,
    Os,
    Architecture,
    NodeLabel(String),
    EngineLabel(String),
    /// Well-formed, but no such property: matches nothing.
    Unknown,
}

/// One condition that a node fulfils or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    pub key: Key,
    pub operator: Operator,
    pub value: String,
}

/// Cuts `prefix` off, ignoring the case of ASCII letters.
pub(crate) fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

fn is_key(text: &str) -> bool {
    let mut characters = text.chars();
    let first = characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let rest = characters.as_str();
    first && !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn is_value(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c.is_ascii_whitespace() || r":-_.*()?+[]\^$|/".contains(c);
    !text.is_empty() && text.chars().all(allowed)
}

impl Key {
    fn parse(text: &str) -> Self {
        if let Some(label) = strip_prefix_ignoring_case(text, "node.labels.").filter(|label| !label.is_empty()) {
            return Self::NodeLabel(label.to_owned());
        }
        if let Some(label) = strip_prefix_ignoring_case(text, "engine.labels.").filter(|label| !label.is_empty()) {
            return Self::EngineLabel(label.to_owned());
        }
        match text.to_ascii_lowercase().as_str() {
            "node.id" => Self::Id,
            "node.hostname" => Self::Hostname,
            "node.ip" => Self::Ip,
            "node.role" => Self::Role,
            "node.platform.os" => Self::Os,
            "node.platform.arch" => Self::Architecture,
            _ => Self::Unknown,
        }
    }
}

impl Constraint {
    /// # Errors
    /// [`BadConstraint`] with the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, BadConstraint> {
        let (key, operator, value) = match (text.split_once("=="), text.split_once("!=")) {
            (Some((key, value)), _) => (key, Operator::Equal, value),
            (None, Some((key, value))) => (key, Operator::NotEqual, value),
            (None, None) => return Err(BadConstraint::NoOperator(text.to_owned())),
        };
        let (key, value) = (key.trim(), value.trim());
        if !is_key(key) {
            return Err(BadConstraint::Key { constraint: text.to_owned(), key: key.to_owned() });
        }
        if !is_value(value) {
            return Err(BadConstraint::Value { constraint: text.to_owned(), value: value.to_owned() });
        }
        Ok(Self { key: Key::parse(key), operator, value: value.to_owned() })
    }

    /// Whether `node` fulfils the condition.
    #[must_use]
    pub fn matches(&self, node: &Node) -> bool {
        let description = node.description.as_ref();
        let equal = match &self.key {
            Key::Id => self.is(node.id.as_str()),
            Key::Hostname => self.is(description.map_or("", |description| &description.hostname)),
            Key::Ip => match self.is_ip(&node.status.addr) {
                Some(equal) => equal,
                None => return false,
            },
            Key::Role => self.is(match node.role {
                NodeRole::Worker => "worker",
                NodeRole::Manager => "manager",
            }),
            Key::Os => self.is(description.map_or("", |description| &description.platform.os)),
            Key::Architecture => self.is(description.map_or("", |description| &description.platform.architecture)),
            Key::NodeLabel(label) => self.is(node.spec.annotations.labels.get(label).map_or("", String::as_str)),
            Key::EngineLabel(label) => self.is(description
                .and_then(|description| description.engine.as_ref())
                .and_then(|engine| engine.labels.get(label))
                .map_or("", String::as_str)),
            Key::Unknown => return false,
        };
        equal == (self.operator == Operator::Equal)
    }

    fn is(&self, actual: &str) -> bool {
        self.value.eq_ignore_ascii_case(actual) || (!self.value.is_ascii() && self.value.to_lowercase() == actual.to_lowercase())
    }

    /// `None` = the value is neither an address nor a network, or the node has no address: no match either way.
    fn is_ip(&self, actual: &str) -> Option<bool> {
        let actual: IpAddr = actual.parse().ok()?;
        match self.value.parse::<IpAddr>() {
            Ok(address) => Some(address == actual),
            Err(_) => self.value.parse::<IpNet>().ok().map(|net| net.contains(&actual)),
        }
    }
}

/// All constraints of a placement; one that does not parse matches nothing (a service cannot be created with it).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Constraints {
    all: Vec<Constraint>,
    broken: bool,
}

impl Constraints {
    #[must_use]
    pub fn of(placement: Option<&Placement>) -> Self {
        let texts = placement.map_or(&[][..], |placement| &placement.constraints);
        let parsed: Vec<_> = texts.iter().map(|text| Constraint::parse(text)).collect();
        Self { broken: parsed.iter().any(Result::is_err), all: parsed.into_iter().flatten().collect() }
    }

    #[must_use]
    pub fn match_node(&self, node: &Node) -> bool {
        !self.broken && self.all.iter().all(|constraint| constraint.matches(node))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && !self.broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::NodeId;

    fn node() -> Node {
        let mut node = Node::new(NodeId::for_test(1));
        node.spec.annotations.labels.insert("disk".into(), "SSD".into());
        node.status.addr = "10.1.2.3".into();
        node.role = NodeRole::Manager;
        node
    }

    fn matches(text: &str) -> bool {
        Constraint::parse(text).expect("well-formed").matches(&node())
    }

    #[test]
    fn values_are_compared_without_case_and_labels_with_it() {
        assert!(matches("node.labels.disk==ssd"));
        assert!(matches("NODE.Labels.disk == SsD"));
        assert!(!matches("node.labels.Disk == ssd"));
        assert!(matches("node.labels.Disk != ssd"));
        assert!(matches(" node.role == Manager "));
        assert!(!matches("node.role != manager"));
    }

    #[test]
    fn an_address_may_be_given_as_a_network() {
        assert!(matches("node.ip == 10.1.0.0/16"));
        assert!(matches("node.ip == 10.1.2.3"));
        assert!(matches("node.ip != 10.1.2.4"));
        assert!(!matches("node.ip == 10.1"));
        assert!(!matches("node.ip != 10.1"));
    }

    #[test]
    fn there_are_no_globs_and_unknown_keys_match_nothing() {
        assert!(!matches("node.labels.disk == s*"));
        assert!(!matches("node.colour == red"));
        assert!(!matches("node.colour != red"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(Constraint::parse("node.role"), Err(BadConstraint::NoOperator("node.role".into())));
        assert!(matches!(Constraint::parse("1node == x"), Err(BadConstraint::Key { .. })));
        assert!(matches!(Constraint::parse("n == x"), Err(BadConstraint::Key { .. })));
        assert!(matches!(Constraint::parse("node.id == "), Err(BadConstraint::Value { .. })));
        assert!(matches!(Constraint::parse("node.id == a#b"), Err(BadConstraint::Value { .. })));
        assert!(matches!(Constraint::parse("node.id == a\0b"), Err(BadConstraint::Value { .. })));
    }
}
