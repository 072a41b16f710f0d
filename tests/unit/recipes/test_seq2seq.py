"""Text to text: shapes of rows, what is wrong with them, the metrics, beams, and the checkpoint elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import Refused
from shared.learning import likeness
from shared.learning.batch import IGNORED
from shared.learning.encoder_decoder import collate, write
from shared.learning.language_model import answer_loss
from shared.recipe import Learner, Sampling, get
from shared.recipes.seq2seq import Seq2SeqSpec
from tests.attempts import TINY, checkpoints, events, parquet, predictions, run_here, write_attempt
from tests.factories import tiny_bart
from tests.imports import imported, lines

SEQ2SEQ = get("seq2seq")
COLUMNS = {"source": "source", "target": "target"}
BOTH = {"source": "translation", "target": "translation"}
PAIRS = [
    {"source": word, "target": word[::-1]}
    for word in ("on", "to", "ten", "pin", "stop", "star", "drawer", "a b", "Ünï", "long lane")
]


# --- rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"source": "yes", "target": "ja", "id": 1}, COLUMNS),
        ({"input": "yes", "output": "ja"}, {"source": "input", "target": "output"}),
        ({"document": "yes", "summary": "ja"}, {"source": "document", "target": "summary"}),
        ({"text": "yes", "summary": "ja"}, {"source": "text", "target": "summary"}),
        ({"translation": {"en": "yes", "de": "ja"}}, BOTH),
        ({"translation": '{"en": "yes", "de": "ja"}'}, BOTH),
    ],
)
def test_pairs_come_in_many_shapes(row: dict[str, Any], columns: dict[str, str]):
    assert SEQ2SEQ.recognise(row) == columns
    assert SEQ2SEQ.check([row], columns) == []
    assert SEQ2SEQ.canonical(row, columns) == {"source": "yes", "target": "ja"}
    assert SEQ2SEQ.canonical(row, {"source": columns["source"]}) == {"source": "yes"} or columns == BOTH


def test_a_translation_gives_its_first_language_to_predict_from():
    row = {"translation": {"en": "yes", "de": "ja"}}
    assert SEQ2SEQ.canonical(row, {"source": "translation"}) == {"source": "yes"}
    backwards = {"target": "translation", "source": "translation"}
    assert SEQ2SEQ.canonical(row, backwards) == {"source": "yes", "target": "ja"}


def test_instructions_with_an_input_are_not_taken_for_pairs():
    assert SEQ2SEQ.recognise(["instruction", "input", "output"]) is None


def pair(source: Any = "yes", target: Any = "ja") -> dict[str, Any]:
    return {"source": source, "target": target}


def translated(**languages: Any) -> dict[str, Any]:
    return {"translation": languages}


GOOD = [pair("no", "nein"), pair("good", "gut")]
TALK = [translated(en="no", de="nein"), translated(en="good", de="gut")]


@pytest.mark.parametrize(
    ("rows", "row", "fatal", "said"),
    [
        ([*GOOD, pair(source=None)], 3, False, "The source is empty; the row is left out."),
        ([*GOOD, pair(target=" \n")], 3, False, "The target is empty; the row is left out."),
        ([*GOOD, {"source": "yes"}], 3, False, "The target is empty"),
        ([pair(["yes"]), pair(["no"], "nein")], 2, True, "«source» must be text."),
        ([pair(target={"de": "ja"}), pair("no", {"de": "nein"})], 2, True, "«target» must be text."),
        ([*TALK, translated(en="yes", de="ja", fr="oui")], 3, True, "a text in each of two languages"),
        ([*TALK, {"translation": "yes = ja"}], 3, True, "a text in each of two languages"),
        ([*TALK, {"translation": "[" * 100_000}], 3, True, "a text in each of two languages"),
        ([*TALK, {"translation": None}], 3, True, "a text in each of two languages"),
        ([*TALK, translated(en="yes", de="")], 3, False, "The target is empty"),
        ([pair(" "), pair(target="")], None, True, "No row has both a source and a target."),
        ([pair("yes", "ja"), pair("no", "ja"), pair("good", "ja")], None, True, "Every target is «ja»"),
    ],
)
def test_a_broken_dataset_is_answered_with_row_and_reason(
    tmp_path: Path, rows: list[dict[str, Any]], row: int | None, fatal: bool, said: str
):
    made = imported(tmp_path, "rows.jsonl", lines(*rows))
    assert made.code == 0
    told = made.report["fits"]["seq2seq"]["findings"]
    found = [finding for finding in told if finding["row"] == row]
    assert [finding["fatal"] for finding in found] == [fatal], told
    assert said in found[0]["message"]


@pytest.mark.parametrize(
    ("filename", "data", "said"),
    [
        ("a.csv", b"source,target\nyes\n", "row 2"),
        ("a.jsonl", b'{"source": "yes", "target": NaN}\n', "Line 1"),
        ("a.jsonl", lines(pair("x" * 11 * 2**20)), "line 1"),
        ("a.jsonl", lines(pair()) + b'["yes", "ja"]\n', "Line 2"),
        ("a.tsv", b"source\ttarget\nyes\t\xff\xfe\n", "UTF-8"),
        ("a.jsonl", b"", "empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, filename: str, data: bytes, said: str):
    assert said.lower() in imported(tmp_path, filename, data).error["message"].lower()


# --- metrics ----------------------------------------------------------------------------------

WRITTEN = [
    ("the cat sat on the mat", "the cat sat on a mat"),
    ("walking", "walking"),
    ("A quick brown fox jumps.", "The quick brown dog jumps!"),
    ("one two three four five six", ""),
    ("went", "goed "),
]


def test_corpus_scores_are_those_of_sacrebleu():
    from sacrebleu import metrics

    expected, written = ([pair[n].strip() for pair in WRITTEN] for n in (0, 1))
    found = likeness.likeness(WRITTEN)
    assert found["chrf"] == pytest.approx(metrics.CHRF().corpus_score(written, [expected]).score)
    assert found["bleu"] == pytest.approx(metrics.BLEU().corpus_score(written, [expected]).score)
    assert found["bleu"] > 20


def test_rouge_l_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    for expected, written in WRITTEN:
        theirs = scorer.score(expected, written)["rougeL"].fmeasure
        assert likeness.rouge_l(expected, written) == pytest.approx(theirs)
    assert likeness.rouge_l("the cat sat", "cat the sat here") == pytest.approx(2 * 2 / 7)
    assert likeness.rouge_l("Добрый вечер", "добрый день") == 0.5


def test_measures_follow_from_the_rows_alone():
    found = [
        {"loss": 2.0, "weight": 4.0, "expected": "ja", "written": "ja "},
        {"loss": 4.0, "weight": 2.0, "expected": "nein", "written": "ja"},
        {"loss": 6.0, "weight": 6.0},
    ]
    scores = SEQ2SEQ.measure(found, {}).metrics
    assert (scores["loss"], scores["exact_match"], scores["rouge_l"]) == (1.0, 0.5, 0.5)
    assert SEQ2SEQ.measure([found[0]] * 9, {}).metrics["chrf"] == 100
    assert SEQ2SEQ.measure([found[2]], {}).metrics["exact_match"] == 0
    assert [SEQ2SEQ.row_score(one, {}) for one in found] == [0.5, 2.0, 1.0]


# --- loss -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["seq2seq"](tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def learner(base: Path) -> Learner:
    from shared.learning.encoder_decoder import load

    made = Learner(Seq2SeqSpec(), {}, source=base)
    made.tokenizer = SEQ2SEQ.load_tokenizer(base, [], made.spec)
    made.model = load(base).eval()
    return made


def test_the_loss_is_that_of_transformers_row_by_row(learner: Learner):
    import torch

    items = [item for row in PAIRS for item in SEQ2SEQ.encode(row, learner)]
    batch = collate(items, learner)
    with torch.no_grad():
        ours = float(answer_loss(learner.model, batch))
        theirs = sum(
            float(learner.model(
                input_ids=torch.tensor([item["input_ids"]]), labels=torch.tensor([item["labels"]])
            ).loss) * len(item["labels"])
            for item in items
        )  # fmt: skip
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert IGNORED not in batch["targets"].tolist()
    assert len(batch["places"]) == sum(len(item["labels"]) for item in items)


def test_texts_are_cut_to_what_the_model_reads(learner: Learner):
    (item,) = SEQ2SEQ.encode({"source": "x" * 500, "target": "y" * 50}, learner)
    assert (len(item["input_ids"]), len(item["labels"])) == (128, 51)
    assert item["input_ids"][-1] == learner.tokenizer.eos_token_id


@pytest.mark.parametrize("given", [{}, {"source": " "}, {"source": ["yes"]}])
def test_a_prediction_needs_a_source(learner: Learner, given: dict[str, Any]):
    with pytest.raises(Refused, match="needs a «source»"):
        SEQ2SEQ.encode_input(given, learner)


# --- a trained model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an attempt from scratch that has learned `PAIRS` by heart."""
    folder = tmp_path_factory.mktemp("scratch")
    spec = {"epochs": 80, "batch_size": 5, "valid_fraction": 0, "checkpoints": 1, "max_length": 32}
    return taught(folder, spec, preset={"architecture": "t5", "width": 64, "layers": 2, "heads": 4})


def taught(folder: Path, spec: dict[str, Any], **fields: Any) -> Path:
    rows = parquet(folder / "rows.parquet", PAIRS)
    fields |= {"recipe": "seq2seq", "spec": spec, "columns": COLUMNS, "train": rows}
    attempt = write_attempt(folder / "attempt", **fields)
    assert run_here(attempt) == 0, events(attempt, "error")
    return attempt


def opened(servable: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    return AutoModelForSeq2SeqLM.from_pretrained(servable).eval(), AutoTokenizer.from_pretrained(servable)


def plainly(model: Any, tokenizer: Any, text: str, **how: Any) -> str:
    written = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=24, **how)
    return tokenizer.decode(written[0], skip_special_tokens=True)


def asked(folder: Path, requests: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    path = folder / "requests.jsonl"
    path.write_text("\n".join(json.dumps({"row": n} | one) for n, one in enumerate(requests)))
    attempt = write_attempt(folder / "asked", kind="infer", recipe="seq2seq", requests=path, **fields)
    assert run_here(attempt) == 0, events(attempt, "error")
    return [answer["output"] for answer in predictions(attempt)]


def test_what_was_learned_is_answered_and_plain_transformers_say_the_same(trained: Path, tmp_path: Path):
    servable = checkpoints(trained)[-1] / "servable"
    requests = [{"input": {"source": pair["source"]}, "sampling": {"max_tokens": 24}} for pair in PAIRS]
    texts = [output["text"] for output in asked(tmp_path, requests, base_model=servable)]
    assert texts == [pair["target"] for pair in PAIRS]
    model, tokenizer = opened(servable)
    unseen = ["net", "pots", "zebra", "ﬀ"]
    sources = [tokenizer(text)["input_ids"] for text in unseen]
    for beams in (1, 4):
        ours = write(model, tokenizer, sources, [Sampling(max_tokens=24, beams=beams)] * 4)
        assert ours == [plainly(model, tokenizer, text, num_beams=beams).strip() for text in unseen]
    code = SEQ2SEQ.usage(Learner(Seq2SeqSpec(), {})).replace("path/to/this/folder", str(servable))
    told: list[str] = []
    exec(code.replace("A text of yours", "stop"), {"print": told.append})
    assert told == ["pots"]


def test_an_answer_does_not_depend_on_its_company(trained: Path):
    model, tokenizer = opened(checkpoints(trained)[-1] / "servable")
    sources = [tokenizer(text)["input_ids"] for text in ("net", "a much longer source", "pin", "drawer")]
    ways = [
        Sampling(max_tokens=9, temperature=1.5, seed=1),
        Sampling(max_tokens=12, beams=3),
        Sampling(max_tokens=5),
        Sampling(max_tokens=12, temperature=2.0, top_k=5, top_p=0.9, seed=2),
    ]
    together = write(model, tokenizer, sources, ways)
    alone = [write(model, tokenizer, [one], [way])[0] for one, way in zip(sources, ways, strict=True)]
    assert together == alone
    others = [write(model, tokenizer, sources[:1], [Sampling(9, 1.5, seed=seed)])[0] for seed in range(5)]
    assert len(set(others)) > 1


def test_beams_find_a_likelier_text_than_greed(base: Path):
    import torch

    model, tokenizer = opened(base)
    with torch.no_grad():
        for weight in model.parameters():  # random weights say everything with the same confidence
            weight.mul_(2)
    source = tokenizer("star")["input_ids"]

    def likelihood(beams: int) -> float:
        text = write(model, tokenizer, [source], [Sampling(max_tokens=6, beams=beams)])[0]
        assert text
        written = model.generate(
            torch.tensor([source]), num_beams=beams, max_new_tokens=6, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        assert tokenizer.decode(written.sequences[0], skip_special_tokens=True).strip() == text
        indices = getattr(written, "beam_indices", None)
        return float(
            model.compute_transition_scores(
                written.sequences, written.scores, indices, normalize_logits=indices is None
            ).sum()
        )

    assert likelihood(8) > likelihood(1)


def test_the_specs_beams_count_where_a_request_names_none(trained: Path, monkeypatch: pytest.MonkeyPatch):
    from shared.learning import encoder_decoder

    model, tokenizer = opened(checkpoints(trained)[-1] / "servable")
    asked_for: list[Sampling] = []
    monkeypatch.setattr(encoder_decoder, "write", lambda m, t, sources, ways: asked_for.extend(ways) or [])
    learner = Learner(Seq2SeqSpec(beams=3), {}, tokenizer, model)
    ways = [Sampling(), Sampling(beams=2), Sampling(temperature=1)]
    SEQ2SEQ.predict(learner, [{"input_ids": [5]}] * 3, ways)
    assert [way.beams for way in asked_for] == [3, 2, 1]


def test_an_evaluation_writes_for_a_bounded_number_of_rows(learner: Learner):
    learner.spec = Seq2SeqSpec(answers=3)
    items = [SEQ2SEQ.encode(row, learner)[0] | {"row": place} for place, row in enumerate(PAIRS)]
    found = SEQ2SEQ.judge(learner, PAIRS, [(items, collate(items, learner))])
    assert sorted(found) == list(range(len(PAIRS)))
    assert [place for place in sorted(found) if "written" in found[place]] == [0, 3, 6]
    assert found[3]["expected"] == PAIRS[3]["target"]
    learner.spec = Seq2SeqSpec()


def test_an_adapter_is_loaded_by_plain_peft(base: Path, tmp_path: Path):
    from peft import PeftModel

    spec = {"method": "lora", "epochs": 4, "batch_size": 5, "valid_fraction": 0, "learning_rate": 0.02,
            "checkpoints": 1}  # fmt: skip
    attempt = taught(tmp_path, spec, base_model=base)
    servable = checkpoints(attempt)[-1] / "servable"
    requests = [{"input": {"source": text}, "sampling": {"max_tokens": 24}} for text in ("stop", "a b")]
    texts = [one["text"] for one in asked(tmp_path, requests, base_model=base, adapter=servable)]
    model, tokenizer = opened(base)
    bare = [plainly(model, tokenizer, text).strip() for text in ("stop", "a b")]
    adapted = PeftModel.from_pretrained(model, str(servable)).eval()
    assert texts == [plainly(adapted, tokenizer, text).strip() for text in ("stop", "a b")]
    assert texts != bare


def test_an_adapter_from_scratch_is_refused(tmp_path: Path):
    rows = parquet(tmp_path / "rows.parquet", PAIRS)
    fields = {"recipe": "seq2seq", "spec": {"method": "lora"}, "columns": COLUMNS, "train": rows}
    preset = {"architecture": "t5", "width": 64, "layers": 2, "heads": 4}
    attempt = write_attempt(tmp_path / "attempt", **fields, preset=preset)
    assert run_here(attempt) == 10
    assert "from scratch, train «full»" in events(attempt, "error")[0]["data"]["message"]


# --- base models ------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "longest"), [(TINY["seq2seq"], 128), (tiny_bart, 40)])
def test_uploaded_encoder_decoders_are_imported_and_trained(make: Any, longest: int, tmp_path: Path):
    brought = make(tmp_path / "brought")
    attempt = write_attempt(tmp_path / "import", kind="import_base_model", source=brought)
    assert run_here(attempt) == 0, events(attempt, "error")
    facts = json.loads((attempt / "artifacts" / "report.json").read_text())["facts"]
    assert (facts["heads"], facts["max_length"]) == (["seq2seq"], longest)
    model = attempt / "artifacts" / "model"
    plain, tokenizer = opened(model)
    given = tokenizer("stop", return_tensors="pt")
    assert plain(**given, labels=given["input_ids"]).loss > 0
    rows = [*PAIRS, {"source": "x" * 90, "target": "y" * 90}]
    told = {"recipe": "seq2seq", "spec": {"epochs": 1}, "columns": COLUMNS, "base_model": model}
    trained = write_attempt(tmp_path / "train", **told, train=parquet(tmp_path / "rows.parquet", rows))
    assert run_here(trained) == 0, events(trained, "error")
    asking = {"input": {"source": "x" * 90}, "sampling": {"max_tokens": 90}}
    (answer,) = asked(tmp_path, [asking], base_model=checkpoints(trained)[-1] / "servable")
    assert isinstance(answer["text"], str)
