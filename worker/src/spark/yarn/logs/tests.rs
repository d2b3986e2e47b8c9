use std::collections::BTreeMap;
use std::fs;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::scripted::{Scripted, answer};
use super::tfile::tests::{file, raw_record, record};
use super::*;

const ID: &str = "application_1795751884603_12345";
const CONTAINER: &str = "container_1795751884603_12345_02_000001";
/// How far the moving of logs is, on a cluster that does not do that.
const DISABLED: &str = "DISABLED";

fn report(state: &str, aggregation: &str) -> String {
    report_of("ann", state, aggregation)
}

fn report_of(user: &str, state: &str, aggregation: &str) -> String {
    answer(
        "200 OK",
        &format!(
            r#"{{"app":{{"id":"{ID}","user":"{user}","state":"{state}","logAggregationStatus":"{aggregation}"}}}}"#
        ),
    )
}

/// The last attempt has the container that is given, on the node that is given.
fn attempts(container: &str, node: &str) -> String {
    let attempt = |id: u32, container: &str, node: &str| {
        format!(
            r#"{{"id":{id},"containerId":"{container}","nodeHttpAddress":"{node}","nodeId":"host:45454","logsLink":"http://{node}/node/containerlogs/x/ann","appAttemptState":"FAILED"}}"#
        )
    };
    let first = attempt(1, "container_1795751884603_12345_01_000001", "127.0.0.1:1");
    let listed = [attempt(2, container, node), first, attempt(3, "", "")].join(",");
    answer("200 OK", &format!(r#"{{"appAttempts":{{"appAttempt":[{listed}]}}}}"#))
}

/// As a real NodeManager (3.5.0) says it, of a file of `length` bytes.
fn container_log(name: &str, length: u64, content: &str) -> String {
    answer(
        "200 OK",
        &format!(
            "Container: {CONTAINER} on host:45454\nLogAggregationType: LOCAL\n{}\nLogType:{name}\n\
             LogLastModifiedTime:Fri Nov 27 03:58:47 +0000 2026\nLogLength:{length}\nLogContents:\n{content}End of \
             LogType:{name}.This log file belongs to a running container ({CONTAINER}) and so may not be complete.\n\n",
            "=".repeat(68)
        ),
    )
}

fn whole_log(name: &str, content: &str) -> String {
    container_log(name, content.len() as u64, content)
}

fn not_found() -> String {
    answer("404 Not Found", "HTTP 404 Not Found")
}

fn port(address: &str) -> String {
    address.trim_start_matches("http://").to_owned()
}

/// A place to write to, and one where logs are moved to.
struct Place {
    here: TempDir,
    configuration: TempDir,
    moved: TempDir,
}

impl Place {
    fn new() -> Self {
        let [here, configuration, moved] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let text = format!(
            "<configuration><property><name>yarn.nodemanager.remote-app-log-dir</name><value>file://{}/</value>\
             </property></configuration>",
            moved.path().display()
        );
        fs::write(configuration.path().join("yarn-site.xml"), text).unwrap();
        Self { here, configuration, moved }
    }

    /// Puts a file where YARN moves the logs of a node.
    fn put(&self, name: &str, content: &[u8]) {
        let path = self.moved.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// What is fetched when the ResourceManager and then the NodeManager give these answers.
    async fn fetch(&self, manager: Vec<String>, node: Vec<String>, bounds: Bounds) -> DriverLog {
        let node = Scripted::start(node).await;
        self.fetch_from(manager, &port(&node.address), bounds).await
    }

    async fn fetch_from(&self, manager: Vec<String>, node: &str, bounds: Bounds) -> DriverLog {
        let mut manager = manager;
        manager.insert(1.min(manager.len()), attempts(CONTAINER, node));
        self.fetch_at(&Scripted::start(manager).await, bounds).await
    }

    async fn fetch_at(&self, manager: &Scripted, bounds: Bounds) -> DriverLog {
        let manager = ResourceManager::new(std::slice::from_ref(&manager.address), Some("ann")).unwrap();
        fetch(&manager, self.configuration.path(), &Actor::Worker, ID, self.here.path(), bounds).await
    }

    /// All files that are there now.
    fn files(&self) -> BTreeMap<String, String> {
        let entries = fs::read_dir(self.here.path()).unwrap().map(Result::unwrap);
        entries
            .map(|entry| {
                let content = fs::read(entry.path()).unwrap();
                (entry.file_name().into_string().unwrap(), String::from_utf8_lossy(&content).into_owned())
            })
            .collect()
    }

    fn has(&self, files: &[(&str, &str)]) {
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned()));
        assert_eq!(self.files(), files.collect::<BTreeMap<_, _>>());
    }
}

fn kept(outcome: &Outcome) -> &Kept {
    if let Outcome::Kept(kept) = outcome { kept } else { panic!("{outcome:?}") }
}

fn missing(outcome: &Outcome) -> &str {
    if let Outcome::Missing(reason) = outcome { reason } else { panic!("{outcome:?}") }
}

/// Where the logs of this application are moved, by this version of YARN.
const MOVED: &str = "ann/bucket-logs-tfile/2345/application_1795751884603_12345/host_45454";

fn aggregated(output: &str, error: &str) -> Vec<u8> {
    let files = [("stderr", error.as_bytes()), ("stdout", output.as_bytes())];
    file(&[vec![(CONTAINER, record(CONTAINER, &files, 1000))]], "none")
}

#[tokio::test]
async fn the_node_of_the_last_attempt_that_had_a_container_is_asked_for_both_logs() {
    let place = Place::new();
    let answers = vec![whole_log("stdout", "out\n"), whole_log("stderr", "err without an end of line")];
    let node = Scripted::start(answers).await;
    let manager =
        Scripted::start(vec![report("RUNNING", "NOT_START"), attempts(CONTAINER, &port(&node.address))])
            .await;
    let log = place.fetch_at(&manager, Bounds::default()).await;
    assert_eq!(
        log.output,
        Outcome::Kept(Kept {
            from: Source::NodeManager(node.address.clone()),
            name: "stdout".to_owned(),
            size: LogSize { produced: 4, left_out: 0, not_written: 0 },
            broken_off: None,
        })
    );
    assert_eq!(kept(&log.error).size.produced, 26);
    place.has(&[("stdout.log", "out\n"), ("stderr.log", "err without an end of line")]);
    let most = 64 << 20;
    assert_eq!(
        node.asked(),
        ["stdout", "stderr"].map(|name| format!(
            "GET /ws/v1/node/containers/{CONTAINER}/logs/{name}?size={most}&user.name=ann HTTP/1.1"
        ))
    );
    let asked = format!("GET /ws/v1/cluster/apps/{ID}/appattempts?user.name=ann HTTP/1.1");
    assert_eq!(manager.asked()[1], asked);
}

#[tokio::test]
async fn what_a_node_says_instead_of_a_log_is_told_in_words_and_nothing_of_it_is_kept() {
    let failure = r#"{"RemoteException":{"exception":"WebApplicationException","message":"not now"}}"#;
    let to = "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://history:19888/ws?x=secret\r\nConnection: close\r\n\
              Content-Length: 0\r\n\r\n";
    let no_log = "it answers with what is no log";
    for (said, reason) in [
        (not_found(), "has no stdout of it"),
        (to.to_owned(), "has it no more and points to history, which is not asked"),
        (answer("200 OK", "<html><body>Log in\n<form>password</form></body></html>\n"), no_log),
        (answer("200 OK", ""), "it answers with nothing"),
        (answer("200 OK", &"no end ".repeat(5000)), no_log),
        (answer("200 OK", &"line\n".repeat(5000)), no_log),
        (answer("200 OK", "LogType:stdout\nLogContents:\npassword"), no_log),
        (answer("200 OK", "LogType:stdout\nLogLength:-1\nLogContents:\npassword"), no_log),
        (answer("200 OK", "LogType:stdout\nLogLength:99999999999999999999\nLogContents:\nx"), no_log),
        (whole_log("stderr", "password"), no_log),
        (answer("401 Unauthorized", "<html>"), "refuses it with HTTP status 401"),
        (answer("503 Service Unavailable", failure), "HTTP status 503: WebApplicationException: not now"),
        (answer("500 Internal Server Error", &"x".repeat(1 << 20)), "refuses it with HTTP status 500"),
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 900\r\n\r\nLogType:std".to_owned(),
            "end of file before message length reached",
        ),
        ("nonsense".to_owned(), "cannot be reached: "),
        (String::new(), "cannot be reached: "),
    ] {
        let place = Place::new();
        let log = place.fetch(vec![report("FAILED", DISABLED)], vec![said.clone()], Bounds::default()).await;
        for (outcome, name) in [(&log.output, "stdout"), (&log.error, "stderr")] {
            let told = missing(outcome);
            let reason = reason.replace("stdout", name);
            assert!(told.starts_with(CONTAINER), "{told}");
            assert!(told.contains(&reason), "{said}: {told}");
            assert!(told.ends_with("; this cluster does not aggregate logs"), "{told}");
            assert!(!told.contains("password") && !told.contains("secret"), "{told}");
        }
        place.has(&[]);
    }
}

#[tokio::test]
async fn a_node_that_is_gone_or_says_nothing_is_waited_for_no_longer_than_is_given() {
    let bounds = Bounds { whole: Duration::from_millis(1500), ..Bounds::default() };
    let place = Place::new();
    let log = place.fetch_from(vec![report("FAILED", DISABLED)], "127.0.0.1:1", bounds).await;
    assert!(missing(&log.error).contains("127.0.0.1:1 cannot be reached"), "{log:?}");
    // It takes the question and never answers it.
    let held = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = held.local_addr().unwrap().to_string();
    let place = Place::new();
    let begun = Instant::now();
    let log = place.fetch_from(vec![report("FAILED", DISABLED)], &address, bounds).await;
    assert!(missing(&log.error).contains("has not answered in time"), "{log:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    drop(held);
}

/// A node that answers every question with `head` and then with `more` for ever, or with silence when there is none.
async fn endless(head: &'static str, more: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(head.as_bytes()).await;
                if more.is_empty() {
                    std::future::pending::<()>().await;
                }
                while stream.write_all(more).await.is_ok() {}
            });
        }
    });
    address
}

const HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nLogType:stdout\nLogLength:";

#[tokio::test]
async fn a_node_that_never_ends_is_not_listened_to() {
    let bounds = Bounds { bytes: 1000, whole: Duration::from_secs(5), ..Bounds::default() };
    let gigabytes = format!("{HEAD}9000000000\nLogContents:\n").leak();
    let few = format!("{HEAD}10\nLogContents:\n").leak();
    let within = format!("{HEAD}900\nLogContents:\nbegun").leak();
    for (head, more, kept_of_it, reason) in [
        // Gigabytes, and it does not know how to begin with their end.
        (&*gigabytes, b"x".repeat(4096).leak(), 1000, "more came than the 500 bytes that it told of"),
        (&*few, b"x".repeat(4096).leak(), 10, "more came than the 10 bytes that it told of"),
        (&*within, Vec::leak(Vec::new()), 5, "5 of 900 bytes came: the time for it is over"),
    ] {
        let place = Place::new();
        let node = endless(head, more).await;
        let log = place.fetch_from(vec![report("FAILED", DISABLED)], &node, bounds).await;
        let Kept { size, broken_off, .. } = kept(&log.output);
        assert_eq!(size.produced - size.left_out, kept_of_it, "{log:?}");
        let broken_off = broken_off.as_deref().unwrap();
        assert!(broken_off.starts_with(reason), "{broken_off}");
        assert!(!missing(&log.error).is_empty());
        let files = place.files();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["stdout.log"]);
        assert!(files["stdout.log"].len() <= 1100);
    }
}

#[tokio::test]
async fn of_a_log_that_is_too_long_the_end_is_asked_for_by_itself() {
    let place = Place::new();
    let gigabyte = 1 << 30;
    let answers = vec![
        container_log("stdout", gigabyte, "0123456789a"),
        // It has grown meanwhile.
        container_log("stdout", gigabyte + 7, "uvwxyz"),
        whole_log("stderr", "12345678901"),
    ];
    let node = Scripted::start(answers).await;
    let bounds = Bounds { bytes: 11, ..Bounds::default() };
    let log = place.fetch_from(vec![report("RUNNING", DISABLED)], &port(&node.address), bounds).await;
    let size = LogSize { produced: gigabyte + 7, left_out: gigabyte - 4, not_written: 0 };
    assert_eq!((kept(&log.output).size, &kept(&log.output).broken_off), (size, &None));
    place.has(&[
        ("stdout.log", "01234\n... 1073741820 bytes left out ...\nuvwxyz"),
        ("stderr.log", "12345678901"),
    ]);
    let sizes: Vec<_> =
        node.asked().iter().map(|asked| asked.split(['=', '&']).nth(1).unwrap().to_owned()).collect();
    assert_eq!(sizes, ["11", "-6", "11"]);
}

#[tokio::test]
async fn an_end_that_does_not_come_leaves_the_beginning_and_says_so() {
    for (second, reason) in [
        (not_found(), "has no stdout of it"),
        (container_log("stdout", 3, "xyz"), "it has become shorter while it was read"),
        (answer("200 OK", "<html>\n"), "it answers with what is no log"),
    ] {
        let place = Place::new();
        let answers = vec![container_log("stdout", 5000, "0123456789"), second, not_found()];
        let bounds = Bounds { bytes: 10, ..Bounds::default() };
        let log = place.fetch(vec![report("FAILED", DISABLED)], answers, bounds).await;
        let Kept { size, broken_off, .. } = kept(&log.output);
        assert_eq!(size.produced, 5);
        assert!(broken_off.as_ref().unwrap().contains(reason), "{broken_off:?}");
        place.has(&[("stdout.log", "01234")]);
    }
}

#[tokio::test]
async fn a_container_that_never_began_tells_why_in_the_place_of_its_standard_error() {
    let place = Place::new();
    let answers = vec![not_found(), not_found(), whole_log("prelaunch.err", "no such user\n")];
    let log = place.fetch(vec![report("FAILED", DISABLED)], answers, Bounds::default()).await;
    assert_eq!(kept(&log.error).name, "prelaunch.err");
    place.has(&[("stderr.log", "no such user\n")]);
    // One that has nothing to tell is none.
    let place = Place::new();
    let answers = vec![whole_log("stdout", ""), not_found(), whole_log("prelaunch.err", "")];
    let log = place.fetch(vec![report("FAILED", DISABLED)], answers, Bounds::default()).await;
    assert_eq!((kept(&log.output).size.produced, missing(&log.error).contains("has no stderr")), (0, true));
    place.has(&[]);
}

#[tokio::test]
async fn an_older_file_is_replaced_by_what_comes_and_stays_when_nothing_does() {
    let place = Place::new();
    let old = || {
        for name in ["stdout.log", "stderr.log", "stdout.coming", "stderr.coming.tail"] {
            fs::write(place.here.path().join(name), "old").unwrap();
        }
    };
    old();
    place.fetch(vec![report("FAILED", DISABLED)], vec![not_found()], Bounds::default()).await;
    assert_eq!(place.files()["stdout.log"], "old");
    assert_eq!(place.files()["stderr.log"], "old");
    let answers = vec![whole_log("stdout", ""), whole_log("stderr", "new")];
    place.fetch(vec![report("FAILED", DISABLED)], answers, Bounds::default()).await;
    // An empty log is no file.
    place.has(&[("stderr.log", "new")]);
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_told_and_no_link_is_followed() {
    let place = Place::new();
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("target");
    fs::write(&target, "not ours").unwrap();
    for name in ["stderr.coming", "stderr.coming.tail", "stderr.log"] {
        std::os::unix::fs::symlink(&target, place.here.path().join(name)).unwrap();
    }
    fs::create_dir(place.here.path().join("stdout.coming")).unwrap();
    place.put(MOVED, &aggregated("out", "err"));
    let answers = vec![whole_log("stdout", "out"), whole_log("stderr", "err")];
    let log = place.fetch(vec![report("FAILED", "SUCCEEDED")], answers.clone(), Bounds::default()).await;
    assert!(missing(&log.output).contains("stdout.coming cannot be written: "), "{log:?}");
    fs::remove_dir(place.here.path().join("stdout.coming")).unwrap();
    let log = place.fetch(vec![report("FAILED", "SUCCEEDED")], answers, Bounds::default()).await;
    assert!(log.output.is_whole() && log.error.is_whole(), "{log:?}");
    place.has(&[("stdout.log", "out"), ("stderr.log", "err")]);
    assert_eq!(fs::read_to_string(&target).unwrap(), "not ours");
}

#[tokio::test]
async fn no_name_that_others_give_leads_anywhere() {
    let node = Scripted::start(vec![whole_log("stdout", "x")]).await;
    let address = port(&node.address);
    for (container, address, reason) in [
        ("../../conf", address.as_str(), "its container has no proper id"),
        ("container_1/../../x", &address, "its container has no proper id"),
        ("null", &address, "127.0.0.1:1 cannot be reached"),
        (CONTAINER, &format!("{address}/elsewhere"), "names no address of its node"),
        (CONTAINER, &format!("eve:secret@{address}"), "names no address of its node"),
        (CONTAINER, "", "names no address of its node"),
    ] {
        let place = Place::new();
        let manager = Scripted::start(vec![report("FAILED", DISABLED), attempts(container, address)]).await;
        let log = place.fetch_at(&manager, Bounds::default()).await;
        assert!(missing(&log.output).contains(reason), "{log:?}");
        place.has(&[]);
    }
    assert_eq!(node.asked(), Vec::<String>::new());
    for user in ["..", "", "a/../b"] {
        let place = Place::new();
        let answers = vec![report_of(user, "FAILED", "SUCCEEDED")];
        let log = place.fetch(answers, vec![not_found()], Bounds::default()).await;
        assert!(missing(&log.output).ends_with("its user has a name that no folder can have"), "{log:?}");
    }
    let manager = Scripted::start(vec![report("FAILED", DISABLED)]).await;
    let client = ResourceManager::new(std::slice::from_ref(&manager.address), None).unwrap();
    let place = Place::new();
    for id in ["", "application_1", "application_1_", "application_1_+1", "application_1_1/../x", "job_1_1"] {
        let log = fetch(
            &client,
            place.configuration.path(),
            &Actor::Worker,
            id,
            place.here.path(),
            Bounds::default(),
        )
        .await;
        assert!(missing(&log.output).ends_with("is no id of an application"), "{log:?}");
    }
    assert_eq!(manager.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn an_application_of_which_nothing_is_known_has_no_logs_and_the_reason() {
    let gone = r#"{"RemoteException":{"exception":"NotFoundException","message":"no app"}}"#;
    let no_container = r#"{"appAttempts":{"appAttempt":[{"id":1,"containerId":"null"}]}}"#;
    for (answers, reason) in [
        (vec![answer("404 Not Found", gone)], "the ResourceManager knows of no such application"),
        (vec![report("FAILED", DISABLED), answer("200 OK", no_container)], "it never had a container"),
        (vec![report("FAILED", DISABLED), answer("200 OK", "{}")], "it never had a container"),
        (vec![report("FAILED", DISABLED), answer("200 OK", "<html>")], "no ResourceManager can be asked"),
        (vec![answer("500 Internal Server Error", "")], "no ResourceManager can be asked"),
    ] {
        let place = Place::new();
        let log = place.fetch_at(&Scripted::start(answers).await, Bounds::default()).await;
        assert!(missing(&log.output).contains(reason), "{log:?}");
        assert_eq!(log.output, log.error);
    }
}

#[tokio::test]
async fn what_a_node_has_no_more_is_found_where_it_was_moved_by_every_version() {
    let conf = |name: &str, value: &str| {
        format!("<property><name>{name}</name><value>{value}</value></property></configuration>")
    };
    let suffix = conf("yarn.nodemanager.remote-app-log-dir-suffix", "own");
    for (name, more) in [
        (MOVED.to_owned(), None),
        (format!("ann/logs-tfile/{ID}/host_45454"), None),
        (format!("ann/logs/{ID}/host_45454"), None),
        (format!("ann/bucket-own-tfile/2345/{ID}/host_45454"), Some(&suffix)),
        (format!("ann/own/{ID}/host_45454"), Some(&suffix)),
    ] {
        let place = Place::new();
        if let Some(more) = more {
            let path = place.configuration.path().join("yarn-site.xml");
            let text = fs::read_to_string(&path).unwrap().replace("</configuration>", more);
            fs::write(path, text).unwrap();
        }
        place.put(&name, &aggregated("out\n", "err\n"));
        // Neither another node's, nor one that is being written.
        for other in ["host_45455", "host_45454.tmp", "host_454541", "other_45454"] {
            place.put(&name.replace("host_45454", other), b"garbage");
        }
        let log =
            place.fetch(vec![report("FINISHED", "SUCCEEDED")], vec![not_found()], Bounds::default()).await;
        let Kept { from: Source::Aggregated(url), size, broken_off: None, .. } = kept(&log.output) else {
            panic!("{log:?}")
        };
        assert!(url.ends_with(&name) && size.produced == 4, "{url}");
        place.has(&[("stdout.log", "out\n"), ("stderr.log", "err\n")]);
    }
}

#[tokio::test]
async fn logs_that_are_on_their_way_are_waited_for_and_no_longer_than_is_given() {
    let place = Place::new();
    // They are there by the time at which YARN is asked again.
    let path = place.moved.path().join(MOVED);
    let bounds = Bounds { aggregation: Duration::from_secs(20), ..Bounds::default() };
    let answers = vec![report("FAILED", "NOT_START"), report("FAILED", "RUNNING")];
    let (log, ()) = tokio::join!(place.fetch(answers, vec![not_found()], bounds), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // As a NodeManager does it.
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, aggregated("out", "err")).unwrap();
        fs::rename(temporary, &path).unwrap();
    });
    assert!(log.output.is_whole() && log.error.is_whole(), "{log:?}");

    let place = Place::new();
    let bounds = Bounds { aggregation: Duration::from_millis(200), ..Bounds::default() };
    let begun = Instant::now();
    let log = place.fetch(vec![report("FAILED", "RUNNING")], vec![not_found()], bounds).await;
    assert!(missing(&log.error).contains("; nothing is in file://"), "{log:?}");
    assert!((Duration::from_millis(200)..Duration::from_secs(8)).contains(&begun.elapsed()));
    // Nobody waits for what does not come: YARN has given up, says that it is done, or has nothing to move yet.
    let bounds = Bounds { aggregation: Duration::from_secs(600), whole: Duration::from_secs(600), ..bounds };
    for (state, aggregation) in
        [("FAILED", "FAILED"), ("FAILED", "SUCCEEDED"), ("FAILED", "TIME_OUT"), ("RUNNING", "NOT_START")]
    {
        let log = place.fetch(vec![report(state, aggregation)], vec![not_found()], bounds).await;
        assert!(missing(&log.error).contains("; nothing is in file://"), "{log:?}");
    }
}

#[tokio::test]
async fn logs_that_were_moved_in_parts_are_put_together_in_their_order() {
    let place = Place::new();
    place.put(&format!("{MOVED}_1700000000100"), &aggregated("second,", ""));
    place.put(&format!("{MOVED}_90"), &aggregated("first,", "only"));
    let other = "container_1795751884603_12345_02_000002";
    let not_ours = file(&[vec![(other, record(other, &[("stdout", b"not ours")], 10))]], "gz");
    place.put(&format!("{MOVED}_1700000000101"), &not_ours);
    place.put(&format!("{MOVED}_1700000000102"), &aggregated("last", ""));
    let log = place.fetch(vec![report("FAILED", "SUCCEEDED")], vec![not_found()], Bounds::default()).await;
    assert!(log.output.is_whole() && log.error.is_whole(), "{log:?}");
    place.has(&[("stdout.log", "first,second,last"), ("stderr.log", "only")]);
}

#[tokio::test]
async fn a_log_that_broke_off_is_made_whole_by_what_was_moved() {
    let cut = whole_log("stdout", "out and more\n");
    let cut = cut[..cut.find("and").unwrap()].to_owned();
    let answers = vec![cut, whole_log("stderr", "of the node")];
    let place = Place::new();
    place.put(MOVED, &aggregated("out and more\n", "moved"));
    let log = place.fetch(vec![report("FAILED", "SUCCEEDED")], answers.clone(), Bounds::default()).await;
    assert!(matches!(kept(&log.output).from, Source::Aggregated(_)), "{log:?}");
    assert!(log.output.is_whole() && matches!(kept(&log.error).from, Source::NodeManager(_)), "{log:?}");
    place.has(&[("stdout.log", "out and more\n"), ("stderr.log", "of the node")]);
    // And stays what it is when that is not to be had.
    let place = Place::new();
    let log = place.fetch(vec![report("FAILED", "SUCCEEDED")], answers, Bounds::default()).await;
    let broken_off = kept(&log.output).broken_off.as_deref().unwrap();
    assert!(broken_off.starts_with("4 of 13 bytes came: "), "{broken_off}");
    assert!(broken_off.contains("; nothing is in file://"), "{broken_off}");
    place.has(&[("stdout.log", "out "), ("stderr.log", "of the node")]);
}

#[tokio::test]
async fn what_was_moved_and_is_of_no_use_is_told_and_keeps_what_could_be_read() {
    let early = |files: &[(&str, &[u8])]| file(&[vec![(CONTAINER, record(CONTAINER, files, 50))]], "none");
    let mut lies = Vec::new();
    for (name, length, content) in [("stderr", "3", "err"), ("stdout", "1000", "out")] {
        for text in [name, length] {
            lies.extend([0, u8::try_from(text.len()).unwrap()]);
            lies.extend_from_slice(text.as_bytes());
        }
        lies.extend_from_slice(content.as_bytes());
    }
    let lies = file(&[vec![(CONTAINER, raw_record(CONTAINER, &lies, 1000))]], "gz");
    let other = "container_1795751884603_12345_02_000002";
    let without = file(&[vec![(other, record(other, &[("stdout", b"not ours")], 10))]], "none");
    let lzo = file(&[vec![(CONTAINER, record(CONTAINER, &[], 10))]], "lzo");
    let prelaunch = early(&[("launch_container.sh", b"#!"), ("prelaunch.err", b"no such user")]);
    let both = early(&[("prelaunch.err", b"a warning"), ("stdout", b"out"), ("stderr", b"err")]);
    let whole = aggregated("out", "err");
    for (content, reason, files) in [
        (&b"garbage"[..], "it does not end as one does", &[][..]),
        (&[0xff; 5000], "has no aggregated logs, or not whole ones: it does not end as one does", &[]),
        (&whole[..whole.len() - 1], "it does not end as one does", &[]),
        (&lzo, "is compressed with \"lzo\", which this version cannot read", &[]),
        (&without, "has no more of it", &[]),
        (&lies, "a log is shorter than it says", &[("stderr.log", "err"), ("stdout.log", "out")]),
        (&prelaunch, "has no more of it", &[("stderr.log", "no such user")]),
        (&both, "", &[("stderr.log", "err"), ("stdout.log", "out")]),
    ] {
        let place = Place::new();
        place.put(MOVED, content);
        let log =
            place.fetch(vec![report("FAILED", "SUCCEEDED")], vec![not_found()], Bounds::default()).await;
        if reason.is_empty() {
            assert!(log.output.is_whole() && log.error.is_whole(), "{log:?}");
        } else {
            let (Outcome::Missing(told) | Outcome::Kept(Kept { broken_off: Some(told), .. })) = &log.output
            else {
                panic!("{log:?}")
            };
            assert!(told.contains(reason), "{told}");
        }
        place.has(files);
    }
}

#[tokio::test]
async fn of_a_long_log_that_was_moved_head_and_tail_are_kept() {
    for compression in ["none", "gz"] {
        let place = Place::new();
        let long: Vec<u8> =
            (0..3_000_000_u32).map(|place| b'a' + u8::try_from(place % 23).unwrap()).collect();
        let files = [("stdout", long.as_slice()), ("stderr", b"err".as_slice())];
        place.put(MOVED, &file(&[vec![(CONTAINER, record(CONTAINER, &files, 1 << 20))]], compression));
        let bounds = Bounds { bytes: 1000, ..Bounds::default() };
        let log = place.fetch(vec![report("FAILED", "SUCCEEDED")], vec![not_found()], bounds).await;
        let size = LogSize { produced: 3_000_000, left_out: 2_999_000, not_written: 0 };
        assert_eq!(kept(&log.output).size, size, "{log:?}");
        let long = String::from_utf8(long).unwrap();
        let (head, tail) = (&long[..500], &long[long.len() - 500..]);
        let expected = format!("{head}\n... 2999000 bytes left out ...\n{tail}");
        place.has(&[("stdout.log", &expected), ("stderr.log", "err")]);
    }
}
