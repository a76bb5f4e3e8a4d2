"""Torchvision's own networks, small and in float64, against slow twins and a module swap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.maps.twins import TWINS as SINGLE
from tests.maps.twins_masked import MASKED_TWINS
from wsod.maps import Tape, attention_maps
from wsod.models import build_classifier

CLASSES = tuple("abcd")
TWINS = {**SINGLE, **MASKED_TWINS}
LABELS = [[1, 3], [0]]
NAMES = ["gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "eigencam", "gradient"]
MORE = ["elementgradcam", "eigengradcam", "finercam", "inputxgradient"]

NETWORKS = [
    ("resnet18", None, 64),
    ("resnet18", "layer3", 64),
    ("resnet18", "layer4.1.conv2", 64),
    ("mobilenet_v2", None, 64),
    ("mobilenet_v3_small", None, 64),
    ("squeezenet1_1", None, 64),
]
LARGE = [
    ("vgg16", "features.28", 32),  # a convolution before an in-place ReLU
    ("vgg16", "features.29", 32),
    ("densenet121", None, 64),
    ("densenet121", "features.norm5", 64),
    ("efficientnet_b0", None, 64),
    ("swin_t", None, 64),
    ("swin_t", "features.5", 64),
    ("vit_b_32", None, 96),
]


def make(name: str, target: str | None, size: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    classifier = build_classifier(name, CLASSES, target_layer=target, size=size).double()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
    for module in classifier.modules():  # statistics as after some training, so that scores do not vanish
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        classifier.train()(images)
    if name.startswith("squeezenet"):  # a ReLU ends it: a class that is negative everywhere has no gradient
        nn.init.ones_(classifier.network.classifier[1].bias)
    for module in classifier.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    return classifier.eval(), images


def check(name: str, target: str | None, size: int, names: list[str]) -> None:
    classifier, images = make(name, target, size)
    found = attention_maps(classifier, images, LABELS, names)
    for method, maps in found.maps.items():
        for (row, label), values in zip(found.cases.tolist(), maps, strict=True):
            expected = TWINS[method](classifier, images[row], label)
            scale = np.abs(expected).max()
            if method == "gradcam++" and name != "resnet18":
                continue  # the twin's paper form divides by a power of activations that may be negative
            np.testing.assert_allclose(values.numpy(), expected, rtol=1e-6, atol=1e-8 * scale)
            assert scale > 0 or method not in ("eigencam", "gradient")


@pytest.mark.parametrize(("name", "target", "size"), NETWORKS)
def test_batch_equals_slow_twin(name, target, size):
    check(name, target, size, [*NAMES, *MORE])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target", "size"), LARGE)
def test_batch_equals_slow_twin_on_larger_networks(name, target, size):
    check(name, target, size, NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["occlusion", "scorecam", "ablationcam"])
def test_methods_of_many_passes_equal_their_twins(method):
    classifier, images = make("resnet18", "layer1.0.conv1", 64)
    found = attention_maps(classifier, images[:1], [2], [method]).maps[method][0]
    expected = TWINS[method](classifier, images[0], 2)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


class _GuidedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.high = high
        return x.clamp(0, high)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * (x > 0) * (x < ctx.high) * (grad > 0), None


class GuidedModule(nn.Module):
    def __init__(self, high: float) -> None:
        super().__init__()
        self.high = high

    def forward(self, x: Tensor) -> Tensor:
        return _GuidedFunction.apply(x, self.high)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 17), ("mobilenet_v2", 35), ("squeezenet1_1", 26)])
def test_guided_backprop_equals_swapped_modules(name, count):
    classifier, images = make(name, None, 64)
    tape = Tape(classifier, images, needs={"input_gradient"})
    found = tape.input_gradient(torch.tensor([[0, 1], [1, 2]]), rule="guided")
    assert tape.relu_calls == count
    for path, module in list(classifier.network.named_modules()):
        if isinstance(module, nn.ReLU | nn.ReLU6):
            parent, _, child = path.rpartition(".")
            swapped = GuidedModule(6 if isinstance(module, nn.ReLU6) else torch.inf)
            setattr(classifier.network.get_submodule(parent), child, swapped)
    for row, label in ((0, 1), (1, 2)):
        x = images[row : row + 1].clone().requires_grad_()
        (expected,) = torch.autograd.grad(classifier(x)[0, label], x)
        torch.testing.assert_close(found[row], expected[0], rtol=1e-9, atol=1e-14)
