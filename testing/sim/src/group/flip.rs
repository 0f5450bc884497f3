//! Damage on the disk of an only manager, one piece at a time: the store refuses to open, or has everything all the same.

use super::disk::Disk;
use super::host::{Host, Machines};
use super::{Mutant, lock};
use crate::run::Verdict;
use skep_kit::Dice;
use skep_store::{Alone, Member, StateHash, Store, StoreConfig, StoreError, sim};
use skep_types::{Action, ClusterView as _, Config, ConfigId, ConfigSpec, Meta, Object, Sensitive};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

const LIMIT: Duration = Duration::from_secs(30);

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Damaged {
    pub verdict: Option<Verdict>,
    /// So many times the store did not open,
    pub refused: u64,
    /// and so many times it opened with all it had.
    pub harmless: u64,
}

/// A store with some history, and `times` pieces of damage to it.
///
/// # Panics
/// When the store cannot be made, or there is no memory for a runtime.
#[must_use]
pub fn run(seed: u64, times: u64, mutant: Option<Mutant>) -> Damaged {
    let machines = Arc::new(Mutex::new(Machines::new(seed, mutant)));
    let installed = sim::install(Rc::new(Host { machines: Arc::clone(&machines), cut: Arc::new(Notify::new()) }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime of one thread");
    let damaged = runtime.block_on(damage(&machines, seed, times));
    drop(runtime);
    drop(installed);
    damaged
}

fn config(machines: &Mutex<Machines>) -> StoreConfig {
    StoreConfig {
        segment_bytes: 128 * 1024,
        snapshot_entries: 20,
        keep_entries: 5,
        cache_bytes: 1024,
        ..StoreConfig::new(lock(machines).dir(1))
    }
}

async fn write(store: &Store, number: u64, bytes: usize) -> Result<(), skep_store::ProposeError> {
    let spec = ConfigSpec { data: Sensitive(vec![b'x'; bytes]), ..ConfigSpec::default() };
    let config = Config { id: ConfigId::for_test(number), meta: Meta::default(), spec };
    store.propose(vec![Action::Create(Object::Config(Arc::new(config)))]).await.map(drop)
}

/// Opens what is there: what it holds, once it leads.
async fn open(machines: &Mutex<Machines>) -> Result<(u64, StateHash), StoreError> {
    let store = Store::open(config(machines), Arc::new(Alone)).await?;
    store.wait_leader(LIMIT).await?;
    store.read_barrier().await?;
    let view = store.view();
    Ok((view.version().0, view.state_hash()))
}

/// One piece of damage; in words.
fn hurt(disk: &mut Disk, files: &[(PathBuf, usize)], dice: &mut Dice) -> String {
    let (path, size) = dice.one_of(files.iter().cloned());
    // Most of a segment was never written: half of the damage is where something is.
    let within = if dice.coin() { size.min(8_000) } else { size };
    let byte = usize::try_from(dice.roll(within as u64)).unwrap_or(0);
    if dice.roll(8) == 0 && is_chained(&path) {
        disk.cut_off(&path, byte);
        return format!("{} ends at byte {byte}", path.display());
    }
    let bit = u8::try_from(dice.roll(8)).unwrap_or(0);
    disk.flip(&path, byte, bit);
    format!("bit {bit} of byte {byte} of {} changed", path.display())
}

/// The files whose end is known by something else.
fn is_chained(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "seg" || extension == "snap")
}

async fn damage(machines: &Arc<Mutex<Machines>>, seed: u64, times: u64) -> Damaged {
    let mut dice = Dice::of_seed(seed ^ 0x666c_6970);
    lock(machines).disks.insert(1, Disk::new(seed));
    let member = Member { node_id: "node-1".into(), addr: "10.0.0.1:2377".into() };
    let store = Store::bootstrap(config(machines), 1, member, Arc::new(Alone)).await.expect("nothing is wrong yet");
    for number in 0..5 + dice.roll(40) {
        let bytes = dice.one_of([10, 500, 3_000, 20_000]);
        write(&store, number, bytes).await.expect("an only manager takes writes");
    }
    tokio::time::sleep(Duration::from_secs(2)).await; // a snapshot may be on its way
    let whole = (store.view().version().0, store.state_hash());
    if dice.coin() {
        store.shutdown().await;
    }
    drop(store);
    let image = {
        let mut machines = lock(machines);
        let disk = machines.disks.get_mut(&1).expect("it was put there");
        disk.power_cut();
        disk.image()
    };
    let files: Vec<_> = image.files().into_iter().filter(|(_, size)| *size > 0).collect();
    let mut damaged = Damaged::default();
    for turn in 0..times {
        let words = {
            let mut machines = lock(machines);
            let mut disk = image.image();
            disk.boot = image.boot + turn + 1;
            let words = if turn == 0 { "nothing was damaged".to_owned() } else { hurt(&mut disk, &files, &mut dice) };
            machines.disks.insert(1, disk);
            words
        };
        match open(machines).await {
            Ok(found) if found == whole => damaged.harmless += 1,
            Err(StoreError::Timeout(_)) | Ok(_) => {
                let words = format!("{words}, and the store opened with something else than the {} revisions it had", whole.0);
                damaged.verdict = Some(Verdict { name: "I15".into(), words });
                return damaged;
            }
            Err(error) if turn == 0 => {
                damaged.verdict = Some(Verdict { name: "opens".into(), words: format!("{words}, and yet: {error}") });
                return damaged;
            }
            Err(_) => damaged.refused += 1,
        }
    }
    damaged
}
