"""How well a classifier does: precision, recall and F1 per class and their means, confusion matrix.

The numbers are those of scikit-learn (a test compares them), without its second of import time.
"""

from typing import Any


def single_label(truth: Any, predicted: Any, labels: list[str]) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics and detail where each row has one label; both arrays hold class numbers, [rows].

    The macro means are over the classes that occur in the truth or the predictions.
    """
    import numpy as np

    count = len(labels)
    matrix = np.zeros((count, count), dtype=int)
    np.add.at(matrix, (truth, predicted), 1)
    hits = matrix.diagonal()
    false_alarms, misses = matrix.sum(0) - hits, matrix.sum(1) - hits
    metrics, per_class = means(hits, false_alarms, misses, labels, hits + false_alarms + misses > 0)
    metrics["accuracy"] = float(hits.sum() / max(len(truth), 1))
    return metrics, {"per_class": per_class, "confusion": {"labels": labels, "matrix": matrix.tolist()}}


def multi_label(truth: Any, predicted: Any, labels: list[str]) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics and detail where each row has any number of labels; both are 0/1, [rows, labels].

    The macro means are over all labels; accuracy is the share of rows with every label right.
    """
    truth, predicted = truth.astype(bool), predicted.astype(bool)
    hits = (truth & predicted).sum(0)
    false_alarms, misses = (~truth & predicted).sum(0), (truth & ~predicted).sum(0)
    metrics, per_class = means(hits, false_alarms, misses, labels, [True] * len(labels))
    metrics["accuracy"] = float((truth == predicted).all(1).mean()) if len(truth) else 0.0
    return metrics, {"per_class": per_class}


def means(
    hits: Any, false_alarms: Any, misses: Any, labels: list[str], counted: Any
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Precision, recall and F1 as means over the `counted` classes, and each class's own.

    A share of nothing counts as 0.
    """
    precision = share(hits, hits + false_alarms)
    recall = share(hits, hits + misses)
    f1 = share(2 * hits, 2 * hits + false_alarms + misses)
    per_class = [
        {
            "label": label,
            "precision": float(precision[n]),
            "recall": float(recall[n]),
            "f1": float(f1[n]),
            "support": int(hits[n] + misses[n]),
        }
        for n, label in enumerate(labels)
    ]
    macro = {"precision": precision, "recall": recall, "f1": f1}
    return {name: float(value[counted].mean()) for name, value in macro.items()}, per_class


def share(part: Any, whole: Any) -> Any:
    """part / whole, 0 where the whole is 0."""
    import numpy as np

    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)
