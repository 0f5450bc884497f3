use super::*;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;

const LONG: Duration = Duration::from_secs(60);

fn data(length: usize) -> TunnelPiece {
    TunnelPiece { data: vec![7; length], ..TunnelPiece::default() }
}

fn end() -> TunnelPiece {
    TunnelPiece { end: true, ..TunnelPiece::default() }
}

/// Both ends, as if a manager were between them: the first pieces are taken off.
fn pair() -> (DuplexStream, DuplexStream, impl Future<Output = (Result<(), TunnelError>, Result<(), TunnelError>)>) {
    let (one, near, from_one) = TunnelEnd::new(TunnelPiece { node_id: "node".into(), ..TunnelPiece::default() });
    let (other, far, from_other) = TunnelEnd::new(TunnelPiece { token: vec![1], ..TunnelPiece::default() });
    let (from_one, from_other) = (ReceiverStream::new(from_one).map(Ok), ReceiverStream::new(from_other).map(Ok));
    let carrying = async move { tokio::join!(one.carry(from_other.skip(1)), other.carry(from_one.skip(1))) };
    (near, far, carrying)
}

#[tokio::test]
async fn much_more_than_the_window_goes_both_ways_and_either_may_end_first() {
    let (mut near, mut far, carrying) = pair();
    let much: Vec<u8> = (0..3 * WINDOW).map(|at| (at % 251) as u8).collect();
    let talking = async {
        let question = async {
            near.write_all(&much).await.unwrap();
            near.shutdown().await.unwrap();
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let answer = async {
            let mut question = Vec::new();
            far.read_to_end(&mut question).await.unwrap();
            // After the end of the other direction.
            far.write_all(&question).await.unwrap();
            far.shutdown().await.unwrap();
        };
        tokio::join!(question, answer).0
    };
    let (answer, (one, other)) = tokio::time::timeout(LONG, async { tokio::join!(talking, carrying) }).await.unwrap();
    assert!(answer == much);
    one.unwrap();
    other.unwrap();
}

#[tokio::test]
async fn a_reader_that_stands_still_gets_a_window_and_no_more() {
    let (tunnel, mut far, mut pieces) = TunnelEnd::new(TunnelPiece::default());
    let (_said, incoming) = mpsc::channel::<Result<TunnelPiece, Status>>(1);
    let carrying = tokio::spawn(tunnel.carry(ReceiverStream::new(incoming)));
    let writing = tokio::spawn(async move { far.write_all(&vec![0; 2 * WINDOW as usize]).await });
    assert_eq!(pieces.recv().await.unwrap(), TunnelPiece::default());
    let mut sent = 0;
    while sent < WINDOW {
        sent += cost(&tokio::time::timeout(LONG, pieces.recv()).await.unwrap().unwrap());
    }
    assert_eq!(sent, WINDOW);
    // Whatever is still to come was not allowed for.
    assert!(tokio::time::timeout(Duration::from_millis(50), pieces.recv()).await.is_err());
    writing.abort();
    carrying.abort();
}

async fn outcome(pieces: Vec<TunnelPiece>) -> Result<(), TunnelError> {
    let (tunnel, _far, _pieces) = TunnelEnd::new(TunnelPiece::default());
    let incoming = tokio_stream::iter(pieces.into_iter().map(Ok));
    tokio::time::timeout(LONG, tunnel.carry(incoming)).await.unwrap()
}

#[tokio::test]
async fn who_does_not_keep_to_the_rules_ends_the_tunnel() {
    let flood = (0..=MOST_PIECES).map(|_| data(1)).collect();
    assert!(matches!(outcome(flood).await, Err(TunnelError::OutOfWindow)));
    let unearned = TunnelPiece { credit: 1, ..TunnelPiece::default() };
    assert!(matches!(outcome(vec![unearned]).await, Err(TunnelError::OutOfWindow)));
    assert!(matches!(outcome(vec![end(), data(1)]).await, Err(TunnelError::OutOfWindow)));
    assert!(matches!(outcome(vec![data(LONGEST_PIECE + 1)]).await, Err(TunnelError::Odd)));
    assert!(matches!(outcome(vec![TunnelPiece { token: vec![1], ..data(1) }]).await, Err(TunnelError::Odd)));
    assert!(matches!(outcome(vec![data(1)]).await, Err(TunnelError::BrokenOff)));
}
