//! Random values of all types, so that every field meets the wire.

use skep_types::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Random numbers from a seed; `fill` is the percentage of optional parts that are there.
pub struct Source {
    state: u64,
    fill: u64,
}

impl Source {
    pub fn new(seed: u64, fill: u64) -> Self {
        Self { state: seed, fill }
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn filled(&mut self) -> bool {
        self.next() % 100 < self.fill
    }

    /// Small, large and extreme numbers alike.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next() % 8,
            1 => self.next(),
            2 => u64::MAX,
            _ => self.next() >> 40,
        }
    }
}

pub trait Sample: Sized {
    fn sample(source: &mut Source) -> Self;
}

macro_rules! sample {
    ($($type:ty: |$source:ident| $value:expr;)+) => {
        $(impl Sample for $type {
            fn sample($source: &mut Source) -> Self {
                $value
            }
        })+
    };
}

macro_rules! fields {
    ($($type:ident { $($field:ident),+ $(,)? })+) => {
        $(impl Sample for $type {
            fn sample(source: &mut Source) -> Self {
                Self { $($field: Sample::sample(source)),+ }
            }
        })+
    };
}

macro_rules! one_of {
    ($($type:ident { $($variant:ident),+ $(,)? })+) => {
        $(impl Sample for $type {
            fn sample(source: &mut Source) -> Self {
                let all = [$(Self::$variant),+];
                all[source.below(all.len())]
            }
        })+
    };
}

fn text(source: &mut Source) -> String {
    const LETTERS: [char; 12] = ['a', 'Z', '0', ' ', '/', '=', '\n', '"', 'ß', '蜂', '🐝', '\u{7f}'];
    (0..source.below(12)).map(|_| LETTERS[source.below(LETTERS.len())]).collect()
}

sample! {
    bool: |source| source.next() & 1 == 1;
    u8: |source| source.next() as u8;
    i32: |source| source.number() as i32;
    u32: |source| source.number() as u32;
    i64: |source| source.number() as i64;
    u64: |source| source.number();
    String: |source| if source.filled() { text(source) } else { String::new() };
    Timestamp: |source| Self(source.number() as i64);
    Version: |source| Self(source.number());
    // What genuine peers hold: 63 bits of nanoseconds.
    Duration: |source| Self::from_nanos(source.number() >> 1);
    (String, String): |source| (text(source), text(source));
}

impl<T: Sample> Sample for Option<T> {
    fn sample(source: &mut Source) -> Self {
        source.filled().then(|| T::sample(source))
    }
}

impl<T: Sample> Sample for Vec<T> {
    fn sample(source: &mut Source) -> Self {
        if source.filled() { (0..=source.below(2)).map(|_| T::sample(source)).collect() } else { Self::new() }
    }
}

impl<K: Sample + Ord, V: Sample> Sample for BTreeMap<K, V> {
    fn sample(source: &mut Source) -> Self {
        if source.filled() { (0..=source.below(2)).map(|_| (K::sample(source), V::sample(source))).collect() } else { Self::new() }
    }
}

impl<T: Sample> Sample for Arc<T> {
    fn sample(source: &mut Source) -> Self {
        Self::new(T::sample(source))
    }
}

impl<T: Sample> Sample for Box<T> {
    fn sample(source: &mut Source) -> Self {
        Self::new(T::sample(source))
    }
}

impl<T: Sample> Sample for Sensitive<T> {
    fn sample(source: &mut Source) -> Self {
        Self(T::sample(source))
    }
}

macro_rules! ids {
    ($($id:ident),+) => { $(impl Sample for $id {
        fn sample(source: &mut Source) -> Self {
            Self::from_random(std::array::from_fn(|_| u8::sample(source)))
        }
    })+ };
}
ids!(ClusterId, NodeId, ServiceId, TaskId, NetworkId, SecretId, ConfigId);

one_of! {
    RestartCondition { Never, OnFailure, Any }
    FailureAction { Pause, Continue, Rollback }
    UpdateOrder { StopFirst, StartFirst }
    UpdateState { Unknown, Updating, Paused, Completed, RollbackStarted, RollbackPaused, RollbackCompleted }
    ResolutionMode { Vip, DnsRoundRobin }
    Protocol { Tcp, Udp, Sctp }
    PublishMode { Ingress, Host }
    Affinity { None, Source }
    ResourceKind { Task, Secret, Config, Volume }
    MountType { Bind, Volume, Tmpfs, NamedPipe, Cluster }
    MountPropagation { RPrivate, Private, RShared, Shared, RSlave, Slave }
    MountConsistency { Default, Consistent, Cached, Delegated }
    AppArmor { Default, Disabled }
    Isolation { Default, Process, HyperV }
    NodeRole { Worker, Manager }
    Membership { Pending, Accepted }
    Availability { Active, Pause, Drain }
    NodeState { Unknown, Down, Ready, Disconnected }
    IssuanceState { Unknown, Renew, Pending, Issued, Failed, Rotate }
    AddressFamily { Unknown, Ipv4, Ipv6 }
}

fields! {
    Annotations { name, labels, indices }
    Driver { name, options }
    Resources { nano_cpus, memory_bytes, generic }
    ResourceRequirements { limits, reservations, swap_bytes, memory_swappiness }
    Platform { architecture, os }
    RestartPolicy { condition, delay, max_attempts, window }
    Placement { constraints, spread, platforms, max_replicas }
    EndpointSpec { mode, ports }
    VirtualIp { network_id, addr }
    Endpoint { spec, ports, virtual_ips }
    ResourceReference { resource_id, kind }
    TaskSpec { runtime, resources, restart, placement, log_driver, networks, force_update, resource_references }
    ServiceSpec { annotations, task, mode, update, rollback, networks, endpoint }
    JobStatus { iteration, last_execution }
    Service {
        id, meta, spec, spec_version, previous_spec, previous_spec_version, endpoint, update_status, job_status, pending_delete,
    }
    BindOptions { propagation, non_recursive, create_mountpoint, read_only_non_recursive, read_only_force_recursive }
    VolumeOptions { no_copy, labels, driver, subpath }
    TmpfsOptions { size_bytes, mode, options }
    Mount { kind, source, target, read_only, consistency, bind, volume, tmpfs }
    HealthConfig { test, interval, timeout, retries, start_period, start_interval }
    DnsConfig { nameservers, search, options }
    SelinuxContext { disable, user, role, kind, level }
    Privileges { credential_spec, selinux, seccomp, apparmor, no_new_privileges }
    Ulimit { name, soft, hard }
    ContainerSpec {
        image, labels, command, args, hostname, env, dir, user, groups, privileges, init, tty, open_stdin, read_only, stop_signal, mounts,
        stop_grace_period, registry_auth, secrets, configs, hosts, dns, healthcheck, isolation, pids_limit, sysctls, capability_add,
        capability_drop, ulimits, oom_score_adj,
    }
    ContainerStatus { container_id, pid, exit_code }
    Task {
        id, meta, spec, spec_version, service_id, slot, node_id, annotations, service_annotations, status, desired_state, networks,
        endpoint, log_driver, assigned_generic_resources, job_iteration,
    }
    NodeSpec { annotations, desired_role, membership, availability, drain_order }
    NodeStatus { state, message, addr }
    Plugin { kind, name }
    EngineDescription { engine_version, labels, plugins }
    TlsInfo { trust_root, cert_issuer_subject, cert_issuer_public_key }
    NodeDescription { hostname, platform, resources, engine, tls_info, fips }
    IpamConfig { family, subnet, range, gateway, reserved }
    IpamOptions { driver, configs }
    NetworkSpec { annotations, driver, ipv6_enabled, internal, ipam, attachable, ingress, config_from }
    Network { id, meta, spec, driver_state, ipam, pending_delete }
    NetworkAttachmentConfig { target, aliases, addresses, driver_attachment_opts }
    Certificate { role, csr, state, err, certificate, cn }
    JoinTokens { worker, manager }
    RootRotation { ca_cert, ca_key, cross_signed_ca_cert }
    ClusterRootCa { ca_key, ca_cert, ca_cert_hash, join_tokens, root_rotation, last_forced_rotation }
    EncryptionKey { subsystem, key, lamport_time }
    ExternalCa { url, options, ca_cert }
    CaConfig { node_cert_expiry, external_cas, signing_ca_cert, signing_ca_key, force_rotate }
    RaftConfig { snapshot_interval, keep_old_snapshots, log_entries_for_slow_followers, heartbeat_tick, election_tick }
    ClusterSpec { annotations, task_history_retention_limit, raft, heartbeat_period, ca_config, task_log_driver, auto_lock_managers }
    SecretSpec { annotations, data, templating, driver }
    Secret { id, meta, spec, internal }
    ConfigSpec { annotations, data, templating }
    Config { id, meta, spec }
    FileTarget { name, uid, gid, mode }
    SecretReference { secret_id, secret_name, file }
    ConfigReference { config_id, config_name, target }
}

sample! {
    TaskState: |source| Self::ALL[source.below(Self::ALL.len())];
    GenericResource: |source| match source.below(2) {
        0 => Self::Named { kind: text(source), value: text(source) },
        _ => Self::Discrete { kind: text(source), value: i64::sample(source) },
    };
    ServiceMode: |source| match source.below(4) {
        0 => Self::Replicated { replicas: source.number() >> 1 },
        1 => Self::Global,
        2 => Self::ReplicatedJob { max_concurrent: source.number() >> 1, total_completions: source.number() >> 1 },
        _ => Self::GlobalJob,
    };
    Runtime: |source| match source.below(8) {
        0 => Self::Attachment { container_id: text(source) },
        1 => Self::Generic { kind: text(source), type_url: text(source), payload: Vec::sample(source) },
        _ => Self::Container(Box::sample(source)),
    };
    UpdateConfig: |source| Self {
        parallelism: Sample::sample(source),
        delay: Sample::sample(source),
        failure_action: Sample::sample(source),
        monitor: Sample::sample(source),
        max_failure_ratio: source.below(1001) as f32 / 1000.0,
        order: Sample::sample(source),
    };
    PortConfig: |source| Self {
        name: Sample::sample(source),
        protocol: Sample::sample(source),
        target_port: source.below(65536) as u32,
        published_port: source.below(65536) as u32,
        publish_mode: Sample::sample(source),
        place: match source.below(3) {
            0 => PublishPlace::Everywhere,
            1 => PublishPlace::Address(std::net::Ipv4Addr::from(source.next() as u32).into()),
            _ => PublishPlace::Interface(format!("eth{}", source.below(9))),
        },
        affinity: Sample::sample(source),
        allow: (0..source.below(3)).map(|_| std::net::IpAddr::from(std::net::Ipv6Addr::from(u128::from(source.next()))).into()).collect(),
    };
    Seccomp: |source| match source.below(3) {
        0 => Self::Default,
        1 => Self::Unconfined,
        _ => Self::Custom(Vec::sample(source)),
    };
    CredentialSpec: |source| match source.below(3) {
        0 => Self::File(text(source)),
        1 => Self::Registry(text(source)),
        _ => Self::Config(text(source)),
    };
    ConfigTarget: |source| match source.below(2) {
        0 => Self::File(FileTarget::sample(source)),
        _ => Self::Runtime,
    };
    // `created` never travels.
    Meta: |source| Self {
        version: Sample::sample(source),
        created_at: Sample::sample(source),
        updated_at: Sample::sample(source),
        created: skep_types::Version::default(),
    };
    // Nor does `began`.
    UpdateStatus: |source| Self {
        state: Sample::sample(source),
        started_at: Sample::sample(source),
        completed_at: Sample::sample(source),
        message: Sample::sample(source),
        began: skep_types::Version::default(),
    };
    // Nor does `running_since`.
    TaskStatus: |source| Self {
        timestamp: Sample::sample(source),
        state: Sample::sample(source),
        message: Sample::sample(source),
        err: Sample::sample(source),
        container: Sample::sample(source),
        ports: Sample::sample(source),
        applied_by: Sample::sample(source),
        applied_at: Sample::sample(source),
        running_since: None,
    };
    // `tunnel_epochs` never travel.
    Cluster: |source| Self {
        id: Sample::sample(source),
        meta: Sample::sample(source),
        spec: Sample::sample(source),
        root_ca: Sample::sample(source),
        network_bootstrap_keys: Sample::sample(source),
        encryption_key_lamport_clock: Sample::sample(source),
        blacklisted_certificates: Sample::sample(source),
        unlock_keys: Sample::sample(source),
        fips: Sample::sample(source),
        default_address_pool: Sample::sample(source),
        subnet_size: Sample::sample(source),
        vxlan_port: Sample::sample(source),
        tunnel_epochs: TunnelEpochs::default(),
    };
    // `overlay` never travels.
    Node: |source| Self {
        id: Sample::sample(source),
        meta: Sample::sample(source),
        spec: Sample::sample(source),
        description: Sample::sample(source),
        status: Sample::sample(source),
        certificate: Sample::sample(source),
        role: Sample::sample(source),
        attachments: Sample::sample(source),
        vxlan_port: Sample::sample(source),
        overlay: None,
    };
    // An empty driver state or IPAM of an attached network means none, for genuine workers must always find them.
    NetworkAttachment: |source| {
        let mut network = Network::sample(source);
        network.driver_state.take_if(|driver| *driver == Driver::default());
        network.ipam.take_if(|ipam| *ipam == IpamOptions::default());
        Self {
            network: Arc::new(network),
            addresses: Sample::sample(source),
            aliases: Sample::sample(source),
            driver_attachment_opts: Sample::sample(source),
        }
    };
    Object: |source| match source.below(7) {
        0 => Self::Cluster(Arc::sample(source)),
        1 => Self::Node(Arc::sample(source)),
        2 => Self::Service(Arc::sample(source)),
        3 => Self::Task(Arc::sample(source)),
        4 => Self::Network(Arc::sample(source)),
        5 => Self::Secret(Arc::sample(source)),
        _ => Self::Config(Arc::sample(source)),
    };
}
