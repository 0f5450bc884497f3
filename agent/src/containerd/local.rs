//! Containers that are no tasks, as somebody runs them by hand: made, started and ended as tasks' are, but their root file system and
//! volumes stay from one life to the next.

use super::client::CALL_LIMIT;
use super::files;
use super::prepare::Made;
use super::run::{ContainerdExecutor, Shared};
use super::story::Story;
use super::volumes;
use crate::error::ExecError;
use crate::executor::{Found, ImageReady, Sandbox};
use crate::network::uses_host_network;
use crate::payloads::Payloads;
use containerd_client::services::v1::UpdateTaskRequest;
use containerd_client::types::Mount as RootMount;
use oci_spec::runtime::LinuxResources;
use prost_types::Any;
use skep_failpoint::failpoint;
use skep_types::{ContainerSpec, Task, TaskId};
use std::collections::BTreeMap;

const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

fn spec(task: &Task) -> Result<&ContainerSpec, ExecError> {
    task.spec.container().ok_or(ExecError::NotAContainer)
}

impl Shared {
    /// A survey is of tasks: what is there of others is kept for [`ContainerdExecutor::found_local`].
    pub(super) fn set_aside_locals(&self, found: &mut BTreeMap<TaskId, Found>) {
        let mut locals = self.locals.lock().expect("no panic while held");
        for (id, (_, of_it)) in locals.iter_mut() {
            *of_it = found.remove(id);
        }
    }

    fn touch(&self, task: &TaskId) {
        self.touched.lock().expect("no panic while held").insert(task.clone());
    }

    fn make_anew(&self, task: &Task, image: &ImageReady, sandbox: &Sandbox, mounts: &[RootMount]) -> Result<Made, ExecError> {
        // Of its last life.
        self.config.task_dir(&task.id).remove()?;
        self.make(task, spec(task)?, image, sandbox, &Payloads::default(), mounts).map(|(made, _)| made)
    }
}

impl ContainerdExecutor {
    /// These are no tasks; before [`crate::executor::Executor::survey`].
    pub(crate) fn know_locals(&self, tasks: impl IntoIterator<Item = Task>) {
        let mut locals = self.0.locals.lock().expect("no panic while held");
        locals.extend(tasks.into_iter().map(|task| (task.id.clone(), (task, None))));
    }

    /// What the survey found of one.
    pub(crate) fn found_local(&self, task: &TaskId) -> Option<Found> {
        self.0.locals.lock().expect("no panic while held").get_mut(task).and_then(|(_, found)| found.take())
    }

    /// Makes the root file system and the volumes; all that can be wrong with what is wanted shows here. `reference`: the image under a
    /// name that it has on this node.
    pub(crate) async fn make_local(&self, task: &Task, reference: &str) -> Result<ImageReady, ExecError> {
        let this = &self.0;
        this.touch(&task.id);
        let image = this.images.ensure(reference, "").await?;
        let mounts = this.prepare_snapshot(&task.id, &image).await?;
        failpoint!("agent.local.snapshot");
        // As it will be, but for its addresses.
        let namespace = (!uses_host_network(task)).then(|| this.config.run_dir.join("netns").join(task.id.as_str()));
        let sandbox = Sandbox { namespace, ..Sandbox::default() };
        let volumes = this.volumes_of(&task.id, spec(task)?, &image);
        this.mount_volumes(&task.id, spec(task)?).await?;
        let made = this.make_anew(task, &image, &sandbox, &mounts)?;
        let story = this.story_of(task, &image, &sandbox, &made);
        this.tell_new_volumes(task, &story, &volumes);
        story.save(&this.config, &task.id).map_err(ExecError::io("note the parts of", task.id.as_str()))?;
        Ok(image)
    }

    /// Brings it to the point where its process can be started: again, if it had one.
    pub(crate) async fn prepare_local(&self, task: &Task, image: &ImageReady) -> Result<(), ExecError> {
        let this = &self.0;
        this.touch(&task.id);
        let (mounts, sandbox) = tokio::join!(this.root_of(&task.id), this.network.attach(task));
        failpoint!("agent.local.attached");
        let (mounts, sandbox) = (mounts?, sandbox?);
        this.config.task_dir(&task.id).remove()?;
        this.put_together(task, spec(task)?, image, &sandbox, &Payloads::default(), mounts).await
    }

    /// It runs, and is on other networks than before: what its files and those who look at it are told.
    pub(crate) fn rewrite_names(&self, task: &Task, sandbox: &Sandbox) -> Result<(), ExecError> {
        let this = &self.0;
        let (spec, etc) = (spec(task)?, this.config.task_etc(&task.id));
        // In place: the container has these very files.
        etc.write("resolv.conf", files::resolv_conf(spec, sandbox))?;
        let hostname = files::hostname(spec, task, sandbox, &this.config.node);
        let path = etc.join("hosts");
        let text = std::fs::read_to_string(&path).map_err(ExecError::io("read", &path))?;
        // Which of the addresses in there are its own is noted with its parts.
        let mut story = Story::load(&this.config, &task.id).unwrap_or_default();
        etc.write("hosts", files::other_addresses(&text, &hostname, &story.addresses, &sandbox.addresses))?;
        story.addresses.clone_from(&sandbox.addresses);
        story.save(&this.config, &task.id).map_err(ExecError::io("note the parts of", task.id.as_str()))
    }

    /// After its process ended, or instead of it: no process, no network; what it wrote stays.
    pub(crate) async fn retire(&self, task: &TaskId) -> Result<(), ExecError> {
        let (this, id) = (&self.0, task.as_str());
        this.remove_process(id).await?;
        failpoint!("agent.local.ended");
        let (container, network, logs) = tokio::join!(this.remove_container(id), this.network.detach(task), this.logs.finish(task));
        let volumes = this.config.shelf().let_go(task);
        container.and(network.map_err(ExecError::from)).and(logs).and(volumes)?;
        this.exits.untrack(id);
        this.prepared.lock().expect("no panic while held").remove(task);
        this.processes.lock().expect("no panic while held").remove(task);
        Ok(())
    }

    /// Removes all there is of it, also what only containerd or the disk knows of; with the volumes that nobody gave a name if wanted.
    /// Returns the names of these.
    pub(crate) async fn remove_local(&self, task: &TaskId, with_volumes: bool) -> Result<Vec<String>, ExecError> {
        let this = &self.0;
        let mut removed = Vec::new();
        this.touch(task);
        this.release(task).await?;
        if with_volumes {
            let (dir, prefix) = (this.config.volumes_dir(), format!("{task}-"));
            let names = std::fs::read_dir(&dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
            let own: Vec<String> = names.filter(|name| name.starts_with(&prefix)).collect();
            volumes::remove_own(&dir, &own)?;
            removed = own;
        }
        failpoint!("agent.local.removed");
        this.locals.lock().expect("no panic while held").remove(task);
        Ok(removed)
    }

    /// The output as it comes, of this life or the next.
    pub(crate) async fn tap(&self, task: &TaskId) -> Result<crate::logs::Tap, ExecError> {
        self.0.logs.tap(task).await
    }

    /// Other limits for one that runs.
    pub(crate) async fn limit(&self, task: &TaskId, limits: &LinuxResources) -> Result<(), ExecError> {
        let value =
            serde_json::to_vec(limits).map_err(|error| ExecError::Runtime { step: "encode the limits", reason: error.to_string() })?;
        let resources = Some(Any { type_url: RESOURCES_TYPE.into(), value });
        let client = &self.0.client;
        let request = client.request(UpdateTaskRequest { container_id: task.to_string(), resources, ..UpdateTaskRequest::default() });
        let answer = client.call("change the limits", CALL_LIMIT, client.tasks().update(request)).await;
        answer.map(drop).map_err(|error| client.explain(error))
    }

    /// The limits of a container as its specification would have them.
    pub(crate) fn limits_of(&self, task: &Task) -> Result<LinuxResources, ExecError> {
        super::spec::limits(spec(task)?, task.spec.resources.as_ref(), &self.0.host)
    }
}
