"""Optimizers, the learning-rate schedule, and the update of a step."""

from __future__ import annotations

import math
from typing import Any

import torch

from shared.spec import Spec

MATRIX = 2  # parameters of fewer dimensions (biases, norms) are not decayed


def build(model: torch.nn.Module, spec: Spec) -> torch.optim.Optimizer:
    """The spec's optimizer over every weight that is trained, in a fixed order."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.dim() >= MATRIX], "weight_decay": spec.weight_decay},
        {"params": [w for w in weights if w.dim() < MATRIX], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    more: dict[str, Any] = {"momentum": 0.9} if spec.optimizer == "sgd" else {}
    return kinds[spec.optimizer](groups, lr=spec.learning_rate, fused=True, **more)


def rate(spec: Spec, step: int, total: int) -> float:
    """The learning rate of a step (from 1): a pure function, so that nothing of it is saved."""
    warmup = math.ceil(spec.warmup_fraction * total)
    if step <= warmup:
        return spec.learning_rate * step / max(warmup, 1)
    left = (total - step + 1) / max(total - warmup, 1)
    if spec.learning_rate_schedule == "cosine":
        return spec.learning_rate * (1 - math.cos(math.pi * left)) / 2
    return spec.learning_rate * (left if spec.learning_rate_schedule == "linear" else 1.0)


def update(optimizer: torch.optim.Optimizer, spec: Spec, weight: float, learning_rate: float) -> float:
    """Turn summed gradients into their mean, clip, step. Returns the norm before clipping.

    A norm that is not finite leaves the weights as they are.
    """
    gradients = [w.grad for group in optimizer.param_groups for w in group["params"] if w.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients)) / weight
    if math.isfinite(norm):
        factor = min(1.0, spec.max_grad_norm / (norm + 1e-6)) if spec.max_grad_norm else 1.0
        for gradient in gradients:
            gradient.mul_(factor / weight)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors as {"<number of the weight>.<name>": a copy in main memory}."""
    held = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value.detach().to("cpu", copy=True).contiguous()
        for number, values in held.items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def restore(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `state` gave."""
    held: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        held.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": held, "param_groups": optimizer.state_dict()["param_groups"]})
