"""What a dataset's zip is taken for, by the names in it."""

import zipfile

import pytest

from shared import bundles
from shared.errors import Refused

TAKEN = {
    "one file of rows": (["data/rows.jsonl"], "file", ["data/rows.jsonl"], 0),
    "rows with a readme": (["README.md", "LICENSE.txt", "rows.csv"], "file", ["rows.csv"], 2),
    "one text": (["a.txt"], "file", ["a.txt"], 0),
    "a readme alone": (["README.md"], "file", ["README.md"], 0),
    "a file without a known suffix": (["data"], "file", ["data"], 0),
    "pictures in folders": (
        ["x/cat/2.png", "x/cat/1.JPG", "x/dog/1.webp", "x/README.md", "x/dog/.hidden.png"],
        "pictures",
        ["x/cat/1.JPG", "x/cat/2.png", "x/dog/1.webp"],
        1,
    ),
    "one picture with captions": (["captions.csv", "1.png"], "pictures", ["1.png"], 0),
    "paths of another system": (["cat\\1.png", "dog\\1.png"], "pictures", ["cat\\1.png", "dog\\1.png"], 0),
    "sounds": (["yes/1.wav", "no/1.WAV", "no/2.mp3"], "sounds", ["no/1.WAV", "no/2.mp3", "yes/1.wav"], 0),
    "code with its papers": (
        ["p/a.py", "p/b.rs", "p/README.md", "p/.git/x.py", "p/node_modules/l/i.js", "p/vendor/v.go"],
        "code",
        ["p/a.py", "p/b.rs"],
        2,
    ),
    "a single file of code": (["a.py"], "code", ["a.py"], 0),
    "texts": (["b.txt", "a.md", "readme.txt"], "texts", ["a.md", "b.txt"], 1),
}


def look(names: list[str]) -> bundles.Bundle:
    return bundles.look([zipfile.ZipInfo(name) for name in names])


@pytest.mark.parametrize("case", TAKEN)
def test_most_files_decide_and_the_rest_is_left_out(case: str):
    names, kind, entries, left = TAKEN[case]
    found = look(names)
    assert (found.kind, [entry.filename for entry in found.entries], len(found.left)) == (kind, entries, left)


def test_captions_lie_beside_what_they_caption():
    found = look(["a/1.png", "a/2.png", "a/metadata.csv", "a/other.csv", "captions.jsonl"])
    assert [entry.filename for entry in found.captions] == ["a/metadata.csv", "captions.jsonl"]
    assert found.left == ["a/other.csv"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.csv", "b.csv"], "«a.csv», «b.csv»"),
        (["a.bin", "b.bin", "c.bin"], "holds 3 files"),
        (["a.tiff", "b.heic"], "Pictures come as PNG, JPEG"),
        (["a.mp3", "b.flac"], "Sounds come as WAV"),
        ([".git/config", "__MACOSX/a"], "hidden files alone"),
    ],
)
def test_what_becomes_no_rows_is_refused_with_what_to_do(names: list[str], said: str):
    with pytest.raises(Refused, match=said):
        look(names)
