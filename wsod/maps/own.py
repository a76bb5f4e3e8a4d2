"""The map that a network's own head computed on its way to the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from wsod.errors import ConfigError, MapError
from wsod.maps.cam import cam
from wsod.maps.tape import Tape
from wsod.models.heads import HEADS
from wsod.models.heads.base import minmax
from wsod.registry import nearest

__all__ = ["attention"]


def attention(
    tape: Tape, cases: Tensor, *, create_graph: bool = False, read: str = "", times: str = ""
) -> Tensor:
    """The head's attention, as it was in the forward pass: LFI-CAM's, ABN's, a level of LTPA, CALM's.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: has no effect; there is no derivative in it.
        read: which of the head's maps, empty = its usual one. LTPA: `product`, `mean`, `level1`, `level2`, …;
            CALM: `joint`, `posterior`, `saliency`.
        times: `cam` multiplies an image's map with the class's min-max scaled ReLU(CAM) of the features it
            gated, which makes it class-specific (ours, no paper's).

    Returns:
        (M, h, w); the same for all classes of an image unless the head has one a class (CALM).

    Raises:
        ModelError: where the head has none.
        ConfigError: for a map that it has not.
    """
    found = HEADS[tape.classifier.head].readings(tape.attention)
    name = read or next(iter(found))
    if name not in found:
        raise ConfigError(f"head {tape.classifier.head}", "one of its maps", repr(read), nearest(read, found))
    if times not in ("", "cam"):
        raise ConfigError("attention: times", "cam, or nothing", repr(times))
    rows, labels = cases.to(tape.logits.device).unbind(1)
    maps = found[name]
    one = maps.ndim == 3 or maps.shape[1] == 1
    maps = (maps if maps.ndim == 3 else maps[:, 0])[rows] if one else maps[rows, labels]
    if not times:
        return maps
    classes = minmax(cam(tape, cases, relu=True))
    if classes.shape != maps.shape:
        got = f"{tuple(classes.shape[1:])} and {tuple(maps.shape[1:])}"
        raise MapError("attention: times=cam", "CAM and attention on the same grid", got)
    return torch.mul(maps, classes)
