//! From a task to a container that is ready to be started: image, network, root file system, files, record.

use super::client::CALL_LIMIT;
use super::config::{ContainerdConfig, OWNER_LABEL, TASK_LABEL};
use super::files::{self, Kept};
use super::run::Shared;
use super::signal::stop_signal;
use super::story::{self, Story};
use super::{init, rootfs, spec, volumes};
use crate::board::What;
use crate::error::ExecError;
use crate::executor::{ImageReady, Sandbox};
use crate::health::HealthCheck;
use crate::logs::{LogOptions, Open};
use crate::payloads::Payloads;
use crate::task::drive::now;
use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use containerd_client::services::v1::{Container, CreateContainerRequest};
use containerd_client::types::Mount as RootMount;
use oci_spec::runtime::Spec;
use prost::Message;
use prost_types::Any;
use skep_failpoint::failpoint;
use skep_types::template;
use skep_types::{ContainerSpec, HealthConfig, MountType, Task, TaskId};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Keeps a snapshot from containerd's garbage collector while no container names it (dependencies 2a, pitfall 2).
const GC_ROOT_LABEL: &str = "containerd.io/gc.root";
/// A server that does not answer by then is a reason to try another node.
const VOLUME_LIMIT: Duration = Duration::from_secs(60);
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// `containerd.runc.v1.Options`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
}

/// A container that is ready to be started.
pub(super) struct Prepared {
    pub mounts: Vec<RootMount>,
    pub terminal: bool,
    pub stdin: Option<PathBuf>,
    pub health: Option<HealthConfig>,
}

/// What the files of a task gave.
pub(super) struct Made {
    spec: Spec,
    stdin: Option<PathBuf>,
    mounts: Vec<spec::ReadyMount>,
}

/// Whether somebody runs it by hand: no service, and no attachment of somebody else's container.
pub(super) fn is_local(task: &Task) -> bool {
    task.service_id.is_none()
}

impl Shared {
    /// The image and the network, which need nothing of each other.
    async fn fetch(&self, task: &Task, spec: &ContainerSpec, cancel: &CancellationToken) -> Result<(ImageReady, Sandbox), ExecError> {
        let image = async {
            tokio::select! {
                () = cancel.cancelled() => Err(ExecError::Cancelled),
                image = self.images.ensure(&spec.image, &spec.registry_auth.0) => Ok(image?),
            }
        };
        let (image, sandbox) = tokio::join!(image, self.network.attach(task));
        Ok((image?, sandbox?))
    }

    pub(super) async fn prepare_snapshot(&self, task: &TaskId, image: &ImageReady) -> Result<Vec<RootMount>, ExecError> {
        let labels = [(TASK_LABEL, task.to_string()), (OWNER_LABEL, self.config.owner()), (GC_ROOT_LABEL, "1".into())];
        let message = PrepareSnapshotRequest {
            snapshotter: image.snapshotter.clone(),
            key: task.to_string(),
            parent: image.chain_id.clone(),
            labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        };
        let request = self.client.request(message);
        let answer = self.client.call("prepare the root file system", CALL_LIMIT, self.client.snapshots().prepare(request)).await;
        Ok(answer.map_err(self.explain())?.mounts)
    }

    pub(super) async fn prepare(&self, task: &Task, payloads: &Payloads, cancel: &CancellationToken) -> Result<(), ExecError> {
        let spec = template::expand(task.spec.container().ok_or(ExecError::NotAContainer)?, task, &self.config.node)?;
        LogOptions::of(task.log_driver.as_ref())?;
        init::wanted(&spec, &self.config.init)?;
        if !self.touched.lock().expect("no panic while held").insert(task.id.clone()) {
            self.release(&task.id).await?;
            self.touched.lock().expect("no panic while held").insert(task.id.clone());
        }
        let (image, sandbox) = self.fetch(task, &spec, cancel).await?;
        failpoint!("agent.prepare.attached");
        let mounts = self.prepare_snapshot(&task.id, &image).await?;
        failpoint!("agent.prepare.snapshot");
        self.put_together(task, &spec, &image, &sandbox, payloads, mounts).await
    }

    /// From what a container is made of to a container: its files, its record at containerd.
    pub(super) async fn put_together(
        &self,
        task: &Task,
        spec: &ContainerSpec,
        image: &ImageReady,
        sandbox: &Sandbox,
        payloads: &Payloads,
        mounts: Vec<RootMount>,
    ) -> Result<(), ExecError> {
        let log = LogOptions::of(task.log_driver.as_ref())?;
        let volumes = self.volumes_of(&task.id, spec, image);
        self.mount_volumes(&task.id, spec).await?;
        failpoint!("agent.prepare.volumes");
        let (made, health) = self.make(task, spec, image, sandbox, payloads, &mounts)?;
        failpoint!("agent.prepare.files");
        self.logs.open(self.output_of(&task.id, spec.tty, log)).await?;
        failpoint!("agent.prepare.logs");
        let story = self.story_of(task, image, sandbox, &made);
        self.tell_new_volumes(task, &story, &volumes);
        self.create_container(task, spec, image, made.spec).await?;
        failpoint!("agent.prepare.container");
        // Only for those who look at the container: a full disk must not keep it from running.
        if let Err(error) = story.save(&self.config, &task.id) {
            tracing::debug!(task = %task.id, %error, "what the container is made of could not be noted");
        }
        let stdin = made.stdin;
        self.prepared.lock().expect("no panic while held").insert(task.id.clone(), Prepared { mounts, terminal: spec.tty, stdin, health });
        Ok(())
    }

    /// Volumes of a container that are there.
    pub(super) fn volumes_of(&self, task: &TaskId, spec: &ContainerSpec, image: &ImageReady) -> BTreeSet<String> {
        let dir = self.config.volumes_dir();
        volumes::names(task, spec, &image.config.volumes).filter(|name| dir.join(name).exists()).collect()
    }

    /// Tells of those that were not there `before`.
    pub(super) fn tell_new_volumes(&self, task: &Task, story: &Story, before: &BTreeSet<String>) {
        for mount in story.mounts.iter().filter(|mount| mount.kind == "volume" && !before.contains(&mount.name)) {
            self.board.tell(&Arc::new(task.clone()), What::CreateVolume { volume: mount.name.clone() });
        }
    }

    /// Those that are mounts, by their driver's options. Their servers may be slow: nobody else waits for them.
    pub(super) async fn mount_volumes(&self, task: &TaskId, spec: &ContainerSpec) -> Result<(), ExecError> {
        let mounts: Vec<_> = spec.mounts.iter().filter(|mount| mount.kind == MountType::Volume).cloned().collect();
        if mounts.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = spec.mounts.iter().map(|mount| mount.source.as_str()).collect();
        let (shelf, task) = (self.config.shelf(), task.clone());
        let work = tokio::task::spawn_blocking(move || volumes::mount_all(&mounts, &task, &shelf));
        match tokio::time::timeout(VOLUME_LIMIT, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(ended)) => Err(ExecError::Runtime { step: "mount the volumes", reason: ended.to_string() }),
            Err(_) => Err(ExecError::VolumeTimeout { volumes: names.join(", "), seconds: VOLUME_LIMIT.as_secs() }),
        }
    }

    pub(super) fn story_of(&self, task: &Task, image: &ImageReady, sandbox: &Sandbox, made: &Made) -> Story {
        let made_at = if is_local(task) { task.meta.created_at } else { now() };
        story::begin(&self.config, image, sandbox, &made.spec, &made.mounts, made_at)
    }

    /// The files of a container, its volumes and its specification, and its health check. What is wrong with it shows here.
    pub(super) fn make(
        &self,
        task: &Task,
        spec: &ContainerSpec,
        image: &ImageReady,
        sandbox: &Sandbox,
        payloads: &Payloads,
        mounts: &[RootMount],
    ) -> Result<(Made, Option<HealthConfig>), ExecError> {
        let log = LogOptions::of(task.log_driver.as_ref())?;
        let init = init::wanted(spec, &self.config.init)?;
        let health = HealthCheck::merge(spec.healthcheck.as_ref(), image.config.health.as_ref())
            .map_err(|error| ExecError::BadSpec { field: "healthcheck.test", problem: error.to_string() })?
            .map(|check| check.to_config());
        let kept = Kept {
            health: health.clone(),
            stop_signal: stop_signal(spec, image)?,
            terminal: spec.tty,
            log,
            snapshotter: image.snapshotter.clone(),
            own_volumes: Vec::new(),
        };
        let made = self.make_files(task, spec, image, sandbox, payloads, mounts, init.as_deref(), kept)?;
        Ok((made, health))
    }

    pub(super) fn output_of(&self, task: &TaskId, terminal: bool, options: LogOptions) -> Open {
        let dir = self.config.task_dir(task);
        Open {
            task: task.clone(),
            stdout: dir.join("stdout"),
            stderr: (!terminal).then(|| dir.join("stderr")),
            dir: self.config.logs_dir().join(task.as_str()),
            options,
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one container, used once")]
    fn make_files(
        &self,
        task: &Task,
        container: &ContainerSpec,
        image: &ImageReady,
        sandbox: &Sandbox,
        payloads: &Payloads,
        root: &[RootMount],
        init: Option<&Path>,
        mut kept: Kept,
    ) -> Result<Made, ExecError> {
        let dir = self.config.task_dir(&task.id);
        dir.create()?;
        failpoint!("agent.files.directory");
        let hostname = files::hostname(container, task, sandbox, &self.config.node);
        let etc = self.config.task_etc(&task.id);
        etc.create()?;
        failpoint!("agent.files.etc");
        etc.write("hostname", format!("{hostname}\n"))?;
        etc.write("hosts", files::hosts(container, &hostname, sandbox)?)?;
        etc.write("resolv.conf", files::resolv_conf(container, sandbox))?;
        dir.make_fifo("stdout")?;
        failpoint!("agent.files.stdout");
        if !container.tty {
            dir.make_fifo("stderr")?;
        }
        // Nobody ever writes into it: the container's input stays open and empty.
        let stdin = if container.open_stdin { Some(dir.make_fifo("stdin")?) } else { None };
        let layers = rootfs::layers(root);
        let wanted = if container.user.is_empty() { &image.config.user } else { &container.user };
        let user = rootfs::resolve_user(&layers, wanted, &container.groups)?;
        let secret_files = files::write_payloads(&dir, task, container, payloads, &self.config.node)?;
        failpoint!("agent.files.payloads");
        let place = volumes::Place { task: &task.id, volumes: &self.config.volumes_dir(), dir: &dir, root };
        let ready = volumes::make_ready(container, &image.config.volumes, &secret_files, &place)?;
        // Those of a container that is no task stay until somebody wants them removed.
        kept.own_volumes = if is_local(task) { Vec::new() } else { ready.own_volumes };
        dir.keep(&kept)?;
        let spec = spec::build(&spec::Input {
            container,
            resources: task.spec.resources.as_ref(),
            individuals: &task.assigned_generic_resources,
            init,
            image: &image.config,
            user: &user,
            hostname: &hostname,
            namespace: sandbox.namespace.as_deref(),
            etc: etc.path(),
            mounts: &ready.mounts,
            cgroup: &format!("{}/{}", self.config.cgroup_parent, task.id),
            host: &self.host,
        })?;
        Ok(Made { spec, stdin, mounts: ready.mounts })
    }

    async fn create_container(&self, task: &Task, container: &ContainerSpec, image: &ImageReady, spec: Spec) -> Result<(), ExecError> {
        let text =
            serde_json::to_vec(&spec).map_err(|error| ExecError::Runtime { step: "encode the container", reason: error.to_string() })?;
        if let Some(process) = spec.process() {
            self.processes.lock().expect("no panic while held").insert(task.id.clone(), process.clone());
        }
        let options = self.config.runtime_binary.as_ref().map(|binary| Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: RuncOptions { binary_name: binary.display().to_string() }.encode_to_vec(),
        });
        let record = Container {
            id: task.id.to_string(),
            labels: labels(task, container, &self.config),
            image: container.image.clone(),
            runtime: Some(Runtime { name: self.config.runtime.clone(), options }),
            spec: Some(Any { type_url: SPEC_TYPE.into(), value: text }),
            snapshotter: image.snapshotter.clone(),
            snapshot_key: task.id.to_string(),
            ..Container::default()
        };
        let request = self.client.request(CreateContainerRequest { container: Some(record) });
        let answer = self.client.call("create the container", CALL_LIMIT, self.client.containers().create(request)).await;
        answer.map(drop).map_err(self.explain())
    }
}

/// Ours, Swarm's usual ones (wire-behaviour 28), and the user's.
fn labels(task: &Task, container: &ContainerSpec, config: &ContainerdConfig) -> HashMap<String, String> {
    let own = [(TASK_LABEL, task.id.to_string()), (OWNER_LABEL, config.owner())];
    let of_service = [
        ("com.docker.swarm.task", String::new()),
        ("com.docker.swarm.task.id", task.id.to_string()),
        ("com.docker.swarm.task.name", task.name()),
        ("com.docker.swarm.node.id", config.node.id.clone()),
        ("com.docker.swarm.service.id", task.service_id.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("com.docker.swarm.service.name", task.service_annotations.name.clone()),
    ];
    // Some tell containerd to run programs of the host (`containerd.io/restart.loguri`), and it refuses long ones.
    let harmless = |(name, value): &(&String, &String)| !name.starts_with("containerd.io/") && name.len() + value.len() <= 4096;
    let users = container.labels.iter().filter(harmless).map(|(name, value)| (name.clone(), value.clone()));
    let of_service = of_service.into_iter().filter(|_| !is_local(task));
    users.chain(own.into_iter().chain(of_service).map(|(name, value)| (name.to_owned(), value))).collect()
}
