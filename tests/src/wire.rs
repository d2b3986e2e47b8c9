//! A wire between a worker and the broker that a test can cut, mend and spoil in every way that networks do: a TCP proxy
//! on loopback.
//!
//! What a wire does to bytes is decided when it reads them, for each direction by itself. Bytes that are late are
//! delivered even when the one who sent them has closed the connection or died meanwhile. A connection that has lost bytes
//! carries nothing more: what follows would make no sense to the other side. It ends as soon as the wire carries again.
//!
//! This module must not know what travels over a wire.

#![expect(clippy::unwrap_used, reason = "a test that cannot have its wire cannot go on")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How many pieces of at most [`PIECE`] bytes may be on their way in one direction of a connection.
const PIECES: usize = 1024;
/// In bytes.
const PIECE: usize = 32 * 1024;

/// What becomes of bytes that go in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// They arrive.
    Open,
    /// They arrive so much later, also after the sender has closed.
    Late(Duration),
    /// They are taken and never arrive, and neither does the end of the connection.
    Lost,
}

/// Which of a wire's connections are spoiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All of them, and new ones.
    All,
    /// Every other one.
    Even,
    /// Those between.
    Odd,
}

/// How a wire is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Connections end, and new ones are closed at once.
    pub is_cut: bool,
    /// From the client to the broker.
    pub to_broker: Passage,
    /// From the broker to the client.
    pub to_client: Passage,
    /// Whom that meets; the others are carried.
    pub which: Which,
}

impl State {
    /// A wire that carries.
    pub const WHOLE: Self =
        Self { is_cut: false, to_broker: Passage::Open, to_client: Passage::Open, which: Which::All };
    /// A wire that is cut.
    pub const CUT: Self = Self { is_cut: true, ..Self::WHOLE };

    fn meets(&self, connection: u64) -> bool {
        match self.which {
            Which::All => true,
            Which::Even => connection.is_multiple_of(2),
            Which::Odd => !connection.is_multiple_of(2),
        }
    }

    fn cuts(&self, connection: u64) -> bool {
        self.is_cut && self.meets(connection)
    }

    fn passage(&self, direction: Direction, connection: u64) -> Passage {
        match direction {
            _ if !self.meets(connection) => Passage::Open,
            Direction::ToBroker => self.to_broker,
            Direction::ToClient => self.to_client,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    ToBroker,
    ToClient,
}

/// A wire to a port. Dropping it cuts it.
#[derive(Debug)]
pub struct Wire {
    /// Connect here.
    pub port: u16,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

impl Wire {
    /// A wire to `target`, whole.
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, watching) = watch::channel(State::WHOLE);
        let accepting = tokio::spawn(async move {
            for number in 0.. {
                let Ok((near, _)) = listener.accept().await else { return };
                if watching.borrow().cuts(number) {
                    continue;
                }
                let connection = Connection { number, watching: watching.clone() };
                tokio::spawn(connection.carry(near, target));
            }
        });
        Self { port, state, accepting }
    }

    /// Ends all connections and refuses new ones.
    pub fn cut(&self) {
        self.set(State::CUT);
    }

    /// Carries again.
    pub fn mend(&self) {
        self.set(State::WHOLE);
    }

    /// Makes it so from now on.
    pub fn set(&self, state: State) {
        self.state.send_replace(state);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.cut();
        self.accepting.abort();
    }
}

/// One connection over a wire.
struct Connection {
    /// Counts the connections of the wire, from 0.
    number: u64,
    watching: watch::Receiver<State>,
}

impl Connection {
    fn passage(&self, direction: Direction) -> Passage {
        self.watching.borrow().passage(direction, self.number)
    }

    async fn carry(self, near: TcpStream, target: u16) {
        let mut watching = self.watching.clone();
        let number = self.number;
        tokio::select! {
            () = self.pass(near, target) => {}
            // An error means that the wire is gone.
            _ = watching.wait_for(|state| state.cuts(number)) => {}
        }
    }

    async fn pass(self, near: TcpStream, target: u16) {
        if self.passage(Direction::ToBroker) == Passage::Lost {
            // The broker does not hear of this one.
            return self.until_not_lost(Direction::ToBroker).await;
        }
        let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
        for stream in [&near, &far] {
            let _ = stream.set_nodelay(true);
        }
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let torn = AtomicBool::new(false);
        let there = self.direct(Direction::ToBroker, near_read, far_write, &torn);
        let back = self.direct(Direction::ToClient, far_read, near_write, &torn);
        // The first that says so ends the connection; else it ends when both directions have.
        let _ = futures_util::future::try_join(there, back).await;
    }

    async fn until_not_lost(&self, direction: Direction) {
        let mut watching = self.watching.clone();
        let _ = watching.wait_for(|state| state.passage(direction, self.number) != Passage::Lost).await;
    }

    /// Carries one direction to its end. An error when the connection is torn.
    async fn direct(
        &self,
        direction: Direction,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        torn: &AtomicBool,
    ) -> Result<(), ()> {
        let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
        let take = async move {
            let mut buffer = vec![0; PIECE];
            loop {
                // A connection that was reset is at its end, too.
                let length = from.read(&mut buffer).await.unwrap_or(0);
                let due = match self.passage(direction) {
                    Passage::Open => Instant::now(),
                    Passage::Late(by) => Instant::now() + by,
                    Passage::Lost => {
                        torn.store(true, Ordering::Relaxed);
                        if length == 0 {
                            self.until_not_lost(direction).await;
                            return Err(());
                        }
                        continue;
                    }
                };
                if torn.load(Ordering::Relaxed) {
                    return Err(());
                }
                let sent = queue.send((due, buffer[..length].to_vec())).await;
                if length == 0 || sent.is_err() {
                    return Ok(());
                }
            }
        };
        let give = async move {
            // Goes on when nobody takes it any more: the sender must not notice sooner than it would by itself.
            while let Some((due, bytes)) = queued.recv().await {
                if due > Instant::now() {
                    tokio::time::sleep_until(due).await;
                }
                if bytes.is_empty() {
                    let _ = to.shutdown().await;
                } else {
                    let _ = to.write_all(&bytes).await;
                }
            }
            Ok(())
        };
        futures_util::future::try_join(take, give).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wire to a listener, with a connection over it: the client's end and the broker's.
    async fn connected() -> (Wire, TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let wire = Wire::to(listener.local_addr().unwrap().port()).await;
        let near = TcpStream::connect(("127.0.0.1", wire.port)).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (wire, listener, near, far)
    }

    async fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    #[tokio::test]
    async fn what_is_late_is_delivered_after_the_sender_has_closed() {
        let (wire, _listener, mut near, mut far) = connected().await;
        let late = Duration::from_millis(300);
        wire.set(State { to_broker: Passage::Late(late), ..State::WHOLE });
        // The wire has seen the change once this has come through the other way.
        far.write_all(b"x").await.unwrap();
        read(&mut near, 1).await;
        let sent = Instant::now();
        near.write_all(b"late").await.unwrap();
        drop(near);
        assert_eq!(read(&mut far, 4).await, b"late");
        assert!(sent.elapsed() >= late);
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_wire_can_carry_one_way_only() {
        let (wire, _listener, mut near, mut far) = connected().await;
        wire.set(State { to_client: Passage::Lost, ..State::WHOLE });
        near.write_all(b"there").await.unwrap();
        assert_eq!(read(&mut far, 5).await, b"there");
        far.write_all(b"back").await.unwrap();
        let silence = tokio::time::timeout(Duration::from_millis(100), near.read(&mut [0])).await;
        assert!(silence.is_err(), "{silence:?}");
    }

    #[tokio::test]
    async fn a_connection_that_has_lost_bytes_ends_when_the_wire_carries_again() {
        let (wire, _listener, mut near, mut far) = connected().await;
        wire.set(State { to_broker: Passage::Lost, ..State::WHOLE });
        near.write_all(b"lost").await.unwrap();
        let silence = tokio::time::timeout(Duration::from_millis(100), far.read(&mut [0])).await;
        assert!(silence.is_err(), "{silence:?}");
        wire.mend();
        near.write_all(b"more").await.unwrap();
        assert_eq!(far.read(&mut [0]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn new_connections_over_a_dead_wire_are_taken_and_hear_nothing() {
        let (wire, listener, _near, _far) = connected().await;
        wire.set(State { to_broker: Passage::Lost, to_client: Passage::Lost, ..State::WHOLE });
        let mut second = TcpStream::connect(("127.0.0.1", wire.port)).await.unwrap();
        second.write_all(b"lost").await.unwrap();
        let nothing = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
        assert!(nothing.is_err(), "{nothing:?}");
        wire.mend();
        assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn every_other_connection_can_be_spared() {
        let (wire, listener, mut even, mut even_far) = connected().await;
        let mut odd = TcpStream::connect(("127.0.0.1", wire.port)).await.unwrap();
        let (mut odd_far, _) = listener.accept().await.unwrap();
        wire.set(State { which: Which::Odd, ..State::CUT });
        assert_eq!(odd.read(&mut [0]).await.unwrap_or(0), 0);
        assert_eq!(odd_far.read(&mut [0]).await.unwrap_or(0), 0);
        even.write_all(b"here").await.unwrap();
        assert_eq!(read(&mut even_far, 4).await, b"here");
    }
}
