"""Torchvision's networks at their full width, in float64, against slow twins (narrow: test_families.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.maps.all_twins import TWINS
from wsod.maps import attention_maps
from wsod.models import build_classifier

CLASSES = tuple("abcd")
LABELS = [[1, 3], [0]]
NAMES = ["gradcam", "gradcam++", "layercam", "xgradcam", "eigencam", "gradient"]

NETWORKS = [
    ("resnet18", None, 64),
    ("vgg11", "features.18", 32),  # a convolution before an in-place ReLU
    ("densenet121", None, 64),
    ("mobilenet_v2", None, 64),
    ("mobilenet_v3_small", None, 64),
    ("efficientnet_b0", None, 64),
    ("squeezenet1_1", None, 64),
    ("vit_b_32", None, 96),
    ("swin_t", "features.5", 64),
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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target", "size"), NETWORKS)
def test_batch_equals_slow_twin(name, target, size):
    classifier, images = make(name, target, size)
    found = attention_maps(classifier, images, LABELS, NAMES)
    for method, maps in found.maps.items():
        for (row, label), values in zip(found.cases.tolist(), maps, strict=True):
            expected = TWINS[method](classifier, images[row], label)
            scale = np.abs(expected).max()
            np.testing.assert_allclose(values.numpy(), expected, rtol=1e-6, atol=1e-8 * scale)
            assert scale > 0 or method not in ("eigencam", "gradient")
