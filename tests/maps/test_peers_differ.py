"""Where another library is wrong, or silent, and what ours does there; each seen in the version named.

A later version may have mended it: the test is then skipped, and says so.
"""

from __future__ import annotations

import gc
import importlib
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.maps.networks import batch, make
from tests.maps.twins import TWINS, parts
from wsod.errors import ConfigError, ModelError
from wsod.maps import attention_maps
from wsod.models import Classifier

_PACKAGES = {
    "grad-cam": ("1.5", "pytorch_grad_cam"),
    "torchcam": ("0.5", "torchcam.methods"),
    "captum": ("0.9", "captum.attr"),
    "zennit": ("0.5", "zennit.attribution"),
}


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Any:
    seen, module = _PACKAGES[request.param]
    pytest.importorskip(module.split(".")[0], reason=f"{request.param} is not installed")
    version = metadata.version(request.param)
    if not version.startswith(f"{seen}."):
        pytest.skip(f"seen in {request.param} {seen}, this is {version}")
    return importlib.import_module(module)


pgc = pytest.mark.parametrize("peer", ["grad-cam"], indirect=True)
torchcam = pytest.mark.parametrize("peer", ["torchcam"], indirect=True)
captum = pytest.mark.parametrize("peer", ["captum"], indirect=True)
zennit = pytest.mark.parametrize("peer", ["zennit"], indirect=True)


def layer_of(classifier: Classifier) -> nn.Module:
    return classifier.network.get_submodule(classifier.target_layer)


def targets(*labels: int) -> list[Callable[[Tensor], Tensor]]:
    return [lambda output, label=label: output[label] for label in labels]


def scaled(maps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (maps - low) / np.where(high > low, high - low, 1)


def twin(classifier: Classifier, method: str, *labels: int) -> np.ndarray[Any, Any]:
    return np.stack([TWINS[method](classifier, batch()[row], label) for row, label in enumerate(labels)])


def of_torchcam(peer: Any, kind: str, classifier: Classifier, *labels: int) -> np.ndarray[Any, Any]:
    with getattr(peer, kind)(classifier.network, classifier.target_layer) as extractor:
        found = extractor(list(labels), classifier.network(batch(len(labels))), normalized=False)[0]
    values: np.ndarray[Any, Any] = found.detach().numpy()
    return values


def shrunk(factor: float) -> Classifier:
    classifier = make("relu")
    with torch.no_grad():
        classifier.network.fc.weight.mul_(factor)
    return classifier


@pgc
def test_gradcam_plus_plus_of_pytorch_grad_cam_depends_on_the_scale_of_the_logits(peer):
    maps = {}
    for factor in (1.0, 1e-3):
        classifier = shrunk(factor)
        with peer.GradCAMPlusPlus(classifier.network, [layer_of(classifier)]) as made:
            maps[factor] = made(batch(), targets(0, 3, 2))
    assert abs(maps[1.0] - maps[1e-3]).max() > 0.01
    # in the limit of small gradients the paper's weights are those of Grad-CAM with ReLU(g)/2
    ours = attention_maps(shrunk(1e-3), batch(), [0, 3, 2], ["gradcam++"]).maps["gradcam++"].numpy()
    np.testing.assert_allclose(ours, twin(shrunk(1e-3), "gradcam++", 0, 3, 2), rtol=1e-9)


@torchcam
def test_gradcam_plus_plus_of_torchcam_has_no_denominator(peer):
    classifier = make("relu")
    found = of_torchcam(peer, "GradCAMpp", classifier, 0, 3, 2)
    for row, label in enumerate((0, 3, 2)):
        a, g, _ = parts(classifier, batch()[row], label)
        weights = (g**2 * g.clip(min=0)).sum((1, 2))
        np.testing.assert_allclose(found[row], (weights[:, None, None] * a).sum(0).clip(min=0), rtol=1e-6)
    right = twin(classifier, "gradcam++", 0, 3, 2)
    assert abs(scaled(found) - scaled(right)).max() > 0.01


@pytest.mark.parametrize(
    ("peer", "kind"), [("grad-cam", "GradCAM"), ("torchcam", "GradCAM")], indirect=["peer"]
)
def test_a_convolution_before_an_in_place_relu(peer, kind):
    """VGG16's features.28: what they keep is overwritten before they read it."""
    classifier = make("deep")
    right = twin(classifier, "gradcam", 0, 3, 2)
    if peer.__name__.startswith("torchcam"):
        found, expected = scaled(of_torchcam(peer, kind, classifier, 0, 3, 2)), scaled(right)
    else:
        with getattr(peer, kind)(classifier.network, [layer_of(classifier)]) as made:
            found = made(batch(), targets(0, 3, 2))
        size = F.interpolate(torch.from_numpy(scaled(right))[:, None], (16, 16), mode="bilinear")
        expected = scaled(size[:, 0].numpy())
    assert abs(found - expected).max() > 0.05
    ours = attention_maps(classifier, batch(), [0, 3, 2]).maps["gradcam"]
    np.testing.assert_allclose(ours.numpy(), right, rtol=1e-9, atol=1e-15)


@pgc
def test_pytorch_grad_cam_leaves_its_marks(peer):
    """Parameters' gradients are zeroed and filled, training mode is not given back."""
    classifier = make("relu").train()
    for p in classifier.parameters():
        p.grad = torch.full_like(p, 7.0)
    attention_maps(classifier, batch(), [0, 3, 2])
    assert classifier.network.training
    assert all((p.grad == 7).all() for p in classifier.parameters())
    with peer.GradCAM(classifier.network, [layer_of(classifier)]) as made:
        made(batch(), targets(0, 3, 2))
    assert not classifier.network.training
    assert not any((p.grad == 7).any() for p in classifier.parameters())


@pytest.mark.parametrize("peer", ["grad-cam", "torchcam"], indirect=True)
def test_frozen_parameters(peer):
    classifier = make("relu")
    expected = attention_maps(classifier, batch(), [0, 3, 2]).maps["gradcam"]
    classifier.requires_grad_(False)
    if peer.__name__.startswith("torchcam"):
        with pytest.raises(RuntimeError):
            of_torchcam(peer, "GradCAM", classifier, 0, 3, 2)
    else:
        with pytest.raises(RuntimeError):
            peer.GradCAM(classifier.network, [layer_of(classifier)])(batch(), targets(0, 3, 2))
    assert torch.equal(attention_maps(classifier, batch(), [0, 3, 2]).maps["gradcam"], expected)


@pgc
def test_bfloat16_in_pytorch_grad_cam(peer):
    classifier = make("relu").bfloat16()
    images = batch().bfloat16()
    with pytest.raises(TypeError, match="BFloat16"):
        peer.GradCAM(classifier.network, [layer_of(classifier)])(images, targets(0, 3, 2))
    assert attention_maps(classifier, images, [0, 3, 2]).maps["gradcam"].dtype == torch.float32


@pgc
def test_fewer_targets_than_images(peer):
    """The rest of the batch gets maps of zeros; ours refuses."""
    classifier = make("relu")
    with peer.GradCAM(classifier.network, [layer_of(classifier)]) as made:
        found = made(batch(), targets(0))
    assert not found[1:].any()
    with pytest.raises(ConfigError, match="labels of 3 images"):
        attention_maps(classifier, batch(), [0])


@pgc
def test_an_exception_inside_pytorch_grad_cams_block(peer, capsys):
    """IndexError is printed and swallowed; any other leaves Ablation-CAM's layer in the network."""
    classifier, after = make("relu"), False
    with peer.GradCAM(classifier.network, [layer_of(classifier)]) as made:
        made(batch(), targets(0, 99, 2))  # there is no class 99
        after = True
    assert not after
    with pytest.raises(ConfigError, match="labels"):
        attention_maps(classifier, batch(), [0, 99, 2])
    calls = []

    def breaks(output: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("inside")
        return output[0]

    with pytest.raises(ValueError, match="inside"):
        peer.AblationCAM(classifier.network, [layer_of(classifier)])(batch(1), [breaks])
    assert type(layer_of(classifier)).__name__ == "AblationLayer"  # ours: tests of test_tape.py


@pgc
def test_ablation_of_features_that_are_negative_somewhere(peer):
    """Not zero, as in the paper, but ten million below the smallest is what a channel is set to."""
    classifier = make("deep")
    with peer.AblationCAM(classifier.network, [layer_of(classifier)]) as made:
        found = made(batch(), targets(0, 3, 2))
    ours = attention_maps(classifier, batch(), [0, 3, 2], ["ablationcam"]).maps["ablationcam"]
    np.testing.assert_allclose(ours.numpy(), twin(classifier, "ablationcam", 0, 3, 2), rtol=1e-9, atol=1e-12)
    size = F.interpolate(ours[:, None], (16, 16), mode="bilinear")[:, 0]
    assert abs(found - scaled(size.numpy())).max() > 0.05


@torchcam
def test_hooks_of_torchcam_stay(peer):
    classifier = make("relu")
    extractor = peer.GradCAM(classifier.network, classifier.target_layer)
    del extractor
    gc.collect()
    assert layer_of(classifier)._forward_hooks
    other = make("relu")
    attention_maps(other, batch(), [0, 3, 2])
    assert not any(module._forward_hooks for module in other.modules())


@torchcam
def test_nan_in_torchcam(peer):
    """`nansum` hides it; ours shows it (and the evaluation then names the case)."""
    classifier = make("relu")
    images = batch()
    images[0, 0, 3, 3] = torch.nan
    with peer.CAM(classifier.network, classifier.target_layer, "fc") as extractor:
        found = extractor([0, 3, 2], classifier.network(images), normalized=False)[0]
    assert torch.isfinite(found).all()
    assert attention_maps(classifier, images, [0, 3, 2], ["gradcam"]).maps["gradcam"][0].isnan().any()


@pytest.mark.parametrize("kind", ["nhwc", "tokens"])
@torchcam
def test_axes_of_transformers_in_torchcam(peer, kind):
    """Swin's NHWC and tokens: the wrong axes are averaged, without a word."""
    classifier = make(kind)
    found = of_torchcam(peer, "GradCAM", classifier, 0, 3, 2)
    right = attention_maps(classifier, batch(), [0, 3, 2]).maps["gradcam"]
    assert right.shape == (3, 4, 4)
    assert found.shape != tuple(right.shape)
    np.testing.assert_allclose(right.numpy(), twin(classifier, "gradcam", 0, 3, 2), rtol=1e-9, atol=1e-14)


@pgc
def test_swin_in_pytorch_grad_cam(peer):
    classifier = make("nhwc")
    with peer.GradCAM(classifier.network, [layer_of(classifier)]) as made:
        found = made(batch(), targets(0, 3, 2))
    right = attention_maps(classifier, batch(), [0, 3, 2]).maps["gradcam"]
    size = F.interpolate(right[:, None], (16, 16), mode="bilinear")[:, 0]
    assert abs(found - scaled(size.numpy())).max() > 0.1


@pgc
def test_the_last_block_of_a_vision_transformer(peer):
    """The class token alone counts there: maps of zeros, without a word; ours refuses."""
    classifier = make("tokens", target_layer="out")

    def reshape(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, 4, 4)

    with peer.GradCAM(classifier.network, [layer_of(classifier)], reshape) as made:
        assert not made(batch(), targets(0, 3, 2)).any()
    with pytest.raises(ModelError, match="class token alone"):
        attention_maps(classifier, batch(), [0, 3, 2])


def of_captum(peer: Any, kind: str, network: nn.Module, **options: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(peer, kind)(network)
        found: Tensor = made.attribute(batch().requires_grad_(), target=torch.tensor([0, 3, 2]), **options)
    return found.detach()


@captum
def test_functional_relus_under_captums_guided_backprop(peer):
    """What comes out is the plain gradient."""
    functional, modules = make("relu", style="functional", target_layer="third"), make("relu")
    found = of_captum(peer, "GuidedBackprop", functional.network)
    torch.testing.assert_close(found, of_captum(peer, "Saliency", functional.network, abs=False))
    right = of_captum(peer, "GuidedBackprop", modules.network)
    assert not torch.allclose(found, right)
    ours = attention_maps(functional, batch(), [0, 3, 2], ["guidedbackprop:reduce=signed"]).maps
    torch.testing.assert_close(ours["guidedbackprop:reduce=signed"], right.sum(1))


@captum
def test_a_reused_relu_under_captums_deeplift(peer):
    with pytest.raises(RuntimeError, match=r"more than once|reused|redefine"):
        of_captum(peer, "DeepLift", make("relu", style="shared").network)
    once, shared = (
        attention_maps(make("relu", style=style, target_layer="third"), batch(), [0, 3, 2], ["deeplift"])
        for style in ("module", "shared")
    )
    torch.testing.assert_close(shared.maps["deeplift"], once.maps["deeplift"])


class OnNoise(nn.Module):
    """Max pooling over activations that differ from cell to cell for a constant image too."""

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(3, 16, 16))
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(kernel, stride, padding))
        self.last, self.relu, self.fc = nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.last(self.body(x + self.noise))).mean((2, 3)))


@captum
@pytest.mark.parametrize("pool", [(2, 2, 0), (3, 2, 1)])
def test_max_pooling_under_captums_deeplift(peer, pool):
    """Below a ReLU its contributions no longer sum to the change of the score; ours do."""
    torch.manual_seed(0)
    classifier = Classifier(OnNoise(*pool), arch="x", classes="abcd", target_layer="last").double().eval()
    images, labels = batch(), [0, 3, 2]
    with torch.no_grad():
        change = (classifier(images) - classifier(torch.zeros_like(images)))[range(3), labels]
    ours = attention_maps(classifier, images, labels, ["deeplift"]).maps["deeplift"].sum((1, 2))
    torch.testing.assert_close(ours, change, rtol=1e-9, atol=1e-12)
    theirs = of_captum(peer, "DeepLift", classifier.network).sum((1, 2, 3))
    assert (theirs - change).abs().max() > 0.05 * change.abs().max()


class Sums(nn.Module):
    """Residual sums, which are no modules; no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.Linear(6, 4, bias=False)
        self.inner = nn.ModuleList([nn.Conv2d(6, 6, 3, 1, 1, bias=False) for _ in range(6)])
        self.relus = nn.ModuleList([nn.ReLU() for _ in range(6)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for inner, relu in zip(self.inner, self.relus, strict=True):
            x = relu(inner(x) + x)
        return self.fc(x.mean((2, 3)))


@captum
def test_residual_sums_under_captums_lrp(peer):
    """Relevance multiplies at every sum; ours conserves it."""
    torch.manual_seed(0)
    network = Sums().double().eval()
    classifier = Classifier(network, arch="x", classes="abcd", target_layer="relus.5").eval()
    scores = network(batch())[[0, 1, 2], [0, 3, 2]].detach()
    theirs = of_captum(peer, "LRP", classifier.network).sum((1, 2, 3))
    ours = attention_maps(classifier, batch(), [0, 3, 2], ["lrp:epsilon=1e-9"]).maps["lrp:epsilon=1e-9"]
    torch.testing.assert_close(ours.sum((1, 2)), scores, rtol=1e-3, atol=1e-5)
    assert (theirs - scores).abs().max() > 0.5 * scores.abs().max()


@captum
def test_captums_guided_gradcam_enlarges_by_nearest_neighbour(peer):
    classifier = make("relu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peer.GuidedGradCam(classifier.network, layer_of(classifier))
        found = {
            mode: made.attribute(
                batch().requires_grad_(),
                target=torch.tensor([0, 3, 2]),
                **({"interpolate_mode": mode} if mode else {}),
            ).detach()
            for mode in ("", "nearest", "bilinear")
        }
    assert torch.equal(found[""], found["nearest"])
    ours = attention_maps(classifier, batch(), [0, 3, 2], ["guidedgradcam:reduce=signed"]).maps
    torch.testing.assert_close(ours["guidedgradcam:reduce=signed"], found["bilinear"].sum(1))
    assert not torch.allclose(found["nearest"], found["bilinear"])


@zennit
def test_functional_relus_under_zennits_guided_backprop(peer):
    from zennit.composites import GuidedBackprop

    classifier, seed = make("relu", style="functional"), torch.eye(4, dtype=torch.float64)[[0, 3, 2]]
    found = {}
    for rule in (GuidedBackprop(), None):
        with peer.Gradient(classifier.network, rule) as attributor:
            found[rule is None] = attributor(batch().requires_grad_(), seed)[1]
    assert torch.equal(found[True], found[False])


@pgc
def test_guided_backprop_of_pytorch_grad_cam_is_of_one_image(peer):
    made = peer.GuidedBackpropReLUModel(make("relu").network, device="cpu")
    assert made(batch(), 2).ndim == 3  # three images went in
