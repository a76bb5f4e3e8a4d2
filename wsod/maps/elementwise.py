"""Maps that multiply gradient and activation cell by cell: nothing is averaged over the grid.

A (D, h, w) are the features of the case's image, g = ∂ logit / ∂ A.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from wsod.maps.method import rectify
from wsod.maps.tape import Tape

__all__ = ["elementgradcam", "hirescam", "layercam"]


def hirescam(tape: Tape, cases: Tensor, *, create_graph: bool = False, relu: bool = True) -> Tensor:
    """ReLU Σ_d g_d·A_d (Draelos & Carin, "Use HiResCAM instead of Grad-CAM", 2020).

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradient.
        relu: the last ReLU.

    Returns:
        (M, h, w).
    """
    return rectify((tape.gradient(cases, create_graph) * tape.select(cases)).sum(1), relu)


def elementgradcam(tape: Tape, cases: Tensor, *, create_graph: bool = False) -> Tensor:
    """Σ_d ReLU(g_d·A_d): only contributions for the class (element-wise Grad-CAM; Pillai & Pirsiavash, 2021).

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradient.

    Returns:
        (M, h, w), nowhere negative.
    """
    return (tape.gradient(cases, create_graph) * tape.select(cases)).relu().sum(1)


def layercam(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    relu: bool = True,
    layers: Sequence[str] | str = (),
    gamma: float = 2.0,
) -> Tensor:
    """ReLU Σ_d ReLU(g_d)·A_d (Jiang et al., "LayerCAM", IEEE TIP 2021), of one layer or fused over several.

    Fused, each layer's map M becomes tanh(γ·M / max M), is resized bilinearly to the finest of them, and the
    largest value counts. All layers share the forward pass and the backward passes.

    Differs from the paper: it scales the maps of shallow layers alone; here all of them are scaled alike.

    Args:
        tape: the forward pass; made with `layers` where several are fused.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradient.
        relu: the paper's last ReLU.
        layers: paths of the layers to fuse (as one text: joined by `+`); none: the target layer alone.
        gamma: γ.

    Returns:
        (M, h, w), of the finest layer.
    """
    if not layers:
        return rectify((tape.gradient(cases, create_graph).relu() * tape.select(cases)).sum(1), relu)
    paths = layers.split("+") if isinstance(layers, str) else list(layers)
    maps = []
    for layer, gradient in zip(paths, tape.gradients(cases, paths, create_graph), strict=True):
        one = rectify((gradient.relu() * tape.select(cases, tape.features_at(layer))).sum(1), relu)
        top = one.flatten(1).amax(1)[:, None, None]
        maps.append((gamma * one / top.masked_fill(top <= 0, 1.0)).tanh()[:, None])
    height, width = (max(one.shape[axis] for one in maps) for axis in (2, 3))
    resized = [F.interpolate(one, (height, width), mode="bilinear", align_corners=False) for one in maps]
    return torch.stack(resized).amax(0)[:, 0]
