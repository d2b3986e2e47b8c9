"""Checks records by their schemas, with code that is made for each schema once.

The schemas are the *normalized* ones of a job's contract (``model_contract.json``). A check takes a record and returns
None, or what is wrong with it: a list of (field, reason), where a field is a path of names of the schema (``a.b``,
``a[]`` for the items of a list, ``a{}`` for the values of a map) and the reason is one of a few fixed texts. Nothing of
a record, not even the name of a field that the schema does not know, gets into either.

* A field may be missing when it has a default or is ``scoringOptional``; no default is filled in: a check changes
  nothing, so that a model meets the same records whether checks are on or off.
* Fields that the schema does not know are well, as they are for Avro's readers, and reach the model.
* A bool is no number; an int does for a float or double, a float never for an int. int and long have their 32 and 64
  bits. Numbers of numpy's do for Python's, and NaN and NA do for null where null is allowed, as they come out of
  frames.
* bytes and fixed may be text with characters up to U+00FF, as Avro has them in JSON. A date, time or timestamp may be
  the number that Avro has, Python's own type or ISO 8601 text; a decimal may be any number, its text, or bytes.
* A value that refers to its own type may be nested 100 deep.

It must not know where records come from, nor what becomes of bad ones.
"""

import ModelOpPySparkDriver as driver

with driver.without_model_folders():
    import collections.abc
    import datetime
    import decimal
    import numbers
    import re

MAX_DEPTH = 100
MISSING = object()

IS_MISSING = "is missing"
IS_NULL = "is null"
TOO_DEEP = ("", "is nested too deep")

BITS = {"int": 32, "long": 64}
FLOAT_MAX = 3.4028235677973366e38
DECIMAL_TEXT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII).fullmatch
ISO_TEXT = {
    "date": re.compile(r"\d{4}-\d\d-\d\d", re.ASCII).fullmatch,
    "time": re.compile(r"\d\d:\d\d(:\d\d(\.\d+)?)?", re.ASCII).fullmatch,
    "timestamp": re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[-+]\d\d:?\d\d)?)?", re.ASCII).fullmatch,
}
PYTHON_TYPE = {"date": datetime.date, "time": datetime.time, "timestamp": datetime.datetime}


def check_of(schema):
    """The check of records of ``schema``; raises DriverFault for a schema that is no normalized one."""
    try:
        return CheckMaker().of(schema)
    except (KeyError, TypeError, AttributeError) as error:
        raise driver.DriverFault("a schema in {} is none: {!r}".format(driver.CONTRACT_FILE, error))


class CheckMaker:
    """Makes the check of one schema.

    The check of a value is a function of it and of the depth it lies at, which returns None, or how the path goes on
    and a reason.
    """

    def __init__(self):
        self._records = {}

    def of(self, schema):
        """The check of records.

        Its code tests, for each field, what is quick to test and enough to be right; whatever is not right at the
        first glance is given to the field's own function. Names of fields stand in the code as literals of text, and
        nothing else of the schema does.
        """
        names = {"MISSING": MISSING}
        lines = ["def check(record):", "    faults = None", "    get = record.get"]
        for place, field in enumerate(schema["fields"]):
            lines.append("    value = get({!r}, MISSING)".format(str(field["name"])))
            names["f{}".format(place)] = field_check(field, self._check(field["type"]))
            condition = self._quick_condition(field, place, names)
            if condition:
                lines.append("    if {}:".format(condition))
                lines.append("        faults = f{}(value, faults)".format(place))
            else:
                lines.append("    faults = f{}(value, faults)".format(place))
        lines.append("    return faults\n")
        exec(compile("\n".join(lines), "<schema>", "exec"), names)
        return names["check"]

    @staticmethod
    def _quick_condition(field, place, names):
        """An expression that is false only for values that are right, or None where there is none that is quick."""
        kind = field["type"]
        if isinstance(kind, dict) and kind["kind"] == "union":
            rest = [one for one in kind["of"] if one != "null"]
            kind = rest[0] if len(rest) == 1 else None
        if isinstance(kind, dict) and kind["kind"] == "enum":
            names["s{}".format(place)] = frozenset(kind["symbols"])
            condition = "(value.__class__ is not str or value not in s{})".format(place)
        elif isinstance(kind, str):
            condition = QUICK_CONDITIONS.get(kind)
        else:
            condition = None
        if condition and takes_null(field):
            condition = "value is not None and " + condition
        return condition

    def _check(self, kind):
        if isinstance(kind, str):
            return SIMPLE_CHECKS[kind]
        what = kind["kind"]
        if what == "enum":
            return enum_check(frozenset(kind["symbols"]))
        if what == "fixed":
            return fixed_check(kind["size"])
        if what == "array":
            return array_check(self._check(kind["items"]))
        if what == "map":
            return map_check(self._check(kind["values"]))
        if what == "union":
            return union_check([self._check(one) for one in kind["of"]], words_of(kind["of"]))
        if what == "ref":
            return reference_check(self._records.setdefault(kind["name"], []))
        if what == "record":
            # A type that refers to itself finds itself.
            holder = self._records.setdefault(kind.get("name"), [])
            holder.append(record_check([(field, self._check(field["type"])) for field in kind["fields"]]))
            return holder[-1]
        return logical_check(kind["logical"], self._check(kind["of"]))


INT_CONDITION = "(value.__class__ is not int or not {} <= value <= {})"
QUICK_CONDITIONS = {
    "string": "value.__class__ is not str",
    "int": INT_CONDITION.format(-(1 << 31), (1 << 31) - 1),
    "long": INT_CONDITION.format(-(1 << 63), (1 << 63) - 1),
    "double": "value.__class__ is not float",
    "float": "(value.__class__ is not float or not {!r} <= value <= {!r})".format(-FLOAT_MAX, FLOAT_MAX),
    "boolean": "value is not True and value is not False",
    "null": "value is not None",
}


def takes_null(field):
    """Whether the field may be null."""
    kind = field["type"]
    return bool(
        field.get("nullable")
        or kind == "null"
        or (isinstance(kind, dict) and kind["kind"] == "union" and "null" in kind["of"])
    )


def may_be_missing(field):
    """Whether the field may be left out."""
    return bool(field.get("optional") or field.get("has_default") or "default" in field)


def is_like_null(value):
    """Whether ``value`` is how pandas and numpy write what is not there."""
    return (isinstance(value, float) and value != value) or driver.is_missing(value)


def field_check(field, check):
    """A function of a field's value and the faults so far, which returns these with the field's own."""
    name = str(field["name"])
    find = fault_finder(field, check)

    def add_faults(value, faults):
        fault = find(value, 0)
        if fault is None:
            return faults
        faults = [] if faults is None else faults
        faults.append((name + fault[0], fault[1]))
        return faults

    return add_faults


def fault_finder(field, check):
    """The check of a field's value, which may be MISSING."""
    missing = None if may_be_missing(field) else ("", IS_MISSING)
    nullable = takes_null(field)
    null = None if nullable else ("", IS_NULL)

    def find(value, depth):
        if value is MISSING:
            return missing
        if value is None:
            return null
        fault = check(value, depth)
        if fault is not None and nullable and is_like_null(value):
            return None
        return fault

    return find


# --- Checks of values ------------------------------------------------------------------------------------------------


def whole_check(name, words):
    least, most = -(1 << BITS[name] - 1), (1 << BITS[name] - 1) - 1
    wrong, out_of_range = ("", "is not {}".format(words)), ("", "is out of the range of {}".format(name))

    def check(value, depth):
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            return wrong
        return None if least <= value <= most else out_of_range

    return check


def real_check(name, most):
    wrong, out_of_range = ("", "is not a {}".format(name)), ("", "is out of the range of {}".format(name))

    def check(value, depth):
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return wrong
        try:
            value = float(value)
        except OverflowError:
            return out_of_range
        if value != value or value - value != 0:
            # NaN and the infinities are floats of Avro's too.
            return None
        return None if -most <= value <= most else out_of_range

    return check


def class_check(kinds, words):
    wrong = ("", "is not {}".format(words))

    def check(value, depth):
        return None if isinstance(value, kinds) else wrong

    return check


def boolean_check(value, depth):
    if value is True or value is False:
        return None
    if driver.library_of(value) == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return None
    return ("", "is not a boolean")


def is_byte_text(value):
    return isinstance(value, str) and (value.isascii() or max(value) <= "\xff")


def bytes_check(value, depth):
    if isinstance(value, (bytes, bytearray)) or is_byte_text(value):
        return None
    return ("", "is not bytes")


def null_check(value, depth):
    return None if value is None else ("", "is not null")


SIMPLE_CHECKS = {
    "null": null_check,
    "boolean": boolean_check,
    "int": whole_check("int", "an int"),
    "long": whole_check("long", "a long"),
    "float": real_check("float", FLOAT_MAX),
    "double": real_check("double", float("inf")),
    "string": class_check(str, "a string"),
    "bytes": bytes_check,
}


def enum_check(symbols):
    def check(value, depth):
        return None if isinstance(value, str) and value in symbols else ("", "is none of the symbols")

    return check


def fixed_check(size):
    wrong_size = ("", "is not {} bytes long".format(size))

    def check(value, depth):
        return bytes_check(value, depth) or (None if len(value) == size else wrong_size)

    return check


def array_check(check_item):
    def check(value, depth):
        if not isinstance(value, (list, tuple)):
            return ("", "is not a list")
        for item in value:
            fault = check_item(item, depth)
            if fault is not None:
                return "[]" + fault[0], fault[1]
        return None

    return check


def map_check(check_value):
    def check(value, depth):
        if not isinstance(value, collections.abc.Mapping):
            return ("", "is not a map")
        for key, item in value.items():
            if not isinstance(key, str):
                return ("", "has a key that is not a string")
            fault = check_value(item, depth)
            if fault is not None:
                return "{}" + fault[0], fault[1]
        return None

    return check


def record_check(fields):
    finders = [(str(field["name"]), fault_finder(field, check)) for field, check in fields]

    def check(value, depth):
        if not isinstance(value, collections.abc.Mapping):
            return ("", "is not a record")
        for name, find in finders:
            fault = find(value.get(name, MISSING), depth)
            if fault is not None:
                return "." + name + fault[0], fault[1]
        return None

    return check


def union_check(checks, words):
    wrong = ("", "is none of {}".format(words))

    def check(value, depth):
        first = None
        for check_branch in checks:
            fault = check_branch(value, depth)
            if fault is None:
                return None
            # What goes deeper, or knows the type but not the size, says more.
            if first is None and (fault[0] or "range" in fault[1]):
                first = fault
        return first or wrong

    return check


def words_of(kinds):
    """The names of types, for a message."""
    return ", ".join(kind if isinstance(kind, str) else kind.get("logical") or kind["kind"] for kind in kinds)


def reference_check(holder):
    def check(value, depth):
        if depth >= MAX_DEPTH:
            return TOO_DEEP
        return holder[0](value, depth + 1)

    return check


def logical_check(logical, check_base):
    if logical == "decimal":
        return decimal_check
    name = logical.replace("local-", "").partition("-")[0]
    if name not in ISO_TEXT:
        return check_base
    kind, text = PYTHON_TYPE[name], ISO_TEXT[name]
    wrong = ("", "is not a {}".format(logical))

    def check(value, depth):
        if isinstance(value, kind) or (isinstance(value, str) and text(value)):
            return None
        return check_base(value, depth) and wrong

    return check


def decimal_check(value, depth):
    if isinstance(value, (decimal.Decimal, bytes, bytearray)) or (isinstance(value, str) and DECIMAL_TEXT(value)):
        return None
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return None
    return ("", "is not a decimal")
