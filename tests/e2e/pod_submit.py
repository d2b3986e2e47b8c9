#!/usr/bin/env python3
"""Stands for spark-submit in cluster mode on Kubernetes: makes a pod in the real API server, of a program that behaves as the
driver does.

As a launcher it takes what spark-submit takes, and makes what that makes, in the same order: first the pod, then the config map
without which the pod cannot start. The driver is that of ``cluster_submit``: it takes its ticket and leaves its last word
in the real HDFS.

What is to happen says the model's source as it does there, and besides:
  between   how long the launcher takes between the pod and the config map, in seconds
  twice     the launcher makes the pod once more in the end, and fails when it is there already
  lingers   how long the driver takes to end once it is asked to, in seconds
  sidecar   the pod has another container, which runs for as many seconds
"""

import base64
import json
import os
import signal
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile

from cluster_submit import drive, note, property_of

DRIVER = "spark-kubernetes-driver"


class ApiServer:
    """The API server of the kubeconfig, which is in JSON."""

    def __init__(self):
        with open(os.environ["KUBECONFIG"]) as file:
            config = json.load(file)
        cluster = config["clusters"][0]["cluster"]
        self._url = cluster["server"]
        self._context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._token = config["users"][0]["user"]["token"]

    def make(self, namespace, kind, content):
        request = urllib.request.Request(
            "{}/api/v1/namespaces/{}/{}".format(self._url, namespace, kind),
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json", "Authorization": "Bearer " + self._token},
        )
        try:
            with urllib.request.urlopen(request, timeout=60, context=self._context) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            print("the API server refuses it:", error.read().decode(), file=sys.stderr)
            raise SystemExit(1)


def launch(arguments):
    confs, archive = {}, None
    for flag, value in zip(arguments, arguments[1:]):
        if flag == "--conf":
            name, _, text = value.partition("=")
            confs[name] = text
        if flag == "--archives":
            archive = urllib.parse.unquote(urllib.parse.urlparse(value.split(",")[0]).path)
    with zipfile.ZipFile(archive) as opened:
        settings = json.loads(opened.read("model_cluster.json"))
        source = opened.read("work/model_source_code.py").decode()
    lines = [line for line in source.splitlines() if line.startswith("# fake: ")]
    told = json.loads(lines[0][len("# fake: ") :]) if lines else {}
    note(told, "launch", settings["ticket"])
    if "launch" in told:
        print("the fake launcher was told to fail", file=sys.stderr)
        raise SystemExit(told["launch"])
    time.sleep(told.get("before", 0))
    name = confs["spark.kubernetes.driver.pod.name"]
    namespace = confs["spark.kubernetes.namespace"]
    folder = os.environ["HADOOP_CONF_DIR"]
    user = "user.name=" + os.environ.get("HADOOP_USER_NAME", os.environ.get("USER", "root"))
    told.update(settings, hdfs=property_of(folder, "dfs.namenode.http-address"), user=user)
    handed = base64.b64encode(json.dumps(told).encode()).decode()
    prefix = "spark.kubernetes.driver.label."
    labels = {key[len(prefix) :]: value for key, value in confs.items() if key.startswith(prefix)}
    image = confs["spark.kubernetes.container.image"]
    driver = {
        "name": DRIVER,
        "image": image,
        "command": [sys.executable, os.path.abspath(__file__), "--driver", settings["ticket"], handed],
        "volumeMounts": [{"name": "conf", "mountPath": "/opt/spark/conf"}],
    }
    containers = [driver]
    if "sidecar" in told:
        containers.insert(0, {"name": "proxy", "image": image, "command": ["sleep", str(told["sidecar"])]})
    spec = {
        "restartPolicy": "Never",
        "containers": containers,
        "terminationGracePeriodSeconds": 30,
        "serviceAccountName": confs["spark.kubernetes.authenticate.driver.serviceAccountName"],
        "volumes": [{"name": "conf", "configMap": {"name": "conf-" + settings["ticket"]}}],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
    server = ApiServer()
    made = server.make(namespace, "pods", pod)
    note(told, "submitted", settings["ticket"])
    time.sleep(told.get("between", 0))
    owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": made["metadata"]["uid"], "controller": True}
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "data": {"spark.properties": ""},
        "metadata": {"name": "conf-" + settings["ticket"], "ownerReferences": [owner]},
    }
    server.make(namespace, "configmaps", config_map)
    note(told, "configured", settings["ticket"])
    if "twice" in told:
        # As one does whose first answer was lost on its way.
        server.make(namespace, "pods", pod)
    time.sleep(told.get("after", 0))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--driver"]:
        print("the fake driver begins", file=sys.stderr, flush=True)
        lingers = json.loads(base64.b64decode(sys.argv[3])).get("lingers", 0)
        signal.signal(signal.SIGTERM, lambda *_: (time.sleep(lingers), os._exit(143)))
        drive(sys.argv[2], sys.argv[3])
    else:
        launch(sys.argv[1:])
