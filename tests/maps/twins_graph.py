"""Backward rules again, on the network's own list of operations: one image, one class, no graph of autograd.

`torch.fx` writes down the operations of a network. Their values are kept, and what a rule sends back is
handed from each operation to its inputs, one after the other, each by the rule's own formula.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from tests.maps.twins import enlarged, gradcam, run
from wsod.models import Classifier

Array = NDArray[np.float64]

_MODULES = {
    nn.Conv2d: "linear",
    nn.Linear: "linear",
    nn.BatchNorm2d: "norm",
    nn.ReLU: "relu",
    nn.ReLU6: "relu",
    nn.MaxPool2d: "max",
    nn.AvgPool2d: "mean",
    nn.AdaptiveAvgPool2d: "mean",
    nn.Flatten: "moves",
    nn.Dropout: "moves",
}
_FUNCTIONS = {
    operator.add: "sum",
    operator.iadd: "sum",
    F.relu: "relu",
    F.relu6: "relu",
    F.adaptive_avg_pool2d: "mean",
    F.max_pool2d: "max",
    "mean": "mean",
    # values change places at most
    torch.flatten: "moves",
    torch.cat: "moves",
    "clone": "moves",
}


def quotient(a: Tensor, b: Tensor) -> Tensor:
    """a / b, with 0/0 = 0."""
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


class Operation:
    """One line of the list: what kind it is, where its inputs come from, and its values for one image."""

    def __init__(self, node: fx.Node, network: nn.Module) -> None:
        self.node, self.sources = node, node.all_input_nodes
        self.module = network.get_submodule(node.target) if node.op == "call_module" else None
        self.kind = _MODULES[type(self.module)] if self.module is not None else _FUNCTIONS[node.target]
        self.inputs: list[Tensor] = []
        self.output = torch.zeros(())

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The operation on other values; in-place ones write over a copy."""
        of = dict(zip(self.sources, [value.clone() for value in inputs], strict=True))
        args = fx.node.map_arg(self.node.args, lambda n: of[n])
        kwargs = fx.node.map_arg(self.node.kwargs, lambda n: of[n])
        if self.module is not None:
            return self.module(*args, **kwargs)
        if self.node.op == "call_method":
            return getattr(args[0], self.node.target)(*args[1:], **kwargs)
        return self.node.target(*args, **kwargs)

    def transposed(self, message: Tensor, *at: Tensor) -> tuple[Tensor, ...]:
        """This one operation's Jacobian, transposed, times the message."""
        leaves = [value.detach().clone().requires_grad_() for value in at or self.inputs]
        with torch.enable_grad():
            return torch.autograd.grad(self(*leaves), leaves, message)

    @property
    def high(self) -> float:
        """The upper bound of a rectifier."""
        return 6.0 if isinstance(self.module, nn.ReLU6) or self.node.target is F.relu6 else np.inf


@lru_cache(8)
def trace(network: nn.Module) -> fx.GraphModule:
    """The list, whose modules are the network's own."""
    return fx.symbolic_trace(network)


Send = Callable[[Operation, Tensor], "tuple[Tensor, ...]"]


class Listing:
    """The operations of a classifier in order, with their values for one image (or for several, at once)."""

    def __init__(self, classifier: Classifier, images: Tensor) -> None:
        traced = trace(classifier.network)
        values: dict[fx.Node, Tensor] = {}
        self.operations: list[Operation] = []
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                values[node] = images
                self.image = node
            elif node.op == "output":
                self.logits = node.args[0]
            else:
                one = Operation(node, traced)
                one.inputs = [values[source] for source in one.sources]
                with torch.no_grad():
                    values[node] = one.output = one(*one.inputs)
                self.operations.append(one)
        self.scores = values[self.logits]
        with torch.no_grad():
            output, _ = run(classifier, images[0])
        same = [n for n, v in values.items() if v[:1].shape == output.shape and torch.equal(v[:1], output)]
        self.target = same[0] if same else None

    def back(self, label: int, send: Send, *, start: float = 1.0, stop: fx.Node | None = None) -> Tensor:
        """What arrives at `stop`, the image by default, when `start` leaves from the class's logit."""
        messages = {self.logits: torch.zeros_like(self.scores)}
        messages[self.logits][:, label] = start
        stop = stop or self.image
        for one in reversed(self.operations):
            if one.node is stop:
                break
            if one.node in messages:
                for source, part in zip(one.sources, send(one, messages.pop(one.node)), strict=True):
                    messages[source] = messages[source] + part if source in messages else part
        return messages[stop]


def through_relus(classifier: Classifier, image: Tensor, label: int, rule: str) -> Array:
    """(3, H, W): the gradient, rectifiers following `rule`."""

    def send(one: Operation, message: Tensor) -> tuple[Tensor, ...]:
        if one.kind != "relu":
            return one.transposed(message)
        (z,) = one.inputs
        gate = torch.ones_like(z) if rule == "deconvnet" else ((z > 0) & (z < one.high)).double()
        return (message * gate if rule == "plain" else message * gate * (message > 0),)

    return Listing(classifier, image[None]).back(label, send)[0].numpy()


def guidedbackprop(classifier: Classifier, image: Tensor, label: int) -> Array:
    return np.abs(through_relus(classifier, image, label, "guided")).max(0)


def deconvnet(classifier: Classifier, image: Tensor, label: int) -> Array:
    return np.abs(through_relus(classifier, image, label, "deconvnet")).max(0)


def guidedgradcam(classifier: Classifier, image: Tensor, label: int) -> Array:
    fine = enlarged(gradcam(classifier, image, label), tuple(image.shape[1:]))
    return np.abs(fine * through_relus(classifier, image, label, "guided")).max(0)


def pooled_differences(one: Operation, message: Tensor) -> Tensor:
    """Multipliers of max pooling, window by window, of an image and its baseline."""
    (both,), pool = one.inputs, one.module
    size, stride, padding = pool.kernel_size, pool.stride, pool.padding
    given = torch.zeros_like(both[0])
    for channel, rows, columns in np.ndindex(*one.output.shape[1:]):
        top, left = max(rows * stride - padding, 0), max(columns * stride - padding, 0)
        bottom, right = rows * stride - padding + size, columns * stride - padding + size
        here, there = both[:, channel, top:bottom, left:right]
        first, second = int(here.argmax()), int(there.argmax())
        if there.ravel()[first] == there.max():  # a baseline of one colour is the same in several cells
            second = first
        high, low, above = here.max(), there.max(), max(here.max(), there.max())
        amount, wide = message[0, channel, rows, columns], here.shape[1]
        given[channel, top + first // wide, left + first % wide] += amount * (above - low)
        given[channel, top + second // wide, left + second % wide] += amount * (high - above)
    return quotient(given, both[0] - both[1])


def deeplift(classifier: Classifier, image: Tensor, label: int) -> Array:
    """The rescale rule, from the differences of two images."""

    def send(one: Operation, message: Tensor) -> tuple[Tensor, ...]:
        if one.kind == "max":
            return (pooled_differences(one, message)[None].repeat(2, 1, 1, 1),)
        if one.kind != "relu":
            return one.transposed(message)
        (both,) = one.inputs
        moved, changed = both[0] - both[1], one.output[0] - one.output[1]
        slope = ((both[0] > 0) & (both[0] < one.high)).double()
        return (message * torch.where(moved.abs() < 1e-9, slope, quotient(changed, moved)),)

    listing = Listing(classifier, torch.stack([image, torch.zeros_like(image)]))
    return (image * listing.back(label, send)[0]).sum(0).numpy()


def lrp(classifier: Classifier, image: Tensor, label: int) -> Array:
    """ε of 0.01 at every rectifier; all else shares in proportion to its contributions, biases absorb."""

    def send(one: Operation, message: Tensor) -> tuple[Tensor, ...]:
        if one.kind == "relu":
            z = one.inputs[0].clamp(min=0)  # what ReLU6 cuts off is z's all the same
            return (message * z / (z + 0.01),)
        if one.kind in ("max", "moves"):
            return one.transposed(message)
        shares = one.transposed(quotient(message, one.output))
        return tuple(x * each for x, each in zip(one.inputs, shares, strict=True))

    listing = Listing(classifier, image[None])
    return listing.back(label, send, start=float(listing.scores[0, label]))[0].sum(0).numpy()


def excite(one: Operation, message: Tensor, weight: Tensor) -> Tensor:
    """P(a_i) = Σ_j c⁺_ij / Σ_k c⁺_kj·P(a_j), c_ij = a_i·w_ij: of positive inputs, then of negative ones."""
    (x,), layer = one.inputs, one.module

    def act(values: Tensor, w: Tensor) -> Tensor:
        if isinstance(layer, nn.Linear):
            return values @ w.T
        return F.conv2d(values, w, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    halves = [(x.clamp(min=0), weight.clamp(min=0)), (x.clamp(max=0), weight.clamp(max=0))]
    each = quotient(message, sum(act(values, w) for values, w in halves))
    out = torch.zeros_like(x)
    for values, w in halves:
        leaf = values.clone().requires_grad_()
        with torch.enable_grad():
            out += values * torch.autograd.grad(act(leaf, w), leaf, each)[0]
    return out


def walk(classifier: Classifier, image: Tensor, label: int, contrastive: bool) -> Tensor:
    """(D, h, w): the probabilities at the target layer."""
    listing = Listing(classifier, image[None])
    last = [one for one in listing.operations if isinstance(one.module, nn.Linear)][-1]

    def send(one: Operation, message: Tensor) -> tuple[Tensor, ...]:
        if one.kind == "linear":
            weight = one.module.weight.detach()
            for other in listing.operations:  # a batch normalisation behind it is folded in
                if other.kind == "norm" and other.sources == [one.node]:
                    norm = other.module
                    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                    weight = weight * scale.detach()[:, None, None, None]
            found = excite(one, message, weight)
            return (found - excite(one, message, -weight) if contrastive and one is last else found,)
        if one.kind in ("norm", "relu"):
            return (message,)
        if one.kind in ("max", "moves"):
            return one.transposed(message)
        found = [torch.zeros_like(x) for x in one.inputs]
        for sign in (1, -1):  # sums and means: to the operands of their own sign
            excited = [(sign * x).clamp(min=0) for x in one.inputs]
            here = (one.output >= 0) if sign == 1 else (one.output < 0)
            each = quotient(message * here, one(*excited))
            shares = one.transposed(each, *excited)
            found = [f + e * s for f, e, s in zip(found, excited, shares, strict=True)]
        return tuple(found)

    assert listing.target is not None
    return listing.back(label, send, stop=listing.target)[0]


def excitationbackprop(classifier: Classifier, image: Tensor, label: int) -> Array:
    return walk(classifier, image, label, False).sum(0).numpy()


def contrastiveexcitationbackprop(classifier: Classifier, image: Tensor, label: int) -> Array:
    return walk(classifier, image, label, True).sum(0).clamp(min=0).numpy()


GRAPH_TWINS = {
    "contrastiveexcitationbackprop": contrastiveexcitationbackprop,
    "deconvnet": deconvnet,
    "deeplift": deeplift,
    "excitationbackprop": excitationbackprop,
    "guidedbackprop": guidedbackprop,
    "guidedgradcam": guidedgradcam,
    "lrp": lrp,
}
