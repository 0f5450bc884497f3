use super::*;
use crate::v1;
use prost::Message as _;

fn shape(name: &str) -> usize {
    SHAPES.binary_search_by(|shape| shape.name.cmp(name)).unwrap_or_else(|_| panic!("{name} is in no request"))
}

/// The least room with which the message passes.
fn weight(message: &[u8], shape: usize) -> usize {
    let (mut low, mut high) = (0, 1 << 34);
    while low < high {
        let middle = usize::midpoint(low, high);
        if weigh(message, shape, middle).is_ok() { high = middle } else { low = middle + 1 }
    }
    low
}

#[test]
fn structures_are_as_large_as_the_table_says_or_smaller() {
    let ours = |name: &str| SHAPES[shape(&format!("docker.swarmkit.v1.{name}"))].size;
    for (name, real) in [
        ("ServiceSpec", size_of::<v1::ServiceSpec>()),
        ("TaskSpec", size_of::<v1::TaskSpec>()),
        ("ContainerSpec", size_of::<v1::ContainerSpec>()),
        ("Mount", size_of::<v1::Mount>()),
        ("TaskStatus", size_of::<v1::TaskStatus>()),
        ("NodeDescription", size_of::<v1::NodeDescription>()),
        ("ClusterSpec", size_of::<v1::ClusterSpec>()),
        ("LogMessage", size_of::<v1::LogMessage>()),
        ("EndpointSpec", size_of::<v1::EndpointSpec>()),
        ("NetworkSpec", size_of::<v1::NetworkSpec>()),
        ("SecretSpec", size_of::<v1::SecretSpec>()),
        ("UpdateTaskStatusRequest.TaskStatusUpdate", size_of::<v1::update_task_status_request::TaskStatusUpdate>()),
    ] {
        assert!(ours(name) >= real && ours(name) < 2 * real, "{name}: {} in the table, {real} in memory", ours(name));
    }
}

#[test]
fn the_table_can_be_searched_and_answers_are_not_weighed() {
    assert!(SHAPES.is_sorted_by(|one, other| one.name < other.name));
    for shape in &SHAPES {
        assert!(shape.parts.is_sorted_by(|one, other| one.0 < other.0), "{}", shape.name);
        assert!(shape.parts.len() <= 64, "{}: the first of a list would be charged each time", shape.name);
    }
    assert!(request("docker.swarmkit.v1", "CreateServiceRequest").is_some());
    assert!(request("skep.v1", "RaftCallRequest").is_some());
    assert!(request("docker.swarmkit.v1", "ServiceSpec").is_none());
    for answer in ["ListTasksResponse", "AssignmentsMessage", "WatchMessage", "SubscribeLogsMessage"] {
        assert!(request("docker.swarmkit.v1", answer).is_none(), "{answer}");
    }
}

#[test]
fn no_two_bytes_become_more_than_short_messages_are_trusted_with() {
    // The key and the length of an element; a list in an element takes two bytes more.
    let parts = SHAPES.iter().flat_map(|shape| shape.parts);
    let of_list = |part: &Part| if let Part::Messages(inner) = part { FIRST * SHAPES[*inner].size } else { FIRST * HEADER };
    let most = parts.map(|(_, part)| of_list(part)).max().unwrap();
    assert!(most * crate::codec::SHORT / 2 <= crate::codec::ROOM, "{most} bytes for two");
}

fn update(number: usize) -> v1::update_task_status_request::TaskStatusUpdate {
    let status = v1::TaskStatus {
        timestamp: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 }),
        state: v1::TaskState::Failed as i32,
        message: "started".into(),
        err: "task: non-zero exit (137): the container was killed".into(),
        runtime_status: Some(v1::task_status::RuntimeStatus::Container(v1::ContainerStatus {
            container_id: "c".repeat(64),
            pid: 12_345,
            exit_code: 137,
        })),
        ..Default::default()
    };
    v1::update_task_status_request::TaskStatusUpdate { task_id: format!("{number:025}"), status: Some(status) }
}

#[test]
fn what_honest_peers_send_is_far_from_the_limit() {
    let updates = (0..1024).map(update).collect();
    let reports = v1::UpdateTaskStatusRequest { session_id: "s".repeat(25), updates };
    let weight_of = |bytes: Vec<u8>, name| weight(&bytes, request("docker.swarmkit.v1", name).unwrap());
    let of_reports = weight_of(reports.encode_to_vec(), "UpdateTaskStatusRequest");
    assert!(of_reports < crate::codec::ROOM / 2, "a batch of our agents: {of_reports}");

    let container =
        v1::ContainerSpec { env: (0..10_000).map(|number| format!("VARIABLE_{number}=a value")).collect(), ..Default::default() };
    let task = v1::TaskSpec { runtime: Some(v1::task_spec::Runtime::Container(container)), ..Default::default() };
    let spec = v1::ServiceSpec { task: Some(task), ..Default::default() };
    let of_service = weight_of(v1::CreateServiceRequest { spec: Some(spec) }.encode_to_vec(), "CreateServiceRequest");
    assert!(of_service < crate::codec::ROOM / 2, "10,000 variables: {of_service}");

    let line = v1::LogMessage {
        context: Some(v1::LogContext { service_id: "s".repeat(25), node_id: "n".repeat(25), task_id: "t".repeat(25) }),
        data: vec![b'x'; 2048],
        ..Default::default()
    };
    let logs = v1::PublishLogsMessage { subscription_id: "s".repeat(25), messages: vec![line; 256], close: false };
    let of_logs = weight_of(logs.encode_to_vec(), "PublishLogsMessage");
    assert!(of_logs < crate::codec::ROOM / 2, "a batch of lines: {of_logs}");
}

#[test]
fn entries_of_two_bytes_weigh_what_they_become() {
    let reports = request("docker.swarmkit.v1", "UpdateTaskStatusRequest").unwrap();
    // updates
    let many = [0x1a, 0].repeat(10_000);
    let decoded = v1::UpdateTaskStatusRequest::decode(many.as_slice()).unwrap();
    let real = decoded.updates.capacity() * size_of::<v1::update_task_status_request::TaskStatusUpdate>();
    let said = weight(&many, reports);
    assert!(said >= real && said < 4 * real, "{said} said, {real} taken");
    // One element with a list of its own takes room for four.
    let filters = request("docker.swarmkit.v1", "ListNodesRequest").unwrap();
    assert!(weight(&[0x0a, 2, 0x0a, 0], filters) >= 4 * HEADER);
    // Labels are maps.
    let named = v1::Annotations { labels: (0..100).map(|number| (number.to_string(), String::new())).collect(), ..Default::default() };
    let network = v1::NetworkSpec { annotations: Some(named), ..Default::default() };
    let labels = v1::CreateNetworkRequest { spec: Some(network) }.encode_to_vec();
    assert!(weight(&labels, request("docker.swarmkit.v1", "CreateNetworkRequest").unwrap()) >= 100 * 2 * HEADER);
}

#[test]
fn nothing_is_hidden_behind_groups_or_fields_nobody_knows() {
    let reports = request("docker.swarmkit.v1", "UpdateTaskStatusRequest").unwrap();
    let plain = weight(&[0x1a, 0].repeat(100), reports);
    // Field 500: a group with a number in it, a text, fixed numbers.
    let mut hidden =
        vec![0xa3, 0x1f, 0x08, 1, 0xa4, 0x1f, 0xa2, 0x1f, 3, 1, 2, 3, 0xa1, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xa5, 0x1f, 0, 0, 0, 0];
    hidden.extend([0x1a, 0].repeat(100));
    assert_eq!(v1::UpdateTaskStatusRequest::decode(hidden.as_slice()).unwrap().updates.len(), 100);
    assert_eq!(weight(&hidden, reports), plain);
    // No message at all ends the weighing, as it ends the reading.
    for junk in [&[0x07][..], &[0x1a, 0x7f, 0], &[0xff; 11]] {
        assert_eq!(weigh(junk, reports, 0), Ok(()));
    }
}
