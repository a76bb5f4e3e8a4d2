"""Input gradients averaged over several versions of the image: each costs a forward and a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from wsod.errors import ModelError
from wsod.maps.backprop import Reduce, over_colours
from wsod.maps.derivatives import differentiate
from wsod.maps.sweep import chunk_size, ready, room_of
from wsod.maps.tape import Tape

__all__ = ["integratedgradients", "smoothgrad"]

Version = tuple[Callable[[Tensor], Tensor], float]


def smoothgrad(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
    reduce: Reduce = "max",
    chunk: int = 0,
    fold: bool = True,
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
        chunk: copies a pass; 0 = what suits the device.
        fold: fold batch norms into convolutions where that is exact.

    Returns:
        (M, H, W).
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(tape.images.shape[1:], generator=generator) for _ in range(samples)]

    def noisy(draw: Tensor) -> Callable[[Tensor], Tensor]:
        def version(images: Tensor) -> Tensor:
            spread = images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)
            return images + noise * spread * draw.to(images.device, images.dtype)

        return version

    versions = [(noisy(draw), 1 / samples) for draw in draws]
    return over_colours(_weighted_gradient(tape, cases, versions, create_graph, chunk, fold), reduce)


def integratedgradients(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    steps: int = 32,
    reduce: Reduce = "sum",
    chunk: int = 0,
    fold: bool = True,
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
        chunk: nodes a pass; 0 = what suits the device.
        fold: fold batch norms into convolutions where that is exact.

    Returns:
        (M, H, W).
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)

    def scaled(share: float) -> Callable[[Tensor], Tensor]:
        return lambda images: images * share

    # the rule is for [-1, 1]
    versions = [(scaled((n + 1) / 2), w / 2) for n, w in zip(nodes.tolist(), weights.tolist(), strict=True)]
    total = _weighted_gradient(tape, cases, versions, create_graph, chunk, fold)
    return over_colours(tape.images.detach()[cases[:, 0].to(total.device)] * total, reduce)


def _weighted_gradient(
    tape: Tape, cases: Tensor, versions: Sequence[Version], create_graph: bool, chunk: int, fold: bool
) -> Tensor:
    """(M, 3, H, W): Σ weight · ∂ logit of each case / ∂ image at that version of the image.

    To be trained through, one version of the batch at a time, all graphs kept; else some versions of one
    image at a time, for all of its classes.
    """
    images = tape.images.detach()
    size = chunk_size(images, chunk)
    if create_graph:
        total = torch.zeros((), dtype=images.dtype, device=images.device)
        for version, weight in versions:
            other = tape.again(version(images), {"input_gradient"}, True)
            total = total + weight * other.input_gradient(cases, create_graph=True)
        return total
    rows, labels = cases.to(images.device).unbind(1)
    total = torch.zeros(len(cases), *images.shape[1:], dtype=tape.logits.dtype, device=images.device)
    with torch.inference_mode(False), ready(tape, "full", fold) as classifier, torch.enable_grad():
        for row in sorted(set(rows.tolist())):
            mine = (rows == row).nonzero()[:, 0].tolist()

            def summed(some: Sequence[Version], row: int = row, mine: list[int] = mine) -> Tensor:
                batch = torch.cat([version(images[row : row + 1]) for version, _ in some])
                batch = batch.contiguous(memory_format=torch.channels_last).requires_grad_()
                logits = classifier(batch)
                weights = torch.tensor([weight for _, weight in some], dtype=total.dtype, device=total.device)
                each = [torch.tensor([(n, int(labels[case])) for n in range(len(some))]) for case in mine]
                return torch.stack(
                    [torch.einsum("n,nchw->chw", weights, _gradient(logits, batch, cases)) for cases in each]
                )

            for start in range(0, len(versions), size):
                for part in room_of(tape).over(versions[start : start + size], summed):
                    total[mine] += part
    return total


def _gradient(logits: Tensor, batch: Tensor, cases: Tensor) -> Tensor:
    (found,) = differentiate(logits, [batch], cases, False)
    if found is None:
        raise ModelError("logits", "a score that depends on the image", "a pass that cuts the graph")
    return found
