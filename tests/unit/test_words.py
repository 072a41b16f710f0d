"""How values read on a page."""

from datetime import UTC, datetime, timedelta

import pytest

from web import words

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "said"),
    [(2.184, "2.18"), (0.9137, "0.914"), (30.26, "30.3"), (0, "0.000"), (123.4, "123"), (0.0312, "0.0312"),
     (2e-5, "2e-5"), (1_500_000.0, "1.5e6"), (None, "–"), (float("nan"), "nan"), (-3.14159, "-3.14")],
)  # fmt: skip
def test_a_score_has_three_significant_digits(value, said):
    assert words.figure(value) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(4, "4 s"), (724, "12 m 04 s"), (12_000, "3 h 20 m"), (187_200, "2 d 4 h"), (None, "–")],
)
def test_a_duration_has_two_units(seconds, said):
    assert words.span(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0 bytes"), (999, "999 bytes"), (4_100_000, "4.1 MB"), (269_000_000, "269 MB")]
)
def test_bytes_have_a_unit(value, said):
    assert words.size(value) == said


@pytest.mark.parametrize(
    ("away", "said"), [(3, "just now"), (240, "4 m ago"), (-10_800, "in 3 h"), (40 * 86_400, "14 Oct 2026")]
)
def test_a_moment_is_told_from_now(away, said):
    assert words.ago(NOON - timedelta(seconds=away), NOON) == said


def test_a_loss_moves_in_per_cent_and_a_share_by_itself():
    assert words.change(3.41, 2.18) == "−36 %"
    assert words.change(0.12, 0.91, "higher") == "+0.79"
    assert words.change(None, 1) == ""


def test_only_the_servable_part_is_listed():
    manifest = [
        {"name": "servable/config.json", "bytes": 1},
        {"name": "state/optimizer.safetensors", "bytes": 2},
    ]
    assert words.servable(manifest) == [{"name": "config.json", "bytes": 1}]
