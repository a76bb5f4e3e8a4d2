"""Input gradients averaged over several versions of the image: each costs a forward and a backward pass."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wsod.maps.backprop import Reduce, over_colours
from wsod.maps.tape import Tape

__all__ = ["integratedgradients", "smoothgrad"]


def _gradient_at(tape: Tape, images: Tensor, cases: Tensor, create_graph: bool) -> Tensor:
    other = tape.again(images, {"input_gradient"}, create_graph)
    return other.input_gradient(cases, create_graph=create_graph)


def smoothgrad(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    reduce: Reduce = "max",
) -> Tensor:
    """max over RGB of |mean over noisy copies of ∂s/∂x| (Smilkov et al., "SmoothGrad", 2017).

    Noise is normal, its standard deviation `noise` times the image's range. It is drawn from a generator of
    its own, the same for every image: a map does not depend on its batch, the global generator is not used.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradients.
        samples: noisy copies.
        noise: relative standard deviation.
        seed: of the noise.
        reduce: over the colours.

    Returns:
        (M, H, W).
    """
    images = tape.images.detach()
    spread = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=images.dtype, device=images.device)
    for _ in range(samples):
        draw = torch.randn(images.shape[1:], generator=generator).to(images.device, images.dtype)
        total = total + _gradient_at(tape, images + spread * draw, cases, create_graph)
    return over_colours(total / samples, reduce)


def integratedgradients(
    tape: Tape, cases: Tensor, *, create_graph: bool = False, steps: int = 32, reduce: Reduce = "sum"
) -> Tensor:
    """Σ over RGB of |x·∫₀¹ ∂s/∂x(αx) dα| (Sundararajan et al., "Axiomatic Attribution", ICML 2017).

    The baseline is the normalised image's zero, the mean colour; the integral is taken by the Gauss-Legendre
    rule. With `reduce="signed"` the map's sum is the score minus the baseline's, up to the rule's error.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradients.
        steps: nodes of the rule.
        reduce: over the colours.

    Returns:
        (M, H, W).
    """
    images = tape.images.detach()
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = torch.zeros((), dtype=images.dtype, device=images.device)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        # the rule is for [-1, 1]
        gradient = _gradient_at(tape, images * ((node + 1) / 2), cases, create_graph)
        total = total + gradient * (weight / 2)
    return over_colours(images[cases[:, 0].to(images.device)] * total, reduce)
