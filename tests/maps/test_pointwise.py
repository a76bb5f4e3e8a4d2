"""1×1 convolutions in oneDNN: the same values and gradients, and only where torch would be slower."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.maps.networks import CLASSES, batch, make
from wsod.maps import METHODS, Tape
from wsod.maps.pointwise import PointwiseMode
from wsod.models import build_classifier


@pytest.fixture
def calls(monkeypatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of what went to oneDNN, on one thread."""
    seen: list[tuple[int, ...]] = []
    real, threads = torch.mkldnn_convolution, torch.get_num_threads()

    def counted(x: Tensor, *args: object) -> Tensor:
        seen.append(tuple(x.shape))
        return real(x, *args)

    monkeypatch.setattr(torch, "mkldnn_convolution", counted)
    torch.set_num_threads(1)
    yield seen
    torch.set_num_threads(threads)


def convolve(n: int = 3, side: int = 1, dtype: torch.dtype = torch.float32, **options: object) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, 6, 5, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(8, 4 // int(options.get("groups", 1)), side, side, generator=generator).to(dtype)
    bias = torch.randn(8, generator=generator).to(dtype)
    y = F.conv2d(x, weight, bias, **options)
    (gradient,) = torch.autograd.grad((y * y).sum(), x)
    return torch.cat([y.flatten(), gradient.flatten()])


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, True),
        ({"padding": 1}, True),
        ({"padding": (2, 0), "stride": (1, 1)}, True),
        ({"n": 15}, True),
        ({"n": 16}, False),  # torch's own choice there
        ({"side": 3}, False),
        ({"stride": 2}, False),
        ({"groups": 2}, False),
        ({"padding": "same"}, False),
        ({"dtype": torch.float64}, False),
        ({"dtype": torch.bfloat16}, False),
    ],
)
def test_the_same_function_and_gradient(calls, options, taken):
    expected = convolve(**options)
    with PointwiseMode():
        found = convolve(**options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert bool(calls) == taken


def test_left_alone_with_several_threads_and_under_autocast(calls):
    with PointwiseMode(), torch.autocast("cpu", torch.bfloat16):
        convolve()
    torch.set_num_threads(2)
    with PointwiseMode():
        convolve()
    assert calls == []


def test_sweeps_and_sampled_gradients_use_it(calls):
    torch.manual_seed(0)
    classifier = build_classifier("squeezenet1_1", CLASSES).eval()
    tape = Tape(classifier, torch.randn(1, 3, 48, 48))
    for name in ("occlusion:window=0.5,stride=0.5", "integratedgradients:steps=2"):
        calls.clear()
        METHODS[name](tape, torch.tensor([[0, 1]]))
        assert calls
    assert torch.overrides._get_current_function_mode_stack() == []


@pytest.mark.parametrize("name", ["smoothgrad:samples=5", "integratedgradients:steps=5"])
def test_neither_chunk_nor_folding_changes_a_sampled_gradient(name):
    cases = torch.tensor([[1, 2], [0, 1], [0, 3], [1, 2]])
    tape = Tape(make("residual"), batch(2))
    expected = METHODS[name](tape, cases, fold=False, chunk=1)
    for options in ({"chunk": 2}, {"chunk": 100}, {}):
        torch.testing.assert_close(METHODS[name](tape, cases, **options), expected, rtol=1e-9, atol=1e-12)
    graph = Tape(make("residual"), batch(2), create_graph=True)
    through = METHODS[name](graph, cases, create_graph=True)
    torch.testing.assert_close(through.detach(), expected, rtol=1e-9, atol=1e-12)


def test_memory_of_a_sampled_gradient_is_that_of_a_few_images(monkeypatch):
    """However many nodes: never more images in one pass than a chunk holds."""
    sizes = []
    classifier = make("relu")
    classifier.network.first.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    tape = Tape(classifier, batch(4))
    sizes.clear()
    METHODS["integratedgradients"](tape, torch.tensor([[0, 0], [3, 1]]), steps=50, chunk=4)
    assert max(sizes) <= 4
    assert sum(sizes) == 2 * 50
