"""What record models cost: the measurements of bench.py whose other side is a Python program of a person's own.

Such a program reads the same files, calls the same function for each record and writes the same bytes; that both wrote
the same is looked at each time. Times are those of whole processes, from their start to their end: for us that is
`spark-runtime run job.json`, with all that it checks, stages, starts and collects.
"""

import filecmp
import itertools
import json
import os
import statistics
import subprocess
import threading
import time
from pathlib import Path

MB = 1_000_000
SPARK_CONF = {"--master": "local[2]"}
"""Two cores, and nothing else that would make a session start faster than by default."""

BUSY_SECONDS = 200e-6
BUSY_MODEL = """\
def score(record):
    number = record["age"]
    for step in range({steps}):
        number = (number * 31 + step) % 1009
    yield {{"id": record["id"], "score": number}}
"""
PASSING_MODEL = """\
def score(record):
    yield record
"""
# What a person would write for it who has no spark-runtime, with an encoder made once.
PLAIN_LOOP = """\
import json
import sys

import model

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
with open(sys.argv[1], encoding="utf-8") as source, open(sys.argv[2], "w", encoding="utf-8") as target:
    for line in source:
        for result in model.score(json.loads(line)):
            target.write(encode(result) + "\\n")
"""
CALIBRATION = """\
import sys
import time

import model

records = [{"id": number, "age": number % 90} for number in range(2000)]
least = None
for _ in range(5):
    begin = time.process_time()
    for record in records:
        list(model.score(record))
    seconds = (time.process_time() - begin) / len(records)
    least = seconds if least is None else min(least, seconds)
print(least)
"""
FIELDS = ("long", "string", "double", "boolean")


def schema(count):
    """The Avro schema of the records of `wide`."""
    fields = [{"name": f"field_{place}", "type": FIELDS[place % 4]} for place in range(count)]
    return {"type": "record", "name": "Row", "fields": fields}


def wide(number, count):
    values = (number, f"text {number}", number * 0.5, number % 2 == 0)
    return {f"field_{place}": values[place % 4] for place in range(count)}


class TreeMemory(threading.Thread):
    """Watches the memory of a process and all below it, shared pages counted once, until it is stopped."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self._pid = pid
        self._over = threading.Event()
        self.peak = 0
        self.start()

    def run(self):
        while not self._over.wait(0.1):
            self.peak = max(self.peak, sum(map(self._proportional, self._tree(self._pid))))

    def _tree(self, pid):
        yield pid
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                below = task.read_text().split()
            except OSError:
                continue
            for child in below:
                yield from self._tree(int(child))

    @staticmethod
    def _proportional(pid):
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            # It is gone.
            pass
        return 0

    def stop(self):
        self._over.set()
        self.join()
        return self.peak


class RecordMeasurements:
    """The methods of Bench for record models."""

    def records(self):
        """A function that takes 200 microseconds, on a session with two cores against one plain process."""
        count = 200_000
        steps = 1500
        for _ in range(3):
            steps = max(int(steps * BUSY_SECONDS / self.seconds_by_record(BUSY_MODEL.format(steps=steps))), 1)
        source = BUSY_MODEL.format(steps=steps)
        path = self.lines("busy.jsonl", count, lambda number: {"id": number, "age": number % 90, "name": f"name {number}"})
        settings = {"RECORDS__PROCESS_BELOW": "0B"}
        pairs = self.record_pairs(source, path, settings, targetEngine={"sparkConf": SPARK_CONF})
        ours, plain = (statistics.median(count / seconds for seconds in column) for column in zip(*pairs))
        ratio = statistics.median(theirs / mine for mine, theirs in pairs)
        what = f"{count} records of 200 us, local[2] over one process"
        self.table.add(what, f"{ours:.0f} /s", f"{plain:.0f} /s", f"{ratio:.2f} x", ">= 1.6 x", ratio >= 1.6)

    def contract(self):
        """What a record costs on top of reading, calling and writing, without and with a schema."""
        count = 400_000
        path = self.lines("wide.jsonl", count, lambda number: wide(number, 12))
        settings = {"RECORDS__PROCESS_BELOW": "1TiB"}
        checked = {
            "enableInputSchemaChecking": True,
            "metadata": {"inputSchema": [{"schemaDefinition": schema(12)}]},
        }
        for what, more, bound in (("without checks", {}, 5), ("with a schema of 12 fields", checked, 15)):
            pairs = self.record_pairs(PASSING_MODEL, path, settings, **more)
            cost = statistics.median((mine - plain) / count * 1e6 for mine, plain in pairs)
            ours, plain = (statistics.median(column) for column in zip(*pairs))
            what = f"a record {what}, over a plain loop"
            self.table.add(what, f"{ours:.2f} s", f"{plain:.2f} s", f"{cost:+.2f} us", f"+{bound} us", cost <= bound)

    def small(self):
        """A thousand records, which need no session."""
        count = 1000
        path = self.lines("small.jsonl", count, lambda number: wide(number, 12))
        pairs = self.record_pairs(PASSING_MODEL, path, {}, runs=2 * self.options.runs + 1)
        more = statistics.median(mine - plain for mine, plain in pairs)
        mine, plain = (statistics.median(column) for column in zip(*pairs))
        self.table.add(f"run of {count} records over python", f"{mine:.2f} s", f"{plain:.2f} s", f"{more:+.2f} s", "+0.40 s", more <= 0.4)

    def large(self):
        """The memory of all processes of a run over 2 GB, on either way."""
        size = 2000 * MB
        path = self.folder / "large.jsonl"
        block = "".join(json.dumps(wide(number, 12)) + "\n" for number in range(50_000)).encode()
        with open(path, "wb") as file:
            for _ in range(size // len(block) + 1):
                file.write(block)
        for way, below in (("on Spark", "0B"), ("in one process", "1TiB")):
            job, _ = self.record_job(PASSING_MODEL, path, targetEngine={"sparkConf": SPARK_CONF})
            settings = self.settings(self.real_spark(), {"RECORDS__PROCESS_BELOW": below})
            begin = time.monotonic()
            with open(self.folder / "run.log", "wb") as log:
                child = subprocess.Popen([self.options.program, "run", job], env=settings, stdout=log, stderr=log)
                memory = TreeMemory(child.pid)
                code = child.wait()
            seconds = time.monotonic() - begin
            peak = memory.stop()
            if code != 0:
                raise SystemExit(f"spark-runtime run ended with {code}; see {self.folder / 'run.log'}")
            what = f"2 GB of records {way}, all processes"
            self.table.add(what, f"{peak / MB:.0f} MB", f"{seconds:.0f} s", f"{peak / MB:.0f} MB", "1000 MB", peak <= 1000 * MB)
        path.unlink()

    # ---- what they share

    def seconds_by_record(self, source):
        """How long the function of `source` takes for a record, in a process of its own."""
        folder = self.folder / "plain"
        folder.mkdir(exist_ok=True)
        (folder / "model.py").write_text(source)
        (folder / "calibration.py").write_text(CALIBRATION)
        done = subprocess.run([self.options.spark_python, "-B", "calibration.py"], cwd=folder, check=True, capture_output=True)
        return float(done.stdout)

    def lines(self, name, count, make):
        """A file with so many records."""
        path = self.folder / name
        with open(path, "w") as file:
            for numbers in itertools.zip_longest(*[iter(range(count))] * 1000):
                file.write("".join(json.dumps(make(number)) + "\n" for number in numbers if number is not None))
        return path

    def record_job(self, source, path, metadata=None, **more):
        """Writes a job of a record model; gives its path and that of its output."""
        target = self.folder / "ours.jsonl"
        document = self.job(
            source,
            inputData=[{"name": "in", "assetType": "EXTERNAL_FILE", "fileUrl": str(path)}],
            outputData=[{"name": "out", "assetType": "EXTERNAL_FILE", "fileUrl": str(target)}],
            **more,
        )
        if metadata:
            document["model"]["storedModel"]["modelMetaData"] = metadata
        return self.write_job(document), target

    def record_pairs(self, source, path, settings, runs=None, **more):
        """Seconds of our runs and of the plain program's, in turn; the first pair warms the disk's cache up."""
        environment = self.settings(self.real_spark(), settings)
        folder = self.folder / "plain"
        folder.mkdir(exist_ok=True)
        (folder / "model.py").write_text(source)
        (folder / "loop.py").write_text(PLAIN_LOOP)
        theirs = folder / "out.jsonl"
        plain = [self.options.spark_python, "loop.py", path, theirs]

        def pair():
            job, target = self.record_job(source, path, **more)
            ours_took = self.timed([self.options.program, "run", job], environment, self.folder)
            plain_took = self.timed(plain, os.environ, folder)
            if not filecmp.cmp(target, theirs, shallow=False):
                raise SystemExit(f"{target} and {theirs} are not the same")
            target.unlink()
            return ours_took, plain_took

        pair()
        return [pair() for _ in range(runs or self.options.runs)]
