"""The card of a failed job: each kind of button does what it says, by a real submit."""

import re

import pytest
from sqlmodel import select

from shared import jobs
from shared.db import transaction
from shared.tables import Event, EventType, Job, JobDependency, Kind, Outcome, State
from tests.factories import a_checkpoint, a_dataset, a_job, a_team, a_user, a_worker
from tests.visitor import Visitor, the_web

SPEC = {"epochs": 2, "batch_size": 8, "max_length": 256, "learning_rate": 3e-4}
STATE = [{"name": "state/x", "bytes": 1, "sha256": "a"}]


@pytest.fixture
def team(clean):
    with transaction() as db:
        return a_team(db)


@pytest.fixture
def member(team):
    with transaction() as db:
        person = a_user(db, team)
    return Visitor(the_web(), person)


def failed(db, team, code, **fields):
    """A training that failed for that reason."""
    fields = {"spec": SPEC, "reason": "So it ended.", "seed": 11, "state": State.FAILED} | fields
    return a_job(db, team, Kind.TRAIN, reason_code=code, **fields)


def card(member, job_id):
    """(text of the card, the address of its one button, what it posts)."""
    page = member.get(f"/jobs/{job_id}").text
    found = re.search(r'<section class="cause.*?</section>', page, re.DOTALL)
    assert found, "no card"
    buttons = re.search(r'<div class="buttons">.*?</div>', found[0], re.DOTALL)
    assert buttons, "no button"
    addresses = re.findall(r'(?:action|href)="([^"]+)"', buttons[0])
    assert len(addresses) == 1, addresses
    sent = dict(re.findall(r'name="(\w+)" value="([^"]*)"', buttons[0]))
    sent.pop("csrf_token", None)
    return found[0], addresses[0].replace("&amp;", "&"), sent


def pressed(member, job_id):
    """The job that the card's button makes."""
    _, address, sent = card(member, job_id)
    answer = member.post(address, **sent)
    assert answer.status_code == 303, answer.text
    with transaction() as db:
        made = db.get_one(Job, answer.headers["Location"].rsplit("/", 1)[-1])
    assert (made.state, made.retry_of, made.seed) == (State.QUEUED, job_id, 11)
    return made


@pytest.mark.parametrize(
    ("code", "label", "changed"),
    [
        ("host_out_of_memory", "Retry with half the batch (4)", {"batch_size": 4}),
        ("out_of_memory", "Retry with rows half as long (128 tokens)", {"max_length": 128}),
        ("diverged", "Retry with a third of the learning rate (1e-4)", {"learning_rate": 1e-4}),
    ],
)
def test_a_retry_changes_the_one_setting_that_it_names(team, member, code, label, changed):
    with transaction() as db:
        job = failed(db, team, code)
    assert label in card(member, job.id)[0]
    made = pressed(member, job.id)
    assert {name: made.spec[name] for name in SPEC} == SPEC | changed


@pytest.mark.parametrize(
    ("code", "kept"), [("host_out_of_memory", False), ("out_of_memory", False), ("diverged", True)]
)
def test_with_other_steps_it_goes_on_from_no_checkpoint_of_the_old_ones(team, member, code, kept):
    with transaction() as db:
        point = a_checkpoint(db, a_job(db, team, state=State.FAILED), manifest=STATE)
        job = failed(db, team, code, resume_checkpoint_id=point.id)
    assert pressed(member, job.id).resume_checkpoint_id == (point.id if kept else None)


def test_a_crash_is_resumed_from_its_newest_checkpoint(team, member):
    with transaction() as db:
        job = failed(db, team, "poison", progress={"step": 1300})
        a_checkpoint(db, job, 800, manifest=STATE)
        newest = a_checkpoint(db, job, 1240, manifest=STATE)
    text = card(member, job.id)[0]
    assert "It crashed twice in a row, at step 1,300" in text
    assert "Resume from step 1,240" in text
    assert pressed(member, job.id).resume_checkpoint_id == newest.id


def test_without_a_checkpoint_it_is_tried_again(team, member):
    with transaction() as db:
        job = failed(db, team, "infrastructure")
    assert "Try again" in card(member, job.id)[0]
    made = pressed(member, job.id)
    assert made.resume_checkpoint_id is None
    assert {name: made.spec[name] for name in SPEC} == SPEC


def test_a_wrong_column_opens_the_form_at_that_column(team, member):
    with transaction() as db:
        job = failed(db, team, "wrong_type", reason="Row 3: «messages» is a number.", reason_param="messages")
    text, address, _ = card(member, job.id)
    assert "Choose another column for «messages»" in text
    form = member.get(address).text
    assert re.search(r'<details class="fold" id="columns" open>', form)
    assert re.search(r'<select id="column-messages"[^>]*aria-invalid="true"', form)
    assert "Row 3: «messages» is a number." in form


def test_a_wrong_setting_opens_the_form_at_that_setting(team, member):
    with transaction() as db:
        job = failed(db, team, "invalid_value", reason="Too many for this data.", reason_param="batch_size")
    text, address, _ = card(member, job.id)
    assert "Change «Batch size»" in text
    assert re.search(
        r'<input id="batch_size"[^>]*value="8"[^>]*aria-invalid="true"', member.get(address).text
    )


def test_a_failed_import_before_it_is_led_to(team, member):
    with transaction() as db:
        version = a_dataset(db, team, name="moods")
        imports = a_job(db, team, Kind.IMPORT, dataset_version_id=version.id, file_id=version.file_id)
        job = a_job(db, team, dataset_version_id=version.id, recipe="sft", spec=SPEC)
        db.add(JobDependency(job_id=job.id, waits_for_id=imports.id))
        attempt = jobs.claim(db, a_worker(db).id, "light")
        assert attempt is not None
        jobs.finish(
            db, attempt.lease_id, Outcome.FAILED, reason_code="invalid_file_format", reason="No JSON."
        )
    text, address, _ = card(member, job.id)
    assert "What it waited for failed" in text
    assert "Open the dataset «moods»" in text
    assert address == f"/datasets/{version.dataset_id}?version={version.number}"
    assert member.get(address).status_code == 200
    assert card(member, imports.id)[1] == address


def test_an_export_is_led_back_to_its_training(team, member):
    with transaction() as db:
        trained = a_job(db, team, state=State.SUCCEEDED)
        point = a_checkpoint(db, trained)
        job = a_job(db, team, Kind.EXPORT, checkpoint_id=point.id, state=State.FAILED, reason_code="export_disagrees",
                    asked={"form": "gguf"})  # fmt: skip
    assert card(member, job.id)[1] == f"/jobs/{trained.id}#downloads"


def test_the_end_of_the_log_is_folded_into_the_card(team, member):
    with transaction() as db:
        job = failed(db, team, "never_heard_of")
        for seq in range(1, 31):
            db.add(Event(job_id=job.id, lease_id="lease-x", seq=seq, team_id=team.id, type=EventType.LOG,
                         data={"message": f"line number {seq};"}))  # fmt: skip
    text = card(member, job.id)[0]
    assert "No advice is kept for this reason" in text
    assert [int(n) for n in re.findall(r"line number (\d+);", text)] == list(range(11, 31))


def test_only_a_failure_with_something_to_change_is_mended(team, member):
    with transaction() as db:
        done = a_job(db, team, state=State.SUCCEEDED, spec=SPEC)
        crashed = failed(db, team, "crashed")
    for job in (done, crashed):
        assert (
            "Nothing is known to change"
            in member.client.post(f"/jobs/{job.id}/mend", data={"csrf_token": member.token()}).text
        )
    with transaction() as db:
        assert len(db.exec(select(Job).where(Job.team_id == team.id)).all()) == 2
