"""Class activation mapping: the classifier's own weights, applied before the pooling."""

from __future__ import annotations

from torch import Tensor

from wsod.maps.method import combine, rectify
from wsod.maps.tape import Tape

__all__ = ["cam"]


def cam(tape: Tape, cases: Tensor, *, create_graph: bool = False, relu: bool = False) -> Tensor:
    """Σ_d W[k, d]·A_d (Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016).

    Its mean over the cells, plus the bias, is the logit. Negative values are evidence against the class and
    are kept, as in the paper. Where the head is a 1×1 convolution, ReLU and pooling (SqueezeNet), the map is
    that convolution's output without its bias.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect; there is no derivative in it.
        relu: clip negative values.

    Returns:
        (M, h, w).

    Raises:
        ModelError: where the head is not linear on the pooled features.
    """
    weights = tape.class_weights[cases[:, 1].to(tape.features.device)]
    return rectify(combine(weights, tape.select(cases)), relu)
