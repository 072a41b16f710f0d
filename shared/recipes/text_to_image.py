"""Pictures of a label or caption, by diffusion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from shared.errors import Refused
from shared.learning import pictures
from shared.learning.generator import Generator, most_frequent
from shared.recipe import Column, Learner, Media
from shared.spec import DiffusionSpec, knob

ACROSS = 16  # patches of a side, at most
LARGEST = 512  # pixels of a side


class TextToImageSpec(DiffusionSpec):
    """Knobs of a picture generator."""

    size: int | None = knob(
        None,
        ge=4,
        le=LARGEST,
        title="Size",
        help="Pixels of a side: pictures are scaled to it and cut square. Empty: the data's own size.",
    )


def stripes(across: bool, shift: int) -> bytes:
    """A picture of 8 × 8 for the example: stripes that lie or stand."""
    places = range(8)
    grey = [255 * (((y if across else x) + shift) % 4 < 2) for y in places for x in places]
    return pictures.png(bytes(grey), 8, 8, 1)


class TextToImage(Generator):
    """A diffusion transformer over pixels."""

    name = "text_to_image"
    title = "Picture generation"
    summary = "Teach a model to draw what your pictures show, by label or by caption."
    paper = "https://arxiv.org/abs/2212.09748"
    spec = TextToImageSpec
    cell = "image"
    columns = (
        Column("image", "pictures: PNG files", kind="image", output=True),
        Column("label", "what the picture shows, one of a few words", kind="label", required=False),
        Column("caption", "what the picture shows, in a sentence; used before a label", required=False),
    )
    example = [
        {"image": stripes(across, shift), "label": "lying" if across else "standing"}
        for shift in range(4)
        for across in (True, False)
    ] * 2
    family = "Pictures and sounds"
    place = 90

    def form(self, content: bytes) -> tuple[int, int]:
        """(width, height)"""
        return pictures.look(content)[:2]

    def whole(self, content: bytes) -> None:
        """Decodes it."""
        pictures.read(content, 3)

    def differs(self, form: tuple[int, int], usual: tuple[int, int]) -> str:
        """The two sizes."""
        return (
            f"The picture is {form[0]} × {form[1]} pixels, most are {usual[0]} × {usual[1]}. The row is left out "
            "unless «size» is set."
        )

    def frame(
        self, contents: Iterable[bytes], spec: TextToImageSpec, earlier: dict[str, Any]
    ) -> dict[str, Any]:
        """`width` and `height` in pixels, and the square of patches that holds them."""
        seen = [pictures.look(content) for content in contents]
        width, height = (spec.size, spec.size) if spec.size else usual(seen)
        if earlier and (width, height) != (earlier["width"], earlier["height"]):
            raise Refused(
                f"The checkpoint draws {earlier['width']} × {earlier['height']} pixels and these pictures have "
                f"{width} × {height}. Set «size», or train from scratch.",
                param="size",
            )
        longest = max(width, height)
        if longest > LARGEST:
            raise Refused(
                f"The pictures are {width} × {height} pixels; {LARGEST} a side are the most. Set «size».",
                param="size",
            )
        patch = 2
        while longest > ACROSS * patch:
            patch *= 2
        channels = earlier.get("channels") or max(channels for *_, channels in seen)
        side = -(-longest // patch) * patch
        return {"width": width, "height": height, "channels": channels, "side": side, "patch": patch}

    def array(self, content: bytes, learner: Learner) -> Any:
        """The picture in the upper left of a square, its edges drawn out to the end."""
        import numpy as np

        facts = learner.facts
        form, wanted = self.form(content), (facts["width"], facts["height"])
        if not learner.spec.size and form != wanted:
            raise Refused(self.differs(form, wanted))
        pixels = pictures.read(content, facts["channels"], learner.spec.size).transpose(2, 0, 1)
        down, right = facts["side"] - facts["height"], facts["side"] - facts["width"]
        return np.pad(pixels, ((0, 0), (0, down), (0, right)), mode="edge")

    def media(self, levels: Any, facts: dict[str, Any]) -> Media:
        """The picture cut out of its square."""
        pixels = levels[:, : facts["height"], : facts["width"]].transpose(1, 2, 0)
        return Media("png", pictures.written(pixels))

    def finish(self, facts: dict[str, Any]) -> tuple[str, str]:
        """Written by Pillow."""
        return "from PIL import Image\n", (
            f"pixels = levels[:, : {facts['height']}, : {facts['width']}].permute(1, 2, 0).squeeze(-1)\n"
            'Image.fromarray(pixels.numpy()).save("answer.png")\n'
        )


def usual(seen: list[tuple[int, int, int]]) -> tuple[int, int]:
    """The size of most pictures. Raises Refused where no size is that of most."""
    sizes = Counter((width, height) for width, height, _ in seen)
    size = most_frequent(sizes)
    if 2 * sizes[size] < len(seen):
        raise Refused(f"The pictures have {len(sizes)} different sizes: set «size».", param="size")
    return size


recipe = TextToImage()
