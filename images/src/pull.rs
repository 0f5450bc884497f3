//! Pulling: resolve, fetch what is missing, unpack as it comes, record.

mod fetch; // one blob, with resumption

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use skep_failpoint::failpoint;
use tokio::sync::mpsc;

use crate::assembly::{Document, Next, Resolved, Resolver};
use crate::auth::Auth;
use crate::backoff::Backoff;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::{Image, ImageContent};
use crate::manifest::{Descriptor, MAX_CONFIG};
use crate::progress::{Listeners, Phase, Progress};
use crate::reference::Reference;
use crate::registry::RegistryError;
use crate::store::{ImageStore, Lease, Origin, StoreError};

/// As Docker: more gains little on one line and is unkind to registries.
const PARALLEL_LAYERS: usize = 3;

type Outcome = Result<Image, Arc<ImageError>>;
type Running = BoxFuture<'static, Outcome>;

/// The pulls under way, so that ten tasks with one image fetch it once.
#[derive(Default)]
pub(crate) struct Pulls(Mutex<HashMap<PullKey, Slot>>);

/// Pulls are shared only among those with the same credentials: nobody gets an image on another's.
#[derive(Clone, PartialEq, Eq, Hash)]
struct PullKey {
    name: String,
    credentials: Option<Digest>,
}

struct Slot {
    running: WeakShared<Running>,
    listeners: Listeners,
}

impl ImageStore {
    /// Fetches an image from its registry, unpacks it and records it under its name.
    ///
    /// What is here already is not fetched again; a broken connection is taken up where it broke. Ends after some
    /// minutes without progress at the latest. Calls for the same image join one pull; it goes on until the last of
    /// them is dropped. `progress` gets what fits into it.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Option<&Auth>,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<Image, Arc<ImageError>> {
        let image = self.join_pull(reference, auth, progress).await?;
        Ok(Image::new(reference.clone(), Arc::clone(image.content())))
    }

    fn join_pull(&self, reference: &Reference, auth: Option<&Auth>, progress: Option<mpsc::Sender<Progress>>) -> Shared<Running> {
        let key = PullKey { name: reference.local_name(), credentials: auth.map(Auth::fingerprint) };
        let mut slots = self.pulls().0.lock().expect("no panic while held");
        slots.retain(|_, slot| slot.running.upgrade().is_some());
        if let Some(slot) = slots.get(&key)
            && let Some(running) = slot.running.upgrade()
        {
            progress.into_iter().for_each(|listener| slot.listeners.add(listener));
            return running;
        }
        let listeners = Listeners::default();
        progress.into_iter().for_each(|listener| listeners.add(listener));
        let job = Job { store: self.clone(), reference: reference.clone(), auth: auth.cloned(), listeners: listeners.clone() };
        let own_key = key.clone();
        let running = async move {
            let outcome = job.run().await.map_err(Arc::new);
            // Out of the list before anyone sees the outcome: who comes later starts anew.
            job.store.pulls().0.lock().expect("no panic while held").remove(&own_key);
            outcome
        };
        let running = running.boxed().shared();
        let weak = running.downgrade().expect("not polled yet");
        slots.insert(key, Slot { running: weak, listeners });
        running
    }
}

/// One pull.
struct Job {
    store: ImageStore,
    reference: Reference,
    auth: Option<Auth>,
    listeners: Listeners,
}

impl Job {
    async fn run(&self) -> Result<Image, ImageError> {
        // The same lease in every attempt: what an earlier one fetched still counts.
        let lease = self.store.lease("pull", &self.reference.local_name()).await?;
        let outcome = self.run_under(&lease).await;
        match &outcome {
            // Partial downloads wait under the lease for the next attempt, until it expires or is swept.
            Err(error) if error.is_transient() => {}
            _ => self.store.release(lease).await?,
        }
        outcome
    }

    async fn run_under(&self, lease: &Lease) -> Result<Image, ImageError> {
        let resolved = self.resolve().await?;
        let config = self.fetch_document(&resolved.parts.config, MAX_CONFIG).await?;
        let assembly = resolved.with_config(config)?;
        self.fetch_and_unpack(lease, assembly.content()).await?;
        failpoint!("images.pull.unpacked");
        let names = [self.reference.clone()];
        let content = self.store.record(lease, &assembly, &names, Origin::Registry).await?;
        failpoint!("images.pull.recorded");
        Ok(Image::new(self.reference.clone(), content))
    }

    /// Follows the reference down to the manifest for this machine.
    async fn resolve(&self) -> Result<Resolved, ImageError> {
        let mut resolver = Resolver::default();
        let mut version = self.reference.version().to_owned();
        let mut media_type = None;
        loop {
            let registry = self.store.registry();
            let fetched = patiently(|| registry.manifest(&self.reference, &version, self.auth.as_ref())).await?;
            let named = media_type.take().or(fetched.media_type).unwrap_or_default();
            let descriptor = Descriptor::new(&named, fetched.digest, fetched.data.len() as u64);
            let document = Document { descriptor, data: fetched.data };
            let (further, next) = resolver.take(document, self.store.platform())?;
            match next {
                Next::Manifest(descriptor) => {
                    resolver = further;
                    version = descriptor.digest.to_string();
                    media_type = Some(descriptor.media_type).filter(|named| !named.is_empty());
                }
                Next::Config(resolved) => return Ok(resolved),
            }
        }
    }

    /// Fetches a small blob into memory; from the content store if it is there.
    async fn fetch_document(&self, blob: &Descriptor, limit: u64) -> Result<Bytes, ImageError> {
        if blob.length() > limit {
            let (digest, length) = (blob.digest.clone(), blob.length());
            return Err(StoreError::TooLong { digest, length, limit }.into());
        }
        match self.store.read_blob(&blob.digest, limit).await {
            Ok(data) => return Ok(data),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        let registry = self.store.registry();
        let fetch = || async {
            let mut stream = registry.blob(&self.reference, &blob.digest, 0, self.auth.as_ref()).await?;
            let mut data = Vec::new();
            while let Some(piece) = stream.bytes.next().await {
                match piece {
                    Ok(piece) => data.extend_from_slice(&piece),
                    // Too short, which the digest tells.
                    Err(_) => break,
                }
                if data.len() as u64 > blob.length() {
                    break;
                }
            }
            Ok::<_, RegistryError>(data)
        };
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5), 3);
        loop {
            let data = patiently(fetch).await?;
            if blob.digest.matches(&data) {
                return Ok(data.into());
            }
            match backoff.wait() {
                // A connection that broke gives less; anything else will not get better.
                Some(wait) if (data.len() as u64) < blob.length() => tokio::time::sleep(wait).await,
                _ => return Err(StoreError::WrongDigest { expected: blob.digest.clone() }.into()),
            }
        }
    }

    /// Fetches layers in parallel and unpacks each as soon as it and all below it are there.
    async fn fetch_and_unpack(&self, lease: &Lease, content: &ImageContent) -> Result<(), ImageError> {
        for layer in &content.layers {
            self.listeners.tell(&layer.blob.digest, 0, layer.blob.length(), Phase::Waiting);
        }
        // Room for all: fetching never waits for unpacking.
        let (arrived, mut arrivals) = mpsc::channel(content.layers.len().max(1));
        let fetching = async move {
            let fetch = |position: usize| self.fetch_layer(lease, &content.layers[position]).map(move |result| result.map(|()| position));
            let mut fetched = stream::iter((0..content.layers.len()).map(fetch)).buffered(PARALLEL_LAYERS).boxed();
            while let Some(position) = fetched.try_next().await? {
                failpoint!("images.pull.layer.fetched");
                // Closed only if unpacking failed, which ends us both.
                let _ = arrived.send(position).await;
            }
            Ok(())
        };
        let unpacking = async {
            while let Some(position) = arrivals.recv().await {
                self.store.unpack_one(lease, content, position, &self.listeners).await?;
            }
            Ok(())
        };
        tokio::try_join!(fetching, unpacking).map(|((), ())| ())
    }
}

/// Repeats a request that failed for a passing reason, some seconds long.
pub(crate) async fn patiently<T, F>(mut request: impl FnMut() -> F) -> Result<T, RegistryError>
where
    F: Future<Output = Result<T, RegistryError>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5), 4);
    loop {
        let error = match request().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        match backoff.wait() {
            Some(wait) if error.is_transient() => {
                tracing::debug!(%error, "registry request failed, trying again");
                tokio::time::sleep(asked_for(&error).unwrap_or(wait)).await;
            }
            _ => return Err(error),
        }
    }
}

/// How long the registry asked us to stay away, within reason.
fn asked_for(error: &RegistryError) -> Option<Duration> {
    match error {
        RegistryError::TooManyRequests { retry_after, .. } => retry_after.map(|wait| wait.min(Duration::from_secs(30))),
        _ => None,
    }
}
