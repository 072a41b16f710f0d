"""Text from a causal language model: greedy, drawn, by beams; nobody's answer depends on the company."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from shared.errors import Refused
from shared.learning.drawing import Drawn, luck
from shared.learning.generation import generate, together
from shared.recipe import Sampling
from shared.sampling import checked
from tests.factories import tiny_causal_lm

PROMPTS = ["Hello", "What is the time", "a", "The quick brown fox jumps over", "1 2 3 4"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model whose words differ enough for searches to matter, and its tokenizer."""
    torch.set_num_threads(1)
    folder: Path = tiny_causal_lm(tmp_path_factory.mktemp("tiny"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(12)
    return model.eval(), tokenizer


def texts(tiny: tuple[Any, Any], prompts: list[str], ways: list[Sampling]) -> list[str]:
    model, tokenizer = tiny
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    return [answer["content"] for answer in generate(model, tokenizer, ids, ways, strip=False)]


WAYS = [
    Sampling(max_tokens=12),
    Sampling(max_tokens=20, temperature=1.0, seed=3),
    Sampling(max_tokens=9, temperature=0.7, top_p=0.8, seed=4),
    Sampling(max_tokens=12, beams=3),
    Sampling(max_tokens=15, temperature=1.5, top_k=5, top_p=0.9, seed=5),
]


def test_an_answer_does_not_depend_on_the_company(tiny: tuple[Any, Any]):
    alone = [texts(tiny, [prompt], [way])[0] for prompt, way in zip(PROMPTS, WAYS, strict=True)]
    assert texts(tiny, PROMPTS, WAYS) == alone
    assert texts(tiny, PROMPTS[::-1], WAYS[::-1]) == alone[::-1]


def test_the_seed_decides_and_nothing_else(tiny: tuple[Any, Any]):
    way = Sampling(max_tokens=30, temperature=1.0)
    seeds = [1, 2, 3, -5, 2**63 - 1]
    drawn = [texts(tiny, ["Hello"], [replace(way, seed=seed)])[0] for seed in seeds]
    assert len(set(drawn)) == len(seeds)
    torch.manual_seed(99)
    assert texts(tiny, ["Hello"], [replace(way, seed=1)])[0] == drawn[0]
    longer = texts(tiny, ["Hello"], [replace(way, seed=1, max_tokens=40)])[0]
    assert longer.startswith(drawn[0])


def test_luck_begins_the_same_however_long():
    way = Sampling(seed=7)
    for length in (1, 3, 15, 16, 17, 100):
        assert torch.equal(luck(way, 500)[:length], luck(way, length))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.0, 7, 1.0), (1.0, 0, 0.7), (1.3, 9, 0.6), (1.0, 2000, 0.99)],
)
def test_tokens_come_as_often_as_transformers_would_draw_them(temperature: float, top_k: int, top_p: float):
    torch.manual_seed(0)
    scores = torch.randn(1, 3000) * 3
    warp: list[Any] = [TemperatureLogitsWarper(temperature)]
    warp += [TopKLogitsWarper(top_k)] if top_k else []
    warp += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    empty: Any = torch.zeros(1, 0, dtype=torch.long)
    expected = torch.softmax(LogitsProcessorList(warp)(empty, scores.clone()), -1)[0]
    tries = 4000
    way = Sampling(max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)
    group = Drawn([0] * tries, [way] * tries)
    group.luck = (torch.arange(tries, dtype=torch.float64)[:, None] + 0.5) / tries
    drawn = group.draw(scores.expand(tries, -1), 0)
    often = torch.bincount(drawn, minlength=3000) / tries
    assert torch.all(expected[often > 0] > 0), "nothing is drawn that was left out"
    assert (often - expected).abs().max() <= 1.5 / tries


def test_beams_find_what_transformers_find_and_are_at_least_as_likely(tiny: tuple[Any, Any]):
    model, tokenizer = tiny
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        plain = model.generate(**ids, num_beams=4, max_new_tokens=10, do_sample=False)
        expected = tokenizer.decode(plain[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert texts(tiny, [prompt], [Sampling(max_tokens=10, beams=4)]) == [expected]


def test_a_stop_text_ends_the_answer_in_front_of_it(tiny: tuple[Any, Any]):
    free = texts(tiny, ["Hello"], [Sampling(max_tokens=40, temperature=1.0, seed=1)])[0]
    stop = free[10:13]
    model, tokenizer = tiny
    ids = tokenizer("Hello")["input_ids"]
    (answer,) = generate(
        model,
        tokenizer,
        [ids],
        [Sampling(max_tokens=40, temperature=1.0, seed=1, stop=["nowhere", stop])],
        strip=False,
    )
    assert answer["content"] == free[: free.index(stop)]
    assert answer["finish_reason"] == "stop"
    assert answer["completion_tokens"] < 40


def test_answers_end_where_the_model_can_read_no_further(tiny: tuple[Any, Any]):
    """GPT-2 has a position for each token it can read and no more."""
    _, tokenizer = tiny
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, eos_token_id=None
    )
    model = GPT2LMHeadModel(config).eval()
    model.generation_config.eos_token_id = None
    prompts = [[5] * 30, [6] * 3, [7] * 31]
    told = generate(model, tokenizer, prompts, [Sampling(max_tokens=20)] * 3)
    written = [answer["completion_tokens"] for answer in told]
    assert written[0] <= 2
    assert written[2] <= 1
    assert written[1] > 2
    assert together(prompts, [Sampling(max_tokens=20)] * 3, 32) == [[1], [0], [2]]


def test_temperature_with_beams_is_refused_with_a_sentence():
    with pytest.raises(Refused, match="Beam search draws nothing"):
        checked({"beams": 4, "temperature": 0.5}, ("beams", "temperature"))
    assert checked({"beams": 4, "temperature": 0}, ("beams", "temperature")) == {"beams": 4, "temperature": 0}


def test_a_knob_that_changes_nothing_is_refused():
    with pytest.raises(Refused, match="'guidance' would change nothing") as refused:
        checked({"guidance": 3}, ("max_tokens",), "body.")
    assert refused.value.param == "body.guidance"
    assert checked({"guidance": None, "seed": "auto", "stop": []}, ()) == {}
