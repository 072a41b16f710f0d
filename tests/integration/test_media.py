"""Pictures and sounds among a job's samples: shown on its page, served to its team alone."""

import io
import wave
import zlib
from typing import NamedTuple

import pytest

from shared import media, storage
from shared.db import transaction
from shared.tables import Event, EventType, Job, State
from tests.factories import a_job, a_team, a_user
from tests.visitor import Visitor, the_web

PNG = b"\x89PNG\r\n\x1a\n" + zlib.compress(b"picture")
PICTURE, SOUND, GONE = "a" * 32 + ".png", "b" * 32 + ".wav", "c" * 32 + ".png"


def beep() -> bytes:
    """A hundredth of a second of silence as WAV."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(160))
    return buffer.getvalue()


class Scene(NamedTuple):
    """A job with samples, somebody of its team and somebody of another."""

    job: Job
    mine: Visitor
    other: Visitor


@pytest.fixture
def scene(clean: None) -> Scene:
    app = the_web()
    with transaction() as db:
        team, elsewhere = a_team(db), a_team(db)
        job = a_job(db, team, state=State.SUCCEEDED, base_model_id=None)
        samples = [
            {"prompt": "seven", "expected": {"media": GONE}, "answer": {"media": PICTURE}},
            {"prompt": "seven", "expected": "", "answer": {"media": SOUND}},
        ]
        db.add(Event(job_id=job.id, lease_id="lease-x", seq=1, team_id=team.id, type=EventType.SAMPLE, step=4,
                     data={"samples": samples}))  # fmt: skip
        people = a_user(db, team), a_user(db, elsewhere)
    for name, content in ((PICTURE, PNG), (SOUND, beep())):
        storage.put_bytes(media.key(job, name) or "", content)
    return Scene(job, Visitor(app, people[0]), Visitor(app, people[1]))


def test_the_page_shows_pictures_and_plays_sounds(scene: Scene):
    page = scene.mine.get(f"/jobs/{scene.job.id}").text
    assert f'<img class="picture" src="/jobs/{scene.job.id}/media/{PICTURE}"' in page
    assert f'<audio class="sound" controls preload="none" src="/jobs/{scene.job.id}/media/{SOUND}"' in page


@pytest.mark.parametrize(("name", "kind"), [(PICTURE, "image/png"), (SOUND, "audio/wav")])
def test_a_browser_may_show_and_keep_it(scene: Scene, name: str, kind: str):
    answer = scene.mine.get(f"/jobs/{scene.job.id}/media/{name}")
    assert (answer.status_code, answer.mimetype) == (200, kind)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "immutable" in answer.headers["Cache-Control"]
    assert "Content-Disposition" not in answer.headers
    part = scene.mine.get(f"/jobs/{scene.job.id}/media/{name}", headers={"Range": "bytes=0-3"})
    assert (part.status_code, len(part.data), part.mimetype) == (206, 4, kind)


def test_another_team_sees_nothing_of_it(scene: Scene):
    assert scene.other.get(f"/jobs/{scene.job.id}/media/{PICTURE}").status_code == 404


@pytest.mark.parametrize("name", [GONE, "secret.txt", "..%2f..%2fx.png", "A" * 32 + ".png"])
def test_what_is_no_such_picture_is_not_found(scene: Scene, name: str):
    assert scene.mine.get(f"/jobs/{scene.job.id}/media/{name}").status_code == 404
