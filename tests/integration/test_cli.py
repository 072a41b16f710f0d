"""The `burnish` command, as scripts use it: in processes, over the real services and the real web."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlmodel import select

from shared import passwords, teams
from shared.db import transaction
from shared.tables import Membership, Team, User
from tests.attempts import json_lines
from tests.factories import CHAT, a_base_model, tiny_causal_lm

BURNISH = Path(sys.executable).with_name("burnish")


def burnish(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it with the environment of the services that the test uses."""
    command = [str(BURNISH), *map(str, words)]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=240, check=False
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


# --- what needs no stack ----------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["job", "submit", "--help"], ["up", "--help"]])
def test_help_comes_without_loading_anything_heavy(words):
    script = (
        "import sys\nfrom shared.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        "print(sorted(set(sys.modules) & {'torch', 'sqlalchemy', 'pydantic', 'httpx', 'celery', 'flask'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_recipes_knobs_are_flags():
    done = burnish("job", "submit", "--recipe", "classification", "--data", "x", "--knobs")
    assert done.returncode == 0, done.stderr
    assert "--learning-rate" in done.stdout
    assert "--epochs" in done.stdout


def test_a_flag_that_the_recipe_lacks_is_named():
    done = burnish("job", "submit", "--data", "x", "--sharpness", "3")
    assert done.returncode == 2
    assert "--sharpness" in done.stderr


def test_without_a_stack_a_sentence_says_what_to_do(tmp_path):
    clean = {name: value for name, value in os.environ.items() if "URL" not in name and "S3" not in name}
    done = subprocess.run(
        [BURNISH, "user", "add", "a@example.com", "--team", "T"],
        env=clean | {"BURNISH_HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "make up" in done.stderr
    assert "Traceback" not in done.stderr


# --- on the database --------------------------------------------------------------------------


def test_user_add_prints_the_password_alone_on_its_last_line_and_makes_the_team(clean):
    password = last_line(burnish("user", "add", "New@Example.com", "--team", "Fresh"))
    with transaction() as db:
        user = db.exec(select(User).where(User.email == "new@example.com")).one()
        team = db.exec(select(Team).where(Team.name == "Fresh")).one()
        assert passwords.matches(user.password_hash, password)
        assert user.must_change_password
        assert db.get_one(Membership, (team.id, user.id)).role == "owner"


def test_user_add_may_be_repeated_and_gives_another_password_and_role(clean):
    first = last_line(burnish("user", "add", "a@example.com", "--team", "T"))
    burnish("user", "add", "boss@example.com", "--team", "T")
    second = last_line(burnish("user", "add", "a@example.com", "--team", "T", "--role", "viewer"))
    assert first != second
    with transaction() as db:
        user = db.exec(select(User).where(User.email == "a@example.com")).one()
        assert passwords.matches(user.password_hash, second)
        assert db.exec(select(Membership.role).where(Membership.user_id == user.id)).one() == "viewer"


def test_an_address_that_is_none_is_refused_in_a_sentence(clean):
    done = burnish("user", "add", "nobody", "--team", "T")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_token_create_prints_an_owners_token_alone_on_its_last_line_and_needs_no_user(clean):
    secret = last_line(burnish("token", "create", "--team", "Scripts", "--name", "nightly"))
    with transaction() as db:
        caller = teams.token(db, secret)
        assert caller is not None
        assert caller.role == "owner"
        assert caller.user_id is None
        assert db.exec(select(User)).all() == []


def test_migrate_may_be_repeated(clean):
    assert "revision" in last_line(burnish("migrate"))


# --- over HTTP, with a real worker ------------------------------------------------------------


@pytest.fixture(scope="module")
def model(live, tmp_path_factory) -> str:
    with transaction() as db:
        return a_base_model(db, tiny_causal_lm(tmp_path_factory.mktemp("tiny"))).id


@pytest.fixture(scope="module")
def team(live) -> dict[str, str]:
    """The environment of somebody who uses a Burnish elsewhere."""
    return {"BURNISH_URL": live.url, "BURNISH_TOKEN": live.token("cli")}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CHAT))
    return path


def test_a_job_goes_from_a_file_to_a_downloaded_checkpoint(live, team, model, rows, tmp_path):
    file = last_line(burnish("dataset", "push", rows, **team))
    assert file.startswith("file-")
    knobs = ["--epochs", "1", "--batch-size", "4", "--max-steps", "2", "--checkpoints", "1"]
    job = last_line(
        burnish(
            "job",
            "submit",
            "--base-model",
            model,
            "--data",
            file,
            "--name",
            "cli",
            "--processes",
            "2",
            *knobs,
            **team,
        )
    )
    assert job.startswith("ftjob-")
    watched = burnish("job", "watch", job, **team)
    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert "succeeded" in watched.stdout
    shown = json.loads(burnish("job", "show", job, **team).stdout)
    assert shown["method"]["supervised"]["hyperparameters"]["max_steps"] == 2
    assert shown["x_resources"] == {"processes": 2}
    assert job in burnish("job", "list", **team).stdout
    folder = tmp_path / "adapter"
    assert last_line(burnish("job", "download", job, "--to", folder, **team)) == str(folder)
    whole = (folder / "adapter_model.safetensors").read_bytes()
    # cut off in the middle: the first half is kept and the rest fetched; a wrong byte is noticed
    for half in (whole[: len(whole) // 2], b"x" * (len(whole) // 2)):
        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.safetensors.part").write_bytes(half)
        assert burnish("job", "download", job, "--to", folder, **team).returncode == 0
        assert (folder / "adapter_model.safetensors").read_bytes() == whole
    assert not list(folder.rglob("*.part"))


def test_models_are_judged_side_by_side_and_the_results_downloaded(live, team, model, rows, tmp_path):
    knobs = ["--epochs", "1", "--batch-size", "4", "--max-steps", "2", "--checkpoints", "1"]
    trained = burnish("job", "submit", "--base-model", model, "--data", rows, "--watch", *knobs, **team)
    tuned = next(line for line in trained.stdout.splitlines() if line.startswith("succeeded"))[11:]
    flags = ["--model", model, "--model", tuned, "--dataset", rows, "--name", "side by side"]
    done = burnish("job", "evaluate", *flags, "--column", "messages=messages", "--watch", **team)
    assert done.returncode == 0, done.stdout + done.stderr
    ids = [line for line in done.stdout.splitlines() if line.startswith("evaluate-")]
    assert len(ids) == 2
    assert "/evaluations/compare?comparison=" in done.stdout
    assert done.stdout.count("token_accuracy") == 2
    told = json.loads(burnish("job", "show", ids[1], **team).stdout)
    assert told["comparison"]["evaluations"] == ids
    folder = tmp_path / "results"
    assert last_line(burnish("job", "download", ids[1], "--to", folder, **team)) == str(folder)
    lines = json_lines((folder / f"{ids[1]}_results.jsonl").read_text())
    assert [line["row"] for line in lines] == list(range(1, len(CHAT) + 1))
    wrong = burnish("job", "evaluate", "--model", model, "--dataset", rows, "--column", "messages", **team)
    assert (wrong.returncode, "=" in wrong.stderr) == (1, True)


def test_a_file_with_a_broken_row_is_named_with_its_row(live, team, tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CHAT) + "{broken\n")
    done = burnish("dataset", "push", path, **team)
    assert done.returncode == 1
    assert "13" in done.stderr


def test_a_schedule_is_added_turned_off_listed_and_deleted(live, team, model, rows):
    file = last_line(burnish("dataset", "push", rows, **team))
    flags = ["--cron", "30 2 * * *", "--zone", "Europe/Berlin", "--dataset", file, "--base-model", model]
    schedule = last_line(burnish("schedule", "add", "nightly", *flags, "--epochs", "1", **team))
    assert "is off" in last_line(burnish("schedule", "off", schedule, **team))
    assert "30 2 * * *" in burnish("schedule", "list", **team).stdout
    assert burnish("schedule", "runs", schedule, **team).returncode == 0
    assert last_line(burnish("schedule", "delete", schedule, **team)) == "Deleted."


def test_on_the_machine_of_the_stack_no_token_is_needed(live, rows):
    live.token("local")
    clean = {"BURNISH_HOME": str(live.home)}
    assert last_line(burnish("dataset", "push", rows, **clean)).startswith("file-")
    assert (live.home / "cli-token").stat().st_mode & 0o077 == 0


def test_doctor_finds_a_running_stack_well(live):
    done = burnish("doctor", BURNISH_HOME=str(live.home))
    assert done.returncode == 0, done.stdout
    assert "Nothing is wrong" in done.stdout


def test_doctor_says_how_to_mend_a_dead_web(live):
    live.end("web")
    try:
        done = burnish("doctor", BURNISH_HOME=str(live.home))
    finally:
        live.begin("web")
    assert done.returncode == 1
    assert "The web does not answer" in done.stdout
