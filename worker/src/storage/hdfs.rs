//! HDFS, by the crate hdfs-native: no Java, no libhdfs.

use std::path::Path;
use std::sync::Arc;

use hdfs_native::acl::{AclEntry, AclEntryScope, AclEntryType, FsAction};
use hdfs_native::{Client, ClientBuilder, HdfsError};
use hdfs_native_object_store::HdfsObjectStore;
use object_store::{Error, ObjectStore};

use super::Actor;
use crate::hadoop::Configuration;

/// How often a NameNode that cannot be reached is tried, and the others of its name service in turn; with the client's own
/// pauses in between that is about a quarter of a minute. Its own default is several minutes, longer than any step here
/// may take, so that nobody would be told what is wrong.
const ATTEMPTS: (&str, &str) = ("dfs.client.failover.max.attempts", "5");

/// The client of `authority` (`hdfs://name-node:port`, or nothing for that of the configuration in `folder`), for `actor`.
pub(super) fn open(authority: &str, folder: Option<&Path>, actor: &Actor) -> Result<Client, String> {
    let mut builder = ClientBuilder::new();
    match actor {
        Actor::Worker => {}
        Actor::User(user) => builder = builder.with_user(user),
        Actor::Principal { principal, keytab } => {
            builder =
                builder.with_kerberos_principal(principal).with_kerberos_keytab(keytab.display().to_string());
        }
    }
    // Without a runtime of its own to make, the client costs no thread.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        builder = builder.with_io_runtime(runtime);
    }
    let mut attempts = None;
    if let Some(folder) = folder {
        builder = builder.with_config_dir(folder.display().to_string());
        attempts = property(folder, "hdfs-site.xml", ATTEMPTS.0)?;
    }
    if attempts.is_none() {
        builder = builder.with_config([ATTEMPTS]);
    }
    if !authority.is_empty() {
        builder = builder.with_url(authority);
    }
    let unusable = |error: HdfsError| match (&error, authority.split_once("://")) {
        (HdfsError::InvalidArgument(reason), Some((_, name))) if reason.contains("No NameNode hosts") => {
            format!("is on HDFS, and no configuration names the NameNodes of {name:?} (HADOOP_CONF_DIR)")
        }
        _ => format!("is on HDFS, whose configuration does not do (HADOOP_CONF_DIR): {error}"),
    };
    builder.build().map_err(unusable)
}

/// The store that a client goes to.
pub(super) fn store(client: Client) -> Arc<dyn ObjectStore> {
    Arc::new(HdfsObjectStore::new(client))
}

/// The path on HDFS that one of the store stands for.
pub(super) fn absolute(path: &object_store::path::Path) -> String {
    format!("/{path}")
}

/// An error of the client, as the store would give it.
fn of_store(error: HdfsError) -> Error {
    Error::Generic { store: "HDFS", source: Box::new(error) }
}

/// Makes a folder and those that lead to it, which others may go through; those that are there stay as they are.
pub(super) async fn make_folder(client: &Client, path: &str) -> Result<(), Error> {
    client.mkdirs(path, 0o755, true).await.map_err(of_store)
}

/// Makes a folder and lets `user` write there, and into all that will be in it; its owner may do the same with what `user`
/// makes there.
pub(super) async fn share_folder(client: &Client, path: &str, user: &str) -> Result<(), Error> {
    make_folder(client, path).await?;
    let owner = client.get_file_info(path).await.map_err(of_store)?.owner;
    let entry = |scope, name: &str| {
        AclEntry::new(AclEntryType::User, scope, FsAction::PermAll, Some(name.to_owned()))
    };
    let entries = vec![
        entry(AclEntryScope::Access, user),
        entry(AclEntryScope::Default, user),
        entry(AclEntryScope::Default, &owner),
    ];
    client.modify_acl_entries(path, entries).await.map_err(of_store)
}

/// Looks into a folder, which whoever the client acts for has to get to.
pub(super) async fn look_into(client: &Client, path: &str) -> Result<(), Error> {
    client.list_status(path, false).await.map(drop).map_err(of_store)
}

/// Lets everybody read a file.
pub(super) async fn open_to_all(client: &Client, path: &str) -> Result<(), Error> {
    client.set_permission(path, 0o644).await.map_err(of_store)
}

/// The file, or the first folder that leads to it, that others than its owner and its group cannot read or go through.
pub(super) async fn closed_to_others(client: &Client, path: &str) -> Result<Option<String>, Error> {
    let folders = path.match_indices('/').map(|(end, _)| if end == 0 { "/" } else { &path[..end] });
    for folder in folders {
        let status = client.get_file_info(folder).await.map_err(of_store)?;
        if status.permission & 0o001 == 0 {
            return Ok(Some(folder.to_owned()));
        }
    }
    let status = client.get_file_info(path).await.map_err(of_store)?;
    Ok((status.permission & 0o004 == 0).then(|| path.to_owned()))
}

/// `fs.defaultFS` in a folder with Hadoop's configuration, when it is one to go to.
pub(super) fn default_file_system(folder: &Path) -> Result<Option<String>, String> {
    let named = property(folder, "core-site.xml", "fs.defaultFS")?;
    Ok(named.filter(|value| !value.starts_with("file:")))
}

/// A property in a file of Hadoop's configuration, when the file is there and has it.
fn property(folder: &Path, file: &str, name: &str) -> Result<Option<String>, String> {
    let configuration =
        Configuration::read(folder, &[file]).map_err(|error| format!("cannot be told: {error}"))?;
    Ok(configuration.get(name))
}

/// What HDFS means by an error: what kind it is, and a reason that a user can read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The path leads through a file.
    NoFolder(String),
    /// It will not go better if it is only tried again.
    Refused(String),
    /// It may.
    Failed(String),
}

/// Reads an error of the store; `None` when it is not one of HDFS.
pub(super) fn meaning(error: &Error) -> Option<Meaning> {
    let Error::Generic { source, .. } = error else { return None };
    Some(meaning_of(source.downcast_ref::<HdfsError>()?))
}

/// What an error of the client means.
pub(super) fn meaning_of(error: &HdfsError) -> Meaning {
    match error {
        HdfsError::RPCError(class, message) | HdfsError::FatalRPCError(class, message) => {
            remote(class.rsplit('.').next().unwrap_or(class), first_line(message))
        }
        HdfsError::IOError(error) => Meaning::Failed(format!("HDFS cannot be reached: {error}")),
        error @ (HdfsError::SASLError(_) | HdfsError::GSSAPIError(..) | HdfsError::NoSASLMechanism) => {
            Meaning::Refused(format!("HDFS does not let the worker in: {error}"))
        }
        error => Meaning::Failed(error.to_string()),
    }
}

/// What an exception of the NameNode means, by the name of its class without the package.
fn remote(class: &str, message: &str) -> Meaning {
    match class {
        "AccessControlException" | "ParentNotDirectoryException"
            if message.contains("is not a directory") =>
        {
            let file = message.split(" (is not").next().unwrap_or(message);
            Meaning::NoFolder(format!("{file} is a file, and no folder"))
        }
        "AccessControlException" => Meaning::Refused(format!("HDFS denies it: {message}")),
        "AuthorizationException" | "InvalidToken" => {
            Meaning::Refused(format!("HDFS does not let the worker in: {message}"))
        }
        _ if class.ends_with("QuotaExceededException") => {
            Meaning::Refused(format!("a quota of HDFS does not allow it: {message}"))
        }
        "SafeModeException" => {
            Meaning::Failed(format!("HDFS is in safe mode and takes no changes: {message}"))
        }
        "StandbyException" => Meaning::Failed(format!("no NameNode is active: {message}")),
        "IOException" if message.contains("must both be directories") => {
            Meaning::Refused("a folder lies in the place of the file".to_owned())
        }
        "IOException" | "RemoteException" => Meaning::Failed(format!("HDFS says: {message}")),
        _ => Meaning::Failed(format!("HDFS says {class}: {message}")),
    }
}

/// What stands before the lines that say where in the NameNode's own source it was.
fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default().trim()
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

    #[test]
    fn what_a_name_node_says_is_told_in_words_and_without_its_own_source() {
        let of = |class: &str, message: &str| {
            let source = HdfsError::RPCError(class.to_owned(), message.to_owned());
            meaning(&Error::Generic { store: "HDFS", source: Box::new(source) }).unwrap()
        };
        assert_eq!(
            of(
                "org.apache.hadoop.security.AccessControlException",
                "Permission denied: user=ann, access=WRITE, inode=\"/\":root:supergroup:drwxr-xr-x\n\tat org.apache.X(X.java:1)"
            ),
            Meaning::Refused(
                "HDFS denies it: Permission denied: user=ann, access=WRITE, inode=\"/\":root:supergroup:drwxr-xr-x"
                    .to_owned()
            )
        );
        assert_eq!(
            of("org.apache.hadoop.security.AccessControlException", "/data/hi (is not a directory)\n\tat x"),
            Meaning::NoFolder("/data/hi is a file, and no folder".to_owned())
        );
        assert_eq!(
            of(
                "org.apache.hadoop.hdfs.protocol.DSQuotaExceededException",
                "The DiskSpace quota of /s is exceeded"
            ),
            Meaning::Refused(
                "a quota of HDFS does not allow it: The DiskSpace quota of /s is exceeded".to_owned()
            )
        );
        assert_eq!(
            of(
                "org.apache.hadoop.hdfs.server.namenode.SafeModeException",
                "Cannot create file/x.\nResources are low"
            ),
            Meaning::Failed("HDFS is in safe mode and takes no changes: Cannot create file/x.".to_owned())
        );
        assert_eq!(
            of("java.io.IOException", "Source /a/.m.tmp.1 and destination /a/m must both be directories"),
            Meaning::Refused("a folder lies in the place of the file".to_owned())
        );
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = Error::Generic { store: "HDFS", source: Box::new(HdfsError::IOError(refused)) };
        assert_eq!(
            meaning(&error),
            Some(Meaning::Failed("HDFS cannot be reached: connection refused".to_owned()))
        );
        assert_eq!(
            meaning(&Error::NotImplemented { operation: String::new(), implementer: String::new() }),
            None
        );
    }

    #[test]
    fn a_name_service_that_nobody_configured_is_told_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            open("hdfs://production", Some(folder.path()), &Actor::Worker).map(drop),
            Err("is on HDFS, and no configuration names the NameNodes of \"production\" (HADOOP_CONF_DIR)"
                .to_owned())
        );
    }
}
