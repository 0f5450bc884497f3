//! What a registry says of an image now: its digest, and the platforms it is for. No layer is fetched and nothing is stored.

use crate::auth::Auth;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::manifest::{MAX_CONFIG, Manifest, Platform};
use crate::reference::Reference;
use crate::registry::{Registry, RegistryError};
use crate::store::ImageStore;
use futures_util::StreamExt as _;

/// An image as its registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// Of the manifest or index; empty if the registry does not say.
    pub media_type: String,
    /// What the name points to at this moment.
    pub digest: Digest,
    /// Bytes of the manifest or index.
    pub size: u64,
    /// Of an index all it names, in its order; of a single image the one of its configuration.
    pub platforms: Vec<Platform>,
}

impl ImageStore {
    /// Asks the registry of `reference`, whatever is on this node: two or three short requests.
    ///
    /// # Errors
    /// Of the registry; [`RegistryError::BadAnswer`] if the configuration cannot be read.
    pub async fn distribution(&self, reference: &Reference, auth: Option<&Auth>) -> Result<Distribution, ImageError> {
        ask(self.registry(), reference, auth).await
    }
}

async fn ask(registry: &dyn Registry, reference: &Reference, auth: Option<&Auth>) -> Result<Distribution, ImageError> {
    let fetched = registry.manifest(reference, reference.version(), auth).await?;
    let platforms = match Manifest::parse(&fetched.data, &fetched.digest, fetched.media_type.as_deref())? {
        Manifest::Index(index) => index.manifests.into_iter().filter_map(|one| one.platform).collect(),
        Manifest::Image(image) => vec![configured(registry, reference, &image.config.digest, auth).await?],
    };
    let size = fetched.data.len() as u64;
    Ok(Distribution { media_type: fetched.media_type.unwrap_or_default(), digest: fetched.digest, size, platforms })
}

/// The platform in an image's configuration.
async fn configured(registry: &dyn Registry, reference: &Reference, digest: &Digest, auth: Option<&Auth>) -> Result<Platform, ImageError> {
    let host = reference.domain().to_owned();
    let mut blob = registry.blob(reference, digest, 0, auth).await?;
    let mut data = Vec::new();
    while let Some(piece) = blob.bytes.next().await {
        let broken = |_| RegistryError::BadAnswer { host: host.clone(), problem: "the image's configuration broke off" };
        data.extend_from_slice(&piece.map_err(broken)?);
        if data.len() as u64 > MAX_CONFIG {
            return Err(RegistryError::TooLong { host, limit: MAX_CONFIG }.into());
        }
    }
    let unreadable = RegistryError::BadAnswer { host, problem: "the image's configuration cannot be read" };
    platform_of(&data).ok_or_else(|| unreadable.into())
}

fn platform_of(config: &[u8]) -> Option<Platform> {
    let value: serde_json::Value = serde_json::from_slice(config).ok()?;
    let text = |key: &str| value.get(key).and_then(|text| text.as_str()).map(str::to_owned);
    Some(Platform { architecture: text("architecture").unwrap_or_default(), os: text("os").unwrap_or_default(), variant: text("variant") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{BlobStream, FetchedManifest, OutgoingBlob};
    use async_trait::async_trait;
    use bytes::Bytes;

    /// One image, or an index, at whatever name.
    struct Shelf {
        manifest: Bytes,
        config: Bytes,
    }

    impl Shelf {
        fn new(manifest: &serde_json::Value, config: &'static str) -> Self {
            Self { manifest: manifest.to_string().into(), config: Bytes::from_static(config.as_bytes()) }
        }
    }

    #[async_trait]
    impl Registry for Shelf {
        async fn manifest(&self, _: &Reference, version: &str, _: Option<&Auth>) -> Result<FetchedManifest, RegistryError> {
            assert_eq!(version, "v1");
            let media_type = serde_json::from_slice::<serde_json::Value>(&self.manifest).unwrap()["mediaType"].as_str().map(str::to_owned);
            Ok(FetchedManifest { data: self.manifest.clone(), digest: Digest::of(&self.manifest), media_type })
        }

        async fn blob(&self, _: &Reference, digest: &Digest, _: u64, _: Option<&Auth>) -> Result<BlobStream, RegistryError> {
            assert_eq!(*digest, Digest::of(&self.config));
            let data = self.config.clone();
            Ok(BlobStream { offset: 0, bytes: futures_util::stream::once(async move { Ok(data) }).boxed() })
        }

        async fn has_blob(&self, _: &Reference, _: &Digest, _: Option<&Auth>) -> Result<bool, RegistryError> {
            unreachable!("nothing is sent")
        }

        async fn send_blob(&self, _: &Reference, _: &OutgoingBlob, _: Option<&Auth>) -> Result<(), RegistryError> {
            unreachable!("nothing is sent")
        }

        async fn send_manifest(&self, _: &Reference, _: &str, _: &str, _: Bytes, _: Option<&Auth>) -> Result<(), RegistryError> {
            unreachable!("nothing is sent")
        }
    }

    fn name() -> Reference {
        Reference::parse("registry.example/team/app:v1").unwrap()
    }

    fn platform(architecture: &str, variant: Option<&str>) -> Platform {
        Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.map(str::to_owned) }
    }

    #[tokio::test]
    async fn an_index_tells_its_platforms() {
        let entry = |platform: serde_json::Value| {
            let digest = Digest::of(platform.to_string().as_bytes()).to_string();
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 7, "platform": platform,
            })
        };
        let manifests = [
            entry(serde_json::json!({"os": "linux", "architecture": "amd64"})),
            entry(serde_json::json!({"os": "linux", "architecture": "arm64", "variant": "v8"})),
        ];
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
        });
        let shelf = Shelf::new(&index, "");
        let found = ask(&shelf, &name(), None).await.unwrap();
        assert_eq!(found.platforms, [platform("amd64", None), platform("arm64", Some("v8"))]);
        assert_eq!((found.digest, found.size), (Digest::of(&shelf.manifest), shelf.manifest.len() as u64));
        assert_eq!(found.media_type, "application/vnd.oci.image.index.v1+json");
    }

    #[tokio::test]
    async fn a_single_image_tells_the_platform_of_its_configuration() {
        let single = |config: &'static str| {
            let config_type = "application/vnd.oci.image.config.v1+json";
            let digest = Digest::of(config.as_bytes()).to_string();
            let manifest = serde_json::json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": [],
                "config": {"mediaType": config_type, "digest": digest, "size": config.len()},
            });
            Shelf::new(&manifest, config)
        };
        let found = ask(&single(r#"{"architecture":"arm","os":"linux","variant":"v7"}"#), &name(), None).await.unwrap();
        assert_eq!(found.platforms, [platform("arm", Some("v7"))]);
        let error = ask(&single("nonsense"), &name(), None).await.unwrap_err().to_string();
        assert_eq!(error, "registry registry.example sent an answer that is not understood: the image's configuration cannot be read");
    }
}
