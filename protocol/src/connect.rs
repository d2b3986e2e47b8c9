//! Connecting to the broker: where it is, who we are, and what to say when it does not let us in.
//!
//! This module must not know what is sent over the connection. It never shows a password: [`Endpoint`] prints itself
//! without one.

use std::fmt;
use std::time::Duration;

use amq_protocol::frame;
use async_rs::traits::Reactor;
use async_rs::{Runtime, Tokio, TokioRuntime};
use lapin::protocol::{AMQPClass, AMQPErrorKind, AMQPHardError, connection};
use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream, RustlsConnector};
use lapin::types::AMQPValue;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties, ErrorKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::inbound::{self, Inbound};
use crate::tls::{Certificates, CertificatesError, Failure, explain};

/// How long a connection may take to be there, TLS and login included.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long it may take to find out why a connection was cut off.
const SECOND_LOOK: Duration = Duration::from_secs(3);

/// The largest frame, in bytes: RabbitMQ's own default, so that no message's headers, which have to fit into one frame, are
/// too large for us. Said at once rather than negotiated, the client library takes its buffers for it as zeroed memory
/// that is not there until it is used; grown later, they would be most of an idle worker.
pub(crate) const FRAME_MAX: u32 = 128 * 1024;

/// How a client begins to speak AMQP 0-9-1.
const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// How an alert of TLS begins, whatever its version.
const TLS_ALERT: [u8; 2] = [0x15, 0x03];

/// Where the broker is and who we are there. `Debug` and `Display` leave the password out.
#[derive(Clone)]
pub struct Endpoint {
    uri: AMQPUri,
    certificates: Certificates,
}

/// Why a text is no broker address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no broker address ({reason}); give amqp://user:password@host:5672/vhost, with the vhost / written as %2f"
)]
pub struct EndpointError {
    reason: String,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing answers there, or not in time.
    #[error("the broker at {endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// Where.
        endpoint: Box<Endpoint>,
        /// What the network said.
        reason: String,
    },
    /// It answers and does not let us in. Trying again without a change is of no use.
    #[error("the broker at {endpoint} refuses us: {reason}")]
    Refused {
        /// Where.
        endpoint: Box<Endpoint>,
        /// What the broker said.
        reason: String,
    },
    /// What answers over TLS is not the broker that was meant, as far as can be told. Trying again without a change is of
    /// no use.
    #[error("what answers at {endpoint} is not trusted: {reason}")]
    Untrusted {
        /// Where.
        endpoint: Box<Endpoint>,
        /// What is wrong with its certificate.
        reason: String,
    },
    /// Our own certificates cannot be used.
    #[error("there can be no connection over TLS: {0}")]
    Certificates(#[from] CertificatesError),
}

impl Endpoint {
    /// Takes `uri` as a broker address; `heartbeat` is how often both sides show that they are there.
    ///
    /// # Errors
    /// [`EndpointError`] when it is none.
    pub fn new(uri: &str, heartbeat: Duration) -> Result<Self, EndpointError> {
        let mut uri: AMQPUri = uri.parse().map_err(|reason: String| EndpointError { reason })?;
        if uri.query.heartbeat.is_none() {
            uri.query.heartbeat = Some(u16::try_from(heartbeat.as_secs().max(1)).unwrap_or(u16::MAX));
        }
        if uri.query.connection_timeout.is_none() {
            uri.query.connection_timeout = u64::try_from(PATIENCE.as_millis()).ok();
        }
        if uri.query.frame_max.is_none() {
            uri.query.frame_max = Some(FRAME_MAX);
        }
        Ok(Self { uri, certificates: Certificates::default() })
    }

    /// The same with these certificates, which count when the address is one for TLS.
    #[must_use]
    pub fn with_certificates(mut self, certificates: Certificates) -> Self {
        self.certificates = certificates;
        self
    }

    /// Whether connections are over TLS.
    #[must_use]
    pub fn is_over_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    /// The virtual host.
    #[must_use]
    pub fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    /// How often both sides show that they are there.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        self.uri.query.heartbeat.map_or(Duration::MAX, |seconds| Duration::from_secs(seconds.max(1).into()))
    }

    /// Opens a connection that the broker lists under `name`.
    ///
    /// # Errors
    /// [`ConnectError`]; a refusal is told apart from a broker that is away.
    pub async fn connect(&self, name: &str) -> Result<Connection, ConnectError> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = self.tls().await?;
        let connect = async move |uri: AMQPUri, _: Runtime<inbound::Parts>| {
            let stream = open(&uri, tls.as_ref(), &TokioRuntime::tokio_current()).await?;
            Ok(AsyncTcpStream::Plain(Inbound::new(stream)))
        };
        let attempt = Connection::connector(self.uri.clone(), inbound::runtime(), connect, properties);
        match tokio::time::timeout(PATIENCE, attempt).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) if was_cut_off(&error) => {
                Err(self.second_look().await.unwrap_or_else(|| self.explain(&error)))
            }
            Ok(Err(error)) => Err(self.explain(&error)),
            Err(_) => Err(self.unreachable(format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }

    /// What is to be said about a connection that the other side has cut off, if more than that can be found out. A server
    /// for TLS says why in an alert; but when it has been sent something that it does not read any more, the system may
    /// throw the alert away. So it is sent as little as it takes to get one.
    async fn second_look(&self) -> Option<ConnectError> {
        let look = async {
            if self.is_over_tls() {
                let runtime = lapin::runtime::default_runtime().ok()?;
                let tls = self.tls().await.ok()?;
                let read = async {
                    let mut stream = open(&self.uri, tls.as_ref(), &runtime).await?;
                    futures_util::AsyncReadExt::read(&mut stream, &mut [0]).await
                };
                let error = read.await.err()?;
                explain(&error, &self.uri.authority.host).map(|_| self.explain_io(&error))
            } else {
                let address = (self.uri.authority.host.as_str(), self.uri.authority.port);
                let mut stream = TcpStream::connect(address).await.ok()?;
                stream.write_all(PROTOCOL_HEADER).await.ok()?;
                let mut answer = [0; TLS_ALERT.len()];
                stream.read_exact(&mut answer).await.ok()?;
                let reason = "the port is one for TLS; its address begins with amqps://";
                (answer == TLS_ALERT).then(|| self.unreachable(reason.to_owned()))
            }
        };
        tokio::time::timeout(SECOND_LOOK, look).await.ok().flatten()
    }

    /// What makes a connection one over TLS, when it is to be.
    async fn tls(&self) -> Result<Option<RustlsConnector>, CertificatesError> {
        if self.is_over_tls() { self.certificates.connector().await.map(Some) } else { Ok(None) }
    }

    fn unreachable(&self, reason: String) -> ConnectError {
        ConnectError::Unreachable { endpoint: Box::new(self.clone()), reason }
    }

    fn refused(&self, reason: String) -> ConnectError {
        ConnectError::Refused { endpoint: Box::new(self.clone()), reason }
    }

    fn explain(&self, error: &lapin::Error) -> ConnectError {
        match error.kind() {
            ErrorKind::ProtocolError(amqp)
                if matches!(
                    amqp.kind(),
                    AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) | AMQPErrorKind::Soft(_)
                ) =>
            {
                self.refused(amqp.get_message().to_string())
            }
            ErrorKind::IOError(error) => self.explain_io(error),
            _ => self.unreachable(error.to_string()),
        }
    }

    fn explain_io(&self, error: &std::io::Error) -> ConnectError {
        match explain(error, &self.uri.authority.host) {
            Some(Failure::Untrusted(reason)) => {
                ConnectError::Untrusted { endpoint: Box::new(self.clone()), reason }
            }
            Some(Failure::Refused(reason)) => self.refused(reason),
            Some(Failure::Other(reason)) => self.unreachable(reason),
            None => self.unreachable(error.to_string()),
        }
    }

    /// Asks the broker what it is. The answer is the first thing that a broker says on any connection, before a login;
    /// the client library keeps it to itself, so it is read on a connection of its own.
    ///
    /// # Errors
    /// [`ConnectError::Unreachable`] when nothing that speaks AMQP 0-9-1 answers there.
    pub async fn server(&self) -> Result<Server, ConnectError> {
        match tokio::time::timeout(PATIENCE, self.greet()).await {
            Ok(Ok(server)) => Ok(server),
            Ok(Err(error)) => Err(self.explain_io(&error)),
            Err(_) => Err(self.unreachable(format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }

    async fn greet(&self) -> std::io::Result<Server> {
        let runtime = lapin::runtime::default_runtime().map_err(std::io::Error::other)?;
        let tls = self.tls().await.map_err(std::io::Error::other)?;
        let mut stream = open(&self.uri, tls.as_ref(), &runtime).await?;
        futures_util::AsyncWriteExt::write_all(&mut stream, PROTOCOL_HEADER).await?;
        let mut received = Vec::new();
        loop {
            let mut chunk = [0; 4096];
            let read = futures_util::AsyncReadExt::read(&mut stream, &mut chunk).await?;
            if read == 0 || received.len() > 64 * 1024 {
                return Err(std::io::Error::other("what answers does not speak AMQP 0-9-1"));
            }
            received.extend_from_slice(&chunk[..read]);
            if let Some(server) = Server::from_greeting(&received) {
                return Ok(server);
            }
        }
    }
}

/// Whether a connection was there and ended before it could be used.
fn was_cut_off(error: &lapin::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};

    match error.kind() {
        ErrorKind::IOError(error) => {
            matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
        }
        ErrorKind::ParsingError(_) => true,
        _ => false,
    }
}

/// Opens a stream to the broker, over TLS when there is something to make it with.
async fn open(
    uri: &AMQPUri,
    tls: Option<&RustlsConnector>,
    runtime: &TokioRuntime,
) -> std::io::Result<AsyncTcpStream<<Tokio as Reactor>::TcpStream>> {
    // The client library's own way to TLS trusts what the system trusts, whatever else it is given.
    let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..uri.clone() };
    let stream = plain.connect_async(runtime).await?;
    match tls {
        Some(tls) => stream.into_rustls(tls, &uri.authority.host).await,
        None => Ok(stream),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = &self.uri.authority;
        let vhost = if self.uri.vhost == "/" { "%2f" } else { &self.uri.vhost };
        write!(
            f,
            "{}://{}@{}:{}/{vhost}",
            self.uri.scheme, authority.userinfo.username, authority.host, authority.port
        )
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a broker says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// As `RabbitMQ`.
    pub product: String,
    /// As `3.10.8`.
    pub version: String,
}

impl Server {
    fn from_greeting(received: &[u8]) -> Option<Self> {
        let (_, frame) = frame::parse_frame(received).ok()?;
        let frame::AMQPFrame::Method(_, AMQPClass::Connection(connection::AMQPMethod::Start(start))) = frame
        else {
            return None;
        };
        let property = |key: &str| match start.server_properties.inner().get(key) {
            Some(AMQPValue::LongString(text)) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
            _ => String::new(),
        };
        Some(Self { product: property("product"), version: property("version") })
    }

    /// Major and minor version, when the version has the usual form.
    #[must_use]
    pub fn release(&self) -> Option<(u32, u32)> {
        let mut parts = self.version.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_never_shows_its_password() {
        let endpoint = Endpoint::new("amqp://user:s3cret@host:5673/%2f", Duration::from_secs(10)).unwrap();
        assert_eq!(endpoint.to_string(), "amqp://user@host:5673/%2f");
        assert_eq!(format!("{endpoint:?}"), "amqp://user@host:5673/%2f");
    }

    #[test]
    fn what_is_no_address_is_refused_without_showing_it() {
        for bad in ["", "http://x", "host:5672", "amqp://user:s3cret@ho st:port"] {
            let error = Endpoint::new(bad, Duration::from_secs(10)).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn the_release_of_a_server_is_read_from_its_version() {
        let server = |version: &str| Server { product: "RabbitMQ".into(), version: version.into() }.release();
        assert_eq!(server("3.10.8"), Some((3, 10)));
        assert_eq!(server("4.0.5-1"), Some((4, 0)));
        assert_eq!(server("nightly"), None);
    }
}
