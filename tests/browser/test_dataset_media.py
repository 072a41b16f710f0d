"""A dataset of pictures or sounds in the browser: uploaded by hand, seen and heard on its page."""

import struct
from math import sin
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Visit
from tests.browser.test_looks import axe, too_wide
from tests.imports import picture, sound, zipped

pytestmark = pytest.mark.browser


def tone(hertz: float, seconds: float = 0.5, rate: int = 8000) -> bytes:
    frames = (int(9000 * sin(6.283 * hertz * n / rate)) for n in range(int(rate * seconds)))
    return sound(b"".join(struct.pack("<h", value) for value in frames), rate)


def test_pictures_of_an_uploaded_zip_are_seen_on_its_page(owner: Visit, tmp_path: Path):
    path = tmp_path / "flags.zip"
    path.write_bytes(
        zipped({f"{name}/{n}.png": picture(name, (40, 30)) for name in ("red", "green") for n in range(3)})
    )
    page = owner.go("/datasets")
    page.get_by_label("Drop a file here, or choose one").set_input_files(path)
    page.get_by_role("button", name="Upload").click()
    first = page.get_by_role("img", name="image of row 1: green")
    expect(first).to_be_visible(timeout=60_000)
    expect(first).to_have_js_property("naturalWidth", 40)
    expect(page.get_by_role("region", name="Table of the first rows").get_by_role("img")).to_have_count(6)
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 860})
        assert too_wide(page) == []
    assert axe(page) == []


def test_sounds_of_an_uploaded_zip_are_heard_on_its_page(owner: Visit, tmp_path: Path):
    path = tmp_path / "tones.zip"
    path.write_bytes(
        zipped({"high/1.wav": tone(880), "low/1.wav": tone(220, 12), "captions.csv": "file,caption\nhigh/1.wav,a beep\nlow/1.wav,a hum\n"})
    )  # fmt: skip
    page = owner.go("/datasets")
    page.get_by_label("Drop a file here, or choose one").set_input_files(path)
    page.get_by_role("button", name="Upload").click()
    heard = page.get_by_label("audio of row 2: a hum")
    expect(heard).to_be_visible(timeout=60_000)
    assert heard.evaluate("sound => new Promise(done => { sound.onloadedmetadata = () => done(sound.duration); sound.load() })") == 10  # fmt: skip
    expect(page.get_by_text("12.0 s, 8,000 Hz")).to_be_visible()
    assert axe(page) == []
