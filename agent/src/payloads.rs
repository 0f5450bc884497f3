//! The secrets and configs this node was given, in memory only.

use skep_types::{Config, ConfigId, Secret, SecretId, TaskId};
use std::collections::HashMap;
use std::sync::{Arc, RwLock};

/// Shared by the session, which fills it, and the executor, which writes payloads into containers.
#[derive(Clone, Default)]
pub struct Payloads(Arc<RwLock<Tables>>);

#[derive(Default)]
struct Tables {
    secrets: HashMap<SecretId, Arc<Secret>>,
    configs: HashMap<ConfigId, Arc<Config>>,
}

impl Payloads {
    /// The secret as this task is to see it: its own edition first (`<secret id>.<task id>`, wire-behaviour 20.3).
    #[must_use]
    pub fn secret(&self, id: &SecretId, task: &TaskId) -> Option<Arc<Secret>> {
        let tables = self.0.read().expect("no panic while held");
        let own = format!("{id}.{task}").parse::<SecretId>().ok();
        own.and_then(|own| tables.secrets.get(&own)).or_else(|| tables.secrets.get(id)).cloned()
    }

    #[must_use]
    pub fn config(&self, id: &ConfigId) -> Option<Arc<Config>> {
        self.0.read().expect("no panic while held").configs.get(id).cloned()
    }

    pub fn put_secret(&self, secret: Secret) {
        self.0.write().expect("no panic while held").secrets.insert(secret.id.clone(), Arc::new(secret));
    }

    pub fn put_config(&self, config: Config) {
        self.0.write().expect("no panic while held").configs.insert(config.id.clone(), Arc::new(config));
    }

    pub fn remove_secret(&self, id: &SecretId) {
        self.0.write().expect("no panic while held").secrets.remove(id);
    }

    pub fn remove_config(&self, id: &ConfigId) {
        self.0.write().expect("no panic while held").configs.remove(id);
    }

    /// Whether nothing was given to this node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let tables = self.0.read().expect("no panic while held");
        tables.secrets.is_empty() && tables.configs.is_empty()
    }

    /// A complete assignment replaces everything.
    pub fn replace(&self, secrets: Vec<Secret>, configs: Vec<Config>) {
        let mut tables = self.0.write().expect("no panic while held");
        tables.secrets = secrets.into_iter().map(|secret| (secret.id.clone(), Arc::new(secret))).collect();
        tables.configs = configs.into_iter().map(|config| (config.id.clone(), Arc::new(config))).collect();
    }
}

impl std::fmt::Debug for Payloads {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Payloads { (sensitive) }")
    }
}
