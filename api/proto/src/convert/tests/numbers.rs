//! Field numbers and types, held against bytes written by hand from the tables of the wire.

use crate::v1;
use prost::Message;

/// A field with a length: tag, length, contents.
fn long(number: u32, contents: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(u64::from(number << 3 | 2), &mut bytes);
    prost::encoding::encode_varint(contents.len() as u64, &mut bytes);
    bytes.extend_from_slice(contents);
    bytes
}

#[test]
fn a_task_has_its_version_in_14_and_its_wish_in_10() {
    let bytes = [&long(1, b"t1")[..], &[0x28, 3], &[0x50, 0x80, 0x04], &[0x72, 2, 0x08, 7], &[0x82, 0x01, 0]].concat();
    let task = v1::Task::decode(&bytes[..]).unwrap();
    assert_eq!(task.id, "t1");
    assert_eq!(task.slot, 3);
    assert_eq!(task.desired_state, v1::TaskState::Running as i32);
    assert_eq!(task.spec_version, Some(v1::Version { index: 7 }));
    assert_eq!(task.job_iteration, Some(v1::Version { index: 0 }), "16, present though empty");
    assert_eq!(task.encode_to_vec(), bytes);
}

#[test]
fn a_service_has_its_versions_in_10_and_11() {
    let bytes = [&long(1, b"s1")[..], &[0x38, 1], &[0x52, 2, 0x08, 9], &[0x5a, 2, 0x08, 8], &long(12, &[0x0a, 0])].concat();
    let service = v1::Service::decode(&bytes[..]).unwrap();
    assert_eq!(service.spec_version, Some(v1::Version { index: 9 }));
    assert_eq!(service.previous_spec_version, Some(v1::Version { index: 8 }));
    assert!(service.pending_delete);
    assert_eq!(service.job_status.unwrap().job_iteration, Some(v1::Version { index: 0 }));
}

#[test]
fn a_service_spec_keeps_modes_and_update_configs_apart() {
    let rollback = long(9, &[0x08, 2]);
    let update = long(6, &[0x08, 1, 0x2d, 0, 0, 0, 0x3f]);
    let spec = v1::ServiceSpec::decode(&[&update[..], &rollback, &long(10, &[0x08, 4, 0x10, 5])].concat()[..]).unwrap();
    let config = spec.update.unwrap();
    assert_eq!((config.parallelism, config.max_failure_ratio), (1, 0.5));
    assert_eq!(spec.rollback.unwrap().parallelism, 2);
    let job = v1::ReplicatedJob { max_concurrent: 4, total_completions: 5 };
    assert_eq!(spec.mode, Some(v1::service_spec::Mode::ReplicatedJob(job)));
}

#[test]
fn a_port_is_name_protocol_target_published_mode() {
    let bytes = [&long(1, b"web")[..], &[0x10, 1, 0x18, 80, 0x20, 0x90, 0x3f, 0x28, 1]].concat();
    let port = v1::PortConfig::decode(&bytes[..]).unwrap();
    let expected =
        v1::PortConfig { name: "web".into(), protocol: 1, target_port: 80, published_port: 8080, publish_mode: 1, ..Default::default() };
    assert_eq!(port, expected);
    assert_eq!(expected.encode_to_vec(), bytes);
    let ours = v1::PortConfig { address: "a".into(), affinity: 1, allow: vec!["b".into()], interface: "c".into(), ..expected };
    // 101, 102, 103, 104: two bytes each with the type.
    let more = [&[0xaa, 6, 1, b'a'][..], &[0xb2, 6, 1, b'c'], &[0xb8, 6, 1], &[0xc2, 6, 1, b'b']].concat();
    assert_eq!(ours.encode_to_vec(), [bytes, more].concat());
}

#[test]
fn a_container_has_odd_numbers() {
    let auth = long(10, &long(64, b"e30="));
    let bytes = [&auth[..], &long(20, b"SIGINT"), &long(23, &[0x08, 1]), &[0xc8, 0x01, 50]].concat();
    let container = v1::ContainerSpec::decode(&bytes[..]).unwrap();
    assert_eq!(container.pull_options.as_ref().unwrap().registry_auth, "e30=");
    assert_eq!(container.stop_signal, "SIGINT");
    assert_eq!(container.init, Some(true), "wrapped in a BoolValue");
    assert_eq!(container.pids_limit, 50);
    assert_eq!(container.encode_to_vec(), bytes);
}

#[test]
fn reports_are_in_3_and_statuses_hold_the_container_in_5() {
    let status = [&[0x10, 0xc0, 0x04][..], &long(5, &[0x10, 7, 0x18, 0x89, 0x01])].concat();
    let update = [long(1, b"t1"), long(2, &status)].concat();
    let request = v1::UpdateTaskStatusRequest::decode(&[long(1, b"session"), long(3, &update)].concat()[..]).unwrap();
    let status = request.updates[0].status.clone().unwrap();
    assert_eq!(status.state, v1::TaskState::Complete as i32);
    let container = v1::ContainerStatus { container_id: String::new(), pid: 7, exit_code: 137 };
    assert_eq!(status.runtime_status, Some(v1::task_status::RuntimeStatus::Container(container)));
}

#[test]
fn a_session_message_has_the_root_in_5() {
    let bytes = [long(1, b"s"), long(3, &[&long(1, &long(2, b"a:1"))[..], &[0x10, 2]].concat()), long(5, b"pem")].concat();
    let message = v1::SessionMessage::decode(&bytes[..]).unwrap();
    assert_eq!(message.root_ca, b"pem");
    assert_eq!(message.managers[0].weight, 2);
    assert_eq!(message.managers[0].peer.as_ref().unwrap().addr, "a:1");
}
