"""Model cards."""

from shared.learning.card import card


def test_a_card_shows_no_markup_of_its_user():
    text = card({"name": "<script> | `x`", "recipe": "sft", "title": "Chat", "metrics": {"Loss": 1.5}})
    assert "<script>" not in text
    assert "| Loss | 1.5 |" in text
