"""The page that shows evaluations side by side: metrics, their differences, the rows on which models differ."""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, g, render_template, request
from sqlmodel import Session, col, select

from shared import evaluations, storage
from shared.db import transaction
from shared.errors import Refused
from shared.recipe import Recipe, recipes
from shared.tables import FINAL, Artifact, Dataset, DatasetVersion, File, Job, Kind, Ready, State
from web import comparison
from web.evaluations import words_for
from web.jobs import own

pages = Blueprint("compare", __name__)

LETTERS = "ABCDEFGH"
RESULTS_BYTES = 16 * 1024**2  # of the results of all models together that are read for a page
REPORT_BYTES = 8 * 1024**2
SHOWN = 25  # rows of a page


@dataclass
class Contender:
    """A model as the page shows it; `report` is None before its evaluation has succeeded."""

    letter: str
    job: Job
    words: str
    report: dict[str, Any] | None


@pages.get("/evaluations/compare")
def show() -> str:
    """Evaluations (`job`, again and again, the first is what others are compared with; or a `comparison`) on the
    same rows. `all` shows rows on which the models agree too, `from` is the next page of rows.
    """
    with transaction() as db:
        rows = asked(db)
        if not rows:
            return render_template("evaluations/compare.html", models=[])
        recipe = of_one_kind(rows)
        words, files = words_for(db, rows), stored(db, rows)
        version = db.get_one(DatasetVersion, rows[0].dataset_version_id)
        dataset = db.get_one(Dataset, version.dataset_id)
    store = Patience()
    models = [
        Contender(letter, job, words[job.id], report(store, job, files.get((job.id, "report"))))
        for letter, job in zip(LETTERS, rows, strict=False)
    ]
    done = [(model, model.report) for model in models if model.report]
    most = RESULTS_BYTES // max(1, len(done))
    told = [results(store, files.get((model.job.id, "results")), most) for model, _ in done]
    differing = comparison.rows([lines for lines, _ in told]) if len(done) > 1 else []
    return render_template(
        "evaluations/compare.html",
        models=models,
        done=[model for model, _ in done],
        away=store.away,
        dataset=dataset,
        version=version,
        metrics=metrics(recipe, [found for _, found in done]),
        paired=len({found.get("rows_digest") for _, found in done}) == 1,
        cut=any(cut for _, cut in told),
        going=any(job.state not in FINAL for job in rows),
        **part(differing),
    )


def asked(db: Session) -> list[Job]:
    """The evaluations that the address names, at most eight. Raises NotFound for one that the team lacks."""
    if together := request.args.get("comparison"):
        found = list(evaluations.compared(db, g.caller.team_id, together))
    else:
        found = [own(db, name) for name in dict.fromkeys(request.args.getlist("job"))]
    return found[: evaluations.MOST_MODELS]


def of_one_kind(rows: list[Job]) -> Recipe:
    """The recipe of evaluations that can stand side by side. Raises Refused."""
    if any(job.kind is not Kind.EVALUATE or job.recipe not in recipes() for job in rows):
        raise Refused(
            "Only evaluations are compared. Evaluate each of the models on one dataset first.", param="job"
        )
    if len({job.dataset_version_id for job in rows}) > 1:
        raise Refused(
            "These evaluations read different dataset versions. Evaluate the models on one of them.",
            param="job",
        )
    if len({job.recipe for job in rows}) > 1:
        raise Refused(
            "These models were trained by different recipes, which report different metrics.", param="job"
        )
    return recipes()[rows[0].recipe or ""]


def metrics(recipe: Recipe, reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each metric: every model's value, interval, its place on a line, its difference from the first's."""
    told = []
    for metric in recipe.metrics:
        values = [(one["metrics"].get(metric.name), one["intervals"].get(metric.name)) for one in reports]
        apart = [comparison.difference(metric, reports[0], one) for one in reports]
        cells = zip(values, comparison.marks(values, whole=False), apart, strict=True)
        told.append(
            {
                "metric": metric,
                "cells": [
                    {"value": value, "interval": interval, "mark": mark, "apart": moved}
                    for (value, interval), mark, moved in cells
                ],
            }
        )
    return told


def part(differing: list[comparison.Row]) -> dict[str, Any]:
    """The rows that the page shows, how many there are, and where the next page begins."""
    every = "all" in request.args
    chosen = differing if every else [row for row in differing if row.differs]
    start = int(request.args["from"]) if request.args.get("from", "").isdecimal() else 0
    more = start + SHOWN if start + SHOWN < len(chosen) else None
    return {
        "rows": chosen[start : start + SHOWN],
        "counts": {"all": len(differing), "differing": sum(row.differs for row in differing)},
        "every": every,
        "next": more,
        "link": link,
    }


def link(**changed: Any) -> str:
    """This page's address with other parameters; None takes one away."""
    kept = [(k, v) for k, v in request.args.items(multi=True) if k not in changed and k != "from"]
    fresh = [(k, v) for k, v in changed.items() if v is not None]
    return f"/evaluations/compare?{urlencode([*kept, *fresh])}"


# --- what evaluations have stored -------------------------------------------------------------------


def stored(db: Session, rows: list[Job]) -> dict[tuple[str, str], File]:
    """{(evaluation's id, form): the file} of what they have left."""
    made = (
        select(Artifact, File)
        .join(File, col(File.id) == Artifact.file_id)
        .where(col(Artifact.job_id).in_([job.id for job in rows]), Artifact.state == Ready.READY)
        .where(col(File.deleted_at).is_(None))
    )
    return {(artifact.job_id, artifact.form): file for artifact, file in db.exec(made)}


class Patience:
    """The store, for as long as it answers: once it does not, this page asks it nothing more."""

    def __init__(self) -> None:
        self.away = False

    def read(self, file: File | None, most: int) -> bytes:
        """The first bytes of a file; none where it is gone or the store is away."""
        if file is None or not file.bytes or self.away:
            return b""
        try:
            with storage.hurried():
                return b"".join(storage.stream(file.key, 0, min(most, file.bytes) - 1)[0])
        except storage.Missing:
            return b""
        except storage.Away:
            self.away = True
            return b""


def report(store: Patience, job: Job, file: File | None) -> dict[str, Any] | None:
    """Its report; without the resamples where the store is away. None before it has succeeded."""
    if job.state is not State.SUCCEEDED:
        return None
    told = {
        "metrics": job.scores.get("tuned") or {},
        "intervals": job.scores.get("intervals") or {},
        "resampled": {},
    }
    small = file if file and file.bytes <= REPORT_BYTES else None
    whole = json.loads(store.read(small, REPORT_BYTES) or b"{}")
    return told | {name: whole[name] for name in ("resampled", "rows_digest") if name in whole}


def results(store: Patience, file: File | None, most: int) -> tuple[list[str], bool]:
    """The first lines of an evaluation's results, `most` bytes of them, and whether there are more."""
    head = store.read(file, most)
    lines = head[: head.rfind(b"\n") + 1].decode().split("\n")
    return [line for line in lines if line], bool(head and file and file.bytes > most)
