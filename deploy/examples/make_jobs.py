#!/usr/bin/env python3
"""Makes jobs that can be run or published, with the data they work on.

    deploy/examples/make_jobs.py FOLDER

writes into FOLDER, below ``data``, a passenger list, e-mails and applications for loans, made up from fixed seeds, and

    training.json        MODEL_BATCH_TRAINING_JOB  trains a random forest with Spark ML and saves it as FOLDER/trained
    scoring.json         MODEL_BATCH_JOB           scores passengers with it into FOLDER/scored
    metrics.json         MODEL_BATCH_TEST_JOB      measures it on the same passengers
    failing.json         MODEL_BATCH_JOB           raises a ValueError in a helper
    invalid.json                                   cannot be run, for several reasons
    email-training.json  MODEL_BATCH_TRAINING_JOB  trains a classifier of e-mails; its files go to FOLDER/trained-email
    email-scoring.json   MODEL_BATCH_JOB           judges new e-mails with it, one record after the other
    email-metrics.json   MODEL_BATCH_TEST_JOB      gives its ROC curve and more
    roles-scoring.json   MODEL_BATCH_JOB           judges 100 applications, 3 of which the schema rejects
    roles-metrics.json   MODEL_BATCH_TEST_JOB      compares their incomes with former ones, on Spark
    git.json             MODEL_BATCH_JOB           the same as roles-scoring.json, from the repository FOLDER/models.git

Scoring and metrics need what was trained, so a training job goes first. Every run gives the jobs new ids: a job id that
was settled once is not run again.

    deploy/examples/make_jobs.py FOLDER --yarn hdfs://HOST:PORT/PLACE

writes the first five alone, for a YARN in cluster mode: their data is looked for in PLACE of that HDFS, where FOLDER/data
has to be copied to, and what they make goes there.
"""

import argparse
import base64
import csv
import json
import math
import random
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "email"))

from make_emails import write_emails

SEED = 20260301
PASSENGERS = 2000
HELD_OUT = 500
APPLICATIONS = 100
FORMER_APPLICATIONS = 400

COLUMNS = ["passenger_id", "cabin_class", "sex", "age", "relatives", "fare", "port", "survived"]


def make_passenger(number, dice):
    """One line of the list; whether somebody survives depends on the rest, so that there is something to learn."""
    cabin_class = dice.choices([1, 2, 3], weights=[22, 23, 55])[0]
    sex = dice.choices(["female", "male"], weights=[38, 62])[0]
    age = round(min(78, max(1, dice.gauss(36 - 4 * cabin_class, 14))), 1)
    relatives = min(6, int(dice.expovariate(1.1)))
    fare = round(math.exp(dice.gauss(5.1 - 0.85 * cabin_class, 0.35)) * (1 + 0.4 * relatives), 2)
    port = dice.choices(["Alderney", "Brest", "Cork"], weights=[60, 25, 15])[0]
    leaning = 1.6 - 0.95 * (cabin_class - 1) - 0.022 * age - 0.2 * max(0, relatives - 2)
    leaning += 1.5 if sex == "female" else -0.9
    survived = int(dice.random() < 1 / (1 + math.exp(-leaning)))
    # A fifth of the ages is unknown, as in every real list.
    return [number, cabin_class, sex, "" if dice.random() < 0.2 else age, relatives, fare, port, survived]


def make_application(number, dice, usual_income):
    income = round(dice.lognormvariate(math.log(usual_income), 0.4), 2)
    payments = round(income * dice.uniform(0.1, 0.6), 2)
    return {"applicant": number, "income": income, "payments": payments, "purpose": dice.choice(["car", "house"])}


def write_applications(folder):
    """Former applications as CSV, and a hundred new ones, as CSV too and as JSON lines with three that do not fit."""
    dice = random.Random(SEED + 1)
    former = [make_application(number, dice, 3000) for number in range(1, FORMER_APPLICATIONS + 1)]
    new = [make_application(number, dice, 3400) for number in range(1001, 1001 + APPLICATIONS)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("former_applications.csv", former), ("applications.csv", new)):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["applicant", "income", "payments", "purpose"])
            writer.writeheader()
            writer.writerows(rows)
    new[17]["income"] = "about 3000"
    new[41]["payments"] = None
    del new[76]["purpose"]
    with open(folder / "applications.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in new)


def write_passengers(folder):
    dice = random.Random(SEED)
    passengers = [make_passenger(number, dice) for number in range(1, PASSENGERS + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train.csv", passengers[HELD_OUT:]), ("holdout.csv", passengers[:HELD_OUT])):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows)


def primary_source(path, **functions):
    """The asset of the model's own file; ``functions`` are keys such as scoreFunction."""
    return {
        "name": path.name,
        "assetType": "SOURCE_CODE",
        "assetRole": "MODEL_SOURCE",
        "primaryModelSource": True,
        **functions,
        "sourceCode": path.read_text(encoding="utf-8"),
    }


def secondary_sources(package):
    """The assets of a package that the model imports, with those in its sub-folders."""
    return [
        {
            "name": path.name,
            "assetType": "SOURCE_CODE",
            "primaryModelSource": False,
            "sourceCodeFilePath": str(path.relative_to(package.parent)),
            "sourceCode": path.read_text(encoding="utf-8"),
        }
        for path in sorted(package.rglob("*.py"))
    ]


def inner_file(path, role="REQUIRED_ASSETS", filename=None):
    """The asset of a file that travels inside the job; ``filename`` is where the model finds it."""
    content = path.read_bytes()
    return {
        "name": path.name,
        "assetType": "FILE",
        "assetRole": role,
        "filename": filename or path.name,
        "fileContent": base64.b64encode(content).decode("ascii"),
        "fileSize": len(content),
    }


def from_git(asset, path, info):
    """The same asset, to be fetched from a repository, in which its file is ``path``."""
    kept = {key: value for key, value in asset.items() if key not in ("sourceCode", "fileContent", "fileSize")}
    return {**kept, "repositoryInfo": {**info, "filePath": path}}


def external_file(place, role, file_format=None):
    """The asset of a file or folder that stays where it is: at a path, or behind a URL."""
    url = str(place)
    name = url.rsplit("/", 1)[-1]
    asset = {
        "name": name,
        "assetType": "EXTERNAL_FILE",
        "assetRole": role,
        "fileUrl": url,
        "filename": name,
        # A path without a scheme is in the file system that Hadoop's configuration names, else on this machine.
        "repositoryInfo": {"repositoryType": "HDFS_REPOSITORY", "host": "", "port": 0},
    }
    if file_format:
        asset["fileFormat"] = file_format
    return asset


def make_job(job_type, model_assets, input_data, output_data, master):
    return {
        "id": str(uuid.uuid4()),
        "jobType": job_type,
        "jobStatus": "CREATED",
        "model": {
            "storedModel": {
                "modelAssets": model_assets,
                "modelMetaData": {"type": "PYSPARK", "inputSchema": [], "outputSchema": []},
            }
        },
        "jobParameters": {
            "--driver-memory": "1g",
            "--executor-memory": "512MB",
            "--total-executor-cores": "10",
            "-v": "",
        },
        "inputData": input_data,
        "outputData": output_data,
        "targetEngine": {
            "engineType": "SPARK_RUNTIME",
            "name": "spark-runtime",
            "executorMemory": "512MB",
            "sparkConf": {
                "--master": master,
                # So little data needs few partitions, and nobody looks at the page of so short a run.
                "spark.sql.shuffle.partitions": "2",
                "spark.ui.enabled": "false",
                # It is over before code from the optimising compiler would pay for its making.
                "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
            },
        },
    }


def make_invalid_job():
    """Nothing of it can be run, and the refusal is to name every reason at once."""
    return {
        "id": str(uuid.uuid4()),
        "jobType": "MODEL_BATCH_GUESSING_JOB",
        "jobStatus": "CREATED",
        "model": {
            "storedModel": {
                "modelAssets": [
                    {
                        "name": "helper.py",
                        "assetType": "SOURCE_CODE",
                        "primaryModelSource": False,
                        "sourceCode": "ANSWER = 42\n",
                    },
                    {
                        "name": "broken.bin",
                        "assetType": "FILE",
                        "filename": "broken.bin",
                        "fileContent": "this is not base64!",
                    },
                    {
                        "name": "escape.txt",
                        "assetType": "FILE",
                        "filename": "../../escape.txt",
                        "fileContent": base64.b64encode(b"out of bounds").decode("ascii"),
                    },
                ]
            }
        },
        "inputData": [],
        "outputData": [],
    }


def make_jobs(folder, master):
    """The jobs by name; ``folder`` is where their data lies, as an absolute path."""
    return {
        **make_forest_jobs(folder / "data", folder, master),
        **make_email_jobs(folder, master),
        **make_roles_jobs(folder, master),
    }


def make_yarn_jobs(place):
    """The jobs of the random forest for a YARN in cluster mode; ``place`` is a folder of its HDFS, as a URL."""
    # What they read is named by URLs, and what they make by the paths in them: in a cluster both mean the same.
    jobs = make_forest_jobs(f"{place}/data", urlsplit(place).path, "yarn")
    for job in jobs.values():
        if "targetEngine" in job:
            job["jobParameters"].update({"--driver-memory": "512m", "--num-executors": "1"})
            job["targetEngine"]["sparkConf"]["--deploy-mode"] = "cluster"
            job["targetEngine"]["sparkConf"]["spark.executor.extraJavaOptions"] = "-XX:TieredStopAtLevel=1"
    return jobs


def make_forest_jobs(data, made, master):
    """Training, scoring and metrics of a random forest, and two that fail; ``data`` and ``made`` are paths or URLs."""
    features = secondary_sources(HERE / "features")
    train = external_file(f"{data}/train.csv", "TRAINING_DATA", "CSV")
    holdout = external_file(f"{data}/holdout.csv", "TEST_DATA", "CSV")
    trained = external_file(f"{made}/trained", "WEIGHTS_FILE")
    summary = {"name": "summary.json", "assetType": "FILE", "filename": "summary.json", "fileFormat": "JSON"}

    training_assets = [primary_source(HERE / "training" / "survival_training.py"), *features]
    scoring_assets = [
        primary_source(
            HERE / "scoring" / "survival_scoring.py", initFunction="read_thresholds", scoreFunction="score_passengers"
        ),
        *features,
        inner_file(HERE / "scoring" / "thresholds.json"),
        trained,
    ]
    metrics_assets = [
        primary_source(HERE / "metrics" / "survival_metrics.py", metricsFunction="measure"),
        *features,
        trained,
    ]
    failing_assets = [
        primary_source(HERE / "failing" / "failing_rules.py"),
        *secondary_sources(HERE / "failing" / "survival_rules"),
        inner_file(HERE / "failing" / "settings.json"),
    ]
    scored = external_file(f"{made}/scored", "UNKNOWN", "CSV")
    return {
        "training": make_job("MODEL_BATCH_TRAINING_JOB", training_assets, [train], [trained], master),
        "scoring": make_job("MODEL_BATCH_JOB", scoring_assets, [holdout], [scored, summary], master),
        "metrics": make_job("MODEL_BATCH_TEST_JOB", metrics_assets, [holdout], [], master),
        "failing": make_job("MODEL_BATCH_JOB", failing_assets, [holdout], [], master),
        "invalid": make_invalid_job(),
    }


def make_email_jobs(folder, master):
    """Training, scoring and metrics of the classifier of e-mails; its functions are found by their smart tags."""
    email = HERE / "email"
    model = [
        primary_source(email / "email_classifier.py"),
        inner_file(email / "requirements.txt", "REQUIRED_LIBRARIES"),
        inner_file(email / "input_schema.avsc", "MODEL_SCHEMA"),
        inner_file(email / "output_schema.avsc", "MODEL_SCHEMA"),
    ]
    emails = external_file(folder / "data" / "emails.csv", "TRAINING_DATA", "CSV")
    new_emails = external_file(folder / "data" / "new_emails.csv", "TEST_DATA", "CSV")
    training = make_job("MODEL_BATCH_TRAINING_JOB", model, [emails], [], master)
    training["trainingOutput"] = {"fileUrl": str(folder / "trained-email")}
    # Each training job has a folder of its own; the event that ends it names the files in it.
    artifacts = folder / "trained-email" / training["id"] / "lasso_model_artifacts.pkl"
    trained_model = [*model, external_file(artifacts, "WEIGHTS_FILE")]
    judged = {"name": "judged.jsonl", "assetType": "FILE", "filename": "judged.jsonl", "fileFormat": "JSONL"}
    scoring = make_job("MODEL_BATCH_JOB", trained_model, [new_emails], [judged], master)
    scoring["enableInputSchemaChecking"] = scoring["enableOutputSchemaChecking"] = True
    metrics = make_job("MODEL_BATCH_TEST_JOB", trained_model, [new_emails], [], master)
    jobs = {"email-training": training, "email-scoring": scoring, "email-metrics": metrics}
    for job in jobs.values():
        job["model"]["storedModel"]["modelMetaData"]["type"] = "PYTHON"
    return jobs


def make_roles_jobs(folder, master):
    """A model that looks for its inputs by their roles, inside the jobs and from a repository."""
    roles = HERE / "roles"
    limits = inner_file(roles / "rules" / "limits.json", filename="rules/limits.json")
    schema = inner_file(roles / "application.avsc", "MODEL_SCHEMA")
    model = [primary_source(roles / "credit_model.py"), *secondary_sources(roles / "credit"), limits, schema]
    former = external_file(folder / "data" / "former_applications.csv", "BASELINE_DATA", "CSV")
    new = external_file(folder / "data" / "applications.csv", "COMPARATOR_DATA", "CSV")
    to_judge = external_file(folder / "data" / "applications.jsonl", "TEST_DATA", "JSONL")
    judged = {"name": "judged.jsonl", "assetType": "FILE", "filename": "judged.jsonl", "fileFormat": "JSONL"}

    scoring = make_job("MODEL_BATCH_JOB", model, [to_judge, former], [judged], master)
    scoring["enableInputSchemaChecking"] = True
    metrics = make_job("MODEL_BATCH_TEST_JOB", model, [new, former], [], master)

    info = {
        "repositoryType": "GIT_REPO",
        "repositoryRemote": str(folder / "models.git"),
        "repositoryBranch": "main",
    }
    places = ["sourceCodeFilePath", "filename", "name"]
    paths = [next(asset[key] for key in places if key in asset) for asset in model]
    in_git = [from_git(asset, f"roles/{path}", info) for asset, path in zip(model, paths)]
    git = make_job("MODEL_BATCH_JOB", in_git, [to_judge, former], [judged], master)
    git["enableInputSchemaChecking"] = True
    return {"roles-scoring": scoring, "roles-metrics": metrics, "git": git}


def write_repository(folder):
    """A bare repository with the files of the model ``roles`` on its branch ``main``."""
    files = [str(path) for path in sorted((HERE / "roles").rglob("*")) if path.suffix in (".py", ".json", ".avsc")]
    settings = ["user.name=examples", "user.email=examples@localhost", "commit.gpgsign=false"]
    git = ["git", f"--git-dir={folder}", f"--work-tree={HERE}"]
    git += [word for setting in settings for word in ("-c", setting)]
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(folder)], check=True)
    subprocess.run([*git, "add", "--", *files], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=A model of credits"], check=True)


def main():
    parser = argparse.ArgumentParser(description="Makes jobs that can be run or published, with their data.")
    parser.add_argument("folder", type=Path, help="where the jobs and their data go")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--master", default="local[2]", help="where Spark runs them (default: %(default)s)")
    where.add_argument("--yarn", metavar="URL", help="they run on YARN, with their data in this folder of its HDFS")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    write_passengers(folder / "data")
    if arguments.yarn:
        jobs = make_yarn_jobs(arguments.yarn.rstrip("/"))
    else:
        write_emails(folder / "data")
        write_applications(folder / "data")
        write_repository(folder / "models.git")
        jobs = make_jobs(folder, arguments.master)
    for name, job in jobs.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
