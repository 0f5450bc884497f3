use crate::host::{Host, curl_from};
use crate::process::run;
use crate::sweep;
use anyhow::{Context, Result};
use std::ops::{Deref, DerefMut};

/// How a lab differs from the usual.
#[derive(Debug, Clone, Default)]
pub struct LabOptions {
    /// Added to skepd's environment, such as `SKEP_FAILPOINT`.
    pub environment: Vec<(String, String)>,
}

/// A host with its own network namespace, containerd and skepd, and a client namespace joined to it by a cable.
///
/// The host is 198.18.0.1 and fd18::1, the client 198.18.0.2 and fd18::2; both only exist inside the two namespaces.
pub struct Lab {
    host: Host,
    client: String,
    // Removed last.
    _dir: tempfile::TempDir,
}

/// The address of the host, as the client sees it.
const HOST: &str = "198.18.0.1";
/// The client's own address.
const CLIENT: &str = "198.18.0.2";

impl Lab {
    pub const HOST: &'static str = HOST;
    pub const CLIENT: &'static str = CLIENT;

    /// Namespaces, cable and containerd; skepd is not started yet.
    ///
    /// # Errors
    /// If anything cannot be made; what was made is removed.
    pub fn new(options: LabOptions) -> Result<Self> {
        sweep::clear_the_dead();
        let tag = sweep::new_tag();
        let dir = sweep::new_dir(&tag)?;
        let mut host = Host::new("host", dir.path().to_owned(), format!("{tag}h"), tag.clone())?;
        host.set_environment(options.environment);
        let mut lab = Self { host, client: format!("{tag}c"), _dir: dir };
        lab.lay_cable()?;
        lab.start_containerd()?;
        Ok(lab)
    }

    /// A lab whose host is a swarm of its own and has the demonstration image `whoami:latest`.
    ///
    /// # Errors
    /// See [`new`](Self::new).
    pub fn swarm(options: LabOptions) -> Result<Self> {
        let mut lab = Self::new(options)?;
        lab.start_skepd()?;
        lab.ctl(&["cluster", "init", "--advertise-addr", HOST])?.success().context("cluster init")?;
        let image = crate::process::whoami_image()?;
        lab.ctl(&["image", "load", "-q", "-i", &image.to_string_lossy()])?.success().context("image load")?;
        Ok(lab)
    }

    fn lay_cable(&self) -> Result<()> {
        let (host, client) = (self.host.namespace(), self.client.as_str());
        run("ip", &["netns", "add", client])?.success()?;
        run("ip", &["-n", client, "link", "set", "lo", "up"])?.success()?;
        run("ip", &["link", "add", "eth0", "netns", host, "type", "veth", "peer", "name", "eth0", "netns", client])?.success()?;
        for (namespace, v4, v6) in [(host, "198.18.0.1/24", "fd18::1/64"), (client, "198.18.0.2/24", "fd18::2/64")] {
            run("ip", &["-n", namespace, "addr", "add", v4, "dev", "eth0"])?.success()?;
            run("ip", &["-n", namespace, "addr", "add", v6, "dev", "eth0", "nodad"])?.success()?;
            run("ip", &["-n", namespace, "link", "set", "eth0", "up"])?.success()?;
        }
        run("ip", &["-n", host, "route", "add", "default", "via", CLIENT])?.success()?;
        Ok(())
    }

    #[must_use]
    pub fn host_namespace(&self) -> String {
        self.host.namespace().to_owned()
    }

    #[must_use]
    pub fn client_namespace(&self) -> String {
        self.client.clone()
    }

    /// What the client gets from a URL.
    ///
    /// # Errors
    /// If nothing answers within 10 s or the answer is not a success.
    pub fn curl(&self, url: &str) -> Result<String> {
        curl_from(&self.client, url)
    }
}

impl Deref for Lab {
    type Target = Host;
    fn deref(&self) -> &Host {
        &self.host
    }
}

impl DerefMut for Lab {
    fn deref_mut(&mut self) -> &mut Host {
        &mut self.host
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        self.host.kill_all();
        let mut debris = self.host.debris();
        debris.namespaces.push(self.client.clone());
        sweep::sweep_loudly(&debris);
    }
}
