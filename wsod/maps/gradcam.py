"""Maps with one weight a channel, taken from the gradient at the target layer.

A (D, h, w) are the features of the case's image, g = ∂ logit / ∂ A.
"""

from __future__ import annotations

from torch import Tensor

from wsod.maps.method import combine, rectify
from wsod.maps.tape import Tape

__all__ = ["gradcam", "gradcam_plus_plus", "xgradcam"]


def gradcam(tape: Tape, cases: Tensor, *, create_graph: bool = False, relu: bool = True) -> Tensor:
    """ReLU Σ_d mean(g_d)·A_d (Selvaraju et al., "Grad-CAM", ICCV 2017).

    With a linear head on average-pooled features this is ReLU(CAM) / (h·w).

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradient.
        relu: the paper's last ReLU; False keeps evidence against the class.

    Returns:
        (M, h, w).
    """
    gradient = tape.gradient(cases, create_graph)
    return rectify(combine(gradient.mean((2, 3)), tape.select(cases)), relu)


def gradcam_plus_plus(tape: Tape, cases: Tensor, *, create_graph: bool = False, relu: bool = True) -> Tensor:
    """ReLU Σ_d w_d·A_d with w_d = Σ ReLU(g_d) / (2 + g_d·ΣA_d).

    Chattopadhyay et al., "Grad-CAM++", WACV 2018: the paper's α = g²/(2g² + ΣA·g³), divided by g². The same
    wherever g ≠ 0, without the underflow of g³.

    Differs from the paper: ΣA counts positive activations only. After a ReLU that is all of them; after other
    activations the paper's denominator can vanish.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradient.
        relu: the paper's last ReLU.

    Returns:
        (M, h, w).
    """
    gradient, features = tape.gradient(cases, create_graph), tape.select(cases)
    total = features.relu().sum((2, 3), keepdim=True)
    positive = gradient.relu()
    weights = (positive / (2 + total * positive)).sum((2, 3))
    return rectify(combine(weights, features), relu)


def xgradcam(tape: Tape, cases: Tensor, *, create_graph: bool = False, relu: bool = True) -> Tensor:
    """ReLU Σ_d w_d·A_d with w_d = Σ(g_d·A_d) / ΣA_d (Fu et al., "Axiom-based Grad-CAM", BMVC 2020).

    A channel whose activations sum to zero gets the weight zero.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradient.
        relu: the last ReLU.

    Returns:
        (M, h, w).
    """
    gradient, features = tape.gradient(cases, create_graph), tape.select(cases)
    total = features.sum((2, 3))
    dead = total == 0
    weights = (gradient * features).sum((2, 3)) / total.masked_fill(dead, 1.0)
    return rectify(combine(weights.masked_fill(dead, 0.0), features), relu)
