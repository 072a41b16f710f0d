"""An upload's way: looked at, stored, imported by a worker, checked against a recipe, deleted."""

import hashlib
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pytest
from PIL import Image
from sqlmodel import Session, select

from shared import datasets, jobs, recipe, storage
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.settings import settings
from shared.tables import Dataset, DatasetVersion, File, Job, Ready, State, Team
from tests.factories import CHAT, a_dataset, a_job, a_team, a_user
from tests.imports import picture, zipped
from tests.services import Live
from tests.visitor import Visitor, the_web

ROWS = "".join(json.dumps(row) + "\n" for row in CHAT).encode()


@pytest.fixture
def team(clean: None) -> Team:
    with transaction() as db:
        return a_team(db)


def upload(team: Team, data: bytes | BinaryIO, filename: str = "chat.jsonl", **more: str) -> File:
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    told: dict[str, Any] = {"purpose": "fine-tune", "created_by": None} | more
    return datasets.upload(team_id=team.id, stream=stream, filename=filename, **told)


def version_of(team: Team, name: str) -> DatasetVersion:
    with transaction() as db:
        return datasets.version_of(db, team.id, name)


def objects(team: Team) -> list[str]:
    return [entry["Key"] for entry in storage.listed(f"teams/{team.id}/")]


def test_an_upload_is_stored_and_its_import_queued(team: Team):
    file = upload(team, ROWS, "C:\\data\\my chat.jsonl")
    version = version_of(team, file.id)
    assert (file.filename, file.bytes, file.sha256) == (
        "my chat.jsonl",
        len(ROWS),
        hashlib.sha256(ROWS).hexdigest(),
    )
    assert storage.read(file.key) == ROWS
    assert (version.state, version.number) == (Ready.BUILDING, 1)
    with transaction() as db:
        assert db.get_one(Dataset, version.dataset_id).name == "my chat"
        job = db.get_one(Job, version.import_job_id)
    assert (job.state, job.kind, job.file_id) == (State.QUEUED, "import", file.id)


@pytest.mark.parametrize(
    ("filename", "data", "said"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b'{"text": "x"}\n' * 16 + b"{oops\n", "Line 17 is not JSON"),
        ("a.csv", b"text,label\na,b\na,b,c\n", "Row 3 has 3 fields"),
        ("a.csv", b"PK\x03\x04 broken", "zip is cut short"),
        ("a.parquet", b"PAR1" + b"x" * 100, "Parquet file is cut short"),
        ("a.safetensors", b"\x80\x04\x95 pickled", "Python pickle"),
    ],
)
def test_a_bad_upload_is_refused_and_leaves_nothing(team: Team, filename: str, data: bytes, said: str):
    with pytest.raises(Refused, match=said):
        upload(team, data, filename)
    assert objects(team) == []
    with transaction() as db:
        assert not db.exec(select(File)).all()
        assert not db.exec(select(Dataset)).all()


def test_a_file_over_the_limit_is_refused_before_it_is_stored(team: Team, monkeypatch: pytest.MonkeyPatch):
    small = settings().model_copy(update={"max_upload_bytes": 1000})
    for name in ("datasets", "uploads"):
        module = __import__(f"shared.{name}", fromlist=["settings"])
        monkeypatch.setattr(module, "settings", lambda: small, raising=False)
    for stream in (io.BytesIO(ROWS * 10), Pipe(ROWS * 10)):
        with pytest.raises(Refused, match="larger than 1000 bytes") as refusal:
            upload(team, stream)
        assert refusal.value.status == 413
    assert objects(team) == []


class Pipe(io.BytesIO):
    """A stream that cannot go back, as a request's body is."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError("not seekable")


def test_a_stream_that_cannot_go_back_is_taken_too(team: Team):
    file = upload(team, Pipe(ROWS))
    assert storage.read(file.key) == ROWS


def test_the_same_bytes_again_are_the_version_that_is_there(team: Team):
    first, again = upload(team, ROWS), upload(team, ROWS)
    assert again.id == first.id
    assert objects(team) == [first.key]
    other = upload(team, ROWS, dataset_name="another")
    assert other.id != first.id


def test_other_bytes_under_the_same_name_are_the_next_version(team: Team):
    upload(team, ROWS)
    second = upload(team, ROWS + b'{"messages": []}\n')
    assert version_of(team, second.id).number == 2
    third = upload(team, ROWS)
    assert version_of(team, third.id).number == 1


def test_uploads_at_once_make_one_dataset_with_all_versions(team: Team):
    with ThreadPoolExecutor(6) as pool:
        files = list(pool.map(lambda n: upload(team, ROWS + b"\n" * n), range(6)))
    numbers = {version_of(team, file.id).number for file in files}
    assert numbers == set(range(1, 7))
    with transaction() as db:
        assert len(datasets.all_for(db, team.id)) == 1


def test_batches_are_judged_later_but_must_be_text(team: Team):
    file = upload(team, b"not JSON at all\n", "b.jsonl", purpose="batch")
    assert file.purpose == "batch"
    with transaction() as db:
        assert not db.exec(select(Dataset)).all()
    for data, said in ((b"\x80\x04pickle", "not text"), (b" \n", "empty")):
        with pytest.raises(Refused, match=said):
            upload(team, data, "b.jsonl", purpose="batch")
    with pytest.raises(Refused, match="Invalid value: 'nonsense'"):
        upload(team, ROWS, purpose="nonsense")


def test_a_version_is_found_by_file_version_and_dataset(db: Session):
    team, other = a_team(db), a_team(db)
    version = a_dataset(db, team)
    for name in (version.id, version.file_id, version.dataset_id):
        assert datasets.version_of(db, team.id, name).id == version.id
        with pytest.raises(NotFound):
            datasets.version_of(db, other.id, name)
    with pytest.raises(NotFound):
        datasets.version_of(db, team.id, "file-nope")


def test_the_newest_version_is_one_that_can_be_used(db: Session):
    team = a_team(db)
    version = a_dataset(db, team)
    failed = DatasetVersion(
        team_id=team.id, dataset_id=version.dataset_id, number=2, file_id=version.file_id, state=Ready.FAILED
    )
    db.add(failed)
    db.flush()
    assert datasets.newest(db, version.dataset_id) == version
    version.state = Ready.FAILED
    db.flush()
    assert datasets.newest(db, version.dataset_id) == failed


def test_a_dataset_that_fits_gives_its_mapping(db: Session):
    team = a_team(db)
    version = a_dataset(db, team, [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    classification = recipe.get("classification")
    assert datasets.check(version, classification) == {"text": "text", "label": "label"}
    swapped = {"text": "label", "label": "text"}
    assert datasets.check(version, classification, swapped) == swapped


@pytest.mark.parametrize(
    ("columns", "said", "param"),
    [
        (None, "needs a column", "training_file"),
        ({"text": "words"}, "needs a column for «label»", "training_file"),
        ({"text": "nope", "label": "kind"}, "no column «nope». It has: words, kind", "columns.text"),
        ({"colour": "words"}, "no column «colour»", "columns.colour"),
    ],
)
def test_a_missing_column_is_named(db: Session, columns: dict | None, said: str, param: str):
    version = a_dataset(db, a_team(db), [{"words": "a", "kind": "x"}])
    with pytest.raises(Refused, match=said) as refusal:
        datasets.check(version, recipe.get("classification"), columns)
    assert refusal.value.param == param


def test_a_fatal_finding_is_told_with_its_row(db: Session):
    version = a_dataset(db, a_team(db))
    finding = {"row": 1, "column": "messages", "message": "Message 1 is from nobody.", "fatal": True}
    fit = {"columns": {"messages": "messages"}, "findings": [finding], "fatal": 3, "skipped": 0}
    version.report = version.report | {"fits": {"sft": fit}}
    with pytest.raises(Refused, match=r"Row 1: Message 1 is from nobody\. 2 more rows are"):
        datasets.check(version, recipe.get("sft"))
    with pytest.raises(Refused) as refusal:
        datasets.check(version, recipe.get("sft"), param="validation_file")
    assert refusal.value.param == "validation_file"


def test_a_finding_about_all_rows_is_not_counted_as_a_row(db: Session):
    of_row = {"row": 1, "column": "messages", "message": "Message 1 is from nobody.", "fatal": True}
    of_all = {"row": None, "column": None, "message": "No row has a conversation.", "fatal": True}
    fit = {"findings": [of_row, of_all], "fatal": 3}
    assert "One more row is like it." in datasets.from_findings(fit, "training_file").message


def test_a_dataset_on_its_way_or_failed_is_not_trained_on(db: Session):
    version = a_dataset(db, a_team(db))
    version.state = Ready.BUILDING
    with pytest.raises(Refused, match="still being read"):
        datasets.check(version, recipe.get("sft"))
    version.state, version.error = Ready.FAILED, "Line 3 is not JSON."
    with pytest.raises(Refused, match="Line 3 is not JSON"):
        datasets.check(version, recipe.get("sft"))


def test_a_dataset_goes_with_its_bytes(team: Team):
    file = upload(team, ROWS)
    with transaction() as db:
        job = db.get_one(Job, version_of(team, file.id).import_job_id)
        dataset = datasets.all_for(db, team.id)[0]
        with pytest.raises(Refused, match=job.id):
            datasets.delete(db, dataset)
        jobs.cancel(db, job, "test")
    assert objects(team) == [file.key]
    with transaction() as db:
        datasets.delete(db, datasets.get(db, team.id, dataset.id))
    assert objects(team) == []
    with transaction() as db:
        assert not datasets.all_for(db, team.id)
        with pytest.raises(NotFound):
            datasets.version_of(db, team.id, file.id)
    assert version_of(team, upload(team, ROWS).id).number == 1  # the name is free again


def test_nothing_is_removed_when_the_deletion_is_rolled_back(team: Team):
    file = upload(team, ROWS, purpose="batch")

    class Changed(Exception):
        pass

    def change_of_mind() -> None:
        with transaction() as db:
            datasets.delete_file(db, db.get_one(File, file.id))
            raise Changed

    with pytest.raises(Changed):
        change_of_mind()
    assert storage.exists(file.key)


def test_a_dataset_in_use_stays(db: Session):
    team = a_team(db)
    version = a_dataset(db, team)
    job = a_job(db, team, dataset_version_id=version.id)
    with pytest.raises(Refused, match=job.id):
        datasets.delete(db, db.get_one(Dataset, version.dataset_id))
    with pytest.raises(Refused, match=job.id):
        datasets.delete_file(db, db.get_one(File, version.file_id))


def test_a_worker_imports_what_was_uploaded(live: Live):
    with transaction() as db:
        team = a_team(db)
    good = upload(team, b"text,label\n" + b"hello,a\nbye,b\n" * 20, "letters.csv")
    bad = upload(team, b'{"text": "x"}\n' * 1_000_000 + b"{oops\n", "letters.jsonl", dataset_name="bad")
    version = datasets.await_import(version_of(team, good.id).id, 60)
    assert version.state == Ready.READY, version.error
    assert (version.rows, version.report["format"]) == (40, "csv")
    assert pq.read_table(io.BytesIO(storage.read(version.key or ""))).num_rows == 40
    assert datasets.check(version, recipe.get("classification")) == {"text": "text", "label": "label"}
    failed = datasets.await_import(version_of(team, bad.id).id, 60)
    assert failed.state == Ready.FAILED
    assert "Line 1000001 is not JSON: it begins «{oops»" in (failed.error or "")
    with transaction() as db:
        assert db.get_one(File, good.id).status == "processed"


def test_pictures_are_uploaded_previewed_and_shown_to_their_team_alone(live: Live):
    with transaction() as db:
        team = a_team(db)
        people = a_user(db, team), a_user(db, a_team(db))
    mine, other = (Visitor(the_web(), person) for person in people)
    pets = zipped(
        {
            "pets/cat/1.png": picture("red", (300, 150)),
            "pets/dog/1.jpg": picture("blue", format="JPEG"),
            "pets/dog/2.png": b"broken",
        }
    )
    sent = mine.post("/datasets", "/datasets", file=(io.BytesIO(pets), "pets.zip"))
    assert sent.status_code == 303
    version = version_of(team, sent.location.split("/")[2].split("?")[0])
    version = datasets.await_import(version.id, 60)
    assert version.state == Ready.READY, version.error
    page = mine.get(sent.location).text
    shown = dict(re.findall(r'<img class="picture" src="([^"]+)" alt="([^"]+)"', page))
    assert list(shown.values()) == ["image of row 1: cat", "image of row 2: dog"]
    assert "«pets/dog/2.png» is no PNG, JPEG, WebP, BMP or GIF picture; it is left out." in page
    assert "300 × 150" in page
    for address in shown:
        answer = mine.get(address)
        assert (answer.status_code, answer.mimetype) == (200, "image/png")
        assert Image.open(io.BytesIO(answer.data)).width <= 128
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "private, max-age=31536000, immutable"
        assert other.get(address).status_code == 404
        assert mine.get(address.replace("/versions/1/", "/versions/2/")).status_code == 404
    assert mine.get(next(iter(shown)).rsplit("/", 1)[0] + "/secret.txt").status_code == 404
    stored = objects(team)
    assert len(stored) == 4  # the zip, the rows, two previews
    with transaction() as db:
        datasets.delete(db, datasets.get(db, team.id, version.dataset_id))
    assert objects(team) == []
