//! Bad specs are refused with the field's name and a cure.

mod world;

use proptest::prelude::*;
use skep_plan::validate::{Conflict, Unsupported, advice, check_change, check_conflicts, check_service};
use skep_types::*;
use std::time::Duration;
use world::*;

fn container(spec: &mut ServiceSpec) -> &mut ContainerSpec {
    match &mut task_spec(spec).runtime {
        Runtime::Container(container) => container,
        _ => panic!("a container"),
    }
}

fn field_of(change: impl FnOnce(&mut ServiceSpec)) -> String {
    let mut bad = spec("web", 1);
    change(&mut bad);
    check_service(&bad).map_or_else(|error| error.field, |()| "accepted".into())
}

fn port(published: u32, target: u32) -> PortConfig {
    PortConfig { published_port: published, target_port: target, ..PortConfig::default() }
}

fn limits(spec: &mut ServiceSpec) -> &mut ResourceRequirements {
    task_spec(spec).resources.get_or_insert_default()
}

fn refer(spec: &mut ServiceSpec, kind: ResourceKind) {
    task_spec(spec).resource_references.push(ResourceReference { resource_id: "some-id".into(), kind });
}

fn volume(target: &str) -> Mount {
    Mount { kind: MountType::Volume, source: "data".into(), target: target.into(), ..Mount::default() }
}

#[test]
fn a_plain_spec_is_accepted() {
    assert_eq!(check_service(&spec("web", 3)), Ok(()));
    assert_eq!(check_service(&spec("a", 0)), Ok(()));
}

#[test]
fn every_absurd_value_is_refused_by_its_field() {
    type Change = Box<dyn FnOnce(&mut ServiceSpec)>;
    let cases: Vec<(&str, Change)> = vec![
        ("spec.annotations.name", Box::new(|spec| spec.annotations.name = String::new())),
        ("spec.annotations.name", Box::new(|spec| spec.annotations.name = "-web".into())),
        ("spec.annotations.name", Box::new(|spec| spec.annotations.name = "a.b".into())),
        ("spec.annotations.name", Box::new(|spec| spec.annotations.name = "x".repeat(64))),
        ("spec.annotations.name", Box::new(|spec| spec.annotations.name = "x".repeat(1 << 20))),
        ("spec.annotations.name", Box::new(|spec| spec.annotations.name = "a\0b".into())),
        ("spec.annotations.labels[0]", Box::new(|spec| drop(spec.annotations.labels.insert("k\0".into(), "v".into())))),
        ("spec.task.container.env[1]", Box::new(|spec| container(spec).env = vec!["A=1".into(), "B=\0".into()])),
        ("spec.task.resource_references[0]", Box::new(|spec| refer(spec, ResourceKind::Secret))),
        ("spec.task.resource_references[0]", Box::new(|spec| refer(spec, ResourceKind::Config))),
        ("spec.task.resource_references[0]", Box::new(|spec| refer(spec, ResourceKind::Volume))),
        ("spec.task.container.args", Box::new(|spec| container(spec).args = vec!["a".into(); 5000])),
        ("spec.task.resources.limits.nano_cpus", Box::new(|spec| limits(spec).limits.nano_cpus = -1)),
        ("spec.task.resources.limits.nano_cpus", Box::new(|spec| limits(spec).limits.nano_cpus = 999_999)),
        ("spec.task.resources.reservations.memory_bytes", Box::new(|spec| limits(spec).reservations.memory_bytes = 1024)),
        (
            "spec.task.resources.reservations.memory_bytes",
            Box::new(|spec| {
                limits(spec).limits.memory_bytes = 8 << 20;
                limits(spec).reservations.memory_bytes = 16 << 20;
            }),
        ),
        ("spec.task.resources.memory_swappiness", Box::new(|spec| limits(spec).memory_swappiness = Some(101))),
        (
            "spec.task.placement.constraints[1]",
            Box::new(|spec| {
                let constraints = vec!["node.role == worker".into(), "node.role = worker".into()];
                task_spec(spec).placement = Some(Placement { constraints, ..Placement::default() });
            }),
        ),
        (
            "spec.task.restart.window",
            Box::new(|spec| task_spec(spec).restart = Some(RestartPolicy { window: Some(Duration::MAX), ..RestartPolicy::default() })),
        ),
        ("spec.task.container.image", Box::new(|spec| image(spec, ""))),
        ("spec.task.container.image", Box::new(|spec| image(spec, "Web:1"))),
        ("spec.task.container.mounts[1].target", Box::new(|spec| container(spec).mounts = vec![volume("/data"), volume("/x/../data/")])),
        ("spec.task.container.mounts[0].target", Box::new(|spec| container(spec).mounts = vec![volume("")])),
        ("spec.task.container.mounts[0].target", Box::new(|spec| container(spec).mounts = vec![volume("/.")])),
        (
            "spec.task.container.mounts[0].source",
            Box::new(|spec| container(spec).mounts = vec![Mount { target: "/a".into(), ..Mount::default() }]),
        ),
        (
            "spec.task.container.healthcheck.interval",
            Box::new(|spec| {
                container(spec).healthcheck = Some(HealthConfig { interval: Some(Duration::from_nanos(5)), ..HealthConfig::default() })
            }),
        ),
        (
            "spec.task.container.healthcheck.retries",
            Box::new(|spec| container(spec).healthcheck = Some(HealthConfig { retries: -1, ..HealthConfig::default() })),
        ),
        ("spec.task.container.hostname", Box::new(|spec| container(spec).hostname = "{{.Task.Nonsense}}".into())),
        ("spec.task.container.env[0]", Box::new(|spec| container(spec).env = vec!["=x".into()])),
        ("spec.task.container.hosts[0]", Box::new(|spec| container(spec).hosts = vec!["nonsense".into()])),
        (
            "spec.task.container.dns_config.nameservers[0]",
            Box::new(|spec| container(spec).dns = Some(DnsConfig { nameservers: vec!["dns".into()], ..DnsConfig::default() })),
        ),
        (
            "spec.task.container.ulimits[0].name",
            Box::new(|spec| container(spec).ulimits = vec![Ulimit { name: "files".into(), soft: 1, hard: 1 }]),
        ),
        (
            "spec.task.container.secrets[0].file",
            Box::new(|spec| {
                container(spec).secrets = vec![SecretReference { secret_id: SecretId::for_test(1), secret_name: "s".into(), file: None }]
            }),
        ),
        (
            "spec.task.container.secrets[1].file.name",
            Box::new(|spec| {
                let file = FileTarget { name: "f".into(), ..FileTarget::default() };
                let secret = SecretReference { secret_id: SecretId::for_test(1), secret_name: "s".into(), file: Some(file) };
                container(spec).secrets = vec![secret.clone(), secret];
            }),
        ),
        ("spec.replicated.replicas", Box::new(|spec| replicas(spec, u64::MAX))),
        ("spec.replicated.replicas", Box::new(|spec| replicas(spec, 1_000_001))),
        (
            "spec.replicated_job.total_completions",
            Box::new(|spec| spec.mode = ServiceMode::ReplicatedJob { max_concurrent: 1, total_completions: u64::MAX }),
        ),
        ("spec.update", Box::new(|spec| (spec.mode, spec.update) = (ServiceMode::GlobalJob, Some(UpdateConfig::default())))),
        (
            "spec.update.max_failure_ratio",
            Box::new(|spec| spec.update = Some(UpdateConfig { max_failure_ratio: f32::NAN, ..UpdateConfig::default() })),
        ),
        (
            "spec.rollback.max_failure_ratio",
            Box::new(|spec| spec.rollback = Some(UpdateConfig { max_failure_ratio: 1.5, ..UpdateConfig::default() })),
        ),
        (
            "spec.endpoint.ports[0].target_port",
            Box::new(|spec| spec.endpoint = Some(EndpointSpec { ports: vec![port(80, 0)], ..EndpointSpec::default() })),
        ),
        (
            "spec.endpoint.ports[0].target_port",
            Box::new(|spec| spec.endpoint = Some(EndpointSpec { ports: vec![port(80, 65_536)], ..EndpointSpec::default() })),
        ),
        (
            "spec.endpoint.ports[0].published_port",
            Box::new(|spec| spec.endpoint = Some(EndpointSpec { ports: vec![port(65_536, 80)], ..EndpointSpec::default() })),
        ),
        (
            "spec.endpoint.ports[1].published_port",
            Box::new(|spec| spec.endpoint = Some(EndpointSpec { ports: vec![port(80, 80), port(80, 81)], ..EndpointSpec::default() })),
        ),
        (
            "spec.endpoint.ports[0].publish_mode",
            Box::new(|spec| spec.endpoint = Some(EndpointSpec { mode: ResolutionMode::DnsRoundRobin, ports: vec![port(80, 80)] })),
        ),
    ];
    for (field, change) in cases {
        assert_eq!(field_of(change), field);
    }
}

#[test]
fn conflicts_name_the_other_service() {
    let mut world = World::new();
    let publish = |published| EndpointSpec { ports: vec![port(published, 80)], ..EndpointSpec::default() };
    let id = world.add_service(1, |spec| spec.endpoint = Some(publish(8080)));
    let mut new = spec("SERVICE1", 1);
    assert_eq!(check_conflicts(&world, &new, None), Err(Conflict::NameTaken("SERVICE1".into())));
    assert_eq!(check_conflicts(&world, &new, Some(&id)), Ok(()));
    new = spec("web", 1);
    new.endpoint = Some(publish(8080));
    let Err(Conflict::Field(error)) = check_conflicts(&world, &new, None) else { panic!("the port is taken") };
    assert_eq!(error.field, "spec.endpoint.ports[0].published_port");
    assert!(error.problem.contains("service1"));
    new.endpoint = Some(publish(8081));
    assert!(matches!(check_conflicts(&world, &new, None), Err(Conflict::NoIngress(_))));
    world.add_network(9, "ingress", |spec| spec.ingress = true);
    assert_eq!(check_conflicts(&world, &new, None), Ok(()));
    task_spec(&mut new).networks.push(NetworkAttachmentConfig { target: "ingress".into(), ..NetworkAttachmentConfig::default() });
    assert!(matches!(check_conflicts(&world, &new, None), Err(Conflict::Field(error)) if error.field == "spec.task.networks[0].target"));
    task_spec(&mut new).networks.clear();
    container(&mut new).secrets = vec![SecretReference {
        secret_id: SecretId::for_test(5),
        secret_name: "s".into(),
        file: Some(FileTarget { name: "s".into(), ..FileTarget::default() }),
    }];
    assert!(
        matches!(check_conflicts(&world, &new, None), Err(Conflict::Field(error)) if error.field == "spec.task.container.secrets[0].secret_id")
    );
}

fn publishing(ports: Vec<PortConfig>) -> ServiceSpec {
    let mut web = spec("web", 1);
    web.endpoint = Some(EndpointSpec { ports, ..EndpointSpec::default() });
    web
}

#[test]
fn a_port_that_nobody_could_come_to_is_refused() {
    let at = |address: &str| PublishPlace::Address(address.parse().unwrap());
    let link = |name: &str| PublishPlace::Interface(name.into());
    let placed = |place: PublishPlace| PortConfig { place, ..port(80, 80) };
    let sticky = PortConfig { affinity: Affinity::Source, ..port(80, 80) };
    let from = |range: &str| PortConfig { allow: vec![range.parse().unwrap()], ..placed(at("192.0.2.1")) };
    let many = (0..300u32).map(|number| std::net::IpAddr::from(std::net::Ipv4Addr::from(number)).into()).collect();
    for (field, bad) in [
        ("address", placed(at("0.0.0.0"))),
        ("address", placed(at("::"))),
        ("address", placed(at("224.0.0.1"))),
        ("address", placed(at("255.255.255.255"))),
        ("address", placed(at("::ffff:192.0.2.1"))),
        ("interface", placed(link("lo"))),
        ("interface", placed(link(""))),
        ("interface", placed(link("a-name-of-sixteen"))),
        ("interface", placed(link("eth0/1"))),
        ("affinity", PortConfig { publish_mode: PublishMode::Host, ..sticky.clone() }),
        ("allow", from("2001:db8::/32")),
        ("allow", PortConfig { allow: many, ..port(80, 80) }),
    ] {
        let error = check_service(&publishing(vec![port(81, 81), bad])).unwrap_err();
        assert_eq!(error.field, format!("spec.endpoint.ports[1].{field}"), "{error}");
    }
    for good in [placed(at("192.0.2.1")), placed(at("::1")), placed(link("eth0.100")), sticky, from("192.0.2.0/24")] {
        assert_eq!(check_service(&publishing(vec![good])), Ok(()));
    }
    let host = PortConfig { publish_mode: PublishMode::Host, ..placed(link("eth1")) };
    assert_eq!(check_service(&publishing(vec![host])), Ok(()));
}

#[test]
fn one_number_at_two_addresses_is_two_ports() {
    let at = |last: u8| PortConfig { place: PublishPlace::Address([192, 0, 2, last].into()), ..port(80, 80) };
    let on = |link: &str| PortConfig { place: PublishPlace::Interface(link.into()), ..port(80, 80) };
    assert_eq!(check_service(&publishing(vec![at(1), at(2)])), Ok(()));
    assert_eq!(check_service(&publishing(vec![on("eth0"), on("eth1")])), Ok(()));
    for both in [vec![at(1), at(1)], vec![at(1), port(80, 80)], vec![at(1), on("eth0")]] {
        assert_eq!(check_service(&publishing(both)).unwrap_err().field, "spec.endpoint.ports[1].published_port");
    }
    let mut world = World::new();
    world.add_network(1, "ingress", |spec| spec.ingress = true);
    world.add_service(1, |spec| spec.endpoint = Some(EndpointSpec { ports: vec![at(1)], ..EndpointSpec::default() }));
    assert_eq!(check_conflicts(&world, &publishing(vec![at(2)]), None), Ok(()));
    let words = |port: PortConfig| check_conflicts(&world, &publishing(vec![port]), None).unwrap_err().to_string();
    assert!(words(at(1)).contains("on address 192.0.2.1, which meets address 192.0.2.1"), "{}", words(at(1)));
    assert!(words(port(80, 80)).contains("on address 192.0.2.1, which meets all addresses"));
}

#[test]
fn what_an_update_may_not_change_is_said() {
    let service = skep_plan::new_service(ServiceId::for_test(1), spec("web", 1), Timestamp(0));
    assert!(matches!(check_change(&service, &spec("other", 1)), Err(Unsupported::Rename { .. })));
    let mut global = spec("web", 1);
    global.mode = ServiceMode::Global;
    assert_eq!(check_change(&service, &global), Err(Unsupported::Mode));
    assert_eq!(check_change(&service, &spec("web", 9)), Ok(()));
}

#[test]
fn what_will_disappoint_is_told_but_allowed() {
    let mut spec = spec("web", 2);
    let host = PortConfig { publish_mode: PublishMode::Host, ..port(80, 80) };
    spec.endpoint = Some(EndpointSpec { ports: vec![host], ..EndpointSpec::default() });
    assert!(advice(&spec).is_empty());
    spec.update = Some(UpdateConfig { order: UpdateOrder::StartFirst, ..UpdateConfig::default() });
    assert_eq!(check_service(&spec), Ok(()));
    assert_eq!(advice(&spec)[0].field, "spec.update.order");
}

proptest! {
    #[test]
    fn no_text_makes_the_checks_panic(name in ".*", image_name in ".*", constraint in ".*", env in ".*", target in ".*") {
        let mut odd = spec(&name, 1);
        image(&mut odd, &image_name);
        task_spec(&mut odd).placement = Some(Placement { constraints: vec![constraint], ..Placement::default() });
        container(&mut odd).env = vec![env];
        container(&mut odd).mounts = vec![volume(&target)];
        let _ = check_service(&odd);
        odd.annotations.name = "web".into();
        let _ = check_service(&odd);
        task_spec(&mut odd).placement = None;
        let _ = check_service(&odd);
        let _ = skep_plan::validate::check_template(&target);
        let _ = skep_plan::validate::check_image(&image_name);
    }
}
