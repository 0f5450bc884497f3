//! What a container is made of.

use super::{FromWire, ToWire, message, number, plain};
use crate::v1;
use skep_types::{
    AppArmor, BindOptions, ContainerSpec, CredentialSpec, DnsConfig, FieldError, HealthConfig, Isolation, Mount, MountConsistency,
    MountPropagation, MountType, Privileges, Seccomp, SelinuxContext, TmpfsOptions, Ulimit, VolumeOptions,
};
use v1::privileges::credential_spec::Source;
use v1::privileges::seccomp_opts::SeccompMode;

number!(MountType, v1::mount::Type { Bind = Bind, Volume = Volume, Tmpfs = Tmpfs, NamedPipe = Npipe, Cluster = Cluster });
number!(MountConsistency, v1::mount::Consistency { Default = Default, Consistent = Consistent, Cached = Cached, Delegated = Delegated });
number!(MountPropagation, v1::mount::bind_options::Propagation {
    RPrivate = Rprivate,
    Private = Private,
    RShared = Rshared,
    Shared = Shared,
    RSlave = Rslave,
    Slave = Slave,
});
number!(Isolation, v1::container_spec::Isolation { Default = Default, Process = Process, HyperV = Hyperv });

message!(BindOptions <=> v1::mount::BindOptions {
    propagation,
    non_recursive: nonrecursive,
    create_mountpoint: createmountpoint,
    read_only_non_recursive: readonlynonrecursive,
    read_only_force_recursive: readonlyforcerecursive,
});
message!(VolumeOptions <=> v1::mount::VolumeOptions { no_copy: nocopy, labels, driver: driver_config, subpath });
message!(TmpfsOptions <=> v1::mount::TmpfsOptions { size_bytes, mode, options });
message!(Mount <=> v1::Mount {
    kind: r#type,
    source,
    target,
    read_only: readonly,
    consistency,
    bind: bind_options,
    volume: volume_options,
    tmpfs: tmpfs_options,
});
message!(HealthConfig <=> v1::HealthConfig { test, interval, timeout, retries, start_period, start_interval });
message!(DnsConfig <=> v1::container_spec::DnsConfig { nameservers, search, options });
message!(Ulimit <=> v1::container_spec::Ulimit { name, soft, hard });
message!(SelinuxContext <=> v1::privileges::SeLinuxContext { disable, user, role, kind: r#type, level });
message!(Privileges <=> v1::Privileges {
    credential_spec => credential,
    selinux: selinux_context,
    seccomp,
    apparmor,
    no_new_privileges,
});
message!(ContainerSpec <=> v1::ContainerSpec {
    image,
    labels,
    command,
    args,
    hostname,
    env,
    dir,
    user,
    groups,
    privileges,
    init,
    tty,
    open_stdin,
    read_only,
    stop_signal,
    mounts,
    stop_grace_period,
    registry_auth: pull_options => pull_options,
    secrets,
    configs,
    hosts,
    dns: dns_config,
    healthcheck,
    isolation,
    pids_limit,
    sysctls,
    capability_add,
    capability_drop,
    ulimits,
    oom_score_adj,
});

impl FromWire for Seccomp {
    type Wire = v1::privileges::SeccompOpts;
    fn from_wire(wire: v1::privileges::SeccompOpts) -> Result<Self, FieldError> {
        let v1::privileges::SeccompOpts { mode, profile } = wire;
        let mode = match SeccompMode::try_from(mode) {
            Ok(SeccompMode::Custom) => return Ok(Self::Custom(profile)),
            Ok(SeccompMode::Default) => Self::Default,
            Ok(SeccompMode::Unconfined) => Self::Unconfined,
            Err(_) => {
                let problem = format!("{mode} is not known; use one of 0 (DEFAULT), 1 (UNCONFINED), 2 (CUSTOM)");
                return Err(FieldError::new("mode", problem));
            }
        };
        if profile.is_empty() { Ok(mode) } else { Err(FieldError::new("profile", "is used with mode 2 (CUSTOM) only; leave it empty")) }
    }
}

impl ToWire for Seccomp {
    type Wire = v1::privileges::SeccompOpts;
    fn to_wire(&self) -> v1::privileges::SeccompOpts {
        let (mode, profile) = match self {
            Self::Default => (SeccompMode::Default, Vec::new()),
            Self::Unconfined => (SeccompMode::Unconfined, Vec::new()),
            Self::Custom(profile) => (SeccompMode::Custom, profile.clone()),
        };
        v1::privileges::SeccompOpts { mode: mode as i32, profile }
    }
}

impl FromWire for AppArmor {
    type Wire = v1::privileges::AppArmorOpts;
    fn from_wire(wire: v1::privileges::AppArmorOpts) -> Result<Self, FieldError> {
        use v1::privileges::app_armor_opts::AppArmorMode;
        match AppArmorMode::try_from(wire.mode) {
            Ok(AppArmorMode::Default) => Ok(Self::Default),
            Ok(AppArmorMode::Disabled) => Ok(Self::Disabled),
            Err(_) => Err(FieldError::new("mode", format!("{} is not known; use one of 0 (DEFAULT), 1 (DISABLED)", wire.mode))),
        }
    }
}

impl ToWire for AppArmor {
    type Wire = v1::privileges::AppArmorOpts;
    fn to_wire(&self) -> v1::privileges::AppArmorOpts {
        use v1::privileges::app_armor_opts::AppArmorMode;
        let mode = match self {
            Self::Default => AppArmorMode::Default,
            Self::Disabled => AppArmorMode::Disabled,
        };
        v1::privileges::AppArmorOpts { mode: mode as i32 }
    }
}

impl FromWire for CredentialSpec {
    type Wire = Source;
    fn from_wire(wire: Source) -> Result<Self, FieldError> {
        Ok(match wire {
            Source::File(file) => Self::File(plain::from("file", file)?),
            Source::Registry(value) => Self::Registry(plain::from("registry", value)?),
            Source::Config(id) => Self::Config(plain::from("config", id)?),
        })
    }
}

impl ToWire for CredentialSpec {
    type Wire = Source;
    fn to_wire(&self) -> Source {
        match self.clone() {
            Self::File(file) => Source::File(file),
            Self::Registry(value) => Source::Registry(value),
            Self::Config(id) => Source::Config(id),
        }
    }
}

/// Credentials for the registry: a message with one text.
pub(super) mod pull_options {
    use super::{FieldError, plain};
    use crate::v1::container_spec::PullOptions;
    use skep_types::Sensitive;

    pub fn from(label: &str, wire: Option<PullOptions>) -> Result<Sensitive<String>, FieldError> {
        plain::from("registry_auth", wire.unwrap_or_default().registry_auth).map(Sensitive).map_err(|error| error.inside(label))
    }

    pub fn to(value: &Sensitive<String>) -> Option<PullOptions> {
        (!value.0.is_empty()).then(|| PullOptions { registry_auth: value.0.clone() })
    }
}

/// A message round a oneof that may be empty.
pub(super) mod credential {
    use super::{CredentialSpec, FieldError, FromWire, ToWire};
    use crate::v1::privileges::CredentialSpec as Wire;

    pub fn from(label: &str, wire: Option<Wire>) -> Result<Option<CredentialSpec>, FieldError> {
        wire.and_then(|wire| wire.source).map(CredentialSpec::from_wire).transpose().map_err(|error| error.inside(label))
    }

    pub fn to(value: &Option<CredentialSpec>) -> Option<Wire> {
        value.as_ref().map(|value| Wire { source: Some(value.to_wire()) })
    }
}
