"""The README.md that travels with every checkpoint: what it is, how well it does, how to load it."""

import json
from typing import Any

LICENCES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "gpl-3.0", "other"}


def card(facts: dict[str, Any]) -> str:
    """Markdown with the front matter that model hubs read.

    `facts`: title, recipe, library, base_model, dataset, team, job, name, licence, step, epoch, adapter,
    stands_on (the checkpoint whose weights it was trained on), metrics {title: value}, spec {knob: value}, usage (Python). Missing ones are left out.
    """
    parts = [
        front_matter(facts),
        f"# {plain(facts.get('name') or facts.get('job') or 'Fine-tuned model')}",
        about(facts),
    ]
    if metrics := facts.get("metrics"):
        rows = "\n".join(
            f"| {title} | {value:.4g} |" for title, value in metrics.items() if value is not None
        )
        parts.append(f"## Held-out scores\n\n| metric | value |\n|---|--:|\n{rows}")
    if usage := facts.get("usage"):
        parts.append(f"## Use\n\n{standing(facts)}```python\n{usage.strip()}\n```")
    if spec := facts.get("spec"):
        rows = "\n".join(f"| {name} | {plain(json.dumps(value))} |" for name, value in spec.items())
        parts.append(f"## Training\n\n| knob | value |\n|---|---|\n{rows}")
    return "\n\n".join(parts) + "\n"


def front_matter(facts: dict[str, Any]) -> str:
    """YAML between dashes; every value is a JSON string, which YAML reads as it stands."""
    licence = str(facts.get("licence") or "").lower()
    lines = {
        "library_name": "peft" if facts.get("adapter") else facts.get("library", "transformers"),
        "base_model": facts.get("base_model"),
        "license": licence if licence in LICENCES else "other",
        "pipeline_tag": facts.get("task"),
    }
    body = "\n".join(f"{name}: {json.dumps(value)}" for name, value in lines.items() if value)
    return f"---\n{body}\ntags:\n- burnish\n- {facts.get('recipe', 'fine-tuned')}\n---"


def about(facts: dict[str, Any]) -> str:
    """A sentence on the method and a list of where it comes from."""
    what = "LoRA adapter" if facts.get("adapter") else "full model"
    title = facts.get("title") or facts.get("recipe")
    lines = [
        f"A {what} trained by {title} to step {facts.get('step', 0)} (epoch {facts.get('epoch', 0):.2f}).",
        "",
    ]
    for label, name in [
        ("Base model", "base_model"),
        ("Trained on", "stands_on"),
        ("Dataset", "dataset"),
        ("Team", "team"),
        ("Job", "job"),
    ]:
        if facts.get(name):
            lines.append(f"- {label}: {plain(facts[name])}")
    return "\n".join(lines)


def standing(facts: dict[str, Any]) -> str:
    """What to download beside an adapter."""
    if not facts.get("adapter"):
        return ""
    if facts.get("stands_on"):
        weights = f"the weights of {plain(facts['stands_on'])}: download that checkpoint too"
    else:
        weights = f"its base model {plain(facts.get('base_model') or '')}".rstrip() + ", whose folder goes in"
    return (
        f"The adapter stands on {weights}. The download «merged» holds both in one and needs no `base`.\n\n"
    )


def plain(value: Any) -> str:
    """Text of a user inside Markdown: one line, no markup."""
    kept = " ".join(str(value).split())
    return "".join("\\" + char if char in "\\`*_[]<>|#" else char for char in kept)
