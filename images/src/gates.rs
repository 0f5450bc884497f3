//! Doors through which one goes at a time, one door per key.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{Mutex as Door, OwnedMutexGuard};

/// Keys nobody holds or waits for cost nothing.
pub(crate) struct Gates<K>(Mutex<HashMap<K, Weak<Door<()>>>>);

impl<K> Default for Gates<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> Gates<K> {
    /// Waits until nobody else is inside; the way is free again when the guard is dropped.
    pub async fn enter(&self, key: &K) -> OwnedMutexGuard<()> {
        self.door(key).lock_owned().await
    }

    fn door(&self, key: &K) -> Arc<Door<()>> {
        let mut doors = self.0.lock().expect("no panic while held");
        doors.retain(|_, door| door.strong_count() > 0);
        if let Some(door) = doors.get(key).and_then(Weak::upgrade) {
            return door;
        }
        let door = Arc::new(Door::new(()));
        doors.insert(key.clone(), Arc::downgrade(&door));
        door
    }
}
