#!/usr/bin/env python3
"""Holds ModelOpRecords.py and the modules beside it to their promises.

As in test_driver.py, the real driver runs as a child, here with a contract of records beside the model. Tests of Spark
need pyspark and Java, those of data frames pandas, those of Parquet pyarrow; they are skipped where these are missing.
Run it with any Python from 3.8::

    python3 worker/driver/test_records.py
"""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import textwrap
import unittest

import test_driver
from test_driver import has_module

HERE = os.path.dirname(os.path.abspath(__file__))
PARTS = sorted(name for name in os.listdir(HERE) if name.startswith("ModelOp") and name.endswith(".py"))

ECHO = "def score(record):\n    yield record\n"
LONG, STRING, DOUBLE = "long", "string", "double"


def field(name, kind, **more):
    return dict({"name": name, "type": kind, "nullable": False, "has_default": False, "optional": False}, **more)


def schema(*fields, **kinds):
    return {"fields": list(fields) + [field(name, kind) for name, kind in kinds.items()]}


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


class RecordsTest(test_driver.DriverTest):
    """A job's directory with a contract of records in it."""

    def setUp(self):
        super().setUp()
        for name in PARTS:
            shutil.copy(os.path.join(HERE, name), self.folder)
        self.environment["PYSPARK_SUBMIT_ARGS"] = "--master local[2] --conf spark.ui.enabled=false pyspark-shell"
        self.environment["SPARK_LOCAL_IP"] = "127.0.0.1"
        self.environment["PYSPARK_PYTHON"] = sys.executable

    def contract(self, inputs, outputs, way="process", **more):
        contract = {
            "version": 1,
            "way": way,
            "inputs": [],
            "outputs": [],
            "stop_on_bad_records": False,
            "skip_failed_records": False,
            "frame_rows": 10000,
            "memory": None,
        }
        for index, one in enumerate(inputs):
            known = {"index": index, "slot": str(2 * index), "recordsets": False, "schema": None, "size": None}
            contract["inputs"].append(dict(known, **dict({"name": os.path.basename(one["location"])}, **one)))
        for index, one in enumerate(outputs):
            known = {"index": index, "slot": str(2 * index + 1), "kind": "file", "schema": None}
            contract["outputs"].append(dict(known, **dict({"name": os.path.basename(one["location"])}, **one)))
        self.write("model_contract.json", json.dumps(dict(contract, **more)))

    def run_job(self, source, data="", format="jsonl", location=None, schema=None, recordsets=False, **more):
        """Runs a job with one input and, for a score function, one output: JSON lines, if nothing else is said."""
        staged = {key: more.pop(key) for key in ("job_type", "function", "init", "job_text", "files") if key in more}
        location = location or "in." + format
        if data is not None:
            self.write(location, data if isinstance(data, bytes) else data.encode("utf-8"))
        one = {"location": location, "format": format, "schema": schema, "recordsets": recordsets}
        out = {"location": "out.jsonl", "format": "jsonl"}
        out.update(more.pop("output", {}))
        outputs = more.pop("outputs", [out])
        self.contract(more.pop("inputs", [one]), outputs, **more)
        self.stage(source, **staged)
        return self.run_driver()

    def assert_records(self, ended, **expected):
        """Looks at what the report says of the records."""
        self.assertEqual([m["message"] for m in ended.messages], ["hello", "running", "completed"], ended.end)
        self.assertEqual(ended.code, 0, ended.stderr)
        records = ended.end["records"]
        for name, value in expected.items():
            self.assertEqual(records[name], value, (name, records))
        return records

    def assert_refused(self, ended, text, error_type=None):
        self.assertEqual(ended.end["message"], "failed", ended.end)
        self.assertEqual(ended.end["kind"], "contract", ended.end)
        self.assertIn(text, ended.end["exception"]["message"])
        if error_type is not None:
            self.assertEqual(ended.end["exception"]["type"], error_type)
        self.assertEqual(ended.code, 1)
        self.assert_nothing_left()

    def assert_model_failed(self, ended, record, error_type):
        self.assertEqual(ended.end["message"], "failed", ended.end)
        self.assertEqual(ended.end["kind"], "model", ended.end)
        self.assertEqual(ended.end["exception"]["type"], error_type, ended.end)
        self.assertEqual(ended.end.get("record"), record, ended.end)
        self.assertEqual(ended.code, 1)
        self.assert_nothing_left()

    def assert_nothing_left(self):
        for name in os.listdir(self.folder):
            self.assertFalse(name.startswith(("out", ".")), name)

    def output(self, name="out.jsonl"):
        with open(os.path.join(self.folder, name), encoding="utf-8") as file:
            return [json.loads(line, parse_constant=self.fail) for line in file]

    def bytes_of(self, name):
        with open(os.path.join(self.folder, name), "rb") as file:
            return file.read()

    def assert_reads(self, data, records, **more):
        """The model gets just these records, and the output has them."""
        ended = self.run_job(ECHO, data, **more)
        self.assert_records(ended, read=len(records), scored=len(records))
        self.assertEqual(self.output(), records)


class Calls(RecordsTest):
    def test_a_score_function_gets_each_record_as_a_dict_and_all_it_yields_is_written_in_order(self):
        ended = self.run_job(
            """
            def score(record):
                assert type(record) is dict
                for n in range(record["n"]):
                    yield {"of": record["n"], "n": n}
            """,
            lines({"n": 2}, {"n": 0}, {"n": 1}),
        )
        self.assert_records(ended, way="process", read=3, scored=3, written=3, failed=0, reasons=[])
        self.assertEqual(ended.end["records"]["rejected"], {"input": 0, "output": 0})
        self.assertEqual(self.output(), [{"of": 2, "n": 0}, {"of": 2, "n": 1}, {"of": 1, "n": 0}])

    def test_dicts_and_lists_of_dicts_may_be_yielded_or_returned_and_nothing_is_well_too(self):
        body = {
            "return {'x': 1}": 1,
            "return [{'x': 1}, {'x': 2}]": 2,
            "return None": 0,
            "pass": 0,
            "yield [{'x': 1}, {'x': 2}]": 2,
            "yield {'x': 1}; yield []": 1,
            "return iter([{'x': 1}])": 1,
            "return collections.OrderedDict(x=1)": 1,
            "return map(dict, [record])": 1,
        }
        for text, count in body.items():
            ended = self.run_job("import collections\ndef score(record):\n    " + text + "\n", lines({"a": 1}))
            self.assert_records(ended, written=count)
            self.assertEqual(len(self.output()), count, text)

    def test_anything_else_is_refused_with_its_type_and_the_record(self):
        for text, kind in {
            "yield 'secret'": "a str",
            "yield [1]": "a list with a int in it",
            "return 5": "a int",
            "return ({},)": "a tuple",
            "yield None": "a NoneType",
            "return {1}": "a set",
        }.items():
            ended = self.run_job("def score(record):\n    " + text + "\n", lines({}, {}))
            self.assert_refused(ended, kind + " (at record 1 of in.jsonl)")
            self.assertNotIn("secret", json.dumps(ended.messages))

    def test_init_is_called_once_and_before_any_record(self):
        ended = self.run_job(
            """
            import json
            seen = []
            def init(argument):
                seen.append(argument["job"]["id"])
            def score(record):
                yield {"seen": seen}
            """,
            lines({}, {}),
            init="init",
            job_text='{"id": "j"}',
        )
        self.assert_records(ended, read=2)
        self.assertEqual(self.output(), [{"seen": ["j"]}, {"seen": ["j"]}])

    def test_a_function_with_the_wrong_parameters_is_refused_before_init(self):
        ended = self.run_job("def init():\n    open('was', 'w')\ndef score(a, b):\n    pass\n", init="init")
        self.assert_refused(ended, "score takes 2 parameters; a record model's function takes 1 (a record)")
        self.assertFalse(os.path.exists(os.path.join(self.folder, "was")))

    def test_a_contract_or_a_part_of_the_driver_that_is_not_staged_whole_is_exit_70_with_one_line(self):
        def cut():
            self.write("model_contract.json", "{")

        def remove():
            os.unlink(os.path.join(self.folder, "ModelOpFormats.py"))

        for spoil in (cut, remove):
            self.contract([], [])
            self.stage("open('was', 'w')\n" + ECHO)
            spoil()
            ended = self.run_driver()
            self.assertEqual([m["message"] for m in ended.messages], ["hello"])
            self.assertEqual(ended.code, 70)
            self.assertEqual(len(ended.stderr.decode().splitlines()), 1, ended.stderr)
            self.assertFalse(os.path.exists(os.path.join(self.folder, "was")))

    def test_an_async_function_and_one_that_returns_an_awaitable_are_refused(self):
        for source in (
            "async def score(record):\n    return {}\n",
            "async def later():\n    return {}\ndef score(record):\n    return later()\n",
        ):
            self.assert_refused(self.run_job(source, lines({})), "async functions are not supported")

    def test_several_inputs_are_scored_one_after_the_other_and_each_output_gets_everything(self):
        self.write("a.jsonl", lines({"x": 1}))
        self.write("b.csv", "x\n2\n")
        ended = self.run_job(
            ECHO,
            None,
            inputs=[{"location": "a.jsonl", "format": "jsonl"}, {"location": "b.csv", "format": "csv"}],
            outputs=[{"location": "o.csv", "format": "csv"}, {"location": "o.json", "format": "json"}],
        )
        self.assert_records(ended, read=2, written=2)
        self.assertEqual(self.bytes_of("o.csv"), b"x\n1\n2\n")
        self.assertEqual(json.loads(self.bytes_of("o.json")), [{"x": 1}, {"x": 2}])

    def test_a_record_that_is_yielded_and_then_changed_is_written_as_it_was(self):
        source = "def score(record):\n    for n in range(3):\n        record['n'] = n\n        yield record\n"
        for output in ({}, {"location": "out.avro", "format": "avro"}):
            self.assert_records(self.run_job(source, lines({"a": 1}), output=output), written=3)
        self.assertEqual([record["n"] for record in self.output()], [0, 1, 2])
        self.run_job(ECHO, None, location="out.avro", format="avro")
        self.assertEqual([record["n"] for record in self.output()], [0, 1, 2])


class Raises(RecordsTest):
    SOURCE = """
        def score(record):
            yield {"x": record["x"]}
            if record["x"] == 3:
                raise ValueError("no threes")
        """

    def test_the_number_of_the_record_is_told_with_the_exception_and_nothing_is_written(self):
        ended = self.run_job(self.SOURCE, lines(*({"x": x} for x in range(1, 6))))
        self.assert_model_failed(ended, 3, "ValueError")
        self.assertEqual(ended.end["input"], "in.jsonl")
        self.assertEqual(ended.end["exception"]["frame"]["line"], 5)
        self.assertNotIn("ModelOpRecords", ended.end["exception"]["traceback"])

    def test_an_output_that_was_there_before_is_not_touched_by_a_job_that_fails(self):
        self.write("out.jsonl", "before\n")
        self.run_job(self.SOURCE, lines({"x": 3}))
        self.assertEqual(self.bytes_of("out.jsonl"), b"before\n")

    def test_a_job_may_count_and_skip_the_records_at_which_it_raises_with_all_they_yielded(self):
        ended = self.run_job(self.SOURCE, lines({"x": 3}, {"x": 4}, {}, {"x": 5}), skip_failed_records=True)
        self.assert_records(ended, read=4, failed=2, scored=2, written=2)
        self.assertEqual(self.output(), [{"x": 4}, {"x": 5}])

    def test_the_number_counts_rejected_records_too_and_starts_anew_with_each_input(self):
        self.write("a.jsonl", lines({"x": 1}))
        self.write("b.jsonl", lines({"x": "one"}, {"x": 3}))
        inputs = [{"location": name, "format": "jsonl", "schema": schema(x="long")} for name in ("a.jsonl", "b.jsonl")]
        ended = self.run_job(self.SOURCE, None, inputs=inputs)
        self.assert_model_failed(ended, 2, "ValueError")
        self.assertEqual(ended.end["input"], "b.jsonl")

    def test_an_exit_is_no_normal_end_while_records_are_left(self):
        for text in ("sys.exit(0)", "sys.exit('why')", "raise KeyboardInterrupt"):
            for skip in (False, True):
                source = "import sys\ndef score(record):\n    " + text + "\n"
                ended = self.run_job(source, lines({}, {}), skip_failed_records=skip)
                self.assertEqual((ended.end["kind"], ended.end["record"]), ("model", 1), ended.end)
                self.assert_nothing_left()

    def test_init_and_the_import_that_raise_are_told_without_a_record(self):
        for source, options in (("def init():\n    1 / 0\n" + ECHO, {"init": "init"}), ("1 / 0\n" + ECHO, {})):
            ended = self.run_job(source, lines({}), **options)
            self.assert_model_failed(ended, None, "ZeroDivisionError")

    def test_a_model_that_changes_directory_closes_its_streams_and_prints_is_scored_all_the_same(self):
        ended = self.run_job(
            """
            import os, sys
            def score(record):
                os.chdir("/")
                sys.argv = sys.path = None
                sys.stdout.close()
                sys.stdin = sys.stderr = None
                yield record
                import json, csv
                json.dumps = json.JSONEncoder.encode = csv.writer = open = None
            """,
            lines({"x": 1}, {"x": 2.5}),
        )
        self.assert_records(ended, written=2)
        self.assertEqual(self.output(), [{"x": 1}, {"x": 2.5}])

    def test_a_process_that_the_model_forks_and_that_comes_back_writes_nothing(self):
        ended = self.run_job(
            """
            import os
            def score(record):
                pid = os.fork()
                yield {"x": record["x"]}
                if pid:
                    assert os.waitpid(pid, 0)[1] == 0
            """,
            lines({"x": 1}, {"x": 2}),
        )
        self.assert_records(ended, written=2)
        self.assertEqual(self.output(), [{"x": 1}, {"x": 2}])

    def test_files_of_the_model_named_like_pythons_own_modules_do_not_disturb(self):
        names = ("csv", "json", "gzip", "zlib", "decimal", "datetime", "pickle", "struct", "bz2", "tempfile")
        ended = self.run_job(
            ECHO, "x\n1\n", format="csv", files={name + ".py": "raise RuntimeError\n" for name in names}
        )
        self.assert_records(ended, written=1)

    def test_an_output_that_cannot_be_written_is_told_with_its_name(self):
        self.write("file", "")
        ended = self.run_job(ECHO, lines({}), output={"location": "file/out.jsonl"})
        self.assert_refused(ended, "cannot write out.jsonl: Not a directory", "OutputFault")
        os.mkdir(os.path.join(self.folder, "afolder"))
        ended = self.run_job(ECHO, lines({}), output={"location": "afolder"})
        self.assert_refused(ended, "cannot write afolder")


class Csv(RecordsTest):
    def test_values_without_a_schema_are_typed_one_by_one(self):
        values = {
            "12": 12,
            "-3": -3,
            "0": 0,
            "1.5": 1.5,
            "-.5": -0.5,
            "2.": 2.0,
            "1e3": 1000.0,
            "12345678901234567890123": 12345678901234567890123,
            "": None,
            "true": True,
            "False": False,
            "007": "007",
            "+1": "+1",
            "1_000": "1_000",
            " 1": " 1",
            "1 ": "1 ",
            "NaN": "NaN",
            "nan": "nan",
            "inf": "inf",
            "1e999": "1e999",
            "NA": "NA",
            "null": "null",
            "0x10": "0x10",
            "\u0661": "\u0661",
            "-": "-",
            ".": ".",
            "1e": "1e",
            "9" * 5000: "9" * 5000,
            "t": "t",
        }
        text = "a,b\n" + "".join("{},x\n".format(value) for value in values)
        self.assert_reads(text, [{"a": value, "b": "x"} for value in values.values()], format="csv")

    def test_values_with_a_schema_have_its_types_and_what_does_not_fit_stays_text(self):
        kinds = schema(
            field("s", STRING),
            field("n", STRING, nullable=True),
            field("i", LONG, nullable=True),
            field("d", DOUBLE, nullable=True),
            field("b", "boolean", nullable=True),
            field("u", {"kind": "union", "of": ["null", "long"]}),
            field("l", {"kind": "array", "items": "long"}, nullable=True),
        )
        ended = self.run_job(
            ECHO,
            's,n,i,d,b,u,l,extra\n007,,12,3,true,4,"[1, 2]",5\n,x,,NaN,,,,\nx,x,1.5,x,yes,x,x,x\n',
            format="csv",
            schema=kinds,
        )
        self.assert_records(ended, read=3, rejected={"input": 1, "output": 0})
        self.assertEqual(
            self.output(),
            [
                {"s": "007", "n": None, "i": 12, "d": 3.0, "b": True, "u": 4, "l": [1, 2], "extra": 5},
                {"s": "", "n": "x", "i": None, "d": None, "b": None, "u": None, "l": None, "extra": None},
            ],
        )
        reasons = {reason["field"]: reason["reason"] for reason in ended.end["records"]["reasons"]}
        self.assertEqual(
            reasons,
            {
                "i": "is not a long",
                "d": "is not a double",
                "b": "is not a boolean",
                "u": "is none of null, long",
                "l": "is not a list",
            },
        )

    def test_quotes_line_ends_byte_order_mark_and_blank_lines_are_as_spreadsheets_write_them(self):
        text = b'\xef\xbb\xbfa,"b\nb"\r\n"x, ""y""\r\nz",\xc3\xbc\r\n\r\n"",2'
        expected = [{"a": 'x, "y"\r\nz', "b\nb": "\u00fc"}, {"a": None, "b\nb": 2}]
        self.assert_reads(text, expected, format="csv")

    def test_a_short_line_is_filled_up_and_a_long_one_cannot_be_read(self):
        self.assert_reads("a,b,c\n1\n", [{"a": 1, "b": None, "c": None}], format="csv")
        text = "a,b\n1,2\n1,2,secret\n3,4\n"
        ended = self.run_job(ECHO, text, format="csv", output={"location": "out2.jsonl"})
        self.assertEqual(ended.end["kind"], "contract")
        self.assertEqual(
            ended.end["exception"]["message"],
            "the input has a record that has more values than the header has names (at record 2 of in.csv)",
        )
        ended = self.run_job(ECHO, text, format="csv", schema=schema(a=LONG))
        self.assert_records(ended, read=3, scored=2, written=2, rejected={"input": 1, "output": 0})
        self.assertNotIn("secret", json.dumps(ended.messages))

    def test_headers_that_name_nothing_or_a_name_twice(self):
        self.assert_reads(",x\n0,1\n", [{"Unnamed: 0": 0, "x": 1}], format="csv")
        os.unlink(os.path.join(self.folder, "out.jsonl"))
        self.assert_refused(self.run_job(ECHO, "a,b,a\n", format="csv"), "the same name more than once: a")

    def test_names_of_columns_cannot_become_code(self):
        name = "'+__import__('os').system('touch was')+'\"\\\n{0}"
        text = '"{}",b\n1,2\n'.format(name.replace('"', '""'))
        for kinds in (None, schema(field(name, LONG))):
            self.assert_reads(text, [{name: 1, "b": 2}], format="csv", schema=kinds)
        self.assertFalse(os.path.exists(os.path.join(self.folder, "was")))

    def test_thousands_of_columns_are_read_and_too_many_are_refused(self):
        names = ["c{}".format(n) for n in range(5000)]
        text = ",".join(names) + "\n" + ",".join(map(str, range(5000))) + "\n"
        self.assert_reads(text, [{name: n for n, name in enumerate(names)}], format="csv")
        os.unlink(os.path.join(self.folder, "out.jsonl"))
        text = ",".join("c{}".format(n) for n in range(20001)) + "\n"
        self.assert_refused(self.run_job(ECHO, text, format="csv"), "more than 20000 columns")

    def test_nothing_and_a_header_alone_are_no_records(self):
        for text in ("", "\n\n", "a,b\n", "a,b"):
            self.assert_reads(text, [], format="csv")

    def test_a_quote_that_is_never_closed_and_a_value_that_is_too_long_are_refused_without_their_text(self):
        for text in ('a,b\n1,"secret\n2,3\n', 'a,"b\n1,2\n', "a,b\n1," + "s" * (17 * 1024 * 1024) + "\n"):
            ended = self.run_job(ECHO, text, format="csv")
            self.assert_refused(ended, "the input ")
            self.assertIn("record 1 of in.csv", ended.end["exception"]["message"])
            self.assertNotIn("secret", json.dumps(ended.messages))

    def test_an_output_has_the_columns_of_all_records_in_the_order_in_which_they_came(self):
        source = "def score(record):\n    yield record['r']\n"
        records = [{"b": 1, "a": 'x,"y"\n'}, {"a": True, "b": None}, {"c": 1.5, "b": [1, {"k": "v"}]}, {}]
        ended = self.run_job(
            source, lines(*({"r": record} for record in records)), output={"location": "out.csv", "format": "csv"}
        )
        self.assert_records(ended, written=4)
        expected = 'b,a,c\n1,"x,""y""\n",\n,true,\n"[1,{""k"":""v""}]",,1.5\n,,\n'
        self.assertEqual(self.bytes_of("out.csv").decode(), expected)

    def test_an_output_with_a_schema_begins_with_its_names(self):
        output = {
            "location": "out.csv",
            "format": "csv",
            "schema": schema(field("x", LONG), field("y", LONG, optional=True)),
        }
        self.assert_records(self.run_job(ECHO, lines({"z": 1, "x": 2}), output=output), written=1)
        self.assertEqual(self.bytes_of("out.csv"), b"x,y,z\n2,,1\n")
        self.assert_records(self.run_job(ECHO, "", output=output), written=0)
        self.assertEqual(self.bytes_of("out.csv"), b"x,y\n")

    def test_one_column_and_values_that_are_no_plain_numbers_are_written_as_csv_can(self):
        source = """
            import datetime, decimal
            VALUES = [float("nan"), float("inf"), b"ab", datetime.date(2024, 1, 2), decimal.Decimal("1.5"), None, False]
            def score(record):
                for value in VALUES:
                    yield {"x": value}
            """
        self.run_job(source, lines({}), output={"location": "out.csv", "format": "csv"})
        self.assertEqual(self.bytes_of("out.csv"), b'x\n""\n""\nYWI=\n2024-01-02\n1.5\n""\nfalse\n')


class Json(RecordsTest):
    def test_json_lines_may_have_blank_lines_white_space_and_no_last_line_end(self):
        self.assert_reads(
            '{"a": 1}\r\n\n  {"b": [1, {"c": null}]}  \n\t\n{"d": "\u2028\u00fc"}',
            [{"a": 1}, {"b": [1, {"c": None}]}, {"d": "\u2028\u00fc"}],
        )

    def test_a_line_that_is_no_object_is_counted_under_a_schema_and_ends_the_job_without(self):
        bad = ("{secret", "[1]", '"secret"', "{}{}", '{"a": 1} secret', "[" * 100000)
        for text in bad:
            ended = self.run_job(ECHO, "{}\n" + text + "\n{}\n")
            self.assert_refused(ended, "(at record 2 of in.jsonl)")
            self.assertNotIn("secret", json.dumps(ended.messages))
        ended = self.run_job(ECHO, "\n".join(bad) + "\n{}\n", schema=schema())
        self.assert_records(ended, read=7, scored=1, rejected={"input": 6, "output": 0})
        found = {reason["reason"]: reason["count"] for reason in ended.end["records"]["reasons"]}
        self.assertEqual(sum(found.values()), 6)
        self.assertEqual(found["is not an object"], 2)
        self.assertTrue(all(reason["field"] == "(record)" for reason in ended.end["records"]["reasons"]))
        self.assertNotIn("secret", json.dumps(ended.messages))

    def test_json_is_one_array_or_objects_one_after_the_other(self):
        expected = [{"a": "]}, {"}, {"b": [1, [2]]}, {}]
        for text in (
            json.dumps(expected),
            " \n[ \n" + ",\n ".join(json.dumps(one, indent=1) for one in expected) + " ]\n\n",
            "\ufeff" + lines(*expected),
            "".join(json.dumps(one) for one in expected),
        ):
            self.assert_reads(text, expected, format="json")
        for text in ("", "[]", " [ ] ", "\n"):
            self.assert_reads(text, [], format="json")

    def test_json_bigger_than_what_is_read_at_once_is_read_whole(self):
        records = [{"n": n, "text": "\u00fc" * 1000} for n in range(5000)]
        self.assert_reads(json.dumps(records, ensure_ascii=False), records, format="json")

    def test_json_that_is_broken_is_refused_with_the_record(self):
        for text, word in (
            ("[{}, {]", "near record 2"),
            ("[{} {}]", "near record 2"),
            ("[{}", "near record 2"),
            ("[{},", "near record 2"),
            ("[{}] {}", "near record 2"),
            ("[{}, 5]", "at record 2"),
            ("{} nonsense", "near record 2"),
            ("[" * 100000, "near record 1"),
        ):
            self.assert_refused(self.run_job(ECHO, text, format="json"), word)

    def test_json_output_is_one_array_with_every_value_in_its_json_form(self):
        source = """
            import datetime, decimal
            def score(record):
                yield {"nan": float("nan"), "date": datetime.date(2024, 1, 2), "decimal": decimal.Decimal("1.5"),
                       "bytes": b"ab", "set": {2, 1}, "lone": "\\ud800", 5: [float("inf")], "deep": {"n": (1, None)}}
                yield {}
            """
        expected = [
            {
                "nan": None,
                "date": "2024-01-02",
                "decimal": 1.5,
                "bytes": "YWI=",
                "set": [1, 2],
                "lone": "\ufffd",
                "5": [None],
                "deep": {"n": [1, None]},
            },
            {},
        ]
        self.run_job(source, lines({}), output={"location": "out.json", "format": "json"})
        self.assertEqual(json.loads(self.bytes_of("out.json").decode("utf-8"), parse_constant=self.fail), expected)
        self.run_job(source, lines({}))
        self.assertEqual(self.output(), expected)
        self.run_job(ECHO, "", output={"location": "out.json", "format": "json"})
        self.assertEqual(json.loads(self.bytes_of("out.json")), [])

    def test_a_value_without_a_json_form_is_refused_with_its_place(self):
        for text, where in (
            ("{'a': {'b': object()}}", "/a/b is a object"),
            ("{'a': loop}", "contains itself"),
        ):
            ended = self.run_job(
                "loop = []\nloop.append(loop)\ndef score(record):\n    yield " + text + "\n", lines({})
            )
            self.assert_refused(ended, where)
            self.assertIn("at record 1", ended.end["exception"]["message"])


class Pieces(RecordsTest):
    """What the driver's parts give when they are asked as modules."""

    def ask(self, source):
        done = subprocess.run(
            [sys.executable, "-B", "-c", textwrap.dedent(source)],
            cwd=self.folder,
            env=dict(self.environment, PYTHONPATH=HERE),
            stdout=subprocess.PIPE,
            check=True,
        )
        return json.loads(done.stdout.decode())

    def test_pieces_are_whole_lines_in_order_and_smaller_towards_the_end(self):
        for ending, header in (("jsonl", ""), ("csv", "n,text\n")):
            rows = "".join('{{"n": {0}}}\n'.format(n) if ending == "jsonl" else "{0},x\n".format(n) for n in range(90000))
            for name in ("a." + ending, "b." + ending):
                self.write(name, header + rows)
            cuts = self.ask(
                """
                import json, os, ModelOpFormats, ModelOpSpark
                names = ["a.{0}", "b.{0}"]
                sizes = ModelOpSpark.PieceSizes(sum(os.stat(name).st_size for name in names), 2, 1 << 30)
                cuts = []
                for name in names:
                    pieces = ModelOpFormats.pieces_of(name, "{0}", sizes.size_from)
                    sizes.before += os.stat(name).st_size
                    cuts.append([(piece.start, piece.end) for piece in pieces])
                print(json.dumps(cuts))
                """.format(ending)
            )
            both = [end - start for pieces in cuts for start, end in pieces]
            data = self.bytes_of("a." + ending)
            for pieces in cuts:
                self.assertEqual([start for start, _ in pieces], [0] + [end for _, end in pieces[:-1]])
                self.assertEqual(pieces[-1][1], len(data))
                self.assertTrue(all(data[end - 1 : end] == b"\n" for _, end in pieces))
            self.assertGreater(both[0], 0.15 * sum(both))
            self.assertLess(both[-1], 0.02 * sum(both))
            self.assertLess(len(both), 50)

    def test_the_login_of_a_database_is_read_once(self):
        self.write("login.json", json.dumps({"user": "me", "password": "s3cret", "url": "x"}))
        told = self.ask(
            """
            import json, ModelOpSpark
            print(json.dumps([ModelOpSpark.taken_login("login.json"), ModelOpSpark.taken_login("login.json")]))
            """
        )
        self.assertEqual(told, [{"user": "me", "password": "s3cret"}, {}])

    def test_the_json_of_records_is_that_of_pythons_own_encoder(self):
        told = self.ask(
            """
            import json, ModelOpOutputs
            records = [{}, {"a": [1, -2.5, 1e300, None, True, "\u20ac \\" \\n \u2028", {"b": []}]}, {1: 2, None: 3, 1.5: 4}]
            same = [ModelOpOutputs.json_text(one) == json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in records]
            print(json.dumps(same))
            """
        )
        self.assertEqual(told, [True] * 3)


class Files(RecordsTest):
    def test_text_may_be_compressed_as_its_ending_says(self):
        text = lines(*({"n": n} for n in range(1000)))
        for ending, compress in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
            location = "in.jsonl" + ending
            self.assert_reads(compress(text.encode()), [{"n": n} for n in range(1000)], location=location)
            output = {"location": "out.csv" + ending, "format": "csv"}
            self.assert_records(self.run_job(ECHO, None, location=location, output=output), written=1000)
            self.run_job(ECHO, None, location=output["location"], format="csv")
            self.assertEqual(len(self.output()), 1000)

    def test_a_file_that_is_not_compressed_as_told_or_cut_off_is_refused(self):
        whole = gzip.compress(lines(*({"n": str(n)} for n in range(5000))).encode())
        for data in (b"plain\n", whole[:-10], whole[:200] + b"x" * 100 + whole[300:]):
            self.assert_refused(self.run_job(ECHO, data, location="in.jsonl.gz"), "the input is damaged")

    def test_text_that_is_not_utf8_is_refused_and_utf16_called_by_its_name(self):
        self.assert_refused(self.run_job(ECHO, b'{"a": "\xff"}\n'), "is not UTF-8 (near record 1 of in.jsonl)")
        self.assert_refused(self.run_job(ECHO, "a\n1\n".encode("utf-16"), format="csv"), "UTF-16")

    def test_an_input_that_is_not_there_is_told_by_its_name(self):
        self.assert_refused(
            self.run_job(ECHO, None, location="gone/x.jsonl"),
            "x.jsonl cannot be read: No such file or directory",
            "InputFault",
        )

    def test_a_folder_is_read_in_the_order_of_its_names_without_hidden_ones(self):
        for name, n in (("part-2", 2), ("part-1", 1), ("_SUCCESS", 3), (".part-1.crc", 4)):
            self.write("folder/" + name, "n\n{}\n".format(n))
        self.assert_reads(None, [{"n": 1}, {"n": 2}], location="folder/", format="csv")
        os.unlink(os.path.join(self.folder, "out.jsonl"))
        self.write("folder/sub/x", "n\n1\n")
        self.assert_refused(self.run_job(ECHO, None, location="folder/", format="csv"), "folders in it")

    def test_a_file_url_is_a_path(self):
        self.write("a b.jsonl", lines({"x": 1}))
        for start in ("file://", "file:", "", "file://localhost"):
            self.assert_reads(None, [{"x": 1}], location=start + os.path.join(self.folder, "a b.jsonl"))
        self.assert_refused_elsewhere()

    def assert_refused_elsewhere(self):
        os.unlink(os.path.join(self.folder, "out.jsonl"))
        self.assert_refused(self.run_job(ECHO, None, location="hdfs:///x.jsonl"), "only Spark can reach")

    def test_a_folder_as_output_has_parts_and_says_when_it_is_whole_and_takes_the_place_of_another(self):
        self.write("out/old", "")
        ended = self.run_job(ECHO, lines({"x": 1}), output={"location": "out/", "kind": "folder", "format": "csv"})
        self.assert_records(ended, written=1)
        self.assertEqual(sorted(os.listdir(os.path.join(self.folder, "out"))), ["_SUCCESS", "part-00000.csv"])
        self.assertEqual(self.bytes_of("out/part-00000.csv"), b"x\n1\n")
        self.assertFalse([name for name in os.listdir(self.folder) if name.startswith(".")])

    def test_nothing_of_an_output_is_seen_before_it_is_whole(self):
        source = """
            import os
            def score(record):
                assert not [name for name in os.listdir(".") if name.startswith("out")]
                yield record
            """
        self.assert_records(self.run_job(source, lines({}, {})), written=2)

    def test_what_a_dead_attempt_left_is_cleared_away(self):
        self.write(".out.jsonl.job-1.partial/part-000000", "half")
        self.assert_reads(lines({}), [{}])
        self.assertFalse([name for name in os.listdir(self.folder) if name.startswith(".")])

    def test_a_line_without_end_is_refused_before_it_fills_the_memory(self):
        path = os.path.join(self.folder, "in.jsonl")
        with open(path, "wb") as file:
            file.truncate(1 << 32)
        limit = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        self.assert_refused(self.run_job(limit + ECHO, None), "a record of more than 64 MiB")


class Avro(RecordsTest):
    KINDS = schema(
        field("i", "int"),
        field("l", LONG),
        field("f", "float"),
        field("d", DOUBLE),
        field("s", STRING),
        field("b", "boolean"),
        field("y", "bytes"),
        field("n", "long", nullable=True),
        field("e", {"kind": "enum", "symbols": ["A", "B"]}),
        field("x", {"kind": "fixed", "size": 2}),
        field("a", {"kind": "array", "items": {"kind": "union", "of": ["null", "string"]}}),
        field("m", {"kind": "map", "values": "long"}),
        field(
            "r",
            {
                "kind": "record",
                "name": "tree",
                "fields": [
                    field("v", LONG),
                    field("next", {"kind": "union", "of": ["null", {"kind": "ref", "name": "tree"}]}),
                ],
            },
        ),
        field("day", {"kind": "logical", "logical": "date", "of": "int"}),
        field("at", {"kind": "logical", "logical": "timestamp-millis", "of": "long"}),
        field("dec", {"kind": "logical", "logical": "decimal", "of": "bytes", "precision": 9, "scale": 2}),
    )
    WRITE = """
        import datetime, decimal
        AT = datetime.datetime(2024, 1, 2, 3, 4, 5, 678000, tzinfo=datetime.timezone.utc)
        def score(record):
            for n in range(record["n"]):
                yield {"i": -n, "l": 2**62 + n, "f": 0.5, "d": n / 8, "s": "\\u00fc%d" % n, "b": n % 2 == 0,
                       "y": b"\\xff", "n": None if n % 2 else n, "e": "AB"[n % 2], "x": b"ab", "a": [None, "x"],
                       "m": {"k": n},
                       "r": {"v": 1, "next": {"v": 2, "next": None}}, "day": AT.date(), "at": AT,
                       "dec": decimal.Decimal("-12.34")}
        """
    READ = """
        def score(record):
            yield {name: repr(value) for name, value in record.items()}
        """

    def test_what_is_written_with_a_schema_is_read_as_it_was(self):
        output = {"location": "out.avro", "format": "avro", "schema": self.KINDS}
        ended = self.run_job(self.WRITE, lines({"n": 20000}), output=output)
        self.assert_records(ended, written=20000, rejected={"input": 0, "output": 0})
        self.assert_records(self.run_job(self.READ, None, location="out.avro", format="avro"), read=20000)
        self.assertEqual(
            self.output()[1],
            {
                "i": "-1",
                "l": str(2**62 + 1),
                "f": "0.5",
                "d": "0.125",
                "s": "'\u00fc1'",
                "b": "False",
                "y": "b'\\xff'",
                "n": "None",
                "e": "'B'",
                "x": "b'ab'",
                "a": "[None, 'x']",
                "m": "{'k': 1}",
                "r": "{'v': 1, 'next': {'v': 2, 'next': None}}",
                "day": "datetime.date(2024, 1, 2)",
                "at": "datetime.datetime(2024, 1, 2, 3, 4, 5, 678000, tzinfo=datetime.timezone.utc)",
                "dec": "Decimal('-12.34')",
            },
        )

    @unittest.skipUnless(has_module("fastavro"), "fastavro is not installed")
    def test_others_read_what_is_written_and_what_they_write_is_read(self):
        import fastavro

        output = {"location": "out.avro", "format": "avro", "schema": self.KINDS}
        self.run_job(self.WRITE, lines({"n": 3000}), output=output)
        with open(os.path.join(self.folder, "out.avro"), "rb") as file:
            records = list(fastavro.reader(file))
        self.assertEqual(len(records), 3000)
        self.assertEqual((records[2]["l"], records[2]["e"], records[2]["r"]["next"]["v"]), (2**62 + 2, "A", 2))
        kinds = fastavro.parse_schema(
            {
                "type": "record",
                "name": "n.R",
                "fields": [
                    {"name": "u", "type": ["null", "string", {"type": "enum", "name": "E", "symbols": ["X"]}]},
                    {"name": "e", "type": ["null", "E"]},
                    {"name": "t", "type": {"type": "long", "logicalType": "timestamp-micros"}},
                    {"name": "self", "type": ["null", "R"]},
                ],
            }
        )
        for codec in ("null", "deflate", "bzip2", "xz"):
            file = io.BytesIO()
            rows = [
                {"u": str(n), "e": "X", "t": n, "self": {"u": None, "e": None, "t": 0, "self": None}}
                for n in range(2000)
            ]
            fastavro.writer(file, kinds, rows, codec=codec, sync_interval=500)
            self.assert_records(self.run_job(ECHO, file.getvalue(), format="avro"), read=2000)
            self.assertEqual(self.output()[7]["u"], "7")
            self.assertEqual(self.output()[7]["self"]["t"], "1970-01-01T00:00:00+00:00")

    def test_an_output_without_a_schema_gets_one_that_holds_everything(self):
        source = """
            def score(record):
                yield {"a": 1, "b": "x", "mixed": 1, "num": 1, "deep": {"k": [1, None]}}
                yield {"a": None, "c": True, "mixed": "one", "num": 1.5, "deep": {"j": 2}}
            """
        self.assert_records(
            self.run_job(source, lines({}), output={"location": "out.avro", "format": "avro"}), written=2
        )
        self.run_job(ECHO, None, location="out.avro", format="avro")
        self.assertEqual(
            self.output(),
            [
                {"a": 1, "b": "x", "mixed": "1", "num": 1.0, "deep": {"k": [1, None], "j": None}, "c": None},
                {"a": None, "b": None, "mixed": "one", "num": 1.5, "deep": {"k": None, "j": 2}, "c": True},
            ],
        )

    def test_damaged_files_are_refused_whatever_the_damage(self):
        output = {"location": "out.avro", "format": "avro", "schema": self.KINDS}
        self.run_job(self.WRITE, lines({"n": 300}), output=output)
        whole = self.bytes_of("out.avro")
        os.unlink(os.path.join(self.folder, "out.avro"))
        head = whole.index(b"Obj") + 4
        for data in (
            b"",
            b"Obj\x01",
            whole[:50],
            whole[:-5],
            whole[:-40] + b"\x00" * 40,
            b"PK" + whole,
            whole[:head] + b"\xff" * 100,
        ):
            self.assert_refused(self.run_job(ECHO, data, format="avro"), "the input is not an Avro file")

    def test_a_file_that_claims_endless_arrays_or_a_bomb_of_a_block_is_refused(self):
        def number(value):
            value = (value << 1) ^ (value >> 63)
            out = bytearray()
            while value > 0x7F:
                out.append(value & 0x7F | 0x80)
                value >>= 7
            return bytes(out + bytes([value]))

        def text(data):
            return number(len(data)) + data

        def file_of(items, count, block, codec=b"null"):
            kinds = {
                "type": "record",
                "name": "R",
                "fields": [{"name": "a", "type": {"type": "array", "items": items}}],
            }
            head = b"Obj\x01" + number(2) + text(b"avro.schema") + text(json.dumps(kinds).encode())
            head += text(b"avro.codec") + text(codec) + number(0) + b"s" * 16
            return head + number(count) + text(block) + b"s" * 16

        bomb = __import__("zlib").compressobj(9, 8, -15)
        squeezed = b"".join([bomb.compress(bytes(1 << 20)) for _ in range(300)] + [bomb.flush()])
        for data in (
            file_of("null", 1, number(1 << 60)),
            file_of("null", 1, (number(900000) * 1) * 2000 + number(0)),
            file_of("long", 1, number(1 << 40)),
            file_of("long", 1 << 40, b""),
            file_of("long", 1, squeezed, b"deflate"),
        ):
            self.assert_refused(self.run_job(ECHO, data, format="avro"), "not an Avro file that can be read")

    def test_a_codec_that_python_does_not_have_is_named_with_the_remedy(self):
        self.run_job(ECHO, lines({"x": 1}), output={"location": "out.avro", "format": "avro", "schema": schema(x=LONG)})
        data = self.bytes_of("out.avro").replace(b"\x0edeflate", b"\x0csnappy")
        os.unlink(os.path.join(self.folder, "out.avro"))
        if not has_module("snappy"):
            self.assert_refused(self.run_job(ECHO, data, format="avro"), "REQUIRED_LIBRARIES")
        data = data.replace(b"\x0csnappy", b"\x0cfunny!")
        self.assert_refused(self.run_job(ECHO, data, format="avro"), "codec funny!")


class Schemas(RecordsTest):
    def reasons(self, kinds, *records, side="input"):
        """What the check says of each record that it rejects; the model must get just the others."""
        ended = self.run_job(ECHO, lines(*records), schema=kinds)
        found = {(reason["field"], reason["reason"]): reason["count"] for reason in ended.end["records"]["reasons"]}
        return ended.end["records"], found

    def test_bad_records_are_counted_by_field_and_reason_and_the_good_ones_scored(self):
        kinds = schema(name=STRING, age="int")
        report, found = self.reasons(
            kinds,
            {"name": "a", "age": 1},
            {"name": "secret"},
            {"name": None, "age": 1},
            {"name": "a", "age": "secret"},
            {"age": True, "name": 5},
            {"name": "a", "age": 1.0},
            {"name": "a", "age": 2**31},
            {"name": "b", "age": -(2**31)},
        )
        self.assertEqual(
            found,
            {
                ("age", "is missing"): 1,
                ("name", "is null"): 1,
                ("age", "is not an int"): 3,
                ("name", "is not a string"): 1,
                ("age", "is out of the range of int"): 1,
            },
        )
        self.assertEqual(report["rejected"], {"input": 6, "output": 0})
        self.assertEqual((report["read"], report["scored"], report["written"]), (8, 2, 2))
        self.assertEqual([record["name"] for record in self.output()], ["a", "b"])
        self.assertEqual(report["reasons"][0]["count"], 3)

    def test_fields_that_may_be_missing_or_are_unknown_are_well(self):
        kinds = schema(
            field("a", LONG, optional=True),
            field("b", LONG, has_default=True, default=5),
            field("c", LONG, nullable=True),
        )
        report, found = self.reasons(kinds, {"c": None, "unknown": {"x": 1}}, {"a": None, "c": 1}, {})
        self.assertEqual(found, {("a", "is null"): 1, ("c", "is missing"): 1})
        self.assertEqual(self.output(), [{"c": None, "unknown": {"x": 1}}])

    def test_every_type_is_checked(self):
        tree = {
            "kind": "record",
            "name": "T",
            "fields": [field("v", LONG), field("next", {"kind": "ref", "name": "T"}, nullable=True)],
        }
        kinds = {
            "boolean": ([True, False], [0, "true"], "is not a boolean"),
            "long": ([2**63 - 1, -(2**63)], [2**63, 10**400], "is out of the range of long"),
            "float": ([1, 1.5, 3e38], [3.5e38, -1e300, 10**400], "is out of the range of float"),
            "double": ([1, 1e308, -5], ["1", True, [1.0]], "is not a double"),
            "string": (["", "\u00fc"], [1, ["x"], {}], "is not a string"),
            "bytes": (["\u00ff", ""], ["\u0100", 1, [1]], "is not bytes"),
            "null": ([None], [0, ""], "is not null"),
            ("enum",): (["A"], ["a", 1, ["A"], {}], "is none of the symbols"),
            ("fixed",): (["\u00ff\u00ff"], ["\u00ff"], "is not 2 bytes long"),
            ("date",): ([19000, "2024-01-02"], ["02.01.2024", 1.5], "is not a date"),
            ("timestamp-millis",): ([10**12, "2024-01-02T03:04:05Z"], ["now"], "is not a timestamp-millis"),
            ("decimal",): ([1, 1.5, "-12.30"], ["x", True], "is not a decimal"),
            ("union",): ([1, "x", None], [1.5, []], "is none of long, string, null"),
        }
        shapes = {
            "enum": {"kind": "enum", "symbols": ["A", "B"]},
            "fixed": {"kind": "fixed", "size": 2},
            "date": {"kind": "logical", "logical": "date", "of": "int"},
            "timestamp-millis": {"kind": "logical", "logical": "timestamp-millis", "of": "long"},
            "decimal": {"kind": "logical", "logical": "decimal", "of": "bytes", "scale": 2},
            "union": {"kind": "union", "of": ["long", "string", "null"]},
        }
        for kind, (good, bad, reason) in kinds.items():
            shape = kind if isinstance(kind, str) else shapes[kind[0]]
            report, found = self.reasons(schema(x=shape), *({"x": value} for value in good + bad))
            self.assertEqual(found, {("x", reason): len(bad)}, kind)
            self.assertEqual(self.output(), [{"x": value} for value in good])
        nested = schema(
            field("l", {"kind": "array", "items": LONG}), field("m", {"kind": "map", "values": LONG}), field("t", tree)
        )
        good = {"l": [1], "m": {"k": 1}, "t": {"v": 1, "next": {"v": 2, "next": None}}}
        report, found = self.reasons(
            nested,
            good,
            dict(good, l=[1, None]),
            dict(good, l={}),
            dict(good, m={"secret": "secret"}),
            dict(good, t={"v": 1, "next": {"v": "x", "next": None}}),
            dict(good, t={"v": 1}),
            dict(good, t=[]),
        )
        self.assertEqual(
            found,
            {
                ("l[]", "is not a long"): 1,
                ("l", "is not a list"): 1,
                ("m{}", "is not a long"): 1,
                ("t.next.v", "is not a long"): 1,
                ("t.next", "is missing"): 1,
                ("t", "is not a record"): 1,
            },
        )

    def test_a_value_that_nests_too_deep_is_rejected(self):
        deep = {"v": 1, "next": None}
        for _ in range(150):
            deep = {"v": 1, "next": deep}
        tree = {
            "kind": "record",
            "name": "T",
            "fields": [field("v", LONG), field("next", {"kind": "ref", "name": "T"}, nullable=True)],
        }
        _, found = self.reasons(schema(t=tree), {"t": deep}, {"t": {"v": 1, "next": None}})
        self.assertEqual([reason for _, reason in found], ["is nested too deep"])

    def test_nothing_of_a_schema_can_become_code(self):
        name = "x', 0) or __import__('os').system('touch was') or get('\"\\\n\u2028"
        kinds = schema(field(name, {"kind": "enum", "symbols": ["')+__import__('os').system('touch was')+('"]}))
        report, found = self.reasons(kinds, {name: "y"}, {})
        self.assertEqual(report["rejected"]["input"], 2)
        self.assertFalse(os.path.exists(os.path.join(self.folder, "was")))

    def test_bad_outputs_are_rejected_and_counted_and_the_good_ones_written(self):
        source = "def score(record):\n    yield {'y': record['x']}\n    yield {'y': 1}\n"
        ended = self.run_job(source, lines({"x": "secret"}, {"x": 2}), output={"schema": schema(y=LONG)})
        report = self.assert_records(ended, scored=2, written=3, rejected={"input": 0, "output": 1})
        self.assertEqual(report["reasons"], [{"side": "output", "field": "y", "reason": "is not a long", "count": 1}])
        self.assertNotIn("secret", json.dumps(ended.messages))

    def test_a_job_may_end_at_the_first_bad_record_with_what_came_before_it(self):
        data = lines({"x": 1}, {"x": "bad"}, {"x": 3}, {"x": "bad"})
        ended = self.run_job(ECHO, data, schema=schema(x=LONG), stop_on_bad_records=True)
        self.assert_records(ended, stopped_at=2, read=2, scored=1, written=1, rejected={"input": 1, "output": 0})
        self.assertEqual(self.output(), [{"x": 1}])
        ended = self.run_job(ECHO, data, output={"schema": schema(x=LONG)}, stop_on_bad_records=True)
        self.assert_records(ended, stopped_at=2, read=2, scored=2, written=1, rejected={"input": 0, "output": 1})

    def test_at_most_twenty_reasons_are_told_the_most_frequent_first(self):
        kinds = schema(*(field("f{:02}".format(n), LONG) for n in range(30)))
        records = [{"f{:02}".format(n): 1 for n in range(30) if n != bad} for bad in range(30)] + [
            {"f{:02}".format(n): 1 for n in range(29)}
        ]
        report, found = self.reasons(kinds, *records)
        self.assertEqual(len(report["reasons"]), 20)
        self.assertEqual(report["reasons"][0]["field"], "f29")
        self.assertEqual(report["rejected"]["input"], 31)


@unittest.skipUnless(has_module("pandas"), "pandas is not installed")
class Frames(RecordsTest):
    def metrics(self, source, data, **more):
        return self.run_job(source, data, job_type="MODEL_BATCH_TEST_JOB", function="metrics", **more)

    def test_a_score_function_with_recordsets_gets_frames_of_a_bounded_size_and_may_give_frames(self):
        ended = self.run_job(
            """
            import pandas
            def score(frame):
                assert isinstance(frame, pandas.DataFrame) and len(frame) <= 4
                frame["rows"] = len(frame)
                yield frame
                yield {"total": int(frame["x"].sum())}
            """,
            lines(*({"x": x, "y": None if x else 1.5} for x in range(10))),
            recordsets=True,
            frame_rows=4,
        )
        self.assert_records(ended, read=10, scored=10, written=13)
        output = self.output()
        self.assertEqual(output[0], {"x": 0, "y": 1.5, "rows": 4})
        self.assertEqual(output[1], {"x": 1, "y": None, "rows": 4})
        self.assertEqual([one["total"] for one in output if "total" in one], [6, 22, 17])

    def test_a_frame_at_which_it_raises_is_told_by_its_first_record_or_skipped_whole(self):
        source = "def score(frame):\n    yield frame\n    assert 5 not in list(frame['x'])\n"
        data = lines({"x": "bad"}, *({"x": x} for x in range(1, 10)))
        options = {"recordsets": True, "frame_rows": 3, "schema": schema(x=LONG)}
        self.assert_model_failed(self.run_job(source, data, **options), 5, "AssertionError")
        ended = self.run_job(source, data, skip_failed_records=True, **options)
        self.assert_records(ended, read=10, failed=3, scored=6, written=6, rejected={"input": 1, "output": 0})

    def test_metrics_gets_each_input_whole_as_a_frame_in_order_and_its_dict_is_the_result_and_the_output(self):
        self.write("a.csv", "x,y\n" + "".join("{},{}\n".format(n, n % 2) for n in range(45000)))
        self.write("b.jsonl", lines({"z": 1}, {"z": 2}))
        ended = self.metrics(
            """
            import numpy
            def metrics(a, b):
                assert list(a["x"]) == list(range(45000)) and a["x"].dtype == "int64", a.dtypes
                yield {"mean": a["y"].mean(), "nan": numpy.nan}
                yield {"rows": numpy.int64(len(b))}
            """,
            None,
            inputs=[{"location": "a.csv", "format": "csv"}, {"location": "b.jsonl", "format": "jsonl"}],
            output={"location": "out.json", "format": "json"},
        )
        self.assert_records(ended, read=45002, scored=45002, written=1)
        self.assertEqual(ended.end["results"], {"mean": 0.5, "nan": None, "rows": 2})
        self.assertEqual(json.loads(self.bytes_of("out.json")), [{"mean": 0.5, "nan": None, "rows": 2}])

    def test_columns_have_the_types_that_a_frame_of_all_rows_at_once_would_have(self):
        rows = [{"i": n, "f": n / 2, "s": "x", "late": None, "b": True, "part": 1, "words": None} for n in range(25000)]
        rows += [{"i": n, "f": None, "s": None, "late": 1.5, "b": False, "words": "w", "new": n} for n in range(25000)]
        ended = self.metrics(
            """
            import json, pandas
            def metrics(frame):
                rows = [json.loads(line) for line in open("in.jsonl")]
                pandas.testing.assert_frame_equal(frame, pandas.DataFrame(rows))
                return {"columns": list(frame.columns)}
            """,
            lines(*rows),
        )
        self.assert_records(ended, read=50000)
        self.assertEqual(ended.end["results"]["columns"], ["i", "f", "s", "late", "b", "part", "words", "new"])

    def test_training_writes_files_into_a_folder_that_is_there(self):
        ended = self.run_job(
            "def train(frame):\n    open('outputDir/model.bin', 'w').write(str(len(frame)))\n",
            "x\n1\n2\n",
            format="csv",
            job_type="MODEL_BATCH_TRAINING_JOB",
            function="train",
            outputs=[],
        )
        self.assert_records(ended, read=2, scored=2, written=0)
        self.assertEqual(ended.read("outputDir/model.bin"), "2")
        self.assertIsNone(ended.end["results"])

    def test_a_frame_that_the_memory_does_not_hold_is_refused_before_it_is_read_with_what_it_would_need(self):
        data = "x,text\n" + "".join("{},{}\n".format(n, "t" * 200) for n in range(400000))
        source = "def init():\n    open('was', 'w')\ndef metrics(frame):\n    return {}\n"
        ended = self.metrics(source, data, format="csv", init="init", memory=150 * 1024 * 1024)
        self.assert_refused(ended, "of memory as a data frame, and the driver may hold 150 MiB", "NotEnoughMemory")
        self.assertFalse(os.path.exists(os.path.join(self.folder, "was")))
        needed = int(ended.end["exception"]["message"].partition("about ")[2].split()[0])
        self.assertGreater(needed, 160)
        self.assertLess(needed, 500)
        self.assert_records(self.metrics(source, "x\n1\n", format="csv", init="init", memory=2**30), read=1)

    def test_rejected_rows_are_not_in_the_frame(self):
        source = "def metrics(frame):\n    return {'sum': int(frame['x'].sum())}\n"
        ended = self.metrics(source, lines({"x": 1}, {"x": "bad"}, {"x": 3}), schema=schema(x=LONG))
        self.assert_records(ended, read=3, scored=2, rejected={"input": 1, "output": 0})
        self.assertEqual(ended.end["results"], {"sum": 4})

    def test_no_rows_make_an_empty_frame(self):
        ended = self.metrics("def metrics(frame):\n    return {'rows': len(frame)}\n", "")
        self.assert_records(ended, read=0)
        self.assertEqual(ended.end["results"], {"rows": 0})

    def test_metrics_that_give_no_dict_or_raise_are_refused_and_told(self):
        self.assert_refused(self.metrics("def metrics(frame):\n    return [1]\n", lines({})), "it returned a list")
        ended = self.metrics("def metrics(frame):\n    frame['gone']\n", lines({"x": 1}))
        self.assert_model_failed(ended, None, "KeyError")

    def test_a_function_needs_as_many_parameters_as_there_are_inputs(self):
        ended = self.metrics("def metrics(a, b):\n    return {}\n", lines({}))
        self.assert_refused(ended, "metrics takes 2 parameters")


class WithoutLibraries(RecordsTest):
    def test_a_frame_without_pandas_is_refused_at_once_with_the_remedy(self):
        self.write("pandas.py", "raise ImportError\n")
        source = "open('was', 'w')\ndef metrics(frame):\n    return {}\ndef score(frame):\n    pass\n"
        ended = self.run_job(source, lines({}), job_type="MODEL_BATCH_TEST_JOB", function="metrics")
        self.assert_refused(ended, "REQUIRED_LIBRARIES", "MissingLibrary")
        self.assertIn("pandas", ended.end["exception"]["message"])
        self.assert_refused(self.run_job(source, lines({}), recordsets=True), "pandas")
        self.assertFalse(os.path.exists(os.path.join(self.folder, "was")))

    def test_parquet_without_pyarrow_is_refused_at_once_with_the_remedy(self):
        self.write("pyarrow.py", "raise ImportError\n")
        self.assert_refused(self.run_job(ECHO, "", format="parquet"), "REQUIRED_LIBRARIES", "MissingLibrary")
        output = {"location": "out.parquet", "format": "parquet"}
        self.assert_refused(self.run_job(ECHO, lines({}), output=output), "pyarrow")


@unittest.skipUnless(has_module("pyarrow"), "pyarrow is not installed")
class Parquet(RecordsTest):
    def test_what_is_written_is_read_as_it_was_with_a_schema_or_without(self):
        source = """
            import datetime
            def score(record):
                for n in range(25000):
                    yield {"n": n, "s": str(n), "f": n / 2, "day": datetime.date(2024, 1, 2), "y": b"x", "l": [n]}
            """
        kinds = schema(
            field("n", "int"),
            field("s", STRING),
            field("f", DOUBLE),
            field("y", "bytes"),
            field("day", {"kind": "logical", "logical": "date", "of": "int"}),
            field("l", {"kind": "array", "items": LONG}),
        )
        for kinds in (None, kinds):
            output = {"location": "out.parquet", "format": "parquet", "schema": kinds}
            self.assert_records(self.run_job(source, lines({}), output=output), written=25000)
            self.assert_records(self.run_job(ECHO, None, location="out.parquet", format="parquet"), read=25000)
            self.assertEqual(
                self.output()[4],
                {
                    key: value
                    for key, value in sorted(
                        {"n": 4, "s": "4", "f": 2.0, "day": "2024-01-02", "y": "eA==", "l": [4]}.items()
                    )
                },
            )

    def test_a_file_that_is_none_is_refused(self):
        self.assert_refused(self.run_job(ECHO, b"PAR1 no PAR1", format="parquet"), "not a Parquet file")


@unittest.skipUnless(has_module("pyspark") and shutil.which("java"), "pyspark or Java is not installed")
class OnSpark(RecordsTest):
    """Each run starts a JVM of its own, so there are few, with much in each."""

    SOURCE = """
        import os
        def init():
            global inits
            inits = globals().get("inits", 0) + 1
        def score(record):
            if record.get("n") == "raise" :
                raise ValueError("as told")
            yield {"n": record["n"], "text": record["text"], "twice": [record["n"]] * 2}
            if record["n"] % 1000 == 0:
                yield {"late": True, "inits": inits}
            print("noise")
        """

    def content_of(self, name):
        """The bytes of a file; of an Avro file the records, as where its blocks end depends on the pieces."""
        if not name.endswith(".avro"):
            return self.bytes_of(name)
        output = {"location": "records.jsonl"}
        self.assert_records(self.run_job(ECHO, None, location=name, format="avro", output=output))
        return self.bytes_of("records.jsonl")

    def assert_same_on_both_ways(self, source, names, **options):
        """Runs the job both ways; the reports and the outputs ``names`` must be the same."""
        seen = []
        for way in ("process", "spark"):
            ended = self.run_job(source, None, way=way, **options)
            report = self.assert_records(ended, way=way)
            del report["way"]
            seen.append((report, [self.content_of(name) for name in names]))
            for name in names:
                os.unlink(os.path.join(self.folder, name))
        self.assertEqual(seen[0][0], seen[1][0])
        for name, one, other in zip(names, seen[0][1], seen[1][1]):
            self.assertEqual(one, other, name)
        return seen[0]

    def test_all_formats_give_the_same_on_both_ways(self):
        rows = [{"n": n, "text": 'a "{}",\nb'.format(n) if n % 3 else "x" * (n % 50)} for n in range(5000)]
        bad = [{"n": "no", "text": "secret"}]
        records = rows[:2500] + bad + rows[2500:]
        quoted = ['{},"{}"\n'.format(row["n"], row["text"].replace('"', '""')) for row in records]
        self.write("a.csv", ("n,text\n" + "".join(quoted)).encode())
        self.write(
            "b.csv.gz", gzip.compress(("text,n\n" + "".join('"x",{}\n'.format(n) for n in range(3000))).encode())
        )
        self.write("c.json", json.dumps(records, ensure_ascii=False))
        self.write("d.jsonl", lines(*records) + "broken\n")
        self.write("e/part-1", lines(*rows[:100]))
        self.write("e/part-2", "")
        self.write("e/part-3", lines(*rows[:1500]))
        kinds = schema(n=LONG, text=STRING)
        self.run_job(
            "def score(record):\n    yield record\n",
            lines(*rows),
            location="rows.jsonl",
            output={"location": "f.avro", "format": "avro", "schema": kinds},
        )
        inputs = [
            {"location": name, "format": format, "schema": kinds}
            for name, format in (
                ("a.csv", "csv"),
                ("b.csv.gz", "csv"),
                ("c.json", "json"),
                ("d.jsonl", "jsonl"),
                ("e/", "jsonl"),
                ("f.avro", "avro"),
            )
        ]
        names = ["o.csv", "o.json", "o.jsonl", "o.avro", "p.avro", "o.csv.bz2"]
        outputs = [{"location": name, "format": name.split(".")[1]} for name in names]
        outputs[4]["schema"] = schema(
            field("n", LONG, optional=True, nullable=True),
            field("text", STRING, nullable=True, optional=True),
            field("late", "boolean", nullable=True, optional=True),
        )
        report, _ = self.assert_same_on_both_ways(self.SOURCE, names, inputs=inputs, outputs=outputs, init="init")
        self.assertEqual(report["rejected"], {"input": 4, "output": 0})
        self.assertEqual(report["read"], 5001 + 3000 + 5001 + 5002 + 1600 + 5000)

    def test_a_csv_file_whose_quotes_do_not_pair_gives_the_same_on_both_ways(self):
        text = "n,text\n" + "".join(
            '{},5" {}\n'.format(n, "x" * 30) if n % 7 == 0 else '{},"a\n""b"\n'.format(n) for n in range(5000)
        )
        self.write("odd.csv", text)
        report, _ = self.assert_same_on_both_ways(
            self.SOURCE, ["out.jsonl"], inputs=[{"location": "odd.csv", "format": "csv"}], init="init"
        )
        self.assertEqual(report["read"], 5000)

    def test_the_first_record_at_which_it_raises_is_told_by_its_number_in_the_whole_input(self):
        source = """
            def score(record):
                if record["n"] in (3456, 4999):
                    raise KeyError(record["n"])
                yield record
            """
        ended = self.run_job(source, lines(*({"n": n, "pad": "x" * 50} for n in range(5000))), way="spark")
        self.assert_model_failed(ended, 3457, "KeyError")
        self.assertEqual(ended.end["exception"]["frame"]["line"], 4)
        self.assertEqual(ended.end["exception"]["frame"]["file"], "model_source_code.py")
        self.assertNotIn("pyspark", ended.end["exception"]["traceback"])
        # The driver's own word for the log, and none of Spark's.
        self.assertEqual(ended.stderr.count(b"Traceback"), 1)

    def test_stopping_at_the_first_bad_record_is_the_same_on_both_ways(self):
        rows = [{"n": n if n % 1500 or not n else "bad", "text": "x" * 40} for n in range(5000)]
        self.write("in.jsonl", lines(*rows))
        inputs = [{"location": "in.jsonl", "format": "jsonl", "schema": schema(n=LONG)}]
        report, _ = self.assert_same_on_both_ways(
            self.SOURCE, ["out.jsonl"], inputs=inputs, stop_on_bad_records=True, init="init"
        )
        self.assertEqual((report["stopped_at"], report["read"]), (1501, 1501))

    def test_a_worker_that_leaves_its_process_ends_the_job_with_words_for_it(self):
        ended = self.run_job("import os\ndef score(record):\n    os._exit(3)\n", lines({"x": 1}), way="spark")
        self.assertEqual((ended.end["message"], ended.end["kind"]), ("failed", "model"))
        self.assertIn("a Python worker of Spark ended while it scored", ended.end["exception"]["message"])
        self.assert_nothing_left()

    def test_an_init_that_raises_in_a_worker_is_told_as_anywhere(self):
        ended = self.run_job("def init():\n    1 / 0\n" + ECHO, lines({"x": 1}), way="spark", init="init")
        self.assert_model_failed(ended, None, "ZeroDivisionError")
        self.assertEqual(ended.end["exception"]["frame"]["function"], "init")

    def test_a_folder_gets_a_part_of_every_piece_with_the_same_columns(self):
        source = (
            "def score(record):\n    yield {'n': record['n']} if record['n'] % 2000 else {'k': 1, 'n': record['n']}\n"
        )
        output = {"location": "out/", "kind": "folder", "format": "csv"}
        ended = self.run_job(
            source, lines(*({"n": n, "pad": "x" * 50} for n in range(1, 5000))), way="spark", output=output
        )
        self.assert_records(ended, written=4999)
        names = sorted(os.listdir(os.path.join(self.folder, "out")))
        self.assertEqual(names[0], "_SUCCESS")
        self.assertGreater(len(names), 5)
        numbers = []
        for name in names[1:]:
            text = self.bytes_of("out/" + name).decode().splitlines()
            self.assertEqual(text[0], "n,k")
            numbers += [int(line.split(",")[0]) for line in text[1:]]
        self.assertEqual(numbers, list(range(1, 5000)))

    def test_executors_elsewhere_are_sent_all_they_need_and_send_back_all_they_wrote(self):
        # local-cluster starts executors in processes and folders of their own.
        self.environment["PYSPARK_SUBMIT_ARGS"] = (
            "--master local-cluster[2,1,1024] --conf spark.executor.memory=512m "
            "--conf spark.ui.enabled=false pyspark-shell"
        )
        # They lie in SPARK_HOME, which therefore has to be one of this test's own.
        spark = os.path.dirname(__import__("pyspark").__file__)
        self.environment["SPARK_HOME"] = os.path.join(self.job_folder, "spark")
        os.mkdir(self.environment["SPARK_HOME"])
        for name in os.listdir(spark):
            os.symlink(os.path.join(spark, name), os.path.join(self.environment["SPARK_HOME"], name))
        source = """
            import helper
            def init():
                global text
                text = open("attached.txt").read()
            def score(record):
                yield {"n": helper.twice(record["n"]), "text": text}
            """
        self.write("in.jsonl", lines(*({"n": n, "pad": "x" * 50} for n in range(5000))))
        report, outputs = self.assert_same_on_both_ways(
            source,
            ["out.jsonl"],
            inputs=[{"location": "in.jsonl", "format": "jsonl"}],
            init="init",
            files={"helper.py": "def twice(n):\n    return 2 * n\n", "attached.txt": "attached"},
        )
        self.assertEqual(report["written"], 5000)

    def test_other_file_systems_are_read_and_written_through_hadoop(self):
        # viewfs has its own scheme; what it shows lies in the folder of this test.
        self.environment["PYSPARK_SUBMIT_ARGS"] = (
            "--master local[2] --conf spark.ui.enabled=false "
            "--conf spark.hadoop.fs.viewfs.mounttable.test.link./data=file://{} pyspark-shell".format(self.job_folder)
        )
        for name, n in (("in/part-1", 1), ("in/part-0", 0), ("in/_SUCCESS", 7)):
            path = os.path.join(self.job_folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write("n\n{}\n".format(n))
        ended = self.run_job(
            ECHO,
            None,
            way="spark",
            location="viewfs://test/data/in",
            format="csv",
            outputs=[
                {"location": "viewfs://test/data/out.csv", "format": "csv"},
                {"location": "viewfs://test/data/folder/", "format": "jsonl", "kind": "folder"},
            ],
        )
        self.assert_records(ended, read=2, written=2)
        with open(os.path.join(self.job_folder, "out.csv")) as file:
            self.assertEqual(file.read(), "n\n0\n1\n")
        self.assertIn("_SUCCESS", os.listdir(os.path.join(self.job_folder, "folder")))
        self.assertFalse([name for name in os.listdir(self.job_folder) if "partial" in name])
        ended = self.run_job(ECHO, None, way="spark", location="viewfs://test/data/gone.csv", format="csv")
        self.assertEqual(ended.end["kind"], "contract")
        self.assertIn("gone.csv cannot be read: ", ended.end["exception"]["message"])

    def test_a_database_is_read_by_spark(self):
        # Derby comes with Spark.
        driver = "org.apache.derby.jdbc.EmbeddedDriver"
        url = "jdbc:derby:" + os.path.join(self.job_folder, "db")
        create = """
            from pyspark.sql import SparkSession
            frame = SparkSession.builder.getOrCreate().range(25000).selectExpr("id as N", "cast(id as string) as T")
            options = {"url": %r + ";create=true", "dbtable": "THINGS", "driver": %r}
            frame.coalesce(1).write.format("jdbc").options(**options).save()
            """ % (url, driver)
        environment = dict(self.environment, PYSPARK_SUBMIT_ARGS="--master local[1] pyspark-shell")
        command = [sys.executable, "-c", textwrap.dedent(create)]
        subprocess.run(command, cwd=self.job_folder, env=environment, stderr=subprocess.DEVNULL, check=True)
        login = os.path.join(os.path.dirname(self.folder), "database.json")
        with open(login, "w") as file:
            json.dump({"user": "app", "password": "s3cret"}, file)
        one = {
            "location": url,
            "format": "jdbc",
            "options": {"query": "select N, T from THINGS order by N", "driver": driver},
        }
        source = "import os\nassert not os.path.exists('../database.json')\n" + ECHO
        ended = self.run_job(source, None, way="spark", inputs=[dict(one, name="things")])
        self.assert_records(ended, read=25000, written=25000)
        self.assertFalse(os.path.exists(login))
        self.assertEqual(self.output(), [{"N": n, "T": str(n)} for n in range(25000)])

    def test_parquet_goes_by_spark_where_pyarrow_is_not_there(self):
        self.write("pyarrow.py", "raise ImportError\n")
        kinds = schema(
            field("n", LONG), field("s", STRING, nullable=True), field("l", {"kind": "array", "items": LONG})
        )
        self.assert_records(
            self.run_job(
                "def score(record):\n    yield {'n': record['n'], 's': None, 'l': [record['n']]}\n",
                lines(*({"n": n} for n in range(50000))),
                way="spark",
                output={"location": "out.parquet", "format": "parquet", "schema": kinds},
            ),
            written=50000,
        )
        self.assertEqual(self.bytes_of("out.parquet")[:4], b"PAR1")
        ended = self.run_job(ECHO, None, way="spark", location="out.parquet", format="parquet")
        self.assert_records(ended, read=50000, written=50000)
        self.assertEqual(self.output(), [{"n": n, "s": None, "l": [n]} for n in range(50000)])


if __name__ == "__main__":
    unittest.main()
