"""The rules of layer-wise relevance propagation, and the composites made of them.

For a layer z_j = Σ_i c_ij + b_j with contributions c_ij = x_i·w_ij, written c⁺ where positive and c⁻ where
negative, p_j = Σ_i c⁺_ij + b⁺_j, n_j = Σ_i c⁻_ij + b⁻_j = z_j - p_j, and relevance R_j of its outputs, the
relevance of its inputs is, with 0/0 = 0:

- epsilon     R_i = Σ_j c_ij·R_j / (z_j + ε·sign z_j)                     (Bach et al., PLoS ONE 2015)
- z+          R_i = Σ_j c⁺_ij·R_j / p_j                                   (Montavon et al., PR 2017)
- gamma       R_i = Σ_j (c_ij + γ·c⁺_ij)·R_j / (z_j + γ·p_j) for z_j ≥ 0, c⁻ and n for z_j < 0
                                                                          (Montavon et al., 2019; Andéol 2021)
- alpha-beta  R_i = Σ_j (α·c⁺_ij / p_j - β·c⁻_ij / n_j)·R_j, α - β = 1    (Bach et al. 2015)
- flat        R_i = Σ_j R_j / (number of inputs of j)                     (Lapuschkin et al., 2019)
- z^B         R_i = Σ_j (x_i·w_ij - l_i·w⁺_ij - h_i·w⁻_ij)·R_j / (their sum over i), l ≤ x ≤ h
                                                                          (Montavon et al., PR 2017)

Biases are shares of z, p and n, and absorb relevance. All but the last two are R_i = x_i·G_i with
G = Wᵀu + W⁺ᵀv for vectors u, v of the outputs (W⁺ᵀ is W⁻ᵀ where x is negative). Networks pass G from layer to
layer, so that sums, poolings and concatenations share relevance in proportion by their ordinary gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor

from wsod.maps.guided import Rectifier
from wsod.maps.relevance import Layer, Node, Sent, vjp

__all__ = [
    "AlphaBeta",
    "Box",
    "BoxBias",
    "Composite",
    "Epsilon",
    "Flat",
    "Gamma",
    "ZPlus",
    "positive",
    "share",
]

BoxBias = Literal["cancel", "absorb"]

# far below any sum of contributions, far above what a quotient could overflow with
_SMALL = 1e-30


def share(relevance: Tensor, total: Tensor, epsilon: float = 0.0) -> Tensor:
    """relevance / (total + ε·sign total), zero where that is zero."""
    if epsilon:
        total = torch.where(total < 0, total - epsilon, total + epsilon)
    nothing = total == 0
    return (relevance / total.masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0)


def positive(layer: Layer, x: Tensor, weight: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Σ_i c⁺_ij, and its transpose: v ↦ W⁺ᵀv (W⁻ᵀv where x is negative)."""
    plus = weight.clamp(min=0)
    # after a ReLU, which is almost everywhere, half of the work is none
    if float(x.detach().min()) >= 0:
        return vjp(lambda a: layer.run(a, plus), x)
    minus = weight.clamp(max=0)
    return vjp(lambda a: layer.run(a.clamp(min=0), plus) + layer.run(a.clamp(max=0), minus), x)


@dataclass(frozen=True)
class Epsilon:
    """u = R / (z + ε·sign z)."""

    epsilon: float

    def __call__(self, layer: Layer, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """G (Flat and Box: R) of the inputs, from the gradient that arrived at the layer's output."""
        (z, relevance), (w, _) = layer.incoming(grad, x, weight, bias), layer.folded(weight, bias)
        return vjp(lambda a: layer.run(a, w), x)[1](share(relevance, z, self.epsilon))


@dataclass(frozen=True)
class ZPlus:
    """v = R / p."""

    def __call__(self, layer: Layer, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        offset = layer.offset()
        if offset is None or torch.is_grad_enabled():
            _, relevance = layer.incoming(grad, x, weight, bias)
            w, b = layer.folded(weight, bias)
            total, pull = positive(layer, x, w)
            return pull(share(relevance, total + layer.channels(b.clamp(min=0))))
        # shares do not change when z and p are divided by the normalisation's scale: weights stay as they are
        total, pull = positive(layer, x, weight)
        shift = weight.new_zeros(len(weight)) + offset
        relevance = (layer.values(grad, x, weight, bias) + layer.channels(shift)).mul_(grad)
        shift = shift if bias is None else shift + bias
        # where p is 0 all inputs with a weight are, and G, whatever it is, is multiplied by them
        return pull(relevance.div_(total.add_(layer.channels(shift.relu())).clamp_(min=_SMALL)))


@dataclass(frozen=True)
class Gamma:
    """z ≥ 0: u = R / (z + γ·p), v = γ·u. z < 0: with s = R / (z + γ·n), u = (1 + γ)·s, v = -γ·s."""

    gamma: float

    def __call__(self, layer: Layer, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (z, relevance), (w, b) = layer.incoming(grad, x, weight, bias), layer.folded(weight, bias)
        total, pull = positive(layer, x, w)
        p = total + layer.channels(b.clamp(min=0))
        above = z >= 0
        s = share(relevance, z + self.gamma * torch.where(above, p, z - p))
        u = torch.where(above, s, (1 + self.gamma) * s)
        return vjp(lambda a: layer.run(a, w), x)[1](u) + pull(self.gamma * torch.where(above, s, -s))


@dataclass(frozen=True)
class AlphaBeta:
    """G = α·W⁺ᵀ(R / p) - β·W⁻ᵀ(R / n), β = α - 1."""

    alpha: float

    def __call__(self, layer: Layer, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (_, relevance), (w, b) = layer.incoming(grad, x, weight, bias), layer.folded(weight, bias)
        total, pull = positive(layer, x, w)
        p = total + layer.channels(b.clamp(min=0))
        v = self.alpha * share(relevance, p)
        if self.alpha == 1:
            return pull(v)
        # the negative part by its own sum: z - p would be a difference of nearly equal numbers where n is 0
        below, push = positive(layer, x, -w)
        s = (self.alpha - 1) * share(relevance, below + layer.channels((-b).clamp(min=0)))
        return pull(v) - push(s)


@dataclass(frozen=True)
class Flat:
    """First layer: every input of j has the same share; gives R_i, not G_i."""

    def __call__(self, layer: Layer, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        _, relevance = layer.incoming(grad, x, weight, bias)
        ones = torch.ones_like(weight)
        total, pull = vjp(lambda a: layer.run(a, ones), torch.ones_like(x))
        return pull(share(relevance, total))


@dataclass(frozen=True)
class Box:
    """First layer: z^B for inputs between `low` and `high` (a value a channel); gives R_i, not G_i.

    With `bias="absorb"` the denominator has max(b, 0) too, as in the code of ISNet's authors.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    epsilon: float
    bias: BoxBias = "cancel"

    def __call__(self, layer: Layer, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (_, relevance), (w, b) = layer.incoming(grad, x, weight, bias), layer.folded(weight, bias)
        low, high = (
            torch.tensor(side, dtype=x.dtype, device=x.device).reshape(-1, 1, 1).expand_as(x)
            for side in (self.low, self.high)
        )
        (z_x, pull), (z_low, pull_low), (z_high, pull_high) = (
            vjp(partial(_swapped, layer, weight), values)
            for values, weight in ((x, w), (low, w.clamp(min=0)), (high, w.clamp(max=0)))
        )
        total = z_x - z_low - z_high
        if self.bias == "absorb":
            total = total + layer.channels(b.clamp(min=0))
        s = share(relevance, total, self.epsilon)
        return x * pull(s) - low * pull_low(s) - high * pull_high(s)


def _swapped(layer: Layer, weight: Tensor, x: Tensor) -> Tensor:
    return layer.run(x, weight)


LayerRule = Epsilon | ZPlus | Gamma | AlphaBeta | Flat | Box


@dataclass(frozen=True)
class Composite:
    """Which rule for which layer. None: the layer's gradient, which is epsilon with ε = 0.

    Args:
        convolution: for convolutions.
        dense: for fully connected layers.
        first: for the first layer, in place of those.
        epsilon: of rectifiers: their gradient times a / (a + ε), a their output. In front of a layer without
            rule this is that layer's ε (Bassi et al., 2024, "LRP-Flex").
    """

    convolution: LayerRule | None = None
    dense: LayerRule | None = None
    first: LayerRule | None = None
    epsilon: float = 0.0

    def rectifier(self, site: Rectifier, grad: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Relevance passes: y·G_y = z·G_z, less the share of ε, but all after a first layer with a rule."""
        epsilon = 0.0 if site.first and self.first is not None else self.epsilon
        if not epsilon and y is z:
            return cast(Tensor, torch.ops.aten.threshold_backward(grad, y, 0))
        if y is z and torch.is_grad_enabled():
            return grad * (y / (y + epsilon))
        if y is z:
            shares = y + epsilon
            return torch.div(y, shares, out=shares).mul_(grad)
        return grad * share(y, z, epsilon)

    def layer(self, node: Layer, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Sent:
        rule = self.dense if node.dense else self.convolution
        rule = self.first if node.first and self.first is not None else rule
        if rule is None:
            return None
        return (rule(node, grad, x, weight, bias),)

    def norm(self, node: Node, grad: Tensor, x: Tensor, scale: Tensor) -> Sent:
        """The affine map's gradient, statistics held constant; its shift absorbs relevance."""
        return (grad * scale.reshape(-1, *[1] * (x.ndim - 2)),)

    def sum(self, node: Node, grad: Tensor, a: Tensor, b: Tensor) -> Sent:
        return None

    def mean(self, node: Node, grad: Tensor, x: Tensor) -> Sent:
        return None
