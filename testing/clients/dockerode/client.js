// dockerode against the daemon that DOCKER_HOST names: a manager of a swarm, which has the image `box:1`.
"use strict";
const assert = require("node:assert");
const { PassThrough } = require("node:stream");
const Docker = require("dockerode");

const docker = new Docker({ socketPath: process.env.DOCKER_HOST.replace("unix://", "") });
const prefix = "js-" + Math.random().toString(36).slice(2, 8);
let passed = 0;
const failed = [];

async function check(name, act) {
  try {
    await act();
    console.log("ok   " + name);
    passed += 1;
  } catch (error) {
    console.log(`FAIL ${name}: ${error.stack}`);
    failed.push(name);
  }
}

async function eventually(act) {
  const end = Date.now() + 120_000;
  for (;;) {
    try {
      return await act();
    } catch (error) {
      if (Date.now() > end) throw error;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }
}

async function refused(status, words, act) {
  await assert.rejects(act, (error) => error.statusCode === status && String(error.message).includes(words));
}

function gather(stream, isFramed) {
  return new Promise((resolve, reject) => {
    const [out, err] = [new PassThrough(), new PassThrough()];
    const parts = { out: "", err: "" };
    out.on("data", (part) => (parts.out += part));
    err.on("data", (part) => (parts.err += part));
    if (isFramed) docker.modem.demuxStream(stream, out, err);
    else stream.on("data", (part) => (parts.out += part));
    stream.on("end", () => setImmediate(() => resolve(parts)));
    stream.on("error", reject);
  });
}

const spec = (name, args, more = {}) => ({
  Name: name,
  TaskTemplate: { ContainerSpec: { Image: "box:1", Args: args, StopGracePeriod: 0 } },
  Mode: { Replicated: { Replicas: 1 } },
  ...more,
});

async function running(service, count) {
  return eventually(async () => {
    const tasks = await docker.listTasks({ filters: { service: [service], "desired-state": ["running"] } });
    assert.deepEqual(tasks.map((task) => task.Status.State), Array(count).fill("running"));
    return tasks;
  });
}

(async () => {
  await check("ping, version, info, df", async () => {
    assert.equal(String(await docker.ping()), "OK");
    assert.ok((await docker.version()).ApiVersion);
    assert.equal((await docker.info()).Swarm.LocalNodeState, "active");
    assert.ok(Array.isArray((await docker.df()).Images));
  });

  await check("swarm and nodes", async () => {
    const swarm = await docker.swarmInspect();
    await docker.swarmUpdate({ version: swarm.Version.Index, ...swarm.Spec });
    await refused(503, "already part of a swarm", () => docker.swarmInit({ ListenAddr: "0.0.0.0:2377" }));
    const [first] = await docker.listNodes({ filters: { role: ["manager"] } });
    const node = docker.getNode(first.ID);
    const { Version, Spec } = await node.inspect();
    await node.update({ version: Version.Index, ...Spec, Labels: { ...Spec.Labels, [prefix]: "x" } });
    const changed = await node.inspect();
    assert.equal(changed.Spec.Labels[prefix], "x");
    await node.update({ version: changed.Version.Index, ...Spec });
  });

  await check("secrets, configs, networks, volumes", async () => {
    const data = Buffer.from("hunter2").toString("base64");
    const secret = await docker.createSecret({ Name: prefix, Data: data, Labels: { a: "b" } });
    const read = await docker.getSecret(secret.id).inspect();
    assert.equal(read.Spec.Name, prefix);
    await docker.getSecret(secret.id).update({ version: read.Version.Index, ...read.Spec, Labels: { c: "d" } });
    assert.deepEqual((await docker.listSecrets({ filters: { label: ["c=d"] } })).map((one) => one.ID), [secret.id]);
    await docker.getSecret(secret.id).remove();
    await refused(404, "not found", () => docker.getSecret(secret.id).inspect());
    const config = await docker.createConfig({ Name: prefix, Data: data });
    assert.equal((await docker.getConfig(config.id).inspect()).Spec.Data, data);
    await docker.getConfig(config.id).remove();
    const network = await docker.createNetwork({ Name: prefix, Driver: "overlay", Attachable: true, CheckDuplicate: true });
    assert.equal((await network.inspect()).Scope, "swarm");
    await refused(409, "already exists", () => docker.createNetwork({ Name: prefix, Driver: "overlay" }));
    await network.remove();
    const volume = await docker.createVolume({ Name: prefix, Labels: { a: "b" } });
    assert.equal((await docker.getVolume(prefix).inspect()).Labels.a, "b");
    assert.ok((await docker.listVolumes({ filters: { name: [prefix] } })).Volumes.length === 1 && volume);
    await docker.getVolume(prefix).remove();
  });

  await check("a service: created, updated, scaled, logged, removed", async () => {
    const made = await docker.createService(spec(prefix + "-web", ["sh", "-c", "echo up; exec sleep 100000"]));
    const service = docker.getService(made.id);
    await running(made.id, 1);
    const seen = await service.inspect();
    await eventually(async () => {
      const { Version, Spec } = await service.inspect();
      await service.update({ version: Version.Index, ...Spec, Mode: { Replicated: { Replicas: 2 } } });
    });
    await running(made.id, 2);
    assert.equal((await service.inspect()).PreviousSpec.Mode.Replicated.Replicas, seen.Spec.Mode.Replicated.Replicas);
    await eventually(async () => {
      const logs = await service.logs({ stdout: true, stderr: true, follow: false });
      assert.equal(String(logs).split("up\n").length, 3);
    });
    assert.equal((await docker.listServices({ filters: { name: [prefix] }, status: true }))[0].ServiceStatus.DesiredTasks, 2);
    await refused(500, "update out of sequence", () => service.update({ version: 1, ...seen.Spec }));
    await refused(409, "already exists", () => docker.createService(spec(prefix + "-web", ["true"])));
    await service.remove();
    await refused(404, "not found", () => service.inspect());
  });

  await check("the container of a task: inspect, logs, exec, stats, archives", async () => {
    const made = await docker.createService(spec(prefix + "-con", ["sh", "-c", "echo out; echo err >&2; exec sleep 100000"]));
    const [task] = await running(made.id, 1);
    const container = docker.getContainer(task.Status.ContainerStatus.ContainerID);
    assert.equal((await container.inspect()).Name, `/${prefix}-con.1.${task.ID}`);
    const listed = await docker.listContainers({ filters: { label: [`com.docker.swarm.service.name=${prefix}-con`] } });
    assert.deepEqual(listed.map((one) => one.Id), [container.id]);
    // A stream that follows goes on until its reader has enough.
    const logs = await container.logs({ stdout: true, stderr: true, follow: true });
    const [out, err] = [new PassThrough(), new PassThrough()];
    docker.modem.demuxStream(logs, out, err);
    const lines = [out, err].map((one) => new Promise((resolve) => one.once("data", (part) => resolve(String(part)))));
    assert.deepEqual(await Promise.all(lines), ["out\n", "err\n"]);
    logs.destroy();
    const exec = await container.exec({ Cmd: ["sh", "-c", "cat; echo no >&2; exit 3"], AttachStdin: true, AttachStdout: true, AttachStderr: true });
    const stream = await exec.start({ hijack: true, stdin: true });
    const all = gather(stream, true);
    stream.write("typed\n");
    stream.end();
    assert.deepEqual(await all, { out: "typed\n", err: "no\n" });
    await eventually(async () => assert.equal((await exec.inspect()).ExitCode, 3));
    const tty = await container.exec({ Cmd: ["tty"], AttachStdout: true, Tty: true });
    assert.match((await gather(await tty.start({ hijack: true }), false)).out, /^\/dev\//);
    assert.ok((await container.stats({ stream: false })).memory_stats.usage > 0);
    assert.ok((await container.top()).Processes.length >= 1);
    const archive = await container.getArchive({ path: "/etc/passwd" });
    assert.ok((await gather(archive, false)).out.includes("root:x:0:0"));
    await refused(409, "", () => container.remove());
    await docker.getService(made.id).remove();
  });

  await check("images and events", async () => {
    const image = await docker.getImage("box:1").inspect();
    assert.ok(image.RepoTags.includes("box:1"));
    await docker.getImage("box:1").tag({ repo: prefix + "/box", tag: "x" });
    await docker.getImage(prefix + "/box:x").remove();
    await refused(404, "No such image", () => docker.getImage(prefix + "/box:x").inspect());
    const events = await docker.getEvents({ filters: { type: ["secret"] } });
    const told = new Promise((resolve) => events.once("data", (part) => resolve(JSON.parse(String(part)))));
    const secret = await docker.createSecret({ Name: prefix + "-ev", Data: "eA==" });
    const event = await told;
    assert.deepEqual([event.Type, event.Action, event.Actor.ID], ["secret", "create", secret.id]);
    events.destroy();
    await docker.getSecret(secret.id).remove();
  });

  console.log(`dockerode ${require("dockerode/package.json").version}: ${passed} passed, ${failed.length} failed`);
  process.exit(failed.length ? 1 : 0);
})();
