//! S3, by the crate object_store.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{ClientOptions, ObjectStore, RetryConfig};

/// How long one request may take: the largest is one part of a file.
const REQUEST: Duration = Duration::from_secs(60);
/// How long a request that fails is tried again; less than what a whole step may take.
const RETRY: Duration = Duration::from_secs(50);

/// A bucket. Region and credentials are those of the worker's environment (`AWS_REGION`, `AWS_ACCESS_KEY_ID` and so on), a
/// web identity, or the machine's role.
pub(super) fn open(bucket: &str, endpoint: Option<&str>) -> Result<Arc<dyn ObjectStore>, String> {
    // The one provider of cryptography that this program is built with. That it was set before is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = ClientOptions::new()
        .with_timeout(REQUEST)
        .with_connect_timeout(Duration::from_secs(10))
        .with_allow_http(endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")));
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(options)
        .with_retry(RetryConfig { retry_timeout: RETRY, max_retries: 8, ..RetryConfig::default() });
    if let Some(endpoint) = endpoint {
        // Over what the environment says.
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    let store = builder.build().map_err(|error| format!("is on S3, which cannot be used: {error}"))?;
    Ok(Arc::new(store))
}
