//! What the program says and how it ends, where no broker is needed: every text a user sees is held here.

#![expect(clippy::unwrap_used, reason = "a helper of a test that cannot go on ends the test")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// A folder to run the program in, with an environment of which nothing but the PATH is left.
struct Place {
    folder: tempfile::TempDir,
}

/// How a run of the program ended.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spark-runtime"));
        command.args(arguments).current_dir(self.path()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        // The settings of the machine that the tests run on are not to count.
        command.env("SPARK_RUNTIME_CONFIG", "/dev/null");
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.end(&mut self.command(arguments))
    }

    fn end(&self, command: &mut Command) -> Ended {
        let output = command.stdin(Stdio::null()).output().unwrap();
        // The folder's name differs from run to run.
        let text =
            |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&self.path().display().to_string(), "HERE");
        Ended {
            code: output.status.code().unwrap(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part =
            |name: &str, text: &str| if text.is_empty() { String::new() } else { format!("{name}:\n{text}") };
        write!(f, "exit {}\n{}{}", self.code, part("stdout", &self.stdout), part("stderr", &self.stderr))
    }
}

fn job() -> Value {
    json!({
        "jobType": "MODEL_BATCH_JOB",
        "model": {"storedModel": {"modelAssets": [
            {"name": "m.py", "assetType": "SOURCE_CODE", "primaryModelSource": true, "scoreFunction": "score",
             "sourceCode": "def score(a, b, c):\n    pass\n"},
            {"name": "h.py", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/h.py", "sourceCode": "x = 1"},
            {"name": "t", "assetType": "FILE", "filename": "t.txt", "fileContent": "aGk="},
        ]}},
    })
}

#[test]
fn help_tells_the_verbs_and_the_exit_codes() {
    insta::assert_snapshot!(Place::new().run(&["--help"]), @"
    exit 0
    stdout:
    Runs modelBatchJobs with spark-submit, as they come from RabbitMQ

    Usage: spark-runtime [OPTIONS] <COMMAND>

    Commands:
      run          Run a job here and now, without a broker
      worker       Take jobs from the broker and run them
      submit       Publish a job
      watch        Follow what happens to a job, or to all
      cancel       End a job, or see to it that it never starts
      status       Tell where a job stands, or how it ended
      jobs         List the latest jobs
      validate     Tell whether a job can be run, and everything that is wrong with it
      new          Make a job's JSON from a model's source
      topology     Declare, compare or print the broker's exchanges and queues
      dead         Look at dead jobs, replay or drop them
      cluster      Put what jobs on YARN need of Spark on the cluster, once for each release
      config       Show the settings that count and where each comes from
      schema       Print the machine-readable description of jobs, events, commands or exchanges
      completions  Print a shell's completion script

    Options:
      -h, --help     Print help
      -V, --version  Print version

    Everywhere:
          --config <FILE>        The settings file (TOML)
          --set <KEY=VALUE>      Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated
          --log <FILTER>         What is logged on the standard error: a level, or levels by module [default: info,lapin=off]
          --log-format <FORMAT>  How it is logged: lines for people, or one JSON object a line [default: text] [possible values: text, json]

    Exit codes:
        0  done; the job completed
        1  the job failed
        2  the job was rejected, or is not valid
        3  the job was cancelled
        4  the job had ended before it could be cancelled
       64  the command line is wrong
       66  an input file cannot be read, or nothing is known of the job
       69  the broker, or the cluster, cannot be reached
       70  a fault of the program or of the machine
       73  an output cannot be written
       76  the broker's exchanges or queues are not as they have to be
       77  the broker refuses the user, the password or the right, or its certificate is not trusted; or the cluster refuses it
       78  the settings are wrong
      130  interrupted; a job that was submitted goes on
    ");
}

#[test]
fn every_verb_has_help() {
    let place = Place::new();
    insta::assert_snapshot!(place.run(&["validate", "--help"]), @"
    exit 0
    stdout:
    Tell whether a job can be run, and everything that is wrong with it

    Usage: spark-runtime validate [OPTIONS] <JOB.json>

    Arguments:
      <JOB.json>  The job; `-` reads the standard input

    Options:
          --json  Print JSON: an object with `valid`, `faults` and `notes`
      -h, --help  Print help

    Everywhere:
          --config <FILE>        The settings file (TOML)
          --set <KEY=VALUE>      Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated
          --log <FILTER>         What is logged on the standard error: a level, or levels by module [default: info,lapin=off]
          --log-format <FORMAT>  How it is logged: lines for people, or one JSON object a line [default: text] [possible values: text, json]
    ");
    insta::assert_snapshot!(place.run(&["submit", "--help"]), @r#"
    exit 0
    stdout:
    Publish a job

    Usage: spark-runtime submit [OPTIONS] <JOB.json>

    Arguments:
      <JOB.json>  The job; `-` reads the standard input

    Options:
          --wait                   Follow the job to its end; the exit code tells the outcome
          --id <ID>                The id of a job that has none of its own. Without it a random one is made
          --priority <N>           The message's priority; higher goes first, where the broker's queue has priorities
          --expiration <DURATION>  How long the job may wait for a worker, as 10m
          --correlation <TEXT>     Echoed in every event
          --unchecked              Publish whatever the file holds; the worker judges it
          --json                   Print JSON: `{"id": ...}`, or with --wait every event as one line
      -h, --help                   Print help

    Everywhere:
          --config <FILE>        The settings file (TOML)
          --set <KEY=VALUE>      Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated
          --log <FILTER>         What is logged on the standard error: a level, or levels by module [default: info,lapin=off]
          --log-format <FORMAT>  How it is logged: lines for people, or one JSON object a line [default: text] [possible values: text, json]
    "#);
    insta::assert_snapshot!(place.run(&["watch", "--help"]), @"
    exit 0
    stdout:
    Follow what happens to a job, or to all

    Usage: spark-runtime watch [OPTIONS] [JOB_ID]

    Arguments:
      [JOB_ID]  The job to follow, to its end. Without it all jobs are followed, for ever

    Options:
          --json  Print every event as one line of JSON
      -h, --help  Print help

    Everywhere:
          --config <FILE>        The settings file (TOML)
          --set <KEY=VALUE>      Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated
          --log <FILTER>         What is logged on the standard error: a level, or levels by module [default: info,lapin=off]
          --log-format <FORMAT>  How it is logged: lines for people, or one JSON object a line [default: text] [possible values: text, json]
    ");
    insta::assert_snapshot!(place.run(&["cancel", "--help"]), @"
    exit 0
    stdout:
    End a job, or see to it that it never starts

    Usage: spark-runtime cancel [OPTIONS] <JOB_ID>

    Arguments:
      <JOB_ID>  The job's id

    Options:
          --wait  Wait until the job has ended
          --json  Print the answer as JSON, and with --wait every event, each as one line
      -h, --help  Print help

    Everywhere:
          --config <FILE>        The settings file (TOML)
          --set <KEY=VALUE>      Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated
          --log <FILTER>         What is logged on the standard error: a level, or levels by module [default: info,lapin=off]
          --log-format <FORMAT>  How it is logged: lines for people, or one JSON object a line [default: text] [possible values: text, json]

    A job that no worker has taken yet is cancelled when one takes it, also if it is published later.
    Exit codes: 0 when the job is or will be cancelled, 4 when it had ended otherwise before.
    ");
    insta::assert_snapshot!(place.run(&["status", "--help"]), @"
    exit 0
    stdout:
    Tell where a job stands, or how it ended

    Usage: spark-runtime status [OPTIONS] <JOB_ID>

    Arguments:
      <JOB_ID>  The job's id

    Options:
          --json  Print JSON: an object with `standing`, `attempt`, `worker`, `since` and `events`
      -h, --help  Print help

    Everywhere:
          --config <FILE>        The settings file (TOML)
          --set <KEY=VALUE>      Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated
          --log <FILTER>         What is logged on the standard error: a level, or levels by module [default: info,lapin=off]
          --log-format <FORMAT>  How it is logged: lines for people, or one JSON object a line [default: text] [possible values: text, json]
    ");
    insta::assert_snapshot!(place.run(&["jobs", "--help"]), @"
    exit 0
    stdout:
    List the latest jobs

    Usage: spark-runtime jobs [OPTIONS]

    Options:
          --state <STATE>  Only jobs that stand like this; several are separated by commas [possible values: waiting, running, completed, failed, cancelled, rejected]
          --limit <N>      The latest jobs, at most so many [default: 50]
          --json           Print JSON: an object with `jobs`, a list, and `all`, how many there are
      -h, --help           Print help

    Everywhere:
          --config <FILE>        The settings file (TOML)
          --set <KEY=VALUE>      Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated
          --log <FILTER>         What is logged on the standard error: a level, or levels by module [default: info,lapin=off]
          --log-format <FORMAT>  How it is logged: lines for people, or one JSON object a line [default: text] [possible values: text, json]
    ");
    insta::assert_snapshot!(place.run(&["new", "--help"]), @"
    exit 0
    stdout:
    Make a job's JSON from a model's source

    Usage: spark-runtime new [OPTIONS] <MODEL.py>

    Arguments:
      <MODEL.py>  The model's source

    Options:
          --score <FUNCTION>             Make a scoring job that calls this function
          --metrics <FUNCTION>           Make a metrics job that calls this function
          --training <FUNCTION>          Make a training job that calls this function
          --type <TYPE>                  Make a job of this type and leave the function to the source's smart tags (`# modelop.score`); `score` when nothing is given [possible values: score, metrics, training]
          --init <FUNCTION>              The function that runs first. Without it the smart tag `# modelop.init` counts
          --input <PATH>                 An input, by path or URL; may be repeated
          --output <PATH>                An output, by path or URL; may be repeated
          --input-format <FORMAT>        What the inputs hold whose names do not say it: csv, json, jsonl, avro or parquet
          --output-format <FORMAT>       What the outputs are to hold whose names do not say it
          --input-schema <SCHEMA.avsc>   Check each record of the inputs against this Avro schema (for a function that gets records)
          --output-schema <SCHEMA.avsc>  Check each record that the function yields against this Avro schema
          --model-file <PATH>            A file or folder that the model loads, by path or URL; may be repeated
          --file <PATH>                  A file that travels in the job and lies in the model's current directory; may be repeated
          --source <PATH>                A Python file, or a folder of them, that the model imports; may be repeated
          --conf <KEY=VALUE>             A spark-submit flag (`--executor-memory=1g`) or a Spark property (`spark.executor.memory=1g`); may be repeated
          --id                           Give the job a random id of its own. Without one it gets a new id each time that it is submitted
      -o, --out <OUT.json>               Write the job to this file instead of the standard output
          --force                        Overwrite the file when it is there
      -h, --help                         Print help

    Everywhere:
          --config <FILE>        The settings file (TOML)
          --set <KEY=VALUE>      Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated
          --log <FILTER>         What is logged on the standard error: a level, or levels by module [default: info,lapin=off]
          --log-format <FORMAT>  How it is logged: lines for people, or one JSON object a line [default: text] [possible values: text, json]
    ");
    insta::assert_snapshot!(place.run(&["topology", "--help"]), @"
    exit 0
    stdout:
    Declare, compare or print the broker's exchanges and queues

    Usage: spark-runtime topology [OPTIONS] <ACTION>

    Arguments:
      <ACTION>
              What to do

              Possible values:
              - declare:     Declare what is missing; what is there must be the same
              - verify:      Compare, and declare nothing
              - definitions: Print all of it, and users of the least rights, as RabbitMQ imports it

    Options:
          --without-users
              Leave the users out of the definitions: an import takes the passwords away from those that are there

          --json
              Print JSON: an object with `exchanges`, `queues`, `differences` and `uncompared`

      -h, --help
              Print help (see a summary with '-h')

    Everywhere:
          --config <FILE>
              The settings file (TOML)

          --set <KEY=VALUE>
              Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated

          --log <FILTER>
              What is logged on the standard error: a level, or levels by module
              
              [default: info,lapin=off]

          --log-format <FORMAT>
              How it is logged: lines for people, or one JSON object a line
              
              [default: text]
              [possible values: text, json]
    ");
    insta::assert_snapshot!(place.run(&["dead", "--help"]), @"
    exit 0
    stdout:
    Look at dead jobs, replay or drop them

    Usage: spark-runtime dead [OPTIONS] <COMMAND>

    Commands:
      list    List the dead jobs, the oldest first
      show    Show one dead job, with its document
      replay  Publish a dead job anew and take it off the dead. Of several with one id the oldest is meant
      drop    Take a dead job off for good. Of several with one id the oldest is meant

    Options:
          --max <N>  Look at this many dead jobs at most [default: 1000]
          --json     Print JSON
      -h, --help     Print help

    Everywhere:
          --config <FILE>        The settings file (TOML)
          --set <KEY=VALUE>      Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated
          --log <FILTER>         What is logged on the standard error: a level, or levels by module [default: info,lapin=off]
          --log-format <FORMAT>  How it is logged: lines for people, or one JSON object a line [default: text] [possible values: text, json]
    ");
    insta::assert_snapshot!(place.run(&["dead", "replay", "--help"]), @"
    exit 0
    stdout:
    Publish a dead job anew and take it off the dead. Of several with one id the oldest is meant

    Usage: spark-runtime dead replay [OPTIONS] [ID]

    Arguments:
      [ID]  The job's id

    Options:
          --all      Replay all that are dead now
          --max <N>  Look at this many dead jobs at most [default: 1000]
          --json     Print JSON
      -h, --help     Print help

    Everywhere:
          --config <FILE>        The settings file (TOML)
          --set <KEY=VALUE>      Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated
          --log <FILTER>         What is logged on the standard error: a level, or levels by module [default: info,lapin=off]
          --log-format <FORMAT>  How it is logged: lines for people, or one JSON object a line [default: text] [possible values: text, json]
    ");
    insta::assert_snapshot!(place.run(&["config", "--help"]), @"
    exit 0
    stdout:
    Show the settings that count and where each comes from

    Usage: spark-runtime config [OPTIONS]

    Options:
          --reference  Print the reference of all settings instead, as Markdown
          --json       Print JSON: a list of objects with `key`, `value` and `source`
      -h, --help       Print help

    Everywhere:
          --config <FILE>        The settings file (TOML)
          --set <KEY=VALUE>      Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated
          --log <FILTER>         What is logged on the standard error: a level, or levels by module [default: info,lapin=off]
          --log-format <FORMAT>  How it is logged: lines for people, or one JSON object a line [default: text] [possible values: text, json]
    ");
    insta::assert_snapshot!(place.run(&["schema", "--help"]), @"
    exit 0
    stdout:
    Print the machine-readable description of jobs, events, commands or exchanges

    Usage: spark-runtime schema [OPTIONS] <WHAT>

    Arguments:
      <WHAT>  The job, the event, the command or its answer (JSON Schema), or the exchanges and messages (AsyncAPI) [possible values: job, event, command, answer, asyncapi]

    Options:
      -h, --help  Print help

    Everywhere:
          --config <FILE>        The settings file (TOML)
          --set <KEY=VALUE>      Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated
          --log <FILTER>         What is logged on the standard error: a level, or levels by module [default: info,lapin=off]
          --log-format <FORMAT>  How it is logged: lines for people, or one JSON object a line [default: text] [possible values: text, json]
    ");
    insta::assert_snapshot!(place.run(&["completions", "--help"]), @"
    exit 0
    stdout:
    Print a shell's completion script

    Usage: spark-runtime completions [OPTIONS] <SHELL>

    Arguments:
      <SHELL>  The shell [possible values: bash, elvish, fish, powershell, zsh]

    Options:
      -h, --help  Print help

    Everywhere:
          --config <FILE>        The settings file (TOML)
          --set <KEY=VALUE>      Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated
          --log <FILTER>         What is logged on the standard error: a level, or levels by module [default: info,lapin=off]
          --log-format <FORMAT>  How it is logged: lines for people, or one JSON object a line [default: text] [possible values: text, json]
    ");
    for verb in ["run", "worker"] {
        assert_eq!(place.run(&[verb, "--help"]).code, 0, "{verb}");
    }
}

#[test]
fn a_wrong_command_line_is_answered_with_exit_code_64() {
    let place = Place::new();
    insta::assert_snapshot!(place.run(&["sumbit"]), @"
    exit 64
    stderr:
    error: unrecognized subcommand 'sumbit'

      tip: a similar subcommand exists: 'submit'

    Usage: spark-runtime [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(place.run(&["submit", "job.json", "--id", "a/b"]), @"
    exit 64
    stderr:
    error: invalid value 'a/b' for '--id <ID>': is no job id: give 1 to 128 letters, digits, '-', '_' or ':'

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(place.run(&["submit", "job.json", "--expiration", "soon"]), @"
    exit 64
    stderr:
    error: invalid value 'soon' for '--expiration <DURATION>': give a duration above 0 and below 49 days, such as 30s, 10m or 1h 30m

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(place.run(&["cancel", "a/b"]), @"
    exit 64
    stderr:
    error: invalid value 'a/b' for '<JOB_ID>': is no job id: give 1 to 128 letters, digits, '-', '_' or ':'

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(place.run(&["jobs", "--state", "done"]), @"
    exit 64
    stderr:
    error: invalid value 'done' for '--state <STATE>'
      [possible values: waiting, running, completed, failed, cancelled, rejected]

    For more information, try '--help'.
    ");
    assert_eq!(place.run(&["jobs", "--limit", "0"]).code, 64);
    insta::assert_snapshot!(place.run(&["dead", "replay"]), @"
    exit 64
    stderr:
    error: the following required arguments were not provided:
      <ID>

    Usage: spark-runtime dead replay <ID>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(place.run(&["--log", "worker=loud", "schema", "job"]), @r#"
    exit 64
    stderr:
    --log "worker=loud" is no filter: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5
    "#);
    assert_eq!(place.run(&[]).code, 64);
    assert_eq!(place.run(&["--version"]).code, 0);
}

#[test]
fn a_valid_job_is_told_in_one_line() {
    let place = Place::new();
    place.write("job.json", &job().to_string());
    insta::assert_snapshot!(place.run(&["validate", "job.json"]), @"
    exit 0
    stdout:
    valid: MODEL_BATCH_JOB, function score with three lists, 2 staged files
    ");
    insta::assert_snapshot!(place.run(&["validate", "job.json", "--json"]), @r#"
    exit 0
    stdout:
    {"valid":true,"faults":[],"notes":[]}
    "#);
}

#[test]
fn an_invalid_job_is_answered_with_every_fault_and_its_place() {
    let place = Place::new();
    let mut job = job();
    job["jobType"] = json!("NO_SUCH");
    job["model"]["storedModel"]["modelAssets"][1]["sourceCodeFilePath"] = json!("../h\u{1b}[2J.py");
    job["model"]["storedModel"]["modelAssets"][2]["fileContent"] = json!("not base64!");
    place.write("job.json", &job.to_string());
    insta::assert_snapshot!(place.run(&["validate", "job.json"]), @r#"
    exit 2
    stdout:
    /jobType: "NO_SUCH" is not known; give one of MODEL_BATCH_JOB, MODEL_BATCH_TEST_JOB, MODEL_BATCH_TRAINING_JOB
    /model/storedModel/modelAssets/1/sourceCodeFilePath: "../h\u{1b}[2J.py" has the character '\u{1b}', which no file name here may have
    /model/storedModel/modelAssets/2/fileContent: is not base64: Invalid symbol 32, offset 3.
    3 faults
    "#);
    insta::assert_snapshot!(place.run(&["validate", "job.json", "--json"]), @r#"
    exit 2
    stdout:
    {"valid":false,"faults":[{"pointer":"/jobType","message":"\"NO_SUCH\" is not known; give one of MODEL_BATCH_JOB, MODEL_BATCH_TEST_JOB, MODEL_BATCH_TRAINING_JOB"},{"pointer":"/model/storedModel/modelAssets/1/sourceCodeFilePath","message":"\"../h\\u{1b}[2J.py\" has the character '\\u{1b}', which no file name here may have"},{"pointer":"/model/storedModel/modelAssets/2/fileContent","message":"is not base64: Invalid symbol 32, offset 3."}],"notes":[]}
    "#);
    // Submitting refuses it before it looks for a broker.
    insta::assert_snapshot!(place.run(&["submit", "job.json"]), @r#"
    exit 2
    stderr:
    /jobType: "NO_SUCH" is not known; give one of MODEL_BATCH_JOB, MODEL_BATCH_TEST_JOB, MODEL_BATCH_TRAINING_JOB
    /model/storedModel/modelAssets/1/sourceCodeFilePath: "../h\u{1b}[2J.py" has the character '\u{1b}', which no file name here may have
    /model/storedModel/modelAssets/2/fileContent: is not base64: Invalid symbol 32, offset 3.
    3 faults; not published
    "#);
    insta::assert_snapshot!(place.run(&["submit", "job.json", "--json"]), @r#"
    exit 2
    stdout:
    {"valid":false,"faults":[{"pointer":"/jobType","message":"\"NO_SUCH\" is not known; give one of MODEL_BATCH_JOB, MODEL_BATCH_TEST_JOB, MODEL_BATCH_TRAINING_JOB"},{"pointer":"/model/storedModel/modelAssets/1/sourceCodeFilePath","message":"\"../h\\u{1b}[2J.py\" has the character '\\u{1b}', which no file name here may have"},{"pointer":"/model/storedModel/modelAssets/2/fileContent","message":"is not base64: Invalid symbol 32, offset 3."}]}
    "#);

    place.write("job.json", "{\"a\": 1, \"a\": 2, nope}");
    insta::assert_snapshot!(place.run(&["validate", "job.json"]), @"
    exit 2
    stdout:
    /a: the key stands here more than once; readers differ in which one they take
    is not JSON: key must be a string at line 1 column 18
    2 faults
    ");
}

#[test]
fn a_function_that_is_not_there_and_a_job_that_is_too_large_are_faults() {
    let place = Place::new();
    let mut job = job();
    job["model"]["storedModel"]["modelAssets"][0]["scoreFunction"] = json!("predict");
    place.write("job.json", &job.to_string());
    insta::assert_snapshot!(place.run(&["validate", "job.json"]), @r#"
    exit 2
    stdout:
    /model/storedModel/modelAssets/0/scoreFunction: names "predict", which the source does not have; it has score
    1 fault
    "#);
    place.write("large.json", &" ".repeat(2000));
    insta::assert_snapshot!(place.run(&["validate", "large.json", "--set", "job.max_size=1KiB"]), @"
    exit 2
    stdout:
    is larger than 1KiB, the setting `job.max_size`
    1 fault
    ");
}

#[test]
fn a_job_is_read_from_the_standard_input() {
    let place = Place::new();
    let mut child =
        place.command(&["validate", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(job().to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stdout.starts_with(b"valid: "));
}

#[test]
fn a_file_that_cannot_be_read_is_answered_with_exit_code_66() {
    let place = Place::new();
    insta::assert_snapshot!(place.run(&["validate", "missing.json"]), @"
    exit 66
    stderr:
    missing.json cannot be read: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(place.run(&["submit", "."]), @"
    exit 66
    stderr:
    . cannot be read: Is a directory (os error 21)
    ");
    insta::assert_snapshot!(place.run(&["new", "missing.py"]), @"
    exit 66
    stderr:
    missing.py cannot be read: No such file or directory (os error 2)
    ");
}

#[test]
fn a_broker_that_is_away_is_answered_with_exit_code_69() {
    let place = Place::new();
    place.write("job.json", &job().to_string());
    // Port 1 is for a service that nobody runs.
    let nobody = ["--set", "broker.uri=amqp://user:s3cret@127.0.0.1:1/%2f"];
    for verb in [
        &["submit", "job.json"][..],
        &["watch"],
        &["cancel", "x"],
        &["status", "x"],
        &["jobs"],
        &["topology", "verify"],
        &["dead", "list"],
    ] {
        let ended = place.run(&[verb, &nobody].concat());
        assert_eq!(ended.code, 69, "{ended}");
        assert!(
            ended.stderr.contains("the broker at amqp://user@127.0.0.1:1/%2f cannot be reached"),
            "{ended}"
        );
        assert!(!ended.stderr.contains("s3cret"), "{ended}");
    }
}

#[test]
fn wrong_settings_are_all_told_at_once_with_exit_code_78() {
    let place = Place::new();
    place.write(
        "x.toml",
        "[retry]\nmax_atempts = 3\nmax_attempts = 0\n[broker]\nuri = 'amqp://user:s3cret@ho st'\n",
    );
    let mut command = place.command(&["--config", "x.toml", "--set", "job.keep=some", "config"]);
    command.env("SPARK_RUNTIME__WORKER__WATCHDOG", "0s");
    insta::assert_snapshot!(place.end(&mut command), @r#"
    exit 78
    stderr:
    `broker.uri` in x.toml is no broker address (invalid domain character); give amqp://user:password@host:5672/vhost, with the vhost / written as %2f
    unknown setting `retry.max_atempts` in x.toml; did you mean `retry.max_attempts`?
    `retry.max_attempts` in x.toml is 0; give a whole number from 1 to 1000
    `worker.watchdog` in SPARK_RUNTIME__WORKER__WATCHDOG is "0s"; give a duration of at least 1s such as 10s, 2m or 1h 30m
    `job.keep` in --set is "some"; give one of never, failed, always
    "#);
    place.write("broken.toml", "[broker]\nuri = \"amqp://user:s3cret@host\npassword = 1");
    insta::assert_snapshot!(place.run(&["--config", "broken.toml", "config"]), @r#"
    exit 78
    stderr:
    the settings file broken.toml is not TOML: TOML parse error at line 2, column 31: invalid basic string, expected `"`
    "#);
    insta::assert_snapshot!(place.run(&["--config", "missing.toml", "worker"]), @"
    exit 78
    stderr:
    the settings file missing.toml cannot be read: No such file or directory (os error 2)
    ");
    place.write("job.json", &job().to_string());
    insta::assert_snapshot!(place.run(&["submit", "job.json", "--set", "broker.password_file=missing"]), @"
    exit 78
    stderr:
    the password file HERE/missing cannot be read: No such file or directory (os error 2)
    ");
}

#[test]
fn the_settings_are_shown_with_where_they_come_from_and_secrets_masked() {
    let place = Place::new();
    place.write(
        "x.toml",
        "[broker]\nuri = 'amqp://user:s3cret@host:5672/%2f'\n[spark.environment]\nAWS_SECRET_ACCESS_KEY = 's3cret'\nTZ = 'UTC'\n",
    );
    let arguments =
        ["--config", "x.toml", "--set", "job.directory=/var/spark", "--set", "retry.delays=1s,90s", "config"];
    let mut command = place.command(&arguments);
    command.env("SPARK_RUNTIME__WORKER__MAX_RUNNING", "4");
    insta::assert_snapshot!(place.end(&mut command), @"
    exit 0
    stdout:
    broker.uri = amqp://user:***@host:5672/%2f     (x.toml)
    broker.password_file =                         (default)
    broker.ca_file =                               (default)
    broker.certificate_file =                      (default)
    broker.key_file =                              (default)
    broker.heartbeat = 10s                         (default)
    broker.publish_timeout = 30s                   (default)
    worker.name =                                  (default)
    worker.max_running = 4                         (SPARK_RUNTIME__WORKER__MAX_RUNNING)
    worker.max_submits = 0                         (default)
    worker.drain_grace = 10m                       (default)
    worker.watchdog = 1m                           (default)
    job.directory = /var/spark                     (--set)
    job.existing_outputs = allow                   (default)
    job.keep = failed                              (default)
    job.keep_for = 168h                            (default)
    job.submit_timeout = 5m                        (default)
    job.pending_timeout = 24h                      (default)
    job.run_timeout = 24h                          (default)
    job.kill_grace = 10s                           (default)
    job.max_size = 16MiB                           (default)
    job.inline_output = 1MiB                       (default)
    attachments.max_size = 8GiB                    (default)
    attachments.max_files = 100000                 (default)
    attachments.max_ratio = 200                    (default)
    training.upload_to =                           (default)
    training.max_files = 10000                     (default)
    storage.s3_endpoint =                          (default)
    retry.max_attempts = 3                         (default)
    retry.delays = 1s,1m 30s                       (--set)
    ledger.lease = 1m                              (default)
    ledger.retention = 168h                        (default)
    ledger.checkpoint_every = 20000                (default)
    spark.home =                                   (default)
    spark.submit =                                 (default)
    spark.master = local[*]                        (default)
    spark.master_page_port = 8080                  (default)
    spark.python =                                 (default)
    spark.policy =                                 (default)
    spark.environment.AWS_SECRET_ACCESS_KEY = ***  (x.toml)
    spark.environment.TZ = UTC                     (x.toml)
    spark.pass_environment =                       (default)
    yarn.archive = prepared                        (default)
    yarn.archive_folder =                          (default)
    yarn.folder =                                  (default)
    yarn.service =                                 (default)
    yarn.max_followed = 500                        (default)
    yarn.grace = 10s                               (default)
    yarn.lost_after = 1h                           (default)
    kubernetes.folder =                            (default)
    kubernetes.service =                           (default)
    kubernetes.namespace =                         (default)
    kubernetes.context =                           (default)
    kubernetes.image =                             (default)
    kubernetes.service_account =                   (default)
    kubernetes.keep_pods = failed                  (default)
    kubernetes.grace = 10s                         (default)
    kubernetes.lost_after = 1h                     (default)
    git.program = git                              (default)
    git.transports = file,https,ssh                (default)
    git.credentials =                              (default)
    git.timeout = 2m                               (default)
    git.max_fetch = 1GiB                           (default)
    git.max_file = 64MiB                           (default)
    git.cache_size = 4GiB                          (default)
    runtimes.file =                                (default)
    runtimes.allow =                               (default)
    runtimes.build = never                         (default)
    runtimes.builder =                             (default)
    runtimes.index =                               (default)
    runtimes.build_timeout = 10m                   (default)
    runtimes.build_size = 8GiB                     (default)
    runtimes.cache_size = 32GiB                    (default)
    runtimes.send = made                           (default)
    runtimes.others = 0s                           (default)
    records.process_below = 4MiB                   (default)
    records.frame_rows = 10000                     (default)
    records.memory = 0B                            (default)
    sql.url =                                      (default)
    sql.driver =                                   (default)
    sql.user =                                     (default)
    sql.password_file =                            (default)
    log.limit = 64MiB                              (default)
    log.tail = 8KiB                                (default)
    log.load_every = 1m                            (default)
    ");

    let mut command = place.command(&[&arguments[..], &["--json"]].concat());
    let ended = place.end(command.env("SPARK_RUNTIME__WORKER__MAX_RUNNING", "4"));
    assert!(!ended.stdout.contains("s3cret"), "{ended}");
    let listed: Vec<Value> = serde_json::from_str(&ended.stdout).unwrap();
    let of = |key: &str| listed.iter().find(|entry| entry["key"] == key).unwrap();
    let running =
        json!({"key": "worker.max_running", "value": 4, "source": "SPARK_RUNTIME__WORKER__MAX_RUNNING"});
    assert_eq!(*of("worker.max_running"), running);
    assert_eq!(
        *of("retry.delays"),
        json!({"key": "retry.delays", "value": ["1s", "1m 30s"], "source": "--set"})
    );
    assert_eq!(of("broker.uri")["value"], "amqp://user:***@host:5672/%2f");
}

#[test]
fn the_reference_of_the_settings_is_in_step_with_the_program() {
    let printed = Place::new().run(&["config", "--reference"]);
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/settings.md");
    let kept = fs::read_to_string(kept).unwrap();
    assert!(printed.stdout == kept, "write it anew: spark-runtime config --reference > deploy/settings.md");
}

#[test]
fn the_definitions_for_the_broker_are_in_step_with_the_program() {
    let printed = Place::new().run(&["topology", "definitions"]);
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rabbitmq/definitions.json");
    let kept = fs::read_to_string(kept).unwrap();
    assert!(
        printed.stdout == kept,
        "write it anew: spark-runtime topology definitions > deploy/rabbitmq/definitions.json"
    );
}

#[test]
fn a_new_job_is_made_from_a_model_and_its_data() {
    let place = Place::new();
    place.write(
        "models/titanic.py",
        "import features.columns\ndef score(i, o, m):\n    pass\ndef begin():\n    pass\n",
    );
    place.write("models/features/__init__.py", "");
    place.write("models/features/columns.py", "COLUMNS = ['age']\n");
    place.write("models/features/notes.txt", "is no source");
    place.write("thresholds.json", "{}");
    let ended = place.run(&[
        "new",
        "models/titanic.py",
        "--score=score",
        "--init=begin",
        "--source=models/features",
        "--file=thresholds.json",
        "--input=data/test.csv",
        "--input=hdfs:///data/more.parquet",
        "--output=out/scored.csv",
        "--model-file=s3a://models/titanic",
        "--conf=--executor-memory=1g",
        "--conf=-v",
        "--conf=spark.sql.shuffle.partitions=2",
    ]);
    insta::assert_snapshot!(ended, @r#"
    exit 0
    stdout:
    {
      "jobType": "MODEL_BATCH_JOB",
      "jobStatus": "CREATED",
      "model": {
        "storedModel": {
          "modelAssets": [
            {
              "name": "titanic.py",
              "assetType": "SOURCE_CODE",
              "assetRole": "MODEL_SOURCE",
              "primaryModelSource": true,
              "initFunction": "begin",
              "scoreFunction": "score",
              "sourceCode": "import features.columns\ndef score(i, o, m):\n    pass\ndef begin():\n    pass\n"
            },
            {
              "name": "__init__.py",
              "assetType": "SOURCE_CODE",
              "primaryModelSource": false,
              "sourceCodeFilePath": "features/__init__.py",
              "sourceCode": ""
            },
            {
              "name": "columns.py",
              "assetType": "SOURCE_CODE",
              "primaryModelSource": false,
              "sourceCodeFilePath": "features/columns.py",
              "sourceCode": "COLUMNS = ['age']\n"
            },
            {
              "name": "thresholds.json",
              "assetType": "FILE",
              "filename": "thresholds.json",
              "fileSize": 2,
              "fileContent": "e30="
            },
            {
              "name": "titanic",
              "assetType": "EXTERNAL_FILE",
              "fileUrl": "s3a://models/titanic",
              "filename": "titanic",
              "assetRole": "WEIGHTS_FILE"
            }
          ]
        }
      },
      "inputData": [
        {
          "name": "test.csv",
          "assetType": "EXTERNAL_FILE",
          "fileUrl": "HERE/data/test.csv",
          "filename": "test.csv",
          "fileFormat": "CSV"
        },
        {
          "name": "more.parquet",
          "assetType": "EXTERNAL_FILE",
          "fileUrl": "hdfs:///data/more.parquet",
          "filename": "more.parquet",
          "fileFormat": "PARQUET"
        }
      ],
      "outputData": [
        {
          "name": "scored.csv",
          "assetType": "EXTERNAL_FILE",
          "fileUrl": "HERE/out/scored.csv",
          "filename": "scored.csv",
          "fileFormat": "CSV"
        }
      ],
      "jobParameters": {
        "--executor-memory": "1g",
        "-v": ""
      },
      "targetEngine": {
        "engineType": "SPARK_RUNTIME",
        "sparkConf": {
          "spark.sql.shuffle.partitions": "2"
        }
      }
    }
    "#);
}

#[test]
fn a_record_model_is_known_by_its_parameters_and_judged_with_its_schema() {
    let place = Place::new();
    place
        .write("m.py", "# modelop.recordsets.0: true\n# modelop.score\ndef score(frame):\n    yield frame\n");
    place.write("row.avsc", r#"[{"name": "age", "type": "int"}, {"name": "sex", "type": "string"}]"#);
    let arguments = [
        "new",
        "m.py",
        "--input=data/in.txt",
        "--input-format=csv",
        "--output=out.jsonl",
        "--input-schema=row.avsc",
        "-o",
        "job.json",
    ];
    insta::assert_snapshot!(place.run(&arguments), @"
    exit 0
    stderr:
    score gets records or data frames, not lists: a record model
    ");
    insta::assert_snapshot!(place.run(&["validate", "job.json"]), @"
    exit 0
    stdout:
    valid: MODEL_BATCH_JOB, function score with records, 0 staged files
    slot 0: reads in.txt (CSV) as data frames, checked against a schema of 2 fields
    slot 1: writes out.jsonl (JSONL)
    ");
    // What is missing may still be added by hand, and is told.
    place.write("row.avsc", r#"[{"name": "age", "type": "integer"}]"#);
    insta::assert_snapshot!(place.run(&["new", "m.py", "--input=in.csv", "--input-schema=row.avsc", "-o", "other.json"]), @r#"
    exit 0
    stderr:
    as it is, it would be rejected: /model/storedModel/modelMetaData/inputSchema/0/schemaDefinition/0/type: "integer" is no Avro type; Avro calls it "int"
    /outputData: has no output that is used; say where to put what the model yields, or set "modelWritesOutput"
    2 faults
    "#);
}

#[test]
fn what_new_writes_is_valid_and_never_overwrites_by_accident() {
    let place = Place::new();
    place.write("m.py", "# modelop.metrics\ndef measure(i, o, m):\n    return {}\n");
    let arguments = ["new", "m.py", "--type=metrics", "--id", "-o", "job.json"];
    let ended = place.run(&arguments);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (0, "", ""));
    insta::assert_snapshot!(place.run(&["validate", "job.json"]), @"
    exit 0
    stdout:
    valid: MODEL_BATCH_TEST_JOB, function measure with three lists, 0 staged files
    ");
    let first = fs::read_to_string(place.path().join("job.json")).unwrap();
    insta::assert_snapshot!(place.run(&arguments), @"
    exit 73
    stderr:
    job.json cannot be written: it is there already; --force overwrites it
    ");
    assert_eq!(fs::read_to_string(place.path().join("job.json")).unwrap(), first);
    assert_eq!(place.run(&[&arguments[..], &["--force"]].concat()).code, 0);
    assert_ne!(fs::read_to_string(place.path().join("job.json")).unwrap(), first, "the id is random");
    let mut names: Vec<_> =
        fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["job.json", "m.py"]);
}

#[test]
fn new_refuses_what_would_be_no_job() {
    let place = Place::new();
    place.write("m.py", "def score(i, o, m):\n    pass\n");
    place.write("pyspark.py", "");
    place.write("con", "");
    insta::assert_snapshot!(place.run(&["new", "m.py", "--source=pyspark.py", "--file=con"]), @r#"
    exit 2
    stderr:
    /model/storedModel/modelAssets/1/sourceCodeFilePath: "pyspark.py" would stand in front of the module pyspark, which the driver needs; choose another name
    /model/storedModel/modelAssets/2/filename: "con" is the name of a device on Windows (con)
    2 faults; not written
    "#);
    insta::assert_snapshot!(place.run(&["new", "m.py", "--conf=executor-memory=1g"]), @r#"
    exit 64
    stderr:
    --conf "executor-memory=1g": give a flag such as --executor-memory=1g or a property such as spark.executor.memory=1g
    "#);
    insta::assert_snapshot!(place.run(&["new", "m.py", "--score=f", "--metrics=g"]), @"
    exit 64
    stderr:
    error: the argument '--score <FUNCTION>' cannot be used with '--metrics <FUNCTION>'

    Usage: spark-runtime new --score <FUNCTION> <MODEL.py>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(place.run(&["new", "m.py", "-o", "no/such/folder.json"]), @"
    exit 73
    stderr:
    no/such/folder.json cannot be written: No such file or directory (os error 2)
    ");
}

#[test]
fn the_schemas_are_printed_as_json() {
    let place = Place::new();
    for what in ["job", "event", "command", "answer", "asyncapi"] {
        let ended = place.run(&["schema", what]);
        assert_eq!(ended.code, 0, "{ended}");
        assert!(serde_json::from_str::<Value>(&ended.stdout).unwrap().is_object(), "{what}");
    }
}

#[test]
fn completions_are_printed_for_a_shell() {
    let place = Place::new();
    for (shell, word) in
        [("bash", "complete -F"), ("zsh", "#compdef spark-runtime"), ("fish", "complete -c spark-runtime")]
    {
        let ended = place.run(&["completions", shell]);
        assert_eq!(ended.code, 0, "{ended}");
        assert!(ended.stdout.contains(word) && ended.stdout.contains("submit"), "{shell}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_program_quietly() {
    let place = Place::new();
    for arguments in
        [&["config", "--reference"][..], &["completions", "bash"], &["schema", "job"], &["--help"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = place.command(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_answered_with_exit_code_73() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Place::new().command(&["config"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(73));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("the standard output cannot be written: "));
}
