"""What users download answers as the platform does: full models by plain transformers or diffusers, adapters by
plain peft, an LSTM by the class on its card; all of it offline. Every recipe in the folder is held to it, and every
merged model to having been compared with what was trained.
"""

import json
import re
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from shared import presets
from shared.recipe import Learner, Recipe, Sampling, get, recipes
from shared.spec import LoraSpec
from tests.attempts import TINY, checkpoints, events, parquet, run_here, write_attempt
from tests.generators import card_answer
from worker.engine.attempt import Attempt
from worker.engine.weights import reopened

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks so
ROWS, TOKENS = 3, 6
LSTM = {"architecture": "lstm", "width": 24, "layers": 1}


class Trained(NamedTuple):
    """A checkpoint of a recipe: its full model, or what its adapter stands on."""

    recipe: Recipe
    base: Path
    adapter: Path | None


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("It asked the network.")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module", params=recipes().values(), ids=lambda recipe: recipe.name)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A few steps on the recipe's example: an adapter on a tiny base model where the recipe has adapters."""
    recipe, folder = request.param, tmp_path_factory.mktemp(request.param.name)
    if not issubclass(recipe.spec, LoraSpec):
        preset = presets.preset(recipe.default_base_model)
        base = None if preset else TINY[recipe.head](folder / "base")
        return Trained(recipe, trained_on(folder, recipe, base, preset=preset), None)
    base = TINY[recipe.head](folder / "base")
    return Trained(recipe, base, trained_on(folder, recipe, base, method="lora"))


def trained_on(folder: Path, recipe: Recipe, base: Path | None, preset: Any = None, **spec: Any) -> Path:
    """The servable folder of a training on the recipe's example."""
    known = {"max_steps": 4, "batch_size": 4, "max_length": 128, "sampling_steps": 2, "learning_rate": 0.01}
    known |= {"evaluations": 1, "valid_fraction": 0} | spec
    attempt = write_attempt(
        folder / "attempt",
        recipe=recipe.name,
        spec={name: value for name, value in known.items() if name in recipe.spec.model_fields},
        columns=recipe.recognise(recipe.example[0]),
        base_model=base,
        preset=preset or {},
        train=parquet(folder / "rows.parquet", recipe.example),
        card={"base_model": "a-model-of-the-platform"},
    )
    assert run_here(attempt) == 0, events(attempt, "error")
    return checkpoints(attempt)[-1] / "servable"


def exported(folder: Path, trained: Trained) -> Path:
    """The attempt at a merged model."""
    given = {"recipe": trained.recipe.name, "base_model": trained.base, "adapter": trained.adapter}
    return write_attempt(folder / "export", kind="export", **given)


def built(folder: Path, trained: Trained) -> Path:
    """The folder of a merged model."""
    attempt = exported(folder, trained)
    assert run_here(attempt) == 0, events(attempt, "error")
    return attempt / "artifacts" / "merged"


@pytest.fixture(scope="module")
def merged(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp(f"merged-{trained.recipe.name}"), trained)


def ours(trained: Trained) -> Learner:
    """The checkpoint as the platform opens it."""
    recipe = trained.recipe
    given: dict[str, Any] = {"folder": trained.base, "base_model": trained.base, "adapter": trained.adapter}
    return reopened(Attempt(kind="infer", recipe=recipe.name, device="cpu", threads=1, **given), recipe)


def platform(trained: Trained, inputs: list[dict[str, Any]]) -> tuple[Learner, list[Any]]:
    """(the checkpoint as the platform opens it, its answers)."""
    learner, recipe = ours(trained), trained.recipe
    items = [recipe.encode_input(one, learner) for one in inputs]
    with torch.no_grad():
        return learner, recipe.predict(learner, items, [Sampling(max_tokens=TOKENS)] * len(items))


def test_a_merged_model_was_compared_with_what_was_trained(merged: Path):
    compared = json.loads((merged.parent / "agreement.json").read_text())
    assert compared["equal"] == 1
    assert compared["largest_difference"] < 1e-4
    assert compared["said"].endswith(".")


def test_a_merged_model_of_other_weights_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def wrong(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value.detach() * 1.2 for name, value in weights.items()}

    monkeypatch.setattr("worker.engine.export.copied", wrong)
    attempt = exported(tmp_path, trained)
    assert run_here(attempt) == 10
    assert events(attempt, "error")[-1]["data"]["code"] == "export_disagrees"
    assert not (attempt / "artifacts" / "merged").exists()


def test_a_merged_model_answers_without_us(trained: Trained, merged: Path, tmp_path: Path):
    inputs = asked(trained)
    learner, wanted = platform(trained, inputs)
    if trained.recipe.library == "diffusers":
        for number, (one, mine) in enumerate(zip(inputs, wanted, strict=True)):
            theirs = card_answer(merged, tmp_path / f"made{number}", one["label"], one["seed"])
            assert levels(theirs, learner.facts) == pytest.approx(levels(mine.content, learner.facts), abs=2)
        return
    assert plainly(trained, opened(trained, merged), merged, inputs, learner) == near(wanted)


def test_an_adapter_answers_without_us(trained: Trained):
    inputs = asked(trained)
    learner, wanted = platform(trained, inputs)
    adapted = with_adapter(trained, learner.facts)
    assert plainly(trained, adapted, trained.adapter or trained.base, inputs, learner) == near(wanted)


def test_the_card_of_an_adapter_opens_it(trained: Trained):
    facts = ours(trained).facts
    adapted, folder = with_adapter(trained, facts), str(trained.adapter)
    (code,) = re.findall(r"```python\n(.*?)```", Path(folder, "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {"print": lambda *_, **__: None}
    exec(
        code.replace("path/to/this/folder", folder).replace("path/to/the/base/model", str(trained.base)),
        names,
    )
    if "labels" in facts:
        assert names["model"].config.id2label == dict(enumerate(facts["labels"]))
    with torch.no_grad():
        mine, theirs = numbers(trained, adapted), numbers(trained, names["model"])
    assert float((mine - theirs).abs().max()) < 1e-4 * float(mine.std())


def test_an_adapter_and_its_merged_model_find_the_same_numbers(trained: Trained, merged: Path):
    """Merging adds two matrices where the adapter added two products: float32 rounds each sum by a part in 10⁷,
    some thousands of them follow one another in a model, so that logits may differ by 10⁻⁴ of how far they spread.
    The adapter itself has moved them by more than ten times that.
    """
    adapted = with_adapter(trained, ours(trained).facts)
    with torch.no_grad():
        mine, theirs = numbers(trained, adapted), numbers(trained, opened(trained, merged))
        with adapted.disable_adapter():
            before = numbers(trained, adapted)
    least = 1e-4 * float(mine.std())
    assert float((mine - theirs).abs().max()) < least
    assert float((mine - before).abs().max()) > 10 * least


def with_adapter(trained: Trained, facts: dict[str, Any]) -> Any:
    """The base model with the adapter on it, by plain transformers and peft."""
    from peft import PeftModel

    if trained.adapter is None:
        pytest.skip("This method has no adapters.")
    labels = {"id2label": dict(enumerate(facts["labels"]))} if "labels" in facts else {}
    return PeftModel.from_pretrained(opened(trained, trained.base, **labels), str(trained.adapter)).eval()


def numbers(trained: Trained, model: Any) -> Any:
    """Every logit that a model gives for a text."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(trained.adapter or trained.base)
    ids = tokenizer("When was that? I do not know.", return_tensors="pt")["input_ids"]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    output = model(input_ids=ids, **more)
    return torch.cat([value.flatten() for name, value in output.items() if name.endswith("logits")])


@pytest.mark.parametrize("recipe", ["causal_lm", "code"])
def test_the_class_on_the_card_of_a_merged_lstm_writes_what_the_platform_writes(recipe: str, tmp_path: Path):
    lstm = Trained(get(recipe), trained_on(tmp_path, get(recipe), None, preset=LSTM), None)
    (given,) = asked(lstm)[:1]
    _, (wanted,) = platform(lstm, [given])
    folder = built(tmp_path, lstm)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert not re.search("shared|burnish|remote", code)
    names: dict[str, Any] = {"print": lambda *_, **__: None}
    exec(code.replace("path/to/this/folder", str(folder)), names)
    ids = read(given, names["tokenizer"])["input_ids"]
    written: list[int] = []
    for _ in range(TOKENS):
        logits, _ = names["model"](torch.cat([ids, torch.tensor([written], dtype=torch.long)], 1))
        written.append(int(logits[0, -1].argmax()))
    assert names["tokenizer"].decode(written, skip_special_tokens=True) == wanted["text"]


# --- the same, as people would write it ---------------------------------------------------------------


def asked(trained: Trained) -> list[dict[str, Any]]:
    """The inputs of some rows of the example; what a generator is asked for is among its own labels."""
    recipe = trained.recipe
    if recipe.library == "diffusers":
        return recipe.probes(ours(trained))[:ROWS]
    return Recipe.probes(recipe, Learner(spec=None, facts={}))[:ROWS]


def opened(trained: Trained, folder: Path, **more: Any) -> Any:
    """A folder by the Auto class of transformers that the recipe names."""
    import transformers

    return getattr(transformers, trained.recipe.opens_with).from_pretrained(folder, **more).eval()


def plainly(
    trained: Trained, model: Any, folder: Path, inputs: list[dict[str, Any]], learner: Learner
) -> list[Any]:
    """What a model of transformers or peft answers, its tokenizer from `folder`, in the form of our answers."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    answer = {
        "AutoModelForCausalLM": writes,
        "AutoModelForSeq2SeqLM": writes,
        "AutoModelForSequenceClassification": classifies,
        "AutoModelForMaskedLM": fills,
        "AutoModelForQuestionAnswering": answers,
    }[trained.recipe.opens_with]
    with torch.no_grad():
        return [answer(model, tokenizer, one, learner) for one in inputs]


def read(given: dict[str, Any], tokenizer: Any) -> Any:
    """A prompt's tokens."""
    if "messages" in given:
        return tokenizer.apply_chat_template(
            given["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    if "prompt" in given:  # code: a file's beginning
        start = tokenizer.bos_token or tokenizer.eos_token
        return tokenizer(start + given["prompt"], add_special_tokens=False, return_tensors="pt")
    return tokenizer(given.get("source", given.get("text")), return_tensors="pt")


def writes(model: Any, tokenizer: Any, given: dict[str, Any], learner: Learner) -> Any:
    inputs = read(given, tokenizer)
    beams = getattr(learner.spec, "beams", 1)
    written = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=TOKENS,
        do_sample=False,
        num_beams=beams,
    )[0]
    start = 0 if "source" in given else inputs["input_ids"].shape[1]
    text = tokenizer.decode(written[start:], skip_special_tokens=True)
    if "messages" not in given:
        return {"text": text.strip() if "source" in given else text}
    tokens = written[start:].tolist()
    return {"content": text.strip(), "finish_reason": "stop" if tokens[-1] == tokenizer.eos_token_id else "length",
            "prompt_tokens": start, "completion_tokens": len(tokens)}  # fmt: skip


def classifies(model: Any, tokenizer: Any, given: dict[str, Any], learner: Learner) -> Any:
    shares = model(**tokenizer(given["text"], return_tensors="pt")).logits.softmax(-1)[0].tolist()
    scores = {model.config.id2label[number]: share for number, share in enumerate(shares)}
    return {"label": max(scores, key=lambda name: scores[name]), "scores": scores}


def fills(model: Any, tokenizer: Any, given: dict[str, Any], learner: Learner) -> Any:
    inputs = tokenizer(given["text"].replace("[MASK]", tokenizer.mask_token), return_tensors="pt")
    shares = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id].softmax(-1)
    found = shares.argmax(-1).tolist()
    return {
        "tokens": [tokenizer.decode([token]).strip() for token in found],
        "scores": shares.max(-1).values.tolist(),
    }


def answers(model: Any, tokenizer: Any, given: dict[str, Any], learner: Learner) -> Any:
    inputs = tokenizer(given["question"], given["context"], return_tensors="pt")
    output = model(**inputs)
    starts, ends = output.start_logits[0], output.end_logits[0]
    inside = torch.tensor([part == 1 for part in inputs.sequence_ids()])
    scores = starts[:, None] + ends[None]
    scores[~(inside[:, None] & inside[None]).triu().tril(29)] = -torch.inf
    start, end = divmod(int(scores.argmax()), len(inside))
    if starts[0] + ends[0] > scores.max():
        return {"answer": "", "start": 0, "end": 0}
    start, end = inputs.token_to_chars(start).start, inputs.token_to_chars(end).end
    return {"answer": given["context"][start:end], "start": start, "end": end}


def near(wanted: list[Any]) -> list[Any]:
    """Our answers, whose scores may differ by 10⁻⁴; that of an answer in a text is our own measure."""
    rounded = []
    for one in wanted:
        plain = {name: value for name, value in one.items() if name != "score"}
        for name in plain.keys() & {"scores"}:
            plain[name] = pytest.approx(plain[name], abs=1e-4)
        rounded.append(plain)
    return rounded


def levels(content: bytes, facts: dict[str, Any]) -> Any:
    """What is seen, or heard, in numbers from 0 to 255."""
    from shared.learning import pictures, sound

    if "rate" not in facts:
        return pictures.read(content, facts["channels"]).astype(int)
    heard = sound.spectrogram(sound.read(content), sound.Layout(facts["rate"], facts["frames"]))
    return heard.astype(int).mean(-1)
