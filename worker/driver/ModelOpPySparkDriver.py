"""Runs one model under spark-submit and says how it ended.

This file is staged beside the model and started by ``spark-submit`` with the job's working directory as its current
directory. It knows the files of that directory and one place to report to. It must not know the broker, the worker's
settings or what becomes of its report; and it never lets the model speak for it.

Theory of operation
-------------------
1. Tie this process to its parent (PR_SET_PDEATHSIG) and connect to the report socket. Both come before anything of the
   model is loaded, and the path of the socket is relative, so a model that changes directory cannot spoil it.
2. Read the job: ``model_job_metadata.py`` (Python literals), ``model_job.json`` when there is one, and the text of
   ``model_source_code.py``. A fault here is not the model's: one line on stderr, exit 70, no report of an end.
3. Say ``running``, import the model as the module ``model_source_code``, check that the functions asked for are there
   and can be called, call init, call the function with the three lists of whole assets, drain what it yields. When
   there is a ``model_contract.json``, the function is one of a record model: ``ModelOpRecords`` reads its records or
   frames, calls it with them and writes what it gives.
4. Take back what the model may have bent (signal handlers, trace functions, the recursion limit), write out the files
   it left open, and report exactly one end.
5. Close: exit handlers, an active SparkContext, standard streams; each within its bound and best effort, since the end
   has been told. Then leave by ``os._exit``, so that threads the model left behind cannot hold the process.

The report is newline-delimited JSON, ASCII only, without NaN::

    {"message":"hello","protocol":1,"pid":4711,"python":"3.11.7"}
    {"message":"running","function":"score"}
    {"message":"waiting","application":"app-1" or null,"master":"spark://h:7077","memory":"1g","cores":null,
     "most_cores":null,"had_executors":false,"queue":null}
    {"message":"placed"}
    {"message":"completed","results":{...} or null,"records":{...}}
    {"message":"failed","kind":"model" or "contract","exception":{"type","message","traceback","frame"},"functions":[],
     "record":17,"input":"test.csv"}

``kind`` is ``contract`` when the job asks for what the source does not have or cannot give (no such function, wrong
parameters, a syntax error, results that have no JSON form); what the model raises is ``model``. ``frame`` is the last
line in the model's own files that the exception passed, or null. ``functions`` are those that the model has.
``records`` is there for record models only; ``record`` and ``input`` only where one of them raised at a record.

``waiting`` and ``placed`` come from a third thread, and only with ``--watch-executors``: ``waiting`` when there are stages
of the model that could run and not one executor for them, ``placed`` when that is over. A model that asks nothing of
executors never waits for any. Where YARN has not begun the application, without which there is no context at all,
``application`` is null, ``queue`` is where it asks, and memory and cores are those of its master.

A second thread reads the socket. Its end of file means that the worker is gone, and then nobody may go on working for
it: the process ends at once. Processes that the model forks have neither that thread nor the socket, and when one of
them returns into the driver's code it ends there without a word.

Everything used after the model was loaded is bound before, because a model may replace functions of ``json``,
``socket`` or ``os``. A file of the model named like a module of the standard library does not disturb the driver, and
it does not take the place of such a module where the driver has imported that already.

In a cluster there is no worker to talk to: with ``--cluster FOLDER`` this program takes everything from the archive that
was unpacked there, and leaves its report in a folder of the cluster's file system (``ModelOpCluster`` in that archive).

Exit codes: 0 completed, 1 failed, 64 wrong usage, 70 nothing could be run or reported, 75 this launch counts no more, 137
the worker is gone.

JSON form of results
--------------------
None, bool, int and str stay what they are; lone surrogates become U+FFFD. Further:

* float: a number; NaN and infinities become null
* Decimal: the nearest float (return ``str(value)`` where every digit counts)
* datetime, date, time, numpy.datetime64: ISO 8601 text; timedelta, numpy.timedelta64: seconds
* bytes, bytearray, memoryview: base64 text
* list, tuple: a list; set, frozenset: a list, sorted by value where that is possible and by JSON text where not
* mappings: an object; a key that is no str becomes the text of its JSON form, a tuple what Python prints of it; two
  keys with the same text are refused
* other numpy scalars and arrays: by ``tolist()``
* pandas DataFrame and Series: by ``to_dict()``; Index and arrays: by ``tolist()``; NA and NaT become null
* pyspark Row: an object

Anything else, a structure that contains itself, nesting deeper than 100 levels and more than 16 MiB of JSON are refused
as ``contract``, with the place in the results as a JSON pointer.
"""

import os
import sys

# Python puts the folder of this script first on the search path, and that is the model's folder: without this, a
# helper of the model called json.py or socket.py would be loaded into the driver.
_SEARCH_PATH = list(sys.path)
_MODEL_FOLDERS = {os.path.realpath(os.curdir), os.path.dirname(os.path.realpath(__file__))}
sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) not in _MODEL_FOLDERS]

import _thread
import atexit
import base64
import collections.abc
import ctypes
import datetime
import decimal
import gc
import importlib.util
import inspect
import io
import json
import linecache
import math
import signal
import socket
import stat
import time
import traceback

sys.path[:] = _SEARCH_PATH


class without_model_folders:
    """For the driver's other parts: in its ``with``, imports do not look among the model's files, as above."""

    def __enter__(self):
        self._path = list(sys.path)
        folders = _MODEL_FOLDERS | {os.path.realpath(os.curdir)}
        sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) not in folders]

    def __exit__(self, *exception):
        sys.path[:] = self._path


PROTOCOL = 1

EXIT_COMPLETED = 0
EXIT_FAILED = 1
EXIT_USAGE = 64
EXIT_NOT_RUN = 70
EXIT_CALLED_OFF = 75
EXIT_WORKER_GONE = 137

MAX_MESSAGE_BYTES = 64 * 1024
MAX_TRACEBACK_BYTES = 256 * 1024
MAX_LINE_BYTES = 1024
MAX_RESULTS_BYTES = 16 * 1024 * 1024
MAX_RESULTS_DEPTH = 100
MAX_FUNCTIONS = 1000
MAX_CHAINED_EXCEPTIONS = 50
MAX_TRACEBACK_FRAMES = 2000

CONNECT_SECONDS = 10.0
EXIT_HANDLERS_SECONDS = 5.0
STOP_SPARK_SECONDS = 5.0
FLUSH_SECONDS = 2.0
WATCH_SECONDS = 1.0

SCORE_JOB = "MODEL_BATCH_JOB"
TEST_JOB = "MODEL_BATCH_TEST_JOB"
TRAINING_JOB = "MODEL_BATCH_TRAINING_JOB"
JOB_TYPES = (SCORE_JOB, TEST_JOB, TRAINING_JOB)
MODEL_MODULE = "model_source_code"
METADATA_MODULE = "model_job_metadata"
JOB_FILE = "model_job.json"
CONTRACT_FILE = "model_contract.json"
DRIVER_MODULE = "ModelOpPySparkDriver"
RECORDS_MODULE = "ModelOpRecords"
CLUSTER_MODULE = "ModelOpCluster"
DRIVER_MODULES = (
    DRIVER_MODULE,
    RECORDS_MODULE,
    "ModelOpSchemas",
    "ModelOpFormats",
    "ModelOpAvro",
    "ModelOpOutputs",
    "ModelOpSpark",
    "ModelOpWorkers",
)
DRIVER_FILES = tuple(name + ".py" for name in DRIVER_MODULES)
ASSET_LISTS = ("job_input", "job_output", "job_model_assets_input")

WATCH_EXECUTORS = "--watch-executors"

PR_SET_PDEATHSIG = 1
MSG_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)

_exit = os._exit
_getpid = os.getpid
_fstat = os.fstat
_set_recursion_limit = sys.setrecursionlimit
_RECURSION_LIMIT = sys.getrecursionlimit()
_set_signal = signal.signal
_get_signal = signal.getsignal
_SIGNALS = sorted(signal.valid_signals())
_start_thread = _thread.start_new_thread
_new_lock = _thread.allocate_lock
_sleep = time.sleep
_modules = sys.modules
_line_of_source = linecache.getline
_TracebackException = traceback.TracebackException
_clear_frames = traceback.clear_frames


class ContractFault(Exception):
    """The job asks for something that the source does not have or cannot give; the text is meant for its author."""

    def __init__(self, message, frame=None, error_type=None, trace=""):
        super().__init__(message)
        self.message = message
        self.frame = frame
        self.error_type = error_type or type(self).__name__
        self.trace = trace


class RecordFault(Exception):
    """What the model raised at a record.

    ``error`` is the exception itself; where it was raised in another process it is None, and ``description``
    is what that process says of it, as the report has it. ``record`` counts from one in the input
    ``input``; both are None where it was not at a record.
    """

    def __init__(self, record, input_name, error=None, description=None):
        super().__init__("the model raised")
        self.record = record
        self.input = input_name
        self.error = error
        self.description = description


class DriverFault(Exception):
    """The driver cannot do its part, so that there will be no report of an end; the text is one line for the log."""


# --- The report ------------------------------------------------------------------------------------------------------


class ReportEncoder(json.JSONEncoder):
    """The JSON encoder of the report, holding the methods as they were before a model could replace them."""

    encode = json.JSONEncoder.encode
    iterencode = json.JSONEncoder.iterencode
    default = json.JSONEncoder.default


_encode = ReportEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def report_line(message):
    """The bytes of one message of the report, newline included."""
    return _encode(message).encode("ascii") + b"\n"


class SocketReporter:
    """Sends the report over the worker's Unix socket and ends this process when the worker is gone.

    Another way to report needs the same two methods, ``tell`` and ``tell_end``, both taking a line from
    ``report_line`` and raising OSError when nobody takes it any more, DriverFault when it cannot be sent.
    """

    def __init__(self, path):
        """Connects to ``path``; raises OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The listener belongs to this job alone: nobody else can be waiting in front.
        connection.settimeout(CONNECT_SECONDS)
        connection.connect(path)
        connection.settimeout(None)
        self._pid = _getpid()
        self._fileno = connection.fileno()
        self._identity = self._identity_now()
        self._send_all = connection.sendall
        self._receive = connection.recv
        self._ending = False
        # One line after the other, whichever thread has it.
        self._sending = _new_lock()
        # A forked process that kept the connection would hide the driver's death from the worker.
        os.register_at_fork(after_in_child=connection.close)
        # Do not let the model begin before the thread reads, or a model that closes descriptors could be taken for a
        # worker that is gone.
        reading = _new_lock()
        reading.acquire()
        _start_thread(self._end_with_worker, (reading,))
        reading.acquire()

    def tell(self, line):
        """Sends ``line`` whole. Waits as long as the worker does: a worker that hangs is ended by others."""
        if _getpid() != self._pid:
            raise DriverFault("a process that the model forked has nothing to report")
        if self._identity_now() != self._identity:
            raise DriverFault("the model closed the connection to the worker")
        with self._sending:
            self._send_all(line, MSG_NOSIGNAL)

    def tell_end(self, line):
        """Sends the last line. From here on the worker may hang up, which no longer means that it is gone."""
        self._ending = True
        self.tell(line)

    def _identity_now(self):
        # A model that closes every descriptor and opens files of its own would find the report in one of them.
        try:
            status = _fstat(self._fileno)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _end_with_worker(self, reading):
        reading.release()
        try:
            while self._receive(4096):
                pass
        except OSError:
            if self._identity_now() != self._identity:
                return
        if not self._ending:
            _exit(EXIT_WORKER_GONE)


class ExecutorsWatch:
    """Looks now and then whether work of the model waits for executors that its cluster does not give, and tells so.

    What it asks the JVM goes by a connection of its own thread. When the model bends what leads there, nothing is told:
    nobody takes a job for waiting that does not say so.
    """

    def __init__(self, tell):
        """``tell`` takes a line of the report."""
        self._tell = tell
        self._had_executors = False
        self._told = None

    def start(self):
        """Looks from now on, in a thread of its own."""
        _start_thread(self._run, ())

    def _run(self):
        while True:
            _sleep(WATCH_SECONDS)
            try:
                wait = self._look()
            except Exception:
                # The context is being stopped, or the model broke something: it may be better next time.
                continue
            if wait == self._told:
                continue
            self._told = wait
            try:
                self._tell(report_line({"message": "placed"} if wait is None else wait))
            except (OSError, DriverFault):
                # Nobody listens any more. That is for others to see.
                return

    def _look(self):
        """What is to be told of work that waits, or None where none does."""
        spark = _modules.get("pyspark")
        context = getattr(getattr(spark, "SparkContext", None), "_active_spark_context", None)
        if context is None:
            return None
        java = getattr(context, "_jsc", None)
        if java is None:
            return self._place_asked_for(context)
        java = java.sc()
        tracker = java.statusTracker()
        # The driver itself is one of them.
        if len(tracker.getExecutorInfos()) > 1:
            self._had_executors = True
            return None
        if len(tracker.getActiveStageIds()) == 0:
            return None
        settings = java.conf()

        def setting(name):
            return bounded(settings.get(name, ""), MAX_LINE_BYTES) or None

        return {
            "message": "waiting",
            "application": bounded(java.applicationId(), MAX_LINE_BYTES),
            "master": bounded(java.master(), MAX_LINE_BYTES),
            "memory": setting("spark.executor.memory"),
            "cores": setting("spark.executor.cores"),
            "most_cores": setting("spark.cores.max"),
            "had_executors": self._had_executors,
            "queue": None,
        }

    @staticmethod
    def _place_asked_for(context):
        """What is to be told of a context that is being made, or None where nothing keeps it: it is YARN alone whose
        client waits for the application to begin, for as long as that takes."""
        # One that is stopped has it, and it is None.
        if hasattr(context, "_jsc") or getattr(context, "master", None) != "yarn":
            return None
        settings = context._conf

        def setting(name):
            return bounded(settings.get(name, "") or "", MAX_LINE_BYTES) or None

        return {
            "message": "waiting",
            "application": None,
            "master": "yarn",
            "memory": setting("spark.yarn.am.memory"),
            "cores": setting("spark.yarn.am.cores"),
            "most_cores": None,
            "had_executors": False,
            "queue": setting("spark.yarn.queue"),
        }


def without_lone_surrogates(text):
    """``text`` with surrogate pairs joined and lone surrogates, which readers of JSON refuse, as U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def bounded(text, limit):
    """``text`` in at most ``limit`` bytes of UTF-8: the head and the tail when it is longer."""
    cut = "\n[... shortened ...]\n"
    if len(text) > limit:
        # One character is at least one byte: no more than this can survive, so do not encode a gigabyte.
        text = text[:limit] + text[-limit:]
    text = without_lone_surrogates(text)
    encoded = text.encode("utf-8")
    if len(encoded) <= limit:
        return text
    half = (limit - len(cut)) // 2
    return encoded[:half].decode("utf-8", "ignore") + cut + encoded[-half:].decode("utf-8", "ignore")


# --- The job ---------------------------------------------------------------------------------------------------------


class Job:
    """What the working directory says: which functions of which source to call, and with what."""

    def __init__(self, folder):
        """Reads ``folder`` (absolute); raises DriverFault."""
        self.folder = folder
        self.source_path = os.path.join(folder, MODEL_MODULE + ".py")
        self.source = self._read(MODEL_MODULE + ".py")
        metadata = self._metadata()
        self.type = self._value(metadata, "job_type", str)
        if self.type not in JOB_TYPES:
            raise DriverFault("{}: job_type is {!r}".format(METADATA_MODULE, self.type))
        self.function = self._value(metadata, "method_to_be_executed", str)
        self.init = self._value(metadata, "init_to_be_executed", (str, type(None)))
        self.assets = [self._value(metadata, name, list) for name in ASSET_LISTS]
        self.init_argument = self._init_argument()
        self.contract = self._contract()
        self.id = str(getattr(metadata, "job_id", ""))

    def _read(self, name):
        try:
            with open(os.path.join(self.folder, name), "rb") as file:
                return file.read()
        except OSError as error:
            raise DriverFault("cannot read {}: {}".format(name, error.strerror))

    def _metadata(self):
        path = os.path.join(self.folder, METADATA_MODULE + ".py")
        source = self._read(METADATA_MODULE + ".py")
        module = new_module(METADATA_MODULE, path)
        try:
            exec(compile(source, path, "exec", dont_inherit=True), vars(module))
        except Exception as error:
            raise DriverFault("cannot read {}.py: {}".format(METADATA_MODULE, type(error).__name__))
        return module

    @staticmethod
    def _value(metadata, name, expected):
        value = getattr(metadata, name, DriverFault)
        if not isinstance(value, expected):
            raise DriverFault("{}.py: {} is missing or of the wrong type".format(METADATA_MODULE, name))
        return value

    def _contract(self):
        """What a record model is called with, or None where the function takes the three lists."""
        if not os.path.exists(os.path.join(self.folder, CONTRACT_FILE)):
            return None
        try:
            return json.loads(self._read(CONTRACT_FILE).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DriverFault("cannot read {}: {}".format(CONTRACT_FILE, type(error).__name__))

    def _init_argument(self):
        """What an init function with a parameter gets, or None when the job's text was not staged."""
        if self.init is None or not os.path.exists(os.path.join(self.folder, JOB_FILE)):
            return None
        try:
            text = self._read(JOB_FILE).decode("utf-8")
            return {"rawJson": text, "job": json.loads(text)}
        except (ValueError, RecursionError) as error:
            raise DriverFault("cannot read {}: {}".format(JOB_FILE, type(error).__name__))


def new_module(name, path):
    """An empty module ``name`` that has ``path`` as its file and that an import of ``name`` finds."""
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, path))
    sys.modules[name] = module
    return module


# --- The model -------------------------------------------------------------------------------------------------------


class Model:
    """The model's source as a module, and how far the call of it has come."""

    def __init__(self, job, records=None):
        """``records`` is the module that calls record models; the contract of the job says whether it has one."""
        self._job = job
        self._module = None
        self._records = records
        self.function_was_called = False
        self.report = None

    def run(self):
        """Imports the model and calls init and the function. Returns the results of a test job, else None.

        Raises ContractFault, RecordFault, and whatever the model raises.
        """
        if self._records is not None:
            results, self.report = self._records.run(self._job, self)
            return results
        function = self.load()
        self.call_init()
        return self.call_whole(function, self._job.assets)

    def load(self):
        """Imports the model and returns the function; all that can be refused is refused before init is called."""
        code = self._compiled()
        self._module = new_module(MODEL_MODULE, self._job.source_path)
        exec(code, vars(self._module))
        self._check_function()
        return self._callable(self._job.function)

    def call_init(self):
        """Calls init, when the job has one. It may take an hour."""
        if self._job.init is not None:
            init = self._callable(self._job.init)
            init(*self._init_arguments(init))

    def check_returned(self, returned):
        """Raises ContractFault when what the function returned is something that would have to be awaited."""
        if inspect.isawaitable(returned) or inspect.isasyncgen(returned):
            if inspect.iscoroutine(returned):
                returned.close()
            message = "{} returned an awaitable; async functions are not supported".format(self._job.function)
            raise self._fault(self._callable(self._job.function), message)

    def functions(self):
        """The names of the functions that the model's own files bring into its module, in the order of the source."""
        names = []
        for name, value in list(vars(self._module).items() if self._module else ()):
            if inspect.isfunction(value) and own_file(self._job.folder, value.__code__.co_filename):
                names.append(without_lone_surrogates(name))
        return names[:MAX_FUNCTIONS]

    def _compiled(self):
        try:
            return compile(self._job.source, self._job.source_path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ContractFault(
                "the source cannot be compiled: {}".format(text_of(error)),
                syntax_error_frame(self._job.folder, error),
                type(error).__name__,
                "".join(_TracebackException(type(error), error, None).format_exception_only()),
            )

    def _callable(self, name):
        found = getattr(self._module, name, ContractFault)
        if found is ContractFault:
            there = ", ".join(self.functions()[:20]) or "none"
            raise ContractFault("the model has no function {}; its functions are: {}".format(name, there))
        if not callable(found):
            kind = type(found).__name__
            raise ContractFault("{} cannot be called: it is a {}, not a function".format(name, kind))
        if inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found):
            raise self._fault(found, "{} is async; async functions are not supported".format(name))
        return found

    def _check_function(self):
        name = self._job.function
        function = self._callable(name)
        signature = own_signature(function)
        count, what = self._expected_parameters()
        if signature is None or binds(signature, count):
            return
        message = "{} takes {}; {}".format(name, parameters_text(signature), what)
        raise self._fault(function, message)

    def _expected_parameters(self):
        """How many arguments the function gets, and a text that says so."""
        contract = self._job.contract
        if contract is None:
            count = len(ASSET_LISTS)
            return count, "a Spark model's function takes {} ({})".format(count, ", ".join(ASSET_LISTS))
        if self._job.type == SCORE_JOB:
            return 1, "a record model's function takes 1 (a record)"
        count = len(contract["inputs"])
        return count, "a record model's function takes a data frame for each input, which makes {}".format(count)

    def _init_arguments(self, init):
        """The arguments for ``init``: none, or one dict. Where both would do, a staged job text decides."""
        signature = own_signature(init)
        argument = self._job.init_argument
        if signature is None:
            return () if argument is None else (argument,)
        takes_none = binds(signature, 0)
        takes_one = binds(signature, 1)
        if takes_one and argument is not None:
            return (argument,)
        if takes_none:
            return ()
        name = self._job.init
        if takes_one:
            raise self._fault(init, "{} takes a parameter, but the job's text was not staged for it".format(name))
        message = "{} takes {}; an init function takes none or one".format(name, parameters_text(signature))
        raise self._fault(init, message)

    def call_whole(self, function, arguments):
        """Calls the function with ``arguments`` and drains it; returns the results of a test job, else None.

        An exit with code zero is a normal end; so Python sees it too.
        """
        results = Results(self._job.function) if self._job.type == TEST_JOB else None
        self.function_was_called = True
        try:
            returned = function(*arguments)
            self.check_returned(returned)
            # Looked up on the type: proxies of Java objects claim to have any attribute.
            if not hasattr(type(returned), "__next__"):
                if results is not None:
                    results.add(returned, "returned")
            else:
                for item in returned:
                    if results is not None:
                        results.add(item, "yielded")
        except SystemExit as end:
            if end.code not in (None, 0):
                raise
        return None if results is None else results.merged()

    def _fault(self, function, message):
        return ContractFault(message, definition_frame(self._job.folder, function))


class Results:
    """What the function of a test job gave: one dict returned, or dicts yielded, of which later keys win."""

    def __init__(self, function):
        self._function = function
        self._merged = None

    def add(self, item, how):
        """Takes one dict; raises ContractFault for anything else."""
        if not isinstance(item, collections.abc.Mapping):
            message = "{} must return or yield a dict; it {} a {}"
            raise ContractFault(message.format(self._function, how, type(item).__name__))
        if self._merged is None:
            self._merged = {}
        self._merged.update(item)

    def merged(self):
        """All of it; raises ContractFault when there was nothing."""
        if self._merged is None:
            raise ContractFault("{} must return or yield a dict; it gave nothing".format(self._function))
        return self._merged


def own_signature(function):
    """The signature that a call of ``function`` meets, or None where Python does not know it.

    Not that of a function wrapped inside: a decorator may supply arguments of its own.
    """
    try:
        return inspect.signature(function, follow_wrapped=False)
    except (ValueError, TypeError):
        return None


def binds(signature, count):
    """Whether a call with ``count`` positional arguments is possible."""
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def parameters_text(signature):
    """How many parameters a function takes, as words."""
    parameters = signature.parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    text = str(len(positional))
    if len(required) < len(positional):
        text = "{} to {}".format(len(required), len(positional))
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        text = "{} or more".format(len(required))
    text += " parameter" if text == "1" else " parameters"
    keywords = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY and p.default is p.empty]
    if keywords:
        text += " and needs the keyword {}".format(", ".join(keywords))
    return text


# --- What went wrong -------------------------------------------------------------------------------------------------


def own_file(folder, filename):
    """The path of ``filename`` inside ``folder`` when it is one of the model's own files, else None."""
    if not filename or filename.startswith("<"):
        return None
    path = os.path.normpath(os.path.join(folder, filename))
    if not path.startswith(folder + os.sep) or is_driver_file(filename):
        return None
    relative = path[len(folder) + 1 :]
    parts = relative.split(os.sep)
    # On a cluster Spark itself lies in the working directory, and so may an unpacked Python environment.
    spark = parts[0] == "pyspark.zip" or (parts[0].startswith("py4j-") and parts[0].endswith(".zip"))
    if spark or "site-packages" in parts or "dist-packages" in parts:
        return None
    return relative


def is_driver_file(filename):
    """Whether ``filename`` is where the driver's own code stands, rather than the model's."""
    return os.path.basename(filename) in DRIVER_FILES


def frame_of(relative, line, function, text):
    """A place in the model's own files, as the report has it."""
    return {
        "file": bounded(relative, MAX_LINE_BYTES),
        "line": line,
        "function": bounded(function, MAX_LINE_BYTES),
        "text": bounded((text or "").strip(), MAX_LINE_BYTES),
    }


def source_line(filename, line, module_globals=None):
    """The text of a line of source, or nothing where it cannot be had any more."""
    try:
        return _line_of_source(filename, line, module_globals)
    except Exception:
        return ""


def definition_frame(folder, function):
    """The line where ``function`` is defined, or None when that is not in the model's own files."""
    code = getattr(function, "__code__", None)
    relative = own_file(folder, code.co_filename) if inspect.iscode(code) else None
    if relative is None:
        return None
    return frame_of(relative, code.co_firstlineno, code.co_name, source_line(code.co_filename, code.co_firstlineno))


def syntax_error_frame(folder, error):
    """The line that a SyntaxError is about, or None when that is not in the model's own files."""
    if not isinstance(error, SyntaxError) or not isinstance(error.filename, str):
        return None
    relative = own_file(folder, error.filename)
    if relative is None or not isinstance(error.lineno, int):
        return None
    text = error.text if isinstance(error.text, str) else ""
    return frame_of(relative, error.lineno, "<module>", text)


def raised_frame(folder, error):
    """The last line in the model's own files that ``error`` passed; failing that, one that what led to it passed."""
    for link in chain_of(error):
        frame = syntax_error_frame(folder, link)
        if frame:
            return frame
        last = None
        for step in steps_of(link.__traceback__):
            if own_file(folder, step.tb_frame.f_code.co_filename):
                last = step
        if last:
            code = last.tb_frame.f_code
            text = source_line(code.co_filename, last.tb_lineno, last.tb_frame.f_globals)
            return frame_of(own_file(folder, code.co_filename), last.tb_lineno, code.co_name, text)
    return None


def chain_of(error):
    """``error`` and the exceptions that led to it, nearest first, as Python prints them."""
    links = []
    seen = set()
    while error is not None and id(error) not in seen and len(links) < MAX_CHAINED_EXCEPTIONS:
        links.append(error)
        seen.add(id(error))
        if error.__cause__ is not None or error.__suppress_context__:
            error = error.__cause__
        else:
            error = error.__context__
    return links


def steps_of(trace):
    """The steps of a traceback, outermost first."""
    while trace is not None:
        yield trace
        trace = trace.tb_next


def shorten(error):
    """Bounds the work of printing ``error``: cuts endless chains and, from the middle, very long tracebacks.

    Returns how many steps were left out.
    """
    left_out = 0
    links = chain_of(error)
    links[-1].__cause__ = links[-1].__context__ = None
    for link in links:
        steps = list(steps_of(link.__traceback__))
        if len(steps) > MAX_TRACEBACK_FRAMES:
            half = MAX_TRACEBACK_FRAMES // 2
            steps[half - 1].tb_next = steps[-half]
            left_out += len(steps) - 2 * half
    return left_out


def without_driver(trace):
    """``trace`` from the first step that is not the driver's own, since those tell the model's author nothing."""
    while trace is not None and is_driver_file(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def text_of(value, form=str):
    """``form(value)``, also when the model's own ``__str__`` or ``__repr__`` raises."""
    try:
        return bounded(form(value), MAX_MESSAGE_BYTES)
    except BaseException as error:
        return "<{} whose text cannot be made: {}>".format(type(value).__name__, type(error).__name__)


def type_name(error):
    """The name of the exception's type as Python prints it: with its module, unless that is the built-in one."""
    kind = type(error)
    module = kind.__module__
    if not isinstance(module, str) or module in ("builtins", "__main__"):
        return bounded(kind.__qualname__, MAX_LINE_BYTES)
    return bounded(module + "." + kind.__qualname__, MAX_LINE_BYTES)


def traceback_text(error):
    """The traceback as Python prints it, without the driver's own frames."""
    try:
        left_out = shorten(error)
        note = "[{} frames in the middle are left out]\n".format(left_out) if left_out else ""
        printed = _TracebackException(type(error), error, error.__traceback__)
        return bounded(note + "".join(printed.format()), MAX_TRACEBACK_BYTES)
    except BaseException:
        # The exception breaks what Python asks of it, or the model broke what prints it: say it without either.
        lines = ["Traceback (most recent call last):"]
        for step in steps_of(error.__traceback__):
            code = step.tb_frame.f_code
            lines.append('  File "{}", line {}, in {}'.format(code.co_filename, step.tb_lineno, code.co_name))
        lines.append("{}: {}\n".format(type_name(error), text_of(error)))
        return bounded("\n".join(lines), MAX_TRACEBACK_BYTES)


def exit_text(end, model, job):
    """What to say of a SystemExit that is not a normal end."""
    code = "" if end.code is None else text_of(end.code, repr)
    before = "" if model.function_was_called else " before {} was called".format(job.function)
    return "the model called sys.exit({}){}".format(code, before)


def describe(error, model, job):
    """The ``exception`` part of a report for what the model raised."""
    error.__traceback__ = without_driver(error.__traceback__)
    message = exit_text(error, model, job) if isinstance(error, SystemExit) else text_of(error)
    return {
        "type": type_name(error),
        "message": message,
        "traceback": traceback_text(error),
        "frame": raised_frame(job.folder, error),
    }


# --- The JSON form of results ----------------------------------------------------------------------------------------


NOT_SCALAR = object()


class ResultsConversion:
    """Turns results into what JSON knows; the module's text says how. Good for one conversion."""

    has = "the results have"
    is_bigger = "the results are bigger"

    def __init__(self):
        self._place = []
        self._inside = set()
        # Counts what the JSON will have at the least, so that results far too big are refused before they are copied.
        self._bytes = 0

    def convert(self, results):
        """The JSON form of ``results``; raises ContractFault."""
        try:
            return self._form(results)
        except ContractFault:
            raise
        except Exception as error:
            raise self._fault("cannot be converted: {}: {}".format(type_name(error), text_of(error)))

    def _fault(self, what):
        pointer = "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in self._place)
        where = bounded(pointer, MAX_LINE_BYTES) or "the whole"
        return ContractFault("{} no JSON form: {} {}".format(self.has, where, what))

    def _spend(self, count):
        self._bytes += count
        if self._bytes > MAX_RESULTS_BYTES:
            raise ContractFault(too_big_text(self.is_bigger))

    def _expect(self, count):
        # Every element takes at least a digit and a comma: refuse before looking at millions of them.
        if 2 * count > MAX_RESULTS_BYTES:
            raise ContractFault(too_big_text(self.is_bigger))

    def _form(self, value):
        self._spend(1)
        form = self._scalar(value)
        return self._nested(value) if form is NOT_SCALAR else form

    def _scalar(self, value):
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return finite(value)
        if is_missing(value):
            return None
        if isinstance(value, decimal.Decimal):
            return None if value.is_nan() else finite(value)
        if isinstance(value, (datetime.date, datetime.time)):
            return self._text(value.isoformat())
        if isinstance(value, datetime.timedelta):
            return value.total_seconds()
        if isinstance(value, (bytes, bytearray, memoryview)):
            self._spend(len(value))
            return base64.b64encode(value).decode("ascii")
        return NOT_SCALAR

    def _text(self, value):
        self._spend(len(value))
        return without_lone_surrogates(str.__str__(value))

    def _nested(self, value):
        if id(value) in self._inside:
            raise self._fault("contains itself")
        if len(self._inside) >= MAX_RESULTS_DEPTH:
            raise self._fault("lies deeper than {} levels".format(MAX_RESULTS_DEPTH))
        self._inside.add(id(value))
        form = self._structure(value)
        self._inside.remove(id(value))
        return form

    def _structure(self, value):
        library = library_of(value)
        if isinstance(value, collections.abc.Mapping):
            return self._object(value.items())
        if library == "pyspark" and isinstance(value, tuple) and hasattr(value, "asDict"):
            return self._object(value.asDict().items())
        if isinstance(value, (list, tuple)):
            return self._list(value)
        if isinstance(value, (set, frozenset)):
            return self._sorted(self._list(value))
        if library == "pandas" and hasattr(value, "to_dict"):
            return self._object(value.to_dict().items())
        if library in ("numpy", "pandas") and hasattr(value, "tolist"):
            return self._array(value)
        raise self._fault("is a {}".format(type_name(value)))

    def _object(self, items):
        form = {}
        for key, value in items:
            name = self._key(key)
            self._place.append(name)
            if name in form:
                raise self._fault("stands for two keys")
            form[name] = self._form(value)
            self._place.pop()
        return form

    def _key(self, key):
        form = self._key_form(key)
        if isinstance(form, str):
            return form
        if isinstance(form, tuple):
            return without_lone_surrogates(str(form))
        return _encode(form)

    def _key_form(self, key):
        if isinstance(key, tuple):
            return tuple(self._key_form(part) for part in key)
        form = self._scalar(key)
        if form is NOT_SCALAR and library_of(key) == "numpy":
            form = self._array(key)
        if form is NOT_SCALAR and library_of(key) == "pandas":
            form = self._text(str(key))
        if form is NOT_SCALAR:
            raise self._fault("has a key that is a {}".format(type_name(key)))
        return form

    def _list(self, values):
        self._expect(len(values))
        form = []
        for place, value in enumerate(values):
            self._place.append(str(place))
            form.append(self._form(value))
            self._place.pop()
        return form

    @staticmethod
    def _sorted(form):
        try:
            return sorted(form)
        except TypeError:
            return sorted(form, key=_encode)

    def _array(self, value):
        kind = type(value).__name__
        if kind == "datetime64":
            return self._text(str(value))
        if kind == "timedelta64":
            return finite(value / type(value)(1, "s"))
        self._expect(int(getattr(value, "size", 1)))
        if getattr(getattr(value, "dtype", None), "kind", "") in ("M", "m"):
            # tolist() would make bare numbers of points in time.
            return self._list(value)
        plain = value.tolist()
        if type(plain) is type(value):
            # numpy's extended floats stay what they are.
            return finite(plain)
        return self._form(plain)


def library_of(value):
    """The top-level package that the type of ``value`` comes from; so nothing has to be imported to know it."""
    return str(type(value).__module__).partition(".")[0]


def finite(number):
    """``number`` as a float, or None when it is none that JSON has."""
    number = float(number)
    return number if math.isfinite(number) else None


def is_missing(value):
    """Whether ``value`` is how pandas or numpy writes a value that is not there."""
    name = type(value).__name__
    library = library_of(value)
    if library == "pandas":
        return name in ("NaTType", "NAType")
    return library == "numpy" and name in ("datetime64", "timedelta64") and str(value) == "NaT"


def too_big_text(is_bigger):
    """What to say of results above the bound."""
    return "{} than {} MiB as JSON".format(is_bigger, MAX_RESULTS_BYTES // 1024 // 1024)


# --- The end ---------------------------------------------------------------------------------------------------------


class End:
    """How the run ended: the last line of the report, the exit code, and what the log should say."""

    def __init__(self, line, code, log_text=""):
        self.line = line
        self.code = code
        self.log_text = log_text


def completed(results, records=None):
    """The end of a job whose function came to its end; raises ContractFault for results that cannot be sent.

    ``records`` is what became of the records, of a record model."""
    message = {"message": "completed", "results": None if results is None else ResultsConversion().convert(results)}
    if records is not None:
        message["records"] = records
    try:
        line = report_line(message)
    except ValueError as error:
        # Python refuses to print integers of many thousand digits.
        raise ContractFault("the results have no JSON form: {}".format(text_of(error)))
    if len(line) > MAX_RESULTS_BYTES:
        raise ContractFault(too_big_text("the results are bigger"))
    return End(line, EXIT_COMPLETED)


def failed(error, model, job):
    """The end of a job that ``error`` ended."""
    place = {}
    if isinstance(error, RecordFault):
        if error.record is not None:
            place = {"record": error.record, "input": bounded(str(error.input), MAX_LINE_BYTES)}
        description, error = error.description, error.error
    if isinstance(error, ContractFault):
        kind = "contract"
        exception = {
            "type": error.error_type,
            "message": bounded(error.message, MAX_MESSAGE_BYTES),
            "traceback": bounded(error.trace, MAX_TRACEBACK_BYTES),
            "frame": error.frame,
        }
    else:
        kind = "model"
        exception = describe(error, model, job) if error is not None else description
    message = {"message": "failed", "kind": kind, "exception": exception, "functions": model.functions()}
    message.update(place)
    return End(report_line(message), EXIT_FAILED, exception["traceback"] or exception["message"] + "\n")


def certain_end_of(model, job):
    """Runs the model and says how that ended, whatever happens on the way; raises nothing but DriverFault."""
    driver_pid = _getpid()
    try:
        return end_of(model, job, driver_pid)
    except DriverFault:
        raise
    except BaseException as raised:
        # A signal handler of the model, or a shortage of memory, hit between the model's end and the account of it.
        error = raised
    try:
        take_back_control()
        return failed(error, model, job)
    except BaseException as fault:
        message = "a {} that cannot be described: {}".format(type(error).__name__, type(fault).__name__)
        exception = {"type": type(error).__name__, "message": message, "traceback": "", "frame": None}
        line = report_line({"message": "failed", "kind": "model", "exception": exception, "functions": []})
        return End(line, EXIT_FAILED, message + "\n")


def end_of(model, job, driver_pid):
    """Runs the model and says how that ended; raises DriverFault."""
    try:
        results, error = model.run(), None
    except DriverFault:
        raise
    except BaseException as raised:
        results, error = None, raised
    met = error.error if isinstance(error, RecordFault) else error
    if isinstance(met, MemoryError):
        # Its frames still hold what did not fit, and all that follows needs some room.
        _clear_frames(met.__traceback__)
    take_back_control()
    if _getpid() != driver_pid:
        leave_forked_process(error)
    unwritten = write_out_open_files()
    if error is None and unwritten is not None:
        error = unwritten
    if error is not None:
        return failed(error, model, job)
    try:
        return completed(results, model.report)
    except ContractFault as fault:
        return failed(fault, model, job)


def take_back_control():
    """Undoes what a model may have set up and what could fire into the report."""
    for number in _SIGNALS:
        if callable(_get_signal(number)):
            _set_signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    sys.settrace(None)
    sys.setprofile(None)
    _set_recursion_limit(_RECURSION_LIMIT)


def write_out_open_files():
    """Writes out the regular files that the model left open; returns the OSError that this met, if any.

    An interpreter that ends in the ordinary way does this; ``os._exit`` does not, and a job whose output is still in a
    buffer is not completed. Only regular files: a pipe could wait for ever.
    """
    first_error = None
    for thing in gc.get_objects():
        # Not isinstance: that asks the object, and a lazy proxy would wake up.
        if not issubclass(type(thing), (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)):
            continue
        try:
            if is_open_output(thing):
                thing.flush()
        except OSError as error:
            first_error = first_error or error
        except Exception:
            # A file object that the model has detached or broken holds nothing that could be saved.
            continue
    return first_error


def is_open_output(file):
    """Whether ``file`` is an open regular file that can be written and is none of the standard streams."""
    if file.closed or not file.writable():
        return False
    try:
        fileno = file.fileno()
        return fileno > 2 and stat.S_ISREG(_fstat(fileno).st_mode)
    except OSError:
        # It lies in memory, or its descriptor was closed without it.
        return False


def leave_forked_process(error):
    """Ends a process that the model forked and that came back into the driver's code, as Python would have."""
    code = EXIT_COMPLETED if error is None else EXIT_FAILED
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        code = (error.code or 0) & 0xFF
    elif error is not None:
        write_log("".join(_TracebackException(type(error), error, error.__traceback__).format()))
    flush_streams()
    _exit(code)


def close(end):
    """All that is left to do once the end was told; nothing in here can change it or wait for ever."""
    within(FLUSH_SECONDS, flush_streams)
    within(FLUSH_SECONDS, lambda: write_log(end.log_text))
    # Not public, but the only way to run them and yet not wait for threads that never end.
    within(EXIT_HANDLERS_SECONDS, getattr(atexit, "_run_exitfuncs", lambda: None))
    within(STOP_SPARK_SECONDS, stop_spark)
    within(FLUSH_SECONDS, flush_streams)


def within(seconds, step):
    """Runs ``step`` in a thread of its own and waits for it, but no longer than ``seconds``. Its errors are dropped."""
    done = _new_lock()
    done.acquire()

    def run():
        try:
            step()
        except BaseException:
            # The end is told already, and the model may have broken whatever this step needs.
            pass
        finally:
            done.release()

    try:
        _start_thread(run, ())
    except RuntimeError:
        # The model has used up the threads it may have: do without.
        return
    done.acquire(timeout=seconds)


def stop_spark():
    """Stops the SparkContext that the model left active, if it used pyspark at all."""
    spark = sys.modules.get("pyspark")
    context = getattr(getattr(spark, "SparkContext", None), "_active_spark_context", None)
    if context is None:
        return
    java = getattr(context, "_jsc", None)
    if java is None:
        context.stop()
    else:
        # Its own method then waits half a second for a server in this process, which is about to end.
        java.stop()


def write_log(text):
    """Writes ``text`` where the interpreter's own error messages go."""
    if text and sys.__stderr__ is not None:
        sys.__stderr__.write(text)


def flush_streams():
    """Flushes the standard streams, the model's replacements included."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()
        except Exception:
            # Closed, replaced by something else, or None.
            continue


# --- Start -----------------------------------------------------------------------------------------------------------


def die_with_parent():
    """Asks the kernel to kill this process when its parent, the JVM, dies. Best effort: others look for orphans too."""
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        _exit(EXIT_WORKER_GONE)


def give_up(code, text):
    """Ends the process with one line in the log and no report of an end."""
    try:
        sys.__stderr__.write("{}.py: {}\n".format(DRIVER_MODULE, " ".join(text.split())))
        sys.__stderr__.flush()
    except Exception:
        # The exit code still tells.
        pass
    _exit(code)


def end_called_off(text):
    """Ends the process in the middle of whatever it does, since its launch counts no more: with one line in the log, if
    that takes it."""
    within(FLUSH_SECONDS, lambda: write_log("{}.py: {}\n".format(DRIVER_MODULE, text)))
    _exit(EXIT_CALLED_OFF)


def argument_of(arguments, name):
    """The one argument ``name`` with its value, or None when the arguments are anything else."""
    if len(arguments) == 2 and arguments[0] == name and arguments[1]:
        return arguments[1]
    return None


def cluster_reporter(unpacked, folder):
    """Brings the job's files from the archive that was unpacked in ``unpacked`` into ``folder``; gives what reports.

    Ends the process when nothing is to be run."""
    path = os.path.join(unpacked, CLUSTER_MODULE + ".py")
    try:
        specification = importlib.util.spec_from_file_location(CLUSTER_MODULE, path)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        reporter, called_off, cluster_fault = module.FolderReporter, module.CalledOff, module.ClusterFault
    except Exception as error:
        # It is not there, or cut off anywhere.
        give_up(EXIT_NOT_RUN, "cannot load {}: {}".format(CLUSTER_MODULE, text_of(error)))
    try:
        settings = module.Settings(unpacked)
        module.unpack(unpacked, folder, settings.output_folder)
        prefer_unpacked_spark()
        with without_model_folders():
            return reporter(
                settings, folder, DriverFault, report_line, lambda text: write_log(text + "\n"), end_called_off
            )
    except called_off as reason:
        give_up(EXIT_CALLED_OFF, str(reason))
    except cluster_fault as fault:
        give_up(EXIT_NOT_RUN, str(fault))


def socket_reporter(path):
    """What reports to the worker's socket. Ends the process when nobody listens there."""
    try:
        return SocketReporter(path)
    except OSError as error:
        give_up(EXIT_NOT_RUN, "cannot connect to the report socket {}: {}".format(path, error))


class UnpackedSpark:
    """Finds the package pyspark in a folder, where its modules lie compiled, and nothing else.

    spark-submit puts an archive of the same package in front of Python's path, and of that every process would compile
    all modules anew, which takes most of a second.
    """

    def __init__(self, folder):
        self._folder = folder

    def find_spec(self, name, path=None, target=None):
        """What Python's import asks for."""
        if name != "pyspark":
            return None
        source = os.path.join(self._folder, "__init__.py")
        return importlib.util.spec_from_file_location(name, source, submodule_search_locations=[self._folder])


def prefer_unpacked_spark():
    """Lets imports of pyspark find what the archive of the same Spark installation was packed of."""
    home = os.environ.get("SPARK_HOME")
    if not home or os.path.join(home, "python", "lib", "pyspark.zip") not in sys.path:
        return
    # As it is installed by pip, the installation lies in the package.
    for folder in (os.path.join(home, "python", "pyspark"), home):
        if os.path.basename(folder) == "pyspark" and os.path.isfile(os.path.join(folder, "__init__.py")):
            sys.meta_path.insert(0, UnpackedSpark(folder))
            return


def prepare_for_model(job):
    """Makes the process look as the model expects: its own folder first on the search path, no arguments."""
    sys.path[:] = [job.folder] + [entry for entry in sys.path if entry != job.folder]
    sys.argv[:] = [job.source_path]


def records_module(job):
    """The module that calls record models, or None where the job's model is none."""
    if job.contract is None:
        return None
    # To the other parts this is a module like any, in the driver as in Spark's Python workers.
    sys.modules[DRIVER_MODULE] = sys.modules["__main__"]
    try:
        return importlib.import_module(RECORDS_MODULE)
    except ImportError as error:
        raise DriverFault("cannot load {}: {}".format(RECORDS_MODULE, text_of(error)))


def main():
    """Runs the job in the current directory; never returns."""
    die_with_parent()
    folder = os.getcwd()
    # The working directory is the job's: what Python compiles does not belong among its outputs.
    sys.dont_write_bytecode = True
    arguments = sys.argv[1:]
    watches_executors = arguments[-1:] == [WATCH_EXECUTORS]
    if watches_executors:
        del arguments[-1:]
    path = argument_of(arguments, "--report-socket")
    unpacked = argument_of(arguments, "--cluster")
    if path is not None:
        reporter = socket_reporter(path)
    elif unpacked is not None:
        reporter = cluster_reporter(os.path.join(folder, unpacked), folder)
    else:
        give_up(EXIT_USAGE, "usage: --report-socket PATH [--watch-executors], or --cluster FOLDER")

    try:
        version = "{}.{}.{}".format(*sys.version_info[:3])
        hello = {"message": "hello", "protocol": PROTOCOL, "pid": _getpid(), "python": version}
        reporter.tell(report_line(hello))
        job = Job(folder)
        if path is not None:
            prefer_unpacked_spark()
        records = records_module(job)
        prepare_for_model(job)
        reporter.tell(report_line({"message": "running", "function": job.function}))
        if path is not None and watches_executors:
            ExecutorsWatch(reporter.tell).start()
        end = certain_end_of(Model(job, records), job)
        reporter.tell_end(end.line)
    except DriverFault as fault:
        give_up(EXIT_NOT_RUN, str(fault))
    except OSError as error:
        give_up(EXIT_WORKER_GONE, "cannot report: {}".format(error))
    close(end)
    _exit(end.code)


if __name__ == "__main__":
    main()
