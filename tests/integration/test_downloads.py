"""Links that need no sign-in: whole, in parts, as zip; and addresses that make them for who may."""

import io
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from shared import downloads, storage
from shared.db import transaction
from shared.tables import State
from tests.factories import a_checkpoint, a_job, a_team, a_user
from tests.visitor import Visitor, the_web

BYTES = bytes(range(256)) * 40


@pytest.fixture
def stranger(clean) -> Visitor:
    """Somebody who is not signed in."""
    storage.put_bytes("teams/t/files/f", BYTES)
    return Visitor(the_web())


def path(link: str) -> str:
    return urlsplit(link).path


@pytest.fixture
def link(stranger: Visitor) -> str:
    """The path of a link to those bytes."""
    return path(downloads.link("teams/t/files/f", "weights ä.safetensors", "t"))


def test_a_link_gives_the_bytes_under_their_name(stranger: Visitor, link: str):
    answer = stranger.get(link)
    assert (answer.status_code, answer.data) == (200, BYTES)
    assert "attachment" in answer.headers["Content-Disposition"]
    assert "weights%20%C3%A4.safetensors" in answer.headers["Content-Disposition"]
    assert answer.headers["Content-Length"] == str(len(BYTES))
    assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("asked", "start", "end"), [("bytes=0-9", 0, 9), ("bytes=10200-", 10200, 10239), ("bytes=-40", 10200, 10239),
                                ("bytes=10-99999", 10, 10239)],
)  # fmt: skip
def test_a_broken_download_goes_on_where_it_was(
    stranger: Visitor, link: str, asked: str, start: int, end: int
):
    answer = stranger.get(link, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes {start}-{end}/{len(BYTES)}"
    assert answer.data == BYTES[start : end + 1]


def test_a_range_beyond_the_end_is_refused(stranger: Visitor, link: str):
    answer = stranger.get(link, headers={"Range": "bytes=99999-"})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(BYTES)}"


def test_another_etag_begins_again(stranger: Visitor, link: str):
    tag = stranger.get(link).headers["ETag"]
    again = {"Range": "bytes=5-9"}
    assert stranger.get(link, headers=again | {"If-Range": tag}).status_code == 206
    assert stranger.get(link, headers=again | {"If-Range": '"another"'}).data == BYTES
    assert stranger.get(link, headers={"If-None-Match": tag}).status_code == 304


def test_a_link_that_was_tampered_with_opens_nothing(stranger: Visitor, link: str):
    assert stranger.get(link[:-2] + "xx").status_code == 404


def test_a_checkpoint_comes_as_a_zip_without_its_optimizer(clean, tmp_path: Path):
    for name, data in {
        "servable/config.json": b"{}",
        "servable/model.safetensors": BYTES,
        "state/optimizer.safetensors": b"o",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with transaction() as db:
        team = a_team(db)
        viewer, foreigner = a_user(db, team, "viewer"), a_user(db, a_team(db))
        job = a_job(db, team, name="My bot", state=State.SUCCEEDED)
        checkpoint = a_checkpoint(db, job, 10, tmp_path)
    app = the_web()
    answer = Visitor(app, viewer).get(f"/checkpoints/{checkpoint.id}/download")
    assert answer.status_code == 303
    found = Visitor(app).get(path(answer.headers["Location"]))
    assert "My-bot-step-10-model.zip" in found.headers["Content-Disposition"]
    with zipfile.ZipFile(io.BytesIO(found.data)) as archive:
        assert sorted(name.split("/")[-1] for name in archive.namelist()) == [
            "config.json",
            "model.safetensors",
        ]
        assert archive.read("My-bot-step-10-model/model.safetensors") == BYTES
    one = Visitor(app, viewer).get(f"/checkpoints/{checkpoint.id}/files/config.json")
    assert Visitor(app).get(path(one.headers["Location"])).data == b"{}"
    assert (
        Visitor(app, viewer)
        .get(f"/checkpoints/{checkpoint.id}/files/../state/optimizer.safetensors")
        .status_code
        == 404
    )
    assert Visitor(app, foreigner).get(f"/checkpoints/{checkpoint.id}/download").status_code == 404
    assert Visitor(app).get(f"/checkpoints/{checkpoint.id}/download").status_code == 302
    whole = Visitor(app, viewer).get(f"/jobs/{job.id}/download")
    assert zipfile.ZipFile(io.BytesIO(whole.data)).testzip() is None
