"""Scores a passenger list with a trained pipeline.

The job names the functions in its asset. The pipeline is the model asset whose role is WEIGHTS_FILE, the thresholds are
a file that travels inside the job, ``features`` is a secondary source. The scores go to output 0 as a folder of CSV;
``summary.json`` is written here and comes back inside the event.
"""

import json

from pyspark.ml import PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from features import columns

thresholds = {}


def read_thresholds():
    with open("thresholds.json", encoding="utf-8") as file:
        thresholds.update(json.load(file))


def verdict(probability):
    """The column that says in a word what the probability means under the thresholds."""
    distance = F.abs(probability - thresholds["survives_from"])
    return (
        F.when(distance <= thresholds["unsure_within"], "unsure")
        .when(probability >= thresholds["survives_from"], "survives")
        .otherwise("dies")
    )


def score_passengers(input_files, output_files, model_attachment_files):
    spark = SparkSession.builder.appName("survival scoring").getOrCreate()
    weights = next(asset for asset in model_attachment_files if asset.get("assetRole") == "WEIGHTS_FILE")
    pipeline = PipelineModel.load(weights["fileUrl"])

    passengers = columns.read_passengers(spark, input_files[0])
    probability = F.round(vector_to_array("probability")[1], 4)
    scored = (
        pipeline.transform(passengers)
        .select("passenger_id", probability.alias("probability"))
        .withColumn("verdict", verdict(F.col("probability")))
        .cache()
    )
    scored.coalesce(1).write.mode("overwrite").csv(output_files[0]["fileUrl"], header=True)

    counts = {row["verdict"]: row["count"] for row in scored.groupBy("verdict").count().collect()}
    with open("summary.json", "w", encoding="utf-8") as file:
        json.dump({"passengers": sum(counts.values()), "verdicts": counts}, file, sort_keys=True)
    spark.stop()
