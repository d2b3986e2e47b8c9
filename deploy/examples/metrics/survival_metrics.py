"""Measures a trained pipeline on a labelled passenger list. What the function returns is the job's ``results``."""

from pyspark.ml import PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.sql import SparkSession

from features import columns


def measure(input_files, output_files, model_attachment_files):
    spark = SparkSession.builder.appName("survival metrics").getOrCreate()
    pipeline = PipelineModel.load(model_attachment_files[0]["fileUrl"])
    predicted = pipeline.transform(columns.read_passengers(spark, input_files[0])).cache()

    auc = BinaryClassificationEvaluator(labelCol=columns.LABEL, metricName="areaUnderROC").evaluate(predicted)
    counts = {
        (int(row[columns.LABEL]), int(row["prediction"])): row["count"]
        for row in predicted.groupBy(columns.LABEL, "prediction").count().collect()
    }
    spark.stop()

    true_positive, false_positive = counts.get((1, 1), 0), counts.get((0, 1), 0)
    true_negative, false_negative = counts.get((0, 0), 0), counts.get((1, 0), 0)
    total = sum(counts.values())
    return {
        "auc": round(auc, 4),
        "accuracy": round((true_positive + true_negative) / total, 4),
        "precision": round(true_positive / max(1, true_positive + false_positive), 4),
        "recall": round(true_positive / max(1, true_positive + false_negative), 4),
        "confusion_matrix": [
            {"survived": True, "predicted_survived": true_positive, "predicted_dead": false_negative},
            {"survived": False, "predicted_survived": false_positive, "predicted_dead": true_negative},
        ],
        "passengers": total,
    }
