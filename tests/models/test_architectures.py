from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn
from torchvision import models as tv

from wsod.errors import ConfigError, ModelError
from wsod.maps import Tape
from wsod.models import ARCHITECTURES, Classifier, build_classifier, load_classifier
from wsod.models.architectures import find_architecture, probe_target_layer

# target layer, channels and grid at 64 px, and whether the head is linear on what is pooled
FAST = {
    "smallnet": ("blocks", 128, 8, True),
    "tinynet": ("blocks", 64, 8, True),
    "mobilenet_v2": ("features", 1280, 2, True),
    "mobilenet_v3_small": ("features", 576, 2, False),
    "mnasnet0_5": ("layers", 1280, 2, True),
    "regnet_y_400mf": ("trunk_output", 440, 2, True),
    "resnet18": ("layer4", 512, 2, True),
    "shufflenet_v2_x0_5": ("conv5", 1024, 2, True),
    "squeezenet1_1": ("features", 512, 3, False),
    "swin_t": ("norm", 768, 2, True),
}
SLOW = {
    "alexnet": ("features.11", 256, 3, False),
    "convnext_tiny": ("features", 768, 2, False),
    "densenet121": ("features", 1024, 2, True),
    "efficientnet_b0": ("features", 1280, 2, True),
    "efficientnet_v2_s": ("features", 1280, 2, True),
    "googlenet": ("inception5b", 1024, 2, True),
    "resnext50_32x4d": ("layer4", 2048, 2, True),
    "swin_v2_t": ("norm", 768, 2, True),
    "vgg16": ("features.29", 512, 4, False),
    "vgg16_bn": ("features.42", 512, 4, False),
    "vit_b_16": ("encoder.layers.encoder_layer_11.ln_1", 768, 4, False),
    "wide_resnet50_2": ("layer4", 2048, 2, True),
}


def check(name: str, target: str, channels: int, side: int, linear: bool, size: int = 64) -> None:
    torch.manual_seed(0)
    classifier = build_classifier(name, ["a", "b", "c"], size=size).eval()
    head = [m for m in classifier.network.modules() if isinstance(m, nn.Linear)][-1:]
    for layer in head:  # a ViT's head starts at zero
        nn.init.normal_(layer.weight, std=0.1)
    tape = Tape(classifier, torch.randn(2, 3, size, size))
    assert classifier.target_layer == target
    assert tape.logits.shape == (2, 3)
    assert tape.features.shape == (2, channels, side, side)
    assert tape.linear_head == linear
    gradient = tape.gradient(torch.tensor([[0, 0], [1, 2]]))
    assert gradient.shape == tape.features.shape
    assert gradient.abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("name", FAST)
def test_target_layer(name):
    check(name, *FAST[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_target_layer_of_larger_networks(name):
    check(name, *SLOW[name])


@pytest.mark.slow
def test_target_layer_of_networks_that_need_larger_images():
    check("inception_v3", "Mixed_7c", 2048, 2, True, size=128)
    check("maxvit_t", "blocks.3", 512, 7, False, size=224)


def test_every_classifier_of_torchvision_is_there():
    ours = {"smallnet", "tinynet", "cifarvgg", "cifarvgg_att"}
    assert set(tv.list_models(module=tv)) | ours == set(ARCHITECTURES)


@pytest.mark.slow
# RegNet's constructor reads tensors, which the meta device has not
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if not name.startswith("regnet")])
def test_every_architecture_builds(name):
    """On the meta device: no memory, no arithmetic; the target layer exists and the head has the classes."""
    architecture = ARCHITECTURES[name]
    preprocess = architecture.preprocess()
    assert preprocess.mode == "squash"
    with torch.device("meta"):
        classifier = Classifier(
            architecture.build(7, preprocess.size),
            arch=name,
            classes=list("abcdefg"),
            target_layer=architecture.target_layer,
            preprocess=preprocess,
            layout=architecture.layout,
            prefix=architecture.prefix,
        )
    parameters = list(classifier.network.parameters())
    assert parameters[-1].shape[0] == 7
    assert len(architecture.class_names()) in (0, 1000)


def test_sizes_come_from_the_published_weights():
    assert ARCHITECTURES["efficientnet_b4"].preprocess().size == 380
    assert ARCHITECTURES["efficientnet_b4"].preprocess().interpolation == "bicubic"
    assert ARCHITECTURES["inception_v3"].preprocess().size == 299
    assert ARCHITECTURES["resnet50"].preprocess().resize == 232
    assert ARCHITECTURES["smallnet"].preprocess().size == 128


def test_squash_is_kept_and_the_crop_forgotten_at_another_size():
    classifier = build_classifier("squeezenet1_1", ["a"], size=96)
    assert (classifier.preprocess.size, classifier.preprocess.resize) == (96, 0)


def test_smallnet_is_small():
    classifier = build_classifier("smallnet", list("abcdefgh"))
    tape = Tape(classifier, torch.zeros(1, 3, 128, 128))
    assert tape.features.shape == (1, 128, 16, 16)
    assert sum(p.numel() for p in classifier.parameters()) < 1e6
    macs = []

    def count(module: nn.Conv2d, inputs: object, output: torch.Tensor) -> None:
        macs.append(output.numel() * module.weight[0].numel())

    for module in classifier.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    classifier(torch.zeros(2, 3, 128, 128))
    assert 0.2e9 < sum(macs) / 2 < 0.3e9


def test_densenet_output_is_torchvisions():
    torch.manual_seed(0)
    classifier = build_classifier("densenet121", ["a", "b"]).eval()
    peer = tv.densenet121(num_classes=2).eval()
    peer.load_state_dict(classifier.network.state_dict())  # the appended ReLU adds no key
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(classifier(images), peer(images))
    classifier(images).sum().backward()  # its in-place ReLU does not disturb the appended one
    peer(images).sum().backward()
    for a, b in zip(classifier.network.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_unknown_names():
    with pytest.raises(ConfigError, match=r"Did you mean 'resnet50'"):
        build_classifier("resnet_50", ["a"])
    with pytest.raises(ConfigError, match="importable module:factory"):
        build_classifier("no_such_module:make", ["a"])
    with pytest.raises(ConfigError, match="importable module:factory"):
        build_classifier("torch:no_such_factory", ["a"])
    with pytest.raises(ModelError, match="an input side it can take"):
        build_classifier("vit_b_32", ["a"], size=100)
    with pytest.raises(ModelError, match="Did you mean 'layer4'"):
        build_classifier("resnet18", ["a"], target_layer="layer_4")


def own(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, classes),
    )


def test_own_factory(monkeypatch):
    module = types.ModuleType("my_networks")
    module.make, module.wrong = own, lambda classes: "no network"
    module.deaf = lambda classes: own(5)
    monkeypatch.setitem(sys.modules, "my_networks", module)
    classifier = build_classifier("my_networks:make", ["a", "b"], size=32)
    assert classifier.target_layer == "1"
    with pytest.raises(ConfigError, match="factory"):
        build_classifier("my_networks:wrong", ["a"])
    with pytest.raises(ModelError, match="a last layer with 2 outputs, got 5 in 4"):
        build_classifier("my_networks:deaf", ["a", "b"])


def test_the_probe_leaves_the_network_as_it_was():
    network = own(3).train()
    network[0].eval()
    assert probe_target_layer(network, 32) == "1"
    assert [m.training for m in network] == [False, True, True, True, True]
    assert not any(m._forward_hooks for m in network.modules())
    with pytest.raises(ModelError, match="Pass --target-layer"):
        probe_target_layer(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), 2)


@pytest.mark.slow
def test_torchvisions_own_modules_are_recognised():
    for network, target in ((tv.squeezenet1_0(), "features"), (tv.resnet18(), "layer4"), (own(4), "1")):
        classifier = load_classifier(network)
        assert classifier.network is network
        assert classifier.target_layer == target
        assert network.training  # somebody else's module is left as it is
    network = tv.resnet18()
    assert load_classifier(network).classes[0] == "tench"
    assert load_classifier(torch.compile(network)).network is network
    assert load_classifier(nn.DataParallel(network)).network is network
    assert load_classifier(own(4)).classes == ("0", "1", "2", "3")
    assert load_classifier(own(2), classes=["a", "b"], target_layer="0").target_layer == "0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target", "grid"),
    [
        ("resnet18", "layer4", (512, 2, 2)),
        ("vit_tiny_patch16_224", "blocks.11.norm1", (192, 4, 4)),
        ("deit_tiny_distilled_patch16_224", "blocks.11.norm1", (192, 4, 4)),
        ("convnext_atto", "stages", (320, 2, 2)),
        ("mobilenetv3_small_050", "blocks", (288, 2, 2)),
        ("efficientnet_b0", "bn2", (1280, 2, 2)),
    ],
)
def test_timm(name, target, grid):
    pytest.importorskip("timm")
    classifier = build_classifier(f"timm:{name}", ["a", "b", "c"], size=64)
    tape = Tape(classifier, torch.randn(1, 3, 64, 64))
    assert classifier.target_layer == target
    assert tuple(tape.features.shape[1:]) == grid
    assert tape.logits.shape == (1, 3)


def test_timm_unknown():
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"Did you mean 'resnet18'"):
        find_architecture("timm:resnet_18")
