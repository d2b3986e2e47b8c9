#!/usr/bin/env python3
"""Makes five jobs that can be published, with the data they work on.

    deploy/examples/make_jobs.py FOLDER

writes into FOLDER

    data/train.csv, data/holdout.csv   a passenger list, made up from a fixed seed
    training.json   MODEL_BATCH_TRAINING_JOB  trains a Spark ML pipeline and saves it as FOLDER/trained
    scoring.json    MODEL_BATCH_JOB           scores the holdout with it into FOLDER/scored
    metrics.json    MODEL_BATCH_TEST_JOB      measures it on the holdout
    failing.json    MODEL_BATCH_JOB           raises a ValueError in a helper
    invalid.json                              cannot be run, for several reasons

Scoring and metrics need the pipeline, so the training job goes first. Every run gives the jobs new ids: a job id that
was settled once is not run again.
"""

import argparse
import base64
import csv
import json
import math
import random
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED = 20260301
PASSENGERS = 2000
HELD_OUT = 500

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


def write_data(folder):
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
    """The assets of a package that the model imports."""
    return [
        {
            "name": path.name,
            "assetType": "SOURCE_CODE",
            "primaryModelSource": False,
            "sourceCodeFilePath": f"{package.name}/{path.name}",
            "sourceCode": path.read_text(encoding="utf-8"),
        }
        for path in sorted(package.glob("*.py"))
    ]


def inner_file(path):
    """The asset of a file that travels inside the job."""
    content = path.read_bytes()
    return {
        "name": path.name,
        "assetType": "FILE",
        "assetRole": "REQUIRED_ASSETS",
        "filename": path.name,
        "fileContent": base64.b64encode(content).decode("ascii"),
        "fileSize": len(content),
    }


def external_file(path, role, file_format=None):
    """The asset of a file or folder that stays where it is."""
    asset = {
        "name": path.name,
        "assetType": "EXTERNAL_FILE",
        "assetRole": role,
        "fileUrl": str(path),
        "filename": path.name,
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
        "jobParameters": {"--driver-memory": "1g"},
        "inputData": input_data,
        "outputData": output_data,
        "targetEngine": {
            "engineType": "SPARK_RUNTIME",
            "name": "spark-runtime",
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
    features = secondary_sources(HERE / "features")
    train = external_file(folder / "data" / "train.csv", "TRAINING_DATA", "CSV")
    holdout = external_file(folder / "data" / "holdout.csv", "TEST_DATA", "CSV")
    trained = external_file(folder / "trained", "WEIGHTS_FILE")
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
    scored = external_file(folder / "scored", "UNKNOWN", "CSV")
    return {
        "training": make_job("MODEL_BATCH_TRAINING_JOB", training_assets, [train], [trained], master),
        "scoring": make_job("MODEL_BATCH_JOB", scoring_assets, [holdout], [scored, summary], master),
        "metrics": make_job("MODEL_BATCH_TEST_JOB", metrics_assets, [holdout], [], master),
        "failing": make_job("MODEL_BATCH_JOB", failing_assets, [holdout], [], master),
        "invalid": make_invalid_job(),
    }


def main():
    parser = argparse.ArgumentParser(description="Makes five jobs that can be published, with their data.")
    parser.add_argument("folder", type=Path, help="where the jobs and their data go")
    parser.add_argument("--master", default="local[2]", help="where Spark runs them (default: %(default)s)")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    write_data(folder / "data")
    for name, job in make_jobs(folder, arguments.master).items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
