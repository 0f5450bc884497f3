//! What clients may ask, and how they are refused.

use crate::support::{Cluster, service};
use skep_proto::v1::{self, control_client::ControlClient};
use tonic::Code;
use tonic::transport::Channel;

async fn create(control: &mut ControlClient<Channel>, spec: v1::ServiceSpec) -> Result<v1::Service, tonic::Status> {
    control.create_service(v1::CreateServiceRequest { spec: Some(spec) }).await.map(|answer| answer.into_inner().service.unwrap())
}

fn container(spec: &mut v1::ServiceSpec) -> &mut v1::ContainerSpec {
    match spec.task.as_mut().unwrap().runtime.as_mut().unwrap() {
        v1::task_spec::Runtime::Container(container) => container,
        _ => panic!("a container"),
    }
}

fn task(spec: &mut v1::ServiceSpec) -> &mut v1::TaskSpec {
    spec.task.as_mut().unwrap()
}

fn port(published: u32, target: u32, mode: i32) -> v1::PortConfig {
    v1::PortConfig { published_port: published, target_port: target, publish_mode: mode, ..Default::default() }
}

fn ports(spec: &mut v1::ServiceSpec, ports: Vec<v1::PortConfig>) {
    spec.endpoint = Some(v1::EndpointSpec { mode: 0, ports });
}

fn duration(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

fn restart(change: impl FnOnce(&mut v1::RestartPolicy)) -> Option<v1::RestartPolicy> {
    let mut policy = v1::RestartPolicy::default();
    change(&mut policy);
    Some(policy)
}

fn update(change: impl FnOnce(&mut v1::UpdateConfig)) -> Option<v1::UpdateConfig> {
    let mut config = v1::UpdateConfig { parallelism: 1, ..Default::default() };
    change(&mut config);
    Some(config)
}

fn resources(limits: (i64, i64), reservations: (i64, i64)) -> Option<v1::ResourceRequirements> {
    let amount = |(nano_cpus, memory_bytes)| Some(v1::Resources { nano_cpus, memory_bytes, generic: vec![] });
    Some(v1::ResourceRequirements { limits: amount(limits), reservations: amount(reservations), ..Default::default() })
}

fn mount(kind: i32, source: &str, target: &str) -> v1::Mount {
    v1::Mount { r#type: kind, source: source.into(), target: target.into(), ..Default::default() }
}

type Spoil = fn(&mut v1::ServiceSpec);

/// What is spoilt, and the field that must be named.
const BAD: &[(&str, Spoil)] = &[
    ("spec.annotations.name", |spec| spec.annotations.as_mut().unwrap().name = String::new()),
    ("spec.annotations.name", |spec| spec.annotations.as_mut().unwrap().name = "x".repeat(64)),
    ("spec.annotations.name", |spec| spec.annotations.as_mut().unwrap().name = "x".repeat(1 << 20)),
    ("spec.annotations.name", |spec| spec.annotations.as_mut().unwrap().name = "a.b".into()),
    ("spec.annotations.name", |spec| spec.annotations.as_mut().unwrap().name = "a\0b".into()),
    ("spec.annotations.name", |spec| spec.annotations.as_mut().unwrap().name = "-a".into()),
    ("spec.annotations.labels", |spec| drop(spec.annotations.as_mut().unwrap().labels.insert("k\0".into(), "v".into()))),
    ("spec.task", |spec| spec.task = None),
    ("spec.task", |spec| task(spec).runtime = None),
    ("spec.mode", |spec| spec.mode = None),
    ("spec.replicated.replicas", |spec| spec.mode = Some(v1::service_spec::Mode::Replicated(v1::ReplicatedService { replicas: u64::MAX }))),
    ("spec.replicated.replicas", |spec| spec.mode = Some(v1::service_spec::Mode::Replicated(v1::ReplicatedService { replicas: 1 << 40 }))),
    ("spec.task.container.image", |spec| container(spec).image = String::new()),
    ("spec.task.container.image", |spec| container(spec).image = "UPPER/Case:tag".into()),
    ("spec.task.container.image", |spec| container(spec).image = "web:tag with blank".into()),
    ("spec.task.container.command[0]", |spec| container(spec).command = vec!["a\0b".into()]),
    ("spec.task.container.args[1]", |spec| container(spec).args = vec!["ok".into(), "\0".into()]),
    ("spec.task.container.env[0]", |spec| container(spec).env = vec!["A=\0".into()]),
    ("spec.task.container.env[0]", |spec| container(spec).env = vec!["A={{.Nonsense}}".into()]),
    ("spec.task.container.env[0]", |spec| container(spec).env = vec![format!("A={}", "x".repeat(1 << 20))]),
    ("spec.task.container.hostname", |spec| container(spec).hostname = "{{".into()),
    ("spec.task.container.dir", |spec| container(spec).dir = "/a\0".into()),
    ("spec.task.container.user", |spec| container(spec).user = "\0".into()),
    ("spec.task.container.stop_grace_period", |spec| container(spec).stop_grace_period = duration(-1, 0)),
    ("spec.task.container.mounts", |spec| container(spec).mounts = vec![mount(0, "/a", "/x"), mount(0, "/b", "/x")]),
    ("spec.task.container.mounts[0].type", |spec| container(spec).mounts = vec![mount(77, "/a", "/x")]),
    ("spec.task.container.mounts[0].target", |spec| container(spec).mounts = vec![mount(0, "/a", "")]),
    ("spec.task.container.healthcheck.interval", |spec| {
        container(spec).healthcheck = Some(v1::HealthConfig { interval: duration(0, 1), ..Default::default() });
    }),
    ("spec.task.container.healthcheck.retries", |spec| {
        container(spec).healthcheck = Some(v1::HealthConfig { retries: -1, ..Default::default() });
    }),
    ("spec.task.container.secrets[0]", |spec| {
        container(spec).secrets = vec![v1::SecretReference { secret_id: "nothere".into(), secret_name: "s".into(), target: None }];
    }),
    ("spec.task.container.secrets[0]", |spec| {
        let target = v1::secret_reference::Target::File(v1::FileTarget { name: "s".into(), mode: 0o444, ..Default::default() });
        container(spec).secrets = vec![v1::SecretReference { secret_id: "nothere".into(), secret_name: "s".into(), target: Some(target) }];
    }),
    ("spec.task.container.configs[0]", |spec| {
        let target = v1::config_reference::Target::File(v1::FileTarget { name: "c".into(), ..Default::default() });
        container(spec).configs = vec![v1::ConfigReference { config_id: "../x".into(), config_name: "c".into(), target: Some(target) }];
    }),
    ("spec.task.container.isolation", |spec| container(spec).isolation = 99),
    ("spec.task.resources.limits.nano_cpus", |spec| task(spec).resources = resources((999, 0), (0, 0))),
    ("spec.task.resources.limits.nano_cpus", |spec| task(spec).resources = resources((-1, 0), (0, 0))),
    ("spec.task.resources.limits.memory_bytes", |spec| task(spec).resources = resources((0, 4095), (0, 0))),
    ("spec.task.resources.reservations.memory_bytes", |spec| task(spec).resources = resources((0, 0), (0, i64::MIN))),
    ("spec.task.resources.reservations.nano_cpus", |spec| task(spec).resources = resources((0, 0), (1, 0))),
    ("spec.task.restart.condition", |spec| task(spec).restart = restart(|policy| policy.condition = 3)),
    ("spec.task.restart.delay", |spec| task(spec).restart = restart(|policy| policy.delay = duration(-5, 0))),
    ("spec.task.restart.delay", |spec| task(spec).restart = restart(|policy| policy.delay = duration(i64::MAX, 0))),
    ("spec.task.restart.delay", |spec| task(spec).restart = restart(|policy| policy.delay = duration(0, 2_000_000_000))),
    ("spec.task.restart.window", |spec| task(spec).restart = restart(|policy| policy.window = duration(0, -1))),
    ("spec.task.placement.constraints[0]", |spec| {
        task(spec).placement = Some(v1::Placement { constraints: vec!["node.id is x".into()], ..Default::default() });
    }),
    ("spec.task.networks[0].target", |spec| {
        task(spec).networks = vec![v1::NetworkAttachmentConfig { target: "nothere".into(), ..Default::default() }];
    }),
    ("spec.task.networks[0].target", |spec| {
        task(spec).networks = vec![v1::NetworkAttachmentConfig { target: "ingress".into(), ..Default::default() }];
    }),
    ("spec.update.delay", |spec| spec.update = update(|config| config.delay = duration(-1, 0))),
    ("spec.update.monitor", |spec| spec.update = update(|config| config.monitor = duration(-1, 0))),
    ("spec.update.max_failure_ratio", |spec| spec.update = update(|config| config.max_failure_ratio = 1.5)),
    ("spec.update.max_failure_ratio", |spec| spec.update = update(|config| config.max_failure_ratio = f32::NAN)),
    ("spec.update.failure_action", |spec| spec.update = update(|config| config.failure_action = 9)),
    ("spec.rollback.order", |spec| spec.rollback = update(|config| config.order = -1)),
    ("spec.update", |spec| {
        spec.mode = Some(v1::service_spec::Mode::ReplicatedJob(v1::ReplicatedJob { max_concurrent: 1, total_completions: 1 }));
        spec.update = update(|_| ());
    }),
    ("spec.endpoint.mode", |spec| spec.endpoint = Some(v1::EndpointSpec { mode: 5, ports: vec![] })),
    ("spec.endpoint", |spec| spec.endpoint = Some(v1::EndpointSpec { mode: 1, ports: vec![port(80, 80, 0)] })),
    ("spec.endpoint.ports[0].target_port", |spec| ports(spec, vec![port(80, 0, 0)])),
    ("spec.endpoint.ports[0].target_port", |spec| ports(spec, vec![port(80, 65_536, 0)])),
    ("spec.endpoint.ports[0].published_port", |spec| ports(spec, vec![port(u32::MAX, 80, 0)])),
    ("spec.endpoint.ports[0].publish_mode", |spec| ports(spec, vec![port(80, 80, 7)])),
    ("spec.endpoint.ports[1]", |spec| ports(spec, vec![port(80, 80, 0), port(80, 81, 0)])),
    ("spec.endpoint.ports[0].published_port", |spec| ports(spec, vec![port(8080, 80, 0)])),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_absurd_value_is_refused_by_the_name_of_its_field() {
    let cluster = Cluster::start().await;
    let mut control = cluster.control().await;
    let mut holder = service("holder", 0);
    ports(&mut holder, vec![port(8080, 80, 0)]);
    create(&mut control, holder).await.unwrap();
    let mut wrong = Vec::new();
    for (field, spoil) in BAD {
        let mut spec = service("web", 1);
        spoil(&mut spec);
        match create(&mut control, spec).await {
            Err(status) if status.code() == Code::InvalidArgument && status.message().starts_with(field) => {}
            Err(status) => wrong.push(format!("{field}: {:?} {:.300}", status.code(), status.message())),
            Ok(_) => wrong.push(format!("{field}: accepted")),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), BAD.len(), wrong.join("\n"));
    let missing = control.create_service(v1::CreateServiceRequest { spec: None }).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::InvalidArgument, "spec: is missing"));
    create(&mut control, service("web", 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_need_the_version_that_was_read() {
    let cluster = Cluster::start().await;
    let mut control = cluster.control().await;
    let created = create(&mut control, service("web", 0)).await.unwrap();
    let ask = |version: Option<u64>, name: &str| v1::UpdateServiceRequest {
        service_id: created.id.clone(),
        service_version: version.map(|index| v1::Version { index }),
        spec: Some(service(name, 0)),
        rollback: 0,
    };
    let version = created.meta.unwrap().version.unwrap().index;
    let stale = control.update_service(ask(Some(version + 1000), "web")).await.unwrap_err();
    assert_eq!((stale.code(), stale.message()), (Code::Unknown, "update out of sequence"));
    let without = control.update_service(ask(None, "web")).await.unwrap_err();
    assert_eq!(without.code(), Code::InvalidArgument);
    assert!(without.message().starts_with("service_version"), "{without:?}");
    // The allocator may have written the service since.
    let answer = control.get_service(v1::GetServiceRequest { service_id: created.id.clone(), insert_defaults: true }).await.unwrap();
    let current = answer.into_inner().service.unwrap();
    assert_eq!(current.spec.as_ref().unwrap().update.as_ref().unwrap().parallelism, 1, "defaults are filled in");
    let version = current.meta.unwrap().version.unwrap().index;
    assert_eq!(control.update_service(ask(Some(version), "other")).await.unwrap_err().code(), Code::Unimplemented);
    let updated = control.update_service(ask(Some(version), "web")).await.unwrap().into_inner().service.unwrap();
    assert_eq!(updated.spec_version.unwrap().index, version);
    assert!(updated.previous_spec.is_some());
    let roll_back = v1::UpdateServiceRequest { service_version: updated.meta.unwrap().version, rollback: 1, ..ask(None, "web") };
    let back = control.update_service(roll_back).await.unwrap().into_inner().service.unwrap();
    assert_eq!(back.spec_version.unwrap().index, 0);
    assert_eq!(back.update_status.unwrap().state, v1::update_status::UpdateState::RollbackStarted as i32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_unique_ignoring_case_and_unknown_objects_are_not_found() {
    let cluster = Cluster::start().await;
    let mut control = cluster.control().await;
    create(&mut control, service("web", 0)).await.unwrap();
    let taken = create(&mut control, service("WEB", 0)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    assert!(taken.message().starts_with("name conflicts with an existing object"), "{taken:?}");
    let empty = control.get_service(v1::GetServiceRequest::default()).await.unwrap_err();
    assert_eq!(empty.code(), Code::InvalidArgument);
    assert!(empty.message().starts_with("service_id"), "{empty:?}");
    let unknown = v1::GetServiceRequest { service_id: "nobody".into(), insert_defaults: false };
    assert_eq!(control.get_service(unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(control.remove_service(v1::RemoveServiceRequest { service_id: "nobody".into() }).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(control.list_volumes(v1::ListVolumesRequest::default()).await.unwrap_err().code(), Code::Unimplemented);
    let filters = v1::list_services_request::Filters { names: vec!["web".into()], ..Default::default() };
    let found = control.list_services(v1::ListServicesRequest { filters: Some(filters) }).await.unwrap().into_inner().services;
    assert_eq!(found.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_have_their_rules() {
    let cluster = Cluster::start().await;
    let mut control = cluster.control().await;
    let spec = |name: &str| v1::NetworkSpec {
        annotations: Some(v1::Annotations { name: name.into(), ..Default::default() }),
        ..Default::default()
    };
    let mut ask = async |spec| {
        control.create_network(v1::CreateNetworkRequest { spec: Some(spec) }).await.map(|answer| answer.into_inner().network.unwrap())
    };
    let created = ask(spec("back")).await.unwrap();
    assert_eq!(ask(spec("back")).await.unwrap_err().code(), Code::Unknown);
    assert_eq!(ask(v1::NetworkSpec { ingress: true, ..spec("second") }).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(ask(v1::NetworkSpec { ingress: true, attachable: true, ..spec("x") }).await.unwrap_err().code(), Code::InvalidArgument);
    let mut predefined = spec("x");
    predefined.annotations.as_mut().unwrap().labels.insert("com.docker.swarm.predefined".into(), "true".into());
    assert_eq!(ask(predefined).await.unwrap_err().code(), Code::PermissionDenied);

    let mut user = service("web", 1);
    task(&mut user).networks = vec![v1::NetworkAttachmentConfig { target: created.id.clone(), ..Default::default() }];
    let mut control = cluster.control().await;
    let user = create(&mut control, user).await.unwrap();
    let remove = |name: &str| v1::RemoveNetworkRequest { name: name.into(), network_id: String::new() };
    assert_eq!(control.remove_network(remove("back")).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(control.remove_network(remove("host")).await.unwrap_err().code(), Code::FailedPrecondition);
    control.remove_service(v1::RemoveServiceRequest { service_id: user.id.clone() }).await.unwrap();
    crate::support::eventually("no task is left", || crate::support::tasks(&control, &user.id), |tasks| tasks.is_empty()).await;
    control.remove_network(remove("back")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_told_only_to_the_node_that_needs_it() {
    let cluster = Cluster::start().await;
    let mut agent = cluster.agent().await;
    let mut control = cluster.control().await;
    let spec = v1::SecretSpec {
        annotations: Some(v1::Annotations { name: "key".into(), ..Default::default() }),
        data: b"hunter2".to_vec(),
        ..Default::default()
    };
    let secret = control.create_secret(v1::CreateSecretRequest { spec: Some(spec.clone()) }).await.unwrap().into_inner().secret.unwrap();
    assert!(secret.spec.as_ref().unwrap().data.is_empty(), "clients do not get the data back");
    assert_eq!(control.create_secret(v1::CreateSecretRequest { spec: Some(spec) }).await.unwrap_err().code(), Code::AlreadyExists);

    let mut user = service("web", 1);
    let target = v1::secret_reference::Target::File(v1::FileTarget { name: "key".into(), mode: 0o444, ..Default::default() });
    container(&mut user).secrets =
        vec![v1::SecretReference { secret_id: secret.id.clone(), secret_name: "key".into(), target: Some(target) }];
    let user = create(&mut control, user).await.unwrap();
    agent
        .wait(|played| played.tasks.len() == 1 && played.secrets.values().any(|secret| secret.spec.as_ref().unwrap().data == b"hunter2"))
        .await;
    let remove = v1::RemoveSecretRequest { secret_id: secret.id.clone() };
    let busy = control.remove_secret(remove.clone()).await.unwrap_err();
    assert_eq!(busy.code(), Code::InvalidArgument);
    assert!(busy.message().contains("web"), "{busy:?}");
    control.remove_service(v1::RemoveServiceRequest { service_id: user.id }).await.unwrap();
    agent.wait(|played| played.tasks.is_empty() && played.secrets.is_empty()).await;
    control.remove_secret(remove).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_refuses_what_it_would_not_do() {
    let cluster = Cluster::start().await;
    let mut control = cluster.control().await;
    let object = control.list_clusters(v1::ListClustersRequest::default()).await.unwrap().into_inner().clusters.remove(0);
    type Change = fn(&mut v1::ClusterSpec);
    let cases: &[(Code, Change)] = &[
        (Code::InvalidArgument, |spec| spec.annotations.as_mut().unwrap().name = "other".into()),
        (Code::InvalidArgument, |spec| spec.ca_config.as_mut().unwrap().node_cert_expiry = duration(10, 0)),
        (Code::InvalidArgument, |spec| spec.dispatcher = Some(v1::DispatcherConfig { heartbeat_period: duration(-1, 0) })),
        (Code::InvalidArgument, |spec| spec.ca_config.as_mut().unwrap().signing_ca_key = b"key".to_vec()),
        (Code::InvalidArgument, |spec| spec.raft.as_mut().unwrap().snapshot_interval = 0),
        (Code::Unimplemented, |spec| spec.raft.as_mut().unwrap().keep_old_snapshots = 3),
        (Code::InvalidArgument, |spec| spec.ca_config.as_mut().unwrap().external_cas = vec![v1::ExternalCa::default()]),
    ];
    for (code, change) in cases {
        let mut spec = object.spec.clone().unwrap();
        change(&mut spec);
        let request = v1::UpdateClusterRequest {
            cluster_id: object.id.clone(),
            cluster_version: object.meta.unwrap().version,
            spec: Some(spec),
            rotation: None,
        };
        let refused = control.update_cluster(request).await.unwrap_err();
        assert_eq!(refused.code(), *code, "{refused:?}");
    }
}
