//! The keys of this node's tunnels: made when a manager says so, removed when no node uses them any more.

use super::picture::Epochs;
use super::secure::Ends;
use super::{NetlbNetwork, Touched};
use crate::error::{NetworkError, chain};
use skep_netlb::{KeyEpoch, Keyring, PrivateKey, SecureError, can_encrypt};
use std::path::Path;

/// Why a node that was told not to does not encrypt.
const SWITCHED_OFF: &str = "it is switched off on the node; start skepd there without --wireguard off";

impl NetlbNetwork {
    /// Lets it encrypt, with its keys in that directory.
    #[must_use]
    pub fn encrypting(self, keyring: &Path, ends: Ends) -> Self {
        self.with(|state| state.own.ends = Some(ends));
        Self { keyring: Some(keyring.to_owned()), ..self }
    }

    /// See [`crate::executor::Network::can_encrypt`].
    pub(super) async fn encrypts(&self) -> Result<(), String> {
        let ends = self.with(|state| state.own.ends).ok_or_else(|| SWITCHED_OFF.to_owned())?;
        let asked = tokio::task::spawn_blocking(move || can_encrypt(ends.driver)).await;
        asked.map_err(|error| error.to_string())?.map(drop).map_err(|error| chain(&error))
    }

    /// Has the keys of these epochs; returns whether some were missing. On the disk before anybody is told of them.
    pub(super) async fn have_keys(&self, epochs: Option<Epochs>) -> Result<bool, NetworkError> {
        let (Some(epochs), Some(dir)) = (epochs, self.keyring.clone()) else { return Ok(false) };
        let missing: Vec<u32> = self.with(|state| epochs.all().filter(|epoch| !state.own.keys.contains_key(epoch)).collect());
        if missing.is_empty() {
            return Ok(false);
        }
        let made = blocking(move || make(&dir, &missing)).await?;
        self.with(|state| state.own.keys.extend(made));
        Ok(true)
    }

    /// Has what the picture asks for and no more. Others' packets are accepted by the old keys until here.
    pub(super) async fn renew_keys(&self) -> Result<(), NetworkError> {
        let epochs = self.with(|state| state.picture.epochs);
        if self.have_keys(epochs).await? {
            self.tell(|_| (Touched::new(), ()));
        }
        Ok(())
    }

    /// Forgets keys of epochs that are over; on failure they are removed some other time.
    pub(super) async fn forget_keys(&self) {
        let (Some(dir), Some(epochs)) = (self.keyring.clone(), self.with(|state| state.picture.epochs)) else { return };
        let is_over = self.with(|state| {
            let before = state.own.keys.len();
            state.own.keys.retain(|epoch, _| epochs.all().contains(epoch));
            let is_new = state.tidied != Some(epochs);
            state.tidied = Some(epochs);
            before != state.own.keys.len() || is_new
        });
        let kept: Vec<KeyEpoch> = epochs.all().map(KeyEpoch).collect();
        if is_over && let Err(error) = blocking(move || Keyring::open(&dir)?.keep_only(&kept)).await {
            tracing::warn!(error = %chain(&error), "keys that are not used any more could not be removed");
        }
    }
}

fn make(dir: &Path, epochs: &[u32]) -> Result<Vec<(u32, PrivateKey)>, SecureError> {
    let keyring = Keyring::open(dir)?;
    epochs.iter().map(|epoch| Ok((*epoch, keyring.key(KeyEpoch(*epoch))?))).collect()
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> Result<T, SecureError> + Send + 'static) -> Result<T, NetworkError> {
    match tokio::task::spawn_blocking(act).await {
        Ok(done) => done.map_err(|error| NetworkError::Keys { reason: chain(&error) }),
        Err(error) => Err(NetworkError::Keys { reason: error.to_string() }),
    }
}
