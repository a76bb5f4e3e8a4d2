"""Other libraries' maps where they are right: the same networks, images and classes, in float64."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from tests.maps.networks import CLASSES, batch, make
from wsod.maps import attention_maps
from wsod.models import Classifier, build_classifier

pytestmark = pytest.mark.slow

LABELS = [1, 3, 0, 2]  # four images, four classes


class Vgg16(nn.Module):
    """torchvision's features under a smaller head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = make_layers(cfgs["D"])
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Sequential(nn.Linear(2048, 16), nn.ReLU(inplace=True), nn.Linear(16, len(CLASSES)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


def network(name: str, target: str | None = None) -> Classifier:
    """Random weights, statistics of a trained network, positive and negative scores."""
    if name == "small":
        return make("relu", seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "vgg16":
            classifier = Classifier(Vgg16(), arch=name, classes=CLASSES, target_layer=target or "").double()
        else:
            classifier = build_classifier(name, CLASSES, target_layer=target, size=64).double()
        for module in classifier.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.bias, std=0.2)
    return classifier.eval()


NETWORKS = ["resnet18", pytest.param("vgg16", marks=pytest.mark.slow)]
LAYERS = {"resnet18": "layer4", "vgg16": "features.29", "small": "relus.2"}


def images_of(name: str) -> Tensor:
    return batch(4, (16, 16) if name == "small" else (64, 64))


def ours(name: str, method: str, target: str | None = None) -> Tensor:
    classifier = network(name, target or LAYERS[name])
    return attention_maps(classifier, images_of(name), LABELS, [method]).maps[method]


def layer_of(classifier: Classifier) -> nn.Module:
    return classifier.network.get_submodule(classifier.target_layer)


def pytorch_grad_cam(name: str, kind: str, about: str = "ClassifierOutputTarget") -> Tensor:
    """Its maps, which are rectified, min-maxed, resized to the image and min-maxed again."""
    package = pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is not installed")
    from pytorch_grad_cam.utils import model_targets

    classifier, target = network(name, LAYERS[name]), getattr(model_targets, about)
    with getattr(package, kind)(classifier.network, [layer_of(classifier)]) as made:
        return torch.from_numpy(made(images_of(name), [target(label) for label in LABELS])).double()


def torchcam(name: str, kind: str) -> Tensor:
    """Its maps before normalisation, at the layer's size."""
    package = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")
    classifier = network(name, LAYERS[name])
    with getattr(package, kind)(classifier.network, classifier.target_layer) as extractor:
        scores = classifier.network(images_of(name))
        return extractor(LABELS, scores, normalized=False)[0].detach()


def finished(maps: Tensor, size: int = 64) -> Tensor:
    """What pytorch-grad-cam makes of a raw map, in float64."""
    large = F.interpolate(minmax(maps.relu())[:, None], (size, size), mode="bilinear", align_corners=False)
    return minmax(large[:, 0])


def minmax(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).masked_fill(high == low, 1.0)


def assert_near(found: Tensor, expected: Tensor, atol: float) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(), rtol=0, atol=atol)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("GradCAM", "gradcam"),
        ("HiResCAM", "hirescam"),
        ("LayerCAM", "layercam"),
        ("XGradCAM", "xgradcam"),
        ("GradCAMElementWise", "elementgradcam"),
    ],
)
def test_pytorch_grad_cam(name, kind, method):
    # it resizes in float32, and adds 1e-7 to what it divides by
    assert_near(finished(ours(name, method)), pytorch_grad_cam(name, kind), 1e-5)


def test_ablationcam_of_pytorch_grad_cam_is_the_closed_form():
    """It runs the whole network again for every channel, and subtracts scores in float32."""
    assert_near(finished(ours("small", "ablationcam"), 16), pytorch_grad_cam("small", "AblationCAM"), 1e-5)


def test_shapleycam_of_pytorch_grad_cam():
    theirs = pytorch_grad_cam("resnet18", "ShapleyCAM", "ClassifierOutputReST")
    assert_near(finished(ours("resnet18", "shapleycam")), theirs, 1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_eigencam_up_to_its_sign(name):
    package = pytest.importorskip("pytorch_grad_cam.utils.svd_on_activations", reason="not installed")
    classifier = network(name, LAYERS[name])
    features: list[Tensor] = []
    layer_of(classifier).register_forward_hook(
        lambda module, inputs, output: features.append(output.detach())
    )
    classifier(batch(4, (64, 64)))
    theirs = torch.from_numpy(package.get_2d_projection(features[0].numpy())).double()
    for one, other in zip(ours(name, "eigencam"), theirs, strict=True):
        pair = torch.stack([one.flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) > 1 - 1e-6


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("kind", "method"),
    [("GradCAM", "gradcam"), ("LayerCAM", "layercam"), ("XGradCAM", "xgradcam")],
)
def test_torchcam(name, kind, method):
    expected = torchcam(name, kind)
    # torchcam adds an epsilon to XGrad-CAM's denominator
    assert_near(ours(name, method), expected, 1e-4 * float(expected.abs().max()))


def test_cam_of_torchcam_keeps_what_speaks_against_the_class():
    """Its docstring has a ReLU, its maps have none; ours have none either, and say so."""
    expected = torchcam("resnet18", "CAM")
    assert (expected < 0).any()
    assert_near(ours("resnet18", "cam"), expected, 1e-9 * float(expected.abs().max()))


def test_scorecam_as_each_of_them_upsamples():
    first, second = torchcam("small", "ScoreCAM"), pytorch_grad_cam("small", "ScoreCAM")
    assert_near(ours("small", "scorecam:normalise=before"), first, 1e-6 * float(first.abs().max()))
    assert_near(finished(ours("small", "scorecam:align_corners=true"), 16), second, 1e-5)
    assert not torch.allclose(finished(first, 16), second, atol=1e-4)


LAYERED = ("LayerGradCam", "LayerGradientXActivation", "GuidedGradCam")


def captum(name: str, kind: str, **options: Any) -> Tensor:
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    classifier = network(name, LAYERS[name])
    about = [classifier.network, layer_of(classifier)] if kind in LAYERED else [classifier.network]
    images = images_of(name).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says at each call that it sets hooks
        found: Tensor = getattr(attr, kind)(*about).attribute(images, target=torch.tensor(LABELS), **options)
    return found.detach()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("kind", "options", "method"),
    [
        ("LayerGradCam", {"relu_attributions": True}, "gradcam"),
        ("LayerGradientXActivation", {}, "hirescam:relu=false"),
        ("Saliency", {"abs": False}, "gradient:reduce=signed"),
        ("InputXGradient", {}, "inputxgradient"),
        ("GuidedBackprop", {}, "guidedbackprop:reduce=signed"),
        ("Deconvolution", {}, "deconvnet:reduce=signed"),
        ("GuidedGradCam", {"interpolate_mode": "bilinear"}, "guidedgradcam:reduce=signed"),
        (
            "IntegratedGradients",
            {"n_steps": 4},
            "integratedgradients:steps=4,reduce=signed",
        ),
    ],
)
def test_captum(name, kind, options, method):
    expected = captum(name, kind, **options).sum(1)
    # its nodes and weights of the integral have seven digits
    atol = 1e-6 if kind == "IntegratedGradients" else 1e-9
    assert_near(ours(name, method), expected, atol * float(expected.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("kind", "method"),
    [("GuidedBackprop", "guidedbackprop"), ("DeconvNet", "deconvnet"), (None, "gradient")],
)
def test_zennit(name, kind, method):
    attribution = pytest.importorskip("zennit.attribution", reason="zennit is not installed")
    from zennit import composites

    classifier = network(name, LAYERS[name])
    composite = getattr(composites, kind)() if kind else None
    with attribution.Gradient(classifier.network, composite) as attributor:
        _, expected = attributor(images_of(name), torch.eye(4, dtype=torch.float64)[LABELS])
    found = ours(name, f"{method}:reduce=signed")
    assert_near(found, expected.sum(1), 1e-9 * float(expected.abs().max()))


@pytest.mark.slow
def test_excitation_backprop_of_zennit():
    """With its canonizer: without, sums are no layers to it, and a distribution sums to more than one."""
    attribution = pytest.importorskip("zennit.attribution", reason="zennit is not installed")
    from zennit.composites import ExcitationBackprop
    from zennit.torchvision import ResNetCanonizer

    totals = {}
    for canonizers in ([ResNetCanonizer()], []):
        classifier = network("resnet18", "layer3")
        with attribution.Gradient(
            classifier.network, ExcitationBackprop(canonizers=canonizers)
        ) as attributor:
            kept: list[Tensor] = []

            def keep(module: nn.Module, inputs: Any, output: Tensor, kept: list[Tensor] = kept) -> None:
                output.retain_grad()
                kept.append(output)

            layer_of(classifier).register_forward_hook(keep)
            attributor(batch(4, (64, 64)), torch.eye(4, dtype=torch.float64)[LABELS])
            totals[bool(canonizers)] = kept[0].grad.sum(1)
    found = ours("resnet18", "excitationbackprop", "layer3")
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(4, dtype=torch.float64))
    correlation = torch.corrcoef(torch.stack([found.flatten(), totals[True].flatten()]))[0, 1]
    assert correlation > 0.99
    assert (totals[False].sum((1, 2)) > 1.2).all()
