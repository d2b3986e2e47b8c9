//! Connections over TLS: whom we trust, who we are, and what to say when the two sides do not come together.
//!
//! This module must not know what is sent over a connection, nor where its settings come from.

use std::path::{Path, PathBuf};

use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, Error as TlsError};
use serde::{Deserialize, Serialize};

/// The certificates of a connection over TLS, as paths: the files are read for every connection, so that certificates
/// can be renewed under a running program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    /// The certificates of the authorities that are trusted, in PEM. Without it those that the system trusts, or that
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    pub authorities: Option<PathBuf>,
    /// Our own certificate, where the broker asks for one.
    pub own: Option<OwnCertificate>,
}

/// A client's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnCertificate {
    /// The certificate and those between it and the authority, in PEM.
    pub chain: PathBuf,
    /// Its private key, in PEM, not encrypted.
    pub key: PathBuf,
}

/// Why our own side of TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// A file cannot be read.
    #[error("{path} cannot be read: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system has no certificates of authorities.
    #[error("this machine trusts no authority ({0}); name the broker's own in broker.ca_file")]
    NoAuthorities(std::io::Error),
}

impl Certificates {
    /// What makes connections with these certificates.
    ///
    /// # Errors
    /// [`CertificatesError`].
    pub(crate) async fn connector(&self) -> Result<RustlsConnector, CertificatesError> {
        let trusted = match &self.authorities {
            None => {
                RustlsConnectorConfig::new_with_native_certs().map_err(CertificatesError::NoAuthorities)?
            }
            Some(path) => RustlsConnectorConfig::default().with_parsable_certificates(chain(path).await?),
        };
        let Some(OwnCertificate { chain: path, key }) = &self.own else {
            return trusted.connector_with_no_client_auth().map_err(|error| self.unusable(&error));
        };
        let own = chain(path).await?;
        let key = PrivateKeyDer::from_pem_slice(&read(key).await?)
            .map_err(|error| unusable(key, format!("has no private key that can be used: {error}")))?;
        trusted
            .connector_with_single_cert(own, key)
            .map_err(|error| unusable(path, format!("does not go with the private key: {error}")))
    }

    fn unusable(&self, error: &std::io::Error) -> CertificatesError {
        unusable(self.authorities.as_deref().unwrap_or(Path::new("the system")), error.to_string())
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, CertificatesError> {
    tokio::fs::read(path)
        .await
        .map_err(|source| CertificatesError::Unreadable { path: path.to_owned(), source })
}

async fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificatesError> {
    let text = read(path).await?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(unusable(path, "has no certificate in PEM".to_owned()))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unusable(path, format!("has a certificate that cannot be read: {error}"))),
    }
}

fn unusable(path: &Path, reason: String) -> CertificatesError {
    CertificatesError::Unusable { path: path.to_owned(), reason }
}

/// What went wrong between the two sides.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// We do not take the broker for the one that was meant.
    Untrusted(String),
    /// The broker does not take us.
    Refused(String),
    /// They do not understand each other.
    Other(String),
}

/// Words for an error of a connection to `host` that comes from TLS; `None` for any other.
pub(crate) fn explain(error: &std::io::Error, host: &str) -> Option<Failure> {
    let error = error.get_ref()?.downcast_ref::<TlsError>()?;
    Some(match error {
        TlsError::InvalidCertificate(why) => Failure::Untrusted(untrusted(why, host)),
        TlsError::InvalidMessage(_) => {
            Failure::Other("what answers does not speak TLS; is it the port for amqp://?".to_owned())
        }
        TlsError::AlertReceived(AlertDescription::CertificateRequired) => Failure::Refused(
            "it wants a client's certificate; name one in broker.certificate_file and broker.key_file"
                .to_owned(),
        ),
        TlsError::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        ) => Failure::Refused(format!(
            "it does not take our certificate ({alert:?}); see broker.certificate_file and broker.key_file"
        )),
        other => Failure::Other(format!("TLS: {other}")),
    })
}

fn untrusted(why: &CertificateError, host: &str) -> String {
    match why {
        CertificateError::UnknownIssuer => {
            "its certificate is of no authority that is trusted; name the authority's certificate in broker.ca_file"
                .to_owned()
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            format!("its certificate is not for the host {host}, but for {}", names(presented))
        }
        CertificateError::NotValidForName => format!("its certificate is not for the host {host}"),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate has expired, {}", day(not_after.as_secs()))
        }
        CertificateError::Expired => "its certificate has expired".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is not valid before {}", day(not_before.as_secs()))
        }
        other => format!("its certificate cannot be accepted: {other}"),
    }
}

/// The names in a certificate, which come as `DnsName("localhost")` and `IpAddress(127.0.0.1)`.
fn names(presented: &[String]) -> String {
    if presented.is_empty() {
        return "no host at all".to_owned();
    }
    let inner = |name: &String| match (name.find('('), name.rfind(')')) {
        (Some(start), Some(end)) if start < end => name[start + 1..end].trim_matches('"').to_owned(),
        _ => name.clone(),
    };
    presented.iter().map(inner).collect::<Vec<_>>().join(", ")
}

fn day(seconds: u64) -> String {
    let moment = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    moment.map_or_else(|| format!("second {seconds}"), |moment| moment.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(error: TlsError) -> Failure {
        explain(&std::io::Error::other(error), "rabbit.example").unwrap()
    }

    #[test]
    fn a_certificate_that_is_not_accepted_is_told_with_the_reason() {
        let failure = explained(TlsError::InvalidCertificate(CertificateError::UnknownIssuer));
        assert!(matches!(failure, Failure::Untrusted(reason) if reason.contains("broker.ca_file")));
        let presented = vec![r#"DnsName("a.example")"#.to_owned(), "IpAddress(10.0.0.1)".to_owned()];
        let expected = rustls::pki_types::ServerName::try_from("rabbit.example").unwrap();
        let failure = explained(TlsError::InvalidCertificate(CertificateError::NotValidForNameContext {
            expected,
            presented,
        }));
        assert_eq!(
            failure,
            Failure::Untrusted(
                "its certificate is not for the host rabbit.example, but for a.example, 10.0.0.1".into()
            )
        );
    }

    #[test]
    fn an_error_that_is_none_of_tls_is_left_to_others() {
        assert_eq!(explain(&std::io::ErrorKind::ConnectionRefused.into(), "h"), None);
        assert_eq!(explain(&std::io::Error::other("x"), "h"), None);
    }

    #[tokio::test]
    async fn a_file_that_has_no_certificate_is_named() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let certificates = Certificates { authorities: Some(path.clone()), own: None };
        let error = certificates.connector().await.unwrap_err().to_string();
        assert_eq!(error, format!("{} has no certificate in PEM", path.display()));
        let missing = Certificates { authorities: Some("/no/such/ca.pem".into()), own: None };
        let error = missing.connector().await.unwrap_err().to_string();
        assert!(error.starts_with("/no/such/ca.pem cannot be read: "), "{error}");
    }
}
