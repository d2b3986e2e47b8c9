//! A wire between a worker and the broker that a test can cut and mend: a TCP proxy on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot have its wire cannot go on")]

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How a wire is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It carries.
    Whole,
    /// Connections end, and new ones are refused.
    Cut,
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
        let (state, watching) = watch::channel(State::Whole);
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((near, _)) = listener.accept().await else { return };
                let mut watching = watching.clone();
                if *watching.borrow_and_update() == State::Cut {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
                    let (mut near, mut far) = (near, far);
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = watching.wait_for(|state| *state == State::Cut) => {}
                    }
                });
            }
        });
        Self { port, state, accepting }
    }

    /// Ends all connections and refuses new ones.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Carries again.
    pub fn mend(&self) {
        self.state.send_replace(State::Whole);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.cut();
        self.accepting.abort();
    }
}
