//! Questions as programs ask them, namespaces of tasks, and resolvers that do as they are told.

use crate::support::{patiently, sh, within};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use skep_netlb::Protocol;
use skep_netlb::dns::*;
use skep_types::{NetworkId, ServiceId, TaskId};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

/// Far beyond what anything takes, even on a machine that is busy otherwise: only a hang runs into it.
const PATIENCE: Duration = Duration::from_secs(60);

pub const SERVER: (&str, u16) = ("127.0.0.11", 53);
pub const WEB: &str = "10.0.1.250";

pub fn task_id(number: u64) -> TaskId {
    TaskId::for_test(number)
}

/// A task's namespace with nothing but loopback, and a link to the host that is there as long as the namespace is.
pub fn namespace(number: u64) -> PathBuf {
    sh(&format!(
        "ip netns add task{number}; ip -n task{number} link set lo up; ip link add link{number} type veth peer name eth0 netns task{number}"
    ));
    format!("/run/netns/task{number}").into()
}

pub fn has_link(number: u64) -> bool {
    sh("ip -o link").contains(&format!("link{number}@"))
}

pub fn web(addresses: &[&str]) -> ServiceNames {
    ServiceNames {
        id: ServiceId::for_test(1),
        name: "web".into(),
        aliases: vec!["site".into()],
        reach: Reach::Virtual(addresses.iter().map(|text| text.parse().unwrap()).collect()),
        ports: vec![NamedPort { name: Some("http".into()), protocol: Protocol::Tcp, port: 80 }],
    }
}

/// One network with the service `web`, and `big` with two hundred tasks.
pub fn names() -> NetworkNames {
    let mut names = NetworkNames::new("front", vec!["10.0.1.0/24".parse().unwrap()]);
    names.set_service(web(&[WEB, "fd00::250"]));
    names.set_service(ServiceNames {
        id: ServiceId::for_test(2),
        name: "big".into(),
        aliases: vec![],
        reach: Reach::EachTask,
        ports: vec![],
    });
    for number in 0..200u8 {
        names.set_task(TaskNames {
            id: task_id(1_000 + u64::from(number)),
            service: Some(ServiceId::for_test(2)),
            slot: Some(u64::from(number)),
            name: format!("big.{number}.x"),
            hostnames: vec![],
            addresses: vec![IpAddr::from([10, 0, 1, number])],
            readiness: Readiness::Ready,
        });
    }
    names
}

pub fn dns_with(limits: DnsLimits) -> Dns {
    let dns = Dns::new(limits);
    dns.change_names(|all| all.replace(NetworkId::for_test(1), names()));
    dns
}

/// Patient beyond what a busy machine can delay an answer of a resolver that gives one.
pub fn patient() -> DnsLimits {
    DnsLimits { patience: PATIENCE / 2, patience_in_all: PATIENCE, ..DnsLimits::default() }
}

pub fn dns() -> Dns {
    dns_with(patient())
}

/// A task on that network, which has a way out or not.
pub fn asking(outside: bool) -> Asking {
    Asking::new(Asker { networks: vec![NetworkId::for_test(1)], outside, ..Asker::default() })
}

pub fn with_resolvers(resolvers: &[Resolver]) -> Asking {
    Asking { resolvers: Some(resolvers.into()), ..asking(true) }
}

pub fn query(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// A client's socket, connected as resolvers of C libraries connect theirs.
pub fn client(netns: &Path) -> UdpSocket {
    let socket = within(netns, || UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.connect(SERVER).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = [0; 4096];
    let length = patiently(|| socket.recv(&mut buffer)).expect("an answer");
    Message::from_vec(&buffer[..length]).unwrap()
}

pub fn ask(netns: &Path, name: &str, kind: RecordType) -> Message {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let socket = client(netns);
    socket.send(&query(id, name, kind)).unwrap();
    let message = receive(&socket);
    assert_eq!(message.id, id);
    message
}

pub fn connection(netns: &Path) -> TcpStream {
    let stream = within(netns, || TcpStream::connect(SERVER).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub fn write(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(&[&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()).unwrap();
}

pub fn read(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).unwrap();
    Message::from_vec(&bytes).unwrap()
}

pub fn ask_tcp(netns: &Path, name: &str, kind: RecordType) -> Message {
    let mut stream = connection(netns);
    write(&mut stream, &query(77, name, kind));
    read(&mut stream)
}

pub fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).map(|address| address.to_string()).collect()
}

/// How a resolver of a test behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Gives 192.0.2.`last` for every name.
    Honest {
        last: u8,
    },
    /// Takes questions and says nothing.
    Dead,
    /// Tells over UDP that the answer is too long, and gives a hundred addresses over TCP.
    Long,
    /// Sends answers with a wrong id and to another question before the right one.
    Amid {
        lies: u8,
    },
    Failing,
}

/// A resolver on port 53 of an address, in a namespace. Its threads end with the test's process.
pub struct FakeResolver {
    pub resolver: Resolver,
    asked: Arc<AtomicUsize>,
}

impl FakeResolver {
    pub fn start(netns: Option<&Path>, address: &str, manner: Manner) -> Self {
        let address = SocketAddr::new(address.parse().unwrap(), 53);
        let open = || (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap());
        let (udp, tcp) = match netns {
            Some(netns) => within(netns, open),
            None => open(),
        };
        let asked = Arc::<AtomicUsize>::default();
        let (count, count_tcp) = (asked.clone(), asked.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                count.fetch_add(1, Ordering::SeqCst);
                for reply in replies(&buffer[..length], manner, false) {
                    udp.send_to(&reply, from).unwrap();
                }
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                count_tcp.fetch_add(1, Ordering::SeqCst);
                let query = read(&mut stream).to_vec().unwrap();
                for reply in replies(&query, manner, true) {
                    write(&mut stream, &reply);
                }
            }
        });
        let from = if netns.is_some() { AskFrom::Task } else { AskFrom::Host };
        Self { resolver: Resolver { address, from }, asked }
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn replies(query: &[u8], manner: Manner, tcp: bool) -> Vec<Vec<u8>> {
    let query = Message::from_vec(query).unwrap();
    let mut reply = query.clone().into_response();
    reply.metadata.recursion_available = true;
    reply.edns = None;
    let name = query.queries[0].name().clone();
    let add = |reply: &mut Message, last: u8| {
        reply.add_answer(Record::from_rdata(name.clone(), 300, RData::A(A::new(192, 0, 2, last))));
    };
    match manner {
        Manner::Dead => return vec![],
        Manner::Honest { last } => add(&mut reply, last),
        Manner::Long if tcp => (0..100).for_each(|last| add(&mut reply, last)),
        Manner::Long => reply.metadata.truncation = true,
        Manner::Failing => reply.metadata.response_code = ResponseCode::ServFail,
        Manner::Amid { lies } => {
            let mut all = Vec::new();
            for number in 0..lies {
                let mut lie = reply.clone();
                add(&mut lie, 66);
                if number % 2 == 0 {
                    lie.metadata.id = lie.metadata.id.wrapping_add(1);
                } else {
                    lie.queries[0].set_name(Name::from_ascii("evil.example.").unwrap());
                }
                all.push(lie.to_vec().unwrap());
            }
            add(&mut reply, 1);
            all.push(reply.to_vec().unwrap());
            return all;
        }
    }
    vec![reply.to_vec().unwrap()]
}
