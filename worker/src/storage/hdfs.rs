//! HDFS, by the crate hdfs-native: no Java, no libhdfs.

use std::path::Path;
use std::sync::Arc;

use hdfs_native::ClientBuilder;
use hdfs_native_object_store::HdfsObjectStore;
use object_store::ObjectStore;

/// The store behind `authority` (`hdfs://name-node:port`, or nothing for that of the configuration in `folder`).
pub(super) fn open(authority: &str, folder: Option<&Path>) -> Result<Arc<dyn ObjectStore>, String> {
    let mut builder = ClientBuilder::new();
    // Without a runtime of its own to make, the client costs no thread.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        builder = builder.with_io_runtime(runtime);
    }
    if let Some(folder) = folder {
        builder = builder.with_config_dir(folder.display().to_string());
    }
    if !authority.is_empty() {
        builder = builder.with_url(authority);
    }
    let unusable = |error: hdfs_native::HdfsError| {
        format!("is on HDFS, whose configuration does not do (HADOOP_CONF_DIR): {error}")
    };
    Ok(Arc::new(HdfsObjectStore::new(builder.build().map_err(unusable)?)))
}

/// `fs.defaultFS` in a folder with Hadoop's configuration, when it is one to go to.
pub(super) fn default_file_system(folder: &Path) -> Result<Option<String>, String> {
    let path = folder.join("core-site.xml");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be told: {} cannot be read: {error}", path.display())),
    };
    let document = roxmltree::Document::parse(&text)
        .map_err(|error| format!("cannot be told: {} is no XML: {error}", path.display()))?;
    let value_of = |property: roxmltree::Node<'_, '_>, name: &str| {
        let child = property.children().find(|child| child.has_tag_name(name))?;
        Some(child.text()?.trim().to_owned())
    };
    let properties = document.descendants().filter(|node| node.has_tag_name("property"));
    let mut named = properties
        .filter(|property| value_of(*property, "name").as_deref() == Some("fs.defaultFS"))
        .filter_map(|property| value_of(property, "value"));
    Ok(named.next_back().filter(|value| !value.starts_with("file:")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_file_system_is_that_of_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(default_file_system(folder.path()), Ok(None));
        for (value, expected) in [("hdfs://nn:8020", Some("hdfs://nn:8020")), ("file:///", None)] {
            let text = format!(
                "<?xml version=\"1.0\"?><configuration><property><name>a</name><value>b</value></property>\
                 <property>\n<name> fs.defaultFS </name>\n<value>{value}</value></property></configuration>"
            );
            std::fs::write(folder.path().join("core-site.xml"), text).unwrap();
            assert_eq!(default_file_system(folder.path()), Ok(expected.map(str::to_owned)));
        }
        std::fs::write(folder.path().join("core-site.xml"), "<configuration>").unwrap();
        assert!(default_file_system(folder.path()).unwrap_err().contains("is no XML"));
    }
}
