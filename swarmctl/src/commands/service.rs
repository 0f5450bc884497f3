//! `swarmctl service …`

use super::{InspectFlags, ListFlags, TRIES, each, explain, logs, pin, short, task};
use crate::connect::Connection;
use crate::credentials::Keychain;
use crate::failure::{Exit, Failure};
use crate::flags::{CreateFlags, Grant, Grants, UpdateFlags};
use crate::output::{self, Table};
use crate::{progress, resolve};
use skep_proto::{FromWire, ToWire, v1};
use skep_types::{
    Affinity, Config, ConfigReference, ConfigTarget, FileTarget, NetworkAttachmentConfig, PortConfig, PublishMode, PublishPlace, Runtime,
    Secret, SecretReference, Sensitive, Service, ServiceMode, ServiceSpec,
};
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run a new service
    Create(Box<Create>),
    /// List services
    Ls(ListFlags),
    /// List the tasks of services
    Ps {
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
        #[command(flatten)]
        flags: ListFlags,
    },
    /// Show services in full
    Inspect {
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
        #[command(flatten)]
        flags: InspectFlags,
    },
    /// Change a service
    Update(Box<Update>),
    /// Go back to the spec before the last update
    Rollback {
        service: String,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Change the number of tasks: SERVICE=REPLICAS…
    Scale {
        #[arg(required = true, value_name = "SERVICE=REPLICAS")]
        targets: Vec<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Remove services and their tasks
    Rm {
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
    },
    /// Show what the tasks of a service wrote
    Logs {
        service: String,
        #[command(flatten)]
        flags: logs::LogFlags,
    },
}

#[derive(Debug, clap::Args)]
pub struct Create {
    #[command(flatten)]
    flags: CreateFlags,
    #[command(flatten)]
    waiting: Waiting,
    /// Only show where the tasks would go, or why not; nothing is created
    #[arg(long, conflicts_with_all = ["detach", "quiet"])]
    dry_run: bool,
    image: String,
    /// Command and arguments: they replace the image's command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    args: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct Update {
    #[command(flatten)]
    flags: UpdateFlags,
    #[command(flatten)]
    waiting: Waiting,
    service: String,
}

#[derive(Debug, clap::Args)]
pub struct Waiting {
    /// Do not wait until the service is as wanted
    #[arg(long, short = 'd')]
    detach: bool,
    /// No progress
    #[arg(long, short = 'q')]
    quiet: bool,
}

impl Waiting {
    async fn wait(&self, connection: &Connection, service_id: &str, rolling_back: bool) -> Result<(), Failure> {
        if self.detach { Ok(()) } else { progress::wait(connection, service_id, self.quiet, rolling_back).await }
    }
}

pub async fn run(command: Command, connection: &Connection) -> Result<(), Failure> {
    match command {
        Command::Create(create) => run_create(*create, connection).await,
        Command::Ls(flags) => list(flags, connection).await,
        Command::Ps { services, flags } => ps(&services, &flags, connection).await,
        Command::Inspect { services, flags } => {
            let mut found = Vec::new();
            for name in services {
                found.push(output::readable(&Service::from_wire(resolve::service(connection, &name).await?)?)?);
            }
            output::inspect(&found, flags.format.as_deref())
        }
        Command::Update(update) => run_update(*update, connection).await,
        Command::Rollback { service, waiting } => {
            let id = roll_back(&service, connection).await?;
            waiting.wait(connection, &id, true).await
        }
        Command::Scale { targets, waiting } => scale(&targets, &waiting, connection).await,
        Command::Rm { services } => remove(&services, connection).await,
        Command::Logs { service, flags } => {
            let service = resolve::service(connection, &service).await?;
            let selector = v1::LogSelector { service_ids: vec![service.id], ..Default::default() };
            logs::follow(selector, &flags, connection).await
        }
    }
}

async fn run_create(create: Create, connection: &Connection) -> Result<(), Failure> {
    let name = match &create.flags.name {
        Some(name) => name.clone(),
        None => made_up_name(&create.image),
    };
    let registry_auth = match create.flags.shared.hands_on_credentials() {
        true => Keychain::of_user()?.for_image(&create.image).await?,
        false => Sensitive::default(),
    };
    let (mut spec, grants) = create.flags.spec(&create.image, &create.args, name, registry_auth).map_err(Failure::failed)?;
    give(&mut spec, grants, connection).await?;
    resolve_networks(&mut Arc::make_mut(&mut spec.task).networks, connection).await?;
    if !create.flags.shared.no_resolve_image {
        pin::pin(&mut spec, connection).await;
    }
    if create.dry_run {
        return explain::dry_run(&spec, connection).await;
    }
    let answer = connection.control().create_service(v1::CreateServiceRequest { spec: Some(spec.to_wire()) }).await?.into_inner();
    let id = answer.service.map(|service| service.id).unwrap_or_default();
    output::put(&format!("{id}\n"))?;
    create.waiting.wait(connection, &id, false).await
}

/// `nginx-k3f9`: the image's last word and four characters that differ each time.
fn made_up_name(image: &str) -> String {
    let base = image.split('@').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    let base: String =
        base.split(':').next().unwrap_or_default().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    let base = base.trim_matches('-');
    let nanos = crate::when::now().0.unsigned_abs();
    format!(
        "{}-{}",
        if base.is_empty() { "service" } else { base },
        skep_types::base36(&(nanos / 1000 % (36 * 36 * 36 * 36)).to_be_bytes(), 4)
    )
}

/// Looks up the ids of secrets and configs and puts the references into the spec.
async fn give(spec: &mut ServiceSpec, grants: Grants, connection: &Connection) -> Result<(), Failure> {
    let Runtime::Container(container) = &mut Arc::make_mut(&mut spec.task).runtime else { return Ok(()) };
    let file = |grant: &Grant| FileTarget { name: grant.target.clone(), uid: grant.uid.clone(), gid: grant.gid.clone(), mode: grant.mode };
    for grant in grants.secrets {
        let secret = Secret::from_wire(resolve::secret(connection, &grant.source).await?)?;
        let (secret_id, secret_name) = (secret.id, secret.spec.annotations.name);
        container.secrets.push(SecretReference { secret_id, secret_name, file: Some(file(&grant)) });
    }
    for grant in grants.configs {
        let config = Config::from_wire(resolve::config(connection, &grant.source).await?)?;
        let (config_id, config_name) = (config.id, config.spec.annotations.name);
        container.configs.push(ConfigReference { config_id, config_name, target: Some(ConfigTarget::File(file(&grant))) });
    }
    Ok(())
}

/// Networks go by id on the wire; a name that does not exist is an error here, where it can be named.
async fn resolve_networks(networks: &mut [NetworkAttachmentConfig], connection: &Connection) -> Result<(), Failure> {
    if networks.is_empty() {
        return Ok(());
    }
    let known = connection.control().list_networks(v1::ListNetworksRequest::default()).await?.into_inner().networks;
    for wanted in networks {
        let name = |network: &&v1::Network| {
            network.spec.as_ref().and_then(|spec| spec.annotations.as_ref()).is_some_and(|found| found.name == wanted.target)
        };
        let found = known.iter().find(|network| network.id == wanted.target).or_else(|| known.iter().find(name));
        wanted.target = found.map(|network| network.id.clone()).ok_or_else(|| {
            let names: Vec<_> =
                known.iter().filter_map(|network| Some(network.spec.as_ref()?.annotations.as_ref()?.name.as_str())).collect();
            Failure::new(Exit::NotFound, format!("no such network: {}; there are: {}", wanted.target, names.join(", ")))
        })?;
    }
    Ok(())
}

async fn run_update(update: Update, connection: &Connection) -> Result<(), Failure> {
    if update.flags.rollback {
        let id = roll_back(&update.service, connection).await?;
        return update.waiting.wait(connection, &id, true).await;
    }
    let id = change(&update.service, connection, async |spec| {
        let mut networks = update
            .flags
            .network_rm
            .iter()
            .map(|name| NetworkAttachmentConfig { target: name.clone(), ..Default::default() })
            .collect::<Vec<_>>();
        resolve_networks(&mut networks, connection).await?;
        let removed: Vec<String> = networks.into_iter().map(|network| network.target).collect();
        let before = spec.task.container().map(|container| unpinned(&container.image).to_owned());
        let grants = update.flags.apply(spec).map_err(Failure::failed)?;
        let task = Arc::make_mut(&mut spec.task);
        // After the flags were applied: those of the new image's registry, if that is another.
        if let Runtime::Container(container) = &mut task.runtime
            && update.flags.shared.hands_on_credentials()
        {
            container.registry_auth = Keychain::of_user()?.for_image(&container.image).await?;
        }
        resolve_networks(&mut task.networks, connection).await?;
        task.networks.retain(|network| !removed.contains(&network.target));
        if update.flags.image.is_some() {
            if spec.task.container().map(|container| unpinned(&container.image)) != before.as_deref() {
                pin::forget_platforms(spec);
            }
            if !update.flags.shared.no_resolve_image {
                pin::pin(spec, connection).await;
            }
        }
        give(spec, grants, connection).await
    })
    .await?;
    output::put(&format!("{id}\n"))?;
    update.waiting.wait(connection, &id, false).await
}

/// Reads a service, changes its spec, writes it back with the version it was read at; looks again if it was overtaken. Returns the
/// service's id.
async fn change(
    name: &str,
    connection: &Connection,
    edit: impl AsyncFn(&mut ServiceSpec) -> Result<(), Failure>,
) -> Result<String, Failure> {
    let mut tries = 0;
    loop {
        let wire = resolve::service(connection, name).await?;
        let service = Service::from_wire(wire)?;
        let mut spec = service.spec.clone();
        edit(&mut spec).await?;
        let request = v1::UpdateServiceRequest {
            service_id: service.id.to_string(),
            service_version: Some(v1::Version { index: service.meta.version.0 }),
            spec: Some(spec.to_wire()),
            rollback: v1::update_service_request::Rollback::None as i32,
        };
        tries += 1;
        match connection.control().update_service(request).await.map_err(Failure::from) {
            Ok(_) => return Ok(service.id.to_string()),
            Err(failure) if failure.exit == Exit::Conflict && tries < TRIES => {}
            Err(failure) => return Err(failure),
        }
    }
}

async fn roll_back(name: &str, connection: &Connection) -> Result<String, Failure> {
    let wire = resolve::service(connection, name).await?;
    let id = wire.id.clone();
    let request = v1::UpdateServiceRequest {
        service_id: id.clone(),
        service_version: wire.meta.and_then(|meta| meta.version),
        spec: wire.spec,
        rollback: v1::update_service_request::Rollback::Previous as i32,
    };
    connection.control().update_service(request).await?;
    output::put(&format!("{id}\n"))?;
    Ok(id)
}

async fn scale(targets: &[String], waiting: &Waiting, connection: &Connection) -> Result<(), Failure> {
    let mut wanted = Vec::new();
    for target in targets {
        let parsed = target.split_once('=').and_then(|(name, count)| Some((name, count.parse::<u64>().ok()?)));
        wanted.push(parsed.ok_or_else(|| Failure::failed(format!("{target:?}: write SERVICE=REPLICAS, for example web=3")))?);
    }
    let mut ids = Vec::new();
    for (name, count) in wanted {
        let id = change(name, connection, async |spec| match &mut spec.mode {
            ServiceMode::Replicated { replicas } => {
                *replicas = count;
                Ok(())
            }
            ServiceMode::ReplicatedJob { total_completions, .. } => {
                *total_completions = count;
                Ok(())
            }
            ServiceMode::Global | ServiceMode::GlobalJob => {
                Err(Failure::failed(format!("{name} is global: it runs once per node and cannot be scaled")))
            }
        })
        .await?;
        output::put(&format!("{name} scaled to {count}\n"))?;
        ids.push(id);
    }
    for id in ids {
        waiting.wait(connection, &id, false).await?;
    }
    Ok(())
}

async fn remove(services: &[String], connection: &Connection) -> Result<(), Failure> {
    each(services, async |name| {
        let service = resolve::service(connection, name).await?;
        connection.control().remove_service(v1::RemoveServiceRequest { service_id: service.id }).await?;
        output::put(&format!("{name}\n"))
    })
    .await
}

async fn ps(names: &[String], flags: &ListFlags, connection: &Connection) -> Result<(), Failure> {
    let mut service_ids = Vec::new();
    for name in names {
        service_ids.push(resolve::service(connection, name).await?.id);
    }
    let filters = v1::list_tasks_request::Filters { service_ids, ..Default::default() };
    let found = connection.control().list_tasks(v1::ListTasksRequest { filters: Some(filters) }).await?.into_inner().tasks;
    task::print(found, flags, connection).await
}

async fn list(flags: ListFlags, connection: &Connection) -> Result<(), Failure> {
    let mut client = connection.control();
    let found = client.list_services(v1::ListServicesRequest::default()).await?.into_inner().services;
    if flags.quiet {
        return output::put(&found.iter().map(|service| format!("{}\n", service.id)).collect::<String>());
    }
    let ids = found.iter().map(|service| service.id.clone()).collect();
    let statuses = client.list_service_statuses(v1::ListServiceStatusesRequest { services: ids }).await?.into_inner().statuses;
    let mut table = Table::new(&["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"]);
    let mut services = found.into_iter().map(Service::from_wire).collect::<Result<Vec<_>, _>>()?;
    services.sort_by(|a, b| a.name().cmp(b.name()));
    for service in &services {
        let status = statuses.iter().find(|status| status.service_id == service.id.as_str());
        let image = service.spec.task.container().map(|container| container.image.as_str()).unwrap_or_default();
        table.row(vec![
            short(service.id.as_str(), flags.no_trunc),
            service.name().to_owned(),
            mode(&service.spec.mode).to_owned(),
            replicas(service, status),
            unpinned(image).to_owned(),
            ports(service),
        ]);
    }
    table.print(&flags.format)
}

/// The image without the digest that pins it.
pub fn unpinned(image: &str) -> &str {
    image.split_once('@').map_or(image, |(name, _)| name)
}

fn mode(mode: &ServiceMode) -> &'static str {
    match mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
        ServiceMode::ReplicatedJob { .. } => "replicated job",
        ServiceMode::GlobalJob => "global job",
    }
}

fn replicas(service: &Service, status: Option<&v1::list_service_statuses_response::ServiceStatus>) -> String {
    let (running, desired, completed) =
        status.map_or((0, 0, 0), |status| (status.running_tasks, status.desired_tasks, status.completed_tasks));
    match service.spec.mode {
        ServiceMode::ReplicatedJob { total_completions, .. } => format!("{running}/{desired} ({completed}/{total_completions} completed)"),
        ServiceMode::GlobalJob => format!("{running}/{desired} ({completed} completed)"),
        ServiceMode::Replicated { .. } | ServiceMode::Global => format!("{running}/{desired}"),
    }
}

/// `*:8080->80/tcp`, with the place, whether clients keep their task and who may come, where that is not the usual.
pub fn port_text(port: &PortConfig) -> String {
    let place = match &port.place {
        PublishPlace::Everywhere => "*".to_owned(),
        PublishPlace::Address(IpAddr::V6(address)) => format!("[{address}]"),
        PublishPlace::Address(address) => address.to_string(),
        PublishPlace::Interface(link) => link.clone(),
    };
    let sticky = if port.affinity == Affinity::Source { " sticky" } else { "" };
    let from = match port.allow.as_slice() {
        [] => String::new(),
        [only] => format!(" from {only}"),
        [first, rest @ ..] => format!(" from {first} and {} more", rest.len()),
    };
    format!("{place}:{}->{}/{}{sticky}{from}", port.published_port, port.target_port, port.protocol.name())
}

/// Of ports that every node answers; host ports are shown with the tasks that hold them.
fn ports(service: &Service) -> String {
    let allocated = service.endpoint.as_ref().map(|endpoint| endpoint.ports.as_slice()).unwrap_or_default();
    allocated.iter().filter(|port| port.publish_mode == PublishMode::Ingress).map(port_text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_tells_what_is_unusual_about_it() {
        let port = PortConfig { published_port: 8080, target_port: 80, ..PortConfig::default() };
        assert_eq!(port_text(&port), "*:8080->80/tcp");
        let range = |text: &str| text.parse().unwrap();
        let narrow = PortConfig {
            place: PublishPlace::Address("2001:db8::1".parse().unwrap()),
            affinity: Affinity::Source,
            allow: vec![range("192.0.2.0/24"), range("10.0.0.0/8"), range("::1/128")],
            ..port
        };
        assert_eq!(port_text(&narrow), "[2001:db8::1]:8080->80/tcp sticky from 192.0.2.0/24 and 2 more");
    }
}
