//! `deploy/cluster` itself: what it starts, where, and that nothing of it is left.

use std::net::TcpListener;
use std::path::Path;

use nix::sys::signal::Signal;
use spark_runtime_tests::cluster::{Cluster, Daemon, Part};

/// The links in /tmp by which a cluster is known whose folder has no plain name.
fn links_to(folder: &Path) -> usize {
    let entries = std::fs::read_dir("/tmp").unwrap().flatten();
    let ours =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("spark-runtime-cluster-"));
    ours.filter(|entry| std::fs::read_link(entry.path().join("link")).is_ok_and(|target| target == folder))
        .count()
}

#[test]
fn a_cluster_steps_around_a_busy_port_and_everything_that_it_started_ends_with_it() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().canonicalize().unwrap().join("a cluster, in here");
    let cluster = Cluster::at(folder.clone());
    let only = [Part::Spark];
    assert_eq!(cluster.command("status", &[]).status.code(), Some(3));
    cluster.up(&only);
    let address = cluster.setting("SPARK_MASTER");
    let worker = cluster.pid(Daemon::Worker);
    // Once more changes nothing.
    cluster.up(&only);
    assert_eq!((cluster.setting("SPARK_MASTER"), cluster.pid(Daemon::Worker)), (address.clone(), worker));
    let told = cluster.command("status", &[]);
    let words = String::from_utf8(told.stdout).unwrap();
    assert_eq!(told.status.code(), Some(0), "{words}");
    assert!(
        words.contains("namenode: stopped\n") && words.contains("master: running on 127.0.0.1:"),
        "{words}"
    );
    // A part that is gone is told, and started again.
    cluster.signal(Daemon::Worker, Signal::SIGKILL);
    assert_eq!(cluster.command("status", &[]).status.code(), Some(3));
    assert_eq!(cluster.command("down", &[]).status.code(), Some(0));
    assert!(!folder.join("cluster.env").exists() && links_to(&folder) == 0);
    let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
    let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    cluster.up(&only);
    assert_ne!(cluster.setting("SPARK_MASTER"), address);
    assert!(cluster.setting("HADOOP_CONF_DIR").ends_with("/link/conf"));
    assert_eq!(links_to(&folder), 1);
    let worker = cluster.pid(Daemon::Worker);
    cluster.remove();
    // One that nobody has waited for yet has no command line any more.
    let left = std::fs::read(format!("/proc/{worker}/cmdline")).unwrap_or_default();
    assert_eq!(String::from_utf8_lossy(&left), "");
    assert!(!folder.exists() && links_to(&folder) == 0);
}
