//! Who is in the cluster: joining, leaving, changing roles, being thrown out.

#[path = "e2e_cluster_membership/drains.rs"]
mod drains; // nodes that give their tasks up, and nodes that are lost
#[path = "e2e_cluster_membership/zones.rs"]
mod zones; // tasks spread over labels

use anyhow::{Context, Result, ensure};
use skep_kit::{Cluster, Dice, Journal, Scenario, eventually, fail_points, run};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

fn web(cluster: &Cluster, through: usize, replicas: &str) -> Result<()> {
    let flags = ["--publish", "published=8080,target=8080,mode=host", "--constraint", "node.role==worker", "--restart-delay", "0s"];
    let all = [&["service", "create", "-d", "--name", "web", "--replicas", replicas][..], &flags, &["whoami"]].concat();
    cluster.ctl(through, &all)?.success()?;
    Ok(())
}

/// Lines of `node ls`, as one of them tells it.
fn nodes(cluster: &Cluster, through: usize) -> Result<BTreeSet<String>> {
    let text = cluster.ctl(through, &["node", "ls", "--format", "{{.ID}} {{.Status}} {{.Availability}} {{.ManagerStatus}}"])?.success()?;
    Ok(text.lines().map(|line| line.trim_end().to_owned()).collect())
}

/// What the gRPC port of host `to` answers to a call without content, with the certificate and key in `identity`: the status code,
/// or why there was none.
fn call_with(cluster: &Cluster, identity: &std::path::Path, to: usize, method: &str) -> Result<String> {
    let (certificate, key) = (identity.join("swarm-node.crt"), identity.join("swarm-node.key"));
    let empty = identity.join("empty");
    std::fs::write(&empty, [0, 0, 0, 0, 0])?;
    let (net, body) = (format!("--net=/run/netns/{}", cluster.client_namespace()), format!("@{}", empty.display()));
    let url = format!("https://swarm-manager:2377/docker.swarmkit.v1.{method}");
    let way = format!("swarm-manager:2377:{}", cluster.address(to));
    let (certificate, key) = (certificate.to_string_lossy(), key.to_string_lossy());
    let flags = ["curl", "-sS", "-k", "--http2", "--max-time", "3", "--noproxy", "*", "-D", "-", "--resolve", &way];
    let headers = ["-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", &body];
    let output = run("nsenter", &[&[net.as_str()][..], &flags, &headers, &["--cert", &certificate, "--key", &key, &url]].concat())?;
    // As a trailer it comes right after the answer's bytes, which need not end a line.
    let code = output.stdout.to_lowercase().split("grpc-status:").nth(1).and_then(|rest| rest.split_whitespace().next().map(str::to_owned));
    Ok(code.unwrap_or_else(|| format!("none: {}{}", output.stdout, output.stderr)))
}

/// PERMISSION_DENIED, or a connection that was not even made.
fn is_refused(answer: &str) -> bool {
    answer == "7" || answer == "16" || answer.starts_with("none")
}

fn copy_identity(cluster: &Cluster, host: usize, name: &str) -> Result<std::path::PathBuf> {
    let copy = cluster[host].dir().join(name);
    std::fs::create_dir_all(&copy)?;
    for file in ["swarm-node.crt", "swarm-node.key"] {
        std::fs::copy(cluster[host].data_dir().join("identity").join(file), copy.join(file))?;
    }
    Ok(copy)
}

#[test]
fn three_managers_and_a_worker_are_one_cluster_whoever_is_asked() -> Result<()> {
    Scenario::new("three managers and a worker", 3, 1).run(|cluster| {
        let worker = 3;
        let empty = cluster.inventories()?;
        let first = eventually(SOON, "all are ready and reachable", || {
            let first = nodes(cluster, 0)?;
            let count = |words: &str| first.iter().filter(|line| line.contains(words)).count();
            ensure!(count(" Ready Active") == 4 && count(" Leader") == 1 && count(" Reachable") == 2, "{first:#?}");
            Ok(first)
        })?;
        for manager in cluster.managers() {
            ensure!(nodes(cluster, manager)? == first, "manager {manager} tells otherwise: {:#?}", nodes(cluster, manager)?);
        }
        let refusal = cluster.ctl(worker, &["node", "ls"])?;
        ensure!(refusal.status != 0 && refusal.stderr.contains("manager"), "a worker answered for the cluster: {refusal:?}");

        // Written through a follower, run on the worker, seen by everybody.
        let follower = cluster.follower()?;
        web(cluster, follower, "1")?;
        let running = cluster.wait_running(follower, "web", 1)?;
        ensure!(running.iter().all(|(host, _)| *host == Some(worker)), "{running:?}");
        for manager in cluster.managers() {
            ensure!(cluster.pids(manager, "web")? == running);
        }
        let answer = cluster.curl(&format!("http://{}:8080/", cluster.address(worker)))?;
        ensure!(answer.contains("host="), "{answer}");
        let logs = cluster.ctl(follower, &["service", "logs", "web"])?.success()?;
        ensure!(logs.contains("GET / HTTP/1.1"), "logs do not come through a follower: {logs}");

        let spare = cluster.managers().find(|host| Ok(*host) != cluster.leader().map_err(drop)).context("a follower")?;
        cluster.ctl(spare, &["service", "rm", "web"])?.success()?;
        eventually(SOON, "nothing is left on any host", || {
            for (now, before) in cluster.inventories()?.iter().zip(&empty) {
                now.same_as(before)?;
            }
            Ok(())
        })
    })
}

#[test]
fn a_token_lets_in_in_its_role_and_an_old_or_wrong_one_nobody() -> Result<()> {
    Scenario::new("tokens", 1, 1).unformed().run(|cluster| {
        let address = cluster.address(0);
        cluster.ctl(0, &["cluster", "init", "--advertise-addr", &address])?.success()?;
        let old = cluster.token(0, "worker")?;
        cluster.ctl(0, &["cluster", "join-token", "--rotate", "-q", "worker"])?.success()?;
        let new = cluster.token(0, "worker")?;
        ensure!(old != new);
        let join = |token: &str| cluster.ctl(1, &["cluster", "join", "--token", token, &format!("{address}:2377")]);
        let refused = join(&old)?;
        ensure!(refused.status != 0 && refused.stderr.contains("token"), "an old token: {refused:?}");
        // The digest of another root: refused before the secret is sent.
        let (head, secret) = new.rsplit_once('-').context("a token has parts")?;
        let flipped = if head.ends_with('0') { '1' } else { '0' };
        let foreign = format!("{}{flipped}-{secret}", &head[..head.len() - 1]);
        let refused = join(&foreign)?;
        ensure!(refused.status != 0 && !refused.stderr.contains(secret), "a foreign root: {refused:?}");
        ensure!(cluster.api(1)?.status(false)?.node_id.is_empty(), "half a member");
        join(&new)?.success()?;
        cluster.wait_ready(SOON)?;
        let again = join(&new)?;
        ensure!(again.status != 0, "joined twice");
        // A worker that leaves is down, and can be removed; then it may come again.
        cluster.ctl(1, &["cluster", "leave"])?.success()?;
        eventually(SOON, "it is down", || {
            let down = nodes(cluster, 0)?.iter().filter(|line| line.contains(" Down ")).count();
            ensure!(down == 1, "{:?}", nodes(cluster, 0)?);
            Ok(())
        })?;
        join(&new)?.success()?;
        cluster.wait_ready(SOON)
    })
}

/// How fast two who were thrown out were refused.
#[derive(Debug)]
struct Refused {
    removed: Duration,
    /// First it is taken out of the group of managers, then its role is another one: that takes a moment.
    demoted: Duration,
}

/// Removes the worker and demotes a manager; both keep certificates that are valid for months. With `away`, their daemons are dead at
/// that moment and come back afterwards. In the end both are what they were.
fn throw_out(cluster: &mut Cluster, demoted: usize, away: bool) -> Result<Refused> {
    let worker = cluster.workers().start;
    let others: Vec<usize> = cluster.managers().filter(|host| *host != demoted).collect();
    let leader = cluster.wait_leader(SOON)?;
    let (worker_id, manager_id) = (cluster.node_id(worker)?, cluster.node_id(demoted)?);
    let (old_worker, old_manager) = (copy_identity(cluster, worker, "old")?, copy_identity(cluster, demoted, "old")?);
    let before = call_with(cluster, &old_worker, leader, "Dispatcher/Heartbeat")?;
    ensure!(!is_refused(&before), "a member is refused: {before}");
    let before = call_with(cluster, &old_manager, others[0], "Control/ListServices")?;
    ensure!(before == "0", "a manager is refused: {before}");

    if away {
        cluster[worker].kill_skepd();
    }
    cluster.ctl(others[0], &["node", "rm", "--force", &worker_id])?.success()?;
    let told = Instant::now();
    let removed = eventually(SOON, "the removed node is refused", || {
        for manager in &others {
            let answer = call_with(cluster, &old_worker, *manager, "Dispatcher/Heartbeat")?;
            ensure!(is_refused(&answer), "manager {manager}: {answer}");
        }
        Ok(told.elapsed())
    })?;
    eprintln!("the removed node was refused everywhere after {removed:?}");
    if away {
        cluster[worker].start_skepd()?;
        // Long enough for a session that nobody refuses.
        std::thread::sleep(Duration::from_secs(3));
    }
    eventually(SOON, "it has no session", || {
        ensure!(!cluster.api(worker)?.status(false)?.connected, "still connected");
        Ok(())
    })?;
    let nodes = cluster.api(others[0])?.nodes()?;
    ensure!(nodes.iter().all(|node| node.id != worker_id), "the removed node is listed again");
    cluster.ctl(worker, &["cluster", "leave", "--force"])?.success()?;
    cluster.join_through(worker, "worker", others[0])?;

    if away {
        cluster[demoted].kill_skepd();
        cluster.wait_leader(SOON)?;
    }
    cluster.ctl(others[0], &["node", "demote", "--detach", &manager_id])?.success()?;
    let told = Instant::now();
    let refused = eventually(SOON, "the demoted manager is refused", || {
        for manager in &others {
            let answer = call_with(cluster, &old_manager, *manager, "Control/ListServices")?;
            ensure!(is_refused(&answer), "manager {manager}: {answer}");
        }
        Ok(told.elapsed())
    })?;
    eprintln!("the demoted manager's old certificate was refused {refused:?} after the command");
    if away {
        cluster[demoted].start_skepd()?;
    }
    eventually(SOON, "it is a worker", || {
        ensure!(cluster.replica(demoted).is_err(), "it still runs a manager");
        let role = cluster.node(others[0], demoted)?.role;
        ensure!(role == skep_proto::v1::NodeRole::Worker as i32, "role {role}");
        Ok(())
    })?;
    // A worker's new certificate made nothing of the manager's old one.
    let answer = call_with(cluster, &old_manager, others[0], "Control/ListServices")?;
    ensure!(is_refused(&answer), "{answer}");
    cluster.ctl(others[0], &["node", "promote", "--detach", &manager_id])?.success()?;
    cluster.aftermath(cluster.managers(), &[])?;
    cluster.wait_ready(SOON)?;
    Ok(Refused { removed, demoted: refused })
}

#[test]
fn a_removed_node_and_a_demoted_manager_are_refused_although_their_certificates_are_valid() -> Result<()> {
    Scenario::new("removed and demoted", 3, 1).run(|cluster| {
        let leader = cluster.leader()?;
        let demoted = cluster.managers().find(|host| *host != leader).context("a follower")?;
        throw_out(cluster, demoted, false).map(drop)
    })
}

#[test]
fn whoever_was_thrown_out_is_refused_within_a_second_also_when_it_comes_back() -> Result<()> {
    Scenario::new("thrown out and back", 3, 1).long().run(|cluster| {
        let mut dice = Dice::cast("thrown out and back");
        let mut seen = Vec::new();
        let rounds = Dice::rounds(8);
        for round in rounds.clone() {
            let (demoted, away) = (dice.one_of(cluster.managers()), dice.coin());
            dice.pause(0..500);
            let what = format!("round {round}: manager {demoted}, away: {away}");
            seen.push(throw_out(cluster, demoted, away).with_context(|| what)?);
        }
        // A probe takes three programs, and on a starved machine they alone may take a second; most of the time they do not.
        let fast = seen.iter().filter(|refused| refused.removed < Duration::from_secs(1)).count() as u64;
        let slowest = seen.iter().map(|refused| refused.demoted).max();
        eprintln!("refused after {seen:?}, at the latest {slowest:?} after the command");
        ensure!(fast * 2 >= rounds.end, "a second is the limit: {seen:?}");
        Ok(())
    })
}

#[test]
fn managers_are_made_and_unmade_at_run_time_and_the_leader_too() -> Result<()> {
    Scenario::new("promote and demote", 3, 1).run(|cluster| {
        let worker = 3;
        web(cluster, 0, "1")?;
        let running = cluster.wait_running(0, "web", 1)?;
        let worker_id = cluster.node_id(worker)?;
        let journal = Journal::start(&cluster.sockets(cluster.managers()), 2)?;

        // Else the task would have to move when its node is no worker any more.
        cluster.ctl(0, &["service", "update", "-d", "--constraint-rm", "node.role==worker", "web"])?.success()?;
        cluster.ctl(1, &["node", "promote", &worker_id])?.success()?;
        // The journal goes on, so the copies need not be equal at any one moment; it must get further than the leader is now.
        let there = cluster.replica(cluster.leader()?)?.revision;
        eventually(SOON, "it is a manager that follows", || {
            let copy = cluster.replica(worker)?;
            ensure!(copy.revision >= there, "{copy:?}");
            Ok(())
        })?;
        ensure!(cluster.pids(worker, "web")? == running, "the promotion touched tasks");

        let leader = cluster.leader()?;
        let leader_id = cluster.node_id(leader)?;
        let demoted = Instant::now();
        cluster.ctl(worker, &["node", "demote", &leader_id])?.success()?;
        eventually(SOON, "the leader is a worker", || {
            ensure!(cluster.replica(leader).is_err(), "it still runs a manager");
            Ok(())
        })?;
        ensure!(cluster.leader()? != leader);
        std::thread::sleep(Duration::from_secs(1));
        let record = journal.end()?;
        eprintln!(
            "demoting the leader: next write after {:?}, longest silence {:?}; {} acknowledged, {} failed: {:?}",
            record.next_after(demoted),
            record.longest_silence(),
            record.acknowledged(),
            record.failed(),
            record.problems()
        );
        let there = cluster.api(worker)?.configs()?;
        record.all_in(&there)?;
        ensure!(cluster.pids(worker, "web")? == running, "the demotion touched tasks");

        // As far down as it goes.
        let managers: Vec<usize> = (0..4).filter(|host| *host != leader).collect();
        for host in &managers[..2] {
            let id = cluster.node_id(*host)?;
            cluster.ctl(managers[2], &["node", "demote", &id])?.success()?;
            eventually(SOON, "another one is a worker", || {
                ensure!(cluster.replica(*host).is_err());
                Ok(())
            })?;
        }
        let last = cluster.node_id(managers[2])?;
        let refusal = cluster.ctl(managers[2], &["node", "demote", &last])?;
        ensure!(refusal.status != 0 && refusal.stderr.contains("last"), "the last manager was demoted: {refusal:?}");
        record.all_in(&cluster.api(managers[2])?.configs()?)
    })
}

#[test]
fn a_manager_leaves_and_comes_back_under_another_address() -> Result<()> {
    Scenario::new("another address", 3, 0).run(|cluster| {
        let leader = cluster.leader()?;
        let moved = cluster.managers().find(|host| *host != leader).context("a follower")?;
        let id = cluster.node_id(moved)?;
        cluster[moved].stop_skepd()?;
        let new = "198.18.0.77";
        cluster[moved].set_address(new.parse()?, 24, cluster.gateway().parse()?)?;
        cluster[moved].set_flags(&["--advertise-addr", new]);
        cluster[moved].start_skepd()?;
        eventually(SOON, "the others learn its address", || {
            for manager in cluster.managers() {
                let known = cluster.api(manager)?.nodes()?.into_iter().find(|node| node.id == id).context("no node")?;
                let status = known.manager_status.context("no manager status")?;
                ensure!(status.addr == format!("{new}:2377"), "manager {manager} knows {}", status.addr);
            }
            Ok(())
        })?;
        cluster.wait_converged(cluster.managers(), SOON)?;
        // It must be able to lead there.
        let third = cluster.managers().find(|host| *host != leader && *host != moved).context("a third")?;
        cluster[leader].kill_skepd();
        // On a busy machine the two may elect more than once, and what was asked meanwhile may have been done.
        eventually(SOON, "a service is made", || {
            let made = cluster.ctl(third, &["service", "create", "-d", "--name", "after", "--replicas", "0", "whoami"])?;
            ensure!(made.status == 0 || made.stderr.contains("already exists"), "{made:?}");
            Ok(())
        })?;
        cluster[leader].start_skepd()?;
        cluster.wait_converged(cluster.managers(), SOON)?;
        Ok(())
    })
}

#[test]
fn a_join_or_a_promotion_cut_short_anywhere_is_finished_or_undone() -> Result<()> {
    Scenario::new("crashes while joining", 1, 1).long().unformed().run(|cluster| {
        let address = cluster.address(0);
        cluster.ctl(0, &["cluster", "init", "--advertise-addr", &address])?.success()?;
        let joins = fail_points(&["skepd.join.", "skepd.certificate.", "skepd.identity."])?;
        let promotions = fail_points(&["skepd.promote."])?;
        ensure!(joins.len() >= 3, "{joins:?}");
        let mut died = BTreeSet::new();
        for role in ["worker", "manager"] {
            for point in &joins {
                cluster[1].arm(Some(point))?;
                let _ = cluster.join(1, role);
                if cluster[1].skepd_died(Duration::from_millis(500)) {
                    died.insert(point.clone());
                }
                cluster[1].arm(None)?;
                if cluster.api(1)?.status(false)?.node_id.is_empty() {
                    cluster.join(1, role).with_context(|| point.clone())?;
                }
                settled(cluster, role == "manager").with_context(|| format!("{role} at {point}"))?;
                leave(cluster)?;
            }
        }
        cluster.join(1, "worker")?;
        for point in &promotions {
            cluster[1].arm(Some(point))?;
            let id = cluster.node_id(1)?;
            cluster.ctl(0, &["node", "promote", "--detach", &id])?.success()?;
            if cluster[1].skepd_died(Duration::from_secs(10)) {
                died.insert(point.clone());
            }
            cluster[1].arm(None)?;
            settled(cluster, true).with_context(|| point.clone())?;
            cluster.ctl(0, &["node", "demote", &id])?.success()?;
            eventually(SOON, "it is a worker again", || {
                ensure!(cluster.replica(1).is_err(), "it still runs a manager");
                Ok(())
            })?;
            settled(cluster, false).with_context(|| point.clone())?;
        }
        eprintln!("died at {died:?}");
        ensure!(
            joins.union(&promotions).all(|point| died.contains(point)),
            "not reached: {:?}",
            joins.union(&promotions).filter(|point| !died.contains(*point)).collect::<Vec<_>>()
        );
        Ok(())
    })
}

/// The second host is a ready node in this role, and if it manages, it has the state that the first has.
fn settled(cluster: &Cluster, manages: bool) -> Result<()> {
    cluster.wait_ready(SOON)?;
    if manages {
        cluster.wait_converged(0..2, SOON)?;
    }
    Ok(())
}

/// The second host leaves, and its node is removed.
fn leave(cluster: &Cluster) -> Result<()> {
    let id = cluster.node_id(1)?;
    cluster.ctl(1, &["cluster", "leave", "--force"])?.success()?;
    eventually(SOON, "its node can be removed", || cluster.ctl(0, &["node", "rm", "--force", &id])?.success())?;
    Ok(())
}
