//! `spark-runtime cluster prepare` on a real HDFS and a real YARN: the archive of Spark's jars, the class data of launchers,
//! and what submissions make of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use spark_runtime_tests::cluster::{Cluster, Part};
use spark_runtime_tests::program::{Called, binary};
use spark_runtime_tests::until;
use spark_runtime_worker::config::{Settings, Sources};
use spark_runtime_worker::spark::archive::cache_folder;
use spark_runtime_worker::spark::class_data::{ClassData, VARIABLE};
use spark_runtime_worker::spark::installation::{Environment, Installation};

use crate::spark::{Parts, spark_job};

const MEGABYTE: usize = 1 << 20;

/// A Spark of a few jars, whose spark-submit does nothing.
struct Small {
    place: tempfile::TempDir,
}

impl Small {
    fn new(megabytes: usize) -> Self {
        let place = tempfile::tempdir().unwrap();
        for folder in ["jars", "bin"] {
            fs::create_dir_all(place.path().join("spark").join(folder)).unwrap();
        }
        let small = Self { place };
        let content: Vec<u8> = uuid::Uuid::new_v4().as_bytes().repeat(MEGABYTE / 16);
        for index in 0..megabytes {
            fs::write(small.home().join(format!("jars/jar-{index}.jar")), &content).unwrap();
        }
        fs::write(small.home().join("jars/spark-core_2.13-1.2.3.jar"), "core").unwrap();
        let submit = small.home().join("bin/spark-submit");
        fs::write(&submit, "#!/bin/sh\nexit 1\n").unwrap();
        fs::set_permissions(&submit, fs::Permissions::from_mode(0o755)).unwrap();
        small
    }

    fn home(&self) -> PathBuf {
        self.place.path().join("spark")
    }

    /// `cluster prepare` in a folder of its own, as on a machine of its own.
    fn prepare(&self, folder: &str, environment: &[(&str, &str)]) -> Command {
        let directory = self.place.path().join(uuid::Uuid::new_v4().simple().to_string());
        let settings = [
            format!("spark.home={}", self.home().display()),
            format!("yarn.archive_folder={folder}"),
            format!("job.directory={}", directory.display()),
        ];
        prepare(&settings, environment)
    }
}

fn prepare(settings: &[String], environment: &[(&str, &str)]) -> Command {
    let mut command = spark_runtime(settings, environment);
    command.args(["cluster", "prepare"]);
    command
}

fn spark_runtime(settings: &[String], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(binary());
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("SPARK_RUNTIME_CONFIG", "/dev/null");
    command.envs(environment.iter().copied());
    command.args(settings.iter().flat_map(|setting| ["--set", setting])).stdin(Stdio::null());
    command
}

fn end(command: &mut Command) -> Called {
    let done = command.output().unwrap();
    Called {
        code: done.status.code(),
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
    }
}

/// A folder of its own that everybody may write to.
fn folder(cluster: &Cluster) -> String {
    let folder = format!("/prepared-{}", uuid::Uuid::new_v4().simple());
    cluster.hdfs("PUT", &folder, "MKDIRS");
    cluster.hdfs("PUT", &folder, "SETPERMISSION&permission=777");
    folder
}

fn status(cluster: &Cluster, path: &str) -> Value {
    cluster.hdfs("GET", path, "GETFILESTATUS")["FileStatus"].take()
}

#[tokio::test]
async fn of_two_that_prepare_a_cluster_at_once_one_archive_is_left_and_a_third_finds_it() {
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs]).await;
    let (small, folder) = (Small::new(24), folder(cluster));
    let hadoop = cluster.setting("HADOOP_CONF_DIR");
    let environment = [("HADOOP_CONF_DIR", hadoop.as_str()), ("HADOOP_USER_NAME", "ann")];
    let deep = format!("{folder}/deep/er");
    let both: Vec<Called> = std::thread::scope(|scope| {
        let run = || end(small.prepare(&deep, &environment).arg("--json"));
        let running = [scope.spawn(run), scope.spawn(run)];
        running.map(|one| one.join().unwrap()).into()
    });
    assert!(both.iter().all(|called| called.code == Some(0)), "{both:?}");
    let uploaded = both.iter().filter(|called| called.json()["archive"]["uploaded"] == true).count();
    assert_eq!(uploaded, 1, "{both:?}");
    let names = cluster.hdfs_list(&deep);
    let [name] = names.as_slice() else { panic!("{names:?}") };
    assert!(name.starts_with("spark-archive-1.2.3-"), "{name}");
    let path = format!("{deep}/{name}");
    let before = status(cluster, &path);
    assert_eq!((&before["permission"], &before["owner"]), (&json!("644"), &json!("ann")));
    assert_eq!(status(cluster, &deep)["permission"], "755");
    assert_eq!(before["length"], both[0].json()["archive"]["size"]);
    assert_eq!(both[0].json()["notes"].as_array().unwrap().len(), 1, "{both:?}");
    // Whole, and as any other program would read it.
    let copy = small.place.path().join("copy.zip");
    fs::write(&copy, cluster.hdfs_read(&path).unwrap()).unwrap();
    let tested = Command::new("python3").args(["-m", "zipfile", "-t"]).arg(&copy).output().unwrap();
    assert!(tested.status.success(), "{tested:?}");

    let third = end(&mut small.prepare(&deep, &environment));
    let url = format!("{}{path}", cluster.setting("HDFS_URI"));
    let mut lines = third.out.lines();
    assert_eq!(lines.next(), Some(format!("{url} is there already, 24 MiB").as_str()), "{third:?}");
    assert_eq!(lines.next(), Some(format!("spark.yarn.archive={url}").as_str()), "{third:?}");
    assert_eq!(status(cluster, &path), before);

    // Who cannot get there by himself is told whom it is closed to.
    cluster.hdfs("PUT", &deep, "SETPERMISSION&permission=750");
    let closed = end(&mut small.prepare(&deep, &environment));
    assert!(closed.out.contains(&format!("note: {deep} is closed to others: ")), "{closed:?}");
}

#[tokio::test]
async fn an_upload_that_was_killed_is_no_archive_and_goes_when_it_is_old() {
    let (cluster, _alone) = Cluster::alone(&[Part::Hdfs]).await;
    let (small, folder) = (Small::new(20), folder(cluster));
    let hadoop = cluster.setting("HADOOP_CONF_DIR");
    let environment = [("HADOOP_CONF_DIR", hadoop.as_str())];
    let data_node = Pid::from_raw(cluster.setting("DATANODE_PID").parse().unwrap());
    // Nothing gets any further than its first block.
    kill(data_node, Signal::SIGSTOP).unwrap();
    let mut command = small.prepare(&folder, &environment);
    let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = until("an upload", async || cluster.hdfs_list(&folder).pop()).await;
    running.kill().unwrap();
    running.wait().unwrap();
    kill(data_node, Signal::SIGCONT).unwrap();
    assert_eq!(cluster.hdfs_list(&folder), std::slice::from_ref(&begun));
    assert!(begun.contains(".part-"), "{begun}");

    let again = end(small.prepare(&folder, &environment).arg("--json"));
    assert_eq!(again.json()["archive"]["uploaded"], true, "{again:?}");
    let names = cluster.hdfs_list(&folder);
    assert!(names.contains(&begun) && names.len() == 2, "what may be under way stays: {names:?}");
    let old = "SETTIMES&modificationtime=1000000000000&accesstime=1000000000000";
    cluster.hdfs("PUT", &format!("{folder}/{begun}"), old);
    let third = end(small.prepare(&folder, &environment).arg("--json"));
    assert_eq!(third.json()["archive"]["uploaded"], false, "{third:?}");
    let names = cluster.hdfs_list(&folder);
    assert!(names.len() == 1 && names[0].starts_with("spark-archive-"), "{names:?}");
}

#[tokio::test]
async fn what_keeps_a_cluster_from_being_prepared_is_told_in_words_and_by_the_exit_code() {
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs]).await;
    let (small, folder) = (Small::new(2), folder(cluster));
    let hadoop = cluster.setting("HADOOP_CONF_DIR");
    let as_ann = [("HADOOP_CONF_DIR", hadoop.as_str()), ("HADOOP_USER_NAME", "ann")];
    let told = |folder: &str, environment: &[(&str, &str)], code: i32, words: &[&str]| {
        let called = end(&mut small.prepare(folder, environment));
        assert_eq!(called.code, Some(code), "{called:?}");
        assert!(words.iter().all(|words| called.err.contains(words)), "{called:?}");
        assert!(!called.err.contains(".java") && called.out.is_empty(), "{called:?}");
    };
    told("", &[], 78, &["there is no Hadoop configuration", "spark.environment.HADOOP_CONF_DIR"]);
    told("hdfs://127.0.0.1:1/x", &as_ann, 69, &["hdfs://127.0.0.1:1/x", "cannot be reached"]);
    cluster.hdfs("PUT", &format!("{folder}/closed"), "MKDIRS");
    let closed = format!("{folder}/closed/ann");
    told(&closed, &as_ann, 77, &["HDFS denies it: Permission denied: user=ann, access=WRITE", "/closed"]);
    let small_folder = format!("{folder}/small");
    cluster.hdfs("PUT", &small_folder, "MKDIRS");
    cluster.hdfs("PUT", &small_folder, "SETPERMISSION&permission=777");
    cluster.hdfs("PUT", &small_folder, "SETQUOTA&storagespacequota=1000000");
    told(&small_folder, &as_ann, 77, &["a quota of HDFS does not allow it"]);
    assert_eq!(cluster.hdfs_list(&small_folder), [""; 0]);
    fs::remove_file(small.home().join("jars/spark-core_2.13-1.2.3.jar")).unwrap();
    told(&folder, &as_ann, 78, &["is no folder with the jars of Spark"]);
    fs::remove_dir_all(small.home()).unwrap();
    told(&folder, &as_ann, 78, &["spark.home", "bin/spark-submit"]);
}

/// Counts on the executors, and says how many bytes were uploaded for it.
const SOURCE: &str = "\
from pyspark.sql import SparkSession
def score(inputs, outputs, attachments):
    spark = SparkSession.builder.getOrCreate()
    context = spark.sparkContext
    total = context.parallelize(range(10), 2).map(lambda n: 2 * n).sum()
    java = context._jvm.org.apache.hadoop.fs
    files = java.FileSystem.get(context._jsc.hadoopConfiguration())
    staging = java.Path(files.getHomeDirectory(), '.sparkStaging/' + context.applicationId)
    uploaded = files.getContentSummary(staging).getLength()
    archive = context.getConf().get('spark.yarn.archive')
    open('told.txt', 'w').write('%d %d %s' % (total, uploaded, archive))
";

#[tokio::test]
async fn on_a_prepared_cluster_a_job_uploads_less_than_a_megabyte_and_launchers_have_class_data() {
    let parts = Parts::take().await;
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs, Part::Yarn]).await;
    let place = tempfile::tempdir().unwrap();
    let hadoop = format!("spark.environment.HADOOP_CONF_DIR={}", cluster.setting("HADOOP_CONF_DIR"));
    let mut settings = parts.settings();
    settings.extend([
        hadoop,
        "spark.environment.SPARK_LOCAL_IP=127.0.0.1".to_owned(),
        "job.run_timeout=5m".to_owned(),
        format!("job.directory={}", place.path().join("jobs").display()),
    ]);
    let mut first = prepare(&settings, &[]);
    let first = tokio::task::spawn_blocking(move || end(first.arg("--json"))).await.unwrap();
    assert_eq!(first.code, Some(0), "{first:?}");
    let told = first.json();
    assert_eq!(told["notes"], json!([]), "{told}");
    let archive = told["archive"]["url"].as_str().unwrap().to_owned();
    let home = format!("{}/user/{}/.spark-runtime/", cluster.setting("HDFS_URI"), Cluster::superuser());
    assert!(archive.starts_with(&home), "{archive}");

    let mut job = spark_job("prepared", SOURCE);
    job["targetEngine"]["sparkConf"]["--master"] = json!("yarn");
    job["jobParameters"] = json!({"--executor-memory": "512MB", "--num-executors": "1"});
    job["outputData"] = json!([{"name": "t", "assetType": "FILE", "filename": "told.txt"}]);
    let (file, outputs) = (place.path().join("job.json"), place.path().join("outputs"));
    fs::write(&file, job.to_string()).unwrap();
    let mut run = spark_runtime(&settings, &[]);
    run.arg("run").arg(&file).arg("--outputs").arg(&outputs);
    let ran = tokio::task::spawn_blocking(move || end(&mut run)).await.unwrap();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let words = fs::read_to_string(outputs.join("told.txt")).unwrap();
    let [total, uploaded, used] = words.split(' ').collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((total, used), ("90", archive.as_str()));
    let uploaded: usize = uploaded.parse().unwrap();
    assert!((1..MEGABYTE).contains(&uploaded), "{uploaded} bytes");

    launchers_have_class_data(&settings, Path::new(told["classData"]["path"].as_str().unwrap())).await;
}

/// A launcher finds its classes in the class data, and one that is damaged is no fault.
async fn launchers_have_class_data(settings: &[String], file: &Path) {
    let settings = Settings::load(&Sources { overrides: settings.to_vec(), ..Sources::default() }).unwrap();
    let installation = Installation::find(&settings.spark).unwrap();
    let class_data = ClassData::new(cache_folder(&settings.job.directory));
    let loaded = file.with_extension("log");
    let launch = async || {
        let mut environment = Environment::of(&settings.spark, Some(&installation));
        class_data.tell(&installation, &mut environment);
        let options = environment.get(VARIABLE).unwrap().to_str().unwrap().to_owned();
        environment.set(VARIABLE, format!("{options} -Xlog:class+load:file={}", loaded.display()));
        let mut launcher = Command::new(&installation.submit);
        launcher.arg("--version").env_clear().envs(environment.pairs()).stdin(Stdio::null());
        tokio::task::spawn_blocking(move || end(&mut launcher)).await.unwrap()
    };
    let is_shared = || {
        let text = fs::read_to_string(&loaded).unwrap();
        let line = text.lines().find(|line| line.contains(" org.apache.spark.deploy.SparkSubmit ")).unwrap();
        line.contains("shared objects file")
    };
    let called = launch().await;
    assert_eq!((called.code, called.out.as_str()), (Some(0), ""), "{called:?}");
    assert!(is_shared(), "{}", fs::read_to_string(&loaded).unwrap());
    let whole = fs::read(file).unwrap();
    for damaged in [whole[..whole.len() / 2].to_vec(), vec![0; whole.len()]] {
        fs::remove_file(file).unwrap();
        fs::write(file, damaged).unwrap();
        let called = launch().await;
        assert_eq!((called.code, called.out.as_str()), (Some(0), ""), "{called:?}");
        assert!(!is_shared());
    }
}
