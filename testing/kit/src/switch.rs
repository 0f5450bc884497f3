use crate::process::run;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

/// A bridge in a namespace of its own, to which the hosts' cables lead. It is the client, too: it reaches every host, and no cut
/// touches what it sends itself.
#[derive(Debug)]
pub(crate) struct Switch {
    namespace: String,
    cuts: BTreeSet<Cut>,
}

/// What the switch does not pass on. Hosts are numbered from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cut {
    Host(usize),
    Way {
        from: usize,
        to: usize,
    },
    /// One packet in so many, of what goes to or comes from the host.
    Loss {
        host: usize,
        one_in: u32,
    },
}

impl Switch {
    pub(crate) fn new(namespace: String) -> Result<Self> {
        run("ip", &["netns", "add", &namespace])?.success()?;
        let switch = Self { namespace, cuts: BTreeSet::new() };
        switch.ip(&["link", "set", "lo", "up"])?;
        // Without spanning tree a port forwards at once.
        switch.ip(&["link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"])?;
        switch.ip(&["addr", "add", &format!("{}/24", v4(CLIENT)), "dev", "br0"])?;
        switch.ip(&["addr", "add", &format!("{}/64", v6(CLIENT)), "dev", "br0", "nodad"])?;
        switch.ip(&["link", "set", "br0", "up"])?;
        Ok(switch)
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        run("ip", &[&["-n", &self.namespace], arguments].concat())?.success()?;
        Ok(())
    }

    /// Lays a cable to the host with this number and gives it its addresses.
    pub(crate) fn plug(&self, number: usize, namespace: &str) -> Result<()> {
        let port = format!("p{number}");
        run("ip", &["link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", &port, "netns", &self.namespace])?
            .success()?;
        self.ip(&["link", "set", &port, "master", "br0", "up"])?;
        let at = ["-n", namespace];
        let last = FIRST + u32::try_from(number)?;
        run("ip", &[&at[..], &["addr", "add", &format!("{}/24", v4(last)), "dev", "eth0"]].concat())?.success()?;
        run("ip", &[&at[..], &["addr", "add", &format!("{}/64", v6(last)), "dev", "eth0", "nodad"]].concat())?.success()?;
        run("ip", &[&at[..], &["link", "set", "eth0", "up"]].concat())?.success()?;
        run("ip", &[&at[..], &["route", "add", "default", "via", &v4(CLIENT)]].concat())?.success()?;
        Ok(())
    }

    pub(crate) fn cut(&mut self, cut: Cut) -> Result<()> {
        self.cuts.insert(cut);
        self.load()
    }

    /// Passes everything on again that concerns the host, or anything at all.
    pub(crate) fn heal(&mut self, host: Option<usize>) -> Result<()> {
        self.cuts.retain(|cut| match cut {
            Cut::Host(cut) | Cut::Loss { host: cut, .. } => host.is_some_and(|host| host != *cut),
            Cut::Way { from, to } => host.is_some_and(|host| host != *from && host != *to),
        });
        self.load()
    }

    /// The whole table at once: there is no moment with half of the rules.
    fn load(&self) -> Result<()> {
        let rules: Vec<String> = self.cuts.iter().flat_map(|cut| rules(*cut)).collect();
        let text = format!(
            "table bridge skep\ndelete table bridge skep\ntable bridge skep {{\n chain forward {{\n  type filter hook forward priority 0; policy accept;\n{}\n }}\n}}\n",
            rules.join("\n")
        );
        let mut child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .args(["nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("was piped")?.write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "nft refused:\n{text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// Neighbours are still found: what is sent just does not arrive, as behind a filter somewhere on the way.
fn rules(cut: Cut) -> Vec<String> {
    const IP: &str = "meta protocol { ip, ip6 }";
    match cut {
        Cut::Host(host) => vec![format!("  iifname \"p{host}\" {IP} drop"), format!("  oifname \"p{host}\" {IP} drop")],
        Cut::Way { from, to } => vec![format!("  iifname \"p{from}\" oifname \"p{to}\" {IP} drop")],
        Cut::Loss { host, one_in } => {
            ["iifname", "oifname"].iter().map(|way| format!("  {way} \"p{host}\" {IP} numgen random mod {one_in} == 0 drop")).collect()
        }
    }
}

/// The first host's last byte of address; below are those of a lab.
const FIRST: u32 = 11;
/// The switch's own.
const CLIENT: u32 = 2;

fn v4(last: u32) -> String {
    format!("198.18.0.{last}")
}

fn v6(last: u32) -> String {
    format!("fd18::{last:x}")
}

/// Addresses of the host with this number.
pub(crate) fn address_v4(number: usize) -> String {
    v4(FIRST + u32::try_from(number).expect("few hosts"))
}

pub(crate) fn address_v6(number: usize) -> String {
    v6(FIRST + u32::try_from(number).expect("few hosts"))
}

/// The client's address, which is every host's way to elsewhere.
pub(crate) fn client_v4() -> String {
    v4(CLIENT)
}
