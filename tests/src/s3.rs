//! A real S3 server for the tests: SeaweedFS, installed by `deploy/install` when it is first asked for, with ports and a
//! folder of its own. It is killed when it is dropped.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot have its server cannot go on"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::until;

/// The key by which the server knows its one user.
pub const ACCESS_KEY: &str = "spark-runtime-tests";
/// The user's secret; it must not be seen anywhere.
pub const SECRET_KEY: &str = "a-secret-that-no-model-sees";

/// A running server.
#[derive(Debug)]
pub struct S3 {
    child: Child,
    port: u16,
    filer: u16,
    folder: tempfile::TempDir,
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, installed once.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let install = Command::new(crate::project().join("deploy/install"))
            .arg("--python")
            .arg(crate::project().join("tests/e2e/requirements-s3.txt"))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .expect("deploy/install starts");
        assert!(install.status.success(), "SeaweedFS could not be installed");
        PathBuf::from(String::from_utf8(install.stdout).unwrap().trim()).join("bin/weed")
    })
}

impl S3 {
    /// Starts a server and waits until it answers.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let held: Vec<TcpListener> = (0..8).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = held.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(held);
        let flags = [
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
            "s3.port",
            "s3.port.grpc",
        ];
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(program())
            .args(["server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0"])
            // It would keep a part of the whole disk free, which may be more than there is.
            .arg("-volume.minFreeSpace=64MiB")
            .arg(format!("-dir={}", folder.path().display()))
            .arg(format!("-filer.localSocket={}", folder.path().join("filer.sock").display()))
            .args(flags.iter().zip(&ports).map(|(flag, port)| format!("-{flag}={port}")))
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { child, port: ports[6], filer: ports[4], folder };
        until("the S3 server's first answer", async || get(server.port, "/healthz").map(drop)).await;
        server
    }

    /// Where it is.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The content of an object, past the server's own checks of who may read it; `None` when it is not there.
    #[must_use]
    pub fn object(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        get(self.filer, &format!("/buckets/{bucket}/{key}"))
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// The body of a page, when it is there.
fn get(port: u16, path: &str) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let is_good = answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200");
    is_good.then(|| answer.split_off(head + 4))
}
