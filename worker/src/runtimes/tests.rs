//! Runtimes made by the test itself: Pythons that look for packages in folders of their own.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::requirements::{List, read};
use super::*;
use crate::config::Sources;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A Python that has these packages beside its own, each as `name==version`; its program.
    fn python(&self, name: &str, packages: &[&str]) -> PathBuf {
        let folder = self.path(name);
        for package in packages {
            install(&folder, package);
        }
        let program = self.path(&format!("{name}.sh"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(
            &program,
            format!("#!/bin/sh\nPYTHONPATH='{}' exec python3 \"$@\"\n", folder.display()),
        )
        .unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        program
    }

    /// Runtimes with the default one and these, by their names.
    fn runtimes(&self, settings: &[&str], default: &[&str], more: &[(&str, &[&str])]) -> Runtimes {
        let listed = more.iter().map(|(name, packages)| Listed {
            name: (*name).to_owned(),
            python: listed::Place::Program(self.python(name, packages)),
            spark_home: None,
        });
        self.with_listed(settings, default, listed.collect())
    }

    fn with_listed(&self, settings: &[&str], default: &[&str], listed: Vec<Listed>) -> Runtimes {
        let python = format!("spark.python={}", self.python("own", default).display());
        // There is no Spark.
        let home = format!("spark.home={}", self.folder.path().display());
        let overrides = settings.iter().map(|text| (*text).to_owned()).chain([python, home]).collect();
        let settings = Settings::load(&Sources { overrides, ..Sources::default() }).unwrap();
        Runtimes::new(&settings.runtimes, &settings.spark, listed, self.path("made"))
    }

    /// A wheel of a package with nothing in it but its version.
    fn wheel(&self, name: &str, version: &str, requires: &[&str]) {
        std::fs::create_dir_all(self.path("wheels")).unwrap();
        let file =
            std::fs::File::create(self.path(&format!("wheels/{name}-{version}-py3-none-any.whl"))).unwrap();
        let mut wheel = zip::ZipWriter::new(file);
        let options =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        let info = format!("{name}-{version}.dist-info");
        let requires: String = requires.iter().map(|line| format!("Requires-Dist: {line}\n")).collect();
        for (path, text) in [
            (format!("{name}.py"), format!("VERSION = {version:?}\n")),
            (
                format!("{info}/METADATA"),
                format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"),
            ),
            (
                format!("{info}/WHEEL"),
                "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n".into(),
            ),
            (
                format!("{info}/RECORD"),
                format!("{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"),
            ),
        ] {
            wheel.start_file(path, options).unwrap();
            wheel.write_all(text.as_bytes()).unwrap();
        }
        wheel.finish().unwrap();
    }
}

fn install(folder: &Path, package: &str) {
    let (name, version) = package.split_once("==").unwrap();
    let info = folder.join(format!("{name}-{version}.dist-info"));
    std::fs::create_dir_all(&info).unwrap();
    std::fs::write(
        info.join("METADATA"),
        format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"),
    )
    .unwrap();
}

fn wanted(text: &str) -> Requirements {
    let list = List {
        pointer: "/r".to_owned(),
        path: "requirements.txt".to_owned(),
        content: text.as_bytes().to_vec(),
    };
    read(&[list], &BTreeSet::new(), &|_| None).unwrap()
}

fn messages(error: ChooseError) -> Vec<String> {
    match error {
        ChooseError::Unfit(faults) | ChooseError::Impossible(faults) => {
            faults.into_iter().map(|fault| fault.message).collect()
        }
        ChooseError::NotMade(words) => panic!("not made: {words}"),
    }
}

#[tokio::test]
async fn the_first_runtime_that_has_all_that_is_required_runs_the_job() {
    let place = Place::new();
    let runtimes = place.runtimes(
        &[],
        &["zz-one==1"],
        &[("a", &["zz-one==1", "zz-two==1"]), ("b", &["zz-one==2", "zz-two==2"]), ("c", &["zz-two==2"])],
    );
    for (requirements, name) in [
        ("# nothing\n", "default"),
        ("zz_one\n", "default"),
        ("ZZ.One>=1\nzz-two\n", "a"),
        ("zz-two>=2\n", "b"),
        ("zz-two>=2\nzz-one<2; python_version < '3'\n", "b"),
    ] {
        let runtime = runtimes.choose(&wanted(requirements)).await.unwrap();
        assert_eq!(runtime.used.name, name, "{requirements}");
        let python = runtime.spark.and_then(|spark| spark.python);
        assert_eq!(python, (name != "default").then(|| place.path(&format!("{name}.sh"))), "{requirements}");
    }
}

#[tokio::test]
async fn a_job_that_no_runtime_fits_is_told_each_requirement_and_why() {
    let place = Place::new();
    let runtimes = place.runtimes(&[], &["zz-one==1"], &[("a", &["zz-two==1.5"])]);
    let error = runtimes.choose(&wanted("zz-one\n\nzz-two>=2\nzz-three\n")).await.unwrap_err();
    assert!(matches!(error, ChooseError::Unfit(_)));
    assert_eq!(
        messages(error),
        [
            "line 3: zz-two>=2 is met by no runtime here: default has none, a has 1.5",
            "line 4: zz-three is met by no runtime here: default has none, a has none"
        ]
    );
    assert_eq!(
        messages(runtimes.choose(&wanted("zz-one\nzz-two\n")).await.unwrap_err()),
        [
            "no runtime here meets all of these requirements: default does not meet line 2: zz-two, a does not meet line 1: zz-one"
        ]
    );
}

#[tokio::test]
async fn what_is_installed_or_removed_meanwhile_counts() {
    let place = Place::new();
    let runtimes = place.runtimes(&[], &[], &[("a", &[])]);
    let requirement = wanted("zz-one\n");
    runtimes.choose(&requirement).await.unwrap_err();
    install(&place.path("a"), "zz-one==1");
    assert_eq!(runtimes.choose(&requirement).await.unwrap().used.name, "a");
    std::fs::remove_dir_all(place.path("a/zz-one-1.dist-info")).unwrap();
    runtimes.choose(&requirement).await.unwrap_err();
}

#[tokio::test]
async fn a_runtime_that_cannot_be_used_keeps_none_of_the_others_from_being_used() {
    let place = Place::new();
    let broken = Listed {
        name: "broken".to_owned(),
        python: listed::Place::Program("/nowhere/python".into()),
        spark_home: None,
    };
    let good = Listed {
        name: "good".to_owned(),
        python: listed::Place::Program(place.python("good", &["zz-one==1"])),
        spark_home: None,
    };
    let runtimes = place.with_listed(&[], &[], vec![broken, good]);
    assert_eq!(runtimes.choose(&wanted("zz-one\n")).await.unwrap().used.name, "good");
    let faults = messages(runtimes.choose(&wanted("zz-two\n")).await.unwrap_err());
    assert_eq!(
        faults,
        ["line 1: zz-two is met by no runtime here: default has none, broken cannot be used, good has none"]
    );
}

#[tokio::test]
async fn a_packed_environment_is_unpacked_once_and_used() {
    let place = Place::new();
    let environment = place.path("packed");
    let made = std::process::Command::new("python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(&environment)
        .status();
    assert!(made.unwrap().success());
    let packages = std::fs::read_dir(environment.join("lib")).unwrap().next().unwrap().unwrap().path();
    install(&packages.join("site-packages"), "zz-packed==1");
    let archive = place.path("packed.tar.gz");
    let tar = std::process::Command::new("tar")
        .arg("-czf")
        .arg(&archive)
        .arg("-C")
        .arg(&environment)
        .arg(".")
        .status();
    assert!(tar.unwrap().success());
    let listed = || {
        vec![Listed {
            name: "p".to_owned(),
            python: listed::Place::Packed(archive.clone()),
            spark_home: None,
        }]
    };
    let first = place.with_listed(&[], &[], listed());
    let runtime = first.choose(&wanted("zz-packed\n")).await.unwrap();
    let python = runtime.spark.unwrap().python.unwrap();
    assert!(python.starts_with(place.path("made")) && python.exists());
    // Another worker finds what the first one has unpacked, and unpacks nothing.
    std::fs::write(python.parent().unwrap().join("mark"), "").unwrap();
    let second = place.with_listed(&[], &[], listed());
    let again = second.choose(&wanted("zz-packed\n")).await.unwrap().spark.unwrap().python.unwrap();
    assert_eq!(again, python);
    assert!(again.parent().unwrap().join("mark").exists());
}

#[tokio::test]
async fn a_runtime_is_built_once_of_what_is_required_and_of_nothing_that_cannot_be_had() {
    let place = Place::new();
    place.wheel("zz_built", "1.5", &["zz_needed>=1"]);
    place.wheel("zz_needed", "1.0", &[]);
    let index = format!("runtimes.index={}", place.path("wheels").display());
    let settings = ["runtimes.build=wheels", "runtimes.builder=pip", &index];
    let runtimes = place.runtimes(&settings, &[], &[]);
    let requirements = "zz-built>=1\nzz-built ; sys_platform == 'win32'\n";
    let runtime = runtimes.choose(&wanted(requirements)).await.unwrap();
    assert!(runtime.used.name.starts_with("built-"), "{:?}", runtime.used);
    let python = runtime.spark.unwrap().python.unwrap();
    let output = std::process::Command::new(&python)
        .args(["-c", "import zz_built, zz_needed; print(zz_built.VERSION)"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1.5");
    // Another worker, with the same in another order, and no packages to be had any more.
    std::fs::remove_dir_all(place.path("wheels")).unwrap();
    std::fs::create_dir(place.path("wheels")).unwrap();
    let other = place.runtimes(&settings, &[], &[]);
    let again = other.choose(&wanted("# again\nZZ.built >= 1\n")).await.unwrap();
    assert_eq!(again.spark.unwrap().python.unwrap(), python);
    let faults = messages(other.choose(&wanted("zz-missing\n")).await.unwrap_err());
    assert!(faults[0].contains("No matching distribution found for zz-missing"), "{faults:?}");
    let made: Vec<_> =
        std::fs::read_dir(place.path("made")).unwrap().flatten().filter(|e| e.path().is_dir()).collect();
    assert_eq!(made.len(), 1);
}

#[tokio::test]
async fn building_is_given_up_in_time_and_leaves_nothing() {
    let place = Place::new();
    let settings = ["runtimes.build=wheels", "runtimes.builder=pip", "runtimes.build_timeout=1s"];
    let slow = place.runtimes(&settings, &[], &[]);
    // Others make theirs for ever.
    std::fs::create_dir(place.path("made")).unwrap();
    let file = std::fs::File::create(place.path("made/maker.lock")).unwrap();
    let _held = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let started = Instant::now();
    let error = slow.choose(&wanted("zz-one\n")).await.unwrap_err();
    assert!(matches!(error, ChooseError::NotMade(_)), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(60));
    assert!(std::fs::read_dir(place.path("made")).unwrap().flatten().all(|entry| !entry.path().is_dir()));
}
