"""Every page in both themes and on a phone: axe finds nothing, nothing scrolls sideways, and a
stranger's text stays text.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from sqlmodel import Session, select

from shared.columns import now
from shared.db import transaction
from shared.tables import (
    Delivery,
    Event,
    EventType,
    Job,
    Kind,
    Schedule,
    Sent,
    State,
    Team,
    Transition,
    Webhook,
)
from tests.browser.conftest import Visit, a_member
from tests.factories import a_checkpoint, a_dataset, a_job, an_attempt, an_evaluation
from tests.services import Live

pytestmark = pytest.mark.browser

LOOKS: list[tuple[Literal["light", "dark"], int]] = [("light", 1280), ("dark", 390)]
STATIC = Path(__file__).parents[2] / "web" / "static"
EVIL = "<img src=x onerror=alert(1)>\"'</script><b>"
LABELS = ["refund", "delivery", EVIL]


@pytest.fixture(scope="module")
def pages(live: Live) -> dict[str, str]:
    """{name: address} of every page, over a team that has one of everything."""
    user = a_member("looks@example.com", "Looks")
    with transaction() as db:
        team = db.exec(select(Team).where(Team.name == "Looks")).one()
        rows = [{"text": f"{EVIL} row {n}", "label": LABELS[n % 3]} for n in range(12)]
        version = a_dataset(db, team, rows, name=f"intents {EVIL}")
        done = finished(db, team, version.id, user.id)
        running = under_way(db, team, version.id, user.id)
        failed = a_job(db, team, name="failed", state=State.FAILED, reason=f"It failed. {EVIL}", reason_code="diverged",
                       dataset_version_id=version.id, base_model_id="minilm-l6-v2", recipe="classification")  # fmt: skip
        queued = a_job(db, team, Kind.INFER, recipe="classification", base_model_id="minilm-l6-v2", checkpoint_id=done[1],
                       dataset_version_id=version.id, run_after=now() + timedelta(days=1))  # fmt: skip
        lines = [{"row": n, "score": -0.5 * n, "judged": {}, "prompt": EVIL, "expected": "refund", "answer": label}
                 for n, label in enumerate(LABELS)]  # fmt: skip
        seen = {"dataset_version_id": version.id, "base_model_id": "minilm-l6-v2", "checkpoint_id": done[1]}
        judged = [an_evaluation(db, team, lines, value, name=EVIL, **seen).id for value in (0.4, 0.6)]
        schedule = Schedule(team_id=team.id, name=EVIL, cron="30 2 * * *", zone="Europe/Berlin", active=False,
                            dataset_id=version.dataset_id, order={"recipe": "classification"}, created_by=user.id)  # fmt: skip
        db.add(schedule)
        db.flush()
        webhook = heard_of(db, failed)
        return {
            "sign-in": "/sign-in", "jobs": "/jobs", "new job": f"/jobs/new?dataset={version.id}", "clone": f"/jobs/new?from={done[0]}",
            "succeeded": f"/jobs/{done[0]}", "running": f"/jobs/{running}", "failed": f"/jobs/{failed.id}", "queued": f"/jobs/{queued.id}",
            "datasets": "/datasets", "dataset": f"/datasets/{version.dataset_id}", "models": "/models",
            "model": "/models/minilm-l6-v2", "schedules": "/schedules", "new schedule": "/schedules/new",
            "schedule": f"/schedules/{schedule.id}", "queue": "/queue", "batch": f"/batches/new?model={done[1]}",
            "evaluate": f"/evaluations/new?model={done[1]}&dataset={version.id}", "evaluation": f"/jobs/{judged[0]}",
            "compare": f"/evaluations/compare?job={judged[0]}&job={judged[1]}&all=1", "nothing to compare": "/evaluations/compare",
            "team": "/team", "notifications": "/team/notifications", "webhook": f"/team/webhooks/{webhook}", "new team": "/team/new", "password": "/password", "not there": "/jobs/nothing", "docs": "/docs",
        }  # fmt: skip


def heard_of(db: Session, job: Job) -> str:
    """A webhook that was switched off, with deliveries in every state; returns its id."""
    url = "https://hooks.example.com/a-long-path-with-a-token-" + "x" * 120
    webhook = Webhook(team_id=job.team_id, url=url, occasions=["failed"], kinds=["train"], salt="x", active=False,
                      off_reason="No delivery has arrived since 1 Nov 2026, 12:00 UTC.")  # fmt: skip
    db.add(webhook)
    db.flush()
    line = {
        "at": now().isoformat(),
        "status": None,
        "seconds": 10.0,
        "said": f"It did not answer within 10 seconds. {EVIL}",
    }
    for state, log in ((Sent.WAITING, []), (Sent.WAITING, [line]), (Sent.GIVEN_UP, [line] * 8), (Sent.DELIVERED, [line | {"status": 204, "said": ""}])):  # fmt: skip
        db.add(Delivery(team_id=job.team_id, webhook_id=webhook.id, job_id=job.id, type="fine_tuning.job.failed", body="{}",
                        state=state, log=log, tries=len(log), due_at=now() + timedelta(days=1)))  # fmt: skip
    return webhook.id


def finished(db: Session, team: Team, version_id: str, user_id: str) -> tuple[str, str]:
    """A classifier with scores, samples, a log and a checkpoint; returns (job, checkpoint)."""
    scores = {"f1": 0.9, "accuracy": 0.92, "precision": 0.9, "recall": 0.9, "loss": 0.3}
    per_class = [
        {"label": label, "precision": 0.9, "recall": 0.9, "f1": 0.9, "support": 4} for label in LABELS
    ]
    detail = {
        "per_class": per_class,
        "confusion": {"labels": LABELS, "matrix": [[4, 0, 0], [0, 3, 1], [0, 0, 4]]},
    }
    job = a_job(db, team, name=f"done {EVIL}", state=State.SUCCEEDED, recipe="classification", base_model_id="minilm-l6-v2",
                dataset_version_id=version_id, columns={"text": "text", "label": "label"}, created_by=user_id,
                spec={"epochs": 3, "batch_size": 4, "learning_rate": 0.001}, progress={"step": 9, "total_steps": 9},
                scores={"base": scores | {"f1": 0.1}, "tuned": scores, "detail": detail},
                started_at=now() - timedelta(minutes=9), finished_at=now())  # fmt: skip
    told(db, job, 9)
    manifest = [{"name": "servable/model.safetensors", "bytes": 9, "sha256": "a" * 64}]
    checkpoint = a_checkpoint(
        db, job, 9, manifest=manifest, adapter=True, metrics={"train_loss": 0.4, "valid_f1": 0.9}
    )
    job.best_checkpoint_id = checkpoint.id
    db.add(Transition(job_id=job.id, state=State.SUCCEEDED, actor=user_id, reason=EVIL))
    return job.id, checkpoint.id


def under_way(db: Session, team: Team, version_id: str, user_id: str) -> str:
    """A job that some worker holds for another day."""
    job = a_job(db, team, name="running", state=State.RUNNING, stage="training", recipe="classification",
                base_model_id="minilm-l6-v2", dataset_version_id=version_id, created_by=user_id, started_at=now(),
                progress={"step": 4, "total_steps": 9, "eta_seconds": 70})  # fmt: skip
    attempt = an_attempt(db, job, lease_expires_at=now() + timedelta(days=1))
    job.attempt_id = attempt.id
    told(db, job, 4)
    return job.id


def told(db: Session, job: Job, steps: int) -> None:
    """The events of that many steps."""
    lines: list[tuple[EventType, int | None, dict[str, Any]]] = [
        (EventType.STEP, n, {"loss": 3 / n, "learning_rate": 0.001, "epoch": n / 3})
        for n in range(1, steps + 1)
    ]
    lines += [
        (EventType.EVAL, n, {"which": "tuned", "metrics": {"f1": n / 9, "loss": 3 / n}}) for n in (2, 4)
    ]
    lines += [
        (EventType.SAMPLE, n, {"samples": [{"prompt": EVIL, "expected": "yes", "answer": EVIL}]})
        for n in (0, 2, 4)
    ]
    lines += [(EventType.LOG, None, {"level": "warn", "message": EVIL})]
    for seq, (kind, step, data) in enumerate(lines, 1):
        db.add(
            Event(
                job_id=job.id,
                lease_id=f"lease-{job.id}",
                seq=seq,
                team_id=job.team_id,
                type=kind,
                step=step,
                data=data,
            )
        )


def test_axe_finds_nothing_and_nothing_scrolls_sideways(chrome: Browser, live: Live, pages: dict[str, str]):
    visit = Visit(chrome, live)
    visit.page.on("dialog", lambda dialog: visit.complaints.append(f"a dialog opened: {dialog.message}"))
    found = []
    for name, address in pages.items():
        if name == "jobs":
            visit.sign_in("looks@example.com")
            visit.page.wait_for_url("**/jobs")
        page = visit.go(address)
        for theme, width in LOOKS:
            page.emulate_media(color_scheme=theme)
            page.set_viewport_size({"width": width, "height": 860})
            found += [f"{name}, {theme}, {width}: {problem}" for problem in [*too_wide(page), *axe(page)]]
        assert page.locator("h1").count() == 1, f"{name} has not one h1"
        assert len(page.title()) > len(" · Burnish"), f"{name} has no title"
    visit.close()
    assert not found, "\n".join(found)


def axe(page: Page) -> list[str]:
    """What axe says."""
    told = Axe().run(page).response["violations"]
    return [f"{one['id']} {one['help']}: {one['nodes'][0]['html'][:200]}" for one in told]


def too_wide(page: Page) -> list[str]:
    """How far the page scrolls sideways."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return [f"{wide} px too wide"] if wide > 0 else []


def test_a_plot_that_is_not_redrawn_yet_does_not_widen_the_page(
    chrome: Browser, live: Live, pages: dict[str, str]
):
    visit = Visit(chrome, live)
    visit.sign_in("looks@example.com")
    visit.page.set_viewport_size({"width": 390, "height": 860})
    page = visit.go(pages["running"])
    page.locator("#chart .uplot").evaluate("plot => { plot.style.width = '1000px'; }")
    assert too_wide(page) == []
    visit.close()


def test_pages_work_without_any_script(chrome: Browser, live: Live, pages: dict[str, str]):
    visit = Visit(chrome, live, scripts=False)
    visit.sign_in("looks@example.com")
    page = visit.go(pages["succeeded"])
    expect(page.locator("#scores table")).to_contain_text("F1")
    expect(page.locator("#downloads tbody tr").first).to_be_visible()
    page = visit.go(pages["new job"])
    page.get_by_label("Learning rate", exact=True).fill("1e9")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#learning_rate-wrong")).to_be_visible()
    visit.close()


def test_scripts_stay_under_150_kilobytes(owner: Visit):
    names = ["htmx.js", "uplot.js", *(path.name for path in STATIC.glob("*.js"))]
    sizes = {name: len(owner.context.request.get(f"/assets/{name}").body()) for name in names}
    assert min(sizes.values()) > 500
    assert sum(sizes.values()) < 150_000, sizes
