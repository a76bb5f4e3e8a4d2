"""Every map method against its slow twin on torchvision's ResNet, VGG, DenseNet, MobileNet, ViT and Swin."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.maps.all_twins import TWINS
from tests.maps.families import FAMILIES, build
from tests.maps.quick import quick
from tests.maps.twins_attention import ATTENTION_TWINS
from tests.maps.twins_graph import GRAPH_TWINS
from wsod.errors import ModelError
from wsod.maps import METHODS, attention_maps
from wsod.models import Classifier

NAMES = [name for name, method in METHODS.items() if method.fit is None]
# one case is enough where it takes many passes
MANY = {name for name in NAMES if METHODS[name].needs & {"forwards", "hessian"}}
AT_ANY_LAYER = [
    name for name in NAMES if METHODS[name].needs <= {"gradient", "probability"} and name != "attention"
]

TRANSFORMERS = {"attention", *ATTENTION_TWINS}
BACKWARD = {"fullgrad", *GRAPH_TWINS}
REFUSED = {
    "resnet": TRANSFORMERS,
    "bottleneck": TRANSFORMERS,
    "vgg": {"cam", *TRANSFORMERS},  # three fully connected layers
    "vgg_bn": {"cam", *TRANSFORMERS},
    "densenet": TRANSFORMERS,
    "mobilenet": TRANSFORMERS,
    "vit": {"cam", "attention", *BACKWARD},
    "swin": {*TRANSFORMERS, *BACKWARD},  # attention within windows
}

made = cache(build)


def compare(classifier: Classifier, images: Tensor, name: str) -> None:
    images, labels = (images[1:], [[2]]) if name in MANY else (images, [[1, 3], [0]])
    found = attention_maps(classifier, images, labels, [quick(name)])
    for (row, label), values in zip(found.cases.tolist(), found.maps[quick(name)], strict=True):
        expected = TWINS[name](classifier, images[row], label)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9, atol=1e-11 * scale + 1e-16)


def families() -> list:
    """All families; slow where they vary one that is there already."""
    varied = ("bottleneck", "vgg_bn")
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in varied)) for name in FAMILIES]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", families())
def test_batch_equals_slow_twin(family, name):
    classifier, images = made(family)
    if name in REFUSED[family]:
        with pytest.raises(ModelError, match="Use grad"):
            attention_maps(classifier, images, [[1, 3], [0]], [name])
        return
    compare(classifier, images, name)


@pytest.mark.parametrize("name", AT_ANY_LAYER)
@pytest.mark.parametrize("family", families())
def test_at_layers_on_the_way(family, name):
    for layer in FAMILIES[family].inner:
        if name not in REFUSED[family]:
            compare(*made(family, layer), name)


@pytest.mark.parametrize("name", ["ablationcam", "scorecam"])
def test_many_passes_from_a_layer_on_the_way(name):
    compare(*made("resnet", "layer3.0.conv2"), name)


def test_the_networks_hold_what_they_are_for():
    """Both ends of ReLU6, ReLUs that overwrite a target layer's output, scores of both signs."""
    classifier, images = made("mobilenet")
    inputs = []
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs_: inputs.append(inputs_[0].clone()))
        for module in classifier.modules()
        if isinstance(module, nn.ReLU6)
    ]
    classifier(images)
    for hook in hooks:
        hook.remove()
    assert min(x.min() for x in inputs) < 0
    assert max(x.max() for x in inputs) > 6
    classifier, images = made("vgg", "features.-3")
    after = int(classifier.target_layer.split(".")[1]) + 1
    assert isinstance(classifier.network.features[after], nn.ReLU)
    assert classifier.network.features[after].inplace
    with torch.no_grad():
        scores = torch.stack([classifier(images) for classifier, images in map(made, FAMILIES)])
    assert scores.min() < 0 < scores.max()


def test_excitation_does_not_depend_on_where_the_graph_begins():
    """A skip around the target layer, computed before it without a graph, takes its share all the same."""
    classifier, images = made("mobilenet", "features.3.conv.0")
    labels, names = [[1, 3], [0]], ["excitationbackprop", "contrastiveexcitationbackprop"]
    alone = attention_maps(classifier, images, labels, names).maps
    together = attention_maps(classifier, images, labels, [*names, "gradient"]).maps
    for name in names:
        torch.testing.assert_close(alone[name], together[name], rtol=1e-12, atol=0)
