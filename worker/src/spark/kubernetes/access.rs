//! How this worker gets into a Kubernetes cluster: by the kubeconfig that spark-submit finds as well, or by what Kubernetes
//! gives to the pod that it runs in.
//!
//! What lets it in goes to no server but the one that it is for. A job names its master itself, and a server of a job's
//! choice must not be sent it.
//!
//! This module must not know what the cluster is asked for.

use std::path::{Path, PathBuf};

use http::Uri;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::spark::installation::Environment;

/// Where Kubernetes puts what lets a pod into its API server.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// A way into a cluster.
#[derive(Clone)]
pub(super) struct Access {
    /// What asks the API server.
    pub(super) client: Client,
    /// The namespace of those who name none.
    pub(super) namespace: String,
}

/// Finds the way to `server`, in the environment that spark-submit gets. `context` is that of the kubeconfig, when it is not
/// the current one; `own_server` is one that the operator has named.
///
/// # Errors
/// What is missing or wrong, in words.
pub(super) async fn access(
    environment: &Environment,
    context: Option<&str>,
    server: &str,
    own_server: Option<&str>,
) -> Result<Access, String> {
    let address: Uri = server.parse().map_err(|error| format!("{server} is no address: {error}"))?;
    let (mut config, is_of) = match kubeconfig(environment)? {
        Some((kubeconfig, files)) => {
            let options =
                KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
            let config = Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(|error| format!("{files} is of no use: {error}"))?;
            (config, files)
        }
        None if Path::new(SERVICE_ACCOUNT).exists() => {
            let read = |error| format!("{SERVICE_ACCOUNT} is of no use: {error}");
            let by_name = Config::incluster_dns().map_err(read)?;
            let config = match Config::incluster_env() {
                Ok(by_address) if is_same(&by_address.cluster_url, &address) => by_address,
                _ => by_name,
            };
            (config, "this pod's service account".to_owned())
        }
        None => {
            return Err("nothing lets this worker in: set spark.environment.KUBECONFIG to a kubeconfig, or run the worker in \
                        a pod with a service account"
                .to_owned());
        }
    };
    let is_own = own_server.is_some_and(|own| own == server);
    if !is_own && !is_same(&config.cluster_url, &address) {
        return Err(format!(
            "{is_of} is for the API server {}, and lets nobody into another; name that one as master, or make {server} the \
             worker's own (spark.master)",
            config.cluster_url
        ));
    }
    config.cluster_url = address;
    // Whoever asks here has deadlines and pauses of its own.
    config.default_retry = false;
    let namespace = config.default_namespace.clone();
    // Whoever was first has chosen it; the programs of this workspace know one alone.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_from(config).map_err(|error| format!("{is_of} is of no use: {error}"))?;
    Ok(Access { client, namespace })
}

/// The kubeconfig that is in use, and its files in words.
fn kubeconfig(environment: &Environment) -> Result<Option<(Kubeconfig, String)>, String> {
    let named = environment.get("KUBECONFIG").filter(|value| !value.is_empty());
    let files: Vec<PathBuf> = match named {
        Some(list) => std::env::split_paths(list).filter(|path| !path.as_os_str().is_empty()).collect(),
        None => environment
            .get("HOME")
            .map(|home| Path::new(home).join(".kube/config"))
            .filter(|path| path.exists())
            .into_iter()
            .collect(),
    };
    let mut whole: Option<Kubeconfig> = None;
    for file in &files {
        let read = Kubeconfig::read_from(file)
            .map_err(|error| format!("the kubeconfig {} cannot be read: {error}", file.display()))?;
        whole = Some(match whole {
            None => read,
            Some(before) => before
                .merge(read)
                .map_err(|error| format!("the kubeconfig {} cannot be read: {error}", file.display()))?,
        });
    }
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    Ok(whole.map(|kubeconfig| (kubeconfig, format!("the kubeconfig {}", names.join(":")))))
}

/// Whether two addresses are those of one server.
fn is_same(one: &Uri, other: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    one.scheme_str() == other.scheme_str()
        && one.host().map(str::to_ascii_lowercase) == other.host().map(str::to_ascii_lowercase)
        && port(one) == port(other)
        && one.path().trim_end_matches('/') == other.path().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Sources};

    fn environment(name: &str, value: &Path) -> Environment {
        let settings = Settings::load(&Sources::default()).unwrap();
        let mut environment = Environment::of(&settings.spark, None);
        environment.set("HOME", "/nonexistent");
        environment.set(name, value);
        environment
    }

    fn write(folder: &Path, server: &str) -> PathBuf {
        let path = folder.join("config");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: one\n\
             contexts: [{{name: one, context: {{cluster: c, user: u, namespace: team}}}}]\n\
             clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\nusers: [{{name: u, user: {{token: secret-word}}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    async fn refused(environment: &Environment, server: &str, own: Option<&str>) -> String {
        match access(environment, None, server, own).await {
            Ok(_) => panic!("{server} is let in"),
            Err(words) => words,
        }
    }

    #[tokio::test]
    async fn what_lets_the_worker_in_goes_to_no_server_of_a_jobs_choice() {
        let folder = tempfile::tempdir().unwrap();
        let environment = environment("KUBECONFIG", &write(folder.path(), "https://10.0.0.1:6443"));
        let found =
            access(&environment, None, "https://10.0.0.1:6443", None).await.unwrap_or_else(|_| panic!());
        assert_eq!(found.namespace, "team");
        for other in
            ["https://10.0.0.2:6443", "http://10.0.0.1:6443", "https://10.0.0.1", "https://10.0.0.1:6443/x"]
        {
            let words = refused(&environment, other, None).await;
            assert!(words.contains("is for the API server https://10.0.0.1:6443/"), "{words}");
            assert!(!words.contains("secret-word"), "{words}");
            // The operator may say otherwise, and a job may not.
            assert!(access(&environment, None, other, Some(other)).await.is_ok(), "{other}");
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_kubeconfig_is_told_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let there = environment("KUBECONFIG", &path);
        let words = refused(&there, "https://h", None).await;
        assert!(words.contains(&path.display().to_string()), "{words}");
        for text in ["", "[", "<html>", "{}", "current-context: x\n"] {
            std::fs::write(&path, text).unwrap();
            let words = refused(&there, "https://h", None).await;
            assert!(words.contains(&path.display().to_string()), "{text}: {words}");
        }
        let none = environment("OTHER", &path);
        assert!(
            refused(&none, "https://h", None)
                .await
                .starts_with("nothing lets this worker in: set spark.environment.KUBECONFIG")
        );
    }
}
