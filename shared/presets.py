"""Architecture presets: what a model from scratch is made of. `scratch/<architecture>-<size>` names one.

Without torch: the web lists them, recipes build from them.
"""

from __future__ import annotations

from typing import Any

PREFIX = "scratch/"
SIZES = ("tiny", "mini", "small")

# architecture: (title, the head it offers, longest input in tokens, {size: what the recipe builds from})
ARCHITECTURES: dict[str, tuple[str, str, int, dict[str, dict[str, int]]]] = {
    "gpt": (
        "GPT",
        "causal_lm",
        1024,
        {
            "tiny": {"width": 128, "layers": 4, "heads": 4},
            "mini": {"width": 256, "layers": 6, "heads": 8},
            "small": {"width": 512, "layers": 8, "heads": 8},
        },
    ),
    "llama": (
        "Llama",
        "causal_lm",
        1024,
        {
            "tiny": {"width": 128, "layers": 4, "heads": 4},
            "mini": {"width": 256, "layers": 6, "heads": 8},
            "small": {"width": 512, "layers": 8, "heads": 8},
        },
    ),
    "lstm": (
        "LSTM",
        "causal_lm",
        1024,
        {
            "tiny": {"width": 192, "layers": 1},
            "mini": {"width": 384, "layers": 2},
            "small": {"width": 768, "layers": 2},
        },
    ),
    "bert": (
        "BERT",
        "encoder",
        512,
        {
            "tiny": {"width": 128, "layers": 4, "heads": 4},
            "mini": {"width": 256, "layers": 6, "heads": 8},
            "small": {"width": 512, "layers": 8, "heads": 8},
        },
    ),
    "t5": (
        "T5",
        "seq2seq",
        512,
        {
            "tiny": {"width": 64, "layers": 2, "heads": 4},
            "mini": {"width": 128, "layers": 3, "heads": 4},
            "small": {"width": 256, "layers": 6, "heads": 8},
        },
    ),
    "dit": (
        "Diffusion transformer",
        "diffusion",
        0,
        {
            "tiny": {"width": 96, "layers": 4, "heads": 4},
            "mini": {"width": 192, "layers": 8, "heads": 6},
            "small": {"width": 384, "layers": 12, "heads": 6},
        },
    ),
}


def every() -> list[dict[str, Any]]:
    """Every preset: {id, title, facts}; `facts` as a base model's, and `preset` beside them."""
    return [
        {
            "id": f"{PREFIX}{architecture}-{size}",
            "title": f"{title}, {size}, from scratch",
            "facts": {
                "architecture": architecture,
                "heads": [head],
                "chat": False,
                "max_length": longest or None,
                "preset": {"architecture": architecture, "size": size, **sizes[size]},
            },
        }
        for architecture, (title, head, longest, sizes) in ARCHITECTURES.items()
        for size in SIZES
    ]


def preset(name: str) -> dict[str, Any]:
    """The preset of that id: {architecture, size, width, layers, heads}. {} for any other name."""
    return next((one["facts"]["preset"] for one in every() if one["id"] == name), {})
