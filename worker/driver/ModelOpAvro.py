"""Reads and writes Avro: container files, and values by their schemas, with nothing but Python's own library.

Files are read by the schema that they carry. They are written by a *normalized* schema, which the contract of a job
has (``model_contract.json``): its worker has read the Avro schema already.

It must not know what the records are for. A Fault says what is wrong with the bytes, and never quotes them.
"""

import ModelOpPySparkDriver as driver

with driver.without_model_folders():
    import bz2
    import datetime
    import decimal
    import json
    import lzma
    import os
    import re
    import struct
    import zlib

MAX_BLOCK = 256 * 1024 * 1024
MAX_EMPTY_ITEMS = 1000000
MAX_DEPTH = 100
READ_BYTES = 256 * 1024

MAGIC = b"Obj\x01"
SYNC_BYTES = 16
EPOCH = datetime.datetime(1970, 1, 1)
EPOCH_UTC = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
EPOCH_DAY = EPOCH.date().toordinal()


class Fault(Exception):
    """Bytes or a schema that are not Avro's, or values that are not of a schema."""


def read_long(data, place):
    """A number, and where the next thing begins."""
    byte = data[place]
    place += 1
    value = byte & 0x7F
    shift = 7
    while byte & 0x80:
        if shift > 63:
            raise Fault("a number has no end")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return (value >> 1) ^ -(value & 1), place


def read_bytes(data, place):
    size, place = read_long(data, place)
    end = place + size
    if size < 0 or end > len(data):
        raise Fault("a value has no end")
    return data[place:end], end


def read_string(data, place):
    value, place = read_bytes(data, place)
    return value.decode("utf-8"), place


def read_boolean(data, place):
    return data[place] != 0, place + 1


def read_float(data, place, unpack=struct.Struct("<f").unpack_from):
    return unpack(data, place)[0], place + 4


def read_double(data, place, unpack=struct.Struct("<d").unpack_from):
    return unpack(data, place)[0], place + 8


def read_null(data, place):
    return None, place


READERS = {
    "null": read_null,
    "boolean": read_boolean,
    "int": read_long,
    "long": read_long,
    "float": read_float,
    "double": read_double,
    "bytes": read_bytes,
    "string": read_string,
}


class Decoder:
    """Makes functions that read values: ``(data, place) -> (value, next place)``, from the schema of a file."""

    def __init__(self):
        self._named = {}

    def of(self, schema, namespace="", depth=0):
        """The function for ``schema``, parsed JSON; raises Fault."""
        if depth > MAX_DEPTH:
            raise Fault("its schema is nested too deep")
        if isinstance(schema, list):
            return self._union([self.of(branch, namespace, depth + 1) for branch in schema])
        if isinstance(schema, str):
            return self._by_name(schema, namespace)
        if not isinstance(schema, dict):
            raise Fault("its schema is none")
        kind = schema.get("type")
        if isinstance(kind, (dict, list)):
            return self.of(kind, namespace, depth + 1)
        if kind == "array":
            return self._array(self.of(schema.get("items"), namespace, depth + 1))
        if kind == "map":
            return self._map(self.of(schema.get("values"), namespace, depth + 1))
        if kind in ("record", "error", "enum", "fixed"):
            return self._named_type(kind, schema, namespace, depth)
        return with_logical_type(schema, self._by_name(kind, namespace))

    def _by_name(self, name, namespace):
        if name in READERS:
            return READERS[name]
        full = name if "." in str(name) else "{}.{}".format(namespace, name).lstrip(".")
        found = self._named.get(full) or self._named.get(name)
        if found is None:
            raise Fault("its schema names a type that it does not have")
        # What is being defined is found there once it is.
        return lambda data, place: found[0](data, place)

    def _named_type(self, kind, schema, namespace, depth):
        name = str(schema.get("name"))
        if "." in name:
            namespace = name.rpartition(".")[0]
        else:
            namespace = schema.get("namespace", namespace) or ""
            name = "{}.{}".format(namespace, name).lstrip(".")
        holder = self._named[name] = [None]
        if kind == "enum":
            holder[0] = self._enum(schema.get("symbols", []))
        elif kind == "fixed":
            holder[0] = with_logical_type(schema, self._fixed(int(schema.get("size", 0))))
        else:
            fields = schema.get("fields", [])
            holder[0] = self._record(
                [(str(field.get("name")), self.of(field.get("type"), namespace, depth + 1)) for field in fields]
            )
        return holder[0]

    @staticmethod
    def _union(branches):
        def read(data, place):
            branch, place = read_long(data, place)
            if branch < 0:
                raise Fault("a union has no such branch")
            return branches[branch](data, place)

        return read

    @staticmethod
    def _record(fields):
        def read(data, place):
            record = {}
            for name, read_value in fields:
                record[name], place = read_value(data, place)
            return record, place

        return read

    @staticmethod
    def _enum(symbols):
        def read(data, place):
            number, place = read_long(data, place)
            if number < 0:
                raise Fault("an enum has no such symbol")
            return symbols[number], place

        return read

    @staticmethod
    def _fixed(size):
        def read(data, place):
            if place + size > len(data):
                raise Fault("a value has no end")
            return data[place : place + size], place + size

        return read

    @staticmethod
    def _items(data, place):
        """How many items a block of an array or a map has, and where they begin."""
        count, place = read_long(data, place)
        if count < 0:
            count = -count
            _, place = read_long(data, place)
        if count > max(len(data), MAX_EMPTY_ITEMS):
            raise Fault("an array has no end")
        return count, place

    def _array(self, read_item):
        def read(data, place):
            items = []
            count, place = self._items(data, place)
            while count:
                for _ in range(count):
                    item, place = read_item(data, place)
                    items.append(item)
                if len(items) > len(data) + MAX_EMPTY_ITEMS:
                    raise Fault("an array has no end")
                count, place = self._items(data, place)
            return items, place

        return read

    def _map(self, read_value):
        def read(data, place):
            values = {}
            count, place = self._items(data, place)
            while count:
                for _ in range(count):
                    key, place = read_string(data, place)
                    values[key], place = read_value(data, place)
                count, place = self._items(data, place)
            return values, place

        return read


def with_logical_type(schema, read):
    """``read``, or one that makes of its values what the logical type of ``schema`` stands for."""
    logical = schema.get("logicalType")
    if logical == "decimal":
        scale = int(schema.get("scale", 0))
        return converted(read, lambda raw: decimal.Decimal(int.from_bytes(raw, "big", signed=True)).scaleb(-scale))
    convert = LOGICAL_FROM_NUMBER.get(logical)
    if convert is None or schema.get("type") not in ("int", "long"):
        return read
    return converted(read, convert)


def converted(read, convert):
    def read_converted(data, place):
        value, place = read(data, place)
        try:
            return convert(value), place
        except (ValueError, OverflowError):
            # Python's calendar ends in the year 9999.
            return value, place

    return read_converted


def time_of(microseconds):
    return (EPOCH + datetime.timedelta(microseconds=microseconds)).time()


LOGICAL_FROM_NUMBER = {
    "date": lambda days: datetime.date.fromordinal(EPOCH_DAY + days),
    "time-millis": lambda count: time_of(count * 1000),
    "time-micros": time_of,
    "timestamp-millis": lambda count: EPOCH_UTC + datetime.timedelta(milliseconds=count),
    "timestamp-micros": lambda count: EPOCH_UTC + datetime.timedelta(microseconds=count),
    "local-timestamp-millis": lambda count: EPOCH + datetime.timedelta(milliseconds=count),
    "local-timestamp-micros": lambda count: EPOCH + datetime.timedelta(microseconds=count),
}


def inflate(data):
    stream = zlib.decompressobj(-15)
    plain = stream.decompress(data, MAX_BLOCK)
    if stream.unconsumed_tail:
        raise Fault("a block has more than {} MiB".format(MAX_BLOCK // 1024 // 1024))
    return plain


def bounded_decompression(make):
    def decompress(data):
        stream = make()
        plain = stream.decompress(data, MAX_BLOCK)
        if not stream.eof:
            raise Fault("a block has more than {} MiB, or no end".format(MAX_BLOCK // 1024 // 1024))
        return plain

    return decompress


def snappy_codec():
    snappy = codec_module("snappy")
    # Four bytes of check sum follow the data.
    return lambda data: snappy.decompress(bytes(data[:-4]))


def zstandard_codec():
    try:
        return codec_module("compression.zstd").decompress
    except Fault:
        zstandard = codec_module("zstandard")
    return lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(bytes(data))


def codec_module(name):
    """The module ``name``, which Python may not have; raises Fault."""
    try:
        return __import__(name, fromlist=["decompress"])
    except ImportError:
        raise Fault(
            "its codec needs {}, which this runtime does not have: name it in the model's requirements "
            "(an asset with the role REQUIRED_LIBRARIES)".format(name)
        )


CODECS = {
    "null": lambda: bytes,
    "deflate": lambda: inflate,
    "bzip2": lambda: bounded_decompression(bz2.BZ2Decompressor),
    "xz": lambda: bounded_decompression(lzma.LZMADecompressor),
    "snappy": snappy_codec,
    "zstandard": zstandard_codec,
}


class AvroFile:
    """An Avro container file: its schema, and its blocks."""

    def __init__(self, path):
        """Reads the head of ``path``; raises Fault and OSError."""
        self._file = open(path, "rb", buffering=READ_BYTES)
        self._size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.read(4) != MAGIC:
                raise Fault("it does not begin like one")
            self.metadata = self._metadata()
            self.sync = self._exactly(SYNC_BYTES)
            self.schema = json.loads(self.metadata["avro.schema"].decode("utf-8"))
            self.codec = self.metadata.get("avro.codec", b"null").decode("ascii")
        except (Fault, ValueError, KeyError, RecursionError) as error:
            self.close()
            what = str(error) if isinstance(error, Fault) else "its head is damaged"
            raise Fault(what)

    @property
    def raw(self):
        """The file of the system's."""
        return self._file.raw

    def close(self):
        self._file.close()

    def tell(self):
        return self._file.tell()

    def seek(self, place):
        self._file.seek(place)

    def blocks(self, end=None, with_data=True):
        """For each block until ``end``: how many records it has, and its bytes or, without data, where it ends."""
        while end is None or self._file.tell() < end:
            count = self._number(at_end_is_well=True)
            if count is None:
                return
            size = self._number()
            if size < 0 or count < 0 or size > self._size:
                raise Fault("a block has no end")
            if with_data:
                if size > MAX_BLOCK:
                    raise Fault("a block has more than {} MiB".format(MAX_BLOCK // 1024 // 1024))
                data = self._exactly(size)
            else:
                data = self._file.seek(size, os.SEEK_CUR) + SYNC_BYTES
            if self._exactly(SYNC_BYTES) != self.sync:
                raise Fault("the mark between two blocks is missing")
            yield count, data

    def _exactly(self, size):
        if size > self._size:
            raise Fault("it ends too early")
        data = self._file.read(size)
        if len(data) < size:
            raise Fault("it ends too early")
        return data

    def _number(self, at_end_is_well=False):
        data = self._file.read(1)
        if not data and at_end_is_well:
            return None
        while data and data[-1] & 0x80 and len(data) < 11:
            byte = self._file.read(1)
            if not byte:
                break
            data += byte
        try:
            return read_long(data, 0)[0]
        except IndexError:
            raise Fault("it ends too early")

    def _metadata(self):
        found = {}
        while True:
            count = self._number()
            if count == 0:
                return found
            if count < 0:
                count = -count
                self._number()
            for _ in range(count):
                key = self._exactly(max(self._number(), 0)).decode("utf-8")
                found[key] = self._exactly(max(self._number(), 0))


# --- Values to bytes --------------------------------------------------------------------------------------------------


def utf8(text):
    """``text`` as bytes; lone surrogates become U+FFFD."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return driver.without_lone_surrogates(text).encode("utf-8")


def put_long(data, value):
    value = (value << 1) ^ (value >> 63)
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)


def put_bytes(data, value):
    put_long(data, len(value))
    data += value


class Encoder:
    """Makes Avro schemas of normalized ones, and functions that write values of them."""

    def __init__(self):
        self._names = {}
        self._records = {}

    def schema(self, record, name):
        """The Avro schema, as JSON, of the record type ``record``."""
        return {"type": "record", "name": self._name(record.get("name") or name), "fields": self._fields(record)}

    def _name(self, wanted):
        """A name that Avro takes and that no other type of this schema has."""
        parts = [re.sub(r"[^A-Za-z0-9_]", "_", part, flags=re.ASCII) or "_" for part in str(wanted).split(".")]
        name = ".".join(part if not part[0].isdigit() else "_" + part for part in parts)
        taken = self._names.setdefault(name, 0)
        self._names[name] += 1
        return name if not taken else "{}_{}".format(name, taken)

    def _fields(self, record):
        fields = []
        for field in record["fields"]:
            kind = self._type(field["type"])
            if field.get("nullable") and kind != "null" and not (isinstance(kind, list) and "null" in kind):
                kind = ["null"] + (kind if isinstance(kind, list) else [kind])
            fields.append({"name": field["name"], "type": kind})
        return fields

    def _type(self, kind):
        if isinstance(kind, str):
            return kind
        what = kind["kind"]
        if what == "enum":
            return {"type": "enum", "name": self._name(kind.get("name") or "enum"), "symbols": kind["symbols"]}
        if what == "fixed":
            return {"type": "fixed", "name": self._name(kind.get("name") or "fixed"), "size": kind["size"]}
        if what == "array":
            return {"type": "array", "items": self._type(kind["items"])}
        if what == "map":
            return {"type": "map", "values": self._type(kind["values"])}
        if what == "union":
            return [self._type(one) for one in kind["of"]]
        if what == "ref":
            return self._records.get(kind["name"], kind["name"])
        if what == "record":
            name = self._records[kind.get("name")] = self._name(kind.get("name") or "record")
            return {"type": "record", "name": name, "fields": self._fields(kind)}
        known = {key: kind[key] for key in ("precision", "scale") if kind.get(key) is not None}
        base = self._type(kind["of"])
        base = base if isinstance(base, dict) else {"type": base}
        return dict(base, logicalType=kind["logical"], **known)

    def record(self, record, named=None):
        """A function that appends a record to bytes; it raises Fault, with a field and never a value."""
        named = {} if named is None else named
        fields = []
        # A type that refers to itself finds itself.
        holder = named.setdefault(record.get("name"), [None])
        for field in record["fields"]:
            put = self._put(field["type"], named)
            if field.get("nullable") and field["type"] != "null":
                put = self._put_nullable(put, field["type"], named)
            fields.append((field["name"], put))

        def put_record(data, value):
            if not isinstance(value, dict):
                raise Fault("is not a record")
            for name, put in fields:
                try:
                    put(data, value.get(name))
                except Fault as fault:
                    raise Fault("{}: {}".format(name, fault))

        holder[0] = put_record
        return put_record

    def _put_nullable(self, put, kind, named):
        if isinstance(kind, dict) and kind["kind"] == "union":
            if "null" in kind["of"]:
                return put
            return self._put_union(["null"] + kind["of"], named)

        def put_nullable(data, value):
            if value is None:
                data.append(0)
            else:
                data.append(2)
                put(data, value)

        return put_nullable

    def _put(self, kind, named):
        if isinstance(kind, str):
            return PUTS[kind]
        what = kind["kind"]
        if what == "enum":
            return self._put_enum({symbol: number for number, symbol in enumerate(kind["symbols"])})
        if what == "fixed":
            return self._put_fixed(kind["size"])
        if what == "array":
            return self._put_array(self._put(kind["items"], named))
        if what == "map":
            return self._put_map(self._put(kind["values"], named))
        if what == "union":
            return self._put_union(kind["of"], named)
        if what == "record":
            return self.record(kind, named)
        if what == "ref":
            holder = named.setdefault(kind["name"], [None])
            return lambda data, value: holder[0](data, value)
        return self._put_logical(kind, self._put(kind["of"], named))

    @staticmethod
    def _put_enum(numbers):
        def put(data, value):
            if not isinstance(value, str) or value not in numbers:
                raise Fault("is none of the symbols")
            put_long(data, numbers[value])

        return put

    @staticmethod
    def _put_fixed(size):
        def put(data, value):
            value = as_bytes(value)
            if len(value) != size:
                raise Fault("is not {} bytes long".format(size))
            data += value

        return put

    @staticmethod
    def _put_array(put_item):
        def put(data, value):
            if not isinstance(value, (list, tuple)):
                raise Fault("is not a list")
            if value:
                put_long(data, len(value))
                for item in value:
                    put_item(data, item)
            data.append(0)

        return put

    @staticmethod
    def _put_map(put_value):
        def put(data, value):
            if not isinstance(value, dict):
                raise Fault("is not a map")
            if value:
                put_long(data, len(value))
                for key, item in value.items():
                    put_string(data, key)
                    put_value(data, item)
            data.append(0)

        return put

    def _put_union(self, kinds, named):
        branches = [self._put(kind, named) for kind in kinds]

        def put(data, value):
            begin = len(data)
            for number, put_branch in enumerate(branches):
                try:
                    put_long(data, number)
                    put_branch(data, value)
                    return
                except Fault:
                    del data[begin:]
            raise Fault("is none of what the schema allows")

        return put

    @staticmethod
    def _put_logical(kind, put):
        convert = LOGICAL_TO_NUMBER.get(kind["logical"])
        if kind["logical"] == "decimal":
            scale = kind.get("scale") or 0
            size = kind["of"]["size"] if isinstance(kind["of"], dict) else None
            return lambda data, value: put(data, decimal_bytes(value, scale, size))
        if convert is None:
            return put

        def put_logical(data, value):
            if not isinstance(value, int):
                try:
                    value = convert(value)
                except (TypeError, ValueError, AttributeError):
                    raise Fault("is not a {}".format(kind["logical"]))
            put(data, value)

        return put_logical


def as_bytes(value):
    if isinstance(value, str):
        try:
            # How Avro writes bytes in JSON.
            return value.encode("latin-1")
        except UnicodeEncodeError:
            raise Fault("is not bytes")
    if not isinstance(value, bytes):
        raise Fault("is not bytes")
    return value


def decimal_bytes(value, scale, size):
    """The bytes of a decimal, as few as do, or ``size``."""
    if isinstance(value, bytes):
        return value
    try:
        with decimal.localcontext() as context:
            context.prec = 1000
            unscaled = decimal.Decimal(str(value) if isinstance(value, float) else value).scaleb(scale)
            if unscaled != unscaled.to_integral_value():
                raise Fault("has more than {} decimal places".format(scale))
            unscaled = int(unscaled)
        return unscaled.to_bytes(size or unscaled.bit_length() // 8 + 1, "big", signed=True)
    except (TypeError, ValueError, ArithmeticError):
        raise Fault("is not a decimal")


def put_null(data, value):
    if value is not None:
        raise Fault("is not null")


def put_boolean(data, value):
    if value is not True and value is not False:
        raise Fault("is not a boolean")
    data.append(1 if value else 0)


def put_whole(bits):
    least, most = -(1 << bits - 1), (1 << bits - 1) - 1

    def put(data, value):
        if not isinstance(value, int) or isinstance(value, bool):
            raise Fault("is not a whole number")
        if not least <= value <= most:
            raise Fault("does not fit into {} bits".format(bits))
        put_long(data, value)

    return put


def put_real(code):
    pack = struct.Struct(code).pack

    def put(data, value):
        if isinstance(value, bool) or not isinstance(value, (int, float, decimal.Decimal)):
            # NaN is None in the form of an output record.
            if value is not None:
                raise Fault("is not a number")
            value = float("nan")
        try:
            data += pack(float(value))
        except OverflowError:
            raise Fault("is too big")

    return put


def put_string(data, value):
    if not isinstance(value, str):
        raise Fault("is not a string")
    put_bytes(data, utf8(value))


PUTS = {
    "null": put_null,
    "boolean": put_boolean,
    "int": put_whole(32),
    "long": put_whole(64),
    "float": put_real("<f"),
    "double": put_real("<d"),
    "bytes": lambda data, value: put_bytes(data, as_bytes(value)),
    "string": put_string,
}


def iso(kind):
    """A function that takes a date or time, or its ISO 8601 text."""

    def read(value):
        if isinstance(value, str):
            value = kind.fromisoformat(value.replace("Z", "+00:00") if value.endswith("Z") else value)
        return value

    return read


_date, _time, _moment = iso(datetime.date), iso(datetime.time), iso(datetime.datetime)


def day_number(value):
    return _date(value).toordinal() - EPOCH_DAY


def microseconds_of_day(value):
    value = _time(value)
    return ((value.hour * 60 + value.minute) * 60 + value.second) * 1000000 + value.microsecond


def microseconds_since_epoch(value):
    value = _moment(value)
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    since = value - EPOCH_UTC if value.tzinfo is not None else value - EPOCH
    return (since.days * 86400 + since.seconds) * 1000000 + since.microseconds


LOGICAL_TO_NUMBER = {
    "date": day_number,
    "time-millis": lambda value: microseconds_of_day(value) // 1000,
    "time-micros": microseconds_of_day,
    "timestamp-millis": lambda value: microseconds_since_epoch(value) // 1000,
    "timestamp-micros": microseconds_since_epoch,
    "local-timestamp-millis": lambda value: microseconds_since_epoch(value) // 1000,
    "local-timestamp-micros": microseconds_since_epoch,
}
