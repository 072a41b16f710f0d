"""Sounds of a label or caption: spectrograms by diffusion, turned to sound by Griffin and Lim's method."""

from __future__ import annotations

import math
from array import array as numbers
from collections import Counter
from collections.abc import Iterable
from typing import Any

from shared.errors import Refused
from shared.learning import sound
from shared.learning.generator import Generator, most_frequent
from shared.learning.sound import BANDS, Layout
from shared.recipe import Column, Learner, Media
from shared.spec import DiffusionSpec, knob

LONGEST = 16  # seconds
VALUES = 64  # of a patch, about: more would not pass through the smallest transformer


class TextToAudioSpec(DiffusionSpec):
    """Knobs of a sound generator."""

    guidance: float = knob(
        3.0,
        ge=1,
        le=20,
        title="Guidance",
        help="How strongly an answer keeps to what is asked for; 1 turns it off and takes half the time.",
    )
    sample_rate: int | None = knob(
        None,
        ge=4000,
        le=48_000,
        title="Sample rate",
        help="Samples a second: sounds are brought to it. Empty: the data's own.",
    )
    seconds: float | None = knob(
        None,
        gt=0,
        le=LONGEST,
        title="Length",
        help="Seconds of every sound: longer ones are cut, shorter ones end in silence. Empty: the longest of the data.",
    )


def tone(high: bool, shift: int) -> bytes:
    """A tenth of a second for the example: a high or low tone."""
    turn = 2 * math.pi * (1200 if high else 300) / 4000
    return sound.wav(
        numbers("h", (round(9000 * math.sin(turn * n + shift)) for n in range(400))).tobytes(), 4000
    )


class TextToAudio(Generator):
    """A diffusion transformer over mel spectrograms."""

    name = "text_to_audio"
    title = "Sound generation"
    summary = "Teach a model to make short sounds like yours, by label or by caption."
    paper = "https://arxiv.org/abs/2212.09748"
    spec = TextToAudioSpec
    cell = "audio"
    columns = (
        Column("audio", "sounds: WAV files, mono, 16-bit PCM", kind="audio", output=True),
        Column("label", "what is heard, one of a few words", kind="label", required=False),
        Column("caption", "what is heard, in a sentence; used before a label", required=False),
    )
    example = [
        {"audio": tone(high, shift), "label": "high" if high else "low"}
        for shift in range(4)
        for high in (True, False)
    ] * 2
    family = "Pictures and sounds"
    place = 95

    def form(self, content: bytes) -> int:
        """Samples a second."""
        return sound.look(content)[0]

    def whole(self, content: bytes) -> None:
        """Reads it to its end."""
        sound.read(content)

    def differs(self, form: int, usual: int) -> str:
        """The two sample rates."""
        return (
            f"The sound has {form} samples a second, most have {usual}. The row is left out unless "
            "«sample_rate» is set."
        )

    def frame(
        self, contents: Iterable[bytes], spec: TextToAudioSpec, earlier: dict[str, Any]
    ) -> dict[str, Any]:
        """`rate`, `samples` of a sound and `frames` of its spectrogram, folded to a square: every frame of a
        column is a channel of its own.
        """
        seen = [sound.look(content) for content in contents]
        rate = spec.sample_rate or most_frequent(Counter(own for own, _ in seen))
        if earlier and rate != earlier["rate"]:
            raise Refused(
                f"The checkpoint makes {earlier['rate']} samples a second and these sounds have {rate}. Set "
                "«sample_rate», or train from scratch.",
                param="sample_rate",
            )
        if earlier:
            return {
                name: earlier[name] for name in ("rate", "samples", "frames", "channels", "side", "patch")
            }
        longest = max(count / own for own, count in seen if spec.sample_rate or own == rate)
        samples = round(rate * (spec.seconds or min(longest, LONGEST)))
        folds = -(-(samples // Layout(rate, 0).hop + 2) // BANDS)
        patch = 8
        while patch > 2 and folds * patch**2 > VALUES:
            patch //= 2
        shape = {"channels": folds, "side": BANDS, "patch": patch}
        return {"rate": rate, "samples": samples, "frames": folds * BANDS} | shape

    def array(self, content: bytes, learner: Learner) -> Any:
        """The sound's spectrogram, folded."""
        facts = learner.facts
        own = self.form(content)
        if not learner.spec.sample_rate and own != facts["rate"]:
            raise Refused(self.differs(own, facts["rate"]))
        values = sound.resampled(sound.read(content), own, facts["rate"])[: facts["samples"]]
        levels = sound.spectrogram(values, layout(facts))
        return levels.reshape(BANDS, facts["side"], facts["channels"]).transpose(2, 0, 1)

    def media(self, levels: Any, facts: dict[str, Any]) -> Media:
        """The sound of an unfolded spectrogram."""
        flat = levels.transpose(1, 2, 0).reshape(BANDS, facts["frames"])
        values = sound.sounded(flat, layout(facts))[: facts["samples"]]
        return Media("wav", sound.written(values, facts["rate"]))

    def save(self, learner: Learner, weights: dict[str, Any], folder: Any) -> None:
        """Beside the model the way back from mel bands to frequencies, for the card's sampler."""
        from safetensors.torch import save_file

        super().save(learner, weights, folder)
        save_file({"back": layout(learner.facts).back()}, folder / "mel.safetensors")

    def finish(self, facts: dict[str, Any]) -> tuple[str, str]:
        """Griffin and Lim's method in torch."""
        from shared.learning.sampler import griffin_lim

        return "import wave\n\nfrom safetensors.torch import load_file\n", griffin_lim(layout(facts), facts)


def layout(facts: dict[str, Any]) -> Layout:
    """How this model's spectrograms are taken."""
    return Layout(facts["rate"], facts["frames"])


recipe = TextToAudio()
