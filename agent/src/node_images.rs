//! The images of this node: as the executor wants them, and as `skep.v1.LocalImages` on the local socket.

use crate::error::{ImageError, chain};
use crate::executor::{ImageConfig, ImageReady, Images};
use async_trait::async_trait;
use futures_util::Stream;
use skep_images::{Auth, Distribution, Image, ImageStore, Phase, Progress, Reference};
use skep_proto::skep::local_images_server::LocalImages;
use skep_proto::skep::{
    Image as WireImage, ImagePlatform, ImageProgress, ListImagesRequest, ListImagesResponse, LoadImageChunk, LoadImageResponse,
    PullImageRequest, RemoveImageRequest, RemoveImageResponse, ResolveImageRequest, ResolveImageResponse,
};
use skep_types::HealthConfig;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tonic::{Request, Response, Status, Streaming};

/// Progress on its way to a client; what does not fit is left out, the next says more.
const PROGRESS: usize = 32;

/// How long a registry has to say what a name stands for: whoever creates a service waits for it.
const RESOLVE_LIMIT: Duration = Duration::from_secs(4);

/// Wraps the image store of this node. Cheap to clone.
#[derive(Clone)]
pub struct NodeImages {
    store: ImageStore,
}

impl NodeImages {
    #[must_use]
    pub fn new(store: ImageStore) -> Self {
        Self { store }
    }
}

fn duration(nanoseconds: i64) -> Option<Duration> {
    u64::try_from(nanoseconds).ok().filter(|length| *length > 0).map(Duration::from_nanos)
}

/// The parts of an image's configuration that a container takes over.
fn config_of(image: &Image) -> ImageConfig {
    let health = image.healthcheck().map(|check| HealthConfig {
        test: check.test.clone(),
        interval: duration(check.interval),
        timeout: duration(check.timeout),
        retries: i32::try_from(check.retries).unwrap_or(0),
        start_period: duration(check.start_period),
        start_interval: duration(check.start_interval),
    });
    let Some(config) = image.config().config() else { return ImageConfig { health, ..ImageConfig::default() } };
    let list = |value: &Option<Vec<String>>| value.clone().unwrap_or_default();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    ImageConfig {
        entrypoint: list(config.entrypoint()),
        command: list(config.cmd()),
        env: list(config.env()),
        working_dir: text(config.working_dir()),
        user: text(config.user()),
        stop_signal: text(config.stop_signal()),
        volumes: list(config.volumes()),
        health,
    }
}

impl NodeImages {
    fn parse(reference: &str) -> Result<Reference, ImageError> {
        let bad =
            |error: skep_images::ReferenceError| ImageError::BadReference { reference: reference.to_owned(), reason: error.to_string() };
        Reference::parse(reference).map_err(bad)
    }

    async fn fetch(&self, reference: &Reference, registry_auth: &str) -> Result<Image, ImageError> {
        let unusable = |reason: String| ImageError::Unusable { reference: reference.to_string(), reason };
        let auth = Auth::parse(registry_auth).map_err(|error| unusable(error.to_string()))?;
        let pulled = self.store.pull(reference, auth.as_ref(), None).await;
        pulled.map_err(|error| {
            let reason = chain(&*error);
            // "No such image: x: no such image: x" helps nobody.
            let reason =
                reason.strip_prefix(&format!("no such image: {reference}")).map_or(reason.clone(), |_| "its registry has none".into());
            ImageError::NotFound { reference: reference.to_string(), reason }
        })
    }
}

#[async_trait]
impl Images for NodeImages {
    async fn ensure(&self, reference: &str, registry_auth: &str) -> Result<ImageReady, ImageError> {
        let reference = Self::parse(reference)?;
        let unavailable = |error: &skep_images::ImageError| ImageError::Unavailable { reason: chain(error) };
        let found = self.store.find(&reference).await.map_err(|error| unavailable(&error))?;
        let image = match found {
            Some(image) => match self.store.ensure_unpacked(&image).await {
                Ok(()) => image,
                Err(error) if error.is_transient() => return Err(unavailable(&error)),
                // Its layers are gone: as good as not there.
                Err(_) => self.fetch(&reference, registry_auth).await?,
            },
            None => self.fetch(&reference, registry_auth).await?,
        };
        let empty = || ImageError::Unusable { reference: reference.to_string(), reason: "it has no layers".into() };
        Ok(ImageReady {
            digest: image.manifest().to_string(),
            id: image.id().to_string(),
            chain_id: image.chain_id().ok_or_else(empty)?.to_string(),
            snapshotter: self.store.snapshotter().to_owned(),
            config: Arc::new(config_of(&image)),
        })
    }
}

fn wire(image: &Image) -> WireImage {
    let config = image.config();
    WireImage {
        reference: image.reference().to_string(),
        digest: image.target().to_string(),
        size_bytes: image.size(),
        created_at: config.created().as_ref().and_then(|text| text.parse::<prost_types::Timestamp>().ok()),
        architecture: config.architecture().to_string(),
        os: config.os().to_string(),
    }
}

/// The one place where errors of images become codes.
fn status(error: &skep_images::ImageError) -> Status {
    use skep_images::{ImageError as E, RegistryError as R};
    let words = chain(error);
    match error {
        E::Registry(R::NoSuchImage { .. }) => Status::not_found(words),
        E::Registry(R::AccessDenied { .. } | R::Unauthorised { .. } | R::ForeignCredentials { .. }) => Status::permission_denied(words),
        error if error.is_transient() => Status::unavailable(words),
        E::Archive(_) | E::Manifest(_) => Status::invalid_argument(words),
        _ => Status::failed_precondition(words),
    }
}

fn reference(text: &str) -> Result<Reference, Status> {
    Reference::parse(text).map_err(|error| Status::invalid_argument(format!("reference: {error}")))
}

fn progress(event: &Progress) -> ImageProgress {
    let phase = match event.phase {
        Phase::Waiting => "waiting",
        Phase::Downloading => "downloading",
        Phase::Retrying => "retrying",
        Phase::Downloaded => "downloaded",
        Phase::Unpacking => "unpacking",
        Phase::Unpacked => "unpacked",
    };
    let layer: String = event.layer.to_string().trim_start_matches("sha256:").chars().take(12).collect();
    ImageProgress { layer, phase: phase.into(), done_bytes: event.done, total_bytes: event.total, image: None }
}

/// What a service is to have of what the registry said.
fn resolved(reference: &Reference, found: Distribution) -> ResolveImageResponse {
    let pinned = match reference.digest() {
        Some(_) => reference.to_string(),
        None => format!("{reference}@{}", found.digest),
    };
    let mut platforms: Vec<ImagePlatform> = Vec::new();
    // Attestations stand in an index as images for an unknown system.
    for one in found.platforms.into_iter().filter(|one| one.os != "unknown") {
        let platform = ImagePlatform { os: one.os, architecture: one.architecture, variant: one.variant.unwrap_or_default() };
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    ResolveImageResponse { pinned, platforms, ..ResolveImageResponse::default() }
}

impl NodeImages {
    async fn ask_registry(&self, reference: &Reference, auth: Option<&Auth>) -> ResolveImageResponse {
        // If containerd does not answer, the registry may.
        if reference.is_of_default_registry() && self.store.is_named_here(reference).await.unwrap_or(false) {
            return ResolveImageResponse { local: true, ..ResolveImageResponse::default() };
        }
        match self.store.distribution(reference, auth).await {
            Ok(found) => resolved(reference, found),
            Err(error) => ResolveImageResponse { reason: chain(&error), ..ResolveImageResponse::default() },
        }
    }
}

type ProgressStream = Pin<Box<dyn Stream<Item = Result<ImageProgress, Status>> + Send>>;

#[async_trait]
impl LocalImages for NodeImages {
    async fn list(&self, _: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        let images = self.store.list().await.map_err(|error| status(&error))?;
        Ok(Response::new(ListImagesResponse { images: images.iter().map(wire).collect() }))
    }

    type PullStream = ProgressStream;

    async fn pull(&self, request: Request<PullImageRequest>) -> Result<Response<ProgressStream>, Status> {
        let request = request.into_inner();
        let reference = reference(&request.reference)?;
        let auth = Auth::parse(&request.registry_auth).map_err(|error| Status::invalid_argument(format!("registry_auth: {error}")))?;
        let (sender, events) = mpsc::channel(PROGRESS);
        let store = self.store.clone();
        // Part of the answer's stream: it runs while the client reads, and ends when the client goes.
        let pull = async_stream(async move {
            let pulled = store.pull(&reference, auth.as_ref(), Some(sender)).await;
            match pulled {
                Ok(image) => Ok(ImageProgress { phase: "done".into(), image: Some(wire(&image)), ..ImageProgress::default() }),
                Err(error) => Err(status(&error)),
            }
        });
        let events = ReceiverStream::new(events).map(|event| Ok(progress(&event)));
        Ok(Response::new(Box::pin(events.merge(pull))))
    }

    async fn load(&self, request: Request<Streaming<LoadImageChunk>>) -> Result<Response<LoadImageResponse>, Status> {
        let chunks = request.into_inner().map(|chunk| chunk.map(|chunk| bytes::Bytes::from(chunk.data)).map_err(io::Error::other));
        let images = self.store.load(StreamReader::new(chunks)).await.map_err(|error| status(&error))?;
        Ok(Response::new(LoadImageResponse { images: images.iter().map(wire).collect() }))
    }

    async fn resolve(&self, request: Request<ResolveImageRequest>) -> Result<Response<ResolveImageResponse>, Status> {
        let request = request.into_inner();
        let reference = reference(&request.reference)?;
        let auth = Auth::parse(&request.registry_auth).map_err(|error| Status::invalid_argument(format!("registry_auth: {error}")))?;
        let asked = tokio::time::timeout(RESOLVE_LIMIT, self.ask_registry(&reference, auth.as_ref())).await;
        let late = || ResolveImageResponse {
            reason: format!("registry {} did not answer within {} s", reference.domain(), RESOLVE_LIMIT.as_secs()),
            ..ResolveImageResponse::default()
        };
        Ok(Response::new(asked.unwrap_or_else(|_| late())))
    }

    async fn remove(&self, request: Request<RemoveImageRequest>) -> Result<Response<RemoveImageResponse>, Status> {
        let text = request.into_inner().reference;
        match self.store.remove(&reference(&text)?).await {
            Ok(true) => Ok(Response::new(RemoveImageResponse {})),
            Ok(false) => Err(Status::not_found(format!("no such image: {text}"))),
            Err(error) => Err(status(&error)),
        }
    }
}

/// A stream of the one value a future gives.
fn async_stream<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> impl Stream<Item = T> + Send {
    futures_util::stream::once(future)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_images::Platform;

    #[test]
    fn a_service_gets_the_digest_and_each_platform_once() {
        let platform = |os: &str, architecture: &str| Platform { os: os.into(), architecture: architecture.into(), variant: None };
        let digest: skep_images::Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let found = Distribution {
            media_type: String::new(),
            digest: digest.clone(),
            size: 7,
            platforms: vec![
                platform("linux", "amd64"),
                platform("unknown", "unknown"),
                platform("linux", "amd64"),
                platform("linux", "arm64"),
            ],
        };
        let name = |text: &str| Reference::parse(text).unwrap();
        let answer = resolved(&name("nginx"), found.clone());
        assert_eq!(answer.pinned, format!("nginx:latest@{digest}"));
        let architectures: Vec<&str> = answer.platforms.iter().map(|platform| platform.architecture.as_str()).collect();
        assert_eq!(architectures, ["amd64", "arm64"]);
        let pinned = format!("r.example/team/app:v1@sha256:{}", "b".repeat(64));
        assert_eq!(resolved(&name(&pinned), found).pinned, pinned);
    }
}
