"""Training, as one reads it: every method's steps in the order in which they happen.

Each step draws its random numbers by its own number, reads a batch that is a pure function of the
seed and that number, and takes its learning rate from it. So a resumed attempt repeats exactly what
an uninterrupted one does.
"""

from __future__ import annotations

import math
import resource
import time
from dataclasses import asdict
from typing import Any

import torch

from shared.learning.card import card
from shared.recipe import wire_name
from worker.engine import checkpoint, exhausted, optim
from worker.engine.attempt import DONE, STOPPED, Attempt, Diverged, Stop
from worker.engine.data import least_padded, portions, seed_of
from worker.engine.evaluation import judge as judge_held
from worker.engine.evaluation import judge_base, kept
from worker.engine.events import Events
from worker.engine.ranks import ALONE, FINISH, GO_ON, LEAVE, Ranks
from worker.engine.run import Run, prepare, recompute, recomputing
from worker.engine.weights import autocast, is_adapter

MOST_UNSTEADY = 3  # steps in a row without a finite loss
SEED_OF_EVALUATION = 1_234_567


def train(attempt: Attempt, events: Events, stop: Stop, ranks: Ranks = ALONE) -> int:
    """Train to the end, or to the step after which a stop was asked for. Returns the exit code.

    Raises Refused (the user's to mend), Diverged, torch.OutOfMemoryError, OSError (the disk is full).
    """
    run = prepare(attempt, events, ranks)
    try:
        return go(run, stop)
    finally:
        run.writer.wait()  # whatever happens, a checkpoint that was begun is finished


def go(run: Run, stop: Stop) -> int:
    """From where the run stands to its end. Every rank takes every step; rank 0 decides and does the rest."""
    evaluate_at, save_at = milestones(run)
    if run.ranks.first:
        if run.progress.judged_at != run.progress.step and run.progress.step in evaluate_at | {0}:
            judge(run)
        tell_training(run)
    stop.patient = True  # until here nothing is lost by leaving at once
    while (word := run.ranks.decided(next_move(run, stop))) == GO_ON:
        advance(run)
        if run.ranks.first:
            look_around(run, stop, evaluate_at, save_at)
    if not run.ranks.first:
        return DONE
    return leave(run) if word == LEAVE else finish(run, stop)


def next_move(run: Run, stop: Stop) -> int:
    """Whether there is another step to take."""
    if run.progress.step >= run.plan.total or patience_is_over(run):
        return FINISH
    if stop.enough and run.progress.step:
        run.events.log(f"Stopped at step {run.progress.step} of {run.plan.total}, as asked.")
        return FINISH
    return LEAVE if stop.requested else GO_ON


def look_around(run: Run, stop: Stop, evaluate_at: set[int], save_at: set[int]) -> None:
    """After a step: evaluate and save where it is time to."""
    progress, total = run.progress, run.plan.total
    if progress.step in evaluate_at and not (stop.requested and progress.step < total):
        judge(run)
        if progress.step < total:
            tell_training(run)
    if progress.step in save_at or overdue(run) or worth_keeping(run):
        save(run)


def tell_training(run: Run) -> None:
    """Say that steps are being taken."""
    run.events.stage("training", done=run.progress.step, total=run.plan.total)


def finish(run: Run, stop: Stop) -> int:
    """The last checkpoint, whole on the disk, with scores also where the end came before its time. Raises
    Diverged where its weights are no numbers.
    """
    if stop.enough and run.progress.judged_at != run.progress.step:
        judge(run)
    run.events.stage("saving")
    save(run)
    if run.saved_step != run.progress.step:
        raise Diverged(
            f"After step {run.progress.step} some weights are no longer finite numbers. Try a lower learning "
            "rate, or a longer warm-up."
        )
    run.writer.wait()
    run.events.stage("done")
    return DONE


def milestones(run: Run) -> tuple[set[int], set[int]]:
    """(steps to evaluate after, steps to save after). The fewer of the two move to the nearest of the more,
    so that as many checkpoints as possible have scores.
    """
    spec, total = run.learner.spec, run.plan.total
    evaluations, saves = points(total, spec.evaluations), points(total, spec.checkpoints)
    if len(saves) <= len(evaluations):
        return evaluations, {min(evaluations, key=lambda step: (abs(step - save), step)) for save in saves}
    return {min(saves, key=lambda step: (abs(step - one), step)) for one in evaluations}, saves


def points(total: int, count: int) -> set[int]:
    """`count` steps spread evenly over 1 … total, the last one included."""
    return {max(1, round(total * number / count)) for number in range(1, count + 1)}


def advance(run: Run) -> None:
    """One optimizer step: the batch in micro-batches, the sum of their gradients, the update."""
    started, progress, spec = time.monotonic(), run.progress, run.learner.spec
    step = progress.step + 1
    batch = run.plan.batch(step)
    loss, weight = accumulated(run, step, batch)
    learning_rate = optim.rate(spec, step, run.plan.total)
    norm = optim.update(run.optimizer, spec, weight, learning_rate if math.isfinite(loss) else 0.0)
    progress.step = step
    tokens = sum(run.items.lengths[place] for place in batch)
    progress.tokens += tokens
    run.seconds += time.monotonic() - started
    run.stepped, run.read, run.trained = run.stepped + 1, run.read + len(batch), run.trained + tokens
    steady(run, loss, norm)
    if math.isfinite(loss):
        progress.loss_sum += loss
        progress.loss_weight += weight
    run.events.step(step, told(run, loss / weight, norm, learning_rate))


def accumulated(run: Run, step: int, batch: list[int]) -> tuple[float, float]:
    """Gradients of the whole batch, summed over micro-batches and ranks. Returns (summed loss, its weight).

    Where a rank's memory runs out all of them halve their micro-batches and the step starts over.
    """
    own, lengths = run.ranks.share(batch), [run.items.lengths[place] for place in batch]
    while True:
        found = tried(run, step, own)
        full = isinstance(found, Exception)
        loss, weight, are_full = run.ranks.summed(*((0.0, 0.0) if full else found), float(full))
        if not are_full:
            run.ranks.add_gradients(run.trained_weights)
            return loss, weight
        run.optimizer.zero_grad(set_to_none=True)
        make_room(run, lengths, found if full else None)


def tried(run: Run, step: int, own: list[int]) -> tuple[float, float] | Exception:
    """What `gradients` gives, or the error if memory ran out."""
    try:
        return gradients(run, step, own)
    except RuntimeError as wrong:
        if not exhausted.memory(wrong):
            raise
        return wrong.with_traceback(None)  # the frames hold on to what was computed


def gradients(run: Run, step: int, own: list[int]) -> tuple[float, float]:
    """Forward and backward over the micro-batches of a step's items.

    What is drawn by an item's own seed is the same in whichever micro-batch and rank it is; other random
    numbers go by the micro-batch's first item, so that ranks draw different ones and a step that starts
    over repeats itself.
    """
    learner, recipe = run.learner, run.recipe
    total, weight = torch.zeros((), device=learner.device), 0.0
    for places in micro_batches(run, own):
        torch.manual_seed(seed_of(run.attempt.seed, step, places[0]))
        items = [run.items[place] | {"seed": seed_of(run.attempt.seed, step, place)} for place in places]
        tensors = recipe.collate(items, learner)
        tensors = {name: value.to(learner.device, non_blocking=True) for name, value in tensors.items()}
        with autocast(learner.device):
            loss = recipe.loss(learner, tensors)
        loss.total.backward()
        total += loss.total.detach()
        weight += loss.weight
    return float(total), weight


def micro_batches(run: Run, own: list[int]) -> list[list[int]]:
    """A step's items, shortest first, in parts that fit; packed ones need no padding and stay together."""
    lengths, budget = run.items.lengths, run.progress.budget
    if run.learner.packs:
        return portions(own, lengths, budget)
    return least_padded(own, lengths, budget, run.fixed)


def make_room(run: Run, lengths: list[int], wrong: Exception | None) -> None:
    """Halve the micro-batches; when they are single rows, trade time for memory; then give up."""
    progress = run.progress
    if run.learner.device.type == "cuda":
        torch.cuda.empty_cache()
    if progress.budget > max(lengths):
        most = max(lengths) * math.ceil(len(lengths) / run.ranks.size)
        progress.budget = min(progress.budget, most) // 2
        if not progress.halved:
            run.events.log(
                "Memory ran out: smaller micro-batches from here on, more of them in a step. "
                "The result is the same.",
                "warn",
            )
        progress.halved = True
    elif not progress.checkpointing and recomputing(run.learner.model):
        progress.checkpointing = True
        recompute(run.learner)
        run.events.log(
            "Memory ran out with single rows: gradient checkpointing is on, steps are slower.", "warn"
        )
    else:
        raise torch.OutOfMemoryError(f"A single row of {max(lengths)} tokens does not fit.") from wrong


def steady(run: Run, loss: float, norm: float) -> None:
    """Count steps without a finite loss; they leave the weights alone. Raises Diverged after three."""
    if math.isfinite(loss) and math.isfinite(norm):
        run.progress.unsteady = 0
        return
    run.progress.unsteady += 1
    run.events.log(
        f"The loss of step {run.progress.step:,} is not a finite number; the step is skipped.", "warn"
    )
    if run.progress.unsteady >= MOST_UNSTEADY:
        raise Diverged(
            f"The loss was not a finite number {MOST_UNSTEADY} steps in a row, up to step {run.progress.step:,}. "
            "Try a lower learning rate, a longer warm-up, or look for broken rows."
        )


def told(run: Run, loss: float, norm: float, learning_rate: float) -> dict[str, Any]:
    """A step event's data."""
    progress, total = run.progress, run.plan.total
    return {
        "loss": loss,
        "learning_rate": learning_rate,
        "grad_norm": norm,
        "tokens": progress.tokens,
        "tokens_per_second": run.trained / run.seconds,
        "examples_per_second": run.read / run.seconds,
        "epoch": progress.step / run.plan.per_epoch,
        "total_steps": total,
        "eta_seconds": (total - progress.step) * run.seconds / run.stepped,
        "memory_bytes": memory(run),
    }


def memory(run: Run) -> int:
    """The most memory used so far: the GPU's, or the process's."""
    if run.learner.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def judge(run: Run) -> None:
    """Evaluate on the held-out rows, show a few answers, remember the best."""
    progress = run.progress
    progress.judged_at = progress.step
    if run.held is None:
        return
    run.events.stage("evaluating")
    over = (run.learner, run.held, 2 * progress.budget, SEED_OF_EVALUATION)
    base = progress.step == 0
    scores, shown = judge_base(run.attempt, *over) if base else judge_held(run.recipe, *over)
    progress.metrics = scores.metrics
    rows, which = len(run.held.rows), "base" if base else "tuned"
    data = {"which": which, "metrics": scores.metrics, "detail": scores.detail, "rows": rows}
    run.events.write("eval", data, progress.step)
    if shown:
        run.events.write("sample", {"samples": kept(shown, run.attempt.media)}, progress.step)
    if progress.step > 0:
        remember(run)


def remember(run: Run) -> None:
    """Whether this evaluation is the best so far, by the recipe's first metric."""
    progress = run.progress
    if better(run, progress.best):
        progress.best, progress.best_step, progress.worse = first_metric(run), progress.step, 0
    else:
        progress.worse += 1


def first_metric(run: Run) -> float:
    """The last evaluation's value of the metric that picks the best."""
    return run.progress.metrics[run.recipe.metrics[0].name]


def better(run: Run, than: float | None) -> bool:
    """Whether the last evaluation beats that value."""
    value = first_metric(run)
    sign = 1 if run.recipe.metrics[0].better == "higher" else -1
    return math.isfinite(value) and (than is None or sign * value > sign * than)


def patience_is_over(run: Run) -> bool:
    """Whether too many evaluations in a row were no better than the best."""
    patience = run.learner.spec.patience
    if patience is None or run.progress.worse < patience:
        return False
    run.events.log(
        f"Stopped early at step {run.progress.step}: the best score, at step {run.progress.best_step}, "
        f"was not beaten by {run.progress.worse} evaluations."
    )
    return True


def worth_keeping(run: Run) -> bool:
    """Whether this is the best so far and the training may end early, so that later ones are worse."""
    return run.learner.spec.patience is not None and run.progress.best_step == run.progress.step


def overdue(run: Run) -> bool:
    """Whether a crash now would cost too much."""
    return time.monotonic() - run.saved_at > 60 * run.learner.spec.checkpoint_minutes


def leave(run: Run) -> int:
    """Keep what was learned for the next attempt, and go."""
    if run.progress.step:
        save(run)
    run.events.log(f"Stopped on request after step {run.progress.step}; the next attempt goes on from there.")
    return STOPPED


def save(run: Run) -> None:
    """A checkpoint of this step, unless there is one; it is written while training goes on. Weights that are
    not finite are never kept.
    """
    progress = run.progress
    if run.saved_step == progress.step:
        return
    weights = checkpoint.copied(checkpoint.live_weights(run.learner))
    if not checkpoint.are_finite(weights):
        run.events.log(
            f"Some weights are not finite numbers after step {progress.step:,}: no checkpoint is made of them.",
            "warn",
        )
        return
    judged = progress.judged_at == progress.step and run.held is not None
    metrics = progress.metrics if judged else {}
    best = judged and better(run, progress.best_saved)
    if best:
        progress.best_saved = first_metric(run)
    train_loss = progress.loss_sum / progress.loss_weight if progress.loss_weight else None
    name, step, epoch = f"step-{progress.step:06d}", progress.step, progress.step / run.plan.per_epoch
    progress.loss_sum = progress.loss_weight = 0.0
    snapshot = checkpoint.Snapshot(
        name=name,
        weights=weights,
        optimizer=optim.state(run.optimizer),
        loop=asdict(progress),
        card=card(card_facts(run, metrics)),
        ours={
            "recipe": wire_name(run.recipe),
            "spec": run.learner.spec.model_dump(),
            "facts": run.learner.facts,
            "labels": run.learner.facts.get("labels"),
            "step": step,
            "epoch": epoch,
        },
    )
    data = {
        "name": name,
        "metrics": metrics,
        "train_loss": train_loss,
        "epoch": epoch,
        "adapter": is_adapter(run.learner.model),
        "best": best,
    }
    run.writer.write(snapshot, lambda: run.events.write("checkpoint", data, step))
    run.saved_step, run.saved_at = step, time.monotonic()


def card_facts(run: Run, metrics: dict[str, float]) -> dict[str, Any]:
    """What the model card tells."""
    return run.attempt.card | {
        "title": run.recipe.title,
        "recipe": run.recipe.name,
        "library": run.recipe.library,
        "step": run.progress.step,
        "epoch": run.progress.step / run.plan.per_epoch,
        "adapter": is_adapter(run.learner.model),
        "metrics": {one.title: metrics[one.name] for one in run.recipe.metrics if one.name in metrics},
        "spec": run.learner.spec.model_dump(),
        "usage": run.recipe.usage(run.learner),
    }
