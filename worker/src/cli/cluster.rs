//! `spark-runtime cluster`: put what jobs on YARN need of Spark on the cluster, once for each release, and make what lets
//! launchers start faster.

use std::time::Duration;

use bytesize::ByteSize;
use clap::ValueEnum;
use serde_json::{Value, json};

use super::{CliError, Exit, output, render};
use crate::config::Settings;
use crate::spark::archive::{ARCHIVE, Archives, Done, PYTHON_ARCHIVES, cache_folder};
use crate::spark::class_data::{ClassData, ClassDataError, Made};
use crate::spark::installation::{Environment, Installation};
use crate::storage::once::Put;

/// Arguments of `cluster`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Run it after an installation or an upgrade of Spark, for each Spark that jobs run with. It changes \
                        nothing that is there, so that it can be run at any time and by several at once.\n\n\
                        Submissions of jobs on YARN find what is there by themselves; see the settings yarn.archive and \
                        yarn.archive_folder."
)]
pub(super) struct Args {
    /// What to do.
    action: Action,
    /// Print JSON: an object with `sparkVersion`, `archive`, `properties`, `environment`, `classData`, `notes` and
    /// `seconds`.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Upload the jars of Spark as one archive, and make the class data of launchers on this machine.
    Prepare,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<Exit, CliError> {
    match args.action {
        Action::Prepare => prepare(&args, &settings).await,
    }
}

async fn prepare(args: &Args, settings: &Settings) -> Result<Exit, CliError> {
    let installation = Installation::find(&settings.spark)?;
    let done = Archives::of(settings).prepare(&installation).await?;
    let environment = Environment::of(&settings.spark, Some(&installation));
    let class_data = ClassData::new(cache_folder(&settings.job.directory));
    let property = [(ARCHIVE, done.prepared.archive.as_str())];
    // It costs launchers some seconds, and nothing else.
    let made = class_data.make(&installation, &environment, &property).await;
    let notes = notes(&done, &made, settings.yarn.uses_archive);
    if args.json {
        output::json(&document(&done, &made, &notes))?;
    } else {
        output::line(&render::plain(&words(&done, &made, &notes)))?;
    }
    Ok(Exit::Ok)
}

fn notes(done: &Done, made: &Result<Made, ClassDataError>, is_used: bool) -> Vec<String> {
    let closed = done.closed.as_ref().map(|closed| {
        format!(
            "{closed} is closed to others: jobs of other users cannot use the archive, and a node of the cluster keeps a \
             copy for each user"
        )
    });
    let no_class_data =
        made.as_ref().err().map(|error| format!("launchers start without class data: {error}"));
    let unused = (!is_used).then(|| "jobs are not given the archive, by the setting yarn.archive".to_owned());
    let others = (!done.others.is_empty()).then(|| {
        let (bytes, urls) = (done.others.iter().map(|(_, size)| size).sum(), done.others.iter().map(|(url, _)| url.as_str()));
        format!(
            "{} of other installations are there as well, {}; what no worker and no running job uses any more can be removed: {}",
            render::count(done.others.len(), "archive"),
            size(bytes),
            urls.collect::<Vec<_>>().join(", ")
        )
    });
    [closed, no_class_data, unused, others].into_iter().flatten().collect()
}

fn words(done: &Done, made: &Result<Made, ClassDataError>, notes: &[String]) -> String {
    let url = &done.prepared.archive;
    let mut lines = vec![match done.put {
        Put::Uploaded => format!("made and uploaded {url}, {}, in {}", size(done.size), seconds(done.took)),
        Put::There => format!("{url} is there already, {}", size(done.size)),
    }];
    lines.push(format!("{ARCHIVE}={url}"));
    if let Some(python) = done.prepared.python_archives() {
        lines.push(format!("{PYTHON_ARCHIVES}={python}"));
    }
    if let Ok(made) = made {
        let verb = if made.was_there { "there already" } else { "made" };
        lines.push(format!("class data of launchers: {verb}, {}, {}", made.path.display(), size(made.size)));
    }
    lines.extend(notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}

fn document(done: &Done, made: &Result<Made, ClassDataError>, notes: &[String]) -> Value {
    let class_data = made.as_ref().ok().map(
        |made| json!({"path": made.path.display().to_string(), "size": made.size, "made": !made.was_there}),
    );
    let mut environment = json!({});
    if let Some(python) = done.prepared.python_archives() {
        environment[PYTHON_ARCHIVES] = json!(python);
    }
    json!({
        "sparkVersion": done.version,
        "archive": {"url": done.prepared.archive, "size": done.size, "uploaded": done.put == Put::Uploaded},
        "properties": {ARCHIVE: done.prepared.archive},
        "environment": environment,
        "classData": class_data,
        "notes": notes,
        "seconds": done.took.as_secs_f64(),
    })
}

fn size(bytes: u64) -> String {
    format!("{:.0}", ByteSize(bytes).display().iec())
}

fn seconds(took: Duration) -> String {
    if took < Duration::from_secs(1) {
        format!("{} ms", took.as_millis())
    } else {
        format!("{} s", took.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spark::archive::Prepared;

    fn done(put: Put, closed: Option<&str>) -> Done {
        Done {
            version: "4.3.0".to_owned(),
            prepared: Prepared {
                archive: "hdfs://nn/s/spark-archive-4.3.0-ab.zip".to_owned(),
                python: vec!["hdfs://nn/s/p.zip".to_owned(), "hdfs://nn/s/j.zip".to_owned()],
            },
            size: 402 << 20,
            put,
            closed: closed.map(str::to_owned),
            others: Vec::new(),
            took: Duration::from_millis(12_300),
        }
    }

    #[test]
    fn what_was_done_is_told_in_words_and_as_json() {
        let made = Ok(Made { path: "/c/launcher-1.jsa".into(), size: 60 << 20, was_there: false });
        let first = done(Put::Uploaded, Some("/user/ann"));
        let told = notes(&first, &made, true);
        insta::assert_snapshot!(words(&first, &made, &told), @r"
        made and uploaded hdfs://nn/s/spark-archive-4.3.0-ab.zip, 402 MiB, in 12 s
        spark.yarn.archive=hdfs://nn/s/spark-archive-4.3.0-ab.zip
        PYSPARK_ARCHIVES_PATH=hdfs://nn/s/p.zip,hdfs://nn/s/j.zip
        class data of launchers: made, /c/launcher-1.jsa, 60 MiB
        note: /user/ann is closed to others: jobs of other users cannot use the archive, and a node of the cluster keeps a copy for each user
        ");
        assert_eq!(
            document(&first, &made, &told),
            json!({
                "sparkVersion": "4.3.0",
                "archive": {"url": "hdfs://nn/s/spark-archive-4.3.0-ab.zip", "size": 402 << 20, "uploaded": true},
                "properties": {"spark.yarn.archive": "hdfs://nn/s/spark-archive-4.3.0-ab.zip"},
                "environment": {"PYSPARK_ARCHIVES_PATH": "hdfs://nn/s/p.zip,hdfs://nn/s/j.zip"},
                "classData": {"path": "/c/launcher-1.jsa", "size": 60 << 20, "made": true},
                "notes": told,
                "seconds": 12.3,
            })
        );
        let none = Err(ClassDataError::NoJava);
        let old = ["4.1.0", "4.2.0"]
            .map(|version| (format!("hdfs://nn/s/spark-archive-{version}-cd.zip"), 400 << 20));
        let again = Done { others: old.into(), ..done(Put::There, None) };
        let told = notes(&again, &none, false);
        insta::assert_snapshot!(words(&again, &none, &told), @r"
        hdfs://nn/s/spark-archive-4.3.0-ab.zip is there already, 402 MiB
        spark.yarn.archive=hdfs://nn/s/spark-archive-4.3.0-ab.zip
        PYSPARK_ARCHIVES_PATH=hdfs://nn/s/p.zip,hdfs://nn/s/j.zip
        note: launchers start without class data: there is no java, neither in JAVA_HOME nor on the PATH
        note: jobs are not given the archive, by the setting yarn.archive
        note: 2 archives of other installations are there as well, 800 MiB; what no worker and no running job uses any more can be removed: hdfs://nn/s/spark-archive-4.1.0-cd.zip, hdfs://nn/s/spark-archive-4.2.0-cd.zip
        ");
        assert_eq!(document(&again, &none, &told)["classData"], Value::Null);
    }
}
