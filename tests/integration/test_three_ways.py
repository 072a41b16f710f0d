"""The form, the API and the command line order the same: every recipe's example with every knob turned, and with
none. No worker takes what is ordered; the rows in the queue are compared.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Generator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlmodel import Session
from werkzeug.serving import make_server

from shared import base_models, storage
from shared.db import transaction
from shared.errors import Refused
from shared.ids import new_id
from shared.recipe import Recipe, recipes, wire_name
from shared.spec import resolve
from shared.tables import Dataset, DatasetVersion, Job, Ready, State, Team
from tests.factories import a_file, a_team, a_token, a_user, stored
from tests.imports import imported
from tests.integration.test_every_recipe import upload
from tests.visitor import Api, Visitor
from web import forms

BURNISH = Path(sys.executable).with_name("burnish")
EVERY = pytest.mark.parametrize("recipe", recipes().values(), ids=lambda recipe: recipe.name)
SEED = 5


@pytest.fixture
def url(app: Flask) -> Generator[str]:
    """The address of the web, served by this process."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def a_dataset(db: Session, team: Team, recipe: Recipe, folder: Path) -> DatasetVersion:
    """The recipe's example as a file that the importer has read."""
    name, data = upload(recipe)
    made = imported(folder, name, data)
    file = a_file(db, team, data, name)
    dataset = stored(db, Dataset(team_id=team.id, name=recipe.name))
    version = DatasetVersion(id=new_id("dsv-"), team_id=team.id, dataset_id=dataset.id, number=1, file_id=file.id,
                             state=Ready.READY, rows=made.report["rows"], bytes=made.report["bytes"],
                             report=made.report, content_hash=made.report["content_hash"])  # fmt: skip
    version.key = f"teams/{team.id}/datasets/{version.id}.parquet"
    storage.put_bytes(version.key, (made.folder / "artifacts/data.parquet").read_bytes())
    return stored(db, version)


def turned(recipe: Recipe) -> dict[str, Any]:
    """Every knob at another value than its default, those apart that do not go with the others."""
    scratch = recipe.default_base_model.startswith("scratch/")
    asked: dict[str, Any] = {}
    for knob in forms.knobs(recipe.spec):
        for value in others(knob):
            try:
                resolve(recipe, asked | {knob.name: value}, scratch=scratch)
            except Refused:
                continue
            if not (scratch and (knob.name, value) == ("method", "lora")):
                asked[knob.name] = value
                break
    return asked


def others(knob: forms.Knob) -> list[Any]:
    """Values that a knob may have besides its default."""
    if knob.kind == "check":
        return [not knob.default]
    if knob.kind == "choice":
        return [option for option in knob.options if option != knob.default]
    if knob.kind == "integer":
        return [(knob.default or 0) + 1, (knob.default or 0) - 1, 64]
    if knob.kind == "number":
        return [(knob.default or 0) / 2 + 0.01, (knob.default or 0) + 1]
    return ["Be brief."]


class Filled(HTMLParser):
    """What a browser would send of a page's form as it was drawn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.shown: set[str] = set()  # boxes that are not ticked are there too
        self.inside, self.select = False, ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        name, value = told.get("name") or "", told.get("value")
        if tag == "form":
            self.inside = told.get("id") == "ask"
        if not self.inside:
            return
        if tag == "select":
            self.select = name
        elif tag == "option" and (self.select not in self.fields or "selected" in told):
            self.fields[self.select] = value or ""
        elif tag == "input" and name:
            self.shown.add(name)
            if told.get("type") not in ("radio", "checkbox") or "checked" in told:
                self.fields[name] = (
                    value if value is not None else "on" if told.get("type") == "checkbox" else ""
                )

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "form"


def by_form(somebody: Visitor, recipe: Recipe, version: DatasetVersion, asked: dict[str, Any]) -> str:
    """Opens the form for the dataset, fills in the knobs, presses the button; the job's id."""
    page = Filled(somebody.get(f"/jobs/new?recipe={recipe.name}&dataset={version.id}").text)
    sent = page.fields | {"seed": str(SEED)}
    assert asked.keys() <= page.fields.keys() | page.shown
    for name, value in asked.items():
        sent[name] = ("on" if value else "") if isinstance(value, bool) else str(value)
    made = somebody.client.post("/jobs/new", data=sent)
    assert made.status_code == 303, made.text
    return made.location.rpartition("/")[2]


def by_api(api: Api, recipe: Recipe, version: DatasetVersion, asked: dict[str, Any]) -> str:
    """Posts what the `openai` package would; the job's id."""
    kind = wire_name(recipe)
    body = {"model": recipe.default_base_model, "training_file": version.file_id, "seed": SEED}
    return api.post(
        "/fine_tuning/jobs", json=body | {"method": {"type": kind, kind: {"hyperparameters": asked}}}
    )["id"]


def by_command(url: str, token: str, recipe: Recipe, version: DatasetVersion, asked: dict[str, Any]) -> str:
    """Runs `burnish job submit` with a flag for each knob; the job's id."""
    flags = [word for name, value in asked.items() for word in flag(name.replace("_", "-"), value)]
    command = [
        "job",
        "submit",
        "--recipe",
        recipe.name,
        "--data",
        version.file_id,
        "--seed",
        str(SEED),
        *flags,
    ]
    done = subprocess.run(
        [BURNISH, *command], env=os.environ | {"BURNISH_URL": url, "BURNISH_TOKEN": token},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def flag(name: str, value: Any) -> list[str]:
    """A knob on a command line."""
    return (
        [f"--{name}" if value else f"--no-{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    )


def order(job_id: str) -> dict[str, Any]:
    """What is stored of it, but for who asked, when, and in which words."""
    with transaction() as db:
        job = db.get_one(Job, job_id)
        assert job.state == State.QUEUED
        own = {"id", "asked", "created_at", "created_by", "rank_at", "idempotency_key", "body_hash"}
        return {name: value for name, value in job.model_dump().items() if name not in own}


@EVERY
def test_form_api_and_command_line_order_the_same(app: Flask, url: str, recipe: Recipe, tmp_path: Path):
    with transaction() as db:
        base_models.ensure_known(db)
        team = a_team(db)
        user, token = a_user(db, team), a_token(db, team)
        version = a_dataset(db, team, recipe, tmp_path)
    somebody = Visitor(app, user)
    for asked in ({}, turned(recipe)):
        jobs = [
            by_api(Api(app, token), recipe, version, asked),
            by_form(somebody, recipe, version, asked),
            by_command(url, token, recipe, version, asked),
        ]
        assert len(set(jobs)) == len(jobs)
        api, form, command = map(order, jobs)
        assert api["recipe"] == recipe.name
        assert api["columns"] == recipe.recognise(recipe.example[0])
        assert api["spec"].items() >= asked.items()
        assert form == api
        assert command == api
