//! Containers on an overlay of their own, published ports, by the real netlb, in a network namespace of the test.

mod support;

use skep_agent::{Agent, AgentConfig, AgentDeps, Assign, Dial, DialError, NetlbNetwork, NodeSettings, node_description};
use skep_types::{
    Driver, Endpoint, IpamConfig, IpamOptions, Network, NetworkAttachment, NetworkId, NetworkSpec, PortConfig, PublishMode, Task,
    TaskState, VXLAN_IDS_OPTION,
};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Containerd, OneImage, container, log_writer, shell, skip};
use tokio_util::sync::CancellationToken;

#[test]
#[ignore = "started by the other tests as a process of its own"]
fn log_writer_process() {
    if let Some(dir) = std::env::var_os("SKEP_TEST_LOG_WRITER") {
        skep_agent::run_log_writer(std::path::Path::new(&dir)).unwrap();
    }
}

/// There is no manager in this test.
struct Nobody;

#[async_trait::async_trait]
impl Dial for Nobody {
    async fn dial(&self, address: &str) -> Result<tonic::transport::Channel, DialError> {
        Err(DialError::TimedOut { address: address.into() })
    }
}

fn ingress() -> Arc<Network> {
    let mut network = Network::new(NetworkId::for_test(1), NetworkSpec { ingress: true, ..NetworkSpec::default() });
    network.spec.annotations.name = "ingress".into();
    let options = [(VXLAN_IDS_OPTION.to_owned(), "4096".to_owned())].into();
    network.driver_state = Some(Driver { name: "overlay".into(), options });
    let config = IpamConfig { subnet: "10.71.0.0/24".into(), gateway: "10.71.0.1".into(), ..IpamConfig::default() };
    network.ipam = Some(IpamOptions { configs: vec![config], ..IpamOptions::default() });
    Arc::new(network)
}

fn web(number: u64, mode: PublishMode, port: u32) -> Task {
    let mut task = shell(number, &format!("echo answer {number} > /tmp/index.html; exec busybox httpd -f -p 80 -h /tmp"));
    container(&mut task, |spec| spec.stop_signal = "KILL".into());
    task.networks = vec![NetworkAttachment {
        network: ingress(),
        addresses: vec![format!("10.71.0.{}/24", 10 + number)],
        aliases: Vec::new(),
        driver_attachment_opts: Default::default(),
    }];
    let config = PortConfig { target_port: 80, published_port: port, publish_mode: mode, ..PortConfig::default() };
    task.endpoint = Some(Endpoint { ports: vec![config], ..Endpoint::default() });
    task
}

fn get(port: u16) -> Option<String> {
    get_from(IpAddr::from([127, 0, 0, 1]), port)
}

fn get_from(host: IpAddr, port: u16) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&(host, port).into(), Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.lines().last().map(str::to_owned)
}

async fn started(containerd: &Containerd, netlb: &skep_netlb::Netlb) -> Agent {
    let config = containerd.config();
    let agent_config = AgentConfig {
        log_writer: log_writer(&config.run_dir),
        containerd: config,
        managers: Vec::new(),
        local_manager: None,
        data_path_addr: None,
    };
    let deps = AgentDeps {
        dial: Arc::new(Nobody),
        describe: Arc::new(|| node_description(&NodeSettings::default(), None)),
        images: Arc::new(OneImage { chain_id: containerd.chain_id.clone(), config: Default::default() }),
        network: Arc::new(NetlbNetwork::new(netlb.clone())),
        tunnels: None,
    };
    Agent::start(agent_config, deps, &CancellationToken::new()).await.unwrap()
}

async fn wait(agent: &Agent, task: &Task, state: TaskState) -> skep_types::TaskStatus {
    let begin = Instant::now();
    loop {
        let status = agent.engine().reports.newest(&task.id);
        match status {
            Some(status) if status.state >= state => {
                assert_eq!(status.state, state, "{status:?}");
                return status;
            }
            status => assert!(begin.elapsed() < Duration::from_secs(40), "{status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn published_ports_lead_to_running_tasks_over_restarts_of_the_agent() {
    if skip().is_some() {
        return;
    }
    // Of this thread only; everything below runs on it or is a child of it.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let containerd = Containerd::new();
    runtime.block_on(async {
        let settings = skep_netlb::Config {
            run_dir: containerd.path("run"),
            instance: containerd.path("run").display().to_string(),
            lb_driver: skep_netlb::LbDriver::Auto,
        };
        let netlb = skep_netlb::Netlb::start(settings).unwrap();
        let agent = started(&containerd, &netlb).await;
        let (one, two) = (web(1, PublishMode::Ingress, 8080), web(2, PublishMode::Ingress, 8080));
        let mut host = web(3, PublishMode::Host, 9090);
        // On no network of the cluster: the node's own bridge.
        host.networks.clear();
        for task in [&one, &two, &host] {
            agent.engine().assign.send(Assign::Update(Box::new(task.clone()))).await.unwrap();
        }
        let begin = Instant::now();
        for task in [&one, &two] {
            wait(&agent, task, TaskState::Running).await;
        }
        eprintln!("two tasks running after {:?}", begin.elapsed());
        let status = wait(&agent, &host, TaskState::Running).await;
        assert_eq!(status.ports.first().map(|port| port.published_port), Some(9090));
        let mut seen = std::collections::BTreeSet::new();
        let begin = Instant::now();
        while seen.len() < 2 && begin.elapsed() < Duration::from_secs(60) {
            seen.extend(get(8080));
        }
        assert_eq!(seen, ["answer 1".to_owned(), "answer 2".to_owned()].into());
        assert_eq!(get(9090).as_deref(), Some("answer 3"));
        let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
        if has_ipv6 {
            assert_eq!(get_from(Ipv6Addr::LOCALHOST.into(), 9090).as_deref(), Some("answer 3"), "the bridge has both families");
        } else {
            assert!(std::env::var_os("SKEP_REQUIRE_REAL").is_none(), "real tests are required: this kernel has no IPv6");
            eprintln!("SKIPPED: host-mode ports by IPv6: this kernel has none");
        }

        // A second task that wants the same port of this node is refused in words.
        let rival = web(4, PublishMode::Host, 9090);
        agent.engine().assign.send(Assign::Update(Box::new(rival.clone()))).await.unwrap();
        let status = wait(&agent, &rival, TaskState::Rejected).await;
        assert!(status.err.starts_with("port 9090/tcp of this node is already taken by task web.1."), "{}", status.err);

        // A new agent: not one request is lost meanwhile.
        agent.stop().await;
        assert!(get(8080).is_some() && get(9090).is_some());
        let agent = started(&containerd, &netlb).await;
        assert!(get(8080).is_some() && get(9090).is_some());
        assert!(!has_ipv6 || get_from(Ipv6Addr::LOCALHOST.into(), 9090).is_some());
        // Out of the rules before the signal: no request to a stopping task.
        let mut stopping = one.clone();
        stopping.desired_state = TaskState::Shutdown;
        agent.engine().assign.send(Assign::Update(Box::new(stopping))).await.unwrap();
        wait(&agent, &one, TaskState::Shutdown).await;
        for _ in 0..10 {
            assert_eq!(get(8080).as_deref(), Some("answer 2"));
        }
        agent.leave().await.unwrap();
        netlb.remove_everything().await.unwrap();
        assert_eq!(containerd.audit(), Vec::<String>::new());
    });
}
