//! `service create` and `service update`: the flags, and the specs they make.

use super::mount::mount;
use super::port::{protocol, publish};
use super::values::{bytes, duration, fields, nano_cpus, pair, words};
use clap::Args;
use skep_types::{
    Annotations, ContainerSpec, DnsConfig, Driver, EndpointSpec, FailureAction, GenericResource, HealthConfig, Labels, Mount,
    NetworkAttachmentConfig, Placement, PortConfig, ResolutionMode, ResourceRequirements, RestartCondition, RestartPolicy, Runtime,
    ServiceMode, ServiceSpec, TaskSpec, Ulimit, UpdateConfig, UpdateOrder,
};
use std::sync::Arc;
use std::time::Duration;

/// Secrets and configs by name, as the flags ask for them; ids are looked up later.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Grants {
    pub secrets: Vec<Grant>,
    pub configs: Vec<Grant>,
}

/// One `--secret` or `--config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub source: String,
    pub target: String,
    pub uid: String,
    pub gid: String,
    pub mode: u32,
}

fn grant(text: &str) -> Result<Grant, String> {
    let mut grant = Grant { source: String::new(), target: String::new(), uid: "0".into(), gid: "0".into(), mode: 0o444 };
    if text.contains('=') {
        for (key, value) in fields(text)? {
            match key.as_str() {
                "source" | "src" => grant.source = value,
                "target" => grant.target = value,
                "uid" => grant.uid = value,
                "gid" => grant.gid = value,
                "mode" => {
                    grant.mode = u32::from_str_radix(&value, 8)
                        .ok()
                        .filter(|mode| *mode <= 0o777)
                        .ok_or_else(|| format!("mode={value}: write octal permissions such as 0440"))?;
                }
                other => return Err(format!("option {other:?} is not known; use source, target, uid, gid, mode")),
            }
        }
    } else {
        grant.source = text.to_owned();
    }
    if grant.source.is_empty() {
        return Err(format!("{text:?} names no source"));
    }
    if grant.target.is_empty() {
        grant.target.clone_from(&grant.source);
    }
    Ok(grant)
}

fn network(text: &str) -> Result<NetworkAttachmentConfig, String> {
    let mut wanted = NetworkAttachmentConfig::default();
    if !text.contains('=') {
        wanted.target = text.to_owned();
        return Ok(wanted);
    }
    for (key, value) in fields(text)? {
        match key.as_str() {
            "name" => wanted.target = value,
            "alias" => wanted.aliases.push(value),
            "driver-opt" => wanted.driver_attachment_opts.extend([pair(&value)?]),
            other => return Err(format!("network option {other:?} is not known; use name, alias, driver-opt")),
        }
    }
    if wanted.target.is_empty() { Err(format!("network {text:?} has no name")) } else { Ok(wanted) }
}

fn ulimit(text: &str) -> Result<Ulimit, String> {
    let wrong = || format!("{text:?} is not a limit; write name=soft[:hard], for example nofile=1024:4096");
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |text: &str| text.parse::<i64>().map_err(|_| wrong());
    Ok(Ulimit { name: name.to_owned(), soft: number(soft)?, hard: number(hard)? })
}

fn generic(text: &str) -> Result<GenericResource, String> {
    let (kind, value) = text.split_once('=').ok_or_else(|| format!("{text:?}: write kind=count"))?;
    let value = value.parse().map_err(|_| format!("{text:?}: services reserve generic resources by count, kind=3"))?;
    Ok(GenericResource::Discrete { kind: kind.to_owned(), value })
}

fn spread(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some(("spread", descriptor)) if !descriptor.is_empty() => Ok(descriptor.to_owned()),
        _ => Err(format!("{text:?}: write spread=node.labels.NAME")),
    }
}

fn host_line(text: &str) -> Result<String, String> {
    let (name, address) = text.split_once([':', '=']).ok_or_else(|| format!("{text:?}: write name:IP"))?;
    let address: std::net::IpAddr =
        address.trim_matches(['[', ']']).parse().map_err(|_| format!("{text:?}: {address:?} is not an IP address"))?;
    Ok(format!("{address} {name}"))
}

fn capability(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    Ok(if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") })
}

fn sysctl(text: &str) -> Result<(String, String), String> {
    if text.contains('=') { pair(text) } else { Err(format!("{text:?}: write name=value")) }
}

fn condition(text: &str) -> Result<RestartCondition, String> {
    Ok(match text {
        "none" => RestartCondition::Never,
        "on-failure" => RestartCondition::OnFailure,
        "any" => RestartCondition::Any,
        other => return Err(format!("{other:?} is not a restart condition; use none, on-failure or any")),
    })
}

fn failure_action(text: &str) -> Result<FailureAction, String> {
    Ok(match text {
        "pause" => FailureAction::Pause,
        "continue" => FailureAction::Continue,
        "rollback" => FailureAction::Rollback,
        other => return Err(format!("{other:?} is not a failure action; use pause, continue or rollback")),
    })
}

fn rollback_action(text: &str) -> Result<FailureAction, String> {
    match failure_action(text)? {
        FailureAction::Rollback => Err("a rollback that fails cannot be rolled back; use pause or continue".into()),
        other => Ok(other),
    }
}

fn order(text: &str) -> Result<UpdateOrder, String> {
    Ok(match text {
        "stop-first" => UpdateOrder::StopFirst,
        "start-first" => UpdateOrder::StartFirst,
        other => return Err(format!("{other:?} is not an order; use stop-first or start-first")),
    })
}

fn ratio(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err(format!("{text:?} is not a ratio between 0 and 1")),
    }
}

fn endpoint_mode(text: &str) -> Result<ResolutionMode, String> {
    Ok(match text {
        "vip" => ResolutionMode::Vip,
        "dnsrr" => ResolutionMode::DnsRoundRobin,
        other => return Err(format!("{other:?} is not an endpoint mode; use vip or dnsrr")),
    })
}

/// Flags with the same name and meaning on create and update.
#[derive(Debug, Default, Args)]
pub struct SharedFlags {
    /// Number of tasks (replicated services) or of completions (replicated jobs)
    #[arg(long, value_name = "N")]
    replicas: Option<u64>,
    /// Most tasks on one node (0 = no limit)
    #[arg(long, value_name = "N")]
    replicas_max_per_node: Option<u64>,
    /// Most tasks of a job at the same time
    #[arg(long, value_name = "N")]
    max_concurrent: Option<u64>,
    /// Replace the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Working directory in the container
    #[arg(long, short = 'w', value_name = "DIR")]
    workdir: Option<String>,
    /// User name or id (name|uid[:group|gid])
    #[arg(long, short = 'u', value_name = "USER")]
    user: Option<String>,
    /// Host name of the container (may be a template)
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Mount the root file system read-only
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    read_only: Option<bool>,
    /// Allocate a terminal
    #[arg(long, short = 't', num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    tty: Option<bool>,
    /// Run an init process as pid 1 that reaps children and forwards signals
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    init: Option<bool>,
    /// Signal that stops the container
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Time between the stop signal and SIGKILL (default 10s)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    stop_grace_period: Option<Duration>,
    /// Most CPUs a task may use
    #[arg(long, value_name = "CPUS", value_parser = nano_cpus)]
    limit_cpu: Option<i64>,
    /// Most memory a task may use
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    limit_memory: Option<i64>,
    /// Most processes a task may have (0 = no limit)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    limit_pids: Option<i64>,
    /// CPUs kept free for a task
    #[arg(long, value_name = "CPUS", value_parser = nano_cpus)]
    reserve_cpu: Option<i64>,
    /// Memory kept free for a task
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    reserve_memory: Option<i64>,
    /// Swap on top of the memory limit (-1 = unlimited)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = swap)]
    memory_swap: Option<i64>,
    /// How readily memory is swapped out (0 to 100, -1 = default)
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = clap::value_parser!(i64).range(-1..=100))]
    memory_swappiness: Option<i64>,
    /// How readily the kernel kills the task when memory is short (-1000 to 1000)
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = clap::value_parser!(i64).range(-1000..=1000))]
    oom_score_adj: Option<i64>,
    /// When a task that ended is replaced: none, on-failure or any (default any)
    #[arg(long, value_name = "CONDITION", value_parser = condition)]
    restart_condition: Option<RestartCondition>,
    /// Wait before a restart (default 5s)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    restart_delay: Option<Duration>,
    /// Most restarts before giving up (0 = no limit)
    #[arg(long, value_name = "N")]
    restart_max_attempts: Option<u64>,
    /// Window in which restarts are counted
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    restart_window: Option<Duration>,
    /// Slots updated at a time (0 = all at once)
    #[arg(long, value_name = "N")]
    update_parallelism: Option<u64>,
    /// Wait between slots
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    update_delay: Option<Duration>,
    /// How long a new task is watched for failure (default 5s)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    update_monitor: Option<Duration>,
    /// What to do when an update fails: pause, continue or rollback
    #[arg(long, value_name = "ACTION", value_parser = failure_action)]
    update_failure_action: Option<FailureAction>,
    /// Share of failed tasks that is tolerated (0 to 1)
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    update_max_failure_ratio: Option<f32>,
    /// stop-first or start-first
    #[arg(long, value_name = "ORDER", value_parser = order)]
    update_order: Option<UpdateOrder>,
    /// Slots rolled back at a time (0 = all at once)
    #[arg(long, value_name = "N")]
    rollback_parallelism: Option<u64>,
    /// Wait between slots of a rollback
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    rollback_delay: Option<Duration>,
    /// How long a rolled back task is watched
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    rollback_monitor: Option<Duration>,
    /// What to do when a rollback fails: pause or continue
    #[arg(long, value_name = "ACTION", value_parser = rollback_action)]
    rollback_failure_action: Option<FailureAction>,
    /// Share of failed tasks that is tolerated in a rollback
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    rollback_max_failure_ratio: Option<f32>,
    /// stop-first or start-first, for rollbacks
    #[arg(long, value_name = "ORDER", value_parser = order)]
    rollback_order: Option<UpdateOrder>,
    /// Command that tells whether the task is healthy
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// The same without a shell, for images that have none: program and arguments
    #[arg(long, value_name = "COMMAND", conflicts_with = "health_cmd")]
    health_exec: Option<String>,
    /// Time between checks (default 30s)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    health_interval: Option<Duration>,
    /// Longest a check may take (default 30s)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    health_timeout: Option<Duration>,
    /// Failures in a row that make a task unhealthy (default 3)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    health_retries: Option<i32>,
    /// Time after the start in which failures do not count
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    health_start_period: Option<Duration>,
    /// Time between checks in the start period (default 5s)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    health_start_interval: Option<Duration>,
    /// Switch the image's health check off
    #[arg(long, conflicts_with_all = ["health_cmd", "health_exec"])]
    no_healthcheck: bool,
    /// vip or dnsrr
    #[arg(long, value_name = "MODE", value_parser = endpoint_mode)]
    endpoint_mode: Option<ResolutionMode>,
    /// Log driver (json-file or none)
    #[arg(long, value_name = "NAME")]
    log_driver: Option<String>,
    /// Option of the log driver, such as max-size=10m
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    log_opt: Vec<(String, String)>,
}

fn swap(text: &str) -> Result<i64, String> {
    if text == "-1" { Ok(-1) } else { bytes(text) }
}

/// Replaces `place` by `value` where the flag was given.
fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

impl SharedFlags {
    fn apply(&self, spec: &mut ServiceSpec) -> Result<(), String> {
        self.apply_mode(&mut spec.mode)?;
        let task = Arc::make_mut(&mut spec.task);
        if let Runtime::Container(container) = &mut task.runtime {
            self.apply_container(container)?;
        }
        self.apply_resources(task);
        self.apply_restart(task);
        if let Some(limit) = self.replicas_max_per_node {
            task.placement.get_or_insert_default().max_replicas = limit;
        }
        if self.log_driver.is_some() || !self.log_opt.is_empty() {
            let driver = task.log_driver.get_or_insert_with(|| Driver { name: "json-file".into(), ..Driver::default() });
            set(&mut driver.name, self.log_driver.clone());
            driver.options.extend(self.log_opt.iter().cloned());
        }
        self.apply_update(&mut spec.update);
        self.apply_rollback(&mut spec.rollback);
        if let Some(mode) = self.endpoint_mode {
            spec.endpoint.get_or_insert_default().mode = mode;
        }
        Ok(())
    }

    fn apply_mode(&self, mode: &mut ServiceMode) -> Result<(), String> {
        match (mode, self.replicas, self.max_concurrent) {
            (ServiceMode::Global | ServiceMode::GlobalJob, Some(_), _) => {
                Err("--replicas needs a replicated service; a global one runs once per node".into())
            }
            (ServiceMode::Global | ServiceMode::GlobalJob | ServiceMode::Replicated { .. }, _, Some(_)) => {
                Err("--max-concurrent needs --mode replicated-job".into())
            }
            (ServiceMode::Replicated { replicas }, wanted, None) => {
                set(replicas, wanted);
                Ok(())
            }
            (ServiceMode::ReplicatedJob { max_concurrent, total_completions }, total, concurrent) => {
                set(total_completions, total);
                set(max_concurrent, concurrent.or(total));
                Ok(())
            }
            (ServiceMode::Global | ServiceMode::GlobalJob, None, None) => Ok(()),
        }
    }

    fn apply_container(&self, container: &mut ContainerSpec) -> Result<(), String> {
        if let Some(entrypoint) = &self.entrypoint {
            container.command = words(entrypoint)?;
        }
        set(&mut container.dir, self.workdir.clone());
        set(&mut container.user, self.user.clone());
        set(&mut container.hostname, self.hostname.clone());
        set(&mut container.read_only, self.read_only);
        set(&mut container.tty, self.tty);
        container.init = self.init.or(container.init);
        set(&mut container.stop_signal, self.stop_signal.clone());
        container.stop_grace_period = self.stop_grace_period.or(container.stop_grace_period);
        set(&mut container.pids_limit, self.limit_pids);
        set(&mut container.oom_score_adj, self.oom_score_adj);
        self.apply_health(container)
    }

    fn apply_health(&self, container: &mut ContainerSpec) -> Result<(), String> {
        if self.no_healthcheck {
            container.healthcheck = Some(HealthConfig { test: vec!["NONE".into()], ..HealthConfig::default() });
            return Ok(());
        }
        let given = self.health_cmd.is_some()
            || self.health_exec.is_some()
            || self.health_retries.is_some()
            || [self.health_interval, self.health_timeout, self.health_start_period, self.health_start_interval]
                .iter()
                .any(Option::is_some);
        if !given {
            return Ok(());
        }
        let health = container.healthcheck.get_or_insert_default();
        set(&mut health.test, self.health_cmd.as_ref().map(|command| vec!["CMD-SHELL".into(), command.clone()]));
        if let Some(command) = &self.health_exec {
            health.test = std::iter::once("CMD".to_owned()).chain(words(command)?).collect();
        }
        health.interval = self.health_interval.or(health.interval);
        health.timeout = self.health_timeout.or(health.timeout);
        set(&mut health.retries, self.health_retries);
        health.start_period = self.health_start_period.or(health.start_period);
        health.start_interval = self.health_start_interval.or(health.start_interval);
        Ok(())
    }

    fn apply_resources(&self, task: &mut TaskSpec) {
        let mut resources = task.resources.take().unwrap_or_default();
        set(&mut resources.limits.nano_cpus, self.limit_cpu);
        set(&mut resources.limits.memory_bytes, self.limit_memory);
        set(&mut resources.reservations.nano_cpus, self.reserve_cpu);
        set(&mut resources.reservations.memory_bytes, self.reserve_memory);
        resources.swap_bytes = self.memory_swap.or(resources.swap_bytes);
        resources.memory_swappiness = self.memory_swappiness.or(resources.memory_swappiness);
        task.resources = Some(resources).filter(|resources| *resources != ResourceRequirements::default());
    }

    fn apply_restart(&self, task: &mut TaskSpec) {
        let given = self.restart_condition.is_some()
            || self.restart_delay.is_some()
            || self.restart_max_attempts.is_some()
            || self.restart_window.is_some();
        if !given {
            return;
        }
        let policy = task.restart.get_or_insert_with(|| RestartPolicy { condition: RestartCondition::Any, ..RestartPolicy::default() });
        set(&mut policy.condition, self.restart_condition);
        policy.delay = self.restart_delay.or(policy.delay);
        set(&mut policy.max_attempts, self.restart_max_attempts);
        policy.window = self.restart_window.or(policy.window);
    }

    fn apply_update(&self, config: &mut Option<UpdateConfig>) {
        let flags = RolloutFlags {
            parallelism: self.update_parallelism,
            delay: self.update_delay,
            monitor: self.update_monitor,
            failure_action: self.update_failure_action,
            max_failure_ratio: self.update_max_failure_ratio,
            order: self.update_order,
        };
        flags.apply(config);
    }

    fn apply_rollback(&self, config: &mut Option<UpdateConfig>) {
        let flags = RolloutFlags {
            parallelism: self.rollback_parallelism,
            delay: self.rollback_delay,
            monitor: self.rollback_monitor,
            failure_action: self.rollback_failure_action,
            max_failure_ratio: self.rollback_max_failure_ratio,
            order: self.rollback_order,
        };
        flags.apply(config);
    }
}

/// The six flags that update and rollback share.
#[derive(PartialEq, Default)]
struct RolloutFlags {
    parallelism: Option<u64>,
    delay: Option<Duration>,
    monitor: Option<Duration>,
    failure_action: Option<FailureAction>,
    max_failure_ratio: Option<f32>,
    order: Option<UpdateOrder>,
}

impl RolloutFlags {
    /// Any flag makes a config appear, filled with the defaults.
    fn apply(self, config: &mut Option<UpdateConfig>) {
        if self == Self::default() {
            return;
        }
        let config = config.get_or_insert_default();
        set(&mut config.parallelism, self.parallelism);
        set(&mut config.delay, self.delay);
        config.monitor = self.monitor.or(config.monitor);
        set(&mut config.failure_action, self.failure_action);
        set(&mut config.max_failure_ratio, self.max_failure_ratio);
        set(&mut config.order, self.order);
    }
}

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
    /// Publish a port: [PUBLISHED:]TARGET[/PROTOCOL] or published=…,target=…,protocol=…,mode=ingress|host
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

/// `NAME` alone takes the value from our environment and is dropped if there is none, as docker does.
fn environment(given: &[String], files: &[String]) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| format!("--env-file {file}: {error}"))?;
        found.extend(text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned));
    }
    found.extend(given.iter().cloned());
    let resolve = |entry: String| match entry.split_once('=') {
        Some(("", _)) => Err(format!("environment variable {entry:?} has no name")),
        Some(_) => Ok(Some(entry)),
        None if entry.is_empty() => Err("an environment variable has no name".into()),
        None => Ok(std::env::var(&entry).ok().map(|value| format!("{entry}={value}"))),
    };
    found.into_iter().map(resolve).filter_map(Result::transpose).collect()
}

impl CreateFlags {
    /// The spec, and the secrets and configs whose ids are still to be looked up.
    pub fn spec(&self, image: &str, args: &[String], name: String, registry_auth: String) -> Result<(ServiceSpec, Grants), String> {
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
            registry_auth: skep_types::Sensitive(registry_auth),
            ..ContainerSpec::default()
        };
        let mut task = TaskSpec {
            runtime: Runtime::Container(Box::new(container)),
            resources: None,
            restart: None,
            placement: None,
            log_driver: None,
            networks: self.network.clone(),
            force_update: 0,
            resource_references: Vec::new(),
        };
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

/// `service update`: like create, with `-add` and `-rm` for lists.
#[derive(Debug, Default, Args)]
pub struct UpdateFlags {
    #[command(flatten)]
    pub shared: SharedFlags,
    /// New image
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// New arguments of the command, split as a shell does
    #[arg(long, value_name = "COMMAND")]
    args: Option<String>,
    /// Replace all tasks even if nothing changed
    #[arg(long)]
    force: bool,
    /// Go back to the spec before the last update
    #[arg(long)]
    pub rollback: bool,
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label_add: Vec<(String, String)>,
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    container_label_add: Vec<(String, String)>,
    #[arg(long, value_name = "KEY")]
    container_label_rm: Vec<String>,
    #[arg(long, value_name = "NAME=VALUE")]
    env_add: Vec<String>,
    #[arg(long, value_name = "NAME")]
    env_rm: Vec<String>,
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    #[arg(long, value_name = "GROUP")]
    group_rm: Vec<String>,
    #[arg(long, value_name = "NAME:IP", value_parser = host_line)]
    host_add: Vec<String>,
    #[arg(long, value_name = "NAME:IP", value_parser = host_line)]
    host_rm: Vec<String>,
    #[arg(long, value_name = "IP")]
    dns_add: Vec<std::net::IpAddr>,
    #[arg(long, value_name = "IP")]
    dns_rm: Vec<std::net::IpAddr>,
    #[arg(long, value_name = "DOMAIN")]
    dns_search_add: Vec<String>,
    #[arg(long, value_name = "DOMAIN")]
    dns_search_rm: Vec<String>,
    #[arg(long, value_name = "OPTION")]
    dns_option_add: Vec<String>,
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
    #[arg(long, value_name = "MOUNT", value_parser = mount)]
    mount_add: Vec<Mount>,
    #[arg(long, value_name = "TARGET")]
    mount_rm: Vec<String>,
    #[arg(long, value_name = "PORT", value_parser = publish)]
    publish_add: Vec<Vec<PortConfig>>,
    /// TARGET[/PROTOCOL]
    #[arg(long, value_name = "TARGET")]
    publish_rm: Vec<String>,
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    network_add: Vec<NetworkAttachmentConfig>,
    #[arg(long, value_name = "NETWORK")]
    pub network_rm: Vec<String>,
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_add: Vec<String>,
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_rm: Vec<String>,
    #[arg(long, value_name = "PREFERENCE", value_parser = spread)]
    placement_pref_add: Vec<String>,
    #[arg(long, value_name = "PREFERENCE", value_parser = spread)]
    placement_pref_rm: Vec<String>,
    #[arg(long, value_name = "KIND=COUNT", value_parser = generic)]
    generic_resource_add: Vec<GenericResource>,
    #[arg(long, value_name = "KIND")]
    generic_resource_rm: Vec<String>,
    #[arg(long, value_name = "SECRET", value_parser = grant)]
    secret_add: Vec<Grant>,
    #[arg(long, value_name = "SECRET")]
    secret_rm: Vec<String>,
    #[arg(long, value_name = "CONFIG", value_parser = grant)]
    config_add: Vec<Grant>,
    #[arg(long, value_name = "CONFIG")]
    config_rm: Vec<String>,
    #[arg(long, value_name = "CAPABILITY", value_parser = capability)]
    cap_add: Vec<String>,
    #[arg(long, value_name = "CAPABILITY", value_parser = capability)]
    cap_drop: Vec<String>,
    #[arg(long, value_name = "NAME=VALUE", value_parser = sysctl)]
    sysctl_add: Vec<(String, String)>,
    #[arg(long, value_name = "NAME")]
    sysctl_rm: Vec<String>,
    #[arg(long, value_name = "LIMIT", value_parser = ulimit)]
    ulimit_add: Vec<Ulimit>,
    #[arg(long, value_name = "NAME")]
    ulimit_rm: Vec<String>,
}

/// Removes, then adds, replacing what has the same key: removing comes first so that one command can do both.
fn edit<T: Clone, K: PartialEq>(list: &mut Vec<T>, remove: impl Fn(&T) -> bool, add: &[T], key: impl Fn(&T) -> K) {
    list.retain(|item| !remove(item) && !add.iter().any(|new| key(new) == key(item)));
    list.extend(add.iter().cloned());
}

fn edit_labels(labels: &mut Labels, remove: &[String], add: &[(String, String)]) {
    labels.retain(|key, _| !remove.contains(key));
    labels.extend(add.iter().cloned());
}

impl UpdateFlags {
    /// Changes `spec` as the flags say and returns the secrets and configs to add.
    pub fn apply(&self, spec: &mut ServiceSpec) -> Result<Grants, String> {
        self.shared.apply(spec)?;
        edit_labels(&mut spec.annotations.labels, &self.label_rm, &self.label_add);
        self.edit_ports(spec)?;
        let task = Arc::make_mut(&mut spec.task);
        if self.force {
            task.force_update += 1;
        }
        let removed = &self.network_rm;
        edit(&mut task.networks, |network| removed.contains(&network.target), &self.network_add, |network| network.target.clone());
        self.edit_placement(task);
        self.edit_generic(task);
        if let Runtime::Container(container) = &mut task.runtime {
            self.edit_container(container)?;
        }
        Ok(Grants { secrets: self.secret_add.clone(), configs: self.config_add.clone() })
    }

    fn edit_ports(&self, spec: &mut ServiceSpec) -> Result<(), String> {
        let mut removed = Vec::new();
        for text in &self.publish_rm {
            let (target, name) = text.split_once('/').unwrap_or((text, "tcp"));
            let target: u32 = target.parse().map_err(|_| format!("--publish-rm {text:?}: write the target port, such as 80/tcp"))?;
            removed.push((target, protocol(name)?));
        }
        let added: Vec<PortConfig> = self.publish_add.iter().flatten().cloned().collect();
        if removed.is_empty() && added.is_empty() {
            return Ok(());
        }
        let ports = &mut spec.endpoint.get_or_insert_default().ports;
        edit(
            ports,
            |port| removed.contains(&(port.target_port, port.protocol)),
            &added,
            |port| (port.target_port, port.protocol, port.published_port),
        );
        Ok(())
    }

    fn edit_placement(&self, task: &mut TaskSpec) {
        let mut placement = task.placement.take().unwrap_or_default();
        edit(&mut placement.constraints, |item| self.constraint_rm.contains(item), &self.constraint_add, Clone::clone);
        edit(&mut placement.spread, |item| self.placement_pref_rm.contains(item), &self.placement_pref_add, Clone::clone);
        task.placement = Some(placement).filter(|placement| *placement != Placement::default());
    }

    fn edit_generic(&self, task: &mut TaskSpec) {
        if self.generic_resource_add.is_empty() && self.generic_resource_rm.is_empty() {
            return;
        }
        let kind = |resource: &GenericResource| match resource {
            GenericResource::Named { kind, .. } | GenericResource::Discrete { kind, .. } => kind.clone(),
        };
        let list = &mut task.resources.get_or_insert_default().reservations.generic;
        edit(list, |item| self.generic_resource_rm.contains(&kind(item)), &self.generic_resource_add, kind);
    }

    fn edit_container(&self, container: &mut ContainerSpec) -> Result<(), String> {
        set(&mut container.image, self.image.clone());
        if let Some(args) = &self.args {
            container.args = words(args)?;
        }
        let name = |entry: &String| entry.split_once('=').map_or(entry.clone(), |(name, _)| name.to_owned());
        let added = environment(&self.env_add, &[])?;
        edit(&mut container.env, |entry| self.env_rm.contains(&name(entry)), &added, name);
        edit_labels(&mut container.labels, &self.container_label_rm, &self.container_label_add);
        edit(&mut container.groups, |item| self.group_rm.contains(item), &self.group_add, Clone::clone);
        edit(&mut container.hosts, |item| self.host_rm.contains(item), &self.host_add, Clone::clone);
        edit(&mut container.mounts, |item| self.mount_rm.contains(&item.target), &self.mount_add, |item| item.target.clone());
        edit(&mut container.ulimits, |item| self.ulimit_rm.contains(&item.name), &self.ulimit_add, |item| item.name.clone());
        edit_labels(&mut container.sysctls, &self.sysctl_rm, &self.sysctl_add);
        container.capability_add.retain(|item| !self.cap_drop.contains(item));
        container.capability_drop.retain(|item| !self.cap_add.contains(item));
        edit(&mut container.capability_add, |_| false, &self.cap_add, Clone::clone);
        edit(&mut container.capability_drop, |_| false, &self.cap_drop, Clone::clone);
        container.secrets.retain(|secret| !self.secret_rm.contains(&secret.secret_name));
        container.configs.retain(|config| !self.config_rm.contains(&config.config_name));
        self.edit_dns(container);
        Ok(())
    }

    fn edit_dns(&self, container: &mut ContainerSpec) {
        let text = |addresses: &[std::net::IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut dns = container.dns.take().unwrap_or_default();
        let removed = text(&self.dns_rm);
        edit(&mut dns.nameservers, |item| removed.contains(item), &text(&self.dns_add), Clone::clone);
        edit(&mut dns.search, |item| self.dns_search_rm.contains(item), &self.dns_search_add, Clone::clone);
        edit(&mut dns.options, |item| self.dns_option_rm.contains(item), &self.dns_option_add, Clone::clone);
        container.dns = Some(dns).filter(|dns| *dns != DnsConfig::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Create {
        #[command(flatten)]
        flags: CreateFlags,
    }

    #[derive(Parser)]
    struct Update {
        #[command(flatten)]
        flags: UpdateFlags,
    }

    fn create(flags: &[&str]) -> ServiceSpec {
        let parsed = Create::try_parse_from(std::iter::once(&"create").chain(flags)).unwrap();
        parsed.flags.spec("nginx", &["-g".into()], "web".into(), String::new()).unwrap().0
    }

    fn update(spec: &mut ServiceSpec, flags: &[&str]) {
        Update::try_parse_from(std::iter::once(&"update").chain(flags)).unwrap().flags.apply(spec).unwrap();
    }

    #[test]
    fn nothing_given_means_one_replica_and_no_extras() {
        let spec = create(&[]);
        assert_eq!(spec.mode, ServiceMode::Replicated { replicas: 1 });
        assert_eq!((&spec.update, &spec.endpoint, &spec.task.restart, &spec.task.resources), (&None, &None, &None, &None));
        assert_eq!(spec.task.container().unwrap().args, ["-g"]);
    }

    #[test]
    fn one_update_flag_fills_the_rest_with_defaults() {
        let config = create(&["--update-parallelism", "3"]).update.unwrap();
        assert_eq!(config, UpdateConfig { parallelism: 3, ..UpdateConfig::default() });
    }

    #[test]
    fn an_update_edits_lists_by_key() {
        let mut spec = create(&["-e", "A=1", "-e", "B=2", "-p", "8080:80", "--mount", "source=x,target=/x", "-l", "a=1"]);
        update(
            &mut spec,
            &[
                "--env-add",
                "A=3",
                "--env-rm",
                "B",
                "--publish-rm",
                "80",
                "--publish-add",
                "9090:90",
                "--mount-rm",
                "/x",
                "--label-rm",
                "a",
                "--force",
            ],
        );
        let container = spec.task.container().unwrap();
        assert_eq!(container.env, ["A=3"]);
        assert!(container.mounts.is_empty() && spec.annotations.labels.is_empty());
        assert_eq!(spec.endpoint.as_ref().unwrap().ports.iter().map(|port| port.published_port).collect::<Vec<_>>(), [9090]);
        assert_eq!(spec.task.force_update, 1);
    }

    #[test]
    fn replicas_of_a_global_service_are_refused() {
        let parsed = Create::try_parse_from(["create", "--mode", "global", "--replicas", "2"]).unwrap();
        assert!(parsed.flags.spec("nginx", &[], "web".into(), String::new()).unwrap_err().contains("global"));
    }

    #[test]
    fn a_job_runs_all_at_once_unless_told_otherwise() {
        assert_eq!(
            create(&["--mode", "replicated-job", "--replicas", "5"]).mode,
            ServiceMode::ReplicatedJob { max_concurrent: 5, total_completions: 5 }
        );
        assert_eq!(
            create(&["--mode", "replicated-job", "--replicas", "5", "--max-concurrent", "2"]).mode,
            ServiceMode::ReplicatedJob { max_concurrent: 2, total_completions: 5 }
        );
    }

    #[test]
    fn absurd_flags_do_not_parse() {
        for wrong in [
            ["--replicas", "-1"],
            ["--limit-cpu", "-1"],
            ["--publish", "65536:80"],
            ["--restart-condition", "often"],
            ["--secret", "target=x"],
            ["--host", "a"],
            ["--placement-pref", "binpack"],
            ["--update-max-failure-ratio", "2"],
        ] {
            assert!(Create::try_parse_from(["create", wrong[0], wrong[1]]).is_err(), "{wrong:?}");
        }
    }
}
