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

When the function has come to its end, the files that it was to leave go into ``<ticket>.files/<number>``, then the last
line of the report, with a list of them, into ``<ticket>.end``: written under another name and renamed, so that it is
there as a whole or not at all. Nobody takes files for whole that no ``.end`` names.

All of it goes through the JVM that Spark has started already: the same user, configuration and tokens as the job's own
data. It must be asked before the model is loaded, which could replace what leads there.
"""

import json
import os
import stat

SETTINGS = "model_cluster.json"
WORK = "work"

MAX_FILES = 10000
RENAME_ATTEMPTS = 5


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


def unpack(folder, to):
    """Copies ``folder/work`` into the folder ``to``. What is there already stays: it came on a way of its own.

    Raises ClusterFault."""
    root = os.path.join(folder, WORK)
    try:
        for place, folders, files in os.walk(root):
            here = os.path.normpath(os.path.join(to, os.path.relpath(place, root)))
            for name in folders:
                os.makedirs(os.path.join(here, name), 0o700, exist_ok=True)
            for name in files:
                copy(os.path.join(place, name), os.path.join(here, name))
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
            piece = read.read(1 << 20)
            if not piece:
                return
            written.write(piece)


class FolderReporter:
    """Leaves the report in the job's folder. The same methods as the driver's other reporter, and the same errors.

    ``fault`` is the driver's DriverFault; ``note`` writes a line into its log."""

    def __init__(self, settings, folder, fault, note):
        """Takes the ticket. Raises CalledOff, ClusterFault."""
        self._settings = settings
        self._folder = folder
        self._fault = fault
        self._note = note
        self._pid = os.getpid()
        self._lstat, self._walk, self._getpid = os.lstat, os.walk, os.getpid
        self._loads, self._dumps = json.loads, json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode
        try:
            from pyspark import SparkContext

            # The gateway to the JVM that runs this driver: where there is none, nothing is started.
            SparkContext._ensure_initialized()
            self._jvm = SparkContext._jvm
            self._context = SparkContext
            self._contexts = note_contexts(SparkContext)
            self._path = self._jvm.org.apache.hadoop.fs.Path
            self._local_file = self._jvm.java.io.File
            self._configuration = self._jvm.org.apache.hadoop.conf.Configuration()
            self._place = self._path(settings.job_folder)
            self._system = self._place.getFileSystem(self._configuration)
            ticket, taken = self._child(settings.ticket), self._child(settings.ticket + ".taken")
            took = self._renamed(ticket, taken)
        except CalledOff:
            raise
        except Exception as error:
            raise ClusterFault("cannot reach {}: {}".format(settings.job_folder, one_line(error)))
        if not took:
            raise CalledOff("launch {} counts no more; nothing of the job was run".format(settings.ticket))

    def tell(self, line):
        """The cluster itself tells that the driver is there."""

    def tell_end(self, line):
        """Sends the files that the function was to leave, if it came to its end, then ``line``."""
        if self._getpid() != self._pid:
            raise self._fault("a process that the model forked has nothing to report")
        try:
            said = self._loads(line.decode("ascii"))
            if said["message"] == "completed":
                self._show_to_cluster()
                said["files"] = self._send_files()
            text = self._dumps(said) + "\n"
            part, end = (self._child(self._settings.ticket + suffix) for suffix in (".end.part", ".end"))
            stream = self._system.create(part, True)
            stream.write(bytearray(text.encode("ascii")))
            stream.close()
            if not self._renamed(part, end):
                raise self._fault("the report could not be given its name in {}".format(self._settings.job_folder))
        except self._fault:
            raise
        except Exception as error:
            raise self._fault(
                "what the job leaves could not be brought to {}: {}".format(self._settings.job_folder, one_line(error))
            )

    def _show_to_cluster(self):
        """Gives the cluster the Spark context that it waits for, where the model has made none: it would take an
        application without one for failed."""
        if self._contexts:
            return
        try:
            self._context.getOrCreate()
        except Exception as error:
            # What the cluster makes of it, it says itself.
            self._note("no Spark context could be made at the end: {}".format(one_line(error)))

    def _child(self, name):
        return self._path(self._place, name)

    def _renamed(self, old, new):
        """Renames a file; false where there is no such file. A NameNode that did it and whose answer was lost is believed
        by what is there."""
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

    def _send_files(self):
        """Sends the files; gives a list of them with their paths in the driver's folder and their numbers."""
        sent = []
        for path in self._left():
            if len(sent) >= MAX_FILES:
                raise self._fault("the job leaves more than {} files".format(MAX_FILES))
            source = self._path(self._local_file(os.path.join(self._folder, path)).toURI())
            target = self._path(self._child(self._settings.ticket + ".files"), str(len(sent)))
            self._system.copyFromLocalFile(False, True, source, target)
            sent.append({"path": path, "file": len(sent)})
        return sent

    def _left(self):
        """The relative paths of what is to be sent: plain files alone, no links and nothing behind one."""
        paths = list(self._settings.outputs)
        if self._settings.output_folder is not None:
            root = os.path.join(self._folder, self._settings.output_folder)
            for place, folders, files in self._walk(root):
                folders.sort()
                for name in sorted(files):
                    paths.append(os.path.relpath(os.path.join(place, name), self._folder))
        for path in paths:
            try:
                status = self._lstat(os.path.join(self._folder, path))
            except OSError:
                # The worker says that it is not there.
                continue
            if stat.S_ISREG(status.st_mode):
                yield path


def note_contexts(context_class):
    """A list that gets an entry for every Spark context that is made from now on."""
    made = []
    initialize = context_class._initialize_context

    def noting(self, configuration):
        made.append(True)
        return initialize(self, configuration)

    context_class._initialize_context = noting
    return made


def one_line(error):
    """An error of the JVM or of Python as one line, without the places in the sources that it went through."""
    cause = getattr(error, "java_exception", None)
    text = cause.toString() if cause is not None else "{}: {}".format(type(error).__name__, error)
    return " ".join(text.split())[:500]
