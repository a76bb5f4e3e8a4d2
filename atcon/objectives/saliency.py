"""How much each pixel matters for a class, in a form to train through: what ATCON's mask is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsod.errors import ConfigError
from wsod.maps.guided import Rule
from wsod.maps.tape import Tape
from wsod.models.classifier import Classifier
from wsod.registry import Registry

__all__ = ["ATTRIBUTIONS", "Attribution", "Pass", "Rectifiers", "attribute", "opened"]

Attribution = Literal["guided", "gradient", "deconvnet", "ig", "smoothgrad"]
Rectifiers = Literal["calls", "modules"]


@dataclass(frozen=True)
class Pass:
    """A forward pass that attributions start from.

    Args:
        tape: of the images.
        cases: (N, 2) rows of (row, class), one an image, in order.
        graph: whether the attribution is trained through.
        samples: points of `ig`, noisy copies of `smoothgrad`.
        noise: of `smoothgrad`, its deviation over the range of each image.
        generator: of that noise.
        paper_compat: `ig` as the public code has it.
    """

    tape: Tape
    cases: Tensor
    graph: bool
    samples: int = 6
    noise: float = 0.15
    generator: torch.Generator | None = None
    paper_compat: bool = False


def _backward(rule: Rule) -> Callable[[Pass], Tensor]:
    def gradient(work: Pass) -> Tensor:
        return work.tape.input_gradient(work.cases, rule=rule, create_graph=work.graph)

    return gradient


def _images(work: Pass) -> Tensor:
    """The images, with the graph they carry where it is trained through."""
    return work.tape.images if work.graph else work.tape.images.detach()


def _mean_gradient(work: Pass, versions: Tensor) -> Tensor:
    """Mean over the (samples, N, 3, H, W) versions of ∂s/∂version, all of them in one pass."""
    flat = versions.flatten(0, 1)
    rows = torch.arange(len(flat), device=flat.device)
    cases = torch.stack([rows, work.cases[:, 1].repeat(len(versions))], 1)
    tape = work.tape.again(flat, {"input_gradient"}, work.graph)
    gradient = tape.input_gradient(cases, create_graph=work.graph)
    return gradient.view(versions.shape).mean(0)


def _integrated(work: Pass) -> Tensor:
    """x·∫₀¹ ∂s/∂x(αx) dα by the midpoint rule (Sundararajan et al., ICML 2017); the baseline is zero.

    Differs from the public code of ATCON: see `_integrated_as_published`.
    """
    if work.paper_compat:
        return _integrated_as_published(work)
    images = _images(work)
    nodes = (torch.arange(work.samples, dtype=images.dtype, device=images.device) + 0.5) / work.samples
    return images * _mean_gradient(work, nodes.view(-1, *[1] * images.ndim) * images)


def _integrated_as_published(work: Pass) -> Tensor:
    """What the public code of ATCON calls integrated gradients: zero, but for rounding.

    It differentiates Σₐ softmaxₐ(s_c(αx)) over α = 0, .2, …, 1: the softmax is over the steps, not over the
    classes, so that the sum is 1 for every image and the mask made of it a constant half. c is the number of
    the step with the highest mean logit.
    """
    images = _images(work)
    nodes = torch.linspace(0, 1, work.samples, dtype=images.dtype, device=images.device)
    versions = nodes.view(-1, *[1] * images.ndim) * images
    tape = work.tape.again(versions.flatten(0, 1), {"input_gradient"}, work.graph)
    logits = tape.logits.view(*versions.shape[:2], -1)
    if logits.shape[2] < work.samples:
        raise ConfigError(
            "consistency_loss: paper_compat", f"{work.samples} classes, as many as samples", logits.shape[2]
        )
    step = logits.mean(2).argmax(0)
    shares = logits.softmax(0).gather(2, step.expand(work.samples, -1)[..., None])
    (gradient,) = torch.autograd.grad(shares.sum(), tape.images, create_graph=work.graph)
    return images * gradient.view(versions.shape).mean(0)


def _smooth(work: Pass) -> Tensor:
    """Mean gradient of noisy copies (Smilkov et al., 2017), the same noise for every image of a batch.

    Differs from the public code of ATCON, which squares the gradients and adds one number to a whole image.
    """
    images = _images(work)
    over = tuple(range(1, images.ndim))
    spread = work.noise * (images.amax(over, keepdim=True) - images.amin(over, keepdim=True))
    draws = torch.randn(work.samples, 1, *images.shape[1:], generator=work.generator)
    return _mean_gradient(work, images + spread * draws.to(images.device, images.dtype))


ATTRIBUTIONS: Registry[Callable[[Pass], Tensor]] = Registry(
    "attribution",
    {
        "guided": _backward("guided"),
        "gradient": _backward("plain"),
        "deconvnet": _backward("deconvnet"),
        "ig": _integrated,
        "smoothgrad": _smooth,
    },
)


def attribute(kind: Attribution, work: Pass) -> Tensor:
    """(N, 3, H, W) or (N, 3, T, H, W): the attribution of each image's class, before |·| and Σ over RGB."""
    return ATTRIBUTIONS[kind](work)


def opened(
    classifier: Classifier, images: Tensor, attribution: Attribution | None, rectifiers: Rectifiers
) -> Tape:
    """A pass that can be trained through, and through whose rectifiers the attribution can go its own way.

    Args:
        classifier: what is run.
        images: the batch.
        attribution: what will be asked of the pass; None = only its maps.
        rectifiers: `calls` finds ReLUs by the functions the network calls; `modules` by their modules, for
            networks whose ReLU modules compute in another way.
    """
    needs = {"input_gradient"} if attribution in ("guided", "gradient", "deconvnet") else set()
    with exchanged(classifier.network) if rectifiers == "modules" else nullcontext():
        return Tape(classifier, images, needs=needs, create_graph=True)


class _Rectifier(nn.Module):
    """Calls the function that stands for a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _function(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if isinstance(module, nn.ReLU6):
        return F.relu6
    if isinstance(module, nn.LeakyReLU):
        slope = module.negative_slope
        return lambda x: F.leaky_relu(x, slope)
    return F.relu if isinstance(module, nn.ReLU) else None


@contextmanager
def exchanged(network: nn.Module) -> Iterator[None]:
    """Every ReLU, ReLU6 and LeakyReLU module replaced by one that calls the function, then put back."""
    places = []
    for parent in network.modules():
        for name, child in parent.named_children():
            function = _function(child)
            if function is not None:
                places.append((parent, name, child, _Rectifier(function)))
    try:
        for parent, name, _, other in places:
            setattr(parent, name, other)
        yield
    finally:
        for parent, name, child, _ in places:
            setattr(parent, name, child)
