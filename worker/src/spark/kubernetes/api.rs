//! The API server: what is asked of it, and what its answers are worth.
//!
//! An answer is bounded in size and time, and is one only in the shape that Kubernetes gives it. What else comes, from a
//! proxy, a portal or half a server, says nothing: least of all that there is no pod.
//!
//! This module must not know what a pod is for.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyDataStream;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::access::{auth_error, auth_words};
use super::pod::{Pod, SERVICE, one_line};
use crate::spark::Awaited;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// The least time between two ways in that are found anew.
const ENTRY_PAUSE: Duration = Duration::from_secs(30);
/// The largest answer that is read, in bytes; a page of a list has some five megabytes.
const LARGEST_ANSWER: usize = 64 << 20;
/// The largest line of a watch, in bytes; the store takes no object of more than two megabytes.
const LARGEST_LINE: usize = 8 << 20;
/// How many pods are asked for at a time.
const PAGE: u32 = 500;
/// How many pages a list has at most: those of half a million pods.
const MOST_PAGES: usize = 1000;
/// After how long the server is to end a watch, so that one whose connection is dead is not trusted for longer.
const WATCH: Duration = Duration::from_secs(50);
/// How much longer it may be silent.
const SILENCE: Duration = Duration::from_secs(15);

/// Why nothing is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// It does not answer, or not as an API server does. It may go better later.
    #[error("{server} cannot be asked: {reason}")]
    Away {
        /// The API server.
        server: String,
        /// Why.
        reason: String,
    },
    /// It does not let this worker do that.
    #[error("{server} refuses it: {reason}")]
    Refused {
        /// The API server.
        server: String,
        /// Why, in its words.
        reason: String,
    },
    /// What was to be read on from is not kept any more; what there is has to be listed anew.
    #[error("{0} does not keep the past any more")]
    Expired(String),
}

impl ApiError {
    /// Whether the same may go better if it is only tried again.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }
}

/// One namespace of a cluster.
#[derive(Clone)]
pub struct Api {
    client: Arc<RwLock<Client>>,
    entry: Option<Arc<Entry>>,
    server: String,
    namespace: String,
}

/// Gives a client that is let in as of now, or why there is none.
pub type Enter = Box<dyn Fn() -> Awaited<'static, Result<Client, String>> + Send + Sync>;

/// How a new way in is found.
struct Entry {
    enter: Enter,
    /// When it was done before.
    before: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("server", &self.server).field("namespace", &self.namespace).finish()
    }
}

/// What the server says when it says no.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    kind: String,
    reason: Option<String>,
    message: Option<String>,
    code: Option<u16>,
}

#[derive(Debug, Deserialize)]
struct PodList {
    kind: String,
    metadata: ListMetadata,
    items: Option<Vec<Pod>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

/// What there is at a moment.
#[derive(Debug, Default)]
pub struct Listed {
    /// All pods.
    pub pods: Vec<Pod>,
    /// The moment, to read on from.
    pub version: String,
}

/// What happened to a pod.
#[derive(Debug)]
pub enum Event {
    /// It is there, like this.
    There(Pod),
    /// It is gone; this is what it was last.
    Gone(Pod),
    /// Nothing, up to this moment.
    Nothing(String),
}

/// What became of the wish that a pod be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// It will go.
    Asked,
    /// There is none, or another one under its name.
    Gone,
}

/// Whether `name` can be one of a namespace.
#[must_use]
pub fn is_namespace(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len())
        && name.chars().all(is_plain)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

impl Api {
    /// What `client` reaches at `server`. Asks for nothing.
    #[must_use]
    pub fn new(client: Client, server: &str, namespace: &str) -> Self {
        Self {
            client: Arc::new(RwLock::new(client)),
            entry: None,
            server: server.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    /// The same, with what gives another client when the server does not let this one in any more.
    #[must_use]
    pub fn entered_by(self, enter: Enter) -> Self {
        Self { entry: Some(Arc::new(Entry { enter, before: Mutex::default() })), ..self }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The pod of this name, when there is one.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn pod(&self, name: &str) -> Result<Option<Pod>, ApiError> {
        let Some(text) = self.ask(Method::GET, &format!("pods/{name}"), None).await? else { return Ok(None) };
        let pod: Pod = self.read(&text)?;
        if pod.name() == name { Ok(Some(pod)) } else { Err(self.away("it answers with another pod")) }
    }

    /// Whether there is a config map of this name.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn has_config_map(&self, name: &str) -> Result<bool, ApiError> {
        Ok(self.ask(Method::GET, &format!("configmaps/{}", segment(name)), None).await?.is_some())
    }

    /// All pods of `service`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn list(&self, service: &str) -> Result<Listed, ApiError> {
        let mut listed = Listed::default();
        let mut next: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let mut what = format!("pods?labelSelector={}&limit={PAGE}", selector(service));
            if let Some(next) = &next {
                what.push_str(&format!("&continue={}", segment(next)));
            }
            let Some(text) = self.ask(Method::GET, &what, None).await? else {
                return Err(self.away("it answers that there are no pods at all"));
            };
            let page: PodList = self.read(&text)?;
            if page.kind != "PodList" || page.metadata.resource_version.is_empty() {
                return Err(self.away("it answers with something else than a list of pods"));
            }
            listed.pods.extend(page.items.unwrap_or_default());
            listed.version = page.metadata.resource_version;
            match page.metadata.next.filter(|next| !next.is_empty()) {
                // One that goes on where it was would go on for ever.
                Some(more) if next.as_ref() != Some(&more) => next = Some(more),
                _ => return Ok(listed),
            }
        }
        Err(self.away(format!("its list of pods has more than {MOST_PAGES} pages")))
    }

    /// What happens to the pods of `service` from `version` on, for some time.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn watch(&self, service: &str, version: &str) -> Result<Events, ApiError> {
        let what = format!(
            "pods?labelSelector={}&watch=1&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
            selector(service),
            segment(version),
            WATCH.as_secs()
        );
        let response = self.begin(Method::GET, &what, None).await?;
        if response.status() != StatusCode::OK {
            return Err(match self.refusal(response).await? {
                Some(error) => error,
                None => self.away("it has no pods to watch"),
            });
        }
        Ok(Events {
            api: self.clone(),
            body: BodyDataStream::new(response.into_body()),
            text: BytesMut::new(),
            lines: VecDeque::new(),
        })
    }

    /// Asks for the end of the pod `name`, if it is still the one with this `uid`. It gets `grace` to end by itself, or what
    /// it asks for.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn delete(&self, name: &str, uid: &str, grace: Option<Duration>) -> Result<Deletion, ApiError> {
        let mut options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        });
        if let Some(grace) = grace {
            options["gracePeriodSeconds"] = json!(grace.as_secs());
        }
        let response = self.begin(Method::DELETE, &format!("pods/{name}"), Some(&options)).await?;
        if response.status() == StatusCode::CONFLICT {
            let status = self.body(response).await.and_then(|text| self.read::<Status>(&text));
            let Some(status) = status.ok().filter(|status| status.kind == "Status") else {
                return Err(self.away("it answers with a conflict of nobody's"));
            };
            // Another pod under its name is one conflict, and there are others.
            return match self.pod(name).await? {
                Some(pod) if pod.uid() == uid => {
                    Err(self
                        .away(one_line(status.message.as_deref().unwrap_or("it answers with a conflict"))))
                }
                _ => Ok(Deletion::Gone),
            };
        }
        match self.answer(response).await? {
            Some(_) => Ok(Deletion::Asked),
            None => Ok(Deletion::Gone),
        }
    }

    /// Notes something at the pod `name`, in an annotation, if it is still the one with this `uid`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn note(&self, name: &str, uid: &str, annotation: &str, text: &str) -> Result<(), ApiError> {
        // With another uid it is a conflict.
        let patch = json!({"metadata": {"uid": uid, "annotations": {annotation: text}}});
        let response = self
            .begin_with(Method::PATCH, &format!("pods/{name}"), Some(&patch), "application/merge-patch+json")
            .await?;
        self.answer(response).await.map(|_| ())
    }

    /// What the container has written, as it comes. Nothing when there is no such pod.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn log(
        &self,
        name: &str,
        container: &str,
    ) -> Result<Option<impl Stream<Item = Result<Bytes, String>> + Send + use<>>, ApiError> {
        let what = format!("pods/{name}/log?container={}", segment(container));
        let response = self.begin(Method::GET, &what, None).await?;
        if response.status() == StatusCode::OK {
            let pieces = BodyDataStream::new(response.into_body());
            return Ok(Some(pieces.map(|piece| piece.map_err(|error| one_line(&error.to_string())))));
        }
        match self.refusal(response).await? {
            Some(error) => Err(error),
            None => Ok(None),
        }
    }

    fn away(&self, reason: impl Into<String>) -> ApiError {
        ApiError::Away { server: self.server.clone(), reason: reason.into() }
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, text: &[u8]) -> Result<T, ApiError> {
        serde_json::from_slice(text)
            .map_err(|error| self.away(format!("its answer is none of an API server: {error}")))
    }

    fn take<T: for<'a> Deserialize<'a>>(&self, value: Value) -> Result<T, ApiError> {
        serde_json::from_value(value)
            .map_err(|error| self.away(format!("its answer is none of an API server: {error}")))
    }

    /// Asks, and gives the whole answer; nothing where the server says that there is no such thing.
    async fn ask(
        &self,
        method: Method,
        what: &str,
        content: Option<&Value>,
    ) -> Result<Option<Bytes>, ApiError> {
        let response = self.begin(method, what, content).await?;
        self.answer(response).await
    }

    async fn answer(&self, response: Response<Body>) -> Result<Option<Bytes>, ApiError> {
        if response.status().is_success() {
            return Ok(Some(self.body(response).await?));
        }
        match self.refusal(response).await? {
            Some(error) => Err(error),
            None => Ok(None),
        }
    }

    async fn begin(
        &self,
        method: Method,
        what: &str,
        content: Option<&Value>,
    ) -> Result<Response<Body>, ApiError> {
        self.begin_with(method, what, content, "application/json").await
    }

    async fn begin_with(
        &self,
        method: Method,
        what: &str,
        content: Option<&Value>,
        kind: &str,
    ) -> Result<Response<Body>, ApiError> {
        let path = format!("/api/v1/namespaces/{}/{what}", self.namespace);
        let body = content.map(|content| content.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::CONTENT_TYPE, kind)
            .body(Body::from(body))
            .map_err(|error| self.away(error.to_string()))?;
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        match timeout(ANSWER, client.send(request)).await {
            Ok(Ok(response)) => {
                if response.status() == StatusCode::UNAUTHORIZED {
                    self.enter_anew().await;
                }
                Ok(response)
            }
            Ok(Err(error)) => Err(self.away(match auth_error(&error) {
                Some(error) => auth_words(error),
                None => one_line(&with_causes(&error)),
            })),
            Err(_) => Err(self.away(format!("it does not answer within {} s", ANSWER.as_secs()))),
        }
    }

    /// Finds the way in once more: what let this worker in may have been taken back before it ran out.
    async fn enter_anew(&self) {
        let Some(entry) = &self.entry else { return };
        // Whoever comes while another one does it has nothing to do.
        let Ok(mut before) = entry.before.try_lock() else { return };
        if before.is_some_and(|before| before.elapsed() < ENTRY_PAUSE) {
            return;
        }
        *before = Some(Instant::now());
        match (entry.enter)().await {
            Ok(client) => *self.client.write().unwrap_or_else(PoisonError::into_inner) = client,
            Err(reason) => {
                tracing::warn!(server = self.server, reason, "the API server lets this worker in no more");
            }
        }
    }

    async fn body(&self, response: Response<Body>) -> Result<Bytes, ApiError> {
        let mut pieces = BodyDataStream::new(response.into_body());
        let whole = async {
            let mut text = BytesMut::new();
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|error| self.away(one_line(&error.to_string())))?;
                if text.len() + piece.len() > LARGEST_ANSWER {
                    return Err(self.away(format!("its answer has more than {LARGEST_ANSWER} bytes")));
                }
                text.extend_from_slice(&piece);
            }
            Ok(text.freeze())
        };
        timeout(ANSWER, whole).await.unwrap_or_else(|_| {
            Err(self.away(format!("its answer is not whole within {} s", ANSWER.as_secs())))
        })
    }

    /// What an answer means that is no success; nothing where the server says, in its own words, that there is no such thing.
    async fn refusal(&self, response: Response<Body>) -> Result<Option<ApiError>, ApiError> {
        let code = response.status();
        let text = self.body(response).await?;
        let status = serde_json::from_slice::<Status>(&text).ok().filter(|status| status.kind == "Status");
        Ok(self.meaning(code, status.as_ref()))
    }

    fn meaning(&self, code: StatusCode, status: Option<&Status>) -> Option<ApiError> {
        let words = status.and_then(|status| status.message.as_deref()).map(one_line).unwrap_or_default();
        let reason = if words.is_empty() {
            format!("it answers {code}")
        } else {
            format!("it answers {code}: {words}")
        };
        match (code, status.and_then(|status| status.reason.as_deref())) {
            (StatusCode::NOT_FOUND, Some("NotFound")) => None,
            (StatusCode::GONE, _) => Some(ApiError::Expired(self.server.clone())),
            (StatusCode::FORBIDDEN, _) => Some(ApiError::Refused {
                server: self.server.clone(),
                reason: if words.is_empty() { reason } else { words },
            }),
            (StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY, Some(_)) => {
                Some(ApiError::Refused { server: self.server.clone(), reason: words })
            }
            // What lets somebody in may run out, and is renewed by others.
            (StatusCode::UNAUTHORIZED, _) => {
                Some(self.away(format!("{reason}; see KUBECONFIG and who it is for")))
            }
            _ => Some(self.away(reason)),
        }
    }
}

/// What happens, as it comes.
pub struct Events {
    api: Api,
    body: BodyDataStream<Body>,
    text: BytesMut,
    lines: VecDeque<Bytes>,
}

impl Events {
    /// Waits for what happens next. Nothing when the server has ended this; it is to be asked on then. Cancelling the call
    /// loses nothing.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn next(&mut self) -> Result<Option<Event>, ApiError> {
        loop {
            while let Some(line) = self.lines.pop_front() {
                if let Some(event) = self.event(&line)? {
                    return Ok(Some(event));
                }
            }
            let most = WATCH + SILENCE;
            let piece = match timeout(most, self.body.next()).await {
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(error))) => return Err(self.api.away(one_line(&error.to_string()))),
                Ok(None) if self.text.is_empty() => return Ok(None),
                Ok(None) => return Err(self.api.away("its answer ends in the middle of a line")),
                Err(_) => return Err(self.api.away(format!("nothing has come for {} s", most.as_secs()))),
            };
            self.text.extend_from_slice(&piece);
            while let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line = self.text.split_to(end + 1).freeze();
                self.lines.push_back(line);
            }
            if self.text.len() > LARGEST_LINE {
                return Err(self
                    .api
                    .away(format!("its answer has a line of more than {LARGEST_LINE} bytes")));
            }
        }
    }

    fn event(&self, line: &[u8]) -> Result<Option<Event>, ApiError> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        let line: Line = self.api.read(line)?;
        let object = line.object;
        Ok(match line.kind.as_str() {
            "ADDED" | "MODIFIED" => Some(Event::There(self.api.take(object)?)),
            "DELETED" => Some(Event::Gone(self.api.take(object)?)),
            "BOOKMARK" => {
                let pod: Pod = self.api.take(object)?;
                pod.version().map(|version| Event::Nothing(version.to_owned()))
            }
            "ERROR" => {
                let status: Status = self.api.take(object)?;
                let code = status.code.and_then(|code| StatusCode::from_u16(code).ok());
                let code = code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let error = self.api.meaning(code, Some(&status));
                return Err(error.unwrap_or_else(|| self.api.away("it has nothing to watch any more")));
            }
            _ => None,
        })
    }
}

fn selector(service: &str) -> String {
    segment(&format!("{SERVICE}={service}"))
}

/// Text as a part of a path or of a query.
fn segment(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// An error with what lies behind it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        let words = deeper.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = deeper.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::scripted::{Scripted, answer, api, events, list, pod, status};
    use super::*;

    const UID: &str = "uid-p";

    async fn asked_for_pod(text: String) -> Result<Option<Pod>, ApiError> {
        let server = Scripted::start(vec![text]).await;
        api(&server).pod("p").await
    }

    fn is_away<T: std::fmt::Debug>(told: &Result<T, ApiError>) -> bool {
        matches!(told, Err(error @ ApiError::Away { .. }) if error.may_pass())
    }

    #[tokio::test]
    async fn what_is_no_answer_of_an_api_server_says_nothing() {
        let other = pod("other", 1, "Running", json!({})).to_string();
        let cut = &other[..100];
        for text in [
            answer("404 Not Found", "<html>not found</html>"),
            answer("404 Not Found", ""),
            answer("404 Not Found", r#"{"message":"no Route matched"}"#),
            answer("500 Internal Server Error", ""),
            answer("503 Service Unavailable", &status(503, "ServiceUnavailable", "etcd").to_string()),
            answer("429 Too Many Requests", &status(429, "TooManyRequests", "later").to_string()),
            answer("302 Found", ""),
            answer("200 OK", "<html>sign in</html>"),
            answer("200 OK", ""),
            answer("200 OK", "{}"),
            answer("200 OK", "[]"),
            answer("200 OK", cut),
            answer("200 OK", &other),
            answer("401 Unauthorized", &status(401, "Unauthorized", "Unauthorized").to_string()),
            "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{".to_owned(),
            "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
        ] {
            let told = asked_for_pod(text.clone()).await;
            assert!(is_away(&told), "{text}: {told:?}");
        }
        let gone = answer("404 Not Found", &status(404, "NotFound", "pods \"p\" not found").to_string());
        assert!(matches!(asked_for_pod(gone).await, Ok(None)));
        let there = answer("200 OK", &pod("p", 1, "Running", json!({})).to_string());
        assert_eq!(asked_for_pod(there).await.unwrap().unwrap().name(), "p");
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_read_no_further_than_is_borne() {
        let mut text = answer("200 OK", "");
        text = text.replace("Content-Length: 0", &format!("Content-Length: {}", LARGEST_ANSWER + 1000));
        text.push_str(&" ".repeat(LARGEST_ANSWER + 1000));
        let told = asked_for_pod(text).await.unwrap_err().to_string();
        assert!(told.ends_with("its answer has more than 67108864 bytes"), "{told}");
        let line = "x".repeat(LARGEST_LINE + 1000);
        let server = Scripted::start(vec![answer("200 OK", &line)]).await;
        let mut watched = api(&server).watch("s", "1").await.unwrap();
        assert!(is_away(&watched.next().await));
    }

    #[tokio::test]
    async fn what_this_worker_may_not_do_is_told_in_the_servers_words() {
        let words = "pods is forbidden: User \"ann\" cannot list resource \"pods\"";
        let text = answer("403 Forbidden", &status(403, "Forbidden", words).to_string());
        let server = Scripted::start(vec![text]).await;
        let error = api(&server).list("s").await.unwrap_err();
        assert!(!error.may_pass());
        assert_eq!(error.to_string(), format!("{} refuses it: {words}", server.address));
    }

    #[tokio::test]
    async fn a_list_is_all_of_its_pages_and_nothing_else_is_one() {
        let one = pod("one", 1, "Pending", json!({}));
        let other = pod("other", 2, "Pending", json!({}));
        let server = Scripted::start(vec![list(&[one], 7, "m/1"), list(&[other], 7, "")]).await;
        let listed = api(&server).list("mine").await.unwrap();
        assert_eq!(listed.version, "7");
        let names: Vec<_> = listed.pods.iter().map(Pod::name).collect();
        assert_eq!(names, ["one", "other"]);
        assert_eq!(
            server.asked(),
            [
                "GET /api/v1/namespaces/team/pods?labelSelector=spark-runtime%2Fservice%3Dmine&limit=500 HTTP/1.1",
                "GET /api/v1/namespaces/team/pods?labelSelector=spark-runtime%2Fservice%3Dmine&limit=500&continue=m%2F1 HTTP/1.1",
            ]
        );
        // One that goes on with itself comes to an end.
        let server = Scripted::start(vec![list(&[], 7, "again")]).await;
        assert!(api(&server).list("mine").await.unwrap().pods.is_empty());
        for text in [
            r#"{"kind":"PodList"}"#,
            r#"{"kind":"PodList","metadata":{},"items":[]}"#,
            r#"{"kind":"Status","metadata":{"resourceVersion":"1"}}"#,
            r#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":{}}"#,
            r#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[1]}"#,
        ] {
            let server = Scripted::start(vec![answer("200 OK", text)]).await;
            assert!(is_away(&api(&server).list("mine").await), "{text}");
        }
        let nothing = r#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":null}"#;
        let server = Scripted::start(vec![answer("200 OK", nothing)]).await;
        assert!(api(&server).list("mine").await.unwrap().pods.is_empty());
    }

    #[tokio::test]
    async fn what_happens_is_read_line_by_line_until_the_server_ends_it() {
        let is = |phase: &str, version| pod("p", version, phase, json!({}));
        let text = events(&[
            ("ADDED", is("Pending", 2)),
            ("SOMETHING", json!({})),
            ("BOOKMARK", json!({"kind": "Pod", "metadata": {"resourceVersion": "9"}})),
            ("DELETED", is("Failed", 10)),
        ]);
        let server = Scripted::start(vec![text]).await;
        let mut watched = api(&server).watch("s", "1").await.unwrap();
        assert!(matches!(watched.next().await, Ok(Some(Event::There(pod))) if pod.version() == Some("2")));
        assert!(matches!(watched.next().await, Ok(Some(Event::Nothing(version))) if version == "9"));
        assert!(matches!(watched.next().await, Ok(Some(Event::Gone(pod))) if pod.name() == "p"));
        assert!(matches!(watched.next().await, Ok(None)));

        let old = events(&[("ERROR", status(410, "Expired", "too old resource version: 1 (9)"))]);
        let server = Scripted::start(vec![old]).await;
        let mut watched = api(&server).watch("s", "1").await.unwrap();
        assert!(matches!(watched.next().await, Err(ApiError::Expired(_))));
        for text in ["{\"type\":\"ADDED\"", "<html>\n", "{\"type\":\"ADDED\",\"object\":1}\n", "{}\n"] {
            let server = Scripted::start(vec![answer("200 OK", text)]).await;
            let mut watched = api(&server).watch("s", "1").await.unwrap();
            assert!(is_away(&watched.next().await), "{text}");
        }
    }

    #[tokio::test]
    async fn only_the_pod_that_was_meant_is_deleted() {
        let gone = status(404, "NotFound", "pods \"p\" not found").to_string();
        let another = pod("p", 1, "Running", json!({})).to_string().replace(UID, "uid-another");
        let other = status(409, "Conflict", "the UID in the precondition (uid-p) does not match").to_string();
        let server = Scripted::start(vec![
            answer("200 OK", &pod("p", 1, "Running", json!({})).to_string()),
            answer("404 Not Found", &gone),
            answer("409 Conflict", &other),
            answer("200 OK", &another),
            answer("409 Conflict", &other),
            answer("200 OK", &pod("p", 1, "Running", json!({})).to_string()),
            answer("409 Conflict", "<html>"),
        ])
        .await;
        let api = api(&server);
        let grace = Some(Duration::from_secs(1));
        assert_eq!(api.delete("p", UID, grace).await, Ok(Deletion::Asked));
        assert_eq!(api.delete("p", UID, None).await, Ok(Deletion::Gone));
        assert_eq!(api.delete("p", UID, None).await, Ok(Deletion::Gone));
        // A conflict while it is there is some other one: it is not gone.
        assert!(is_away(&api.delete("p", UID, None).await));
        assert!(is_away(&api.delete("p", UID, None).await));
        let asked = server.asked.lock().unwrap().clone();
        assert!(asked[0].starts_with("DELETE /api/v1/namespaces/team/pods/p "), "{}", asked[0]);
        assert!(
            asked[0].contains(r#""preconditions":{"uid":"uid-p"},"gracePeriodSeconds":1"#),
            "{}",
            asked[0]
        );
        assert!(!asked[1].contains("gracePeriodSeconds"), "{}", asked[1]);
    }

    #[tokio::test]
    async fn who_is_let_in_no_more_finds_a_way_in_anew() {
        let refused = answer("401 Unauthorized", &status(401, "Unauthorized", "Unauthorized").to_string());
        let server =
            Scripted::start(vec![refused, answer("200 OK", &pod("p", 1, "Running", json!({})).to_string())])
                .await;
        let address = server.address.clone();
        let enter: Enter = Box::new(move || {
            let mut config = kube::Config::new(address.parse().unwrap());
            config.auth_info.token = Some("new".to_owned().into());
            let _ = rustls::crypto::ring::default_provider().install_default();
            Box::pin(async move { Client::try_from(config).map_err(|error| error.to_string()) })
        });
        let api = api(&server).entered_by(enter);
        assert!(is_away(&api.pod("p").await));
        assert!(api.pod("p").await.unwrap().is_some());
        let asked = server.asked.lock().unwrap().clone();
        assert!(!asked[0].contains("authorization: "), "{}", asked[0]);
        assert!(asked[1].contains("authorization: Bearer new"), "{}", asked[1]);
    }

    #[tokio::test]
    async fn a_list_that_never_ends_is_given_up() {
        let pages: Vec<String> =
            (0..=MOST_PAGES).map(|number| list(&[], 7, &format!("page {number}"))).collect();
        let server = Scripted::start(pages).await;
        let told = api(&server).list("mine").await.unwrap_err().to_string();
        assert!(told.ends_with("its list of pods has more than 1000 pages"), "{told}");
    }

    #[test]
    fn a_namespace_has_the_name_of_one() {
        for name in ["default", "a", "team-1", "0"] {
            assert!(is_namespace(name), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a/b", "a.b", "..", "a b", &"a".repeat(64)] {
            assert!(!is_namespace(name), "{name}");
        }
    }
}
