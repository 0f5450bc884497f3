//! `service update`.

use super::grammar::{Grant, Grants, capability, environment, generic, grant, host_line, network, set, spread, sysctl, ulimit};
use super::mount::mount;
use super::port::{protocol, publish};
use super::shared::SharedFlags;
use super::values::{pair, words};
use clap::Args;
use skep_types::{
    ContainerSpec, DnsConfig, GenericResource, Labels, Mount, NetworkAttachmentConfig, Placement, PortConfig, Runtime, ServiceSpec,
    TaskSpec, Ulimit,
};
use std::sync::Arc;

/// `service update`: like create, with `-add` and `-rm` for lists.
#[derive(Debug, Default, Args)]
pub struct UpdateFlags {
    #[command(flatten)]
    pub shared: SharedFlags,
    /// New image
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// New arguments of the command, split as a shell does
    #[arg(long, value_name = "COMMAND")]
    args: Option<String>,
    /// Replace all tasks even if nothing changed
    #[arg(long)]
    force: bool,
    /// Go back to the spec before the last update
    #[arg(long, conflicts_with_all = ["with_registry_auth", "no_resolve_image"])]
    pub rollback: bool,
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label_add: Vec<(String, String)>,
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    container_label_add: Vec<(String, String)>,
    #[arg(long, value_name = "KEY")]
    container_label_rm: Vec<String>,
    #[arg(long, value_name = "NAME=VALUE")]
    env_add: Vec<String>,
    #[arg(long, value_name = "NAME")]
    env_rm: Vec<String>,
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    #[arg(long, value_name = "GROUP")]
    group_rm: Vec<String>,
    #[arg(long, value_name = "NAME:IP", value_parser = host_line)]
    host_add: Vec<String>,
    #[arg(long, value_name = "NAME:IP", value_parser = host_line)]
    host_rm: Vec<String>,
    #[arg(long, value_name = "IP")]
    dns_add: Vec<std::net::IpAddr>,
    #[arg(long, value_name = "IP")]
    dns_rm: Vec<std::net::IpAddr>,
    #[arg(long, value_name = "DOMAIN")]
    dns_search_add: Vec<String>,
    #[arg(long, value_name = "DOMAIN")]
    dns_search_rm: Vec<String>,
    #[arg(long, value_name = "OPTION")]
    dns_option_add: Vec<String>,
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
    #[arg(long, value_name = "MOUNT", value_parser = mount)]
    mount_add: Vec<Mount>,
    #[arg(long, value_name = "TARGET")]
    mount_rm: Vec<String>,
    /// As --publish of create; takes the place of what has the same target, number and place
    #[arg(long, value_name = "PORT", value_parser = publish)]
    publish_add: Vec<Vec<PortConfig>>,
    /// TARGET[/PROTOCOL]
    #[arg(long, value_name = "TARGET")]
    publish_rm: Vec<String>,
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    network_add: Vec<NetworkAttachmentConfig>,
    #[arg(long, value_name = "NETWORK")]
    pub network_rm: Vec<String>,
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_add: Vec<String>,
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_rm: Vec<String>,
    #[arg(long, value_name = "PREFERENCE", value_parser = spread)]
    placement_pref_add: Vec<String>,
    #[arg(long, value_name = "PREFERENCE", value_parser = spread)]
    placement_pref_rm: Vec<String>,
    #[arg(long, value_name = "KIND=COUNT", value_parser = generic)]
    generic_resource_add: Vec<GenericResource>,
    #[arg(long, value_name = "KIND")]
    generic_resource_rm: Vec<String>,
    #[arg(long, value_name = "SECRET", value_parser = grant)]
    secret_add: Vec<Grant>,
    #[arg(long, value_name = "SECRET")]
    secret_rm: Vec<String>,
    #[arg(long, value_name = "CONFIG", value_parser = grant)]
    config_add: Vec<Grant>,
    #[arg(long, value_name = "CONFIG")]
    config_rm: Vec<String>,
    #[arg(long, value_name = "CAPABILITY", value_parser = capability)]
    cap_add: Vec<String>,
    #[arg(long, value_name = "CAPABILITY", value_parser = capability)]
    cap_drop: Vec<String>,
    #[arg(long, value_name = "NAME=VALUE", value_parser = sysctl)]
    sysctl_add: Vec<(String, String)>,
    #[arg(long, value_name = "NAME")]
    sysctl_rm: Vec<String>,
    #[arg(long, value_name = "LIMIT", value_parser = ulimit)]
    ulimit_add: Vec<Ulimit>,
    #[arg(long, value_name = "NAME")]
    ulimit_rm: Vec<String>,
}

/// Removes, then adds, replacing what has the same key: removing comes first so that one command can do both.
fn edit<T: Clone, K: PartialEq>(list: &mut Vec<T>, remove: impl Fn(&T) -> bool, add: &[T], key: impl Fn(&T) -> K) {
    list.retain(|item| !remove(item) && !add.iter().any(|new| key(new) == key(item)));
    list.extend(add.iter().cloned());
}

fn edit_labels(labels: &mut Labels, remove: &[String], add: &[(String, String)]) {
    labels.retain(|key, _| !remove.contains(key));
    labels.extend(add.iter().cloned());
}

impl UpdateFlags {
    /// Changes `spec` as the flags say and returns the secrets and configs to add.
    pub fn apply(&self, spec: &mut ServiceSpec) -> Result<Grants, String> {
        self.shared.apply(spec)?;
        edit_labels(&mut spec.annotations.labels, &self.label_rm, &self.label_add);
        self.edit_ports(spec)?;
        let task = Arc::make_mut(&mut spec.task);
        if self.force {
            task.force_update += 1;
        }
        let removed = &self.network_rm;
        edit(&mut task.networks, |network| removed.contains(&network.target), &self.network_add, |network| network.target.clone());
        self.edit_placement(task);
        self.edit_generic(task);
        if let Runtime::Container(container) = &mut task.runtime {
            self.edit_container(container)?;
        }
        Ok(Grants { secrets: self.secret_add.clone(), configs: self.config_add.clone() })
    }

    fn edit_ports(&self, spec: &mut ServiceSpec) -> Result<(), String> {
        let mut removed = Vec::new();
        for text in &self.publish_rm {
            let (target, name) = text.split_once('/').unwrap_or((text, "tcp"));
            let target: u32 = target.parse().map_err(|_| format!("--publish-rm {text:?}: write the target port, such as 80/tcp"))?;
            removed.push((target, protocol(name)?));
        }
        let added: Vec<PortConfig> = self.publish_add.iter().flatten().cloned().collect();
        if removed.is_empty() && added.is_empty() {
            return Ok(());
        }
        let ports = &mut spec.endpoint.get_or_insert_default().ports;
        ports.retain(|port| {
            let is_replaced = added.iter().any(|new| new.target_port == port.target_port && new.meets(port));
            !is_replaced && !removed.contains(&(port.target_port, port.protocol))
        });
        ports.extend(added);
        Ok(())
    }

    fn edit_placement(&self, task: &mut TaskSpec) {
        let mut placement = task.placement.take().unwrap_or_default();
        edit(&mut placement.constraints, |item| self.constraint_rm.contains(item), &self.constraint_add, Clone::clone);
        edit(&mut placement.spread, |item| self.placement_pref_rm.contains(item), &self.placement_pref_add, Clone::clone);
        task.placement = Some(placement).filter(|placement| *placement != Placement::default());
    }

    fn edit_generic(&self, task: &mut TaskSpec) {
        if self.generic_resource_add.is_empty() && self.generic_resource_rm.is_empty() {
            return;
        }
        let kind = |resource: &GenericResource| match resource {
            GenericResource::Named { kind, .. } | GenericResource::Discrete { kind, .. } => kind.clone(),
        };
        let list = &mut task.resources.get_or_insert_default().reservations.generic;
        edit(list, |item| self.generic_resource_rm.contains(&kind(item)), &self.generic_resource_add, kind);
    }

    fn edit_container(&self, container: &mut ContainerSpec) -> Result<(), String> {
        set(&mut container.image, self.image.clone());
        if let Some(args) = &self.args {
            container.args = words(args)?;
        }
        let name = |entry: &String| entry.split_once('=').map_or(entry.clone(), |(name, _)| name.to_owned());
        let added = environment(&self.env_add, &[])?;
        edit(&mut container.env, |entry| self.env_rm.contains(&name(entry)), &added, name);
        edit_labels(&mut container.labels, &self.container_label_rm, &self.container_label_add);
        edit(&mut container.groups, |item| self.group_rm.contains(item), &self.group_add, Clone::clone);
        edit(&mut container.hosts, |item| self.host_rm.contains(item), &self.host_add, Clone::clone);
        edit(&mut container.mounts, |item| self.mount_rm.contains(&item.target), &self.mount_add, |item| item.target.clone());
        edit(&mut container.ulimits, |item| self.ulimit_rm.contains(&item.name), &self.ulimit_add, |item| item.name.clone());
        edit_labels(&mut container.sysctls, &self.sysctl_rm, &self.sysctl_add);
        container.capability_add.retain(|item| !self.cap_drop.contains(item));
        container.capability_drop.retain(|item| !self.cap_add.contains(item));
        edit(&mut container.capability_add, |_| false, &self.cap_add, Clone::clone);
        edit(&mut container.capability_drop, |_| false, &self.cap_drop, Clone::clone);
        container.secrets.retain(|secret| !self.secret_rm.contains(&secret.secret_name));
        container.configs.retain(|config| !self.config_rm.contains(&config.config_name));
        self.edit_dns(container);
        Ok(())
    }

    fn edit_dns(&self, container: &mut ContainerSpec) {
        let text = |addresses: &[std::net::IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut dns = container.dns.take().unwrap_or_default();
        let removed = text(&self.dns_rm);
        edit(&mut dns.nameservers, |item| removed.contains(item), &text(&self.dns_add), Clone::clone);
        edit(&mut dns.search, |item| self.dns_search_rm.contains(item), &self.dns_search_add, Clone::clone);
        edit(&mut dns.options, |item| self.dns_option_rm.contains(item), &self.dns_option_add, Clone::clone);
        container.dns = Some(dns).filter(|dns| *dns != DnsConfig::default());
    }
}
