from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.maps.networks import RELU_STYLES, batch, make
from tests.maps.twins_graph import through_relus
from wsod.errors import ModelError
from wsod.maps import Tape
from wsod.maps.guided import ReluMode
from wsod.models import Classifier, build_classifier

CASES = torch.tensor([[0, 2], [1, 1], [2, 3]])


def test_by_hand():
    # y = a·relu(x1) + b·relu(x2) + c·relu(-x1): gates [x > 0], and under the guided rule also [weight > 0]
    weight = torch.tensor([2.0, -3.0, 5.0])
    x = torch.tensor([1.5, 0.5, -1.0], requires_grad=True)
    with ReluMode() as mode:
        y = (weight * F.relu(x)).sum()
    expected = {"plain": [2.0, -3.0, 0.0], "guided": [2.0, 0.0, 0.0], "deconvnet": [2.0, 0.0, 5.0]}
    for rule, gradient in expected.items():
        with mode.switch.set(rule):
            assert torch.autograd.grad(y, x, retain_graph=True)[0].tolist() == gradient
    assert mode.switch.rule == "plain"
    assert mode.calls == 1


@pytest.mark.parametrize(
    ("function", "gate"),
    [
        (F.relu, [0, 0, 1, 1]),
        (F.relu6, [0, 0, 1, 0]),
        (nn.ReLU6(inplace=True), [0, 0, 1, 0]),
        (lambda x: F.hardtanh(x, 0, 2.0), [0, 0, 1, 0]),
        (lambda x: F.leaky_relu(x, 0.1), [0.1, 0.1, 1, 1]),
        (nn.LeakyReLU(0.1, inplace=True), [0.1, 0.1, 1, 1]),
        (torch.relu, [0, 0, 1, 1]),
        (torch.relu_, [0, 0, 1, 1]),
        (torch.Tensor.relu, [0, 0, 1, 1]),
        (F.relu_, [0, 0, 1, 1]),
        (lambda x: F.leaky_relu_(x, 0.1), [0.1, 0.1, 1, 1]),
        (lambda x: F.hardtanh_(x, min_val=0.0, max_val=2.0), [0, 0, 1, 0]),
        (lambda x: F.relu(input=x, inplace=True), [0, 0, 1, 1]),
    ],
)
def test_every_spelling_and_gate(function, gate):
    x = torch.tensor([-2.0, -0.5, 1.0, 7.0], requires_grad=True)
    seed = torch.tensor([1.0, -1.0, -2.0, 3.0])
    seed_positive = seed.abs()
    plain_y = function(x.clone())
    with ReluMode() as mode:
        y = function(x.clone())
    assert mode.calls == 1
    assert torch.equal(y, plain_y)
    gate = torch.tensor(gate)
    (plain,) = torch.autograd.grad(y, x, seed, retain_graph=True)
    assert torch.equal(plain, seed * gate)
    assert torch.equal(plain, torch.autograd.grad(plain_y, x, seed)[0])
    with mode.switch.set("guided"):
        (guided,) = torch.autograd.grad(y, x, seed, retain_graph=True)
        (same,) = torch.autograd.grad(y, x, seed_positive, retain_graph=True)
    assert torch.equal(guided, (seed * gate).clamp(min=0))
    assert torch.equal(same, seed_positive * gate)


def test_other_activations_are_counted_not_replaced():
    x = torch.linspace(-1, 1, 5)
    with ReluMode() as mode:
        assert torch.equal(F.gelu(x), nn.GELU()(x))
        F.hardtanh(x, -1, 1)
        nn.SiLU(inplace=True)(x.clone())
    assert mode.calls == 0
    assert mode.others == {"GELU": 2, "hardtanh": 1, "SiLU": 1}


@pytest.mark.parametrize("rule", ["plain", "guided", "deconvnet"])
def test_twice_differentiable(rule):
    # away from kinks: |x| and |gradient| stay above the step of the numerical derivative
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, generator=generator, dtype=torch.float64).sign() * 0.7
    x = (x + 0.1 * torch.randn(6, generator=generator, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(6, 6, generator=generator, dtype=torch.float64, requires_grad=True)

    def gradient(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with ReluMode() as mode:
            y = F.relu(weight @ F.relu(x)).pow(2).sum()
        with mode.switch.set(rule):
            return torch.autograd.grad(y, x, create_graph=True)[0]

    assert torch.autograd.gradcheck(gradient, (x, weight))
    with ReluMode() as mode, mode.switch.set(rule):
        assert torch.autograd.gradgradcheck(lambda t: F.relu(t) ** 3, (x.detach().clone().requires_grad_(),))


@pytest.mark.parametrize("rule", ["plain", "guided", "deconvnet"])
@pytest.mark.parametrize("style", RELU_STYLES)
def test_however_relu_is_spelt(style, rule):
    classifier = make("relu", style=style, target_layer="third")
    images = batch()
    tape = Tape(classifier, images, needs={"input_gradient"})
    assert tape.relu_calls == 3
    found = tape.input_gradient(CASES, rule=rule)
    modules = make("relu")  # the same weights
    for (row, label), gradient in zip(CASES.tolist(), found, strict=True):
        expected = torch.from_numpy(through_relus(modules, images[row], label, rule))
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("style", RELU_STYLES)
def test_target_before_an_in_place_relu_keeps_its_negative_values(style):
    images = batch()
    plain = Tape(make("relu", target_layer="third"), images)
    for needs in (set(), {"input_gradient"}):
        tape = Tape(make("relu", style=style, target_layer="third"), images, needs=needs)
        assert (tape.features < 0).any()
        torch.testing.assert_close(tape.features, plain.features)
        torch.testing.assert_close(tape.gradient(CASES), plain.gradient(CASES))


def test_all_rules_of_one_pass_in_any_order():
    classifier, images = make("relu"), batch()
    tape = Tape(classifier, images, needs={"input_gradient"})
    found = {rule: tape.input_gradient(CASES, rule=rule) for rule in ("guided", "plain", "deconvnet")}
    assert not torch.equal(found["guided"], found["plain"])
    for rule in found:
        alone = Tape(classifier, images, needs={"input_gradient"}).input_gradient(CASES, rule=rule)
        assert torch.equal(alone, found[rule])


def test_backward_through_a_guided_gradient_is_plain_and_reaches_the_weights():
    """∂/∂W of Σ guided² by finite differences; the gates are constants almost everywhere."""
    classifier, images = make("relu"), batch()

    def loss() -> torch.Tensor:
        tape = Tape(classifier, images, needs={"input_gradient"}, create_graph=True)
        return (tape.input_gradient(CASES, rule="guided", create_graph=True) * 10).pow(2).sum()

    parameters = [p for name, p in classifier.named_parameters() if name.endswith("weight")]
    gradients = torch.autograd.grad(loss(), parameters)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    step, values = 1e-7, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(sign * step * d)
        values.append(loss().detach())
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(sign * step * d)
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), slope, rtol=1e-5, atol=0)


def test_resnet_relus_are_all_found():
    classifier = build_classifier("resnet18", ["a", "b"])
    images = torch.randn(1, 3, 64, 64)
    assert Tape(classifier, images, needs={"input_gradient"}).relu_calls == 17
    assert Tape(classifier, images).relu_calls == 0


@pytest.mark.parametrize("rule", ["guided", "deconvnet"])
def test_refused_where_there_is_no_rule(rule):
    tape = Tape(make("tokens"), batch(1), needs={"input_gradient"})
    with pytest.raises(ModelError, match=r"1 calls of GELU\. Use gradient or gradcam"):
        tape.input_gradient(torch.tensor([[0, 0]]), rule=rule)
    tape = Tape(make("nhwc"), batch(1), needs={"input_gradient"})
    with pytest.raises(ModelError, match="no ReLU call"):
        tape.input_gradient(torch.tensor([[0, 0]]), rule=rule)


def test_in_place_on_a_view_and_on_the_image_itself():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(x, inplace=True)
            y = self.conv(x)
            y[:, 1:].relu_()
            return self.fc(y.mean((2, 3)))

    network = Net().double()
    classifier = Classifier(network, arch="x", classes="abcd", target_layer="conv")
    images = batch(2)
    before = images.clone()
    found = Tape(classifier, images, needs={"input_gradient"}).input_gradient(CASES[:2])
    assert torch.equal(images, before)
    x = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(network(x + 0)[[0, 1], [2, 1]].sum(), x)
    torch.testing.assert_close(found, expected)
