//! Stands in for a worker where the bench asks what the broker's part of a job takes by itself: it passes the messages that
//! the promises ask for, each after the one that it has to wait for, and does nothing else. It checks nothing, stages
//! nothing, starts no process and keeps no promise.
//!
//! For each job: the delivery from the quorum queue; a claim in the ledger, read back; the events on the way, not waited for;
//! the end in the history, confirmed; the end in the ledger, read back; the event on the results exchange, confirmed; the
//! acknowledgement. No worker that does these things one after the other is faster on the same broker.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, PublisherConfirm};
use serde_json::{Value, json};
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::topology::{
    HISTORY_EXCHANGE, JOBS_QUEUE, LEDGER_EXCHANGE, LEDGER_STREAM, RESULTS_EXCHANGE, STREAM_OFFSET_ARGUMENT,
};
use tokio::sync::oneshot;

const HEARTBEAT: Duration = Duration::from_secs(30);
/// The size of a terminal event of the bench's jobs, about.
const WORDS: usize = 700;

type Failure = Box<dyn std::error::Error + Send + Sync>;
/// Who waits for a record, by its text.
type Waiting = Arc<Mutex<HashMap<Vec<u8>, oneshot::Sender<()>>>>;

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(uri), Some(slots)) =
        (arguments.next(), arguments.next().and_then(|count| count.parse::<usize>().ok()))
    else {
        eprintln!("usage: broker-alone URI SLOTS");
        return ExitCode::from(64);
    };
    match serve(&uri, slots).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("broker-alone: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(uri: &str, slots: usize) -> Result<(), Failure> {
    let endpoint = Endpoint::new(uri, HEARTBEAT)?;
    let consuming = endpoint.connect("broker-alone consume").await?;
    let publishing = endpoint.connect("broker-alone publish").await?;
    let ledger = Ledger::open(&consuming, &publishing).await?;
    let mut working = tokio::task::JoinSet::new();
    for number in 0..slots {
        let slot = Slot {
            deliveries: consuming.create_channel().await?,
            events: confirming(&publishing).await?,
            ledger: ledger.clone(),
        };
        working.spawn(slot.work(number));
    }
    while let Some(ended) = working.join_next().await {
        ended??;
    }
    Ok(())
}

async fn confirming(connection: &Connection) -> Result<Channel, lapin::Error> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

async fn publish(
    channel: &Channel,
    exchange: &str,
    key: &str,
    body: &[u8],
) -> Result<PublisherConfirm, lapin::Error> {
    let properties = BasicProperties::default().with_delivery_mode(2);
    channel.basic_publish(exchange.into(), key.into(), BasicPublishOptions::default(), body, properties).await
}

/// Writes records, and tells when they are read back.
#[derive(Clone)]
struct Ledger {
    channel: Channel,
    waiting: Waiting,
}

impl Ledger {
    async fn open(consuming: &Connection, publishing: &Connection) -> Result<Self, Failure> {
        let waiting = Waiting::default();
        let reading = consuming.create_channel().await?;
        reading.basic_qos(2000, BasicQosOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert(STREAM_OFFSET_ARGUMENT.into(), AMQPValue::LongString("next".into()));
        let options = BasicConsumeOptions::default();
        let mut records =
            reading.basic_consume(LEDGER_STREAM.into(), "ledger".into(), options, arguments).await?;
        let told = waiting.clone();
        tokio::spawn(async move {
            let _open = reading;
            let mut count = 0_u32;
            while let Some(Ok(record)) = records.next().await {
                let waits = told.lock().unwrap_or_else(PoisonError::into_inner).remove(&record.data);
                if let Some(waits) = waits {
                    let _ = waits.send(());
                }
                count += 1;
                if count.is_multiple_of(500) && record.ack(BasicAckOptions { multiple: true }).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(Self { channel: confirming(publishing).await?, waiting })
    }

    async fn append(&self, record: &Value) -> Result<(), Failure> {
        let body = record.to_string().into_bytes();
        let (tell, told) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(body.clone(), tell);
        // That it is read back says that it was taken.
        drop(publish(&self.channel, LEDGER_EXCHANGE, "", &body).await?);
        Ok(told.await?)
    }
}

struct Slot {
    deliveries: Channel,
    events: Channel,
    ledger: Ledger,
}

impl Slot {
    async fn work(self, number: usize) -> Result<(), Failure> {
        self.deliveries.basic_qos(1, BasicQosOptions::default()).await?;
        let tag = format!("slot-{number}");
        let options = BasicConsumeOptions::default();
        let mut jobs = self
            .deliveries
            .basic_consume(JOBS_QUEUE.into(), tag.as_str().into(), options, FieldTable::default())
            .await?;
        while let Some(delivery) = jobs.next().await {
            let delivery = delivery?;
            let job: Value = serde_json::from_slice(&delivery.data)?;
            let id = job["id"].as_str().unwrap_or_default();
            self.ledger.append(&json!({"claim": id, "digest": "00000000000000ff", "terms": "free"})).await?;
            for step in ["accepted", "staged", "submitted", "running"] {
                drop(self.tell(id, step, RESULTS_EXCHANGE).await?);
            }
            self.tell(id, "completed", HISTORY_EXCHANGE).await?.await?;
            self.ledger.append(&json!({"settle": id, "claim": 7, "end": "completed"})).await?;
            self.tell(id, "completed", RESULTS_EXCHANGE).await?.await?;
            delivery.ack(BasicAckOptions::default()).await?;
        }
        Ok(())
    }

    async fn tell(&self, id: &str, kind: &str, exchange: &str) -> Result<PublisherConfirm, lapin::Error> {
        let event = json!({"type": format!("spark-runtime.job.{kind}.v1"), "subject": id, "words": "x".repeat(WORDS)});
        publish(&self.events, exchange, &format!("job.{id}.{kind}"), event.to_string().as_bytes()).await
    }
}
