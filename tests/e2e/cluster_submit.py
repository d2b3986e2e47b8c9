#!/usr/bin/env python3
"""Stands for spark-submit in cluster mode: hands a program to the real YARN that behaves as the driver does.

As a launcher it takes what spark-submit takes and submits an application by REST that runs this same file as its driver.
The driver takes its ticket and leaves its last word in the real HDFS, by WebHDFS. YARN calls such an application failed
whatever it does, since nothing of it ever talks to the ResourceManager; so what it is told to do here is to raise.

The model's source says what happens, in a line `# fake: {...}` with these keys, all of them optional:
  journal   a file to which launcher and driver append a line for each step, with the application and the moment
  before    how long the launcher takes until it submits, in seconds; after: how long it goes on then
  gate      a file for which the launcher waits before it submits
  memory    how many megabytes it asks for; queue: in which queue
  launch    the launcher's exit code, without submitting anything
  run       how long the driver runs, in seconds
  until     a file for which it waits besides
  eat       how many megabytes the driver takes while it runs
  silent    the driver leaves no last word, and ends with this code
"""

import base64
import json
import os
import shlex
import sys
import time
import urllib.parse
import urllib.request
import xml.etree.ElementTree
import zipfile


def property_of(folder, name):
    for file in ("core-site.xml", "hdfs-site.xml", "yarn-site.xml"):
        path = os.path.join(folder, file)
        if os.path.exists(path):
            for found in xml.etree.ElementTree.parse(path).iter("property"):
                if found.findtext("name").strip() == name:
                    return found.findtext("value").strip()
    raise SystemExit("no property " + name)


def ask(method, url, content=None):
    headers = {"Content-Type": "application/json" if method == "POST" else "application/octet-stream"}
    request = urllib.request.Request(url, method=method, data=content, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def note(told, step, application):
    if "journal" in told:
        line = "{} {} {}\n".format(step, application, time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        descriptor = os.open(told["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, line.encode())
        os.close(descriptor)


def launch(arguments):
    folder = os.environ["HADOOP_CONF_DIR"]
    tags, archive = [], None
    for flag, value in zip(arguments, arguments[1:]):
        if flag == "--conf" and value.startswith("spark.yarn.tags="):
            tags = value.split("=", 1)[1].split(",")
        if flag == "--archives":
            archive = urllib.parse.unquote(urllib.parse.urlparse(value.split(",")[0]).path)
    with zipfile.ZipFile(archive) as opened:
        settings = json.loads(opened.read("model_cluster.json"))
        source = opened.read("work/model_source_code.py").decode()
    lines = [line for line in source.splitlines() if line.startswith("# fake: ")]
    told = json.loads(lines[0][len("# fake: "):]) if lines else {}
    note(told, "launch", settings["ticket"])
    if "launch" in told:
        print("the fake launcher was told to fail", file=sys.stderr)
        raise SystemExit(told["launch"])
    time.sleep(told.get("before", 0))
    while "gate" in told and not os.path.exists(told["gate"]):
        time.sleep(0.1)
    apps = "http://{}/ws/v1/cluster/apps".format(property_of(folder, "yarn.resourcemanager.webapp.address"))
    user = "user.name=" + os.environ.get("HADOOP_USER_NAME", os.environ.get("USER", "root"))
    identity = json.loads(ask("POST", "{}/new-application?{}".format(apps, user), b""))["application-id"]
    told.update(settings, hdfs=property_of(folder, "dfs.namenode.http-address"), user=user)
    handed = base64.b64encode(json.dumps(told).encode()).decode()
    application = {
        "application-id": identity,
        "application-name": "fake",
        "application-type": "SPARK",
        "max-app-attempts": 1,
        "application-tags": {"tag": tags},
        "resource": {"memory": told.get("memory", 256), "vCores": 1},
        "queue": told.get("queue", "default"),
        "am-container-spec": {
            "commands": {
                "command": "exec {} {} --driver {} {} 2><LOG_DIR>/stderr".format(
                    *(shlex.quote(word) for word in [sys.executable, os.path.abspath(__file__), identity, handed])
                )
            }
        },
    }
    ask("POST", "{}?{}".format(apps, user), json.dumps(application).encode())
    note(told, "submitted", identity)
    time.sleep(told.get("after", 0))


def drive(identity, handed):
    told = json.loads(base64.b64decode(handed))
    folder = urllib.parse.urlparse(told["jobFolder"]).path

    def hdfs(method, name, operation, content=None):
        path = urllib.parse.quote("{}/{}".format(folder, name))
        return ask(method, "http://{}/webhdfs/v1{}?{}&op={}".format(told["hdfs"], path, told["user"], operation), content)

    def rename(old, new):
        target = urllib.parse.quote("{}/{}".format(folder, new))
        return json.loads(hdfs("PUT", old, "RENAME&destination=" + target))["boolean"]

    def write(name, content):
        path = urllib.parse.quote("{}/{}".format(folder, name))
        where = "http://{}/webhdfs/v1{}?{}&op=CREATE&overwrite=true&noredirect=true"
        place = json.loads(ask("PUT", where.format(told["hdfs"], path, told["user"])))["Location"]
        ask("PUT", place, content)

    ticket = told["ticket"]
    if not rename(ticket, ticket + ".taken"):
        note(told, "called-off", identity)
        raise SystemExit(75)
    note(told, "start", identity)
    eaten = b"x" * (told.get("eat", 0) << 20)
    time.sleep(told.get("run", 0))
    while "until" in told and not os.path.exists(told["until"]):
        time.sleep(0.1)
    del eaten
    note(told, "end", identity)
    print("the fake driver of " + identity + " has run", file=sys.stderr)
    if "silent" in told:
        raise SystemExit(told["silent"])
    frame = {"file": "model_source_code.py", "line": 1, "function": "score", "text": "fake"}
    exception = {"type": "Fake", "message": identity, "traceback": "fake", "frame": frame}
    word = {"message": "failed", "kind": "model", "exception": exception, "functions": ["score"]}
    write(ticket + ".end.part", json.dumps(word).encode())
    rename(ticket + ".end.part", ticket + ".end")
    raise SystemExit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--driver"]:
        drive(sys.argv[2], sys.argv[3])
    else:
        launch(sys.argv[1:])
