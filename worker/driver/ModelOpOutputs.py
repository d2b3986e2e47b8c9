"""Writes the output records of record models: CSV, JSON, JSON lines, Avro and Parquet.

Every writer writes a *part*: a complete file of its format, of which it also knows where the records begin and end, so
that one file, or a folder, can be made of the parts that several processes wrote. It knows files of this machine only,
and must not know the model nor Spark.

* csv: the header has the schema's names, then whatever other keys the records have in the order in which they first
  come, as pandas does for a list of dicts; a key that a record lacks is an empty value. None and NaN are empty, bool is
  ``true`` and ``false``, lists and objects are JSON, bytes are base64.
* json: one array. jsonl: an object on each line. Both in the JSON form that the driver's text describes.
* avro, parquet: with the output's schema, or else with one made from all that was written: every field nullable, whole
  numbers long, other numbers double, and what has several types text.
"""

import ModelOpAvro as avro
import ModelOpFormats as formats
import ModelOpPySparkDriver as driver

with driver.without_model_folders():
    import csv
    import datetime
    import decimal
    import errno
    import io
    import json
    import operator
    import os
    import pickle
    import zlib

ContractFault = driver.ContractFault

WRITE_BYTES = 256 * 1024
COPY_BYTES = 1024 * 1024
BLOCK_BYTES = 64 * 1024
RECORDS_AT_ONCE = 100
PARQUET_RECORDS = 10000


# --- The form of output records --------------------------------------------------------------------------------------


class FormConversion(driver.ResultsConversion):
    """The JSON form of one output record."""

    has = "an output record has"
    is_bigger = "an output record is bigger"


class PlainConversion(FormConversion):
    """An output record for formats that know more than JSON: bytes, dates and decimals stay what they are."""

    def _scalar(self, value):
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        if isinstance(value, PLAIN_CLASSES) and not driver.is_missing(value):
            return value
        return super()._scalar(value)


PLAIN_CLASSES = (datetime.date, datetime.time, decimal.Decimal)
SIMPLE = frozenset((str, int, bool, type(None)))
"""What has the same form everywhere."""


class JsonForm(json.JSONEncoder):
    """The encoder of output records, holding the methods as they were before a model could replace them."""

    encode = json.JSONEncoder.encode
    iterencode = json.JSONEncoder.iterencode
    default = json.JSONEncoder.default


_encode = JsonForm(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _chunks_of():
    """What gives the JSON of a dict in chunks.

    The method of the encoder makes one of these for each value, which takes longer than the writing of a small one.
    """
    form = JsonForm(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        make, quote = json.encoder.c_make_encoder, json.encoder.encode_basestring
        # Without a memory of where it is: what contains itself is nested too deep.
        chunks = make(None, form.default, quote, None, ":", ",", False, False, False)
        probe = {"a": ["\u00e9\"", 1.5, None, True, {}]}
        if "".join(chunks(probe, 0)) == form.encode(probe):
            return chunks
    except (AttributeError, TypeError):
        # It is no public part of Python's, and may be missing or have changed.
        pass
    return lambda value, depth: (form.encode(value),)


_chunks = _chunks_of()
_join = "".join


def json_text(record):
    """The JSON of an output record; raises ContractFault."""
    try:
        return _join(_chunks(record, 0))
    except (TypeError, ValueError, RecursionError):
        pass
    # NaN, a number of numpy's or something else that JSON does not know.
    return _encode(FormConversion().convert(record))


def plain(record):
    """A copy of ``record`` for the formats that know more than JSON; the model may change its own later."""
    for value in record.values():
        if value.__class__ not in SIMPLE and not (value.__class__ is float and value - value == 0):
            return PlainConversion().convert(record)
    return dict(record)


# --- Writers ---------------------------------------------------------------------------------------------------------


class Part:
    """What one writer wrote: a complete file whose records stand between ``prefix`` and ``suffix`` bytes at its ends.

    ``columns`` are the names that the records of a CSV part have, ``header`` those of its first line, which lacks what
    came later. ``mark`` is the synchronization mark of an Avro part.
    """

    def __init__(self, path, count=0, prefix=0, suffix=0, header=None, columns=None):
        self.path = path
        self.count = count
        self.prefix = prefix
        self.suffix = suffix
        self.header = header
        self.columns = columns


class CsvWriter:
    """Writes a CSV part."""

    def __init__(self, path, output):
        self._part = Part(path, columns=[])
        self._file = open(path, "w", encoding="utf-8", errors="surrogatepass", newline="", buffering=WRITE_BYTES)
        self._write_row = csv.writer(self._file, lineterminator="\n").writerow
        self._values_of = None
        if output["schema"]:
            self._part.columns = [field["name"] for field in output["schema"]["fields"]]
            self._write_header()

    def _write_header(self):
        part = self._part
        part.header = list(part.columns)
        self._write_row(part.header)
        self._file.flush()
        part.prefix = os.stat(part.path).st_size
        self._remember_columns()

    def _remember_columns(self):
        columns = self._part.columns
        if len(columns) > formats.MAX_CSV_COLUMNS:
            raise ContractFault("the output records have more than {} different keys".format(formats.MAX_CSV_COLUMNS))
        # With one name it would give no tuple.
        self._values_of = operator.itemgetter(*columns) if len(columns) > 1 else None

    def write(self, record):
        """Takes one record."""
        part = self._part
        part.count += 1
        try:
            if len(record) != len(part.columns):
                raise KeyError
            values = self._values_of(record)
        except (KeyError, TypeError):
            values = self._uneven(record)
        self._write_row([value if value.__class__ in SIMPLE_CELLS else cell_of(value) for value in values])

    def _uneven(self, record):
        """The values of a record that does not have just the keys that were there before."""
        if not all(key.__class__ is str for key in record):
            record = FormConversion().convert(record)
        part = self._part
        known = set(part.columns)
        new = [key for key in record if key not in known]
        if new:
            part.columns = part.columns + new
            if part.header is None:
                self._write_header()
            else:
                self._remember_columns()
        return [record.get(name) for name in part.columns]

    def close(self):
        """Finishes the part and returns it."""
        self._file.close()
        return self._part

    def abandon(self):
        """Closes what has been opened; the part is worth nothing."""
        self._file.close()


SIMPLE_CELLS = frozenset((str, int, type(None)))


def cell_of(value):
    """The text of a value in a CSV file."""
    if value is True:
        return "true"
    if value is False:
        return "false"
    if value.__class__ is float:
        return value if value - value == 0 else None
    form = FormConversion().convert(value)
    if isinstance(form, (dict, list)):
        return _encode(form)
    return cell_of(form) if isinstance(form, bool) else form


class BytesWriter:
    """What the writers that count their bytes have in common."""

    def __init__(self, path):
        self._part = Part(path)
        self._file = open(path, "wb", buffering=WRITE_BYTES)

    def abandon(self):
        """Closes what has been opened; the part is worth nothing."""
        self._file.close()


class JsonLinesWriter(BytesWriter):
    """Writes a part with an object on each line."""

    between = b"\n"
    prefix = b""
    suffix = b""
    end = b"\n"

    def __init__(self, path, output):
        super().__init__(path)
        self._texts = []
        self._part.prefix = len(self.prefix)
        self._part.suffix = len(self.suffix)
        self._file.write(self.prefix)
        self._began = False

    def write(self, record):
        """Takes one record."""
        texts = self._texts
        texts.append(json_text(record))
        if len(texts) >= RECORDS_AT_ONCE:
            self._write_texts()

    def _write_texts(self):
        texts = self._texts
        if texts:
            self._part.count += len(texts)
            if self._began:
                self._file.write(self.between)
            self._began = True
            self._file.write(avro.utf8(self.between.decode("ascii").join(texts)))
            self._texts = []

    def close(self):
        """Finishes the part and returns it."""
        self._write_texts()
        if self._began:
            self._file.write(self.end)
        self._file.write(self.suffix)
        self._file.close()
        return self._part


class JsonWriter(JsonLinesWriter):
    """Writes a part that is one array."""

    between = b",\n"
    prefix = b"[\n"
    suffix = b"\n]\n"
    end = b""


class PickledWriter(BytesWriter):
    """Writes a part in which records wait until the schema of all of them can be known."""

    def __init__(self, path, output):
        super().__init__(path)
        self._records = []

    def write(self, record):
        """Takes one record."""
        self._records.append(plain(record))
        if len(self._records) >= RECORDS_AT_ONCE:
            self._write_records()

    def _write_records(self):
        self._part.count += len(self._records)
        pickle.dump(self._records, self._file, 4)
        self._records = []

    def close(self):
        """Finishes the part and returns it."""
        self._write_records()
        self._file.close()
        return self._part


def waiting_records(parts):
    """The records of the parts that a PickledWriter wrote, in order."""
    for part in parts:
        yield from formats.read_waiting(formats.Piece(part.path), None)


class AvroWriter(BytesWriter):
    """Writes an Avro part with the output's schema."""

    def __init__(self, path, output):
        super().__init__(path)
        encoder = avro.Encoder()
        schema = encoder.schema(output["schema"], output["name"])
        self._encode = encoder.record(output["schema"])
        # The parts of one file have to have the same mark.
        self._mark = bytes.fromhex(output["mark"])
        metadata = {"avro.schema": _encode(schema).encode("utf-8"), "avro.codec": b"deflate"}
        head = bytearray(avro.MAGIC)
        avro.put_long(head, len(metadata))
        for key, value in metadata.items():
            avro.put_bytes(head, key.encode("ascii"))
            avro.put_bytes(head, value)
        avro.put_long(head, 0)
        head += self._mark
        self._file.write(head)
        self._part.prefix = len(head)
        self._block = bytearray()
        self._count = 0

    def write(self, record):
        """Takes one record; raises ContractFault when it is not of the schema."""
        begin = len(self._block)
        try:
            self._encode(self._block, plain(record))
        except avro.Fault as fault:
            del self._block[begin:]
            raise ContractFault("an output record is not what its Avro schema says: {}".format(fault))
        self._count += 1
        if len(self._block) >= BLOCK_BYTES:
            self._write_block()

    def _write_block(self):
        if self._count:
            stream = zlib.compressobj(6, zlib.DEFLATED, -15)
            data = stream.compress(bytes(self._block)) + stream.flush()
            head = bytearray()
            avro.put_long(head, self._count)
            avro.put_long(head, len(data))
            self._file.write(head + data + self._mark)
            self._part.count += self._count
            self._block = bytearray()
            self._count = 0

    def close(self):
        """Finishes the part and returns it."""
        self._write_block()
        self._file.close()
        return self._part


class ParquetWriter:
    """Writes a Parquet part with the output's schema, by pyarrow."""

    def __init__(self, path, output):
        formats.module("pyarrow", "a Parquet file")
        import pyarrow
        import pyarrow.parquet

        self._pyarrow = pyarrow
        self._part = Part(path)
        self._schema = arrow_schema(pyarrow, output["schema"])
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema)
        self._records = []

    def write(self, record):
        """Takes one record; raises ContractFault when it is not of the schema, for it and those before it."""
        self._records.append(plain(record))
        self._part.count += 1
        if len(self._records) >= PARQUET_RECORDS:
            self._write_records()

    def _write_records(self):
        try:
            self._writer.write_table(self._pyarrow.Table.from_pylist(self._records, schema=self._schema))
        except (self._pyarrow.ArrowException, TypeError, ValueError, OverflowError):
            # Its own words quote the value.
            raise ContractFault("an output record is not what its schema says: Parquet cannot hold it")
        self._records = []

    def close(self):
        """Finishes the part and returns it."""
        if self._records:
            self._write_records()
        self._writer.close()
        return self._part

    def abandon(self):
        """Closes what has been opened; the part is worth nothing."""
        self._writer.close()


def arrow_schema(pyarrow, schema):
    """The schema of pyarrow for a normalized one."""
    simple = {
        "null": pyarrow.null(),
        "boolean": pyarrow.bool_(),
        "int": pyarrow.int32(),
        "long": pyarrow.int64(),
        "float": pyarrow.float32(),
        "double": pyarrow.float64(),
        "string": pyarrow.string(),
        "bytes": pyarrow.binary(),
    }
    logical = {
        "date": pyarrow.date32(),
        "time-millis": pyarrow.time32("ms"),
        "time-micros": pyarrow.time64("us"),
        "timestamp-millis": pyarrow.timestamp("ms", "UTC"),
        "timestamp-micros": pyarrow.timestamp("us", "UTC"),
        "local-timestamp-millis": pyarrow.timestamp("ms"),
        "local-timestamp-micros": pyarrow.timestamp("us"),
    }

    def fields(record):
        return [pyarrow.field(field["name"], arrow(field["type"])) for field in record["fields"]]

    def arrow(kind):
        if isinstance(kind, str):
            return simple[kind]
        what = kind["kind"]
        if what == "enum":
            return simple["string"]
        if what == "fixed":
            return pyarrow.binary(kind["size"])
        if what == "array":
            return pyarrow.list_(arrow(kind["items"]))
        if what == "map":
            return pyarrow.map_(simple["string"], arrow(kind["values"]))
        if what == "record":
            return pyarrow.struct(fields(kind))
        if what == "logical":
            if kind["logical"] == "decimal":
                return pyarrow.decimal128(min(kind.get("precision") or 38, 38), kind.get("scale") or 0)
            return logical.get(kind["logical"]) or arrow(kind["of"])
        if what == "union":
            rest = [one for one in kind["of"] if one != "null"]
            if len(rest) == 1:
                return arrow(rest[0])
        raise ContractFault("Parquet has no unions and no recursive types, which the output's schema has")

    return pyarrow.schema(fields(schema))


WRITERS = {
    "csv": CsvWriter,
    "json": JsonWriter,
    "jsonl": JsonLinesWriter,
    "avro": AvroWriter,
    "parquet": ParquetWriter,
}


def part_writer(path, output):
    """A writer of a part of ``output`` in the file ``path``. Raises ContractFault and OSError."""
    if must_wait(output):
        return PickledWriter(path, output)
    return WRITERS[output["format"]](path, output)


def must_wait(output):
    """Whether the parts of ``output`` cannot be written before all records are known, or not in pieces."""
    return output["format"] == "parquet" or (output["format"] == "avro" and not output["schema"])


# --- A schema for what has none --------------------------------------------------------------------------------------


class Inferred:
    """The type that holds all of some values: what ``add`` was given."""

    def __init__(self):
        self._kinds = set()
        self._items = None
        self._fields = {}

    def add(self, value):
        """Takes one more value, in its plain form."""
        if value is None:
            return
        if isinstance(value, dict):
            self._kinds.add("record")
            for name, item in value.items():
                if name not in self._fields:
                    if len(self._fields) >= formats.MAX_CSV_COLUMNS:
                        raise ContractFault(
                            "the output records have more than {} different keys".format(formats.MAX_CSV_COLUMNS)
                        )
                    self._fields[name] = Inferred()
                self._fields[name].add(item)
        elif isinstance(value, list):
            self._kinds.add("array")
            self._items = self._items or Inferred()
            for item in value:
                self._items.add(item)
        else:
            self._kinds.add(self._kind_of(value))

    @staticmethod
    def _kind_of(value):
        if isinstance(value, bool):
            return "boolean"
        if isinstance(value, int):
            return "long" if -(1 << 63) <= value < 1 << 63 else "double"
        if isinstance(value, (float, decimal.Decimal)):
            return "double"
        if isinstance(value, bytes):
            return "bytes"
        if isinstance(value, datetime.datetime):
            return "timestamp-micros" if value.tzinfo else "local-timestamp-micros"
        if isinstance(value, datetime.date):
            return "date"
        return "string"

    def kind(self, name):
        """The normalized type."""
        kinds = self._kinds
        if not kinds:
            return "string"
        if kinds == {"record"}:
            return dict(self.schema(name), kind="record")
        if kinds == {"array"}:
            return {"kind": "array", "items": {"kind": "union", "of": ["null", self._items.kind(name + "_item")]}}
        if len(kinds) == 1:
            kind = next(iter(kinds))
            base = {"date": "int", "timestamp-micros": "long", "local-timestamp-micros": "long"}.get(kind)
            return {"kind": "logical", "logical": kind, "of": base} if base else kind
        return "double" if kinds == {"long", "double"} else "string"

    def schema(self, name="record"):
        """The normalized schema of records."""
        fields = [
            {"name": key, "type": inferred.kind("{}_{}".format(name, key)), "nullable": True}
            for key, inferred in self._fields.items()
        ]
        return {"name": name, "fields": fields}


def fitted(value, kind):
    """``value`` for a type that was inferred: text where it has several types."""
    if value is None:
        return None
    if kind == "string":
        if isinstance(value, str):
            return value
        form = FormConversion().convert(value)
        return form if isinstance(form, str) else _encode(form)
    if kind == "double":
        return float(value)
    if isinstance(kind, dict) and kind["kind"] == "record":
        return {field["name"]: fitted(value.get(field["name"]), field["type"]) for field in kind["fields"]}
    if isinstance(kind, dict) and kind["kind"] == "array":
        return [fitted(item, kind["items"]["of"][1]) for item in value]
    return value


# --- From parts to outputs -------------------------------------------------------------------------------------------


def assemble_file(parts, output, path, store=None):
    """Makes the file ``path`` of the parts, which are used up; raises ContractFault and OSError.

    ``store`` can write Parquet where pyarrow is not there.
    """
    if must_wait(output):
        write_waiting(parts, output, path, store)
        return
    compression = formats.compression_of(output["location"]) if output["format"] in formats.TEXT_FORMATS else None
    columns = even_columns(parts)
    if len(parts) == 1 and not compression and (columns is None or parts[0].header == columns):
        os.replace(parts[0].path, path)
        return
    opened = formats.COMPRESSIONS[compression](path, "wb") if compression else open(path, "wb", buffering=WRITE_BYTES)
    with opened as file:
        between = b",\n" if output["format"] == "json" else b""
        filled = [part for part in parts if part.count] or parts[:1]
        if columns is not None:
            file.write(csv_line(columns))
        for place, part in enumerate(filled):
            if columns is not None and part.header != columns:
                rewrite_rows(part, columns, file)
                continue
            last = place == len(filled) - 1
            begin = part.prefix if place or columns is not None else 0
            copy_bytes(part, begin, 0 if last else part.suffix, file)
            if not last:
                file.write(between)
    remove_parts(parts)


def assemble_folder(parts, output, path, store=None):
    """Makes the folder ``path``, with a file for each part, which are used up, and ``_SUCCESS``."""
    os.mkdir(path)
    ending = "." + output["format"]
    if must_wait(output):
        write_waiting(parts, output, os.path.join(path, "part-00000" + ending), store)
        parts = []
    filled = [part for part in parts if part.count] or parts[:1]
    columns = even_columns(filled)
    for number, part in enumerate(filled):
        target = os.path.join(path, "part-{:05}{}".format(number, ending))
        if columns is None or part.header == columns:
            os.replace(part.path, target)
            continue
        with open(target, "wb", buffering=WRITE_BYTES) as file:
            file.write(csv_line(columns))
            rewrite_rows(part, columns, file)
    remove_parts(parts)
    open(os.path.join(path, "_SUCCESS"), "wb").close()


def remove_parts(parts):
    """Removes what is left of the parts."""
    for part in parts:
        try:
            os.unlink(part.path)
        except FileNotFoundError:
            continue


def even_columns(parts):
    """The columns of all CSV parts, those that come first first; None when they have none."""
    columns = {}
    for part in parts:
        columns.update(dict.fromkeys(part.columns or ()))
    if len(columns) > formats.MAX_CSV_COLUMNS:
        raise ContractFault("the output records have more than {} different keys".format(formats.MAX_CSV_COLUMNS))
    return list(columns) or None


def csv_line(values):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(values)
    return avro.utf8(text.getvalue())


def rewrite_rows(part, columns, file):
    """Copies the rows of a CSV part to ``file`` with ``columns`` as their columns."""
    places = [part.columns.index(name) if name in part.columns else -1 for name in columns]
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(file, "utf-8", errors="surrogatepass", newline="", write_through=False)
    write_row = csv.writer(text, lineterminator="\n").writerow
    with open(part.path, "rb", buffering=WRITE_BYTES) as source:
        source.seek(part.prefix)
        for row in csv.reader(io.TextIOWrapper(source, "utf-8", errors="surrogatepass", newline="")):
            width = len(row)
            write_row([row[place] if 0 <= place < width else "" for place in places])
    text.detach()


def copy_bytes(part, begin, left_out, file):
    """Copies the bytes of a part from ``begin`` on to ``file``, but not the last ``left_out``."""
    left = os.stat(part.path).st_size - begin - left_out
    with open(part.path, "rb", buffering=0) as source:
        source.seek(begin)
        while left > 0:
            block = source.read(min(COPY_BYTES, left))
            if not block:
                raise OSError(errno.EIO, "a part of the output has been cut off")
            file.write(block)
            left -= len(block)


def write_waiting(parts, output, path, store):
    """Writes what a PickledWriter kept, now that the types of all records can be known."""
    schema = output["schema"]
    inferred = None
    if not schema:
        inferred = Inferred()
        for record in waiting_records(parts):
            inferred.add(record)
        schema = inferred.schema()
    records = waiting_records(parts)
    if inferred is not None:
        kind = dict(schema, kind="record")
        records = (fitted(record, kind) for record in records)
    if output["format"] == "parquet" and store is not None and not formats.has_module("pyarrow"):
        store.write_parquet(records, schema, path)
        remove_parts(parts)
        return
    writer = WRITERS[output["format"]](path, dict(output, schema=schema))
    try:
        for record in records:
            writer.write(record)
    except BaseException:
        writer.abandon()
        raise
    writer.close()
    remove_parts(parts)
