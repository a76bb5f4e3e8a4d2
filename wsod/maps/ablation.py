"""What each channel is worth to the score: ablation in closed form, or by running the head again."""

from __future__ import annotations

import torch
from torch import Tensor

from wsod.maps.method import combine, rectify
from wsod.maps.tape import Tape
from wsod.memory import room_for

__all__ = ["ablationcam"]


def ablationcam(
    tape: Tape, cases: Tensor, *, create_graph: bool = False, relu: bool = True, chunk: int = 128
) -> Tensor:
    """ReLU Σ_d w_d·A_d with w_d = (s - s without channel d) / s.

    Ramaswamy & Desai, "Ablation-CAM", WACV 2020. Where the head is linear on pooled features, the difference
    is W[k, d]·mean(A_d): no further pass. Elsewhere the head is run again on the features with each channel
    zeroed (`chunk` at a time), for all classes of an image together. As in the paper a negative score turns
    all weights round.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect; the closed form is differentiable, the other is not.
        relu: the paper's last ReLU.
        chunk: ablated copies a pass.

    Returns:
        (M, h, w).
    """
    labels, rows = cases[:, 1].to(tape.features.device), cases[:, 0].to(tape.features.device)
    features = tape.select(cases)
    scores = tape.logits[rows, labels]
    if tape.linear_head:
        weights = tape.class_weights[labels] * features.mean((2, 3))
    else:
        weights = torch.empty(features.shape[:2], dtype=features.dtype, device=features.device)
        for row in sorted(set(rows.tolist())):
            mine = rows == row
            without = _ablated(tape, row, chunk)[:, labels[mine]].T
            weights[mine] = scores[mine, None].detach() - without
    dead = scores == 0
    weights = weights / scores.masked_fill(dead, 1.0)[:, None]
    return rectify(combine(weights, features), relu)


def _ablated(tape: Tape, row: int, chunk: int) -> Tensor:
    """(D, C) logits of one image with each channel zeroed."""
    features = tape.features[row].detach()

    def without(channels: Tensor) -> Tensor:
        variants = features.expand(len(channels), *features.shape).clone()
        variants[torch.arange(len(channels), device=features.device), channels] = 0
        return tape.replay(variants, row)

    room = room_for(tape.classifier, "ablated copies a pass")
    channels = torch.arange(len(features), device=features.device)
    return torch.cat([logits for some in torch.split(channels, chunk) for logits in room.over(some, without)])
