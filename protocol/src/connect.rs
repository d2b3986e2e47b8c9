//! Connecting to the broker: where it is, who we are, and what to say when it does not let us in.
//!
//! This module must not know what is sent over the connection. It never shows a password: [`Endpoint`] prints itself
//! without one.

use std::fmt;
use std::time::Duration;

use amq_protocol::frame;
use lapin::protocol::{AMQPClass, AMQPErrorKind, AMQPHardError, connection};
use lapin::types::AMQPValue;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, ErrorKind};

/// How long a connection may take to be there, TLS and login included.
const PATIENCE: Duration = Duration::from_secs(15);

/// The largest frame, in bytes: RabbitMQ's own default, so that no message's headers, which have to fit into one frame, are
/// too large for us. Said at once rather than negotiated, the client library takes its buffers for it as zeroed memory
/// that is not there until it is used; grown later, they would be most of an idle worker.
const FRAME_MAX: u32 = 128 * 1024;

/// Where the broker is and who we are there. `Debug` and `Display` leave the password out.
#[derive(Clone)]
pub struct Endpoint {
    uri: AMQPUri,
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
        Ok(Self { uri })
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
        let attempt = Connection::connect_uri(self.uri.clone(), properties);
        match tokio::time::timeout(PATIENCE, attempt).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.explain(&error)),
            Err(_) => Err(self.unreachable(format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }

    fn unreachable(&self, reason: String) -> ConnectError {
        ConnectError::Unreachable { endpoint: Box::new(self.clone()), reason }
    }

    fn explain(&self, error: &lapin::Error) -> ConnectError {
        if let ErrorKind::ProtocolError(amqp) = error.kind()
            && let AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) | AMQPErrorKind::Soft(_) = amqp.kind()
        {
            return ConnectError::Refused {
                endpoint: Box::new(self.clone()),
                reason: amqp.get_message().to_string(),
            };
        }
        self.unreachable(error.to_string())
    }

    /// Asks the broker what it is. The answer is the first thing that a broker says on any connection, before a login;
    /// the client library keeps it to itself, so it is read on a connection of its own.
    ///
    /// # Errors
    /// [`ConnectError::Unreachable`] when nothing that speaks AMQP 0-9-1 answers there.
    pub async fn server(&self) -> Result<Server, ConnectError> {
        match tokio::time::timeout(PATIENCE, self.greet()).await {
            Ok(Ok(server)) => Ok(server),
            Ok(Err(error)) => Err(self.unreachable(error.to_string())),
            Err(_) => Err(self.unreachable(format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }

    async fn greet(&self) -> std::io::Result<Server> {
        use lapin::tcp::AMQPUriTcpExt;

        let runtime = lapin::runtime::default_runtime().map_err(std::io::Error::other)?;
        let mut stream = self.uri.connect_async(&runtime).await?;
        futures_util::AsyncWriteExt::write_all(&mut stream, b"AMQP\x00\x00\x09\x01").await?;
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
