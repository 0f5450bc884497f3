use super::{CreateFlags, UpdateFlags};
use clap::Parser;
use skep_types::{Sensitive, ServiceMode, ServiceSpec, UpdateConfig};

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
    parsed.flags.spec("nginx", &["-g".into()], "web".into(), Sensitive::default()).unwrap().0
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
fn a_published_port_is_replaced_where_the_two_would_meet() {
    let ports = |spec: &ServiceSpec| spec.endpoint.as_ref().unwrap().ports.iter().map(|port| port.place.to_string()).collect::<Vec<_>>();
    let mut spec = create(&["-p", "8080:80"]);
    update(&mut spec, &["--publish-add", "published=8080,target=80,address=192.0.2.1"]);
    assert_eq!(ports(&spec), ["address 192.0.2.1"]);
    update(&mut spec, &["--publish-add", "192.0.2.2:8080:80", "--publish-add", "192.0.2.1:8080:80"]);
    assert_eq!(ports(&spec), ["address 192.0.2.2", "address 192.0.2.1"]);
    update(&mut spec, &["--publish-add", "published=8080,target=80,allow=192.0.2.0/24"]);
    assert_eq!(ports(&spec), ["all addresses"]);
    assert_eq!(spec.endpoint.unwrap().ports[0].allow.len(), 1);
}

#[test]
fn credentials_are_kept_by_an_update_and_asked_for_by_a_flag() {
    let parsed = Create::try_parse_from(["create", "--with-registry-auth"]).unwrap();
    assert!(parsed.flags.shared.hands_on_credentials());
    let mut spec = parsed.flags.spec("nginx", &[], "web".into(), Sensitive("e30=".into())).unwrap().0;
    update(&mut spec, &["--image", "nginx:2", "--with-registry-auth=false"]);
    assert_eq!(spec.task.container().unwrap().registry_auth, Sensitive("e30=".into()));
    assert!(!Create::try_parse_from(["create", "--with-registry-auth=false"]).unwrap().flags.shared.hands_on_credentials());
    assert!(Update::try_parse_from(["update", "--rollback", "--with-registry-auth"]).is_err());
}

#[test]
fn replicas_of_a_global_service_are_refused() {
    let parsed = Create::try_parse_from(["create", "--mode", "global", "--replicas", "2"]).unwrap();
    assert!(parsed.flags.spec("nginx", &[], "web".into(), Sensitive::default()).unwrap_err().contains("global"));
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
        ["--secret", "source=x,mode=999"],
        ["--host", "a"],
        ["--placement-pref", "binpack"],
        ["--update-max-failure-ratio", "2"],
    ] {
        assert!(Create::try_parse_from(["create", wrong[0], wrong[1]]).is_err(), "{wrong:?}");
    }
}
