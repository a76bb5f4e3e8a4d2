"""Backward rules for whole networks: relevance instead of the gradient, in one graph, without module surgery.

`RelevanceMode` runs the network's own operations and lays a node over the output of every linear layer
(and, for probabilities, of every sum, average and batch normalisation). Run backward under the ordinary
rules, the node passes the gradient on to the operation it lies over; under others it sends to the
operation's inputs what the rule says, and the operation itself is passed by. So one forward pass serves the
gradient, LRP of any composite, and excitation backprop.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsod.errors import ConfigError, ModelError
from wsod.maps.derivatives import full
from wsod.maps.guided import Rectifier, ReluMode, Rules, Switch

if TYPE_CHECKING:
    from wsod.maps.tape import Tape

__all__ = [
    "Layer",
    "LayerRules",
    "Node",
    "RelevanceMode",
    "Sent",
    "backward_mode",
    "gate_of",
    "relevance_mode",
    "vjp",
]

Apply = Callable[[Tensor, Tensor], Tensor]
# what goes to an operation's inputs, the first ones first; None: the gradient
Sent = tuple[Tensor, ...] | None


class Node:
    """An operation that a rule can be asked about.

    Args:
        kind: `layer`, `norm`, `sum` or `mean`: the method of the rule that is asked.
        switch: the rule in force.
        run: the operation on its first input, its other arguments fixed.
    """

    def __init__(self, kind: str, switch: Switch, run: Callable[..., Tensor]) -> None:
        self.kind, self.switch, self.run = kind, switch, run


class Layer(Node):
    """A linear layer z = W·x + b, with a batch normalisation behind it folded in: z = s·(W·x + b) + t.

    Attributes:
        run: (x, W) → W·x.
        dense: it is fully connected.
        first: it is the first of the network.
        weight: W itself, by which a layer is recognised.
    """

    def __init__(
        self, switch: Switch, run: Apply, *, dense: bool, first: bool, weight: weakref.ref[Tensor]
    ) -> None:
        super().__init__("layer", switch, run)
        self.dense, self.first, self.weight = dense, first, weight
        self._norm: tuple[Tensor, Tensor] | None = None
        self._output: Tensor | None = None
        self._version = 0

    def watch(self, output: Tensor) -> None:
        """Remember the values of the output, as they are now (in-place rectification leaves what counts)."""
        self._output, self._version = output.detach(), output._version

    def fold(self, scale: Tensor, shift: Tensor) -> None:
        """A batch normalisation s·z + t of the output comes next."""
        self._norm = scale, shift

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """s·W and s·b + t, (out, ...) and (out,)."""
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        if self._norm is None:
            return weight, bias
        scale, shift = self._norm
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias * scale + shift

    def values(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W·x + b, as the forward pass left it or computed again."""
        y = self._output
        if y is None or torch.is_grad_enabled() or y._version != self._version:
            y = self.run(x, weight)
            y = y if bias is None else y + self.channels(bias)
        return y.to(grad.dtype)

    def incoming(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """z and its relevance z·∂/∂z, from the gradient that arrived before the folded normalisation."""
        y = self.values(grad, x, weight, bias)
        if self._norm is None:
            return y, y * grad
        scale, shift = (self.channels(values) for values in self._norm)
        dead = scale == 0
        offset = (shift / scale.masked_fill(dead, 1.0)).masked_fill(dead, 0.0)
        return y * scale + shift, (y + offset) * grad.masked_fill(dead, 0.0)

    def offset(self) -> Tensor | float | None:
        """t / s, to read the layer as s·(W·x + b + t / s); None where an s is not positive."""
        if self._norm is None:
            return 0.0
        scale, shift = self._norm
        return shift / scale if bool((scale > 0).all()) else None

    def channels(self, values: Tensor) -> Tensor:
        """(out,) shaped to be added to the output."""
        return values if self.dense else values.reshape(-1, 1, 1)


class LayerRules(Rules, Protocol):
    """What `RelevanceMode` asks of a rule, beyond its rectifiers; None leaves the gradient as it is."""

    def layer(self, node: Layer, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Sent: ...

    def norm(self, node: Node, grad: Tensor, x: Tensor, scale: Tensor) -> Sent: ...

    def sum(self, node: Node, grad: Tensor, a: Tensor, b: Tensor) -> Sent: ...

    def mean(self, node: Node, grad: Tensor, x: Tensor) -> Sent: ...


class _Overlay(torch.autograd.Function):
    """y itself. Backward: the gradient to y, or what the rule says to the inputs that y was computed from."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, node: Node, *inputs: Tensor | None) -> Tensor:
        ctx.mark_dirty(y)
        ctx.save_for_backward(*inputs)
        ctx.node = node
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        node, inputs = ctx.node, ctx.saved_tensors
        rule = node.switch.rule
        sent = None
        if not isinstance(rule, str):
            wide = [None if value is None else full(value) for value in inputs]
            sent = getattr(rule, node.kind)(node, full(grads[0]), *wide)
        if sent is None:
            return grads[0], None, *[None] * len(inputs)
        parts = [part.to(value.dtype) for part, value in zip(sent, inputs, strict=False)]
        return None, None, *parts, *[None] * (len(inputs) - len(parts))


def _lay(y: Tensor, node: Node, *inputs: Tensor | None) -> Tensor:
    if not (torch.is_grad_enabled() and y.requires_grad):
        return y
    return cast(Tensor, cast(Any, _Overlay.apply)(y, node, *inputs))


def vjp(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """function(x), and cotangent → (∂ function / ∂ x)ᵀ cotangent; differentiable where grad mode is on."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if graph and x.requires_grad else x.detach().requires_grad_()
        y = function(x)

    def pull(cotangent: Tensor) -> Tensor:
        with torch.enable_grad():
            (found,) = torch.autograd.grad(y, x, cotangent, retain_graph=True, create_graph=graph)
        return found

    return (y if graph else y.detach()), pull


# set on what was computed from the image
_MARK = "_wsod_of_image"
_RELUS = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_SUMS = {torch.add: False, Tensor.add: False, Tensor.add_: True}
_MEANS = {F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean, Tensor.mean}
_PRODUCTS = {torch.mul, Tensor.mul, Tensor.mul_, torch.matmul, Tensor.matmul, torch.bmm}
# operations that no rule here knows how to share relevance through
_UNKNOWN = {
    F.group_norm: "group norm",
    F.hardsigmoid: "hard sigmoid",
    F.instance_norm: "instance norm",
    F.layer_norm: "layer norm",
    F.multi_head_attention_forward: "attention",
    F.scaled_dot_product_attention: "attention",
    F.softmax: "softmax",
    Tensor.sigmoid: "sigmoid",
    Tensor.softmax: "softmax",
    Tensor.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    torch.softmax: "softmax",
    torch.tanh: "tanh",
}


class RelevanceMode(ReluMode):
    """While active, linear layers and rectifiers follow `switch` when run backward.

    Convolutions (`F.conv2d`) and fully connected layers (`F.linear`) are known, a batch normalisation that
    takes their output is folded into them. Batch normalisation in training mode counts as the affine map
    with the batch's statistics held constant, so that no relevance goes from image to image.

    Args:
        shares: sums, averages and batch normalisations too are asked (excitation backprop).

    Attributes:
        entry: what the first layer was run on: the image.
        gates: calls that relevance cannot be shared through, by name.
    """

    def __init__(self, shares: bool) -> None:
        super().__init__()
        self.shares = shares
        self.gates: Counter[str] = Counter()
        self.entry: Tensor | None = None
        # the last layer, its output, and that output's version
        self._last: tuple[weakref.ref[Tensor], Layer, int] | None = None
        self._first_output: weakref.ref[Tensor] | None = None

    def site(self, x: Tensor, high: float | None, slope: float) -> Rectifier:
        first = self._first_output is not None and self._first_output() is x
        return Rectifier(high, slope, self.switch, keep=True, first=first)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = self._replaced(func, types, args, kwargs)
        # below the target layer there is no graph to tell what came from the image
        if isinstance(result, Tensor) and any(map(_of_image, _tensors(args))):
            setattr(result, _MARK, True)
        return result

    def _replaced(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if func is F.conv2d or func is F.linear:
            return self._linear(func, *args, **kwargs)
        if func is F.batch_norm:
            return self._batch_norm(func, *args, **kwargs)
        if self.shares and func in _SUMS and _two_maps(args):
            return self._sum(func, *args, **kwargs)
        if self.shares and func in _MEANS:
            return self._mean(func, *args, **kwargs)
        gate = gate_of(func, args)
        if gate is not None:
            self.gates[gate] += 1
        result = super().__torch_function__(func, types, args, kwargs)
        if func is Tensor.clone:  # a hook hands on a copy
            self._follow(args[0], result)
        # rectified in place, a layer's output still says all that is asked: below zero no relevance arrives
        if func in _RELUS and self._last is not None and args and self._last[0]() is result is args[0]:
            self._last[1].watch(cast(Tensor, result))
        return result

    def _linear(
        self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any
    ) -> Tensor:
        if self.entry is None:
            self.entry = input
            setattr(input, _MARK, True)
        first, dense = input is self.entry, func is F.linear

        def run(x: Tensor, w: Tensor) -> Tensor:
            return cast(Tensor, func(x, w, None, *rest, **options))

        layer = Layer(self.switch, run, dense=dense, first=first, weight=weakref.ref(weight))
        output = _lay(func(input, weight, bias, *rest, **options), layer, input, weight, bias)
        layer.watch(output)
        self._last = weakref.ref(output), layer, output._version
        if first:
            self._first_output = weakref.ref(output)
        return output

    def _batch_norm(
        self,
        func: Any,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training or running_mean is None or running_var is None:
            training, places = True, (0, *range(2, input.ndim))
            mean, variance = input.detach().mean(places), input.detach().var(places, correction=0)
        else:
            mean, variance = running_mean, running_var
        scale = (variance + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        if self._last is not None and self._last[0]() is input and input._version == self._last[2]:
            self._last[1].fold(scale, shift)
        output = func(input, running_mean, running_var, weight, bias, training, momentum, eps)
        if training or self.shares:
            output = _lay(output, Node("norm", self.switch, func), input, scale)
        if self._first_output is not None and self._first_output() is input:
            self._first_output = weakref.ref(output)
        return cast(Tensor, output)

    def _follow(self, output: Tensor, copy: Tensor) -> None:
        if self._last is not None and self._last[0]() is output and output._version == self._last[2]:
            self._last = weakref.ref(copy), self._last[1], copy._version
        if self._first_output is not None and self._first_output() is output:
            self._first_output = weakref.ref(copy)

    def _sum(self, func: Any, a: Tensor, b: Tensor, **options: Any) -> Tensor:
        before = a.clone() if _SUMS[func] else a  # summed in place, the operand is gone
        return _lay(func(a, b, **options), Node("sum", self.switch, func), before, b)

    def _mean(self, func: Any, input: Tensor, *rest: Any, **options: Any) -> Tensor:
        def run(x: Tensor) -> Tensor:
            return cast(Tensor, func(x, *rest, **options))

        return _lay(run(input), Node("mean", self.switch, run), input)


def gate_of(func: Any, args: tuple[Any, ...]) -> str | None:
    """What to call an operation that a difference or a relevance cannot be shared through; else None.

    Args:
        func: as `__torch_function__` gets it, gradients being on.
        args: its arguments.
    """
    if func in _PRODUCTS and _two_maps(args):
        return "product of feature maps"
    return _UNKNOWN.get(func)


def _two_maps(args: tuple[Any, ...]) -> bool:
    """Whether the first two arguments were both computed from the image (parameters were not)."""
    return len(args) > 1 and all(isinstance(arg, Tensor) and _of_image(arg) for arg in args[:2])


def _of_image(tensor: Tensor) -> bool:
    """Whether it was computed from the image, on either side of the target layer."""
    if isinstance(tensor, nn.Parameter):
        return False
    return tensor.requires_grad or getattr(tensor, _MARK, False)


def _tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _tensors(arg)


def relevance_mode(tape: Tape, method: str) -> RelevanceMode:
    """What recorded the pass for relevance.

    Args:
        tape: a forward pass that needs `relevance` or `probability`.
        method: what is asked for, for the message.

    Raises:
        ConfigError: where the tape was made without.
        ModelError: where the network has operations that relevance cannot be shared through.
    """
    mode = tape.mode
    if not isinstance(mode, RelevanceMode):
        raise ConfigError("Tape", "needs={'relevance'} or {'probability'}", sorted(tape.needs))
    unknown = mode.others + mode.gates
    if unknown or not mode.calls:
        found = ", ".join(f"{n} calls of {name}" for name, n in unknown.items())
        where, hint = tape.classifier.arch, "Use gradient or gradcam; for a transformer, transmm."
        if tape.classifier.head != "linear":
            where += f" with the head {tape.classifier.head}"
            hint = (
                "The head weighs features by what it computed from the same image, and no rule says which "
                "factor of a product relevance is due to. Use gradient or gradcam, or attention, its own."
            )
        raise ModelError(
            f"{where}, {method}",
            "a network of convolutions, fully connected layers, batch norms, ReLUs and poolings",
            found or "no ReLU call",
            hint,
        )
    return mode


def backward_mode(needs: frozenset[str]) -> ReluMode | None:
    """The function mode of a forward pass that methods with these needs share."""
    if needs & {"relevance", "probability"}:
        return RelevanceMode("probability" in needs)
    return ReluMode() if "input_gradient" in needs else None
