//! The service `ResourceAllocator`: containers that were started outside any service, on networks that allow it.
//! Each is a task of the node that asks, without a service (wire-behaviour 22, `SK/manager/resourceapi/allocator.go`).

use crate::authorize::caller;
use crate::control::errors::{id, invalid, missing};
use crate::shared::Shared;
use skep_plan::{is_ingress, resolve_network};
use skep_proto::{parse_required, v1};
use skep_types::{
    Action, Annotations, ClusterView as _, FieldError, Kind, NetworkAttachmentConfig, NodeId, Object, RestartCondition, RestartPolicy,
    Runtime, Task, TaskId, TaskSpec, TaskState, TaskStatus, Timestamp,
};
use std::net::IpAddr;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// What a container's name or id may measure.
const LONGEST_ID: usize = 4096;

#[derive(Clone)]
pub(crate) struct ResourceService {
    shared: Arc<Shared>,
}

impl ResourceService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

/// A task that holds the container's place on the network.
fn attachment(id: TaskId, node: NodeId, container_id: String, config: NetworkAttachmentConfig, now: Timestamp) -> Task {
    let name = config.aliases.first().cloned().unwrap_or_else(|| format!("attached.{id}"));
    let spec = TaskSpec {
        networks: vec![config],
        // It ends when its container is gone, which nobody here can start again.
        restart: Some(RestartPolicy { condition: RestartCondition::Never, ..RestartPolicy::default() }),
        ..TaskSpec::new(Runtime::Attachment { container_id })
    };
    let status = TaskStatus { timestamp: now, state: TaskState::New, message: "created".into(), ..TaskStatus::default() };
    Task {
        id,
        meta: Default::default(),
        spec: Arc::new(spec),
        spec_version: None,
        service_id: None,
        slot: 0,
        node_id: Some(node),
        annotations: Annotations { name, ..Annotations::default() },
        service_annotations: Annotations::default(),
        status,
        desired_state: TaskState::Running,
        networks: Vec::new(),
        endpoint: None,
        log_driver: None,
        assigned_generic_resources: Vec::new(),
        job_iteration: None,
    }
}

/// What is wrong with a request whatever the cluster is like.
fn check(config: &NetworkAttachmentConfig, container_id: &str) -> Result<(), FieldError> {
    if container_id.is_empty() || container_id.len() > LONGEST_ID || container_id.contains('\0') {
        return Err(FieldError::new("container_id", "must name the container that is attached, in at most 4096 bytes"));
    }
    let is_address = |text: &String| text.split('/').next().is_some_and(|text| text.parse::<IpAddr>().is_ok());
    if let Some(index) = config.addresses.iter().position(|text| !is_address(text)) {
        return Err(FieldError::new(format!("config.addresses[{index}]"), format!("{:?} is not an address", config.addresses[index])));
    }
    let is_name = |text: &String| {
        let label =
            |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'));
        text.len() <= 253 && text.split('.').all(label)
    };
    if let Some(index) = config.aliases.iter().position(|text| !is_name(text)) {
        return Err(FieldError::new(format!("config.aliases[{index}]"), format!("{:?} cannot be a name in DNS", config.aliases[index])));
    }
    Ok(())
}

#[tonic::async_trait]
impl v1::resource_allocator_server::ResourceAllocator for ResourceService {
    async fn attach_network(&self, request: Request<v1::AttachNetworkRequest>) -> Result<Response<v1::AttachNetworkResponse>, Status> {
        let node = caller(&request)?.node()?.clone();
        let v1::AttachNetworkRequest { config, container_id } = request.into_inner();
        let mut config: NetworkAttachmentConfig = parse_required("config", config).map_err(invalid)?;
        check(&config, &container_id).map_err(invalid)?;
        {
            let view = self.shared.store.view();
            let network = resolve_network(&view, &config.target).ok_or_else(|| missing(Kind::Network, &config.target))?;
            let name = &network.spec.annotations.name;
            if is_ingress(network) || !network.has_addresses() || !network.spec.attachable {
                return Err(Status::permission_denied(format!(
                    "network {name} is not attachable: containers outside of services are not let on it; make a network with --attachable"
                )));
            }
            // By id from now on: another network of that name later is not meant.
            config.target = network.id.to_string();
        }
        let id = TaskId::from_random(rand::random());
        let task = attachment(id.clone(), node.clone(), container_id, config, self.shared.now());
        self.shared.write(vec![Action::Create(Object::Task(Arc::new(task)))]).await?;
        tracing::info!(task = %id, node = %node, "attachment created");
        Ok(Response::new(v1::AttachNetworkResponse { attachment_id: id.to_string() }))
    }

    async fn detach_network(&self, request: Request<v1::DetachNetworkRequest>) -> Result<Response<v1::DetachNetworkResponse>, Status> {
        let node = caller(&request)?.node()?.clone();
        let text = request.into_inner().attachment_id;
        if text.is_empty() {
            return Err(invalid(FieldError::new("attachment_id", "is missing; give what attaching returned")));
        }
        let id: TaskId = id("attachment_id", &text)?;
        {
            let view = self.shared.store.view();
            // A task of a service is not to be had away by this.
            let task = view.task(&id).filter(|task| matches!(task.spec.runtime, Runtime::Attachment { .. }));
            let task = task.ok_or_else(|| Status::not_found(format!("attachment {text} not found")))?;
            if task.node_id.as_ref() != Some(&node) {
                return Err(Status::permission_denied(format!("attachment {text} is of another node; detach it there")));
            }
        }
        self.shared.write(vec![Action::Remove { kind: Kind::Task, id: id.to_string(), version: None }]).await?;
        tracing::info!(task = %id, node = %node, "attachment removed");
        Ok(Response::new(v1::DetachNetworkResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_understood_or_refused_by_field() {
        let config = |aliases: &[&str], addresses: &[&str]| NetworkAttachmentConfig {
            target: "back".into(),
            aliases: aliases.iter().map(|text| (*text).to_owned()).collect(),
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            ..NetworkAttachmentConfig::default()
        };
        let field = |config: &NetworkAttachmentConfig, id: &str| check(config, id).map_err(|error| error.field);
        assert_eq!(field(&config(&["db", "db.example"], &["10.0.0.7", "10.0.0.7/24", "fd00::7"]), "pid:1"), Ok(()));
        assert_eq!(field(&config(&[], &[]), ""), Err("container_id".into()));
        assert_eq!(field(&config(&["a b"], &[]), "x"), Err("config.aliases[0]".into()));
        assert_eq!(field(&config(&["a", ""], &[]), "x"), Err("config.aliases[1]".into()));
        assert_eq!(field(&config(&[], &["10.0.0"]), "x"), Err("config.addresses[0]".into()));
    }

    #[test]
    fn it_is_named_by_its_alias() {
        let named = |aliases: &[&str]| {
            let config = NetworkAttachmentConfig { aliases: aliases.iter().map(|text| (*text).to_owned()).collect(), ..Default::default() };
            attachment(TaskId::for_test(1), NodeId::for_test(1), "pid:1".into(), config, Timestamp(0)).name()
        };
        assert_eq!(named(&["db", "other"]), "db");
        assert_eq!(named(&[]), format!("attached.{}", TaskId::for_test(1)));
    }
}
