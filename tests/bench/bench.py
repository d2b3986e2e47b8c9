"""Measures the promises about speed and memory and prints one row for each.

    run          wall time of `spark-runtime run` over plain spark-submit of the same model
    publish      the same from the publication to the event `completed`, through a worker
    throughput   jobs per second and latency with a spark-submit that does nothing, against Celery on the same broker
    idle         memory of a worker and its guard that have nothing to do
    staging      memory of `spark-runtime run` with a FILE asset of 100 MB
    log          memory of a worker and its guard over a job that prints 50 MB
    upload       memory of a worker over a training job that leaves 1 GB in outputDir, for a folder and for S3
    claims       what a job's claim and its settlement take on an idle broker
    ledger       the start of a worker that finds a million records in the ledger
    records      records per second of a function that takes 200 us, on two cores against one plain process
    contract     what a record costs on top of a plain loop, without and with a schema
    small        wall time of `spark-runtime run` with 1000 records over plain Python
    large        memory of driver and workers together over an input of 2 GB
    runtimes     what it takes to choose among 20 runtimes that are known
    overhead     from the publication to YARN's acceptance over plain spark-submit with the same flags
    adoption     what becomes of applications in a cluster whose worker dies
    followed     a worker that looks after a thousand applications in a cluster

What is compared is measured in alternating rounds; the rows give medians. The publisher and the subscriber are the same
for both systems: this process, with pika. It does not wait for the broker's confirmations, which would measure how fast
one client can publish; a job that is lost on the way is noticed by its missing end. MB are 1,000,000 bytes.
"""

import argparse
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from pathlib import Path

import pika
from followed import ClusterMeasurements
from records import RecordMeasurements

HERE = Path(__file__).resolve().parent
MB = 1_000_000
ENDS = {"completed", "failed", "cancelled", "rejected"}
PATIENCE = 300
PARALLEL = 4
SPARK_CONF = {"--master": "local[1]", "spark.ui.enabled": "false"}

SPARK_MODEL = '''\
from pyspark.sql import SparkSession


def score(inputs, outputs, model_files):
    spark = SparkSession.builder.getOrCreate()
    assert spark.range(1000).count() == 1000
    spark.stop()
'''

# What a person would write who has no spark-runtime.
PLAIN_SCRIPT = '''\
import model

model.score([], [], [])
'''


def job(source, **more):
    """A job whose model is `source`."""
    asset = {
        "name": "model.py",
        "assetType": "SOURCE_CODE",
        "primaryModelSource": True,
        "scoreFunction": "score",
        "sourceCode": source,
    }
    return {
        "id": str(uuid.uuid4()),
        "jobType": "MODEL_BATCH_JOB",
        "model": {"storedModel": {"modelAssets": [asset, *more.pop("assets", [])]}},
        **more,
    }


def fake_job(*directives, **more):
    """A job for the pretended spark-submit."""
    lines = ["def score(inputs, outputs, model_files):", "    pass", *(f"# fake: {line}" for line in directives)]
    return job("\n".join(lines) + "\n", **more)


def spark_job():
    """A job for the real one."""
    return job(SPARK_MODEL, targetEngine={"sparkConf": SPARK_CONF})


# --------------------------------------------------------------------------------------------- processes


class Process:
    """A child in a session of its own, whose whole group is stopped at the end."""

    def __init__(self, arguments, environment, log):
        self.log = log
        with open(log, "ab") as file:
            self.child = subprocess.Popen(
                [str(argument) for argument in arguments],
                env=environment,
                cwd=HERE,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def must_run(self):
        if self.child.poll() is not None:
            tail = Path(self.log).read_text(errors="replace")[-2000:]
            raise SystemExit(f"{self.child.args[0]} ended with {self.child.returncode}:\n{tail}")

    def stop(self):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self.child.poll() is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                # Celery's pool is in the group; the guard of a worker has a session of its own and goes with it.
                os.killpg(self.child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(10)


def status(pid, key):
    """A line of /proc/PID/status in bytes; None when the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return None


def children(pid):
    """The processes that `pid` is the parent of."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


class PeakMemory(threading.Thread):
    """Watches the peak memory of processes until it is stopped: a peak is gone with its process."""

    def __init__(self, pids):
        """`pids` is a function that gives the processes of the moment, each under a name."""
        super().__init__(daemon=True)
        self._pids = pids
        self._over = threading.Event()
        self.peaks = {}
        self.start()

    def run(self):
        while not self._over.wait(0.01):
            self.look()

    def look(self):
        for name, pid in self._pids():
            self.peaks[name] = max(self.peaks.get(name, 0), status(pid, "VmHWM") or 0)

    def stop(self):
        self._over.set()
        self.join()
        return self.peaks


# --------------------------------------------------------------------------------------------- broker and messages


class Broker:
    """A private RabbitMQ for this run."""

    def __init__(self, script, folder):
        self._script = script
        self._folder = folder
        subprocess.run([script, "up", folder], check=True, stdout=subprocess.DEVNULL)
        lines = (folder / "broker.env").read_text().splitlines()
        self.uri = dict(line.split("=", 1) for line in lines)["AMQP_URI"]

    def connect(self):
        return pika.BlockingConnection(pika.URLParameters(self.uri))

    def wait_for_consumers(self, queue, count, process):
        """Waits until `process` has registered its consumers."""
        deadline = time.monotonic() + 60
        connection = self.connect()
        try:
            while True:
                process.must_run()
                with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
                    channel = connection.channel()
                    if channel.queue_declare(queue, passive=True).method.consumer_count >= count:
                        return
                    channel.close()
                if time.monotonic() > deadline:
                    raise SystemExit(f"nobody consumes from {queue}; see {process.log}")
                time.sleep(0.1)
        finally:
            connection.close()

    def remove(self):
        subprocess.run([self._script, "remove", self._folder], check=False)


class Listener(threading.Thread):
    """Notes when the end of each job arrives, on a connection of its own."""

    def __init__(self, broker, exchange=None):
        super().__init__(daemon=True)
        self._arrived = threading.Condition()
        self.ends = {}
        self._connection = broker.connect()
        self._channel = self._connection.channel()
        self._channel.basic_qos(prefetch_count=200)
        self.queue = self._channel.queue_declare("", exclusive=True).method.queue
        if exchange:
            # The end is all that is waited for; Celery tells no more than that either.
            for kind in ENDS:
                self._channel.queue_bind(self.queue, exchange, f"job.*.{kind}")
        self._channel.basic_consume(self.queue, self._heard, auto_ack=True)
        self.start()

    def run(self):
        self._channel.start_consuming()

    def _heard(self, _channel, delivery, properties, body):
        now = time.monotonic()
        if delivery.exchange:
            event = json.loads(body)
            kind = event["type"].split(".")[2]
            if kind not in ENDS:
                return
            key, outcome = event["subject"], kind
        else:
            key, outcome = properties.correlation_id, json.loads(body)["status"]
        with self._arrived:
            self.ends.setdefault(key, (now, outcome))
            self._arrived.notify_all()

    def wait_for(self, keys, good):
        """When the end of each of `keys` arrived. Anything but a good end is the end of the measurement."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: all(key in self.ends for key in keys), PATIENCE):
                missing = sum(key not in self.ends for key in keys)
                raise SystemExit(f"{missing} of {len(keys)} jobs have no end after {PATIENCE} s")
            bad = {self.ends[key][1] for key in keys} - {good}
            if bad:
                raise SystemExit(f"jobs ended {', '.join(bad)} instead of {good}")
            return {key: self.ends[key][0] for key in keys}

    def close(self):
        self._connection.add_callback_threadsafe(self._channel.stop_consuming)
        self.join(10)
        self._connection.close()


class System:
    """One of the two systems, as its publisher sees it."""

    def __init__(self, broker, listener):
        self._connection = broker.connect()
        self._channel = self._connection.channel()
        self._listener = listener

    def close(self):
        self._connection.close()

    def round(self, count):
        """Publishes `count` jobs at once. Gives jobs per second, from the first publication to the last end, and the
        latencies in seconds."""
        published = dict(self._publish() for _ in range(count))
        ends = self._listener.wait_for(published, self.good)
        seconds = max(ends.values()) - min(published.values())
        return count / seconds, [ends[key] - published[key] for key in published]

    def one_by_one(self, count):
        """The latencies of jobs of which each waits for the one before."""
        return [self.round(1)[1][0] for _ in range(count)]

    def _publish(self):
        self._connection.process_data_events(0)
        key, exchange, routing_key, body, properties = self.message()
        now = time.monotonic()
        self._channel.basic_publish(exchange, routing_key, body, properties)
        return key, now


class Ours(System):
    good = "completed"

    def __init__(self, broker, listener, make_job):
        super().__init__(broker, listener)
        self._make_job = make_job

    def message(self):
        document = self._make_job()
        body = json.dumps(document).encode()
        properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
        return document["id"], "spark.jobs", "spark.jobs", body, properties


class CelerySystem(System):
    """Speaks Celery's own task protocol (version 2), so that the client costs both systems the same."""

    good = "SUCCESS"

    def message(self):
        key = str(uuid.uuid4())
        embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        headers = {"lang": "py", "task": "bench.job", "id": key, "root_id": key, "parent_id": None, "group": None}
        properties = pika.BasicProperties(
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=2,
            correlation_id=key,
            reply_to=self._listener.queue,
            headers=headers,
        )
        return key, "", "celery", json.dumps([[], {}, embed]).encode(), properties


# --------------------------------------------------------------------------------------------- the bench


class Table:
    """The rows, shown as they come; remembers whether a bound was missed."""

    def __init__(self):
        self.missed = False
        self._row("what", "ours", "other", "figure", "bound", "")
        self._row(*["---"] * 6)

    def _row(self, *cells):
        print("| " + " | ".join(f"{cell:{width}}" for cell, width in zip(cells, (44, 16, 16, 10, 10, 6))) + " |", flush=True)

    def add(self, what, ours, other, figure, bound, is_kept):
        self.missed |= not is_kept
        self._row(what, ours, other, figure, bound, "ok" if is_kept else "MISSED")


class Bench(ClusterMeasurements, RecordMeasurements):
    job = staticmethod(job)

    def __init__(self, options, folder, table):
        self.options = options
        self.folder = folder
        self.table = table
        self._broker = None
        self._stack = contextlib.ExitStack()

    def close(self):
        self._stack.close()

    @property
    def broker(self):
        if self._broker is None:
            self._broker = Broker(self.options.broker, self.folder / "broker")
            self._stack.callback(self._broker.remove)
            environment = self.settings(self.fake_spark())
            subprocess.run([self.options.program, "topology", "declare"], env=environment, check=True, stdout=subprocess.DEVNULL)
        return self._broker

    def settings(self, *more):
        """The environment of our programs."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SPARK_", "PYSPARK_"))}
        environment["SPARK_RUNTIME__JOB__DIRECTORY"] = str(self.folder / "attempts")
        if self._broker is not None:
            environment["SPARK_RUNTIME__BROKER__URI"] = self._broker.uri
        for settings in more:
            environment.update({f"SPARK_RUNTIME__{key}": str(value) for key, value in settings.items()})
        return environment

    def fake_spark(self):
        return {"SPARK__SUBMIT": self.options.fake}

    def real_spark(self):
        return {"SPARK__HOME": self.options.spark_home, "SPARK__PYTHON": self.options.spark_python}

    @contextlib.contextmanager
    def worker(self, *settings, variables=(), dies=False):
        """A worker that takes jobs, and is gone afterwards; one that `dies` may be so before."""
        broker = self.broker
        environment = {**self.settings(*settings), **dict(variables)}
        process = Process([self.options.program, "worker"], environment, self.folder / "worker.log")
        try:
            broker.wait_for_consumers("spark.jobs", 1, process)
            yield process.child.pid
            if not dies:
                process.must_run()
        finally:
            process.stop()

    @contextlib.contextmanager
    def broker_alone(self):
        """What passes a job's messages as a worker has to, and does nothing else."""
        process = Process([self.options.alone, self.broker.uri, PARALLEL], dict(os.environ), self.folder / "alone.log")
        try:
            self.broker.wait_for_consumers("spark.jobs", PARALLEL, process)
            yield
            process.must_run()
        finally:
            process.stop()

    @contextlib.contextmanager
    def celery(self):
        environment = {**os.environ, "AMQP_URI": self.broker.uri}
        arguments = [sys.executable, "-m", "celery", "--app", "celery_app", "worker", "--pool", "prefork"]
        arguments += ["--concurrency", PARALLEL, "--without-gossip", "--without-mingle", "--without-heartbeat"]
        process = Process([*arguments, "--loglevel", "WARNING"], environment, self.folder / "celery.log")
        try:
            self.broker.wait_for_consumers("celery", 1, process)
            yield
            process.must_run()
        finally:
            process.stop()

    def write_job(self, document):
        path = self.folder / "job.json"
        path.write_text(json.dumps(document))
        return path

    # ---- wall time with a real Spark

    def plain_spark_submit(self):
        """Seconds of plain spark-submit of the same model under the same settings."""
        folder = self.folder / "plain"
        folder.mkdir(exist_ok=True)
        (folder / "model.py").write_text(SPARK_MODEL)
        (folder / "plain.py").write_text(PLAIN_SCRIPT)
        environment = self.settings()
        environment.update(
            SPARK_HOME=str(self.options.spark_home),
            PYSPARK_PYTHON=str(self.options.spark_python),
            PYSPARK_DRIVER_PYTHON=str(self.options.spark_python),
            SPARK_LOCAL_IP="127.0.0.1",
        )
        arguments = [Path(self.options.spark_home) / "bin" / "spark-submit", "--master", SPARK_CONF["--master"]]
        arguments += ["--conf", f"spark.ui.enabled={SPARK_CONF['spark.ui.enabled']}", "plain.py"]
        return self.timed(arguments, environment, folder)

    def timed(self, arguments, environment, folder):
        begin = time.monotonic()
        done = subprocess.run(arguments, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True)
        seconds = time.monotonic() - begin
        if done.returncode != 0:
            raise SystemExit(f"{arguments[0]} ended with {done.returncode}:\n{done.stderr[-2000:].decode(errors='replace')}")
        return seconds

    def spark_run(self):
        path = self.write_job(spark_job())
        return self.timed([self.options.program, "run", path], self.settings(self.real_spark()), self.folder)

    def compare_with_plain(self, what, ours):
        """Alternates `ours` and plain spark-submit; the first pair warms the disk's cache up."""
        ours()
        self.plain_spark_submit()
        pairs = [(ours(), self.plain_spark_submit()) for _ in range(self.options.runs)]
        # Of each pair by itself: the machine's mood changes slowly.
        more = statistics.median(mine - plain for mine, plain in pairs)
        mine, plain = (statistics.median(column) for column in zip(*pairs))
        self.table.add(what, f"{mine:.2f} s", f"{plain:.2f} s", f"{more:+.2f} s", "+0.30 s", more <= 0.3)

    def run(self):
        self.compare_with_plain("run over spark-submit", self.spark_run)

    def publish(self):
        with self.worker(self.real_spark(), {"WORKER__MAX_RUNNING": 1}):
            listener = Listener(self.broker, "spark.results")
            system = Ours(self.broker, listener, spark_job)
            self.compare_with_plain("publish to completed over spark-submit", lambda: system.one_by_one(1)[0])
            system.close()
            listener.close()

    # ---- against Celery

    def throughput(self):
        options = self.options
        limits = {"WORKER__MAX_RUNNING": PARALLEL, "WORKER__MAX_SUBMITS": PARALLEL}
        with self.worker({"SPARK__SUBMIT": self.options.true}, limits), self.celery():
            listeners = [Listener(self.broker, "spark.results"), Listener(self.broker)]
            systems = [Ours(self.broker, listeners[0], lambda: fake_job("complete")), CelerySystem(self.broker, listeners[1])]
            for system in systems:
                system.round(50)
            rates, bursts, alone = [], [], []
            for _ in range(options.rounds):
                rounds = [system.round(options.jobs) for system in systems]
                rates.append([rate for rate, _ in rounds])
                bursts.append([statistics.median(latencies) * 1000 for _, latencies in rounds])
                alone.append([statistics.median(system.one_by_one(options.jobs // 10)) * 1000 for system in systems])
            for part in (*systems, *listeners):
                part.close()
        # No worker can be faster than this on the same broker.
        with self.broker_alone(), self.celery():
            listeners = [Listener(self.broker, "spark.results"), Listener(self.broker)]
            systems = [Ours(self.broker, listeners[0], lambda: fake_job("complete")), CelerySystem(self.broker, listeners[1])]
            for system in systems:
                system.round(50)
            bare_rates, bare_alone = [], []
            for _ in range(options.rounds):
                bare_rates.append([system.round(options.jobs)[0] for system in systems])
                bare_alone.append([statistics.median(system.one_by_one(options.jobs // 10)) * 1000 for system in systems])
            for part in (*systems, *listeners):
                part.close()
        workers = f"{options.rounds} x {options.jobs} jobs"
        self.versus_celery(f"jobs/s, {workers}", rates, "/s", lambda ratio: ratio >= 1, ">= 1.0 x")
        self.versus_celery(f"p50 publish to end, {workers}", bursts, "ms", lambda ratio: ratio <= 1, "<= 1.0 x")
        self.versus_celery("p50 publish to end, one job at a time", alone, "ms", lambda ratio: ratio <= 1, "<= 1.0 x")

        self.versus_celery(f"the broker's part alone: jobs/s, {workers}", bare_rates, "/s", lambda _: True, "")
        self.versus_celery("the broker's part alone: p50, one at a time", bare_alone, "ms", lambda _: True, "")

    def versus_celery(self, what, pairs, unit, is_kept, bound):
        ours, other = (statistics.median(column) for column in zip(*pairs))
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        self.table.add(what, f"{ours:.1f} {unit}", f"{other:.1f} {unit}", f"{ratio:.2f} x", bound, is_kept(ratio))

    # ---- memory

    def idle(self):
        with self.worker(self.fake_spark()) as worker:
            time.sleep(self.options.idle_seconds)
            guards = children(worker)
            if len(guards) != 1:
                raise SystemExit(f"the worker has {len(guards)} children; its guard was to be the only one")
            memory = [(status(pid, "VmRSS") or 0) / MB for pid in (worker, *guards)]
        total = sum(memory)
        parts = " + ".join(f"{part:.1f}" for part in memory)
        self.table.add(f"idle worker + guard after {self.options.idle_seconds} s", f"{parts} MB", "", f"{total:.1f} MB", "15 MB", total <= 15)

    def staging(self):
        size = 100 * MB
        content = base64.b64encode(os.urandom(size)).decode()
        asset = {"name": "large.bin", "assetType": "FILE", "filename": "large.bin", "fileContent": content}
        path = self.write_job(fake_job("sleep 1", assets=[asset]))
        del content, asset
        process = Process([self.options.program, "run", path], self.settings(self.fake_spark()), self.folder / "run.log")
        peak = PeakMemory(lambda: [("run", process.child.pid)])
        code = process.child.wait(PATIENCE)
        peak = peak.stop()["run"]
        if code != 0:
            raise SystemExit(f"spark-runtime run ended with {code}; see {process.log}")
        self.table.add("run with a FILE asset of 100 MB, peak", f"{peak / MB:.0f} MB", "", f"{peak / size:.2f} x", "3 x", peak <= 3 * size)

    def log(self):
        size = 50 * MB
        with self.worker(self.fake_spark(), {"WORKER__MAX_RUNNING": 1, "LOG__LIMIT": "64MiB"}) as worker:
            listener = Listener(self.broker, "spark.results")
            quiet = Ours(self.broker, listener, lambda: fake_job("print x"))
            loud = Ours(self.broker, listener, lambda: fake_job(f"print-megabytes {size // 2**20}", "sleep 0.2"))
            quiet.one_by_one(20)
            guard = children(worker)[0]
            service = (worker, guard)
            before = sum(status(pid, "VmHWM") or 0 for pid in service)
            # Between the guard and the driver is a process for each job, which writes the log.
            shims = PeakMemory(lambda: [("shim", pid) for pid in children(guard)])
            loud.one_by_one(1)
            shim = shims.stop().get("shim", 0)
            after = sum(status(pid, "VmHWM") or 0 for pid in service)
            for part in (quiet, loud, listener):
                part.close()
        more = after - before
        self.table.add(
            "log of 50 MB, peak of worker + guard",
            f"{before / MB:.1f} > {after / MB:.1f} MB",
            f"shim {shim / MB:.1f} MB",
            f"{more / MB:+.2f} MB",
            "+1 MB",
            more <= MB and shim <= 10 * MB,
        )


    def upload(self):
        size = 1000 * 2**20
        there = self.folder / "there"
        there.mkdir()
        with self.s3() as endpoint:
            environment = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
            for name, url in (("a folder", there), ("S3", "s3a://bench/models")):
                # A worker for each: what the first one has taken it does not give back.
                settings = {"WORKER__MAX_RUNNING": 1, "STORAGE__S3_ENDPOINT": endpoint, "JOB__KEEP": "never"}
                with self.worker(self.fake_spark(), settings, variables=environment) as worker:
                    self.upload_to(name, url, size, worker)

    def upload_to(self, name, url, size, worker):
        def trains(*directives):
            document = fake_job(*directives, jobType="MODEL_BATCH_TRAINING_JOB", trainingOutput={"fileUrl": str(url)})
            document["model"]["storedModel"]["modelAssets"][0]["trainingFunction"] = "score"
            return document

        listener = Listener(self.broker, "spark.results")
        Ours(self.broker, listener, lambda: fake_job("print x")).one_by_one(20)
        before = status(worker, "VmHWM") or 0
        seconds = Ours(self.broker, listener, lambda: trains(f"write-megabytes outputDir/large {size >> 20}")).one_by_one(1)[0]
        after = status(worker, "VmHWM") or 0
        listener.close()
        more = after - before
        self.table.add(
            f"upload of 1 GB to {name}, peak of the worker",
            f"{before / MB:.1f} > {after / MB:.1f} MB",
            f"{seconds:.1f} s in all",
            f"{more / MB:+.1f} MB",
            "+64 MB",
            more <= 64 * MB,
        )

    # ---- choosing

    def runtimes(self):
        """Jobs that the last of 20 runtimes fits against jobs that require nothing, through a worker."""
        count = 20
        lines = []
        for number in range(1, count):
            # What is installed in it makes the difference; its Python is that of Spark.
            environment = self.folder / f"runtime-{number}"
            subprocess.run([self.options.spark_python, "-m", "venv", "--without-pip", environment], check=True)
            (packages,) = environment.glob("lib/python3*/site-packages")
            package = packages / f"only_here_{number}-1.0.dist-info"
            package.mkdir()
            (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: only-here-{number}\nVersion: 1.0\n")
            lines.append(f'[[runtime]]\nname = "r{number}"\npython = "{environment}"\n')
        listed = self.folder / "runtimes.toml"
        listed.write_text("".join(lines))
        wanted = base64.b64encode(f"only-here-{count - 1}==1.0\n".encode()).decode()
        requires = {"name": "requirements.txt", "assetType": "FILE", "assetRole": "REQUIRED_LIBRARIES"}
        requires.update(filename="requirements.txt", fileContent=wanted)
        settings = {"RUNTIMES__FILE": listed, "SPARK__PYTHON": self.options.spark_python, "WORKER__MAX_RUNNING": 1}
        with self.worker(self.fake_spark(), settings):
            listener = Listener(self.broker, "spark.results")
            other = dict(requires, assetRole="SOMETHING_ELSE")
            choosing = Ours(self.broker, listener, lambda: fake_job("complete", assets=[requires]))
            plain = Ours(self.broker, listener, lambda: fake_job("complete", assets=[other]))
            choosing.one_by_one(3)
            plain.one_by_one(3)
            rounds = 10 * self.options.rounds
            pairs = [(choosing.one_by_one(1)[0], plain.one_by_one(1)[0]) for _ in range(rounds)]
            for part in (choosing, plain, listener):
                part.close()
        more = statistics.median(mine - theirs for mine, theirs in pairs) * 1000
        ours, theirs = (statistics.median(column) * 1000 for column in zip(*pairs))
        self.table.add(f"publish to end, choosing among {count} runtimes", f"{ours:.1f} ms", f"{theirs:.1f} ms", f"{more:+.2f} ms", "+5 ms", more <= 5)

    @contextlib.contextmanager
    def s3(self):
        """A real S3 server with a folder of its own."""
        folder = self.folder / "s3"
        folder.mkdir()
        names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")
        with contextlib.ExitStack() as held:
            sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
            ports = dict(zip(names, (one.getsockname()[1] for one in sockets)))
        arguments = [self.options.weed, "server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0"]
        arguments += [f"-dir={folder}", f"-filer.localSocket={folder / 'filer.sock'}"]
        arguments += [f"-{name}={port}" for name, port in ports.items()]
        environment = {**os.environ, "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
        process = Process(arguments, environment, self.folder / "s3.log")
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        try:
            deadline = time.monotonic() + 60
            while True:
                process.must_run()
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(endpoint + "/healthz", timeout=10).close()
                    break
                if time.monotonic() > deadline:
                    raise SystemExit(f"the S3 server does not answer; see {process.log}")
                time.sleep(0.1)
            yield endpoint
        finally:
            process.stop()

    # ---- the ledger

    def claims(self):
        arguments = [self.options.round_trips, self.broker.uri, "1000"]
        measured = json.loads(subprocess.run(arguments, capture_output=True, check=True, text=True).stdout)
        claim, settle, both = (measured[name] / 1000 for name in ("claim", "settle", "both"))
        parts = f"{claim:.1f} + {settle:.1f} ms"
        self.table.add("claim and settlement, read back: p50 of 1000", parts, "", f"{both:.1f} ms", "4 ms", both <= 4)

    def ledger(self):
        """The start of a worker that finds a million records, half a million jobs that have ended.

        No worker was there when they were written, so that the first one finds no checkpoint; it writes one for the next.
        """
        records = 1_000_000
        self.fill_ledger(records)
        what = f"start with {records} records in the ledger"
        begun = time.monotonic()
        with self.worker(self.fake_spark()):
            seconds = time.monotonic() - begun
            self.table.add(f"{what}, no checkpoint", f"{seconds:.1f} s", "", f"{seconds:.1f} s", "", True)
            until = time.monotonic() + 60
            while b"a checkpoint of the ledger is written" not in (self.folder / "worker.log").read_bytes():
                if time.monotonic() > until:
                    raise SystemExit("the worker writes no checkpoint of the ledger")
                time.sleep(0.1)
            # Workers look for one only where the broker has counted some, which it does every few seconds.
            time.sleep(10)
        begun = time.monotonic()
        with self.worker(self.fake_spark()) as worker:
            seconds = time.monotonic() - begun
            rss = status(worker, "VmRSS") or 0
        if b"the ledger is read on from a checkpoint" not in (self.folder / "worker.log").read_bytes():
            raise SystemExit("the worker found no checkpoint of the ledger")
        index = rss / (records / 2)
        self.table.add(what, f"{seconds:.1f} s", "", f"{seconds:.1f} s", "10 s", seconds <= 10)
        self.table.add("the worker's whole memory by settled job", f"{rss / MB:.0f} MB", "", f"{index:.0f} B", "", True)

    def fill_ledger(self, records):
        connection = self.broker.connect()
        channel = connection.channel()
        at = int(time.time() * 1000)
        instance = "00000000000000aa"
        exchange = "spark.ledger"

        def write(sequence, record):
            entry = {"version": 1, "instance": instance, "sequence": sequence, "records": [record]}
            channel.basic_publish(exchange, "", json.dumps(entry, separators=(",", ":")).encode(), pika.BasicProperties(delivery_mode=2))

        write(0, {"renew": {"name": "bench", "lease_ms": 60000}})
        # Where a claim has come to lie, the broker alone knows.
        reading = connection.channel()
        reading.basic_qos(prefetch_count=2000)
        read = reading.consume(exchange, arguments={"x-stream-offset": "first"})

        def take():
            method, properties, body = next(read)
            reading.basic_ack(method.delivery_tag)
            return json.loads(body)["records"][0], properties.headers["x-stream-offset"]

        for first in range(0, records // 2, FILLED_TOGETHER):
            numbers = range(first, min(first + FILLED_TOGETHER, records // 2))
            for number in numbers:
                job = str(uuid.UUID(int=number))
                write(2 * number + 1, {"claim": {"job": job, "digest": "00000000000000ff", "terms": "free", "at": at}})
            offsets = {}
            while len(offsets) < len(numbers):
                record, offset = take()
                if claim := record.get("claim"):
                    offsets[claim["job"]] = offset
            for number in numbers:
                job = str(uuid.UUID(int=number))
                write(2 * number + 2, {"settle": {"job": job, "claim": offsets[job] << 8, "end": "completed", "at": at}})
        # What was not taken would be given back, which streams do not know.
        while take()[0].get("settle", {}).get("job") != job:
            pass
        reading.cancel()
        # What comes after it has been taken when this is answered.
        channel.confirm_delivery()
        write(records + 1, {"renew": {"name": "bench", "lease_ms": 60000}})
        connection.close()


# Jobs that are claimed before they are settled when a ledger is filled.
FILLED_TOGETHER = 2000

MEASUREMENTS = ["run", "publish", "throughput", "idle", "staging", "log", "upload", "claims", "ledger"]
MEASUREMENTS += ["records", "contract", "small", "large", "runtimes", "overhead", "adoption", "followed"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("program", "fake", "true", "alone", "round-trips", "broker", "spark-home", "spark-python", "weed"):
        parser.add_argument(f"--{name}", required=True, type=lambda text: str(Path(text).absolute()))
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help="some of the names above, with commas")
    parser.add_argument("--rounds", type=int, default=5, help="rounds against Celery")
    parser.add_argument("--jobs", type=int, default=400, help="jobs in each of them")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs with a real Spark")
    parser.add_argument("--idle-seconds", type=int, default=30)
    options = parser.parse_args()
    options.only = options.only.split(",")
    unknown = set(options.only) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def main():
    options = arguments()
    # A signal has to pass through the clean-up below.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="spark-runtime-bench-"))
    table = Table()
    bench = Bench(options, folder, table)
    is_over = False
    try:
        for name in options.only:
            getattr(bench, name)()
        is_over = True
    finally:
        bench.close()
        if is_over:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"logs are in {folder}", file=sys.stderr)
    return 1 if table.missed else 0


if __name__ == "__main__":
    sys.exit(main())
