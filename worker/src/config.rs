//! Settings: what an operator can choose, and where each choice comes from.
//!
//! Four layers, the later over the earlier: the defaults of [`SETTINGS`], a TOML file, environment variables
//! (`SPARK_RUNTIME__<SECTION>__<KEY>`) and `--set section.key=value`. Every layer is judged by itself and whole, so that
//! a fault is reported with the place where it stands, and all faults at once. What is not known is refused: a misspelt
//! setting that is passed over in silence is found out in production.
//!
//! [`SETTINGS`] is the one table of them: defaults, known names, the listing of `spark-runtime config` and the
//! reference all come from it.
//!
//! This module must not know what the settings are used for, and never shows a secret.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::config::{ConfigError, FileFormat, Map, Source, Value, ValueKind};
use bytesize::ByteSize;
use jiff::SignedDuration;
use serde_json::{Value as Json, json};
use spark_runtime_protocol::connect::{Endpoint, EndpointError};
use spark_runtime_protocol::tls::{Certificates, OwnCertificate};
use spark_runtime_protocol::topology::Shape;

use crate::runtimes::build::Index;

/// The file that is read when no other is named, if it is there.
pub const DEFAULT_FILE: &str = "/etc/spark-runtime/config.toml";
/// The environment variable that names the file.
pub const FILE_VARIABLE: &str = "SPARK_RUNTIME_CONFIG";
/// What the names of the environment variables of settings begin with.
const PREFIX: &str = "SPARK_RUNTIME__";

/// A settings file above this many bytes is none.
const LARGEST_FILE: u64 = 1024 * 1024;
/// A password file above this many bytes is none.
const LARGEST_PASSWORD_FILE: u64 = 4096;
/// Longer than this nothing here waits. Far beyond it, moments could no longer be computed.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// The longest delay of a retry: a broker's queue takes times to live of less than fifty days.
const LONGEST_DELAY: Duration = Duration::from_secs(28 * 24 * 3600);
/// The longest heartbeat that the protocol can carry, in whole seconds.
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(u16::MAX as u64);
/// The longest lease: a worker that is lost for good must not block its jobs for longer.
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3600);
const MINUTE: Duration = Duration::from_secs(60);
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// One setting as the reference shows it.
#[derive(Debug)]
pub struct Setting {
    /// `section.key`.
    pub key: &'static str,
    kind: Kind,
    /// The default as it would stand in an environment variable; empty for none.
    pub default: &'static str,
    /// What it does, in whole sentences.
    pub doc: &'static str,
}

/// What a setting takes.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A broker address; its password is a secret.
    Address,
    /// Letters, digits and `-_.:@`, or nothing.
    Name,
    /// Text without control characters.
    Text,
    /// The same, or nothing.
    AnyText,
    /// A path, or nothing. Made absolute.
    Path,
    /// A URL that begins with one of these, or nothing.
    Url(&'static [&'static str]),
    /// The address of a database without credentials, or nothing.
    Database,
    /// A path, or a name that is looked up on the PATH, or nothing.
    Program,
    Count {
        least: u64,
        most: u64,
    },
    Span {
        least: Duration,
        most: Duration,
    },
    /// At least one duration.
    Spans {
        least: Duration,
        most: Duration,
    },
    /// A number of bytes.
    Size {
        least: u64,
    },
    Choice(&'static [&'static str]),
    /// Any of these words.
    Words(&'static [&'static str]),
    /// An `https://` or `http://` address without credentials, a path, or nothing.
    Location,
    /// Names of environment variables.
    Variables,
    /// Environment variables with their values, some of which are secrets.
    Environment,
}

const fn setting(key: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Setting {
    Setting { key, kind, default, doc }
}

const fn span(least: Duration) -> Kind {
    Kind::Span { least, most: LONGEST }
}

/// Every setting there is, by section.
pub static SETTINGS: &[Setting] = &[
    setting(
        "broker.uri",
        Kind::Address,
        "amqp://guest:guest@localhost:5672/%2f",
        "Where the broker is: `amqp://user:password@host:port/vhost`, or `amqps://` for TLS. The vhost `/` is written \
         `%2f`. Give it in the file or the environment: a command line can be read by every user of the machine.",
    ),
    setting(
        "broker.password_file",
        Kind::Path,
        "",
        "A file that holds the broker's password and nothing else. It takes the place of the password in `broker.uri`. A \
         worker reads it when it starts.",
    ),
    setting(
        "broker.ca_file",
        Kind::Path,
        "",
        "The certificates of the authorities that may vouch for the broker, in PEM, for an `amqps://` address. Without it \
         those that the machine trusts, or that the variables `SSL_CERT_FILE` and `SSL_CERT_DIR` name. This file and the \
         next two are read for every connection, so that they can be renewed under a running worker.",
    ),
    setting(
        "broker.certificate_file",
        Kind::Path,
        "",
        "The certificate to show to a broker that asks its clients for one, in PEM, followed by those between it and the \
         authority. With `auth_mechanism=external` in `broker.uri`, and where the broker takes that, it stands for the user \
         and the password.",
    ),
    setting(
        "broker.key_file",
        Kind::Path,
        "",
        "The private key of `broker.certificate_file`, in PEM and not encrypted.",
    ),
    setting(
        "broker.heartbeat",
        Kind::Span { least: SECOND, most: LONGEST_HEARTBEAT },
        "10s",
        "How often both sides of a connection show that they are there, in whole seconds. A connection that was silent \
         for about twice as long counts as lost.",
    ),
    setting(
        "broker.publish_timeout",
        span(MILLISECOND),
        "30s",
        "How long the broker may take to confirm a message before the publication counts as failed.",
    ),
    setting(
        "worker.name",
        Kind::Name,
        "",
        "The worker's name in events and at the broker. When it is empty, the host and the process id are taken. Four \
         random characters are added, so that no two instances share a name.",
    ),
    setting(
        "worker.max_running",
        Kind::Count { least: 0, most: 10_000 },
        "0",
        "How many jobs run at once. 0 stands for the number of processors.",
    ),
    setting(
        "worker.max_submits",
        Kind::Count { least: 0, most: 10_000 },
        "0",
        "How many spark-submits may be starting up at once; each takes a processor and a few hundred megabytes. 0 stands \
         for the number of processors.",
    ),
    setting(
        "worker.drain_grace",
        span(Duration::ZERO),
        "10m",
        "How long running jobs may go on after the first SIGTERM. What still runs then is ended and given back to the \
         other workers.",
    ),
    setting(
        "worker.watchdog",
        span(SECOND),
        "60s",
        "When jobs wait and places are free, but nothing was delivered for this long, the connection is built anew.",
    ),
    setting(
        "job.directory",
        Kind::Path,
        "/tmp/spark-runtime-<uid>",
        "Where the directories of attempts are made. It is created when it is missing, for this user alone. It has to \
         be on a disk with room for the files and logs of all running jobs. What Spark and Java keep for a while is there, too, \
         native libraries among it, so the disk must not be mounted with `noexec`; `spark.environment` can say otherwise, by \
         `SPARK_LOCAL_DIRS` and by `SPARK_SUBMIT_OPTS` with `-Djava.io.tmpdir=`. `<uid>` in the default is the user's number.",
    ),
    setting(
        "job.existing_outputs",
        Kind::Choice(&["allow", "refuse"]),
        "allow",
        "What becomes of a job one of whose outputs is there already, on a file system of the worker's machine or on HDFS: with \
         `allow` it is run, the event says so, and whether it overwrites is up to the model; with `refuse` it is rejected. What a \
         dead attempt of the job left is removed in any case, and what was there before the first attempt never. While HDFS does \
         not answer, nobody can tell, and the job is not run but tried again.",
    ),
    setting(
        "job.keep",
        Kind::Choice(&["never", "failed", "always"]),
        "failed",
        "Which attempts' directories stay after their end, in the folder `kept`: `never`, those that `failed`, or \
         `always`.",
    ),
    setting(
        "job.keep_for",
        span(SECOND),
        "168h",
        "How long a directory that was kept stays. Whoever starts a worker on the same folder removes older ones, and so \
         does every worker once an hour.",
    ),
    setting(
        "job.submit_timeout",
        span(SECOND),
        "5m",
        "How long spark-submit may take until the driver is there. Then it is ended and has failed with the class \
         `submit`, which is tried again.",
    ),
    setting(
        "job.pending_timeout",
        span(SECOND),
        "24h",
        "How long an application may wait in a cluster until its driver gets a place; of one whose driver runs on the worker's \
         machine, how long its work may wait for executors without having one, on a standalone cluster as on YARN, or YARN may \
         take to begin it. Then it is ended and has failed with the class `pending`, which is tried again.",
    ),
    setting(
        "job.run_timeout",
        span(SECOND),
        "24h",
        "How long an attempt may run, from the moment at which the driver is there. While its work waits for executors this \
         stands still, up to `job.pending_timeout` in all. Then it is ended and has failed with the class `timeout`.",
    ),
    setting(
        "job.kill_grace",
        span(Duration::ZERO),
        "10s",
        "How long an attempt's processes may take to end by themselves after a SIGTERM, before they are killed.",
    ),
    setting(
        "job.max_size",
        Kind::Size { least: 1024 },
        "16MiB",
        "A job message above this size is rejected. RabbitMQ itself takes up to 16 MiB from release 4.0 on.",
    ),
    setting(
        "job.inline_output",
        Kind::Size { least: 0 },
        "1MiB",
        "A FILE output up to this size comes back in the event. For a larger one the event says where it is.",
    ),
    setting(
        "attachments.max_size",
        Kind::Size { least: 1024 },
        "8GiB",
        "How much the attachments of a record model may take on disk: what is fetched for them, and what comes out of their \
         archives. A job that brings more is rejected.",
    ),
    setting(
        "attachments.max_files",
        Kind::Count { least: 1, most: 10_000_000 },
        "100000",
        "How many files and folders the attachments of a record model may bring. A job that brings more is rejected.",
    ),
    setting(
        "attachments.max_ratio",
        Kind::Count { least: 1, most: 1_000_000 },
        "200",
        "How many times its own size an archive may unpack to, once that is more than 64 MiB. Ordinary archives stay below 50; \
         what unpacks to more looks like a bomb, and its job is rejected.",
    ),
    setting(
        "training.upload_to",
        Kind::Url(&["/", "file:/", "hdfs://", "viewfs://", "s3://", "s3a://", "s3n://"]),
        "",
        "Where the files of `outputDir` of training jobs go that do not say so themselves (`trainingOutput`): a folder that all \
         workers and their users share, or a URL. Each job gets a folder of its own in it, with the job's id as its name. When it \
         is empty, the files stay on the worker's machine, and the event says where.",
    ),
    setting(
        "training.max_files",
        Kind::Count { least: 1, most: 10_000 },
        "10000",
        "How many files a training job may leave in `outputDir`; each of them stands in its last event.",
    ),
    setting(
        "storage.s3_endpoint",
        Kind::Url(&["http://", "https://"]),
        "",
        "Where S3 is, when it is not Amazon's own. When it is empty, `AWS_ENDPOINT_URL` of the worker's environment counts. Region and \
         credentials come from the same environment (`AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and so on) or from \
         the machine's role; no model sees them.",
    ),
    setting(
        "retry.max_attempts",
        Kind::Count { least: 1, most: 1000 },
        "3",
        "How often a job is tried at most, when its attempts fail for reasons that are not its own. 1 means no retry.",
    ),
    setting(
        "retry.delays",
        Kind::Spans { least: MILLISECOND, most: LONGEST_DELAY },
        "5s,30s,2m",
        "How long to wait before the second attempt, the third, and so on; the last one counts for all that follow. \
         Each delay has a queue of its own at the broker: run `spark-runtime topology declare` after a change.",
    ),
    setting(
        "ledger.lease",
        Kind::Span { least: SECOND, most: LONGEST_LEASE },
        "60s",
        "For how long a worker may be cut off from the broker and still keep its running jobs. Shorter: a job whose \
         machine is lost starts again sooner. Longer: a broker that is away for longer costs no running job. A worker ends its \
         jobs a tenth earlier, so that no other one can have started them. Workers may differ while it is \
         changed; run `spark-runtime topology declare` with the new one first.",
    ),
    setting(
        "ledger.retention",
        Kind::Span { least: MINUTE, most: LONGEST },
        "168h",
        "How long the ledger and the history are kept: so long the id of a job that ended is recognised and answered with its \
         end, and `status` and `jobs` know of it. It has to be at least twice `job.run_timeout`. The broker cuts whole files off, so \
         that more may be kept. It is an argument of the streams: to change it, delete them while no job runs.",
    ),
    setting(
        "ledger.checkpoint_every",
        Kind::Count { least: 1, most: 1_000_000_000 },
        "20000",
        "After how many records, at least, a worker writes a checkpoint of the ledger: one that starts then reads only what came \
         after it. A ledger that knows of many jobs gets them less often.",
    ),
    setting(
        "spark.home",
        Kind::Path,
        "",
        "The Spark installation. When it is empty, it is found by `SPARK_HOME`, then by the spark-submit on the PATH.",
    ),
    setting(
        "spark.submit",
        Kind::Path,
        "",
        "The path of spark-submit itself, where it is not `bin/spark-submit` of the installation.",
    ),
    setting(
        "spark.master",
        Kind::Text,
        "local[*]",
        "The master for jobs that do not name one: `local[*]`, `local[2]`, `spark://host:7077`, `yarn` or `k8s://https://host:port`.",
    ),
    setting(
        "spark.master_page_port",
        Kind::Count { least: 1, most: 65_535 },
        "8080",
        "The port of the page of a standalone master (`spark.master.ui.port`), which is asked why an application gets no \
         executors, and whether the master still knows it.",
    ),
    setting(
        "spark.python",
        Kind::Program,
        "",
        "The Python that runs drivers and executors; becomes `PYSPARK_PYTHON` and `PYSPARK_DRIVER_PYTHON`. When it is \
         empty, Spark takes the `python3` on the PATH.",
    ),
    setting(
        "spark.policy",
        Kind::Path,
        "",
        "The policy file: which flags and properties jobs may set, which they get by default, and which are forced.",
    ),
    setting(
        "spark.environment",
        Kind::Environment,
        "",
        "Environment variables that are given to spark-submit: a table in the file, \
         `SPARK_RUNTIME__SPARK__ENVIRONMENT__<NAME>` in the environment, `--set spark.environment.<NAME>=value` on the \
         command line. A model can read them. Values are shown masked when their name looks like that of a secret.",
    ),
    setting(
        "spark.pass_environment",
        Kind::Variables,
        "",
        "The names of environment variables that spark-submit gets from the worker's own environment, beside those \
         that it always gets (such as PATH, HOME, LANG and JAVA_HOME). The worker's own settings are never handed on.",
    ),
    setting(
        "yarn.archive",
        Kind::Choice(&["prepared", "never"]),
        "prepared",
        "Whether jobs on YARN are given the archive of Spark's jars, and those of PySpark, that `spark-runtime cluster prepare` has put \
         on the cluster, so that their submission does not upload some 420 MB: `prepared`, where it is there, or `never`. Jobs that set \
         `spark.yarn.archive` or `spark.yarn.jars`, themselves or by the policy or by `spark-defaults.conf`, get what they say.",
    ),
    setting(
        "yarn.archive_folder",
        Kind::Url(&["/", "file:/", "hdfs://", "viewfs://", "s3://", "s3a://", "s3n://"]),
        "",
        "Where these archives are: a folder of the file system that Hadoop's configuration names, or a URL that workers and containers \
         take alike. When it is empty, that is `/user/<user>/.spark-runtime`. The files can be read by all; for YARN to keep one copy on a \
         node for all users, every folder that leads there has to let others through as well, and for jobs of other users than the \
         worker's in any case.",
    ),
    setting(
        "yarn.folder",
        Kind::AnyText,
        "",
        "The folder in HDFS for what workers and drivers in a cluster leave for each other. Every worker has to name the same, \
         and the users of both have to be allowed to write there. When it is empty, it is `/user/<user>/.spark-runtime`.",
    ),
    setting(
        "yarn.service",
        Kind::AnyText,
        "",
        "What sets the applications of this service apart from those of another one on the same cluster. All workers of a \
         service have to say the same: a worker looks for a job's application by this before it submits one.",
    ),
    setting(
        "yarn.max_followed",
        Kind::Count { least: 0, most: 1500 },
        "500",
        "How many applications in cluster mode, on YARN or Kubernetes, a worker looks after, beside the jobs that run on its own machine \
         (`worker.max_running`).",
    ),
    setting(
        "yarn.grace",
        span(Duration::ZERO),
        "10s",
        "How long after the end of spark-submit the ResourceManager may take to know of an application.",
    ),
    setting(
        "yarn.lost_after",
        span(SECOND),
        "1h",
        "How long an application may be unknown, as while the ResourceManager is away or when it has forgotten it. Then it has \
         failed with the class `lost`.",
    ),
    setting(
        "kubernetes.folder",
        Kind::AnyText,
        "",
        "The folder in HDFS for what workers and drivers in pods leave for each other, and by which a job's files go to its pod. \
         Every worker has to name the same, and both have to be allowed to write there. When it is empty, it is \
         `/user/<user>/.spark-runtime`. Pods find HDFS by the configuration that `spark.environment.HADOOP_CONF_DIR` names, which \
         spark-submit hands on to them.",
    ),
    setting(
        "kubernetes.service",
        Kind::AnyText,
        "",
        "What sets the pods of this service apart from those of another one in the same namespace. All workers of a service have to \
         say the same: a worker looks for a job's pod by this before it submits one.",
    ),
    setting(
        "kubernetes.namespace",
        Kind::AnyText,
        "",
        "The namespace for jobs that name none (`spark.kubernetes.namespace`), themselves or by the policy. When it is empty, it is \
         that of the kubeconfig's context, or of the pod that the worker runs in.",
    ),
    setting(
        "kubernetes.context",
        Kind::AnyText,
        "",
        "The context of the kubeconfig, when it is not its current one. The kubeconfig is the one that spark-submit finds: \
         `spark.environment.KUBECONFIG`, else `~/.kube/config`, else what Kubernetes gives to the pod that the worker runs in. It is read \
         once, by the first job that needs it; tokens in files and of helper programs are renewed. A job \
         whose master is another API server than the kubeconfig's is refused, unless that is the worker's own `spark.master`.",
    ),
    setting(
        "kubernetes.image",
        Kind::AnyText,
        "",
        "The image of drivers and executors for jobs that name none (`spark.kubernetes.container.image`). It needs the Spark of the \
         worker and a Python that its PySpark takes.",
    ),
    setting(
        "kubernetes.service_account",
        Kind::AnyText,
        "",
        "The service account of drivers for jobs that name none (`spark.kubernetes.authenticate.driver.serviceAccountName`). It has to \
         be allowed to make and delete pods, services and config maps.",
    ),
    setting(
        "kubernetes.keep_pods",
        Kind::Choice(&["never", "failed", "always"]),
        "failed",
        "Which pods of drivers stay when the end of their job was told, for whoever wants to look at them: those that `failed`, all or \
         none. What a driver wrote is in the job's event and log in any case. A pod that was kept is removed when its job runs again, \
         and else by Kubernetes itself, which keeps only so many that are over.",
    ),
    setting(
        "kubernetes.grace",
        span(Duration::ZERO),
        "10s",
        "How long after the end of spark-submit the API server may take to know of a pod, and of all that it needs to start.",
    ),
    setting(
        "kubernetes.lost_after",
        span(SECOND),
        "1h",
        "How long a pod may be unknown, as while the API server is away. Then its job has failed with the class `lost`.",
    ),
    setting(
        "git.program",
        Kind::Program,
        "git",
        "The git program, of release 2.29 or later, by which sources that jobs only refer to are fetched.",
    ),
    setting(
        "git.transports",
        Kind::Words(&["file", "https", "http", "ssh"]),
        "file,https,ssh",
        "The ways in which repositories may be reached: `file` is a folder of the worker's machine, `http` is not encrypted. A job \
         whose repository is reached in another way is rejected; with an empty list every job that needs a repository is.",
    ),
    setting(
        "git.credentials",
        Kind::Path,
        "",
        "A file of users and passwords or tokens for repositories that are reached by HTTP, one `https://user:token@host` a line, \
         as `git credential-store` keeps them. It is read by git alone and never written. It should be readable by the worker's \
         user only. For `ssh` the keys and known hosts of that user count.",
    ),
    setting(
        "git.timeout",
        span(SECOND),
        "2m",
        "How long it may take to get everything that a job has in repositories. Then the attempt has failed with the class \
         `infrastructure`, which is tried again.",
    ),
    setting(
        "git.max_fetch",
        Kind::Size { least: 64 * 1024 },
        "1GiB",
        "How much one commit of a repository may take, as it is transferred. A job that needs a larger one is rejected. Only the one \
         commit is fetched, without its history.",
    ),
    setting(
        "git.max_file",
        Kind::Size { least: 1024 },
        "64MiB",
        "The largest file that a job may have in a repository.",
    ),
    setting(
        "git.cache_size",
        Kind::Size { least: 0 },
        "4GiB",
        "How much disk is used to remember what was fetched, in the folder `repositories` of `job.directory`, which all workers of a \
         machine share. What was not used for the longest time goes first.",
    ),
    setting(
        "runtimes.file",
        Kind::Path,
        "",
        "The file that names runtimes, each with its Python and, if need be, its Spark: `[[runtime]]`, `name`, `python` (the folder of an \
         environment, a Python program, or a packed environment such as `x.tar.gz`) and `spark_home`. The first runtime is always the \
         one of section `spark`, with the name `default`; those of the file follow in their order. A job gets the first one whose \
         installed packages meet its REQUIRED_LIBRARIES.",
    ),
    setting(
        "runtimes.allow",
        Kind::Words(&["urls", "vcs", "hashes", "indexes", "nested"]),
        "",
        "What lines of REQUIRED_LIBRARIES may be, beside packages and their versions: `urls` (`name @ https://...`), `vcs` (`name @ \
         git+https://...`), `hashes` (`--hash`), `indexes` (`--index-url`, `--extra-index-url`, `--find-links`, `--no-index`) and `nested` \
         (`-r` of another file of the job). Editable installs and all other options are never taken.",
    ),
    setting(
        "runtimes.build",
        Kind::Choice(&["never", "wheels", "sources"]),
        "never",
        "Whether a runtime is built for a job that none fits: of `wheels` alone, so that nothing that was downloaded is run before the \
         model imports it, or also of `sources`, which run what they bring along as the worker's user.",
    ),
    setting(
        "runtimes.builder",
        Kind::Program,
        "",
        "What builds runtimes: the path of a `uv`, or `pip` for the one of Python itself. When it is empty, the `uv` on the PATH is \
         taken, and `pip` if there is none.",
    ),
    setting(
        "runtimes.index",
        Kind::Location,
        "",
        "Where builders get packages from: the address of an index, or a folder of wheels, which is then the only place. When it is \
         empty, that is PyPI. Credentials for an index belong into `~/.netrc` of the worker's user.",
    ),
    setting(
        "runtimes.build_timeout",
        span(SECOND),
        "10m",
        "How long building a runtime may take, waiting for others to be built included. Then the attempt has failed with the class \
         `infrastructure`, which is tried again.",
    ),
    setting(
        "runtimes.build_size",
        Kind::Size { least: 1024 * 1024 },
        "8GiB",
        "How much disk one runtime that is built may take.",
    ),
    setting(
        "runtimes.cache_size",
        Kind::Size { least: 0 },
        "32GiB",
        "How much disk is used to keep runtimes that were built or unpacked, in the folder `runtimes` of `job.directory`, which all \
         workers of a machine share. What was not used for the longest time goes first; what is in use stays.",
    ),
    setting(
        "runtimes.send",
        Kind::Choice(&["never", "made", "always"]),
        "made",
        "Whether the executors of a cluster are sent the Python environment of a job's runtime: `never`, so that they have to have it at \
         the same path; those that were `made` on this machine, which they cannot have: built or unpacked ones; or `always`, those \
         that the settings and `runtimes.file` name included. It is packed once and kept with the runtimes that were built; a packed \
         one (`.tar.gz`, `.tgz`, `.tar`) goes as it is. Executors unpack it for each job. A virtual environment has no Python of its \
         own: that which it was made with has to be at the same path on the executors, or be in the archive, as with conda. A \
         Python that is in no environment is not sent. Jobs that set `spark.pyspark.python` themselves are sent none.",
    ),
    setting(
        "runtimes.others",
        span(Duration::ZERO),
        "0s",
        "How long a job that no runtime here fits is offered to other workers, which may have one: it is given back until it has waited \
         for this long, then rejected. The time that it waits in the queue does not count. 0s: it is rejected at once.",
    ),
    setting(
        "records.process_below",
        Kind::Size { least: 0 },
        "4MiB",
        "A record model whose inputs have fewer bytes than this is scored in one Python process, without a JVM and a Spark \
         session, whose start takes longer than so few records. Only files on this machine are measured. 0B: always by Spark. \
         Metrics and training need no session for files on this machine, whatever their size.",
    ),
    setting(
        "records.frame_rows",
        Kind::Count { least: 1, most: 100_000_000 },
        "10000",
        "How many rows a data frame has at most that a scoring function gets at once (`# modelop.recordsets.0: true`).",
    ),
    setting(
        "records.memory",
        Kind::Size { least: 0 },
        "0B",
        "How much memory the driver of a record model may use for whole data frames, where the job does not set \
         `--driver-memory`. A metrics or training job that would need more fails at once, saying how much. 0B stands for what \
         the machine has available when the job starts.",
    ),
    setting(
        "sql.url",
        Kind::Database,
        "",
        "The database that SQL assets of record models are read from (`\"query\": \"select ...\"`). The query is run as it is, with \
         all that the user may do there: give one who may only read. When it is empty, SQL assets are refused. Spark needs the \
         database's JDBC driver: `--jars` of the job, or `\"spark.jars\"` among the `[defaults]` of the policy.",
    ),
    setting(
        "sql.driver",
        Kind::AnyText,
        "",
        "The Java class of the JDBC driver, as `org.postgresql.Driver`. Without it Java looks for one that takes the URL, and does not \
         look into every jar.",
    ),
    setting("sql.user", Kind::AnyText, "", "The user at the database. When it is empty, none is given."),
    setting(
        "sql.password_file",
        Kind::Path,
        "",
        "A file that holds the user's password at the database and nothing else. It is read for each job, and handed to the job's driver \
         in a file that is gone before anything of the model is loaded.",
    ),
    setting(
        "log.limit",
        Kind::Size { least: 16 * 1024 },
        "64MiB",
        "How much of a job's standard output, and of its standard error, is kept on disk. Of more, the beginning and \
         the end are kept.",
    ),
    setting(
        "log.tail",
        Kind::Size { least: 0 },
        "8KiB",
        "How much of the end of the standard error comes along in the event of a failure.",
    ),
    setting(
        "log.load_every",
        span(SECOND),
        "1m",
        "How often a worker writes into its log how many launches and how many followed applications it has under way, and how many \
         it had at most since it last did. While there are none it writes nothing.",
    ),
];

/// A text that must not be shown. `Debug` and `Display` print `***`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// The text itself, to be handed to whom it is meant for.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// A child's environment takes it as it is.
impl AsRef<OsStr> for Secret {
    fn as_ref(&self) -> &OsStr {
        self.0.as_ref()
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Every setting with the value that counts. Paths are absolute, durations and sizes have been checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The broker and how to talk to it.
    pub broker: BrokerSettings,
    /// The worker as a whole.
    pub worker: WorkerSettings,
    /// Each job.
    pub job: JobSettings,
    /// What record models bring along.
    pub attachments: AttachmentSettings,
    /// What training jobs leave.
    pub training: TrainingSettings,
    /// Where files lie outside of the worker.
    pub storage: StorageSettings,
    /// Attempts after the first.
    pub retry: RetrySettings,
    /// Who has which job.
    pub ledger: LedgerSettings,
    /// Spark and spark-submit.
    pub spark: SparkSettings,
    /// Sources in git.
    pub git: GitSettings,
    /// Pythons and Sparks for jobs.
    pub runtimes: RuntimeSettings,
    /// Record models.
    pub records: RecordsSettings,
    /// The database of record models.
    pub sql: SqlSettings,
    /// Clusters with YARN, and applications in cluster mode there.
    pub yarn: YarnSettings,
    /// Drivers in pods of Kubernetes.
    pub kubernetes: KubernetesSettings,
    /// The logs of jobs.
    pub log: LogSettings,
    effective: Vec<Effective>,
}

/// Section `broker`.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// Where the broker is; [`Settings::endpoint`] puts the password of `password_file` into it.
    pub uri: Secret,
    /// Where the password is, when it is not in the address.
    pub password_file: Option<PathBuf>,
    /// The certificates of connections over TLS.
    pub certificates: Certificates,
    /// How often both sides show that they are there.
    pub heartbeat: Duration,
    /// How long the broker may take to confirm a message.
    pub publish_timeout: Duration,
}

/// Section `worker`.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// What the worker's name begins with; empty when that is to be made.
    pub name: String,
    /// How many jobs run at once; 0 stands for the number of processors.
    pub max_running: usize,
    /// How many spark-submits start up at once; 0 stands for the number of processors.
    pub max_submits: usize,
    /// How long running jobs may go on after the first SIGTERM.
    pub drain_grace: Duration,
    /// How long nothing may be delivered while jobs wait and places are free.
    pub watchdog: Duration,
}

/// Section `job`.
#[derive(Debug, Clone)]
pub struct JobSettings {
    /// Where the directories of attempts are made.
    pub directory: PathBuf,
    /// Which of them stay.
    pub keep: Keep,
    /// How long a directory that was kept stays.
    pub keep_for: Duration,
    /// A job one of whose outputs is there already is rejected.
    pub refuse_existing_outputs: bool,
    /// How long spark-submit may take until the driver is there.
    pub submit_timeout: Duration,
    /// How long an application may wait in a cluster for its driver's place.
    pub pending_timeout: Duration,
    /// How long an attempt may run from there on.
    pub run_timeout: Duration,
    /// How long its processes may take to end after a SIGTERM.
    pub kill_grace: Duration,
    /// The largest job message, in bytes.
    pub max_size: u64,
    /// The largest FILE output that an event carries, in bytes.
    pub inline_output: u64,
}

/// Section `yarn`.
#[derive(Debug, Clone)]
pub struct YarnSettings {
    /// Jobs are given the archive that was prepared.
    pub uses_archive: bool,
    /// The folder of the archives, when it is not the one below the user's home.
    pub archive_folder: Option<String>,
    /// The folder in HDFS for what workers and drivers leave for each other, where one is named.
    pub folder: Option<String>,
    /// What sets this service's applications apart.
    pub service: String,
    /// How many applications a worker looks after.
    pub max_followed: usize,
    /// How long after the end of spark-submit an application may take to be known.
    pub grace: Duration,
    /// How long an application may be unknown.
    pub lost_after: Duration,
}

/// Section `kubernetes`.
#[derive(Debug, Clone)]
pub struct KubernetesSettings {
    /// The folder in HDFS for what workers and drivers leave for each other, where one is named.
    pub folder: Option<String>,
    /// What sets this service's pods apart.
    pub service: String,
    /// The namespace of those who name none, where one is named.
    pub namespace: Option<String>,
    /// The context of the kubeconfig, when it is not the current one.
    pub context: Option<String>,
    /// The image of those who name none.
    pub image: Option<String>,
    /// The service account of drivers of those who name none.
    pub service_account: Option<String>,
    /// Which pods stay when the end of their job was told.
    pub keep_pods: KeepPods,
    /// How long after the end of spark-submit a pod may take to be known.
    pub grace: Duration,
    /// How long a pod may be unknown.
    pub lost_after: Duration,
}

/// Which pods of drivers stay when the end of their job was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepPods {
    /// None.
    Never,
    /// Those whose driver did not succeed.
    Failed,
    /// All.
    Always,
}

/// Section `attachments`.
#[derive(Debug, Clone)]
pub struct AttachmentSettings {
    /// How much they may take on disk, in bytes.
    pub max_size: u64,
    /// How many files and folders they may bring.
    pub max_files: u64,
    /// How many times its size an archive may unpack to.
    pub max_ratio: u64,
}

/// Section `training`.
#[derive(Debug, Clone)]
pub struct TrainingSettings {
    /// Where the files of jobs go that do not say so themselves.
    pub upload_to: Option<String>,
    /// How many files a job may leave.
    pub max_files: usize,
}

/// Section `storage`.
#[derive(Debug, Clone)]
pub struct StorageSettings {
    /// Where S3 is, when it is not Amazon's own.
    pub s3_endpoint: Option<String>,
}

/// Which attempts' directories stay after their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None.
    Never,
    /// Those of attempts that brought no result.
    Failed,
    /// All.
    Always,
}

/// Section `retry`.
#[derive(Debug, Clone)]
pub struct RetrySettings {
    /// How often a job is tried at most; at least 1.
    pub max_attempts: u32,
    /// The delays before the second attempt, the third, and so on; never empty.
    pub delays: Vec<Duration>,
}

/// Section `ledger`.
#[derive(Debug, Clone)]
pub struct LedgerSettings {
    /// For how long a worker that is not heard of keeps its jobs.
    pub lease: Duration,
    /// How long the ledger and the history are kept.
    pub retention: Duration,
    /// After how many records at least a checkpoint is written.
    pub checkpoint_every: u64,
}

/// Section `spark`.
#[derive(Debug, Clone)]
pub struct SparkSettings {
    /// The Spark installation.
    pub home: Option<PathBuf>,
    /// spark-submit itself.
    pub submit: Option<PathBuf>,
    /// The master for jobs that do not name one.
    pub master: String,
    /// Where the page of a standalone master is, on its host.
    pub master_page_port: u16,
    /// The Python of drivers and executors; a bare name is looked up on the PATH.
    pub python: Option<PathBuf>,
    /// The policy file.
    pub policy: Option<PathBuf>,
    /// Variables given to spark-submit.
    pub environment: BTreeMap<String, Secret>,
    /// Names of variables handed on from the worker's own environment.
    pub pass_environment: Vec<String>,
}

/// Section `git`.
#[derive(Debug, Clone)]
pub struct GitSettings {
    /// The git program; a bare name is looked up on the PATH.
    pub program: PathBuf,
    /// The words of the transports that are taken.
    pub transports: Vec<String>,
    /// The file of users and passwords for HTTP.
    pub credentials: Option<PathBuf>,
    /// How long everything that a job has in repositories may take.
    pub timeout: Duration,
    /// How much one commit may take, in bytes.
    pub max_fetch: u64,
    /// The largest file, in bytes.
    pub max_file: u64,
    /// How much may be kept, in bytes.
    pub cache_size: u64,
}

/// Section `runtimes`.
#[derive(Debug, Clone)]
pub struct RuntimeSettings {
    /// The file that names runtimes.
    pub file: Option<PathBuf>,
    /// The words for what lines of requirements may do.
    pub allow: Vec<String>,
    /// A runtime is built for a job that none fits.
    pub builds: bool,
    /// Not of wheels alone.
    pub builds_sources: bool,
    /// What builds them; a path of uv, or anything else for pip.
    pub builder: Option<PathBuf>,
    /// Where packages come from.
    pub index: Option<Index>,
    /// How long building one may take.
    pub build_timeout: Duration,
    /// How much one may take, in bytes.
    pub build_size: u64,
    /// How much may be kept, in bytes.
    pub cache_size: u64,
    /// Which are sent to executors.
    pub send: SendRuntimes,
    /// How long a job that none fits is offered to other workers.
    pub others: Duration,
}

/// Section `sql`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SqlSettings {
    /// The database's JDBC URL, when there is one.
    pub url: Option<String>,
    /// The class of its JDBC driver.
    pub driver: Option<String>,
    /// The user there.
    pub user: Option<String>,
    /// The file with the user's password.
    pub password_file: Option<PathBuf>,
}

impl SqlSettings {
    /// The user and the password, as JSON for the driver; `None` where there is neither.
    ///
    /// # Errors
    /// The password's file cannot be read.
    pub fn login(&self) -> io::Result<Option<Secret>> {
        let password = self.password_file.as_deref().map(read_password).transpose()?;
        let login = [("user", self.user.as_ref()), ("password", password.as_ref())];
        let login: BTreeMap<&str, &String> =
            login.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        Ok((!login.is_empty()).then(|| Secret(json!(login).to_string())))
    }
}

/// Which environments are sent to the executors of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendRuntimes {
    /// None.
    Never,
    /// Those that were built or unpacked on this machine.
    Made,
    /// Every one.
    Always,
}

/// Section `records`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordsSettings {
    /// Inputs with fewer bytes are scored without Spark.
    pub process_below: u64,
    /// The most rows of a data frame that a scoring function gets at once.
    pub frame_rows: u64,
    /// What the driver may hold, in bytes; what there is when there is no limit.
    pub memory: Option<u64>,
}

/// Section `log`.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// How much of each stream of a job is kept, in bytes.
    pub limit: u64,
    /// How much of the standard error an event carries, in bytes.
    pub tail: u64,
    /// How often a worker tells what it has under way.
    pub load_every: Duration,
}

/// A setting as it counts, for showing: secrets are masked.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// `section.key`, or `spark.environment.<NAME>`.
    pub key: String,
    /// The value; `null` when there is none.
    pub value: Json,
    /// `default`, the path of the file, the name of the environment variable, or `--set`.
    pub source: String,
}

/// Where settings are read from. The default reads nothing and gives the defaults.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file; it has to be there.
    pub file: Option<PathBuf>,
    /// The file that is read when there is no other; it may be missing.
    pub fallback_file: Option<PathBuf>,
    /// The environment; variables that are no settings are passed over.
    pub environment: Vec<(OsString, OsString)>,
    /// `section.key=value`, the later over the earlier.
    pub overrides: Vec<String>,
}

impl Sources {
    /// What this process was given: `file` and `overrides` by its command line, the rest by its environment.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>, overrides: Vec<String>) -> Self {
        let named = || std::env::var_os(FILE_VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from);
        Self {
            file: file.or_else(named),
            fallback_file: Some(DEFAULT_FILE.into()),
            environment: std::env::vars_os().collect(),
            overrides,
        }
    }
}

/// Why there are no settings to work with.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Everything that is wrong in any layer; never empty.
    #[error("{}", lines(.0))]
    Faults(Vec<SettingFault>),
    /// The layers could not be laid over each other.
    #[error("the settings cannot be combined: {0}")]
    Layers(#[from] ConfigError),
    /// The password cannot be had.
    #[error("the password file {path} cannot be read: {source}")]
    PasswordFile {
        /// `broker.password_file`.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The broker's address is none.
    #[error("`broker.uri` {0}")]
    Address(#[from] EndpointError),
}

fn lines(faults: &[SettingFault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// One thing that is wrong with the settings: a whole sentence that names the setting and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingFault(String);

impl fmt::Display for SettingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Settings {
    /// Reads all layers and gives what counts.
    ///
    /// # Errors
    /// [`SettingsError::Faults`] with every fault of every layer.
    pub fn load(sources: &Sources) -> Result<Self, SettingsError> {
        let mut faults = Vec::new();
        let layers = [
            defaults(),
            file_layer(sources, &mut faults),
            environment_layer(&sources.environment, &mut faults),
            override_layer(&sources.overrides, &mut faults),
        ];
        if !faults.is_empty() {
            return Err(SettingsError::Faults(faults));
        }
        let mut builder = ::config::Config::builder();
        for layer in layers {
            builder = builder.add_source(layer);
        }
        Self::read(&Reader::new(&builder.build()?))
    }

    fn read(reader: &Reader<'_>) -> Result<Self, SettingsError> {
        let build = reader.text("runtimes.build");
        let settings = Self {
            broker: BrokerSettings {
                uri: Secret(reader.text("broker.uri")),
                password_file: reader.path("broker.password_file"),
                certificates: certificates(reader),
                heartbeat: reader.span("broker.heartbeat"),
                publish_timeout: reader.span("broker.publish_timeout"),
            },
            worker: WorkerSettings {
                name: reader.text("worker.name"),
                max_running: number(reader.count("worker.max_running")),
                max_submits: number(reader.count("worker.max_submits")),
                drain_grace: reader.span("worker.drain_grace"),
                watchdog: reader.span("worker.watchdog"),
            },
            job: JobSettings {
                directory: reader.path("job.directory").unwrap_or_default(),
                keep: match reader.text("job.keep").as_str() {
                    "never" => Keep::Never,
                    "always" => Keep::Always,
                    _ => Keep::Failed,
                },
                keep_for: reader.span("job.keep_for"),
                refuse_existing_outputs: reader.text("job.existing_outputs") == "refuse",
                submit_timeout: reader.span("job.submit_timeout"),
                pending_timeout: reader.span("job.pending_timeout"),
                run_timeout: reader.span("job.run_timeout"),
                kill_grace: reader.span("job.kill_grace"),
                max_size: reader.count("job.max_size"),
                inline_output: reader.count("job.inline_output"),
            },
            attachments: AttachmentSettings {
                max_size: reader.count("attachments.max_size"),
                max_files: reader.count("attachments.max_files"),
                max_ratio: reader.count("attachments.max_ratio"),
            },
            training: TrainingSettings {
                upload_to: Some(reader.text("training.upload_to")).filter(|url| !url.is_empty()),
                max_files: number(reader.count("training.max_files")),
            },
            storage: StorageSettings {
                s3_endpoint: Some(reader.text("storage.s3_endpoint")).filter(|url| !url.is_empty()),
            },
            retry: RetrySettings {
                max_attempts: u32::try_from(reader.count("retry.max_attempts")).unwrap_or(u32::MAX),
                delays: reader.spans("retry.delays"),
            },
            ledger: LedgerSettings {
                lease: reader.span("ledger.lease"),
                retention: reader.span("ledger.retention"),
                checkpoint_every: reader.count("ledger.checkpoint_every"),
            },
            spark: SparkSettings {
                home: reader.path("spark.home"),
                submit: reader.path("spark.submit"),
                master: reader.text("spark.master"),
                master_page_port: u16::try_from(reader.count("spark.master_page_port")).unwrap_or(8080),
                python: reader.path("spark.python"),
                policy: reader.path("spark.policy"),
                environment: reader.environment("spark.environment"),
                pass_environment: reader.texts("spark.pass_environment"),
            },
            git: GitSettings {
                program: reader.path("git.program").unwrap_or_else(|| "git".into()),
                transports: reader.texts("git.transports"),
                credentials: reader.path("git.credentials"),
                timeout: reader.span("git.timeout"),
                max_fetch: reader.count("git.max_fetch"),
                max_file: reader.count("git.max_file"),
                cache_size: reader.count("git.cache_size"),
            },
            runtimes: RuntimeSettings {
                file: reader.path("runtimes.file"),
                allow: reader.texts("runtimes.allow"),
                builds: build != "never",
                builds_sources: build == "sources",
                builder: reader.path("runtimes.builder"),
                index: reader.index("runtimes.index"),
                build_timeout: reader.span("runtimes.build_timeout"),
                build_size: reader.count("runtimes.build_size"),
                cache_size: reader.count("runtimes.cache_size"),
                send: match reader.text("runtimes.send").as_str() {
                    "never" => SendRuntimes::Never,
                    "always" => SendRuntimes::Always,
                    _ => SendRuntimes::Made,
                },
                others: reader.span("runtimes.others"),
            },
            records: RecordsSettings {
                process_below: reader.count("records.process_below"),
                frame_rows: reader.count("records.frame_rows"),
                memory: Some(reader.count("records.memory")).filter(|memory| *memory > 0),
            },
            sql: SqlSettings {
                url: Some(reader.text("sql.url")).filter(|text| !text.is_empty()),
                driver: Some(reader.text("sql.driver")).filter(|text| !text.is_empty()),
                user: Some(reader.text("sql.user")).filter(|text| !text.is_empty()),
                password_file: reader.path("sql.password_file"),
            },
            yarn: YarnSettings {
                uses_archive: reader.text("yarn.archive") != "never",
                archive_folder: Some(reader.text("yarn.archive_folder")).filter(|url| !url.is_empty()),
                folder: Some(reader.text("yarn.folder")).filter(|text| !text.is_empty()),
                service: reader.text("yarn.service"),
                max_followed: number(reader.count("yarn.max_followed")),
                grace: reader.span("yarn.grace"),
                lost_after: reader.span("yarn.lost_after"),
            },
            kubernetes: KubernetesSettings {
                folder: Some(reader.text("kubernetes.folder")).filter(|text| !text.is_empty()),
                service: reader.text("kubernetes.service"),
                namespace: Some(reader.text("kubernetes.namespace")).filter(|text| !text.is_empty()),
                context: Some(reader.text("kubernetes.context")).filter(|text| !text.is_empty()),
                image: Some(reader.text("kubernetes.image")).filter(|text| !text.is_empty()),
                service_account: Some(reader.text("kubernetes.service_account"))
                    .filter(|text| !text.is_empty()),
                keep_pods: match reader.text("kubernetes.keep_pods").as_str() {
                    "never" => KeepPods::Never,
                    "always" => KeepPods::Always,
                    _ => KeepPods::Failed,
                },
                grace: reader.span("kubernetes.grace"),
                lost_after: reader.span("kubernetes.lost_after"),
            },
            log: LogSettings {
                limit: reader.count("log.limit"),
                tail: reader.count("log.tail"),
                load_every: reader.span("log.load_every"),
            },
            effective: reader.effective(),
        };
        let mut faults = reader.faults.take();
        let longest = settings.job.run_timeout.max(settings.job.pending_timeout);
        if faults.is_empty() && settings.ledger.retention < longest.saturating_mul(2) {
            // The ledger must remember who has a job for as long as the job may wait and run.
            faults.push(SettingFault(
                "`ledger.retention` has to be at least twice `job.run_timeout` and `job.pending_timeout`; raise the one or lower \
                 the others"
                    .to_owned(),
            ));
        }
        let endpoint = Endpoint::new(settings.broker.uri.expose(), settings.broker.heartbeat);
        let is_over_tls = endpoint.is_ok_and(|endpoint| endpoint.is_over_tls());
        if faults.is_empty() && !is_over_tls && settings.broker.certificates != Certificates::default() {
            // Whoever names certificates does not want his password to travel in the clear.
            faults.push(SettingFault(
                "`broker.ca_file`, `broker.certificate_file` and `broker.key_file` are for an amqps:// address, and \
                 `broker.uri` is none"
                    .to_owned(),
            ));
        }
        if faults.is_empty() { Ok(settings) } else { Err(SettingsError::Faults(faults)) }
    }

    /// Every setting with its value and where that comes from, secrets masked, in the order of [`SETTINGS`].
    #[must_use]
    pub fn effective(&self) -> &[Effective] {
        &self.effective
    }

    /// What the broker's exchanges and queues depend on.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape {
            delays: self.retry.delays.clone(),
            lease: self.ledger.lease,
            retention: self.ledger.retention,
        }
    }

    /// Where the broker is, with the password of `broker.password_file` when there is one. The file is read at every
    /// call.
    ///
    /// # Errors
    /// [`SettingsError::PasswordFile`], [`SettingsError::Address`].
    pub fn endpoint(&self) -> Result<Endpoint, SettingsError> {
        let endpoint = Endpoint::new(self.address()?.expose(), self.broker.heartbeat)?;
        Ok(endpoint.with_certificates(self.broker.certificates.clone()))
    }

    /// The broker's address with the password of `broker.password_file` when there is one.
    ///
    /// # Errors
    /// [`SettingsError::PasswordFile`].
    pub fn address(&self) -> Result<Secret, SettingsError> {
        let Some(path) = &self.broker.password_file else { return Ok(self.broker.uri.clone()) };
        let password = read_password(path)
            .map_err(|source| SettingsError::PasswordFile { path: path.clone(), source })?;
        Ok(Secret(with_password(self.broker.uri.expose(), &password)))
    }
}

/// The certificates by the settings; one's own is nothing without its key.
fn certificates(reader: &Reader<'_>) -> Certificates {
    let own = match (reader.path("broker.certificate_file"), reader.path("broker.key_file")) {
        (Some(chain), Some(key)) => Some(OwnCertificate { chain, key }),
        (None, None) => None,
        _ => {
            reader.faults.borrow_mut().push(SettingFault(
                "`broker.certificate_file` and `broker.key_file` go together; set both or neither".to_owned(),
            ));
            None
        }
    };
    Certificates { authorities: reader.path("broker.ca_file"), own }
}

fn number(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

// ------------------------------------------------------------------------------------------------ what a setting takes

/// A value of the right kind.
#[derive(Debug, Clone, PartialEq)]
enum Given {
    Text(String),
    Path(Option<PathBuf>),
    Count(u64),
    Size(u64),
    Span(Duration),
    Spans(Vec<Duration>),
    Texts(Vec<String>),
    Environment(BTreeMap<String, String>),
}

impl Kind {
    /// The end of a sentence that begins with "give".
    fn wanted(self) -> String {
        match self {
            Self::Address => "amqp://user:password@host:5672/vhost".to_owned(),
            Self::Name => "at most 128 letters, digits, '-', '_', '.', ':' or '@'".to_owned(),
            Self::Text | Self::AnyText => "a text".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Url(beginnings) => format!("a URL that begins with one of {}", beginnings.join(", ")),
            Self::Database => "a JDBC URL without credentials, as jdbc:postgresql://host/name".to_owned(),
            Self::Program => "the path or the name of a program".to_owned(),
            Self::Count { least, most } => format!("a whole number from {least} to {most}"),
            Self::Span { least, most } => format!("{} such as 10s, 2m or 1h 30m", range(least, most)),
            Self::Spans { least, most } => {
                format!("a list of at least one, each {}, such as 5s, 30s, 2m", range(least, most))
            }
            Self::Size { least } => format!("a size of at least {} such as 64MiB or 512KB", size_text(least)),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Words(words) => format!("a list of any of {}", words.join(", ")),
            Self::Location => "an https:// address without credentials, or a path".to_owned(),
            Self::Variables => "a list of names of environment variables".to_owned(),
            Self::Environment => "a table of names and texts".to_owned(),
        }
    }

    /// The value that a piece of text stands for, in the layers that have nothing but text. What cannot be read stays
    /// text, and is judged as that.
    fn of_text(self, text: &str) -> ValueKind {
        match self {
            Self::Count { .. } => text.trim().parse::<i64>().map_or_else(|_| text.into(), ValueKind::I64),
            Self::Spans { .. } | Self::Variables | Self::Words(_) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                ValueKind::Array(items.map(|item| Value::new(None, item)).collect())
            }
            _ => text.into(),
        }
    }

    /// Takes a value, or says what is wrong with it (the middle of a sentence that begins with the setting's name).
    fn judge(self, value: &ValueKind) -> Result<Given, String> {
        let refused = || format!("is {}; give {}", shown(value), self.wanted());
        let text = || if let ValueKind::String(text) = value { Ok(text.as_str()) } else { Err(refused()) };
        match self {
            Self::Address => match text() {
                // Neither the address nor what stands in its place is shown: there may be a password in it.
                Err(_) => Err(format!("is {}; give {}", type_word(value), self.wanted())),
                Ok(address) => match Endpoint::new(address, SECOND) {
                    Ok(_) => Ok(Given::Text(address.to_owned())),
                    Err(error) => Err(error.to_string()),
                },
            },
            Self::Name => {
                let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
                let name = text()?;
                if name.len() > 128 || !name.chars().all(fits) {
                    Err(refused())
                } else {
                    Ok(Given::Text(name.into()))
                }
            }
            Self::Text => {
                let text = text()?;
                if text.trim().is_empty() || text.chars().any(char::is_control) {
                    return Err(refused());
                }
                Ok(Given::Text(text.to_owned()))
            }
            Self::AnyText => {
                let text = text()?;
                if text.chars().any(char::is_control) {
                    return Err(refused());
                }
                Ok(Given::Text(text.trim().to_owned()))
            }
            Self::Url(beginnings) => {
                let url = text()?;
                let fits = url.is_empty() || beginnings.iter().any(|beginning| url.starts_with(beginning));
                if fits && !url.chars().any(char::is_control) && !url.contains('@') {
                    Ok(Given::Text(url.to_owned()))
                } else {
                    Err(refused())
                }
            }
            Self::Database => {
                // Not quoted: what is wrong with it may be a password.
                let text = text().map_err(|_| format!("is {}; give {}", type_word(value), self.wanted()))?;
                if text.is_empty() || is_database(text) {
                    Ok(Given::Text(text.to_owned()))
                } else {
                    Err(format!("is no such address; give {}", self.wanted()))
                }
            }
            Self::Path => path(text()?, false).ok_or_else(refused).map(Given::Path),
            Self::Program => path(text()?, true).ok_or_else(refused).map(Given::Path),
            Self::Location => {
                let text = text().map_err(|_| format!("is {}; give {}", type_word(value), self.wanted()))?;
                if text.contains("://") {
                    location(text).ok_or_else(|| format!("is no such address; give {}", self.wanted()))
                } else {
                    path(text, false).ok_or_else(refused).map(Given::Path)
                }
            }
            Self::Count { least, most } => {
                let number = whole(value).ok_or_else(refused)?;
                if (least..=most).contains(&number) { Ok(Given::Count(number)) } else { Err(refused()) }
            }
            Self::Span { least, most } => duration(text()?, least, most).ok_or_else(refused).map(Given::Span),
            Self::Spans { least, most } => {
                let ValueKind::Array(items) = value else { return Err(refused()) };
                let spans: Option<Vec<_>> = items
                    .iter()
                    .map(|item| {
                        if let ValueKind::String(text) = &item.kind {
                            duration(text, least, most)
                        } else {
                            None
                        }
                    })
                    .collect();
                spans.filter(|spans| !spans.is_empty()).ok_or_else(refused).map(Given::Spans)
            }
            Self::Size { least } => {
                let size = match value {
                    ValueKind::String(text) => text.parse::<ByteSize>().ok().map(|size| size.as_u64()),
                    other => whole(other),
                };
                size.filter(|size| *size >= least && *size <= i64::MAX as u64)
                    .ok_or_else(refused)
                    .map(Given::Size)
            }
            Self::Choice(words) => {
                let word = text()?;
                if words.contains(&word) { Ok(Given::Text(word.to_owned())) } else { Err(refused()) }
            }
            Self::Words(known) => {
                let ValueKind::Array(items) = value else { return Err(refused()) };
                let word = |item: &Value| match &item.kind {
                    ValueKind::String(word) if known.contains(&word.as_str()) => Some(word.clone()),
                    _ => None,
                };
                items.iter().map(word).collect::<Option<_>>().ok_or_else(refused).map(Given::Texts)
            }
            Self::Variables => {
                let ValueKind::Array(items) = value else { return Err(refused()) };
                let mut names = Vec::with_capacity(items.len());
                for item in items {
                    let ValueKind::String(name) = &item.kind else { return Err(refused()) };
                    variable(name)?;
                    names.push(name.clone());
                }
                Ok(Given::Texts(names))
            }
            Self::Environment => {
                let ValueKind::Table(table) = value else {
                    return Err(format!("is {}; give {}", type_word(value), self.wanted()));
                };
                table
                    .iter()
                    .map(|(name, value)| assignment(name, value))
                    .collect::<Result<_, _>>()
                    .map(Given::Environment)
            }
        }
    }
}

fn assignment(name: &str, value: &Value) -> Result<(String, String), String> {
    variable(name)?;
    let ValueKind::String(text) = &value.kind else {
        return Err(format!("has {name} = {}; give a text", type_word(&value.kind)));
    };
    if text.contains('\0') {
        return Err(format!("has a NUL in the value of {name}; give a text without"));
    }
    Ok((name.to_owned(), text.clone()))
}

fn variable(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 255 || name.chars().any(|c| c == '=' || c.is_control()) {
        return Err(format!(
            "has {name:?}, which is no name of an environment variable; give one such as HADOOP_CONF_DIR"
        ));
    }
    if name.starts_with("SPARK_RUNTIME_") {
        return Err(format!("has {name}, which is a setting of the worker; no model may see these"));
    }
    Ok(())
}

fn whole(value: &ValueKind) -> Option<u64> {
    match value {
        ValueKind::I64(number) => u64::try_from(*number).ok(),
        ValueKind::U64(number) => Some(*number),
        _ => None,
    }
}

fn duration(text: &str, least: Duration, most: Duration) -> Option<Duration> {
    let signed: SignedDuration = text.parse().ok()?;
    Duration::try_from(signed).ok().filter(|span| (least..=most).contains(span))
}

fn range(least: Duration, most: Duration) -> String {
    let longest =
        if most == LONGEST { String::new() } else { format!(" of at most {}", duration_text(most)) };
    match least {
        Duration::ZERO => format!("a duration{longest}"),
        MILLISECOND => format!("a duration above 0{}", longest.replacen(" of", " and", 1)),
        least => {
            format!("a duration of at least {}{}", duration_text(least), longest.replacen(" of", " and", 1))
        }
    }
}

/// The path that a text names; `Some(None)` for an empty text, `None` when it is no path.
#[expect(clippy::option_option, reason = "no path given and not a path are two things")]
fn path(text: &str, may_be_bare: bool) -> Option<Option<PathBuf>> {
    if text.is_empty() {
        return Some(None);
    }
    if text.contains('\0') {
        return None;
    }
    if may_be_bare && !text.contains('/') {
        return Some(Some(text.into()));
    }
    std::path::absolute(text).ok().map(Some)
}

/// Whether this is the address of a database, without what looks like credentials.
fn is_database(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let authority =
        text.split_once("://").map(|(_, rest)| rest.split(['/', '?', ';']).next().unwrap_or_default());
    lower.starts_with("jdbc:")
        && lower.len() > "jdbc:".len()
        && !text.chars().any(char::is_control)
        && !["password=", "pwd="].iter().any(|word| lower.contains(word))
        && !authority.is_some_and(|authority| authority.contains('@'))
}

/// The address of an index. There may be a secret in what is none.
fn location(text: &str) -> Option<Given> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    let fits = !authority.is_empty()
        && !authority.contains('@')
        && !text.contains(|c: char| c.is_control() || c == ' ');
    fits.then(|| Given::Text(text.to_owned()))
}

/// A duration as it can be written in the settings.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    SignedDuration::try_from(duration)
        .map_or_else(|_| format!("{}s", duration.as_secs()), |span| format!("{span:#}"))
}

/// A number of bytes as it can be written in the settings, in the largest unit that gives a whole number.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, word)) => format!("{}{word}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

fn type_word(value: &ValueKind) -> &'static str {
    match value {
        ValueKind::Nil => "empty",
        ValueKind::Boolean(_) => "true or false",
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) => "a whole number",
        ValueKind::Float(_) => "a number",
        ValueKind::String(_) => "a text",
        ValueKind::Table(_) => "a table",
        ValueKind::Array(_) => "a list",
    }
}

/// A value that is no secret, for a sentence.
fn shown(value: &ValueKind) -> String {
    match value {
        ValueKind::String(text) if text.is_empty() => "empty".to_owned(),
        ValueKind::String(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
        ValueKind::Boolean(value) => value.to_string(),
        ValueKind::I64(number) => number.to_string(),
        ValueKind::U64(number) => number.to_string(),
        ValueKind::Float(number) => number.to_string(),
        ValueKind::Array(items) if items.is_empty() => "an empty list".to_owned(),
        ValueKind::Array(items) => {
            let items: Vec<_> = items.iter().take(20).map(|item| shown(&item.kind)).collect();
            format!("[{}]", items.join(", "))
        }
        other => type_word(other).to_owned(),
    }
}

// ----------------------------------------------------------------------------------------------------------- the layers

/// One layer, judged: nothing in it is unknown or of the wrong kind. Keys are `section.key`.
#[derive(Debug, Clone, Default)]
struct Layer {
    values: Map<String, Value>,
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.values.clone())
    }
}

impl Layer {
    fn set(&mut self, setting: &Setting, origin: &str, kind: ValueKind, faults: &mut Vec<SettingFault>) {
        let origin = origin.to_owned();
        if let Err(message) = setting.kind.judge(&kind) {
            return faults.push(SettingFault(format!("`{}` in {origin} {message}", setting.key)));
        }
        let kind = match kind {
            // Every variable keeps its own origin when tables of two layers come together.
            ValueKind::Table(table) => {
                let named = |(name, value): (String, Value)| (name, Value::new(Some(&origin), value.kind));
                let earlier = match self.values.remove(setting.key).map(|value| value.kind) {
                    Some(ValueKind::Table(earlier)) => earlier,
                    _ => Map::new(),
                };
                ValueKind::Table(earlier.into_iter().chain(table.into_iter().map(named)).collect())
            }
            other => other,
        };
        self.values.insert(setting.key.to_owned(), Value::new(Some(&origin), kind));
    }
}

fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

fn defaults() -> Layer {
    let mut layer = Layer::default();
    for setting in SETTINGS {
        let origin = "default".to_owned();
        let kind = match setting.kind {
            Kind::Environment => ValueKind::Table(Map::new()),
            kind => kind.of_text(&setting.default.replace("<uid>", &nix::unistd::getuid().to_string())),
        };
        layer.values.insert(setting.key.to_owned(), Value::new(Some(&origin), kind));
    }
    layer
}

fn file_layer(sources: &Sources, faults: &mut Vec<SettingFault>) -> Layer {
    let mut layer = Layer::default();
    let (path, must_exist) = match (&sources.file, &sources.fallback_file) {
        (Some(path), _) => (path, true),
        (None, Some(path)) => (path, false),
        (None, None) => return layer,
    };
    let origin = path.display().to_string();
    let text = match read_bounded(path, LARGEST_FILE) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => return layer,
        Err(error) => {
            faults.push(SettingFault(format!("the settings file {origin} cannot be read: {error}")));
            return layer;
        }
    };
    let sections = match ::config::File::from_str(&text, FileFormat::Toml).collect() {
        Ok(sections) => sections,
        Err(error) => {
            faults.push(SettingFault(format!(
                "the settings file {origin} is not TOML: {}",
                without_source(&error)
            )));
            return layer;
        }
    };
    for (section, value) in sorted(sections) {
        let ValueKind::Table(entries) = value.kind else {
            faults.push(not_in_a_section(&section, &origin));
            continue;
        };
        if entries.is_empty() && !is_section(&section) {
            faults.push(unknown(&section, &origin));
        }
        for (key, value) in sorted(entries) {
            let key = format!("{section}.{key}");
            match find(&key) {
                Some(setting) => layer.set(setting, &origin, value.kind, faults),
                None => faults.push(unknown(&key, &origin)),
            }
        }
    }
    layer
}

/// A parser's words about a file without the line that it shows: there may be a password in it.
fn without_source(error: &ConfigError) -> String {
    let text = match error {
        ConfigError::FileParse { cause, .. } => cause.to_string(),
        other => other.to_string(),
    };
    let is_source =
        |line: &&str| line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|');
    text.lines().filter(|line| !is_source(line)).map(str::trim).collect::<Vec<_>>().join(": ")
}

fn environment_layer(environment: &[(OsString, OsString)], faults: &mut Vec<SettingFault>) -> Layer {
    let mut layer = Layer::default();
    let variables: BTreeMap<_, _> = environment.iter().map(|(name, value)| (name, value)).collect();
    for (variable, value) in variables {
        let Some(variable) = variable.to_str() else { continue };
        let Some(name) = variable.strip_prefix(PREFIX) else {
            if let Some(meant) = SETTINGS.iter().find(|s| variable_of(s.key).replace("__", "_") == variable) {
                let meant = variable_of(meant.key);
                faults.push(SettingFault(format!(
                    "unknown environment variable {variable}; did you mean {meant}?"
                )));
            }
            continue;
        };
        let mut parts = name.splitn(3, "__");
        let section = parts.next().unwrap_or_default().to_lowercase();
        let key = parts.next().map(|key| format!("{section}.{}", key.to_lowercase())).unwrap_or(section);
        let Some(text) = value.to_str() else {
            faults.push(SettingFault(format!("`{key}` in {variable} is not UTF-8; give a text")));
            continue;
        };
        match (find(&key), parts.next()) {
            (Some(setting), entry) => set_text(&mut layer, setting, entry, variable, text, faults),
            (None, None) => faults.push(unknown(&key, variable)),
            (None, Some(rest)) => faults.push(unknown(&format!("{key}.{}", rest.to_lowercase()), variable)),
        }
    }
    layer
}

fn override_layer(overrides: &[String], faults: &mut Vec<SettingFault>) -> Layer {
    let mut layer = Layer::default();
    for given in overrides {
        let Some((name, text)) = given.split_once('=') else {
            faults.push(SettingFault(format!("--set {given:?} has no `=`; give --set section.key=value")));
            continue;
        };
        let mut parts = name.trim().splitn(3, '.');
        let section = parts.next().unwrap_or_default().to_owned();
        let key = parts.next().map(|key| format!("{section}.{key}")).unwrap_or(section);
        match (find(&key), parts.next()) {
            (Some(setting), entry) => set_text(&mut layer, setting, entry, "--set", text, faults),
            (None, _) => faults.push(unknown(name.trim(), "--set")),
        }
    }
    layer
}

/// Sets what a layer gives as text; `entry` is the name within a table.
fn set_text(
    layer: &mut Layer,
    setting: &Setting,
    entry: Option<&str>,
    origin: &str,
    text: &str,
    faults: &mut Vec<SettingFault>,
) {
    let is_table = matches!(setting.kind, Kind::Environment);
    match entry {
        Some(entry) if is_table => {
            let table = Map::from_iter([(entry.to_owned(), Value::new(None, text))]);
            layer.set(setting, origin, ValueKind::Table(table), faults);
        }
        Some(entry) => faults.push(unknown(&format!("{}.{entry}", setting.key), origin)),
        None if is_table => layer.set(setting, origin, text.into(), faults),
        None => layer.set(setting, origin, setting.kind.of_text(text), faults),
    }
}

fn sorted(table: Map<String, Value>) -> BTreeMap<String, Value> {
    table.into_iter().collect()
}

fn sections() -> BTreeSet<&'static str> {
    SETTINGS.iter().filter_map(|setting| setting.key.split('.').next()).collect()
}

fn is_section(name: &str) -> bool {
    sections().contains(name)
}

fn not_in_a_section(key: &str, origin: &str) -> SettingFault {
    if is_section(key) {
        return SettingFault(format!("`{key}` in {origin} is a section; write its settings below [{key}]"));
    }
    unknown(key, origin)
}

fn unknown(key: &str, origin: &str) -> SettingFault {
    let hint = nearest(key).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    SettingFault(format!("unknown setting `{key}` in {origin}{hint}"))
}

/// The known setting, or section, that `key` most likely stands for.
fn nearest(key: &str) -> Option<&'static str> {
    let leaf = |key: &str| key.rsplit('.').next().unwrap_or_default().to_lowercase();
    let distance = |known: &&str| strsim::damerau_levenshtein(&key.to_lowercase(), known);
    let keys = || SETTINGS.iter().map(|setting| setting.key);
    let same_leaf = keys().filter(|known| leaf(known) == leaf(key)).min_by_key(distance);
    if same_leaf.is_some() {
        return same_leaf;
    }
    let best = keys().chain(sections()).min_by_key(distance)?;
    (distance(&best) <= (key.len() / 3).max(2)).then_some(best)
}

/// The environment variable of a setting.
fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(limit + 1).read_to_string(&mut text)?;
    if text.len() as u64 > limit {
        return Err(io::Error::other(format!("it has more than {limit} bytes")));
    }
    Ok(text)
}

fn read_password(path: &Path) -> io::Result<String> {
    let text = read_bounded(path, LARGEST_PASSWORD_FILE)?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(io::Error::other("it is empty"));
    }
    Ok(password.to_owned())
}

/// The user and the password in an address, and where the password stands: `(user's end, authority's last '@')`.
fn user_info(uri: &str) -> Option<(usize, Option<usize>, usize)> {
    let start = uri.find("://")? + 3;
    let end = uri[start..].find(['/', '?', '#']).map_or(uri.len(), |at| start + at);
    let Some(at) = uri[start..end].rfind('@').map(|at| start + at) else {
        return Some((start, None, start));
    };
    Some((start, uri[start..at].find(':').map(|colon| start + colon), at))
}

/// `uri` with another password; without a user it becomes the broker's default one.
fn with_password(uri: &str, password: &str) -> String {
    let Some((start, colon, at)) = user_info(uri) else { return uri.to_owned() };
    let mut encoded = String::with_capacity(password.len() * 3);
    for byte in password.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    let user = match &uri[start..colon.unwrap_or(at)] {
        "" => "guest",
        user => user,
    };
    let rest = uri[at..].strip_prefix('@').unwrap_or(&uri[at..]);
    format!("{}{user}:{encoded}@{rest}", &uri[..start])
}

fn without_password(uri: &str) -> String {
    match user_info(uri) {
        Some((_, Some(colon), at)) => format!("{}:***{}", &uri[..colon], &uri[at..]),
        _ => uri.to_owned(),
    }
}

/// Whether a variable's name looks like that of a secret; what Spark itself keeps out of its logs, and passwords' and
/// credentials' other names.
fn looks_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    ["secret", "passw", "token", "credential", "key", "auth"].iter().any(|word| name.contains(word))
}

// ----------------------------------------------------------------------------------------------------- what counts

/// Reads the merged layers; what is not there or of another kind (which the layers have ruled out) is a fault.
struct Reader<'a> {
    merged: &'a ::config::Config,
    faults: RefCell<Vec<SettingFault>>,
    read: Cell<usize>,
}

impl<'a> Reader<'a> {
    fn new(merged: &'a ::config::Config) -> Self {
        Self { merged, faults: RefCell::default(), read: Cell::new(0) }
    }

    fn value(&self, key: &str) -> Option<(&'static Setting, &'a Value)> {
        // Asked through serde, a value would forget its origin.
        let mut value = &self.merged.cache;
        for step in key.split('.') {
            let ValueKind::Table(table) = &value.kind else { return None };
            value = table.get(step)?;
        }
        Some((find(key)?, value))
    }

    fn take<T>(&self, key: &str, pick: impl FnOnce(Given) -> Option<T>) -> Option<T> {
        self.read.set(self.read.get() + 1);
        let judged = self.value(key).and_then(|(setting, value)| setting.kind.judge(&value.kind).ok());
        let picked = judged.and_then(pick);
        if picked.is_none() {
            self.faults.borrow_mut().push(SettingFault(format!("`{key}` has no value of the right kind")));
        }
        picked
    }

    fn text(&self, key: &str) -> String {
        self.take(key, |given| if let Given::Text(text) = given { Some(text) } else { None })
            .unwrap_or_default()
    }

    fn texts(&self, key: &str) -> Vec<String> {
        self.take(key, |given| if let Given::Texts(texts) = given { Some(texts) } else { None })
            .unwrap_or_default()
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.take(key, |given| if let Given::Path(path) = given { Some(path) } else { None }).flatten()
    }

    fn index(&self, key: &str) -> Option<Index> {
        let pick = |given| match given {
            Given::Text(url) => Some(Some(Index::Url(url))),
            Given::Path(path) => Some(path.map(Index::Folder)),
            _ => None,
        };
        self.take(key, pick).flatten()
    }

    fn count(&self, key: &str) -> u64 {
        let pick =
            |given| if let Given::Count(count) | Given::Size(count) = given { Some(count) } else { None };
        self.take(key, pick).unwrap_or_default()
    }

    fn span(&self, key: &str) -> Duration {
        self.take(key, |given| if let Given::Span(span) = given { Some(span) } else { None })
            .unwrap_or_default()
    }

    fn spans(&self, key: &str) -> Vec<Duration> {
        self.take(key, |given| if let Given::Spans(spans) = given { Some(spans) } else { None })
            .unwrap_or_default()
    }

    fn environment(&self, key: &str) -> BTreeMap<String, Secret> {
        let pick = |given| if let Given::Environment(table) = given { Some(table) } else { None };
        let table = self.take(key, pick).unwrap_or_default();
        table.into_iter().map(|(name, value)| (name, Secret(value))).collect()
    }

    fn effective(&self) -> Vec<Effective> {
        let mut effective = Vec::with_capacity(SETTINGS.len());
        for setting in SETTINGS {
            let Some((_, value)) = self.value(setting.key) else { continue };
            let source = value.origin().unwrap_or("default").to_owned();
            let Ok(given) = setting.kind.judge(&value.kind) else { continue };
            let key = setting.key.to_owned();
            match (given, &value.kind) {
                (Given::Environment(table), ValueKind::Table(origins)) if !table.is_empty() => {
                    for (name, value) in table {
                        let source = origins
                            .get(&name)
                            .and_then(|value| value.origin())
                            .unwrap_or("default")
                            .to_owned();
                        let value = if looks_secret(&name) { json!("***") } else { json!(value) };
                        effective.push(Effective { key: format!("{key}.{name}"), value, source });
                    }
                }
                (given, _) => {
                    effective.push(Effective { key, value: shown_json(setting.kind, &given), source })
                }
            }
        }
        effective
    }
}

fn shown_json(kind: Kind, given: &Given) -> Json {
    match given {
        Given::Text(text) if matches!(kind, Kind::Address) => json!(without_password(text)),
        Given::Text(text) if text.is_empty() => Json::Null,
        Given::Text(text) => json!(text),
        Given::Path(path) => json!(path.as_ref().map(|path| path.display().to_string())),
        Given::Count(count) => json!(count),
        Given::Size(bytes) => json!(size_text(*bytes)),
        Given::Span(span) => json!(duration_text(*span)),
        Given::Spans(spans) => json!(spans.iter().copied().map(duration_text).collect::<Vec<_>>()),
        Given::Texts(texts) => json!(texts),
        Given::Environment(_) => Json::Null,
    }
}

/// The reference of all settings, as Markdown.
#[must_use]
pub fn reference() -> String {
    let mut text = format!(
        "# Settings\n\
         \n\
         This page is written by `spark-runtime config --reference`.\n\
         \n\
         A setting is looked up in four places; a later one wins over an earlier:\n\
         \n\
         1. the defaults below;\n\
         2. a TOML file: the one that `--config FILE` names, else the one that the environment variable `{FILE_VARIABLE}` \
         names, else `{DEFAULT_FILE}` if it is there;\n\
         3. the environment: `broker.uri` is `{}`, and so on; lists are separated by commas;\n\
         4. the command line: `--set broker.heartbeat=20s`, as often as needed; lists are separated by commas.\n\
         \n\
         What is not known here is refused in all of them. `spark-runtime config` shows the values that count and where \
         each comes from.\n\
         \n\
         Durations are written `10s`, `2m` or `1h 30m`, sizes `64MiB` or `512KB`. In the file, settings stand below \
         their section:\n\
         \n\
         ```toml\n\
         [worker]\n\
         max_running = 4\n\
         \n\
         [retry]\n\
         delays = [\"5s\", \"30s\", \"2m\"]\n\
         \n\
         [spark.environment]\n\
         HADOOP_CONF_DIR = \"/etc/hadoop/conf\"\n\
         ```\n",
        variable_of("broker.uri")
    );
    let mut section = "";
    for setting in SETTINGS {
        let its_section = setting.key.split('.').next().unwrap_or_default();
        if its_section != section {
            section = its_section;
            text.push_str(&format!("\n## {section}\n"));
        }
        let default =
            if setting.default.is_empty() { "none".to_owned() } else { format!("`{}`", setting.default) };
        let wanted = setting.kind.wanted();
        text.push_str(&format!(
            "\n### `{}`\n\n{}\n\nTakes {wanted}. Default: {default}.\n",
            setting.key, setting.doc
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_file(text: &str) -> Result<Settings, SettingsError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.toml");
        std::fs::write(&path, text).unwrap();
        Settings::load(&Sources { file: Some(path), ..Sources::default() })
    }

    fn of_environment(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Settings::load(&Sources { environment, ..Sources::default() })
    }

    fn of_overrides(overrides: &[&str]) -> Result<Settings, SettingsError> {
        let overrides = overrides.iter().map(|text| (*text).to_owned()).collect();
        Settings::load(&Sources { overrides, ..Sources::default() })
    }

    /// The faults, with the folder of the file left out.
    fn faults(loaded: Result<Settings, SettingsError>) -> Vec<String> {
        let Err(SettingsError::Faults(faults)) = loaded else { panic!("no faults: {loaded:?}") };
        let without_folder = |fault: &SettingFault| {
            let words = fault.0.split(' ');
            words
                .map(|word| word.find("/x.toml").map_or(word, |at| &word[at..]))
                .collect::<Vec<_>>()
                .join(" ")
        };
        faults.iter().map(without_folder).collect()
    }

    #[test]
    fn every_setting_has_a_valid_default_and_is_read() {
        let layer = defaults();
        for setting in SETTINGS {
            let judged = setting.kind.judge(&layer.values[setting.key].kind);
            assert!(judged.is_ok(), "{}: {judged:?}", setting.key);
            assert!(setting.doc.ends_with('.'), "{}", setting.key);
        }
        let merged = ::config::Config::builder().add_source(layer).build().unwrap();
        let reader = Reader::new(&merged);
        Settings::read(&reader).unwrap();
        assert_eq!(reader.read.get(), SETTINGS.len(), "a setting is in the table and not in Settings");
        let keys: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.key).collect();
        assert_eq!(keys.len(), SETTINGS.len());
    }

    #[test]
    fn the_defaults_are_what_the_reference_says() {
        let settings = Settings::load(&Sources::default()).unwrap();
        assert_eq!(settings.broker.heartbeat, Duration::from_secs(10));
        assert_eq!(settings.job.run_timeout, Duration::from_secs(24 * 3600));
        assert_eq!(settings.job.max_size, 16 << 20);
        assert_eq!(settings.log.tail, 8 << 10);
        assert_eq!(settings.retry.delays, [5, 30, 120].map(Duration::from_secs));
        assert_eq!(settings.job.keep, Keep::Failed);
        assert_eq!(settings.spark.home, None);
        assert_eq!(
            settings.job.directory,
            PathBuf::from(format!("/tmp/spark-runtime-{}", nix::unistd::getuid()))
        );
        assert_eq!(settings.worker.max_running, 0);
        for shown in settings.effective() {
            assert_eq!(shown.source, "default");
        }
    }

    #[test]
    fn a_later_layer_wins_over_an_earlier_one_and_each_value_knows_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.toml");
        std::fs::write(&path, "[worker]\nname = 'file'\nmax_running = 7\n[retry]\ndelays = ['1s']\nmax_attempts = 2\n[spark.environment]\nA = 'file'\nB = 'file'\n").unwrap();
        let variable = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let settings = Settings::load(&Sources {
            file: Some(path.clone()),
            environment: vec![
                variable("SPARK_RUNTIME__WORKER__NAME", "environment"),
                variable("SPARK_RUNTIME__RETRY__DELAYS", "2s, 3s"),
                variable("SPARK_RUNTIME__SPARK__ENVIRONMENT__B", "environment"),
                variable("SPARK_RUNTIME__SPARK__ENVIRONMENT__Mixed_Case__x", "environment"),
                variable("HOME", "/root"),
                variable("SPARK_RUNTIME_CACHE", "is no setting"),
            ],
            overrides: vec![
                "worker.name=flag".into(),
                "worker.name=later".into(),
                "spark.environment.C.d=1=2".into(),
            ],
            ..Sources::default()
        })
        .unwrap();
        assert_eq!(settings.worker.name, "later");
        assert_eq!(settings.worker.max_running, 7);
        assert_eq!(settings.retry.max_attempts, 2);
        assert_eq!(settings.retry.delays, [2, 3].map(Duration::from_secs));
        let environment: Vec<_> =
            settings.spark.environment.iter().map(|(k, v)| (k.as_str(), v.expose())).collect();
        assert_eq!(
            environment,
            [("A", "file"), ("B", "environment"), ("C.d", "1=2"), ("Mixed_Case__x", "environment")]
        );
        let source = |key: &str| settings.effective().iter().find(|e| e.key == key).unwrap().source.clone();
        assert_eq!(source("worker.name"), "--set");
        assert_eq!(source("worker.max_running"), path.display().to_string());
        assert_eq!(source("retry.delays"), "SPARK_RUNTIME__RETRY__DELAYS");
        assert_eq!(source("log.tail"), "default");
        assert_eq!(source("spark.environment.A"), path.display().to_string());
        assert_eq!(source("spark.environment.B"), "SPARK_RUNTIME__SPARK__ENVIRONMENT__B");
    }

    #[test]
    fn all_faults_of_a_file_are_told_at_once_with_what_is_wanted() {
        let text = r#"
            stray = 1
            broker = "x"
            [retry]
            max_atempts = 3
            max_attempts = 0
            delays = []
            [retyr]
            [worker]
            max_attempts = 1
            max_running = "4"
            watchdog = 60
            name = "a b"
            [job]
            keep = "sometimes"
            run_timeout = "-1s"
            kill_grace = "soon"
            max_size = "big"
            inline_output = -1
            [spark]
            pass_environment = ["OK", "SPARK_RUNTIME__BROKER__URI"]
            environment = { "A=B" = "x" }
            submit = true
            [log]
            limit = 1
            [[log.tail]]
        "#;
        insta::assert_snapshot!(faults(of_file(text)).join("\n"), @r#"
        `broker` in /x.toml is a section; write its settings below [broker]
        `job.inline_output` in /x.toml is -1; give a size of at least 0B such as 64MiB or 512KB
        `job.keep` in /x.toml is "sometimes"; give one of never, failed, always
        `job.kill_grace` in /x.toml is "soon"; give a duration such as 10s, 2m or 1h 30m
        `job.max_size` in /x.toml is "big"; give a size of at least 1KiB such as 64MiB or 512KB
        `job.run_timeout` in /x.toml is "-1s"; give a duration of at least 1s such as 10s, 2m or 1h 30m
        `log.limit` in /x.toml is 1; give a size of at least 16KiB such as 64MiB or 512KB
        `log.tail` in /x.toml is [a table]; give a size of at least 0B such as 64MiB or 512KB
        `retry.delays` in /x.toml is an empty list; give a list of at least one, each a duration above 0 and at most 672h, such as 5s, 30s, 2m
        unknown setting `retry.max_atempts` in /x.toml; did you mean `retry.max_attempts`?
        `retry.max_attempts` in /x.toml is 0; give a whole number from 1 to 1000
        unknown setting `retyr` in /x.toml; did you mean `retry`?
        `spark.environment` in /x.toml has "A=B", which is no name of an environment variable; give one such as HADOOP_CONF_DIR
        `spark.pass_environment` in /x.toml has SPARK_RUNTIME__BROKER__URI, which is a setting of the worker; no model may see these
        `spark.submit` in /x.toml is true; give a path
        unknown setting `stray` in /x.toml
        unknown setting `worker.max_attempts` in /x.toml; did you mean `retry.max_attempts`?
        `worker.max_running` in /x.toml is "4"; give a whole number from 0 to 10000
        `worker.name` in /x.toml is "a b"; give at most 128 letters, digits, '-', '_', '.', ':' or '@'
        `worker.watchdog` in /x.toml is 60; give a duration of at least 1s such as 10s, 2m or 1h 30m
        "#);
    }

    #[test]
    fn all_faults_of_the_environment_and_the_command_line_are_told_at_once() {
        let environment = [
            ("SPARK_RUNTIME__RETRY__MAX_ATEMPTS", "3"),
            ("SPARK_RUNTIME__JOB__RUN_TIMEOUT", "abc"),
            ("SPARK_RUNTIME__JOB__KEEP__X", "always"),
            ("SPARK_RUNTIME__RETRY__DELAYS", "5s,,x"),
            ("SPARK_RUNTIME__WORKER__MAX_RUNNING", "many"),
            ("SPARK_RUNTIME__WORKER__MAX_SUBMITS", ""),
            ("SPARK_RUNTIME__NONSENSE", ""),
            ("SPARK_RUNTIME__SPARK__ENVIRONMENT", "A=1"),
            ("SPARK_RUNTIME_BROKER_URI", "amqp://host"),
        ];
        insta::assert_snapshot!(faults(of_environment(&environment)).join("\n"), @r#"
        unknown environment variable SPARK_RUNTIME_BROKER_URI; did you mean SPARK_RUNTIME__BROKER__URI?
        unknown setting `job.keep.X` in SPARK_RUNTIME__JOB__KEEP__X; did you mean `job.keep`?
        `job.run_timeout` in SPARK_RUNTIME__JOB__RUN_TIMEOUT is "abc"; give a duration of at least 1s such as 10s, 2m or 1h 30m
        unknown setting `nonsense` in SPARK_RUNTIME__NONSENSE
        `retry.delays` in SPARK_RUNTIME__RETRY__DELAYS is ["5s", "x"]; give a list of at least one, each a duration above 0 and at most 672h, such as 5s, 30s, 2m
        unknown setting `retry.max_atempts` in SPARK_RUNTIME__RETRY__MAX_ATEMPTS; did you mean `retry.max_attempts`?
        `spark.environment` in SPARK_RUNTIME__SPARK__ENVIRONMENT is a text; give a table of names and texts
        `worker.max_running` in SPARK_RUNTIME__WORKER__MAX_RUNNING is "many"; give a whole number from 0 to 10000
        `worker.max_submits` in SPARK_RUNTIME__WORKER__MAX_SUBMITS is empty; give a whole number from 0 to 10000
        "#);
        insta::assert_snapshot!(faults(of_overrides(&["worker", "wroker.name=x", "job.keep.x=1", "retry.delays="])).join("\n"), @r#"
        --set "worker" has no `=`; give --set section.key=value
        unknown setting `wroker.name` in --set; did you mean `worker.name`?
        unknown setting `job.keep.x` in --set; did you mean `job.keep`?
        `retry.delays` in --set is an empty list; give a list of at least one, each a duration above 0 and at most 672h, such as 5s, 30s, 2m
        "#);
    }

    #[test]
    fn a_file_that_is_named_has_to_be_there_and_the_usual_one_may_be_missing() {
        let missing = PathBuf::from("/nowhere/x.toml");
        let named = Settings::load(&Sources { file: Some(missing.clone()), ..Sources::default() });
        insta::assert_snapshot!(faults(named).join("\n"), @"the settings file /x.toml cannot be read: No such file or directory (os error 2)");
        Settings::load(&Sources { fallback_file: Some(missing), ..Sources::default() }).unwrap();
        let endless = Settings::load(&Sources { file: Some("/dev/zero".into()), ..Sources::default() });
        insta::assert_snapshot!(faults(endless).join("\n"), @"the settings file /dev/zero cannot be read: it has more than 1048576 bytes");
    }

    #[test]
    fn no_fault_and_no_listing_shows_a_secret() {
        for text in [
            "[broker]\nuri = \"amqp://user:s3cret@host",
            "[broker]\nuri = amqp://user:s3cret@host",
            "[broker]\nuri = \"amqp://user:s3cret@ho st:port\"",
            "[broker]\nuri = [\"amqp://user:s3cret@host\"]",
            "[broker]\nuri = \"s3cret\"",
            "[spark.environment]\nPASSWORD = [\"s3cret\"]",
            "[spark]\nenvironment = \"s3cret\"",
        ] {
            let error = of_file(text).unwrap_err();
            assert!(!error.to_string().contains("s3cret"), "{error}");
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
        let text = "[broker]\nuri = \"amqp://user:s3cret@host/%2f?heartbeat=5\"\n[spark.environment]\nAWS_SECRET_ACCESS_KEY = \"s3cret\"\nHADOOP_CONF_DIR = \"/etc/hadoop\"\n";
        let settings = of_file(text).unwrap();
        assert!(!format!("{settings:?}").contains("s3cret"), "{settings:?}");
        let shown = |key: &str| settings.effective().iter().find(|e| e.key == key).unwrap().value.clone();
        assert_eq!(shown("broker.uri"), json!("amqp://user:***@host/%2f?heartbeat=5"));
        assert_eq!(shown("spark.environment.AWS_SECRET_ACCESS_KEY"), json!("***"));
        assert_eq!(shown("spark.environment.HADOOP_CONF_DIR"), json!("/etc/hadoop"));
        assert_eq!(settings.spark.environment["AWS_SECRET_ACCESS_KEY"].expose(), "s3cret");
    }

    #[test]
    fn the_address_of_a_database_has_no_password_and_one_that_has_is_not_quoted() {
        let load = |text: &str| {
            let overrides = vec![format!("sql.url={text}")];
            Settings::load(&Sources { overrides, ..Sources::default() })
        };
        for good in
            ["jdbc:postgresql://db:5432/models", "jdbc:oracle:thin:@//db:1521/m", "jdbc:derby:/data/m"]
        {
            assert_eq!(load(good).unwrap().sql.url.as_deref(), Some(good));
        }
        for bad in
            ["postgresql://db/m", "jdbc:x://db/m?user=a&password=s3cret", "jdbc:x://a:s3cret@db/m", "jdbc:"]
        {
            let words = load(bad).unwrap_err().to_string();
            assert!(words.contains("sql.url") && !words.contains("s3cret"), "{words}");
        }
    }

    #[test]
    fn the_login_of_a_database_comes_from_the_settings_and_a_file() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("password");
        std::fs::write(&path, "s3\"cret\n").unwrap();
        let mut sql = SqlSettings { user: Some("u".into()), ..SqlSettings::default() };
        assert_eq!(sql.login().unwrap().unwrap().expose(), r#"{"user":"u"}"#);
        sql.password_file = Some(path);
        let login = sql.login().unwrap().unwrap();
        assert_eq!(login.expose(), r#"{"password":"s3\"cret","user":"u"}"#);
        assert_eq!(format!("{login:?}"), "***");
        sql.password_file = Some("/no/such/file".into());
        assert!(sql.login().is_err());
        assert_eq!(SqlSettings::default().login().unwrap(), None);
    }

    #[test]
    fn the_password_file_takes_the_place_of_the_password_in_the_address() {
        assert_eq!(
            with_password("amqp://u:old@h:1/%2f", "p@:/#%ü"),
            "amqp://u:p%40%3A%2F%23%25%C3%BC@h:1/%2f"
        );
        assert_eq!(with_password("amqp://u@h", "p"), "amqp://u:p@h");
        assert_eq!(with_password("amqp://h:1/v", "p"), "amqp://guest:p@h:1/v");
        assert_eq!(with_password("amqps://h?x=a@b", "p"), "amqps://guest:p@h?x=a@b");

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let file = format!("broker.password_file={}", path.display());
        let settings = of_overrides(&["broker.uri=amqp://u:old@h:1/%2f", &file]).unwrap();
        let error = settings.endpoint().unwrap_err().to_string();
        assert!(error.starts_with("the password file ") && error.contains("cannot be read"), "{error}");
        std::fs::write(&path, "\n").unwrap();
        assert!(settings.endpoint().unwrap_err().to_string().ends_with("it is empty"));
        std::fs::write(&path, "s3cret/\n").unwrap();
        assert_eq!(settings.endpoint().unwrap().to_string(), "amqp://u@h:1/%2f");
    }

    #[test]
    fn paths_are_made_absolute_and_a_bare_program_is_left_to_the_path() {
        let settings =
            of_overrides(&["job.directory=attempts", "spark.python=python3", "spark.policy="]).unwrap();
        assert_eq!(settings.job.directory, std::env::current_dir().unwrap().join("attempts"));
        assert_eq!(settings.spark.python, Some("python3".into()));
        assert_eq!(settings.spark.policy, None);
        let settings = of_overrides(&["spark.python=bin/python3"]).unwrap();
        assert_eq!(settings.spark.python, Some(std::env::current_dir().unwrap().join("bin/python3")));
    }

    #[test]
    fn certificates_are_for_tls_alone_and_ones_own_comes_with_its_key() {
        let tls = "broker.uri=amqps://h/%2f";
        let all = ["broker.ca_file=/c", "broker.certificate_file=/d", "broker.key_file=/e"];
        let settings = of_overrides(&[&[tls], &all[..]].concat()).unwrap();
        assert!(settings.endpoint().unwrap().is_over_tls());
        assert_eq!(settings.broker.certificates.own.unwrap().key, Path::new("/e"));
        let error = of_overrides(&[tls, all[1]]).unwrap_err().to_string();
        assert!(error.contains("go together"), "{error}");
        let error = of_overrides(&[all[0]]).unwrap_err().to_string();
        assert!(error.contains("are for an amqps:// address"), "{error}");
    }

    #[test]
    fn what_is_shown_of_a_value_reads_back_as_that_value() {
        for duration in ["10s", "2m", "24h", "1h 30m", "250ms"] {
            let parsed: SignedDuration = duration.parse().unwrap();
            assert_eq!(duration_text(parsed.try_into().unwrap()), duration);
        }
        for size in ["64MiB", "8KiB", "1GiB", "1500B", "0B"] {
            assert_eq!(size_text(size.parse::<ByteSize>().unwrap().as_u64()), size);
        }
    }
}
