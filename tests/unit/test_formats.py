"""Every upload that cannot become rows is refused with what is wrong, where, and what to do."""

import json
import pickle
import time

import pytest

from shared.errors import Refused
from shared.formats import BOM, Glance, glance

HOSTILE = {
    "nothing at all": ("a.jsonl", b"", "empty"),
    "blank lines": ("a.csv", b"\n \r\n\n", "empty"),
    "not JSON in line 17": (
        "a.jsonl",
        b'{"text": "fine"}\n' * 16 + b"{'text': nope}\n",
        "Line 17 is not JSON: it begins «{'text': nope}»",
    ),
    "a blank line still counts": ("a.jsonl", b'{"a": 1}\n\n{"a": \n', "Line 3 is not JSON"),
    "a JSON array called lines": ("a.jsonl", b'[{"a": 1}]', "Line 1 is not a JSON object: it begins «[{"),
    "an array in a line": ("a.jsonl", b'{"a": 1}\n[1]\n', "Line 2 is not a JSON object: it begins «[1]»"),
    "an object over several lines": ("a.json", b'{\n"a": 1\n}', "one JSON object without a list of rows"),
    "NaN": ("a.jsonl", b'{"a": NaN}', "NaN is not JSON"),
    "very deep JSON": ("a.jsonl", b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "nested deeper than 32"),
    "deep JSON": ("a.jsonl", b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "Row 1 is nested deeper than 32"),
    "a number of 5,000 digits": ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    "half a surrogate pair": ("a.jsonl", b'{"a": "\\ud83d"}', "half of a surrogate pair"),
    "a line over 10 MB": ("a.jsonl", b'{"a": "' + b"x" * 11 * 2**20 + b'"}', "Line 1 is longer than 10 MB"),
    "2,000 fields": ("a.jsonl", json.dumps({str(n): n for n in range(2000)}).encode(), "has 2000 fields"),
    "an empty object": ("a.jsonl", b"{}\n", "Line 1 is an empty object"),
    "Latin-1": (
        "a.csv",
        "text,label\nGröße,1\n".encode("latin-1"),
        "Line 2 is not UTF-8: byte 0xF6 at position 3",
    ),
    "UTF-16": ("a.csv", "text,label\na,b\n".encode("utf-16"), "UTF-16"),
    "three fields under two names": (
        "a.csv",
        b"text,label\na,b\na,b,c\n",
        "Row 3 has 3 fields, the header has 2",
    ),
    "one field under two names": ("a.csv", b"text,label\na,b\nc\n", "Row 3 has 1 field, the header has 2"),
    "the same name twice": ("a.csv", b"a,b,a\n1,2,3\n", "names «a» twice (columns 1 and 3)"),
    "a column without a name": ("a.csv", b"a,,c\n1,2,3\n", "Column 2 of the header has no name"),
    "no header": ("a.csv", b"1,2\n3,4\n", "The file has no header: its first row is «1, 2»"),
    "a header alone": ("a.csv", b"text,label\n", "a header and no rows"),
    "a quote never closed": ("a.csv", b'a,b\n"x,1\ny,2\n', "quote that opens in row 2 is never closed"),
    "a quote in the wrong place": ("a.csv", b'a,b\n"x"y,1\n', "Row 2 has a quote in the wrong place"),
    "a pickle": ("a.safetensors", pickle.dumps({"a": 1}), "a Python pickle"),
    "a gzip": ("a.csv", b"\x1f\x8b\x08" + b"x" * 20, "gzip"),
    "a PDF": ("a.txt", b"%PDF-1.7 ...", "PDF"),
    "zero bytes": ("a", b"ab\x00\x01", "zero bytes"),
}

GOOD = {
    "JSONL": ("a.jsonl", b'{"a": 1}\n{"a": 2}', Glance("jsonl")),
    "JSONL under a wrong name": ("a.csv", b'{"a": 1}\n', Glance("jsonl")),
    "JSONL without a name": ("upload", b'\n{"a": 1}\n', Glance("jsonl")),
    "a byte order mark": ("a.jsonl", BOM + b'{"a": 1}\r\n', Glance("jsonl")),
    "a whole surrogate pair": ("a.jsonl", b'{"a": "\\ud83d\\ude00"}', Glance("jsonl")),
    "a JSON array": ("a.json", b'[{"a": 1}]', Glance("json")),
    "a JSON array without a name": ("upload", b' [\n{"a": 1}]', Glance("json")),
    "JSONL called JSON": ("a.json", b'{"a": 1}\n{"a": 2}\n', Glance("jsonl")),
    "JSONL with data in it": ("a.json", b'{"data": [1]}\n{"data": [2]}\n', Glance("jsonl")),
    "rows within an object": ("a.json", b'{"data": [{"a": 1}]}', Glance("json")),
    "text that begins with a bracket": ("a.txt", b"[Enter the king]\n", Glance("text")),
    "CSV with line ends in cells": ("a.csv", b'text,label\r\n"a ""b"",\r\nc",1\r\n', Glance("csv", ",")),
    "CSV without a name": ("upload", b"text,label\na,b\nc,d\n", Glance("csv", ",")),
    "CSV of one column": ("a.csv", b"text\nhello\n", Glance("csv", ",")),
    "CSV by semicolons": ("a.csv", b"text;label\na,b;1\nc;2\n", Glance("csv", ";")),
    "TSV": ("a.tsv", b"text\tlabel\na, b\tc\n", Glance("tsv", "\t")),
    "TSV under a wrong name": ("a.csv", b"text\tlabel\na, b\tc\n", Glance("tsv", "\t")),
    "prose": ("upload", b"Hello, world.\nNo table at all\nin here, is there, or?\n", Glance("text")),
    "a list called text": ("a.txt", b"a,b\nc,d\n", Glance("text")),
    "Parquet": ("a.csv", b"PAR1....PAR1", Glance("parquet")),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_become_rows_is_refused_with_a_sentence(case: str):
    filename, data, said = HOSTILE[case]
    with pytest.raises(Refused) as refusal:
        glance(data, filename, whole=True)
    assert said in refusal.value.message
    assert refusal.value.param == "file"
    assert len(refusal.value.message) < 500


@pytest.mark.parametrize("case", GOOD)
def test_formats_are_told_by_content(case: str):
    filename, data, kind = GOOD[case]
    assert glance(data, filename, whole=True) == kind


def test_the_head_of_a_large_json_document_is_enough():
    squad = b'{"version": "v2.0", "data": [{"paragraphs": [{"context": "' + b"x" * 3 * 2**20
    for name in ("train.json", "upload"):
        assert glance(squad, name, whole=False) == Glance("json")
    assert glance(b'[{"a": "' + b"x" * 2**20, "a.json", whole=False) == Glance("json")


def test_a_head_may_end_anywhere():
    rows = b'{"a": "some text"}\n' * 100
    for end in range(900, 960):
        assert glance(rows[:end], "a.jsonl", whole=False).format == "jsonl"
    table = b'text,label\n"a ""quoted"" cell\nover two lines",b\n' * 1
    table += b'"a ""quoted"" cell\nover two lines",b\n' * 100
    for end in range(900, 960):
        assert glance(table[:end], "a.csv", whole=False).format == "csv"


def test_a_look_at_eight_megabytes_takes_seconds_at_most():
    data = (b'{"messages": [{"role": "user", "content": "hello there"}]}\n' * 150_000)[: 8 * 2**20]
    start = time.process_time()
    glance(data, "a.jsonl", whole=False)
    assert time.process_time() - start < 5
