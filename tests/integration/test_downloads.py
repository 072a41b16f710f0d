"""Links: signed, timed, one object or several as a zip that is never on disk."""

import io
import os
import zipfile

import pytest

from shared import downloads, storage
from shared.errors import Refused
from shared.settings import settings

pytestmark = pytest.mark.usefixtures("stack")


def token_of(link: str) -> str:
    assert link.startswith(settings().public_url + "/download/")
    return link.rsplit("/", 1)[1]


def test_a_link_opens_what_it_was_made_for():
    token = token_of(downloads.link("teams/a/files/1", "größe.jsonl", "team-1"))
    assert downloads.opened(token) == downloads.Download("teams/a/files/1", "größe.jsonl", "team-1")


def test_a_link_that_was_changed_opens_nothing():
    token = token_of(downloads.link("teams/a/files/1", "x", "team-1"))
    for changed in (token[:-1], "A" + token, token.replace(".", "", 1), token.swapcase(), ""):
        with pytest.raises(Refused) as refusal:
            downloads.opened(changed)
        assert refusal.value.status == 404


def test_a_late_link_says_so(monkeypatch: pytest.MonkeyPatch):
    token = token_of(downloads.link("teams/a/files/1", "x", "team-1"))
    late = settings().model_copy(update={"download_minutes": -1.0})
    monkeypatch.setattr(downloads, "settings", lambda: late)
    with pytest.raises(Refused, match="expired") as refusal:
        downloads.opened(token)
    assert refusal.value.status == 410


def test_a_link_to_a_hundred_shards_fits_a_request_line():
    folder = f"teams/team-{'0' * 26}/jobs/ftjob-{'1' * 26}/1-abcdefgh/step-000120/servable/"
    names = [f"model-{n:05d}-of-00100.safetensors" for n in range(100)]
    link = downloads.zip_link([(name, folder + name) for name in names], "model.zip", "team-1")
    assert len(link) < 3000
    assert downloads.opened(token_of(link)).entries == tuple((name, folder + name) for name in names)


def test_a_zip_holds_the_objects_and_comes_in_pieces():
    data = {"model/a.bin": os.urandom(5 * 1024**2), "model/empty": b"", "größe.txt": b"x"}
    keys = {name: f"teams/zip/{n}" for n, name in enumerate(data)}
    for name, key in keys.items():
        storage.put_bytes(key, data[name])
    pieces = list(downloads.zipped(list(keys.items())))
    assert max(map(len, pieces)) < 2 * storage.CHUNK
    archive = zipfile.ZipFile(io.BytesIO(b"".join(pieces)))
    assert archive.testzip() is None
    assert {name: archive.read(name) for name in archive.namelist()} == data
