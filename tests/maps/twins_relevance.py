"""Relevance handed back neuron by neuron: every layer a matrix, every share a fraction of contributions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.maps.networks import ReluNet, ResidualNet
from wsod.models import Classifier

Array = NDArray[np.float64]
Rule = Callable[[Array, Array, float, float], Array]


def fraction(part: Array, total: float) -> Array:
    return part / total if total != 0 else np.zeros_like(part)


def epsilon(value: float) -> Rule:
    def rule(c: Array, x: Array, bias: float, relevance: float) -> Array:
        z = c.sum() + bias
        return fraction(c, z + (value if z >= 0 else -value)) * relevance

    return rule


def zplus(c: Array, x: Array, bias: float, relevance: float) -> Array:
    return fraction(c.clip(min=0), c.clip(min=0).sum() + max(bias, 0)) * relevance


def gamma(value: float) -> Rule:
    def rule(c: Array, x: Array, bias: float, relevance: float) -> Array:
        above = c.sum() + bias >= 0
        kept = c.clip(min=0) if above else c.clip(max=0)
        absorbed = max(bias, 0) if above else min(bias, 0)
        changed = c + value * kept
        return fraction(changed, changed.sum() + bias + value * absorbed) * relevance

    return rule


def alphabeta(alpha: float) -> Rule:
    def rule(c: Array, x: Array, bias: float, relevance: float) -> Array:
        up, down = c.clip(min=0), c.clip(max=0)
        first = fraction(up, up.sum() + max(bias, 0))
        second = fraction(down, down.sum() + min(bias, 0))
        return (alpha * first - (alpha - 1) * second) * relevance

    return rule


class Dense:
    """A linear layer of one image as a matrix, with a batch normalisation behind it multiplied in."""

    def __init__(self, layer: nn.Module, x: Tensor, norm: nn.BatchNorm2d | None = None) -> None:
        def run(x: Tensor) -> Tensor:
            y = layer(x[None])[0]
            if norm is None:
                return y
            y = (y - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
            return y * norm.weight[:, None, None] + norm.bias[:, None, None]

        with torch.no_grad():
            self.bias = run(torch.zeros_like(x)).numpy().ravel()
            self.z = run(x)
        matrix = torch.autograd.functional.jacobian(run, x, vectorize=True)
        self.matrix = matrix.reshape(self.z.numel(), x.numel()).numpy()
        self.x = x

    def share(self, relevance: Array, rule: Rule) -> Array:
        """Relevance of the inputs, in their shape."""
        x, out = self.x.numpy().ravel(), np.zeros(self.x.numel())
        for row, bias, amount in zip(self.matrix, self.bias, relevance.ravel(), strict=True):
            if amount:
                out += rule(row * x, x, bias, amount)
        return out.reshape(self.x.shape)

    def flat(self, relevance: Array) -> Array:
        out = np.zeros(self.x.numel())
        # which inputs a cell sees does not depend on the weights
        for row, amount in zip(self.matrix, relevance.ravel(), strict=True):
            out += amount * (row != 0) / (row != 0).sum()
        return out.reshape(self.x.shape)

    def box(self, relevance: Array, low: Array, high: Array, value: float) -> Array:
        x, low, high = self.x.numpy().ravel(), low.ravel(), high.ravel()
        out = np.zeros(self.x.numel())
        for row, amount in zip(self.matrix, relevance.ravel(), strict=True):
            c = x * row - low * row.clip(min=0) - high * row.clip(max=0)
            out += c / (c.sum() + (value if c.sum() >= 0 else -value)) * amount
        return out.reshape(self.x.shape)


RULES: dict[str, Rule] = {
    "epsilon-plus": zplus,
    "gamma": gamma(0.25),
    "alpha-beta": alphabeta(2.0),
}


def first_layer(classifier: Classifier, layer: Dense, relevance: Array, rule: Rule, first: str) -> Array:
    if first == "same":
        return layer.share(relevance, rule)
    if first == "flat":
        return layer.flat(relevance)
    mean, std = np.array(classifier.preprocess.mean), np.array(classifier.preprocess.std)
    low, high = (np.broadcast_to(((b - mean) / std)[:, None, None], layer.x.shape) for b in (0.0, 1.0))
    return layer.box(relevance, low, high, 0.01)


def relu_net(classifier: Classifier, image: Tensor, label: int, name: str, first: str) -> Array:
    """(3, H, W) relevance of a `ReluNet`: layer by layer, each with the rule's own formula."""
    network = classifier.network
    assert isinstance(network, ReluNet)
    rule, dense = (epsilon(0.01), epsilon(0.0)) if name == "epsilon" else (RULES[name], epsilon(0.01))
    layers, x = [], image
    for layer in (network.first, network.second, network.third):
        layers.append(Dense(layer, x))
        x = layers[-1].z.clamp(min=0)
    mean = Dense(nn.AdaptiveAvgPool2d(1), x)
    head = Dense(network.fc, mean.z.flatten())
    relevance = np.zeros(len(head.z))
    relevance[label] = head.z[label]
    relevance = mean.share(head.share(relevance, dense), epsilon(0.0))
    for layer in layers[:0:-1]:
        relevance = layer.share(relevance, rule)
    return first_layer(classifier, layers[0], relevance, rule, first)


def residual_net(classifier: Classifier, image: Tensor, label: int, name: str, first: str) -> Array:
    """The same of a `ResidualNet`; ε in front of a sum is taken from the sum, as the function form does."""
    network = classifier.network
    assert isinstance(network, ResidualNet)
    functional = name == "epsilon"
    rule, dense = (epsilon(0.0), epsilon(0.0)) if functional else (RULES[name], epsilon(0.01))

    def rectified(relevance: Array, a: Tensor) -> Array:
        return relevance * (a / (a + 0.01)).numpy() if functional else relevance

    one = Dense(network.stem, image, network.norms[0])
    a = one.z.clamp(min=0)
    two = Dense(network.inner, a, network.norms[1])
    b = two.z.clamp(min=0, max=6)
    three = Dense(network.outer, b, network.norms[2])
    sum_ = a + three.z
    c = sum_.clamp(min=0)
    four = Dense(network.side, c)
    d = torch.cat([c, four.z.clamp(min=0)])
    with torch.no_grad():
        pooled, winners = nn.functional.max_pool2d(d[None], 2, return_indices=True)
    mean = Dense(nn.AdaptiveAvgPool2d(1), pooled[0])
    hidden = Dense(network.hidden, mean.z.flatten())
    head = Dense(network.fc, hidden.z.clamp(min=0))
    relevance = np.zeros(len(head.z))
    relevance[label] = head.z[label]
    relevance = rectified(head.share(relevance, dense), hidden.z.clamp(min=0))
    relevance = mean.share(hidden.share(relevance, dense), epsilon(0.0)).reshape(pooled[0].shape)
    spread = np.zeros(d.shape)
    for channel in range(len(d)):
        for place, amount in zip(
            winners[0, channel].ravel().tolist(), relevance[channel].ravel(), strict=True
        ):
            spread[channel].ravel()[place] += amount
    skipped, sided = spread[: len(c)], spread[len(c) :]
    on_c = skipped + four.share(rectified(sided, four.z.clamp(min=0)), rule)
    on_sum = rectified(on_c, c)
    nothing = (sum_ == 0).numpy()
    each = np.where(nothing, 0, on_sum / np.where(nothing, 1, sum_.numpy()))
    through = each * three.z.numpy()
    on_b = three.share(through, rule)
    if functional:
        z = two.z.clamp(min=0).numpy()
        on_b = on_b * z / (z + 0.01)
    on_a = each * a.numpy() + two.share(on_b, rule)
    if first == "same":
        on_a = rectified(on_a, a)
    return first_layer(classifier, one, on_a, rule, first)
