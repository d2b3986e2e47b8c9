//! What a `fileUrl` names. This module must not look at any file system.

use std::path::PathBuf;

/// What kind of place a URL names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// A file system of this machine.
    Local,
    /// Hadoop's.
    Hdfs,
    /// Amazon's, or one that speaks its protocol.
    S3,
}

/// A URL in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// What kind of place.
    pub scheme: Scheme,
    /// HDFS: `scheme://name-node:port`, or nothing for the one of the configuration. S3: the bucket. Local: nothing.
    pub authority: String,
    /// The path there, from its root.
    pub path: String,
}

impl Location {
    /// Takes a URL apart. `s3_endpoint` is the beginning of `http(s)://` URLs that are S3's.
    ///
    /// # Errors
    /// The end of a sentence that begins with the URL.
    pub fn read(url: &str, s3_endpoint: Option<&str>) -> Result<Self, String> {
        if url.chars().any(char::is_control) {
            return Err("has a control character".to_owned());
        }
        if url.starts_with('/') || url.starts_with("file:") {
            let path = local_path(url).ok_or("is no absolute path without `..` and a host")?;
            let path = path.to_str().ok_or("is not UTF-8")?.to_owned();
            return Ok(Self { scheme: Scheme::Local, authority: String::new(), path });
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err("is no URL and no absolute path".to_owned());
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if path.split('/').any(|step| matches!(step, "." | "..")) {
            return Err("has the step `.` or `..`".to_owned());
        }
        let path = path.to_owned();
        match scheme {
            "hdfs" | "viewfs" => {
                let authority =
                    if authority.is_empty() { String::new() } else { format!("{scheme}://{authority}") };
                Ok(Self { scheme: Scheme::Hdfs, authority, path })
            }
            "s3" | "s3a" | "s3n" => {
                if authority.is_empty() || authority.contains(['@', ':']) {
                    return Err(format!("names no bucket; give {scheme}://bucket/path"));
                }
                Ok(Self { scheme: Scheme::S3, authority: authority.to_owned(), path })
            }
            "http" | "https" => s3_behind_http(url, authority, &path, s3_endpoint),
            _ => Err(format!(
                "begins with {scheme:?}, which this worker does not know; give file:, hdfs:, s3a: or an absolute path"
            )),
        }
    }
}

/// The bucket and path of an `http(s)://` URL: of the endpoint that the worker knows, or of Amazon's own.
fn s3_behind_http(url: &str, host: &str, path: &str, endpoint: Option<&str>) -> Result<Location, String> {
    let below = endpoint.and_then(|endpoint| url.strip_prefix(endpoint)).filter(|rest| rest.starts_with('/'));
    let in_path = |path: &str| {
        let path = path.trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        (bucket.to_owned(), format!("/{key}"))
    };
    let (bucket, path) = match (below, host.strip_suffix(".amazonaws.com")) {
        (Some(rest), _) => in_path(rest),
        (None, Some(service))
            if service == "s3" || service.starts_with("s3.") || service.starts_with("s3-") =>
        {
            in_path(path)
        }
        (None, Some(service)) => match service.find(".s3") {
            Some(end) => (service[..end].to_owned(), path.to_owned()),
            None => (String::new(), String::new()),
        },
        (None, None) => {
            return Err(
                "is not of the S3 endpoint that this worker knows (storage.s3_endpoint, AWS_ENDPOINT_URL)"
                    .to_owned(),
            );
        }
    };
    if bucket.is_empty() {
        return Err("names no bucket of S3".to_owned());
    }
    Ok(Location { scheme: Scheme::S3, authority: bucket, path })
}

/// The path on this machine that a `fileUrl` names: `/x`, `file:/x` or `file:///x`. A relative one lies in a working
/// directory, which is new each time; the root itself is nobody's file.
#[must_use]
pub fn local_path(url: &str) -> Option<PathBuf> {
    let path = match url.strip_prefix("file:") {
        Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
        None => url,
    };
    let path = path.trim_end_matches('/');
    let is_plain = path.starts_with('/') && !path.split('/').any(|part| part == "..") && !path.contains('\0');
    is_plain.then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_as_spark_would_read_it() {
        let endpoint = Some("http://127.0.0.1:9000");
        for (url, expected) in [
            ("/a/b", Some((Scheme::Local, "", "/a/b"))),
            ("file:///a/b/", Some((Scheme::Local, "", "/a/b"))),
            ("hdfs:///a", Some((Scheme::Hdfs, "", "/a"))),
            ("hdfs://nn:8020/a", Some((Scheme::Hdfs, "hdfs://nn:8020", "/a"))),
            ("s3a://bucket/a/b", Some((Scheme::S3, "bucket", "/a/b"))),
            ("s3://bucket", Some((Scheme::S3, "bucket", ""))),
            ("http://127.0.0.1:9000/bucket/a", Some((Scheme::S3, "bucket", "/a"))),
            ("https://bucket.s3.eu-west-1.amazonaws.com/a", Some((Scheme::S3, "bucket", "/a"))),
            ("https://s3.eu-west-1.amazonaws.com/bucket/a", Some((Scheme::S3, "bucket", "/a"))),
            ("http://127.0.0.1:90001/bucket/a", None),
            ("http://169.254.169.254/latest", None),
            ("https://example.com/a", None),
            ("s3a://", None),
            ("s3a://key:secret@bucket/a", None),
            ("hdfs://nn/a/../b", None),
            ("file://host/a", None),
            ("relative/x", None),
            ("ftp://host/a", None),
            ("/a\nb", None),
            ("/", None),
        ] {
            let location = Location::read(url, endpoint).ok();
            let found = location.as_ref().map(|l| (l.scheme, l.authority.as_str(), l.path.as_str()));
            assert_eq!(found, expected, "{url}");
        }
    }
}
