//! A real ResourceManager that wants a login by Kerberos over HTTP, and a real KDC. `tests/run` says where that one is.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use spark_runtime_protocol::event::FailureClass;
use spark_runtime_tests::broker::Vhost;
use spark_runtime_tests::cluster::{Cluster, Daemon, Part};
use spark_runtime_tests::program::Worker;
use spark_runtime_tests::until;

use crate::spark::{DELAYS, spark_job};

const REALM: &str = "EXAMPLE.COM";

/// A port that nobody uses at this moment.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// A KDC of one test, with a realm of its own.
struct Kdc {
    root: PathBuf,
    folder: tempfile::TempDir,
    server: Option<Child>,
    port: u16,
}

impl Kdc {
    async fn start() -> Self {
        let root = std::env::var("SPARK_RUNTIME_TEST_KDC").unwrap_or_else(|_| {
            panic!("SPARK_RUNTIME_TEST_KDC is not set; run tests/run, which gets the real KDC")
        });
        let folder = tempfile::tempdir().unwrap();
        let mut kdc = Self { root: root.into(), folder, server: None, port: free_port() };
        let plugins = format!(
            "[dbmodules]\n  db_module_dir = {}\n",
            kdc.libraries().join("krb5/plugins/kdb").display()
        );
        let (place, port) = (kdc.folder.path().display().to_string(), kdc.port);
        std::fs::write(
            kdc.configuration(),
            format!(
                "[libdefaults]\n  default_realm = {REALM}\n  dns_lookup_kdc = false\n  dns_lookup_realm = false\n  \
                 dns_canonicalize_hostname = false\n  rdns = false\n  udp_preference_limit = 1\n[realms]\n  {REALM} = {{\n    \
                 kdc = 127.0.0.1:{port}\n  }}\n{plugins}"
            ),
        )
        .unwrap();
        std::fs::write(
            kdc.folder.path().join("kdc.conf"),
            format!(
                "[kdcdefaults]\n  kdc_listen = 127.0.0.1:{port}\n  kdc_tcp_listen = 127.0.0.1:{port}\n[realms]\n  {REALM} = {{\n    \
                 database_name = {place}/principal\n    key_stash_file = {place}/stash\n  }}\n{plugins}"
            ),
        )
        .unwrap();
        kdc.run("kdb5_util", &["create", "-s", "-P", "secret", "-r", REALM]);
        kdc.server = Some(kdc.command("krb5kdc").arg("-n").spawn().unwrap());
        until("the KDC", async || TcpStream::connect(("127.0.0.1", port)).ok()).await;
        kdc
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("krb5.conf")
    }

    /// Where its libraries are, below the folder of the machine's architecture.
    fn libraries(&self) -> PathBuf {
        let folders = std::fs::read_dir(self.root.join("usr/lib")).unwrap().flatten();
        let mut found =
            folders.map(|entry| entry.path()).filter(|path| path.join("krb5/plugins/kdb").is_dir());
        found.next().unwrap_or_else(|| panic!("no KDC in {}", self.root.display()))
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.root.join("usr/sbin").join(name));
        command
            .env("LD_LIBRARY_PATH", self.libraries())
            .env("KRB5_CONFIG", self.configuration())
            .env("KRB5_KDC_PROFILE", self.folder.path().join("kdc.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn run(&self, name: &str, arguments: &[&str]) {
        let done = self.command(name).args(arguments).status().unwrap();
        assert!(done.success(), "{name} {arguments:?}");
    }

    /// Makes a principal; gives the file with its login.
    fn keytab(&self, principal: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{}.keytab", principal.replace('/', "-")));
        self.run("kadmin.local", &["-r", REALM, "-q", &format!("addprinc -randkey {principal}")]);
        self.run("kadmin.local", &["-r", REALM, "-q", &format!("ktadd -k {} {principal}", path.display())]);
        assert!(path.exists(), "{principal}");
        path
    }
}

/// A ResourceManager beside that of a cluster, whose pages want a login.
struct Guarded {
    daemon: Child,
    configuration: PathBuf,
    port: u16,
}

impl Guarded {
    async fn start(cluster: &Cluster, kdc: &Kdc) -> Self {
        let port = free_port();
        let before = PathBuf::from(cluster.setting("HADOOP_CONF_DIR"));
        let configuration = kdc.folder.path().join("conf");
        std::fs::create_dir(&configuration).unwrap();
        for entry in std::fs::read_dir(&before).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, configuration.join(path.file_name().unwrap())).unwrap();
        }
        let secret = kdc.folder.path().join("secret");
        std::fs::write(&secret, "s".repeat(40)).unwrap();
        let keytab = kdc.keytab("HTTP/localhost");
        // What stands last in a file counts.
        let set = |file: &str, properties: &[(&str, String)]| {
            let path = configuration.join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            let more: String = properties
                .iter()
                .map(|(name, value)| {
                    format!("<property><name>{name}</name><value>{value}</value></property>\n")
                })
                .collect();
            std::fs::write(&path, text.replace("</configuration>", &format!("{more}</configuration>")))
                .unwrap();
        };
        let http = "hadoop.http.authentication";
        set(
            "core-site.xml",
            &[
                (
                    "hadoop.http.filter.initializers",
                    "org.apache.hadoop.security.AuthenticationFilterInitializer".to_owned(),
                ),
                (&format!("{http}.type"), "kerberos".to_owned()),
                (&format!("{http}.simple.anonymous.allowed"), "false".to_owned()),
                (&format!("{http}.signature.secret.file"), secret.display().to_string()),
                (&format!("{http}.kerberos.principal"), format!("HTTP/localhost@{REALM}")),
                (&format!("{http}.kerberos.keytab"), keytab.display().to_string()),
            ],
        );
        let of = |name: &str| format!("yarn.resourcemanager.{name}");
        let loopback = |port: u16| format!("127.0.0.1:{port}");
        set(
            "yarn-site.xml",
            &[
                (&of("address"), loopback(free_port())),
                (&of("scheduler.address"), loopback(free_port())),
                (&of("resource-tracker.address"), loopback(free_port())),
                (&of("admin.address"), loopback(free_port())),
                (&of("webapp.address"), format!("localhost:{port}")),
                (&of("recovery.enabled"), "false".to_owned()),
            ],
        );
        // As the other one was started, but for the configuration.
        let line = std::fs::read(format!("/proc/{}/cmdline", cluster.pid(Daemon::ResourceManager))).unwrap();
        let line = String::from_utf8(line)
            .unwrap()
            .replace(before.to_str().unwrap(), configuration.to_str().unwrap());
        let mut words = line.split('\0').filter(|word| !word.is_empty());
        let log = std::fs::File::create(kdc.folder.path().join("resourcemanager.log")).unwrap();
        let daemon = Command::new(words.next().unwrap())
            .arg(format!("-Djava.security.krb5.conf={}", kdc.configuration().display()))
            .args(words)
            .current_dir(kdc.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let guarded = Self { daemon, configuration, port };
        until("the ResourceManager", async || TcpStream::connect(("localhost", guarded.port)).ok()).await;
        guarded
    }
}

impl Drop for Kdc {
    fn drop(&mut self) {
        if let Some(child) = &mut self.server {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn worker(uri: &str, configuration: &Path, environment: &[(&str, &str)]) -> Worker {
    let settings = [
        &format!("spark.environment.HADOOP_CONF_DIR={}", configuration.display()),
        "spark.submit=/bin/false",
        "yarn.grace=1s",
        "yarn.lost_after=30s",
        "retry.max_attempts=1",
    ];
    Worker::start_knowing(uri, &settings, environment)
}

#[tokio::test]
async fn a_resource_manager_that_wants_a_login_by_kerberos_is_given_one_or_the_job_is_told_why_not() {
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs, Part::Yarn]).await;
    let kdc = Kdc::start().await;
    let guarded = Guarded::start(cluster, &kdc).await;
    let keytab = kdc.keytab("worker");
    let configuration = kdc.configuration();
    let cache = format!("FILE:{}", kdc.folder.path().join("tickets").display());
    let job = |id: &str| {
        let mut job = spark_job(id, "def score(a, b, c): pass");
        job["targetEngine"]["sparkConf"] = json!({"--master": "yarn", "--deploy-mode": "cluster"});
        job.to_string()
    };
    // With a login: the launcher fails, and the ResourceManager says that it has no application of it.
    let mut place = Vhost::ready(&DELAYS).await;
    let known = [
        ("KRB5_CONFIG", configuration.to_str().unwrap()),
        ("KRB5_CLIENT_KTNAME", keytab.to_str().unwrap()),
        ("KRB5CCNAME", &cache),
    ];
    let first = worker(&place.vhost.uri(), &guarded.configuration, &known);
    place.publish("known", job("known")).await;
    let failure = place.end_of("known").await.data.failure.unwrap();
    println!("{}", failure.message);
    assert_eq!(failure.class, FailureClass::Submit, "{failure:#?}\n{}", first.log());
    assert!(failure.message.contains("and the cluster has no application of the job"), "{}", failure.message);

    // Without one.
    let mut place = Vhost::ready(&DELAYS).await;
    let nobody = format!("FILE:{}", kdc.folder.path().join("none").display());
    let unknown = [
        ("KRB5_CONFIG", configuration.to_str().unwrap()),
        ("KRB5_CLIENT_KTNAME", "/nowhere"),
        ("KRB5CCNAME", &nobody),
    ];
    let second = worker(&place.vhost.uri(), &guarded.configuration, &unknown);
    place.publish("unknown", job("unknown")).await;
    let failure = place.end_of("unknown").await.data.failure.unwrap();
    println!("{}", failure.message);
    assert_eq!(failure.class, FailureClass::Infrastructure, "{failure:#?}\n{}", second.log());
    assert!(
        failure.message.contains("it wants a login by Kerberos, which the worker does not have: "),
        "{}",
        failure.message
    );
}
