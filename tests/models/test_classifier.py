from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.maps.networks import CLASSES, DeepHead, batch, make
from wsod.errors import ModelError
from wsod.models import Classifier
from wsod.models.classifier import resolve_layer


def test_layer_paths():
    network = DeepHead()
    assert resolve_layer(network, "body.1") == "body.1"
    assert resolve_layer(network, "body.-1") == "body.2"
    assert resolve_layer(network, "-1") == "head"
    with pytest.raises(ModelError, match=r"Did you mean 'last'"):
        resolve_layer(network, "lasst")
    with pytest.raises(ModelError, match=r"outer modules are: body, last, head"):
        resolve_layer(network, "zzzz")
    with pytest.raises(ModelError):
        resolve_layer(network, "body.-9")


@pytest.mark.parametrize(("kind", "size"), [("deep", (16, 20)), ("nhwc", (16, 24)), ("tokens", (16, 16))])
def test_ungrid_is_the_inverse_of_grid(kind, size):
    classifier = make(kind)
    kept = []
    module = classifier.network.get_submodule(classifier.target_layer)
    module.register_forward_hook(lambda *io: kept.append(io[2]))
    classifier(batch(2, size))
    grid = classifier.grid(kept[0])
    assert grid.shape[0] == 2
    assert grid.shape[1] == {"deep": 6 - 1, "nhwc": 5, "tokens": 8}[kind]
    assert tuple(grid.shape[2:]) == {"deep": (8, 10), "nhwc": (4, 6), "tokens": (4, 4)}[kind]
    assert torch.equal(classifier.ungrid(grid, kept[0]), kept[0])


def test_token_grid_is_row_major():
    classifier = make("tokens")
    tokens = torch.arange(17.0)[None, :, None].expand(1, 17, 8)
    assert classifier.grid(tokens)[0, 0].tolist() == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [9, 10, 11, 12],
        [13, 14, 15, 16],
    ]


def test_a_convolution_inside_an_nhwc_network_gives_nchw():
    classifier = make("nhwc", target_layer="patches")
    features = torch.zeros(1, 5, 4, 6)
    assert classifier.grid(features) is features


class Wrapped(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.layer, self.output = nn.Conv2d(3, 2, 1), output

    def forward(self, x: torch.Tensor) -> object:
        return self.output


def test_outputs():
    logits = torch.zeros(1, 4)
    for output in (logits, SimpleNamespace(logits=logits)):
        classifier = Classifier(Wrapped(output), arch="x", classes=CLASSES, target_layer="layer")
        assert classifier(batch(1).float()) is logits
    for output in ((logits,), torch.zeros(1, 4, 2)):
        classifier = Classifier(Wrapped(output), arch="x", classes=CLASSES, target_layer="layer")
        with pytest.raises(ModelError, match="logits of shape"):
            classifier(batch(1).float())


def test_about_is_plain():
    about = make("deep").about()
    assert about["arch"] == "deep"
    assert about["target_layer"] == "last"
    assert about["preprocess"]["size"] == 224
    assert "sha256" not in about
