//! The checks of a service spec, in order.

use super::{check_texts, container};
use crate::constraint::Constraint;
use crate::resources::{Bytes, Cpus};
use skep_types::{
    Affinity, EndpointSpec, FieldError, GenericResource, PortConfig, PublishMode, PublishPlace, ResolutionMode, ResourceKind,
    ResourceRequirements, Resources, Runtime, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder,
};
use std::net::IpAddr;
use std::time::Duration;

/// Smallest CPU share (1/1000) and memory that mean anything (`SK/manager/controlapi/service.go`).
const MIN_NANO_CPUS: i64 = 1_000_000;
const MIN_MEMORY: i64 = 4 << 20;

/// More replicas than this are taken for a slip: no cluster has run so many.
pub const MAX_REPLICAS: u64 = 1_000_000;

/// Ranges of clients of a port: each is an element of the tables of every node.
const MAX_CLIENT_RANGES: usize = 256;

/// Of a link: the kernel's `IFNAMSIZ` less the end.
const MAX_LINK_NAME: usize = 15;

/// Longest time in a spec: what the wire can carry (292 years in nanoseconds).
const MAX_TIME: Duration = Duration::from_nanos(i64::MAX as u64);

/// Names of services and networks: 1..63 letters, digits, inside also '-' and '_'.
///
/// # Errors
/// [`FieldError`] for the field `annotations.name`.
pub fn check_name(name: &str) -> Result<(), FieldError> {
    let bad = |problem: String| Err(FieldError::new("annotations.name", problem));
    if name.is_empty() {
        return bad("is missing".into());
    }
    if name.len() > 63 {
        return bad(format!("has {} characters; at most 63 are allowed", name.len()));
    }
    let ends = name.bytes().next().zip(name.bytes().last());
    let word = |c: u8| c.is_ascii_alphanumeric();
    if !ends.is_some_and(|(first, last)| word(first) && word(last)) || !name.bytes().all(|c| word(c) || c == b'-' || c == b'_') {
        return bad(format!("{name:?} is not a valid name; use letters, digits and, inside, '-' and '_'"));
    }
    Ok(())
}

/// Everything that can be said about a spec without looking at the cluster. Fields are named from `spec` on.
///
/// # Errors
/// [`FieldError`] for the first check that fails.
pub fn check_service(spec: &ServiceSpec) -> Result<(), FieldError> {
    check_all(spec).map_err(|error| error.inside("spec"))
}

fn check_all(spec: &ServiceSpec) -> Result<(), FieldError> {
    check_texts("", spec)?;
    check_name(&spec.annotations.name)?;
    check_task(&spec.task).map_err(|error| error.inside("task"))?;
    check_mode(&spec.mode)?;
    for (field, config) in [("update", &spec.update), ("rollback", &spec.rollback)] {
        match config {
            Some(_) if spec.mode.is_job() => return Err(FieldError::new(field, "must be absent: jobs are not updated, they run again")),
            Some(config) => check_update(config).map_err(|error| error.inside(field))?,
            None => {}
        }
    }
    spec.endpoint.as_ref().map_or(Ok(()), |endpoint| check_endpoint(endpoint).map_err(|error| error.inside("endpoint")))
}

fn check_task(task: &TaskSpec) -> Result<(), FieldError> {
    if let Some(resources) = &task.resources {
        check_resources(resources).map_err(|error| error.inside("resources"))?;
    }
    if let Some(restart) = &task.restart {
        for (field, time) in [("delay", restart.delay), ("window", restart.window)] {
            check_time(field, time).map_err(|error| error.inside("restart"))?;
        }
    }
    if let Some(placement) = &task.placement {
        for (index, text) in placement.constraints.iter().enumerate() {
            let wrong = |error: crate::BadConstraint| FieldError::new(format!("placement.constraints[{index}]"), error.to_string());
            Constraint::parse(text).map_err(wrong)?;
        }
    }
    check_resource_references(task)?;
    match &task.runtime {
        Runtime::Container(spec) => {
            container::check_references(spec).and_then(|()| container::check(spec)).map_err(|error| error.inside("container"))
        }
        Runtime::Attachment { .. } => Err(FieldError::new("attachment", "a service cannot run a network attachment; use a container")),
        Runtime::Generic { kind, type_url, payload } => check_generic(kind, type_url, payload).map_err(|error| error.inside("generic")),
    }
}

/// What they give is read through templates inside secrets and configs only, which agents do not expand: a container would get
/// nothing. Other runtimes know themselves what to do with secrets and configs that are sent along.
fn check_resource_references(task: &TaskSpec) -> Result<(), FieldError> {
    for (index, reference) in task.resource_references.iter().enumerate() {
        let problem = match (reference.kind, &task.runtime) {
            (ResourceKind::Secret, Runtime::Container(_)) => "gives a container nothing to read; name the secret in container.secrets",
            (ResourceKind::Config, Runtime::Container(_)) => "gives a container nothing to read; name the config in container.configs",
            (ResourceKind::Task | ResourceKind::Volume, _) => "refers to a task or volume, which are not sent along; remove it",
            (ResourceKind::Secret | ResourceKind::Config, _) => continue,
        };
        return Err(FieldError::new(format!("resource_references[{index}]"), problem));
    }
    Ok(())
}

fn check_generic(kind: &str, type_url: &str, payload: &[u8]) -> Result<(), FieldError> {
    if kind.len() < 3 || matches!(kind, "container" | "attachment") {
        return Err(FieldError::new("kind", format!("{kind:?} is not a kind of its own; it needs at least three characters")));
    }
    if type_url.is_empty() || payload.is_empty() {
        return Err(FieldError::new("payload", "needs a type and a value"));
    }
    Ok(())
}

fn check_time(field: &str, time: Option<Duration>) -> Result<(), FieldError> {
    if time.is_some_and(|time| time > MAX_TIME) { Err(FieldError::new(field, "is longer than 292 years")) } else { Ok(()) }
}

fn check_resources(resources: &ResourceRequirements) -> Result<(), FieldError> {
    let ResourceRequirements { limits, reservations, .. } = resources;
    check_amounts(limits).map_err(|error| error.inside("limits"))?;
    check_amounts(reservations).map_err(|error| error.inside("reservations"))?;
    if limits.nano_cpus > 0 && reservations.nano_cpus > limits.nano_cpus {
        let problem =
            format!("{} are above the limit of {}; lower it or raise the limit", Cpus(reservations.nano_cpus), Cpus(limits.nano_cpus));
        return Err(FieldError::new("reservations.nano_cpus", problem));
    }
    if limits.memory_bytes > 0 && reservations.memory_bytes > limits.memory_bytes {
        let (reserved, limit) = (Bytes(reservations.memory_bytes), Bytes(limits.memory_bytes));
        return Err(FieldError::new(
            "reservations.memory_bytes",
            format!("{reserved} is above the limit of {limit}; lower it or raise the limit"),
        ));
    }
    for (index, generic) in reservations.generic.iter().enumerate() {
        let problem = match generic {
            GenericResource::Discrete { kind, .. } if kind.is_empty() => "has no kind",
            GenericResource::Discrete { value, .. } if *value < 0 => "must not be negative",
            GenericResource::Discrete { .. } => continue,
            GenericResource::Named { .. } => "asks for an individual; a service can only ask for a number, such as gpu=2",
        };
        return Err(FieldError::new(format!("reservations.generic[{index}]"), problem));
    }
    if resources.swap_bytes.is_some_and(|swap| swap < -1) {
        return Err(FieldError::new("swap_bytes", "must be -1 (unlimited) or more"));
    }
    if resources.memory_swappiness.is_some_and(|swappiness| !(-1..=100).contains(&swappiness)) {
        return Err(FieldError::new("memory_swappiness", "must be from 0 to 100, or -1 for the kernel's default"));
    }
    Ok(())
}

fn check_amounts(amounts: &Resources) -> Result<(), FieldError> {
    let Resources { nano_cpus, memory_bytes, .. } = amounts;
    if *nano_cpus != 0 && *nano_cpus < MIN_NANO_CPUS {
        return Err(FieldError::new(
            "nano_cpus",
            format!("{nano_cpus} is too little; the least is {MIN_NANO_CPUS} (0.001 CPUs), 0 means none given"),
        ));
    }
    if *memory_bytes != 0 && *memory_bytes < MIN_MEMORY {
        return Err(FieldError::new(
            "memory_bytes",
            format!("{memory_bytes} is too little; the least is {MIN_MEMORY} (4 MiB), 0 means none given"),
        ));
    }
    Ok(())
}

fn check_mode(mode: &ServiceMode) -> Result<(), FieldError> {
    let counts = match mode {
        ServiceMode::Replicated { replicas } => vec![("replicated.replicas", *replicas)],
        ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
            vec![("replicated_job.max_concurrent", *max_concurrent), ("replicated_job.total_completions", *total_completions)]
        }
        ServiceMode::Global | ServiceMode::GlobalJob => Vec::new(),
    };
    let excess = counts.into_iter().find(|(_, count)| *count > MAX_REPLICAS);
    excess.map_or(Ok(()), |(field, count)| {
        let problem = if i64::try_from(count).is_ok() {
            format!("{count} is too many; at most {MAX_REPLICAS} are allowed")
        } else {
            "must not be negative".into()
        };
        Err(FieldError::new(field, problem))
    })
}

fn check_update(config: &UpdateConfig) -> Result<(), FieldError> {
    check_time("delay", Some(config.delay))?;
    check_time("monitor", config.monitor)?;
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return Err(FieldError::new("max_failure_ratio", format!("{} is not between 0 and 1", config.max_failure_ratio)));
    }
    Ok(())
}

fn check_endpoint(endpoint: &EndpointSpec) -> Result<(), FieldError> {
    for (index, port) in endpoint.ports.iter().enumerate() {
        let bad = |field: &str, problem: String| Err(FieldError::new(field, problem).at(index).inside("ports"));
        if port.target_port == 0 || port.target_port > 65_535 {
            return bad("target_port", format!("{} is not a port; it must be from 1 to 65535", port.target_port));
        }
        if port.published_port > 65_535 {
            return bad(
                "published_port",
                format!("{} is not a port; it must be from 1 to 65535, or 0 to have one chosen", port.published_port),
            );
        }
        if endpoint.mode == ResolutionMode::DnsRoundRobin && port.publish_mode == PublishMode::Ingress {
            return bad("publish_mode", "ingress needs a virtual IP; use endpoint mode vip, or publish mode host".into());
        }
        let first = endpoint.ports[..index].iter().position(|other| port.published_port != 0 && other.meets(port));
        if let Some(first) = first {
            return bad("published_port", format!("{} is also published by port {first}; choose another one", port.published_port));
        }
        check_reach(port).map_err(|error| error.at(index).inside("ports"))?;
    }
    Ok(())
}

/// Who may come to a port, where, and to which task.
fn check_reach(port: &PortConfig) -> Result<(), FieldError> {
    match &port.place {
        PublishPlace::Everywhere => {}
        PublishPlace::Address(address) => {
            if address.is_unspecified() {
                return Err(FieldError::new("address", format!("{address} stands for all addresses, which is meant where none is given")));
            }
            if address.is_multicast() || *address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST) {
                return Err(FieldError::new("address", format!("{address} is not the address of one node")));
            }
            if address.to_canonical() != *address {
                return Err(FieldError::new(
                    "address",
                    format!("{address} is an IPv4 address in disguise; write {}", address.to_canonical()),
                ));
            }
            if !port.allow.is_empty() && port.allow.iter().all(|range| range.addr().is_ipv4() != address.is_ipv4()) {
                return Err(FieldError::new(
                    "allow",
                    format!("nobody within it can come to {address}, which is of the other address family"),
                ));
            }
        }
        PublishPlace::Interface(link) => check_link_name(link)?,
    }
    if port.affinity == Affinity::Source && port.publish_mode == PublishMode::Host {
        return Err(FieldError::new(
            "affinity",
            "means nothing in host mode, where a port leads to one task; leave it out, or use ingress mode",
        ));
    }
    if port.allow.len() > MAX_CLIENT_RANGES {
        let count = port.allow.len();
        return Err(FieldError::new("allow", format!("has {count} ranges; at most {MAX_CLIENT_RANGES} are allowed, join some of them")));
    }
    Ok(())
}

/// As the kernel takes them (`dev_valid_name`), and of those the ones that something comes in by.
fn check_link_name(link: &str) -> Result<(), FieldError> {
    let bad = |problem: String| Err(FieldError::new("interface", problem));
    if link == "lo" {
        return bad("only the node itself comes in by lo; use the address 127.0.0.1 or ::1".into());
    }
    if link.is_empty()
        || link.len() > MAX_LINK_NAME
        || link == "."
        || link == ".."
        || !link.bytes().all(|c| c.is_ascii_graphic() && c != b'/' && c != b':')
    {
        return bad(format!("{link:?} is not the name of a link; it has at most {MAX_LINK_NAME} characters, such as eth0"));
    }
    Ok(())
}

/// What is allowed but will not work as hoped, to be told to the user at creation.
#[must_use]
pub fn advice(spec: &ServiceSpec) -> Vec<FieldError> {
    let mut advice = Vec::new();
    let host_port = spec
        .endpoint
        .iter()
        .flat_map(|endpoint| &endpoint.ports)
        .find(|port| port.publish_mode == PublishMode::Host && port.published_port != 0);
    let start_first = spec.update.as_ref().is_some_and(|update| update.order == UpdateOrder::StartFirst);
    if let Some(port) = host_port.filter(|_| start_first) {
        let port = port.published_port;
        advice.push(FieldError::new(
            "spec.update.order",
            format!("start-first needs a second node with host port {port} free for each task it replaces, else the update waits; stop-first does not"),
        ));
    }
    if start_first && spec.task.placement.as_ref().is_some_and(|placement| placement.max_replicas == 1) {
        advice.push(FieldError::new(
            "spec.update.order",
            "start-first with one replica per node at most needs a node without a replica for each task it replaces",
        ));
    }
    advice
}
