"""Zips that reach outside, blow up or lie are refused before a byte of them is used."""

import io
import os
import pickle
import stat
import struct
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared import archives
from shared.errors import Refused


def zipped(files: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer


def head_of(buffer: io.BytesIO, length: int = 1000) -> bytes:
    entry = archives.members(buffer)[0]
    with zipfile.ZipFile(buffer) as archive:
        return archives.head_of(archive, entry, length)


def unpack(buffer: io.BytesIO, path: Path) -> None:
    entry = archives.members(buffer)[0]
    with zipfile.ZipFile(buffer) as archive:
        archives.unpack(archive, entry, path)


def refusal_of(buffer: io.BytesIO) -> Refused:
    with pytest.raises(Refused) as refusal:
        head_of(buffer)
    return refusal.value


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../a.csv",
        "x/../../a.csv",
        "/etc/passwd",
        "..\\a.csv",
        "x\\..\\a.csv",
        "C:\\a.csv",
        "C:a.csv",
        "\\\\host\\a.csv",
    ],
)
def test_a_path_outside_is_refused_with_its_name(name: str):
    refusal = refusal_of(zipped({name: b"text\nhello\n"}))
    assert refusal.code == "unsafe_path"
    assert "outside its own folder" in refusal.message


def test_a_name_with_a_zero_byte_is_refused():
    data = zipped({"aXcsv": b"text\nhello\n"}).getvalue().replace(b"aXcsv", b"a\0csv")
    assert refusal_of(io.BytesIO(data)).code == "unsafe_path"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(kind: int):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("a.csv")
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    assert "link or device" in refusal_of(buffer).message


def test_a_bomb_is_refused_by_its_ratio():
    assert refusal_of(zipped({"a.csv": b"a" * 50 * 2**20})).code == "zip_bomb"


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path):
    data = bytearray(zipped({"a.csv": b"text\n" + b"hello\n" * 1000}).getvalue())
    place = data.rfind(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<L", 10)
    buffer = io.BytesIO(bytes(data))
    with pytest.raises(Refused):
        unpack(buffer, tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists() or (tmp_path / "a.csv").stat().st_size <= 10


def test_too_many_members_are_refused_before_they_are_listed():
    refusal = refusal_of(zipped({f"{n}.csv": b"" for n in range(1001)}))
    assert refusal.code == "too_many_members"
    assert "1001" in refusal.message


def test_a_table_of_contents_that_claims_too_much_is_refused():
    data = bytearray(zipped({"a.csv": b"text\nhello\n"}).getvalue())
    end = data.rfind(b"PK\x05\x06")
    data[end + 12 : end + 16] = struct.pack("<L", 2**31)
    assert "table of contents" in refusal_of(io.BytesIO(bytes(data))).message


def test_a_table_of_contents_that_points_outside_is_refused():
    for place in (2**31, 2**32 - 2):
        data = bytearray(zipped({"a.csv": b"text\nhello\n"}).getvalue())
        entry = data.rfind(b"PK\x01\x02")
        data[entry + 42 : entry + 46] = struct.pack("<L", place)
        assert "outside of it" in refusal_of(io.BytesIO(bytes(data))).message


def test_two_members_of_one_name_are_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.csv", "1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.csv", "2")
    assert "twice" in refusal_of(buffer).message


def test_an_archive_within_is_refused():
    inner = zipped({"a.csv": b"text\nhello\n"}).getvalue()
    assert refusal_of(zipped({"a.zip": inner})).code == "nested_archive"


def test_a_zip_cut_short_is_refused():
    data = zipped({"a.csv": b"text\nhello\n"}).getvalue()
    for end in (4, 30, len(data) - 30, len(data) - 1):
        assert "zip" in refusal_of(io.BytesIO(data[:end])).message


def test_a_damaged_member_is_refused(tmp_path: Path):
    data = bytearray(zipped({"a.csv": pickle.dumps(list(range(1000)))}).getvalue())
    data[60] ^= 0xFF
    buffer = io.BytesIO(bytes(data))
    with pytest.raises(Refused, match="damaged"):
        unpack(buffer, tmp_path / "a")


def test_an_encrypted_member_is_refused():
    data = bytearray(zipped({"a.csv": b"text\nhello\n"}).getvalue())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refusal_of(io.BytesIO(bytes(data))).message


def test_an_empty_zip_is_refused():
    assert refusal_of(zipped({})).code == "empty_file"


def test_litter_of_desktops_does_not_count():
    buffer = zipped({"data/a.csv": b"text\nhello\n", "__MACOSX/._a.csv": b"x", "data/.DS_Store": b"x"})
    assert [entry.filename for entry in archives.members(buffer)] == ["data/a.csv"]
    assert head_of(buffer, 4) == b"text"


def test_many_small_bombs_are_refused_together():
    packed = zipped({f"{n}.txt": bytes(9 * 2**20) for n in range(3)})
    assert refusal_of(packed).code == "zip_bomb"


def test_members_that_share_their_bytes_are_refused():
    data = bytearray(zipped({"a.csv": os.urandom(1000), "b.csv": os.urandom(1000)}).getvalue())
    for place in (data.find(b"PK\x01\x02"), data.rfind(b"PK\x01\x02")):
        data[place + 20 : place + 24] = struct.pack("<L", 2000)
    assert refusal_of(io.BytesIO(bytes(data))).code == "zip_bomb"


def test_a_zip_of_a_dataset_may_hold_many_files_and_is_looked_at_soon():
    buffer = zipped({f"{n:05}.txt": b"" for n in range(20_000)}, method=zipfile.ZIP_STORED)
    start = time.process_time()
    assert len(archives.members(buffer, archives.MANY)) == 20_000
    assert time.process_time() - start < 5


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
@example(flips=[(0, 0)])
def test_no_flipped_byte_of_a_zip_crashes_the_look(flips: list[tuple[int, int]]):
    data = bytearray(zipped({"a.csv": b"text,label\n" + b"hello,a\n" * 50, "__MACOSX/x": b"y"}).getvalue())
    for place, value in flips:
        data[place % len(data)] = value
    buffer = io.BytesIO(bytes(data))
    with tempfile.TemporaryDirectory() as folder, suppress(Refused):
        head_of(buffer)
        unpack(buffer, Path(folder) / "x")
