"""Channels weighted by what the network says of the image seen through them: no gradient, many forwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wsod.errors import ConfigError
from wsod.maps.method import combine, rectify
from wsod.maps.sweep import Forward, Precision, ScoreKind, chunk_size, scores_of, sweeping
from wsod.maps.tape import Tape

__all__ = ["iscam", "scorecam", "sscam"]

Normalise = Literal["after", "before"]
Variants = list[Callable[[Tensor], Tensor]]


def scorecam(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    relu: bool = True,
    score: ScoreKind = "logit",
    normalise: Normalise = "after",
    align_corners: bool = False,
    chunk: int = 0,
    precision: Precision = "full",
    fold: bool = True,
) -> Tensor:
    """ReLU Σ_d w_d·A_d with w = softmax over the channels of s(x⊙M_d), M_d = min-max(upsample(A_d)).

    Wang et al., "Score-CAM", CVPR 2020 workshop; the paper's baseline s(0) shifts all scores alike and drops
    out of the softmax. One forward pass a channel and image, for all classes together; channels that are
    constant (dead ones too) have the same empty mask and share one. Masks are made a chunk at a time.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect.
        relu: the paper's last ReLU.
        score: the class's `logit`, or its `probability` (then the weights are nearly alike).
        normalise: min-max `after` upsampling, as the paper's code, or `before`, as torchcam.
        align_corners: of the bilinear upsampling; True as in pytorch-grad-cam.
        chunk: masked images a pass; 0 = what suits the device.
        precision: `bf16` runs the masked images in bfloat16.
        fold: fold batch norms into convolutions where that is exact.

    Returns:
        (M, h, w).
    """
    return _masked(tape, cases, [lambda m: m], relu, score, normalise, align_corners, chunk, precision, fold)


def sscam(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    relu: bool = True,
    samples: int = 35,
    noise: float = 2.0,
    seed: int = 0,
    score: ScoreKind = "logit",
    normalise: Normalise = "after",
    align_corners: bool = False,
    chunk: int = 0,
    precision: Precision = "full",
    fold: bool = True,
) -> Tensor:
    """Score-CAM with each channel's score averaged over noisy masks, s(x⊙(M_d + N(0, σ²))).

    Wang et al., "SS-CAM: Smoothed Score-CAM", 2020. `samples` forward passes a channel. The noise is drawn
    from a generator of its own; the same fields serve all channels and images, so that channels do not differ
    by their noise, and constant ones share their passes.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect.
        relu: the last ReLU.
        samples: noisy masks a channel.
        noise: σ, where masks are in [0, 1].
        seed: of the noise.
        score: as `scorecam`.
        normalise: as `scorecam`.
        align_corners: as `scorecam`.
        chunk: as `scorecam`.
        precision: as `scorecam`.
        fold: as `scorecam`.

    Returns:
        (M, h, w).
    """
    generator = torch.Generator().manual_seed(seed)
    images = tape.images

    def noisy(field: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda masks: masks + noise * field

    fields = [torch.randn(images.shape[2:], generator=generator) for _ in range(samples)]
    variants = [noisy(field.to(images.device, images.dtype)) for field in fields]
    return _masked(tape, cases, variants, relu, score, normalise, align_corners, chunk, precision, fold)


def iscam(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    relu: bool = True,
    steps: int = 10,
    score: ScoreKind = "logit",
    normalise: Normalise = "after",
    align_corners: bool = False,
    chunk: int = 0,
    precision: Precision = "full",
    fold: bool = True,
) -> Tensor:
    """Score-CAM with each channel's score averaged along a path of masks, s(x⊙M_d·n/N), n = 1 … N.

    Naidu et al., "IS-CAM: Integrated Score-CAM", 2020. `steps` forward passes a channel.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect.
        relu: the last ReLU.
        steps: N.
        score: as `scorecam`.
        normalise: as `scorecam`.
        align_corners: as `scorecam`.
        chunk: as `scorecam`.
        precision: as `scorecam`.
        fold: as `scorecam`.

    Returns:
        (M, h, w).
    """

    def part(share: float) -> Callable[[Tensor], Tensor]:
        return lambda masks: masks * share

    variants = [part((n + 1) / steps) for n in range(steps)]
    return _masked(tape, cases, variants, relu, score, normalise, align_corners, chunk, precision, fold)


def _masked(
    tape: Tape,
    cases: Tensor,
    variants: Variants,
    relu: bool,
    score: ScoreKind,
    normalise: Normalise,
    align_corners: bool,
    chunk: int,
    precision: Precision,
    fold: bool,
) -> Tensor:
    if normalise not in ("after", "before"):
        raise ConfigError("normalise", "after or before", repr(normalise))
    scores_of(tape, tape.logits[:0], score)
    labels, rows = cases[:, 1].to(tape.features.device), cases[:, 0].to(tape.features.device)
    features = tape.select(cases).detach()
    weights = features.new_zeros(features.shape[:2])
    size = chunk_size(tape.images, chunk)

    def masks_of(channels: Tensor) -> Tensor:
        """(B, h, w) → (B, H, W) in [0, 1]."""
        masks = channels[:, None] if normalise == "after" else _minmax(channels)[:, None]
        masks = F.interpolate(
            masks, tape.images.shape[2:], mode="bilinear", align_corners=align_corners or None
        )
        return (_minmax(masks[:, 0]) if normalise == "after" else masks[:, 0]).to(tape.images.dtype)

    with sweeping(tape, precision, fold) as forward:
        for row in sorted(set(rows.tolist())):
            mine = rows == row
            found = weights.new_zeros(features.shape[1], int(mine.sum()))
            channels = tape.features[row].detach()
            live = (channels.amax((1, 2)) > channels.amin((1, 2))).nonzero()[:, 0]
            dead = found.new_ones(len(found), dtype=torch.bool)
            dead[live] = False
            image = tape.images[row].detach()
            for some in _chunks(live, size):
                seen = _average(tape, forward, image, masks_of(channels[some]), variants, score)
                found[some] = seen[:, labels[mine]].to(found.dtype)
            if bool(dead.any()):
                empty = image.new_zeros(1, *image.shape[1:])
                alike = _average(tape, forward, image, empty, variants, score)
                found[dead] = alike[:, labels[mine]].to(found.dtype)
            weights[mine] = found.softmax(0).T
    return rectify(combine(weights, features), relu)


def _chunks(indices: Tensor, size: int) -> list[Tensor]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _minmax(values: Tensor) -> Tensor:
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return (values - low) / (high - low).masked_fill(high == low, 1.0)


def _average(
    tape: Tape, forward: Forward, image: Tensor, masks: Tensor, variants: Variants, score: ScoreKind
) -> Tensor:
    """(B, C) mean score of the image under each variant of the masks (B, H, W)."""
    total = sum(scores_of(tape, forward(image * vary(masks)[:, None]), score) for vary in variants)
    assert isinstance(total, Tensor)
    return total / len(variants)
