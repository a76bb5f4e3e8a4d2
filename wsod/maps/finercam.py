"""Grad-CAM of a class against the classes it is most easily taken for."""

from __future__ import annotations

import torch
from torch import Tensor

from wsod.maps.derivatives import recording
from wsod.maps.method import combine, rectify
from wsod.maps.tape import Tape

__all__ = ["finercam"]


def finercam(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    relu: bool = True,
    gamma: float = 0.6,
    references: int = 3,
) -> Tensor:
    """Grad-CAM of s_k - γ·mean s_d, d the classes whose logits are nearest to that of k.

    Zhang et al., "Finer-CAM", CVPR 2025: what similar classes share is taken out. The same cost as Grad-CAM.
    With a single class there is nothing to compare with, and it is Grad-CAM.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradient.
        relu: the last ReLU.
        gamma: γ, how much of the similar classes is taken away.
        references: how many similar classes.

    Returns:
        (M, h, w).
    """
    pairs = torch.tensor(sorted({(row, label) for row, label in cases.tolist()}), dtype=torch.int64)
    rows, labels = pairs.reshape(-1, 2).to(tape.logits.device).unbind(1)
    count = min(references, tape.logits.shape[1] - 1)
    with recording():
        scores = tape.logits
        if count > 0 and len(rows):
            apart = (scores.detach()[rows] - scores.detach()[rows, labels, None]).abs()
            apart[torch.arange(len(rows)), labels] = torch.inf
            similar = apart.topk(count, largest=False).indices
            mean = scores[rows].gather(1, similar).mean(1)
            scores = scores.index_put((rows, labels), scores[rows, labels] - gamma * mean)
    gradient = tape.gradient(cases, create_graph, scores=scores)
    return rectify(combine(gradient.mean((2, 3)), tape.select(cases)), relu)
