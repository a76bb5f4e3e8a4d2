"""LRP beyond logits at the image: inner layers, other scores, z^B on its own, zennit's epsilon rule."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from tests.maps.networks import CLASSES, batch, make
from tests.maps.test_lrp import CASES, NAMES, NEEDS, pixels, without_biases
from tests.maps.test_torchvision import make as torchvision
from wsod.errors import ConfigError
from wsod.maps import METHODS, Tape
from wsod.maps.lrp import composite, relevance, relevances
from wsod.maps.rules import Box
from wsod.models import Classifier, Preprocess


@pytest.mark.parametrize("name", NAMES)
def test_inner_layers_share_the_backward_pass(name):
    """All but the share of the logit's bias arrives at the layer below; shapes are the layers' own."""
    classifier, images = make("residual"), pixels(batch(2))
    layers = ("stem", "norms.1", "hidden")
    tape = Tape(classifier, images, needs=NEEDS, layers=layers)
    rules = composite(tape, name, "zb", epsilon=0.0)
    found = relevances(tape, CASES, rules, layers)
    assert [tuple(values.shape[1:]) for values in found] == [(3, 16, 16), (4, 8, 8), (5, 8, 8), (6,)]
    torch.testing.assert_close(found[0], relevance(tape, CASES, rules))
    scores = tape.logits.detach()[CASES[:, 0], CASES[:, 1]]
    bias = classifier.network.fc.bias.detach()[CASES[:, 1]]
    torch.testing.assert_close(found[3].sum(1), scores - bias, rtol=1e-10, atol=0)
    assert all(values.abs().sum() > 0 for values in found)


def test_without_epsilon_a_layer_has_its_output_times_the_gradient():
    classifier, images = make("relu"), batch(2)
    tape = Tape(classifier, images, needs=NEEDS, layers=("first", "second"))
    found = relevances(tape, CASES, composite(tape, epsilon=0.0), ("first", "second"))
    for row, label in CASES.tolist():
        kept: list[Tensor] = []
        handles = [
            classifier.network.get_submodule(path).register_forward_hook(
                lambda m, i, o, kept=kept: kept.append(o)
            )
            for path in ("first", "second")
        ]
        gradients = torch.autograd.grad(classifier(images[row : row + 1])[0, label], kept)
        for handle in handles:
            handle.remove()
        place = CASES.tolist().index([row, label])
        for values, output, gradient in zip(found[1:], kept, gradients, strict=True):
            torch.testing.assert_close(values[place], (output * gradient)[0].detach())


def test_relevance_of_a_layer_is_conserved_to_the_image():
    classifier, images = torchvision("resnet18", None, 32)
    without_biases(classifier.network)
    tape = Tape(classifier, pixels(images), needs=NEEDS, layers=("layer1", "layer2", "layer3"))
    cases = torch.tensor([[0, 1], [1, 2]])
    scores = tape.logits.detach()[[0, 1], [1, 2]]
    found = relevances(tape, cases, composite(tape, epsilon=0.0), ("layer1", "layer2", "layer3"))
    for values in found:
        torch.testing.assert_close(values.sum((1, 2, 3)), scores, rtol=1e-9, atol=0)


def test_other_scores_than_logits():
    """LRP is linear in what it starts from."""
    classifier, images = make("residual"), pixels(batch(2))
    tape = Tape(classifier, images, needs=NEEDS)
    rules = composite(tape, first="zb")
    difference = tape.logits[:, :1] - 2 * tape.logits[:, 2:3]
    (found,) = relevances(tape, torch.tensor([[0, 0], [1, 0]]), rules, scores=difference)
    one = relevance(tape, torch.tensor([[0, 0], [1, 0]]), rules)
    two = relevance(tape, torch.tensor([[0, 2], [1, 2]]), rules)
    torch.testing.assert_close(found, one - 2 * two, rtol=1e-10, atol=1e-14)
    with pytest.raises(ConfigError, match="layers"):
        relevances(tape, CASES, rules, ("stem",))


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3, 2, 1), nn.Linear(6, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("raw", [True, False])
def test_box_rule_alone(raw):
    """Raw and normalised pixels: z >= 0, signs kept, as much relevance as arrives, zennit's numbers."""
    torch.manual_seed(0)
    preprocess = Preprocess(16, mean=(0.0,) * 3, std=(1.0,) * 3) if raw else Preprocess(16)
    network = OneLayer().double().eval()
    classifier = Classifier(network, arch="x", classes=CLASSES, target_layer="conv", preprocess=preprocess)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    mean, std = (
        torch.tensor(v, dtype=images.dtype)[:, None, None] for v in (preprocess.mean, preprocess.std)
    )
    images = (images - mean) / std
    tape = Tape(classifier, images, needs=NEEDS, layers=("conv",))
    cases = torch.tensor([[0, 1], [1, 2]])
    rules = composite(tape, first="zb", epsilon=1e-12)
    assert isinstance(rules.first, Box)
    assert rules.first.low == tuple(((0 - mean) / std).flatten().tolist())
    assert rules.first.high == tuple(((1 - mean) / std).flatten().tolist())
    with torch.no_grad():
        network.fc.weight.abs_()
    tape = Tape(classifier, images, needs=NEEDS, layers=("conv",))
    found, at_conv = relevances(tape, cases, rules, ("conv",))
    assert at_conv.min() >= 0
    assert found.min() >= 0
    torch.testing.assert_close(found.sum((1, 2, 3)), at_conv.sum((1, 2, 3)), rtol=1e-9, atol=0)
    (absorbed,) = relevances(tape, cases, composite(tape, first="zb", epsilon=1e-12, zb_bias="absorb"))
    assert (absorbed.sum((1, 2, 3)) < found.sum((1, 2, 3))).all()
    pytest.importorskip("zennit", reason="zennit is not installed")
    from zennit.attribution import Gradient
    from zennit.composites import NameMapComposite
    from zennit.rules import ZBox

    low, high = ((((b - mean) / std)[None]).expand_as(images) for b in (0.0, 1.0))
    peer = NameMapComposite([(["conv"], ZBox(low=low, high=high, stabilizer=1e-12))])
    # zennit's rule too takes relevance at the output, and gives relevance
    arriving = at_conv
    network = nn.Sequential(OrderedDict(conv=network.conv))
    with Gradient(network, peer) as attributor:
        _, expected = attributor(images, arriving)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("arch", "size", "epsilon", "tolerance"),
    [pytest.param("vgg11", 64, 1e-2, 1e-10, marks=pytest.mark.slow), ("resnet18", 32, 1e-12, 1e-6)],
)
def test_epsilon_in_function_form_equals_zennit(arch, size, epsilon, tolerance):
    pytest.importorskip("zennit", reason="zennit is not installed")
    from zennit import rules
    from zennit import torchvision as canonizers
    from zennit.attribution import Gradient
    from zennit.composites import MixedComposite, NameMapComposite, SpecialFirstLayerMapComposite
    from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

    classifier, images = torchvision(arch, None, size)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12  # zennit 0.5 keeps it after the merge
    tape = Tape(classifier, images, needs=NEEDS)
    found = relevance(tape, torch.tensor([[0, 1], [1, 2]]), composite(tape, epsilon=epsilon))
    last = [name for name, module in classifier.network.named_modules() if isinstance(module, nn.Linear)][-1]
    canonizer = canonizers.ResNetCanonizer if arch == "resnet18" else canonizers.VGGCanonizer
    layers = [
        (Activation, rules.Pass()),
        (Convolution, rules.Epsilon(epsilon)),
        (AvgPool, rules.Norm(stabilizer=1e-15)),
        (BatchNorm, rules.Pass()),
        (Linear, rules.Epsilon(epsilon)),
    ]
    if arch == "resnet18":
        from zennit.layer import Sum

        layers.insert(0, (Sum, rules.Norm(stabilizer=1e-15)))
    peer = MixedComposite(
        [
            NameMapComposite([([last], rules.Epsilon(1e-15))]),
            SpecialFirstLayerMapComposite(layers, [], canonizers=[canonizer()]),
        ]
    )
    scores = tape.logits.detach()
    seed = torch.zeros_like(scores)
    seed[[0, 1], [1, 2]] = scores[[0, 1], [1, 2]]
    with Gradient(classifier.network, peer) as attributor:
        _, expected = attributor(images, seed)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_absorbing_bias_is_an_option_of_the_method():
    classifier, images = make("relu"), pixels(batch(2))
    tape = Tape(classifier, images, needs=NEEDS)
    maps = [METHODS[f"lrp:first=zb,zb_bias={bias}"](tape, CASES) for bias in ("cancel", "absorb")]
    assert not torch.allclose(*maps)
    with pytest.raises(ConfigError, match="zb_bias"):
        METHODS["lrp"](tape, CASES, zb_bias="official")
