"""ReLUs whose backward rule can be switched: plain, guided, deconvnet, in one graph, twice differentiable.

A `TorchFunctionMode` replaces every rectifier call of a forward pass (modules, functions and methods, in
place or not) by one autograd function. It reads its rule when it runs backward, from a plain object that the
graph keeps, so one forward serves all rules, on any thread of the autograd engine; the network is untouched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wsod.errors import ModelError

__all__ = ["Rectifier", "ReluMode", "Rule", "Rules", "Switch"]

Rule = Literal["plain", "guided", "deconvnet"]


class Rules(Protocol):
    """Backward rules beyond the gradient's (see `wsod.maps.relevance`); here, what rectifiers ask of them."""

    def rectifier(self, site: Rectifier, grad: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """What goes back through y = rectifier(z)."""
        ...


class Switch:
    """The rule in force, shared by all rectifiers of one forward pass."""

    def __init__(self) -> None:
        self.rule: Rule | Rules = "plain"

    @contextmanager
    def set(self, rule: Rule | Rules) -> Iterator[None]:
        """Use `rule` for backward passes inside the block."""
        before, self.rule = self.rule, rule
        try:
            yield
        finally:
            self.rule = before


@dataclass(frozen=True)
class Rectifier:
    """One call of a rectifier: y = clamp(x, 0, high), negative values kept times `slope` (leaky).

    Args:
        high: its upper bound, or None.
        slope: its slope below zero.
        switch: the rule in force.
        keep: its input will be asked for.
        first: it follows the network's first layer.
    """

    high: float | None
    slope: float
    switch: Switch
    keep: bool = False
    first: bool = False


class _Rectify(torch.autograd.Function):
    """Backward, with gate = ∂y/∂x: plain grad·gate; guided grad·gate·[grad > 0] (Springenberg et al., 2015);
    deconvnet grad·[grad > 0] (Zeiler & Fergus, 2014). Gates are constants, so the second derivative is exact.
    Other rules are asked.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool, site: Rectifier, *kept: Tensor) -> Tensor:
        high, slope = site.high, site.slope
        if inplace:
            ctx.mark_dirty(x)
            y = F.leaky_relu_(x, slope) if slope else x.clamp_(0, high)
        else:
            y = F.leaky_relu(x, slope) if slope else x.clamp(0, high)
        # the output tells the gate as well as the input would, and the next layer keeps it anyway
        ctx.save_for_backward(y, *kept)
        ctx.site = site
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, (y, *kept), site = grads[0], ctx.saved_tensors, ctx.site
        rule = site.switch.rule
        if not isinstance(rule, str):
            z = kept[0] if kept else torch.where(y < 0, y / site.slope, y) if site.slope else y
            return rule.rectifier(site, grad, y, z), None, None, *[None] * len(kept)
        if rule == "deconvnet":
            return grad * (grad > 0), None, None, *[None] * len(kept)
        if rule == "plain" and site.high is None and not site.slope:
            return torch.ops.aten.threshold_backward(grad, y, 0), None, None, *[None] * len(kept)
        open_ = y > 0
        if site.high is not None:
            open_ = open_ & (y < site.high)
        gated = torch.where(open_, grad, grad * site.slope) if site.slope else grad * open_
        gated = gated * (gated > 0) if rule == "guided" else gated
        return gated, None, None, *[None] * len(kept)


Reader = Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[float | None, float, bool] | None]


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _relu(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[float | None, float, bool]:
    return None, 0.0, bool(_argument(args, kwargs, 1, "inplace", False))


def _relu6(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[float | None, float, bool]:
    return 6.0, 0.0, bool(_argument(args, kwargs, 1, "inplace", False))


def _hardtanh(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[float | None, float, bool] | None:
    if _argument(args, kwargs, 1, "min_val", -1.0) != 0:
        return None
    high = float(_argument(args, kwargs, 2, "max_val", 1.0))
    return high, 0.0, bool(_argument(args, kwargs, 3, "inplace", False))


def _leaky(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[float | None, float, bool] | None:
    slope = float(_argument(args, kwargs, 1, "negative_slope", 0.01))
    return (None, slope, bool(_argument(args, kwargs, 2, "inplace", False))) if slope > 0 else None


def _in_place(reader: Reader) -> Reader:
    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[float | None, float, bool] | None:
        found = reader(args, kwargs)
        return None if found is None else (found[0], found[1], True)

    return read


_READERS: dict[Any, Reader] = {
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _in_place(_relu),
    Tensor.relu_: _in_place(_relu),
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: _in_place(_hardtanh),
    F.leaky_relu: _leaky,
    F.leaky_relu_: _in_place(_leaky),
}

# activations that gate their input as a rectifier does, but have no guided rule
_OTHERS = {
    F.gelu: "GELU",
    F.silu: "SiLU",
    F.hardswish: "Hardswish",
    F.mish: "Mish",
    F.elu: "ELU",
    F.selu: "SELU",
    F.celu: "CELU",
    F.softplus: "Softplus",
    F.rrelu: "RReLU",
    F.prelu: "PReLU",
}


class ReluMode(TorchFunctionMode):
    """While active, rectifiers (ReLU, ReLU6, Hardtanh from 0, LeakyReLU) follow `switch` when run backward.

    Works on the current thread, on eager code: not inside scripted or compiled modules.

    Attributes:
        switch: the rule.
        calls: rectifier calls replaced.
        others: calls of activations that no guided rule exists for, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.switch = Switch()
        self.calls = 0
        self.others: Counter[str] = Counter()

    def refuse_others(self, where: str) -> None:
        """Raise, naming `where`, if the network's activations are not rectifiers that a rule can switch.

        Raises:
            ModelError: with an alternative.
        """
        if self.others or not self.calls:
            found = ", ".join(f"{n} calls of {name}" for name, n in self.others.items())
            raise ModelError(
                where,
                "a network whose activations are ReLUs",
                found or "no ReLU call that can be replaced",
                "Use gradient or gradcam.",
            )

    def site(self, x: Tensor, high: float | None, slope: float) -> Rectifier:
        """The description of a rectifier's call on x."""
        return Rectifier(high, slope, self.switch)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        reader = _READERS.get(func)
        found = reader(args, kwargs) if reader else None
        if found is not None:
            self.calls += 1
            x = args[0] if args else kwargs["input"]
            high, slope, inplace = found
            site = self.site(x, high, slope)
            # above its bound the output no longer tells the input
            kept = (x.clone() if inplace else x,) if site.keep and high is not None else ()
            return cast(Any, _Rectify.apply)(x, inplace, site, *kept)
        if reader or func in _OTHERS:
            self.others[_OTHERS.get(func, getattr(func, "__name__", "activation"))] += 1
        return func(*args, **kwargs)
