//! Placeholders such as `{{.Task.Slot}}` in a container's settings (wire-behaviour 20.4).
//!
//! Understood of Go's template language: fields of `.Service`, `.Node` and `.Task`, a label by `.Service.Labels.name` or
//! `index .Service.Labels "name"`, and trimming by `{{-` and `-}}`. Anything else is refused by name, never passed on.

use crate::{ContainerSpec, Labels, Node, NodeDescription, Task};

/// A placeholder that cannot be filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("{field}: the placeholder that begins at {at:?} has no end; close it with }}}}")]
    Open { field: String, at: String },
    #[error(
        "{field}: {{{{{expression}}}}} is not known; there are .Service.ID, .Service.Name, .Service.Labels.NAME, .Node.ID, .Node.Hostname, .Node.Platform.OS, .Node.Platform.Architecture, .Task.ID, .Task.Name and .Task.Slot"
    )]
    Unknown { field: String, expression: String },
    #[error("{field}: the service has no label {label:?}")]
    NoLabel { field: String, label: String },
}

/// What placeholders may say of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub id: String,
    pub hostname: String,
    pub os: String,
    /// As `uname -m`.
    pub architecture: String,
}

/// The values placeholders stand for.
struct Facts<'a> {
    node: &'a NodeFacts,
    task: &'a Task,
    /// `NAME=value`, for placeholders that may ask for them.
    env: Option<&'a [String]>,
}

impl NodeFacts {
    /// Of a node as managers know it.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let known = node.description.as_ref();
        let text = |of: fn(&NodeDescription) -> &String| known.map(|known| of(known).clone()).unwrap_or_default();
        Self {
            id: node.id.to_string(),
            hostname: text(|known| &known.hostname),
            os: text(|known| &known.platform.os),
            architecture: text(|known| &known.platform.architecture),
        }
    }
}

impl Facts<'_> {
    fn labels(&self) -> &Labels {
        &self.task.service_annotations.labels
    }

    fn value(&self, field: &str, expression: &str) -> Result<String, TemplateError> {
        let unknown = || TemplateError::Unknown { field: field.to_owned(), expression: expression.to_owned() };
        let label = |name: &str| {
            let missing = || TemplateError::NoLabel { field: field.to_owned(), label: name.to_owned() };
            self.labels().get(name).cloned().ok_or_else(missing)
        };
        if let Some(name) = expression.strip_prefix("index .Service.Labels ") {
            let name = name.trim().strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or_else(unknown)?;
            return label(name);
        }
        if let Some(name) = expression.strip_prefix(".Service.Labels.") {
            return label(name);
        }
        if let Some((env, name)) = self.env.zip(expression.strip_prefix("env ")) {
            let name = name.trim().strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or_else(unknown)?;
            // As in the original, a variable that is not there is empty.
            let value = env.iter().filter_map(|entry| entry.split_once('=')).find(|(key, _)| *key == name);
            return Ok(value.map(|(_, value)| value.to_owned()).unwrap_or_default());
        }
        let task = self.task;
        Ok(match expression {
            ".Service.ID" => task.service_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            ".Service.Name" => task.service_annotations.name.clone(),
            ".Node.ID" => self.node.id.clone(),
            ".Node.Hostname" => self.node.hostname.clone(),
            ".Node.Platform.OS" => self.node.os.clone(),
            ".Node.Platform.Architecture" => self.node.architecture.clone(),
            ".Task.ID" => task.id.to_string(),
            ".Task.Name" => task.name(),
            // The node's id stands in for the slot of global services.
            ".Task.Slot" if task.slot == 0 && task.job_iteration.is_none() => self.node.id.clone(),
            ".Task.Slot" => task.slot.to_string(),
            _ => return Err(unknown()),
        })
    }

    fn expand(&self, field: &str, text: &str) -> Result<String, TemplateError> {
        let mut done = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(begin) = rest.find("{{") {
            let (before, inside) = (&rest[..begin], &rest[begin + 2..]);
            let Some(end) = inside.find("}}") else {
                return Err(TemplateError::Open { field: field.to_owned(), at: rest[begin..].chars().take(40).collect() });
            };
            let mut expression = &inside[..end];
            rest = &inside[end + 2..];
            if let Some(trimmed) = expression.strip_prefix("- ") {
                done.push_str(before.trim_end());
                expression = trimmed;
            } else {
                done.push_str(before);
            }
            if let Some(trimmed) = expression.strip_suffix(" -") {
                rest = rest.trim_start();
                expression = trimmed;
            }
            let expression = expression.trim();
            if !(expression.starts_with("/*") && expression.ends_with("*/")) {
                done.push_str(&self.value(field, expression)?);
            }
        }
        done.push_str(rest);
        Ok(done)
    }
}

/// The spec with every placeholder replaced: in values of environment variables, hostname, mount sources and targets,
/// volume labels and volume driver options.
///
/// # Errors
/// Naming the field and the placeholder that cannot be filled.
pub fn expand(spec: &ContainerSpec, task: &Task, node: &NodeFacts) -> Result<ContainerSpec, TemplateError> {
    let facts = Facts { node, task, env: None };
    let mut spec = spec.clone();
    for entry in &mut spec.env {
        if let Some((name, value)) = entry.split_once('=')
            && value.contains("{{")
        {
            *entry = format!("{name}={}", facts.expand(&format!("env {name}"), value)?);
        }
    }
    spec.hostname = facts.expand("hostname", &spec.hostname)?;
    for (index, mount) in spec.mounts.iter_mut().enumerate() {
        mount.source = facts.expand(&format!("mounts[{index}].source"), &mount.source)?;
        mount.target = facts.expand(&format!("mounts[{index}].target"), &mount.target)?;
        if let Some(volume) = &mut mount.volume {
            for value in volume.labels.values_mut() {
                *value = facts.expand(&format!("mounts[{index}].volume_options.labels"), value)?;
            }
            for value in volume.driver.iter_mut().flat_map(|driver| driver.options.values_mut()) {
                *value = facts.expand(&format!("mounts[{index}].volume_options.driver_config"), value)?;
            }
        }
    }
    Ok(spec)
}

/// The host name that the task's service wishes, with every placeholder replaced; `None` without a wish, or one that cannot be filled:
/// such a task is refused by its node.
#[must_use]
pub fn wanted_hostname(task: &Task, node: &NodeFacts) -> Option<String> {
    let name = &task.spec.container()?.hostname;
    let name = Facts { node, task, env: None }.expand("hostname", name).ok()?;
    (!name.is_empty()).then_some(name)
}

/// The text of a secret or config with every placeholder replaced; besides those of [`expand`] there is `env "NAME"`, a variable of
/// the service's, which is to have been expanded before.
///
/// # Errors
/// As [`expand`]; they quote the text.
pub fn expand_payload(field: &str, text: &str, env: &[String], task: &Task, node: &NodeFacts) -> Result<String, TemplateError> {
    Facts { node, task, env: Some(env) }.expand(field, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Annotations, Meta, Mount, TaskId, TaskSpec, TaskState, TaskStatus};
    use std::sync::Arc;

    fn task(number: u64, image: &str) -> Task {
        Task {
            id: TaskId::for_test(number),
            meta: Meta::default(),
            spec: Arc::new(TaskSpec::new(ContainerSpec { image: image.into(), ..ContainerSpec::default() })),
            spec_version: None,
            service_id: None,
            slot: 1,
            node_id: Some("node1".parse().unwrap()),
            annotations: Annotations::default(),
            service_annotations: Annotations::default(),
            status: TaskStatus::default(),
            desired_state: TaskState::Running,
            networks: Vec::new(),
            endpoint: None,
            log_driver: None,
            assigned_generic_resources: Vec::new(),
            job_iteration: None,
        }
    }

    fn node() -> NodeFacts {
        NodeFacts { id: "node1".into(), hostname: "alpha".into(), os: "linux".into(), architecture: "x86_64".into() }
    }

    fn env(value: &str) -> Result<String, TemplateError> {
        let mut task = task(1, "busybox");
        task.slot = 3;
        task.service_annotations.name = "web".into();
        task.service_annotations.labels.insert("tier".into(), "front".into());
        let spec = ContainerSpec { env: vec![format!("X={value}")], ..ContainerSpec::default() };
        expand(&spec, &task, &node()).map(|spec| spec.env[0][2..].to_owned())
    }

    #[test]
    fn placeholders_are_filled_from_node_service_and_task() {
        assert_eq!(env("{{.Service.Name}}-{{ .Task.Slot }}@{{.Node.Hostname}}").unwrap(), "web-3@alpha");
        assert_eq!(env("{{.Service.Labels.tier}} {{index .Service.Labels \"tier\"}}").unwrap(), "front front");
        assert_eq!(env("a {{- .Node.Platform.OS -}} b").unwrap(), "alinuxb");
        assert_eq!(env("{{/* nothing */}}plain").unwrap(), "plain");
    }

    #[test]
    fn payloads_may_ask_for_the_environment_too() {
        let mut task = task(1, "busybox");
        task.service_annotations.name = "web".into();
        let env = ["LEVEL=debug".to_owned(), "EMPTY=".to_owned()];
        let expand = |text: &str| expand_payload("config c", text, &env, &task, &node());
        assert_eq!(expand("[{{.Service.Name}}] {{env \"LEVEL\"}}{{ env \"EMPTY\" }}{{env \"NONE\"}}\n").unwrap(), "[web] debug\n");
        for unknown in ["{{secret \"x\"}}", "{{env LEVEL}}", "{{if true}}"] {
            assert!(matches!(expand(unknown), Err(TemplateError::Unknown { .. })), "{unknown}");
        }
    }

    #[test]
    fn unknown_placeholders_are_refused_by_name() {
        assert!(env("{{.Task.Nmae}}").unwrap_err().to_string().starts_with("env X: {{.Task.Nmae}} is not known"));
        assert!(matches!(env("{{.Service.Labels.none}}"), Err(TemplateError::NoLabel { .. })));
        assert!(matches!(env("{{.Task.ID"), Err(TemplateError::Open { .. })));
        assert!(matches!(env("{{range .Service.Labels}}"), Err(TemplateError::Unknown { .. })));
    }

    #[test]
    fn mounts_and_hostname_are_expanded_and_arguments_are_not() {
        let mut task = task(1, "busybox");
        task.slot = 2;
        let spec = ContainerSpec {
            hostname: "db-{{.Task.Slot}}".into(),
            args: vec!["{{.Task.Slot}}".into()],
            mounts: vec![Mount { source: "data-{{.Task.Slot}}".into(), target: "/d".into(), ..Mount::default() }],
            ..ContainerSpec::default()
        };
        let done = expand(&spec, &task, &node()).unwrap();
        task.spec = Arc::new(TaskSpec::new(spec));
        assert_eq!(wanted_hostname(&task, &node()).as_deref(), Some("db-2"));
        assert_eq!(wanted_hostname(&super::tests::task(1, "busybox"), &node()), None);
        assert_eq!((done.hostname.as_str(), done.mounts[0].source.as_str(), done.args[0].as_str()), ("db-2", "data-2", "{{.Task.Slot}}"));
    }
}
