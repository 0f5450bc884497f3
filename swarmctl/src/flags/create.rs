//! `service create`.

use super::grammar::{Grant, Grants, capability, environment, generic, grant, host_line, network, spread, sysctl, ulimit};
use super::mount::mount;
use super::port::publish;
use super::shared::SharedFlags;
use super::values::pair;
use clap::Args;
use skep_types::{
    Annotations, ContainerSpec, DnsConfig, EndpointSpec, GenericResource, Mount, NetworkAttachmentConfig, Placement, PortConfig, Sensitive,
    ServiceMode, ServiceSpec, TaskSpec, Ulimit,
};
use std::sync::Arc;

/// `service create`.
#[derive(Debug, Default, Args)]
pub struct CreateFlags {
    #[command(flatten)]
    pub shared: SharedFlags,
    /// Name of the service (default: made up)
    #[arg(long)]
    pub name: Option<String>,
    /// replicated, global, replicated-job or global-job
    #[arg(long, default_value = "replicated", value_parser = ["replicated", "global", "replicated-job", "global-job"])]
    mode: String,
    /// Label of the service
    #[arg(long, short = 'l', value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Label of the containers
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    container_label: Vec<(String, String)>,
    /// Environment variable; NAME alone takes its value from here
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// File of environment variables, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// Additional group of the user in the container
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// Extra line of the hosts file
    #[arg(long, value_name = "NAME:IP", value_parser = host_line)]
    host: Vec<String>,
    /// DNS server
    #[arg(long, value_name = "IP")]
    dns: Vec<std::net::IpAddr>,
    /// DNS search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// DNS option
    #[arg(long, value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Attach a file system: type=bind|volume|tmpfs,source=…,target=…[,readonly,…]
    #[arg(long, value_name = "MOUNT", value_parser = mount)]
    mount: Vec<Mount>,
    /// Publish a port: [[ADDRESS:]PUBLISHED:]TARGET[/PROTOCOL] or published=…,target=…,protocol=tcp|udp|sctp,mode=ingress|host
    /// [,address=IP|,interface=LINK: only there on each node][,affinity=source: a client keeps its task][,allow=CIDR…: only clients within]
    #[arg(long, short = 'p', value_name = "PORT", value_parser = publish)]
    publish: Vec<Vec<PortConfig>>,
    /// Attach to a network: NAME or name=…,alias=…
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    network: Vec<NetworkAttachmentConfig>,
    /// Only nodes for which this holds, such as node.labels.disk==ssd
    #[arg(long, value_name = "CONSTRAINT")]
    constraint: Vec<String>,
    /// Spread over a label: spread=node.labels.NAME
    #[arg(long, value_name = "PREFERENCE", value_parser = spread)]
    placement_pref: Vec<String>,
    /// Generic resource kept free for a task: KIND=COUNT
    #[arg(long, value_name = "KIND=COUNT", value_parser = generic)]
    generic_resource: Vec<GenericResource>,
    /// Secret given to the tasks: NAME or source=…,target=…,uid=…,gid=…,mode=…
    #[arg(long, value_name = "SECRET", value_parser = grant)]
    secret: Vec<Grant>,
    /// Config given to the tasks: NAME or source=…,target=…,uid=…,gid=…,mode=…
    #[arg(long, value_name = "CONFIG", value_parser = grant)]
    config: Vec<Grant>,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY", value_parser = capability)]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY", value_parser = capability)]
    cap_drop: Vec<String>,
    /// Namespaced kernel parameter
    #[arg(long, value_name = "NAME=VALUE", value_parser = sysctl)]
    sysctl: Vec<(String, String)>,
    /// Resource limit of the processes: NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT", value_parser = ulimit)]
    ulimit: Vec<Ulimit>,
}

impl CreateFlags {
    /// The spec, and the secrets and configs whose ids are still to be looked up.
    pub fn spec(
        &self,
        image: &str,
        args: &[String],
        name: String,
        registry_auth: Sensitive<String>,
    ) -> Result<(ServiceSpec, Grants), String> {
        let container = ContainerSpec {
            image: image.to_owned(),
            labels: self.container_label.iter().cloned().collect(),
            args: args.to_vec(),
            env: environment(&self.env, &self.env_file)?,
            groups: self.group.clone(),
            hosts: self.host.clone(),
            dns: self.dns_config(),
            mounts: self.mount.clone(),
            sysctls: self.sysctl.iter().cloned().collect(),
            capability_add: self.cap_add.clone(),
            capability_drop: self.cap_drop.clone(),
            ulimits: self.ulimit.clone(),
            registry_auth,
            ..ContainerSpec::default()
        };
        let mut task = TaskSpec { networks: self.network.clone(), ..TaskSpec::new(container) };
        if !self.constraint.is_empty() || !self.placement_pref.is_empty() {
            task.placement =
                Some(Placement { constraints: self.constraint.clone(), spread: self.placement_pref.clone(), ..Placement::default() });
        }
        if !self.generic_resource.is_empty() {
            task.resources.get_or_insert_default().reservations.generic = self.generic_resource.clone();
        }
        let mut spec = ServiceSpec {
            annotations: Annotations { name, labels: self.label.iter().cloned().collect(), ..Annotations::default() },
            task: Arc::new(task),
            mode: self.service_mode(),
            update: None,
            rollback: None,
            networks: Vec::new(),
            endpoint: None,
        };
        let ports: Vec<PortConfig> = self.publish.iter().flatten().cloned().collect();
        if !ports.is_empty() {
            spec.endpoint = Some(EndpointSpec { ports, ..EndpointSpec::default() });
        }
        self.shared.apply(&mut spec)?;
        Ok((spec, Grants { secrets: self.secret.clone(), configs: self.config.clone() }))
    }

    fn service_mode(&self) -> ServiceMode {
        match self.mode.as_str() {
            "global" => ServiceMode::Global,
            "global-job" => ServiceMode::GlobalJob,
            "replicated-job" => ServiceMode::ReplicatedJob { max_concurrent: 1, total_completions: 1 },
            _ => ServiceMode::Replicated { replicas: 1 },
        }
    }

    fn dns_config(&self) -> Option<DnsConfig> {
        let config = DnsConfig {
            nameservers: self.dns.iter().map(ToString::to_string).collect(),
            search: self.dns_search.clone(),
            options: self.dns_option.clone(),
        };
        Some(config).filter(|config| *config != DnsConfig::default())
    }
}
