"""Every method against its slow twin, in float64, on networks with different layouts and heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.maps.all_twins import TWINS, UNTWINNED
from tests.maps.networks import batch, make
from tests.maps.quick import quick
from tests.maps.twins_attention import ATTENTION_TWINS
from tests.maps.twins_graph import GRAPH_TWINS
from wsod.errors import ModelError
from wsod.maps import METHODS, Tape, attention_maps

# three images, different classes, several of one image, one class twice; scores of both signs among them
LABELS = [[2, 0, 3], [1], [0, 2]]

REFUSED = {
    "deep": {"cam"},
    "relu": set(),
    "nhwc": {"fullgrad", *GRAPH_TWINS},
    "tokens": {"cam", "fullgrad", "legrad", *GRAPH_TWINS},
    "vit": {"cam", "fullgrad", *GRAPH_TWINS},
}
for kind in ("deep", "relu", "nhwc"):
    REFUSED[kind] |= set(ATTENTION_TWINS)

# the twins of attention are written out for torchvision's transformer alone
PAIRS = [
    (kind, name)
    for kind in REFUSED
    for name in TWINS
    if not (kind == "tokens" and name in ("rollout", "gradientrollout", "transmm"))
]


def test_every_method_has_a_twin():
    assert set(TWINS) | UNTWINNED == {name for name, method in METHODS.items() if method.fit is None}


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_batch_equals_slow_twin(kind, name):
    classifier = make(kind)
    images = batch(3, (16, 24) if kind == "nhwc" else (16, 16))
    if name in REFUSED[kind]:
        with pytest.raises(ModelError, match=r"Use (grad|transmm)"):
            attention_maps(classifier, images, LABELS, [quick(name)])
        return
    found = attention_maps(classifier, images, LABELS, [quick(name)])
    assert found.cases.tolist() == [[0, 2], [0, 0], [0, 3], [1, 1], [2, 0], [2, 2]]
    for (row, label), values in zip(found.cases.tolist(), found.maps[quick(name)], strict=True):
        expected = TWINS[name](classifier, images[row], label)
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


def test_the_cases_hold_negative_scores_and_negative_maps():
    found = attention_maps(make("relu"), batch(), LABELS, ["cam"])
    scores = found.logits[found.cases[:, 0], found.cases[:, 1]]
    assert scores.min() < 0 < scores.max()
    assert (found.maps["cam"] < 0).any()


def test_a_map_of_negative_evidence_only_is_zero_after_relu_and_visible_without():
    classifier = make("relu")
    with torch.no_grad():
        classifier.network.fc.weight[1] = -classifier.network.fc.weight[1].abs()
    tape = Tape(classifier, batch(1))
    cases = torch.tensor([[0, 1]])
    assert (METHODS["gradcam"](tape, cases) == 0).all()
    assert METHODS["gradcam"](tape, cases, relu=False).max() <= 0
    assert METHODS["gradcam"](tape, cases, relu=False).min() < 0


def test_gradcam_is_cam_over_the_number_of_cells():
    # ReLU after the pooled layer would gate the gradient: the target is what is pooled
    classifier, images = make("relu"), batch()
    tape = Tape(classifier, images)
    cases = torch.tensor([[0, 0], [1, 1], [2, 3]])
    cells = tape.features.shape[2] * tape.features.shape[3]
    gradcam = METHODS["gradcam"](tape, cases, relu=False)
    torch.testing.assert_close(gradcam * cells, METHODS["cam"](tape, cases), rtol=0, atol=1e-12)
    # and the class activation map's mean is the logit without its bias
    logits = tape.logits[cases[:, 0], cases[:, 1]] - classifier.network.fc.bias[cases[:, 1]]
    torch.testing.assert_close(METHODS["cam"](tape, cases).mean((1, 2)), logits)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_gradcam_plus_plus_does_not_depend_on_the_scale_of_small_gradients(factor):
    classifier, images = make("relu"), batch(1)
    cases = torch.tensor([[0, 0]])

    def twin_at(scale: float) -> torch.Tensor:
        with torch.no_grad():
            classifier.network.fc.weight.mul_(scale)
        found = METHODS["gradcam++"](Tape(classifier, images), cases).detach()
        expected = TWINS["gradcam++"](classifier, images[0], 0)
        np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-9)
        return found / found.max()

    assert torch.isfinite(twin_at(factor)).all()


def test_integrated_gradients_are_complete():
    classifier, images = make("relu"), batch(2)
    tape = Tape(classifier, images, needs={"input_gradient"})
    cases = torch.tensor([[0, 1], [1, 2]])
    maps = METHODS["integratedgradients"](tape, cases, reduce="signed", steps=200)
    baseline = classifier(torch.zeros_like(images))
    gap = (tape.logits - baseline)[cases[:, 0], cases[:, 1]]
    torch.testing.assert_close(maps.sum((1, 2)), gap, rtol=0.01, atol=1e-3)


def test_ablation_closed_form_equals_replay():
    classifier, images = make("relu"), batch(2)
    cases = torch.tensor([[0, 1], [1, 2], [0, 3]])
    closed = METHODS["ablationcam"](Tape(classifier, images), cases)
    tape = Tape(classifier, images)
    tape._head = (tape.class_weights, "other")
    torch.testing.assert_close(METHODS["ablationcam"](tape, cases, chunk=3), closed)


def test_eigencam_as_written_is_the_power_iteration_and_nowhere_negative():
    """v ← XᵀX·v from the mean feature vector on, which is not negative, and neither is the map."""
    for seed in range(5):
        classifier, images = make("relu", seed=seed), batch(2, seed=seed)
        found = attention_maps(classifier, images, [0, 1], ["eigencam:centre=false"]).maps
        features = Tape(classifier, images).features.detach()
        for values, one in zip(found["eigencam:centre=false"], features, strict=True):
            cells = one.flatten(1).T
            v = cells.mean(0)
            for _ in range(2000):
                v = cells.T @ (cells @ v)
                v = v / v.norm()
            torch.testing.assert_close(values.flatten(), cells @ v, rtol=1e-8, atol=1e-10)
            assert values.min() >= -1e-12
        centred = attention_maps(classifier, images, [0, 1], ["eigencam"]).maps["eigencam"]
        torch.testing.assert_close(
            centred.sum((1, 2)), torch.zeros(2, dtype=centred.dtype), rtol=0, atol=1e-10
        )


def test_eigencam_from_either_gram_matrix():
    # 7 channels: 8×8 cells take the channel matrix, 2×2 cells the cell matrix
    for side in (16, 4):
        classifier, images = make("relu"), batch(2, (side, side))
        found = attention_maps(classifier, images, [0, 1], ["eigencam"]).maps["eigencam"]
        for row in range(2):
            expected = TWINS["eigencam"](classifier, images[row], 0)
            np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-8, atol=1e-10)
