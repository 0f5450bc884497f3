//! What is noticed and mended without being asked, and what is told. Each test is on a host of its own, see `support`.

mod support;

use skep_netlb::*;
use std::sync::Mutex;
use support::*;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// Not a test: the program in the tasks' namespaces.
#[test]
fn responder() {
    support::responder();
}

static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps the warnings of this crate.
struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        WARNINGS.lock().unwrap().push(text.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

fn warnings(part: &str) -> usize {
    WARNINGS.lock().unwrap().iter().filter(|warning| warning.contains(part)).count()
}

#[test]
fn a_foreign_flush_is_mended_unasked() {
    on_own_host("a_foreign_flush_is_mended_unasked", async |mut world| {
        tracing::subscriber::set_global_default(Listener).unwrap();
        let netlb = World::watchful_netlb();
        three_tasks(&mut world, &netlb).await;
        for time in 1..=2 {
            // It may be mended before one can look: that it was gone is seen by the warning.
            sh("nft flush ruleset");
            eventually("the tables are back", || {
                warnings("somebody changed our tables") >= 2 * time && sh("nft list tables").matches("skep-").count() == 2
            });
            all_three_answer(CLIENT, || within(&World::client(), || tcp(HOST, 8080)));
            all_three_answer(CLIENT6, || within(&World::client(), || udp(HOST6, 8080)));
            assert_eq!(warnings("somebody changed our tables"), 2 * time, "one per family: {WARNINGS:?}");
        }
        // What others do beside us is none of our business.
        sh("table=$(nft list tables ip | awk '/skep/ {print $3}')
            nft add table ip other; nft add chain ip other c; nft add element ip $table ports '{ tcp . 99 : goto lb3 }'");
        eventually("the element is gone", || !sh("nft list ruleset").contains("tcp . 99"));
        assert!(sh("nft list tables").contains("other"));
        assert_eq!(netlb.audit().await.unwrap(), Audit::default());
    });
}

#[test]
fn links_and_routes_are_mended_unasked() {
    on_own_host("links_and_routes_are_mended_unasked", async |mut world| {
        let second = std::time::Duration::from_secs(1);
        let netlb = Netlb::start_with(World::config(), Oversight::Every(second)).unwrap();
        let (_, tasks) = three_tasks(&mut world, &netlb).await;
        let host_link = sh("ip -br link | grep -o '^sk[^@]*'").trim().to_owned();
        let sandbox = sh("ls -d /run/skep/netns/sbx-*").trim().to_owned();
        let task = netlb.task_path(&tasks[0].task);
        let task = task.display();
        for (damage, mended) in [
            (format!("ip link del {host_link}"), format!("ip link show {host_link}")),
            (format!("ip addr flush dev {host_link}"), format!("ip addr show {host_link} | grep 'inet '")),
            (format!("nsenter --net={sandbox} ip route flush table main"), format!("nsenter --net={sandbox} ip route | grep ^unreach")),
            (format!("nsenter --net={sandbox} nft flush ruleset"), format!("nsenter --net={sandbox} nft list tables | grep skep")),
            (format!("nsenter --net={task} ip link del eth0"), format!("nsenter --net={task} ip -6 route | grep ^default")),
            (format!("umount {sandbox}; rm {sandbox}"), format!("mountpoint -q {sandbox}")),
        ] {
            let holds = || run_quietly("sh", &["-c", &mended]).is_ok();
            assert!(holds(), "{mended}");
            sh(&damage);
            eventually(&damage, holds);
            // What is mended last is not what was looked at here.
            eventually(&damage, || answers_soon(HOST, 8080));
            assert_eq!(netlb.audit().await.unwrap(), Audit::default(), "after {damage}");
            all_three_answer(CLIENT, || within(&World::client(), || tcp(HOST, 8080)));
            all_three_answer(CLIENT6, || within(&World::client(), || tcp(HOST6, 8080)));
        }
    });
}

#[test]
fn nothing_is_looked_after_while_nothing_is_wanted() {
    on_own_host("nothing_is_looked_after_while_nothing_is_wanted", async |_world| {
        let netlb = World::watchful_netlb();
        netlb.ensure_task(task(1, vec![attach(&network(1, true), 11)])).await.unwrap();
        sh("nft flush ruleset");
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        assert_eq!(sh("nft list ruleset"), "");
        netlb.remove_everything().await.unwrap();
    });
}

#[test]
fn what_was_wanted_before_all_was_removed_does_not_come_afterwards() {
    on_own_host("what_was_wanted_before_all_was_removed_does_not_come_afterwards", async |_world| {
        let netlb = World::netlb();
        let one = task(1, vec![attach(&network(1, true), 11)]);
        let wanted = Wanted { published: vec![ingress_port(Protocol::Tcp, 8080, &[one])], ..Wanted::default() };
        netlb.set_wanted(wanted.clone());
        netlb.applied().await.unwrap();
        assert!(sh("nft list tables").contains("skep-"), "or the rest tells nothing");
        for _ in 0..20 {
            // Which of the two the owner sees first is left to chance.
            netlb.set_wanted(wanted.clone());
            netlb.remove_everything().await.unwrap();
            netlb.applied().await.unwrap();
            netlb.audit().await.unwrap();
            assert_eq!(sh("nft list tables"), "");
        }
    });
}

#[test]
fn a_firewall_that_drops_tasks_packets_is_told_once_with_the_cure() {
    on_own_host("a_firewall_that_drops_tasks_packets_is_told_once_with_the_cure", async |mut world| {
        tracing::subscriber::set_global_default(Listener).unwrap();
        let netlb = World::watchful_netlb();
        three_tasks(&mut world, &netlb).await;
        assert_eq!(netlb.host_firewall_warning().await.unwrap(), None);
        sh("nft add table inet wall
            nft add chain inet wall input '{ type filter hook input priority 0; policy drop; }'
            nft add rule inet wall input accept");
        assert_eq!(netlb.host_firewall_warning().await.unwrap(), None, "another hook");
        sh("nft add chain inet wall forward '{ type filter hook forward priority 0; policy drop; }'
            nft add rule inet wall forward iifname docker0 counter accept");
        assert!(!within(&World::client(), || answers_soon(HOST, 8080)), "it does drop");
        let warning = netlb.host_firewall_warning().await.unwrap().unwrap();
        assert!(warning.contains("chain inet wall forward"), "{warning}");
        eventually("it is told", || warnings("may drop the packets of tasks") == 1);
        sh("nft add table ip other"); // makes it look again
        tokio::time::sleep(std::time::Duration::from_millis(5500)).await;
        assert_eq!(warnings("may drop the packets of tasks"), 1, "once");
        // The cure that it names.
        let cure: Vec<&str> = warning.split("; ").filter(|part| part.contains("nft insert")).collect();
        assert_eq!(cure.len(), 2, "{warning}");
        for line in cure {
            sh(&line[line.find("nft insert").unwrap()..]);
        }
        assert_eq!(netlb.host_firewall_warning().await.unwrap(), None);
        all_three_answer(CLIENT, || within(&World::client(), || tcp(HOST, 8080)));
        // A chain that accepts everything at its end is none either, nor one of iptables that names our links.
        sh("nft flush chain inet wall forward; nft add rule inet wall forward counter accept");
        assert_eq!(netlb.host_firewall_warning().await.unwrap(), None);
        if run_quietly("iptables-nft", &["-P", "FORWARD", "DROP"]).is_ok() {
            assert!(netlb.host_firewall_warning().await.unwrap().unwrap().contains("ip filter FORWARD"));
            sh("iptables-nft -A FORWARD -i sk+ -j ACCEPT");
            assert_eq!(netlb.host_firewall_warning().await.unwrap(), None);
        }
    });
}
