#!/usr/bin/env python3
"""Shows what became of the jobs of make_jobs.py, and checks that it is what they are made for.

    deploy/examples/show_results.py FOLDER EVENTS

FOLDER is the one that make_jobs.py filled, EVENTS a file with one event a line, as ``spark-runtime watch --json``
prints them. Waits until every job has its end in it. Exits 1 when an outcome is not the expected one.
"""

import base64
import csv
import json
import sys
import time
from datetime import datetime
from pathlib import Path

EXPECTED = {
    "training": "completed",
    "scoring": "completed",
    "metrics": "completed",
    "failing": "failed",
    "invalid": "rejected",
}
ENDS = {"completed", "failed", "cancelled", "rejected"}
PATIENCE_SECONDS = 20


def kind(event):
    """The word of an event: its type is ``spark-runtime.job.<word>.v1``."""
    return event["type"].split(".")[2]


def read_events(path):
    """Every event once: the same id again is the same event published again. A line still being written is left out."""
    events = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n") and line.strip():
            event = json.loads(line)
            events.setdefault(event["id"], event)
    return list(events.values())


def wait_for_ends(path, ids):
    """The events, once every job has an end or patience is over: a watcher may be a moment behind a submitter."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        events = read_events(path)
        ended = {event["subject"] for event in events if kind(event) in ENDS}
        if ended.issuperset(ids) or time.monotonic() > deadline:
            return events
        time.sleep(0.1)


def seconds_between(first, last):
    moments = (datetime.fromisoformat(event["time"][:23].rstrip("Z") + "+00:00") for event in (last, first))
    return (next(moments) - next(moments)).total_seconds()


class Report:
    """Prints the results and remembers what is not as expected."""

    def __init__(self, folder, events):
        self.folder = folder
        self.events = events
        self.surprises = []

    def check(self, holds, surprise):
        if not holds:
            self.surprises.append(surprise)

    def end_of(self, job_id):
        ends = [event for event in self.events if event["subject"] == job_id and kind(event) in ENDS]
        self.check(len(ends) <= 1, f"job {job_id} has {len(ends)} ends")
        return ends[0] if ends else None

    def table(self, ids):
        print(f"{'job':<10} {'outcome':<10} {'seconds':>7}  id")
        ends = {}
        for name, job_id in ids.items():
            end = self.end_of(job_id)
            outcome = kind(end) if end else "no end"
            first = next((event for event in self.events if event["subject"] == job_id), end)
            seconds = f"{seconds_between(first, end):7.1f}" if end else " " * 7
            print(f"{name:<10} {outcome:<10} {seconds}  {job_id}")
            self.check(outcome == EXPECTED[name], f"{name}: expected {EXPECTED[name]}, got {outcome}")
            ends[name] = end["data"] if end else {}
        return ends

    def metrics(self, data):
        results = data.get("results") or {}
        print("\nmetrics of the trained pipeline, as the event carries them:")
        print("  " + json.dumps(results))
        self.check(0.7 < results.get("auc", 0) < 1, f"metrics: the auc is {results.get('auc')}")

    def scores(self, data):
        parts = sorted((self.folder / "scored").glob("part-*.csv"))
        rows = [row for part in parts for row in csv.reader(part.open(encoding="utf-8"))]
        print("\nfirst lines of the scored CSV:")
        for row in rows[:4]:
            print("  " + ",".join(row))
        print(f"  ... {max(0, len(rows) - 1)} passengers")
        self.check(len(rows) == 501, f"scoring: expected 500 scored passengers, got {len(rows) - 1}")

        files = {asset.get("name"): asset for asset in data.get("outputData") or [] if asset.get("assetType") == "FILE"}
        content = base64.b64decode(files.get("summary.json", {}).get("fileContent") or "")
        print("summary.json, inside the event:")
        print("  " + content.decode("utf-8", "replace").strip())
        try:
            passengers = json.loads(content)["passengers"]
        except (ValueError, KeyError, TypeError):
            passengers = None
        self.check(passengers == 500, "scoring: summary.json did not come back in the event")

    def failure(self, data):
        failure = data.get("failure") or {}
        exception = failure.get("exception") or {}
        frame = exception.get("frame") or failure.get("frame") or {}
        print("\nwhy the failing job failed:")
        print(f"  {failure.get('class')}: {failure.get('message')}")
        print(f"  {frame.get('file')}:{frame.get('line')}: {(frame.get('text') or '').strip()}")
        self.check(failure.get("class") == "model", f"failing: the class is {failure.get('class')}")
        self.check("must lie between 0 and 1" in (failure.get("message") or ""), "failing: the message is not the model's")
        self.check(frame.get("file") == "survival_rules/limits.py", f"failing: the place is {frame.get('file')}")

    def faults(self, data):
        faults = data.get("faults") or []
        print("\nwhy the invalid job was rejected:")
        for fault in faults:
            print(f"  {fault.get('pointer')} {fault.get('message')}")
        self.check(len(faults) >= 4, f"invalid: expected four faults at least, got {len(faults)}")


def main():
    if len(sys.argv) != 3:
        print("usage: show_results.py FOLDER EVENTS", file=sys.stderr)
        return 64
    folder, events_path = Path(sys.argv[1]), Path(sys.argv[2])
    ids = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["id"] for name in EXPECTED}
    report = Report(folder, wait_for_ends(events_path, ids.values()))
    ends = report.table(ids)
    report.metrics(ends["metrics"])
    report.scores(ends["scoring"])
    report.failure(ends["failing"])
    report.faults(ends["invalid"])
    for surprise in report.surprises:
        print(f"not as expected: {surprise}", file=sys.stderr)
    return 1 if report.surprises else 0


if __name__ == "__main__":
    sys.exit(main())
