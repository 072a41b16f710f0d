"""Pictures by label or caption: what they learn from, what they refuse, what they draw."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.errors import Refused
from shared.learning import diffusion, pictures
from shared.recipe import Learner
from shared.recipes.text_to_image import TextToImage, TextToImageSpec
from tests.generators import TINY, asked, card_answer, of_servable, reopened, trained

RECIPE = TextToImage()
COLUMNS = {"image": "image", "label": "label"}
CAPTIONED = {"image": "image", "caption": "caption"}


def picture(width: int = 8, height: int = 8, channels: int = 1, seed: int = 0) -> bytes:
    """A PNG of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return pictures.written(values)


def saved(image: Image.Image, **how: Any) -> bytes:
    """As Pillow writes it."""
    out = BytesIO()
    image.save(out, "PNG", **how)
    return out.getvalue()


ROWS = [{"image": picture(7, 5, seed=n), "label": "odd" if n % 2 else "even"} for n in range(16)]
CAPTIONS = [{"image": picture(seed=n), "caption": f"{'odd' if n % 2 else 'even'} and {n}"} for n in range(16)]
GOOD = [{"image": picture(seed=n), "label": "ab"[n % 2]} for n in range(4)]


@pytest.fixture(scope="module")
def servable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn by label, not square."""
    return trained(tmp_path_factory.mktemp("label") / "a", "text_to_image", ROWS)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn by caption."""
    return trained(tmp_path_factory.mktemp("caption") / "a", "text_to_image", CAPTIONS)


@pytest.fixture(scope="module")
def learner(servable: Path) -> Learner:
    return reopened(servable, "text_to_image")


def drawn(content: bytes) -> np.ndarray:
    """A PNG's values as Pillow reads them."""
    return np.asarray(Image.open(BytesIO(content))).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_written_as_it_was(channels: int):
    values = np.random.default_rng(1).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    content = pictures.written(values)
    assert pictures.look(content) == (7, 5, channels)
    assert (pictures.read(content, channels) == values).all()
    assert (drawn(content).reshape(5, 7, channels) == values).all()


def test_pictures_of_any_kind_of_colour_are_read():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (pictures.read(saved(clear), 3) == 255).all(), "transparency is laid on white"
    red = Image.new("RGB", (8, 8), (255, 0, 0)).convert("P")
    assert pictures.look(saved(red))[2] == 3
    assert pictures.read(saved(red), 3)[0, 0].tolist() == [255, 0, 0]
    assert (pictures.read(saved(Image.new("1", (8, 8), 1)), 1) == 255).all()


def test_a_picture_with_any_byte_changed_is_read_or_refused():
    content = saved(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)))
    refused = 0
    for place in range(len(content)):
        for flip in (1, 0x80, 0xFF):
            broken = content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :]
            try:
                RECIPE.whole(broken)
            except Refused:
                refused += 1
    assert refused > len(content)


BROKEN = {
    "text instead of a file": ({"image": "cat.png", "label": "a"}, "must hold files", True),
    "an empty file": ({"image": b"", "label": "a"}, "no PNG", False),
    "nothing at all": ({"image": None, "label": "a"}, "no PNG", False),
    "another format": ({"image": b"\xff\xd8\xff\xe0" + bytes(40), "label": "a"}, "no PNG", False),
    "half a file": ({"image": picture()[:-40], "label": "a"}, "damaged", False),
    "a damaged file": (
        {"image": picture()[:50] + b"garbage" + picture()[57:], "label": "a"},
        "damaged",
        False,
    ),
    "sixteen bits": (
        {"image": saved(Image.fromarray(np.zeros((8, 8), np.uint16))), "label": "a"},
        "16 bits",
        False,
    ),
    "a bomb": (
        {"image": picture()[:16] + (100_000).to_bytes(4) * 2 + picture()[24:], "label": "a"},
        "4096 a side",
        False,
    ),
    "another size": ({"image": picture(9, 8), "label": "a"}, "9 × 8 pixels, most are 8 × 8", False),
    "no label": ({"image": picture(), "label": " "}, "no label", False),
    "not a number": ({"image": picture(), "label": float("nan")}, "no label", False),
    "a list of labels": ({"image": picture(), "label": ["a", "b"]}, "not a list", True),
    "an object": ({"image": picture(), "label": {"a": 1}}, "not an object", True),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_found_with_its_number_and_reason(name: str):
    row, said, fatal = BROKEN[name]
    (found,) = RECIPE.check([*GOOD, row], COLUMNS)
    assert (found.row, found.fatal) == (5, fatal)
    assert said in found.message


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ([], COLUMNS, "no rows"),
        ([{"image": picture(), "label": "a"}] * 3, COLUMNS, "Every label is «a»"),
        ([{"image": b"x", "label": "a"}] * 3, COLUMNS, "No row can be used"),
        (GOOD, {"image": "image"}, "«label» or «caption»"),
        (GOOD, {"label": "label"}, "needs a column «image»"),
    ],
)
def test_a_dataset_that_cannot_be_learned_is_refused(rows: Any, columns: dict[str, str], said: str):
    assert any(said in found.message and found.fatal for found in RECIPE.check(rows, columns))


def test_pictures_of_many_sizes_need_the_size_knob():
    rows = [{"image": picture(8 + n, 8), "label": "ab"[n % 2]} for n in range(4)]
    with pytest.raises(Refused, match="4 different sizes: set «size»"):
        RECIPE.facts(rows, TextToImageSpec(), {})
    facts = RECIPE.facts(rows, TextToImageSpec(size=12), {})
    learner = Learner(spec=TextToImageSpec(size=12), facts=facts)
    (item,) = RECIPE.encode(rows[3], learner)
    assert item["pixels"].shape == (1, 12, 12)


def test_facts_come_from_the_data():
    rows = [*ROWS, {"image": picture(7, 5, channels=3), "label": "odd"}]
    facts = RECIPE.facts(rows, TextToImageSpec(), {})
    assert (facts["labels"], facts["width"], facts["height"]) == (["even", "odd"], 7, 5)
    assert facts["channels"] == 3, "one picture in colour makes all of them so"
    assert facts["side"] % facts["patch"] == 0
    assert facts["side"] >= 7
    large = RECIPE.facts(ROWS, TextToImageSpec(size=500), {})
    assert large["side"] >= 500
    assert large["side"] // large["patch"] <= 16


def test_a_checkpoint_goes_on_with_what_it_knows(servable: Path):
    earlier = of_servable(servable)["facts"]
    facts = RECIPE.facts([row for row in ROWS if row["label"] == "odd"], TextToImageSpec(), earlier)
    assert facts == earlier
    spec = TextToImageSpec()
    for rows, said in [
        ([*ROWS, ROWS[0] | {"label": "new"}], "does not know the label «new». It knows «even», «odd»"),
        ([row | {"label": "odd"} for row in GOOD], "draws 7 × 5 pixels and these pictures have 8 × 8"),
        (CAPTIONS, "trained with labels, these rows have captions"),
    ]:
        with pytest.raises(Refused, match=said):
            RECIPE.facts(rows, spec, earlier)
    with pytest.raises(Refused, match="not trained by Picture generation"):
        RECIPE.facts(ROWS, spec, {"cell": "audio", "labels": ["odd"]})


def test_training_goes_on_from_an_earlier_checkpoint(servable: Path, tmp_path: Path):
    from tests.attempts import checkpoints, events, parquet, run_here, write_attempt

    rows = parquet(tmp_path / "rows.parquet", ROWS)
    spec = TextToImageSpec(epochs=1, batch_size=4, sampling_steps=2, evaluations=1).model_dump()
    common = {"recipe": "text_to_image", "spec": spec, "columns": COLUMNS, "train": rows}
    further = write_attempt(tmp_path / "a", **common, base_model=servable, preset=TINY)
    assert run_here(further) == 0, events(further, "error")
    fresh = write_attempt(tmp_path / "b", **common, preset=TINY)
    assert run_here(fresh) == 0
    first = [events(folder, "eval")[0]["data"]["metrics"]["loss"] for folder in (further, fresh)]
    assert first[0] < first[1], "what was learned before is still there"
    assert of_servable(checkpoints(further)[-1] / "servable")["labels"] == ["even", "odd"]


def test_an_answer_is_a_picture_of_the_data_s_own_size(learner: Learner):
    (made,) = asked(learner, "text_to_image", [{"label": "odd", "seed": 1}])
    assert drawn(made).shape == (5, 7)


def test_a_seed_decides_the_picture_and_its_company_does_not(learner: Learner):
    inputs = [{"label": "odd" if n % 2 else "even", "seed": n} for n in range(11)]
    together = asked(learner, "text_to_image", inputs)
    alone = [asked(learner, "text_to_image", [given])[0] for given in inputs]
    assert together == alone
    assert asked(learner, "text_to_image", inputs[::-1]) == together[::-1]
    assert len(set(together)) == len(together)
    same = asked(learner, "text_to_image", [{"label": "odd", "seed": 5}, {"label": "odd"}], seed=5)
    assert same[0] == same[1], "a request's seed stands in for an input's"


def test_guidance_changes_the_picture_and_overrides_the_spec(learner: Learner):
    given = [{"label": "odd", "seed": 3}]
    usual = asked(learner, "text_to_image", given)
    assert asked(learner, "text_to_image", given, guidance=learner.spec.guidance) == usual
    assert asked(learner, "text_to_image", given, guidance=1.0) != usual
    assert asked(learner, "text_to_image", given, guidance=6.0) != usual


@pytest.mark.parametrize(
    ("given", "said", "param"),
    [
        ({"label": "cat"}, "no label «cat». There are «even», «odd»", "label"),
        ({}, "needs a «label»: «even», «odd»", "label"),
        ({"label": "odd", "seed": -1}, "whole number", "seed"),
        ({"label": "odd", "seed": "x"}, "whole number", "seed"),
    ],
)
def test_an_input_that_cannot_be_drawn_is_refused(learner: Learner, given: Any, said: str, param: str):
    with pytest.raises(Refused, match=said) as wrong:
        RECIPE.encode_input(given, learner)
    assert wrong.value.param == param


def test_any_cut_into_micro_batches_draws_the_same(learner: Learner):
    items = [RECIPE.encode(row, learner)[0] | {"seed": number} for number, row in enumerate(ROWS[:6])]

    def losses(parts: list[list[Any]]) -> torch.Tensor:
        learner.model.train()
        with torch.no_grad():
            batches = [RECIPE.collate(part, learner) for part in parts]
            return torch.cat([diffusion.errors(learner, batch) for batch in batches])

    whole = losses([items])
    assert torch.allclose(losses([items[:1], items[1:4], items[4:]]), whole, rtol=1e-5)
    assert torch.allclose(losses([items[::-1]]), whole.flip(0), rtol=1e-5)


def test_labels_are_dropped_for_guidance_in_training_alone(learner: Learner):
    learner.spec = learner.spec.model_copy(update={"unconditional": 0.5})
    items = [RECIPE.encode(ROWS[0], learner)[0] | {"seed": number} for number in range(64)]
    learner.model.train()
    assert 16 < int((RECIPE.collate(items, learner)["labels"] == 2).sum()) < 48
    learner.model.eval()
    assert int((RECIPE.collate(items, learner)["labels"] == 2).sum()) == 0


def test_the_card_s_sampler_draws_what_the_platform_draws(servable: Path, learner: Learner, tmp_path: Path):
    content = card_answer(servable, tmp_path / "made", "odd", 4)
    (ours,) = asked(learner, "text_to_image", [{"label": "odd", "seed": 4}])
    # One level of grey: a batch of another size may round otherwise.
    assert abs(drawn(content) - drawn(ours)).max() <= 1
    assert 'library_name: "diffusers"' in (servable / "README.md").read_text()


def test_captions_draw_too_and_the_card_says_how(captioned: Path, tmp_path: Path):
    learner = reopened(captioned, "text_to_image")
    inputs = [
        {"caption": text, "seed": 4} for text in ("odd and 5", "even and 10 and more of it", "unheard of")
    ]
    together = asked(learner, "text_to_image", inputs)
    assert together == [asked(learner, "text_to_image", [given])[0] for given in inputs]
    assert len(set(together)) == 3
    content = card_answer(captioned, tmp_path / "made", "odd and 5", 4)
    assert abs(drawn(content) - drawn(together[0])).max() <= 1
    with pytest.raises(Refused, match="needs a «caption»"):
        RECIPE.encode_input({"label": "odd"}, learner)


def test_captions_go_before_labels():
    assert RECIPE.recognise(["path", "label", "image", "caption"]) == CAPTIONED
    assert RECIPE.recognise(["path", "label", "image"]) == COLUMNS
    assert RECIPE.recognise(["label", "caption"]) is None
    facts = RECIPE.facts([RECIPE.canonical(row, CAPTIONED) for row in CAPTIONS], TextToImageSpec(), {})
    assert facts["labels"] is None
