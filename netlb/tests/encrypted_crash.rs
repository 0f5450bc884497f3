//! Killed at every fail-point of setting encryption up, looking it over and taking it away; started again, everything is as wanted, nothing
//! has left in clear, and nothing is left behind at the end.
//! `cargo test -p skep-netlb --features failpoints --test encrypted_crash`
#![cfg(feature = "failpoints")]

mod encryption;
#[path = "support/hosts.rs"]
mod hosts;
mod support;

use encryption::*;
use hosts::*;
use skep_netlb::*;
use support::*;

const POINTS: &[&str] = &[
    "netlb.secure.key",
    "netlb.secure.guarded",
    "netlb.secure.made",
    "netlb.secure.told",
    "netlb.secure.routed",
    "netlb.secure.left",
    "netlb.secure.unrouted",
    "netlb.audit.tunnels",
];
/// Only the one or the other has these.
const OF_THE_KERNEL: &[&str] = &["netlb.secure.identity", "netlb.secure.peers"];
const OF_OURS: &[&str] = &["netlb.secure.tun", "netlb.secure.carried"];

/// Not a test: the program in the tasks' namespaces.
#[test]
fn responder() {
    support::responder();
}

/// Not a test: what is killed, on the first of two hosts.
#[test]
fn scenario() {
    support::scenario(async {
        let mut secured = Secured::two_with_the_first(Host::start(1)).await;
        let host = secured.hosts.remove(0);
        let mut tell = async |epochs: &[u32], encrypted: bool| {
            (secured.epochs, secured.sending, secured.encrypted) = (epochs.to_vec(), epochs[0], encrypted);
            host.netlb.set_wanted(secured.for_node(1));
            host.netlb.applied().await.unwrap();
        };
        tell(&[4], true).await;
        host.netlb.audit().await.unwrap();
        tell(&[5, 4], true).await;
        tell(&[5], true).await;
        host.netlb.audit().await.unwrap();
        tell(&[5], false).await;
        tell(&[5], true).await;
        host.netlb.remove_everything().await.unwrap();
    });
}

#[test]
fn after_a_kill_at_any_point_the_next_start_encrypts_again() {
    let name = "after_a_kill_at_any_point_the_next_start_encrypts_again";
    encrypted_test(name, async |mut world| {
        let mut secured = Secured::spread(&mut world, 2, Underlay::V4).await;
        let cable = Cable::watch();
        secured.hosts[0].netlb.remove_everything().await.unwrap();
        let first = secured.hosts.remove(0).netns();
        let look = || {
            sh(
                "nsenter --net=/run/netns/h1 sh -ec 'ip -br link; nft list ruleset; ip -6 route show table all | { grep -v kernel || true; }; ls /run/h1/netns'",
            )
        };
        let before = look();
        let only = if can_encrypt(driver()).unwrap() == WireGuard::Kernel { OF_THE_KERNEL } else { OF_OURS };
        for point in POINTS.iter().chain(only) {
            for visit in [1, 2] {
                sh("rm -rf /run/h1/wireguard");
                if !within(&first, || killed_at(point, visit)) {
                    continue; // is visited once only
                }
                eprintln!("killed at {point}, visit {visit}");
                secured.start_again(1).await;
                secured.tell().await;
                let host = &secured.hosts[0];
                host.netlb.audit().await.unwrap_or_else(|error| panic!("{point}: {error:?}"));
                host.is_as_wanted().await;
                assert!(run_quietly("sh", &["-ec", "! ls /run/h1/wireguard | grep -v key$"]).is_ok(), "after {point}");
                world.respond(&secured.tasks[0], "T1");
                secured.all_reach_each_other();
                assert_eq!(cable.clear(), 0, "after {point}: {}", cable.shows());
                world.stop_last_responder();
                host.netlb.remove_everything().await.unwrap();
                drop(secured.hosts.remove(0));
                eventually(&format!("after {point} the host is as before:\n{before}"), || look() == before);
            }
        }
        world.stop_responders();
    });
}
