use super::*;
use crate::wanted::Protocol;

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 1, last])
}

fn service(number: u64, name: &str, aliases: &[&str], reach: Reach) -> ServiceNames {
    let ports = vec![NamedPort { name: Some("http".into()), protocol: Protocol::Tcp, port: 80 }];
    ServiceNames { id: ServiceId::for_test(number), name: name.into(), aliases: aliases.iter().map(|&a| a.into()).collect(), reach, ports }
}

fn task(number: u8, of: u64, slot: u64, readiness: Readiness) -> TaskNames {
    TaskNames {
        id: TaskId::for_test(u64::from(number)),
        service: Some(ServiceId::for_test(of)),
        slot: Some(slot),
        name: format!("Web.{slot}.t{number}"),
        hostnames: vec![format!("h{number}"), "shared".into()],
        addresses: vec![address(number)],
        readiness,
    }
}

/// A service with a task of each kind, in slots 1, 2 and 3.
fn network(reach: Reach) -> NetworkNames {
    let mut network = NetworkNames::new("Back", vec!["10.0.1.0/24".parse().unwrap()]);
    network.set_task(task(11, 1, 1, Readiness::Ready));
    network.set_service(service(1, "Web", &["site"], reach));
    network.set_task(task(12, 1, 2, Readiness::Starting));
    network.set_task(task(13, 1, 3, Readiness::Leaving));
    network
}

fn found(network: &NetworkNames, name: &str) -> Option<Vec<u8>> {
    found_in(network, name, None)
}

fn found_in(network: &NetworkNames, name: &str, stack: Option<&str>) -> Option<Vec<u8>> {
    let last = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => 0,
    };
    network.find(name, stack).map(|targets| targets.iter().flat_map(|target| target.addresses).map(last).collect())
}

#[test]
fn each_name_leads_to_whom_it_should() {
    let network = network(Reach::Virtual(vec![address(100)]));
    for (name, expected) in [
        ("web", Some(vec![100])),
        ("site", Some(vec![100])),
        ("tasks.web", Some(vec![11])),
        ("tasks.site", Some(vec![11])),
        ("all.web", Some(vec![11, 12])),
        ("web.1", Some(vec![11])),
        ("web-2.web", Some(vec![12])),
        ("web.3", Some(vec![])),
        ("web.99", Some(vec![])),
        ("web.1.t11", Some(vec![11])),
        ("web.3.t13", Some(vec![13])),
        ("h12", Some(vec![12])),
        ("h13", Some(vec![])),
        ("shared", Some(vec![11, 12])),
        ("back", None),
        ("tasks.h11", None),
        ("tasks.nobody", None),
        ("other-1.web", None),
        ("web.x", None),
        ("", None),
    ] {
        assert_eq!(found(&network, name), expected, "{name}");
    }
}

#[test]
fn without_a_virtual_address_the_name_leads_to_ready_tasks() {
    let mut network = network(Reach::EachTask);
    assert_eq!(found(&network, "web"), Some(vec![11]));
    network.set_task(task(11, 1, 1, Readiness::Leaving));
    assert_eq!(found(&network, "web"), Some(vec![]), "the name is there though nobody is behind it");
}

#[test]
fn a_stack_sees_its_own_service_first() {
    let mut network = NetworkNames::new("shared", vec![]);
    network.set_service(service(1, "shop_db", &["db"], Reach::Virtual(vec![address(1)])));
    network.set_service(service(2, "blog_db", &["db"], Reach::Virtual(vec![address(2)])));
    assert_eq!(found_in(&network, "db", Some("Shop")), Some(vec![1]));
    assert_eq!(found_in(&network, "db", Some("blog")), Some(vec![2]));
    assert_eq!(found_in(&network, "db", Some("other")), Some(vec![1, 2]));
    assert_eq!(found_in(&network, "db", None), Some(vec![1, 2]));
    network.set_service(service(3, "db", &[], Reach::Virtual(vec![address(3)])));
    assert_eq!(found_in(&network, "db", None), Some(vec![3]), "a name of one's own goes before an alias");
    assert_eq!(found_in(&network, "db", Some("blog")), Some(vec![2]));
}

#[test]
fn addresses_lead_back_to_names() {
    let network = network(Reach::Virtual(vec![address(100)]));
    let names = |last| network.find_address(address(last)).map(|targets| targets.iter().map(|target| target.name).collect::<Vec<_>>());
    assert_eq!(names(100), Some(vec!["Web"]));
    assert_eq!(names(13), Some(vec!["Web.3.t13"]));
    assert_eq!(names(99), None);
}

#[test]
fn nothing_is_left_of_what_was_removed_or_renamed() {
    let mut network = network(Reach::Virtual(vec![address(100)]));
    network.set_service(service(1, "site", &[], Reach::EachTask));
    assert_eq!(found(&network, "web"), None);
    assert_eq!(found(&network, "site"), Some(vec![11]));
    for number in 11..=13 {
        network.remove_task(&TaskId::for_test(number));
        network.remove_task(&TaskId::for_test(number));
    }
    network.remove_service(&ServiceId::for_test(1));
    network.remove_service(&ServiceId::for_test(1));
    let NetworkNames { services, tasks, by_name, by_address, members, .. } = network;
    assert!(services.is_empty() && tasks.is_empty() && by_name.is_empty() && by_address.is_empty() && members.is_empty());
}
