//! bollard against the daemon that DOCKER_HOST names: a manager of a swarm, which has the image `box:1`.

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::StartExecResults;
use bollard::models::{
    ExecConfig, NetworkCreateRequest, SecretSpec, ServiceSpec, ServiceSpecMode, ServiceSpecModeReplicated, TaskSpec, TaskSpecContainerSpec,
    TaskState, VolumeCreateOptions,
};
use bollard::query_parameters as query;
use futures_util::StreamExt as _;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn ensure(holds: bool, what: impl std::fmt::Debug) -> Outcome {
    if holds { Ok(()) } else { Err(format!("{what:?}").into()) }
}

async fn eventually<T>(mut look: impl AsyncFnMut() -> Outcome<T>) -> Outcome<T> {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        match look().await {
            Err(_) if Instant::now() < end => tokio::time::sleep(Duration::from_millis(200)).await,
            outcome => return outcome,
        }
    }
}

fn refused<T: std::fmt::Debug>(status: u16, outcome: Result<T, bollard::errors::Error>) -> Outcome {
    match outcome {
        Err(bollard::errors::Error::DockerResponseServerError { status_code, .. }) if status_code == status => Ok(()),
        other => Err(format!("{other:?} instead of {status}").into()),
    }
}

fn filters(key: &str, value: &str) -> Option<HashMap<String, Vec<String>>> {
    Some(HashMap::from([(key.to_owned(), vec![value.to_owned()])]))
}

fn spec(name: &str, replicas: i64) -> ServiceSpec {
    let args = ["sh", "-c", "echo out; echo err >&2; exec sleep 100000"].map(str::to_owned).to_vec();
    let container = TaskSpecContainerSpec { image: Some("box:1".into()), args: Some(args), stop_grace_period: Some(0), ..Default::default() };
    let mode = ServiceSpecMode { replicated: Some(ServiceSpecModeReplicated { replicas: Some(replicas) }), ..Default::default() };
    let task = TaskSpec { container_spec: Some(container), ..Default::default() };
    ServiceSpec { name: Some(name.to_owned()), mode: Some(mode), task_template: Some(task), ..Default::default() }
}

async fn running(docker: &Docker, service: &str, count: usize) -> Outcome<Vec<String>> {
    eventually(async || {
        let mut filters = filters("service", service).unwrap_or_default();
        filters.insert("desired-state".into(), vec!["running".into()]);
        let tasks = docker.list_tasks(Some(query::ListTasksOptions { filters: Some(filters) })).await?;
        let is_up = |task: &bollard::models::Task| task.status.as_ref().and_then(|status| status.state) == Some(TaskState::RUNNING);
        ensure(tasks.len() == count && tasks.iter().all(is_up), &tasks)?;
        let container = |task: bollard::models::Task| task.status?.container_status?.container_id;
        Ok(tasks.into_iter().filter_map(container).collect())
    })
    .await
}

async fn host(docker: &Docker) -> Outcome {
    ensure(docker.ping().await?.trim() == "OK", "ping")?;
    let version = docker.version().await?;
    ensure(version.api_version.is_some(), &version)?;
    let info = docker.info().await?;
    ensure(info.swarm.as_ref().and_then(|swarm| swarm.control_available) == Some(true), &info.swarm)?;
    let swarm = docker.inspect_swarm().await?;
    ensure(swarm.join_tokens.is_some(), &swarm)?;
    let nodes = docker.list_nodes(None::<query::ListNodesOptions>).await?;
    ensure(nodes.iter().any(|node| node.manager_status.as_ref().and_then(|status| status.leader) == Some(true)), &nodes)?;
    docker.df(None::<query::DataUsageOptions>).await?;
    refused(503, docker.leave_swarm(None::<query::LeaveSwarmOptions>).await)
}

async fn objects(docker: &Docker, prefix: &str) -> Outcome {
    let secret = SecretSpec { name: Some(prefix.into()), data: Some("aHVudGVyMg==".into()), ..Default::default() };
    let id = docker.create_secret(secret.clone()).await?.id;
    refused(409, docker.create_secret(secret).await)?;
    ensure(docker.inspect_secret(&id).await?.spec.and_then(|spec| spec.name).as_deref() == Some(prefix), "the secret's name")?;
    docker.delete_secret(&id).await?;
    refused(404, docker.inspect_secret(&id).await)?;
    let network = NetworkCreateRequest { name: prefix.into(), driver: Some("overlay".into()), attachable: Some(true), ..Default::default() };
    docker.create_network(network.clone()).await?;
    refused(409, docker.create_network(network).await)?;
    let seen = docker.inspect_network(prefix, None::<query::InspectNetworkOptions>).await?;
    ensure(seen.scope.as_deref() == Some("swarm"), &seen)?;
    docker.remove_network(prefix).await?;
    docker.create_volume(VolumeCreateOptions { name: Some(prefix.into()), ..Default::default() }).await?;
    ensure(docker.inspect_volume(prefix).await?.driver == "local", "the volume's driver")?;
    docker.remove_volume(prefix, None::<query::RemoveVolumeOptions>).await?;
    Ok(())
}

async fn service(docker: &Docker, prefix: &str) -> Outcome {
    let name = format!("{prefix}-web");
    docker.create_service(spec(&name, 1), None).await?;
    running(docker, &name, 1).await?;
    eventually(async || {
        let seen = docker.inspect_service(&name, None::<query::InspectServiceOptions>).await?;
        let version = i32::try_from(seen.version.and_then(|version| version.index).unwrap_or_default())?;
        // What was read, with another number of replicas.
        let changed = ServiceSpec { mode: spec(&name, 2).mode, ..seen.spec.unwrap_or_default() };
        docker.update_service(&name, changed, query::UpdateServiceOptionsBuilder::default().version(version).build(), None).await?;
        Ok(())
    })
    .await?;
    let containers = running(docker, &name, 2).await?;
    refused(409, docker.create_service(spec(&name, 1), None).await)?;
    let listed = docker.list_services(Some(query::ListServicesOptions { filters: filters("name", prefix), status: Some(true) })).await?;
    ensure(listed.len() == 1 && listed[0].service_status.as_ref().and_then(|status| status.desired_tasks) == Some(2), &listed)?;
    let container = containers.first().ok_or("no container")?;
    let logs = query::LogsOptions { stdout: true, stderr: true, tail: "all".into(), ..Default::default() };
    eventually(async || {
        let (mut out, mut err) = (String::new(), String::new());
        let mut stream = docker.logs(container, Some(logs.clone()));
        while let Some(part) = stream.next().await {
            match part? {
                LogOutput::StdErr { message } => err += &String::from_utf8_lossy(&message),
                other => out += &other.to_string(),
            }
        }
        ensure((out.as_str(), err.as_str()) == ("out\n", "err\n"), (&out, &err))
    })
    .await?;
    exec(docker, container).await?;
    let stats = query::StatsOptions { stream: false, one_shot: false };
    ensure(docker.stats(container, Some(stats)).next().await.is_some_and(|stats| stats.is_ok()), "stats")?;
    docker.delete_service(&name).await?;
    refused(404, docker.inspect_service(&name, None::<query::InspectServiceOptions>).await)
}

async fn exec(docker: &Docker, container: &str) -> Outcome {
    let config = ExecConfig {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(["sh", "-c", "cat; echo no >&2; exit 3"].map(str::to_owned).to_vec()),
        ..Default::default()
    };
    let id = docker.create_exec(container, config).await?.id;
    let StartExecResults::Attached { mut output, mut input } = docker.start_exec(&id, None).await? else {
        return Err("not attached".into());
    };
    input.write_all(b"typed\n").await?;
    input.shutdown().await?;
    let (mut out, mut err) = (String::new(), String::new());
    while let Some(part) = output.next().await {
        match part? {
            LogOutput::StdErr { message } => err += &String::from_utf8_lossy(&message),
            other => out += &other.to_string(),
        }
    }
    ensure((out.as_str(), err.as_str()) == ("typed\n", "no\n"), (&out, &err))?;
    let ended = docker.inspect_exec(&id).await?;
    ensure(ended.exit_code == Some(3), &ended)
}

async fn images(docker: &Docker) -> Outcome {
    let image = docker.inspect_image("box:1").await?;
    ensure(image.repo_tags.is_some_and(|tags| tags.contains(&"box:1".into())), "the image's tags")?;
    refused(404, docker.inspect_image("nothing-of-the-kind").await)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let socket = std::env::var("DOCKER_HOST")?;
    let docker = Docker::connect_with_unix(socket.trim_start_matches("unix://"), 120, bollard::API_DEFAULT_VERSION)?;
    let docker = docker.negotiate_version().await?;
    let prefix = format!("rs-{}", std::process::id());
    let checks = [
        ("host, swarm, nodes", host(&docker).await),
        ("secrets, networks, volumes", objects(&docker, &prefix).await),
        ("a service, its logs, exec, stats", service(&docker, &prefix).await),
        ("images", images(&docker).await),
    ];
    let failed = checks.iter().filter(|(_, outcome)| outcome.is_err()).count();
    for (name, outcome) in &checks {
        match outcome {
            Ok(()) => println!("ok   {name}"),
            Err(error) => println!("FAIL {name}: {error}"),
        }
    }
    println!("bollard 0.19.4: {} passed, {failed} failed", checks.len() - failed);
    std::process::exit(i32::from(failed > 0));
}
