"""Broken datasets of pictures and of sounds: what the importer and the recipe that wants them say, with row and reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.imports import imported, parquet, picture, sound, zipped


@dataclass(frozen=True)
class Kind:
    """A recipe, its cells, and what it says of a cell of another form."""

    recipe: str
    cell: str
    suffix: str
    good: bytes
    other: bytes
    differs: str
    no: str


KINDS = {
    "pictures": Kind(
        "text_to_image", "image", "png", picture(), picture(size=(9, 9)),
        "The picture is 9 × 9 pixels, most are 8 × 6. The row is left out unless «size» is set.",
        "is no PNG, JPEG, WebP, BMP or GIF picture",
    ),
    "sounds": Kind(
        "text_to_audio", "audio", "wav", sound(), sound(rate=16_000),
        "The sound has 16000 samples a second, most have 8000. The row is left out unless «sample_rate» is set.",
        "is no WAV file",
    ),
}  # fmt: skip


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def named(kind: Kind, files: Mapping[str, bytes | str]) -> bytes:
    """A zip of the files; a name that ends in a point gets the suffix of its kind."""
    return zipped({name + kind.suffix * name.endswith("."): data for name, data in files.items()})


def labelled(kind: Kind, more: Mapping[str, bytes | str]) -> bytes:
    """A zip of four good files of two labels, and more."""
    return named(kind, {**dict.fromkeys(("a/1.", "a/2.", "b/3.", "b/4."), kind.good), **more})


def captioned(kind: Kind, table: str, name: str = "captions.csv") -> bytes:
    """A zip of two good files with captions."""
    return named(kind, {"1.": kind.good, "2.": kind.good, name: table.replace("*", kind.suffix)})


def told(folder: Path, kind: Kind, data: bytes, name: str = "a.zip") -> list[tuple[int | None, bool, str]]:
    """(row, fatal, message) of what the importer and the recipe found."""
    made = imported(folder, name, data)
    assert made.code == 0
    found = made.report["findings"] + made.report["fits"][kind.recipe]["findings"]
    return [(one["row"], one["fatal"], one["message"]) for one in found]


def test_one_of_another_form_is_named_and_left_out(kind: Kind, tmp_path: Path):
    *_, last = told(tmp_path, kind, labelled(kind, {"b/5.": kind.other}))
    assert last == (5, False, kind.differs)


@pytest.mark.parametrize("content", [b"", b"not a file at all", b"\x80\x04\x95\0\0"])
def test_a_corrupt_one_is_named_and_left_out(kind: Kind, content: bytes, tmp_path: Path):
    assert told(tmp_path, kind, labelled(kind, {"b/5.": content})) == [
        (5, False, f"«b/5.{kind.suffix}» {kind.no}; it is left out.")
    ]


def test_one_that_ends_in_its_middle_is_named_and_left_out(kind: Kind, tmp_path: Path):
    ((row, fatal, message),) = told(
        tmp_path, kind, labelled(kind, {"b/5.": kind.good[: len(kind.good) // 2]})
    )
    assert (row, fatal) == (5, False)
    assert message.startswith(f"«b/5.{kind.suffix}» is ")


def test_one_without_a_folder_has_no_label(kind: Kind, tmp_path: Path):
    assert told(tmp_path, kind, labelled(kind, {"x.": kind.good})) == [
        (5, False, "There is no label. The row is left out.")
    ]


def test_one_label_is_not_enough(kind: Kind, tmp_path: Path):
    assert told(tmp_path, kind, named(kind, {"a/1.": kind.good, "a/2.": kind.good})) == [
        (None, True, "Every label is «a»: a generator needs at least two to tell apart.")
    ]


def test_without_labels_and_captions_no_recipe_takes_them(kind: Kind, tmp_path: Path):
    made = imported(tmp_path, "a.zip", named(kind, {"1.": kind.good, "2.": kind.good}))
    assert made.report["fits"] == {}


def test_copies_are_rows(kind: Kind, tmp_path: Path):
    assert told(tmp_path, kind, labelled(kind, {})) == []


@pytest.mark.parametrize("empty", ["", " ", '" "'])
def test_one_with_an_empty_caption_is_named_and_left_out(kind: Kind, empty: str, tmp_path: Path):
    data = captioned(kind, f"file,caption\n1.*,a thing\n2.*,{empty}\n")
    assert told(tmp_path, kind, data) == [(2, False, "There is no caption. The row is left out.")]


@pytest.mark.parametrize(
    ("table", "name", "at", "said"),
    [
        ('{"file_name": "1.*", "caption": NaN}\n', "metadata.jsonl", 1, "NaN is not JSON; write null"),
        ('{"file_name": "1.*", "label": ["a", "b"]}\n', "metadata.jsonl", 1, "has a list or an object in «label»"),
        ('{"file_name": "1.*", "caption": {"en": "a"}}\n', "metadata.jsonl", 1, "a list or an object in «caption»"),
        ("file,caption\n1.*,a\n2.*\n", "captions.csv", 3, "Row 3 has 1 field"),
        ("name,caption\n1.*,a\n", "captions.csv", None, "needs the columns «file» and «caption»"),
    ],
)  # fmt: skip
def test_a_broken_captions_file_is_refused_by_row(
    kind: Kind, table: str, name: str, at: int | None, said: str, tmp_path: Path
):
    error = imported(tmp_path, "a.zip", captioned(kind, table, name)).error
    assert error["message"].startswith(f"«{name}»: ")
    assert said in error["message"]
    assert error.get("row") == at


def test_nothing_whole_is_refused_with_the_first_reason(kind: Kind, tmp_path: Path):
    error = imported(tmp_path, "a.zip", named(kind, {"a/1.": b"x", "b/2.": b"y"})).error
    assert error["message"].startswith(f"Nothing in the zip can be read. «a/1.{kind.suffix}» {kind.no}")


def test_names_of_files_are_no_files(kind: Kind, tmp_path: Path):
    data = f"{kind.cell},label\n1.{kind.suffix},a\n2.{kind.suffix},b\n".encode()
    wrong = f"«{kind.cell}» must hold files, not text or numbers."
    assert told(tmp_path, kind, data, "a.csv") == [
        (2, True, wrong),
        (3, True, wrong),
        (None, True, "No row can be used."),
    ]


def test_cells_of_a_table_are_named_by_row(kind: Kind, tmp_path: Path):
    """Not a number for a label, no label, bytes of something else, no bytes."""
    cells: list[dict[str, Any]] = [{"bytes": kind.good, "path": f"{n}.{kind.suffix}"} for n in range(6)]
    cells[4]["bytes"], cells[5]["bytes"] = b"x", None
    table = pa.table({kind.cell: cells, "label": [1.0, 2.0, float("nan"), None, 1.0, 2.0]})
    found = told(tmp_path, kind, parquet(table), "a.parquet")
    assert [(row, fatal) for row, fatal, _ in found] == [(5, False), (6, False), (3, False), (4, False)]
    for (*_, message), said in zip(
        found, (kind.no, "names a file whose bytes are not", *["no label"] * 2), strict=True
    ):
        assert said in message
