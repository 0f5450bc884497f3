//! Skep itself: a lab's host with its own containerd, spoken to over the API.

use crate::api::Api;
use crate::contender::{Contender, Marks, Traces, poll};
use crate::cpu::{Group, group_path};
use crate::remains::{Places, init_pids};
use crate::stamp::{self, Stamps, TARGET};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skep_kit::Lab;
use skep_proto::v1;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Services of whoami on skepd.
#[derive(Debug)]
pub struct Ours {
    api: Api,
    groups: Vec<Arc<Group>>,
    /// The group above those of its tasks.
    tasks: PathBuf,
    state: PathBuf,
    stamps: Stamps,
    traces: Traces,
    service: Option<String>,
    made: usize,
}

impl Ours {
    /// `groups` hold skepd and its containerd.
    ///
    /// # Errors
    /// If skepd's API does not answer.
    pub fn new(lab: &Lab, groups: Vec<Arc<Group>>, stamps: Stamps) -> Result<Self> {
        let places = Places {
            mountinfo: "/proc/self/mountinfo".into(),
            // Network namespaces are mounts below the run directory.
            mounts_below: vec![lab.containerd_state().join("io.containerd.runtime.v2.task/skep"), lab.run_dir()],
            namespaces: vec![lab.run_dir().join("netns"), lab.run_dir().join("tasks")],
            cgroups: vec![lab.cgroup().to_owned()],
            shim: lab.dir().display().to_string(),
        };
        let mut this = Self {
            api: Api::connect(&lab.run_dir().join("skep.sock"))?,
            groups,
            tasks: group_path(lab.cgroup()),
            state: lab.containerd_state(),
            stamps,
            traces: Traces::before(places),
            service: None,
            made: 0,
        };
        this.start(1)?;
        this.ask_to_remove()?;
        eprintln!("skep keeps {:?}", this.traces.keep_what_stays()?);
        Ok(this)
    }

    fn ask_to_remove(&mut self) -> Result<()> {
        if let Some(service) = self.service.take() {
            self.api.remove(&service)?;
        }
        Ok(())
    }

    fn spec(&self, name: String, count: usize) -> v1::ServiceSpec {
        let mount = v1::Mount {
            r#type: v1::mount::Type::Bind.into(),
            source: self.stamps.dir().to_string_lossy().into_owned(),
            target: TARGET.into(),
            ..v1::Mount::default()
        };
        let container = v1::ContainerSpec {
            image: "whoami:latest".into(),
            command: Stamps::command(),
            mounts: vec![mount],
            ..v1::ContainerSpec::default()
        };
        let restart = v1::RestartPolicy {
            condition: v1::restart_policy::RestartCondition::Any.into(),
            delay: Some(prost_types::Duration::default()),
            ..v1::RestartPolicy::default()
        };
        v1::ServiceSpec {
            annotations: Some(v1::Annotations { name, ..v1::Annotations::default() }),
            task: Some(v1::TaskSpec {
                restart: Some(restart),
                runtime: Some(v1::task_spec::Runtime::Container(container)),
                ..v1::TaskSpec::default()
            }),
            endpoint: Some(v1::EndpointSpec { mode: v1::endpoint_spec::ResolutionMode::Dnsrr.into(), ports: Vec::new() }),
            mode: Some(v1::service_spec::Mode::Replicated(v1::ReplicatedService { replicas: count as u64 })),
            ..v1::ServiceSpec::default()
        }
    }

    /// Ids of the service's tasks that run.
    ///
    /// # Errors
    /// The API's refusal.
    pub fn running(&mut self) -> Result<Vec<String>> {
        let service = self.service.as_ref().context("no service was made")?;
        let tasks = self.api.tasks(service)?;
        let runs = |task: &v1::Task| task.status.as_ref().is_some_and(|status| status.state == i32::from(v1::TaskState::Running));
        Ok(tasks.into_iter().filter(runs).map(|task| task.id).collect())
    }
}

impl Contender for Ours {
    fn name(&self) -> &str {
        "skep"
    }

    fn tree(&self) -> Vec<PathBuf> {
        self.groups.iter().map(|group| group.path().to_owned()).chain([self.tasks.clone()]).collect()
    }

    fn start(&mut self, count: usize) -> Result<Marks> {
        self.stamps.read();
        self.made += 1;
        let spec = self.spec(format!("bench-{}", self.made), count);
        let (began, clock) = (Instant::now(), stamp::now());
        self.service = Some(self.api.create(spec)?);
        let mut stamps = Vec::new();
        let all = poll("our tasks run", || {
            stamps.extend(self.stamps.read());
            Ok(self.running()?.len() == count)
        });
        if let Err(error) = all {
            let tasks = self.api.tasks(self.service.as_deref().unwrap_or_default())?;
            let status = tasks.iter().find_map(|task| task.status.as_ref().filter(|status| !status.err.is_empty()));
            return Err(error.context(format!("{} tasks; the first problem: {:?}", tasks.len(), status.map(|status| &status.err))));
        }
        let running = began.elapsed().as_secs_f64();
        poll("our tasks wrote their stamps", || {
            stamps.extend(self.stamps.read());
            Ok(stamps.len() >= count)
        })?;
        self.traces.note_shims();
        Ok(vec![("running", running), ("first instruction", stamps.iter().fold(0.0f64, |last, stamp| last.max(stamp - clock)))])
    }

    fn remove(&mut self) -> Result<Marks> {
        let began = Instant::now();
        self.ask_to_remove()?;
        self.traces.wait_until_gone()?;
        Ok(vec![("gone", began.elapsed().as_secs_f64())])
    }

    fn heal(&mut self) -> Result<Option<Marks>> {
        let before = self.running()?;
        let pid = *init_pids(&self.state, "skep").first().context("no task of ours runs")?;
        let began = Instant::now();
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
        poll("a task of ours is replaced", || {
            let now = self.running()?;
            Ok(now.len() == before.len() && now.iter().any(|id| !before.contains(id)))
        })?;
        let healed = began.elapsed().as_secs_f64();
        self.traces.note_shims();
        Ok(Some(vec![("healed", healed)]))
    }

    fn update(&mut self) -> Result<Option<Marks>> {
        let before = self.running()?;
        let service = self.service.clone().context("no service was made")?;
        let began = Instant::now();
        self.api.force(&service)?;
        poll("our tasks are new ones", || {
            let now = self.running()?;
            Ok(now.len() == before.len() && !now.iter().any(|id| before.contains(id)))
        })?;
        let updated = began.elapsed().as_secs_f64();
        self.traces.note_shims();
        Ok(Some(vec![("updated", updated)]))
    }
}
