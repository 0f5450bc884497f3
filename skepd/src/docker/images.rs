//! The images of this node, and what registries say of others.

use super::happenings::Local;
use crate::agent::chain;
use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use skep_docker_api::{
    ApiError, Distribution, ErrorKind, HistoryEntry, Image, ImagePlatform, ImageSettings, Images, PullNews, PullStep, PushNews, SavedImage,
    Tar,
};
use skep_images::{Auth, ImageError, ImageStore, Phase, Progress, PushProgress, PushStep, Reference, RegistryError};
use skep_types::{HealthConfig, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::StreamReader;

/// Progress on its way; what does not fit is left out, the next says more.
const PROGRESS: usize = 32;

/// Works on the image store directly, as the local socket's service does.
pub struct NodeImages {
    store: ImageStore,
    told: Local,
}

impl NodeImages {
    pub fn new(store: ImageStore, told: Local) -> Self {
        Self { store, told }
    }
}

fn parse(reference: &str) -> Result<Reference, ApiError> {
    Reference::parse(reference).map_err(|error| ApiError::invalid(format!("invalid reference format: {error}")))
}

/// Credentials that cannot be read are as none: clients send odd ones often (engine-api 0).
fn auth(header: &str) -> Option<Auth> {
    Auth::parse(header).ok().flatten()
}

fn of_registry(error: &RegistryError, name: &str) -> ApiError {
    match error {
        RegistryError::NoSuchImage { .. } => {
            ApiError::not_found(format!("manifest for {name} not found: manifest unknown: manifest unknown"))
        }
        RegistryError::AccessDenied { .. } => ApiError::not_found(format!(
            "pull access denied for {name}, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"
        )),
        RegistryError::Unauthorised { .. } | RegistryError::ForeignCredentials { .. } => {
            ApiError::new(ErrorKind::Unauthenticated, chain(error))
        }
        other => ApiError::internal(chain(other)),
    }
}

fn refusal(error: &ImageError, name: &str) -> ApiError {
    match error {
        ImageError::Registry(error) => of_registry(error, name),
        ImageError::Archive(_) | ImageError::Manifest(_) => ApiError::invalid(chain(error)),
        other if other.is_transient() => ApiError::unavailable(chain(other)),
        other => ApiError::internal(chain(other)),
    }
}

fn time(text: &str) -> Option<Timestamp> {
    let at: prost_types::Timestamp = text.parse().ok()?;
    Some(Timestamp(at.seconds.checked_mul(1_000_000_000)?.checked_add(at.nanos.into())?))
}

/// `nginx@sha256:…`: the repository as people write it, without the tag.
fn with_digest(image: &skep_images::Image) -> String {
    let shown = image.reference().to_string();
    format!("{}@{}", repository(&shown), image.target())
}

fn settings(image: &skep_images::Image) -> ImageSettings {
    let length = |nanos: i64| u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos);
    let health = image.healthcheck().map(|check| HealthConfig {
        test: check.test.clone(),
        interval: length(check.interval),
        timeout: length(check.timeout),
        retries: i32::try_from(check.retries).unwrap_or(0),
        start_period: length(check.start_period),
        start_interval: length(check.start_interval),
    });
    let Some(config) = image.config().config() else { return ImageSettings { health, ..ImageSettings::default() } };
    let list = |value: &Option<Vec<String>>| value.clone().unwrap_or_default();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    ImageSettings {
        user: text(config.user()),
        env: list(config.env()),
        entrypoint: list(config.entrypoint()),
        command: list(config.cmd()),
        working_dir: text(config.working_dir()),
        stop_signal: text(config.stop_signal()),
        labels: config.labels().clone().unwrap_or_default().into_iter().collect(),
        volumes: list(config.volumes()),
        exposed_ports: list(config.exposed_ports()),
        health,
    }
}

fn described(image: &skep_images::Image) -> Image {
    let config = image.config();
    let history = config.history().iter().flatten().map(|entry| HistoryEntry {
        created_at: entry.created().as_deref().and_then(time),
        created_by: entry.created_by().clone().unwrap_or_default(),
        comment: entry.comment().clone().unwrap_or_default(),
        is_empty_layer: entry.empty_layer().unwrap_or(false),
    });
    Image {
        id: image.id().to_string(),
        tags: Vec::new(),
        digests: Vec::new(),
        created_at: config.created().as_deref().and_then(time),
        author: config.author().clone().unwrap_or_default(),
        architecture: config.architecture().to_string(),
        os: config.os().to_string(),
        variant: config.variant().clone().unwrap_or_default(),
        size: image.size(),
        config: settings(image),
        layers: config.rootfs().diff_ids().clone(),
        layer_sizes: image.layer_sizes().collect(),
        history: history.collect(),
    }
}

/// The name without tag and digest.
fn repository(shown: &str) -> &str {
    let name = shown.split('@').next().unwrap_or(shown);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// A push that was refused, in dockerd's words.
fn unpushed(error: &ImageError, name: &str) -> ApiError {
    match error {
        ImageError::Registry(RegistryError::AccessDenied { host, .. }) => {
            ApiError::forbidden(format!("denied: requested access to the resource is denied; log in to {host}"))
        }
        ImageError::Registry(RegistryError::Unauthorised { .. }) => {
            ApiError::new(ErrorKind::Unauthenticated, "unauthorized: authentication required")
        }
        other => refusal(other, name),
    }
}

fn sent(event: &PushProgress) -> PushNews {
    use skep_docker_api::PushStep as Told;
    let step = match event.step {
        PushStep::Waiting => Told::Waiting,
        PushStep::Exists => Told::Exists,
        PushStep::Sending => Told::Sending,
        PushStep::Sent => Told::Sent,
    };
    PushNews::Layer { id: event.layer.hex().chars().take(12).collect(), step, done: event.done, total: event.total }
}

fn news(event: &Progress) -> PullNews {
    let step = match event.phase {
        Phase::Waiting => PullStep::Waiting,
        Phase::Downloading => PullStep::Downloading,
        Phase::Retrying => PullStep::Retrying,
        Phase::Downloaded => PullStep::Downloaded,
        Phase::Unpacking => PullStep::Unpacking,
        Phase::Unpacked => PullStep::Unpacked,
    };
    let id: String = event.layer.to_string().trim_start_matches("sha256:").chars().take(12).collect();
    PullNews::Layer { id, step, done: event.done, total: event.total }
}

#[async_trait]
impl Images for NodeImages {
    async fn list(&self) -> Result<Vec<Image>, ApiError> {
        let mut by_id: BTreeMap<String, Image> = BTreeMap::new();
        for image in self.store.list().await.map_err(|error| refusal(&error, "images"))? {
            let one = by_id.entry(image.id().to_string()).or_insert_with(|| described(&image));
            let digest = with_digest(&image);
            if !one.digests.contains(&digest) {
                one.digests.push(digest);
            }
            if image.reference().digest().is_none() {
                one.tags.push(image.reference().to_string());
            }
        }
        Ok(by_id.into_values().collect())
    }

    async fn pull(&self, name: &str, header: &str) -> Result<BoxStream<'static, Result<PullNews, ApiError>>, ApiError> {
        let reference = parse(name)?;
        let before = self.store.find(&reference).await.ok().flatten().map(|image| image.target().to_string());
        let (sender, events) = mpsc::channel(PROGRESS);
        let (store, auth, told) = (self.store.clone(), auth(header), self.told.clone());
        let pull = async move {
            let image =
                store.pull(&reference, auth.as_ref(), Some(sender)).await.map_err(|error| refusal(&error, &reference.to_string()))?;
            let (digest, shown) = (image.target().to_string(), reference.to_string());
            told.tell("image", "pull", &shown, [("name", shown.split([':', '@']).next().unwrap_or_default())]);
            let is_new = before.as_ref() != Some(&digest);
            Ok(PullNews::Done { digest, is_new })
        };
        let events = stream::unfold(events, |mut events| async move { Some((Ok(news(&events.recv().await?)), events)) });
        Ok(stream::select(events, stream::once(pull)).boxed())
    }

    async fn load(&self, archive: Tar) -> Result<Vec<String>, ApiError> {
        let images = self.store.load(StreamReader::new(archive)).await.map_err(|error| refusal(&error, "archive"))?;
        let names: Vec<String> = images.iter().map(|image| image.reference().to_string()).collect();
        for (image, name) in images.iter().zip(&names) {
            let id = image.id().to_string();
            tracing::debug!(image = id, name, "loaded");
            self.told.tell("image", "load", &id, [("name", id.as_str())]);
        }
        Ok(names)
    }

    async fn save(&self, images: Vec<SavedImage>) -> Result<Tar, ApiError> {
        let mut wanted = Vec::new();
        for saved in images {
            let found = self.store.find(&parse(&saved.known_as)?).await.map_err(|error| refusal(&error, &saved.known_as))?;
            let image = found.ok_or_else(|| ApiError::not_found(format!("No such image: {}", saved.known_as)))?;
            self.told.tell("image", "save", &saved.id, [("name", saved.id.as_str())]);
            let names = saved.names.iter().map(|name| parse(name)).collect::<Result<_, _>>()?;
            wanted.push(skep_images::SavedImage { image, names });
        }
        self.store.save(wanted).await.map_err(|error| refusal(&error, "archive"))
    }

    async fn push(&self, name: &str, header: &str) -> Result<BoxStream<'static, Result<PushNews, ApiError>>, ApiError> {
        let reference = parse(name)?;
        let (sender, events) = mpsc::channel(PROGRESS);
        let (store, auth, told) = (self.store.clone(), auth(header), self.told.clone());
        let (ended, end) = oneshot::channel();
        let push = async move {
            let shown = reference.to_string();
            let found = store.find(&reference).await.map_err(|error| refusal(&error, &shown))?;
            let missing = || ApiError::not_found(format!("An image does not exist locally with the tag: {}", repository(&shown)));
            let image = found.ok_or_else(missing)?;
            let pushed = store.push(&image, &reference, auth.as_ref(), Some(sender)).await.map_err(|error| unpushed(&error, &shown))?;
            told.tell("image", "push", &shown, [("name", repository(&shown))]);
            Ok(PushNews::Done { tag: reference.version().to_owned(), digest: pushed.digest.to_string(), size: pushed.size })
        };
        let events = stream::unfold(events, |mut events| async move { Some((Ok(sent(&events.recv().await?)), events)) });
        let pushing = stream::once(push.map(move |outcome| drop(ended.send(outcome)))).filter_map(|()| std::future::ready(None));
        // All that happened comes before what came of it.
        Ok(stream::select(events, pushing).chain(stream::once(end).filter_map(|outcome| std::future::ready(outcome.ok()))).boxed())
    }

    async fn tag(&self, image: &str, name: &str) -> Result<(), ApiError> {
        let (from, to) = (parse(image)?, parse(name)?);
        let found = self.store.find(&from).await.map_err(|error| refusal(&error, image))?;
        let found = found.ok_or_else(|| ApiError::not_found(format!("No such image: {image}")))?;
        self.store.tag(&found, &to).await.map_err(|error| refusal(&error, name))?;
        self.told.tell("image", "tag", &found.id().to_string(), [("name", to.to_string().as_str())]);
        Ok(())
    }

    async fn untag(&self, name: &str) -> Result<(), ApiError> {
        let reference = parse(name)?;
        let id = self.store.find(&reference).await.ok().flatten().map(|image| image.id().to_string());
        match self.store.remove(&reference).await {
            Ok(true) => {
                let id = id.unwrap_or_else(|| name.to_owned());
                self.told.tell("image", "untag", &id, [("name", id.as_str())]);
                if !self.list().await?.iter().any(|image| image.id == id) {
                    self.told.tell("image", "delete", &id, [("name", id.as_str())]);
                }
                Ok(())
            }
            Ok(false) => Err(ApiError::not_found(format!("No such image: {name}"))),
            Err(error) => Err(refusal(&error, name)),
        }
    }

    async fn distribution(&self, name: &str, header: &str) -> Result<Distribution, ApiError> {
        let refused = |error: ImageError| match error {
            ImageError::Registry(error @ RegistryError::AccessDenied { .. }) => ApiError::forbidden(chain(&error)),
            ImageError::Registry(error) => of_registry(&error, name),
            other => ApiError::internal(chain(&other)),
        };
        let found = self.store.distribution(&parse(name)?, auth(header).as_ref()).await.map_err(refused)?;
        let platform = |one: skep_images::Platform| ImagePlatform {
            architecture: one.architecture,
            os: one.os,
            variant: one.variant.unwrap_or_default(),
        };
        Ok(Distribution {
            media_type: found.media_type,
            digest: found.digest.to_string(),
            size: found.size,
            platforms: found.platforms.into_iter().map(platform).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_images_are_read() {
        assert_eq!(time("1970-01-01T00:00:01.5Z"), Some(Timestamp(1_500_000_000)));
        assert_eq!(time("yesterday"), None);
    }

    #[test]
    fn odd_credentials_are_as_none() {
        assert!(auth("").is_none() && auth("***").is_none());
    }
}
