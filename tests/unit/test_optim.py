"""Updates and learning rates beside values worked out by hand, in plain Python."""

import math
from typing import Any

import pytest
import torch

from shared.spec import Spec
from worker.engine import optim

MATRIX, VECTOR = [[0.5, -1.0], [2.0, 0.25]], [0.1, -0.3]
GRADIENTS = [([[0.2, -0.1], [0.4, 0.3]], [0.5, -0.6]), ([[-0.3, 0.2], [0.1, -0.4]], [0.2, 0.1])]
RATE, DECAY, MOMENTUM, BETAS, EPSILON = 0.1, 0.05, 0.9, (0.9, 0.999), 1e-8


class Two(torch.nn.Module):
    """A matrix, which is decayed, and a vector, which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.tensor(MATRIX))
        self.vector = torch.nn.Parameter(torch.tensor(VECTOR))


def updated(**knobs: Any) -> list[float]:
    """The six weights after two updates by the engine; the gradients come as sums over a weight of 2."""
    model, spec = Two(), Spec(learning_rate=RATE, weight_decay=DECAY, **knobs)
    optimizer = optim.build(model, spec)
    for matrix, vector in GRADIENTS:
        model.matrix.grad, model.vector.grad = 2 * torch.tensor(matrix), 2 * torch.tensor(vector)
        optim.update(optimizer, spec, weight=2.0, learning_rate=RATE)
    return torch.cat([model.matrix.detach().flatten(), model.vector.detach()]).tolist()


def by_hand(rule: Any) -> list[float]:
    """The same by a rule for one weight: (weight, gradients, decay) → weight."""
    weights = [(value, DECAY) for row in MATRIX for value in row] + [(value, 0.0) for value in VECTOR]
    gradients = [[value for row in matrix for value in row] + vector for matrix, vector in GRADIENTS]
    return [
        rule(weight, [step[place] for step in gradients], decay)
        for place, (weight, decay) in enumerate(weights)
    ]


def sgd(weight: float, gradients: list[float], decay: float) -> float:
    """With momentum (Sutskever et al. 2013); the decay is part of the gradient."""
    velocity = 0.0
    for given in gradients:
        velocity = MOMENTUM * velocity + given + decay * weight
        weight -= RATE * velocity
    return weight


def adam(weight: float, gradients: list[float], decay: float, *, decoupled: bool = False) -> float:
    """Kingma & Ba 2015, algorithm 1; decoupled: Loshchilov & Hutter 2019, algorithm 2."""
    first = second = 0.0
    for step, given in enumerate(gradients, 1):
        gradient = given if decoupled else given + decay * weight
        weight -= RATE * decay * weight if decoupled else 0
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        mean, spread = first / (1 - BETAS[0] ** step), second / (1 - BETAS[1] ** step)
        weight -= RATE * mean / (math.sqrt(spread) + EPSILON)
    return weight


def adamw(weight: float, gradients: list[float], decay: float) -> float:
    return adam(weight, gradients, decay, decoupled=True)


@pytest.mark.parametrize("rule", [sgd, adam, adamw], ids=lambda rule: rule.__name__)
def test_an_update_is_the_papers(rule: Any):
    found = updated(optimizer=rule.__name__, max_grad_norm=0)
    assert found == pytest.approx(by_hand(rule), rel=1e-5)


def test_a_long_gradient_is_cut_to_the_norm_and_a_short_one_left_alone():
    spec = Spec(optimizer="sgd", max_grad_norm=1.0, weight_decay=0, learning_rate=1.0)
    for length, cut in ((5.0, 0.2), (0.5, 1.0)):
        model = Two()
        optimizer = optim.build(model, spec)
        model.matrix.grad = torch.tensor([[0.6, 0.0], [0.0, 0.0]]) * length * 3
        model.vector.grad = torch.tensor([0.8, 0.0]) * length * 3
        norm = optim.update(optimizer, spec, weight=3.0, learning_rate=1.0)
        assert norm == pytest.approx(length)
        assert model.matrix[0, 0].item() == pytest.approx(0.5 - 0.6 * length * cut, rel=1e-5)
        assert model.vector[0].item() == pytest.approx(0.1 - 0.8 * length * cut, rel=1e-5)


def test_a_gradient_that_is_no_number_leaves_every_weight_alone():
    model, spec = Two(), Spec()
    optimizer = optim.build(model, spec)
    model.matrix.grad, model.vector.grad = torch.full((2, 2), math.nan), torch.ones(2)
    assert math.isnan(optim.update(optimizer, spec, weight=1.0, learning_rate=0.1))
    assert model.matrix.tolist() == MATRIX
    assert model.vector.tolist() == pytest.approx(VECTOR)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]),
    ],
)
def test_the_rate_warms_up_then_follows_its_schedule(schedule: Any, expected: list[float]):
    """Six steps, a third of them warm-up: half and full rate, then from the full rate towards zero."""
    spec = Spec(learning_rate=1.0, learning_rate_schedule=schedule, warmup_fraction=1 / 3)
    assert [optim.rate(spec, step, 6) for step in range(1, 7)] == pytest.approx(expected)


def test_without_warm_up_the_first_step_has_the_full_rate():
    spec = Spec(learning_rate=0.3, warmup_fraction=0)
    assert optim.rate(spec, 1, 10) == pytest.approx(0.3)


def test_updates_are_computed_by_one_fused_kernel():
    for name in ("adamw", "adam", "sgd"):
        assert optim.build(Two(), Spec(optimizer=name)).defaults["fused"]


def test_bf16_is_used_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch):
    from worker.engine.weights import autocast, computes_in_bf16

    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, it=there: it)
        assert computes_in_bf16(torch.device("cuda", 0)) == there
        assert not computes_in_bf16(torch.device("cpu"))
    with autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
