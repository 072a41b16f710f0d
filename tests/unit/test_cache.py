"""What a machine keeps between attempts, while several workers and trainers use it at once."""

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from worker.cache import IN_USE_SECONDS, Cache, size_of
from worker.engine import memory

ROUNDS = 3000


@contextmanager
def again_and_again(action) -> Generator[None]:
    """Somebody else does so meanwhile."""
    over = threading.Event()

    def run():
        while not over.is_set():
            action()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def fill(folder, name="servable"):
    (folder / name).mkdir(parents=True)
    (folder / name / "weights").write_bytes(b"1" * 4096)


def test_a_size_is_told_while_a_trainer_moves_its_folders(tmp_path):
    (tmp_path / "stays").write_bytes(b"1" * 4096)
    half, whole = tmp_path / "tmp-step", tmp_path / "step"

    def write_and_rotate():
        for name in "abc":
            fill(half, name)
        half.rename(whole)
        for name in "abc":
            (whole / name / "weights").unlink()
            (whole / name).rmdir()
        whole.rmdir()

    with again_and_again(write_and_rotate):
        sizes = {size_of(tmp_path) for _ in range(ROUNDS)}
    assert min(sizes) >= 4096
    assert len(sizes) > 1, "it was read while folders came and went"


def test_what_is_idle_is_told_while_another_worker_fetches(tmp_path):
    cache = Cache(tmp_path)
    place = tmp_path / "base/one"

    def fetch_and_drop():
        cache._entry(place, fill)
        (place / "servable/weights").unlink()
        (place / "servable").rmdir()
        place.rmdir()
        (tmp_path / "base").rmdir()

    with again_and_again(fetch_and_drop):
        assert {len(cache.idle()) for _ in range(ROUNDS)} == {0}


def test_two_workers_of_one_home_may_fetch_the_same_entry(tmp_path):
    both, found = threading.Barrier(2, timeout=20), []

    def bring(cache):
        def fetch(folder):
            fill(folder)
            both.wait()

        found.append(cache._entry(tmp_path / "base/one", fetch))

    threads = [threading.Thread(target=bring, args=(Cache(tmp_path),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [tmp_path / "base/one"] * 2
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["one"]


@pytest.mark.parametrize("age", [0, 2 * IN_USE_SECONDS])
def test_what_is_half_fetched_goes_when_nobody_has_written_to_it_for_long(tmp_path, age):
    half = tmp_path / "base/tmp-1"
    fill(half)
    before = time.time() - 2 * IN_USE_SECONDS
    for path in (half, half / "servable", half / "servable/weights"):
        os.utime(path, (before, before))
    os.utime(half / "servable/weights", (time.time() - age,) * 2)
    assert (half in Cache(tmp_path).idle()) == (age > 0)
    assert half.exists(), "the start of a worker takes nothing from another one"


def test_notes_are_kept_read_and_dropped_by_several_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MOST", 2)

    def somebody(keys):
        for key in keys:
            memory.keep(tmp_path, "packs", key, key)

    with again_and_again(lambda: somebody("abc")), again_and_again(lambda: somebody("cba")):
        for _ in range(ROUNDS // 10):
            memory.keep(tmp_path, "packs", "mine", "mine")
            assert memory.recall(tmp_path, "packs", "a") in ("a", None)
            assert memory.recall(tmp_path, "packs", "b") in ("b", None)
    assert len(list((tmp_path / "packs").iterdir())) <= 5
