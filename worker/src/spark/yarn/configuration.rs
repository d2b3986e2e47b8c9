//! Where the ResourceManager is, by the names of `yarn-site.xml`.
//!
//! This module must not connect to anything.

use std::path::Path;

use crate::hadoop::{Configuration, ConfigurationError};

/// Where the web interface listens when only the host is named (`yarn-default.xml`).
const HTTP_PORT: u16 = 8088;
const HTTPS_PORT: u16 = 8090;

/// The addresses of the web interface of every ResourceManager that the configuration in `folder` names, as
/// `http://host:8088`: one, or those of a pair of which one is active. None when it names none.
///
/// # Errors
/// [`ConfigurationError`].
pub fn addresses(folder: &Path) -> Result<Vec<String>, ConfigurationError> {
    let configuration = Configuration::read(folder, &["core-site.xml", "yarn-site.xml"])?;
    let is_secure = configuration.get("yarn.http.policy").as_deref() == Some("HTTPS_ONLY");
    let (scheme, property, port) = if is_secure {
        ("https", "yarn.resourcemanager.webapp.https.address", HTTPS_PORT)
    } else {
        ("http", "yarn.resourcemanager.webapp.address", HTTP_PORT)
    };
    let of = |suffix: &str| {
        let address = configuration.get(&format!("{property}{suffix}")).or_else(|| {
            let host = configuration.get(&format!("yarn.resourcemanager.hostname{suffix}"))?;
            Some(format!("{host}:{port}"))
        })?;
        Some(format!("{scheme}://{address}"))
    };
    let has_several = configuration.get("yarn.resourcemanager.ha.enabled").as_deref() == Some("true");
    match configuration.get("yarn.resourcemanager.ha.rm-ids") {
        Some(names) if has_several => {
            Ok(names.split(',').filter_map(|name| of(&format!(".{}", name.trim()))).collect())
        }
        _ => Ok(of("").into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses_of(properties: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let properties: String = properties
            .iter()
            .map(|(name, value)| format!("<property><name>{name}</name><value>{value}</value></property>"))
            .collect();
        let text = format!("<configuration>{properties}</configuration>");
        std::fs::write(folder.path().join("yarn-site.xml"), text).unwrap();
        addresses(folder.path()).unwrap()
    }

    #[test]
    fn every_resource_manager_of_a_configuration_is_known() {
        let host = ("yarn.resourcemanager.hostname", "rm");
        assert_eq!(addresses_of(&[host]), ["http://rm:8088"]);
        assert_eq!(addresses_of(&[host, ("yarn.http.policy", "HTTPS_ONLY")]), ["https://rm:8090"]);
        let web = ("yarn.resourcemanager.webapp.address", "${yarn.resourcemanager.hostname}:99");
        assert_eq!(addresses_of(&[host, web]), ["http://rm:99"]);
        let pair = [
            host,
            ("yarn.resourcemanager.ha.enabled", "true"),
            ("yarn.resourcemanager.ha.rm-ids", "one, two,three"),
            ("yarn.resourcemanager.hostname.one", "a"),
            ("yarn.resourcemanager.webapp.address.two", "b:1234"),
        ];
        assert_eq!(addresses_of(&pair), ["http://a:8088", "http://b:1234"]);
        assert_eq!(addresses_of(&[]), [""; 0]);
    }
}
