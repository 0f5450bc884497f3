//! The flags that `service create` and `service update` have in common.

use super::grammar::{condition, endpoint_mode, failure_action, order, ratio, rollback_action, set, swap};
use super::values::{bytes, duration, host_name, nano_cpus, pair, words};
use clap::Args;
use skep_types::{
    ContainerSpec, Driver, FailureAction, HealthConfig, ResolutionMode, ResourceRequirements, RestartCondition, RestartPolicy, Runtime,
    ServiceMode, ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder,
};
use std::sync::Arc;
use std::time::Duration;

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
    #[arg(long, value_name = "NAME", value_parser = host_name)]
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
    /// Hand on to the nodes what `docker login` here knows for the image's registry ($DOCKER_CONFIG/config.json and its helper programs);
    /// an update without it keeps what the service has
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    with_registry_auth: Option<bool>,
    /// Do not ask the image's registry for its digest and platforms. They are written into the service, so that all nodes run the same and only
    /// nodes that can. A name without a registry that an image of this node got from an archive (`image load`) or a tag is left as it is
    #[arg(long)]
    pub no_resolve_image: bool,
}

impl SharedFlags {
    /// Whether the spec is to get the credentials of who runs us.
    pub fn hands_on_credentials(&self) -> bool {
        self.with_registry_auth == Some(true)
    }

    pub fn apply(&self, spec: &mut ServiceSpec) -> Result<(), String> {
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
