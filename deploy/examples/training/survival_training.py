"""Trains a pipeline with a random forest that tells who survives, and saves it whole as a folder.

The function is found by its smart tag. Input 0 is the labelled passenger list; output 0 is where the pipeline goes.
"""

from pyspark.ml import Pipeline
from pyspark.ml.classification import RandomForestClassifier
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import SparkSession

from features import columns

SEED = 20260301


# modelop.training
def train(external_inputs, external_outputs, external_model_assets):
    spark = SparkSession.builder.appName("survival training").getOrCreate()
    passengers = columns.read_passengers(spark, external_inputs[0]).cache()
    pipeline = Pipeline(
        stages=[
            VectorAssembler(inputCols=columns.FEATURES, outputCol="features"),
            RandomForestClassifier(labelCol=columns.LABEL, numTrees=20, maxDepth=5, seed=SEED),
        ]
    )
    trained = pipeline.fit(passengers)
    trained.write().overwrite().save(external_outputs[0]["fileUrl"])
    print("trained on", passengers.count(), "passengers")
    spark.stop()
