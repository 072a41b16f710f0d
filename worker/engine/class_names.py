"""Labels that a Parquet file keeps as numbers, with their names beside: datasets of Hugging Face say them in the file's
metadata (`ClassLabel`).
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

KEY = b"huggingface"
MOST = 10_000  # names


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """{column of whole numbers: the names of its classes}; what is odd in the metadata does not count."""
    try:
        features = json.loads((schema.metadata or {}).get(KEY, b"{}"))["info"]["features"]
        known = {name: names_of(feature) for name, feature in features.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        field.name: known[field.name]
        for field in schema
        if pa.types.is_integer(field.type) and known.get(field.name)
    }


def names_of(feature: Any) -> list[str]:
    """The names that a feature tells, in the order of their numbers; none where it is no class label."""
    names = (
        feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    )
    fit = isinstance(names, list) and len(names) <= MOST and all(isinstance(one, str) for one in names)
    return names if fit else []


def named(batch: pa.RecordBatch, classes: dict[str, list[str]]) -> pa.RecordBatch:
    """The batch with names in place of numbers; a number without a name (as -1, «not labelled») becomes nothing."""
    for name, names in classes.items():
        place = batch.schema.get_field_index(name)
        numbers = batch.column(place).to_pylist()
        cells = [names[n] if n is not None and 0 <= n < len(names) else None for n in numbers]
        batch = batch.set_column(place, name, pa.array(cells, pa.string()))
    return batch
