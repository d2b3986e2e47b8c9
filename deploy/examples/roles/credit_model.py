"""Judges applications for loans, and tells whether their incomes are still those that it was made for.

``judge`` gets one application after the other, ``compare`` the assets of all inputs. Which input is which is told by
``assetRole``, not by their order: former applications are BASELINE_DATA, new ones COMPARATOR_DATA. In a scoring job the
former ones are slot 2, which is not scored.
"""

# modelop.schema.0: application.avsc
# modelop.slot.2: unused

import csv
import json
import statistics

from credit.ratios import affordability
from credit.words import verdict


# modelop.init
def begin(job):
    global limits, usual_income
    with open("rules/limits.json", encoding="utf-8") as file:
        limits = json.load(file)
    former = with_role(job["job"]["inputData"], "BASELINE_DATA")
    with open(former["fileUrl"], newline="", encoding="utf-8") as file:
        usual_income = statistics.median(float(row["income"]) for row in csv.DictReader(file))


# modelop.score
def judge(application):
    burden = affordability.burden(application["income"], application["payments"])
    yield {
        "applicant": application["applicant"],
        "burden": round(burden, 4),
        "income_to_usual": round(application["income"] / usual_income, 4),
        "verdict": verdict(burden, limits),
    }


# modelop.metrics
def compare(external_inputs, external_outputs, external_model_assets):
    # Only this function needs Spark, and the scores are given without.
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("credit comparison").getOrCreate()
    quartiles = {}
    for role in ("BASELINE_DATA", "COMPARATOR_DATA"):
        asset = with_role(external_inputs, role)
        applications = spark.read.csv(asset["fileUrl"], header=True, inferSchema=True)
        quartiles[role] = applications.approxQuantile("income", [0.25, 0.5, 0.75], 0.0)
    spark.stop()
    former, new = quartiles["BASELINE_DATA"], quartiles["COMPARATOR_DATA"]
    drift = abs(new[1] - former[1]) / (former[2] - former[0])
    return {"quartiles": quartiles, "drift": round(drift, 4), "has_drifted": drift > limits["most_drift"]}


def with_role(assets, role):
    found = [asset for asset in assets if asset.get("assetRole") == role]
    if len(found) != 1:
        raise ValueError(f"{len(found)} assets have the role {role}; one is needed")
    return found[0]
