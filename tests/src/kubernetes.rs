//! The real API server of Kubernetes for the tests, with a namespace for each of them, and a played machine: the program
//! `e2e/kubelet.py` stands for scheduler and kubelet, and runs containers as processes. There are no images.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot have it cannot go on")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// What spark-submit, a worker and the drivers of this service need to be allowed in a namespace. The README says the same.
pub const RIGHTS: [(&str, &[&str]); 6] = [
    ("pods", &["create", "delete", "get", "list", "patch", "watch"]),
    ("pods/log", &["get"]),
    ("configmaps", &["create", "delete", "deletecollection", "get", "list", "patch", "watch"]),
    ("services", &["create", "delete", "get", "list", "patch"]),
    ("persistentvolumeclaims", &["deletecollection", "list"]),
    ("networkpolicies", &["create", "get", "patch"]),
];

/// A namespace with a machine of its own, and somebody who may run jobs there.
pub struct Kubernetes {
    cluster: &'static Cluster,
    namespace: String,
    folder: tempfile::TempDir,
    kubelet: Option<Child>,
}

impl Kubernetes {
    /// A namespace of its own on the API server of `cluster`, without any machine.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(cluster: &'static Cluster) -> Self {
        let namespace = format!("test-{}", uuid::Uuid::new_v4().simple());
        let folder = tempfile::tempdir().unwrap();
        let here = Self { cluster, namespace, folder, kubelet: None };
        let name = here.namespace.clone();
        here.make("/api/v1/namespaces", json!({"kind": "Namespace", "metadata": {"name": name}}));
        let path = format!("/api/v1/namespaces/{name}");
        for account in ["worker", "spark", "default"] {
            let made = json!({"kind": "ServiceAccount", "metadata": {"name": account}});
            here.make(&format!("{path}/serviceaccounts"), made);
        }
        let rules: Vec<Value> = RIGHTS
            .iter()
            .map(|(resource, verbs)| json!({"apiGroups": ["", "networking.k8s.io"], "resources": [resource], "verbs": verbs}))
            .collect();
        let rights = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{name}");
        here.make(
            &format!("{rights}/roles"),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "jobs"}, "rules": rules}),
        );
        let subjects: Vec<Value> = ["worker", "spark"]
            .iter()
            .map(|account| json!({"kind": "ServiceAccount", "name": account, "namespace": name}))
            .collect();
        here.make(
            &format!("{rights}/rolebindings"),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "jobs"},
                "subjects": subjects,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "jobs"}}),
        );
        let token = here.make(
            &format!("{path}/serviceaccounts/worker/token"),
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}),
        );
        let server = here.server();
        let certificate = format!("{}/apiserver.crt", cluster.setting("KUBERNETES_FOLDER"));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": name}}],
            "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": certificate}}],
            "users": [{"name": "u", "user": {"token": token["status"]["token"]}}],
        });
        std::fs::write(here.kubeconfig(), config.to_string()).unwrap();
        here
    }

    /// The same, with a machine.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn with_machine(mut self, python: &str, spark_home: Option<&Path>) -> Self {
        let mut command = Command::new(python);
        command
            .arg(crate::project().join("tests/e2e/kubelet.py"))
            .arg(&self.namespace)
            .arg(self.folder.path())
            .env("PYSPARK_PYTHON", python)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        for name in ["KUBERNETES_MASTER", "KUBERNETES_TOKEN", "KUBERNETES_FOLDER"] {
            command.env(name, self.cluster.setting(name));
        }
        if let Some(home) = spark_home {
            command.env("SPARK_HOME", home);
        }
        let mut kubelet = command.spawn().expect("Python starts");
        let mut word = String::new();
        BufReader::new(kubelet.stdout.take().unwrap()).read_line(&mut word).unwrap();
        assert_eq!(word, "ready\n", "the machine does not start");
        self.kubelet = Some(kubelet);
        self
    }

    /// The machine stands still, or goes on.
    pub fn signal_machine(&self, signal: Signal) {
        if let Some(kubelet) = &self.kubelet {
            let _ = kill(Pid::from_raw(kubelet.id().cast_signed()), signal);
        }
    }

    /// What a job names as its master.
    #[must_use]
    pub fn master(&self) -> String {
        self.cluster.setting("KUBERNETES_MASTER")
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What lets a worker in.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// What every worker is told about it.
    #[must_use]
    pub fn settings(&self) -> Vec<String> {
        vec![
            format!("spark.environment.HADOOP_CONF_DIR={}", self.cluster.setting("HADOOP_CONF_DIR")),
            format!("spark.environment.KUBECONFIG={}", self.kubeconfig().display()),
            "spark.environment.SPARK_LOCAL_IP=127.0.0.1".to_owned(),
            "kubernetes.service_account=spark".to_owned(),
            "kubernetes.image=here/process".to_owned(),
            "kubernetes.grace=2s".to_owned(),
        ]
    }

    /// The pods of drivers that are there.
    #[must_use]
    pub fn drivers(&self) -> Vec<Value> {
        let path = format!("/api/v1/namespaces/{}/pods?labelSelector=spark-runtime/service", self.namespace);
        let (status, listed) = self.ask("GET", &path, "", None);
        assert_eq!(status, 200, "{listed}");
        listed["items"].as_array().unwrap().clone()
    }

    /// Deletes a pod, as an administrator does.
    pub fn delete(&self, pod: &str) {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}", self.namespace);
        let (status, said) = self.ask("DELETE", &path, "", None);
        assert!([200, 202].contains(&status), "{said}");
    }

    fn server(&self) -> String {
        self.master().trim_start_matches("k8s://").to_owned()
    }

    fn make(&self, path: &str, content: Value) -> Value {
        let (status, made) = self.ask("POST", path, "application/json", Some(&content));
        assert_eq!(status, 201, "{path}: {made}");
        made
    }

    /// Asks as somebody who may do everything; gives status and answer.
    fn ask(&self, method: &str, path: &str, kind: &str, content: Option<&Value>) -> (u16, Value) {
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "--request", method])
            .args(["--write-out", "\n%{http_code}", "--cacert"])
            .arg(format!("{}/apiserver.crt", self.cluster.setting("KUBERNETES_FOLDER")))
            .arg("--header")
            .arg(format!("@{}", self.cluster.setting("KUBERNETES_TOKEN")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if content.is_some() {
            command.args(["--header", &format!("Content-Type: {kind}"), "--data-binary", "@-"]);
        }
        let mut curl = command.arg(format!("{}{path}", self.server())).spawn().expect("curl starts");
        let mut input = curl.stdin.take().unwrap();
        if let Some(content) = content {
            input.write_all(content.to_string().as_bytes()).unwrap();
        }
        drop(input);
        let told = curl.wait_with_output().unwrap();
        let text = String::from_utf8(told.stdout).unwrap();
        let (answer, status) = text.rsplit_once('\n').expect("an answer");
        (status.parse().unwrap(), serde_json::from_str(answer).unwrap_or(Value::Null))
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        if let Some(mut kubelet) = self.kubelet.take() {
            // It ends what it has started before it goes.
            let _ = kill(Pid::from_raw(kubelet.id().cast_signed()), Signal::SIGTERM);
            let _ = kill(Pid::from_raw(kubelet.id().cast_signed()), Signal::SIGCONT);
            let _ = kubelet.wait();
        }
    }
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}
