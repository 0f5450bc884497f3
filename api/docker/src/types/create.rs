//! The body of `POST /containers/create`. Only read, and kept as it came for whoever inspects the container: what of it is done is
//! decided in `container/create`.

use super::container_spec::{Healthcheck, Ulimit};
use super::mount::Mount;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skep_types::Labels;
use std::collections::BTreeMap;

/// A command: as a list, or from old clients as one word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Words {
    One(String),
    Many(Vec<String>),
}

impl Words {
    pub fn list(self) -> Vec<String> {
        match self {
            Self::One(word) => vec![word],
            Self::Many(words) => words,
        }
    }
}

/// Docker's `Config` with the two parts that only this request has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateBody {
    pub hostname: String,
    pub domainname: String,
    pub user: String,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    pub exposed_ports: BTreeMap<String, Value>,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub env: Vec<String>,
    pub cmd: Option<Words>,
    pub healthcheck: Option<Healthcheck>,
    pub image: String,
    pub volumes: BTreeMap<String, Value>,
    pub working_dir: String,
    pub entrypoint: Option<Words>,
    pub labels: Labels,
    pub stop_signal: String,
    /// Seconds.
    pub stop_timeout: Option<i64>,
    pub host_config: HostConfig,
    pub networking_config: NetworkingConfig,
    // What is refused unless it says nothing.
    pub network_disabled: Value,
    pub mac_address: Value,
    pub on_build: Value,
    pub shell: Value,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkingConfig {
    pub endpoints_config: BTreeMap<String, EndpointConfig>,
}

/// A place on a network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EndpointConfig {
    #[serde(rename = "IPAMConfig")]
    pub ipam_config: Value,
    pub links: Value,
    pub aliases: Vec<String>,
    pub mac_address: Value,
    pub driver_opts: Value,
    pub gw_priority: Value,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LogConfig {
    pub r#type: String,
    pub config: Labels,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Binding {
    pub host_ip: String,
    pub host_port: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    pub name: String,
    pub maximum_retry_count: i64,
}

/// What of the host a container gets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    pub binds: Vec<String>,
    pub log_config: LogConfig,
    pub network_mode: String,
    pub port_bindings: BTreeMap<String, Vec<Binding>>,
    pub restart_policy: RestartPolicy,
    pub auto_remove: bool,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub dns: Vec<String>,
    pub dns_options: Vec<String>,
    pub dns_search: Vec<String>,
    pub extra_hosts: Vec<String>,
    pub group_add: Vec<String>,
    pub oom_score_adj: i64,
    pub readonly_rootfs: bool,
    pub security_opt: Vec<String>,
    pub tmpfs: BTreeMap<String, String>,
    pub shm_size: i64,
    pub sysctls: Labels,
    pub runtime: String,
    pub isolation: String,
    pub memory: i64,
    pub memory_swap: i64,
    pub memory_swappiness: Option<i64>,
    pub nano_cpus: i64,
    pub cpu_period: i64,
    pub cpu_quota: i64,
    pub pids_limit: Option<i64>,
    pub ulimits: Vec<Ulimit>,
    pub mounts: Vec<Mount>,
    pub init: Option<bool>,
    pub ipc_mode: String,
    /// Of the client's window: clients say it again once the process runs.
    pub console_size: Value,
    // What is refused unless it says nothing.
    #[serde(rename = "ContainerIDFile")]
    pub container_id_file: Value,
    pub volume_driver: Value,
    pub volumes_from: Value,
    pub annotations: Value,
    pub cgroupns_mode: Value,
    pub cgroup: Value,
    pub links: Value,
    pub pid_mode: Value,
    pub privileged: Value,
    pub publish_all_ports: Value,
    pub storage_opt: Value,
    #[serde(rename = "UTSMode")]
    pub uts_mode: Value,
    pub userns_mode: Value,
    pub cpu_shares: Value,
    pub cgroup_parent: Value,
    pub blkio_weight: Value,
    pub blkio_weight_device: Value,
    pub blkio_device_read_bps: Value,
    pub blkio_device_write_bps: Value,
    #[serde(rename = "BlkioDeviceReadIOps")]
    pub blkio_device_read_iops: Value,
    #[serde(rename = "BlkioDeviceWriteIOps")]
    pub blkio_device_write_iops: Value,
    pub cpu_realtime_period: Value,
    pub cpu_realtime_runtime: Value,
    pub cpuset_cpus: Value,
    pub cpuset_mems: Value,
    pub devices: Value,
    pub device_cgroup_rules: Value,
    pub device_requests: Value,
    pub kernel_memory: Value,
    #[serde(rename = "KernelMemoryTCP")]
    pub kernel_memory_tcp: Value,
    pub memory_reservation: Value,
    pub oom_kill_disable: Value,
    pub cpu_count: Value,
    pub cpu_percent: Value,
    #[serde(rename = "IOMaximumIOps")]
    pub io_maximum_iops: Value,
    #[serde(rename = "IOMaximumBandwidth")]
    pub io_maximum_bandwidth: Value,
    pub masked_paths: Option<Vec<String>>,
    pub readonly_paths: Option<Vec<String>>,
    pub capabilities: Value,
}

/// Whether a field says nothing: what Go's clients send for what their user left out.
pub fn is_unsaid(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

impl CreateBody {
    /// Fields that this node does nothing for, and what they say.
    pub fn unsupported(&self) -> Vec<(&'static str, &Value)> {
        let own = [
            ("NetworkDisabled", &self.network_disabled),
            ("MacAddress", &self.mac_address),
            ("OnBuild", &self.on_build),
            ("Shell", &self.shell),
        ];
        own.into_iter().filter(|(_, value)| !is_unsaid(value)).chain(self.host_config.unsupported()).collect()
    }
}

impl HostConfig {
    /// See [`CreateBody::unsupported`].
    pub fn unsupported(&self) -> Vec<(&'static str, &Value)> {
        let all = [
            ("HostConfig.ContainerIDFile", &self.container_id_file),
            ("HostConfig.VolumeDriver", &self.volume_driver),
            ("HostConfig.VolumesFrom", &self.volumes_from),
            ("HostConfig.Annotations", &self.annotations),
            ("HostConfig.CgroupnsMode", &self.cgroupns_mode),
            ("HostConfig.Cgroup", &self.cgroup),
            ("HostConfig.Links", &self.links),
            ("HostConfig.PidMode", &self.pid_mode),
            ("HostConfig.Privileged", &self.privileged),
            ("HostConfig.PublishAllPorts", &self.publish_all_ports),
            ("HostConfig.StorageOpt", &self.storage_opt),
            ("HostConfig.UTSMode", &self.uts_mode),
            ("HostConfig.UsernsMode", &self.userns_mode),
            ("HostConfig.CpuShares", &self.cpu_shares),
            ("HostConfig.CgroupParent", &self.cgroup_parent),
            ("HostConfig.BlkioWeight", &self.blkio_weight),
            ("HostConfig.BlkioWeightDevice", &self.blkio_weight_device),
            ("HostConfig.BlkioDeviceReadBps", &self.blkio_device_read_bps),
            ("HostConfig.BlkioDeviceWriteBps", &self.blkio_device_write_bps),
            ("HostConfig.BlkioDeviceReadIOps", &self.blkio_device_read_iops),
            ("HostConfig.BlkioDeviceWriteIOps", &self.blkio_device_write_iops),
            ("HostConfig.CpuRealtimePeriod", &self.cpu_realtime_period),
            ("HostConfig.CpuRealtimeRuntime", &self.cpu_realtime_runtime),
            ("HostConfig.CpusetCpus", &self.cpuset_cpus),
            ("HostConfig.CpusetMems", &self.cpuset_mems),
            ("HostConfig.Devices", &self.devices),
            ("HostConfig.DeviceCgroupRules", &self.device_cgroup_rules),
            ("HostConfig.DeviceRequests", &self.device_requests),
            ("HostConfig.KernelMemory", &self.kernel_memory),
            ("HostConfig.KernelMemoryTCP", &self.kernel_memory_tcp),
            ("HostConfig.MemoryReservation", &self.memory_reservation),
            ("HostConfig.OomKillDisable", &self.oom_kill_disable),
            ("HostConfig.CpuCount", &self.cpu_count),
            ("HostConfig.CpuPercent", &self.cpu_percent),
            ("HostConfig.IOMaximumIOps", &self.io_maximum_iops),
            ("HostConfig.IOMaximumBandwidth", &self.io_maximum_bandwidth),
            ("HostConfig.Capabilities", &self.capabilities),
        ];
        all.into_iter().filter(|(_, value)| !is_unsaid(value)).collect()
    }
}
