"""Encoded items in flat arrays: what goes in comes out, from memory and from the file, where pictures stay."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from worker.engine.items import Items, Packer
from worker.engine.stored_array import StoredArray


def items(count: int = 20) -> list[dict[str, Any]]:
    dice = np.random.default_rng(0)
    return [
        {
            "input_ids": list(range(n % 4)),
            "shares": [0.5] * n if n > 3 else [n],
            "pixels": dice.integers(0, 255, (3, 4, 4), "u1"),
            "label": n,
            "large": [2**40 + n],
            "path": f"{n}.png",
        }
        for n in range(count)
    ]


def packed(folder: Path | None) -> tuple[Packer, Items]:
    packer = Packer(lambda item: len(item["input_ids"]), folder)
    for number, item in enumerate(items()):
        packer.add(2 * number, item)
    return packer, packer.packed()


def same(found: Items) -> None:
    assert len(found) == 20
    assert found.rows == list(range(0, 40, 2))
    assert found.lengths == [n % 4 for n in range(20)]
    for number, item in enumerate(items()):
        got = found[number]
        assert got.pop("row") == 2 * number
        assert np.array_equal(got.pop("pixels"), item.pop("pixels"))
        assert got == item


@pytest.mark.parametrize("on_disk", [False, True])
def test_items_come_out_as_they_went_in(tmp_path: Path, on_disk: bool):
    packer, found = packed(tmp_path / "spill" if on_disk else None)
    same(found)
    found.save(tmp_path / "stored")
    packer.close()
    loaded = Items.load(tmp_path / "stored")
    same(loaded)
    assert isinstance(loaded.arrays["value.pixels"], StoredArray)
    assert not list((tmp_path / "spill").glob("*"))


def test_the_file_is_what_safetensors_reads(tmp_path: Path):
    packed(None)[1].save(tmp_path / "stored")
    with safe_open(tmp_path / "stored", framework="np") as file:
        assert file.get_tensor("value.pixels").shape == (20, 3, 4, 4)
        assert file.get_tensor("value.large").dtype == np.int64
        assert file.get_tensor("value.input_ids").dtype == np.int32


def test_pictures_are_read_also_when_the_file_was_tidied_away(tmp_path: Path):
    packed(None)[1].save(tmp_path / "stored")
    loaded = Items.load(tmp_path / "stored")
    (tmp_path / "stored").unlink()
    same(loaded)
