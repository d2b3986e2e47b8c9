//! Jobs through a real RabbitMQ and real worker processes, with a spark-submit that does as it is told; what only the
//! real Spark can show is in `spark`.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod attachments;
mod broker;
mod cancel;
mod chaos;
mod checkpoint;
mod cluster;
mod cluster_mode;
mod command_line;
mod contract;
mod examples;
mod faults;
mod hdfs;
mod hostile;
mod identity;
mod kerberos;
mod kubernetes;
mod life;
mod ownership;
mod past;
mod platform;
mod prepare;
mod records;
mod rights;
mod sick;
mod spark;
mod standalone;
mod time_out;
mod tls;
mod training;
mod yarn;
