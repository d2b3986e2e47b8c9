//! Hadoop's configuration: `core-site.xml`, `hdfs-site.xml` and `yarn-site.xml` in the folder that `HADOOP_CONF_DIR` names.
//!
//! A later property wins over an earlier one of the same name, and `${name}` in a value stands for another property.
//! Nothing else of what Hadoop does with these files is done: defaults are for those who ask.
//!
//! This module must not know what a property means.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// How often `${name}` is replaced in one value, as Hadoop does it.
const MOST_SUBSTITUTIONS: usize = 20;

/// A file of the configuration that is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationError {
    /// It is there and cannot be read.
    #[error("{path} cannot be read: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// It is no XML.
    #[error("{path} is no XML: {reason}")]
    NoXml {
        /// The file.
        path: PathBuf,
        /// Why, with its place.
        reason: String,
    },
}

/// The properties of some files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration(HashMap<String, String>);

impl Configuration {
    /// Reads those of `files` that are there in `folder`, one over the other.
    ///
    /// # Errors
    /// [`ConfigurationError`], with the file.
    pub fn read(folder: &Path, files: &[&str]) -> Result<Self, ConfigurationError> {
        let mut properties = HashMap::new();
        for file in files {
            let path = folder.join(file);
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(ConfigurationError::Unreadable { path, reason: error.to_string() });
                }
            };
            let document = roxmltree::Document::parse(&text)
                .map_err(|error| ConfigurationError::NoXml { path, reason: error.to_string() })?;
            let value_of = |property: roxmltree::Node<'_, '_>, name: &str| {
                let child = property.children().find(|child| child.has_tag_name(name))?;
                Some(child.text()?.trim().to_owned())
            };
            for property in document.descendants().filter(|node| node.has_tag_name("property")) {
                if let (Some(name), Some(value)) = (value_of(property, "name"), value_of(property, "value")) {
                    properties.insert(name, value);
                }
            }
        }
        Ok(Self(properties))
    }

    /// The value of a property that is there and not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        let mut value = self.0.get(name)?.clone();
        for _ in 0..MOST_SUBSTITUTIONS {
            let Some((start, rest)) = value.split_once("${") else { break };
            let Some((inner, end)) = rest.split_once('}') else { break };
            // What names nothing stands for itself, and nothing behind it is looked at.
            let Some(found) = self.0.get(inner) else { break };
            value = format!("{start}{found}{end}");
        }
        Some(value).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_read_as_hadoop_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "core-site.xml",
            "<?xml version=\"1.0\"?><configuration><property>\n<name> a </name>\n<value> ${host}:1 </value></property>\
             <property><name>host</name><value>early</value></property>\
             <property><name>odd</name><value>${none}/${host}</value></property>\
             <property><name>self</name><value>${self}x</value></property>\
             <property><name>empty</name><value/></property></configuration>",
        );
        write(
            "yarn-site.xml",
            "<configuration><property><name>host</name><value>late</value></property></configuration>",
        );
        let files = ["core-site.xml", "nowhere.xml", "yarn-site.xml"];
        let configuration = Configuration::read(folder.path(), &files).unwrap();
        assert_eq!(configuration.get("a").as_deref(), Some("late:1"));
        assert_eq!(configuration.get("odd").as_deref(), Some("${none}/${host}"));
        assert!(configuration.get("self").unwrap().ends_with("xxx"));
        assert_eq!((configuration.get("empty"), configuration.get("none")), (None, None));
        write("core-site.xml", "<configuration>");
        let error = Configuration::read(folder.path(), &files).unwrap_err().to_string();
        assert!(error.contains("core-site.xml is no XML: "), "{error}");
    }
}
