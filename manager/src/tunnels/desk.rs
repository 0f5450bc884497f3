//! Who listens for tunnels, which are ordered, and how many there are.
//!
//! An order is for one node and one use: a token of 32 random bytes, which only that node is told, over its own connection, and
//! which is good for [`ORDER_LIFE`] or until whoever ordered it gives up.

use skep_types::NodeId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

/// In which a node opens what was ordered of it.
pub(crate) const ORDER_LIFE: Duration = Duration::from_secs(30);
/// Open and ordered ones: each may hold half a megabyte for ends that stand still.
const MOST: usize = 512;
/// The same of one node: below what one connection may have open (256), together with what else an agent has.
const MOST_OF_NODE: usize = 64;

pub(crate) type Token = [u8; 32];

/// Why a tunnel is not ordered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NobodyListens,
    TooMany { most: usize },
    TooManyOfNode { most: usize },
}

/// Clones share it. `E` is the node's end of a tunnel.
pub(crate) struct Desk<E>(Arc<Mutex<State<E>>>);

impl<E> Clone for Desk<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E> Default for Desk<E> {
    fn default() -> Self {
        let state = State { listeners: HashMap::new(), orders: HashMap::new(), places: HashMap::new(), arrived: Arc::default(), count: 0 };
        Self(Arc::new(Mutex::new(state)))
    }
}

struct State<E> {
    /// The last stream of a node counts.
    listeners: HashMap<NodeId, (u64, mpsc::Sender<Token>)>,
    orders: HashMap<Token, Order<E>>,
    /// Tunnels of each node.
    places: HashMap<NodeId, usize>,
    /// Rung when a node begins to listen.
    arrived: Arc<Notify>,
    /// Of streams so far, to tell them apart.
    count: u64,
}

struct Order<E> {
    node: NodeId,
    until: Instant,
    give: oneshot::Sender<E>,
}

impl<E> Desk<E> {
    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream of what the node is to open.
    pub(crate) fn listen(&self, node: NodeId) -> Listener<E> {
        // All that a node may have at once: never full.
        let (sender, orders) = mpsc::channel(MOST_OF_NODE);
        let mut state = self.lock();
        state.count += 1;
        let number = state.count;
        state.listeners.insert(node.clone(), (number, sender));
        state.arrived.notify_waiters();
        drop(state);
        Listener { desk: self.clone(), node, number, orders }
    }

    /// Waits until the node listens, but no longer than `limit`.
    pub(crate) async fn listens(&self, node: &NodeId, limit: Duration) {
        let arrived = self.lock().arrived.clone();
        let waiting = async {
            loop {
                let next = arrived.notified();
                tokio::pin!(next);
                // From now on no arrival is missed.
                next.as_mut().enable();
                if self.lock().listeners.contains_key(node) {
                    return;
                }
                next.await;
            }
        };
        // Who is not there then is refused by the order.
        let _ = tokio::time::timeout(limit, waiting).await;
    }

    /// Tells the node to open a tunnel.
    ///
    /// # Errors
    /// If it does not listen, or there are too many.
    pub(crate) fn order(&self, node: &NodeId, token: Token, now: Instant) -> Result<Ordered<E>, Refusal> {
        let mut state = self.lock();
        if state.places.values().sum::<usize>() >= MOST {
            return Err(Refusal::TooMany { most: MOST });
        }
        if state.places.get(node).is_some_and(|places| *places >= MOST_OF_NODE) {
            return Err(Refusal::TooManyOfNode { most: MOST_OF_NODE });
        }
        let told = state.listeners.get(node).is_some_and(|(_, orders)| orders.try_send(token).is_ok());
        if !told {
            return Err(Refusal::NobodyListens);
        }
        let (give, opened) = oneshot::channel();
        state.orders.insert(token, Order { node: node.clone(), until: now + ORDER_LIFE, give });
        *state.places.entry(node.clone()).or_default() += 1;
        drop(state);
        Ok(Ordered { token, opened, place: Place { desk: self.clone(), node: node.clone(), token } })
    }

    /// Where to give the node's end of a tunnel that was ordered of it. Once.
    pub(crate) fn take(&self, token: &Token, node: &NodeId, now: Instant) -> Option<oneshot::Sender<E>> {
        let mut state = self.lock();
        // The token of another is not used up by who should not know it.
        if state.orders.get(token).is_none_or(|order| order.node != *node) {
            return None;
        }
        state.orders.remove(token).filter(|order| now < order.until).map(|order| order.give)
    }
}

/// A node that listens, until it is dropped.
pub(crate) struct Listener<E> {
    desk: Desk<E>,
    node: NodeId,
    number: u64,
    orders: mpsc::Receiver<Token>,
}

impl<E> Listener<E> {
    /// `None` when the node has opened another stream.
    pub(crate) async fn next(&mut self) -> Option<Token> {
        self.orders.recv().await
    }
}

impl<E> Drop for Listener<E> {
    fn drop(&mut self) {
        let mut state = self.desk.lock();
        if state.listeners.get(&self.node).is_some_and(|(number, _)| *number == self.number) {
            state.listeners.remove(&self.node);
            // It was told, if at all, over a connection that is gone: nobody has to wait for it.
            state.orders.retain(|_, order| order.node != self.node);
        }
    }
}

/// A tunnel that the node was told of.
pub(crate) struct Ordered<E> {
    #[cfg_attr(not(test), expect(dead_code, reason = "tests play the node"))]
    token: Token,
    opened: oneshot::Receiver<E>,
    place: Place<E>,
}

impl<E> Ordered<E> {
    /// The node's end and the tunnel's place. Dropped before: the order is withdrawn.
    pub(crate) async fn opened(self) -> Option<(E, Place<E>)> {
        let Self { opened, place, .. } = self;
        opened.await.ok().map(|end| (end, place))
    }
}

/// A tunnel, open or ordered, as far as it is counted. Dropped: it is over.
pub(crate) struct Place<E> {
    desk: Desk<E>,
    node: NodeId,
    token: Token,
}

impl<E> Drop for Place<E> {
    fn drop(&mut self) {
        let mut state = self.desk.lock();
        state.orders.remove(&self.token);
        if let Some(places) = state.places.get_mut(&self.node) {
            *places -= 1;
            if *places == 0 {
                state.places.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(number: u8) -> Token {
        [number; 32]
    }

    fn node(number: u64) -> NodeId {
        NodeId::for_test(number)
    }

    #[tokio::test]
    async fn a_token_is_for_one_node_and_one_use() {
        let (desk, now) = (Desk::<u32>::default(), Instant::now());
        assert!(matches!(desk.order(&node(1), token(1), now), Err(Refusal::NobodyListens)));
        let (mut first, _second) = (desk.listen(node(1)), desk.listen(node(2)));
        let ordered = desk.order(&node(1), token(1), now).unwrap();
        let told = first.next().await.unwrap();
        assert_eq!(told, ordered.token);
        assert!(desk.take(&token(2), &node(1), now).is_none(), "a token that nobody gave");
        assert!(desk.take(&told, &node(2), now).is_none(), "another node's");
        desk.take(&told, &node(1), now).unwrap().send(7).unwrap();
        assert!(desk.take(&told, &node(1), now).is_none(), "a second time");
        assert_eq!(ordered.opened().await.unwrap().0, 7);
    }

    #[tokio::test]
    async fn an_order_ends_by_itself_and_with_who_gave_it() {
        let (desk, now) = (Desk::<u32>::default(), Instant::now());
        let _listener = desk.listen(node(1));
        let _ordered = desk.order(&node(1), token(1), now).unwrap();
        assert!(desk.take(&token(1), &node(1), now + ORDER_LIFE).is_none(), "too late");
        let given_up = desk.order(&node(1), token(2), now).unwrap();
        drop(given_up);
        assert!(desk.take(&token(2), &node(1), now).is_none(), "nobody waits for it");
    }

    #[tokio::test]
    async fn there_are_never_more_than_may_be() {
        let (desk, now) = (Desk::<u32>::default(), Instant::now());
        let mut open = Vec::new();
        let mut listeners = Vec::new();
        for at in 0..MOST {
            let id = node((at / MOST_OF_NODE) as u64);
            if at % MOST_OF_NODE == 0 {
                listeners.push(desk.listen(id.clone()));
            }
            let mut token = token(0);
            token[..8].copy_from_slice(&at.to_be_bytes());
            open.push(desk.order(&id, token, now).unwrap());
            listeners.last_mut().unwrap().next().await.unwrap();
        }
        listeners.push(desk.listen(node(999)));
        assert!(matches!(desk.order(&node(999), token(9), now), Err(Refusal::TooMany { .. })));
        open.pop();
        assert!(matches!(desk.order(&node(0), token(9), now), Err(Refusal::TooManyOfNode { .. })));
        assert!(desk.order(&node(999), token(9), now).is_ok());
        drop(open);
        assert!(desk.lock().places.is_empty() && desk.lock().orders.is_empty());
    }

    #[tokio::test]
    async fn the_last_stream_of_a_node_counts() {
        let (desk, now) = (Desk::<u32>::default(), Instant::now());
        let mut old = desk.listen(node(1));
        let mut new = desk.listen(node(1));
        assert_eq!(old.next().await, None);
        drop(old);
        let ordered = desk.order(&node(1), token(3), now).unwrap();
        assert_eq!(new.next().await, Some(token(3)));
        drop(new);
        assert!(ordered.opened().await.is_none(), "an order waits for a node that is gone");
        assert!(matches!(desk.order(&node(1), token(4), now), Err(Refusal::NobodyListens)));
    }
}
