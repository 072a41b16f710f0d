"""The queue explains itself: to a person on its pages, to a program, to an operator at the shell."""

import re
from datetime import timedelta

import pytest
from sqlmodel import select

from shared import caps, jobs, workers
from shared.columns import now
from shared.db import transaction
from shared.tables import Attempt, Cap, Job, Kind, Outcome, Role, Schedule, Slot, State, Worker
from tests.factories import a_checkpoint, a_job, a_team, a_user, a_worker, an_attempt
from tests.integration.test_cli import burnish, last_line
from tests.visitor import Visitor
from web import waiting


@pytest.fixture
def team(db):
    return a_team(db)


def queued(db, team, **fields):
    return a_job(db, team, Kind.INFER, **fields)


def running(db, team, worker, left=None):
    """A job that has run for a minute and says how long it will still take."""
    job = queued(db, team)
    attempt = jobs.claim(db, worker.id, "compute")
    assert attempt is not None
    attempt.started_at -= timedelta(minutes=1)
    job.progress = {"eta_seconds": left} if left is not None else {}
    db.flush()
    return job


def before(db, job):
    return [line.said for line in waiting.outlook(db, job).ahead]


# --- why, who, when ---------------------------------------------------------------------------------


def test_a_job_that_nobody_can_run_says_what_is_missing(db, team):
    job = queued(db, team)
    assert waiting.outlook(db, job).reason == "No worker that is alive offers a compute slot."
    a_worker(db)
    needy = queued(db, team, resources={"processes": 1, "gpus": 2, "gpu_memory_gb": 40})
    told = waiting.outlook(db, needy)
    assert told.reason == "It needs 2 GPUs of 40 GB, and no worker that is alive has that."
    assert told.seconds is None


def test_a_job_at_its_teams_cap_says_so(db, team):
    worker = a_worker(db)
    caps.put(db, Slot.COMPUTE, 1, team.id)
    running(db, team, worker, left=600)
    told = waiting.outlook(db, queued(db, team))
    assert told.reason.startswith("Your team occupies 1 of the 1 compute slots that it may")
    assert told.seconds == 600
    wide = queued(db, team, resources={"processes": 2})
    told = waiting.outlook(db, wide)
    assert told.reason.startswith("It takes 2 slots, and your team may occupy 1 at once.")
    assert told.seconds is None


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome.LOST, "It was lost with its worker"),
        (Outcome.RELEASED, "It was given back by its worker"),
        (Outcome.CRASHED, "It failed in a way that passes"),
    ],
)
def test_a_job_that_rests_says_what_became_of_its_last_try(db, team, outcome, said):
    worker = a_worker(db)
    job = queued(db, team, run_after=now() + timedelta(minutes=5))
    an_attempt(db, job, worker, outcome=Outcome.CRASHED, ended_at=now())
    an_attempt(db, job, worker, outcome=outcome, ended_at=now())
    assert waiting.outlook(db, job).reason.startswith(f"{said}, and rests for ")


def test_who_goes_first_is_named_of_ones_own_and_numbered_of_others(db, team):
    other = a_team(db, "Secret Team")
    running(db, team, a_worker(db, slots={"compute": 1}), left=60)
    queued(db, other, name="secret job")
    early = queued(db, team, name="early")
    job = queued(db, team)
    urgent = jobs.prioritise(db, queued(db, team), 3, "somebody")
    lines = waiting.outlook(db, job).ahead
    assert [line.job.id for line in lines if line.job] == [urgent.id, early.id]
    assert lines[0].said == "its priority is higher, 3 against 0"
    assert lines[1].said == "it was submitted earlier"
    assert lines[2].said.startswith("1 job of other teams: teams take turns")
    assert "Yours used 1 m" in lines[2].said
    assert not any("ecret" in line.said for line in lines)


def test_the_expected_start_comes_from_what_the_running_jobs_say(db, team):
    worker = a_worker(db, slots={"compute": 2})
    running(db, team, worker, left=600)
    running(db, team, worker, left=300)
    assert waiting.outlook(db, queued(db, team)).seconds == 300


def test_without_a_word_or_a_past_the_start_is_not_known(db, team):
    running(db, team, a_worker(db, slots={"compute": 1}))
    told = waiting.outlook(db, queued(db, team))
    assert (told.position, told.seconds) == (1, None)
    assert told.reason == "Every compute slot that could hold it is taken; it is next."


def test_how_long_jobs_took_lately_tells_how_long_others_will(db, team):
    past, worker = a_job(db, team, Kind.INFER, state=State.SUCCEEDED), a_worker(db, slots={"compute": 1})
    an_attempt(db, past, worker, slots=["compute"], outcome=Outcome.SUCCEEDED, started_at=now() - timedelta(hours=1), ended_at=now() - timedelta(minutes=50))  # fmt: skip
    running(db, team, worker, left=100)
    queued(db, team)
    told = waiting.outlook(db, queued(db, team))
    assert told.position == 2
    assert told.seconds == pytest.approx(700, abs=1)


# --- on the pages -----------------------------------------------------------------------------------


@pytest.fixture
def people(alpha):
    """A member of team Alpha, an operator in a team of their own, and a worker that runs a job of Alpha's."""
    with transaction() as db:
        member = a_user(db, alpha.team)
        elsewhere = a_team(db, "Operations")
        operator = a_user(db, elsewhere, Role.OWNER)
        operator.operator = True
        worker = a_worker(db, slots={"compute": 1, "light": 1}, host="big-iron", version="9.8")
        busy = a_job(db, alpha.team, name="busy")
        assert jobs.claim(db, worker.id, "compute")
        next_one = a_job(db, alpha.team, name="next one")
        a_job(db, elsewhere, Kind.INFER, name="not yours")
    return {"member": member, "operator": operator, "worker": worker.id, "busy": busy.id, "next": next_one.id}


def test_the_queue_page_tells_place_reason_start_shares_and_workers(app, alpha, people):
    page = Visitor(app, people["member"]).get("/queue").text
    for said in (
        "next one",
        "Every compute slot that could hold it is taken",
        "not known yet",
        "1 job of other teams",
    ):
        assert said in page
    for said in ("big-iron", "version 9.8", "yours", "All teams together", "burnish team cap"):
        assert said in page
    assert "not yours" not in page
    assert "Operations" not in page
    assert "/drain" not in page


def test_a_waiting_jobs_page_tells_the_same_and_moves_it(app, alpha, people):
    visitor = Visitor(app, people["member"])
    page = visitor.get(f"/jobs/{people['next']}").text
    assert "Every compute slot that could hold it is taken" in page
    assert visitor.post(f"/jobs/{people['next']}/priority", priority="−7").status_code == 303
    with transaction() as db:
        assert db.get_one(Job, people["next"]).priority == -7
    assert visitor.post(f"/jobs/{people['next']}/priority", priority="much").status_code == 400


def test_an_operator_sees_every_team_sets_caps_and_drains(app, alpha, people):
    visitor = Visitor(app, people["operator"])
    page = visitor.get("/queue").text
    assert "Alpha Team" in page
    assert "busy" not in page
    assert "another team's job" in page
    assert visitor.post("/queue/caps", team=alpha.team.id, compute="3", light="none").status_code == 303
    assert visitor.post("/queue/caps", team="", compute="8", light="").status_code == 303
    assert visitor.post("/queue/caps", team="", compute="some").status_code == 400
    with transaction() as db:
        assert {(cap.team_id, cap.slots) for cap in db.exec(select(Cap))} == {(alpha.team.id, 3), (None, 8)}
    assert visitor.post(f"/queue/workers/{people['worker']}/drain").status_code == 303
    with transaction() as db:
        attempt = db.exec(select(Attempt)).one()
        assert jobs.renew(db, attempt.lease_id) == jobs.Orders(drain=True)
    assert visitor.post(f"/queue/workers/{people['worker']}/undrain").status_code == 303
    with transaction() as db:
        assert db.get_one(Worker, people["worker"]).draining_at is None


def test_who_is_no_operator_sets_no_caps_and_drains_nothing(app, alpha, people):
    with transaction() as db:
        owner = a_user(db, alpha.team, Role.OWNER)
    visitor = Visitor(app, owner)
    for path in (
        "/queue/caps",
        f"/queue/workers/{people['worker']}/drain",
        f"/queue/workers/{people['worker']}/undrain",
    ):
        assert visitor.post(path, compute="1").status_code == 403
    with transaction() as db:
        assert db.exec(select(Cap)).all() == []
        assert db.get_one(Worker, people["worker"]).draining_at is None


def test_an_owner_says_how_long_the_teams_jobs_may_run(app, alpha):
    with transaction() as db:
        owner = a_user(db, alpha.team, Role.OWNER)
    visitor = Visitor(app, owner)
    assert visitor.post("/team/run-time", hours="1.5").status_code == 303
    assert 'value="1.5"' in visitor.get("/team").text
    assert visitor.post("/team/run-time", hours="long").status_code == 422
    job = alpha.api.post("/fine_tuning/jobs", json=order(alpha))
    assert job["x_max_run_seconds"] == 5400
    assert visitor.post("/team/run-time", hours="").status_code == 303
    assert alpha.api.post("/fine_tuning/jobs", json=order(alpha))["x_max_run_seconds"] is None


def test_what_a_job_needs_is_asked_for_in_the_form_and_kept_for_a_clone(app, alpha, people):
    visitor = Visitor(app, people["member"])
    form = {"recipe": "sft", "drawn-for": "sft", "dataset": alpha.chat.id, "model": alpha.model.id, "processes": "2", "gpus": "2",
            "gpu_memory_gb": "40", "cpus": "8", "max_run_hours": "1.5"}  # fmt: skip
    wrong = visitor.post("/jobs/new", **form | {"gpus": "some", "max_run_hours": "0.001"})
    assert wrong.status_code == 422
    made = visitor.post("/jobs/new", **form)
    assert made.status_code == 303, re.findall('<p class="wrong".*?</p>', made.text)
    with transaction() as db:
        job = db.get_one(Job, made.location.rsplit("/", 1)[1])
    assert job.resources == {"processes": 2, "gpus": 2, "gpu_memory_gb": 40, "cpus": 8}
    assert job.max_run_seconds == 5400
    assert "It needs 2 GPUs of 40 GB" in visitor.get(f"/jobs/{job.id}").text
    clone = visitor.get(f"/jobs/new?from={job.id}").text
    for name, value in (("gpus", "2"), ("gpu_memory_gb", "40"), ("cpus", "8"), ("max_run_hours", "1.5")):
        assert re.search(f'id="{name}"[^>]* value="{value}"', clone), name


def test_a_schedule_keeps_what_its_jobs_need(app, alpha, people):
    visitor = Visitor(app, people["member"])
    needs = {"processes": 1, "gpus": 1, "cpus": 4}
    made = alpha.api.post("/schedules", json={"name": "nightly", "cron": "0 2 * * *", "dataset": alpha.chat.dataset_id,
                                              "model": alpha.model.id, "resources": needs})  # fmt: skip
    assert made["x_resources"] == needs
    form = {"recipe": "sft", "drawn-for": "sft", "name": "by form", "cron": "0 2 * * *", "zone": "UTC",
            "dataset": alpha.chat.dataset_id, "model": alpha.model.id, "gpus": "2", "max_run_hours": "2"}  # fmt: skip
    assert visitor.post("/schedules/new", **form | {"max_run_hours": "soon"}).status_code == 422
    assert visitor.post("/schedules/new", **form).status_code == 303
    with transaction() as db:
        order = db.exec(select(Schedule).where(Schedule.name == "by form")).one().order
    assert (order["needs"], order["max_run_seconds"]) == ({"gpus": 2}, 7200)


# --- for programs -----------------------------------------------------------------------------------


def order(alpha, **more):
    return {"model": alpha.model.id, "training_file": alpha.chat.file_id} | more


def test_the_api_tells_why_a_job_waits_and_moves_stops_and_retries_it(alpha):
    needs = {"processes": 1, "gpus": 1}
    made = alpha.api.post(
        "/fine_tuning/jobs", json=order(alpha, resources=needs, x_priority=2, x_max_run_seconds=90)
    )
    assert (made["x_resources"], made["x_priority"], made["x_max_run_seconds"]) == (needs, 2, 90)
    assert made["x_queue"] == {
        "reason": "No worker that is alive offers a compute slot.",
        "ahead": [],
        "expected_start": None,
    }
    path = f"/fine_tuning/jobs/{made['id']}"
    assert alpha.api.post(f"{path}/priority", json={"priority": 5})["x_priority"] == 5
    alpha.api.post(f"{path}/priority", 400, json={"priority": 500})
    assert alpha.api.post(f"{path}/stop", data=b"")["status"] == "cancelled"
    again = alpha.api.post(f"{path}/retry", data=b"")
    assert (again["x_retry_of"], again["x_resources"]) == (made["id"], needs)
    assert (
        alpha.api.post(f"{path}/retry", 400, json={"checkpoint": "last"})["error"]["code"] == "no_checkpoint"
    )
    with transaction() as db:
        job = db.get_one(Job, made["id"])
        point = a_checkpoint(
            db, job, 7, manifest=[{"name": "state/optimizer.safetensors", "bytes": 1, "sha256": "a"}]
        )
        bare = a_checkpoint(
            db, job, 3, manifest=[{"name": "servable/model.safetensors", "bytes": 1, "sha256": "a"}]
        )
    goes_on = alpha.api.post(f"{path}/retry", json={"checkpoint": "last"})
    with transaction() as db:
        assert db.get_one(Job, goes_on["id"]).resume_checkpoint_id == point.id
    alpha.api.post(f"{path}/retry", 404, json={"checkpoint": "ftckpt_none"})
    alpha.api.post(f"{path}/retry", 400, json={"checkpoint": bare.id})


def test_a_checkpoint_that_another_job_goes_on_from_is_not_deleted(db, team):
    job = a_job(db, team, state=State.FAILED)
    point = a_checkpoint(db, job)
    a_job(db, team, resume_checkpoint_id=point.id)
    with pytest.raises(Exception, match="still needs a checkpoint"):
        jobs.delete(db, job, "somebody")


# --- at the shell -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("clean")
def test_caps_and_drains_at_the_shell():
    with transaction() as db:
        team = a_team(db, "Night Shift")
        worker = a_worker(db, host="big-iron")
    assert "all teams together" in last_line(burnish("team", "cap", "Night Shift", "--compute", "2"))
    listed = burnish("team", "list").stdout
    assert re.search(r"Night Shift +0 +2 +0\.0", listed)
    refused = burnish("team", "cap", "Nobody", "--compute", "2")
    assert (refused.returncode, refused.stderr.strip()) == (1, "There is no team «Nobody».")
    assert "takes no more jobs" in last_line(burnish("workers", "drain", worker.id))
    assert "draining" in last_line(burnish("workers", "list"))
    with transaction() as db:
        assert caps.of(db, Slot.COMPUTE) == {team.id: 2}
        assert workers.takers(db) == []
