#!/usr/bin/env python3
"""Holds ModelOpCluster.py to its promises.

As in test_driver.py, the real driver runs as a child, here beside an unpacked archive and with the job's folder on this
machine, which it reaches as in a cluster: by Hadoop's file system in a JVM of Spark that is there already. One JVM serves
almost all tests. It has no locale, as in many a container. They need pyspark and Java, and are skipped where these are
missing; they take less than a minute where nothing else goes on. Run it with any Python from 3.8::

    python3 worker/driver/test_cluster.py
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

import test_driver
from test_driver import SECONDS, has_module

HERE = os.path.dirname(os.path.abspath(__file__))
UNPACKED = "spark_runtime_work"
ODD_NAMES = ["m:1.bin", "a b, c", "\u00fc\u4e2d\U0001f600", "#%41?", "[x]{y}*", "-", "new\nline", "'\"\\"]


class Java:
    """A JVM of Spark, as it starts drivers in a cluster."""

    def __init__(self):
        import pyspark
        from py4j.clientserver import ClientServer, JavaParameters, PythonParameters

        home = os.path.dirname(pyspark.__file__)
        self.folder = tempfile.mkdtemp(prefix="driver-test-java-")
        told = os.path.join(self.folder, "told")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYSPARK_"))}
        environment.update(
            SPARK_HOME=home, SPARK_LOCAL_IP="127.0.0.1", LC_ALL="C", _PYSPARK_DRIVER_CONN_INFO_PATH=told
        )
        # It ends with the last that holds its standard input: this process.
        self.process = subprocess.Popen(
            [os.path.join(home, "bin", "spark-submit"), "--master", "local[1]", "--conf", "spark.ui.enabled=false"]
            + ["--driver-java-options", "-XX:TieredStopAtLevel=1", "pyspark-shell"],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + SECONDS
        while not os.path.exists(told):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("no JVM of Spark can be started")
            time.sleep(0.02)
        with open(told, "rb") as file:
            self.port = int.from_bytes(file.read(4), "big")
            self.secret = file.read(int.from_bytes(file.read(4), "big")).decode("utf-8")
        same = {"port": self.port, "auth_token": self.secret, "enable_memory_management": False}
        self._gateway = ClientServer(JavaParameters(**same), PythonParameters(port=0, eager_load=False))

    def stop_context(self):
        """Stops the Spark context that is there; whether there was one."""
        spark = self._gateway.jvm.org.apache.spark
        context = getattr(getattr(spark, "SparkContext$"), "MODULE$").getActive()
        if context.isDefined():
            context.get().stop()
        return context.isDefined()

    def end(self):
        self._gateway.close()
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


_java = []


def shared_java():
    if not _java:
        _java.append(Java())
    return _java[0]


def tearDownModule():
    while _java:
        _java.pop().end()


@unittest.skipUnless(has_module("pyspark") and shutil.which("java"), "pyspark or Java is not installed")
class ClusterTest(test_driver.DriverTest):
    """A container's folder with the unpacked archive in it, and a job's folder elsewhere."""

    def setUp(self):
        super().setUp()
        self.shared = os.path.join(self.job_folder, "shared")
        os.mkdir(self.shared)
        self.archive = os.path.join(self.folder, UNPACKED)
        os.makedirs(os.path.join(self.archive, "work"))
        shutil.copy(os.path.join(HERE, "ModelOpCluster.py"), self.archive)
        self.issue("t1")
        self.tell_driver()
        self.use(shared_java())

    def renew(self):
        """Everything as it was before the first launch."""
        for name in os.listdir(self.folder):
            path = os.path.join(self.folder, name)
            if name in (UNPACKED, "ModelOpPySparkDriver.py"):
                continue
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
        shutil.rmtree(self.shared)
        os.mkdir(self.shared)
        self.issue("t1")

    def use(self, java):
        self.java = java
        self.environment["PYSPARK_GATEWAY_PORT"] = str(java.port)
        self.environment["PYSPARK_GATEWAY_SECRET"] = java.secret

    def issue(self, ticket):
        with open(os.path.join(self.shared, ticket), "w") as file:
            file.write("{}")

    def tell_driver(self, **told):
        known = {"jobFolder": "file://" + self.shared, "ticket": "t1", "outputs": [], "outputFolder": None}
        with open(os.path.join(self.archive, "model_cluster.json"), "w") as file:
            json.dump(dict(known, **told), file)

    def write(self, name, content):
        """The job's files are in the archive."""
        super().write(os.path.join(UNPACKED, "work", name), content)

    def run_driver(self, expect_end=True):
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            process = self.start("--cluster", UNPACKED, stdout=stdout, stderr=stderr)
            code = process.wait(SECONDS)
            stdout.seek(0)
            stderr.seek(0)
            end = self.told()
            return test_driver.Ended([] if end is None else [end], code, stdout.read(), stderr.read(), self.folder)

    def told(self, ticket="t1"):
        """What a driver has left as its last word, or None."""
        try:
            with open(os.path.join(self.shared, ticket + ".end"), "rb") as file:
                text = file.read()
        except FileNotFoundError:
            return None
        self.assertTrue(text.endswith(b"}\n") and text.count(b"\n") == 1, text[-100:])
        return json.loads(text.decode("ascii"), parse_constant=self.fail)

    def files(self, ended):
        """The contents of the files that were sent, by their paths."""
        sent = {}
        for file in ended.end["files"]:
            with open(os.path.join(self.shared, "t1.files", str(file["file"])), "rb") as content:
                sent[file["path"]] = content.read()
        self.assertEqual(len(sent), len(ended.end["files"]))
        return sent

    def left(self):
        """What lies in the job's folder, but for what Hadoop puts beside every file of a local file system."""
        return sorted(name for name in os.listdir(self.shared) if not name.endswith(".crc"))

    def assert_completed(self, ended, results=None):
        self.assertEqual(ended.code, 0, ended.stderr)
        self.assertEqual(ended.end["message"], "completed", ended.end)
        self.assertEqual(ended.end["results"], results)

    def assert_failed(self, ended, kind, error_type=None):
        self.assertEqual(ended.code, 1, ended.stderr)
        # None of the files that it may have left.
        self.assertEqual(set(ended.end), {"message", "kind", "exception", "functions"})
        self.assertEqual(self.left(), ["t1.end", "t1.taken"])
        self.assertEqual((ended.end["message"], ended.end["kind"]), ("failed", kind), ended.end)
        if error_type is not None:
            self.assertEqual(ended.end["exception"]["type"], error_type, ended.end)
        return ended.end["exception"]

    def assert_not_run(self, ended, code, *texts):
        """It ended with ``code``, a last line in the log that has the ``texts``, and without a report."""
        self.assertEqual(ended.code, code, ended.stderr)
        last = ended.stderr.decode().splitlines()[-1]
        self.assertTrue(last.startswith("ModelOpPySparkDriver.py: "), ended.stderr)
        for text in texts:
            self.assertIn(text, last)
        self.assertIsNone(self.told())

    def assert_not_loaded(self):
        self.assertFalse(os.path.exists(os.path.join(self.folder, "imported")))


NOTING = "open('imported', 'w').close()\ndef score(a, b, c):\n    pass\n"


class Ticket(unittest.TestCase):
    def test_a_launch_counts_no_more_when_that_was_said_twice_in_a_row_and_never_because_nobody_answers(self):
        import ModelOpCluster

        answers = [True, False, True, False, OSError("away"), False, OSError("away"), True, False, False]
        slept, ends = [], []

        def counts():
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        ModelOpCluster.wait_until_called_off(counts, lambda: ends.append(True), slept.append)
        self.assertEqual((answers, ends), ([], [True]))
        self.assertEqual(slept, [5, 5, 1, 5, 1, 5, 1, 5, 5, 1])


class Files(ClusterTest):
    def test_the_jobs_files_are_brought_whatever_their_names(self):
        names = ODD_NAMES + ["pkg/deep/" + name for name in ODD_NAMES] + ["pkg/__init__.py", ".hidden", "empty"]
        for name in names:
            self.write(name, b"" if name == "empty" else name.encode("utf-8") * 3)
        os.makedirs(os.path.join(self.archive, "work", "outputDir", "none"))
        ended = self.run_model(
            """
            import os
            import pkg
            def score(a, b, c):
                assert a[0]["name"] == "test.csv"
                assert os.listdir("outputDir/none") == []
            """,
            files={"pkg/__init__.py": ""},
        )
        self.assert_completed(ended)
        for name in names:
            if name != "pkg/__init__.py":
                self.assertEqual(ended.read(name), "" if name == "empty" else name * 3)

    def test_what_is_there_already_stays(self):
        elsewhere = os.path.join(self.job_folder, "elsewhere")
        with open(elsewhere, "w") as file:
            file.write("came alone")
        os.symlink(elsewhere, os.path.join(self.folder, "data.csv"))
        os.symlink(os.path.join(self.job_folder, "missing"), os.path.join(self.folder, "gone"))
        os.mkdir(os.path.join(self.folder, "pkg"))
        with open(os.path.join(self.folder, "pkg", "own"), "w") as file:
            file.write("own")
        ended = self.run_model(
            "def score(a, b, c):\n    pass\n",
            files={"data.csv": "archive", "gone": "archive", "pkg/own": "archive", "pkg/new": "archive"},
        )
        self.assert_completed(ended)
        self.assertEqual([ended.read(n) for n in ("data.csv", "pkg/own", "pkg/new")], ["came alone", "own", "archive"])
        self.assertFalse(os.path.exists(os.path.join(self.job_folder, "missing")))

    def test_the_output_folder_is_there_though_no_archive_brings_an_empty_one(self):
        self.tell_driver(outputFolder="outputDir")
        ended = self.run_model("def score(a, b, c):\n    open('outputDir/x', 'w').write('x')\n")
        self.assert_completed(ended)
        self.assertEqual(self.files(ended), {"outputDir/x": b"x"})

    def test_files_of_the_model_do_not_take_the_place_of_what_the_driver_needs(self):
        trap = "raise SystemExit('loaded into the driver')\n"
        names = ["pyspark/__init__.py", "py4j/__init__.py", "json.py", "stat.py", "socket.py", "logging.py"]
        ended = self.run_model("def score(a, b, c):\n    pass\n", files={name: trap for name in names})
        self.assert_completed(ended)

    def test_an_archive_that_is_missing_or_broken_is_exit_70_before_the_ticket_is_taken(self):
        def without(*path):
            path = os.path.join(self.archive, *path)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)

        def cut(name, text):
            with open(os.path.join(self.archive, name), "w") as file:
                file.write(text)

        spoilers = [
            (lambda: without(), "ModelOpCluster"),
            (lambda: without("ModelOpCluster.py"), "ModelOpCluster"),
            (lambda: cut("ModelOpCluster.py", "def cut_o"), "ModelOpCluster"),
            (lambda: cut("ModelOpCluster.py", ""), "ModelOpCluster"),
            (lambda: without("model_cluster.json"), "model_cluster.json"),
            (lambda: cut("model_cluster.json", '{"jobFolder": '), "model_cluster.json"),
            (lambda: cut("model_cluster.json", "[]"), "model_cluster.json"),
            (lambda: cut("model_cluster.json", '{"jobFolder": "x", "ticket": "t1"}'), "model_cluster.json"),
            (lambda: without("work"), "work"),
        ]
        self.stage(NOTING)
        kept = os.path.join(self.job_folder, "kept")
        shutil.copytree(self.archive, kept)
        for spoil, text in spoilers:
            shutil.rmtree(self.archive, ignore_errors=True)
            shutil.copytree(kept, self.archive)
            spoil()
            ended = self.run_driver()
            self.assert_not_run(ended, 70, text)
            self.assertEqual(len(ended.stderr.decode().splitlines()), 1, ended.stderr)
            self.assertEqual(self.left(), ["t1"])
            self.assert_not_loaded()

    def test_a_file_in_the_place_of_a_folder_is_exit_70(self):
        self.stage(NOTING, files={"pkg/deep.py": ""})
        with open(os.path.join(self.folder, "pkg"), "w"):
            pass
        self.assert_not_run(self.run_driver(), 70, "cannot bring the job's files", "pkg")
        self.assertEqual(self.left(), ["t1"])


class Tickets(ClusterTest):
    def test_a_ticket_is_taken_before_anything_of_the_model_is_loaded(self):
        ended = self.run_model(
            """
            import os
            seen = sorted(os.listdir({!r}))
            def metrics(a, b, c):
                return {{"seen": [name for name in seen if not name.endswith(".crc")]}}
            """.format(self.shared),
            job_type="MODEL_BATCH_TEST_JOB",
            function="metrics",
        )
        self.assert_completed(ended, {"seen": ["t1.taken"]})
        self.assertEqual(self.left(), ["t1.end", "t1.taken"])

    def test_a_driver_without_its_ticket_is_exit_75_and_loads_nothing(self):
        self.stage(NOTING)
        # Revoked; taken by another; the whole folder removed.
        steps = [
            lambda: os.unlink(os.path.join(self.shared, "t1")),
            lambda: self.issue("t1.taken"),
            lambda: shutil.rmtree(self.shared),
        ]
        for step in steps:
            step()
            before = os.path.exists(self.shared) and self.left()
            self.assert_not_run(self.run_driver(), 75, "t1")
            self.assert_not_loaded()
            self.assertEqual(os.path.exists(self.shared) and self.left(), before)

    def test_a_driver_whose_taken_ticket_is_removed_while_it_runs_is_exit_75(self):
        # Whatever the model does with what lies around it.
        for odd in ("pass", "os.closerange(3, 256)", "socket.setdefaulttimeout(0.5)", "time.sleep = os._exit = None"):
            with self.subTest(odd):
                self.renew()
                self.stage(
                    "import os, socket, time\nsleep = time.sleep\ndef score(a, b, c):\n    {}\n"
                    "    open({!r}, 'w').close()\n    while True:\n        sleep(0.1)\n".format(
                        odd, self.job_folder + "/runs"
                    )
                )
                with tempfile.TemporaryFile() as stderr:
                    process = self.start("--cluster", UNPACKED, stdout=subprocess.DEVNULL, stderr=stderr)
                    deadline = time.monotonic() + SECONDS
                    while not os.path.exists(self.job_folder + "/runs"):
                        self.assertLess(time.monotonic(), deadline)
                        time.sleep(0.02)
                    os.unlink(self.job_folder + "/runs")
                    self.assertIsNone(process.poll())
                    os.unlink(os.path.join(self.shared, "t1.taken"))
                    began = time.monotonic()
                    self.assertEqual(process.wait(SECONDS), 75)
                    # The worker waits for 20 s.
                    self.assertLess(time.monotonic() - began, 15)
                    stderr.seek(0)
                    self.assertIn(b"launch t1 counts no more: its ticket is gone", stderr.read())
                self.assertIsNone(self.told())

    def test_of_several_drivers_with_one_ticket_exactly_one_runs(self):
        self.stage("def score(a, b, c):\n    open({!r}, 'a').write('ran ')\n".format(self.job_folder + "/journal"))
        folders = [self.folder] + [self.folder + str(number) for number in range(3)]
        for folder in folders[1:]:
            shutil.copytree(self.folder, folder)
        processes = []
        for self.folder in folders:
            processes.append(self.start("--cluster", UNPACKED, stderr=subprocess.DEVNULL))
        codes = sorted(process.wait(SECONDS) for process in processes)
        self.assertEqual(codes, [0, 75, 75, 75])
        with open(self.job_folder + "/journal") as file:
            self.assertEqual(file.read(), "ran ")
        self.assertEqual(self.told()["message"], "completed")

    def test_a_file_system_that_cannot_be_reached_is_exit_70_and_loads_nothing(self):
        self.stage(NOTING)
        blocked = os.path.join(self.job_folder, "file")
        with open(blocked, "w"):
            pass
        for url in ("nosuch://there/jobs", "file://" + blocked + "/jobs", "", "file:relative"):
            self.tell_driver(jobFolder=url)
            ended = self.run_driver()
            self.assertIn(ended.code, (70, 75), ended.stderr)
            if not url.startswith("file:"):
                self.assert_not_run(ended, 70, "cannot reach " + url)
            self.assert_not_loaded()

    def test_no_jvm_is_exit_70_and_loads_nothing(self):
        self.stage(NOTING)
        self.environment["PYSPARK_GATEWAY_PORT"] = "1"
        self.assert_not_run(self.run_driver(), 70, "cannot reach")
        self.assert_not_loaded()
        self.assertEqual(self.left(), ["t1"])


class Report(ClusterTest):
    def test_a_completed_report_has_the_outputs_and_the_output_folder(self):
        names = ["outputDir/" + name for name in ODD_NAMES] + ["outputDir/a/" + name for name in ODD_NAMES]
        names += ["outputDir/a/b/c/d/e", "outputDir/.hidden", "out.csv", "sub/out: \u00fc.csv", "outputDir/both"]
        os.makedirs(os.path.join(self.archive, "work", "outputDir", "empty"))
        self.tell_driver(
            outputs=["out.csv", "sub/out: \u00fc.csv", "not-written", "outputDir/both"], outputFolder="outputDir"
        )
        ended = self.run_model(
            """
            import os
            def score(a, b, c):
                for name in {!r}:
                    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
                    with open(name, "wb") as file:
                        file.write(name.encode("utf-8"))
                open("outputDir/nothing", "w").close()
                open("outputDir/big", "wb").write(bytes(range(256)) * (3 << 12))
                global buffered
                buffered = open("outputDir/buffered", "w")
                buffered.write("still open")
                open("other", "w").write("is no output")
            """.format(names)
        )
        self.assert_completed(ended)
        expected = {name: name.encode("utf-8") for name in names}
        expected["outputDir/nothing"] = b""
        expected["outputDir/big"] = bytes(range(256)) * (3 << 12)
        expected["outputDir/buffered"] = b"still open"
        self.assertEqual(self.files(ended), expected)
        self.assertEqual(self.left(), ["t1.end", "t1.files", "t1.taken"])

    def test_links_pipes_what_is_behind_a_link_and_names_that_cannot_be_told_stay(self):
        secret = os.path.join(self.job_folder, "secret")
        os.mkdir(secret)
        for name in ("key", "linked.csv"):
            with open(os.path.join(secret, name), "w") as file:
                file.write("secret")
        os.makedirs(os.path.join(self.archive, "work", "outputDir"))
        outputs = ["link.csv", "pipe.csv", "folder.csv", "behind/linked.csv", "real/deep/linked.csv", "plain.csv"]
        self.tell_driver(outputs=outputs, outputFolder="outputDir")
        ended = self.run_model(
            """
            import os
            def score(a, b, c):
                secret = {!r}
                os.makedirs("real")
                for folder, name in ((".", "link.csv"), ("outputDir", "link")):
                    os.symlink(secret + "/key", os.path.join(folder, name))
                for path in ("behind", "real/deep", "outputDir/behind"):
                    os.symlink(secret, path)
                os.symlink("nowhere", "outputDir/dangling")
                os.symlink("plain", "outputDir/inside")
                for path in ("pipe.csv", "outputDir/pipe"):
                    os.mkfifo(path)
                os.mkdir("folder.csv")
                open(b"outputDir/\\xff", "w").close()
                for path in ("plain.csv", "outputDir/plain"):
                    open(path, "w").write("plain")
            """.format(secret)
        )
        self.assert_completed(ended)
        self.assertEqual(self.files(ended), {"plain.csv": b"plain", "outputDir/plain": b"plain"})
        self.assertIn("'link.csv' and 10 more cannot be sent", ended.stderr.decode())

    def test_an_output_folder_that_is_a_link_or_gone_has_nothing_to_send(self):
        os.makedirs(os.path.join(self.archive, "work", "outputDir"))
        self.tell_driver(outputFolder="outputDir")
        for source in ("os.symlink({!r}, 'outputDir')".format(self.archive), "pass", "open('outputDir', 'w')"):
            self.renew()
            ended = self.run_model("import os\ndef score(a, b, c):\n    os.rmdir('outputDir')\n    " + source + "\n")
            self.assert_completed(ended)
            self.assertEqual(ended.end["files"], [])
            self.assertEqual(os.path.lexists(self.folder + "/outputDir"), source != "pass")

    def test_a_failed_report_has_no_files(self):
        self.tell_driver(outputs=["out.csv"])
        source = "def score(a, b, c):\n    open('out.csv', 'w').write('x')\n"
        self.assert_failed(self.run_model(source + "    raise ValueError('no')\n"), "model", "ValueError")
        self.renew()
        self.assert_failed(self.run_model(source, function="other"), "contract")

    def test_results_keep_the_rules_of_json(self):
        ended = self.results_of(
            "{'a': [1, 2.5, float('nan'), None, True], 'b}': '\\u00fc\\ud83d \\n\"', 'c': b'x', 4: {1}, 'i': 10 ** 40}"
        )
        results = {"a": [1, 2.5, None, None, True], "b}": "\u00fc\ufffd \n\"", "c": "eA==", "4": [1], "i": 10 ** 40}
        self.assert_completed(ended, results)
        self.assertEqual(ended.end["files"], [])
        self.renew()
        self.assert_failed(self.results_of("{'a': object()}"), "contract")

    def test_results_of_the_largest_size_come_whole(self):
        ended = self.results_of("{'a': 'x' * (15 << 20)}")
        self.assert_completed(ended, {"a": "x" * (15 << 20)})

    def test_there_is_no_end_before_all_files_are_there(self):
        self.tell_driver(outputs=["one", "two"])
        os.mkdir(os.path.join(self.shared, "t1.files"))
        pipe = os.path.join(self.shared, "t1.files", "1")
        os.mkfifo(pipe)
        self.stage("def score(a, b, c):\n    [open(name, 'w').write(name) for name in ('one', 'two')]\n")
        process = self.start("--cluster", UNPACKED)
        with open(pipe, "rb") as file:
            # The second is about to be sent.
            self.assertIsNone(self.told())
            with open(os.path.join(self.shared, "t1.files", "0")) as first:
                self.assertEqual(first.read(), "one")
            process.kill()
            process.wait()
            file.read()
        self.assertEqual([name for name in self.left() if "end" in name], [])

    def test_too_many_files_are_exit_70_and_none_is_sent(self):
        self.tell_driver(outputFolder="outputDir")
        ended = self.run_model(
            """
            import os
            def score(a, b, c):
                open("outputDir/0", "w").close()
                for number in range(10000):
                    os.link("outputDir/0", "outputDir/x%d" % number)
            """
        )
        self.assert_not_run(ended, 70, "more than 10000 files")
        self.assertEqual(self.left(), ["t1.taken"])

    def test_a_folder_that_is_full_or_cannot_be_written_is_exit_70(self):
        def link(name):
            os.symlink("/dev/full", os.path.join(self.shared, name))

        def block(name):
            os.makedirs(os.path.join(self.shared, name, "x"))

        self.tell_driver(outputs=["out.csv"])
        self.stage("def score(a, b, c):\n    open('out.csv', 'w').write('x' * 100000)\n")
        steps = [
            (lambda: (os.mkdir(os.path.join(self.shared, "t1.files")), link("t1.files/0")), "No space left"),
            (lambda: link("t1.end.part"), "No space left"),
            (lambda: block("t1.end.part"), "t1.end.part"),
            (lambda: self.issue("t1.files"), "t1.files"),
        ]
        for step, text in steps:
            self.renew()
            step()
            self.assert_not_run(self.run_driver(), 70, self.shared, text)

    def test_a_folder_that_was_removed_meanwhile_is_not_made_again(self):
        self.tell_driver(outputs=["out.csv"])
        ended = self.run_model(
            "import shutil\ndef score(a, b, c):\n    open('out.csv', 'w').write('x')\n    shutil.rmtree({!r})\n".format(
                self.shared
            )
        )
        self.assert_not_run(ended, 70, "launch t1 counts no more")
        self.assertFalse(os.path.exists(self.shared))


class Models(ClusterTest):
    """What a model may do, and the report comes all the same: with its output, and with the end that it had."""

    def run_output(self, body, setup="", end="completed"):
        self.tell_driver(outputs=["out.csv"])
        lines = ["import os, sys, json, socket", setup, "def score(a, b, c):", "    open('out.csv', 'w').write('x')"]
        ended = self.run_model("\n".join(lines + ["    " + line for line in body.splitlines()]) + "\n")
        self.assertEqual([message["message"] for message in ended.messages], [end], ended.stderr)
        if end == "completed":
            self.assert_completed(ended)
            self.assertEqual(self.files(ended), {"out.csv": b"x"})
        return ended

    def test_that_closes_every_descriptor_but_those_of_the_log(self):
        self.run_output("os.closerange(3, 1000)")

    def test_that_closes_every_descriptor(self):
        self.run_output("print('to nobody')\nos.closerange(0, 1000)")

    def test_that_has_a_connection_of_its_own_where_the_drivers_was(self):
        self.run_output(
            "global mine, other\n"
            "os.closerange(3, 1000)\n"
            "pairs = [socket.socketpair() for _ in range(20)]\n"
            "mine, other = zip(*pairs)",
        )

    def test_that_changes_and_removes_its_current_directory(self):
        self.run_output("os.mkdir('gone')\nos.chdir('gone')\nos.rmdir('../gone')")

    def test_that_bounds_the_wait_of_its_connections(self):
        self.run_output("socket.setdefaulttimeout(0.000001)")

    def test_that_replaces_functions_of_modules(self):
        self.run_output(
            "def broken(*arguments, **named):\n"
            "    raise RuntimeError('replaced')\n"
            "for name in ('loads', 'dumps', 'load', 'dump'):\n"
            "    setattr(json, name, broken)\n"
            "for name in ('encode', 'iterencode', 'default', '__init__'):\n"
            "    setattr(json.JSONEncoder, name, broken)\n"
            "json.JSONDecoder.decode = json.JSONDecoder.raw_decode = broken\n"
            "for name in ('open', 'close', 'stat', 'lstat', 'fstat', 'scandir', 'listdir', 'walk', 'getpid', 'getcwd'):\n"
            "    setattr(os, name, broken)\n"
            "for name in ('join', 'relpath', 'abspath', 'normpath', 'basename', 'islink', 'exists', 'isfile', 'isdir'):\n"
            "    setattr(os.path, name, broken)\n"
            "socket.setdefaulttimeout = broken"
        )

    def test_that_replaces_what_leads_to_the_jvm(self):
        self.java.stop_context()
        self.run_output(
            "from pyspark import SparkContext\n"
            "SparkContext._jvm = SparkContext._gateway = None\n"
            "SparkContext.getOrCreate = SparkContext._ensure_initialized = None\n"
            "os.environ.pop('PYSPARK_GATEWAY_PORT')"
        )
        self.assertTrue(self.java.stop_context())

    def test_that_closes_the_gateway_and_the_file_systems(self):
        self.run_output(
            "from pyspark import SparkContext\n"
            "SparkContext._jvm.org.apache.hadoop.fs.FileSystem.closeAll()\n"
            "SparkContext._gateway.close()"
        )

    def test_that_shuts_the_jvms_side_down_is_exit_70(self):
        java = Java()
        self.addCleanup(java.end)
        self.use(java)
        ended = self.run_model(
            "from pyspark import SparkContext\ndef score(a, b, c):\n    SparkContext._gateway.shutdown()\n"
        )
        self.assertNotEqual(ended.code, 0)
        self.assert_not_run(ended, 70, "could not be brought to file://" + self.shared)

    def test_that_exits(self):
        self.run_output("sys.exit()")

    def test_that_exits_with_a_code(self):
        ended = self.run_output("sys.exit(3)", end="failed")
        self.assert_failed(ended, "model", "SystemExit")

    def test_that_leaves_at_once_has_no_report(self):
        for code in (0, 3):
            self.renew()
            ended = self.run_model("import os\ndef score(a, b, c):\n    os._exit({})\n".format(code))
            self.assertEqual(ended.code, code)
            self.assertEqual(self.left(), ["t1.taken"])

    def test_that_forks_and_returns_twice_is_reported_once(self):
        self.tell_driver(outputs=["out.csv"])
        # The other process comes back first.
        ended = self.run_model(
            """
            import os
            def score(a, b, c):
                child = os.fork()
                if child == 0:
                    open("child", "w").write("x")
                    return
                open("out.csv", "w").write("%d" % os.waitpid(child, 0)[1])
            """
        )
        self.assert_completed(ended)
        self.assertEqual(self.files(ended), {"out.csv": b"0"})
        self.assertEqual(ended.read("child"), "x")

    def test_whose_fork_goes_on_alone_has_no_report(self):
        self.stage(
            """
            import os
            def score(a, b, c):
                told, tell = os.pipe()
                if os.fork() != 0:
                    os._exit(4)
                os.close(tell)
                # Until the other is gone.
                os.read(told, 1)
            """
        )
        process = self.start("--cluster", UNPACKED)
        # The end of file comes when the last of the two has left.
        process.communicate(timeout=SECONDS)
        self.assertEqual(process.returncode, 4)
        self.assertEqual(self.left(), ["t1.taken"])


class Contexts(ClusterTest):
    """The Spark context that the cluster waits for."""

    def run_context(self, body):
        self.java.stop_context()
        self.tell_driver(outputs=["out.csv"])
        source = "from pyspark import SparkConf, SparkContext\ndef score(a, b, c):\n    open('out.csv', 'w').write('x')\n"
        ended = self.run_model(source + "".join("    " + line + "\n" for line in body.splitlines()))
        self.assert_completed(ended)
        self.assertEqual(self.files(ended), {"out.csv": b"x"})
        return self.java.stop_context()

    def test_is_made_at_the_end_where_the_model_made_none(self):
        self.assertTrue(self.run_context("pass"))

    def test_is_made_at_the_end_where_that_of_the_model_failed(self):
        body = "try:\n    SparkContext(conf=SparkConf().setMaster('no such'))\nexcept Exception:\n    pass"
        self.assertTrue(self.run_context(body))

    def test_is_not_made_again_where_the_model_stopped_its_own(self):
        self.assertFalse(self.run_context("SparkContext.getOrCreate().stop()"))

    def test_that_the_model_left_is_stopped(self):
        self.assertFalse(self.run_context("SparkContext.getOrCreate()"))

    def test_is_not_made_where_the_model_failed(self):
        self.java.stop_context()
        self.assert_failed(self.run_model("def score(a, b, c):\n    raise ValueError\n"), "model", "ValueError")
        self.assertFalse(self.java.stop_context())


if __name__ == "__main__":
    unittest.main()
