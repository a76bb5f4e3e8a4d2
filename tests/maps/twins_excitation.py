"""Excitation backprop written out: one image, one class, each layer a matrix, each neuron its own walk."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.maps.networks import ReluNet, ResidualNet
from tests.maps.twins_relevance import Dense
from wsod.models import Classifier

Array = NDArray[np.float64]


def step(matrix: Array, x: Array, probability: Array) -> Array:
    """P(a_i) = Σ_j c⁺_ij / Σ_k c⁺_kj·P(a_j), c_ij = a_i·w_ij."""
    out = np.zeros(x.size)
    for row, amount in zip(matrix, probability.ravel(), strict=True):
        excited = (row * x.ravel()).clip(min=0)
        if amount and excited.sum():
            out += excited / excited.sum() * amount
    return out.reshape(x.shape)


def down(layer: Dense, probability: Array) -> Array:
    return step(layer.matrix, layer.x.numpy(), probability)


def through_head(head: Dense, label: int, contrastive: bool) -> Array:
    one = np.zeros(len(head.z))
    one[label] = 1
    x = head.x.numpy()
    found = step(head.matrix, x, one)
    return found - step(-head.matrix, x, one) if contrastive else found


def relu_walk(classifier: Classifier, image: Tensor, label: int, contrastive: bool) -> Array:
    """Summed over the channels of the ReLU that is the target layer of a `ReluNet`."""
    network = classifier.network
    assert isinstance(network, ReluNet)
    stop, layers, x = int(classifier.target_layer.split(".")[1]), [], image
    for layer in (network.first, network.second, network.third):
        layers.append(Dense(layer, x))
        x = layers[-1].z.clamp(min=0)
    mean = Dense(nn.AdaptiveAvgPool2d(1), x)
    probability = through_head(Dense(network.fc, mean.z.flatten()), label, contrastive)
    probability = down(mean, probability)
    for layer in layers[:stop:-1]:
        probability = down(layer, probability)
    return probability.sum(0)


def walk(classifier: Classifier, image: Tensor, label: int) -> Array:
    return relu_walk(classifier, image, label, False)


def contrast(classifier: Classifier, image: Tensor, label: int) -> Array:
    return relu_walk(classifier, image, label, True).clip(min=0)


def divide(a: Array, b: Array, probability: Array) -> tuple[Array, Array]:
    """A sum's probability to its operands, in proportion to those of the sum's sign."""
    sign = np.where(a + b < 0, -1, 1)
    up, other = (a * sign).clip(min=0), (b * sign).clip(min=0)
    total = up + other
    each = np.divide(probability, total, out=np.zeros_like(total), where=total > 0)
    return up * each, other * each


def residual_walk(classifier: Classifier, image: Tensor, label: int, contrastive: bool) -> Array:
    """Down to the output of a `ResidualNet`'s first convolution."""
    network = classifier.network
    assert isinstance(network, ResidualNet)
    a = Dense(network.stem, image, network.norms[0]).z.clamp(min=0)
    two = Dense(network.inner, a, network.norms[1])
    three = Dense(network.outer, two.z.clamp(min=0, max=6), network.norms[2])
    c = (a + three.z).clamp(min=0)
    four = Dense(network.side, c)
    d = torch.cat([c, four.z.clamp(min=0)])
    pooled, winners = nn.functional.max_pool2d(d[None].detach(), 2, return_indices=True)
    mean = Dense(nn.AdaptiveAvgPool2d(1), pooled[0])
    hidden = Dense(network.hidden, mean.z.flatten())
    head = Dense(network.fc, hidden.z.clamp(min=0))
    probability = down(mean, down(hidden, through_head(head, label, contrastive)))
    on_d = np.zeros(d.shape)
    for channel in range(len(d)):
        places = winners[0, channel].ravel().tolist()
        for place, amount in zip(places, probability[channel].ravel(), strict=True):
            on_d[channel].ravel()[place] += amount
    on_c = on_d[: len(c)] + down(four, on_d[len(c) :])
    on_three, on_a = divide(three.z.numpy(), a.numpy(), on_c)
    return (on_a + down(two, down(three, on_three))).sum(0)
