"""Relevance propagation against explicit layers, zennit, conservation, and the gradient it contains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.maps.networks import CLASSES, RELU_STYLES, batch, make
from tests.maps.test_tape import same, state
from tests.maps.test_torchvision import make as torchvision
from tests.maps.twins_relevance import relu_net, residual_net
from wsod.errors import ConfigError, ModelError
from wsod.maps import METHODS, Tape, attention_maps
from wsod.maps.lrp import composite, relevance
from wsod.maps.relevance import RelevanceMode
from wsod.models import Classifier

NEEDS = {"input_gradient", "relevance"}
CASES = torch.tensor([[0, 2], [1, 1], [0, 0]])
NAMES = ["epsilon", "epsilon-plus", "gamma", "alpha-beta"]
FIRST = ["same", "flat", "zb"]
TWINS = {"relu": relu_net, "residual": residual_net}


def pixels(images: Tensor) -> Tensor:
    """The same images between black and white, as preprocessing normalises them."""
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((images.sigmoid() - mean) / std).to(images.dtype)


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", list(TWINS))
def test_equals_explicit_layers(kind, name, first):
    classifier, images = make(kind), pixels(batch(2))
    tape = Tape(classifier, images, needs=NEEDS)
    assert torch.equal(tape.logits, classifier(images))
    found = relevance(tape, CASES[:2], composite(tape, name, first))
    for (row, label), values in zip(CASES[:2].tolist(), found, strict=True):
        expected = TWINS[kind](classifier, images[row], label, name, first)
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())
        assert np.abs(expected).max() > 0


def test_the_residual_network_holds_what_it_is_for():
    classifier, images = make("residual"), pixels(batch(2))
    kept: dict[str, Tensor] = {}
    for name in ("norms.1", "norms.2"):
        module = classifier.network.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, name=name: kept.update({name: o.clone()}))
    classifier(images)
    assert (kept["norms.1"] > 6).any()
    assert (kept["norms.2"] < 0).any()


@pytest.mark.parametrize("epsilon", [0.0, 1e-2, 1e-1])
def test_epsilon_of_a_chain_is_the_layers_own(epsilon):
    from tests.maps.twins_relevance import Dense
    from tests.maps.twins_relevance import epsilon as rule

    classifier, images = make("relu"), batch(1)
    network, layers, x = classifier.network, [], images[0]
    for layer in (network.first, network.second, network.third):
        layers.append(Dense(layer, x))
        x = layers[-1].z.clamp(min=0)
    layers.append(Dense(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.fc), x))
    expected = np.zeros(len(CLASSES))
    expected[2] = layers[-1].z[2]
    for index, layer in reversed(list(enumerate(layers))):
        expected = layer.share(expected, rule(epsilon if index < 3 else 0.0))
    tape = Tape(classifier, images, needs=NEEDS)
    found = relevance(tape, CASES[:1], composite(tape, epsilon=epsilon))
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


CHAINS = [("resnet18", 32), ("squeezenet1_1", 64), ("mobilenet_v2", 32)]
LARGE = [pytest.param(name, 64, marks=pytest.mark.slow) for name in ("densenet121", "vgg11", "vgg16_bn")]


@pytest.mark.parametrize(("name", "size"), [CHAINS[0], CHAINS[1], *LARGE])
def test_without_epsilon_it_is_image_times_gradient(name, size):
    classifier, images = torchvision(name, None, size)
    tape = Tape(classifier, images, needs=NEEDS)
    assert torch.equal(tape.logits, classifier(images))
    cases = torch.tensor([[0, 1], [1, 2]])
    found = relevance(tape, cases, composite(tape, epsilon=0.0))
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier(x)[[0, 1], [1, 2]].sum(), x)
    assert torch.equal(found, images * gradient)
    assert torch.equal(tape.input_gradient(cases), gradient)


def without_biases(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.running_mean)
            nn.init.uniform_(module.weight, 0.5, 1.5)


@pytest.mark.parametrize(("name", "size"), [*CHAINS, *LARGE])
@pytest.mark.slow
def test_conserved_where_nothing_has_a_bias(name, size):
    classifier, images = torchvision(name, None, size)
    without_biases(classifier.network)
    tape = Tape(classifier, pixels(images), needs=NEEDS)
    labels = tape.logits.abs().argmax(1)  # a squeezenet's score can be zero
    cases = torch.stack([torch.arange(2), labels], 1)
    scores = tape.logits.detach()[cases[:, 0], cases[:, 1]]
    assert scores.abs().min() > 0
    for rule in NAMES:
        # an output (of a linear bottleneck) without positive or without negative contributions shares nothing
        if rule == "alpha-beta" or (rule == "epsilon-plus" and name == "mobilenet_v2"):
            continue
        for first in FIRST:
            sums = relevance(tape, cases, composite(tape, rule, first, epsilon=0.0)).sum((1, 2, 3))
            torch.testing.assert_close(sums, scores, rtol=1e-10, atol=0)
    absorbed = relevance(tape, cases, composite(tape, "epsilon", epsilon=1e-6)).sum((1, 2, 3)) / scores
    # of a MobileNetV2 whose activations shrink from layer to layer ε takes more
    assert (absorbed - 1).abs().max() < (0.1 if name == "mobilenet_v2" else 1e-4)


def test_what_biases_and_epsilon_absorb():
    """The larger ε, the less is left; with ε = 0 it is the biases that absorb."""
    classifier, images = make("relu"), batch(2)
    tape = Tape(classifier, images, needs=NEEDS)
    scores = tape.logits.detach()[CASES[:, 0], CASES[:, 1]]
    kept = {}
    for rule, options in (("epsilon-plus", {"epsilon": 0.0}), ("epsilon-plus", {"epsilon": 0.1})):
        sums = relevance(tape, CASES, composite(tape, rule, **options)).sum((1, 2, 3))
        kept[options["epsilon"]] = sums / scores
    assert torch.isfinite(kept[0.0]).all()
    assert (kept[0.1].abs() < kept[0.0].abs()).all()


def test_box_rule():
    classifier, images = make("relu"), pixels(batch(2))
    tape = Tape(classifier, images, needs=NEEDS)
    flat = relevance(tape, CASES, composite(tape, "epsilon-plus", "flat"))
    box = relevance(tape, CASES, composite(tape, "epsilon-plus", "zb", epsilon=1e-2))
    exact = relevance(tape, CASES, composite(tape, "epsilon-plus", "zb", epsilon=0.0))
    torch.testing.assert_close(box.sum((1, 2, 3)), flat.sum((1, 2, 3)), rtol=0.05, atol=0)
    assert not torch.allclose(box, exact)
    # z+ down to the first layer leaves relevance of the score's sign alone; the box rule keeps it
    with torch.no_grad():
        classifier.network.fc.weight.abs_()
        classifier.network.fc.bias.zero_()
    tape = Tape(classifier, images, needs=NEEDS)
    assert relevance(tape, CASES, composite(tape, "epsilon-plus", "zb")).min() >= 0
    assert relevance(tape, CASES, composite(tape, "epsilon-plus", "zb")).max() > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("style", RELU_STYLES)
def test_however_relu_is_spelt(style, name):
    images = batch(2)
    expected = Tape(make("relu"), images, needs=NEEDS)
    tape = Tape(make("relu", style=style, target_layer="third"), images, needs=NEEDS)
    found = relevance(tape, CASES, composite(tape, name))
    torch.testing.assert_close(
        found, relevance(expected, CASES, composite(expected, name)), rtol=1e-13, atol=0
    )


class Overwritten(nn.Module):
    """A convolution's output changed in place by something that is no ReLU."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.fc, self.inplace = nn.BatchNorm2d(4), nn.Linear(4, len(CLASSES)), inplace

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.one(x), 0.1, inplace=self.inplace)
        y = self.two(x)
        if self.inplace:
            y += x
        else:
            y = y + x
        return self.fc(F.relu(self.norm(y)).mean((2, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_overwritten_in_place(name):
    found = []
    for inplace in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Overwritten(inplace).double().eval()
            nn.init.normal_(network.norm.running_mean)
        classifier = Classifier(network, arch="x", classes=CLASSES, target_layer="two").eval()
        tape = Tape(classifier, batch(2), needs=NEEDS)
        found.append(relevance(tape, CASES, composite(tape, name)))
        maps = attention_maps(classifier, batch(2), [0, 1], ["excitationbackprop"]).maps
        found[-1] = (found[-1], maps["excitationbackprop"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", [*NAMES, "excitation"])
def test_hooks_that_hand_on_copies_change_nothing(name):
    """Capturing a convolution's output must not keep its batch norm, or its ReLU, from being recognised."""
    classifier, images, found = make("residual"), pixels(batch(2)), []
    needs = NEEDS | {"probability", "biases"}
    for options in ({"needs": NEEDS}, {"needs": needs, "layers": ("stem", "inner", "norms.0", "outer")}):
        if name == "excitation":
            classifier.target_layer = "stem"
            tape = Tape(classifier, images, **(options | {"needs": options["needs"] | {"probability"}}))
            found.append(METHODS["excitationbackprop"](tape, CASES))
        else:
            tape = Tape(classifier, images, **options)
            found.append(relevance(tape, CASES, composite(tape, name, "flat")))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-15)


def test_training_statistics_do_not_mix_images():
    classifier, images = make("residual"), batch(3)
    classifier.train()
    before = [b.clone() for b in classifier.buffers()]
    tape = Tape(classifier, images, needs=NEEDS, eval_mode=False)
    mode = tape.mode
    assert isinstance(mode, RelevanceMode)
    for name in NAMES:
        with mode.switch.set(composite(tape, name)):
            (found,) = torch.autograd.grad(tape.logits[1, 2], tape.images, retain_graph=True)
        assert not found[0].any()
        assert not found[2].any()
        assert found[1].any()
    (plain,) = torch.autograd.grad(tape.logits[1, 2], tape.images)
    assert plain[0].any()  # the gradient goes through the batch's mean and variance
    assert not all(torch.equal(a, b) for a, b in zip(before, classifier.buffers(), strict=True))


def test_one_pass_serves_all_rules_and_the_gradient():
    classifier, images = make("residual"), batch(2)
    names = [
        "gradient",
        "guidedbackprop",
        "gradcam",
        "excitationbackprop",
        "lrp",
        "lrp:rule=gamma,first=flat",
    ]
    calls = []
    classifier.network.register_forward_hook(lambda *io: calls.append(1))
    together = attention_maps(classifier, images, [[0, 1], [2]], names).maps
    assert len(calls) == 1
    for name in names:
        alone = attention_maps(classifier, images, [[0, 1], [2]], [name]).maps[name]
        torch.testing.assert_close(together[name], alone, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "first"), [("epsilon", "same"), ("epsilon", "zb"), *[(n, "flat") for n in NAMES]]
)
def test_derivative_of_relevance_by_finite_differences(name, first):
    classifier, images = make("residual", seed=3), pixels(batch(2))
    parameters = [p for p in classifier.parameters() if p.ndim > 1]
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def loss() -> Tensor:
        tape = Tape(classifier, images, needs=NEEDS, create_graph=True)
        found = relevance(tape, CASES, composite(tape, name, first), create_graph=True)
        return (found * torch.linspace(-1, 2, found[0].numel()).reshape(found[0].shape)).pow(2).sum() * 100

    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
    values = []
    for step in (1e-7, -1e-7):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(step * d)
        values.append(loss().detach())
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(step * d)
    torch.testing.assert_close((values[0] - values[1]) / 2e-7, slope.detach(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", ["lrp", "lrp:rule=epsilon-plus,first=flat", "excitationbackprop"])
def test_nothing_is_left_behind(name, fails):
    classifier = make("residual")
    classifier.train()
    for p in classifier.parameters():
        p.grad = torch.full_like(p, 7.0)
    list(classifier.parameters())[1].requires_grad_(False)
    if fails:
        classifier.network.hidden.register_forward_pre_hook(_fail)
    before = state(classifier)
    if fails:
        with pytest.raises(IndexError, match="inside"):
            attention_maps(classifier, batch(2), [0, 1], [name])
    else:
        attention_maps(classifier, batch(2), [0, 1], [name])
    assert same(state(classifier), before)


def _fail(module: nn.Module, inputs: object) -> None:
    raise IndexError("inside the model")


def test_the_rule_is_off_after_an_exception():
    tape = Tape(make("relu"), batch(2), needs=NEEDS)
    with pytest.raises(ConfigError, match="cases"):
        relevance(tape, torch.tensor([[9, 9]]), composite(tape))
    assert tape.mode is not None
    assert tape.mode.switch.rule == "plain"


@pytest.mark.parametrize("name", ["lrp", "lrp:rule=epsilon-plus,first=flat", "excitationbackprop"])
def test_frozen_no_grad_and_half_precision(name):
    classifier, images = make("residual").float(), batch(2).float()
    expected = attention_maps(classifier, images, [0, 1], [name]).maps[name]
    classifier.requires_grad_(False)
    with torch.no_grad():
        frozen = attention_maps(classifier, images, [0, 1], [name]).maps[name]
    torch.testing.assert_close(frozen, expected)
    with torch.inference_mode():
        torch.testing.assert_close(attention_maps(classifier, images, [0, 1], [name]).maps[name], expected)
    classifier.to(memory_format=torch.channels_last)
    torch.testing.assert_close(attention_maps(classifier, images, [0, 1], [name]).maps[name], expected)
    with torch.autocast("cpu", torch.bfloat16):
        rough = attention_maps(classifier, images, [0, 1], [name]).maps[name]
    half = attention_maps(classifier.bfloat16(), images.bfloat16(), [0, 1], [name]).maps[name]
    for maps in (rough, half):
        assert maps.dtype == torch.float32
        assert F.cosine_similarity(maps.flatten(), expected.flatten(), 0) > 0.95


class Gated(nn.Module):
    def __init__(self, gate: str) -> None:
        super().__init__()
        self.conv, self.fc, self.gate = nn.Conv2d(3, 4, 3), nn.Linear(4, len(CLASSES)), gate

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if self.gate == "sigmoid":
            x = x * x.mean((2, 3), keepdim=True).sigmoid()
        elif self.gate == "product":
            x = x * x.mean((2, 3), keepdim=True)
        elif self.gate == "GELU":
            x = F.gelu(x)
        else:
            x = F.group_norm(x, 2)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("gate", ["sigmoid", "product", "GELU", "group norm"])
@pytest.mark.parametrize("name", ["lrp", "excitationbackprop"])
def test_refused_where_relevance_cannot_be_shared(gate, name):
    classifier = Classifier(Gated(gate).double(), arch="x", classes=CLASSES, target_layer="conv")
    with pytest.raises(ModelError, match=f"calls of .*{gate}.*Use gradient"):
        attention_maps(classifier, batch(2), [0, 1], [name])
    with pytest.raises(ModelError, match="transmm"):
        attention_maps(make("vit"), batch(2), [0, 1], [name])
    # guided backpropagation minds neither gates nor norms
    if gate in ("sigmoid", "product"):
        needs = NEEDS | {"probability"}
        tape = Tape(classifier, batch(2), needs=needs)
        alone = Tape(classifier, batch(2), needs={"input_gradient"})
        found = tape.input_gradient(CASES, rule="guided")
        torch.testing.assert_close(found, alone.input_gradient(CASES, rule="guided"))


def test_wrong_options():
    tape = Tape(make("relu"), batch(2), needs=NEEDS)
    for options in ({"rule": "gama"}, {"first": "box"}, {"epsilon": -1.0}, {"alpha": 0.5}, {"reduce": "min"}):
        with pytest.raises(ConfigError):
            METHODS["lrp"](tape, CASES, **options)
    with pytest.raises(ConfigError, match="relevance"):
        METHODS["lrp"](Tape(make("relu"), batch(2), needs={"input_gradient"}), CASES)


def test_read_outs():
    tape = Tape(make("relu"), batch(2), needs=NEEDS)
    signed = METHODS["lrp"](tape, CASES)
    assert signed.min() < 0
    assert torch.equal(METHODS["lrp"](tape, CASES, relu=True), signed.relu())
    assert METHODS["lrp"](tape, CASES, reduce="sum").min() >= 0
    blurred = METHODS["lrp"](tape, CASES, smooth=0.1)
    torch.testing.assert_close(blurred.sum((1, 2)), signed.sum((1, 2)))
    from scipy.ndimage import gaussian_filter

    centre = np.zeros((16, 24))
    centre[7, 11] = 1
    from wsod.maps.lrp import _blur

    found = _blur(torch.from_numpy(centre)[None], 0.05)[0].numpy()
    expected = gaussian_filter(centre, (0.8, 1.2), radius=(2, 4), mode="constant")
    np.testing.assert_allclose(found, expected, atol=1e-12)


COMPOSITES = {
    "epsilon-plus": ("EpsilonPlus", "EpsilonPlusFlat"),
    "gamma": (None, "EpsilonGammaBox"),
    "alpha-beta": ("EpsilonAlpha2Beta1", "EpsilonAlpha2Beta1Flat"),
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("name", list(COMPOSITES))
@pytest.mark.parametrize(
    ("arch", "size"), [pytest.param("vgg11", 64, marks=pytest.mark.slow), ("resnet18", 32)]
)
@pytest.mark.slow
def test_equals_zennit(arch, size, name, first):
    zennit = pytest.importorskip("zennit", reason="zennit is not installed")
    from zennit import composites
    from zennit import torchvision as canonizers
    from zennit.attribution import Gradient

    del zennit
    peer = COMPOSITES[name][FIRST.index(first) > 0]
    if peer is None or (first == "zb") != peer.endswith("Box"):
        pytest.skip("zennit has no such composite")
    classifier, images = torchvision(arch, None, size)
    images = pixels(images)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12  # zennit 0.5 keeps it after the merge
    tape = Tape(classifier, images, needs=NEEDS)
    found = relevance(tape, torch.tensor([[0, 1], [1, 2]]), composite(tape, name, first, epsilon=1e-12))
    options = {"canonizers": [canonizers.ResNetCanonizer()]} if arch == "resnet18" else {}
    if first == "zb":
        shape = (1, 3, 1, 1)
        mean, std = classifier.preprocess.mean, classifier.preprocess.std
        for side, bound in (("low", 0.0), ("high", 1.0)):
            values = [(bound - m) / s for m, s in zip(mean, std, strict=True)]
            options[side] = torch.tensor(values, dtype=images.dtype).reshape(shape).expand_as(images)
    rules = getattr(composites, peer)(epsilon=1e-12, stabilizer=1e-15, **options)
    with Gradient(classifier.network, rules) as attributor:
        scores = tape.logits.detach()
        seed = torch.zeros_like(scores)
        seed[[0, 1], [1, 2]] = scores[[0, 1], [1, 2]]
        _, expected = attributor(images, seed)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
