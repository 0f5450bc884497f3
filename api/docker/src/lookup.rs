//! What a client calls an object: its full id, its name, or the beginning of its id, in this order.

use crate::{ApiError, Backend, ErrorKind, NodeEntry, Select};
use skep_types::{Config, Network, Node, Secret, Service, Task};
use std::borrow::Borrow;

/// An object that clients name.
pub(crate) trait Named: Clone {
    /// As dockerd calls it in refusals.
    const KIND: &'static str;

    fn id(&self) -> &str;

    /// Empty: it has none.
    fn name(&self) -> &str;
}

macro_rules! named {
    ($($object:ty, $kind:literal, $name:expr;)*) => {
        $(impl Named for $object {
            const KIND: &'static str = $kind;

            fn id(&self) -> &str {
                self.id.as_str()
            }

            fn name(&self) -> &str {
                let name: fn(&$object) -> &str = $name;
                name(self)
            }
        })*
    };
}

named! {
    Service, "service", |service| &service.spec.annotations.name;
    Secret, "secret", |secret| &secret.spec.annotations.name;
    Config, "config", |config| &config.spec.annotations.name;
    Network, "network", |network| &network.spec.annotations.name;
    Task, "task", |task| &task.annotations.name;
}

impl Named for NodeEntry {
    const KIND: &'static str = "node";

    fn id(&self) -> &str {
        self.node.id.as_str()
    }

    fn name(&self) -> &str {
        node_name(&self.node)
    }
}

/// The name that the node was given, else that of its host.
fn node_name(node: &Node) -> &str {
    match node.spec.annotations.name.as_str() {
        "" => node.description.as_ref().map(|description| description.hostname.as_str()).unwrap_or_default(),
        given => given,
    }
}

/// Whether the object is called so. Names differ in more than case, as the store's index says.
fn is_called(object: &impl Named, wanted: &str) -> bool {
    !object.name().is_empty() && object.name().eq_ignore_ascii_case(wanted)
}

/// Picks out of all objects, or out of those that could be meant.
///
/// # Errors
/// 404 `service x not found`; 400 if several are meant.
pub(crate) fn pick<T: Named>(objects: &[impl Borrow<T>], wanted: &str) -> Result<T, ApiError> {
    let objects = || objects.iter().map(Borrow::borrow);
    if let Some(object) = objects().find(|object: &&T| object.id() == wanted) {
        return Ok(object.clone());
    }
    let named: Vec<&T> = objects().filter(|object: &&T| is_called(*object, wanted)).collect();
    let meant = match named.is_empty() {
        true => objects().filter(|object: &&T| !wanted.is_empty() && object.id().starts_with(wanted)).collect(),
        false => named,
    };
    match meant.as_slice() {
        [] => Err(ApiError::not_found(format!("{} {wanted} not found", T::KIND))),
        [one] => Ok(T::clone(one)),
        several => Err(ApiError::invalid(format!("{} {wanted} is ambiguous ({} matches found)", T::KIND, several.len()))),
    }
}

/// Whether the cluster knows no object of exactly this id, so that it may be a name: such texts may also be no ids at all.
fn may_be_a_name(error: &ApiError) -> bool {
    matches!(error.kind, ErrorKind::NotFound | ErrorKind::InvalidArgument)
}

macro_rules! find {
    ($($(#[$doc:meta])* $find:ident -> $object:ty = $get:ident, $list:ident;)*) => {
        $($(#[$doc])*
        ///
        /// # Errors
        /// 404, 400 if several are meant, and what the cluster refuses.
        pub(crate) async fn $find(backend: &Backend, wanted: &str) -> Result<$object, ApiError> {
            match backend.cluster.$get(wanted).await {
                Err(error) if may_be_a_name(&error) => pick(&backend.cluster.$list(&Select::meant_by(wanted)).await?, wanted),
                other => other,
            }
        })*
    };
}

find! {
    /// The node that is meant.
    node -> NodeEntry = get_node, list_nodes;
    /// The service that is meant.
    service -> Service = get_service, list_services;
    /// The secret that is meant.
    secret -> Secret = get_secret, list_secrets;
    /// The config that is meant.
    config -> Config = get_config, list_configs;
    /// The network of the cluster that is meant.
    network -> Network = get_network, list_networks;
}

/// The task that is meant: full id or its beginning.
///
/// # Errors
/// 404, 400 if several are meant, and what the cluster refuses.
pub(crate) async fn task(backend: &Backend, wanted: &str) -> Result<Task, ApiError> {
    match backend.cluster.get_task(wanted).await {
        Err(error) if may_be_a_name(&error) => {
            let select = crate::TaskSelect { ids: vec![wanted.to_owned()], ..Default::default() };
            pick(&backend.cluster.list_tasks(&select).await?, wanted)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_types::{Annotations, SecretId, SecretSpec};

    fn secret(id: &str, name: &str) -> Secret {
        let annotations = Annotations { name: name.into(), ..Annotations::default() };
        let id: SecretId = id.parse().unwrap();
        Secret { id, meta: Default::default(), spec: SecretSpec { annotations, ..SecretSpec::default() }, internal: false }
    }

    #[test]
    fn a_full_id_is_before_a_name_and_a_name_before_a_beginning() {
        let all = [secret("abc", "x"), secret("abd", "abc"), secret("e", "ab"), secret("f", "g")];
        let picked = |wanted| pick(&all, wanted).map(|secret| secret.id.to_string());
        assert_eq!(picked("abc").unwrap(), "abc");
        assert_eq!(picked("AB").unwrap(), "e");
        assert_eq!(picked("abd").unwrap(), "abd");
        assert_eq!(picked("f").unwrap(), "f");
        assert_eq!(pick(&all[..2], "ab").unwrap_err().message, "secret ab is ambiguous (2 matches found)");
        assert_eq!(picked("zz").unwrap_err(), ApiError::not_found("secret zz not found"));
        assert!(picked("").is_err());
    }
}
