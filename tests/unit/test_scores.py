"""Classification metrics are scikit-learn's numbers."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from shared.learning.scores import multi_label, single_label

LABELS = ["a", "b", "c", "never"]


@pytest.mark.parametrize("seed", range(5))
def test_one_label_a_row_is_scored_as_by_scikit_learn(seed: int):
    dice = np.random.default_rng(seed)
    truth, guess = dice.integers(0, 3, 40), dice.integers(0, 3, 40)
    metrics, detail = single_label(truth, guess, LABELS)
    expected = precision_recall_fscore_support(truth, guess, average="macro", zero_division=0)
    assert [metrics[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected[:3])
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert detail["confusion"]["matrix"] == confusion_matrix(truth, guess, labels=range(4)).tolist()
    each = precision_recall_fscore_support(truth, guess, labels=range(4), zero_division=0)
    for number, name in enumerate(("precision", "recall", "f1", "support")):
        assert [row[name] for row in detail["per_class"]] == pytest.approx(each[number])


@pytest.mark.parametrize("seed", range(5))
def test_many_labels_a_row_are_scored_as_by_scikit_learn(seed: int):
    dice = np.random.default_rng(seed)
    truth, guess = dice.integers(0, 2, (30, 4)), dice.integers(0, 2, (30, 4))
    truth[:, 3] = guess[:, 3] = 0
    metrics, detail = multi_label(truth, guess, LABELS)
    expected = precision_recall_fscore_support(truth, guess, average="macro", zero_division=0)
    assert [metrics[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected[:3])
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert [row["label"] for row in detail["per_class"]] == LABELS
