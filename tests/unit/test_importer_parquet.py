"""Pictures and sounds in the cells of a Parquet file, as datasets of Hugging Face have them: checked as those in zips."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from shared.recipe import get
from tests.imports import imported, parquet, picture, sound
from tests.unit.test_importer_media import BROKEN_PICTURES, BROKEN_SOUNDS, pixels, said, samples

FILES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def files(*contents: bytes | None, kind: pa.DataType = FILES) -> pa.Array:
    """A column of files with a name each."""
    cells = [{"bytes": data, "path": f"{number}.x"} for number, data in enumerate(contents)]
    return pa.array(cells, kind)


def table(**columns: Any) -> bytes:
    return parquet(pa.table(columns))


def test_pictures_in_structs_are_rows_that_generators_read(tmp_path: Path):
    column = files(picture(format="JPEG", size=(16, 16)), picture((0, 0, 255), (16, 16)))
    made = imported(tmp_path, "train.parquet", table(image=column, label=["dog", "cat"]))
    assert made.report["findings"] == []
    assert [row["label"] for row in made.rows] == ["dog", "cat"]
    assert pixels(made.rows[1]["image"]).tolist() == [[[0, 0, 255]] * 16] * 16
    assert made.table.schema.field("image").metadata[b"media"] == b"png"
    assert {"width", "height", "media"} == made.report["preview"][0]["image"].keys()
    assert made.report["fits"]["text_to_image"]["columns"] == {"image": "image", "label": "label"}
    assert get("text_to_image").recognise(made.table.column_names) is not None


def test_sounds_become_mono_and_plain_bytes_are_read_too(tmp_path: Path):
    stereo = sound(np.array([10, 20, -10, -20], "<i2").tobytes(), channels=2)
    made = imported(tmp_path, "a.parquet", table(audio=[stereo, sound()], caption=["one", "two"]))
    assert samples(made.rows[0]["audio"]) == [15, -15]
    assert [message for _, message in said(made)] == ["Averaged to one channel: 1 stereo sound."]
    assert made.table.schema.field("audio").metadata[b"media"] == b"wav"


@pytest.mark.parametrize(
    "kind", [pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())]), pa.struct([("bytes", pa.binary())])]
)  # fmt: skip
def test_either_order_and_no_path_are_the_same(tmp_path: Path, kind: pa.StructType):
    cells = [{field.name: picture() if field.name == "bytes" else "x" for field in kind}]
    made = imported(tmp_path, "a.parquet", table(image=pa.array(cells, kind), label=["a"]))
    assert pixels(made.rows[0]["image"]).shape == (6, 8, 3)


def test_one_coloured_picture_makes_all_rgb_also_where_it_comes_last(tmp_path: Path):
    column = files(picture(7, mode="L"), picture(9, mode="L"), picture())
    made = imported(tmp_path, "a.parquet", table(image=column, label=["a", "b", "c"]))
    assert [Image.fromarray(pixels(row["image"])).mode for row in made.rows] == ["RGB"] * 3


@pytest.mark.parametrize("case", sorted(BROKEN_PICTURES.keys() - {"another format", "empty"}))
def test_a_broken_picture_leaves_out_its_row_alone(tmp_path: Path, case: str):
    data, _, why = BROKEN_PICTURES[case]
    column = files(picture(), data, picture(), picture())
    made = imported(tmp_path, "a.parquet", table(image=column, label=["a", "b", "c", "d"]))
    assert (made.numbers, [row["label"] for row in made.rows]) == ([1, 3, 4], ["a", "c", "d"])
    ((row, message),) = said(made)
    assert row == 2
    assert message.startswith(f"«image» of row 2 {why}")
    assert message.endswith("the row is left out.")


@pytest.mark.parametrize("case", sorted(BROKEN_SOUNDS.keys() - {"an MP3"}))
def test_a_broken_sound_leaves_out_its_row_alone(tmp_path: Path, case: str):
    data, _, why = BROKEN_SOUNDS[case]
    column = files(sound(), data, sound())
    made = imported(tmp_path, "a.parquet", table(audio=column, label=["a", "b", "c"]))
    assert made.numbers == [1, 3]
    told = dict(said(made))
    assert told[2].startswith(f"«audio» of row 2 {why if data else 'is empty'}")


def test_a_cell_without_bytes_is_left_out_with_its_reason(tmp_path: Path):
    cells = [{"bytes": picture(), "path": None}, {"bytes": None, "path": "far/away.png"}, None]
    made = imported(tmp_path, "a.parquet", table(image=pa.array(cells, FILES), label=["a", "b", "c"]))
    assert made.numbers == [1]
    assert [message for _, message in said(made)] == [
        "«image» of row 2 names a file whose bytes are not in the Parquet file; the row is left out.",
        "«image» of row 3 is empty; the row is left out.",
    ]


def test_a_file_of_which_no_picture_can_be_read_is_refused(tmp_path: Path):
    error = imported(tmp_path, "a.parquet", table(image=files(picture()[:50], picture()[:48]))).error
    assert error["message"].startswith("No row of the Parquet file can be read. «image» of row 1 is a broken")


def classed(told: Any, **columns: Any) -> bytes:
    """A Parquet file with what Hugging Face's library says of its columns."""
    made = pa.table(columns)
    return parquet(
        made.replace_schema_metadata({"huggingface": told if isinstance(told, str) else json.dumps(told)})
    )


def test_numbers_of_classes_become_their_names(tmp_path: Path):
    told = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    columns = {"image": files(*[picture()] * 4), "label": [1, 0, -1, None], "n": [0, 1, 0, 1]}
    made = imported(tmp_path, "a.parquet", classed(told, **columns))
    assert [row["label"] for row in made.rows] == ["dog", "cat", None, None]
    assert [row["n"] for row in made.rows] == [0, 1, 0, 1]
    made = imported(tmp_path, "a.parquet", classed(told, text=["a", "b"], label=[1, 0]))
    assert made.rows == [{"text": "a", "label": "dog"}, {"text": "b", "label": "cat"}]


@pytest.mark.parametrize(
    "told",
    [
        "no JSON", "[]", "[" * 100_000, '{"info": null}', {"info": {"features": []}},
        {"info": {"features": {"label": {"names": [1], "_type": "ClassLabel"}}}},
        {"info": {"features": {"label": {"names": "cat", "_type": "ClassLabel"}}}},
        {"info": {"features": {"label": {"names": ["x"] * 10_001, "_type": "ClassLabel"}}}},
    ],
)  # fmt: skip
def test_odd_metadata_leaves_numbers_as_they_are(tmp_path: Path, told: Any):
    made = imported(tmp_path, "a.parquet", classed(told, text=["a", "b"], label=[1, 0]))
    assert [row["label"] for row in made.rows] == [1, 0]


def test_bytes_that_are_no_picture_or_sound_are_left_out_with_a_finding(tmp_path: Path):
    made = imported(tmp_path, "a.parquet", table(text=["a", "b"], blob=files(b"\x80\x04pickle", b"%PDF")))
    assert made.rows == [{"text": "a"}, {"text": "b"}]
    assert "which no recipe reads" in said(made)[0][1]


def test_a_large_set_is_written_in_groups_of_bounded_size(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), "u1")
    noisy = [Image.fromarray(np.roll(noise, n)) for n in range(60)]
    pngs = [picture_of(one) for one in noisy]
    made = imported(tmp_path, "a.parquet", table(image=files(*pngs), label=["a"] * 60))
    import pyarrow.parquet as pq

    groups = pq.ParquetFile(made.folder / "artifacts/data.parquet").metadata
    assert groups.num_row_groups >= 2
    assert max(groups.row_group(n).total_byte_size for n in range(groups.num_row_groups)) < 10 * 2**20


def picture_of(image: Image.Image) -> bytes:
    """The picture as PNG."""
    import io

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
