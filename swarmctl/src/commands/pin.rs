//! What a service is to know of its image from the registry: the digest that its name stands for, and the platforms that it is for.

use crate::connect::Connection;
use crate::output::plain;
use skep_proto::skep::{ResolveImageRequest, ResolveImageResponse};
use skep_types::{Platform, Runtime, ServiceSpec};
use std::sync::Arc;
use tonic::Code;

/// Asks by way of this node's daemon, which may have to wait some seconds for the registry, and says on standard error if nobody knew.
/// A service without an image is left alone.
pub async fn pin(spec: &mut ServiceSpec, connection: &Connection) {
    let Some(container) = spec.task.container() else { return };
    let (reference, registry_auth) = (container.image.clone(), container.registry_auth.0.clone());
    match connection.images().resolve(ResolveImageRequest { reference: reference.clone(), registry_auth }).await {
        Ok(answer) => {
            if let Some(warning) = write(spec, answer.into_inner()) {
                eprintln!("{}", plain(&warning));
            }
        }
        // What is wrong with the name, the manager says better: it names the field.
        Err(status) if status.code() == Code::InvalidArgument => {}
        Err(status) => eprintln!("{}", plain(&warning(&reference, status.message()))),
    }
}

/// Forgets the platforms of another image.
pub fn forget_platforms(spec: &mut ServiceSpec) {
    set_platforms(spec, Vec::new());
}

/// Puts the answer into the spec; or what is to be said of it.
fn write(spec: &mut ServiceSpec, answer: ResolveImageResponse) -> Option<String> {
    let reference = spec.task.container().map(|container| container.image.clone()).unwrap_or_default();
    if answer.local {
        return None;
    }
    if answer.pinned.is_empty() {
        return Some(warning(&reference, &answer.reason));
    }
    if let Runtime::Container(container) = &mut Arc::make_mut(&mut spec.task).runtime {
        container.image = answer.pinned;
    }
    // As docker: ARM's variants do not stand in a node's description, so any ARM will do (moby/swarmkit#2294).
    let architecture = |name: String| if name.eq_ignore_ascii_case("arm") { String::new() } else { name };
    let platforms = answer.platforms.into_iter().map(|one| Platform { os: one.os, architecture: architecture(one.architecture) });
    set_platforms(spec, platforms.collect());
    None
}

fn set_platforms(spec: &mut ServiceSpec, platforms: Vec<Platform>) {
    if !platforms.is_empty() || spec.task.placement.as_ref().is_some_and(|placement| !placement.platforms.is_empty()) {
        Arc::make_mut(&mut spec.task).placement.get_or_insert_default().platforms = platforms;
    }
}

/// In docker's words, and why.
fn warning(image: &str, reason: &str) -> String {
    format!(
        "image {image} could not be accessed on a registry to record its digest. Each node will access {image} independently, possibly leading to \
         different nodes running different versions of the image. ({reason})"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::skep::ImagePlatform;
    use skep_types::{ContainerSpec, ServiceMode, TaskSpec};

    fn spec(image: &str) -> ServiceSpec {
        let container = ContainerSpec { image: image.to_owned(), ..ContainerSpec::default() };
        ServiceSpec {
            annotations: Default::default(),
            task: Arc::new(TaskSpec::new(container)),
            mode: ServiceMode::Global,
            update: None,
            rollback: None,
            networks: Vec::new(),
            endpoint: None,
        }
    }

    fn image(spec: &ServiceSpec) -> &str {
        &spec.task.container().unwrap().image
    }

    fn pinned(architectures: &[&str]) -> ResolveImageResponse {
        let platform = |name: &&str| ImagePlatform { os: "linux".into(), architecture: (*name).into(), variant: String::new() };
        ResolveImageResponse {
            pinned: "nginx:latest@sha256:aa".into(),
            platforms: architectures.iter().map(platform).collect(),
            ..ResolveImageResponse::default()
        }
    }

    #[test]
    fn digest_and_platforms_go_into_the_service_in_the_place_of_older_ones() {
        let mut spec = spec("nginx");
        assert_eq!(write(&mut spec, pinned(&["amd64", "arm"])), None);
        assert_eq!(image(&spec), "nginx:latest@sha256:aa");
        let architectures = |spec: &ServiceSpec| -> Vec<String> {
            spec.task.placement.iter().flat_map(|placement| &placement.platforms).map(|platform| platform.architecture.clone()).collect()
        };
        assert_eq!(architectures(&spec), ["amd64", ""]);
        assert_eq!(write(&mut spec, pinned(&["arm64"])), None);
        assert_eq!(architectures(&spec), ["arm64"]);
        forget_platforms(&mut spec);
        assert!(architectures(&spec).is_empty());
    }

    #[test]
    fn a_registry_that_does_not_tell_changes_nothing_and_is_told_of() {
        let mut spec = spec("nginx");
        let silent = ResolveImageResponse { reason: "no such host".into(), ..ResolveImageResponse::default() };
        let told = write(&mut spec, silent).unwrap();
        assert!(
            told.starts_with("image nginx could not be accessed on a registry to record its digest. Each node will access nginx"),
            "{told}"
        );
        assert!(told.ends_with("(no such host)"));
        assert_eq!(write(&mut spec, ResolveImageResponse { local: true, ..ResolveImageResponse::default() }), None);
        assert!(image(&spec) == "nginx" && spec.task.placement.is_none());
    }
}
