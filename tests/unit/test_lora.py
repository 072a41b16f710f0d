"""An adapted layer computed in fewer passes gives what peft's own gives."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from worker.engine import lora

WORDS = 50
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks so


def adapted(kind: str = "llama", dtype: torch.dtype = torch.float32, **knobs):
    """A small model with an adapter that already does something."""
    torch.manual_seed(3)
    if kind == "gpt":
        base = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2))
    else:
        sizes: dict[str, Any] = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        base = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, attention_bias=True, mlp_bias=True, **sizes))
    config = LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", fan_in_fan_out=kind == "gpt", **knobs)
    model = get_peft_model(base.to(dtype), config, autocast_adapter_dtype=False)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def gradients(model) -> dict[str, torch.Tensor]:
    """Of a loss, by weight; `loss` is among them."""
    model.zero_grad()
    ids = torch.arange(24).reshape(2, 12) % WORDS
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    found = {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }
    return found | {"loss": loss.detach()}


def quick(model) -> list[str]:
    """The layers that take the shorter way."""
    return [name for name, layer in model.named_modules() if "forward" in vars(layer)]


def test_loss_and_gradients_are_those_of_peft():
    model = adapted()
    expected = gradients(model)
    lora.quicken(model)
    found = gradients(model)
    assert len(quick(model)) == 14
    assert found.keys() == expected.keys()
    assert len(found) == 1 + 2 * 14
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_an_input_that_learns_gets_its_gradient():
    layer = next(m for m in adapted().modules() if lora.is_plain(m))
    inputs = [
        torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "12"
    ]
    layer(inputs[0]).square().sum().backward()
    lora.forward(layer, inputs[1]).square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-5)


def test_switched_off_and_merged_adapters_are_so_still():
    model = adapted()
    ids = torch.arange(12)[None]
    with torch.no_grad(), model.disable_adapter():
        without = model(input_ids=ids).logits
    lora.quicken(model)
    with torch.no_grad():
        with_it = model(input_ids=ids).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids).logits, without, rtol=0, atol=0)
        assert (with_it - without).abs().max() > 0.1
        model.merge_adapter()
        torch.testing.assert_close(model(input_ids=ids).logits, with_it, rtol=1e-4, atol=1e-5)
        model.unmerge_adapter()
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, with_it, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        lambda: adapted("gpt"),  # its layers hold their weights turned round
        lambda: adapted(lora_dropout=0.1),
        lambda: adapted(use_dora=True),
        lambda: adapted(lora_bias=True),
        lambda: adapted(dtype=torch.bfloat16),
    ],
    ids=["another layer", "dropout", "dora", "bias", "bfloat16"],
)
def test_what_is_not_plain_stays_with_peft(model):
    model = model()
    lora.quicken(model)
    assert quick(model) == []
