"""Python for the card of a checkpoint: how its user opens it. An adapter stands on weights that its folder lacks."""

from __future__ import annotations

from shared.recipe import Learner

FOLDER = 'folder = "path/to/this/folder"\n'


def opened(learner: Learner, kind: str, also: str = "") -> str:
    """Python that leaves `tokenizer` and `model`, opened by the class `kind` of transformers; `also` is imported
    from there too. A classifier's adapter finds the names of its labels beside it.
    """
    names = ", ".join([kind, "AutoTokenizer", *([also] if also else [])])
    tokenizer = "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
    if not is_adapter(learner):
        return (
            f"from transformers import {names}\n\n{FOLDER}{tokenizer}model = {kind}.from_pretrained(folder)\n"
        )
    classifies = "labels" in learner.facts
    labels = (
        'with open(f"{folder}/burnish.json", encoding="utf-8") as file:\n'
        '    labels = json.load(file)["labels"]\n'
    )
    more = ", num_labels=len(labels), id2label=dict(enumerate(labels))"
    return (
        ("import json\n\n" if classifies else "")
        + f"from peft import PeftModel\nfrom transformers import {names}\n\n{FOLDER}"
        + 'base = "path/to/the/base/model"\n'
        + tokenizer
        + (labels if classifies else "")
        + f"model = {kind}.from_pretrained(base{more if classifies else ''})\n"
        + "model = PeftModel.from_pretrained(model, folder).merge_and_unload()\n"
    )


def pipeline(learner: Learner, name: str, task: str, kind: str, more: str = "") -> str:
    """Python that makes a pipeline of transformers; `more` are further arguments of it."""
    if not is_adapter(learner):
        return (
            f'from transformers import pipeline\n\n{name} = pipeline("{task}", "path/to/this/folder"{more})\n'
        )
    return (
        opened(learner, kind, "pipeline")
        + f'{name} = pipeline("{task}", model=model, tokenizer=tokenizer{more})\n'
    )


def is_adapter(learner: Learner) -> bool:
    """Whether what is saved of the model is an adapter alone."""
    from peft import PeftModel

    return isinstance(learner.model, PeftModel)
