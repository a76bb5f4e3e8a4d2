"""Excitation backprop: the probability that a walk down from the class passes through a neuron."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wsod.errors import ModelError
from wsod.maps.guided import Rectifier
from wsod.maps.method import rectify
from wsod.maps.relevance import Layer, Node, Sent, relevance_mode, vjp
from wsod.maps.rules import positive, share
from wsod.maps.tape import Tape
from wsod.models.final import final_layer

__all__ = ["contrastiveexcitationbackprop", "excitationbackprop"]


@dataclass(frozen=True)
class _Walk:
    """P of each operation's inputs from P of its outputs; operations with one input each pass it on.

    Args:
        contrast: the weight of the layer that gives the logits; there P minus P under the negated weights.
    """

    contrast: Tensor | None = field(default=None, compare=False)
    contrastive: bool = False

    def rectifier(self, site: Rectifier, grad: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return grad

    def layer(self, node: Layer, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Sent:
        signed, _ = node.folded(weight, None)
        total, pull = positive(node, x, signed)
        found = pull(share(grad, total))
        if self.contrast is not None and node.weight() is self.contrast:
            against, push = positive(node, x, -signed)
            found = found - push(share(grad, against))
        return (x * found,)

    def norm(self, node: Node, grad: Tensor, x: Tensor, scale: Tensor) -> Sent:
        return (grad,)

    def sum(self, node: Node, grad: Tensor, a: Tensor, b: Tensor) -> Sent:
        """In proportion to the operands of the sum's sign; a broadcast operand gets the sum of its parts."""
        sign = torch.where(a + b < 0, -1, 1)
        parts = [(value * sign).relu() for value in (a, b)]
        each = share(grad, parts[0] + parts[1])
        return tuple(
            (part * each).sum_to_size(value.shape) for part, value in zip(parts, (a, b), strict=True)
        )

    def mean(self, node: Node, grad: Tensor, x: Tensor) -> Sent:
        """In proportion to the inputs of the mean's sign."""
        above = node.run(x) >= 0
        found = torch.zeros_like(x)
        for excited, here in ((x.relu(), above), ((-x).relu(), ~above)):
            total, pull = vjp(node.run, excited)
            found = found + excited * pull(share(grad * here, total))
        return (found,)


def excitationbackprop(
    tape: Tape, cases: Tensor, *, create_graph: bool = False, contrastive: bool = False, relu: bool = True
) -> Tensor:
    """P(a_i) = Σ_j a_i·w⁺_ij / (Σ_k a_k·w⁺_kj)·P(a_j), from P = 1 at the class down to the target layer.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016: marginal winning probability
    (MWP), biases left out, summed over the channels of the target layer. The paper stops in the middle of the
    network (VGG16's pool4, GoogLeNet's pool2): choose a target layer such as ResNet's `layer3`. The sum of a
    map is 1, but for what reaches a neuron that no input excites. Cost: the forward pass, and below the class
    down to the target layer each layer once more and once transposed.

    Contrastive (c-MWP): P under the weights of the class minus P under their negation, from the layer that
    gives the logits downwards; what all classes share cancels, and the sum before the last ReLU is 0.

    Differs from the paper, whose networks have neither: batch normalisation is folded into the layer before
    it (elsewhere it passes probability on, one input to one output), sums and averages share in proportion to
    the operands of their own sign (after a ReLU, to all).

    Args:
        tape: a forward pass that needs `probability`.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the probabilities.
        contrastive: c-MWP.
        relu: the paper's last ReLU of c-MWP; without it, what speaks against the class is negative.

    Returns:
        (M, h, w), nowhere negative (but for `relu=False`).

    Raises:
        ModelError: for networks with other activations than ReLUs, attention, gates or layer norms; for a
            contrast that cancels in every cell (SqueezeNet's last layer).
    """
    relevance_mode(tape, "excitation backprop")
    rules = _Walk()
    if contrastive:
        rules = _Walk(final_layer(tape.classifier.network, tape.logits.shape[1])[1].weight, True)
    sent = tape.sent_back(rules, cases, create_graph)
    maps = sent.sum(1)
    if contrastive and len(cases):
        # both walks from one cell to the same cell: P and its contrast cancel there, all but their rounding
        cancelled = maps.abs().amax((1, 2)) < 1e-4 * sent.abs().sum(1).amax((1, 2))
        if bool(cancelled.any()):
            raise ModelError(
                f"{tape.classifier.arch}, layer {tape.classifier.target_layer}",
                "a target layer from which a logit is reached by more than a 1x1 convolution",
                "a contrast of zero in every cell",
                "Choose an earlier target layer, or use excitationbackprop.",
            )
    return rectify(maps, relu)


def contrastiveexcitationbackprop(
    tape: Tape, cases: Tensor, *, create_graph: bool = False, relu: bool = True
) -> Tensor:
    """`excitationbackprop` with `contrastive=True`: c-MWP of Zhang et al., ECCV 2016.

    Args:
        tape: a forward pass that needs `probability`.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the probabilities.
        relu: the paper's last ReLU; without it, what speaks against the class is negative.

    Returns:
        (M, h, w), nowhere negative (but for `relu=False`).

    Raises:
        ModelError: for networks with other activations than ReLUs, attention, gates or layer norms; for a
            contrast that cancels in every cell (SqueezeNet's last layer).
    """
    return excitationbackprop(tape, cases, create_graph=create_graph, contrastive=True, relu=relu)
