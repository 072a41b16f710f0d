"""An adapter is merged, uploads are imported: in this process, in the light slot."""

import io
import json

from sqlmodel import select

from shared import checkpoints, datasets, jobs, storage
from shared.db import transaction
from shared.jobs import Order
from shared.tables import FINAL, Artifact, DatasetVersion, File, Ready, Slot, State
from tests.factories import CHAT, a_base_model
from tests.integration.runner.runs import again
from tests.services import until


def test_an_adapter_is_merged_into_a_full_model(team, trained, machine):
    with transaction() as db:
        checkpoint = checkpoints.of(db, trained.id)[0]
        job = jobs.submit_export(db, checkpoint=checkpoint, form="merged")
    machine.look(Slot.LIGHT)
    assert again(job.id).state == State.SUCCEEDED
    with transaction() as db:
        artifact = db.exec(select(Artifact).where(Artifact.job_id == job.id)).one()
    names = {entry["name"] for entry in artifact.manifest}
    assert {"config.json", "model.safetensors"} <= names
    assert storage.exists(f"{artifact.prefix}config.json")


def test_an_upload_is_imported_and_then_trains_the_job_that_waits_for_it(team, tiny, machine):
    rows = "".join(json.dumps(row) + "\n" for row in CHAT).encode()
    file = datasets.upload(
        team_id=team.id, stream=io.BytesIO(rows), filename="chat.jsonl", purpose="fine-tune", created_by=None
    )
    with transaction() as db:
        version = db.exec(select(DatasetVersion).where(DatasetVersion.file_id == file.id)).one()
        model = a_base_model(db, tiny)
        knobs = {"epochs": 1, "batch_size": 4, "max_length": 64}
        order = Order(
            team_id=team.id,
            recipe="sft",
            model=model.id,
            dataset_version_id=version.id,
            hyperparameters=knobs,
        )
        job = jobs.submit(db, order)
    assert (job.stage, job.columns) == ("waiting", {})
    assert machine.look(Slot.LIGHT)
    until(lambda: again(job.id).state in FINAL, 60, "the waiting job ran at once, without another wake-up")
    job = again(job.id)
    assert (job.state, job.reason) == (State.SUCCEEDED, None)
    assert job.columns == {"messages": "messages"}


def test_an_upload_that_cannot_be_read_fails_with_its_row(team, machine):
    good = json.dumps(CHAT[0] | {"note": "x" * 10_000}).encode() + b"\n"
    rows = good * 1300 + b"{oops\n"  # beyond what is looked at while the upload waits
    file = datasets.upload(
        team_id=team.id, stream=io.BytesIO(rows), filename="chat.jsonl", purpose="fine-tune", created_by=None
    )
    machine.look(Slot.LIGHT)
    with transaction() as db:
        version = db.exec(select(DatasetVersion).where(DatasetVersion.file_id == file.id)).one()
        assert version.state == Ready.FAILED
        assert "Line 1301 is not JSON" in (version.error or "")
        assert db.get_one(File, file.id).status == "error"
