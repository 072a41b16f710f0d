"""Zips of pictures, sounds, code and texts: rows out, and a finding with number and path for what is broken."""

import io
import json
import struct
import tempfile
import wave
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.imports import Imported, imported, picture, sound, zipped
from worker.engine import pictures, sounds


def pixels(png: bytes) -> Any:
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)))


def samples(wav: bytes) -> list[int]:
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getcomptype()) == (1, 2, "NONE")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").tolist()


def said(made: Imported) -> list[tuple[int | None, str]]:
    """(row, message) of every finding."""
    assert not any(finding["fatal"] for finding in made.report["findings"])
    return [(finding["row"], finding["message"]) for finding in made.report["findings"]]


# --- pictures ---------------------------------------------------------------------------------------


def test_a_folder_of_pictures_is_rows_with_the_folders_as_labels(tmp_path: Path):
    made = imported(
        tmp_path,
        "pets.zip",
        zipped({"pets/dog/1.jpg": picture(format="JPEG"), "pets/cat/1.png": picture((0, 0, 255))}),
    )
    assert made.code == 0
    assert [(row["label"], row["path"]) for row in made.rows] == [
        ("cat", "pets/cat/1.png"),
        ("dog", "pets/dog/1.jpg"),
    ]
    assert (made.numbers, made.report["format"]) == ([1, 2], "pictures")
    assert pixels(made.rows[0]["image"]).tolist() == [[[0, 0, 255]] * 8] * 6
    field = made.table.schema.field("image")
    assert (field.type, field.metadata[b"media"]) == (pa.binary(), b"png")
    assert made.report["findings"] == []


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_every_format_becomes_png(tmp_path: Path, format: str):
    data = zipped({f"a/1.{format.lower()}": picture((250, 0, 0), (16, 16), format=format)})
    image = pixels(imported(tmp_path, "a.zip", data).rows[0]["image"])
    assert image.shape == (16, 16, 3)
    assert np.abs(image.astype(int) - [250, 0, 0]).max() < 10


def test_grey_pictures_stay_grey_and_one_coloured_picture_makes_all_rgb(tmp_path: Path):
    grey = {
        "a/1.png": picture(7, mode="L"),
        "a/2.png": picture(1, mode="1"),
        "a/3.png": picture(40_000, mode="I;16"),
        "a/4.jpg": picture(9, mode="L", format="JPEG"),
    }
    for name, more, shape in (("grey", {}, (6, 8)), ("mixed", {"b/1.png": picture()}, (6, 8, 3))):
        folder = tmp_path / name
        folder.mkdir()
        found = [pixels(row["image"]) for row in imported(folder, "a.zip", zipped(grey | more)).rows]
        assert {image.shape for image in found} == {shape}
        assert [image.flat[0] for image in found][:3] == [7, 255, 156]  # 40000 / 256


def test_pictures_are_upright_opaque_and_bare(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    exif[0x010E] = "a secret place"
    made = imported(
        tmp_path,
        "a.zip",
        zipped(
            {
                "a/1.jpg": picture(size=(8, 6), format="JPEG", exif=exif, comment=b"a secret comment"),
                "a/2.png": picture((9, 9, 9, 0), mode="RGBA"),
            }
        ),
    )
    turned, clear = (row["image"] for row in made.rows)
    assert pixels(turned).shape == (8, 6, 3)
    assert pixels(clear).min() == 255  # on white
    assert b"secret" not in turned
    assert said(made)[0][1].startswith("Not every picture has")


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path):
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    made = imported(tmp_path, "a.zip", zipped({"a/1.gif": buffer.getvalue()}))
    assert pixels(made.rows[0]["image"])[0, 0].tolist() == [255, 0, 0]


def test_large_pictures_are_scaled_down_and_it_is_said(tmp_path: Path):
    files = {"a/1.jpg": picture(size=(3000, 1500), format="JPEG"), "a/2.png": picture(size=(10, 2000))}
    made = imported(tmp_path, "a.zip", zipped(files))
    assert [pixels(row["image"]).shape for row in made.rows] == [(512, 1024, 3), (1024, 5, 3)]
    assert (None, "Scaled down to 1,024 pixels: 2 pictures.") in said(made)


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


BROKEN_PICTURES = {
    "cut short": (picture(size=(64, 64))[:-40], "1.png", "is a broken picture"),
    "a JPEG cut short": (picture(size=(64, 64), format="JPEG")[:400], "1.jpg", "is a broken picture"),
    "flipped bytes": (picture(size=(64, 64)).replace(b"IDAT", b"IDAX"), "1.png", "is no PNG"),
    "empty": (b"", "1.png", "is no PNG, JPEG, WebP, BMP or GIF picture"),
    "text": (b"not a picture at all", "1.png", "is no PNG, JPEG, WebP, BMP or GIF picture"),
    "a page": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "1.png", "is no PNG"),
    "a TIFF by another name": (picture(format="TIFF"), "1.png", "is no PNG"),
    "a PostScript program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "1.png", "is no PNG"),
    "a bomb": (bomb(60_000, 60_000), "1.png", "has more than 67,108,864 pixels"),
    "a smaller bomb": (bomb(9_000, 9_000), "1.png", "has more than 67,108,864 pixels"),
    "no rows of pixels": (bomb(0, 5), "1.png", "is "),
    "claims more than it holds": (bomb(50, 50), "1.png", "is a broken picture"),
    "another format": (picture(), "1.heic", "is of a format that is not read"),
    "a header alone": (b"GIF89a", "1.gif", "is "),
}


@pytest.mark.parametrize("case", BROKEN_PICTURES)
def test_a_broken_picture_is_a_finding_and_the_others_go_on(tmp_path: Path, case: str):
    data, name, why = BROKEN_PICTURES[case]
    files = {f"cat/{name}": data, "cat/0.png": picture(), "dog/1.png": picture(), "dog/2.png": picture()}
    made = imported(tmp_path, "a.zip", zipped(files))
    assert [row["path"] for row in made.rows] == ["cat/0.png", "dog/1.png", "dog/2.png"]
    assert made.numbers == [1, 3, 4]
    ((row, message),) = said(made)
    assert row == 2
    assert message.startswith(f"«cat/{name}» {why}")
    assert message.endswith("it is left out.")


def test_a_zip_without_a_whole_picture_is_refused_with_the_first_reason(tmp_path: Path):
    error = imported(tmp_path, "a.zip", zipped({"a/1.png": b"x", "a/2.png": b"y"})).error
    assert error["message"] == (
        "Nothing in the zip can be read. «a/1.png» is no PNG, JPEG, WebP, BMP or GIF picture; it is left out."
    )


def test_a_picture_damaged_in_the_zip_is_a_finding(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), "u1")
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    data = bytearray(zipped({"a/1.png": buffer.getvalue(), "b/1.png": picture()}))
    data[500] ^= 0xFF
    made = imported(tmp_path, "a.zip", bytes(data))
    assert [row["path"] for row in made.rows] == ["b/1.png"]
    assert said(made)[0][1].startswith("«a/1.png» is damaged in the zip")


def test_a_thousand_broken_pictures_do_not_fill_the_report(tmp_path: Path):
    files = {f"a/{n}.png": b"x" for n in range(1000)} | {"b/1.png": picture()}
    findings = imported(tmp_path, "a.zip", zipped(files)).report["findings"]
    assert len(findings) == 101
    assert findings[-1]["message"] == "900 more findings like these."


# --- captions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("captions.csv", "file,caption\n1.png,a red square\nsub/2.png,\n"),
        ("captions.tsv", "File\tCaption\n./1.png\ta red square\nsub\\2.png\t\n"),
        ("metadata.csv", "file_name,text\n1.png,a red square\n2.png,\n"),
        (
            "metadata.jsonl",
            '{"file_name": "1.png", "caption": "a red square"}\n{"file_name": "x/sub/2.png", "caption": null}\n',
        ),
    ],
)
def test_a_captions_file_says_what_is_in_the_pictures(tmp_path: Path, name: str, data: str):
    files = {"x/1.png": picture(), "x/sub/2.png": picture(), f"x/{name}": data}
    made = imported(tmp_path, "a.zip", zipped(files))
    assert [(row["caption"], row["path"]) for row in made.rows] == [
        ("a red square", "x/1.png"),
        (None, "x/sub/2.png"),
    ]
    assert "label" not in made.rows[0]
    assert made.report["findings"] == []


def test_captions_and_labels_may_stand_in_one_file(tmp_path: Path):
    files = {"1.png": picture(), "captions.jsonl": '{"file": "1.png", "caption": "a three", "label": 3}\n'}
    (row,) = imported(tmp_path, "a.zip", zipped(files)).rows
    assert (row["label"], row["caption"]) == ("3", "a three")


def test_each_folder_may_have_captions_of_its_own(tmp_path: Path):
    files: dict[str, bytes | str] = {}
    for part in ("test", "train"):
        files |= {f"{part}/1.png": picture(), f"{part}/metadata.csv": f"file_name,text\n1.png,of {part}\n"}
    assert [row["caption"] for row in imported(tmp_path, "a.zip", zipped(files)).rows] == [
        "of test",
        "of train",
    ]


def test_captions_that_do_not_match_the_pictures_are_findings(tmp_path: Path):
    table = "file,caption\n1.png,one\nnope.png,two\n1.png,again\n"
    made = imported(
        tmp_path, "a.zip", zipped({"1.png": picture(), "2.png": picture(), "captions.csv": table})
    )
    assert [(row["path"], row["caption"]) for row in made.rows] == [("1.png", "one")]
    assert said(made) == [
        (None, "«captions.csv», row 3: «nope.png» is not in the zip."),
        (None, "«captions.csv», row 4: «1.png» is described a second time; the first one counts."),
        (2, "«2.png» is in no captions file; it is left out."),
    ]


BROKEN_CAPTIONS = {
    "no column of files": (
        "captions.csv",
        "name,caption\n1.png,x\n",
        "needs the columns «file» and «caption»",
    ),
    "no caption": ("captions.csv", "file,size\n1.png,3\n", "It has: file, size"),
    "a short row": ("captions.csv", "file,caption\n1.png\n", "Row 2 has 1 field"),
    "not JSON": ("metadata.jsonl", '{"file_name": "1.png",\n', "Line 1 is not JSON"),
    "a list": ("metadata.jsonl", '{"file_name": "1.png", "text": ["a"]}\n', "Row 1 has a list"),
    "a number for a name": ("metadata.jsonl", '{"file_name": 7, "text": "a"}\n', "names no file"),
    "nothing": ("captions.csv", "", "is empty"),
    "Latin-1": ("captions.csv", "file,caption\n1.png,Größe\n".encode("latin-1"), "is not UTF-8"),
}


@pytest.mark.parametrize("case", BROKEN_CAPTIONS)
def test_a_broken_captions_file_is_refused_by_name_and_row(tmp_path: Path, case: str):
    name, data, why = BROKEN_CAPTIONS[case]
    error = imported(tmp_path, "a.zip", zipped({"x/1.png": picture(), f"x/{name}": data})).error
    assert error["message"].startswith(f"«x/{name}»: ")
    assert why in error["message"]


# --- sounds -----------------------------------------------------------------------------------------


def test_a_folder_of_sounds_is_rows_with_the_folders_as_labels(tmp_path: Path):
    data = zipped({"yes/1.wav": sound(b"\1\0\2\0"), "no/1.wav": sound(b"\3\0", rate=8000)})
    made = imported(tmp_path, "words.zip", data)
    assert [(row["label"], row["path"], samples(row["audio"])) for row in made.rows] == [
        ("no", "no/1.wav", [3]),
        ("yes", "yes/1.wav", [1, 2]),
    ]
    assert made.table.schema.field("audio").metadata[b"media"] == b"wav"
    assert made.report["format"] == "sounds"


@pytest.mark.parametrize(
    ("raw", "channels", "width", "expected"),
    [
        (bytes([0, 128, 255]), 1, 1, [-32768, 0, 32512]),
        (struct.pack("<3h", -5, 0, 32767), 1, 2, [-5, 0, 32767]),
        (struct.pack("<4h", 10, 20, -10, -20), 2, 2, [15, -15]),
        (b"\x80\x00\x00\x7f\xff\x7f\x00\x00\x80", 1, 3, [1, 32767, -32768]),
        (struct.pack("<3i", 5 << 16, 2**31 - 1, -(2**31)), 1, 4, [5, 32767, -32768]),
    ],
)  # fmt: skip
def test_every_kind_of_pcm_becomes_mono_16_bit(raw: bytes, channels: int, width: int, expected: list[int]):
    wav, stereo = sounds.canonical(sound(raw, channels=channels, width=width))
    assert samples(wav) == expected
    assert stereo == (channels == 2)


def extensible(wav: bytes, tag: int = 1) -> bytes:
    """The same sound with the longer header that many programs write."""
    header = (
        b"\xfe\xff"
        + wav[22:36]
        + struct.pack("<HHIH", 22, 16, 4, tag)
        + b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    )
    chunks = b"fmt " + struct.pack("<I", len(header)) + header + wav[36:]
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


def test_the_longer_header_of_wav_is_read():
    assert samples(sounds.canonical(extensible(sound(b"\7\0\x08\0")))[0]) == [7, 8]


def with_format(tag: int) -> bytes:
    data = bytearray(sound())
    data[20:22] = struct.pack("<H", tag)
    return bytes(data)


BROKEN_SOUNDS = {
    "empty": (b"", "1.wav", "is no WAV file"),
    "text": (b"RIFF or raff", "1.wav", "is no WAV file"),
    "an MP3 by another name": (b"ID3\x04\0\0\0\0\0\0", "1.wav", "is no WAV file"),
    "an MP3": (b"ID3\x04\0\0\0\0\0\0", "1.mp3", "is of a format that is not read"),
    "a header alone": (sound()[:30], "1.wav", "is a broken WAV file"),
    "no header": (b"RIFF\x04\0\0\0WAVE", "1.wav", "is a broken WAV file (its header is missing)"),
    "no frames": (sound(b""), "1.wav", "holds no sound at all"),
    "cut short": (
        sound(bytes(16_000))[:-8000],
        "1.wav",
        "is cut short: it announces 1.0 seconds and holds 0.5",
    ),
    "floating point": (with_format(3), "1.wav", "holds floating-point samples, and plain PCM is read"),
    "A-law": (with_format(6), "1.wav", "holds A-law"),
    "unknown": (with_format(77), "1.wav", "holds an unknown encoding (77)"),
    "floating point, longer header": (extensible(sound(), 3), "1.wav", "holds floating-point samples"),
    "six channels": (sound(bytes(1200), channels=6), "1.wav", "has 6 channels; one or two are read"),
    "a rate of 5 Hz": (sound(rate=5), "1.wav", "has a sample rate of 5 Hz; 4,000 to 192,000 are read"),
    "hours": (sound(bytes(4000 * 601), rate=4000, width=1), "1.wav", "is 601 seconds long; 600 are the most"),
}


@pytest.mark.parametrize("case", BROKEN_SOUNDS)
def test_a_broken_sound_is_a_finding_and_the_others_go_on(tmp_path: Path, case: str):
    data, name, why = BROKEN_SOUNDS[case]
    made = imported(
        tmp_path, "a.zip", zipped({f"no/{name}": data, "no/0.wav": sound(), "yes/1.wav": sound()})
    )
    assert [row["path"] for row in made.rows] == ["no/0.wav", "yes/1.wav"]
    ((row, message),) = said(made)
    assert row == 2
    assert message.startswith(f"«no/{name}» {why}")


def test_mixed_sample_rates_and_stereo_are_told(tmp_path: Path):
    files = {"a/1.wav": sound(), "a/2.wav": sound(), "b/1.wav": sound(rate=16_000, channels=2)}
    assert said(imported(tmp_path, "a.zip", zipped(files))) == [
        (None, "Not every sound has a sample rate of 8,000 Hz: 1 of 3 differ, as row 3 («b/1.wav») with a sample rate of 16,000 Hz."),
        (None, "Averaged to one channel: 1 stereo sound."),
    ]  # fmt: skip


# --- code and texts ---------------------------------------------------------------------------------


def test_code_files_are_rows_of_path_and_content(tmp_path: Path):
    files = {
        "p/a.py": "print('größe')\r\n",
        "p/b/c.js": "\ufeffvar a;",
        "p/.git/x.py": "no",
        "p/node_modules/y.js": "no",
        "p/vendor/z.go": "no",
        "p/__init__.py": "\n",
        "p/notes.md": "no",
    }
    made = imported(tmp_path, "code.zip", zipped(files))
    assert made.rows == [
        {"path": "p/a.py", "content": "print('größe')\r\n"},
        {"path": "p/b/c.js", "content": "var a;"},
    ]
    assert (made.numbers, made.report["format"]) == ([2, 3], "code")
    assert said(made) == [
        (None, "Left out of the zip: 2 other files («p/notes.md», «p/vendor/z.go»)."),
        (None, "Left out: 1 empty file («p/__init__.py»)."),
    ]


BROKEN_CODE = {
    "a binary": (b"\x7fELF\0\0", "b.py", "is not text (it holds zero bytes)"),
    "a pickle": (b"\x80\x04\x95\0\0", "b.py", "is not text"),
    "Latin-1": ("x = 1\ny = 'Größe'".encode("latin-1"), "b.py", "is not UTF-8 (byte 0xF6 in line 2)"),
    "UTF-16": ("x = 1".encode("utf-16"), "b.py", "is not text"),
    "UTF-16, big end first": ("x".encode("utf-16-be"), "b.py", "is not text"),
    "a cut character": ("ö".encode()[:1], "b.py", "is not UTF-8 (byte 0xC3 in line 1)"),
    "half a surrogate pair": (b"x = '\xed\xa0\xbd'", "b.py", "is not UTF-8"),
    "an overlong character": (b"\xc0\xaf", "b.py", "is not UTF-8"),
    "a picture": (picture(), "b.js", "is not text"),
    "11 MB": (np.random.default_rng(0).integers(65, 90, 11 * 2**20, "u1").tobytes(), "b.c", "is larger than 10 MB"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_CODE)
def test_a_file_that_is_no_text_is_a_finding_and_the_others_go_on(tmp_path: Path, case: str):
    data, name, why = BROKEN_CODE[case]
    made = imported(tmp_path, "a.zip", zipped({"a.py": "pass", name: data, "c.py": "pass"}))
    assert [row["path"] for row in made.rows] == ["a.py", "c.py"]
    ((row, message),) = said(made)
    assert row == 2
    assert message.startswith(f"«{name}» {why}")


def test_each_text_of_a_zip_is_a_stream_of_its_own(tmp_path: Path):
    files = {
        "b.txt": "three\n\nfour\n\n",
        "a.txt": "one\r\ntwo\r\n",
        "c.txt": "five",
        "d.txt": " \n",
        "e.txt": b"\xff",
    }
    made = imported(tmp_path, "texts.zip", zipped(files))
    assert [(row["path"], row["text"]) for row in made.rows] == [
        ("a.txt", "one\r\n"),
        ("a.txt", "two"),
        ("b.txt", "three\n"),
        ("b.txt", "\n"),
        ("b.txt", "four\n"),
        ("b.txt", ""),
        ("c.txt", "five"),
    ]
    assert made.numbers == list(range(1, 8))
    empty, foreign = (message for _, message in said(made))
    assert empty == "«d.txt» is empty; it is left out."
    assert foreign.startswith("«e.txt» cannot be read (Line 1 is not UTF-8: byte 0xFF at position 1")


# --- whatever comes ---------------------------------------------------------------------------------

WHOLE = zipped(
    {
        "a/1.png": picture(size=(4, 4)),
        "a/2.gif": picture(size=(4, 4), format="GIF"),
        "a/3.jpg": picture(size=(4, 4), format="JPEG"),
    }
)


@settings(max_examples=150, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_flipped_byte_of_a_zip_of_pictures_crashes_the_importer(flips: list[tuple[int, int]]):
    data = bytearray(WHOLE)
    for place, value in flips:
        data[place % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        made = imported(Path(folder), "a.zip", bytes(data))
        assert made.code == 0 or made.error["message"]


@settings(max_examples=200, deadline=None)
@given(
    data=st.sampled_from([picture(format=format) for format in pictures.FORMATS] + [sound(), extensible(sound())]),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    end=st.integers(0, 2000),
)  # fmt: skip
def test_no_flipped_byte_of_a_picture_or_sound_crashes_the_importer(
    data: bytes, flips: list[tuple[int, int]], end: int
):
    broken = bytearray(data[:end])
    for place, value in flips:
        if broken:
            broken[place % len(broken)] = value
    suffix = "wav" if data.startswith(b"RIFF") and b"WAVE" in data[:12] else "png"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"a/1.{suffix}", bytes(broken))
    with tempfile.TemporaryDirectory() as folder:
        made = imported(Path(folder), "a.zip", buffer.getvalue())
        assert made.code == 0 or "a/1." in made.error["message"]


def test_the_report_of_pictures_is_json_without_bytes(tmp_path: Path):
    report = imported(tmp_path, "a.zip", zipped({"a/1.png": picture(), "b/1.png": picture()})).report
    assert "PNG" not in json.dumps(report)
