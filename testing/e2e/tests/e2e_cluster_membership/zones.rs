//! Tasks spread over what nodes' labels say.

use super::SOON;
use anyhow::{Result, ensure};
use skep_kit::{Cluster, Scenario, eventually};
use std::collections::BTreeMap;

/// How many tasks of a service run on each of the hosts m1, w1, w2, w3.
fn counts(cluster: &Cluster, service: &str, tasks: usize) -> Result<[usize; 4]> {
    let mut by_host = BTreeMap::new();
    for (host, _) in cluster.wait_running(0, service, tasks)? {
        *by_host.entry(host).or_insert(0) += 1;
    }
    Ok([0, 1, 2, 3].map(|host| by_host.get(&Some(host)).copied().unwrap_or(0)))
}

#[test]
fn tasks_are_spread_over_the_values_of_a_label_first_and_over_nodes_then() -> Result<()> {
    Scenario::new("zones", 1, 3).named().run(|cluster| {
        for (node, label) in [("w1", "zone=a"), ("w2", "zone=a"), ("w3", "zone=b"), ("w1", "rack=1"), ("w2", "rack=2"), ("w3", "rack=1")] {
            cluster.ctl(0, &["node", "update", "--label-add", label, node])?.success()?;
        }
        let create = |name: &str, replicas: &str, flags: &[&str]| {
            let first = ["service", "create", "-d", "--name", name, "--replicas", replicas, "--restart-delay", "0s"];
            cluster.ctl(0, &[&first[..], flags, &["whoami", "sleep"]].concat())?.success()
        };
        let workers = ["--constraint", "node.role==worker"];
        let zones = ["--placement-pref", "spread=node.labels.zone"];
        create("even", "6", &workers)?;
        ensure!(counts(cluster, "even", 6)? == [0, 2, 2, 2], "{:?}", counts(cluster, "even", 6)?);
        create("zones", "6", &[&workers[..], &zones].concat())?;
        let [_, w1, w2, w3] = counts(cluster, "zones", 6)?;
        ensure!(w1 + w2 == 3 && w3 == 3 && w1.abs_diff(w2) == 1, "w1 {w1}, w2 {w2}, w3 {w3}");
        // A node without the label is a zone of its own.
        create("three", "6", &zones)?;
        ensure!(counts(cluster, "three", 6)? == [2, 1, 1, 2], "{:?}", counts(cluster, "three", 6)?);
        // By rack first, then by zone: w2 is alone in its rack.
        create("racks", "8", &[&workers[..], &["--placement-pref", "spread=node.labels.rack"], &zones].concat())?;
        ensure!(counts(cluster, "racks", 8)? == [0, 2, 4, 2], "{:?}", counts(cluster, "racks", 8)?);

        // Those that lose their node go where their zone has fewest; the preference of a running service moves nobody by itself.
        cluster.ctl(0, &["node", "update", "--availability", "drain", "w1"])?.success()?;
        for (service, tasks) in [("racks", 8), ("zones", 6)] {
            eventually(SOON, "the drained node is left", || Ok(ensure!(counts(cluster, service, tasks)?[1] == 0)))?;
        }
        let [_, w1, w2, w3] = counts(cluster, "zones", 6)?;
        ensure!((w1, w2, w3) == (0, 3, 3), "w1 {w1}, w2 {w2}, w3 {w3}");
        // An update that names no preference keeps it; one that takes it away is spread over nodes.
        cluster.ctl(0, &["node", "update", "--availability", "active", "w1"])?.success()?;
        cluster.ctl(0, &["service", "scale", "-d", "zones=8"])?.success()?;
        let [_, w1, w2, w3] = counts(cluster, "zones", 8)?;
        ensure!(w1 + w2 == 4 && w3 == 4, "w1 {w1}, w2 {w2}, w3 {w3}");
        for service in ["even", "zones", "three", "racks"] {
            cluster.ctl(0, &["service", "rm", service])?.success()?;
        }
        Ok(())
    })
}
