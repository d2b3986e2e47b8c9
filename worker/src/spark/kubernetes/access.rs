//! How this worker gets into a Kubernetes cluster: by the kubeconfig that spark-submit finds as well, or by what Kubernetes
//! gives to the pod that it runs in.
//!
//! What lets it in goes to no server but the one that it is for. A job names its master itself, and a server of a job's
//! choice must not be sent it.
//!
//! This module must not know what the cluster is asked for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use kube::client::AuthError;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use crate::spark::installation::Environment;

/// Where Kubernetes puts what lets a pod into its API server.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How long whatever gets credentials may take: a program that the kubeconfig names, for one.
const ENTRY: Duration = Duration::from_secs(60);

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
                .map_err(|error| format!("{files} is of no use: {}", kubeconfig_words(&error)))?;
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
    // It waits for the program that gets credentials, whatever else this thread has to do.
    let entering = tokio::task::spawn_blocking(move || Client::try_from(config));
    match tokio::time::timeout(ENTRY, entering).await {
        Ok(Ok(Ok(client))) => Ok(Access { client, namespace }),
        Ok(Ok(Err(error))) => Err(format!("{is_of} is of no use: {}", client_words(&error))),
        Ok(Err(error)) => Err(format!("{is_of} is of no use: {error}")),
        Err(_) => Err(format!(
            "{is_of} is of no use: what it gets its credentials by has not ended for {} s; run it by hand as the worker's user",
            ENTRY.as_secs()
        )),
    }
}

/// What is wrong with a way in. Never in the words of the library: those have the environment and the output of the program
/// that gets credentials, and lines of the kubeconfig.
pub(super) fn auth_words(error: &AuthError) -> String {
    match error {
        AuthError::AuthExecRun { status, .. } => {
            format!("the program that gets its credentials ended with {status}; run it by hand as the worker's user")
        }
        AuthError::AuthExecStart(error) => {
            format!("the program that gets its credentials cannot be started: {error}")
        }
        AuthError::AuthExecParse(_) | AuthError::ExecPluginFailed => {
            "the program that gets its credentials prints no ExecCredential with a status; run it by hand as the worker's user"
                .to_owned()
        }
        AuthError::ReadTokenFile(error, path) => {
            format!("the token file {} cannot be read: {error}", path.display())
        }
        AuthError::MissingCommand => "its user has an exec without a command".to_owned(),
        AuthError::InvalidBasicAuth(_) | AuthError::InvalidBearerToken(_) => {
            "its user or token has characters that no header may have".to_owned()
        }
        AuthError::NoValidNativeRootCA(_) => "this machine has no certificates to trust".to_owned(),
        _ => "what gets the credentials of its user does not give any; try it with kubectl as the worker's user".to_owned(),
    }
}

/// The same for whatever a client may fail with.
fn client_words(error: &kube::Error) -> String {
    match auth_error(error) {
        Some(error) => auth_words(error),
        None => match error {
            kube::Error::InferKubeconfig(error) => kubeconfig_words(error),
            error => error.to_string(),
        },
    }
}

/// The trouble with what lets this worker in that lies behind an error, if it is that.
pub(super) fn auth_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a AuthError> {
    let mut error = Some(error);
    while let Some(this) = error {
        if let Some(found) = this.downcast_ref() {
            return Some(found);
        }
        error = this.source();
    }
    None
}

fn kubeconfig_words(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::Parse(error) => match error.location() {
            Some(place) => format!("it is no YAML of a kubeconfig: see line {}", place.line()),
            None => "it is no YAML of a kubeconfig".to_owned(),
        },
        // The others name a part or a path, and nothing of what is in it.
        error => error.to_string(),
    }
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
    let unreadable = |file: &Path, error: &KubeconfigError| {
        format!("the kubeconfig {} cannot be read: {}", file.display(), kubeconfig_words(error))
    };
    let mut whole: Option<Kubeconfig> = None;
    for file in &files {
        let read = Kubeconfig::read_from(file).map_err(|error| unreadable(file, &error))?;
        whole = Some(match whole {
            None => read,
            Some(before) => before.merge(read).map_err(|error| unreadable(file, &error))?,
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
    use serde_json::json;

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

    /// A kubeconfig whose user's credentials come from a shell that runs this.
    fn write_program(folder: &Path, server: &str, program: &str) -> PathBuf {
        let path = write(folder, server);
        let text = std::fs::read_to_string(&path).unwrap();
        let exec = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "sh",
            "args": ["-c", program], "interactiveMode": "Never",
            "env": [{"name": "KEY", "value": "secret-word"}]}});
        std::fs::write(&path, text.replace("{token: secret-word}", &exec.to_string())).unwrap();
        path
    }

    #[tokio::test]
    async fn nothing_secret_is_told_of_a_program_that_gets_no_credentials() {
        let folder = tempfile::tempdir().unwrap();
        for (program, told) in [
            ("echo $KEY; echo $KEY >&2; exit 3", "ended with exit status: 3"),
            ("echo secret-word", "prints no ExecCredential"),
            ("echo '{\"kind\":\"ExecCredential\",\"x\":\"secret-word\"'", "prints no ExecCredential"),
        ] {
            let path = write_program(folder.path(), "https://h", program);
            let words = refused(&environment("KUBECONFIG", &path), "https://h", None).await;
            assert!(words.contains(told) && words.contains(&path.display().to_string()), "{words}");
            assert!(!words.contains("secret-word"), "{words}");
        }
        let path = write(folder.path(), "https://h");
        for text in [
            "users: [{name: u, user: {token: secret-word}",
            "users: {name: secret-word}\n",
            "a: secret-word\n b: [\n",
        ] {
            std::fs::write(&path, text).unwrap();
            let words = refused(&environment("KUBECONFIG", &path), "https://h", None).await;
            assert!(words.contains("it is no YAML of a kubeconfig"), "{words}");
            assert!(!words.contains("secret-word"), "{words}");
        }
    }

    #[tokio::test]
    async fn a_program_that_gets_credentials_holds_up_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let gate = folder.path().join("gate");
        let status = json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
            "status": {"token": "t"}});
        let program = format!("until [ -e {} ]; do sleep 0.05; done; echo '{status}'", gate.display());
        let path = write_program(folder.path(), "https://h", &program);
        let environment = environment("KUBECONFIG", &path);
        let opening = async { std::fs::write(&gate, "").unwrap() };
        // On the one thread of this test: it opens the gate only if the other lets it.
        let (entered, ()) = tokio::join!(access(&environment, None, "https://h", None), opening);
        assert!(entered.is_ok());
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
