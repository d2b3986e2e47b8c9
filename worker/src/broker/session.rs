//! The connection for consuming: always there again after a failure, each time as a new session.
//!
//! This module must not know what is consumed.

use std::sync::Arc;

use futures_util::StreamExt;
use lapin::{Connection, Event};
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::topology::{Compared, Topology, TopologyError};
use tokio::sync::{Notify, watch};

use super::backoff::Backoff;
use super::server::{AcknowledgementTimeout, too_old};

/// How often the state of a connection is looked at beside its events.
const SECOND_LOOK: std::time::Duration = std::time::Duration::from_secs(10);

/// How long the broker may take to declare all of it.
const DECLARING: std::time::Duration = std::time::Duration::from_secs(120);

/// How long it takes at least until the topology is declared once more.
const BETWEEN_DECLARATIONS: std::time::Duration = std::time::Duration::from_secs(1);

/// A connection, as long as it lasts.
#[derive(Clone)]
pub struct Session {
    /// Counts the connections, from 1.
    pub generation: u64,
    /// The connection.
    pub connection: Arc<Connection>,
    topology: Arc<Topology>,
}

impl Session {
    /// Declares what somebody has deleted under the running worker.
    ///
    /// # Errors
    /// [`TopologyError`], also when it is missing and this user may not declare it.
    pub async fn declare(&self) -> Result<(), TopologyError> {
        self.topology.declare(&self.connection).await.map(drop)
    }
}

/// Keeps a connection up for ever, with the topology declared; tells `sessions` of every new one and of its end.
///
/// Ends when nobody looks at `sessions` any more.
pub async fn keep_connected(
    endpoint: Endpoint,
    name: String,
    topology: Topology,
    longest_job: std::time::Duration,
    sessions: watch::Sender<Option<Session>>,
) {
    let mut backoff = Backoff::default();
    let mut generation = 0;
    let topology = Arc::new(topology);
    loop {
        match connect(&endpoint, &name, &topology).await {
            Ok((connection, compared)) => {
                backoff.succeeded();
                generation += 1;
                if generation == 1 {
                    introduce(&endpoint, longest_job).await;
                    tell_uncompared(&compared);
                }
                tracing::info!(%endpoint, generation, "connected for consuming");
                let connection = Arc::new(connection);
                let session =
                    Session { generation, connection: connection.clone(), topology: topology.clone() };
                sessions.send_replace(Some(session));
                let reason = tokio::select! {
                    reason = ended(&connection) => reason,
                    () = sessions.closed() => return,
                };
                sessions.send_replace(None);
                tracing::warn!(generation, reason, "the connection to the broker is gone");
            }
            Err(reason) => tracing::warn!(reason, "there is no connection to the broker; trying again"),
        }
        tokio::select! {
            () = backoff.wait() => {}
            () = sessions.closed() => return,
        }
    }
}

/// Declares the topology again whenever something of it is missing, or says what is to be done.
pub async fn keep_declared(missing: Arc<Notify>, mut sessions: watch::Receiver<Option<Session>>) {
    loop {
        missing.notified().await;
        let session = sessions.wait_for(Option::is_some).await.ok().and_then(|session| session.clone());
        // Nobody connects any more.
        let Some(session) = session else { return };
        match tokio::time::timeout(DECLARING, session.declare()).await {
            Ok(Ok(())) => tracing::warn!("somebody has deleted a part of the topology; it is declared again"),
            // It is told again as long as it is missing.
            Err(_) => tracing::warn!("the broker takes too long to declare what is missing"),
            Ok(Err(error)) => tracing::error!(
                %error,
                "a part of the topology is missing and cannot be declared; run `spark-runtime topology declare` as a user who may"
            ),
        }
        // Whatever is published again meanwhile may find it missing once more.
        tokio::time::sleep(BETWEEN_DECLARATIONS).await;
    }
}

async fn connect(
    endpoint: &Endpoint,
    name: &str,
    topology: &Topology,
) -> Result<(Connection, Compared), String> {
    let connection = endpoint.connect(name).await.map_err(|error| error.to_string())?;
    let compared = tokio::time::timeout(DECLARING, topology.declare(&connection))
        .await
        .map_err(|_| format!("the topology was not declared within {} s", DECLARING.as_secs()))?
        .map_err(|error| error.to_string())?;
    Ok((connection, compared))
}

/// A user with no more rights than a worker needs can see that everything is there, and not whether it is as it has to be.
fn tell_uncompared(compared: &Compared) {
    if let Compared::InPart { right, .. } = compared {
        tracing::info!(
            %right,
            "every exchange and queue is there; whether they are as these settings want them cannot be compared"
        );
    }
}

/// Says once what the broker is and what that means for long jobs.
async fn introduce(endpoint: &Endpoint, longest_job: std::time::Duration) {
    match endpoint.server().await {
        Ok(server) => {
            let timeout = AcknowledgementTimeout::on(&server);
            tracing::info!(product = server.product, version = server.version, ?timeout, "the broker");
            for warning in [too_old(&server), timeout.warning(longest_job)].into_iter().flatten() {
                tracing::warn!(warning, "the broker");
            }
        }
        Err(error) => tracing::warn!(%error, "the broker did not say what it is"),
    }
}

/// Waits until a connection is gone; gives the reason.
async fn ended(connection: &Connection) -> String {
    let events = connection.events_listener();
    tokio::pin!(events);
    // What happened before the listener was there is not told by it.
    if !connection.status().connected() {
        return "it ended at once".to_owned();
    }
    loop {
        let event = match tokio::time::timeout(SECOND_LOOK, events.next()).await {
            Ok(Some(event)) => event,
            Ok(None) => return "it was closed".to_owned(),
            // The end of a connection is told by an event; one that was missed must not go unseen for ever.
            Err(_) if connection.status().connected() => continue,
            Err(_) => return "it ended without a word".to_owned(),
        };
        if let Event::Error(error) = event {
            if !connection.status().connected() {
                return error.to_string();
            }
            tracing::debug!(%error, "an error on a connection that goes on");
        }
    }
}
