use crate::cluster::{Cluster, Size};
use crate::sweep::{self, Debris};
use anyhow::{Context, Result, ensure};
use std::fmt::Write;
use std::path::PathBuf;

/// A cluster of hosts on this machine that stays until it is stopped, for people to play with.
#[derive(Debug, Clone)]
pub struct Standing {
    dir: PathBuf,
}

impl Standing {
    /// In this directory, which must be short: unix socket paths end at 107 bytes.
    #[must_use]
    pub fn in_dir(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Begins the names of namespaces and cgroups: several clusters can stand beside each other.
    fn prefix(&self) -> String {
        match self.dir.file_name().and_then(|name| name.to_str()) {
            None | Some("skep-cluster") => "skep-".to_owned(),
            Some(name) => format!("{name}-"),
        }
    }

    /// Makes the hosts and the cluster; says how to talk to each.
    ///
    /// # Errors
    /// If there is one already, or it cannot be made; then nothing is left of it.
    pub fn start(&self, size: Size) -> Result<String> {
        ensure!(size.managers > 0, "a cluster has at least one manager");
        ensure!(
            !self.dir.exists(),
            "{} exists: a cluster is there already; `make cluster-stop` removes it, and SKEP_CLUSTER_DIR names another place",
            self.dir.display()
        );
        std::fs::create_dir_all(&self.dir)?;
        let made = Cluster::that_stays(size, &self.prefix(), self.dir.clone()).and_then(|mut cluster| {
            cluster.start_all()?;
            cluster.form(&[])?;
            let how = how_to_talk(&cluster)?;
            cluster.stay();
            Ok(how)
        });
        made.inspect_err(|_| drop(std::fs::remove_dir_all(&self.dir)))
    }

    /// Ends all processes and removes everything.
    ///
    /// # Errors
    /// If there is none, or something cannot be removed.
    pub fn stop(&self) -> Result<()> {
        ensure!(self.dir.exists(), "there is no cluster in {}", self.dir.display());
        let hosts: Vec<PathBuf> = sweep::host_dirs(&self.dir).into_iter().skip(1).collect();
        let prefix = self.prefix();
        let names: Vec<String> = hosts.iter().filter_map(|host| Some(format!("{prefix}{}", host.file_name()?.to_str()?))).collect();
        let namespaces = names.iter().cloned().chain([format!("{prefix}switch")]).collect();
        let problems = sweep::sweep(&Debris { dir: self.dir.clone(), hosts, namespaces, cgroups: names });
        ensure!(problems.is_empty(), "{}", problems.join("\n"));
        std::fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }
}

fn how_to_talk(cluster: &Cluster) -> Result<String> {
    let swarmctl = crate::binary("swarmctl")?;
    let mut text = String::new();
    for host in cluster.managers().chain(cluster.workers()) {
        let machine = &cluster[host];
        writeln!(
            text,
            "{}   {}   {}\n    {} --socket {} cluster status\n    nsenter --net=/run/netns/{} bash",
            machine.name(),
            cluster.address(host),
            cluster.address_v6(host),
            swarmctl.display(),
            machine.socket().display(),
            machine.namespace(),
        )?;
    }
    writeln!(
        text,
        "\nA client on the same network:\n    nsenter --net=/run/netns/{} curl http://{}:8080/\n",
        cluster.client_namespace(),
        cluster.address(0)
    )?;
    writeln!(
        text,
        "Logs: {}/*/skepd.log. `make cluster-stop` removes everything.",
        cluster[0].dir().parent().unwrap_or(cluster[0].dir()).display()
    )?;
    Ok(text)
}
