//! The witness: hears every event through a durable queue of its own and a connection that no fault is aimed at, so that
//! nothing is missed while the broker is away.
//!
//! This module must not know what an event means.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use spark_runtime_protocol::answer::{answered, next};
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::topology::RESULTS_EXCHANGE;

use super::book::{Book, boottime_ns};

/// The witness's queue.
pub const QUEUE: &str = "chaos.witness";
const PREFETCH: u16 = 500;
const PAUSE: Duration = Duration::from_millis(200);

/// Why the witness could not listen.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] spark_runtime_protocol::connect::ConnectError),
    /// It failed on the way.
    #[error("the witness's connection failed: {0}")]
    Broker(#[from] lapin::Error),
    /// What it has heard cannot be written down.
    #[error("what the witness has heard cannot be written down: {0}")]
    File(#[from] io::Error),
}

/// Hears.
#[derive(Debug)]
pub struct Witness {
    endpoint: Endpoint,
    book: Arc<Book>,
    written: BufWriter<File>,
}

impl Witness {
    /// Declares and binds the queue; every event from now on is heard sooner or later. Each is written to `file` too.
    ///
    /// # Errors
    /// [`WitnessError`].
    pub async fn new(endpoint: Endpoint, book: Arc<Book>, file: &Path) -> Result<Self, WitnessError> {
        let connection = endpoint.connect("chaos witness").await?;
        let channel = connection.create_channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(1_000_000));
        channel.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), arguments).await?;
        channel
            .queue_bind(
                QUEUE.into(),
                RESULTS_EXCHANGE.into(),
                "#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
        let _ = connection.close(200, "done".into()).await;
        Ok(Self { endpoint, book, written: BufWriter::new(File::create(file)?) })
    }

    /// Listens for ever, whatever the broker does.
    pub async fn listen(mut self) {
        loop {
            if let Err(error) = self.listen_once().await {
                // A broker that is away is what the run is about.
                eprintln!("WITNESS {error}");
                tracing::debug!(%error, "the witness connects again");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn listen_once(&mut self) -> Result<(), WitnessError> {
        let connection = self.endpoint.connect("chaos witness").await?;
        let channel = answered(connection.create_channel()).await?;
        answered(channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
        let consuming = channel.basic_consume(
            QUEUE.into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let mut consumer = answered(consuming).await?;
        while let Some(delivery) = next(&mut consumer, &channel).await {
            let delivery = delivery?;
            write!(self.written, "{} {} ", boottime_ns(), u8::from(delivery.redelivered))?;
            self.written.write_all(&delivery.data)?;
            self.written.write_all(b"\n")?;
            self.written.flush()?;
            self.book.heard(delivery.data, delivery.redelivered);
            answered(delivery.acker.ack(BasicAckOptions::default())).await?;
        }
        Ok(())
    }
}
