"""Evaluations: models judged on the same rows, so that they can be compared."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from sqlmodel import Session, col, select

from shared import base_models, jobs, orders
from shared.errors import Refused
from shared.ids import new_id
from shared.orders import Order
from shared.recipe import recipes
from shared.tables import Job, Kind

MOST_MODELS = 8  # side by side
COMPARISON = "comparison"  # the label that evaluations share which were asked for together


def submit(db: Session, order: Order, models: Sequence[str], key: str | None = None) -> list[Job]:
    """A job for each of the models, in their order; all of them or none. Wake their slot after the commit.

    Several share a comparison and a seed. A base model among checkpoints is judged by their recipe. Raises
    Refused; the same key gives the same jobs.
    """
    models = list(dict.fromkeys(models))
    if not 1 <= len(models) <= MOST_MODELS:
        said = "Choose a model." if not models else f"At most {MOST_MODELS} models are compared at once."
        raise Refused(said, param="model")
    order = replace(order, kind=Kind.EVALUATE, recipe=order.recipe or recipe_among(db, order.team_id, models))
    if len(models) > 1:
        order = together(order, key)
    made = [
        jobs.submit(db, replace(order, model=model), keyed(key, number))
        for number, model in enumerate(models)
    ]
    titles = list(dict.fromkeys(recipes()[job.recipe or ""].title for job in made))
    if len(titles) > 1:
        names = " and ".join(f"«{title}»" for title in titles)
        raise Refused(
            f"{names} report different metrics. Compare models that were trained by one recipe.",
            param="model",
        )
    return made


def recipe_among(db: Session, team_id: str, models: Sequence[str]) -> str | None:
    """The recipe of the first checkpoint among the models, for base models beside it."""
    for model in models:
        checkpoint = base_models.find(db, team_id, model).checkpoint
        trained = orders.trained_by(db, checkpoint.id) if checkpoint else None
        if trained is not None:
            return trained.recipe if len(models) > 1 else None
    return None


def together(order: Order, key: str | None) -> Order:
    """The order with a comparison and a seed, which are the same for the same key."""
    made = hashlib.sha256(f"{order.team_id}/{key}".encode()).hexdigest()[:26] if key else new_id("")
    comparison = order.labels.get(COMPARISON) or f"comparison-{made}"
    seed = int(hashlib.sha256(comparison.encode()).hexdigest()[:7], 16) if order.seed is None else order.seed
    return replace(order, labels=order.labels | {COMPARISON: comparison}, seed=seed)


def keyed(key: str | None, number: int) -> str | None:
    """The idempotency key of the job for model `number`, from 0."""
    return f"{key}#{number}" if key and number else key


def compared(db: Session, team_id: str, comparison: str) -> Sequence[Job]:
    """The team's evaluations that share this comparison, in the order in which they were asked for."""
    wanted = select(Job).where(
        Job.team_id == team_id,
        Job.kind == Kind.EVALUATE,
        col(Job.labels).contains({COMPARISON: comparison}),
        col(Job.deleted_at).is_(None),
    )
    return db.exec(wanted.order_by(col(Job.id))).all()
