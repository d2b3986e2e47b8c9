#!/usr/bin/env python3
"""Holds ModelOpPySparkDriver.py to its promises.

Each test writes a working directory, listens where a worker would, starts the real driver as a child and reads what it
reports until end of file. No Spark and no pyspark is needed. Run it with any Python from 3.8::

    python3 worker/driver/test_driver.py
"""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import unittest

DRIVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ModelOpPySparkDriver.py")
SECONDS = 240
"""Nothing here takes as long, even on a machine that is busy; a driver that does hangs."""

ASSET = {
    "name": "test.csv",
    "assetType": "EXTERNAL_FILE",
    "fileUrl": "/data/test.csv",
    "x-unknown": {"b": [1, None, True], "a": "\u00e9"},
}


def has_module(name):
    """Whether this Python could import ``name``."""
    return subprocess.run([sys.executable, "-c", "import " + name], stderr=subprocess.DEVNULL).returncode == 0


class Ended:
    """What a run of the driver left behind."""

    def __init__(self, messages, code, stdout, stderr, folder):
        self.messages = messages
        self.code = code
        self.stdout = stdout
        self.stderr = stderr
        self.folder = folder

    @property
    def end(self):
        return self.messages[-1]

    def read(self, name):
        with open(os.path.join(self.folder, name), encoding="utf-8") as file:
            return file.read()


class DriverTest(unittest.TestCase):
    """A job's directory, a worker's end of the socket, and the driver in between."""

    def setUp(self):
        self.job_folder = os.path.realpath(tempfile.mkdtemp(prefix="driver-test-"))
        self.addCleanup(shutil.rmtree, self.job_folder, ignore_errors=True)
        self.folder = os.path.join(self.job_folder, "work")
        os.mkdir(self.folder)
        shutil.copy(DRIVER, self.folder)
        self.socket_path = os.path.join(self.job_folder, "driver.sock")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        self.processes = []
        self.addCleanup(self.end_processes)

    def end_processes(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.communicate()

    def write(self, name, content):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if isinstance(content, str):
            content = textwrap.dedent(content).encode("utf-8")
        with open(path, "wb") as file:
            file.write(content)

    def stage(self, source, job_type="MODEL_BATCH_JOB", function="score", init=None, job_text=None, files=None):
        self.write("model_source_code.py", source)
        metadata = {
            "job_input": [ASSET],
            "job_output": [dict(ASSET, name="out.csv")],
            "job_model_assets_input": [],
            "method_to_be_executed": function,
            "init_to_be_executed": init,
            "job_type": job_type,
            "job_id": "job-1",
        }
        self.write("model_job_metadata.py", "".join("{} = {!r}\n".format(*item) for item in metadata.items()))
        if job_text is not None:
            self.write("model_job.json", job_text)
        for name, content in (files or {}).items():
            self.write(name, content)

    def listen(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket_path)
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(self.socket_path)
        listener.listen(8)
        listener.settimeout(SECONDS)
        return listener

    def start(self, *arguments, **options):
        arguments = arguments or ("--report-socket", "../driver.sock")
        command = [sys.executable, "ModelOpPySparkDriver.py"] + list(arguments)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, **options
        )
        self.processes.append(process)
        return process

    def connect(self, listener):
        connection, _ = listener.accept()
        self.addCleanup(connection.close)
        connection.settimeout(SECONDS)
        return connection

    def run_driver(self):
        """Runs what is staged to its end, as a worker would."""
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            listener = self.listen()
            process = self.start(stdout=stdout, stderr=stderr)
            connection = self.connect(listener)
            with connection.makefile("rb") as report:
                lines = report.readlines()
            code = process.wait(SECONDS)
            listener.setblocking(False)
            # A second connection could forge a report.
            self.assertRaises(BlockingIOError, listener.accept)
            listener.close()
            stdout.seek(0)
            stderr.seek(0)
            for line in lines:
                self.assertTrue(line.endswith(b"\n"), line[-100:])
                line.decode("ascii")
            messages = [json.loads(line, parse_constant=self.fail) for line in lines]
            return Ended(messages, code, stdout.read(), stderr.read(), self.folder)

    def run_model(self, source, **staged):
        self.stage(source, **staged)
        return self.run_driver()

    def assert_completed(self, ended, results=None):
        self.assertEqual([m["message"] for m in ended.messages], ["hello", "running", "completed"], ended.end)
        self.assertEqual(ended.end, {"message": "completed", "results": results})
        self.assertEqual(ended.code, 0, ended.stderr)

    def assert_failed(self, ended, kind, error_type=None):
        self.assertEqual([m["message"] for m in ended.messages], ["hello", "running", "failed"], ended.end)
        self.assertEqual(set(ended.end), {"message", "kind", "exception", "functions"})
        self.assertEqual(ended.end["kind"], kind, ended.end)
        self.assertEqual(ended.code, 1, ended.stderr)
        exception = ended.end["exception"]
        self.assertEqual(set(exception), {"type", "message", "traceback", "frame"})
        if error_type is not None:
            self.assertEqual(exception["type"], error_type, exception)
        return exception

    def results_of(self, expression, setup=""):
        ended = self.run_model(
            setup + "\ndef metrics(a, b, c):\n    return " + expression + "\n",
            job_type="MODEL_BATCH_TEST_JOB",
            function="metrics",
        )
        return ended

    def assert_results(self, expression, results, setup=""):
        self.assert_completed(self.results_of(expression, setup), results)

    def assert_results_refused(self, expression, text, setup=""):
        exception = self.assert_failed(self.results_of(expression, setup), "contract")
        self.assertIn(text, exception["message"])


class Report(DriverTest):
    def test_says_hello_then_running_then_exactly_one_end(self):
        ended = self.run_model("def score(a, b, c):\n    pass\n")
        self.assert_completed(ended)
        hello = ended.messages[0]
        self.assertEqual(hello["protocol"], 1)
        self.assertEqual(hello["python"], "{}.{}.{}".format(*sys.version_info[:3]))
        self.assertIsInstance(hello["pid"], int)
        self.assertEqual(ended.messages[1], {"message": "running", "function": "score"})

    def test_running_is_said_before_the_model_is_imported(self):
        self.stage("open('imported', 'w').close()\nopen('gate').close()\ndef score(a, b, c):\n    pass\n")
        os.mkfifo(os.path.join(self.folder, "gate"))
        listener = self.listen()
        self.start()
        report = self.connect(listener).makefile("rb")
        self.addCleanup(report.close)
        self.assertEqual(json.loads(report.readline())["message"], "hello")
        self.assertEqual(json.loads(report.readline())["message"], "running")
        with open(os.path.join(self.folder, "gate"), "w"):
            self.assertEqual(json.loads(report.readline())["message"], "completed")

    def test_work_that_waits_for_executors_is_told_and_that_it_waits_no_more(self):
        # A context like that of pyspark, with what is asked of it: stages without executors, then one of these.
        self.stage(
            """
            import sys, types

            class Context:
                executors = 1
                sc = statusTracker = conf = lambda self: self
                applicationId = lambda self: "app-1"
                master = lambda self: "spark://h:1"
                get = lambda self, name, default: "8g" if name == "spark.executor.memory" else default
                getActiveStageIds = lambda self: [0]
                getExecutorInfos = lambda self: [None] * self.executors

            def score(a, b, c):
                context = Context()
                pyspark = sys.modules["pyspark"] = types.ModuleType("pyspark")
                pyspark.SparkContext = types.SimpleNamespace(_active_spark_context=types.SimpleNamespace(_jsc=context))
                open("gate-1").close()
                context.executors = 2
                open("gate-2").close()
                context.executors = 1
                open("gate-3").close()
                del sys.modules["pyspark"]
            """
        )
        # One for each step: two of the model's readers could find the same writer at one.
        gates = [os.path.join(self.folder, "gate-{}".format(number)) for number in (1, 2, 3)]
        for gate in gates:
            os.mkfifo(gate)
        listener = self.listen()
        self.start("--report-socket", "../driver.sock", "--watch-executors")
        report = self.connect(listener).makefile("rb")
        self.addCleanup(report.close)

        def heard():
            return json.loads(report.readline())

        self.assertEqual([heard()["message"], heard()["message"]], ["hello", "running"])
        waiting = {
            "message": "waiting",
            "application": "app-1",
            "master": "spark://h:1",
            "memory": "8g",
            "cores": None,
            "most_cores": None,
            "had_executors": False,
            "queue": None,
        }
        self.assertEqual(heard(), waiting)
        open(gates[0], "w").close()
        self.assertEqual(heard(), {"message": "placed"})
        open(gates[1], "w").close()
        self.assertEqual(heard(), dict(waiting, had_executors=True))
        open(gates[2], "w").close()
        # It may be told or not that nothing waits any more when the end comes.
        self.assertIn("completed", [heard()["message"] for _ in range(1)] + [json.loads(l)["message"] for l in report])

    def test_an_application_that_yarn_has_not_begun_is_told_and_one_that_is_only_slow_to_start_is_not(self):
        # A context like that of pyspark, which has its master before it is made, and the rest when YARN has begun it.
        self.stage(
            """
            import sys, types

            class Made:
                sc = statusTracker = conf = lambda self: self
                getActiveStageIds = lambda self: []
                getExecutorInfos = lambda self: [None]

            def score(a, b, c):
                pyspark = sys.modules["pyspark"] = types.ModuleType("pyspark")
                settings = {"spark.yarn.queue": "busy", "spark.yarn.am.memory": "700m"}
                context = types.SimpleNamespace(_conf=settings, master="spark://h:1")
                pyspark.SparkContext = types.SimpleNamespace(_active_spark_context=context)
                open("gate-1").close()
                context.master = "yarn"
                open("gate-2").close()
                context._jsc = Made()
                open("gate-3").close()
                context._jsc = None
                open("gate-4").close()
            """
        )
        gates = [os.path.join(self.folder, "gate-{}".format(number)) for number in (1, 2, 3, 4)]
        for gate in gates:
            os.mkfifo(gate)
        listener = self.listen()
        self.start("--report-socket", "../driver.sock", "--watch-executors")
        connection = self.connect(listener)
        report = connection.makefile("rb")
        self.addCleanup(report.close)

        def heard():
            return json.loads(report.readline())

        def is_silent():
            # Longer than it takes until it looks again.
            return not select.select([connection], [], [], 2.5)[0]

        self.assertEqual([heard()["message"], heard()["message"]], ["hello", "running"])
        self.assertTrue(is_silent())
        open(gates[0], "w").close()
        waiting = {
            "message": "waiting",
            "application": None,
            "master": "yarn",
            "memory": "700m",
            "cores": None,
            "most_cores": None,
            "had_executors": False,
            "queue": "busy",
        }
        self.assertEqual(heard(), waiting)
        open(gates[1], "w").close()
        self.assertEqual(heard(), {"message": "placed"})
        open(gates[2], "w").close()
        self.assertTrue(is_silent())
        open(gates[3], "w").close()
        self.assertEqual(heard()["message"], "completed")

    def test_a_connection_that_fails_is_exit_70_with_one_line_and_no_model_run(self):
        self.stage("open('imported', 'w').close()\n")
        process = self.start()
        _, stderr = process.communicate(timeout=SECONDS)
        self.assertEqual(process.returncode, 70)
        self.assertEqual(len(stderr.decode().splitlines()), 1, stderr)
        self.assertIn("../driver.sock", stderr.decode())
        self.assertFalse(os.path.exists(os.path.join(self.folder, "imported")))

    def test_wrong_usage_is_exit_64_with_one_line(self):
        for arguments in (["--report-socket"], ["--report-socket", ""], ["other", "../driver.sock"]):
            process = self.start(*arguments)
            _, stderr = process.communicate(timeout=SECONDS)
            self.assertEqual(process.returncode, 64)
            self.assertEqual(len(stderr.decode().splitlines()), 1, stderr)

    def test_a_job_that_was_not_staged_whole_is_exit_70_with_one_line_and_no_end(self):
        def without(name):
            os.unlink(os.path.join(self.folder, name))

        spoilers = [
            lambda: without("model_source_code.py"),
            lambda: without("model_job_metadata.py"),
            lambda: self.write("model_job_metadata.py", "job_input = ["),
            lambda: self.write("model_job_metadata.py", "job_input = []\n"),
            lambda: self.write("model_job.json", "{"),
        ]
        for spoil in spoilers:
            self.stage("open('imported', 'w').close()\n", init="init", job_text="{}")
            spoil()
            ended = self.run_driver()
            self.assertEqual([m["message"] for m in ended.messages], ["hello"])
            self.assertEqual(ended.code, 70)
            self.assertEqual(len(ended.stderr.decode().splitlines()), 1, ended.stderr)
            self.assertFalse(os.path.exists(os.path.join(self.folder, "imported")))

    def test_lines_from_the_worker_are_ignored(self):
        self.stage("open('gate').close()\ndef score(a, b, c):\n    pass\n")
        os.mkfifo(os.path.join(self.folder, "gate"))
        listener = self.listen()
        process = self.start()
        connection = self.connect(listener)
        connection.sendall(b"x" * 100000 + b"\n\xff\x00\n{}\n")
        with open(os.path.join(self.folder, "gate"), "w"):
            pass
        # Not to the end of the report: a driver that ends before it has read all of the above resets the connection,
        # which is told after what the driver itself wrote.
        with connection.makefile("rb") as report:
            said = [json.loads(report.readline())["message"] for _ in range(3)]
        self.assertEqual(said, ["hello", "running", "completed"])
        self.assertEqual(process.wait(SECONDS), 0)

    def test_a_worker_that_hangs_up_after_the_end_does_not_change_the_exit_code(self):
        # The exit handler waits until the test has hung up, so the end of file always comes before the exit.
        for source, code in (("", 0), ("    raise ValueError\n", 1)):
            self.stage(
                "import atexit\natexit.register(lambda: open('gate').close())\n"
                "def score(a, b, c):\n    str()\n" + source
            )
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.folder, "gate"))
            os.mkfifo(os.path.join(self.folder, "gate"))
            listener = self.listen()
            process = self.start()
            connection = self.connect(listener)
            with connection.makefile("rb") as report:
                for _ in range(3):
                    report.readline()
            connection.close()
            with open(os.path.join(self.folder, "gate"), "w"):
                self.assertEqual(process.wait(SECONDS), code)


class Call(DriverTest):
    def test_the_function_gets_three_lists_of_whole_assets_in_order(self):
        ended = self.run_model(
            """
            import json
            def score(*lists):
                with open("seen", "w") as file:
                    json.dump(lists, file)
            """
        )
        self.assert_completed(ended)
        seen = json.loads(ended.read("seen"))
        self.assertEqual(seen, [[ASSET], [dict(ASSET, name="out.csv")], []])
        self.assertEqual(list(seen[0][0]), list(ASSET))

    def test_the_model_is_a_module_that_helpers_and_pickle_find(self):
        ended = self.run_model(
            """
            import pickle, sys
            import helper, pkg.inner
            assert __name__ == "model_source_code", __name__
            assert sys.argv == [__file__], sys.argv
            def score(a, b, c):
                assert pickle.loads(pickle.dumps(score)) is score
                assert helper.twice(2) == 4 and pkg.inner.three() == 3
                from model_job_metadata import job_id
                assert job_id == "job-1"
            """,
            files={
                "helper.py": "def twice(x):\n    return 2 * x\n",
                "pkg/__init__.py": "",
                "pkg/inner.py": "def three():\n    return 3\n",
            },
        )
        self.assert_completed(ended)

    def test_nothing_is_added_to_the_working_directory(self):
        self.stage("import helper\ndef score(a, b, c):\n    pass\n", files={"helper.py": ""})
        before = sorted(os.listdir(self.folder))
        self.assert_completed(self.run_driver())
        self.assertEqual(sorted(os.listdir(self.folder)), before)

    def test_init_without_a_parameter_is_called_first(self):
        ended = self.run_model(
            """
            def init():
                global ready
                ready = "yes"
            def score(a, b, c):
                open(ready, "w").close()
            """,
            init="init",
        )
        self.assert_completed(ended)
        self.assertTrue(os.path.exists(os.path.join(self.folder, "yes")))

    def test_init_with_a_parameter_gets_the_text_of_the_job_and_the_job(self):
        text = '{"id": "job-1",  "n": 1.50, "u": "\u00e9"}'
        ended = self.run_model(
            """
            import json
            def init(argument):
                with open("seen", "w") as file:
                    json.dump(argument, file)
            def score(a, b, c):
                pass
            """,
            init="init",
            job_text=text,
        )
        self.assert_completed(ended)
        self.assertEqual(json.loads(ended.read("seen")), {"rawJson": text, "job": json.loads(text)})

    def test_an_optional_parameter_of_init_is_given_only_when_the_job_was_staged(self):
        source = """
            def init(argument=None):
                open("given" if argument else "not given", "w").close()
            def score(a, b, c):
                pass
            """
        self.assert_completed(self.run_model(source, init="init"))
        self.assertTrue(os.path.exists(os.path.join(self.folder, "not given")))
        self.assert_completed(self.run_model(source, init="init", job_text="{}"))
        self.assertTrue(os.path.exists(os.path.join(self.folder, "given")))

    def test_an_init_without_a_parameter_is_called_also_when_the_job_was_staged(self):
        ended = self.run_model("def init():\n    pass\ndef score(a, b, c):\n    pass\n", init="init", job_text="{}")
        self.assert_completed(ended)

    def test_a_decorator_may_supply_a_parameter(self):
        ended = self.run_model(
            """
            import functools
            def with_session(f):
                @functools.wraps(f)
                def wrapper(*args):
                    return f("session", *args)
                return wrapper
            @with_session
            def score(session, a, b, c):
                assert session == "session"
            """
        )
        self.assert_completed(ended)

    def test_parameters_beyond_the_three_may_have_defaults(self):
        self.assert_completed(self.run_model("def score(a, b, c, d=4, *, e=5):\n    pass\n"))

    def test_a_generator_is_drained(self):
        ended = self.run_model(
            """
            def score(a, b, c):
                yield 1
                yield object()
                open("drained", "w").close()
            """
        )
        self.assert_completed(ended)
        self.assertTrue(os.path.exists(os.path.join(self.folder, "drained")))

    def test_what_score_and_training_return_is_dropped(self):
        for job_type in ("MODEL_BATCH_JOB", "MODEL_BATCH_TRAINING_JOB"):
            self.assert_completed(self.run_model("def score(a, b, c):\n    return {'x': 1}\n", job_type=job_type))

    def test_what_metrics_returns_becomes_the_results(self):
        self.assert_results("{'auc': 0.9, 'n': 3}", {"auc": 0.9, "n": 3})

    def test_dicts_that_metrics_yields_are_merged_and_later_ones_win(self):
        ended = self.run_model(
            "def metrics(a, b, c):\n    yield {'x': 1, 'y': 1}\n    yield {'y': 2, 'z': 3}\n",
            job_type="MODEL_BATCH_TEST_JOB",
            function="metrics",
        )
        self.assert_completed(ended, {"x": 1, "y": 2, "z": 3})
        self.assertEqual(list(ended.end["results"]), ["x", "y", "z"])


class Contract(DriverTest):
    def contract(self, source, **staged):
        ended = self.run_model(source, **staged)
        exception = self.assert_failed(ended, "contract")
        return ended, exception

    def test_a_missing_function_is_named_with_those_that_are_there(self):
        ended, exception = self.contract(
            """
            from os.path import join
            from helper import helped
            text = "def hidden(): pass"
            def init(): pass
            def scoer(a, b, c): pass
            """,
            files={"helper.py": "def helped(): pass\n"},
        )
        self.assertIn("score", exception["message"])
        self.assertIn("scoer", exception["message"])
        self.assertEqual(ended.end["functions"], ["helped", "init", "scoer"])
        self.assertIsNone(exception["frame"])

    def test_a_missing_init_is_named(self):
        _, exception = self.contract("def score(a, b, c): pass\n", init="begin")
        self.assertIn("begin", exception["message"])

    def test_what_is_no_function_is_refused(self):
        _, exception = self.contract("score = 3\n")
        self.assertIn("int", exception["message"])

    def test_a_wrong_number_of_parameters_is_told_before_init_runs(self):
        _, exception = self.contract("def init(): 1 / 0\ndef score(a, b): pass\n", init="init")
        self.assertIn("score takes 2 parameters", exception["message"])
        self.assertNotIn("record", exception["message"])
        self.assertEqual(
            exception["frame"],
            {"file": "model_source_code.py", "line": 2, "function": "score", "text": "def score(a, b): pass"},
        )

    def test_a_required_keyword_is_told(self):
        _, exception = self.contract("def score(a, b, c, *, spark): pass\n")
        self.assertIn("needs the keyword spark", exception["message"])

    def test_an_init_with_two_required_parameters_is_refused(self):
        _, exception = self.contract("def init(a, b): pass\ndef score(a, b, c): pass\n", init="init", job_text="{}")
        self.assertIn("init takes 2 parameters", exception["message"])

    def test_an_init_with_a_parameter_but_no_job_staged_is_told(self):
        _, exception = self.contract("def init(a): pass\ndef score(a, b, c): pass\n", init="init")
        self.assertIn("was not staged", exception["message"])

    def test_async_functions_are_refused_however_they_come(self):
        for source in (
            "async def score(a, b, c): pass\n",
            "async def score(a, b, c):\n    yield 1\n",
            "async def inner(): pass\ndef score(a, b, c):\n    return inner()\n",
            "async def inner():\n    yield\ndef score(a, b, c):\n    return inner()\n",
        ):
            ended, exception = self.contract(source)
            self.assertIn("async functions are not supported", exception["message"])
            self.assertNotIn(b"never awaited", ended.stderr)

    def test_a_syntax_error_of_the_source_is_a_contract_failure_with_its_line(self):
        ended, exception = self.contract("def score(a, b, c):\n    pass\n\ndef broken(:\n    pass\n")
        self.assertEqual(exception["type"], "SyntaxError")
        self.assertEqual(exception["frame"]["line"], 4)
        self.assertEqual(exception["frame"]["text"], "def broken(:")
        self.assertIn("def broken(:", exception["traceback"])
        self.assertEqual(ended.end["functions"], [])

    def test_sources_that_cannot_be_compiled_are_contract_failures(self):
        for source in (b"x = 1\0\n", b"# coding: nonsense\n", b"x = '\xff'\n", b"if True:\n\tx = 1\n        y = 2\n"):
            self.contract(source)

    def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(self):
        self.assert_completed(self.run_model(b"\xef\xbb\xbfdef score(a, b, c):\r\n    pass\r\n"))


class ModelFailure(DriverTest):
    def model_failure(self, source, error_type=None, **staged):
        ended = self.run_model(source, **staged)
        return self.assert_failed(ended, "model", error_type)

    def test_an_exception_comes_with_its_type_text_traceback_and_frame(self):
        self.stage(
            """
            def inner(n):
                return 1 // n
            def score(a, b, c):
                inner(0)
            """
        )
        ended = self.run_driver()
        exception = self.assert_failed(ended, "model", "ZeroDivisionError")
        self.assertIn("by zero", exception["message"])
        self.assertEqual(
            exception["frame"],
            {"file": "model_source_code.py", "line": 3, "function": "inner", "text": "return 1 // n"},
        )
        self.assertTrue(exception["traceback"].startswith("Traceback (most recent call last):\n"))
        self.assertIn("    return 1 // n\n", exception["traceback"])
        self.assertNotIn("ModelOpPySparkDriver", exception["traceback"])
        self.assertEqual(ended.end["functions"], ["inner", "score"])
        self.assertIn(b"    return 1 // n\n", ended.stderr)

    def test_the_frame_is_the_last_one_in_the_models_own_files(self):
        source = "import pkg.helper\ndef score(a, b, c):\n    pkg.helper.load()\n"
        helper = "import json\n\ndef load():\n    json.loads('{')\n"
        exception = self.model_failure(
            source, "json.decoder.JSONDecodeError", files={"pkg/helper.py": helper, "pkg/__init__.py": ""}
        )
        self.assertEqual(
            exception["frame"],
            {"file": "pkg/helper.py", "line": 4, "function": "load", "text": "json.loads('{')"},
        )

    def test_helpers_that_import_each_other_fail_at_the_import_that_cannot_be_done(self):
        exception = self.model_failure(
            "from pkg.one import f\ndef score(a, b, c):\n    f()\n",
            "ImportError",
            files={
                "pkg/__init__.py": "",
                "pkg/one.py": "from pkg.two import g\n\ndef f():\n    g()\n",
                "pkg/two.py": "from pkg.one import f\n\ndef g():\n    f()\n",
            },
        )
        self.assertIn("circular import", exception["message"])
        self.assertEqual((exception["frame"]["file"], exception["frame"]["line"]), ("pkg/two.py", 1))

    def test_libraries_unpacked_in_the_working_directory_are_not_the_models_own(self):
        source = "import sys\nsys.path.append('env/site-packages')\ndef score(a, b, c):\n    import lib\n    lib.f()\n"
        exception = self.model_failure(
            source, "KeyError", files={"env/site-packages/lib.py": "def f():\n    {}['x']\n"}
        )
        self.assertEqual(exception["frame"]["line"], 5)

    def test_of_chained_exceptions_the_frame_is_that_of_the_one_finally_raised(self):
        exception = self.model_failure(
            """
            def score(a, b, c):
                try:
                    {}["x"]
                except KeyError as error:
                    raise ValueError("no x") from error
            """,
            "ValueError",
        )
        self.assertEqual(exception["frame"]["line"], 6)
        self.assertIn("KeyError: 'x'", exception["traceback"])
        self.assertIn("direct cause", exception["traceback"])

    def test_the_frame_survives_a_change_of_directory(self):
        exception = self.model_failure("import os\nos.chdir('/')\ndef score(a, b, c):\n    raise ValueError\n")
        self.assertEqual(exception["frame"]["file"], "model_source_code.py")
        self.assertEqual(exception["frame"]["text"], "raise ValueError")

    def test_failures_of_import_and_init_are_the_models(self):
        exception = self.model_failure("import no_such_library\n", "ModuleNotFoundError")
        self.assertEqual(exception["frame"]["line"], 1)
        exception = self.model_failure(
            "def init():\n    raise LookupError('weights')\ndef score(a, b, c): pass\n", "LookupError", init="init"
        )
        self.assertEqual(exception["frame"]["function"], "init")

    def test_a_syntax_error_of_a_helper_is_the_models_and_names_the_helper(self):
        exception = self.model_failure("import helper\n", "SyntaxError", files={"helper.py": "\n\nx = = 1\n"})
        self.assertEqual(exception["frame"]["file"], "helper.py")
        self.assertEqual(exception["frame"]["line"], 3)

    def test_a_models_own_exception_type_has_its_module(self):
        source = "class Bad(Exception): pass\ndef score(a, b, c):\n    raise Bad('x')\n"
        self.model_failure(source, "model_source_code.Bad")

    def test_an_exception_inside_a_generator_fails_the_job(self):
        exception = self.model_failure("def score(a, b, c):\n    yield 1\n    raise ValueError('late')\n", "ValueError")
        self.assertEqual(exception["frame"]["line"], 3)

    def test_exit_with_zero_or_nothing_from_the_function_is_a_normal_end(self):
        for code in ("", "0", "None"):
            self.assert_completed(
                self.run_model("import sys\ndef score(a, b, c):\n    sys.exit({})\n".format(code))
            )

    def test_exit_with_anything_else_is_a_failure_that_says_so(self):
        for code in ("3", "'no data'", "-1"):
            source = "import sys\ndef score(a, b, c):\n    sys.exit({})\n".format(code)
            exception = self.model_failure(source, "SystemExit")
            self.assertEqual(exception["message"], "the model called sys.exit({})".format(code))
            self.assertEqual(exception["frame"]["line"], 3)

    def test_exit_before_the_function_was_called_is_a_failure_whatever_the_code(self):
        exception = self.model_failure("import sys\nsys.exit(0)\ndef score(a, b, c): pass\n", "SystemExit")
        self.assertEqual(exception["message"], "the model called sys.exit(0) before score was called")

    def test_metrics_that_exits_keeps_what_it_yielded_but_needs_something(self):
        head = "import sys\ndef metrics(a, b, c):\n"
        staged = {"job_type": "MODEL_BATCH_TEST_JOB", "function": "metrics"}
        ended = self.run_model(head + "    yield {'x': 1}\n    sys.exit(0)\n", **staged)
        self.assert_completed(ended, {"x": 1})
        self.assert_failed(self.run_model(head + "    sys.exit(0)\n", **staged), "contract")

    def test_an_interrupt_is_a_failure(self):
        self.model_failure("def score(a, b, c):\n    raise KeyboardInterrupt\n", "KeyboardInterrupt")

    def test_an_exception_whose_text_cannot_be_made_is_survived(self):
        for body in ("raise RuntimeError('x')", "raise SystemExit(0)", "return 3"):
            source = """
                class Bad(Exception):
                    def __str__(self):
                        {}
                    __repr__ = __str__
                    def __eq__(self, other):
                        raise ValueError
                    def __len__(self):
                        raise ValueError
                def score(a, b, c):
                    raise Bad
                """
            exception = self.model_failure(source.format(body), "model_source_code.Bad")
            self.assertIn("cannot be made", exception["message"])
            self.assertIn("Bad", exception["traceback"])
            self.assertEqual(exception["frame"]["text"], "raise Bad")

    def test_lone_surrogates_do_not_break_the_report(self):
        source = "def score(a, b, c):\n    raise ValueError('a\\ud800b\\udfff \\ud83d\\ude00 \\u00e9')\n"
        exception = self.model_failure(source, "ValueError")
        self.assertEqual(exception["message"], "a\ufffdb\ufffd \U0001f600 \u00e9")
        exception["traceback"].encode("utf-8")

    def test_message_and_traceback_are_bounded_and_keep_head_and_tail(self):
        source = "def score(a, b, c):\n    raise ValueError('<' + '\\u00e9' * 3000000 + '>')\n"
        exception = self.model_failure(source, "ValueError")
        message, trace = exception["message"], exception["traceback"]
        self.assertLessEqual(len(message.encode("utf-8")), 64 * 1024)
        self.assertTrue(message.startswith("<") and message.endswith(">"))
        self.assertLessEqual(len(trace.encode("utf-8")), 256 * 1024)
        self.assertTrue(trace.startswith("Traceback") and trace.endswith(">\n"))

    def test_a_recursion_without_end_is_reported_also_when_the_model_raised_the_limit(self):
        source = "def down(n):\n    return down(n + 1) + 1\ndef score(a, b, c):\n    down(0)\n"
        self.model_failure(source, "RecursionError")
        # Two functions in turn, so that Python cannot print the frames as one that is repeated.
        deep = """
            import sys
            sys.setrecursionlimit(6000)
            def down(n):
                return up(n)
            def up(n):
                return down(n)
            def score(a, b, c):
                down(0)
            """
        exception = self.model_failure(deep, "RecursionError")
        self.assertIn(exception["frame"]["function"], ("down", "up"))
        self.assertRegex(exception["traceback"], r"^\[\d{4} frames in the middle are left out\]\nTraceback")

    def test_a_chain_of_thousands_of_exceptions_is_reported(self):
        source = """
            def score(a, b, c):
                error = None
                for n in range(20000):
                    following = ValueError(n)
                    following.__context__ = error
                    error = following
                raise error
            """
        exception = self.model_failure(source, "ValueError")
        self.assertEqual(exception["message"], "19999")
        self.assertTrue(exception["traceback"].startswith("ValueError: 19950\n"), exception["traceback"][:100])
        self.assertTrue(exception["traceback"].endswith("ValueError: 19999\n"))

    def test_a_model_out_of_memory_is_reported(self):
        source = """
            import resource
            def score(a, b, c):
                resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
                kept = None
                size = 1 << 20
                while True:
                    try:
                        kept = (kept, bytearray(size))
                    except MemoryError:
                        size //= 2
                        if size < 4096:
                            raise
            """
        exception = self.model_failure(source, "MemoryError")
        self.assertEqual(exception["frame"]["function"], "score")


class ResultsForm(DriverTest):
    def test_plain_values_and_text_of_every_kind(self):
        self.assert_results(
            "{'n': None, 'b': True, 'i': 10 ** 30, 'f': 0.1, 's': '\\u00e9\\ud800', 'e': {}, 'l': []}",
            {"n": None, "b": True, "i": 10**30, "f": 0.1, "s": "\u00e9\ufffd", "e": {}, "l": []},
        )

    def test_numbers_that_json_does_not_have_become_null(self):
        self.assert_results("{'x': [float('nan'), float('inf'), -float('inf'), 1.0]}", {"x": [None, None, None, 1.0]})

    def test_library_types_of_python_as_documented(self):
        self.assert_results(
            """{
                'decimal': [Decimal('0.1'), Decimal('NaN'), Decimal('sNaN'), Decimal('Infinity'), Decimal('1e999')],
                'time': [dt.datetime(2024, 1, 2, 3, 4, 5), dt.date(2024, 1, 2), dt.time(3, 4), dt.timedelta(minutes=2)],
                'bytes': [b'ab', bytearray(b'ab'), memoryview(b'ab')],
                'tuple': (1, (2,)), 'named': Pair(1, 2),
                'set': {3, 1, 2}, 'mixed': frozenset([1, 'a', None]),
                'mapping': [OrderedDict(z=1, a=2), Counter('aab')],
            }""",
            {
                "decimal": [0.1, None, None, None, None],
                "time": ["2024-01-02T03:04:05", "2024-01-02", "03:04:00", 120.0],
                "bytes": ["YWI=", "YWI=", "YWI="],
                "tuple": [1, [2]],
                "named": [1, 2],
                "set": [1, 2, 3],
                "mixed": ["a", 1, None],
                "mapping": [{"z": 1, "a": 2}, {"a": 2, "b": 1}],
            },
            "import datetime as dt\nfrom decimal import Decimal\n"
            "from collections import Counter, OrderedDict, namedtuple\nPair = namedtuple('Pair', 'x y')\n",
        )

    def test_keys_become_text(self):
        self.assert_results(
            "{1: 'i', 1.5: 'f', False: 'b', None: 'n', (1, 'a'): 't', dt.date(2024, 1, 2): 'd', '\\ud800': 's'}",
            {"1": "i", "1.5": "f", "false": "b", "null": "n", "(1, 'a')": "t", "2024-01-02": "d", "\ufffd": "s"},
            "import datetime as dt\n",
        )

    def test_two_keys_with_one_text_are_refused(self):
        self.assert_results_refused("{'x': {1: 'a', '1': 'b'}}", "/x/1 stands for two keys")

    def test_a_key_without_a_text_is_refused(self):
        self.assert_results_refused("{'x': {frozenset(): 1}}", "/x has a key that is a frozenset")

    def test_anything_else_is_refused_with_its_place(self):
        self.assert_results_refused("{'a/b': [0, {'~': object()}]}", "/a~1b/1/~0 is a object")
        self.assert_results_refused("{'x': 1j}", "/x is a complex")

    def test_what_is_no_dict_is_refused_with_what_it_was(self):
        self.assert_results_refused("None", "returned a NoneType")
        self.assert_results_refused("[{}]", "returned a list")
        self.assert_results_refused("iter([1])", "yielded a int")
        self.assert_results_refused("iter([])", "gave nothing")

    def test_a_structure_that_contains_itself_is_refused(self):
        self.assert_results_refused("{'x': loop}", "/x/0/0 contains itself", "loop = []\nloop.append([loop])\n")

    def test_one_value_in_two_places_is_no_loop(self):
        self.assert_results("{'a': x, 'b': [x, x]}", {"a": [1], "b": [[1], [1]]}, "x = [1]\n")

    def test_nesting_is_bounded(self):
        setup = "deep = {}\nfor n in range(%d):\n    deep = {'d': deep}\n"
        self.assertEqual(self.results_of("deep", setup % 99).code, 0)
        self.assert_results_refused("deep", "deeper than 100 levels", setup % 5000)

    def test_size_is_bounded(self):
        just = 16 * 1024 * 1024 - 100
        ended = self.results_of("{'x': 'a' * %d}" % just)
        self.assertEqual((ended.code, len(ended.end["results"]["x"])), (0, just))
        for expression in (
            "{'x': 'a' * (16 << 20)}",
            "{'x': '\\u00e9' * (4 << 20)}",
            "{'x': [0] * (9 << 20)}",
            "{'x': [[s] * 1000] * 1000000}",
        ):
            self.assert_results_refused(expression, "bigger than 16 MiB", "s = 'a' * 1000\n")

    def test_an_integer_too_long_for_python_to_print_is_no_crash(self):
        ended = self.results_of("{'x': 10 ** 5000}")
        if hasattr(sys, "get_int_max_str_digits"):
            self.assert_failed(ended, "contract")
        else:
            self.assert_completed(ended, {"x": 10**5000})

    def test_a_value_that_raises_while_it_is_read_is_refused_with_its_place(self):
        setup = "class Bad(dict):\n    def items(self):\n        raise LookupError('gone')\n"
        self.assert_results_refused("{'x': [Bad()]}", "/x/0 cannot be converted: LookupError: gone", setup)

    @unittest.skipUnless(has_module("numpy"), "this Python has no numpy")
    def test_numpy_values(self):
        self.assert_results(
            """{
                'scalars': [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True), np.str_('s'), np.nan],
                'long': np.longdouble(0.5), 'array': np.arange(4).reshape(2, 2), 'nan': np.array([np.nan, 1.0]),
                'times': [np.datetime64('2024-01-02'), np.datetime64('NaT'), np.timedelta64(1500, 'ms')],
                'nanoseconds': np.array(['2024-01-02T03:04:05', 'NaT'], dtype='datetime64[s]').astype('M8[ns]'),
                'objects': np.array([{'a': np.int8(1)}, None], dtype=object),
                'keys': {np.int64(1): 1, (np.int64(2), 'a'): 2},
            }""",
            {
                "scalars": [0.5, 0.5, 3, True, "s", None],
                "long": 0.5,
                "array": [[0, 1], [2, 3]],
                "nan": [None, 1.0],
                "times": ["2024-01-02", None, 1.5],
                "nanoseconds": ["2024-01-02T03:04:05.000000000", None],
                "objects": [{"a": 1}, None],
                "keys": {"1": 1, "(2, 'a')": 2},
            },
            "import numpy as np\n",
        )
        self.assert_results_refused("{'x': np.zeros(20 << 20)}", "bigger than 16 MiB", "import numpy as np\n")

    @unittest.skipUnless(has_module("pandas"), "this Python has no pandas")
    def test_pandas_values(self):
        self.assert_results(
            """{
                'frame': pd.DataFrame({'a': [1, 2], 'b': ['x', None]}), 'series': pd.Series([0.5, float('nan')]),
                'index': pd.Index([1, 2]), 'missing': [pd.NA, pd.NaT], 'time': pd.Timestamp('2024-01-02'),
                'bins': {pd.Interval(0, 1): 2}, 'days': pd.Series([1], index=[pd.Timestamp('2024-01-02')]),
            }""",
            {
                "frame": {"a": {"0": 1, "1": 2}, "b": {"0": "x", "1": None}},
                "series": {"0": 0.5, "1": None},
                "index": [1, 2],
                "missing": [None, None],
                "time": "2024-01-02T00:00:00",
                "bins": {"(0, 1]": 2},
                "days": {"2024-01-02T00:00:00": 1},
            },
            "import pandas as pd\n",
        )


class Hostile(DriverTest):
    """Models that do to their process what models do; the report stays true."""

    def test_megabytes_on_both_streams_stay_out_of_the_report(self):
        ended = self.run_model(
            """
            import sys
            def score(a, b, c):
                for n in range(4096):
                    print("x" * 1023)
                    print('{"message":"completed","results":null}' * 20, file=sys.stderr)
            """
        )
        self.assert_completed(ended)
        self.assertEqual(len(ended.stdout), 4 << 20)

    def test_a_changed_or_removed_directory_does_not_matter(self):
        source = """
            import os, shutil
            def score(a, b, c):
                here = os.getcwd()
                os.chdir("/")
                shutil.rmtree(here)
            """
        self.assert_completed(self.run_model(source))

    def test_replaced_or_closed_streams_do_not_matter(self):
        for body in (
            "sys.stdout = sys.stderr = None",
            "sys.stdout.close(); sys.stderr.close()",
            "sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = object()",
            "os.close(1); os.close(2)",
            "sys.stdout = io.StringIO(); print('x' * 100)",
        ):
            for tail, code in (("", 0), ("; 1 / 0", 1)):
                ended = self.run_model("import io, os, sys\ndef score(a, b, c):\n    {}{}\n".format(body, tail))
                self.assertEqual((ended.end["message"], ended.code), (("completed", "failed")[code], code), body)

    def test_what_was_printed_last_is_not_lost(self):
        ended = self.run_model("def score(a, b, c):\n    print('the last words', end='')\n")
        self.assert_completed(ended)
        self.assertEqual(ended.stdout, b"the last words")

    def test_files_left_open_are_written_out_before_completed_is_said(self):
        self.stage(
            """
            import atexit
            atexit.register(lambda: open("gate").close())
            out = open("out.csv", "w")
            raw = open("raw.bin", "wb")
            def score(a, b, c):
                out.write("1,2\\n")
                raw.write(b"3")
            """
        )
        os.mkfifo(os.path.join(self.folder, "gate"))
        listener = self.listen()
        process = self.start()
        with self.connect(listener).makefile("rb") as report:
            messages = [json.loads(report.readline())["message"] for _ in range(3)]
            self.assertEqual(messages[-1], "completed")
            # The process still lives: its exit handler waits.
            sizes = [os.path.getsize(os.path.join(self.folder, name)) for name in ("out.csv", "raw.bin")]
            self.assertEqual(sizes, [4, 1])
            with open(os.path.join(self.folder, "gate"), "w"):
                self.assertEqual(process.wait(SECONDS), 0)

    def test_an_output_that_cannot_be_written_out_fails_the_job(self):
        ended = self.run_model(
            """
            import resource, signal
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            out = open("out.csv", "w")
            def score(a, b, c):
                out.write("x" * 1000)
                resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
            """
        )
        self.assert_failed(ended, "model", "OSError")

    def test_signal_handlers_of_the_model_cannot_fire_into_the_report(self):
        ended = self.run_model(
            """
            import signal
            class Storm(dict):
                def items(self):
                    signal.raise_signal(signal.SIGALRM)
                    signal.raise_signal(signal.SIGUSR1)
                    signal.raise_signal(signal.SIGINT)
                    return {"calm": True}.items()
            def handler(*_):
                raise RuntimeError("a signal")
            def metrics(a, b, c):
                for number in (signal.SIGALRM, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, handler)
                return {"storm": Storm()}
            """,
            job_type="MODEL_BATCH_TEST_JOB",
            function="metrics",
        )
        self.assert_completed(ended, {"storm": {"calm": True}})

    def test_trace_functions_of_the_model_do_not_reach_the_report(self):
        for kind in ("settrace", "setprofile"):
            ended = self.run_model(
                """
                import sys
                def tracer(frame, event, _):
                    if event == "call" and frame.f_code.co_name in ("report_line", "completed", "bounded"):
                        raise RuntimeError("traced")
                def metrics(a, b, c):
                    sys.{}(tracer)
                    return {{"x": 1}}
                """.format(kind),
                job_type="MODEL_BATCH_TEST_JOB",
                function="metrics",
            )
            self.assert_completed(ended, {"x": 1})

    def test_a_recursion_limit_of_the_model_does_not_reach_the_report(self):
        deep = "deep = {}\nfor n in range(90):\n    deep = {'d': deep}\nimport sys\ndef metrics(a, b, c):\n"
        limit = "    sys.setrecursionlimit(60)\n"
        staged = {"job_type": "MODEL_BATCH_TEST_JOB", "function": "metrics"}
        ended = self.run_model(deep + limit + "    return deep\n", **staged)
        self.assertEqual((ended.end["message"], ended.code), ("completed", 0), ended.end)
        ended = self.run_model(deep + limit + "    raise ValueError('small')\n", **staged)
        self.assertEqual(self.assert_failed(ended, "model", "ValueError")["message"], "small")

    def test_replaced_functions_of_the_standard_library_do_not_matter(self):
        source = """
            import _thread, atexit, gc, inspect, json, json.encoder, linecache, os, signal, socket, sys, threading
            import traceback
            def broken(*_, **__):
                raise RuntimeError("replaced")
            def metrics(a, b, c):
                json.dumps = json.loads = broken
                for name in ("encode", "iterencode", "default"):
                    setattr(json.JSONEncoder, name, broken)
                for name in ("send", "sendall", "recv", "close", "fileno", "shutdown"):
                    setattr(socket.socket, name, broken)
                socket.socket = broken
                os.getpid = os.fstat = os._exit = broken
                signal.signal = signal.getsignal = broken
                sys.exit = sys.excepthook = sys.setrecursionlimit = broken
                threading.Thread = threading.excepthook = broken
                _thread.start_new_thread = _thread.allocate_lock = broken
                linecache.getline = traceback.format_exc = traceback.print_exc = broken
                traceback.TracebackException = traceback.clear_frames = broken
                {}
            """
        staged = {"job_type": "MODEL_BATCH_TEST_JOB", "function": "metrics"}
        self.assert_completed(self.run_model(source.format("return {'x': [1]}"), **staged), {"x": [1]})
        ended = self.run_model(source.format("raise ValueError('x')"), **staged)
        self.assertEqual(self.assert_failed(ended, "model", "ValueError")["frame"]["text"], "raise ValueError('x')")

    def test_helpers_named_like_modules_of_the_standard_library_are_not_loaded_by_the_driver(self):
        names = ["json", "socket", "inspect", "traceback", "linecache", "base64", "decimal", "_thread", "ctypes"]
        shadow = "raise SystemExit(99)\n"
        ended = self.run_model("def score(a, b, c):\n    pass\n", files={name + ".py": shadow for name in names})
        self.assert_completed(ended)

    def test_threads_left_behind_do_not_hold_the_process(self):
        source = """
            import threading
            def score(a, b, c):
                threading.Thread(target=threading.Event().wait).start()
                {}
            """
        self.assert_completed(self.run_model(source.format("pass")))
        self.assert_failed(self.run_model(source.format("raise ValueError")), "model", "ValueError")

    def test_exit_handlers_run_but_cannot_hold_the_process_or_change_the_end(self):
        ended = self.run_model(
            """
            import atexit, os, sys, threading
            atexit.register(threading.Event().wait)
            atexit.register(sys.exit, 7)
            atexit.register(lambda: open("ran", "w").close())
            def score(a, b, c):
                pass
            """
        )
        self.assert_completed(ended)
        self.assertTrue(os.path.exists(os.path.join(self.folder, "ran")))

    def test_forked_processes_neither_report_nor_hold_the_connection(self):
        ended = self.run_model(
            """
            import os, signal, sys
            def score(a, b, c):
                child = os.fork()
                if child == 0:
                    sys.exit(5)
                assert os.waitpid(child, 0)[1] >> 8 == 5
                child = os.fork()
                if child == 0:
                    raise ValueError("in the child")
                assert os.waitpid(child, 0)[1] >> 8 == 1
                child = os.fork()
                if child == 0:
                    return
                assert os.waitpid(child, 0)[1] == 0
                # This one outlives the driver.
                child = os.fork()
                if child == 0:
                    signal.alarm(120)
                    signal.pause()
                with open("child", "w") as file:
                    file.write(str(child))
            """
        )
        # run_driver came back: the report reached its end of file although the child lives.
        child = int(ended.read("child"))
        os.kill(child, signal.SIGKILL)
        self.assert_completed(ended)
        self.assertIn(b"in the child", ended.stderr)

    def test_multiprocessing_works_in_a_model_with_every_way_to_start(self):
        for method in ("fork", "spawn", "forkserver"):
            ended = self.run_model(
                """
                import multiprocessing
                def square(n):
                    return n * n
                def metrics(a, b, c):
                    with multiprocessing.get_context({!r}).Pool(2) as pool:
                        return {{"squares": pool.map(square, range(4))}}
                """.format(method),
                job_type="MODEL_BATCH_TEST_JOB",
                function="metrics",
            )
            self.assert_completed(ended, {"squares": [0, 1, 4, 9]})

    def test_programs_that_the_model_starts_do_not_inherit_the_connection(self):
        ended = self.run_model(
            """
            import subprocess
            def score(a, b, c):
                child = subprocess.Popen(["sleep", "120"], close_fds=False)
                with open("child", "w") as file:
                    file.write(str(child.pid))
            """
        )
        os.kill(int(ended.read("child")), signal.SIGKILL)
        self.assert_completed(ended)

    def test_a_model_that_closes_every_descriptor_does_not_get_the_report_into_its_own_file(self):
        self.stage(
            """
            import os
            def score(a, b, c):
                os.closerange(3, 64)
                global kept
                kept = [open("mine-%d" % n, "wb", buffering=0) for n in range(20)]
            """
        )
        ended = self.run_driver()
        self.assertEqual([m["message"] for m in ended.messages], ["hello", "running"])
        self.assertEqual(ended.code, 70)
        for n in range(20):
            self.assertEqual(ended.read("mine-%d" % n), "")


class Spark(DriverTest):
    """What is done about a session; the package here stands in for pyspark in the one attribute that is looked at."""

    def package(self, stop):
        library = os.path.join(self.job_folder, "library", "pyspark")
        os.makedirs(library)
        with open(os.path.join(library, "__init__.py"), "w") as file:
            file.write(
                "import threading\nclass SparkContext:\n    _active_spark_context = None\n"
                "    def stop(self):\n        {}\n".format(stop)
            )
        self.environment["PYTHONPATH"] = os.path.dirname(library)

    MODEL = """
        import pyspark
        def score(a, b, c):
            pyspark.SparkContext._active_spark_context = pyspark.SparkContext()
        """

    def test_an_active_context_is_stopped(self):
        self.package("open('stopped', 'w').close()")
        self.assert_completed(self.run_model(self.MODEL))
        self.assertTrue(os.path.exists(os.path.join(self.folder, "stopped")))

    def test_a_context_that_will_not_stop_is_left(self):
        for stop in ("threading.Event().wait()", "raise SystemExit(9)"):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(os.path.join(self.job_folder, "library"))
            self.package(stop)
            self.assert_completed(self.run_model(self.MODEL))

    def test_pyspark_is_not_imported_for_a_model_that_does_not(self):
        self.package("pass")
        with open(os.path.join(self.job_folder, "library", "pyspark", "__init__.py"), "w") as file:
            file.write("open('imported', 'w').close()\n")
        self.assert_completed(self.run_model("def score(a, b, c):\n    pass\n"))
        self.assertFalse(os.path.exists(os.path.join(self.folder, "imported")))


class Orphans(DriverTest):
    # Waits without Python code running, as a long Spark action does.
    MODEL = "import threading\ndef score(a, b, c):\n    threading.Event().wait()\n"

    def start_waiting(self, start):
        self.stage(self.MODEL)
        listener = self.listen()
        process = start()
        connection = self.connect(listener)
        report = connection.makefile("rb")
        self.addCleanup(report.close)
        hello = json.loads(report.readline())
        self.assertEqual(json.loads(report.readline())["message"], "running")
        return process, connection, report, hello["pid"]

    def test_the_driver_ends_at_once_when_the_worker_is_gone(self):
        process, connection, report, _ = self.start_waiting(self.start)
        report.close()
        connection.close()
        self.assertEqual(process.wait(SECONDS), 137)

    def test_the_driver_dies_with_its_parent(self):
        def start_under_a_parent():
            parent = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "import subprocess, sys; subprocess.run(sys.argv[1:])",
                    sys.executable,
                    "ModelOpPySparkDriver.py",
                    "--report-socket",
                    "../driver.sock",
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
            )
            self.processes.append(parent)
            return parent

        parent, _, report, pid = self.start_waiting(start_under_a_parent)
        self.assertNotEqual(pid, parent.pid)
        parent.kill()
        # End of file: the last holder of the connection is gone, although this end never hung up.
        self.assertEqual(report.read(), b"")

    def test_the_working_directory_may_have_any_length(self):
        self.folder = os.path.join(self.folder, "d" * 120)
        os.mkdir(self.folder)
        shutil.copy(DRIVER, self.folder)
        self.job_folder = os.path.dirname(self.folder)
        self.stage("def score(a, b, c):\n    pass\n")
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(self.job_folder)
        self.socket_path = "driver.sock"
        self.assert_completed(self.run_driver())


if __name__ == "__main__":
    unittest.main()
