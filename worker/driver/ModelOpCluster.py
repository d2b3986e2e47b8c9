"""The driver's part in a cluster, where the worker is not on the same machine.

It brings the job's files into the container's folder, asks whether this launch still counts, and leaves the report and
the job's files in a folder of the cluster's file system, where the worker finds them.

Theory of operation
-------------------
The worker sends one archive. Spark unpacks it into a folder beside this driver: this module, ``model_cluster.json``, and
``work/``, which is what lies in the driver's folder where worker and driver share a machine.

Every launch has a *ticket*: a file that the worker wrote before it started spark-submit. The driver *takes* it by renaming
it, before anything of the model is loaded. Whoever wants to be sure that a launch never runs removes its ticket instead.
A file system with one NameNode lets exactly one of the two succeed, however late a launcher that was stopped or cut off
hands its application over. A driver whose ticket is gone ends at once, without a report.

A driver may go on though its cluster has lost it: on a machine that is cut off from the rest, for one. Whoever is to start
the job anew removes the taken ticket first, and waits for longer than a driver takes to find that. Every driver looks every
``LOOK_SECONDS`` whether its taken ticket is still there, and when it is not, twice in a row, the process ends at once. A file system
that is away says nothing about a ticket, and whoever cannot reach it can leave nothing there either.

When the function has come to its end, the files that it was to leave go into ``<ticket>.files/<number>``, then the last
line of the report, with a list of them, into ``<ticket>.end``: written under another name and renamed, so that it is
there as a whole or not at all. Nobody takes files for whole that no ``.end`` names.

All of it goes through the JVM that Spark has started already: the same user, configuration and tokens as the job's
own data. What leads there is bound before the model is loaded, which could replace it, and at the end the JVM is asked by a
connection of its own: a model that closed all descriptors may have something else where the first one was.

The JVM reads the files by descriptors that are open here. In a container it often has no locale, and could then not even
say a name that is not ASCII.
"""

import json
import os
import socket
import stat
import threading
import time

SETTINGS = "model_cluster.json"
WORK = "work"

MAX_FILES = 10000
RENAME_ATTEMPTS = 5
PIECE_BYTES = 1 << 20

LOOK_SECONDS = 5
"""How often a driver looks whether its launch still counts. The worker waits for longer: see ``job_folder.rs``."""

SURE_SECONDS = 1
"""How long after it was not found the ticket is looked for once more."""

COMPLETED = b'{"message":"completed"'
"""How the line of a job that came to its end begins."""

_open, _close, _fstat, _lstat, _scandir, _getpid = os.open, os.close, os.fstat, os.lstat, os.scandir, os.getpid
_join = os.path.join
_set_default_timeout = socket.setdefaulttimeout
_sleep = time.sleep
_NULL, _READ_AND_WRITE = os.devnull, os.O_RDWR
# No link in its place, and no pipe that would be waited for.
_PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ClusterFault(Exception):
    """What has to be there is not; the text is one line for the log."""


class CalledOff(Exception):
    """This launch counts no more: somebody else has the job, or its end was told."""


class Settings:
    """What the worker says: ``jobFolder`` and ``ticket``, the FILE ``outputs``, and ``outputFolder`` or null."""

    def __init__(self, folder):
        """Reads it from ``folder``, the unpacked archive; raises ClusterFault."""
        try:
            with open(os.path.join(folder, SETTINGS), "rb") as file:
                said = json.loads(file.read().decode("utf-8"))
            self.job_folder = said["jobFolder"]
            self.ticket = said["ticket"]
            self.outputs = list(said["outputs"])
            self.output_folder = said["outputFolder"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClusterFault("cannot read {}: {}: {}".format(SETTINGS, type(error).__name__, error))


def unpack(folder, to, output_folder):
    """Copies ``folder/work`` into the folder ``to``. What is there already stays: it came on a way of its own.

    ``output_folder``, where it is not None, is made: YARN unpacks no folder that has no file in it. Raises ClusterFault."""

    def refuse(error):
        raise error

    root = os.path.join(folder, WORK)
    try:
        for place, folders, files in os.walk(root, onerror=refuse):
            here = os.path.normpath(os.path.join(to, os.path.relpath(place, root)))
            for name in folders:
                os.makedirs(os.path.join(here, name), 0o700, exist_ok=True)
            for name in files:
                copy(os.path.join(place, name), os.path.join(here, name))
        if output_folder is not None:
            os.makedirs(os.path.join(to, output_folder), 0o700, exist_ok=True)
    except OSError as error:
        raise ClusterFault("cannot bring the job's files into the container: {}".format(error))


def copy(source, target):
    """Copies one file, unless there is one."""
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with open(descriptor, "wb") as written, open(source, "rb") as read:
        while True:
            piece = read.read(PIECE_BYTES)
            if not piece:
                return
            written.write(piece)


class JobFolder:
    """The job's folder, by one connection to the JVM. What it is asked raises what py4j does."""

    def __init__(self, jvm, url):
        self._path = jvm.org.apache.hadoop.fs.Path
        self._place = self._path(url)
        self._system = self._place.getFileSystem(jvm.org.apache.hadoop.conf.Configuration())

    def has(self, name):
        """Whether there is a file ``name``."""
        return self._system.exists(self._child(name))

    def asks_for(self, name):
        """A function that tells whether there is a file ``name``, and leaves nothing in the JVM however often it is called."""
        system, child = self._system, self._child(name)
        return lambda: system.exists(child)

    def rename(self, old, new):
        """Renames a file; false where there is no such file. A NameNode that did it and whose answer was lost is believed
        by what is there."""
        old, new = self._child(old), self._child(new)
        error = None
        for _ in range(RENAME_ATTEMPTS):
            try:
                if self._system.rename(old, new):
                    return True
                if not self._system.exists(old):
                    return error is not None and self._system.exists(new)
                return False
            except Exception as raised:
                if "FileNotFoundException" in str(raised):
                    return error is not None and self._system.exists(new)
                error = raised
        raise error

    def write(self, name, text):
        """Writes the bytes ``text`` into the file ``name``."""
        stream = self._system.create(self._child(name), True)
        for start in range(0, len(text), PIECE_BYTES):
            stream.write(bytearray(text[start : start + PIECE_BYTES]))
        stream.close()

    def send(self, descriptor, folder, name):
        """Writes what ``descriptor`` is open for into the file ``name`` in ``folder``, which is made."""
        source = self._path("file:///proc/{}/fd/{}".format(_getpid(), descriptor))
        self._system.copyFromLocalFile(False, True, source, self._path(self._child(folder), name))

    def _child(self, name):
        return self._path(self._place, name)


class FolderReporter:
    """Leaves the report in the job's folder. The same methods as the driver's other reporter, and the same errors.

    ``fault`` is the driver's DriverFault, and ``report_line`` makes its lines; ``note`` writes a line into its log."""

    def __init__(self, settings, folder, fault, report_line, note, end_called_off):
        """Takes the ticket, and from then on calls ``end_called_off`` with a line, by a thread of its own, when it counts no
        more. Raises CalledOff, ClusterFault."""
        self._settings = settings
        self._folder = folder
        self._fault = fault
        self._report_line = report_line
        self._note = note
        self._pid = _getpid()
        self._taken = settings.ticket + ".taken"
        try:
            from pyspark import SparkContext

            # The gateway to the JVM that runs this driver: where there is none, nothing is started.
            SparkContext._ensure_initialized()
            self._connect = another_connection(SparkContext._gateway)
            self._contexts = note_contexts(SparkContext)
            took = JobFolder(SparkContext._jvm, settings.job_folder).rename(settings.ticket, self._taken)
            counts = self._asks_whether_it_counts() if took else None
        except Exception as error:
            raise ClusterFault("cannot reach {}: {}".format(settings.job_folder, one_line(error)))
        if not took:
            raise CalledOff("launch {} counts no more; nothing of the job was run".format(settings.ticket))
        words = "launch {} counts no more: its ticket is gone; the driver ends".format(settings.ticket)
        watch = threading.Thread(
            target=wait_until_called_off, args=(counts, lambda: end_called_off(words)), name="ticket", daemon=True
        )
        watch.start()

    def _asks_whether_it_counts(self):
        """A function that tells whether the ticket that was taken is there, by a connection that lasts for one question: a
        model that closes all descriptors may have something else where that was."""
        gateway = self._connect()
        has_taken = JobFolder(gateway.jvm, self._settings.job_folder).asks_for(self._taken)
        client = gateway._gateway_client
        client.close()

        def counts():
            try:
                return has_taken()
            finally:
                client.close()

        # What the gateway holds in the JVM is kept for as long as this is.
        counts.gateway = gateway
        return counts

    def tell(self, line):
        """The cluster itself tells that the driver is there."""

    def tell_end(self, line):
        """Sends the files that the function was to leave, if it came to its end, then ``line``."""
        if _getpid() != self._pid:
            raise self._fault("a process that the model forked has nothing to report")
        ticket, place = self._settings.ticket, self._settings.job_folder
        try:
            take_back_descriptors()
            jvm = self._connect().jvm
            folder = JobFolder(jvm, place)
            if not folder.has(self._taken):
                # Who removed it would not look for what would be left there from now on.
                raise self._fault("launch {} counts no more: {} is gone".format(ticket, place))
            if line.startswith(COMPLETED):
                self._show_to_cluster(jvm)
                files = self._report_line({"files": self._send_files(folder)})
                # The members of two objects become those of one.
                line = line.rstrip()[:-1] + b"," + files[1:]
            folder.write(ticket + ".end.part", line)
            if not folder.rename(ticket + ".end.part", ticket + ".end"):
                raise self._fault("the report could not be given its name in {}".format(place))
        except self._fault:
            raise
        except Exception as error:
            raise self._fault("what the job leaves could not be brought to {}: {}".format(place, one_line(error)))

    def _show_to_cluster(self, jvm):
        """Gives the cluster the Spark context that it waits for, where the model has made none: it would take an
        application without one for failed.

        It is that of the JVM, which needs nothing of pyspark that the model may have changed. One that the model has
        stopped was there, and the cluster would take no second one."""
        if self._contexts:
            return
        try:
            jvm.org.apache.spark.SparkContext.getOrCreate()
        except Exception as error:
            # What the cluster makes of it, it says itself.
            self._note("no Spark context could be made at the end: {}".format(one_line(error)))

    def _send_files(self, folder):
        """Sends the files; gives a list of them with their paths in the driver's folder and their numbers."""
        paths = list(self._left())
        if len(paths) > MAX_FILES:
            raise self._fault("the job leaves more than {} files".format(MAX_FILES))
        sent = []
        for path in paths:
            descriptor = _open(_join(self._folder, path), _PLAIN)
            try:
                folder.send(descriptor, self._settings.ticket + ".files", str(len(sent)))
            finally:
                _close(descriptor)
            sent.append({"path": path, "file": len(sent)})
        return sent

    def _left(self):
        """The relative paths of what is to be sent, one more than may be at most: plain files alone, no links and nothing
        behind one, and what has a name that can be told. Of what is not there the worker says so."""
        left = {}
        others = []
        for path in self._settings.outputs:
            self._sort_out(path, self._is_plain(path), left, others)
        if self._settings.output_folder is not None and self._is_folder(self._settings.output_folder):
            folders = [self._settings.output_folder]
            while folders and len(left) <= MAX_FILES:
                folder = folders.pop()
                with _scandir(_join(self._folder, folder)) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
                for entry in found:
                    path = folder + "/" + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    else:
                        self._sort_out(path, entry.is_file(follow_symlinks=False), left, others)
        if others:
            more = " and {} more".format(len(others) - 1) if len(others) > 1 else ""
            self._note("{!a}{} cannot be sent: no plain file, or a name that is no UTF-8".format(others[0], more))
        return left

    def _sort_out(self, path, is_plain, left, others):
        if is_plain is None:
            return
        try:
            path.encode("utf-8")
        except UnicodeEncodeError:
            is_plain = False
        if is_plain:
            left[path] = True
        else:
            others.append(path)

    def _is_plain(self, path):
        """Whether ``path`` is a plain file and behind no link; None where there is nothing."""
        parent, _, _ = path.rpartition("/")
        try:
            status = _lstat(_join(self._folder, path))
        except OSError:
            return None
        return stat.S_ISREG(status.st_mode) and (not parent or self._is_folder(parent))

    def _is_folder(self, path):
        """Whether ``path`` is a folder and behind no link."""
        parts = path.split("/")
        try:
            modes = [_lstat(_join(self._folder, *parts[: n + 1])).st_mode for n in range(len(parts))]
        except OSError:
            return False
        return all(stat.S_ISDIR(mode) for mode in modes)


def another_connection(gateway):
    """A function that connects to the JVM of ``gateway`` anew and gives the new gateway."""
    from py4j.clientserver import ClientServer, JavaParameters, PythonParameters
    from py4j.java_gateway import GatewayParameters, JavaGateway

    known = gateway.gateway_parameters
    same = {"address": known.address, "port": known.port, "auth_token": known.auth_token, "auto_convert": True}

    def connect():
        # It waits as long as a large file takes, whatever the model wants of its own connections.
        _set_default_timeout(None)
        if isinstance(gateway, ClientServer):
            return ClientServer(JavaParameters(**same), PythonParameters(port=0, eager_load=False))
        return JavaGateway(gateway_parameters=GatewayParameters(**same))

    return connect


def wait_until_called_off(counts, end, sleep=_sleep):
    """Asks ``counts`` again and again, and calls ``end`` once that has said twice in a row that the launch counts no more.
    Where it raises, nothing is known, and nothing follows from it."""
    misses = 0
    while misses < 2:
        sleep(SURE_SECONDS if misses else LOOK_SECONDS)
        try:
            misses = 0 if counts() else misses + 1
        except Exception:
            misses = 0
    end()


def take_back_descriptors():
    """Opens those of the standard streams that the model closed: whatever is opened next would be printed into."""
    for number in range(3):
        try:
            _fstat(number)
        except OSError:
            # The lowest that is free.
            _open(_NULL, _READ_AND_WRITE)


def note_contexts(context_class):
    """A list that gets an entry for every Spark context that is made from now on."""
    made = []
    initialize = context_class._initialize_context

    def noting(self, configuration):
        context = initialize(self, configuration)
        made.append(True)
        return context

    context_class._initialize_context = noting
    return made


def one_line(error):
    """An error of the JVM or of Python as one line, without the places in the sources that it went through."""
    cause = getattr(error, "java_exception", None)
    text = cause.toString() if cause is not None else "{}: {}".format(type(error).__name__, error)
    return " ".join(text.split())[:500]
