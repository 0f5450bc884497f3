//! Manifests, indexes and image configurations: parsing, limits, and the choice of a platform. Pure.

use std::collections::BTreeMap;
use std::fmt;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{Digest, chain_id};

/// Largest manifest or index taken. Registries hold to 4 MiB (OCI distribution-spec, "Pushing Manifests").
pub const MAX_MANIFEST: u64 = 4 * 1024 * 1024;
/// Largest image configuration taken; real ones have kilobytes.
pub const MAX_CONFIG: u64 = 8 * 1024 * 1024;
/// Overlayfs in containerd stops far below; Docker's own limit is 127.
const MAX_LAYERS: usize = 500;
/// Larger blobs are a mistake or an attack; also keeps sums of sizes far from overflow.
pub(crate) const MAX_BLOB: u64 = 1 << 40;

pub(crate) mod media {
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

    /// What we ask registries for and can use.
    pub const MANIFESTS: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
    pub const CONFIGS: [&str; 2] = [OCI_CONFIG, DOCKER_CONFIG];
    pub const LAYERS: [&str; 5] = [OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, DOCKER_LAYER, DOCKER_LAYER_GZIP];
}

/// Why a manifest or configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{what} {digest} is no valid JSON of its kind")]
    Malformed { what: &'static str, digest: Digest, source: serde_json::Error },
    #[error("manifest {digest} has the media type {media_type:?}; only OCI and Docker (schema 2) container images can be run")]
    UnsupportedMediaType { digest: Digest, media_type: String },
    #[error("manifest {digest} is {length} bytes long; at most {MAX_MANIFEST} are taken")]
    TooLong { digest: Digest, length: u64 },
    #[error("manifest {digest} names a blob {blob} of {size} bytes, which is absurd")]
    AbsurdSize { digest: Digest, blob: Digest, size: i64 },
    #[error("manifest {digest} has {layers} layers; at most {MAX_LAYERS} are taken")]
    TooManyLayers { digest: Digest, layers: usize },
    #[error("image has {layers} layers but its configuration {config} lists {diff_ids}; the image is broken")]
    LayersDiffer { config: Digest, layers: usize, diff_ids: usize },
    #[error("configuration {config} has a malformed layer digest {diff_id:?}; the image is broken")]
    BadDiffId { config: Digest, diff_id: String },
    #[error("image has no variant for {wanted}; it has {available}")]
    NoPlatform { wanted: Platform, available: String },
    #[error("index {digest} refers to further indexes, more than is sensible")]
    NestedTooDeep { digest: Digest },
}

/// A pointer to a blob: OCI image-spec descriptor.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        Self { media_type: media_type.to_owned(), digest, size, platform: None, annotations: None }
    }

    /// The size in bytes; parsing has made sure that it is not negative.
    pub(crate) fn length(&self) -> u64 {
        u64::try_from(self.size).unwrap_or(0)
    }

    fn check_size(&self, manifest: &Digest) -> Result<(), ManifestError> {
        match u64::try_from(self.size) {
            Ok(size) if size <= MAX_BLOB => Ok(()),
            _ => Err(ManifestError::AbsurdSize { digest: manifest.clone(), blob: self.digest.clone(), size: self.size }),
        }
    }
}

/// A manifest or an index, told apart by what it holds.
#[derive(Debug, Clone)]
pub enum Manifest {
    Image(ImageManifest),
    Index(ImageIndex),
}

/// The parts of one image for one platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// Images for several platforms, or several images in an archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageIndex {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub manifests: Vec<Descriptor>,
}

impl Manifest {
    /// Parses `data`, whose digest is `digest` (checked by the caller). `media_type` is what the sender called it.
    pub fn parse(data: &[u8], digest: &Digest, media_type: Option<&str>) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kind {
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
        }
        if data.len() as u64 > MAX_MANIFEST {
            return Err(ManifestError::TooLong { digest: digest.clone(), length: data.len() as u64 });
        }
        let malformed = |source| ManifestError::Malformed { what: "manifest", digest: digest.clone(), source };
        let kind: Kind = serde_json::from_slice(data).map_err(malformed)?;
        // The content's own word counts first: a header may be a proxy's `application/octet-stream`.
        let named = kind.media_type.as_deref().or(media_type.filter(|named| media::MANIFESTS.contains(named)));
        let is_index = match named {
            Some(media::OCI_INDEX | media::DOCKER_LIST) => true,
            Some(media::OCI_MANIFEST | media::DOCKER_MANIFEST) => false,
            Some(other) => {
                let media_type = other.chars().take(200).collect();
                return Err(ManifestError::UnsupportedMediaType { digest: digest.clone(), media_type });
            }
            None => kind.manifests.is_some(),
        };
        if is_index {
            let index: ImageIndex = serde_json::from_slice(data).map_err(malformed)?;
            index.manifests.iter().try_for_each(|descriptor| descriptor.check_size(digest))?;
            return Ok(Self::Index(index));
        }
        let image: ImageManifest = serde_json::from_slice(data).map_err(malformed)?;
        if image.layers.len() > MAX_LAYERS {
            return Err(ManifestError::TooManyLayers { digest: digest.clone(), layers: image.layers.len() });
        }
        for blob in image.layers.iter().chain([&image.config]) {
            blob.check_size(digest)?;
        }
        let unsupported = |blob: &Descriptor| ManifestError::UnsupportedMediaType {
            digest: digest.clone(),
            media_type: blob.media_type.chars().take(200).collect(),
        };
        // A Helm chart or a signature is a manifest too; say so before anything is fetched.
        if !media::CONFIGS.contains(&image.config.media_type.as_str()) {
            return Err(unsupported(&image.config));
        }
        if let Some(layer) = image.layers.iter().find(|layer| !media::LAYERS.contains(&layer.media_type.as_str())) {
            return Err(unsupported(layer));
        }
        Ok(Self::Image(image))
    }
}

/// Operating system and processor, in Go's words, as images name them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Of the machine this program was built for.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// How well an image for `offered` runs here: 0 is exact, larger is worse, `None` not at all.
    ///
    /// A missing variant means the base line, `v8` for arm64 and `v7` for arm (containerd `platforms`, "Normalization").
    fn rank(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let level = |platform: &Self| -> Option<u32> {
            let default = match platform.architecture.as_str() {
                "arm64" => "v8",
                "arm" => "v7",
                _ => "v1",
            };
            let variant = platform.variant.as_deref().filter(|variant| !variant.is_empty()).unwrap_or(default);
            variant.strip_prefix('v')?.split('.').next()?.parse().ok()
        };
        // An older variant runs on a newer processor, never the other way round.
        level(self)?.checked_sub(level(offered)?)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// The entry of an index that runs best on `host`; the first among equals, as the publisher ordered them.
pub fn choose_platform<'a>(index: &'a ImageIndex, host: &Platform) -> Result<&'a Descriptor, ManifestError> {
    let is_image =
        |descriptor: &&Descriptor| descriptor.media_type.is_empty() || media::MANIFESTS.contains(&descriptor.media_type.as_str());
    let candidates: Vec<_> = index.manifests.iter().filter(is_image).collect();
    let best = candidates
        .iter()
        .filter_map(|descriptor| Some((host.rank(descriptor.platform.as_ref()?)?, descriptor)))
        .min_by_key(|(rank, _)| *rank);
    if let Some((_, descriptor)) = best {
        return Ok(descriptor);
    }
    // OCI layouts often hold one manifest that does not say for which platform it is.
    match candidates.as_slice() {
        [only] if only.platform.is_none() => Ok(only),
        _ => {
            let named = candidates.iter().filter_map(|descriptor| descriptor.platform.as_ref());
            let mut available: Vec<_> = named.filter(|p| p.os != "unknown").map(ToString::to_string).collect();
            available.truncate(20);
            let available = if available.is_empty() { "none at all".to_owned() } else { available.join(", ") };
            Err(ManifestError::NoPlatform { wanted: host.clone(), available })
        }
    }
}

/// `HEALTHCHECK` of a Dockerfile: Docker's addition to the image configuration. Times in nanoseconds, 0 for the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    pub test: Vec<String>,
    pub interval: i64,
    pub timeout: i64,
    pub start_period: i64,
    pub start_interval: i64,
    pub retries: i64,
}

/// An image configuration and what follows from it.
#[derive(Debug, Clone)]
pub(crate) struct ParsedConfig {
    pub config: ImageConfiguration,
    pub healthcheck: Option<Healthcheck>,
    pub diff_ids: Vec<Digest>,
    pub chain_id: Option<Digest>,
}

/// Parses a configuration that goes with `layers` layers.
pub(crate) fn parse_config(data: &[u8], digest: &Digest, layers: usize) -> Result<ParsedConfig, ManifestError> {
    let malformed = |source| ManifestError::Malformed { what: "image configuration", digest: digest.clone(), source };
    let mut value: Value = serde_json::from_slice(data).map_err(malformed)?;
    // Go writes empty slices and maps as null; the types here know only "missing".
    drop_nulls(&mut value);
    let healthcheck = value.pointer("/config/Healthcheck").and_then(|value| Healthcheck::deserialize(value).ok());
    let config: ImageConfiguration = serde_json::from_value(value).map_err(malformed)?;
    let diff_ids = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| {
            let bad = |_| ManifestError::BadDiffId { config: digest.clone(), diff_id: text.chars().take(100).collect() };
            text.parse().map_err(bad)
        })
        .collect::<Result<Vec<Digest>, _>>()?;
    if diff_ids.len() != layers {
        return Err(ManifestError::LayersDiffer { config: digest.clone(), layers, diff_ids: diff_ids.len() });
    }
    let chain_id = chain_id(&diff_ids);
    Ok(ParsedConfig { config, healthcheck, diff_ids, chain_id })
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() }
    }

    fn index_of(platforms: &[&str]) -> ImageIndex {
        let manifests = platforms
            .iter()
            .map(|text| Descriptor {
                platform: Some(platform(text)),
                ..Descriptor::new(media::OCI_MANIFEST, Digest::of(text.as_bytes()), 1)
            })
            .collect();
        ImageIndex { schema_version: 2, media_type: None, manifests }
    }

    fn chosen(platforms: &[&str], host: &str) -> Option<Digest> {
        choose_platform(&index_of(platforms), &platform(host)).ok().map(|found| found.digest.clone())
    }

    #[test]
    fn the_platform_that_runs_best_is_chosen() {
        let of = |text: &str| Some(Digest::of(text.as_bytes()));
        assert_eq!(chosen(&["linux/arm64", "linux/amd64"], "linux/amd64"), of("linux/amd64"));
        assert_eq!(chosen(&["linux/arm64/v8", "linux/amd64"], "linux/arm64/v8"), of("linux/arm64/v8"));
        assert_eq!(chosen(&["linux/arm64", "linux/amd64"], "linux/arm64/v8"), of("linux/arm64"));
        assert_eq!(chosen(&["linux/arm/v6", "linux/arm/v7", "linux/arm/v5"], "linux/arm/v7"), of("linux/arm/v7"));
        assert_eq!(chosen(&["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7"), of("linux/arm/v6"));
        assert_eq!(chosen(&["linux/amd64/v3", "linux/amd64"], "linux/amd64"), of("linux/amd64"));
    }

    #[test]
    fn an_image_for_another_platform_says_what_there_is() {
        assert_eq!(chosen(&["linux/amd64/v3"], "linux/amd64"), None);
        assert_eq!(chosen(&["linux/arm/v7"], "linux/arm/v6"), None);
        let index = index_of(&["windows/amd64", "linux/s390x", "unknown/unknown"]);
        let refusal = choose_platform(&index, &platform("linux/amd64")).unwrap_err().to_string();
        assert_eq!(refusal, "image has no variant for linux/amd64; it has windows/amd64, linux/s390x");
    }

    #[test]
    fn a_single_manifest_without_a_platform_is_taken() {
        let mut index = index_of(&["linux/amd64"]);
        index.manifests[0].platform = None;
        assert!(choose_platform(&index, &platform("linux/amd64")).is_ok());
    }

    fn manifest_json(config_type: &str, layer_type: &str, size: i64) -> String {
        let digest = Digest::of(b"x");
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"{digest}","size":2}},
               "layers":[{{"mediaType":"{layer_type}","digest":"{digest}","size":{size}}}]}}"#
        )
    }

    fn parse(text: &str) -> Result<Manifest, ManifestError> {
        Manifest::parse(text.as_bytes(), &Digest::of(text.as_bytes()), None)
    }

    #[test]
    fn images_and_indexes_are_told_apart_by_content() {
        assert!(matches!(parse(&manifest_json(media::OCI_CONFIG, media::OCI_LAYER, 5)), Ok(Manifest::Image(_))));
        assert!(matches!(parse(r#"{"schemaVersion":2,"manifests":[]}"#), Ok(Manifest::Index(_))));
    }

    #[test]
    fn what_is_no_runnable_image_is_refused() {
        let helm = manifest_json("application/vnd.cncf.helm.config.v1+json", media::OCI_LAYER, 5);
        assert!(matches!(parse(&helm), Err(ManifestError::UnsupportedMediaType { .. })));
        let wasm = manifest_json(media::OCI_CONFIG, "application/wasm", 5);
        assert!(matches!(parse(&wasm), Err(ManifestError::UnsupportedMediaType { .. })));
        let schema_1 = r#"{"mediaType":"application/vnd.docker.distribution.manifest.v1+prettyjws"}"#;
        assert!(matches!(parse(schema_1), Err(ManifestError::UnsupportedMediaType { .. })));
        let negative = manifest_json(media::OCI_CONFIG, media::OCI_LAYER, -1);
        assert!(matches!(parse(&negative), Err(ManifestError::AbsurdSize { .. })));
        let huge = manifest_json(media::OCI_CONFIG, media::OCI_LAYER, i64::MAX);
        assert!(matches!(parse(&huge), Err(ManifestError::AbsurdSize { .. })));
        assert!(matches!(parse("{"), Err(ManifestError::Malformed { .. })));
        assert!(matches!(parse(&" ".repeat(5 * 1024 * 1024)), Err(ManifestError::TooLong { .. })));
    }

    #[test]
    fn a_docker_configuration_with_nulls_and_a_health_check_is_read() {
        let json = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":null,"Env":["A=b"],"ExposedPorts":{{"80/tcp":{{}}}},
               "Volumes":null,"Labels":null,"OnBuild":null,"Entrypoint":["/x"],
               "Healthcheck":{{"Test":["CMD","/x"],"Interval":5,"Retries":3}}}},
               "rootfs":{{"type":"layers","diff_ids":["{}"]}},"history":null}}"#,
            Digest::of(b"layer")
        );
        let parsed = parse_config(json.as_bytes(), &Digest::of(json.as_bytes()), 1).unwrap();
        assert_eq!(parsed.config.config().as_ref().unwrap().entrypoint().as_ref().unwrap(), &["/x"]);
        assert_eq!(parsed.healthcheck.unwrap().retries, 3);
        assert_eq!(parsed.chain_id, Some(Digest::of(b"layer")));
        let short = parse_config(json.as_bytes(), &Digest::of(b""), 2);
        assert!(matches!(short, Err(ManifestError::LayersDiffer { layers: 2, diff_ids: 1, .. })));
    }
}
