"""Excitation backprop: probabilities that sum to one, against walks written out layer by layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.maps.networks import batch, make
from tests.maps.test_torchvision import make as torchvision
from tests.maps.twins_excitation import contrast, residual_walk, walk
from wsod.errors import ConfigError, ModelError
from wsod.maps import METHODS, Tape, attention_maps
from wsod.models import Classifier

CASES = torch.tensor([[0, 1], [1, 2]])
PROBABILITY = {"probability"}

LAYERS = [
    ("resnet18", "layer1", 64),
    ("resnet18", "layer3", 64),
    ("squeezenet1_1", "features.5", 64),
    pytest.param("vgg11", "features.10", 32, marks=pytest.mark.slow),
    pytest.param("vgg11_bn", "features.3", 32, marks=pytest.mark.slow),
    pytest.param("densenet121", "features.denseblock3", 64, marks=pytest.mark.slow),
    pytest.param("googlenet", "inception4c", 64, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "layer", "size"), LAYERS)
def test_a_map_is_a_distribution(name, layer, size):
    classifier, images = torchvision(name, layer, size)
    tape = Tape(classifier, images, needs=PROBABILITY)
    assert torch.equal(tape.logits, classifier(images))
    maps = METHODS["excitationbackprop"](tape, CASES)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2, dtype=maps.dtype), rtol=1e-10, atol=0)
    assert maps.min() >= 0
    signed = METHODS["contrastiveexcitationbackprop"](tape, CASES, relu=False)
    torch.testing.assert_close(signed.sum((1, 2)), torch.zeros(2, dtype=maps.dtype), rtol=0, atol=1e-10)
    kept = METHODS["contrastiveexcitationbackprop"](tape, CASES)
    assert torch.equal(kept, signed.relu())
    assert kept.amax((1, 2)).gt(0).all()


def test_what_only_a_bias_excites_ends_the_walk():
    classifier, images = torchvision("mobilenet_v2", "features.10", 64)
    tape = Tape(classifier, images, needs=PROBABILITY)
    total = METHODS["excitationbackprop"](tape, CASES).sum((1, 2))
    assert (total < 1).all()
    assert (total > 0.3).all()


@pytest.mark.parametrize("layer", ["relus.0", "relus.1", "relus.2"])
def test_chain_by_hand(layer):
    classifier, images = make("relu", target_layer=layer), batch(2)
    tape = Tape(classifier, images, needs=PROBABILITY)
    for name, twin in (("excitationbackprop", walk), ("contrastiveexcitationbackprop", contrast)):
        found = METHODS[name](tape, CASES)
        for (row, label), values in zip(CASES.tolist(), found, strict=True):
            expected = twin(classifier, images[row], label)
            np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("contrastive", [False, True])
def test_sums_norms_concatenations_and_poolings_by_hand(contrastive):
    classifier, images = make("residual", target_layer="stem"), batch(2)
    tape = Tape(classifier, images, needs=PROBABILITY)
    found = METHODS["excitationbackprop"](tape, CASES, contrastive=contrastive, relu=False)
    for (row, label), values in zip(CASES.tolist(), found, strict=True):
        expected = residual_walk(classifier, images[row], label, contrastive)
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-11, atol=1e-15)


def test_down_to_any_layer_without_a_graph_below_it():
    tape = Tape(make("relu", target_layer="relus.1"), batch(2), needs=PROBABILITY)
    assert tape._leaf.is_leaf
    with pytest.raises(ConfigError, match="input_gradient"):
        tape.input_gradient(CASES)
    with pytest.raises(ConfigError, match="probability"):
        METHODS["excitationbackprop"](Tape(make("relu"), batch(2)), CASES)


def test_a_class_that_nothing_excites_has_an_empty_map():
    classifier = make("relu")
    with torch.no_grad():
        classifier.network.fc.weight[1] = -classifier.network.fc.weight[1].abs()
    maps = attention_maps(classifier, batch(1), [1], ["excitationbackprop"]).maps["excitationbackprop"]
    assert not maps.any()


def test_a_contrast_that_cancels_is_refused():
    classifier, images = torchvision("squeezenet1_1", None, 64)
    with pytest.raises(ModelError, match="earlier target layer"):
        attention_maps(classifier.float(), images.float(), [1, 2], ["contrastiveexcitationbackprop"])
    maps = attention_maps(classifier, images.float(), [1, 2], ["excitationbackprop"]).maps
    assert (maps["excitationbackprop"].sum((1, 2)) > 0.99).all()


def test_contrast_is_what_other_classes_do_not_share():
    """Two classes of equal weights have equal maps; opposite weights have contrasts of opposite sign."""
    classifier, images = make("relu"), batch(1)
    with torch.no_grad():
        classifier.network.fc.weight[1] = -classifier.network.fc.weight[0]
    tape = Tape(classifier, images, needs=PROBABILITY)
    cases = torch.tensor([[0, 0], [0, 1]])
    one, other = METHODS["contrastiveexcitationbackprop"](tape, cases, relu=False)
    torch.testing.assert_close(one, -other)
    assert one.abs().max() > 0


def test_several_classes_share_the_forward():
    classifier, calls = make("residual"), []
    classifier.network.register_forward_hook(lambda *io: calls.append(1))
    found = attention_maps(
        classifier, batch(2), [[0, 1], [2, 3]], ["excitationbackprop", "contrastiveexcitationbackprop"]
    )
    assert len(calls) == 1
    assert found.maps["excitationbackprop"].shape == (4, 8, 8)


def test_average_pooling_of_values_of_both_signs():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1, bias=False), nn.AvgPool2d(2)]
        network = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(245, 4)).double()
    classifier = Classifier(network, arch="x", classes="abcd", target_layer="1").eval()
    with torch.no_grad():
        assert (network[:3](batch(2)) < 0).any()
    maps = attention_maps(classifier, batch(2), [0, 1], ["excitationbackprop"]).maps["excitationbackprop"]
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2, dtype=maps.dtype))
