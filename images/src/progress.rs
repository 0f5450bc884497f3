//! What a pull tells while it runs.

use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use crate::digest::Digest;

/// How far one layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub layer: Digest,
    /// Bytes of the packed layer that are here.
    pub done: u64,
    pub total: u64,
    pub phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Waiting,
    Downloading,
    /// The connection broke; the download goes on from `done`.
    Retrying,
    /// All bytes are here, or were before.
    Downloaded,
    Unpacking,
    Unpacked,
}

/// All who want to hear of one pull. Events are dropped for those whose channel is full: the next one says more.
#[derive(Clone, Default)]
pub(crate) struct Listeners(Arc<Mutex<Vec<mpsc::Sender<Progress>>>>);

impl Listeners {
    pub fn add(&self, listener: mpsc::Sender<Progress>) {
        self.0.lock().expect("no panic while held").push(listener);
    }

    pub fn tell(&self, layer: &Digest, done: u64, total: u64, phase: Phase) {
        let mut listeners = self.0.lock().expect("no panic while held");
        listeners.retain(|listener| {
            let event = Progress { layer: layer.clone(), done, total, phase };
            !matches!(listener.try_send(event), Err(mpsc::error::TrySendError::Closed(_)))
        });
    }
}
