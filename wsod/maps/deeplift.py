"""DeepLIFT: the difference to a baseline image, sent back through multipliers in place of derivatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wsod.errors import ModelError
from wsod.maps.backprop import Reduce, over_colours
from wsod.maps.derivatives import differentiate
from wsod.maps.relevance import gate_of
from wsod.maps.tape import Tape

__all__ = ["deeplift"]

_ELEMENTWISE = {
    *(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.hardtanh_),
    *(F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.celu, F.selu, F.gelu, F.silu, F.mish, F.softplus),
    *(F.hardswish, F.hardsigmoid, F.sigmoid, F.tanh, torch.sigmoid, torch.tanh, Tensor.sigmoid, Tensor.tanh),
}

_EXPECTED = "convolutions, batch norms, activations and pooling, whose multipliers sum to the score"
_INSTEAD = "Use gradient or integratedgradients."


def deeplift(tape: Tape, cases: Tensor, *, create_graph: bool = False, reduce: Reduce = "signed") -> Tensor:
    """Σ over RGB of m·(x - x₀), m the multipliers of the rescale rule, x₀ the mean colour.

    Shrikumar et al., "Learning Important Features Through Propagating Activation Differences", ICML 2017.
    Linear layers pass multipliers back as gradients; an activation multiplies by Δout/Δin (its derivative
    where Δin vanishes); max pooling gives Δout to the cells that hold the two maxima. The baseline is one
    colour, so its maximum is often in several cells at once, and rounding would choose; the cell of the
    image's maximum counts then, if it is among them. With `reduce="signed"` the map's sum is s(x) - s(x₀).
    One forward and one backward pass over image and baseline together;
    modules may be used several times, and activations may be functions or in place.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect.
        reduce: over the colours.

    Returns:
        (M, H, W).

    Raises:
        ModelError: for networks that multiply or divide activations (attention, squeeze-and-excitation, layer
            normalisation), which have no such multipliers; and wherever the sum is not that difference.
    """
    images = tape.images.detach()
    rows, labels = cases.to(images.device).unbind(1)
    with torch.inference_mode(False), torch.enable_grad():
        both = torch.cat([images, torch.zeros_like(images)]).requires_grad_()
        mode = _RescaleMode()
        logits = tape.run(both, [], True, mode)
        (multipliers,) = differentiate(logits, [both], cases, False)
    if multipliers is None:
        raise ModelError(
            tape.classifier.arch, "logits that depend on the image", "a pass that cuts the graph"
        )
    where = f"{tape.classifier.arch}, deeplift"
    if mode.gates:
        found = ", ".join(f"{n} calls of {name}" for name, n in mode.gates.items())
        raise ModelError(where, _EXPECTED, found, _INSTEAD)
    parts = images[rows] * multipliers
    differences = (logits[: len(images)] - logits[len(images) :]).detach()[rows, labels]
    gap = (parts.sum((1, 2, 3)) - differences).abs()
    rounding = 1e-3 * logits.detach().abs().max()
    if bool((gap > 0.02 * parts.abs().sum((1, 2, 3)) + rounding).any()):
        got = f"a sum that misses the score by {float(gap.max()):.2g}"
        raise ModelError(where, _EXPECTED, got, _INSTEAD)
    return over_colours(parts, reduce)


class _RescaleMode(TorchFunctionMode):
    """While active, activations and max pooling on (images, baselines) send back multipliers.

    Attributes:
        gates: calls that have none, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gates: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ELEMENTWISE:
            x = args[0] if args else kwargs["input"]
            inplace = func.__name__.endswith("_") or bool(_argument(func, args, kwargs))
            rest = {key: value for key, value in kwargs.items() if key != "input"}
            return cast(Any, _Rescale.apply)(x, func, args[1:], rest, inplace)
        if func in (F.max_pool2d, torch.max_pool2d):
            x = args[0] if args else kwargs["input"]
            rest = {key: value for key, value in kwargs.items() if key not in ("input", "return_indices")}
            if not kwargs.get("return_indices"):
                return cast(Any, _MaxPool.apply)(x, args[1:6], rest)
        gate = gate_of(func, args)
        if gate is not None:
            self.gates[gate] += 1
        return func(*args, **kwargs)


def _argument(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
    """The `inplace` argument, wherever it was given."""
    if "inplace" in kwargs:
        return kwargs["inplace"]
    return next((value for value in args[1:] if isinstance(value, bool)), False)


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], inplace: bool
    ) -> Tensor:
        before = x.clone() if inplace else x
        y: Tensor = func(x, *args, **kwargs)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(before, y)
        ctx.again = func, args, kwargs
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        before, y = ctx.saved_tensors
        func, args, kwargs = ctx.again
        moved, changed = _difference(before), _difference(y)
        with torch.enable_grad():
            own = before.detach().clone().requires_grad_()
            # a copy is what an in-place function may overwrite
            (slope,) = torch.autograd.grad(func(own.clone(), *args, **kwargs).sum(), own)
        still = moved.abs() <= 1e-6 * (1 + before[: len(moved)].abs())
        multiplier = torch.where(still, slope[: len(moved)], changed / moved.masked_fill(still, 1.0))
        return torch.cat([multiplier, multiplier]) * grads[0], None, None, None, None


class _MaxPool(torch.autograd.Function):
    """Δout goes to the place of max(x) where that is the higher, to the place of max(x₀) where it is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        y, places = F.max_pool2d(x, *args, **kwargs, return_indices=True)
        ctx.save_for_backward(x, y, places)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, places = ctx.saved_tensors
        n = len(x) // 2
        higher = torch.maximum(y[:n], y[n:])
        given = torch.zeros_like(x[:n]).flatten(2)
        here, there, best = places[:n].flatten(2), places[n:].flatten(2), y[n:].flatten(2)
        tied = best - x[n:].flatten(2).gather(2, here) <= 1e-6 * best.abs()
        given.scatter_add_(2, here, (grads[0][:n] * (higher - y[n:])).flatten(2))
        given.scatter_add_(2, here.where(tied, there), (grads[0][:n] * (y[:n] - higher)).flatten(2))
        moved = _difference(x)
        multiplied = given.view_as(moved) / moved.masked_fill(moved == 0, 1.0)
        return torch.cat([multiplied, torch.zeros_like(multiplied)]), None, None


def _difference(both: Tensor) -> Tensor:
    n = len(both) // 2
    return both[:n] - both[n:]
