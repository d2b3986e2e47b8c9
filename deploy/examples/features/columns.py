"""The columns of the passenger list, and what is derived from them: shared by training, scoring and metrics."""

from pyspark.sql import functions as F

# Given outright, so that Spark need not read the file twice to guess it.
SCHEMA = (
    "passenger_id INT, cabin_class INT, sex STRING, age DOUBLE, relatives INT, fare DOUBLE, port STRING, survived INT"
)

LABEL = "survived"
FEATURES = ["cabin_class", "is_female", "age_or_usual", "relatives", "fare_per_head", "from_brest", "from_cork"]

USUAL_AGE = 29.0


def read_passengers(spark, asset):
    """The passenger list behind an asset's ``fileUrl``, derived columns included."""
    passengers = spark.read.csv(asset["fileUrl"], header=True, schema=SCHEMA)
    return passengers.select(
        "*",
        (F.col("sex") == "female").cast("double").alias("is_female"),
        F.coalesce("age", F.lit(USUAL_AGE)).alias("age_or_usual"),
        (F.col("fare") / (F.col("relatives") + 1)).alias("fare_per_head"),
        (F.col("port") == "Brest").cast("double").alias("from_brest"),
        (F.col("port") == "Cork").cast("double").alias("from_cork"),
    )
