"""Maps that multiply gradient and activation cell by cell: nothing is averaged over the grid.

A (D, h, w) are the features of the case's image, g = ∂ logit / ∂ A.
"""

from __future__ import annotations

from torch import Tensor

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


def layercam(tape: Tape, cases: Tensor, *, create_graph: bool = False, relu: bool = True) -> Tensor:
    """ReLU Σ_d ReLU(g_d)·A_d (Jiang et al., "LayerCAM", IEEE TIP 2021), for one layer.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradient.
        relu: the paper's last ReLU.

    Returns:
        (M, h, w).
    """
    return rectify((tape.gradient(cases, create_graph).relu() * tape.select(cases)).sum(1), relu)
