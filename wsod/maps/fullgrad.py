"""The score taken apart into its input's part and the part of every bias in the network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wsod.errors import ConfigError
from wsod.maps.derivatives import turns
from wsod.maps.tape import Tape

__all__ = ["fullgrad"]

Rescale = Literal["channel", "layer"]


def fullgrad(
    tape: Tape, cases: Tensor, *, create_graph: bool = False, rescale: Rescale = "channel"
) -> Tensor:
    """ψ(x⊙∂s/∂x) + Σ_layers Σ_d ψ(b_d·∂s/∂z_d), ψ = upsample(min-max(|·|)).

    Srinivas & Fleuret, "Full-Gradient Representation", NeurIPS 2019. z_d is the output of a convolution or
    batch norm and b_d what the layer adds to it; before ψ, all terms (those of linear layers too) sum to the
    score exactly, for a network of these layers and ReLUs. Linear layers have no place in the image and no
    part in the map. One forward and one backward pass to the input for each case of an image; the outputs of
    all those layers are kept for it.

    Differs from the paper: maps are upsampled with `align_corners=False`. A channel that varies by less than
    a millionth of its maximum is constant, and adds nothing.

    Args:
        tape: a forward pass that needs `input_gradient` and `biases`.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradients.
        rescale: min-max each `channel`, as the paper writes, or each `layer`, as its authors' code does.

    Returns:
        (M, H, W), nowhere negative.

    Raises:
        ModelError: for networks with layer normalisation, GELU and the like, whose score is no such sum.
    """
    if rescale not in ("channel", "layer"):
        raise ConfigError("rescale", "channel or layer", repr(rescale))
    tape.relus.refuse_others(f"{tape.classifier.arch}, full gradient")
    size = tape.images.shape[-2:]
    maps: list[tuple[int, Tensor]] = []
    # one case an image at a time: the gradients at all layers are as large as the network's activations
    for members in turns(cases[:, 0].tolist()):
        rows = cases[members, 0].to(tape.images.device)
        image, biases = tape.bias_gradients(cases[members], create_graph)
        total = _psi(tape.images[rows] * image, rescale, size)
        for bias, gradient in biases:
            total = total + _psi(bias.to(gradient.dtype)[:, None, None] * gradient, rescale, size)
        maps += zip(members, total, strict=True)
    if not maps:
        return tape.images.new_zeros(0, *size)
    return torch.stack([one for _, one in sorted(maps, key=lambda pair: pair[0])])


def _psi(values: Tensor, rescale: Rescale, size: torch.Size) -> Tensor:
    """(M, D, h, w) → (M, H, W): absolute values scaled to [0, 1], summed over the channels, upsampled."""
    values = values.abs()
    over = (2, 3) if rescale == "channel" else (1, 2, 3)
    low, high = values.amin(over, keepdim=True), values.amax(over, keepdim=True)
    constant = high - low <= 1e-6 * high
    scaled = ((values - low) / (high - low).masked_fill(constant, 1.0)).masked_fill(constant, 0.0)
    # the upsampling is linear: after the sum it costs one channel
    return F.interpolate(scaled.sum(1, keepdim=True), size, mode="bilinear", align_corners=False)[:, 0]
