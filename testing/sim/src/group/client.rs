//! Who reads and writes, by way of any manager.

use super::net::{Up, World};
use super::{Mutant, lock};
use skep_store::{ProposeError, RaftId, Store};
use skep_types::{Action, Annotations, ClusterView as _, Config, ConfigId, ConfigSpec, Kind, Meta, Object, Sensitive};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// So many objects; few enough that clients meet.
const KEYS: u64 = 5;
/// A client gives up after this time, and never knows.
const PATIENCE: Duration = Duration::from_secs(6);

#[derive(Debug, Clone)]
pub enum Wish {
    Read(u64),
    Write(u64, String),
    Remove(u64),
}

#[derive(Debug, Clone)]
pub enum Answer {
    Read { revision: u64, found: Option<(u64, String)> },
    Written { revision: u64 },
    Nothing,
}

fn id(key: u64) -> ConfigId {
    ConfigId::for_test(key)
}

/// What is in an object, as far as clients are concerned.
#[must_use]
pub fn content(config: &Config) -> String {
    String::from_utf8_lossy(&config.spec.data.0).into_owned()
}

/// What a manager does with a wish, as the product does: it passes it on to the leader, who looks whether it still leads.
async fn serve(world: &Arc<World>, at: RaftId, up: &Up, wish: &Wish, may_forward: bool) -> Option<Answer> {
    let store = &up.store;
    if !store.leads() {
        let leader =
            store.leadership().borrow().leader.as_ref().map(|(leader, _)| *leader).filter(|leader| may_forward && *leader != at)?;
        return call(world, at, leader, wish.clone(), false).await;
    }
    let asked = match wish {
        Wish::Read(_) if world.mutant == Some(Mutant::ReadUnasked) => true,
        Wish::Read(_) => store.read_barrier().await.is_ok(),
        Wish::Write(..) | Wish::Remove(_) => true,
    };
    let view = store.view();
    let action = match wish {
        Wish::Read(key) => {
            let found = view.config(&id(*key)).map(|config| (config.meta.version.0, content(config)));
            return asked.then_some(Answer::Read { revision: view.version().0, found });
        }
        Wish::Write(key, text) => {
            let spec = ConfigSpec {
                annotations: Annotations { name: format!("key{key}"), ..Annotations::default() },
                data: Sensitive(text.clone().into_bytes()),
                templating: None,
            };
            match view.config(&id(*key)) {
                None => Action::Create(Object::Config(Arc::new(Config { id: id(*key), meta: Meta::default(), spec }))),
                Some(old) => Action::Update(Object::Config(Arc::new(Config { id: id(*key), meta: old.meta, spec }))),
            }
        }
        Wish::Remove(key) => match view.config(&id(*key)) {
            None => return Some(Answer::Nothing),
            Some(old) => Action::Remove { kind: Kind::Config, id: id(*key).as_str().to_owned(), version: Some(old.meta.version) },
        },
    };
    match store.propose(vec![action]).await {
        Ok(version) => Some(Answer::Written { revision: version.0 }),
        Err(ProposeError::Refused(_)) => Some(Answer::Nothing),
        Err(_) => None,
    }
}

/// A wish on its way to a manager and back; `None`: no answer, or none that says anything.
fn call(
    world: &Arc<World>,
    from: u64,
    to: RaftId,
    wish: Wish,
    may_forward: bool,
) -> std::pin::Pin<Box<dyn Future<Output = Option<Answer>> + Send>> {
    let world = Arc::clone(world);
    Box::pin(async move {
        let way = world.way(from, to)?;
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            sleep(way).await;
            let Some(up) = lock(&world.lines).up.get(&to).cloned() else { return };
            let done = tokio::select! {
                biased;
                () = up.life.cancelled() => return,
                done = serve(&world, to, &up, &wish, may_forward) => done,
            };
            let alive = world.is_alive(up.machine, up.boot);
            drop(up);
            let Some(back) = world.way(to, from).filter(|_| alive) else { return };
            sleep(back).await;
            let _ = answer.send(done);
        });
        answered.await.ok().flatten()
    })
}

/// Makes an object on a leader; whether it did.
pub(super) async fn write_straight(leader: &Store, key: u64) -> bool {
    let config = Config { id: id(key), meta: Meta::default(), spec: ConfigSpec::default() };
    matches!(timeout(PATIENCE, leader.propose(vec![Action::Create(Object::Config(Arc::new(config)))])).await, Ok(Ok(_)))
}

pub(super) fn has(store: &Store, key: u64) -> bool {
    store.view().config(&id(key)).is_some()
}

/// Reads and writes until the end of the run. Clients have numbers that no manager has.
pub async fn work(world: Arc<World>, client: u64, group: usize) {
    for turn in 0_u64.. {
        let (pause, which, key, to) = {
            let machines = &mut *lock(&world.machines);
            let mut draw = |purpose| machines.chance.number(purpose, client, 0);
            (draw(10), draw(11), draw(12), draw(13))
        };
        sleep(Duration::from_micros(1_000 + pause % 200_000)).await;
        let managers: Vec<RaftId> = lock(&world.lines).up.iter().filter(|(_, up)| up.group == group).map(|(id, _)| *id).collect();
        if managers.is_empty() {
            continue;
        }
        let to = managers[usize::try_from(to % managers.len() as u64).unwrap_or(0)];
        let key = key % KEYS;
        // Long texts now and then, so that records take several sectors and segments fill up.
        let text = || format!("{client}.{turn}.{}", "x".repeat(if which % 7 == 0 { 3_000 } else { 20 }));
        let wish = match which % 20 {
            0..9 => Wish::Read(key),
            9 => Wish::Remove(key),
            _ => Wish::Write(key, text()),
        };
        let floor = lock(&world.truth)[group].floor();
        let answer = timeout(PATIENCE, call(&world, client, to, wish.clone(), true)).await.ok().flatten();
        let name = id(key).as_str().to_owned();
        let truth = &mut lock(&world.truth)[group];
        match (&wish, &answer) {
            (Wish::Read(_), Some(Answer::Read { revision, found })) => {
                truth.read(floor, *revision, &name, found.as_ref().map(|(version, text)| (*version, text.as_str())));
            }
            (Wish::Write(_, text), Some(Answer::Written { revision })) => truth.written(floor, *revision, &name, Some(text)),
            (Wish::Remove(_), Some(Answer::Written { revision })) => truth.written(floor, *revision, &name, None),
            _ => {}
        }
        world.note(|| match (&wish, &answer) {
            (Wish::Read(key), Some(Answer::Read { revision, found })) => {
                format!("client {client} read {key} by {to}: revision {revision}, of {:?}", found.as_ref().map(|(version, _)| version))
            }
            (Wish::Write(key, _), Some(Answer::Written { revision })) => {
                format!("client {client} wrote {key} by {to}: revision {revision}")
            }
            (wish, answer) => format!("client {client} {:.20} by {to}: {answer:?}", format!("{wish:?}")),
        });
    }
}
