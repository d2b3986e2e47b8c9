//! Connections over TLS: an authority of one's own, certificates for both sides, and what is said when they do not fit.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use spark_runtime_protocol::event::EventKind;
use spark_runtime_tests::broker::{Broker, Vhost};
use spark_runtime_tests::jobs::text;
use spark_runtime_tests::program::{Worker, call, hangs};
use tempfile::TempDir;

const DELAYS: [Duration; 1] = [Duration::from_millis(200)];
const RETRY: &str = "retry.delays=200ms";

/// An authority with what it has signed, as files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    /// With a certificate for a broker at localhost, and at no other name, in the files that a broker takes.
    fn of_broker() -> Self {
        let authority = Self::new("the broker's authority");
        authority.sign("broker", 2099);
        authority
    }

    /// Signs a certificate that is valid until the end of a year, into `NAME.pem` and `NAME.key`.
    fn sign(&self, name: &str, last_year: i32) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(last_year, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.file(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn trusted(&self) -> String {
        format!("broker.ca_file={}", self.file("ca.pem").display())
    }

    /// The settings of a client that shows the certificate of this name.
    fn shown(&self, name: &str) -> [String; 2] {
        [
            format!("broker.certificate_file={}", self.file(&format!("{name}.pem")).display()),
            format!("broker.key_file={}", self.file(&format!("{name}.key")).display()),
        ]
    }
}

fn texts(owned: &[String]) -> Vec<&str> {
    owned.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn worker_guard_and_command_line_work_over_tls_with_certificates_on_both_sides() {
    let authority = Authority::of_broker();
    authority.sign("client", 2099);
    let stranger = Authority::new("somebody else's authority");
    stranger.sign("client", 2099);
    let tls = authority.folder.path().to_str().unwrap();
    let demand = "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true";
    let broker = Broker::own(&[("BROKER_TLS", tls), ("BROKER_CONF_EXTRA", demand)]);
    let mut place = Vhost::ready_on(&broker, &DELAYS).await;
    let uri = place.vhost.tls_uri("localhost");

    let trusted = [RETRY.to_owned(), authority.trusted()];
    let bare = call(&uri, &texts(&trusted), &["topology", "verify"]).await;
    assert_eq!(bare.code, Some(77), "{bare:?}");
    assert!(bare.err.contains("broker.certificate_file"), "{bare:?}");
    let others = [&trusted[..], &stranger.shown("client")].concat();
    let others = call(&uri, &texts(&others), &["topology", "verify"]).await;
    assert_eq!(others.code, Some(77), "{others:?}");
    assert!(others.err.contains("does not take our certificate"), "{others:?}");

    let settings = [&trusted[..], &authority.shown("client")].concat();
    let settings = texts(&settings);
    let verified = call(&uri, &settings, &["topology", "verify"]).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    let first = Worker::start(&uri, &settings);
    let job = first.home.path().join("job.json");
    let ask = async |arguments: &[&str]| call(&uri, &settings, arguments).await;
    let job = job.to_str().unwrap();
    std::fs::write(job, text("one", &["complete"])).unwrap();
    let submitted = ask(&["submit", job, "--wait"]).await;
    assert_eq!(submitted.code, Some(0), "{submitted:?}");
    let status = ask(&["status", "one", "--json"]).await;
    assert_eq!(status.json()["ending"], "completed", "{status:?}");
    place.publish("long", text("long", &["hang"])).await;
    place.heard("long", &[EventKind::Running]).await;
    let cancelled = ask(&["cancel", "long", "--wait"]).await;
    assert_eq!(cancelled.code, Some(0), "{cancelled:?}");
    let dead = ask(&["dead", "list", "--json"]).await;
    assert_eq!((dead.code, dead.out.trim()), (Some(0), "[]"), "{dead:?}");

    // The guard of a dead worker gives its jobs away, over TLS too.
    let counter = first.home.path().join("counter");
    place.publish("k", text("k", &[&format!("times 1 {} hang", counter.display())])).await;
    hangs(&counter).await;
    let second = Worker::start(&uri, &settings);
    second.logged("the ledger has been read").await;
    let killed = Instant::now();
    first.signal(Signal::SIGKILL);
    let end = place.end_of("k").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2));
    // The lease is a minute: by it alone this would have taken longer.
    assert!(killed.elapsed() < Duration::from_secs(45), "{:?}", killed.elapsed());
}

/// What the program says that cannot get a connection, and what a worker says.
async fn refusal(uri: &str, settings: &[&str], code: i32) -> String {
    let called = call(uri, settings, &["topology", "verify"]).await;
    assert_eq!(called.code, Some(code), "{called:?}");
    let worker = Worker::start(uri, settings);
    let told = called.err.trim().trim_start_matches("spark-runtime: ").to_owned();
    let told = told.split_once(": ").map_or(told.clone(), |(_, reason)| reason.to_owned());
    worker.logged(&told).await;
    called.err
}

#[tokio::test]
async fn what_does_not_fit_between_the_two_sides_is_told() {
    let authority = Authority::of_broker();
    let stranger = Authority::new("somebody else's authority");
    let broker = Broker::own(&[("BROKER_TLS", authority.folder.path().to_str().unwrap())]);
    let place = Vhost::ready_on(&broker, &DELAYS).await;
    let trusted = authority.trusted();
    let settings = [RETRY, trusted.as_str()];
    let uri = place.vhost.tls_uri("localhost");
    assert_eq!(call(&uri, &settings, &["topology", "verify"]).await.code, Some(0));

    let said = refusal(&uri, &[RETRY, &stranger.trusted()], 77).await;
    assert!(said.contains("of no authority that is trusted") && said.contains("broker.ca_file"), "{said}");
    let said = refusal(&place.vhost.tls_uri("127.0.0.1"), &settings, 77).await;
    assert!(said.contains("not for the host 127.0.0.1, but for localhost"), "{said}");

    let plain = broker.port();
    let said = refusal(&place.vhost.tls_uri_at("localhost", plain), &settings, 69).await;
    assert!(said.contains("does not speak TLS"), "{said}");
    let tls = broker.tls_port();
    let said = refusal(&place.vhost.uri_at(tls), &[RETRY], 69).await;
    assert!(said.contains("amqps://"), "{said}");

    let nothing = Path::new("/no/such/ca.pem");
    let missing = format!("broker.ca_file={}", nothing.display());
    let said = refusal(&uri, &[RETRY, &missing], 78).await;
    assert!(said.contains("/no/such/ca.pem cannot be read"), "{said}");

    // A certificate can be renewed, and can run out, under a running broker.
    authority.sign("broker", 2020);
    for file in ["broker.pem", "broker.key"] {
        std::fs::copy(authority.file(file), broker.directory().join("tls").join(file)).unwrap();
    }
    broker.call("ssl clear_pem_cache []").unwrap();
    let said = refusal(&uri, &settings, 77).await;
    assert!(said.contains("has expired, 2020-12-31"), "{said}");
}
