//! Pushing: what the registry does not have yet, and the manifest last.

use std::collections::HashSet;
use std::io;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use crate::auth::Auth;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::{Image, Layer};
use crate::manifest::Descriptor;
use crate::pull::patiently;
use crate::reference::Reference;
use crate::registry::OutgoingBlob;
use crate::store::ImageStore;

/// As many as a pull fetches at once.
const PARALLEL_LAYERS: usize = 3;

/// How far one layer of a push is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushProgress {
    /// Of what it unpacks to: clients know layers by it.
    pub layer: Digest,
    pub done: u64,
    pub total: u64,
    pub step: PushStep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushStep {
    Waiting,
    /// The registry has it already.
    Exists,
    Sending,
    Sent,
}

/// What a registry has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    pub digest: Digest,
    /// Bytes of the manifest.
    pub size: u64,
}

type Listener = Option<mpsc::Sender<PushProgress>>;

impl ImageStore {
    /// Sends an image to the registry of `reference`, under its tag. Of an image for many platforms only this one's is here, so only that is
    /// sent. `progress` must be read or dropped: of bytes on their way it hears what fits into it, of the rest everything.
    pub async fn push(&self, image: &Image, reference: &Reference, auth: Option<&Auth>, progress: Listener) -> Result<Pushed, ImageError> {
        let ((manifest, data), parts) = self.outgoing_manifest(image).await?;
        let mut seen = HashSet::new();
        let layers = image.content().layers.iter().filter(|layer| seen.insert(layer.blob.digest.clone()));
        let layers: Vec<Layer> = layers.cloned().collect();
        for layer in &layers {
            tell(&progress, layer, 0, PushStep::Waiting).await;
        }
        let sending: Vec<_> = layers.iter().map(|layer| self.push_layer(image, reference, auth, layer, &progress)).collect();
        stream::iter(sending).buffer_unordered(PARALLEL_LAYERS).try_collect::<Vec<()>>().await?;
        self.push_blob(image, reference, auth, &parts.config, |_| {}).await?;
        // Last: a registry takes no manifest whose blobs it lacks, and nobody may pull half an image.
        let version = reference.version();
        patiently(|| self.registry().send_manifest(reference, version, &manifest.media_type, data.clone(), auth)).await?;
        Ok(Pushed { digest: manifest.digest, size: data.len() as u64 })
    }

    async fn push_layer(
        &self,
        image: &Image,
        reference: &Reference,
        auth: Option<&Auth>,
        layer: &Layer,
        progress: &Listener,
    ) -> Result<(), ImageError> {
        let (listener, told) = (progress.clone(), layer.clone());
        let sending = move |done| {
            if let Some(listener) = &listener {
                // What does not fit is left out: the next says more.
                let _ = listener.try_send(news(&told, done, PushStep::Sending));
            }
        };
        let was_sent = self.push_blob(image, reference, auth, &layer.blob, sending).await?;
        let step = if was_sent { PushStep::Sent } else { PushStep::Exists };
        tell(progress, layer, layer.blob.length(), step).await;
        Ok(())
    }

    /// Whether it had to be sent. `sent` hears how many bytes are on their way.
    async fn push_blob(
        &self,
        image: &Image,
        reference: &Reference,
        auth: Option<&Auth>,
        blob: &Descriptor,
        sent: impl Fn(u64) + Clone + Send + Sync + 'static,
    ) -> Result<bool, ImageError> {
        if patiently(|| self.registry().has_blob(reference, &blob.digest, auth)).await? {
            return Ok(false);
        }
        if !self.has_blob(&blob.digest).await? {
            return Err(ImageError::Incomplete { image: image.reference().to_string() });
        }
        let (store, source) = (self.clone(), blob.clone());
        let open = move || {
            let (mut done, sent) = (0, sent.clone());
            let count = move |piece: &Bytes| {
                done += piece.len() as u64;
                sent(done);
            };
            store.stream_blob(&source).map_err(io::Error::other).inspect_ok(count).boxed()
        };
        let outgoing = OutgoingBlob { digest: blob.digest.clone(), length: blob.length(), open: Box::new(open) };
        patiently(|| self.registry().send_blob(reference, &outgoing, auth)).await?;
        Ok(true)
    }
}

fn news(layer: &Layer, done: u64, step: PushStep) -> PushProgress {
    PushProgress { layer: layer.diff_id.clone(), done, total: layer.blob.length(), step }
}

async fn tell(progress: &Listener, layer: &Layer, done: u64, step: PushStep) {
    if let Some(progress) = progress {
        // Whoever does not listen any more need not hear.
        let _ = progress.send(news(layer, done, step)).await;
    }
}
