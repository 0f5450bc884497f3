"""docker-py's models against the daemon that DOCKER_HOST names: a manager of a swarm, which has the image `box:1`."""

import io
import os
import tarfile
import time

import docker
from docker.types import (
    ConfigReference,
    EndpointSpec,
    Healthcheck,
    IPAMConfig,
    IPAMPool,
    Mount,
    NetworkAttachmentConfig,
    Placement,
    PlacementPreference,
    Resources,
    RestartPolicy,
    RollbackConfig,
    SecretReference,
    ServiceMode,
    UpdateConfig,
)

from checks import Checks, eventually

checks = Checks("docker-py " + docker.__version__)
check = checks.check
client = docker.from_env(timeout=120)
PREFIX = "py-" + os.urandom(3).hex()


def refused(status, words, act):
    """Whether the daemon refuses with this status, and a sentence that has these words."""
    try:
        act()
    except docker.errors.APIError as error:
        assert error.status_code == status, f"{error.status_code} instead of {status}: {error}"
        assert words in str(error.explanation), f"no {words!r} in {error.explanation!r}"
        return
    raise AssertionError("it was not refused")


def not_in(one, tasks):
    assert one not in [task["ID"] for task in tasks], tasks


def equal(found, wanted):
    assert found == wanted, f"{found!r} instead of {wanted!r}"


def running(service, count=1):
    def look():
        tasks = service.tasks(filters={"desired-state": "running"})
        states = [task["Status"]["State"] for task in tasks]
        assert states == ["running"] * count, [task["Status"] for task in tasks]
        return tasks

    return eventually(look)


def version_of(service):
    service.reload()
    return service.version


@check("system: ping, version, info, df")
def _():
    assert client.ping() is True
    version = client.version()
    assert version["ApiVersion"] and version["Components"][0]["Name"] == "Engine", version
    auto = docker.DockerClient(base_url=os.environ["DOCKER_HOST"], version="auto")
    assert auto.api._version == min(version["ApiVersion"], docker.constants.DEFAULT_DOCKER_API_VERSION) or auto.api._version
    info = client.info()
    assert info["Swarm"]["LocalNodeState"] == "active" and info["Swarm"]["ControlAvailable"] is True, info["Swarm"]
    assert "overlay" in info["Plugins"]["Network"], info["Plugins"]
    df = client.df()
    assert {"Images", "Containers", "Volumes"} <= set(df), df.keys()


@check("swarm: attributes, update, tokens, what is refused")
def _():
    swarm = client.swarm
    swarm.reload()
    assert swarm.version > 0 and swarm.attrs["JoinTokens"]["Worker"].startswith("SWMTKN-1-")
    before = swarm.attrs["Spec"]
    history = before["Orchestration"]["TaskHistoryRetentionLimit"]
    swarm.update(task_history_retention_limit=history + 1, heartbeat_tick=1, election_tick=10)
    swarm.reload()
    assert swarm.attrs["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"] == history + 1, swarm.attrs["Spec"]
    token = swarm.attrs["JoinTokens"]["Worker"]
    swarm.update(rotate_worker_token=True, task_history_retention_limit=history)
    swarm.reload()
    assert swarm.attrs["JoinTokens"]["Worker"] != token
    assert swarm.get_unlock_key()["UnlockKey"] == ""
    refused(503, "already part of a swarm", lambda: swarm.init())
    refused(503, "already part of a swarm", lambda: swarm.join(["127.0.0.1"], token))
    refused(503, "last manager", lambda: swarm.leave())


@check("nodes: list, filters, attributes, update")
def _():
    nodes = client.nodes.list(filters={"role": "manager"})
    own = client.info()["Swarm"]["NodeID"]
    node = next(node for node in nodes if node.id == own)
    assert node.attrs["Status"]["State"] == "ready" and node.attrs["ManagerStatus"]["Leader"] is True, node.attrs
    spec = node.attrs["Spec"]
    changed = {**spec, "Labels": {**spec.get("Labels", {}), PREFIX: "yes"}}
    node.update(changed)
    node.reload()
    assert node.attrs["Spec"]["Labels"][PREFIX] == "yes", node.attrs["Spec"]
    found = client.nodes.list(filters={"name": node.attrs["Description"]["Hostname"]})
    assert own in [node.id for node in found], found
    node.update(spec)
    assert client.nodes.get(own[:9]).attrs["Spec"].get("Labels", {}) == spec.get("Labels", {})
    refused(404, "not found", lambda: client.nodes.get("nothing"))


@check("secrets and configs: create, list, get, refuse, remove")
def _():
    for models, data in ((client.secrets, b"hunter2"), (client.configs, b"good morning")):
        made = models.create(name=PREFIX + "-x", data=data, labels={"tier": "front"})
        assert len(made.id) == 25, made.id
        read = models.get(made.id)
        assert read.name == PREFIX + "-x" and read.attrs["Spec"]["Labels"] == {"tier": "front"}, read.attrs
        assert [one.id for one in models.list(filters={"name": PREFIX})] == [made.id]
        assert [one.id for one in models.list(filters={"label": "tier=front", "id": made.id[:8]})] == [made.id]
        refused(409, "already exists", lambda: models.create(name=PREFIX + "-x", data=data))
        refused(400, "", lambda: models.create(name="not good", data=data))
        refused(404, "not found", lambda: models.get("nothing"))
        assert made.remove() is True
        refused(404, "not found", lambda: models.get(made.id))


def allocated(network):
    network.reload()
    assert network.attrs["IPAM"]["Config"], network.attrs
    return network


@check("networks: create with IPAM, list, inspect, prune")
def _():
    ipam = IPAMConfig(pool_configs=[IPAMPool(subnet="10.201.0.0/24", gateway="10.201.0.9", iprange="10.201.0.128/25")])
    made = client.networks.create(
        PREFIX + "-n", driver="overlay", attachable=True, labels={"a": "b"}, ipam=ipam, options={"encrypted": ""}
    )
    made.reload()
    attrs = eventually(lambda: allocated(made)).attrs
    assert attrs["Name"] == PREFIX + "-n" and attrs["Scope"] == "swarm" and attrs["Attachable"] is True, attrs
    assert attrs["IPAM"]["Config"] == [{"Subnet": "10.201.0.0/24", "IPRange": "10.201.0.128/25", "Gateway": "10.201.0.9"}], attrs
    assert [one.id for one in client.networks.list(names=[PREFIX + "-n"])] == [made.id]
    assert [one.id for one in client.networks.list(ids=[made.id], greedy=True)] == [made.id]
    assert [one.id for one in client.networks.list(filters={"label": "a=b", "driver": "overlay"})] == [made.id]
    refused(409, "already exists", lambda: client.networks.create(PREFIX + "-n", driver="overlay"))
    refused(404, "not found", lambda: client.networks.get("nothing"))
    made.remove()
    refused(404, "not found", lambda: client.networks.get(made.id))
    client.networks.create(PREFIX + "-p", driver="overlay")
    assert PREFIX + "-p" in client.networks.prune()["NetworksDeleted"]


@check("services: every argument is read back")
def _():
    network = client.networks.create(PREFIX + "-back", driver="overlay", attachable=True)
    secret = client.secrets.create(name=PREFIX + "-s", data=b"hunter2")
    config = client.configs.create(name=PREFIX + "-c", data=b"good morning")
    try:
        service = client.services.create(
            "box:1",
            command=["sh"],
            args=["-c", "echo up; exec sleep 100000"],
            name=PREFIX + "-full",
            constraints=["node.role == manager"],
            preferences=[PlacementPreference("spread", "node.labels.rack")],
            maxreplicas=4,
            platforms=[("x86_64", "linux"), ("aarch64", "linux")],
            container_labels={"in": "side"},
            endpoint_spec=EndpointSpec(mode="vip", ports={30123: (8080, "tcp", "ingress")}),
            env=["A=1", "B=two words"],
            hostname="box-{{.Task.Slot}}",
            init=True,
            labels={"tier": "front"},
            log_driver="json-file",
            log_driver_options={"max-size": "1m"},
            mode=ServiceMode("replicated", 2),
            mounts=[Mount("/data", PREFIX + "-vol"), Mount("/scratch", None, type="tmpfs", tmpfs_size=65536, tmpfs_mode=0o1777)],
            networks=[NetworkAttachmentConfig(network.id, aliases=["alias"])],
            resources=Resources(cpu_limit=500000000, mem_limit=64 << 20, cpu_reservation=1000000, mem_reservation=8 << 20),
            restart_policy=RestartPolicy(condition="on-failure", delay=1000000000, max_attempts=3, window=0),
            secrets=[SecretReference(secret.id, secret.name, filename="pass", mode=0o400)],
            configs=[ConfigReference(config.id, config.name, filename="/motd", mode=0o444)],
            stop_grace_period=1000000000,
            update_config=UpdateConfig(parallelism=2, delay=0, failure_action="continue", monitor=1000000000, max_failure_ratio=0.5, order="start-first"),
            rollback_config=RollbackConfig(parallelism=1, delay=0, failure_action="pause", monitor=1000000000, order="stop-first"),
            user="0:0",
            workdir="/tmp",
            tty=False,
            hosts={"db": "10.0.0.1"},
            healthcheck=Healthcheck(test=["CMD-SHELL", "true"], interval=1000000000, timeout=5000000000, retries=3),
            dns_config=docker.types.DNSConfig(nameservers=["127.0.0.1"], search=["example.org"]),
            cap_add=["CAP_NET_ADMIN"],
            cap_drop=["CAP_CHOWN"],
            sysctls={"net.core.somaxconn": "512"},
            read_only=False,
        )
        tasks = running(service, 2)
        service.reload()
        spec, task = service.attrs["Spec"], service.attrs["Spec"]["TaskTemplate"]
        container = task["ContainerSpec"]
        for found, wanted in (
            (container["Image"].split("@")[0], "box:1"),
            (container["Command"], ["sh"]),
            (container["Args"], ["-c", "echo up; exec sleep 100000"]),
            (container["Env"], ["A=1", "B=two words"]),
            (container["Labels"], {"in": "side"}),
            (container["Hostname"], "box-{{.Task.Slot}}"),
            (container["Init"], True),
            (container["Dir"], "/tmp"),
            (container["User"], "0:0"),
            (container["Hosts"], ["10.0.0.1 db"]),
            (container["StopGracePeriod"], 1000000000),
            (container["Isolation"], "default"),
            (container["CapabilityAdd"], ["CAP_NET_ADMIN"]),
            (container["CapabilityDrop"], ["CAP_CHOWN"]),
            (container["Sysctls"], {"net.core.somaxconn": "512"}),
            (container["Healthcheck"]["Test"], ["CMD-SHELL", "true"]),
            (container["DNSConfig"], {"Nameservers": ["127.0.0.1"], "Search": ["example.org"]}),
            (container["Secrets"][0]["File"], {"Name": "pass", "UID": "0", "GID": "0", "Mode": 0o400}),
            (container["Configs"][0]["File"]["Name"], "/motd"),
            ([mount["Type"] for mount in container["Mounts"]], ["volume", "tmpfs"]),
            (task["Resources"]["Limits"], {"NanoCPUs": 500000000, "MemoryBytes": 64 << 20}),
            (task["RestartPolicy"]["MaxAttempts"], 3),
            (task["Placement"]["Constraints"], ["node.role == manager"]),
            (task["Placement"]["MaxReplicas"], 4),
            (task["Networks"], [{"Target": network.id, "Aliases": ["alias"]}]),
            (task["LogDriver"], {"Name": "json-file", "Options": {"max-size": "1m"}}),
            (spec["Mode"], {"Replicated": {"Replicas": 2}}),
            (spec["UpdateConfig"]["Order"], "start-first"),
            (spec["RollbackConfig"]["Monitor"], 1000000000),
            (spec["EndpointSpec"]["Ports"][0]["PublishedPort"], 30123),
            (service.attrs["Endpoint"]["Ports"][0]["TargetPort"], 8080),
            (service.attrs["Endpoint"]["VirtualIPs"][-1]["NetworkID"], network.id),
        ):
            assert found == wanted, f"{found!r} instead of {wanted!r}"
        attachments = [one["Network"]["Spec"]["Name"] for one in tasks[0]["NetworksAttachments"]]
        assert PREFIX + "-back" in attachments, attachments
        # Nothing is lost when what was read is written.
        version = service.version
        client.api.update_service(service.id, version, task_template=task, name=spec["Name"], labels=spec["Labels"], mode=spec["Mode"],
                                  update_config=spec["UpdateConfig"], rollback_config=spec["RollbackConfig"], endpoint_spec=spec["EndpointSpec"])
        service.reload()
        assert service.attrs["Spec"] == spec and service.version > version, service.attrs["Spec"]
        assert {one["ID"] for one in running(service, 2)} == {one["ID"] for one in tasks}, "tasks were replaced"

        refused(400, "in use", lambda: secret.remove())
        refused(400, "in use", lambda: config.remove())
        refused(400, "in use", lambda: network.remove())
        assert [one.id for one in client.services.list(filters={"name": PREFIX})] == [service.id]
        assert [one.id for one in client.services.list(filters={"label": "tier=front", "mode": "replicated"}, status=True)] == [service.id]
        listed = client.services.list(filters={"id": service.id}, status=True)[0].attrs["ServiceStatus"]
        assert listed["RunningTasks"] == 2 and listed["DesiredTasks"] == 2, listed
        lines = b"".join(service.logs(stdout=True, stderr=True)).decode()
        assert lines.count("up\n") == 2, lines
        assert service.remove() is True
    finally:
        for one in client.services.list(filters={"name": PREFIX}):
            one.remove()
        for one in (secret, config):
            one.remove()
        eventually(network.remove)


@check("services: update, scale, force, global, what is refused")
def _():
    service = client.services.create("box:1", ["sleep", "100000"], name=PREFIX + "-web", stop_grace_period=0)
    try:
        first = running(service)[0]["ID"]
        client.api.update_service(service.id, version_of(service), fetch_current_spec=True, labels={"a": "b"}, name=PREFIX + "-web")
        service.reload()
        assert service.attrs["Spec"]["Labels"] == {"a": "b"} and service.attrs["Spec"]["TaskTemplate"]["ContainerSpec"]["Command"] == ["sleep", "100000"]
        eventually(lambda: service.reload() or service.scale(3))
        assert first in [task["ID"] for task in running(service, 3)], "a label replaced a task"
        eventually(lambda: service.reload() or service.force_update())
        eventually(lambda: not_in(first, running(service, 3)))
        refused(409, "already exists", lambda: client.services.create("box:1", name=PREFIX + "-web"))
        refused(404, "not found", lambda: client.services.get("nothing"))
        refused(400, "", lambda: client.services.create("box:1", name="not good"))
        refused(404, "not found", lambda: client.services.create("box:1", networks=["nothing-of-the-kind"]))
        assert service.tasks()[0]["ServiceID"] == service.id
        service.reload()
        assert client.services.get(service.id, insert_defaults=True).attrs["Spec"]["UpdateConfig"]["Parallelism"] == 1
    finally:
        service.remove()
    everywhere = client.services.create("box:1", ["sleep", "100000"], name=PREFIX + "-all", mode=ServiceMode("global"), stop_grace_period=0)
    try:
        task = running(everywhere)[0]
        assert "Slot" not in task and task["NodeID"], task
    finally:
        everywhere.remove()
    job = client.services.create("box:1", ["true"], name=PREFIX + "-job", mode=ServiceMode("replicated-job", concurrency=1, replicas=2))
    try:
        eventually(lambda: equal([task["Status"]["State"] for task in job.tasks()], ["complete", "complete"]))
    finally:
        job.remove()


def container_of(service):
    task = running(service)[0]
    return client.containers.get(task["Status"]["ContainerStatus"]["ContainerID"])


@check("containers of tasks: list, attributes, logs, top, stats, exec, archives, stop")
def _():
    service = client.services.create(
        "box:1", ["sh", "-c", "echo out; echo err >&2; exec sleep 100000"], name=PREFIX + "-con", stop_grace_period=0, env=["GREETING=hello"]
    )
    try:
        container = container_of(service)
        task = running(service)[0]["ID"]
        equal(container.name, f"{PREFIX}-con.1.{task}")
        equal(container.status, "running")
        equal(container.labels["com.docker.swarm.service.name"], PREFIX + "-con")
        assert "GREETING=hello" in container.attrs["Config"]["Env"], container.attrs["Config"]
        assert container.image.tags == ["box:1"], container.image
        listed = client.containers.list(filters={"label": f"com.docker.swarm.service.name={PREFIX}-con"})
        equal([one.id for one in listed], [container.id])
        equal([one.id for one in client.containers.list(filters={"name": PREFIX + "-con", "status": "running"})], [container.id])
        eventually(lambda: equal((container.logs(stderr=False), container.logs(stdout=False)), (b"out\n", b"err\n")))
        equal(container.logs(tail=1, timestamps=False, stderr=False), b"out\n")
        assert any("sleep" in " ".join(process) for process in container.top()["Processes"]), container.top()
        stats = container.stats(stream=False)
        assert stats["memory_stats"]["usage"] > 0 and stats["cpu_stats"]["cpu_usage"]["total_usage"] > 0, stats

        equal(tuple(container.exec_run(["sh", "-c", "echo $GREETING; exit 3"])), (3, b"hello\n"))
        equal(tuple(container.exec_run(["sh", "-c", "echo a; echo b >&2"], demux=True)), (0, (b"a\n", b"b\n")))
        equal(tuple(container.exec_run("pwd", workdir="/tmp")), (0, b"/tmp\n"))
        equal(tuple(container.exec_run(["sh", "-c", "echo $X"], environment={"X": "y"})), (0, b"y\n"))
        equal(tuple(container.exec_run("id -u", user="12")), (0, b"12\n"))
        assert container.exec_run("tty", tty=True).output.startswith(b"/dev/"), "no terminal"
        equal(b"".join(container.exec_run(["sh", "-c", "echo 1; echo 2"], stream=True).output), b"1\n2\n")
        code, output = container.exec_run("nothing-of-the-kind")
        assert code in (126, 127), (code, output)
        made = client.api.exec_create(container.id, ["sh", "-c", "cat; exit 4"], stdin=True)
        socket = client.api.exec_start(made["Id"], socket=True)
        raw = getattr(socket, "_sock", socket)
        raw.sendall(b"typed\n")
        raw.shutdown(1)
        got = b""
        while part := raw.recv(4096):
            got += part
        assert b"typed\n" in got, got
        eventually(lambda: equal(client.api.exec_inspect(made["Id"])["ExitCode"], 4))

        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo("hello.txt")
            entry.size = 5
            tar.addfile(entry, io.BytesIO(b"hello"))
        assert container.put_archive("/tmp", archive.getvalue()) is True
        equal(container.exec_run("cat /tmp/hello.txt").output, b"hello")
        bits, stat = container.get_archive("/tmp/hello.txt")
        equal((stat["name"], stat["size"]), ("hello.txt", 5))
        with tarfile.open(fileobj=io.BytesIO(b"".join(bits))) as tar:
            equal(tar.extractfile("hello.txt").read(), b"hello")
        assert {"Path": "/tmp/hello.txt", "Kind": 1} in container.diff(), container.diff()
        refused(404, "", lambda: container.get_archive("/nothing"))
        container.pause()
        container.reload()
        equal(container.status, "paused")
        container.unpause()
        refused(409, "", lambda: container.remove())
        refused(404, "No such container", lambda: client.containers.get("nothing"))
        container.kill()
        assert container.wait()["StatusCode"] == 137
        eventually(lambda: container_of(service).id != container.id or equal("the task", "replaced"))
    finally:
        service.remove()


@check("containers: create, start, wait, logs, run, rename, remove")
def _():
    try:
        client.containers.create("box:1").remove()
    except docker.errors.APIError as error:
        if error.status_code != 501:
            raise
        print(f"SKIPPED: containers of one node: {error.explanation}", flush=True)
        return
    output = client.containers.run("box:1", ["sh", "-c", "echo hi; echo no >&2"], remove=True)
    equal(output, b"hi\n")
    container = client.containers.create("box:1", ["sh", "-c", "echo $A; exit 3"], name=PREFIX + "-own", environment={"A": "b"}, labels={"x": "y"})
    try:
        equal(container.status, "created")
        container.start()
        equal(container.wait()["StatusCode"], 3)
        eventually(lambda: equal(container.logs(), b"b\n"))
        container.reload()
        equal((container.status, container.labels), ("exited", {"x": "y"}))
    finally:
        container.remove(force=True)
    refused(404, "No such container", lambda: client.containers.get(PREFIX + "-own"))


@check("images: list, get, tag, history, remove")
def _():
    image = client.images.get("box:1")
    assert image.id.startswith("sha256:") and "box:1" in image.tags, image
    assert image.tag(PREFIX + "/box", "two") is True
    image.reload()
    assert PREFIX + "/box:two" in image.tags, image.tags
    assert [one.id for one in client.images.list(name=PREFIX + "/box")] == [image.id]
    assert image.id in [one.id for one in client.images.list(filters={"dangling": False})]
    assert len(image.history()) == 1, image.history()
    client.images.remove(PREFIX + "/box:two")
    refused(404, "No such image", lambda: client.images.get(PREFIX + "/box:two"))


@check("volumes: create, list, get, remove, prune")
def _():
    volume = client.volumes.create(PREFIX + "-v", labels={"a": "b"})
    equal((volume.name, volume.attrs["Driver"], volume.attrs["Labels"], volume.attrs["Scope"]), (PREFIX + "-v", "local", {"a": "b"}, "local"))
    assert client.volumes.create(PREFIX + "-v").name == volume.name
    assert volume.name in [one.name for one in client.volumes.list(filters={"label": "a=b"})]
    equal([one.name for one in client.volumes.list(filters={"name": PREFIX + "-v", "label": "a=b"})], [volume.name])
    volume.remove()
    refused(404, "no such volume", lambda: client.volumes.get(volume.name))
    client.volumes.prune()


@check("events: what a service does is told, live and again")
def _():
    since = time.time() - 1
    name = PREFIX + "-ev"
    service = client.services.create("box:1", ["sleep", "100000"], name=name, stop_grace_period=0)
    running(service)
    service.remove()

    def told():
        seen = []
        for event in client.events(since=since, until=time.time() + 0.01, decode=True, filters={"type": "service"}):
            if event["Actor"]["Attributes"].get("name") == name:
                seen.append((event["Action"], event["scope"], event["Actor"]["ID"]))
        equal([seen[0], seen[-1]], [("create", "swarm", service.id), ("remove", "swarm", service.id)])

    eventually(told)


checks.end()
