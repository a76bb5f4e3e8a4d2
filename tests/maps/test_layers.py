"""Several layers in one forward pass; what the methods that use more than the target layer owe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.maps.networks import batch, make
from tests.maps.twins import enlarged, full_gradient, parts
from tests.maps.twins import layercam as one_layer
from wsod.errors import ConfigError, ModelError
from wsod.maps import METHODS, Tape, attention_maps
from wsod.models import build_classifier

CASES = torch.tensor([[0, 1], [1, 2], [0, 3]])


def at(kind: str, layer: str):
    return make(kind, target_layer=layer)


@pytest.mark.parametrize(("kind", "layers"), [("relu", ("relus.0", "relus.2")), ("deep", ("last", "body.0"))])
def test_features_and_gradients_at_several_layers(kind, layers):
    images, forwards = batch(2), []
    classifier = make(kind)
    classifier.network.register_forward_hook(lambda *io: forwards.append(1))
    tape = Tape(classifier, images, layers=layers)
    for layer, gradient in zip(layers, tape.gradients(CASES, layers), strict=True):
        for (row, label), g, a in zip(
            CASES.tolist(), gradient, tape.select(CASES, tape.features_at(layer)), strict=True
        ):
            features, expected, _ = parts(at(kind, layer), images[row], label)
            np.testing.assert_allclose(a.detach().numpy(), features, rtol=1e-10, atol=1e-13)
            np.testing.assert_allclose(g.numpy(), expected, rtol=1e-10, atol=1e-13)
    assert len(forwards) == 1


def test_layercam_fused_over_layers():
    classifier, images = make("relu"), batch(2)
    forwards = []
    classifier.network.register_forward_hook(lambda *io: forwards.append(1))
    fused = "layercam:layers=relus.0+relus.1"
    found = attention_maps(classifier, images, [[1, 3], [2]], ["gradcam", fused, "layercam"]).maps
    assert len(forwards) == 1
    for values, (row, label) in zip(found[fused], ((0, 1), (0, 3), (1, 2)), strict=True):
        scaled = []
        for layer in ("relus.0", "relus.1"):
            one = one_layer(at("relu", layer), images[row], label)
            scaled.append(enlarged(np.tanh(2 * one / one.max()) if one.max() else one, (8, 8)))
        np.testing.assert_allclose(values.numpy(), np.maximum(*scaled), rtol=1e-9, atol=1e-12)


def test_layers_of_different_size_meet_at_the_finest():
    classifier = build_classifier("smallnet", ["a", "b"], size=48).eval()
    images = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    found = attention_maps(classifier, images, [0], ["layercam:layers=blocks.0+blocks.-1"]).maps
    assert [tuple(maps.shape) for maps in found.values()] == [(1, 12, 12)]


def test_wrong_layers_and_options():
    with pytest.raises(ConfigError, match="layers="):
        METHODS["layercam"](Tape(make("relu"), batch(1)), CASES[:1], layers=["relus.0"])
    with pytest.raises(ModelError, match="Did you mean 'relus'"):
        attention_maps(make("relu"), batch(1), [0], ["layercam:layers=reluss"])
    with pytest.raises(ConfigError, match="Did you mean 'gamma'"):
        METHODS["layercam:gama=1"]
    with pytest.raises(ConfigError, match="an option of the method"):
        METHODS["layercam:create_graph=true"]


def test_options_in_the_name():
    classifier, images = make("relu"), batch(1)
    found = attention_maps(classifier, images, [2], ["gradcam", "gradcam:relu=false"]).maps
    assert (found["gradcam:relu=false"] < 0).any()
    assert torch.equal(found["gradcam:relu=false"].relu(), found["gradcam"])


@pytest.mark.parametrize("references", [1, 2, 9])
def test_finercam_takes_the_nearest_classes(references):
    classifier, images = make("deep"), batch(3)
    tape = Tape(classifier, images)
    cases = torch.tensor([[0, 1], [1, 2], [0, 3], [0, 1]])
    found = METHODS["finercam"](tape, cases, relu=False, references=references, gamma=0.9)
    for values, (row, label) in zip(found, cases.tolist(), strict=True):
        logits = tape.logits[row].tolist()
        near = sorted((abs(logits[k] - logits[label]), k) for k in range(4) if k != label)[:references]
        a, g, _ = parts(classifier, images[row], label)
        for _, k in near:
            g = g - 0.9 / len(near) * parts(classifier, images[row], k)[1]
        expected = (g.mean((1, 2))[:, None, None] * a).sum(0)
        np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_shapleycam_of_a_linear_head_and_logit_is_gradcam():
    tape = Tape(make("relu"), batch(2))
    found = METHODS["shapleycam"](tape, CASES, score="logit")
    torch.testing.assert_close(found, METHODS["gradcam"](tape, CASES))
    assert not torch.allclose(METHODS["shapleycam"](tape, CASES), found)
    with pytest.raises(ConfigError, match="score"):
        METHODS["shapleycam"](tape, CASES, score="loss")


def test_shapleycam_of_independent_labels():
    classifier, images = make("relu"), batch(1)
    classifier.task = "multilabel"
    tape = Tape(classifier, images)
    maps = METHODS["shapleycam"](tape, torch.tensor([[0, 1]]), relu=False)
    # s + log σ(s) of a linear head: first derivative (2 - p)·W/n, second -p(1 - p)·W·Wᵀ/n²
    a, weight = tape.features[0].detach(), classifier.network.fc.weight[1].detach()
    cells = a[0].numel()
    p = tape.logits[0, 1].detach().sigmoid()
    product = -p * (1 - p) * weight / cells * (weight[:, None, None] * a).sum() / cells
    expected = (((2 - p) * weight / cells - product / 2)[:, None, None] * a).sum(0)
    torch.testing.assert_close(maps[0].detach(), expected)


@pytest.mark.parametrize("kind", ["relu", "deep"])
def test_the_full_gradient_is_complete(kind):
    """Input's part, biases' parts and the linear layers' biases sum to the score."""
    classifier, images = make(kind), batch(2)
    tape = Tape(classifier, images, needs=METHODS["fullgrad"].needs)
    image, biases = tape.bias_gradients(CASES)
    for index, (row, label) in enumerate(CASES.tolist()):
        _, _, linear = full_gradient(classifier, images[row], label)
        total = (images[row] * image[index]).sum().detach() + linear
        for bias, gradient in biases:
            total = total + (bias.detach()[:, None, None] * gradient[index]).sum()
        assert float(total) == pytest.approx(tape.logits[row, label].item(), rel=1e-9)


def test_fullgrad_scaled_by_layer():
    classifier, images = make("deep"), batch(1)
    found = attention_maps(classifier, images, [1], ["fullgrad:rescale=layer"]).maps["fullgrad:rescale=layer"]
    own, terms, _ = full_gradient(classifier, images[0], 1)
    expected = np.zeros((16, 16))
    for term in [own, *terms]:
        term = np.abs(term)
        expected += enlarged(((term - term.min()) / (term.max() - term.min())).sum(0), (16, 16))
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-9)
    with pytest.raises(ConfigError, match="rescale"):
        attention_maps(classifier, images, [1], ["fullgrad:rescale=image"])
