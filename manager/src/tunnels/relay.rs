//! Pieces from one end of a tunnel to the other. What stands still is bounded by the ends' window, and both are held to it: an end
//! that sends more than the other has taken loses the tunnel, so that nobody fills the connections it shares with others.

use skep_proto::skep::TunnelPiece;
use skep_proto::{TUNNEL_WINDOW, TunnelError, check_piece, piece_cost};
use std::sync::{Mutex, PoisonError};
use tokio::sync::mpsc;
use tonic::Streaming;

/// What a node has opened.
pub(crate) struct NodeEnd {
    pub pieces: Streaming<TunnelPiece>,
    pub to_node: mpsc::Sender<TunnelPiece>,
}

/// Until both ends have hung up, or one broke off.
pub(super) async fn relay(pieces: Streaming<TunnelPiece>, to_dialler: mpsc::Sender<TunnelPiece>, node: NodeEnd) -> Result<(), TunnelError> {
    let meter = Mutex::new(Meter::default());
    let there = pump(pieces, node.to_node, &meter, End::Dialler);
    let back = pump(node.pieces, to_dialler, &meter, End::Node);
    tokio::try_join!(there, back).map(drop)
}

async fn pump(mut from: Streaming<TunnelPiece>, to: mpsc::Sender<TunnelPiece>, meter: &Mutex<Meter>, end: End) -> Result<(), TunnelError> {
    while let Some(piece) = from.message().await.map_err(TunnelError::Call)? {
        meter.lock().unwrap_or_else(PoisonError::into_inner).pass(end, &piece)?;
        to.try_send(piece).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => TunnelError::OutOfWindow,
            mpsc::error::TrySendError::Closed(_) => TunnelError::BrokenOff,
        })?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum End {
    Dialler,
    Node,
}

/// What each end has sent that the other has not taken.
#[derive(Default)]
struct Meter {
    of_dialler: u32,
    of_node: u32,
}

impl Meter {
    fn pass(&mut self, from: End, piece: &TunnelPiece) -> Result<(), TunnelError> {
        check_piece(piece)?;
        let (own, other) = match from {
            End::Dialler => (&mut self.of_dialler, &mut self.of_node),
            End::Node => (&mut self.of_node, &mut self.of_dialler),
        };
        *own = own.saturating_add(piece_cost(piece));
        *other = other.checked_sub(piece.credit).ok_or(TunnelError::OutOfWindow)?;
        if *own > TUNNEL_WINDOW { Err(TunnelError::OutOfWindow) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::LONGEST_PIECE;

    fn data(length: usize) -> TunnelPiece {
        TunnelPiece { data: vec![0; length], ..TunnelPiece::default() }
    }

    fn credit(credit: u32) -> TunnelPiece {
        TunnelPiece { credit, ..TunnelPiece::default() }
    }

    #[test]
    fn an_end_has_no_more_on_its_way_than_the_window() {
        let mut meter = Meter::default();
        for _ in 0..TUNNEL_WINDOW as usize / LONGEST_PIECE {
            meter.pass(End::Node, &data(LONGEST_PIECE)).unwrap();
        }
        // The other direction has a window of its own.
        meter.pass(End::Dialler, &data(1)).unwrap();
        meter.pass(End::Dialler, &credit(LONGEST_PIECE as u32)).unwrap();
        meter.pass(End::Node, &data(LONGEST_PIECE)).unwrap();
        assert!(matches!(meter.pass(End::Node, &data(1)), Err(TunnelError::OutOfWindow)));
    }

    #[test]
    fn short_pieces_have_their_price_and_credit_is_earned() {
        let mut meter = Meter::default();
        for _ in 0..TUNNEL_WINDOW / 1024 {
            meter.pass(End::Dialler, &data(1)).unwrap();
        }
        assert!(matches!(meter.pass(End::Dialler, &data(1)), Err(TunnelError::OutOfWindow)));
        assert!(matches!(Meter::default().pass(End::Node, &credit(1)), Err(TunnelError::OutOfWindow)));
        assert!(matches!(Meter::default().pass(End::Node, &data(LONGEST_PIECE + 1)), Err(TunnelError::Odd)));
        let again = TunnelPiece { token: vec![1], ..TunnelPiece::default() };
        assert!(matches!(Meter::default().pass(End::Node, &again), Err(TunnelError::Odd)));
    }
}
