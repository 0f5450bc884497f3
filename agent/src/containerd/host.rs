//! What this kernel can do.

use super::spec::HostFacts;
use std::path::Path;

/// As found at this moment.
pub(super) fn host_facts() -> HostFacts {
    let uname = nix::sys::utsname::uname().ok();
    let text = |pick: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        uname.as_ref().map(|name| pick(name).to_string_lossy().into_owned()).unwrap_or_default()
    };
    let release = text(|name| name.release());
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let cgroup_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    HostFacts {
        architecture: match text(|name| name.machine()).as_str() {
            "aarch64" => "arm64".into(),
            "x86_64" => "amd64".into(),
            other => other.to_owned(),
        },
        kernel: (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)),
        cgroup_v2,
        // v2 counts swap wherever there is any; v1 only when told so at boot.
        swap_accounting: cgroup_v2 || Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
    }
}
