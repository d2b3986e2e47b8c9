//! Leaving on behalf of a worker that died: its guard, once every process of its jobs is gone, runs this program once more
//! to say so in the ledger. Others then take the jobs at once instead of waiting for the lease.
//!
//! It is given what it needs on its standard input, since that includes the broker's password. It reads nothing of the
//! ledger: one record is enough.
//!
//! This module must not know how a guard works.

use std::io::Read;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Confirmation};
use serde::{Deserialize, Serialize};
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::tls::Certificates;
use spark_runtime_protocol::topology::LEDGER_EXCHANGE;

use super::record::{Entry, InstanceId, Record};
use crate::broker::backoff::Backoff;
use crate::config::BrokerSettings;

/// The first argument by which the program knows that it is to do this.
pub const VERB: &str = "leave";
/// Far above what an instance has written in its life.
const LAST_SEQUENCE: u64 = u64::MAX / 2;
/// How long the broker may take to confirm.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(10);

/// Who has died, and where that is to be said.
#[derive(Debug, Serialize, Deserialize)]
pub struct Obituary {
    /// The broker's address, with the password.
    uri: String,
    certificates: Certificates,
    heartbeat: Duration,
    instance: InstanceId,
}

/// Why it could not be said.
#[derive(Debug, thiserror::Error)]
enum LeaveError {
    #[error("{0}")]
    Connect(#[from] spark_runtime_protocol::connect::ConnectError),
    #[error("{0}")]
    Broker(#[from] lapin::Error),
    #[error("the broker did not take the record")]
    Refused,
}

impl Obituary {
    /// For an instance of which the broker is at `uri`, which has the password.
    #[must_use]
    pub fn new(uri: String, broker: &BrokerSettings, instance: InstanceId) -> Self {
        Self { uri, certificates: broker.certificates.clone(), heartbeat: broker.heartbeat, instance }
    }

    /// As it is given on the standard input.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Says what the standard input tells it to say; tries until it is said. Whoever runs it sets the time.
pub fn leave_main() -> std::process::ExitCode {
    let mut input = Vec::new();
    let obituary = match std::io::stdin().lock().read_to_end(&mut input) {
        Ok(_) => serde_json::from_slice::<Obituary>(&input).map_err(std::io::Error::other),
        Err(error) => Err(error),
    };
    let said = obituary.and_then(|obituary| {
        let endpoint = Endpoint::new(&obituary.uri, obituary.heartbeat).map_err(std::io::Error::other)?;
        let endpoint = endpoint.with_certificates(obituary.certificates);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(say(&endpoint, obituary.instance));
        Ok(())
    });
    match said {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(_) => std::process::ExitCode::FAILURE,
    }
}

async fn say(endpoint: &Endpoint, instance: InstanceId) {
    let mut backoff = Backoff::default();
    while publish(endpoint, instance).await.is_err() {
        backoff.wait().await;
    }
}

async fn publish(endpoint: &Endpoint, instance: InstanceId) -> Result<(), LeaveError> {
    let connection = endpoint.connect("spark-runtime leave").await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let entry = Entry::new(instance, LAST_SEQUENCE, vec![Record::Leave]).encode();
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let properties = BasicProperties::default().with_delivery_mode(2);
    let published = channel.basic_publish(LEDGER_EXCHANGE.into(), "".into(), options, &entry, properties);
    let confirmed = tokio::time::timeout(CONFIRM_PATIENCE, async { published.await?.await });
    match confirmed.await {
        Ok(Ok(Confirmation::Ack(None))) => {}
        Ok(Err(error)) => return Err(error.into()),
        _ => return Err(LeaveError::Refused),
    }
    // It is said; how the connection ends does not matter.
    let _ = connection.close(200, "done".into()).await;
    Ok(())
}
