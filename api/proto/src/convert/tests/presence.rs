//! Absent, empty and always written: what wire-behaviour 1 and 28 say of each.

use crate::{FromWire, ToWire, redact_cluster, redact_secret, v1};
use skep_types::*;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn an_absent_restart_policy_is_not_one_that_never_restarts() {
    let spec = |restart| {
        let runtime = Some(v1::task_spec::Runtime::Container(v1::ContainerSpec::default()));
        TaskSpec::from_wire(v1::TaskSpec { restart, runtime, ..Default::default() }).unwrap().restart
    };
    assert_eq!(spec(None), None);
    assert_eq!(spec(Some(v1::RestartPolicy::default())).unwrap().condition, RestartCondition::Never);
}

#[test]
fn an_update_config_that_is_there_says_what_it_says() {
    let empty = UpdateConfig::from_wire(v1::UpdateConfig::default()).unwrap();
    assert_eq!(empty.parallelism, 0, "all at once");
    assert_eq!(empty.delay, Duration::ZERO);
    assert_eq!(empty.monitor, None);
    assert_eq!(empty.to_wire().delay, Some(prost_types::Duration::default()), "always written");
    assert_eq!(empty.to_wire().monitor, None);
}

#[test]
fn what_genuine_peers_always_write_is_written_even_when_empty() {
    let cluster = Cluster::new(ClusterId::for_test(1)).to_wire();
    assert!(cluster.meta.as_ref().is_some_and(|meta| meta.version.is_some()));
    assert!(cluster.root_ca.is_some_and(|ca| ca.join_tokens.is_some()));
    let spec = cluster.spec.unwrap();
    assert!(spec.annotations.is_some() && spec.orchestration.is_some() && spec.raft.is_some() && spec.dispatcher.is_some());
    assert!(spec.ca_config.is_some() && spec.task_defaults.is_some() && spec.encryption_config.is_some());
    #[expect(deprecated, reason = "genuine peers write it")]
    let policy = spec.acceptance_policy;
    assert!(policy.is_some());

    let node = Node::new(NodeId::for_test(1)).to_wire();
    assert!(node.meta.is_some() && node.status.is_some() && node.spec.is_some_and(|spec| spec.annotations.is_some()));
    assert!(node.certificate.is_some_and(|certificate| certificate.status.is_some()));
    assert_eq!(node.description, None, "until the first session");

    let task = task().to_wire();
    assert!(task.meta.is_some() && task.spec.is_some() && task.annotations.is_some() && task.service_annotations.is_some());
    assert!(task.status.is_some());
    assert_eq!((task.service_id.as_str(), task.node_id.as_str()), ("", ""));
    assert_eq!(task.job_iteration, None, "it would make the task a job's");
}

#[test]
fn an_absent_message_that_is_always_written_reads_as_empty() {
    let node = v1::Node { id: NodeId::for_test(1).to_string(), ..Default::default() };
    assert_eq!(Node::from_wire(node).unwrap(), Node::new(NodeId::for_test(1)));
}

#[test]
fn an_attached_network_is_never_half_filled() {
    let network = Network::new(NetworkId::for_test(1), NetworkSpec::default());
    assert_eq!(network.to_wire().driver_state, None, "on its own it shows that it is not allocated");
    let attachment = NetworkAttachment {
        network: Arc::new(network),
        addresses: vec!["10.0.0.2/24".into()],
        aliases: vec![],
        driver_attachment_opts: Labels::new(),
    };
    let wire = attachment.to_wire();
    let attached = wire.network.as_ref().unwrap();
    assert!(attached.driver_state.is_some());
    assert!(attached.ipam.as_ref().is_some_and(|ipam| ipam.driver.is_some()));
    assert_eq!(NetworkAttachment::from_wire(wire).unwrap(), attachment);
}

#[test]
fn the_single_attachment_of_old_managers_counts_if_it_is_all_there_is() {
    let attached = |id| v1::NetworkAttachment {
        network: Some(v1::Network { id: NetworkId::for_test(id).to_string(), ..Default::default() }),
        ..Default::default()
    };
    #[expect(deprecated, reason = "what is tested")]
    let mut wire = v1::Node { id: NodeId::for_test(1).to_string(), attachment: Some(attached(1)), ..Default::default() };
    assert_eq!(Node::from_wire(wire.clone()).unwrap().attachments[0].network.id, NetworkId::for_test(1));
    wire.attachments.push(attached(2));
    let both = Node::from_wire(wire).unwrap().attachments;
    assert_eq!(both.iter().map(|attachment| attachment.network.id.clone()).collect::<Vec<_>>(), [NetworkId::for_test(2)]);
}

#[test]
fn times_before_1970_keep_their_nanoseconds_positive() {
    let wire = Timestamp(-1).to_wire();
    assert_eq!((wire.seconds, wire.nanos), (-1, 999_999_999));
    assert_eq!(Timestamp::from_wire(wire), Ok(Timestamp(-1)));
    for end in [i64::MIN, i64::MAX] {
        assert_eq!(Timestamp::from_wire(Timestamp(end).to_wire()), Ok(Timestamp(end)));
    }
}

#[test]
fn a_length_of_time_too_long_for_peers_is_cut() {
    let wire = Duration::MAX.to_wire();
    assert_eq!(Duration::from_wire(wire), Ok(Duration::from_nanos(i64::MAX as u64)));
}

#[test]
fn answers_show_no_key_of_the_cluster() {
    let mut cluster = Cluster::new(ClusterId::for_test(1));
    let key = || Sensitive(b"KEY".to_vec());
    cluster.spec.ca_config.signing_ca_key = key();
    cluster.spec.ca_config.signing_ca_cert = b"KEY".to_vec();
    cluster.root_ca.ca_key = key();
    cluster.root_ca.ca_cert = b"CERT".to_vec();
    cluster.root_ca.join_tokens.worker = Sensitive("SWMTKN".into());
    cluster.root_ca.root_rotation = Some(RootRotation { ca_key: key(), ca_cert: b"CERT".to_vec(), ..RootRotation::default() });
    cluster.unlock_keys = vec![EncryptionKey { key: key(), ..EncryptionKey::default() }];
    cluster.network_bootstrap_keys = cluster.unlock_keys.clone();
    cluster.encryption_key_lamport_clock = 5;
    cluster.fips = true;

    let mut wire = cluster.to_wire();
    redact_cluster(&mut wire);
    let bytes = prost::Message::encode_to_vec(&wire);
    assert!(!bytes.windows(3).any(|part| part == b"KEY"));
    assert!(bytes.windows(6).any(|part| part == b"SWMTKN"), "join tokens are shown");
    assert!(wire.root_ca.unwrap().root_rotation.is_some_and(|rotation| rotation.ca_cert == b"CERT"));
    assert_eq!((wire.encryption_key_lamport_clock, wire.fips), (0, false));
    assert_eq!((wire.default_address_pool, wire.subnet_size, wire.vxlanudp_port), (vec!["10.0.0.0/8".to_owned()], 24, 4789));
}

#[test]
fn answers_show_no_payload_of_a_secret() {
    let spec = SecretSpec { data: Sensitive(b"PAYLOAD".to_vec()), ..SecretSpec::default() };
    let mut wire = Secret { id: SecretId::for_test(1), meta: Meta::default(), spec, internal: false }.to_wire();
    assert!(!format!("{wire:?}").contains("80, 65"), "not in debug output either");
    redact_secret(&mut wire);
    assert!(wire.spec.unwrap().data.is_empty());
}

fn task() -> Task {
    let spec = TaskSpec::new(ContainerSpec::default());
    Task {
        id: TaskId::for_test(1),
        meta: Meta::default(),
        spec: Arc::new(spec),
        spec_version: None,
        service_id: None,
        slot: 0,
        node_id: None,
        annotations: Annotations::default(),
        service_annotations: Annotations::default(),
        status: TaskStatus::default(),
        desired_state: TaskState::Running,
        networks: vec![],
        endpoint: None,
        log_driver: None,
        assigned_generic_resources: vec![],
        job_iteration: None,
    }
}
