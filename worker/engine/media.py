"""All pictures or all sounds of a dataset made alike, and what is to be said of them together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from shared.errors import Unreadable
from shared.formats import counted
from shared.recipe import Finding
from worker.engine import pictures, sounds

MEDIA = b"media"  # in a column's metadata: b"png" or b"wav"


class Reader:
    """Makes each one plain and remembers how they differ."""

    suffix: str
    most: int  # bytes of one file
    noun: str
    looks = False  # whether all must be looked at before the first is read

    def __init__(self) -> None:
        self.sizes: Counter[str] = Counter()
        self.first: dict[str, str] = {}  # of each size
        self.changed = 0

    def look(self, data: bytes) -> None:
        """One more, before the first is read: what they must have in common."""

    def read(self, data: bytes, name: str) -> bytes:
        """The plain form. Raises Unreadable."""
        if len(data) > self.most:
            raise Unreadable(f"is larger than {self.most // 1024**2} MB")
        plain, size = self.plain(data)
        self.sizes[size] += 1
        self.first.setdefault(size, name)
        return plain

    def plain(self, data: bytes) -> tuple[bytes, str]:
        """(its plain form, its size in words)."""
        raise NotImplementedError

    def findings(self) -> Iterator[Finding]:
        """What holds for all of them."""
        if len(self.sizes) > 1:
            (usual, _), (other, _) = self.sizes.most_common(2)
            differ = self.sizes.total() - self.sizes[usual]
            yield Finding(
                f"Not every {self.noun} has {usual}: {differ:,} of {self.sizes.total():,} differ,"
                f" as {self.first[other]} with {other}.",
                fatal=False,
            )


class Pictures(Reader):
    """All grey, or all in colour."""

    suffix, most, noun, looks = "png", pictures.BYTES, "picture", True

    def __init__(self) -> None:
        super().__init__()
        self.mode = "L"

    def look(self, data: bytes) -> None:
        """One coloured picture makes all of them RGB."""
        if self.mode == "L":
            self.mode = pictures.mode_of(data)

    def plain(self, data: bytes) -> tuple[bytes, str]:
        """As PNG."""
        png, smaller = pictures.canonical(data, self.mode)
        self.changed += smaller
        width, height = pictures.size(png)
        return png, f"{width:,} × {height:,} pixels"

    def findings(self) -> Iterator[Finding]:
        """Mixed sizes, and how many were scaled down."""
        yield from super().findings()
        if self.changed:
            yield Finding(
                f"Scaled down to {pictures.LONGEST:,} pixels: {counted(self.changed, 'picture')}.",
                fatal=False,
            )


class Sounds(Reader):
    """All mono, 16 bits a sample; each keeps its sample rate."""

    suffix, most, noun = "wav", sounds.BYTES, "sound"

    def plain(self, data: bytes) -> tuple[bytes, str]:
        """As WAV."""
        wav, stereo = sounds.canonical(data)
        self.changed += stereo
        return wav, f"a sample rate of {sounds.facts(wav)[0]:,} Hz"

    def findings(self) -> Iterator[Finding]:
        """Mixed sample rates, and how many were stereo."""
        yield from super().findings()
        if self.changed:
            yield Finding(f"Averaged to one channel: {counted(self.changed, 'stereo sound')}.", fatal=False)
