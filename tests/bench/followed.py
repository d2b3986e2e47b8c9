"""What it costs to bring an application to a cluster, on a real YARN, and to look after many: a worker with a thousand of
them, and a ResourceManager that says of each what it is told to.

The launcher is that of the end-to-end tests; the ResourceManager speaks the real REST on loopback, and the folder that
workers and drivers share is in a real HDFS. Nothing runs in these applications.
"""

import getpass
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MB = 1_000_000
PROJECT = Path(__file__).resolve().parent.parent.parent
QUIET_SECONDS = 20
MODEL = "def score(inputs, outputs, model_files):\n    pass\n"
ENGINE = {"sparkConf": {"--master": "yarn", "--deploy-mode": "cluster"}}
DEMANDS = {"--driver-memory": "512m", "--executor-memory": "512m", "--num-executors": "1"}


class ScriptedResourceManager:
    """Takes applications by REST, and says that they stand as they are set."""

    def __init__(self):
        self.apps = {}
        self.questions = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, status, body):
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_GET(self):
                url = urllib.parse.urlparse(self.path)
                asked = urllib.parse.parse_qs(url.query)
                with outer._lock:
                    outer.questions += 1
                    if "applicationTags" in asked:
                        tags = set(asked["applicationTags"][0].split(","))
                        found = [app for app in outer.apps.values() if tags & set(app["applicationTags"].split(","))]
                        return self.answer(200, {"apps": {"app": found}})
                    app = outer.apps.get(url.path.rsplit("/", 1)[1])
                if app is None:
                    return self.answer(404, {"RemoteException": {"exception": "NotFoundException", "message": "no"}})
                return self.answer(200, {"app": app})

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with outer._lock:
                    if "new-application" in self.path:
                        number = len(outer.apps) + 1
                        identity = "application_1_{:04}".format(number)
                        outer.apps[identity] = {"id": identity, "state": "NEW", "finalStatus": "UNDEFINED", "applicationTags": ""}
                        return self.answer(200, {"application-id": identity})
                    asked = json.loads(body)
                    app = outer.apps[asked["application-id"]]
                    app["applicationTags"] = ",".join(asked["application-tags"]["tag"])
                    app["startedTime"] = int(time.time() * 1000)
                    app["state"] = "ACCEPTED"
                return self.answer(202, {})

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = "127.0.0.1:{}".format(self._server.server_port)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def set(self, identity, **more):
        with self._lock:
            self.apps[identity].update(more)

    def close(self):
        self._server.shutdown()


class Yarn:
    """A real ResourceManager, as somebody sees it who looks often."""

    def __init__(self, address):
        self._apps = address + "/ws/v1/cluster/apps"
        self._seen = set()

    def next_application(self):
        """The next application that it has accepted, and when that was seen."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with urllib.request.urlopen(self._apps + "?states=ACCEPTED,RUNNING", timeout=10) as answer:
                now = time.monotonic()
                apps = (json.load(answer)["apps"] or {}).get("app", [])
            fresh = [app["id"] for app in apps if app["id"] not in self._seen]
            if fresh:
                self._seen.update(fresh)
                return fresh[0], now
            time.sleep(0.02)
        raise SystemExit("YARN has accepted nothing for 120 s")

    def kill(self, identity):
        """Ends an application, and waits until it is over."""
        where = "{}/{}/state?user.name={}".format(self._apps, identity, getpass.getuser())
        headers = {"Content-Type": "application/json"}
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            request = urllib.request.Request(where, method="PUT", data=b'{"state":"KILLED"}', headers=headers)
            with urllib.request.urlopen(request, timeout=10) as answer:
                if json.load(answer)["state"] == "KILLED":
                    return
            time.sleep(0.1)
        raise SystemExit(f"{identity} does not end")


class Events(threading.Thread):
    """Notes when each event of each job arrives."""

    def __init__(self, broker):
        super().__init__(daemon=True)
        self._arrived = threading.Condition()
        self.seen = {}
        self.applications = {}
        self._connection = broker.connect()
        self._channel = self._connection.channel()
        queue = self._channel.queue_declare("", exclusive=True).method.queue
        self._channel.queue_bind(queue, "spark.results", "job.#")
        self._channel.basic_consume(queue, self._heard, auto_ack=True)
        self.start()

    def run(self):
        self._channel.start_consuming()

    def _heard(self, _channel, _delivery, _properties, body):
        now = time.monotonic()
        event = json.loads(body)
        kind = event["type"].split(".")[2]
        with self._arrived:
            self.seen.setdefault((event["subject"], kind), now)
            self.seen.setdefault((event["subject"], "{}/{}".format(kind, event["data"]["attempt"])), now)
            if kind == "submitted":
                self.applications[event["data"]["applicationId"]] = event["subject"]
            self._arrived.notify_all()

    def wait_for(self, kind, jobs, seconds):
        """Waits for an event of each job, as `running`, or that of one attempt, as `submitted/2`."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: all((job, kind) in self.seen for job in jobs), seconds):
                missing = sum((job, kind) not in self.seen for job in jobs)
                raise SystemExit("{} of {} jobs are not {} after {} s".format(missing, len(jobs), kind, seconds))

    def close(self):
        self._connection.add_callback_threadsafe(self._channel.stop_consuming)
        self.join(10)
        self._connection.close()


def processor_seconds(pid):
    """What a process has used so far."""
    fields = Path("/proc/{}/stat".format(pid)).read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for_starts(journal, count):
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_text().count("start ") < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"fewer than {count} drivers have started")
        time.sleep(0.1)


def children(pid):
    """The processes that `pid` is the parent of."""
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


class ClusterMeasurements:
    """Of a bench that has `broker`, `folder`, `table`, `worker` and `job`."""

    def overhead(self):
        """From the publication to the acceptance by a real ResourceManager, over plain spark-submit with the same flags."""
        cluster = self.folder / "cluster"
        subprocess.run([PROJECT / "deploy/cluster", "up", cluster, "--only", "hdfs,yarn"], check=True, stdout=subprocess.DEVNULL)
        try:
            known = dict(line.split("=", 1) for line in (cluster / "cluster.env").read_text().splitlines())
            settings = {
                **self.real_spark(),
                "SPARK__ENVIRONMENT__HADOOP_CONF_DIR": known["HADOOP_CONF_DIR"],
                "SPARK__ENVIRONMENT__SPARK_LOCAL_IP": "127.0.0.1",
                "WORKER__MAX_RUNNING": 1,
            }
            done = subprocess.run(
                [self.options.program, "cluster", "prepare", "--json"], env=self.settings(settings), check=True, capture_output=True
            )
            prepared = json.loads(done.stdout)
            with self.worker(settings):
                events = Events(self.broker)
                connection = self.broker.connect()
                yarn = Yarn(known["YARN_URI"])

                def ours():
                    job = self.job(MODEL, targetEngine=ENGINE, jobParameters=DEMANDS)
                    begun = time.monotonic()
                    connection.channel().basic_publish("spark.jobs", "spark.jobs", json.dumps(job).encode())
                    identity, accepted = yarn.next_application()
                    yarn.kill(identity)
                    events.wait_for("cancelled", [job["id"]], 120)
                    connection.process_data_events(0)
                    return accepted - begun

                def plain():
                    begun = time.monotonic()
                    launcher = self.plain_launcher(known["HADOOP_CONF_DIR"], prepared)
                    identity, accepted = yarn.next_application()
                    yarn.kill(identity)
                    launcher.wait()
                    return accepted - begun

                # The first pair warms the disk's cache up.
                ours()
                plain()
                pairs = [(ours(), plain()) for _ in range(self.options.runs)]
                connection.close()
                events.close()
        finally:
            subprocess.run([PROJECT / "deploy/cluster", "remove", cluster], check=False)
        more = statistics.median(mine - other for mine, other in pairs)
        mine, other = (statistics.median(column) for column in zip(*pairs))
        what = "publish to YARN's acceptance over spark-submit"
        self.table.add(what, f"{mine:.2f} s", f"{other:.2f} s", f"{more:+.2f} s", "+0.50 s", more <= 0.5)

    def plain_launcher(self, configuration, prepared):
        """What a person would type who has no spark-runtime."""
        folder = self.folder / "plain-cluster"
        folder.mkdir(exist_ok=True)
        (folder / "plain.py").write_text(MODEL)
        environment = self.settings()
        environment.update(
            SPARK_HOME=str(self.options.spark_home),
            HADOOP_CONF_DIR=configuration,
            PYSPARK_PYTHON=str(self.options.spark_python),
            SPARK_LOCAL_IP="127.0.0.1",
            **prepared["environment"],
        )
        flags = {**ENGINE["sparkConf"], **DEMANDS}
        properties = {**prepared["properties"], "spark.yarn.submit.waitAppCompletion": "false"}
        arguments = [Path(self.options.spark_home) / "bin" / "spark-submit"]
        arguments += [word for flag in flags.items() for word in flag]
        arguments += [word for property_ in properties.items() for word in ("--conf", "=".join(property_))]
        with open(folder / "log", "ab") as log:
            return subprocess.Popen([*arguments, "plain.py"], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def adoption(self):
        """From the death of a worker and its guard to the next one's word that it follows what they had in YARN."""
        lease, run, count = 10, 45, 4
        cluster, journal = self.folder / "cluster", self.folder / "journal"
        subprocess.run([PROJECT / "deploy/cluster", "up", cluster, "--only", "hdfs,yarn"], check=True, stdout=subprocess.DEVNULL)
        try:
            known = dict(line.split("=", 1) for line in (cluster / "cluster.env").read_text().splitlines())
            settings = {
                "SPARK__ENVIRONMENT__HADOOP_CONF_DIR": known["HADOOP_CONF_DIR"],
                "SPARK__SUBMIT": PROJECT / "tests/e2e/cluster_submit.py",
                "YARN__ARCHIVE": "never",
                "LEDGER__LEASE": f"{lease}s",
                "RETRY__DELAYS": "1s",
                "WORKER__MAX_RUNNING": 2,
            }
            told = json.dumps({"journal": str(journal), "run": run})
            jobs = [self.job(f"# fake: {told}\n{MODEL}", targetEngine=ENGINE) for _ in range(count)]
            ids = [job["id"] for job in jobs]
            with self.worker(settings, dies=True) as owner:
                events = Events(self.broker)
                connection = self.broker.connect()
                for job in jobs:
                    connection.channel().basic_publish("spark.jobs", "spark.jobs", json.dumps(job).encode())
                connection.close()
                # Their drivers never talk to YARN, which does not call them running.
                wait_for_starts(journal, count)
                with self.worker(settings):
                    dead = [owner, *children(owner)]
                    for pid in dead:
                        os.kill(pid, signal.SIGKILL)
                    killed = time.monotonic()
                    events.wait_for("submitted/2", ids, 120)
                    took = sorted(events.seen[job, "submitted/2"] - killed for job in ids)
                    events.wait_for("failed", ids, 180)
                events.close()
        finally:
            subprocess.run([PROJECT / "deploy/cluster", "remove", cluster], check=False)
        steps = [line.split() for line in journal.read_text().splitlines()]
        began = {application: int(moment) for step, application, moment in steps if step == "start"}
        ran = sorted((int(moment) - began[application]) / 1e9 for step, application, moment in steps if step == "end")
        if len(began) != count or len(ran) != count:
            raise SystemExit(f"{len(began)} drivers for {count} jobs, {len(ran)} of them ended")
        row = self.table.add
        row(f"adopted after the owner's death, lease {lease} s", f"{took[-1]:.1f} s", "", f"{took[-1]:.1f} s", "lease+5 s", took[-1] <= lease + 5)
        row("run time of what was adopted", f"{ran[-1]:.1f} s", f"{run} s", f"{ran[-1] - run:+.1f} s", "+1 s", ran[-1] - run <= 1)

    def followed(self):
        """A thousand applications that one worker looks after."""
        count = 1000
        cluster = self.folder / "cluster"
        subprocess.run([PROJECT / "deploy/cluster", "up", cluster, "--only", "hdfs"], check=True, stdout=subprocess.DEVNULL)
        manager = ScriptedResourceManager()
        events = None
        try:
            lines = (cluster / "cluster.env").read_text().splitlines()
            known = Path(dict(line.split("=", 1) for line in lines)["HADOOP_CONF_DIR"])
            configuration = self.folder / "hadoop"
            shutil.copytree(known, configuration)
            property_ = "<property><name>yarn.resourcemanager.webapp.address</name><value>{}</value></property>"
            text = "<configuration>{}</configuration>".format(property_.format(manager.address))
            (configuration / "yarn-site.xml").write_text(text)
            settings = {
                "SPARK__ENVIRONMENT__HADOOP_CONF_DIR": configuration,
                "SPARK__SUBMIT": PROJECT / "tests/e2e/cluster_submit.py",
                "YARN__MAX_FOLLOWED": count,
                "YARN__ARCHIVE": "never",
                "WORKER__MAX_RUNNING": 4,
                "WORKER__MAX_SUBMITS": 2,
            }
            with self.worker(settings) as worker:
                events = Events(self.broker)
                jobs = [self.job(MODEL, targetEngine=ENGINE) for _ in range(count)]
                connection = self.broker.connect()
                channel = connection.channel()
                for job in jobs:
                    channel.basic_publish("spark.jobs", "spark.jobs", json.dumps(job).encode())
                # It would not live through the minutes that follow, in which nobody answers its heartbeats.
                connection.close()
                begun = time.monotonic()
                ids = [job["id"] for job in jobs]
                events.wait_for("submitted", ids, 900)
                print(f"      {count} applications after {time.monotonic() - begun:.0f} s", flush=True)
                connection = self.broker.connect()
                self.measure_followed(manager, events, worker, connection.channel(), ids)
                connection.close()
        finally:
            if events is not None:
                events.close()
            manager.close()
            subprocess.run([PROJECT / "deploy/cluster", "remove", cluster], check=False)

    def measure_followed(self, manager, events, worker, channel, ids):
        def records():
            return channel.queue_declare("spark.ledger", passive=True).method.message_count

        time.sleep(5)
        before, used, asked, begun = records(), processor_seconds(worker), manager.questions, time.monotonic()
        time.sleep(QUIET_SECONDS)
        seconds = time.monotonic() - begun
        share = (processor_seconds(worker) - used) / seconds
        renewals = (records() - before) / seconds
        questions = (manager.questions - asked) / seconds
        rss = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{worker}/status").read_text()).group(1)) * 1024
        row = self.table.add
        row("1000 applications: the worker's memory", f"{rss / MB:.0f} MB", "", f"{rss / MB:.0f} MB", "100 MB", rss <= 100 * MB)
        row("1000 applications: processor, one core", f"{share:.1%}", "", f"{share:.1%}", "5 %", share <= 0.05)
        row("1000 applications: questions, renewals a second", f"{questions:.2f}", f"{renewals:.2f}", f"{renewals:.2f}", "2", renewals <= 2)
        changed = {}
        job_of = {job: identity for identity, job in events.applications.items()}
        for job in ids:
            changed[job] = time.monotonic()
            manager.set(job_of[job], state="RUNNING", amContainerLogs="http://127.0.0.1:1/logs")
            time.sleep(0.02)
        events.wait_for("running", ids, 60)
        late = sorted(events.seen[job, "running"] - changed[job] for job in ids)
        p95 = late[int(len(late) * 0.95)]
        row("1000 applications: a change is told after (p95)", f"{p95:.2f} s", f"p50 {late[len(late) // 2]:.2f} s", f"{p95:.2f} s", "2 s", p95 <= 2)
