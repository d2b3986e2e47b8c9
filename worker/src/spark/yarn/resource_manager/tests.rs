use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::super::scripted::{Scripted, answer, listing, report};
use super::*;

/// What a real ResourceManager (3.5.0) says of an application that waits for its first container; what no one reads is
/// left out.
const WAITING: &str = r#"{"id":"application_1795743950008_0001","user":"root","name":"t","queue":"root.default","state":"ACCEPTED",
"finalStatus":"UNDEFINED","progress":0.0,"trackingUI":"UNASSIGNED",
"diagnostics":"[Fri Nov 27 01:46:13 +0000 2026] Scheduler has assigned a container for AM","clusterId":1795743950008,"applicationType":"SPARK","applicationTags":"other,spark-runtime-abc-1",
"priority":-1,"startedTime":1795743971596,"launchTime":0,"finishedTime":0,"elapsedTime":4801,"amContainerLogs":
"http://localhost:28525/node/containerlogs/container_1795743950008_0001_01_000001/root","allocatedMB":256,"timeouts":{"timeout":[]}}"#;
/// And of one that was killed.
const KILLED: &str = r#"{"id":"application_1795743950008_0001","user":"root","name":"t","state":"KILLED","finalStatus":"KILLED",
"trackingUI":"History","trackingUrl":"http://localhost:20607/cluster/app/application_1795743950008_0001","diagnostics":
"Application application_1795743950008_0001 was killed by user root","applicationTags":"other,spark-runtime-abc-1","startedTime":1}"#;
const NOT_FOUND: &str = r#"{"RemoteException":{"exception":"NotFoundException",
"message":"app with id: application_1795743950008_0099 not found","javaClassName":"org.apache.hadoop.yarn.webapp.NotFoundException"}}"#;
const NO_ID: &str = r#"{"RemoteException":{"exception":"BadRequestException",
"message":"Invalid ApplicationId prefix: foo. The valid ApplicationId should start with prefix application","javaClassName":"org.apache.hadoop.yarn.webapp.BadRequestException"}}"#;

fn redirect(to: &str) -> String {
    format!(
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: {to}/ws/v1/cluster/apps\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
}

fn client(of: &[&Scripted]) -> ResourceManager {
    let addresses: Vec<String> = of.iter().map(|scripted| scripted.address.clone()).collect();
    ResourceManager::new(&addresses, Some("ann")).unwrap()
}

/// An address at which nothing listens.
fn nobody() -> Scripted {
    Scripted { address: "http://127.0.0.1:1".to_owned(), asked: Arc::default() }
}

const TAG: &str = "spark-runtime-abc-1";

#[tokio::test]
async fn applications_are_found_by_their_tags_with_one_question_for_all() {
    let cluster = Scripted::start(vec![listing(&[WAITING]), answer("200 OK", r#"{"apps":{}}"#)]).await;
    let client = client(&[&cluster]);
    let found = client.tagged(&["spark-runtime-xyz-2", TAG]).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].id, "application_1795743950008_0001");
    assert_eq!(found[0].standing(), Standing::Waiting);
    assert!(found[0].has_tag(TAG) && !found[0].has_tag("spark-runtime-abc"));
    assert_eq!(found[0].tracking_url, None);
    assert_eq!(client.tagged(&[TAG]).await.unwrap(), []);
    let first = "GET /ws/v1/cluster/apps?applicationTags=spark-runtime-xyz-2%2Cspark-runtime-abc-1&deSelects=resourceRequests&user.name=ann HTTP/1.1";
    assert_eq!(cluster.asked()[0], first);
    assert_eq!(cluster.asked().len(), 2);
}

#[tokio::test]
async fn somebody_elses_applications_are_not_taken_for_ours() {
    // As a ResourceManager that does not know the filter would answer.
    let cluster = Scripted::start(vec![listing(&[WAITING])]).await;
    assert_eq!(client(&[&cluster]).tagged(&["spark-runtime-xyz-2"]).await.unwrap(), []);
    // Or with another application than the one that was asked for.
    let cluster = Scripted::start(vec![answer("200 OK", &format!(r#"{{"app":{WAITING}}}"#))]).await;
    assert_eq!(client(&[&cluster]).application("application_1795743950008_0002").await.unwrap(), None);
}

#[tokio::test]
async fn what_no_tag_can_be_is_refused_before_anybody_is_asked() {
    let cluster = Scripted::start(vec![listing(&[])]).await;
    for bad in ["", "a,b", "Upper", "ümlaut", "a b", &"x".repeat(101)] {
        let error = client(&[&cluster]).tagged(&[TAG, bad]).await.unwrap_err();
        assert_eq!(error, ResourceManagerError::Tag(bad.to_owned()));
    }
    assert_eq!(cluster.asked(), [""; 0]);
}

#[tokio::test]
async fn an_application_that_was_killed_is_told_so_and_its_absence_only_by_yarns_own_word() {
    let one = answer("200 OK", &format!(r#"{{"app":{KILLED}}}"#));
    let page = "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 13\r\n\r\n<html></html>";
    let answers = vec![
        one,
        // That it is not there is asked twice.
        answer("404 Not Found", NOT_FOUND),
        answer("404 Not Found", NOT_FOUND),
        answer("400 Bad Request", NO_ID),
        answer("400 Bad Request", NO_ID),
        page.to_owned(),
        answer("500 Internal Server Error", r#"{"RemoteException":{"exception":"X","message":"m"}}"#),
        answer("200 OK", "<html>"),
        answer("200 OK", r#"{"app":{"id":7}}"#),
    ];
    let cluster = Scripted::start(answers).await;
    let client = client(&[&cluster]);
    let id = "application_1795743950008_0001";
    let killed = client.application(id).await.unwrap().unwrap();
    assert_eq!((killed.standing(), killed.state.is_over()), (Standing::Killed, true));
    assert_eq!(killed.reason(), "Application application_1795743950008_0001 was killed by user root");
    assert!(killed.tracking_url.unwrap().ends_with("/cluster/app/application_1795743950008_0001"));
    assert_eq!(client.application(id).await.unwrap(), None);
    assert_eq!(client.application(id).await.unwrap(), None);
    let words = |error: ResourceManagerError| error.to_string().replace(&cluster.address, "http://rm");
    let told = [
        "no ResourceManager can be asked: http://rm/ fails with HTTP status 404",
        "no ResourceManager can be asked: http://rm/ fails with X: m",
        "no ResourceManager can be asked: http://rm/ says what is no answer: <html>",
        "no ResourceManager can be asked: http://rm/ says what is no answer: invalid type: ",
    ];
    for expected in told {
        let error = words(client.application(id).await.unwrap_err());
        assert!(error.starts_with(expected), "{error}");
    }
}

#[tokio::test]
async fn the_active_one_of_several_is_found_and_asked_first_from_then_on() {
    let standby = Scripted::start(vec![redirect("http://127.0.0.1:1")]).await;
    let active = Scripted::start(vec![listing(&[WAITING])]).await;
    let away = nobody();
    let client = client(&[&away, &standby, &active]);
    assert_eq!(client.tagged(&[TAG]).await.unwrap().len(), 1);
    assert_eq!(client.tagged(&[TAG]).await.unwrap().len(), 1);
    assert_eq!((standby.asked().len(), active.asked().len()), (1, 2));
}

#[tokio::test]
async fn a_standby_that_is_alone_is_followed_to_whom_it_points_and_no_further() {
    let active = Scripted::start(vec![listing(&[WAITING])]).await;
    let standby = Scripted::start(vec![redirect(&active.address)]).await;
    assert_eq!(client(&[&standby]).tagged(&[TAG]).await.unwrap().len(), 1);
    // Two that point to each other.
    let listener = Scripted::start(vec![redirect("http://127.0.0.1:1")]).await;
    let other = Scripted::start(vec![redirect(&listener.address)]).await;
    let error = client(&[&other]).tagged(&[TAG]).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("{}/ is on standby; {}/ is on standby", other.address, listener.address)),
        "{error}"
    );
    // One that knows nobody says so in words, and with the status of success.
    let none =
        Scripted::start(vec![answer("200 OK", "There is currently no active RM. Retry after 3 s.")]).await;
    let error = client(&[&none]).application("application_1_1").await.unwrap_err().to_string();
    assert!(error.ends_with("/ is on standby"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_told_with_every_address_and_is_no_answer() {
    let error = client(&[&nobody()]).application("application_1_1").await.unwrap_err();
    let ResourceManagerError::Away(words) = error else { panic!("{error}") };
    assert!(words.starts_with("http://127.0.0.1:1/ cannot be reached: Connection refused"), "{words}");
    // One that closes the connection in the middle of its answer.
    let cut = answer("200 OK", r#"{"apps":{"app":[]}}"#);
    let cut = Scripted::start(vec![cut[..cut.len() - 5].to_owned()]).await;
    assert!(matches!(client(&[&cut]).tagged(&[TAG]).await, Err(ResourceManagerError::Away(_))));
}

#[tokio::test]
async fn a_kill_is_a_put_that_is_refused_in_words_or_misses() {
    let forbidden = r#"{"RemoteException":{"exception":"ForbiddenException","message":"User ann cannot perform operation"}}"#;
    let answers = vec![
        answer("202 Accepted", r#"{"state":"RUNNING"}"#),
        answer("404 Not Found", NOT_FOUND),
        answer("403 Forbidden", forbidden),
        answer("401 Unauthorized", "<html>"),
    ];
    let cluster = Scripted::start(answers).await;
    let client = client(&[&cluster]);
    // What would lead elsewhere is left out of the path.
    assert_eq!(client.kill("application_1_1/../x?").await, Ok(true));
    assert_eq!(client.kill("application_1_1").await, Ok(false));
    let asked = cluster.asked.lock().unwrap()[0].clone();
    assert!(
        asked.starts_with("PUT /ws/v1/cluster/apps/application_1_1x/state?user.name=ann HTTP/1.1\r\n"),
        "{asked}"
    );
    assert!(asked.ends_with("\r\n\r\n{\"state\":\"KILLED\"}"), "{asked}");
    let refused = client.kill("application_1_1").await.unwrap_err();
    assert!(refused.to_string().ends_with("/ refuses it: User ann cannot perform operation"), "{refused}");
    let login = client.kill("application_1_1").await.unwrap_err().to_string();
    assert!(login.contains("wants a login"), "{login}");
}

#[test]
fn every_state_of_yarn_has_its_standing_and_only_two_words_together_are_a_success() {
    let of = |state: &str, last: &str| {
        let text = format!(r#"{{"id":"a","state":"{state}","finalStatus":"{last}"}}"#);
        serde_json::from_str::<Report>(&text).unwrap().standing()
    };
    for waiting in ["NEW", "NEW_SAVING", "SUBMITTED", "ACCEPTED"] {
        assert_eq!(of(waiting, "UNDEFINED"), Standing::Waiting, "{waiting}");
    }
    assert_eq!(of("RUNNING", "UNDEFINED"), Standing::Running);
    assert_eq!(of("FINISHED", "SUCCEEDED"), Standing::Succeeded);
    assert_eq!(of("FINISHED", "FAILED"), Standing::Failed);
    assert_eq!(of("FINISHED", "UNDEFINED"), Standing::Failed);
    assert_eq!(of("FINISHED", "KILLED"), Standing::Killed);
    assert_eq!(of("FAILED", "SUCCEEDED"), Standing::Failed);
    assert_eq!(of("KILLED", "UNDEFINED"), Standing::Killed);
    assert_eq!(of("HIBERNATING", "SUCCEEDED"), Standing::Unknown);
}

#[test]
fn so_many_tags_are_asked_for_at_once_as_fit_into_a_question() {
    let owned: Vec<String> = (0..400).map(|number| format!("spark-runtime-{number:032}-1")).collect();
    let tags: Vec<&str> = owned.iter().map(String::as_str).collect();
    let portions = portions(&tags);
    assert_eq!(portions.iter().map(|portion| portion.len()).sum::<usize>(), 400);
    assert_eq!(portions.len(), 4);
    assert_eq!(super::portions(&[]), [[""; 0]; 0]);
}

#[test]
fn what_is_no_address_is_told() {
    let none = ResourceManager::new(&[], None).unwrap_err();
    assert_eq!(none, ResourceManagerError::NoAddress);
    let bad = ResourceManager::new(&["ftp://x".to_owned()], None).unwrap_err();
    assert!(bad.to_string().starts_with("\"ftp://x\" is no address of a ResourceManager: "), "{bad}");
}

#[tokio::test]
async fn one_that_has_just_been_started_is_no_witness_for_what_is_not_there() {
    let starting = r#"{"clusterInfo":{"state":"INITED","haState":"INITIALIZING"}}"#;
    let cluster =
        Scripted::start_saying(starting, vec![listing(&[]), answer("404 Not Found", NOT_FOUND)]).await;
    let asker = client(&[&cluster]);
    let error = asker.certainly_tagged("t").await.unwrap_err();
    assert!(error.to_string().contains("is not active yet (INITIALIZING)"), "{error}");
    let error = asker.application("application_1_1").await.unwrap_err();
    assert!(matches!(error, ResourceManagerError::Away(_)), "{error:?}");
    // What is there is there.
    let alive = listing(&[&report("application_1_1", "RUNNING", "t", 1)]);
    let cluster = Scripted::start_saying(starting, vec![alive]).await;
    assert_eq!(client(&[&cluster]).certainly_tagged("t").await.unwrap().len(), 1);
}

#[tokio::test]
async fn how_long_a_driver_has_had_its_place_is_told_by_the_clusters_clock_alone() {
    let of = |times: &str| answer("200 OK", &format!(r#"{{"app":{{"id":"application_1_1",{times}}}}}"#));
    let cluster = Scripted::start(vec![
        of(r#""startedTime":1000,"launchTime":4000,"elapsedTime":10000"#),
        of(r#""startedTime":1000,"launchTime":0,"elapsedTime":10000"#),
        of(r#""startedTime":1000,"elapsedTime":10000"#),
        answer("404 Not Found", NOT_FOUND),
    ])
    .await;
    let client = client(&[&cluster]);
    let mut told = Vec::new();
    for _ in 0..4 {
        told.push(client.running_for("application_1_1").await.unwrap());
    }
    assert_eq!(told, [Some(Duration::from_secs(7)), None, None, None]);
}

#[tokio::test]
async fn of_what_is_not_there_the_one_that_answered_is_the_witness_and_not_the_standby_that_pointed_to_it() {
    let active = Scripted::start(vec![listing(&[]), listing(&[]), answer("404 Not Found", NOT_FOUND)]).await;
    // About itself a standby answers as well, and points nowhere.
    let itself = r#"{"clusterInfo":{"state":"STARTED","haState":"STANDBY"}}"#;
    let standby = Scripted::start_saying(itself, vec![redirect(&active.address)]).await;
    let asker = client(&[&standby]);
    assert_eq!(asker.certainly_tagged("t").await, Ok(vec![]));
    assert_eq!(asker.application("application_1_1").await, Ok(None));
    // One that is started anew is none, whoever points to it.
    let starting = r#"{"clusterInfo":{"state":"INITED","haState":"INITIALIZING"}}"#;
    let active = Scripted::start_saying(starting, vec![listing(&[])]).await;
    let standby = Scripted::start_saying(itself, vec![redirect(&active.address)]).await;
    let error = client(&[&standby]).certainly_tagged("t").await.unwrap_err();
    assert!(error.to_string().contains("is not active yet (INITIALIZING)"), "{error}");
    // That the first has started says nothing about a second.
    let first = Scripted::start(vec![listing(&[])]).await;
    let second = Scripted::start(vec![listing(&[])]).await;
    let standby = Scripted::start(vec![redirect(&first.address), redirect(&second.address)]).await;
    let error = client(&[&standby]).certainly_tagged("t").await.unwrap_err();
    assert!(error.to_string().contains("has just become the active one"), "{error}");
}

/// Shows the host that it is asked for, and as the last of its tokens that there is none.
#[derive(Debug)]
struct Tickets(AtomicUsize);

impl Login for Tickets {
    fn token(&self, host: &str) -> Result<String, String> {
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map(|_| format!("ticket-for-{host}")).map_err(|_| "Ticket expired".to_owned())
    }
}

fn unauthorized() -> String {
    "HTTP/1.1 401 Authentication required\r\nWWW-Authenticate: Negotiate\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_owned()
}

#[tokio::test]
async fn one_that_wants_a_login_by_kerberos_is_shown_one_and_from_then_on_without_being_asked() {
    let cluster = Scripted::start(vec![unauthorized(), listing(&[WAITING])]).await;
    let client = client(&[&cluster]).with_login(Arc::new(Tickets(2.into())));
    for _ in 0..2 {
        assert_eq!(client.tagged(&[TAG]).await.unwrap().len(), 1);
    }
    let shown: Vec<bool> = cluster
        .asked
        .lock()
        .unwrap()
        .iter()
        .map(|asked| asked.contains("authorization: Negotiate ticket-for-127.0.0.1"))
        .collect();
    assert_eq!(shown, [false, true, true]);
    // What was there before may come back.
    let error = client.tagged(&[TAG]).await.unwrap_err();
    assert!(
        matches!(error, ResourceManagerError::Away(_)) && error.to_string().contains("Ticket expired"),
        "{error}"
    );
    // What never was there is told at once.
    let cluster = Scripted::start(vec![unauthorized()]).await;
    let error =
        self::client(&[&cluster]).with_login(Arc::new(Tickets(0.into()))).tagged(&[TAG]).await.unwrap_err();
    assert!(matches!(error, ResourceManagerError::Refused { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .ends_with("it wants a login by Kerberos, which the worker does not have: Ticket expired"),
        "{error}"
    );
}

#[tokio::test]
async fn a_question_that_left_before_anybody_knew_of_the_login_is_asked_again_with_one() {
    async fn question(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        while !text.contains("\r\n\r\n") {
            let mut piece = [0; 4096];
            let read = stream.read(&mut piece).await.unwrap();
            text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        }
        text
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let client = ResourceManager::new(&[address], None).unwrap().with_login(Arc::new(Tickets(1.into())));
    let cluster = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let first = question(&mut stream).await;
        assert!(!first.contains("authorization: "), "{first}");
        // Another question has found out in the meantime.
        client.wants_login.store(true, Ordering::Relaxed);
        stream.write_all(unauthorized().as_bytes()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let second = question(&mut stream).await;
        assert!(second.contains("authorization: Negotiate ticket-for-127.0.0.1"), "{second}");
        stream.write_all(listing(&[WAITING]).as_bytes()).await.unwrap();
    };
    let asked = async { client.tagged(&[TAG]).await.map(|found| found.len()) };
    // What is refused ends the wait for a question that does not come.
    let found = tokio::select! { found = asked => found, () = async { cluster.await; std::future::pending().await } => unreachable!() };
    assert_eq!(found, Ok(1));
}
