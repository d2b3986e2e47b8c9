"""The part of a record model's job that only Spark can do.

It scores in parallel: the input is cut into pieces, each of which a Python worker of Spark reads, scores and writes as
a part of the output, by the same code that does it in one process. And it reaches what does not lie on this machine.

Theory of operation
-------------------
Spark's Java side handles no record: with a local master a Python worker is told which bytes of which file are its
piece, and reads and writes files itself. It imports the model and calls init when it gets its first piece, and is used
again for the next ones. What a model raises comes back as a value, so that Spark neither tries again nor prints it.
The first piece that ends the job, in the order of the input, decides; those behind it stop when they see its mark in
the folder ``stops``.

On other masters the executors may be elsewhere. They are sent the working directory with all that the job brought into
it, the driver's modules and the local inputs as files of Spark, and what they write comes back through Spark's own storage on their disks.

Inputs on another file system are copied here first, and outputs there last, both by Hadoop's own classes. Parquet
without pyarrow, and databases, are read and written by Spark row by row.

It must not know what a record or a schema is beyond what the modules beside it offer.
"""

import ModelOpFormats as formats
import ModelOpOutputs as outputs
import ModelOpPySparkDriver as driver
import ModelOpRecords as records

with driver.without_model_folders():
    import fcntl
    import json
    import os
    import shutil
    import sys
    import tarfile
    import tempfile

ContractFault = driver.ContractFault
RecordFault = driver.RecordFault

SHARES_PER_CORE = 3
SMALLEST_SHARE = 64
MIN_PIECE = 4 * 1024
MAX_PIECE = 32 * 1024 * 1024
MAX_REMOTE_PIECE = 8 * 1024 * 1024
BLOCK_BYTES = 1024 * 1024
ROWS_PER_FILE = 20000
MAX_ERROR_TEXT = 2000

LOGIN_FILE = os.path.join("..", "database.json")
"""Beside the working directory: the user and the password of the database, until it is read."""

ENDED_EARLY = "stopped"
SPLIT_WRONG = "split"
RAISED = "raised"
REFUSED = "refused"


# --- In Spark's Python workers ---------------------------------------------------------------------------------------


class Result:
    """What became of a piece: what was counted, the parts that were written, and what ended it, if anything did.

    ``end`` is None or a kind; ``record`` is where in the piece, and ``detail`` what the driver needs to tell it.
    """

    def __init__(self, tally=None, parts=(), end=None, record=None, detail=None, word="at"):
        self.tally = tally or records.Tally()
        self.parts = list(parts)
        self.end = end
        self.record = record
        self.detail = detail
        self.word = word


class Task:
    """What Spark calls for each piece. It is sent to the workers, and so holds nothing but plain values.

    ``folder`` is the working directory, or the archive of it when the workers are elsewhere (``is_remote``), and
    ``part_folders`` are where the parts of each output go, when that is on this machine.
    """

    def __init__(self, contract, folder, part_folders, stops, is_remote):
        self.contract = contract
        self.folder = folder
        self.part_folders = part_folders
        self.stops = stops
        self.is_remote = is_remote

    def __call__(self, number, pieces):
        """Yields a Result for the piece, and then, when the workers are elsewhere, the bytes of its parts."""
        for place, piece in pieces:
            if self.is_remote:
                yield from self._score_remote(number, place, piece)
            else:
                yield self._score(number, place, piece, self._part_paths(number))

    def _part_paths(self, number):
        return [records.part_path(folder, number) for folder in self.part_folders]

    def _score(self, number, place, piece, part_paths):
        if self._is_stopped(number):
            return None
        worker = _worker_of(self)
        if worker.failure is not None:
            self._stop(number)
            return worker.failure
        result = self._score_piece(worker, number, place, piece, part_paths)
        if result.end is not None:
            self._stop(number)
        return result

    def _score_piece(self, worker, number, place, piece, part_paths):
        scorer = worker.scorer
        try:
            scorer.open(part_paths)
            stopped_at = scorer.score(place, [piece], lambda: not self._is_stopped(number))
            parts = scorer.close()
            if stopped_at is not None:
                return Result(scorer.tally, parts, ENDED_EARLY, stopped_at)
            return Result(scorer.tally, parts)
        except formats.SplitFault:
            return Result(scorer.tally, end=SPLIT_WRONG)
        except records.ScoringFault as fault:
            result = worker.result_of(fault.error)
            result.tally, result.record, result.word = scorer.tally, fault.record, fault.word
            return result
        except ContractFault as fault:
            return worker.result_of(fault)
        finally:
            scorer.abandon()

    def _score_remote(self, number, place, piece):
        folder = tempfile.mkdtemp(prefix="records-")
        try:
            paths = [os.path.join(folder, "part-{}".format(output)) for output in range(len(self.part_folders))]
            piece.path = shipped_path(piece.path)
            result = self._score(number, place, piece, paths)
            yield result
            for output, part in enumerate(result.parts if result is not None else ()):
                with open(part.path, "rb") as file:
                    for block in iter(lambda: file.read(BLOCK_BYTES), b""):
                        yield output, block
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _is_stopped(self, number):
        """Whether a piece before this one has ended the job."""
        if self.stops is None:
            return False
        try:
            return any(int(name) < number for name in os.listdir(self.stops))
        except OSError:
            return False

    def _stop(self, number):
        if self.stops is not None:
            open(os.path.join(self.stops, str(number)), "wb").close()


class Worker:
    """A Python worker of Spark with the model in it: its scorer, or the Result that says why there is none."""

    def __init__(self, task):
        self.scorer = None
        self.failure = None
        folder = unpacked(task.folder) if task.is_remote else task.folder
        os.chdir(folder)
        sys.dont_write_bytecode = True
        self._job = driver.Job(folder)
        driver.prepare_for_model(self._job)
        self._model = driver.Model(self._job)
        try:
            function = self._model.load()
            self._model.call_init()
            self._model.function_was_called = True
            self.scorer = records.Scorer(task.contract, self._model, function)
        except BaseException as error:
            self.failure = self.result_of(error)

    def result_of(self, error):
        """A Result that says that ``error`` ended it."""
        if isinstance(error, ContractFault):
            return Result(end=REFUSED, detail=(error.message, error.frame, error.error_type, error.trace))
        return Result(end=RAISED, detail=driver.describe(error, self._model, self._job))


_workers = {}
_files_folder = []


def _worker_of(task):
    """The one Worker of this process, made when there is none."""
    if task.folder not in _workers:
        _workers[task.folder] = Worker(task)
    return _workers[task.folder]


def unpacked(archive):
    """The folder with the contents of the working directory, unpacked once for all workers of a machine."""
    path = shipped_path(archive)
    folder = path + ".work"
    with open(path + ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(folder):
            shutil.rmtree(folder + ".partial", ignore_errors=True)
            with tarfile.open(path) as packed:
                # It is the driver's own; what the job brought along was judged before it came into that folder.
                packed.extraction_filter = lambda member, path: member
                packed.extractall(folder + ".partial")
            os.rename(folder + ".partial", folder)
    return os.path.realpath(folder)


def shipped_path(name):
    """Where a file of Spark's lies on this machine."""
    if not _files_folder:
        from pyspark import SparkFiles

        # An executor gives it relative to where the process is now, before a model is there to change that.
        _files_folder.append(os.path.abspath(SparkFiles.getRootDirectory()))
    return os.path.join(_files_folder[0], name)


def only_results(things):
    """The Results among what a Task yields."""
    return [thing for thing in things if not isinstance(thing, tuple)]


def only_bytes(things):
    """The bytes of parts among what a Task yields."""
    return [thing for thing in things if isinstance(thing, tuple)]


# --- In the driver ---------------------------------------------------------------------------------------------------


class PieceSizes:
    """How big pieces are to be: a share of what is left of all the input, so that few are enough and the workers still come
    to its end at about the same time.

    ``before`` is how many bytes the files before the one that is cut have.
    """

    def __init__(self, total, cores, most):
        self._total = total
        self._shares = SHARES_PER_CORE * cores
        self._least = min(max(total // (SMALLEST_SHARE * cores), MIN_PIECE), most)
        self._most = most
        self.before = 0

    def size_from(self, place):
        """The size of the piece that begins at the byte ``place`` of its file."""
        left = self._total - self.before - place
        return min(max(left // self._shares, self._least), self._most)


class Cluster:
    """Spark, as the driver of a record model's job uses it. It is not started before it is needed."""

    def __init__(self, job):
        self._job = job
        self._context = None
        self._folder = None
        self._count = 0
        # Before the model is loaded, which must not find it.
        self._login = taken_login(os.path.join(job.folder, LOGIN_FILE))

    def close(self):
        """Removes what was brought here for a time. Best effort; Spark itself is stopped by the driver."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def context(self):
        """The SparkContext."""
        if self._context is None:
            try:
                with driver.without_model_folders():
                    from pyspark import SparkContext
            except ImportError as error:
                raise driver.DriverFault("this Python has no pyspark: {}".format(error))
            self._context = SparkContext.getOrCreate()
        return self._context

    @property
    def is_remote(self):
        """Whether the workers may be on other machines."""
        master = self.context.master
        return not (master == "local" or master.startswith("local["))

    def temporary_folder(self):
        """A folder for what is needed until the end of the job."""
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="records-")
        return self._folder

    def _name(self):
        """A name that no other job has."""
        return os.path.basename(self.temporary_folder())

    def _new_path(self, ending):
        self._count += 1
        return os.path.join(self.temporary_folder(), "{:06}{}".format(self._count, ending))

    # -- Scoring

    def score(self, model):
        """Scores all inputs in the workers and writes the outputs; returns the tally."""
        # What can be refused is refused before Spark starts, which takes its time.
        model.load()
        contract = self._job.contract
        files = [self.local_files(one) for one in contract["inputs"]]
        places = [records.OutputPlace(self._job, output, self) for output in contract["outputs"]]
        model.function_was_called = True
        try:
            for place in places:
                place.open()
            tasks = self._tasks(files)
            try:
                tally, parts = self._run(tasks, places)
            except formats.SplitFault:
                # The quotes of a CSV file are not what they looked like: only reading it through will do.
                for place in places:
                    place.open()
                tally, parts = self._run(self._tasks(files, whole=True), places)
            records.commit(places, parts)
            return tally
        finally:
            for place in places:
                place.discard()

    def _tasks(self, files, whole=False):
        """The pieces of all inputs in order, each with the place of its input."""
        inputs = self._job.contract["inputs"]
        files = [[self._plain(one, path) for path in paths] for one, paths in zip(inputs, files)]
        total = sum(os.stat(path).st_size for paths in files for path in paths)
        most = MAX_REMOTE_PIECE if self.is_remote else MAX_PIECE
        sizes = PieceSizes(total, self.context.defaultParallelism, most)
        tasks = []
        for place, (one, paths) in enumerate(zip(inputs, files)):
            for path in paths:
                try:
                    pieces = [formats.Piece(path)]
                    if not whole:
                        pieces = formats.pieces_of(path, records.file_format(one, path), sizes.size_from)
                except formats.InputFault as fault:
                    raise records.read_fault(one, fault)
                sizes.before += os.stat(path).st_size
                tasks.extend((place, piece) for piece in pieces)
        return tasks

    def _plain(self, one, path):
        """``path``, or a copy that is not compressed, since there is no way into the middle of one that is."""
        if one["format"] not in formats.TEXT_FORMATS or not formats.compression_of(path):
            return path
        plain = self._new_path("." + one["format"])
        try:
            formats.decompress(path, plain)
        except formats.InputFault:
            # The worker that reads it gets as far as it can, and says at which record it ends.
            return path
        return plain

    def _run(self, tasks, places):
        """Runs the tasks and puts together what became of them: the tally, and the parts of each output."""
        if not tasks:
            return records.Tally(), [[self._empty_part(place)] for place in places]
        stops = None
        if not self.is_remote:
            stops = os.path.join(self.temporary_folder(), "stops")
            records.remove(stops)
            os.mkdir(stops)
        results = self._results(tasks, places, stops)
        tally = records.Tally()
        parts = [[] for _ in places]
        before, current = 0, None
        for (place, _), result in zip(tasks, results):
            name = self._job.contract["inputs"][place]["name"]
            if place != current:
                before, current = 0, place
            self._raise_end_of(result, before, name)
            tally.add(result.tally)
            for its_parts, part in zip(parts, result.parts):
                its_parts.append(part)
            if result.end == ENDED_EARLY:
                tally.stopped_at = before + result.record
                break
            before += result.tally.read
        return tally, parts

    @staticmethod
    def _empty_part(place):
        with records.writing(place.output):
            return outputs.part_writer(place.part_path(0), place.output).close()

    @staticmethod
    def _raise_end_of(result, before, name):
        """Raises what ended a piece, when it is to end the job with a fault."""
        if result is None:
            raise driver.DriverFault("a piece of the input was left out")
        if result.end == SPLIT_WRONG:
            raise formats.SplitFault()
        if result.end == REFUSED:
            fault = ContractFault(*result.detail)
            if result.record is not None:
                fault = records.placed(fault, before + result.record, name, result.word)
            raise fault
        if result.end == RAISED:
            record = None if result.record is None else before + result.record
            raise RecordFault(record, name, description=result.detail)

    def _results(self, tasks, places, stops):
        """The Results of all tasks, with their parts in the places' folders."""
        contract = dict(self._job.contract)
        try:
            if not self.is_remote:
                task = Task(contract, self._job.folder, [place.folder for place in places], stops, False)
                return self.context.parallelize(tasks, len(tasks)).mapPartitionsWithIndex(task).collect()
            task = Task(contract, self._ship(), [None] * len(places), stops, True)
            return self._remote_results(task, self._shipped(tasks), places)
        except (ContractFault, RecordFault):
            raise
        except Exception as error:
            raise RecordFault(None, None, description=spark_failure(error))

    def _remote_results(self, task, tasks, places):
        from pyspark import StorageLevel

        done = self.context.parallelize(tasks, len(tasks)).mapPartitionsWithIndex(task)
        # Scored once; the parts are fetched one by one.
        done = done.persist(StorageLevel.DISK_ONLY)
        results = done.mapPartitions(only_results).collect()
        for number, result in enumerate(results):
            if result.end not in (None, ENDED_EARLY):
                break
            for output, part in enumerate(result.parts):
                part.path = places[output].part_path(number)
                open(part.path, "wb").close()
            for output, block in self.context.runJob(done, only_bytes, [number]):
                with open(result.parts[output].path, "ab") as file:
                    file.write(block)
        done.unpersist()
        return results

    def _ship(self):
        """Sends the driver's modules and the working directory to the executors; returns the archive's name."""
        here = os.path.dirname(os.path.abspath(__file__))
        for name in driver.DRIVER_FILES:
            self.context.addPyFile(os.path.join(here, name))
        archive = self._new_path("-{}.tar".format(self._name()))
        skipped = {records.local_path(one["location"], self._job.folder) for one in self._job.contract["inputs"]}

        def chosen(member):
            path = os.path.normpath(os.path.join(self._job.folder, member.name))
            if path in skipped or (member.isdir() and member.name.endswith(".partial")):
                return None
            # Links, rights and empty folders as they are; but no sockets, and no owners, who are others elsewhere.
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            return None if member.isdev() else member

        with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as packed:
            packed.add(self._job.folder, ".", filter=chosen)
        self.context.addFile(archive)
        return os.path.basename(archive)

    def _shipped(self, tasks):
        """Sends the files of the tasks to the executors; returns the tasks with the names under which they get them."""
        names = {}
        for _, piece in tasks:
            if piece.path not in names:
                # Spark knows its files by their last name, of which there can be only one; it looks through soft links.
                link = self._new_path("-{}-{}".format(self._name(), os.path.basename(piece.path)))
                link_or_copy(piece.path, link)
                self.context.addFile(link)
                names[piece.path] = os.path.basename(link)
            piece.path = names[piece.path]
        return tasks

    # -- Other file systems

    def local_files(self, one):
        """The files of an input on this machine, brought here when they are elsewhere; raises ContractFault."""
        path = records.local_path(one["location"], self._job.folder)
        by_rows = one["format"] == "jdbc" or (one["format"] == "parquet" and not formats.has_module("pyarrow"))
        try:
            if path is not None and not by_rows:
                return records.input_files(one, self._job.folder)
            if one["format"] == "jdbc":
                return self._rows_of([self._database(one)])
            if path is not None:
                urls = ["file://" + file for file in records.input_files(one, self._job.folder)]
            else:
                urls = self._urls_of(one)
            if by_rows:
                return self._rows_of([self._session().read.parquet(url) for url in urls])
            return [self._fetched(url) for url in urls]
        except ContractFault:
            raise
        except Exception as error:
            raise ContractFault("{} cannot be read: {}".format(one["name"], java_text(error)), error_type="InputFault")

    def _session(self):
        self.context  # noqa: B018 -- the session takes the one that there is
        from pyspark.sql import SparkSession

        return SparkSession.builder.getOrCreate()

    def _database(self, one):
        reader = self._session().read.format("jdbc").option("url", one["location"])
        for option, value in dict(one.get("options") or {}, **self._login).items():
            reader = reader.option(option, value)
        return reader.load()

    def _rows_of(self, frames):
        """Writes the rows of Spark's frames into files here, in order."""
        paths = []
        for frame in frames:
            rows = (row.asDict(recursive=True) for row in frame.toLocalIterator())
            while True:
                path = self._new_path(formats.WAITING_ENDING)
                writer = outputs.PickledWriter(path, None)
                for _, row in zip(range(ROWS_PER_FILE), rows):
                    writer.write(row)
                if not writer.close().count:
                    break
                paths.append(path)
        return paths

    def _file_system(self, location):
        java = self.context._jvm.org.apache.hadoop.fs
        path = java.Path(location)
        return path.getFileSystem(self.context._jsc.hadoopConfiguration()), path

    def _urls_of(self, one):
        system, path = self._file_system(one["location"])
        status = system.getFileStatus(path)
        if not status.isDirectory():
            return [status.getPath().toString()]
        found = sorted((entry.getPath().getName(), entry) for entry in system.listStatus(path))
        found = [entry for name, entry in found if not name.startswith(("_", "."))]
        if any(entry.isDirectory() for entry in found):
            raise ContractFault("{} has folders in it; only files are read".format(one["name"]))
        return [entry.getPath().toString() for entry in found]

    def _fetched(self, url):
        system, source = self._file_system(url)
        target = self._new_path("-" + source.getName())
        java = self.context._jvm.org.apache.hadoop.fs
        # Without the check sums that it would write beside the copy.
        system.copyToLocalFile(False, source, java.Path("file://" + target), True)
        return target

    def put(self, path, location, hidden_name):
        """Moves a file or folder from here to ``location``, where it is seen at once and whole."""
        java = self.context._jvm.org.apache.hadoop.fs
        try:
            system, target = self._file_system(location)
            hidden = java.Path(target.getParent(), hidden_name)
            system.delete(hidden, True)
            system.copyFromLocalFile(False, True, java.Path("file://" + path), hidden)
            system.delete(target, True)
            if not system.rename(hidden, target):
                raise ContractFault("cannot write {}: it cannot be renamed to its name".format(location))
        except ContractFault:
            raise
        except Exception as error:
            raise ContractFault("cannot write {}: {}".format(location, java_text(error)), error_type="OutputFault")

    # -- Parquet without pyarrow

    def write_parquet(self, rows, schema, path):
        """Writes records of a normalized schema as the Parquet file ``path``; raises ContractFault."""
        lines = self._new_path(".jsonl")
        writer = outputs.JsonLinesWriter(lines, None)
        for row in rows:
            writer.write(row)
        writer.close()
        folder = self._new_path("-parquet")
        try:
            reader = self._session().read.schema(spark_schema(schema)).option("mode", "FAILFAST")
            reader.json("file://" + lines).coalesce(1).write.parquet("file://" + folder)
        except ContractFault:
            raise
        except Exception as error:
            raise ContractFault("the output cannot be written as Parquet: {}".format(type(error).__name__))
        written = [name for name in os.listdir(folder) if name.endswith(".parquet")]
        shutil.move(os.path.join(folder, written[0]), path)


def taken_login(path):
    """What is in the file of the database's login, which is gone afterwards; raises DriverFault."""
    try:
        with open(path, encoding="utf-8") as file:
            login = json.load(file)
        os.unlink(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise driver.DriverFault("cannot read the database's login: {}".format(type(error).__name__))
    return {name: str(login[name]) for name in ("user", "password") if name in login}


SPARK_TYPES = {
    "null": "string",
    "boolean": "boolean",
    "int": "integer",
    "long": "long",
    "float": "float",
    "double": "double",
    "string": "string",
    "bytes": "binary",
    "date": "date",
    "timestamp-millis": "timestamp",
    "timestamp-micros": "timestamp",
    "local-timestamp-millis": "timestamp_ntz",
    "local-timestamp-micros": "timestamp_ntz",
}


def spark_schema(schema):
    """The schema of Spark for a normalized one; raises ContractFault."""
    from pyspark.sql.types import StructType

    return StructType.fromJson(spark_type(dict(schema, kind="record")))


def spark_type(kind):
    """Spark's JSON for a normalized type."""
    if isinstance(kind, str):
        return SPARK_TYPES[kind]
    what = kind["kind"]
    if what == "record":
        fields = [
            {"name": field["name"], "type": spark_type(field["type"]), "nullable": True, "metadata": {}}
            for field in kind["fields"]
        ]
        return {"type": "struct", "fields": fields}
    if what == "array":
        return {"type": "array", "elementType": spark_type(kind["items"]), "containsNull": True}
    if what == "map":
        return {"type": "map", "keyType": "string", "valueType": spark_type(kind["values"]), "valueContainsNull": True}
    if what == "enum":
        return "string"
    if what == "fixed":
        return "binary"
    if what == "logical":
        if kind["logical"] == "decimal":
            return "decimal({},{})".format(min(kind.get("precision") or 38, 38), kind.get("scale") or 0)
        return SPARK_TYPES.get(kind["logical"]) or spark_type(kind["of"])
    if what == "union":
        rest = [one for one in kind["of"] if one != "null"]
        if len(rest) == 1:
            return spark_type(rest[0])
    raise ContractFault("Parquet has no unions and no recursive types, which the output's schema has")


def link_or_copy(path, target):
    """Makes ``target`` the same file as ``path``, or one with the same bytes."""
    try:
        os.link(os.path.realpath(path), target)
    except OSError:
        # It lies on another file system, or on one without links.
        shutil.copyfile(path, target)


def java_text(error):
    """The first line of what Java, or Python, says of an error."""
    java = getattr(error, "java_exception", None)
    text = driver.text_of(error)
    if java is not None:
        text = driver.text_of(java, lambda one: one.toString())
    return text.strip().partition("\n")[0][:MAX_ERROR_TEXT]


def spark_failure(error):
    """What to report when Spark itself could not go on."""
    text = driver.text_of(error)
    message = "Spark could not score the records: {}".format(java_text(error))
    if "Python worker exited unexpectedly" in text or "Python worker failed to connect" in text:
        message = (
            "a Python worker of Spark ended while it scored: the model left the process, crashed it, or needed more "
            "memory than there is"
        )
    elif "maxResultSize" in text:
        message = "the output of a piece is bigger than spark.driver.maxResultSize allows"
    return {
        "type": "SparkFailure",
        "message": driver.bounded(message, driver.MAX_MESSAGE_BYTES),
        "traceback": driver.bounded(text, driver.MAX_TRACEBACK_BYTES),
        "frame": None,
    }
