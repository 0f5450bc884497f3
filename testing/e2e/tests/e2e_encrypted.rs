//! Encrypted networks on real hosts: what is said on them cannot be read on the cable, keys change without a lost request, and a host
//! that cannot encrypt gets no task.

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt::ReceiveTimeout};
use skep_e2e::networks::{PORT, View, ask, inside, names, running, undisturbed, until_all_answer};
use skep_kit::{Cluster, Scenario, eventually};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const VXLAN: u16 = 4789;
const WIREGUARD: [u16; 2] = [51820, 51821];
/// What every request begins with.
const WORDS: &[u8] = b"GET /trace HTTP";

/// What was on the cables.
#[derive(Debug, Default)]
struct Seen {
    /// VXLAN packets of the network, in clear.
    clear: usize,
    /// Frames with words of a request.
    words: usize,
    tunnelled: usize,
}

/// The UDP port and payload of a frame without VLAN tags.
fn udp(frame: &[u8]) -> Option<(u16, &[u8])> {
    let header = match frame.get(12..14)? {
        [0x08, 0x00] if *frame.get(23)? == 17 => 14 + 4 * usize::from(frame[14] & 15),
        [0x86, 0xdd] if *frame.get(20)? == 17 => 14 + 40,
        _ => return None,
    };
    Some((u16::from_be_bytes(frame.get(header + 2..header + 4)?.try_into().ok()?), frame.get(header + 8..)?))
}

/// Listens on all cables of the switch while something is done.
fn listen(cluster: &Cluster, vni: u32, act: impl FnOnce() -> Result<()>) -> Result<Seen> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let stop = AtomicBool::new(false);
    let switch = Path::new("/run/netns").join(cluster.client_namespace());
    std::thread::scope(|scope| {
        let stop = &stop;
        let listener = scope.spawn(move || {
            inside(&switch, || {
                let cable = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
                setsockopt(&cable, ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 200_000))?;
                ready.send(())?;
                let mut seen = Seen::default();
                let mut frame = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    let Ok(length) = recv(cable.as_raw_fd(), &mut frame, MsgFlags::empty()) else { continue };
                    let frame = &frame[..length];
                    seen.words += usize::from(frame.windows(WORDS.len()).any(|part| part == WORDS));
                    match udp(frame) {
                        Some((VXLAN, packet)) => seen.clear += usize::from(packet.get(4..7) == Some(&vni.to_be_bytes()[1..])),
                        Some((port, _)) => seen.tunnelled += usize::from(WIREGUARD.contains(&port)),
                        None => {}
                    }
                }
                Ok(seen)
            })
        });
        let outcome = is_ready.recv().context("nobody listens").and_then(|()| act());
        stop.store(true, Ordering::Relaxed);
        let seen = listener.join().expect("no panic in a thread")?;
        outcome.map(|()| seen)
    })
}

/// The newest epoch that a host has a key of.
fn newest_key(cluster: &Cluster, host: usize) -> Result<u32> {
    let keys = std::fs::read_dir(cluster[host].data_dir().join("agent/wireguard"))?;
    let epoch = |name: &str| name.strip_suffix(".key")?.parse().ok();
    keys.filter_map(|key| epoch(key.ok()?.file_name().to_str()?)).max().context("it has no key")
}

/// Starts a host's daemon anew with these flags.
fn restart(cluster: &mut Cluster, host: usize, flags: &[&str]) -> Result<()> {
    cluster[host].set_flags(flags);
    cluster[host].stop_skepd()?;
    cluster[host].start_skepd()
}

/// A VXLAN packet (RFC 7348 §5) of that network, in clear, from outside.
fn forge(cluster: &Cluster, host: usize, vni: u32) -> Result<()> {
    let to = SocketAddr::new(cluster.address(host).parse()?, VXLAN);
    inside(&Path::new("/run/netns").join(cluster.client_namespace()), || {
        let header = [&[8, 0, 0, 0][..], &vni.to_be_bytes()[1..], &[0; 64]].concat();
        UdpSocket::bind("0.0.0.0:0")?.send_to(&header, to)?;
        Ok(())
    })
}

#[test]
fn what_is_said_on_an_encrypted_network_is_not_read_and_is_not_lost() -> Result<()> {
    Scenario::new("encrypted networks", 1, 2).run(|cluster| {
        restart(cluster, 0, &["--tunnel-key-lifetime", "5"])?;
        restart(cluster, 2, &["--wireguard", "off"])?;
        cluster.wait_leader(SOON)?;
        cluster.wait_ready(SOON)?;
        cluster.ctl(0, &["network", "create", "--opt", "encrypted", "secret"])?.success()?;
        let truth = cluster.watch_networks();
        let create = |name: &str, flags: &[&str], args: &[&str]| -> Result<()> {
            let all = [&["service", "create", "-d", "--network", "secret", "--name", name], flags, &["whoami"], args].concat();
            cluster.ctl(0, &all)?.success().map(drop)
        };
        let two = ["--replicas", "2", "--replicas-max-per-node", "1"];
        let host_port = ["--publish", "published=8081,target=8080,mode=host"];
        create("web", &[&two[..], &host_port].concat(), &["graceful"])?;
        create("looker", &two, &["sleep"])?;
        let there = format!("node.id=={}", cluster.node_id(2)?);
        create("there", &["--constraint", &there], &["graceful"])?;

        // Only the hosts that can encrypt get tasks, and it is said why the third does not.
        cluster.wait_running(0, "web", 2)?;
        cluster.wait_running(0, "looker", 2)?;
        let web = running(cluster, 0, "web")?;
        ensure!(web.iter().all(|task| matches!(task.host, Some(0 | 1))), "{web:#?}");
        eventually(SOON, "the task says why it has no node", || {
            let shown = cluster.ctl(0, &["service", "ps", "--no-trunc", "there"])?.success()?;
            ensure!(shown.contains("encrypted networks not possible (it is switched off on the node"), "{shown}");
            Ok(())
        })?;
        let shown = cluster.ctl(0, &["network", "inspect", "secret"])?.success()?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        ensure!(shown[0]["encrypted"] == true, "{shown:#}");
        let vni = shown[0]["driver_state"]["options"]["com.docker.network.driver.overlay.vxlanid_list"].as_str();
        let vni: u32 = vni.and_then(|list| list.split(',').next()?.parse().ok()).with_context(|| format!("{shown:#}"))?;

        // From every host to every host, and nothing to be read on the way.
        let views = running(cluster, 0, "looker")?.iter().map(|task| View::of(cluster, task)).collect::<Result<Vec<_>>>()?;
        let vips: Vec<IpAddr> = eventually(SOON, "the service has a name", || views[0].look_up("web"))?;
        let vip = SocketAddr::new(*vips.first().context("it has an address")?, PORT);
        let hosts = names(&web);
        let seen = listen(cluster, vni, || {
            for view in &views {
                eventually(SOON, "all tasks answer", || inside(&view.namespace, || until_all_answer(vip, &hosts)))?;
            }
            Ok(())
        })?;
        ensure!(seen.clear == 0 && seen.words == 0 && seen.tunnelled > 0, "on the cable: {seen:?}");

        // It would have been seen.
        let seen = listen(cluster, vni, || {
            forge(cluster, 0, vni)?;
            let client = Path::new("/run/netns").join(cluster.client_namespace());
            let in_clear = SocketAddr::new(cluster.address(0).parse()?, 8081);
            eventually(SOON, "a port of the host leads to its task", || inside(&client, || ask(in_clear)))?;
            std::thread::sleep(Duration::from_millis(500)); // for the listener's last look
            Ok(())
        })?;
        ensure!(seen.clear > 0 && seen.words > 0, "on the cable: {seen:?}");

        // Keys change, twice, while everybody asks.
        let clients: Vec<_> = views.iter().map(|view| (view.namespace.as_path(), vip)).collect();
        let before = newest_key(cluster, 0)?.max(newest_key(cluster, 1)?);
        let seen = listen(cluster, vni, || {
            undisturbed(&clients, || {
                eventually(3 * SOON, "keys have changed twice", || {
                    let (one, other) = (newest_key(cluster, 0)?, newest_key(cluster, 1)?);
                    // A third is begun when the second is over.
                    ensure!(one.min(other) >= before + 3, "epochs {one} and {other}, {before} at first");
                    Ok(())
                })
            })
        })?;
        ensure!(seen.clear == 0 && seen.words == 0 && seen.tunnelled > 0, "on the cable: {seen:?}");
        let kept = std::fs::read_dir(cluster[1].data_dir().join("agent/wireguard"))?.count();
        ensure!(kept <= 2, "{kept} keys are kept");

        // The third host can from now on.
        restart(cluster, 2, &[])?;
        cluster.wait_running(0, "there", 1)?;
        let there = names(&running(cluster, 0, "there")?);
        for view in &views {
            eventually(SOON, "the new node is reached", || {
                let vips = view.look_up("there")?;
                let vip = SocketAddr::new(*vips.first().context("it has an address")?, PORT);
                inside(&view.namespace, || until_all_answer(vip, &there))
            })?;
        }
        truth.end()?;
        for service in ["web", "there", "looker"] {
            cluster.ctl(0, &["service", "rm", service])?.success()?;
        }
        eventually(SOON, "the network is removed", || cluster.ctl(0, &["network", "rm", "secret"])?.success().map(drop))
    })
}
