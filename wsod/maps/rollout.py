"""Vision transformers: attention followed from the last block back to the patches.

A_l (heads, T, T) are the attention weights of block l = 1 … L, rows attending to columns, and ∂A_l is the
derivative of the case's logit by them. Tokens mix from block to block by matrix products; only the row of
what the head reads is followed, a vector of T values, so a block costs T² and not T³.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from wsod.errors import ConfigError
from wsod.maps.attentions import attention_gradients, attentions
from wsod.maps.derivatives import full
from wsod.maps.tape import Tape

__all__ = ["gradientrollout", "rollout", "transmm"]

Heads = Literal["mean", "max", "min"]


def _fuse(attention: Tensor, heads: Heads) -> Tensor:
    """(M, heads, T, T) → (M, T, T)."""
    if heads == "mean":
        return attention.mean(1)
    if heads == "max":
        return attention.amax(1)
    if heads == "min":
        return attention.amin(1)
    raise ConfigError("heads", "mean, max or min", repr(heads))


def _start(tape: Tape, like: Tensor) -> Tensor:
    """(M, 1, T): what the head reads of the last block; the class token, or the mean of the patches."""
    prefix = tape.classifier.prefix
    row = torch.zeros(1, 1, like.shape[-1], dtype=like.dtype, device=like.device)
    # timm says how it pools; a network with tokens before the grid that says nothing reads the first
    if prefix and getattr(tape.classifier.network, "global_pool", "token") in ("token", ""):
        row[..., 0] = 1
    else:
        row[..., prefix:] = 1 / (row.shape[-1] - prefix)
    return row.expand(len(like), 1, -1)


def _patches(tape: Tape, row: Tensor) -> Tensor:
    """(M, 1, T) → (M, h, w)."""
    return row[:, 0, tape.classifier.prefix :].reshape(-1, *tape.features.shape[2:])


def _follow(tape: Tape, blocks: Iterable[Tensor], like: Tensor) -> Tensor:
    """The start row times (I + B_L) … (I + B_1), each factor's rows scaled to sum 1."""
    row = _start(tape, like)
    for block in blocks:
        total = 1 + block.sum(2)[:, None]
        scaled = row / total
        row = scaled + scaled @ block
    return _patches(tape, row)


def _contributions(tape: Tape, cases: Tensor, create_graph: bool) -> list[Tensor]:
    """(M, T, T) a block, the last first: mean over the heads of ReLU(∂A⊙A)."""
    rows = cases[:, 0].to(tape.logits.device)
    gradients = attention_gradients(tape, cases, create_graph)
    pairs = zip(gradients, attentions(tape), strict=True)
    return [(gradient * full(attention)[rows]).relu().mean(1) for gradient, attention in pairs][::-1]


def rollout(tape: Tape, cases: Tensor, *, create_graph: bool = False, heads: Heads = "mean") -> Tensor:
    """Row of the class token in Ã_L·…·Ã_1, Ã_l = (I + fuse over heads of A_l) with rows scaled to sum 1.

    Abnar & Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020. With the paper's mean over the
    heads Ã = (I + A)/2. The same for every class of an image; a network that pools its patches is followed
    from their mean. Cost: no pass beyond the forward, T² operations a block.

    Args:
        tape: a forward pass that needs `attentions`.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect; there is no derivative in it.
        heads: mean (the paper), max or min over the heads.

    Returns:
        (M, h, w), nowhere negative, of sum at most 1.

    Raises:
        ModelError: where the network has no attention between the tokens of its grid.
    """
    blocks = [full(_fuse(attention, heads)) for attention in attentions(tape)[::-1]]
    return _follow(tape, blocks, blocks[0])[cases[:, 0].to(tape.logits.device)]


def gradientrollout(tape: Tape, cases: Tensor, *, create_graph: bool = False) -> Tensor:
    """`rollout` with A_l replaced by mean over heads of ReLU(∂A_l⊙A_l): attention that speaks for the class.

    Gildenblat, "Exploring Explainability for Vision Transformers", 2020, with the heads' weighting of Chefer
    et al., "Transformer Interpretability Beyond Attention Visualization", CVPR 2021. Cost: one backward pass
    to the first block, shared with `transmm`.

    Args:
        tape: a forward pass that needs `attention_gradients`.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradients.

    Returns:
        (M, h, w), nowhere negative.

    Raises:
        ModelError: where the network has no attention between the tokens of its grid.
    """
    blocks = _contributions(tape, cases, create_graph)
    return _follow(tape, blocks, blocks[0])


def transmm(tape: Tape, cases: Tensor, *, create_graph: bool = False) -> Tensor:
    """Row of the class token in R, R ← R + Ā_l·R from R = I, Ā_l = mean over heads of ReLU(∂A_l⊙A_l).

    Chefer, Gur & Wolf, "Generic Attention-model Explainability", ICCV 2021, equations 5 and 6 for
    self-attention. Cost: one backward pass to the first block, shared with `gradientrollout`.

    Args:
        tape: a forward pass that needs `attention_gradients`.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradients.

    Returns:
        (M, h, w), nowhere negative.

    Raises:
        ModelError: where the network has no attention between the tokens of its grid.
    """
    blocks = _contributions(tape, cases, create_graph)
    row = _start(tape, blocks[0])
    for block in blocks:
        row = row + row @ block
    return _patches(tape, row)
