//! Jobs whose executors run on a real YARN.

use serde_json::json;
use spark_runtime_protocol::event::EventKind;
use spark_runtime_tests::broker::Vhost;
use spark_runtime_tests::cluster::{Cluster, Part};
use spark_runtime_tests::jobs::assets;

use crate::spark::{DELAYS, Parts, spark_job};

const SOURCE: &str = "\
import pkg.deep
from pyspark.sql import SparkSession
def twice(n):
    return pkg.deep.double(n)
def score(inputs, outputs, attachments):
    spark = SparkSession.builder.getOrCreate()
    numbers = spark.read.csv(inputs[0]['fileUrl']).rdd.map(lambda row: int(row[0]))
    total = numbers.map(twice).sum()
    spark.createDataFrame([(total,)], ['total']).coalesce(1).write.mode('overwrite').csv(outputs[0]['fileUrl'])
    open('total.txt', 'w').write('%d %s' % (total, spark.sparkContext.applicationId))
";

#[tokio::test]
async fn a_job_runs_on_yarn_with_its_helpers_on_the_executors_and_its_data_in_hdfs() {
    let parts = Parts::take().await;
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs, Part::Yarn]).await;
    let folder = format!("/yarn-{}", uuid::Uuid::new_v4().simple());
    cluster.hdfs_write(&format!("{folder}/numbers.csv"), b"1\n2\n39\n");
    let mut place = Vhost::ready(&DELAYS).await;
    let configuration = format!("spark.environment.HADOOP_CONF_DIR={}", cluster.setting("HADOOP_CONF_DIR"));
    let _worker =
        parts.worker(&place.vhost.uri(), &[&configuration, "spark.environment.SPARK_LOCAL_IP=127.0.0.1"]);
    let mut job = spark_job("yarn", SOURCE);
    assets(&mut job).extend([
        json!({"name": "h", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/deep.py", "sourceCode": "def double(n):\n    return 2 * n\n"}),
        json!({"name": "i", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/__init__.py", "sourceCode": ""}),
    ]);
    job["targetEngine"]["sparkConf"]["--master"] = json!("yarn");
    job["targetEngine"]["sparkConf"]["spark.yarn.jars"] = json!(cluster.setting("SPARK_YARN_JARS"));
    job["jobParameters"] = json!({"--executor-memory": "512MB", "--num-executors": "1", "--name": "on yarn"});
    job["inputData"] =
        json!([{"name": "n", "assetType": "EXTERNAL_FILE", "fileUrl": format!("{folder}/numbers.csv")}]);
    job["outputData"] = json!([
        {"name": "o", "assetType": "EXTERNAL_FILE", "fileUrl": format!("hdfs://{folder}/out")},
        {"name": "t", "assetType": "FILE", "filename": "total.txt"},
    ]);
    place.publish("yarn", job.to_string()).await;
    let end = place.end_of("yarn").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:#?}", end.data.failure);
    let content = end.data.output_data.unwrap()[1]["fileContent"].as_str().unwrap().to_owned();
    let mut decoded = Vec::new();
    spark_runtime_protocol::asset::decode_base64(&content, &mut decoded).unwrap();
    let told = String::from_utf8(decoded).unwrap();
    let (total, id) = told.split_once(' ').unwrap();
    assert_eq!(total, "84");
    let written = cluster.hdfs_list(&format!("{folder}/out"));
    let part = written.iter().find(|name| name.starts_with("part-")).unwrap_or_else(|| panic!("{written:?}"));
    assert_eq!(cluster.hdfs_read(&format!("{folder}/out/{part}")).unwrap(), b"84\n");
    // YARN itself knows of it, and that it is over.
    let application = spark_runtime_tests::until("the application's end", async || {
        let answer = cluster.yarn(&format!("/ws/v1/cluster/apps/{id}"));
        (answer["app"]["state"] == "FINISHED").then(|| answer["app"].clone())
    })
    .await;
    assert_eq!((&application["name"], &application["finalStatus"]), (&json!("on yarn"), &json!("SUCCEEDED")));
}
