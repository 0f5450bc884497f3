//! OCI layouts made by hand, right or wrong as a test wants them.

use serde_json::{Value, json};
use skep_images::Digest;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[derive(Clone)]
pub struct Blob {
    pub digest: Digest,
    pub size: usize,
    pub media_type: &'static str,
}

impl Blob {
    pub fn json(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.size })
    }
}

#[derive(Default)]
pub struct Layout {
    files: Vec<(String, Vec<u8>)>,
    named: Vec<Value>,
}

impl Layout {
    pub fn blob(&mut self, media_type: &'static str, data: Vec<u8>) -> Blob {
        let blob = Blob { digest: Digest::of(&data), size: data.len(), media_type };
        if !self.files.iter().any(|(name, _)| *name == path(&blob.digest)) {
            self.files.push((path(&blob.digest), data));
        }
        blob
    }

    /// Other bytes under the name of a blob.
    pub fn tamper(&mut self, blob: &Blob, data: Vec<u8>) {
        self.files.iter_mut().find(|(name, _)| *name == path(&blob.digest)).unwrap().1 = data;
    }

    pub fn lose(&mut self, blob: &Blob) {
        self.files.retain(|(name, _)| *name != path(&blob.digest));
    }

    pub fn layer(&mut self, text: &str) -> Blob {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "file", text.as_bytes()).unwrap();
        self.blob(LAYER, tar.into_inner().unwrap())
    }

    /// A manifest over `layers` whose configuration promises `diff_ids`.
    pub fn manifest(&mut self, arch: &str, layers: &[Blob], diff_ids: &[Digest]) -> Blob {
        let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
        let config = json!({ "architecture": arch, "os": "linux", "config": {}, "rootfs": rootfs });
        let config = self.blob(CONFIG, config.to_string().into_bytes());
        let layers: Vec<_> = layers.iter().map(Blob::json).collect();
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config.json(), "layers": layers });
        self.blob(MANIFEST, manifest.to_string().into_bytes())
    }

    pub fn name(&mut self, target: &Blob, name: &str) {
        let mut entry = target.json();
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        self.named.push(entry);
    }

    pub fn tar(&self) -> Vec<u8> {
        let index = json!({ "schemaVersion": 2, "manifests": self.named }).to_string().into_bytes();
        let mut tar = tar::Builder::new(Vec::new());
        for (name, data) in self.files.iter().chain([&("index.json".to_owned(), index)]) {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, data.as_slice()).unwrap();
        }
        tar.into_inner().unwrap()
    }
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// An index over one image per architecture, each with a file of its own.
pub fn arch_index(layout: &mut Layout, images: &[(&str, &str)]) -> Blob {
    let manifests: Vec<_> = images
        .iter()
        .map(|(arch, text)| {
            let layer = layout.layer(text);
            let diff_id = layer.digest.clone();
            let mut entry = layout.manifest(arch, &[layer], &[diff_id]).json();
            entry["platform"] = json!({ "os": "linux", "architecture": arch });
            entry
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    layout.blob(INDEX, index.to_string().into_bytes())
}

pub fn host_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
