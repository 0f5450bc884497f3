//! `cluster update`: every setting of SwarmKit's cluster spec.

use super::grammar::set;
use super::node::change_labels;
use super::values::{duration, fields, pair};
use clap::Args;
use skep_types::{ClusterSpec, Driver, ExternalCa};
use std::time::Duration;

/// `cluster update`.
#[derive(Debug, Default, PartialEq, Args)]
pub struct ClusterFlags {
    /// Managers need the unlock key after each start
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub autolock: Option<bool>,
    /// How long new node certificates are valid (at least 1h; nodes renew after half of it at the earliest)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    cert_expiry: Option<Duration>,
    /// Time between heartbeats of a node
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    dispatcher_heartbeat: Option<Duration>,
    /// Finished tasks kept for each slot, the live one counted (-1 = all)
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = clap::value_parser!(i64).range(-1..))]
    task_history_limit: Option<i64>,
    /// Log entries between raft snapshots
    #[arg(long, value_name = "N")]
    snapshot_interval: Option<u64>,
    /// Old raft snapshots kept
    #[arg(long, value_name = "N")]
    max_snapshots: Option<u64>,
    /// Log entries kept behind a snapshot for managers that are slow
    #[arg(long, value_name = "N")]
    log_entries_for_slow_followers: Option<u64>,
    /// Ticks (seconds) between raft heartbeats
    #[arg(long, value_name = "N")]
    heartbeat_tick: Option<u32>,
    /// Ticks (seconds) without a leader before an election
    #[arg(long, value_name = "N")]
    election_tick: Option<u32>,
    /// CA outside that signs instead: protocol=cfssl,url=https://…[,cacert=FILE]; replaces those there are; "none" removes them
    #[arg(long, value_name = "CA", value_parser = external_ca)]
    external_ca: Vec<ExternalCas>,
    /// Log driver of tasks whose service names none ("" = none named)
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Option of that log driver
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    log_opt: Vec<(String, String)>,
    /// Add or change a label of the cluster
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label_add: Vec<(String, String)>,
    /// Remove a label of the cluster
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
}

impl ClusterFlags {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn apply(&self, spec: &mut ClusterSpec) -> Result<(), String> {
        set(&mut spec.auto_lock_managers, self.autolock);
        if self.cert_expiry.is_some() {
            spec.ca_config.node_cert_expiry = self.cert_expiry;
        }
        if self.dispatcher_heartbeat.is_some() {
            spec.heartbeat_period = self.dispatcher_heartbeat;
        }
        set(&mut spec.task_history_retention_limit, self.task_history_limit);
        set(&mut spec.raft.snapshot_interval, self.snapshot_interval);
        set(&mut spec.raft.keep_old_snapshots, self.max_snapshots);
        set(&mut spec.raft.log_entries_for_slow_followers, self.log_entries_for_slow_followers);
        set(&mut spec.raft.heartbeat_tick, self.heartbeat_tick);
        set(&mut spec.raft.election_tick, self.election_tick);
        set_external_cas(spec, &self.external_ca);
        self.apply_log_driver(&mut spec.task_log_driver)?;
        change_labels(&mut spec.annotations.labels, &self.label_rm, &self.label_add)
    }

    fn apply_log_driver(&self, place: &mut Option<Driver>) -> Result<(), String> {
        match &self.log_driver {
            Some(name) if name.is_empty() => *place = None,
            // Options of another driver mean nothing to this one.
            Some(name) => *place = Some(Driver { name: name.clone(), ..Driver::default() }),
            None => {}
        }
        match place {
            _ if self.log_opt.is_empty() => Ok(()),
            Some(driver) => {
                driver.options.extend(self.log_opt.iter().cloned());
                Ok(())
            }
            None => Err("--log-opt needs a driver; give --log-driver too".into()),
        }
    }
}

/// One `--external-ca`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExternalCas {
    /// There is to be none.
    Nobody,
    One(ExternalCa),
}

/// What was given replaces what there was; nothing given changes nothing.
pub fn set_external_cas(spec: &mut ClusterSpec, given: &[ExternalCas]) {
    let one = |given: &ExternalCas| match given {
        ExternalCas::Nobody => None,
        ExternalCas::One(ca) => Some(ca.clone()),
    };
    if !given.is_empty() {
        spec.ca_config.external_cas = given.iter().filter_map(one).collect();
    }
}

pub fn external_ca(text: &str) -> Result<ExternalCas, String> {
    if text == "none" {
        return Ok(ExternalCas::Nobody);
    }
    let mut ca = ExternalCa::default();
    let mut protocol = None;
    for (key, value) in fields(text)? {
        match key.as_str() {
            "protocol" => protocol = Some(value.to_ascii_lowercase()),
            "url" => ca.url = value,
            "cacert" => ca.ca_cert = std::fs::read(&value).map_err(|error| format!("cacert={value}: {error}"))?,
            _ => {
                ca.options.insert(key, value);
            }
        }
    }
    match protocol.as_deref() {
        Some("cfssl") if ca.url.is_empty() => Err("an external CA needs url=https://…".into()),
        Some("cfssl") => Ok(ExternalCas::One(ca)),
        Some(other) => Err(format!("protocol {other:?} is not known; use protocol=cfssl")),
        None => Err("an external CA needs protocol=cfssl".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use skep_types::{CaConfig, RaftConfig};

    #[derive(Parser)]
    struct Update {
        #[command(flatten)]
        flags: ClusterFlags,
    }

    fn update(spec: &mut ClusterSpec, flags: &[&str]) -> Result<(), String> {
        Update::try_parse_from(std::iter::once(&"update").chain(flags)).unwrap().flags.apply(spec)
    }

    #[test]
    fn every_setting_has_its_flag() {
        let mut spec = ClusterSpec::default();
        let flags = "--autolock --cert-expiry 2h --dispatcher-heartbeat 7s --task-history-limit=-1 --snapshot-interval 11 --max-snapshots 12 \
                     --log-entries-for-slow-followers 13 --heartbeat-tick 2 --election-tick 20 --log-driver json-file --log-opt max-size=1m \
                     --label-add a=b --external-ca protocol=cfssl,url=https://ca:8888,profile=x";
        update(&mut spec, &flags.split_whitespace().collect::<Vec<_>>()).unwrap();
        let mut wanted = ClusterSpec {
            task_history_retention_limit: -1,
            raft: RaftConfig {
                snapshot_interval: 11,
                keep_old_snapshots: 12,
                log_entries_for_slow_followers: 13,
                heartbeat_tick: 2,
                election_tick: 20,
            },
            heartbeat_period: Some(Duration::from_secs(7)),
            ca_config: CaConfig {
                node_cert_expiry: Some(Duration::from_secs(7200)),
                external_cas: vec![ExternalCa {
                    url: "https://ca:8888".into(),
                    options: [("profile".to_owned(), "x".to_owned())].into(),
                    ca_cert: Vec::new(),
                }],
                ..CaConfig::default()
            },
            task_log_driver: Some(Driver { name: "json-file".into(), options: [("max-size".to_owned(), "1m".to_owned())].into() }),
            auto_lock_managers: true,
            ..ClusterSpec::default()
        };
        wanted.annotations.labels.insert("a".into(), "b".into());
        assert_eq!(spec, wanted);
        update(&mut spec, &["--autolock=false", "--log-driver", "", "--external-ca", "none", "--label-rm", "a"]).unwrap();
        assert!(!spec.auto_lock_managers && spec.task_log_driver.is_none() && spec.ca_config.external_cas.is_empty());
        assert!(spec.annotations.labels.is_empty());
    }

    #[test]
    fn nothing_given_changes_nothing() {
        let mut spec = ClusterSpec::default();
        update(&mut spec, &[]).unwrap();
        assert_eq!(spec, ClusterSpec::default());
        assert!(Update::try_parse_from(["update"]).unwrap().flags.is_empty());
        assert!(!Update::try_parse_from(["update", "--autolock=false"]).unwrap().flags.is_empty());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert!(update(&mut ClusterSpec::default(), &["--log-opt", "a=b"]).unwrap_err().contains("--log-driver"));
        for wrong in ["", "url=https://x", "protocol=acme,url=https://x", "protocol=cfssl", "protocol=cfssl,url=u,cacert=/nonexistent"] {
            assert!(external_ca(wrong).is_err(), "{wrong}");
        }
        assert!(Update::try_parse_from(["update", "--task-history-limit=-2"]).is_err());
    }
}
