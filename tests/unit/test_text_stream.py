"""A text file as Arrow columns: the same lines as one by one, however it is cut into pieces."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import formats
from shared.formats import BOM, LINE, BadRow
from worker.engine import text_stream


def streamed(data: bytes) -> list[tuple[int, str]]:
    return [
        pair
        for numbers, texts in text_stream.columns(io.BytesIO(data))
        for pair in zip(numbers.to_pylist(), texts.to_pylist(), strict=True)
    ]


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("ab\n\r\u2028\x85é漢\0"), max_size=60), piece=st.integers(1, 30))
def test_lines_come_as_one_by_one(text: str, piece: int):
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_stream, "PIECE", piece)
        assert streamed(data) == list(formats.lines(io.BytesIO(data)))
        assert streamed(BOM + data) == list(formats.lines(io.BytesIO(BOM + data)))


@pytest.mark.parametrize(
    "data",
    [
        b"good\nb\xe4d\n",
        b"x" * (LINE + 1),
        b"a\n" + b"x" * (LINE + 2) + b"\nb\n",
        b"a\n" + b"x" * (3 * LINE) + b"\n",
        b"a\nb\nc\xff",
    ],
)
def test_what_is_wrong_is_told_as_one_by_one(data: bytes):
    said = []
    for read in (lambda: streamed(data), lambda: list(formats.lines(io.BytesIO(data)))):
        with pytest.raises(BadRow) as wrong:
            read()
        said.append((wrong.value.row, wrong.value.message))
    assert said[0] == said[1]


@pytest.mark.parametrize("data", [b"x" * LINE, b"x" * LINE + b"\n", b"x" * LINE + b"\r\nb"])
def test_the_longest_line_is_read(data: bytes):
    assert streamed(data) == list(formats.lines(io.BytesIO(data)))
