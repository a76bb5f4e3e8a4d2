"""Channel weights from gradient and curvature: the Shapley value of a cell, to second order."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from wsod.errors import ConfigError
from wsod.maps.derivatives import recording
from wsod.maps.method import combine, rectify
from wsod.maps.tape import Tape

__all__ = ["shapleycam"]


def shapleycam(
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    relu: bool = True,
    score: Literal["rest", "logit"] = "rest",
) -> Tensor:
    """ReLU Σ_d w_d·A_d with w_d = mean over the cells of g_d - (H·A)_d / 2.

    Cai, "CAMs as Shapley Value-based Explainers", 2025: g and H are first and second derivative of the score
    by the features, H·A takes one more backward pass through the head. The score is the paper's ReST,
    s_k + log softmax(s)_k. On the logit alone H is zero under a linear head, and the map is Grad-CAM's.

    Differs from the paper: classifiers with independent labels (sigmoid) take s_k + log σ(s_k).

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of both derivatives.
        relu: the last ReLU.
        score: `rest` or `logit`.

    Returns:
        (M, h, w).
    """
    if score not in ("rest", "logit"):
        raise ConfigError("score", "rest or logit", repr(score))
    with recording():
        scores = tape.logits
        if score == "rest":
            multilabel = tape.classifier.task == "multilabel"
            scores = scores + (F.logsigmoid(scores) if multilabel else scores.log_softmax(1))
    weights = tape.gradient(cases, create_graph, scores=scores)
    weights = weights - tape.hessian_product(cases, scores, create_graph) / 2
    return rectify(combine(weights.mean((2, 3)), tape.select(cases)), relu)
