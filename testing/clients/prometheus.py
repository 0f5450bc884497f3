"""Prometheus' dockerswarm_sd: a Prometheus of its own discovers services, tasks and nodes of the swarm that DOCKER_HOST names."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request

import docker
from docker.types import EndpointSpec, NetworkAttachmentConfig, ServiceMode

from checks import Checks, eventually

PREFIX = "prom-" + os.urandom(3).hex()
client = docker.from_env(timeout=120)
checks = Checks("prometheus")
work = tempfile.mkdtemp()

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    PORT = probe.getsockname()[1]

jobs = "".join(
    f"""
  - job_name: {role}
    dockerswarm_sd_configs:
      - {{host: "{os.environ["DOCKER_HOST"]}", role: {role}, port: 9100, refresh_interval: 1s}}"""
    for role in ("services", "tasks", "nodes")
)
with open(f"{work}/prometheus.yml", "w") as file:
    file.write(f"global: {{scrape_interval: 1h}}\nscrape_configs:{jobs}\n")


def discovered(job):
    """Labels as discovered, of all targets of a job, but those of services that are not ours."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/api/v1/targets", timeout=20) as answer:
        data = json.load(answer)["data"]
    found = [one["discoveredLabels"] for one in data["activeTargets"] + data["droppedTargets"]]
    of_job = [labels for labels in found if labels["job"] == job]
    return [labels for labels in of_job if job == "nodes" or labels["__meta_dockerswarm_service_name"].startswith(PREFIX)]


def equal(found, wanted):
    assert found == wanted, f"{found!r} instead of {wanted!r}"


# By which port Prometheus asks services and tasks that publish one.
PUBLISHED = "30344"


def host(labels):
    return labels["__address__"].rsplit(":", 1)[0].strip("[]")


def bare(cidr):
    return cidr.split("/")[0]


network = client.networks.create(PREFIX + "-net", driver="overlay", labels={"a": "b"})
service = client.services.create(
    "box:1",
    ["sleep", "100000"],
    name=PREFIX + "-web",
    labels={"tier": "front"},
    container_labels={"in": "side"},
    networks=[NetworkAttachmentConfig(network.id)],
    mode=ServiceMode("replicated", 2),
    endpoint_spec=EndpointSpec(ports={30344: (8080, "tcp", "ingress")}),
    stop_grace_period=0,
)
log = open(f"{work}/log", "w")
server = subprocess.Popen(
    [
        sys.argv[1],
        f"--config.file={work}/prometheus.yml",
        f"--storage.tsdb.path={work}/data",
        f"--web.listen-address=127.0.0.1:{PORT}",
    ],
    stdout=log,
    stderr=log,
)
try:

    @checks.check("services: virtual addresses, published port, network, labels")
    def _():
        def look():
            service.reload()
            vips = {(vip["NetworkID"], bare(vip["Addr"])) for vip in service.attrs["Endpoint"]["VirtualIPs"]}
            found = discovered("services")
            assert len(vips) >= 2, vips
            equal({(labels["__meta_dockerswarm_network_id"], host(labels)) for labels in found}, vips)
            for labels in found:
                equal(labels["__meta_dockerswarm_service_id"], service.id)
                equal(labels["__meta_dockerswarm_service_label_tier"], "front")
                equal(labels["__meta_dockerswarm_service_mode"], "replicated")
                equal(labels["__meta_dockerswarm_service_endpoint_port_publish_mode"], "ingress")
                equal(labels["__meta_dockerswarm_service_task_container_image"], "box:1")
                equal(labels["__address__"].rsplit(":", 1)[1], PUBLISHED)
            names = {labels["__meta_dockerswarm_network_name"] for labels in found}
            equal(names, {"ingress", PREFIX + "-net"})
            equal({labels.get("__meta_dockerswarm_network_label_a") for labels in found if labels["__meta_dockerswarm_network_name"] != "ingress"}, {"b"})

        eventually(look)

    @checks.check("tasks: their addresses in each network, node, slot, state")
    def _():
        def look():
            tasks = service.tasks(filters={"desired-state": "running"})
            equal([task["Status"]["State"] for task in tasks], ["running", "running"])
            wanted = {
                (task["ID"], bare(address), attachment["Network"]["Spec"]["Name"])
                for task in tasks
                for attachment in task["NetworksAttachments"]
                for address in attachment["Addresses"]
            }
            found = [labels for labels in discovered("tasks") if labels["__meta_dockerswarm_task_state"] == "running"]
            seen = {
                (labels["__meta_dockerswarm_task_id"], host(labels), labels["__meta_dockerswarm_network_name"])
                for labels in found
            }
            equal(seen, wanted)
            equal({labels["__address__"].rsplit(":", 1)[1] for labels in found}, {PUBLISHED})
            equal({labels["__meta_dockerswarm_task_slot"] for labels in found}, {"1", "2"})
            equal({labels["__meta_dockerswarm_container_label_in"] for labels in found}, {"side"})
            nodes = {node.id: node.attrs for node in client.nodes.list()}
            for labels in found:
                node = nodes[labels["__meta_dockerswarm_node_id"]]
                equal(labels["__meta_dockerswarm_node_address"], node["Status"]["Addr"])
                equal(labels["__meta_dockerswarm_node_hostname"], node["Description"]["Hostname"])

        eventually(look)

    @checks.check("nodes: addresses, role, platform, manager")
    def _():
        def look():
            nodes = {node.id: node.attrs for node in client.nodes.list()}
            found = {labels["__meta_dockerswarm_node_id"]: labels for labels in discovered("nodes")}
            equal(set(found), set(nodes))
            for id, labels in found.items():
                equal(labels["__address__"], f"{nodes[id]['Status']['Addr']}:9100")
                equal(labels["__meta_dockerswarm_node_status"], "ready")
                equal(labels["__meta_dockerswarm_node_role"], nodes[id]["Spec"]["Role"])
                equal(labels["__meta_dockerswarm_node_platform_os"], "linux")
                equal(labels["__meta_dockerswarm_node_engine_version"], nodes[id]["Description"]["Engine"]["EngineVersion"])
                if "ManagerStatus" in nodes[id]:
                    equal(labels["__meta_dockerswarm_node_manager_address"], nodes[id]["ManagerStatus"]["Addr"])
                    equal(labels["__meta_dockerswarm_node_manager_leader"], str(nodes[id]["ManagerStatus"].get("Leader", False)).lower())

        eventually(look)

finally:
    server.terminate()
    server.wait()
    log.close()
    if checks.failed:
        print(open(f"{work}/log").read())
    service.remove()
    eventually(network.remove)
    shutil.rmtree(work)
checks.end()
