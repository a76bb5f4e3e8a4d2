from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atcon.metrics import average_precision, classification_scores, macro_f1


def naive_ap(scores, positive):
    """Precision and recall at every threshold, one at a time."""
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [p for s, p in zip(scores, positive, strict=True) if s >= threshold]
        recall = sum(taken) / sum(positive)
        area += (recall - before) * sum(taken) / len(taken)
        before = recall
    return area


def naive_f1(predicted, positive):
    total = 0.0
    for k in range(predicted.shape[1]):
        pairs = list(zip(predicted[:, k], positive[:, k], strict=True))
        tp = sum(p and t for p, t in pairs)
        fp = sum(p and not t for p, t in pairs)
        fn = sum(t and not p for p, t in pairs)
        total += 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0
    return total / predicted.shape[1]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=20))
def test_average_precision_equals_its_naive_twin(pairs):
    scores = np.array([float(s) for s, _ in pairs])
    positive = np.array([p for _, p in pairs])
    if positive.any():
        twin = naive_ap(scores.tolist(), positive.tolist())
        assert average_precision(scores, positive) == pytest.approx(twin)
    else:
        assert np.isnan(average_precision(scores, positive))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 4))
def test_macro_f1_equals_its_naive_twin(seed, n, classes):
    random = np.random.default_rng(seed)
    predicted, positive = random.random((2, n, classes)) < 0.4
    assert macro_f1(predicted, positive) == pytest.approx(naive_f1(predicted, positive))


def test_two_models_get_two_f1_values():
    # the F1 of the public code did not depend on the model
    random = np.random.default_rng(0)
    targets = (random.random((50, 4)) < 0.3).astype(np.float32)
    good, bad = targets - 0.5, random.normal(size=(50, 4))
    assert classification_scores(good, targets) == {"mAP": 1.0, "macro_f1": 1.0}
    assert classification_scores(bad, targets)["macro_f1"] < 0.7


def test_ranking_does_not_care_for_the_sigmoid():
    random = np.random.default_rng(1)
    logits = random.normal(size=(40, 3))
    targets = (random.random((40, 3)) < 0.3).astype(np.float32)
    squashed = 1 / (1 + np.exp(-logits))
    for k in range(3):
        plain = average_precision(logits[:, k], targets[:, k] > 0)
        assert average_precision(squashed[:, k], targets[:, k] > 0) == pytest.approx(plain)


def test_a_class_without_positives_is_left_out_of_the_mean():
    targets = np.array([[1, 0], [0, 0]], np.float32)
    assert classification_scores(np.array([[1.0, 3.0], [0.0, -1.0]]), targets)["mAP"] == 1.0


def test_single_label_scores():
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    scores = classification_scores(logits, np.array([0, 2, 1, 0]))
    assert scores["top1"] == 0.75
    assert scores["macro_f1"] == pytest.approx((1.0 + 0.0 + 2 / 3) / 3)
