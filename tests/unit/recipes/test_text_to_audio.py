"""Sounds by label or caption: what they learn from, what they refuse, what they make."""

import math
import wave
from array import array
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import Refused
from shared.learning import sound
from shared.learning.sound import Layout
from shared.recipe import Learner
from shared.recipes.text_to_audio import TextToAudio, TextToAudioSpec
from tests.generators import asked, card_answer, of_servable, reopened, trained

RECIPE = TextToAudio()
COLUMNS = {"audio": "audio", "label": "label"}
RATE = 4000


def wave_of(pitch: float, seconds: float = 0.1, rate: int = RATE, loudness: float = 0.3) -> np.ndarray:
    """A tone as float32 [samples]."""
    at = np.arange(round(seconds * rate)) / rate
    return (loudness * np.sin(2 * math.pi * pitch * at)).astype(np.float32)


def tone(pitch: float = 440, seconds: float = 0.1, rate: int = RATE) -> bytes:
    """A tone as a WAV."""
    return sound.written(wave_of(pitch, seconds, rate), rate)


def other_wav(channels: int = 1, width: int = 2, rate: int = RATE, count: int = 400) -> bytes:
    """A silent WAV of any layout."""
    out = BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(bytes(channels * width * count))
    return out.getvalue()


ROWS: list[dict[str, Any]] = [
    {"audio": tone(300 if n % 2 else 1200, 0.1), "label": "low" if n % 2 else "high"} for n in range(16)
]
CAPTIONS = [row | {"caption": f"{row['label']} and {n}"} for n, row in enumerate(ROWS)]
GOOD = [{"audio": tone(300 + n), "label": "ab"[n % 2]} for n in range(4)]


@pytest.fixture(scope="module")
def servable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by label."""
    return trained(tmp_path_factory.mktemp("label") / "a", "text_to_audio", ROWS)


@pytest.fixture(scope="module")
def learner(servable: Path) -> Learner:
    return reopened(servable, "text_to_audio")


def heard(content: bytes) -> tuple[np.ndarray, int]:
    """A WAV's values and rate as Python reads them."""
    with wave.open(BytesIO(content)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.array(array("h", file.readframes(file.getnframes()))) / 32768, file.getframerate()


def pitch(values: np.ndarray, rate: int) -> float:
    """The loudest frequency."""
    return float(np.fft.rfftfreq(len(values), 1 / rate)[np.abs(np.fft.rfft(values)).argmax()])


def test_a_sound_is_written_as_it_was():
    values = wave_of(440)
    content = sound.written(values, RATE)
    assert sound.look(content) == (RATE, 400)
    assert abs(sound.read(content) - values).max() < 1e-4
    assert abs(heard(content)[0] - values).max() < 1e-4


def test_a_sound_that_was_written_in_a_stream_is_read():
    content = tone()
    streamed = content[:40] + b"\xff\xff\xff\xff" + content[44:]
    assert sound.look(streamed) == (RATE, 400)
    assert len(sound.read(streamed)) == 400


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 4000), (4000, 8000), (11_025, 8000), (4000, 4000)])
def test_another_rate_keeps_pitch_loudness_and_length(rate: int, wanted: int):
    values = wave_of(500, 0.5, rate)
    found = sound.resampled(values, rate, wanted)
    assert len(found) == round(0.5 * wanted)
    assert pitch(found, wanted) == pytest.approx(500, abs=3)
    assert abs(found).max() == pytest.approx(0.3, rel=0.1)


def test_a_lower_rate_leaves_out_what_it_cannot_hold():
    assert abs(sound.resampled(wave_of(3000, 0.5, 8000), 8000, 4000)[100:-100]).max() < 0.01


@pytest.mark.parametrize("rate", [4000, 8000, 22_050])
def test_a_spectrogram_sounds_like_what_it_was_taken_of(rate: int):
    layout = Layout(rate, 64)
    glide = np.sin(np.cumsum(np.linspace(200, 900, layout.samples) * 2 * math.pi / rate)) * 0.3
    levels = sound.spectrogram(glide, layout)
    assert levels.shape == (64, 64)
    again = sound.spectrogram(sound.sounded(levels, layout), layout)
    loud = levels > 128
    assert loud.any()
    # 255 levels are 80 decibels: the loud parts come back within 2 of them.
    assert abs(levels[loud].astype(int) - again[loud]).mean() < 255 * 2 / 80


def test_silence_stays_silent_and_short_sounds_end_in_it():
    layout = Layout(RATE, 64)
    assert (sound.spectrogram(np.zeros(10, np.float32), layout) == 0).all()
    assert abs(sound.sounded(np.zeros((64, 64), np.uint8), layout)).max() < 1e-2
    levels = sound.spectrogram(wave_of(440, 0.2), layout)
    assert (levels[:, 20:] == 0).all()


def test_a_sound_with_any_byte_of_its_head_changed_is_read_or_refused():
    content, refused = tone(seconds=0.01), 0
    for place in range(60):
        for flip in (1, 0x80, 0xFF):
            broken = content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :]
            try:
                RECIPE.form(broken)
                RECIPE.whole(broken)
            except Refused:
                refused += 1
    assert refused > 40


BROKEN = {
    "text instead of a file": ({"audio": "a.wav", "label": "a"}, "must hold files", True),
    "an empty file": ({"audio": b"", "label": "a"}, "no WAV", False),
    "nothing at all": ({"audio": None, "label": "a"}, "no WAV", False),
    "another format": ({"audio": b"ID3\x04" + bytes(60), "label": "a"}, "no WAV", False),
    "half a file": ({"audio": tone()[:-300], "label": "a"}, "damaged", False),
    "half a head": ({"audio": tone()[:30], "label": "a"}, "no WAV", False),
    "no samples": ({"audio": other_wav(count=0), "label": "a"}, "is empty", False),
    "two channels": ({"audio": other_wav(channels=2), "label": "a"}, "2 channels", False),
    "eight bits": ({"audio": other_wav(width=1), "label": "a"}, "8 bits a sample", False),
    "an absurd rate": ({"audio": other_wav(rate=7), "label": "a"}, "7 samples a second cannot", False),
    "another rate": (
        {"audio": tone(rate=8000), "label": "a"},
        "8000 samples a second, most have 4000",
        False,
    ),
    "no label": ({"audio": tone(), "label": ""}, "no label", False),
    "not a number": ({"audio": tone(), "label": float("nan")}, "no label", False),
    "a list of labels": ({"audio": tone(), "label": ["a"]}, "not a list", True),
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
        ([{"audio": tone(), "label": "a"}] * 3, COLUMNS, "Every label is «a»"),
        ([{"audio": b"x", "label": "a"}] * 3, COLUMNS, "No row can be used"),
        (GOOD, {"audio": "audio"}, "«label» or «caption»"),
    ],
)
def test_a_dataset_that_cannot_be_learned_is_refused(rows: Any, columns: dict[str, str], said: str):
    assert any(said in found.message and found.fatal for found in RECIPE.check(rows, columns))


def test_length_and_rate_come_from_the_data_unless_set():
    rows = [*GOOD, {"audio": tone(seconds=0.5), "label": "a"}, {"audio": tone(rate=8000), "label": "b"}]
    facts = RECIPE.facts(rows, TextToAudioSpec(), {})
    assert (facts["rate"], facts["samples"], facts["channels"]) == (4000, 2000, 1)
    facts = RECIPE.facts(rows, TextToAudioSpec(sample_rate=8000, seconds=3), {})
    assert (facts["rate"], facts["samples"], facts["channels"]) == (8000, 24_000, 3)
    learner = Learner(spec=TextToAudioSpec(sample_rate=8000, seconds=3), facts=facts)
    for row in rows:
        assert RECIPE.encode(row, learner)[0]["pixels"].shape == (3, 64, 64)
    strict = Learner(spec=TextToAudioSpec(), facts=RECIPE.facts(rows, TextToAudioSpec(), {}))
    with pytest.raises(Refused, match="left out unless «sample_rate» is set"):
        RECIPE.encode(rows[-1], strict)


def test_a_long_sound_folds_to_channels_and_back():
    content = tone(500, seconds=2.5)
    facts = RECIPE.facts([{"audio": content, "label": label} for label in "ab"], TextToAudioSpec(), {})
    learner = Learner(spec=TextToAudioSpec(), facts=facts)
    values, rate = heard(RECIPE.media(RECIPE.array(content, learner), facts).content)
    assert (len(values), rate) == (10_000, 4000)
    assert pitch(values, rate) == pytest.approx(500, abs=20)


def test_a_checkpoint_goes_on_with_what_it_knows(servable: Path):
    earlier = of_servable(servable)["facts"]
    longer = [row | {"audio": tone(seconds=2)} for row in ROWS]
    assert RECIPE.facts(longer, TextToAudioSpec(), earlier) == earlier, (
        "sounds are cut to the checkpoint's length"
    )
    faster = [row | {"audio": tone(rate=8000)} for row in ROWS]
    with pytest.raises(Refused, match="makes 4000 samples a second and these sounds have 8000"):
        RECIPE.facts(faster, TextToAudioSpec(), earlier)
    with pytest.raises(Refused, match="does not know the label «b»"):
        RECIPE.facts([*ROWS, {"audio": tone(), "label": "b"}], TextToAudioSpec(), earlier)


def test_an_answer_is_a_sound_of_the_data_s_own_length(learner: Learner):
    (made,) = asked(learner, "text_to_audio", [{"label": "low", "seed": 1}])
    values, rate = heard(made)
    assert (len(values), rate) == (400, RATE)


def test_a_seed_decides_the_sound_and_its_company_does_not(learner: Learner):
    inputs = [{"label": "low" if n % 2 else "high", "seed": n} for n in range(9)]
    together = asked(learner, "text_to_audio", inputs)
    assert together == [asked(learner, "text_to_audio", [given])[0] for given in inputs]
    assert len(set(together)) == len(together)


def test_an_unknown_label_is_refused_with_those_that_are_known(learner: Learner):
    with pytest.raises(Refused, match=r"no label «loud»\. There are «high», «low»"):
        RECIPE.encode_input({"label": "loud"}, learner)


def test_samples_are_sounds_beside_the_real_ones(learner: Learner):
    import torch

    with torch.no_grad():
        shown = RECIPE.sample(learner, ROWS[:2])
    for row, one in zip(ROWS, shown, strict=False):
        assert one["prompt"] == row["label"]
        values, rate = heard(one["expected"].content)
        # Of a tenth of a second a frequency is known to some ten hertz, of a mel band to its width.
        assert pitch(values, rate) == pytest.approx(pitch(*heard(row["audio"])), rel=0.1)
        assert heard(one["answer"].content)[1] == RATE


def same_sound(some: bytes, other: bytes) -> None:
    """Levels of two spectrograms differ by less than 3 of 255 in the mean: phases are found anew, so that the
    last bit of a level may turn some of them.
    """
    layout = Layout(RATE, 7)
    levels = [sound.spectrogram(heard(one)[0], layout).astype(int) for one in (some, other)]
    assert abs(levels[0] - levels[1]).mean() < 3


def test_the_card_s_sampler_makes_what_the_platform_makes(servable: Path, learner: Learner, tmp_path: Path):
    content = card_answer(servable, tmp_path / "made", "low", 4)
    (ours, another) = asked(learner, "text_to_audio", [{"label": "low", "seed": seed} for seed in (4, 5)])
    same_sound(content, ours)
    with pytest.raises(AssertionError):
        same_sound(content, another)


def test_captions_make_sounds_too_and_the_card_says_how(tmp_path: Path):
    rows = [{"audio": row["audio"], "caption": row["caption"]} for row in CAPTIONS]
    captioned = trained(tmp_path / "a", "text_to_audio", rows)
    learner = reopened(captioned, "text_to_audio")
    (ours,) = asked(learner, "text_to_audio", [{"caption": "low and 3", "seed": 2}])
    same_sound(card_answer(captioned, tmp_path / "made", "low and 3", 2), ours)
