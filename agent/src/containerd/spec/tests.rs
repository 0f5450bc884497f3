use super::*;
use skep_types::{Privileges, Resources, Ulimit};

fn host() -> HostFacts {
    HostFacts { architecture: "amd64".into(), kernel: (6, 1), cgroup_v2: false, swap_accounting: true }
}

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: vec!["/entry".into()],
        command: vec!["serve".into()],
        env: vec!["PATH=/image/bin".into(), "MODE=image".into()],
        working_dir: "/srv".into(),
        ..ImageConfig::default()
    }
}

fn built(container: ContainerSpec, change: impl FnOnce(&mut Input<'_>)) -> Result<Spec, ExecError> {
    let (image, host, user) = (image(), host(), UserIds { uid: 3, gid: 4, groups: vec![5], home: "/home/x".into() });
    let mut input = Input {
        container: &container,
        resources: None,
        individuals: &[],
        init: None,
        image: &image,
        user: &user,
        hostname: "web1",
        namespace: Some(Path::new("/run/skep/netns/x")),
        etc: Path::new("/run/skep/tasks/x"),
        mounts: &[],
        cgroup: "/skep/x",
        host: &host,
    };
    change(&mut input);
    build(&input)
}

fn plain() -> Spec {
    built(ContainerSpec::default(), |_| {}).unwrap()
}

fn resources(change: impl FnOnce(&mut ResourceRequirements)) -> Result<serde_json::Value, ExecError> {
    let mut wanted = ResourceRequirements::default();
    change(&mut wanted);
    let wanted: &'static ResourceRequirements = Box::leak(Box::new(wanted));
    let spec = built(ContainerSpec::default(), |input| input.resources = Some(wanted))?;
    Ok(serde_json::to_value(spec.linux().as_ref().unwrap().resources()).unwrap())
}

#[test]
fn a_container_gets_docker_s_defaults_and_no_new_privileges() {
    let spec = plain();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.no_new_privileges(), Some(true));
    assert_eq!(process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap().len(), 14);
    assert!(process.capabilities().as_ref().unwrap().ambient().is_none());
    let linux = spec.linux().as_ref().unwrap();
    assert!(linux.seccomp().is_some());
    assert!(linux.masked_paths().as_ref().unwrap().iter().any(|path| path == "/proc/kcore"));
    assert!(linux.readonly_paths().as_ref().unwrap().iter().any(|path| path == "/proc/sys"));
    assert_eq!(linux.cgroups_path().as_ref().unwrap(), Path::new("/skep/x"));
    let kinds: Vec<_> = linux.namespaces().as_ref().unwrap().iter().map(|n| (n.typ(), n.path().clone())).collect();
    assert!(kinds.contains(&(LinuxNamespaceType::Network, Some("/run/skep/netns/x".into()))));
    assert!(!kinds.iter().any(|(kind, _)| *kind == LinuxNamespaceType::Cgroup));
    let user = process.user();
    assert_eq!((user.uid(), user.gid(), user.additional_gids().clone()), (3, 4, Some(vec![5])));
}

#[test]
fn on_cgroup_v2_the_cgroup_namespace_is_private() {
    let modern = HostFacts { cgroup_v2: true, ..host() };
    let modern: &'static HostFacts = Box::leak(Box::new(modern));
    let spec = built(ContainerSpec::default(), |input| input.host = modern).unwrap();
    let linux = spec.linux().as_ref().unwrap();
    assert!(linux.namespaces().as_ref().unwrap().iter().any(|n| n.typ() == LinuxNamespaceType::Cgroup));
}

#[test]
fn the_host_s_network_means_no_namespace_and_no_network_settings() {
    let spec = built(ContainerSpec::default(), |input| input.namespace = None).unwrap();
    let linux = spec.linux().as_ref().unwrap();
    assert!(!linux.namespaces().as_ref().unwrap().iter().any(|n| n.typ() == LinuxNamespaceType::Network));
    let container = ContainerSpec { sysctls: [("net.ipv4.ip_forward".into(), "1".into())].into(), ..ContainerSpec::default() };
    let error = built(container, |input| input.namespace = None).unwrap_err();
    assert!(error.to_string().contains("net.ipv4.ip_forward would change the host"), "{error}");
}

#[test]
fn the_command_is_merged_as_swarm_does() {
    let line = |command: &[&str], args: &[&str]| {
        let spec = ContainerSpec { command: words(command), args: words(args), ..ContainerSpec::default() };
        super::command(&spec, &image()).unwrap()
    };
    assert_eq!(line(&[], &[]), ["/entry", "serve"]);
    assert_eq!(line(&[], &["x"]), ["/entry", "x"]);
    assert_eq!(line(&["/mine"], &[]), ["/mine"]);
    assert_eq!(line(&["/mine"], &["a", "b"]), ["/mine", "a", "b"]);
    assert!(matches!(super::command(&ContainerSpec::default(), &ImageConfig::default()), Err(ExecError::NoCommand)));
}

#[test]
fn later_variables_win_and_a_bare_name_removes() {
    let spec = ContainerSpec { env: words(&["MODE=mine", "NEW=1", "PATH"]), ..ContainerSpec::default() };
    assert_eq!(environment(&spec, &image(), &[], "web1", ""), ["HOSTNAME=web1", "MODE=mine", "NEW=1"]);
}

#[test]
fn assigned_resources_are_told_unless_the_service_says_otherwise() {
    let named = |kind: &str, value: &str| GenericResource::Named { kind: kind.into(), value: value.into() };
    let discrete = GenericResource::Discrete { kind: "ssd".into(), value: 3 };
    let assigned = [named("gpu", "UUID1"), discrete, named("gpu", "UUID2")];
    let env = |own: &[&str]| {
        let spec = ContainerSpec { env: words(own), ..ContainerSpec::default() };
        let image = ImageConfig { env: words(&["DOCKER_RESOURCE_SSD=image"]), ..ImageConfig::default() };
        let all = environment(&spec, &image, &assigned, "web1", "");
        all.into_iter().filter(|entry| entry.starts_with("DOCKER_")).collect::<Vec<_>>()
    };
    assert_eq!(env(&[]), ["DOCKER_RESOURCE_SSD=3", "DOCKER_RESOURCE_GPU=UUID1,UUID2"]);
    assert_eq!(env(&["DOCKER_RESOURCE_GPU=mine", "DOCKER_RESOURCE_SSD"]), ["DOCKER_RESOURCE_GPU=mine"]);
}

#[test]
fn an_init_process_is_mounted_read_only_and_put_before_the_command() {
    let spec = built(ContainerSpec::default(), |input| input.init = Some(Path::new("/usr/local/bin/skep-init"))).unwrap();
    let args = spec.process().as_ref().unwrap().args().as_ref().unwrap();
    assert_eq!(args, &["/sbin/docker-init", "--", "/entry", "serve"]);
    let mounts = spec.mounts().as_ref().unwrap();
    let mount = mounts.iter().find(|mount| mount.destination() == Path::new("/sbin/docker-init")).unwrap();
    assert_eq!(mount.source().as_deref(), Some(Path::new("/usr/local/bin/skep-init")));
    assert!(mount.options().as_ref().unwrap().iter().any(|option| option == "ro"));
    // A health check is a process of its own.
    assert_eq!(exec_process(spec.process().as_ref().unwrap(), &words(&["/check"])).args().as_ref().unwrap(), &["/check"]);
    let plain = plain();
    assert_eq!(plain.process().as_ref().unwrap().args().as_ref().unwrap(), &["/entry", "serve"]);
    assert!(!plain.mounts().as_ref().unwrap().iter().any(|mount| mount.destination().starts_with("/sbin")));
}

#[test]
fn a_mount_in_the_place_of_the_init_process_is_refused_and_one_round_it_comes_first() {
    let ready = |target: &str| ReadyMount { target: target.into(), kind: "tmpfs", source: "tmpfs".into(), options: vec![] };
    let with = |target: &str| {
        let mounts: &'static [ReadyMount] = Box::leak(Box::new([ready(target)]));
        built(ContainerSpec::default(), |input| (input.mounts, input.init) = (mounts, Some(Path::new("/i"))))
    };
    assert!(with("/sbin/docker-init/").unwrap_err().to_string().contains("is where the init process is mounted"));
    let spec = with("/sbin").unwrap();
    let targets: Vec<_> = spec.mounts().as_ref().unwrap().iter().map(|mount| mount.destination().clone()).collect();
    assert_eq!(targets[targets.len() - 2..], [PathBuf::from("/sbin"), "/sbin/docker-init".into()]);
}

#[test]
fn capabilities_are_added_dropped_and_checked() {
    let caps = |add: &[&str], drop: &[&str]| capabilities(&words(add), &words(drop));
    assert_eq!(caps(&["net_bind_service"], &["ALL"]).unwrap(), ["CAP_NET_BIND_SERVICE"]);
    assert_eq!(caps(&["ALL"], &["CAP_SYS_ADMIN"]).unwrap().len(), 40);
    assert_eq!(caps(&["CAP_SYS_TIME"], &["NET_RAW"]).unwrap().len(), 14);
    assert_eq!(caps(&["SYS_TIEM"], &[]).unwrap_err().to_string(), "capability_add: there is no capability \"SYS_TIEM\"");
}

#[test]
fn limits_become_cgroup_settings() {
    let set = resources(|wanted| {
        wanted.limits = Resources { nano_cpus: 500_000_000, memory_bytes: 64 << 20, generic: Vec::new() };
    })
    .unwrap();
    assert_eq!(set["cpu"]["quota"], 50_000);
    assert_eq!(set["memory"]["limit"], 64 << 20);
    assert_eq!(set["memory"]["swap"], 128 << 20);
    assert_eq!(
        resources(|wanted| wanted.limits.memory_bytes = 1).unwrap_err().to_string(),
        "resources.limits.memory_bytes: must be at least 6291456 bytes (6 MiB)"
    );
    assert!(resources(|wanted| wanted.limits.nano_cpus = 1).is_err());
    assert!(resources(|wanted| wanted.swap_bytes = Some(5)).is_err());
}

#[test]
fn limits_of_processes_and_files_are_checked() {
    let container = ContainerSpec {
        pids_limit: 7,
        ulimits: vec![Ulimit { name: "nofile".into(), soft: 10, hard: -1 }],
        oom_score_adj: -5,
        ..ContainerSpec::default()
    };
    let spec = built(container, |_| {}).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.rlimits().as_ref().unwrap()[0].hard(), u64::MAX);
    assert_eq!(process.oom_score_adj(), Some(-5));
    let container = ContainerSpec { ulimits: vec![Ulimit { name: "nofiles".into(), soft: 1, hard: 1 }], ..ContainerSpec::default() };
    assert_eq!(built(container, |_| {}).unwrap_err().to_string(), "ulimits: there is no limit \"nofiles\"");
}

#[test]
fn a_mount_of_the_user_replaces_ours_and_parents_come_first() {
    let ready = |target: &str| ReadyMount { target: target.into(), kind: "tmpfs", source: "tmpfs".into(), options: vec![] };
    let mounts = [ready("/data/inner"), ready("/dev/shm"), ready("/data"), ready("/etc/hosts")];
    let mounts: &'static [ReadyMount] = Box::leak(Box::new(mounts));
    let spec = built(ContainerSpec { read_only: true, ..ContainerSpec::default() }, |input| input.mounts = mounts).unwrap();
    let targets: Vec<String> = spec.mounts().as_ref().unwrap().iter().map(|mount| mount.destination().display().to_string()).collect();
    assert_eq!(targets.iter().filter(|target| *target == "/dev/shm" || *target == "/etc/hosts").count(), 2);
    let place = |name: &str| targets.iter().position(|target| target == name).unwrap();
    assert!(place("/data") < place("/data/inner"));
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let privileges = Privileges { selinux: Some(skep_types::SelinuxContext::default()), ..Privileges::default() };
    let container = ContainerSpec { privileges: Some(privileges), ..ContainerSpec::default() };
    assert!(built(container, |_| {}).unwrap_err().to_string().starts_with("an SELinux context is not supported by this node"));
    let privileges = Privileges { seccomp: Some(Seccomp::Unconfined), ..Privileges::default() };
    let container = ContainerSpec { privileges: Some(privileges), ..ContainerSpec::default() };
    assert!(built(container, |_| {}).unwrap().linux().as_ref().unwrap().seccomp().is_none());
}
