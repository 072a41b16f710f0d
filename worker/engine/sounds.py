"""A stranger's WAV → mono 16-bit PCM WAV at its own sample rate. Other formats of sound are refused."""

from __future__ import annotations

import struct
import wave
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

from shared.errors import Unreadable
from shared.formats import quoted

BYTES = 64 * 1024**2  # of one file
SECONDS = 600
RATES = range(4_000, 192_001)
PREVIEW = 10  # seconds
PCM, EXTENSIBLE = 1, 0xFFFE
ENCODINGS = {2: "ADPCM", 3: "floating-point samples", 6: "A-law", 7: "µ-law", 0x50: "MPEG sound", 0x55: "MP3"}


class Sound(NamedTuple):
    """Its frames as they are stored, and how."""

    rate: int
    channels: int
    width: int  # bytes of a sample
    raw: bytes


def canonical(data: bytes) -> tuple[bytes, bool]:
    """(the sound as mono 16-bit PCM WAV, whether it was stereo): channels are averaged, finer samples
    rounded. Raises Unreadable with the reason.
    """
    sound = read(data)
    frames = full_scale(sound.raw, sound.width).reshape(-1, sound.channels)
    mono = frames.astype(np.int64).sum(axis=1) // sound.channels
    samples = np.clip((mono + 2**15) >> 16, -(2**15), 2**15 - 1).astype("<i2")
    return written(sound.rate, samples.tobytes()), sound.channels == 2


def read(data: bytes) -> Sound:
    """The frames of a PCM WAV file. Raises Unreadable with the reason."""
    plain = plain_header(data)
    try:
        with wave.open(BytesIO(plain)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            announced = file.getnframes()
            raw = file.readframes(min(announced, len(data)))
    except (wave.Error, EOFError, struct.error, ValueError, RuntimeError) as wrong:
        raise Unreadable(f"is a broken WAV file ({quoted(str(wrong)) or 'it is cut short'})") from None
    frames = len(raw) // (channels * width)
    check(rate, channels, width, frames)
    if frames < announced:
        raise Unreadable(
            f"is cut short: it announces {announced / rate:,.1f} seconds and holds {frames / rate:,.1f}"
        )
    return Sound(rate, channels, width, raw[: frames * channels * width])


def check(rate: int, channels: int, width: int, frames: int) -> None:
    """Raises Unreadable for what is no sound of one or two channels."""
    if not frames:
        raise Unreadable("holds no sound at all")
    if channels > 2:
        raise Unreadable(f"has {channels} channels; one or two are read")
    if width > 4:
        raise Unreadable(f"has samples of {8 * width} bits; 8, 16, 24 and 32 are read")
    if rate not in RATES:
        raise Unreadable(f"has a sample rate of {rate:,} Hz; {RATES[0]:,} to {RATES[-1]:,} are read")
    if frames > SECONDS * rate:
        raise Unreadable(f"is {frames / rate:,.0f} seconds long; {SECONDS} are the most")


def plain_header(data: bytes) -> bytes:
    """The file with the plain name of PCM in its header. Raises Unreadable for every other encoding."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise Unreadable("is no WAV file")
    place = 12
    while data[place : place + 4] != b"fmt ":
        if place + 24 > len(data):
            raise Unreadable("is a broken WAV file (its header is missing)")
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + length + length % 2
    tag = int.from_bytes(data[place + 8 : place + 10], "little")
    if tag == EXTENSIBLE:  # says the encoding later; wave does not read that before Python 3.12
        tag = int.from_bytes(data[place + 32 : place + 34], "little")
        data = data[: place + 8] + struct.pack("<H", tag) + data[place + 10 :]
    if tag != PCM:
        raise Unreadable(f"holds {ENCODINGS.get(tag, f'an unknown encoding ({tag})')}, and plain PCM is read")
    return data


def full_scale(raw: bytes, width: int) -> Any:
    """Samples of 1, 2, 3 or 4 bytes as 32-bit numbers of the same loudness."""
    if width == 1:  # unsigned
        return (np.frombuffer(raw, "u1").astype(np.int32) - 128) << 24
    if width == 2:
        return np.frombuffer(raw, "<i2").astype(np.int32) << 16
    if width == 4:
        return np.frombuffer(raw, "<i4")
    padded = np.zeros((len(raw) // 3, 4), "u1")
    padded[:, 1:] = np.frombuffer(raw, "u1").reshape(-1, 3)
    return padded.view("<i4")[:, 0]


def written(rate: int, raw: bytes) -> bytes:
    """Mono 16-bit frames as WAV."""
    buffer = BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(raw)
    return buffer.getvalue()


def facts(wav: bytes) -> tuple[int, float]:
    """Sample rate and seconds of one of our own WAVs."""
    with wave.open(BytesIO(wav)) as file:
        return file.getframerate(), file.getnframes() / file.getframerate()


def preview(wav: bytes) -> bytes:
    """The first ten seconds of one of our own WAVs."""
    rate, seconds = facts(wav)
    if seconds <= PREVIEW:
        return wav
    with wave.open(BytesIO(wav)) as file:
        return written(rate, file.readframes(PREVIEW * rate))
