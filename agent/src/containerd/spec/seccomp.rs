//! Seccomp profiles in Docker's form, made into the form of the runtime specification.
//!
//! Docker's form adds conditions: rules for some architectures, capabilities or kernels only. The default profile is
//! Docker's list of system calls as data (without io_uring, as Docker since 25).

use oci_spec::runtime::LinuxSeccomp;
use serde::Deserialize;

const DEFAULT: &str = include_str!("seccomp_default.json");

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<serde_json::Value>>,
    #[serde(default)]
    #[allow(dead_code, reason = "may be there, says nothing")]
    comment: Option<String>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// What conditions look at.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// As images say: `amd64`, `arm64`.
    pub architecture: &'a str,
    /// Major and minor number.
    pub kernel: (u32, u32),
    /// Of the container, with `CAP_`.
    pub capabilities: &'a [String],
}

impl Host<'_> {
    fn native(&self) -> &'static str {
        match self.architecture {
            "arm64" => "SCMP_ARCH_AARCH64",
            _ => "SCMP_ARCH_X86_64",
        }
    }

    fn kernel_at_least(&self, wanted: &str) -> bool {
        let mut parts = wanted.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        self.kernel >= (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }

    fn has_architecture(&self, list: &[String]) -> bool {
        list.iter().any(|name| name == self.architecture)
    }

    fn applies(&self, rule: &Rule) -> bool {
        let has = |cap: &String| self.capabilities.contains(cap);
        let Condition { arches, caps, min_kernel } = &rule.includes;
        let included = arches.as_ref().is_none_or(|list| list.is_empty() || self.has_architecture(list))
            && caps.as_ref().is_none_or(|list| list.iter().all(has))
            && min_kernel.as_ref().is_none_or(|wanted| self.kernel_at_least(wanted));
        let Condition { arches, caps, min_kernel } = &rule.excludes;
        let excluded = arches.as_ref().is_some_and(|list| self.has_architecture(list))
            || caps.as_ref().is_some_and(|list| list.iter().any(has))
            || min_kernel.as_ref().is_some_and(|wanted| self.kernel_at_least(wanted));
        included && !excluded
    }
}

/// Docker's default profile for a container with these capabilities on this host.
#[must_use]
pub fn default_profile(host: Host<'_>) -> LinuxSeccomp {
    parse(DEFAULT.as_bytes(), host).expect("the built-in profile is tested")
}

/// A profile in Docker's form.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse(profile: &[u8], host: Host<'_>) -> Result<LinuxSeccomp, String> {
    let profile: Profile = serde_json::from_slice(profile).map_err(|error| error.to_string())?;
    let native = host.native();
    let mut architectures = profile.architectures.unwrap_or_default();
    for map in profile.arch_map.unwrap_or_default() {
        if map.architecture == native {
            architectures.push(map.architecture);
            architectures.extend(map.sub_architectures.unwrap_or_default());
        }
    }
    let mut syscalls = Vec::new();
    for rule in profile.syscalls.unwrap_or_default() {
        if !host.applies(&rule) {
            continue;
        }
        let names: Vec<String> = rule.name.into_iter().chain(rule.names.unwrap_or_default()).collect();
        if names.is_empty() {
            return Err("a rule names no system call".into());
        }
        let mut entry = serde_json::json!({ "names": names, "action": rule.action });
        if let Some(errno) = rule.errno_ret {
            entry["errnoRet"] = errno.into();
        }
        if let Some(args) = rule.args.filter(|args| !args.is_empty()) {
            entry["args"] = args.into();
        }
        syscalls.push(entry);
    }
    let mut text = serde_json::json!({ "defaultAction": profile.default_action, "syscalls": syscalls });
    if let Some(errno) = profile.default_errno_ret {
        text["defaultErrnoRet"] = errno.into();
    }
    if !architectures.is_empty() {
        text["architectures"] = architectures.into();
    }
    if let Some(flags) = profile.flags.filter(|flags| !flags.is_empty()) {
        text["flags"] = flags.into();
    }
    serde_json::from_value(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxSeccompAction;

    fn host<'a>(architecture: &'a str, capabilities: &'a [String]) -> Host<'a> {
        Host { architecture, kernel: (6, 1), capabilities }
    }

    fn allows(profile: &LinuxSeccomp, name: &str) -> bool {
        let rules = profile.syscalls().as_ref().unwrap();
        rules.iter().any(|rule| {
            rule.action() == LinuxSeccompAction::ScmpActAllow && rule.args().is_none() && rule.names().iter().any(|n| n == name)
        })
    }

    #[test]
    fn the_default_profile_follows_capabilities_and_architecture() {
        let plain = default_profile(host("amd64", &[]));
        assert!(allows(&plain, "read") && allows(&plain, "arch_prctl") && allows(&plain, "ptrace"));
        assert!(!allows(&plain, "mount") && !allows(&plain, "io_uring_setup") && !allows(&plain, "chroot"));
        let caps = ["CAP_SYS_ADMIN".to_owned(), "CAP_SYS_CHROOT".to_owned()];
        let admin = default_profile(host("amd64", &caps));
        assert!(allows(&admin, "mount") && allows(&admin, "chroot") && allows(&admin, "clone3"));
        let arm = default_profile(host("arm64", &[]));
        assert!(!allows(&arm, "arch_prctl") && allows(&arm, "cacheflush"));
        assert_eq!(arm.architectures().as_ref().unwrap().len(), 2);
    }

    #[test]
    fn a_bad_profile_is_refused_in_words() {
        assert!(parse(b"{", host("amd64", &[])).is_err());
        assert!(parse(br#"{"defaultAction":"SCMP_ACT_NONSENSE"}"#, host("amd64", &[])).is_err());
        let empty = br#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":[],"action":"SCMP_ACT_ALLOW"}]}"#;
        assert_eq!(parse(empty, host("amd64", &[])).unwrap_err(), "a rule names no system call");
    }
}
