"""The store keeps bytes as they are, in bounded memory, and says so when they come back changed."""

import hashlib
import io
import os
import tracemalloc
from pathlib import Path

import httpx
import pytest

from shared import storage
from shared.errors import Refused
from shared.servers import s3_knows_its_key
from shared.settings import settings
from tests.services import Stack

pytestmark = pytest.mark.usefixtures("stack")
MIB = 1024**2


class Dribble:
    """A stream of `length` bytes that gives a few at a time, as a network does, and may break."""

    def __init__(self, length: int, breaks_at: int | None = None) -> None:
        self.left, self.breaks_at = length, breaks_at

    def read(self, size: int, /) -> bytes:
        if self.breaks_at is not None and self.left < self.breaks_at:
            raise ConnectionResetError("the client went away")
        piece = min(size, self.left, 60_000)
        self.left -= piece
        return b"x" * piece


@pytest.fixture
def key() -> str:
    return f"teams/test/files/{os.urandom(6).hex()}"


def unfinished() -> list:
    return storage.client().list_multipart_uploads(Bucket=storage.bucket()).get("Uploads", [])


@pytest.mark.parametrize("length", [0, 1, 5 * MIB + 1, storage.PART, storage.PART + 1, 3 * storage.PART])
def test_a_stream_of_any_length_comes_back_as_it_was(key: str, length: int):
    data = os.urandom(length)
    assert storage.put_stream(key, io.BytesIO(data), 10**9) == (length, hashlib.sha256(data).hexdigest())
    assert storage.read(key) == data
    assert storage.size(key) == length


@pytest.mark.parametrize("length", [0, 1, 2 * storage.PART, 5 * storage.PART + 1])
def test_a_file_of_any_length_comes_back_as_it_was(tmp_path: Path, key: str, length: int):
    (tmp_path / "in").write_bytes(os.urandom(length))
    storage.put(key, tmp_path / "in")
    assert storage.get(key, tmp_path / "deep" / "out") == storage.sha256_of(tmp_path / "in")
    assert (tmp_path / "deep" / "out").read_bytes() == (tmp_path / "in").read_bytes()


def test_a_large_stream_passes_in_bounded_memory(key: str):
    storage.put_bytes(key, b"")  # the client is made before measuring
    tracemalloc.start()
    try:
        storage.put_stream(key, Dribble(120 * MIB), 10**9)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * storage.PART


def test_over_the_limit_nothing_is_kept(key: str):
    with pytest.raises(Refused, match="20 MiB") as refusal:
        storage.put_stream(key, Dribble(40 * MIB), 20 * MIB)
    assert refusal.value.code == "file_too_large"
    assert not storage.exists(key)
    assert not unfinished()


def test_of_an_upload_that_breaks_nothing_is_kept(key: str):
    with pytest.raises(ConnectionResetError):
        storage.put_stream(key, Dribble(40 * MIB, breaks_at=5 * MIB), 10**9)
    assert not storage.exists(key)
    assert not unfinished()


def test_a_part_of_an_object_can_be_read(key: str):
    storage.put_bytes(key, b"0123456789")
    for start, end, wanted in ((0, 0, b"0"), (3, 5, b"345"), (8, None, b"89"), (None, None, b"0123456789")):
        pieces, length = storage.stream(key, start, end)
        assert b"".join(pieces) == wanted
        assert length == len(wanted)


def test_a_link_of_the_store_gives_the_object_under_its_name_and_no_other(key: str):
    storage.put_bytes(key, b"0123456789")
    link = storage.presign(key, 'größe "1".bin', 60)
    answer = httpx.get(link, headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.content) == (206, b"234")
    told = answer.headers["content-disposition"]
    assert told == "attachment; filename=\"gre 1.bin\"; filename*=UTF-8''gr%C3%B6%C3%9Fe%201.bin"
    assert httpx.get(link.replace(key, key[:-1])).status_code == 403
    assert httpx.put(link, content=b"x").status_code == 403
    assert httpx.get(link.split("?")[0]).status_code == 403


def test_what_is_not_there_is_missing(tmp_path: Path, key: str):
    for ask in (storage.read, storage.size, lambda k: storage.get(k, tmp_path / "x")):
        with pytest.raises(storage.Missing):
            ask(key)
    assert not storage.exists(key)
    assert not list(tmp_path.iterdir())
    storage.delete(key)


def test_a_store_that_is_gone_is_away(monkeypatch: pytest.MonkeyPatch, key: str):
    gone = storage.connected("http://127.0.0.1:9")
    monkeypatch.setattr(storage, "client", lambda: gone)
    with pytest.raises(storage.Away):
        storage.put_bytes(key, b"x")


def test_without_its_bucket_the_store_is_away_and_nothing_is_missing(
    monkeypatch: pytest.MonkeyPatch, key: str
):
    storage.put_bytes(key, b"x")
    monkeypatch.setattr(settings(), "s3_bucket", "no-such-bucket")
    with pytest.raises(storage.Away):
        storage.read(key)


def test_a_folder_comes_back_file_by_file(tmp_path: Path, key: str):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "empty").write_bytes(b"")
    (folder / "sub" / "weights").write_bytes(os.urandom(3 * MIB))
    (folder / "link").symlink_to("/etc/passwd")
    manifest = storage.put_folder(key + "/", folder)
    assert [entry["name"] for entry in manifest] == ["empty", "sub/weights"]
    storage.get_folder(key + "/", manifest, tmp_path / "out")
    assert (tmp_path / "out/sub/weights").read_bytes() == (folder / "sub/weights").read_bytes()


def test_a_changed_byte_is_found(tmp_path: Path, key: str):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "weights").write_bytes(b"0" * 1000)
    manifest = storage.put_folder(key + "/", tmp_path / "in")
    storage.put_bytes(key + "/weights", b"0" * 999 + b"1")
    with pytest.raises(storage.Corrupt, match="weights"):
        storage.get_folder(key + "/", manifest, tmp_path / "out")
    assert not (tmp_path / "out" / "weights").exists()
    storage.delete(key + "/weights")
    with pytest.raises(storage.Missing):
        storage.get_folder(key + "/", manifest, tmp_path / "out")


def test_a_manifest_cannot_name_a_place_outside_its_folder(tmp_path: Path, key: str):
    storage.put_bytes(key + "/x", b"x")
    evil = [{"name": "../x", "bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}]
    with pytest.raises(storage.Corrupt, match="outside"):
        storage.get_folder(key + "/y/", evil, tmp_path / "out")


def test_a_folder_is_deleted_with_all_in_it_and_nothing_beside_it(key: str):
    for name in ("a", "b/c"):
        storage.put_bytes(f"{key}/{name}", b"x")
    storage.put_bytes(key + "-beside", b"x")
    storage.delete_prefix(key + "/")
    assert [entry["Key"] for entry in storage.listed(key)] == [key + "-beside"]


@pytest.mark.parametrize("prefix", ["", "/", "teams/", "teams", "teams/a/files/x"])
def test_no_whole_bucket_is_deleted_by_mistake(prefix: str):
    with pytest.raises(ValueError, match="folder"):
        storage.delete_prefix(prefix)


def test_the_store_passes_its_own_test():
    storage.self_test()


def test_a_store_that_does_not_know_the_key_yet_is_not_ready(stack: Stack):
    known = stack.environment
    port = int(known["S3_ENDPOINT"].rsplit(":", 1)[1])
    assert s3_knows_its_key(port, known)
    assert not s3_knows_its_key(port, known | {"AWS_ACCESS_KEY_ID": "not-loaded-yet"})
