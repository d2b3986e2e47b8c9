"""Calls the functions of record models, as the job's contract (``model_contract.json``) says.

A score function gets one record after the other, or data frames of a bounded size, and yields or returns output
records; a metrics or training function gets each input as one data frame. The driver calls ``run``; Spark's Python
workers, which ``ModelOpSpark`` starts, use the same ``Scorer``, so that both ways give the same.

Theory of operation
-------------------
1. All that can be refused is refused first: libraries that are not there, inputs that cannot be read, frames that the
   memory does not hold.
2. The way *process*: this process imports the model, calls init, reads the inputs piece by piece and calls the
   function. The way *spark*: Spark's Python workers do that, each with a piece of the input at a time; every worker
   imports the model and calls init once. ``metrics`` and training functions are called here, whatever the way.
3. What comes out is written as parts into a hidden folder beside each output, ``.NAME.JOB.partial``. At the end they
   become the output, whole and at once. A job that fails leaves nothing behind; one that is killed leaves the hidden
   folder, which the next attempt of the same job removes.

What a score function may give: it yields, or returns, a dict, a list of dicts or (with ``recordsets``) a data frame;
to return None, or to yield nothing, is well too. Several inputs are scored one after the other; every output gets all
output records. An input record that the schema rejects, or under a schema one that cannot be read, is counted and left
out; an output record likewise. Without a schema, a record that cannot be read ends the job. ``stop_on_bad_records``
ends it, as completed, at the first: what came before it is written. ``skip_failed_records`` counts a record at which
the model raises; what it yielded before it raised is dropped with it.

With ``recordsets`` the frames of an input have ``frame_rows`` rows at most and no row twice; where one ends and the
next begins is not fixed. A frame at which the model raises is told by the number of its first record.

What a metrics function gives is the job's result, and the one record of every output that the job names. What a
training function writes into ``outputDir`` is not touched here.

What this module says of a record is its number, which counts from one within its input, and never its text.
"""

import ModelOpFormats as formats
import ModelOpOutputs as outputs
import ModelOpPySparkDriver as driver
import ModelOpSchemas as schemas

with driver.without_model_folders():
    import collections.abc
    import ctypes
    import hashlib
    import itertools
    import os
    import re
    import shutil
    import sys
    import types

ContractFault = driver.ContractFault
RecordFault = driver.RecordFault

MAX_REASONS = 20
MAX_DIFFERENT_REASONS = 10000
OUTPUT_FOLDER = "outputDir"
RECORDS_BETWEEN_LOOKS = 512
ROWS_AT_ONCE = 1000
SAMPLE_ROWS = 2000
FRAME_ROWS = 5000
FRAME_HEADROOM = 32 * 1024 * 1024
"""For what the model imports, and what does not grow with the frame, in bytes."""
WHOLE_RECORD = "(record)"
"""Stands for the field where a whole record cannot be read."""

_getpid = os.getpid


# --- What became of the records --------------------------------------------------------------------------------------


class Tally:
    """How many records were read, rejected, failed and written, and why they were rejected."""

    def __init__(self):
        self.read = 0
        self.failed = 0
        self.written = 0
        self.bad_input = 0
        self.bad_output = 0
        self.reasons = {}
        self.stopped_at = None

    def reject(self, side, faults):
        """Counts a bad record of the side ``input`` or ``output``; ``faults`` are fields and reasons."""
        if side == "input":
            self.bad_input += 1
        else:
            self.bad_output += 1
        for field, reason in faults:
            self._count((side, field, reason), 1)

    def _count(self, reason, count):
        if reason in self.reasons or len(self.reasons) < MAX_DIFFERENT_REASONS:
            self.reasons[reason] = self.reasons.get(reason, 0) + count

    def add(self, other):
        """Adds what ``other`` counted; where it stopped is not its business."""
        self.read += other.read
        self.failed += other.failed
        self.written += other.written
        self.bad_input += other.bad_input
        self.bad_output += other.bad_output
        for reason, count in other.reasons.items():
            self._count(reason, count)

    def report(self, way):
        """What the driver reports as ``records``."""
        most = sorted(self.reasons.items(), key=lambda item: -item[1])[:MAX_REASONS]
        report = {
            "way": way,
            "read": self.read,
            "scored": self.read - self.bad_input - self.failed,
            "written": self.written,
            "failed": self.failed,
            "rejected": {"input": self.bad_input, "output": self.bad_output},
            "reasons": [
                {"side": side, "field": driver.bounded(field, 200), "reason": reason, "count": count}
                for (side, field, reason), count in most
            ],
        }
        if self.stopped_at is not None:
            report["stopped_at"] = self.stopped_at
        return report


def placed(fault, record, name, word="at"):
    """``fault`` with the record it was met at in its text."""
    message = "{} ({} record {} of {})".format(fault.message, word, record, name)
    return ContractFault(message, fault.frame, fault.error_type, fault.trace)


# --- Scoring ---------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """The first bad record, where the job is to end there."""


class ScoringFault(Exception):
    """What ended the scoring of a piece: ``error`` at the record ``record`` of the piece, which counts from one."""

    def __init__(self, error, record, word="at"):
        super().__init__(error, record)
        self.error = error
        self.record = record
        self.word = word


class Scorer:
    """Calls a score function with the records of pieces, and writes what it gives.

    It writes one part for each output, from ``open`` to ``close``, and counts in ``tally``.
    """

    def __init__(self, contract, model, function):
        self._model = model
        self._function = function
        self._inputs = contract["inputs"]
        self._outputs = contract["outputs"]
        self._stops = bool(contract.get("stop_on_bad_records"))
        self._skips = bool(contract.get("skip_failed_records"))
        self._frame_rows = max(int(contract.get("frame_rows") or 10000), 1)
        self._input_checks = [check_or_none(one["schema"]) for one in self._inputs]
        self._output_checks = [check_or_none(one["schema"]) for one in self._outputs]
        self._writers = []
        # A process that the model forks and that comes back here must not write into the same files.
        self._forked = []
        os.register_at_fork(after_in_child=lambda: self._forked.append(True))
        self.tally = Tally()

    def open(self, paths):
        """Begins a part for each output, in the file that ``paths`` names; raises ContractFault."""
        self.tally = Tally()
        self._writers = []
        for path, output in zip(paths, self._outputs):
            with writing(output):
                self._writers.append(outputs.part_writer(path, output))
        self._emit = self._emitter()

    def close(self):
        """Ends the parts and returns them; raises ContractFault."""
        parts = []
        for writer, output in zip(self._writers, self._outputs):
            with writing(output):
                parts.append(writer.close())
        self._writers = []
        self.tally.written = max((part.count for part in parts), default=0)
        return parts

    def abandon(self):
        """Gives up the parts that were begun."""
        for writer in self._writers:
            try:
                writer.abandon()
            except OSError:
                # There is nothing more to lose.
                continue
        self._writers = []

    def score(self, place, pieces, goes_on=None):
        """Scores the records of ``pieces`` of the input at ``place``.

        ``goes_on`` is asked now and then whether to. Returns the number of the record at which the first bad one ended
        it, else None. Raises ScoringFault, SplitFault.
        """
        before = self.tally.read
        take = self._take_frames if self._inputs[place].get("recordsets") else self._take_records
        self._number = 0
        try:
            take(place, pieces, goes_on)
        except Stopped:
            return self._number
        except formats.InputFault as fault:
            raise ScoringFault(ContractFault("the input {}".format(fault)), self._number + 1, "near")
        except ContractFault as fault:
            raise ScoringFault(fault, self._number)
        finally:
            self.tally.read = before + self._number
        return None

    # -- Records

    def _take_records(self, place, pieces, goes_on):
        function, check = self._function, self._input_checks[place]
        give, emit = self._give, self._emit
        forked, skips = self._forked, self._skips
        generator = types.GeneratorType
        number = 0
        try:
            for record in self._read(place, pieces):
                number += 1
                if record.__class__ is not dict:
                    self._number = number
                    self._unreadable(record, check)
                    continue
                if check is not None:
                    faults = check(record)
                    if faults is not None:
                        self._number = number
                        self._bad("input", faults)
                        continue
                if skips:
                    self._number = number
                    self._score_or_skip(record)
                else:
                    try:
                        given = function(record)
                        if given.__class__ is generator:
                            for item in given:
                                if item.__class__ is dict:
                                    emit(item)
                                else:
                                    give(item, "yielded")
                        else:
                            give(given, "returned")
                    except (ContractFault, Stopped):
                        raise
                    except BaseException as error:
                        if forked:
                            driver.leave_forked_process(error)
                        raise ScoringFault(error, number)
                if forked:
                    driver.leave_forked_process(None)
                if goes_on is not None and not number % RECORDS_BETWEEN_LOOKS and not goes_on():
                    return
        finally:
            self._number = number

    def _score_or_skip(self, record):
        kept = []
        try:
            self._each(self._function(record), kept)
        except ContractFault:
            raise
        except BaseException as error:
            self._count_or_raise(error, self._number, 1)
            return
        for item in kept:
            self._emit(item)

    def _count_or_raise(self, error, record, count):
        """Counts the records at which the model raised, when the job has it so; raises ScoringFault."""
        if self._forked:
            driver.leave_forked_process(error)
        if not self._skips or not isinstance(error, Exception) or isinstance(error, MemoryError):
            raise ScoringFault(error, record)
        self.tally.failed += count

    def _each(self, given, kept):
        emit, self._emit = self._emit, lambda item: kept.append(outputs.plain(item))
        try:
            self._give(given, "returned")
        finally:
            self._emit = emit

    def _read(self, place, pieces):
        one = self._inputs[place]
        for piece in pieces:
            yield from formats.read_records(piece, file_format(one, piece.path), one["schema"])

    def _unreadable(self, record, check):
        if not isinstance(record, formats.Unreadable):
            raise ContractFault("the input has a record that is no object")
        if check is None:
            raise ContractFault("the input has a record that {}".format(record.reason))
        self._bad("input", [(WHOLE_RECORD, record.reason)])

    def _bad(self, side, faults):
        self.tally.reject(side, faults)
        if self._stops:
            raise Stopped()

    # -- Frames

    def _take_frames(self, place, pieces, goes_on):
        pandas = pandas_module()
        records = self._good_records(place, pieces)
        while True:
            rows = list(itertools.islice(records, self._frame_rows))
            if not rows:
                return
            first = self._first_of_frame
            self._first_of_frame = None
            frame = pandas.DataFrame(rows)
            count = len(rows)
            del rows
            self._score_frame(frame, first, count)
            if self._forked:
                driver.leave_forked_process(None)
            if goes_on is not None and not goes_on():
                return

    def _good_records(self, place, pieces):
        check = self._input_checks[place]
        self._first_of_frame = None
        for record in self._read(place, pieces):
            self._number += 1
            if record.__class__ is not dict:
                self._unreadable(record, check)
                continue
            faults = None if check is None else check(record)
            if faults is not None:
                self._bad("input", faults)
                continue
            if self._first_of_frame is None:
                self._first_of_frame = self._number
            yield record

    def _score_frame(self, frame, first, count):
        kept = []
        try:
            if self._skips:
                self._each(self._function(frame), kept)
            else:
                self._give(self._function(frame), "returned")
        except (ContractFault, Stopped):
            raise
        except BaseException as error:
            self._count_or_raise(error, first, count)
            kept = []
        for item in kept:
            self._emit(item)

    # -- What the function gives

    def _give(self, given, how):
        """Takes what the function returned or yielded; raises ContractFault for what is no output."""
        if given is None and how == "returned":
            return
        if isinstance(given, dict):
            self._emit(given)
        elif isinstance(given, list):
            for item in given:
                if not isinstance(item, collections.abc.Mapping):
                    raise self._no_output("{} a list with a {} in it", how, item)
                self._emit(dict(item))
        elif isinstance(given, collections.abc.Mapping):
            self._emit(dict(given))
        elif is_frame(given):
            for record in rows_of(given):
                self._emit(record)
        elif how == "returned" and hasattr(type(given), "__next__"):
            for item in given:
                self._give(item, "yielded")
        else:
            self._model.check_returned(given)
            raise self._no_output("{} a {}", how, given)

    @staticmethod
    def _no_output(text, how, given):
        what = text.format(how, driver.type_name(given))
        return ContractFault("a score function yields or returns dicts or lists of dicts; it {}".format(what))

    def _emitter(self):
        """The function that takes one output record; raises ContractFault, Stopped."""
        if len(self._writers) == 1:
            return self._emitter_to(self._writers[0], self._outputs[0], self._output_checks[0])
        emits = [self._emitter_to(*one) for one in zip(self._writers, self._outputs, self._output_checks)]

        def emit(record):
            for emit_to_one in emits:
                emit_to_one(record)

        return emit

    def _emitter_to(self, writer, output, check):
        write, bad = writer.write, self._bad

        def emit(record):
            try:
                write(record)
            except OSError as error:
                raise cannot_write(output, error)

        def emit_checked(record):
            faults = check(record)
            if faults is not None:
                bad("output", faults)
                return
            emit(record)

        return emit if check is None else emit_checked


def check_or_none(schema):
    return schemas.check_of(schema) if schema else None


def is_frame(value):
    """Whether ``value`` is a data frame of pandas."""
    return driver.library_of(value) == "pandas" and type(value).__name__ == "DataFrame"


def rows_of(frame):
    """The rows of a data frame as records."""
    for begin in range(0, len(frame), ROWS_AT_ONCE):
        for record in frame.iloc[begin : begin + ROWS_AT_ONCE].to_dict("records"):
            yield record if all(key.__class__ is str for key in record) else {str(k): v for k, v in record.items()}


def pandas_module():
    """pandas; raises ContractFault."""
    return formats.module("pandas", "a function that takes data frames")


def cannot_write(output, error):
    return ContractFault("cannot write {}: {}".format(output["name"], formats.why(error)), error_type="OutputFault")


class writing:
    """Makes a ContractFault of what the system says in its ``with``, which writes ``output``."""

    def __init__(self, output):
        self._output = output

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, OSError):
            raise cannot_write(self._output, error)


# --- Places ----------------------------------------------------------------------------------------------------------


ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/").match
FILE_URL = re.compile(r"file:(?://(?:localhost)?)?(?=/)").match


def local_path(location, folder):
    """The absolute path of ``location`` on this machine, or None when it lies on another file system."""
    match = FILE_URL(location)
    if match:
        return os.path.normpath(location[match.end() :])
    if ELSEWHERE(location):
        return None
    return os.path.normpath(os.path.join(folder, location))


def read_fault(one, fault):
    return ContractFault("{} {}".format(one["name"], fault), error_type="InputFault")


class OutputPlace:
    """Where an output is written until it is whole, and how it then comes to be seen.

    ``store`` knows the file system on which it lies, where that is not this machine's.
    """

    def __init__(self, job, output, store):
        self.output = output
        self._location = output["location"]
        self._target = local_path(self._location, job.folder)
        self._store = store
        name = re.sub(r"[^A-Za-z0-9._-]", "_", job.id or "job")[:100]
        if self._target is None:
            parent, base = store.temporary_folder(), "output-{}".format(output["index"])
        else:
            parent, base = os.path.split(self._target)
        self.hidden_name = ".{}.{}.partial".format(base[:100], name)
        self.folder = os.path.join(parent, self.hidden_name)

    def open(self):
        """Makes the hidden folder, empty; raises ContractFault."""
        with writing(self.output):
            if self._target is not None and self.output["kind"] == "file" and os.path.isdir(self._target):
                raise IsADirectoryError(0, "it is a folder")
            remove(self.folder)
            os.makedirs(self.folder)

    def part_path(self, number):
        """Where a process writes its part."""
        return part_path(self.folder, number)

    def commit(self, parts):
        """Makes the output of the parts, in order; raises ContractFault."""
        whole = os.path.join(self.folder, "whole")
        with writing(self.output):
            if self.output["kind"] == "folder":
                outputs.assemble_folder(parts, self.output, whole, self._store)
            else:
                outputs.assemble_file(parts, self.output, whole, self._store)
            if self._target is None:
                self._store.put(whole, self._location, self.hidden_name)
            elif os.path.isdir(self._target):
                # A folder cannot take the place of another in one step.
                os.rename(self._target, os.path.join(self.folder, "replaced"))
                os.rename(whole, self._target)
            else:
                os.replace(whole, self._target)
        self.discard()

    def discard(self):
        """Removes the hidden folder. Best effort."""
        try:
            remove(self.folder)
        except OSError:
            return


def part_path(folder, number):
    """The part with this number among those in the hidden ``folder`` of an output."""
    return os.path.join(folder, "part-{:06}".format(number))


def remove(path):
    """Removes a file or a folder that may not be there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


# --- The job ---------------------------------------------------------------------------------------------------------


def run(job, model):
    """Runs the job of a record model. Returns the results, of a test job, and the report on its records.

    Raises ContractFault, RecordFault, and what the model raises where that is not at a record.
    """
    contract = job.contract
    if job.type == driver.TRAINING_JOB:
        os.makedirs(os.path.join(job.folder, OUTPUT_FOLDER), exist_ok=True)
    refuse_what_is_missing(job)
    for output in contract["outputs"]:
        # What stands between the blocks of an Avro file: the same for all its parts, and for both ways.
        mark = "{}/{}".format(job.id, output["index"]).encode("utf-8", "replace")
        output["mark"] = hashlib.blake2b(mark, digest_size=16).hexdigest()
    cluster = None
    if contract["way"] == "spark":
        import ModelOpSpark

        cluster = ModelOpSpark.Cluster(job)
    try:
        if job.type != driver.SCORE_JOB:
            return FrameCall(job, model, cluster).run()
        if cluster is not None:
            return None, cluster.score(model).report("spark")
        return None, score_here(job, model).report("process")
    finally:
        if cluster is not None:
            cluster.close()


def refuse_what_is_missing(job):
    """Raises ContractFault for libraries that the job will need and that are not there."""
    contract = job.contract
    if job.type != driver.SCORE_JOB or any(one.get("recordsets") for one in contract["inputs"]):
        pandas_module()
    for one in contract["inputs"] + contract["outputs"]:
        if one["format"] == "parquet" and contract["way"] == "process":
            formats.module("pyarrow", "a Parquet file")
        if one["format"] == "jdbc" and contract["way"] == "process":
            raise ContractFault("{} is a database, which can be read by Spark only".format(one["name"]))
        if contract["way"] == "process" and local_path(one["location"], job.folder) is None:
            raise ContractFault("{} lies on a file system that only Spark can reach".format(one["name"]))


def input_files(one, folder):
    """The files of an input on this machine; raises ContractFault."""
    try:
        return formats.files_of(local_path(one["location"], folder))
    except formats.InputFault as fault:
        raise read_fault(one, fault)


def commit(places, parts):
    """Makes the outputs of their parts: for each output a list of them, in order."""
    for place, its_parts in zip(places, parts):
        place.commit(its_parts)


def score_here(job, model):
    """Scores all inputs in this process; returns the tally."""
    contract = job.contract
    files = [input_files(one, job.folder) for one in contract["inputs"]]
    places = [OutputPlace(job, output, None) for output in contract["outputs"]]
    function = model.load()
    model.call_init()
    model.function_was_called = True
    scorer = Scorer(contract, model, function)
    pid = _getpid()
    try:
        for place in places:
            place.open()
        scorer.open([place.part_path(0) for place in places])
        for number, one in enumerate(contract["inputs"]):
            stopped_at = score_input(scorer, number, one["name"], [formats.Piece(path) for path in files[number]])
            if stopped_at is not None:
                scorer.tally.stopped_at = stopped_at
                break
        commit(places, [[part] for part in scorer.close()])
        return scorer.tally
    finally:
        if _getpid() == pid:
            scorer.abandon()
            for place in places:
                place.discard()


def score_input(scorer, number, name, pieces):
    """Scores one input in this process; returns where it stopped."""
    try:
        return scorer.score(number, pieces)
    except ScoringFault as fault:
        raise fault_at(fault.error, fault.record, name, fault.word)


def fault_at(error, record, name, word="at"):
    """What to raise for an error at a record of an input."""
    if isinstance(error, ContractFault):
        return placed(error, record, name, word)
    return RecordFault(record, name, error)


# --- Whole frames ----------------------------------------------------------------------------------------------------


class FrameCall:
    """The call of a metrics or training function, with a data frame for each input."""

    def __init__(self, job, model, cluster):
        self._job = job
        self._model = model
        self._cluster = cluster
        self._tally = Tally()

    def run(self):
        """Returns the results, of a test job, and the report; raises ContractFault and whatever the model raises."""
        contract = self._job.contract
        files = self._files()
        self._refuse_too_big(files)
        function = self._model.load()
        self._model.call_init()
        frames = []
        for one, paths in zip(contract["inputs"], files):
            frames.append(self._frame(one, paths))
            if self._tally.stopped_at is not None:
                return self._stopped()
        results = self._model.call_whole(function, frames)
        if results is not None:
            self._write(results)
        return results, self._tally.report(contract["way"])

    def _files(self):
        if self._cluster is not None:
            return [self._cluster.local_files(one) for one in self._job.contract["inputs"]]
        return [input_files(one, self._job.folder) for one in self._job.contract["inputs"]]

    def _stopped(self):
        return None, self._tally.report(self._job.contract["way"])

    def _refuse_too_big(self, files):
        """Looks at some rows of each input and raises ContractFault when the frames will not fit into the memory."""
        memory = self._job.contract.get("memory")
        if not memory:
            return
        needed = resident_bytes() + FRAME_HEADROOM
        for one, paths in zip(self._job.contract["inputs"], files):
            needed += frame_bytes(one, paths)
        if needed > memory:
            raise ContractFault(
                "the input needs about {} of memory as a data frame, and the driver may hold {}: give the driver more "
                "memory, or the function less data".format(size_text(needed), size_text(memory)),
                error_type="NotEnoughMemory",
            )

    def _frame(self, one, paths):
        builder = FrameBuilder(pandas_module())
        check = check_or_none(one["schema"])
        stops = self._job.contract.get("stop_on_bad_records")
        number = 0
        try:
            for path in paths:
                for record in formats.read_records(formats.Piece(path), file_format(one, path), one["schema"]):
                    number += 1
                    faults = None
                    if record.__class__ is not dict:
                        if check is None:
                            raise ContractFault("the input has a record that {}".format(record.reason))
                        faults = [(WHOLE_RECORD, record.reason)]
                    elif check is not None:
                        faults = check(record)
                    if faults is None:
                        builder.add(record)
                        continue
                    self._tally.reject("input", faults)
                    if stops:
                        self._tally.stopped_at = number
                        break
                if self._tally.stopped_at is not None:
                    break
        except formats.InputFault as fault:
            raise placed(ContractFault("the input {}".format(fault)), number + 1, one["name"], "near")
        except ContractFault as fault:
            raise placed(fault, number, one["name"])
        self._tally.read += number
        return builder.frame()

    def _write(self, results):
        """Writes the results as the one record of every output."""
        contract = self._job.contract
        places = [OutputPlace(self._job, output, self._cluster) for output in contract["outputs"]]
        record = driver.ResultsConversion().convert(results)
        try:
            parts = []
            for place in places:
                place.open()
                with writing(place.output):
                    writer = outputs.part_writer(place.part_path(0), dict(place.output, schema=None))
                    writer.write(record)
                    parts.append([writer.close()])
                place.output = dict(place.output, schema=None)
            commit(places, parts)
            self._tally.written = 1 if places else 0
        finally:
            for place in places:
                place.discard()


def file_format(one, path):
    """The format of a file of an input: what Spark brought here has one of its own."""
    return formats.WAITING if path.endswith(formats.WAITING_ENDING) else one["format"]


class FrameBuilder:
    """Makes a data frame of records, without ever holding all of them."""

    def __init__(self, pandas):
        self._pandas = pandas
        self._rows = []
        self._packs = []

    def add(self, record):
        """Takes one record."""
        self._rows.append(record)
        if len(self._rows) >= FRAME_ROWS:
            self._pack()

    def _pack(self):
        if self._rows:
            frame = self._pandas.DataFrame(self._rows)
            # A frame keeps columns of one type in one block; apart, they can go one by one.
            self._packs.append(({name: frame[name].copy() for name in frame.columns}, len(frame)))
            self._rows = []

    def frame(self):
        """The frame of all records; the columns in the order in which they first came."""
        self._pack()
        packs, self._packs = self._packs, []
        if not packs:
            return self._pandas.DataFrame()
        names = list(dict.fromkeys(name for columns, _ in packs for name in columns))
        # Column by column, so that little is there twice.
        columns = {}
        for name in names:
            columns[name] = self._column([(pack.pop(name, None), length) for pack, length in packs])
            give_back_memory()
        if not columns:
            return self._pandas.DataFrame(index=range(sum(length for _, length in packs)))
        return self._pandas.DataFrame(columns, copy=False)

    def _column(self, pieces):
        pandas = self._pandas
        there = [piece for piece, _ in pieces if piece is not None and not piece.isna().all()]
        dtype = there[0].dtype if there else None
        whole = []
        for piece, length in pieces:
            if piece is not None and not (there and piece.isna().all()):
                whole.append(piece)
            elif dtype is None or dtype == object:
                whole.append(pandas.Series([None] * length, dtype=object))
            elif dtype.kind in "iuf":
                whole.append(pandas.Series([float("nan")] * length, dtype=float))
            elif dtype.kind == "b":
                whole.append(pandas.Series([None] * length, dtype=object))
            else:
                whole.append(pandas.Series([None] * length, dtype=dtype))
        return pandas.concat(whole, ignore_index=True)


def give_back_memory():
    """Gives what was freed in small portions back to the system, which C does only when it is told to. Best effort."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def frame_bytes(one, paths):
    """About how much memory the frame of an input takes while it is made, from a look at some of its rows."""
    pandas = pandas_module()
    total = 0.0
    for path in paths:
        rows = []
        progress = formats.Progress(path)
        try:
            # Held, since the file is open only as long as it is.
            reading = progress.records(file_format(one, path), one["schema"])
            for record in reading:
                if record.__class__ is dict:
                    rows.append(record)
                if len(rows) >= SAMPLE_ROWS:
                    break
            share = progress.share()
            reading.close()
        except formats.InputFault:
            # Whoever reads it says so, with the record.
            continue
        if rows:
            used = int(pandas.DataFrame(rows).memory_usage(index=True, deep=True).sum())
            total += 1.5 * used / share
            rows_left = min(FRAME_ROWS, len(rows) / share)
            # Three times: as records, as lists and as objects in arrays.
            total += 3 * rows_left * sum(record_bytes(record) for record in rows) / len(rows)
    # A column is there twice for a moment, and some rows are records before they are a frame.
    return int(total)


def record_bytes(record):
    """About how much memory a record takes, at the first glance."""
    return sys.getsizeof(record) + sum(map(sys.getsizeof, record.values()))


def resident_bytes():
    """What this process holds in memory now."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def size_text(count):
    """A number of bytes, for people."""
    if count >= 1 << 30:
        return "{:.1f} GiB".format(count / (1 << 30))
    return "{:.0f} MiB".format(count / (1 << 20))
