"""What every entry of METHODS promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.maps.networks import ATTENTION, CLASSES, batch, make, suited
from tests.maps.quick import quick
from wsod.errors import MapError
from wsod.maps import METHODS, Tape, attention_maps
from wsod.models import build_classifier

LABELS = [[0, 3], [2]]

# with random weights the class may have nothing over its neighbours
SIGNED = {"finercam": "finercam:relu=false", "shapleycam": "shapleycam:relu=false"}


@pytest.fixture(scope="module")
def smallnet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_classifier("smallnet", CLASSES, size=48).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.fit is None])
def test_shape_finite_and_batch_equals_one_by_one(name, smallnet, images):
    if METHODS[name].needs & ATTENTION:
        smallnet, images = make("vit").float(), images[:, :, 16:32, 16:32]
    if name == "attention":
        smallnet = make("lfi").float()
    method, name = METHODS[name], SIGNED.get(name, quick(name))
    maps = attention_maps(smallnet, images, LABELS, [name]).maps[name]
    assert maps.shape[0] == 3
    assert maps.ndim == 3
    assert maps.dtype == torch.float32
    assert torch.isfinite(maps).all()
    assert name == "uniform" or maps.flatten(1).amax(1).gt(maps.flatten(1).amin(1)).all()
    alone = [
        attention_maps(smallnet, images[row : row + 1], [label], [name]).maps[name][0]
        for row, label in ((0, 0), (0, 3), (1, 2))
    ]
    torch.testing.assert_close(maps, torch.stack(alone), rtol=1e-3, atol=1e-5 * float(maps.abs().max()))
    if method.class_specific:
        assert not torch.equal(maps[0], maps[1])
    else:
        assert torch.equal(maps[0], maps[1])


@pytest.mark.parametrize(
    "name", [n for n, method in METHODS.items() if method.differentiable and not method.fit]
)
def test_gradient_reaches_the_parameters(name):
    method = METHODS[SIGNED.get(name, name)]
    classifier = make(suited(method))
    tape = Tape(classifier, batch(2), needs=method.needs, create_graph=True)
    maps = method(tape, torch.tensor([[0, 1], [1, 2]]), create_graph=True)
    maps.pow(2).sum().backward()
    gradient = next(classifier.network.parameters()).grad
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    "name", ["cam", "gradcam", "gradcam++", "hirescam", "layercam", "gradient", "guidedbackprop", "eigencam"]
)
def test_derivative_of_the_map_by_finite_differences(name):
    classifier, images, cases = make("relu", seed=5), batch(2), torch.tensor([[0, 1], [1, 2]])
    method = METHODS[name]
    weight = classifier.network.second.weight
    probe = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=weight.dtype)

    def loss() -> torch.Tensor:
        tape = Tape(classifier, images, needs=method.needs, create_graph=True)
        maps = method(tape, cases, create_graph=True)
        # a weighting of the cells: the plain sum of a centred map would be constant
        ramp = torch.linspace(-1, 2, maps[0].numel(), dtype=maps.dtype).reshape(maps[0].shape)
        return (maps * ramp).sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    values = []
    for step in (1e-7, -1e-7):
        with torch.no_grad():
            weight.add_(step * probe)
        values.append(float(loss().detach()))
        with torch.no_grad():
            weight.sub_(step * probe)
    slope = (values[0] - values[1]) / 2e-7
    assert slope == pytest.approx(float((gradient * probe).sum()), rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_described(name):
    method = METHODS[name]
    assert method.summary
    assert method.citation
    if method.is_control:
        assert method.control((30, 40), image=np.ones((30, 40, 3))).ndim == 2
    else:
        with pytest.raises(MapError, match="control"):
            method.control((30, 40))
