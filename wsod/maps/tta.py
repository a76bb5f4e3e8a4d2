"""Maps averaged over mirrored and resized versions of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wsod.errors import ConfigError, ModelError
from wsod.maps.method import MapMethod
from wsod.maps.tape import Tape
from wsod.memory import ran_out

__all__ = ["View", "fused_maps", "views_of"]


@dataclass(frozen=True)
class View:
    """A version of the images: resized by `scale`, mirrored left to right or not."""

    scale: float = 1.0
    flip: bool = False


def views_of(tta: str | Sequence[str]) -> tuple[View, ...]:
    """The views that test-time augmentation asks for; the images as they are come first.

    Args:
        tta: `flip` and scales, separated by commas or as a sequence; empty = no augmentation.

    Raises:
        ConfigError: for anything else.

    >>> [(view.scale, view.flip) for view in views_of("flip,0.5")]
    [(1.0, False), (1.0, True), (0.5, False), (0.5, True)]
    """
    words = [word.strip() for word in (tta.split(",") if isinstance(tta, str) else map(str, tta))]
    words = [word for word in words if word]
    scales = [1.0]
    for word in words:
        if word == "flip":
            continue
        try:
            scale = float(word)
        except ValueError:
            scale = 0.0
        if not 0 < scale < 100:
            raise ConfigError("tta", "flip and positive scales, such as flip,0.75,1.25", repr(word))
        scales.append(scale)
    flips = (False, True) if "flip" in words else (False,)
    return tuple(View(scale, flip) for scale in dict.fromkeys(scales) for flip in flips)


def fused_maps(
    tape: Tape, cases: Tensor, methods: Mapping[str, MapMethod], views: Sequence[View]
) -> dict[str, Tensor]:
    """Maps of some cases by every method: the mean over the views, each map divided by its largest value.

    Each view costs what its methods cost at its size. Maps are mirrored back and resized bilinearly to the
    largest of them; dividing by the largest absolute value (a map of zeros stays) makes views count alike,
    as the size of gradients depends on the number of cells. Controls are made once. With the first view
    alone, maps are as the methods give them.

    Args:
        tape: the forward pass of the images as they are.
        cases: (M, 2) rows of (row, label).
        methods: by name.
        views: of `views_of`.

    Returns:
        By name, (M, h, w), detached.

    Raises:
        ModelError: where the network cannot be run at a view's size.
    """
    found = {name: [method(tape, cases).detach()] for name, method in methods.items()}
    moving = {name: method for name, method in methods.items() if not method.is_control}
    for view in views[1:] if moving else ():
        images = _resized(tape.images.detach(), view)
        try:
            other = tape.again(images, tape.needs, False, tape.layers)
            maps = {name: method(other, cases).detach() for name, method in moving.items()}
        except (AssertionError, RuntimeError, ValueError) as error:
            if ran_out(error):
                raise
            raise ModelError(
                f"{tape.classifier.arch}, scale {view.scale:g}",
                "a network that runs at other sizes",
                str(error).strip().split("\n")[0],
                "Use flip alone.",
            ) from error
        for name, one in maps.items():
            found[name].append(one.flip(2) if view.flip else one)
    return {name: _mean(maps) for name, maps in found.items()}


def _resized(images: Tensor, view: View) -> Tensor:
    if view.scale != 1:
        size = [max(1, round(side * view.scale)) for side in images.shape[2:]]
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return images.flip(3) if view.flip else images


def _mean(maps: Sequence[Tensor]) -> Tensor:
    if len(maps) == 1:
        return maps[0]
    size = max((one.shape[1:] for one in maps), key=lambda shape: shape[0] * shape[1])
    total = torch.zeros_like(maps[0][:, :1, :1])
    for one in maps:
        top = one.abs().amax((1, 2), keepdim=True)
        one = (one / top.masked_fill(top == 0, 1.0))[:, None]
        total = total + F.interpolate(one, tuple(size), mode="bilinear", align_corners=False)[:, 0]
    return total / len(maps)
