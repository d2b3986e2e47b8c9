"""Reads the records of record models: CSV, JSON, JSON lines, Avro and Parquet, in bounded memory.

It is staged beside the driver when a job has a contract of records, and used by the driver and by Spark's Python
workers alike, so that a record looks the same whichever way it is scored. It knows files of this machine only. It must
not know the model, the checks of schemas, nor Spark.

What a record is
----------------
A dict, its keys in the order of the file. Text is UTF-8, with or without a byte order mark; lines end with LF or CRLF;
the text formats may be compressed, which the name's ending says (.gz, .bz2, .xz). A record is at most 64 MiB, a CSV
value at most 16 MiB. In a folder, the files are read in the order of their names; names that start with ``_`` or ``.``
are skipped, and folders in it are refused.

* csv: commas, ``"`` around what needs it, always a first line with names (an empty name becomes ``Unnamed: N``, as
  pandas has it; a name that comes twice is refused). Blank lines are skipped. A line with fewer values than names has
  nothing for the rest; one with more cannot be read. Types are those of the schema when there is one; a column that it
  does not know, and every column without one, is typed value by value: nothing is None; ``12`` and ``-3`` are int;
  ``1.5``, ``.5``, ``2.`` and ``1e3`` are float; ``true``, ``True``, ``TRUE`` and the like for false are bool; anything
  else is text, also ``007``, ``+1``, ``1_000``, ``NaN``, ``NA`` and ``null``. What a value becomes never depends on
  other records. A value that does not fit the schema's type stays text, and the check says what is wrong.
* json: one array of objects, or objects one after the other. jsonl: an object on each line, blank lines skipped.
* avro: container files with the codecs null, deflate, bzip2 and xz, and zstandard or snappy where Python has the
  module. Logical types become date, time, datetime and Decimal.
* parquet: by pyarrow, where that is installed.

A record that cannot be read but whose end is known (a line that is no JSON, a CSV line with too many values) is handed
on as an ``Unreadable``; anything else that is wrong raises an InputFault, which says what and never quotes the record.
"""

import ModelOpAvro as avro
import ModelOpPySparkDriver as driver

with driver.without_model_folders():
    import bz2
    import csv
    import decimal
    import gzip
    import io
    import json
    import lzma
    import os
    import pickle
    import re
    import struct
    import zlib

ContractFault = driver.ContractFault

MAX_RECORD = 64 * 1024 * 1024
MAX_CSV_VALUE = 16 * 1024 * 1024
MAX_CSV_COLUMNS = 20000

READ_BYTES = 256 * 1024
SCAN_BYTES = 1024 * 1024
PARQUET_BATCH = 1000

TEXT_FORMATS = ("csv", "json", "jsonl")
FORMATS = TEXT_FORMATS + ("avro", "parquet")
COMPRESSIONS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DAMAGED = "is damaged, or not compressed the way that its name says"
NOT_COMPRESSED_AS_TOLD = (EOFError, zlib.error, lzma.LZMAError)


class InputFault(Exception):
    """An input that cannot be read any further; the text completes "NAME ..." and quotes nothing of it."""


class SplitFault(Exception):
    """A piece of a CSV file does not end where a record ends: its quotes are not what the split took them for."""


class Unreadable:
    """Stands for a record that is none; the reader goes on behind it."""

    __slots__ = ("reason",)

    def __init__(self, reason):
        self.reason = reason


NOT_JSON = Unreadable("is not JSON")
NOT_AN_OBJECT = Unreadable("is not an object")
TOO_DEEP = Unreadable("is nested too deep")
TOO_MANY_VALUES = Unreadable("has more values than the header has names")


def why(error):
    """What an OSError says, without the path that it may carry."""
    return error.strerror or type(error).__name__


def module(name, what):
    """The module ``name``, which is not Python's own; raises ContractFault when it is not installed."""
    try:
        return __import__(name)
    except ImportError:
        raise ContractFault(
            "{} needs {}, which this runtime does not have: name it in the model's requirements "
            "(an asset with the role REQUIRED_LIBRARIES)".format(what, name),
            error_type="MissingLibrary",
        )


def has_module(name):
    """Whether the module ``name`` can be imported."""
    try:
        __import__(name)
    except ImportError:
        return False
    return True


# --- Files -----------------------------------------------------------------------------------------------------------


class Piece:
    """A file, or a stretch of one that begins and ends with a record.

    ``start`` and ``end`` are bytes, ``end`` None at the end of the file; ``groups`` are the row groups of a Parquet
    file. ``header`` has the names of a CSV file when they do not stand in the piece, ``in_array`` says of a piece of a
    JSON file that it lies within an array. Whoever reads it sets ``name``, which is only for messages.
    """

    def __init__(self, path, start=0, end=None, header=None, in_array=None, groups=None):
        # The file of the system's, while the piece is read.
        self.raw = None
        self.path = path
        self.start = start
        self.end = end
        self.header = header
        self.in_array = in_array
        self.groups = groups


def compression_of(path):
    """The ending that says how ``path`` is compressed, or None."""
    ending = os.path.splitext(path)[1].lower()
    return ending if ending in COMPRESSIONS else None


def files_of(path):
    """The files of an input: itself, or the files of the folder in the order of their names. Raises InputFault."""
    try:
        if not os.path.isdir(path):
            with open(path, "rb"):
                return [path]
        names = sorted(name for name in os.listdir(path) if not name.startswith(("_", ".")))
    except OSError as error:
        raise InputFault("cannot be read: {}".format(why(error)))
    files = [os.path.join(path, name) for name in names]
    if any(os.path.isdir(file) for file in files):
        raise InputFault("has folders in it; only files are read")
    return files


class Stretch(io.RawIOBase):
    """The bytes of a file from ``start`` to before ``end``."""

    def __init__(self, path, start, end):
        super().__init__()
        self._file = open(path, "rb", buffering=0)
        self._file.seek(start)
        self._left = end - start

    def readable(self):
        return True

    def readinto(self, buffer):
        if self._left < len(buffer):
            buffer = memoryview(buffer)[: self._left]
        count = self._file.readinto(buffer)
        self._left -= count
        return count

    def close(self):
        self._file.close()
        super().close()


class Decompressed(io.BufferedReader):
    """The bytes of a compressed file."""

    def __init__(self, raw, compression):
        super().__init__(COMPRESSIONS[compression](raw, "rb"), READ_BYTES)
        self._compressed = raw

    def close(self):
        super().close()
        self._compressed.close()


def open_bytes(piece):
    """The bytes of a ``piece`` of text as a buffered file, decompressed."""
    if piece.end is not None:
        return io.BufferedReader(Stretch(piece.path, piece.start, piece.end), READ_BYTES)
    piece.raw = raw = open(piece.path, "rb", buffering=0)
    compression = compression_of(piece.path)
    return Decompressed(raw, compression) if compression else io.BufferedReader(raw, READ_BYTES)


def decompress(path, target):
    """Writes what the compressed file ``path`` holds to ``target``; raises InputFault and OSError."""
    with open_bytes(Piece(path)) as source, open(target, "wb") as file:
        while True:
            try:
                block = source.read(SCAN_BYTES)
            except NOT_COMPRESSED_AS_TOLD + (OSError,):
                raise InputFault(DAMAGED)
            if not block:
                return
            file.write(block)


def open_text(piece, newline):
    """The text of ``piece``."""
    file = open_bytes(piece)
    if piece.start == 0 and file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
        file.close()
        raise InputFault("is not UTF-8 but UTF-16")
    return io.TextIOWrapper(file, "utf-8-sig" if piece.start == 0 else "utf-8", newline=newline)


def lines_of(text):
    """The lines of ``text``, none of which is longer than a record may be."""
    readline = text.readline
    while True:
        line = readline(MAX_RECORD)
        if len(line) >= MAX_RECORD:
            raise too_long()
        if not line:
            return
        yield line


def too_long():
    return InputFault("has a record of more than {} MiB".format(MAX_RECORD // 1024 // 1024))


def read_records(piece, format_name, schema):
    """The records of ``piece``: dicts and ``Unreadable``s. Raises InputFault, SplitFault and ContractFault."""
    try:
        yield from READERS[format_name](piece, schema)
    except UnicodeDecodeError:
        raise InputFault("is not UTF-8")
    except csv.Error as error:
        raise InputFault("is not CSV that can be read: {}".format(error))
    except NOT_COMPRESSED_AS_TOLD:
        raise InputFault(DAMAGED)
    except OSError as error:
        # What decompresses raises some that no system call stands behind.
        raise InputFault("cannot be read: {}".format(why(error)) if error.errno else DAMAGED)


# --- CSV -------------------------------------------------------------------------------------------------------------


NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(\.[0-9]*)?|(\.[0-9]+))([eE][-+]?[0-9]+)?", re.ASCII).fullmatch
"""A number as a whole; a group is there when it is no whole one."""
NOT_FINITE = {
    sign + word: float(sign + word) for sign in ("", "-") for word in ("nan", "NaN", "inf", "Infinity", "INF", "Inf")
}
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
NOT_ONLY_TEXT = frozenset("0123456789-.tTfF")
"""What begins with anything else is text."""


INFINITY = float("inf")


def typed(text):
    """The value of a CSV cell that no schema knows; ``text`` is not empty."""
    match = NUMBER(text)
    if match is None:
        return BOOLEANS.get(text, text)
    if match.lastindex is None:
        return whole(text)
    value = float(text)
    return value if -INFINITY < value < INFINITY else text


def whole(text):
    """The int that ``text`` is; text where it has thousands of digits, which Python does not read."""
    try:
        return int(text)
    except ValueError:
        return text


def whole_number(text):
    match = NUMBER(text)
    return whole(text) if match is not None and match.lastindex is None else text or None


def any_number(text):
    if NUMBER(text) is not None:
        return float(text)
    return NOT_FINITE.get(text, text or None)


def boolean(text):
    return BOOLEANS.get(text, text or None)


def decimal_number(text):
    return decimal.Decimal(text) if NUMBER(text) is not None else text or None


def nested(text):
    """The value of a cell whose type is a list, a map or a record: JSON."""
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text or None


CELL_READERS = {
    "int": whole_number,
    "long": whole_number,
    "float": any_number,
    "double": any_number,
    "boolean": boolean,
}
TYPED_CELL = "(None if not {0} else {0} if {0}[0] not in NOT_ONLY_TEXT else typed({0}))"


def cell_expression(cell, field, names):
    """The Python expression for the value of ``cell``, a variable's name; what it calls is put into ``names``."""
    if field is None:
        return TYPED_CELL.format(cell)
    kind = field["type"]
    nullable = field.get("nullable", False)
    while isinstance(kind, dict) and kind["kind"] == "union":
        rest = [one for one in kind["of"] if one != "null"]
        if len(rest) != 1:
            return TYPED_CELL.format(cell)
        nullable, kind = nullable or len(rest) < len(kind["of"]), rest[0]
    if isinstance(kind, dict) and kind["kind"] == "logical":
        if kind["logical"] == "decimal":
            kind = "decimal"
        else:
            kind = kind["of"]
    if isinstance(kind, dict):
        kind = kind["kind"]
    if kind == "null":
        return TYPED_CELL.format(cell)
    if kind in ("string", "bytes"):
        return "({} or None)".format(cell) if nullable else cell
    if kind in ("enum", "fixed"):
        return "({} or None)".format(cell)
    read = decimal_number if kind == "decimal" else CELL_READERS.get(kind, nested)
    names[read.__name__] = read
    return "{}({})".format(read.__name__, cell)


def row_reader(header, schema):
    """A function from the texts of a CSV line, as many as the header has names, to a record.

    Its code is made for this header and this schema; their names are in it as literals of text and nothing else.
    """
    fields = {field["name"]: field for field in schema["fields"]} if schema else {}
    names = {"NOT_ONLY_TEXT": NOT_ONLY_TEXT, "typed": typed}
    cells = ["c{}".format(place) for place in range(len(header))]
    items = (
        "{!r}: {}".format(str(name), cell_expression(cell, fields.get(name), names))
        for name, cell in zip(header, cells)
    )
    source = "def record_of(row):\n    {}, = row\n    return {{{}}}\n".format(", ".join(cells), ", ".join(items))
    exec(compile(source, "<csv>", "exec"), names)
    return names["record_of"]


def csv_header(row):
    """The names of the columns, from the first line. Raises InputFault."""
    names = [name if name else "Unnamed: {}".format(place) for place, name in enumerate(row)]
    if len(names) > MAX_CSV_COLUMNS:
        raise InputFault("has more than {} columns".format(MAX_CSV_COLUMNS))
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputFault("has a header with the same name more than once: {}".format(", ".join(twice[:5])[:200]))
    return names


def read_csv(piece, schema):
    """The records of a CSV file."""
    csv.field_size_limit(MAX_CSV_VALUE)
    with open_text(piece, newline="") as text:
        ended = []

        def lines():
            yield from lines_of(text)
            ended.append(True)

        rows = csv.reader(lines())
        header = piece.header
        if header is None:
            header = next(filter(None, rows), None)
            if header is None:
                return
            if ended:
                raise InputFault("has a quote in its header that is never closed")
            header = csv_header(header)
        record_of = row_reader(header, schema)
        width = len(header)
        for row in rows:
            if ended:
                # The text was at its end, and yet there was more to be had: a value whose quote is still open.
                if piece.end is not None:
                    raise SplitFault()
                raise InputFault("has a quote that is never closed")
            if len(row) != width:
                if not row:
                    continue
                if len(row) > width:
                    yield TOO_MANY_VALUES
                    continue
                row += [""] * (width - len(row))
                record = record_of(row)
                yield record
                continue
            yield record_of(row)


# --- JSON ------------------------------------------------------------------------------------------------------------


_scan = json.JSONDecoder().scan_once
_white = re.compile(r"[ \t\r\n]*").match


def json_value(text):
    """The object that ``text`` is, or an ``Unreadable``."""
    try:
        value = json.loads(text)
    except ValueError:
        return NOT_JSON
    except RecursionError:
        return TOO_DEEP
    return value if type(value) is dict else NOT_AN_OBJECT


def read_jsonl(piece, schema):
    """The records of a file with an object on each line."""
    with open_text(piece, newline="\n") as text:
        for line in lines_of(text):
            try:
                record, end = _scan(line, 0)
            except (StopIteration, ValueError, RecursionError):
                if line.isspace():
                    continue
                # White space in front, or no JSON.
                yield json_value(line)
                continue
            if line[end:] not in ("\n", "", "\r\n") or type(record) is not dict:
                record = json_value(line)
            yield record


class JsonValues:
    """The values of a JSON text: the elements of the array that it is, or one value after the other.

    ``read`` gives the next so many characters. ``in_array`` is for a text that begins behind the bracket, with a value.
    ``position`` is where the value that came last begins, in characters.
    """

    def __init__(self, read, in_array=None):
        self._read = read
        self._text = ""
        self._place = 0
        self._before = 0
        self._at_end = False
        self.in_array = in_array
        self._is_stretch = in_array is not None
        self.position = 0

    def __iter__(self):
        """Yields the values; raises InputFault."""
        if not self._is_stretch:
            self.in_array = self._peek() == "["
            if self.in_array:
                self._place += 1
        following = self._peek()
        if self.in_array and following == "]" and not self._is_stretch:
            self._finish()
            return
        while following:
            yield self._value()
            following = self._peek()
            if self.in_array:
                if following == "]":
                    self._finish()
                    return
                if following == ",":
                    self._place += 1
                    following = self._peek()
                elif following:
                    raise InputFault("is not JSON: a comma is missing in its array")
                if not following and not self._is_stretch:
                    break
        if self.in_array and not self._is_stretch:
            raise InputFault("is not JSON: its array has no end")

    def _finish(self):
        self._place += 1
        if self._peek():
            raise InputFault("is not JSON: something follows the end of its array")

    def _more(self):
        """Takes in more text; false at its end."""
        left = self._text[self._place :]
        if len(left) >= MAX_RECORD:
            raise too_long()
        more = self._read(max(SCAN_BYTES, len(left)))
        self._before += self._place
        self._text = left + more
        self._place = 0
        self._at_end = not more
        return bool(more)

    def _peek(self):
        """The next character that is no white space, nothing at the end."""
        while True:
            self._place = _white(self._text, self._place).end()
            if self._place < len(self._text):
                return self._text[self._place]
            if self._at_end or not self._more():
                return ""

    def _value(self):
        while True:
            try:
                value, end = _scan(self._text, self._place)
                # A number at the end of what was read may go on.
                if end < len(self._text) or self._at_end or isinstance(value, (dict, list)):
                    break
            except (StopIteration, ValueError):
                if self._at_end:
                    raise InputFault("is not JSON")
            except RecursionError:
                raise InputFault("is JSON that is nested too deep")
            self._more()
        self.position = self._before + self._place
        self._place = end
        return value


def read_json(piece, schema):
    """The records of a JSON file."""
    with open_text(piece, newline="") as text:
        for value in JsonValues(text.read, piece.in_array):
            yield value if type(value) is dict else NOT_AN_OBJECT


# --- Avro ------------------------------------------------------------------------------------------------------------


def open_avro(path):
    """``path`` as an Avro file; raises InputFault and OSError."""
    try:
        return avro.AvroFile(path)
    except avro.Fault as fault:
        raise InputFault("is not an Avro file that can be read: {}".format(fault))


def read_avro(piece, schema):
    """The records of an Avro container file."""
    file = open_avro(piece.path)
    try:
        if file.codec not in avro.CODECS:
            raise InputFault("is compressed with the codec {}, which is not supported".format(file.codec[:40]))
        decompress = avro.CODECS[file.codec]()
        read = avro.Decoder().of(file.schema)
        piece.raw = file.raw
        if piece.start:
            file.seek(piece.start)
        for count, data in file.blocks(piece.end):
            data = decompress(data)
            place = 0
            for _ in range(count):
                record, place = read(data, place)
                yield record if type(record) is dict else NOT_AN_OBJECT
            if place != len(data):
                raise avro.Fault("a block has more than its records")
    except avro.Fault as fault:
        raise InputFault("is not an Avro file that can be read: {}".format(fault))
    except (IndexError, struct.error, UnicodeDecodeError, RecursionError, zlib.error, ArithmeticError):
        raise InputFault("is not an Avro file that can be read: it is damaged")
    finally:
        file.close()


# --- Parquet ---------------------------------------------------------------------------------------------------------


def parquet_file(path):
    """``path`` as pyarrow's ParquetFile; raises InputFault and ContractFault."""
    module("pyarrow", "a Parquet file")
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError):
        raise InputFault("is not a Parquet file that can be read")


def read_parquet(piece, schema):
    """The records of a Parquet file."""
    file = parquet_file(piece.path)
    try:
        for batch in file.iter_batches(batch_size=PARQUET_BATCH, row_groups=piece.groups):
            yield from batch.to_pylist()
    finally:
        file.close()


# --- Records that wait -----------------------------------------------------------------------------------------------


WAITING = "waiting"
"""The format of records that are kept for a time as Python has them: files of pickled lists."""
WAITING_ENDING = ".waiting"


def read_waiting(piece, schema):
    """The records of a file in which they wait."""
    piece.raw = open(piece.path, "rb", buffering=0)
    with io.BufferedReader(piece.raw, READ_BYTES) as file:
        while file.peek(1):
            yield from pickle.load(file)


class Progress:
    """Reads a file and knows how far it has come."""

    def __init__(self, path):
        self._piece = Piece(path)
        self._size = os.stat(path).st_size
        self._rows = None
        self._count = 0

    def records(self, format_name, schema):
        """The records; raises InputFault."""
        if format_name == "parquet":
            with parquet_file(self._piece.path) as file:
                self._rows = file.metadata.num_rows
        for record in read_records(self._piece, format_name, schema):
            self._count += 1
            yield record
        self._rows = self._count

    def share(self):
        """Which part of the file was read: above 0, and 1 when it was the whole."""
        if self._rows is not None:
            return self._count / self._rows if self._rows else 1.0
        raw = self._piece.raw
        if raw is None or raw.closed or not self._size:
            return 1.0
        return min(max(raw.tell() / self._size, 1e-9), 1.0)


READERS = {
    WAITING: read_waiting,
    "csv": read_csv,
    "json": read_json,
    "jsonl": read_jsonl,
    "avro": read_avro,
    "parquet": read_parquet,
}


# --- Pieces of files -------------------------------------------------------------------------------------------------


def pieces_of(path, format_name, size_from):
    """``path`` in pieces, in order. Raises InputFault and ContractFault.

    ``size_from`` gives about how many bytes the piece that begins at a byte of the file is to have.

    The pieces of a CSV file rest on a guess, which is right for every file whose quotes are well-formed: that a line
    ends a record when an even number of quotes stands before it. Whoever reads a piece finds out: see SplitFault. As
    the first piece begins where a record does, and every piece that ends with a record makes the next one begin so, all
    are right when none complains.
    """
    try:
        length = os.stat(path).st_size
        if (format_name in TEXT_FORMATS and compression_of(path)) or format_name == WAITING:
            return [Piece(path)]
        if length <= size_from(0) and format_name != "parquet":
            return [Piece(path)]
        return PIECES[format_name](path, length, size_from)
    except OSError as error:
        raise InputFault("cannot be read: {}".format(why(error)))


def pieces_between(path, places, **known):
    """The pieces between ``places``, the first and the last included."""
    return [Piece(path, start, end, **known) for start, end in zip(places, places[1:])]


def pieces_of_jsonl(path, length, size_from):
    places = [0]
    with open(path, "rb") as file:
        while True:
            place = places[-1] + size_from(places[-1])
            if place >= length:
                break
            file.seek(place)
            place += skip_line(file)
            if place >= length:
                break
            places.append(place)
    return pieces_between(path, places + [length])


def skip_line(file):
    """How many bytes there are up to the end of the line."""
    count = 0
    while True:
        line = file.readline(READ_BYTES)
        count += len(line)
        if not line or line.endswith(b"\n"):
            return count


def pieces_of_csv(path, length, size_from):
    first = next(read_header(path), None)
    if first is None:
        return [Piece(path)]
    places = [0]
    wanted = size_from(0)
    quotes = 0
    place = 0
    with open(path, "rb") as file:
        while True:
            block = file.read(SCAN_BYTES)
            if not block:
                break
            while place + len(block) >= wanted:
                found = end_of_record(block, max(0, wanted - place), quotes)
                if not found or place + found >= length:
                    break
                places.append(place + found)
                wanted = places[-1] + size_from(places[-1])
            quotes += block.count(b'"')
            place += len(block)
    pieces = pieces_between(path, places + [length])
    for piece in pieces[1:]:
        piece.header = first
    return pieces


def end_of_record(block, place, quotes):
    """Behind the first line end from ``place`` on with an even number of quotes before it, or 0.

    ``quotes`` is how many there were before the block.
    """
    quotes += block.count(b'"', 0, place)
    while True:
        found = block.find(b"\n", place) + 1
        if not found:
            return 0
        quotes += block.count(b'"', place, found)
        if quotes % 2 == 0:
            return found
        place = found


def read_header(path):
    """Yields the names in the first line of a CSV file, or nothing."""
    csv.field_size_limit(MAX_CSV_VALUE)
    try:
        with open_text(Piece(path), newline="") as text:
            for row in csv.reader(lines_of(text)):
                if row:
                    yield csv_header(row)
                    return
    except (UnicodeDecodeError, csv.Error):
        # Whoever reads the file says so.
        return


def pieces_of_json(path, length, size_from):
    """A JSON file has no marks: it is parsed to find where its values begin. A byte is taken for a character there."""
    with open(path, "rb") as file:
        before = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
        file.seek(before)
        values = JsonValues(lambda count: file.read(count).decode("latin-1"))
        places = []
        wanted = 0
        try:
            for _ in values:
                place = before + values.position
                if place >= wanted:
                    places.append(place)
                    wanted = place + size_from(place)
        except InputFault:
            # Whoever reads the file comes to it in its turn, and can say at which record.
            return [Piece(path)]
    if len(places) < 2:
        return [Piece(path)]
    pieces = pieces_between(path, places, in_array=values.in_array)
    # The end of the array belongs to nobody: it was looked at here.
    return pieces + [Piece(path, places[-1], length, in_array=values.in_array)]


def pieces_of_avro(path, length, size_from):
    file = open_avro(path)
    try:
        places = [file.tell()]
        wanted = places[0] + size_from(places[0])
        for _, end in file.blocks(with_data=False):
            if end >= wanted or end >= length:
                places.append(end)
                wanted = end + size_from(end)
    except avro.Fault:
        # Whoever reads the file comes to it in its turn, and can say at which record.
        return [Piece(path)]
    finally:
        file.close()
    return pieces_between(path, places) if len(places) > 2 else [Piece(path)]


def pieces_of_parquet(path, length, size_from):
    file = parquet_file(path)
    try:
        groups = range(file.metadata.num_row_groups)
        sizes = [file.metadata.row_group(group).total_byte_size for group in groups]
    finally:
        file.close()
    pieces = []
    place = wanted = 0
    for group in groups:
        if place >= wanted:
            pieces.append(Piece(path, groups=[]))
            wanted = place + size_from(place)
        pieces[-1].groups.append(group)
        place += sizes[group]
    return pieces


PIECES = {
    "csv": pieces_of_csv,
    "json": pieces_of_json,
    "jsonl": pieces_of_jsonl,
    "avro": pieces_of_avro,
    "parquet": pieces_of_parquet,
}
