"""Sounds as bytes, waves and spectrograms. WAV files are read and written by Python itself.

A spectrogram holds the loudness of 64 mel bands (Stevens et al. 1937) every 16 ms, as 8-bit levels. Its waves'
phases are lost; Griffin and Lim's method (1984, https://doi.org/10.1109/TASSP.1984.1164317) finds some that fit, here in the
faster form of Perraudin et al. (2013, https://doi.org/10.1109/WASPAA.2013.6701851).
"""

from __future__ import annotations

import struct
import wave
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from shared.errors import Refused

SLOWEST, FASTEST = 2_000, 192_000  # samples a second
BANDS = 64
HOPS = 62.5  # a second
QUIETEST, LOUDEST = -70.0, 10.0  # decibels that the levels 0 and 255 stand for; a full-scale tone is near 0
ROUNDS = 60  # of Griffin and Lim's method
MOMENTUM = 0.99
FULL = 32_767  # the largest 16-bit value
HEAD = 44  # bytes before the samples, at least
STREAMED = 0x7FFF_0000  # bytes that a program promises which does not know yet how many will come
BROKEN = (wave.Error, EOFError, struct.error, ValueError, OSError, RuntimeError)


def wav(samples: bytes, rate: int) -> bytes:
    """A mono WAV of 16-bit little-endian values."""
    out = BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples)
    return out.getvalue()


def look(content: bytes) -> tuple[int, int]:
    """(samples a second, samples) by the WAV's head. Raises Refused."""
    with opened(content) as file:
        return file.getframerate(), min(file.getnframes(), (len(content) - HEAD) // 2)


def opened(content: bytes) -> wave.Wave_read:
    """The WAV file, its head checked. Raises Refused."""
    try:
        file = wave.open(BytesIO(content), "rb")  # noqa: SIM115 - the caller closes it
    except BROKEN:
        raise Refused("This is no WAV sound of PCM values.") from None
    if file.getnchannels() != 1:
        raise Refused(f"The sound has {file.getnchannels()} channels: mix them down to one.")
    if file.getsampwidth() != 2:
        raise Refused(f"The sound has {8 * file.getsampwidth()} bits a sample: save it with 16.")
    if not SLOWEST <= file.getframerate() <= FASTEST:
        raise Refused(f"A sound of {file.getframerate()} samples a second cannot be used.")
    if not file.getnframes():
        raise Refused("The sound is empty.")
    return file


def read(content: bytes) -> Any:
    """The wave as float32 [samples] from -1 to 1. Raises Refused."""
    import numpy as np

    with opened(content) as file:
        try:
            raw = file.readframes(file.getnframes())
        except BROKEN:
            raw = b""
        promised = 2 * file.getnframes()
    if len(raw) % 2 or not raw or (len(raw) < promised < STREAMED):
        raise Refused("The sound is damaged: it ends too early.")
    return np.frombuffer(raw, "<i2").astype(np.float32) / (FULL + 1)


def resampled(values: Any, rate: int, wanted: int) -> Any:
    """The wave [samples] at another rate: its frequencies up to the lower of the two ends."""
    import numpy as np

    if rate == wanted:
        return values
    count = max(1, round(len(values) * wanted / rate))
    spectrum = np.fft.rfft(values)
    kept = np.zeros(count // 2 + 1, spectrum.dtype)
    shared = min(len(kept), len(spectrum))
    kept[:shared] = spectrum[:shared]
    return (np.fft.irfft(kept, count) * (count / len(values))).astype(np.float32)


@dataclass(frozen=True)
class Layout:
    """How a spectrogram is taken: `rate` samples a second, `frames` of them in all."""

    rate: int
    frames: int

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return round(self.rate / HOPS)

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return 4 * self.hop

    @property
    def samples(self) -> int:
        """Samples of the whole."""
        return self.hop * (self.frames - 1)

    def transform(self) -> dict[str, Any]:
        """How torch.stft and istft are called."""
        import torch

        return {"n_fft": self.window, "hop_length": self.hop, "window": torch.hann_window(self.window)}

    def filters(self) -> Any:
        """The mel bands' triangles over the frequencies, [bands, window / 2 + 1]."""
        import torch

        highest = 2595 * torch.log10(torch.tensor(1 + self.rate / 2 / 700, dtype=torch.float64))
        edges = 700 * (10 ** (torch.linspace(0, 1, BANDS + 2, dtype=torch.float64) * highest / 2595) - 1)
        at = torch.linspace(0, self.rate / 2, self.window // 2 + 1, dtype=torch.float64)
        rising = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        falling = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
        return torch.minimum(rising, falling).clamp(min=0).float()

    def back(self) -> Any:
        """From mel bands to amplitudes of frequencies, [window / 2 + 1, bands]."""
        import torch

        return torch.linalg.pinv(self.filters().double()).float() * (self.window / 4)


def spectrogram(values: Any, layout: Layout) -> Any:
    """uint8 [bands, frames] of a wave [samples]; it is cut, or silence follows it."""
    import torch

    room = torch.zeros(layout.samples)
    room[: len(values)] = torch.tensor(values[: layout.samples])
    found = torch.stft(room, return_complex=True, **layout.transform()).abs() / (layout.window / 4)
    decibels = 20 * (layout.filters() @ found).clamp(min=1e-6).log10()
    levels = 255 * (decibels - QUIETEST) / (LOUDEST - QUIETEST)
    return levels.round().clamp(0, 255).byte().numpy()


def sounded(levels: Any, layout: Layout) -> Any:
    """A wave [samples] from -1 to 1 whose spectrogram is near to `levels`, uint8 [bands, frames]."""
    import torch

    decibels = torch.from_numpy(levels).float() / 255 * (LOUDEST - QUIETEST) + QUIETEST
    loudness = (layout.back() @ 10 ** (decibels / 20)).clamp(min=0)
    how, length = layout.transform(), layout.samples
    dice = torch.Generator().manual_seed(0)
    turned = torch.polar(loudness, torch.rand(loudness.shape, generator=dice) * 2 * torch.pi)
    before = torch.zeros_like(turned)
    for _ in range(ROUNDS):
        heard = torch.istft(torch.polar(loudness, turned.angle()), length=length, **how)
        again = torch.stft(heard, return_complex=True, **how)
        turned, before = again + MOMENTUM * (again - before), again
    return torch.istft(torch.polar(loudness, turned.angle()), length=length, **how).numpy()


def written(values: Any, rate: int) -> bytes:
    """A WAV of a wave [samples] from -1 to 1."""
    return wav((values.clip(-1, 1) * FULL).round().astype("<i2").tobytes(), rate)
