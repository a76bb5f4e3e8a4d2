"""Derivatives of many cases' scores, with as few backward passes as the images allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["differentiate", "full", "hessian_product", "recording", "turns"]


def full(tensor: Tensor) -> Tensor:
    """Half precision to float32; maps are sums over many channels and cells."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


@contextmanager
def recording() -> Iterator[None]:
    """Autograd on, whatever the caller switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def turns(rows: Sequence[int]) -> list[list[int]]:
    """Indices of cases, grouped so that no group has two of one image.

    In evaluation mode images do not mix, so one backward pass serves one case of every image: as many passes
    as the image with the most cases has.

    >>> turns([0, 0, 1, 0])
    [[0, 2], [1], [3]]
    """
    seen: dict[int, int] = {}
    groups: list[list[int]] = []
    for index, row in enumerate(rows):
        turn = seen[row] = seen.get(row, -1) + 1
        if turn == len(groups):
            groups.append([])
        groups[turn].append(index)
    return groups


def differentiate(
    scores: Tensor, targets: Sequence[Tensor], cases: Tensor, create_graph: bool
) -> list[Tensor | None]:
    """∂ scores[row, label] / ∂ target[row] of each case, for several targets; half precision converted.

    Args:
        scores: (N, C), in the graph.
        targets: tensors (N, ...) that the scores were computed from.
        cases: (M, 2) rows of (row, label).
        create_graph: differentiable.

    Returns:
        A tensor (M, ...) for each target, None where the scores do not depend on it.
    """
    pieces: list[list[Tensor | None]] = [[] for _ in targets]
    # float16 gradients of a mean-pooled score are near 1e-5 and would underflow
    half = torch.float16 in (scores.dtype, *(target.dtype for target in targets))
    scale = 1024.0 if half else 1.0
    groups = turns(cases[:, 0].tolist())
    with torch.inference_mode(False):
        for members in groups:
            rows, labels = cases[members].to(scores.device).unbind(1)
            seed = torch.zeros_like(scores, requires_grad=False)
            seed[rows, labels] = scale
            found: Sequence[Tensor | None] = [None] * len(targets)
            if scores.requires_grad:
                found = torch.autograd.grad(
                    scores, targets, seed, retain_graph=True, create_graph=create_graph, allow_unused=True
                )
            whole = cases[members, 0].tolist() == list(range(len(scores)))
            for place, gradient in zip(pieces, found, strict=True):
                if gradient is not None:
                    gradient = full(gradient) / scale if scale != 1 else full(gradient)
                    gradient = gradient if whole else gradient[rows]
                place.append(gradient)
        order = torch.tensor([index for members in groups for index in members]).argsort().to(scores.device)
        return [
            _joined(place, order) if place else full(target).detach()[:0]
            for place, target in zip(pieces, targets, strict=True)
        ]


def _joined(pieces: list[Tensor | None], order: Tensor) -> Tensor | None:
    known = [piece for piece in pieces if piece is not None]
    if len(known) < len(pieces):
        return None
    return known[0] if len(known) == 1 else torch.cat(known)[order]


def hessian_product(
    scores: Tensor, target: Tensor, direction: Tensor, cases: Tensor, create_graph: bool
) -> Tensor:
    """H·v of each case: H the second derivative of scores[row, label] by target[row], v = direction[row].

    Two backward passes for each case of an image; zero where the score is linear in the target.
    """
    out = torch.zeros(len(cases), *target.shape[1:], dtype=full(target).dtype, device=target.device)
    for members in turns(cases[:, 0].tolist()):
        rows, labels = cases[members].to(scores.device).unbind(1)
        with recording():
            (gradient,) = torch.autograd.grad(scores[rows, labels].sum(), target, create_graph=True)
            if not gradient.requires_grad:
                continue
            (product,) = torch.autograd.grad(
                (gradient * direction).sum(),
                target,
                retain_graph=True,
                create_graph=create_graph,
                allow_unused=True,
            )
        if product is not None:
            out = out.index_copy(0, torch.tensor(members, device=out.device), full(product)[rows])
    return out
