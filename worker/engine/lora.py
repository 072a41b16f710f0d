"""Linear layers with an adapter (LoRA, https://arxiv.org/abs/2106.09685) in fewer passes than peft takes over what
they put out. Only what is computed is another's: weights, names and files stay peft's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class Adapted(torch.autograd.Function):
    """x Wᵀ + b + scale · (x Aᵀ) Bᵀ, [tokens, out] of x [tokens, in]; W [out, in] and b are frozen, A [rank, in] and
    B [out, rank] are trained.

    Written out, the second product, its multiple and the sum are a tensor each, and so are their gradients.
    Here both products add up in one.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, down: Any, up: Any, scale: float) -> Any:
        inner = x @ down.t()
        ctx.save_for_backward(x, weight, down, up, inner)
        ctx.scale = scale
        return added(linear(x, weight, bias), inner, up.t(), scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Any) -> Any:
        x, weight, down, up, inner = ctx.saved_tensors
        of_output = given[0]
        of_inner = (of_output @ up).mul_(ctx.scale)
        of_x = added(of_output @ weight, of_inner, down) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_inner.t() @ x, (of_output.t() @ inner).mul_(ctx.scale), None


def added(total: Any, left: Any, right: Any, scale: float = 1.0) -> Any:
    """`total` + scale · left right, in the place of `total`."""
    return torch.addmm(total, left, right, alpha=scale, out=total)


def quicken(model: Any) -> None:
    """Every layer of the model that is such a one takes the shorter way."""
    for layer in model.modules():
        if is_plain(layer):
            layer.forward = partial(forward, layer)


def is_plain(layer: Any) -> bool:
    """Whether it is one linear layer and one adapter, without dropout, all in float32: with autocast peft's way stays."""
    if type(layer) is not Linear or type(layer.base_layer) is not torch.nn.Linear or layer.lora_variant:
        return False
    (name, *others), base = layer.active_adapters, layer.base_layer
    weights = (base.weight, layer.lora_A[name].weight, layer.lora_B[name].weight)
    return (
        not others
        and not base.weight.requires_grad
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and layer.lora_B[name].bias is None
        and all(weight.dtype == torch.float32 for weight in weights)
    )


def forward(layer: Any, x: Any) -> Any:
    """What the layer's own `forward` gives."""
    if layer.disable_adapters or layer.merged or x.dtype != torch.float32:
        return Linear.forward(layer, x)
    (name,), base = layer.active_adapters, layer.base_layer
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return Adapted.apply(x.flatten(0, -2), base.weight, base.bias, down, up, layer.scaling[name]).unflatten(
        0, x.shape[:-1]
    )
