"""DeepLIFT's sum, however rectifiers are spelt; captum's attributions beside ours; extremal masks."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from torch import nn

from tests.maps.networks import CLASSES, RELU_STYLES, batch, make
from tests.maps.test_tape import same, state
from wsod.errors import ConfigError, ModelError
from wsod.maps import METHODS, Tape, attention_maps
from wsod.maps.extremal import _pyramid
from wsod.models import Classifier, build_classifier

CASES = torch.tensor([[0, 1], [1, 2], [0, 3]])


def differences(classifier: Classifier, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        change = classifier(images) - classifier(torch.zeros_like(images))
    return change[CASES[:, 0], CASES[:, 1]]


@pytest.mark.parametrize("style", RELU_STYLES)
def test_deeplift_of_rectifiers_in_every_spelling(style):
    classifier, images = make("relu", style=style, target_layer="third"), batch(2)
    maps = METHODS["deeplift"](Tape(classifier, images), CASES)
    torch.testing.assert_close(maps, METHODS["deeplift"](Tape(make("relu"), images), CASES))
    torch.testing.assert_close(maps.sum((1, 2)), differences(classifier, images))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
@pytest.mark.slow
def test_deeplift_is_complete_on_reused_rectifiers_and_max_pooling(name):
    torch.manual_seed(0)
    classifier, images = build_classifier(name, CLASSES, size=64).double().eval(), batch(2, (64, 64))
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.normal_(module.bias, std=0.2)
    maps = METHODS["deeplift"](Tape(classifier, images), CASES)
    torch.testing.assert_close(maps.sum((1, 2)), differences(classifier, images), rtol=1e-6, atol=1e-9)


class Pooled(nn.Module):
    """Smooth activations, one of them in place, and overlapping max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3)
        self.between = nn.Sequential(nn.SiLU(inplace=True), nn.MaxPool2d(3, 2, 1), nn.GELU())
        self.fc = nn.Linear(5, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.between(self.first(x)))
        return self.fc(torch.nn.functional.leaky_relu(x, 0.1, True).mean((2, 3)))


def test_deeplift_of_other_activations_and_max_pooling():
    torch.manual_seed(0)
    classifier = Classifier(Pooled(), arch="x", classes=CLASSES, target_layer="second").double().eval()
    before, images = state(classifier), batch(2)
    maps = METHODS["deeplift"](Tape(classifier, images), CASES)
    torch.testing.assert_close(maps.sum((1, 2)), differences(classifier, images))
    assert same(state(classifier), before)


def test_max_pooling_where_the_baselines_maximum_is_everywhere():
    """Captum takes the cell that rounding chooses, so that its map depends on the batch; ours does not."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 36, len(CLASSES)))
    )
    classifier = Classifier(network, arch="x", classes=CLASSES, target_layer="0").double().eval()
    image = batch(1, (14, 14))
    before, flat = (network[:2](one)[0].detach() for one in (image, torch.zeros_like(image)))
    weights = network[4].weight[1].detach().reshape(6, 6, 6)
    multipliers = torch.zeros_like(before)
    for d, i, j in itertools.product(range(6), range(6), range(6)):
        window = before[d, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        y, x = divmod(int(window.argmax()), 2)
        # one cell holds both maxima: all of Δout over all of Δin
        multipliers[d, 2 * i + y, 2 * j + x] = weights[d, i, j]
    moved = network[0](image)[0] - network[0](torch.zeros_like(image))[0]
    through = multipliers * (before - flat) / moved
    expected = (nn.functional.conv_transpose2d(through[None], network[0].weight) * image).sum(1)
    found = METHODS["deeplift"](Tape(classifier, image), torch.tensor([[0, 1]]))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)


def test_captum_agrees_where_it_works():
    pytest.importorskip("captum")
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 5, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, len(CLASSES))),
    )
    classifier = Classifier(network, arch="x", classes=CLASSES, target_layer="4").double().eval()
    before, images, labels = state(classifier), batch(2), [[1, 3], [2]]
    pairs = {
        "captum:DeepLift": "deeplift",
        "captum:Saliency:reduce=max": "gradient",
        "captum:GuidedBackprop:reduce=max": "guidedbackprop",
        "captum:Deconvolution:reduce=max": "deconvnet",
        "captum:InputXGradient": "inputxgradient",
        "captum:LayerGradCam": "gradcam:relu=false",
        "captum:LayerGradientXActivation": "hirescam:relu=false",
        "captum:IntegratedGradients:n_steps=9,reduce=sum": "integratedgradients:steps=9",
    }
    maps = attention_maps(classifier, images, labels, [*pairs, *pairs.values()]).maps
    for theirs, ours in pairs.items():
        torch.testing.assert_close(maps[theirs], maps[ours], rtol=1e-6, atol=1e-9, msg=theirs)
    drawn = [attention_maps(classifier, images, labels, ["captum:GradientShap"]).maps for _ in range(2)]
    assert torch.equal(drawn[0]["captum:GradientShap"], drawn[1]["captum:GradientShap"])
    assert same(state(classifier), before)


def test_captum_names_and_options_that_do_not_work(monkeypatch):
    pytest.importorskip("captum")
    with pytest.raises(ConfigError, match="Did you mean 'Saliency'"):
        METHODS["captum:Salience"]
    with pytest.raises(ConfigError, match="an attribution of captum, got 'NoiseTunnel'"):
        METHODS["captum:NoiseTunnel"]
    with pytest.raises(ModelError, match="sliding_window_shapes"):
        attention_maps(make("relu"), batch(1), [0], ["captum:Occlusion"])


def test_captum_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigError, match=r"captum:Saliency: expected captum to be installed.*pip install"):
        METHODS["captum:Saliency"]


class Corner(nn.Module):
    """The score is the mean contrast of the upper left quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spread = self.layer(x)[:, 0, :16, :16].pow(2).mean((1, 2))
        return torch.stack([spread, -spread], 1)


def test_an_extremal_mask_keeps_what_counts_at_the_area_asked_for():
    torch.manual_seed(0)
    classifier = Classifier(Corner(), arch="x", classes="ab", target_layer="layer").eval()
    nn.init.ones_(classifier.network.layer.weight)
    options = {"step": 4, "sigma": 4, "blur": 3, "areas": (0.25,), "iterations": 150}
    with torch.no_grad():
        tape = Tape(classifier, batch(1, (32, 32)).float())
    (mask,) = METHODS["extremalperturbation"](tape, torch.tensor([[0, 0]]), **options)
    assert mask.shape == (8, 8)
    assert 0 <= mask.min() < 0.1
    assert 0.9 < mask.max() <= 1
    inside = mask[:4, :4].sum() / mask.sum()
    assert inside > 0.75
    assert abs(float(mask.mean()) - 0.25) < 0.06


def test_extremal_areas_add_and_chunks_change_nothing():
    tape, method = Tape(make("deep"), batch(2)), METHODS["extremalperturbation"]
    options = {"step": 4, "sigma": 5, "blur": 3, "iterations": 4}
    parts = [method(tape, CASES, areas=area, **options) for area in (0.1, 0.3)]
    for chunk in (1, 4, 100):
        found = method(tape, CASES, areas=[0.1, 0.3], chunk=chunk, **options)
        torch.testing.assert_close(found, parts[0] + parts[1], rtol=1e-6, atol=1e-9)
    with pytest.raises(ConfigError, match="areas"):
        method(tape, CASES, areas=[1.0])


def test_a_pyramid_keeps_flat_images_and_spreads_a_point():
    image = torch.full((1, 3, 9, 9), 2.0, dtype=torch.float64)
    torch.testing.assert_close(_pyramid(image, 2.0, 3), image[:, None].expand(1, 3, 3, 9, 9))
    point = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    point[0, 0, 10, 10] = 1
    levels = _pyramid(point, 2.0, 3)[0, :, 0]
    rows = torch.arange(21.0) - 10
    for level, sigma in ((1, 1.0), (2, 2.0)):
        variance = (levels[level].sum(1) * rows**2).sum() / levels[level].sum()
        assert float(variance) == pytest.approx(sigma**2, rel=0.05)
