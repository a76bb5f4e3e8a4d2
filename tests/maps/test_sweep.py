"""Streamed forward passes: how many, how large, through what; and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.maps.networks import CLASSES, batch, make
from tests.maps.test_tape import same, state
from tests.maps.twins_masked import rise_masks
from wsod.errors import ConfigError
from wsod.maps import METHODS, Tape, attention_maps
from wsod.maps.folding import folded
from wsod.maps.sweep import chunk_size
from wsod.models import Classifier, build_classifier

CASES = torch.tensor([[0, 1], [1, 2], [0, 3]])
NAMES = ["scorecam", "sscam:samples=2", "iscam:steps=2", "occlusion", "rise:masks=20"]


def network(name: str, **options: object) -> Classifier:
    torch.manual_seed(0)
    classifier = build_classifier(name, CLASSES, **options)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, std=0.2)
    return classifier.double().eval()


@pytest.mark.parametrize(("name", "left"), [("smallnet", 0), ("resnet18", 0), ("mobilenet_v2", 0)])
def test_folded_networks_are_the_same_function(name, left):
    classifier = network(name)
    before = state(classifier)
    fast = folded(classifier)
    images = batch(2, (64, 64))
    torch.testing.assert_close(fast(images), classifier(images), rtol=1e-10, atol=1e-12)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fast.modules()) == left
    assert fast is not classifier
    assert same(state(classifier), before)


class Shared(nn.Module):
    """One batch norm serves two convolutions, and one convolution's output goes two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3)
        self.third, self.norm, self.own = nn.Conv2d(5, 5, 3), nn.BatchNorm2d(5), nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.second(self.norm(self.first(x)).relu())).relu()
        y = self.third(x)
        return self.fc((self.own(y) + y).mean((2, 3)))


class Branches(Shared):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.mean() > 100 else super().forward(-x)


def test_what_cannot_be_folded_is_left():
    classifier = Classifier(Shared(), arch="x", classes=CLASSES, target_layer="third").double().eval()
    classifier.network.norm.running_mean += 0.3
    fast, images = folded(classifier), batch(2)
    torch.testing.assert_close(fast(images), classifier(images))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fast.modules()) == 2
    branching = Classifier(Branches(), arch="x", classes=CLASSES, target_layer="third").double().eval()
    assert folded(branching) is branching
    for watched in (network("smallnet"), network("smallnet").train()):
        if not watched.training:
            watched.network.fc.register_forward_hook(lambda *io: None)
        assert folded(watched) is watched


def test_a_fold_that_changes_the_logits_is_not_used(monkeypatch):
    classifier, images = network("smallnet"), batch(1, (48, 48))
    expected = attention_maps(classifier, images, [1], ["occlusion"]).maps["occlusion"]

    def wrong(classifier: Classifier) -> Classifier:
        other = network("smallnet")
        other.network.fc.weight.data.mul_(2)
        return other

    monkeypatch.setattr("wsod.maps.sweep.folded", wrong)
    found = attention_maps(classifier, images, [1], ["occlusion"]).maps["occlusion"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_neither_chunk_nor_folding_changes_a_map(name):
    classifier, images = make("deep"), batch(2)
    tape = Tape(classifier, images)
    expected = METHODS[name](tape, CASES, fold=False)
    for options in ({"chunk": 3}, {"chunk": 1000}, {}):
        torch.testing.assert_close(METHODS[name](tape, CASES, **options), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_on_request(name):
    classifier, images = network("smallnet").float(), batch(2, (32, 32)).float()
    tape = Tape(classifier, images)
    expected = METHODS[name](tape, CASES)
    found = METHODS[name](tape, CASES, precision="bf16")
    # occlusion's differences are small beside the logits that they are of
    scale = tape.logits.abs().max().detach() if name == "occlusion" else expected.abs().max()
    assert 0 < (found - expected).abs().max() < 0.05 * scale
    assert found.dtype == torch.float32
    with pytest.raises(ConfigError, match="full or bf16"):
        METHODS[name](tape, CASES, precision="fp8")


@pytest.fixture
def sizes(monkeypatch):
    """How many images each forward pass had."""
    seen = []
    original = Classifier.forward

    def forward(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Classifier, "forward", forward)
    return seen


def test_one_sweep_for_all_classes_and_one_pass_for_all_dead_channels(sizes):
    classifier, images = make("relu"), batch(1)
    with torch.no_grad():
        for channel, bias in ((0, 0.0), (3, 0.0), (5, 0.7)):  # two dead, one constant
            classifier.network.third.weight[channel] = 0
            classifier.network.third.bias[channel] = bias
    tape = Tape(classifier, images)
    flat = tape.features[0].detach().flatten(1)
    live = int((flat.amax(1) > flat.amin(1)).sum())
    assert live <= 4
    for name, each in (("scorecam", 1), ("iscam:steps=4", 4)):
        sizes.clear()
        METHODS[name](tape, torch.tensor([[0, k] for k in range(4)]))
        assert sum(sizes) == (live + 1) * each
    sizes.clear()
    METHODS["rise:masks=50"](tape, torch.tensor([[0, k] for k in range(4)]))
    assert sum(sizes) == 50
    sizes.clear()
    METHODS["occlusion"](tape, torch.tensor([[0, k] for k in range(4)]))
    assert sum(sizes) == 49 + 1


def test_passes_are_small(sizes):
    images = torch.zeros(2, 3, 224, 224)
    assert chunk_size(images, 0) == 4
    assert chunk_size(images, 5) == 5
    assert chunk_size(images.double(), 0) == 2
    tape = Tape(make("relu"), batch(2))
    for name in NAMES:
        sizes.clear()
        METHODS[name](tape, CASES, chunk=2)
        assert max(sizes) == 2
        with pytest.raises(ConfigError, match="chunk"):
            METHODS[name](tape, CASES, chunk=-1)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_behind(name):
    classifier = make("deep").train()
    before = state(classifier)
    with torch.inference_mode():
        attention_maps(classifier, batch(2), [0, 1], [name])
    attention_maps(classifier, batch(2), [[], []], [name])
    assert same(state(classifier), before)


def test_scorecam_as_others_compute_it():
    classifier, images = make("deep"), batch(1)
    tape = Tape(classifier, images)
    a, size = tape.features[0].detach(), (16, 16)
    maps = {}
    for normalise, corners in (("before", False), ("after", True)):
        scores = []
        for channel in a:
            mask = channel[None, None]
            if normalise == "before":
                mask = (mask - mask.min()) / (mask.max() - mask.min()).clamp(min=1e-300)
            mask = nn.functional.interpolate(mask, size, mode="bilinear", align_corners=corners)
            if normalise == "after":
                mask = (mask - mask.min()) / (mask.max() - mask.min()).clamp(min=1e-300)
            with torch.no_grad():
                scores.append(classifier(images * mask)[0, 2])
        expected = (torch.stack(scores).softmax(0)[:, None, None] * a).sum(0).relu()
        options = {"normalise": normalise, "align_corners": corners}
        found = METHODS["scorecam"](tape, torch.tensor([[0, 2]]), **options)
        torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-12)
        maps[normalise] = found
    assert not torch.allclose(maps["before"], maps["after"])


def test_probability_of_independent_labels():
    classifier, images = make("relu"), batch(1)
    classifier.task = "multilabel"
    found = METHODS["occlusion"](Tape(classifier, images), CASES[:1], score="probability", window=1, stride=1)
    shown, hidden = classifier(images)[0, 1], classifier(0 * images)[0, 1]
    torch.testing.assert_close(found, (shown.sigmoid() - hidden.sigmoid()).detach().expand(1, 16, 16))


def test_rise_weighted_by_logits():
    tape = Tape(make("relu"), batch(1))
    found = METHODS["rise"](tape, CASES[:1], masks=30, cells=4, score="logit")
    expected = np.zeros((16, 16))
    for mask in rise_masks(16, 16):
        with torch.no_grad():
            logit = tape.classifier(tape.images * torch.from_numpy(mask))[0, 1]
        expected += float(logit) * mask / 15
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("scorecam", {"normalise": "never"}),
        ("scorecam", {"score": "loss"}),
        ("occlusion", {"window": 0.0}),
        ("occlusion", {"stride": 0.5}),
        ("rise", {"masks": 0}),
        ("rise", {"keep": 1.5}),
    ],
)
def test_wrong_options(name, options):
    with pytest.raises(ConfigError):
        METHODS[name](Tape(make("relu"), batch(1)), CASES[:1], **options)
