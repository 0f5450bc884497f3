//! Absurd values are refused with the path of their field, and with the values that would do.

use crate::{parse, parse_required, v1};
use skep_types::{
    ClusterSpec, FieldError, NetworkAttachment, Node, NodeSpec, Object, PortConfig, ServiceId, ServiceSpec, Task, TaskStatus,
};
use v1::task_spec::Runtime;

/// A spec with one of everything, all of it acceptable.
fn sound() -> v1::ServiceSpec {
    let mount = v1::Mount { bind_options: Some(v1::mount::BindOptions::default()), ..Default::default() };
    let container = v1::ContainerSpec {
        mounts: vec![v1::Mount::default(), v1::Mount::default(), mount],
        healthcheck: Some(v1::HealthConfig::default()),
        privileges: Some(v1::Privileges {
            seccomp: Some(v1::privileges::SeccompOpts::default()),
            apparmor: Some(v1::privileges::AppArmorOpts::default()),
            ..Default::default()
        }),
        secrets: vec![v1::SecretReference { secret_id: "s".into(), ..Default::default() }],
        configs: vec![v1::ConfigReference { config_id: "c".into(), ..Default::default() }],
        ..Default::default()
    };
    v1::ServiceSpec {
        task: Some(v1::TaskSpec {
            runtime: Some(Runtime::Container(container)),
            resources: Some(v1::ResourceRequirements { reservations: Some(v1::Resources::default()), ..Default::default() }),
            restart: Some(v1::RestartPolicy::default()),
            placement: Some(v1::Placement::default()),
            resource_references: vec![v1::ResourceReference::default()],
            ..Default::default()
        }),
        update: Some(v1::UpdateConfig::default()),
        rollback: Some(v1::UpdateConfig::default()),
        endpoint: Some(v1::EndpointSpec { ports: vec![v1::PortConfig::default(); 2], ..Default::default() }),
        mode: Some(v1::service_spec::Mode::Replicated(v1::ReplicatedService { replicas: 1 })),
        ..Default::default()
    }
}

fn task(spec: &mut v1::ServiceSpec) -> &mut v1::TaskSpec {
    spec.task.as_mut().unwrap()
}

fn container(spec: &mut v1::ServiceSpec) -> &mut v1::ContainerSpec {
    match &mut task(spec).runtime {
        Some(Runtime::Container(container)) => container,
        _ => unreachable!("sound() has a container"),
    }
}

fn privileges(spec: &mut v1::ServiceSpec) -> &mut v1::Privileges {
    container(spec).privileges.as_mut().unwrap()
}

fn ports(spec: &mut v1::ServiceSpec) -> &mut [v1::PortConfig] {
    &mut spec.endpoint.as_mut().unwrap().ports
}

fn refused(change: impl FnOnce(&mut v1::ServiceSpec)) -> FieldError {
    let mut spec = sound();
    change(&mut spec);
    parse_required::<ServiceSpec>("spec", Some(spec)).expect_err("the spec was accepted")
}

fn lasting(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

#[test]
fn the_spec_that_the_cases_change_is_accepted() {
    parse_required::<ServiceSpec>("spec", Some(sound())).unwrap();
}

#[test]
fn unknown_numbers_are_refused_and_the_known_ones_named() {
    let error = refused(|spec| container(spec).mounts[2].r#type = 9);
    let text = "spec.task.container.mounts[2].type: 9 is not known; use one of 0 (BIND), 1 (VOLUME), 2 (TMPFS), 3 (NPIPE), 4 (CLUSTER)";
    assert_eq!(error.to_string(), text);

    type Case = (&'static str, fn(&mut v1::ServiceSpec));
    let cases: [Case; 16] = [
        ("spec.task.container.mounts[0].consistency", |spec| container(spec).mounts[0].consistency = -1),
        ("spec.task.container.mounts[2].bind_options.propagation", |spec| {
            container(spec).mounts[2].bind_options.as_mut().unwrap().propagation = 6;
        }),
        ("spec.task.container.isolation", |spec| container(spec).isolation = 3),
        ("spec.task.container.privileges.seccomp.mode", |spec| privileges(spec).seccomp.as_mut().unwrap().mode = 3),
        ("spec.task.container.privileges.apparmor.mode", |spec| privileges(spec).apparmor.as_mut().unwrap().mode = 2),
        ("spec.task.restart.condition", |spec| task(spec).restart.as_mut().unwrap().condition = i32::MAX),
        ("spec.task.resource_references[0].resource_type", |spec| task(spec).resource_references[0].resource_type = 4),
        ("spec.update.failure_action", |spec| spec.update.as_mut().unwrap().failure_action = 3),
        ("spec.rollback.order", |spec| spec.rollback.as_mut().unwrap().order = 2),
        ("spec.endpoint.mode", |spec| spec.endpoint.as_mut().unwrap().mode = i32::MIN),
        ("spec.endpoint.ports[1].protocol", |spec| ports(spec)[1].protocol = 3),
        ("spec.endpoint.ports[0].publish_mode", |spec| ports(spec)[0].publish_mode = 2),
        ("spec.endpoint.ports[1].published_port", |spec| ports(spec)[1].published_port = 65536),
        ("spec.endpoint.ports[1].target_port", |spec| ports(spec)[1].target_port = u32::MAX),
        ("spec.task.container.secrets[0].secret_id", |spec| container(spec).secrets[0].secret_id = "../../etc".into()),
        ("spec.task.container.configs[0].config_id", |spec| container(spec).configs[0].config_id.clear()),
    ];
    for (field, change) in cases {
        assert_eq!(refused(change).field, field);
    }
}

#[test]
fn negative_and_malformed_lengths_of_time_are_refused() {
    let malformed = [
        (lasting(-1, 0), ""),
        (lasting(0, -1), ""),
        (lasting(-1, -1), ""),
        (lasting(1, -1), ".nanos"),
        (lasting(0, 1_000_000_000), ".nanos"),
        (lasting(0, i32::MIN), ".nanos"),
        (lasting(i64::MIN, i32::MIN), ""),
        (lasting(i64::MAX, 0), ""),
        (lasting(9_223_372_036, 854_775_808), ""),
    ];
    type Case = (&'static str, fn(&mut v1::ServiceSpec) -> &mut Option<prost_types::Duration>);
    let places: [Case; 9] = [
        ("spec.task.restart.delay", |spec| &mut task(spec).restart.as_mut().unwrap().delay),
        ("spec.task.restart.window", |spec| &mut task(spec).restart.as_mut().unwrap().window),
        ("spec.task.container.stop_grace_period", |spec| &mut container(spec).stop_grace_period),
        ("spec.task.container.healthcheck.interval", |spec| &mut container(spec).healthcheck.as_mut().unwrap().interval),
        ("spec.task.container.healthcheck.timeout", |spec| &mut container(spec).healthcheck.as_mut().unwrap().timeout),
        ("spec.task.container.healthcheck.start_period", |spec| &mut container(spec).healthcheck.as_mut().unwrap().start_period),
        ("spec.task.container.healthcheck.start_interval", |spec| &mut container(spec).healthcheck.as_mut().unwrap().start_interval),
        ("spec.update.delay", |spec| &mut spec.update.as_mut().unwrap().delay),
        ("spec.rollback.monitor", |spec| &mut spec.rollback.as_mut().unwrap().monitor),
    ];
    for (field, place) in places {
        for (length, end) in &malformed {
            assert_eq!(refused(|spec| *place(spec) = *length).field, format!("{field}{end}"), "{length:?}");
        }
    }
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(parse_required::<ServiceSpec>("spec", None).unwrap_err().to_string(), "spec: is missing");
    assert_eq!(refused(|spec| task(spec).runtime = None).field, "spec.task.runtime");
    assert_eq!(refused(|spec| spec.task = None).field, "spec.task.runtime", "absent and empty are alike");
    assert_eq!(refused(|spec| spec.mode = None).field, "spec.mode");
    let attachment = parse::<NetworkAttachment>("attachment", v1::NetworkAttachment::default());
    assert_eq!(attachment.unwrap_err().field, "attachment.network");
    assert_eq!(parse::<Object>("object", v1::Object::default()).unwrap_err().field, "object");
    assert_eq!(parse::<Task>("task", v1::Task::default()).unwrap_err().field, "task.id");
    assert_eq!(parse::<ServiceId>("service_id", String::new()).unwrap_err().to_string(), "service_id: the id is empty");
}

#[test]
fn empty_choices_are_refused() {
    let preference = refused(|spec| task(spec).placement.as_mut().unwrap().preferences = vec![v1::PlacementPreference::default()]);
    assert_eq!(preference.field, "spec.task.placement.preferences[0]");
    let resource = refused(|spec| {
        task(spec).resources.as_mut().unwrap().reservations.as_mut().unwrap().generic = vec![v1::GenericResource::default()];
    });
    assert_eq!(resource.field, "spec.task.resources.reservations.generic[0]");
}

#[test]
fn counts_that_peers_read_as_negative_are_refused() {
    use v1::service_spec::Mode;
    let replicas = refused(|spec| spec.mode = Some(Mode::Replicated(v1::ReplicatedService { replicas: u64::MAX })));
    assert_eq!(replicas.field, "spec.replicated.replicas");
    let job = v1::ReplicatedJob { max_concurrent: 1, total_completions: 1 << 63 };
    let completions = refused(|spec| spec.mode = Some(Mode::ReplicatedJob(job)));
    assert_eq!(completions.field, "spec.replicated_job.total_completions");
}

#[test]
fn a_failure_ratio_is_between_0_and_1() {
    for ratio in [-0.1, 1.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = refused(|spec| spec.update.as_mut().unwrap().max_failure_ratio = ratio);
        assert_eq!(error.field, "spec.update.max_failure_ratio", "{ratio}");
    }
}

#[test]
fn a_profile_that_would_not_be_used_is_refused() {
    let error = refused(|spec| privileges(spec).seccomp.as_mut().unwrap().profile = b"{}".to_vec());
    assert_eq!(error.field, "spec.task.container.privileges.seccomp.profile");
}

#[test]
fn node_and_cluster_specs_name_their_fields_too() {
    let node = v1::NodeSpec { availability: 3, ..Default::default() };
    assert_eq!(parse_required::<NodeSpec>("spec", Some(node)).unwrap_err().field, "spec.availability");

    let refused = |spec| parse_required::<ClusterSpec>("spec", Some(spec)).unwrap_err().field;
    let heartbeat = v1::DispatcherConfig { heartbeat_period: lasting(-5, 0) };
    assert_eq!(refused(v1::ClusterSpec { dispatcher: Some(heartbeat), ..Default::default() }), "spec.dispatcher.heartbeat_period");
    let external = v1::ExternalCa { protocol: 1, ..Default::default() };
    let ca = v1::CaConfig { external_cas: vec![external], ..Default::default() };
    assert_eq!(refused(v1::ClusterSpec { ca_config: Some(ca), ..Default::default() }), "spec.ca_config.external_cas[0].protocol");
    let policy = v1::AcceptancePolicy { policies: vec![v1::acceptance_policy::RoleAdmissionPolicy::default()] };
    #[expect(deprecated, reason = "what is refused")]
    let spec = v1::ClusterSpec { acceptance_policy: Some(policy), ..Default::default() };
    assert_eq!(refused(spec), "spec.acceptance_policy.policies");
}

#[test]
fn reports_of_agents_are_parsed_as_strictly() {
    let status = |change: fn(&mut v1::TaskStatus)| {
        let mut status = v1::TaskStatus::default();
        change(&mut status);
        parse_required::<TaskStatus>("status", Some(status)).unwrap_err().field
    };
    assert_eq!(status(|status| status.state = 513), "status.state");
    assert_eq!(status(|status| status.applied_by = "a b".into()), "status.applied_by");
    assert_eq!(status(|status| status.timestamp = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 })), "status.timestamp");
    assert_eq!(status(|status| status.applied_at = Some(prost_types::Timestamp { seconds: 0, nanos: -1 })), "status.applied_at.nanos");
    let port = v1::PortConfig { published_port: 70_000, ..Default::default() };
    let ports = v1::TaskStatus { port_status: Some(v1::PortStatus { ports: vec![port] }), ..Default::default() };
    assert_eq!(parse::<TaskStatus>("status", ports).unwrap_err().field, "status.port_status.ports[0].published_port");
    let port = |change: fn(&mut v1::PortConfig)| {
        let mut port = v1::PortConfig::default();
        change(&mut port);
        parse::<PortConfig>("port", port).unwrap_err().field
    };
    assert_eq!(port(|port| port.address = "eth0".into()), "port.address");
    assert_eq!(port(|port| (port.address, port.interface) = ("192.0.2.1".into(), "eth0".into())), "port.interface");
    assert_eq!(port(|port| port.affinity = 2), "port.affinity");
    assert_eq!(port(|port| port.allow = vec!["192.0.2.0/24".into(), "192.0.2.1/24".into()]), "port.allow[1]");
    let node = v1::Node { id: "n".into(), certificate: Some(v1::Certificate { role: 7, ..Default::default() }), ..Default::default() };
    assert_eq!(parse::<Node>("node", node).unwrap_err().field, "node.certificate.role");
}

#[test]
fn no_text_of_a_spec_has_a_nul() {
    fn nul() -> String {
        "a\0b".into()
    }
    fn list() -> Vec<String> {
        vec!["sound".into(), nul()]
    }
    fn map() -> skep_types::Labels {
        [("key".into(), nul())].into()
    }
    type Case = (&'static str, fn(&mut v1::ServiceSpec));
    let cases: [Case; 26] = [
        ("spec.annotations.name", |spec| spec.annotations = Some(v1::Annotations { name: nul(), ..Default::default() })),
        ("spec.annotations.labels[\"key\"]", |spec| spec.annotations = Some(v1::Annotations { labels: map(), ..Default::default() })),
        ("spec.annotations.labels[\"a\\0b\"]", |spec| {
            spec.annotations = Some(v1::Annotations { labels: [(nul(), String::new())].into(), ..Default::default() });
        }),
        ("spec.endpoint.ports[1].name", |spec| ports(spec)[1].name = nul()),
        ("spec.task.container.image", |spec| container(spec).image = nul()),
        ("spec.task.container.labels[\"key\"]", |spec| container(spec).labels = map()),
        ("spec.task.container.command[1]", |spec| container(spec).command = list()),
        ("spec.task.container.args[1]", |spec| container(spec).args = list()),
        ("spec.task.container.env[1]", |spec| container(spec).env = list()),
        ("spec.task.container.hostname", |spec| container(spec).hostname = nul()),
        ("spec.task.container.dir", |spec| container(spec).dir = nul()),
        ("spec.task.container.user", |spec| container(spec).user = nul()),
        ("spec.task.container.groups[1]", |spec| container(spec).groups = list()),
        ("spec.task.container.stop_signal", |spec| container(spec).stop_signal = nul()),
        ("spec.task.container.mounts[1].source", |spec| container(spec).mounts[1].source = nul()),
        ("spec.task.container.mounts[1].target", |spec| container(spec).mounts[1].target = nul()),
        ("spec.task.container.hosts[1]", |spec| container(spec).hosts = list()),
        ("spec.task.container.sysctls[\"key\"]", |spec| container(spec).sysctls = map()),
        ("spec.task.container.capability_add[1]", |spec| container(spec).capability_add = list()),
        ("spec.task.container.secrets[0].secret_name", |spec| container(spec).secrets[0].secret_name = nul()),
        ("spec.task.container.healthcheck.test[1]", |spec| container(spec).healthcheck.as_mut().unwrap().test = list()),
        ("spec.task.container.pull_options.registry_auth", |spec| {
            container(spec).pull_options = Some(v1::container_spec::PullOptions { registry_auth: nul() });
        }),
        ("spec.task.container.privileges.credential_spec.file", |spec| {
            let source = Some(v1::privileges::credential_spec::Source::File(nul()));
            privileges(spec).credential_spec = Some(v1::privileges::CredentialSpec { source });
        }),
        ("spec.task.placement.constraints[1]", |spec| task(spec).placement.as_mut().unwrap().constraints = list()),
        ("spec.task.log_driver.options[\"key\"]", |spec| {
            task(spec).log_driver = Some(v1::Driver { options: map(), ..Default::default() });
        }),
        ("spec.task.networks[0].aliases[1]", |spec| {
            task(spec).networks = vec![v1::NetworkAttachmentConfig { aliases: list(), ..Default::default() }];
        }),
    ];
    for (field, change) in cases {
        assert_eq!(refused(change).field, field);
    }
}

#[test]
fn a_report_is_not_lost_for_an_odd_text() {
    let status = v1::TaskStatus { err: "exec: a\0b".into(), ..Default::default() };
    assert_eq!(parse::<TaskStatus>("status", status).unwrap().err, "exec: a\0b");
}
