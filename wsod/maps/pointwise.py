"""1×1 convolutions by oneDNN, where torch would take a slower road."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["PointwiseMode"]

# from here on torch takes oneDNN itself
_MANY: Final = 16
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class PointwiseMode(TorchFunctionMode):
    """While active, 1×1 convolutions of small float32 batches run in oneDNN: the same function and gradient.

    On one thread torch computes them by matrix products for fewer than 16 images, half as fast. 16 images of
    224 px however make activations so large that the kernel maps each anew, page by page. A few images in
    oneDNN have neither cost. Elsewhere (other devices, half precision, several threads) nothing changes.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d:
            given = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
            if _slow(given):
                stride, padding, dilation = (
                    _pair(given.get(name, default))
                    for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
                )
                return torch.mkldnn_convolution(
                    given["input"], given["weight"], given.get("bias"), padding, stride, dilation, 1
                )
        return func(*args, **kwargs)


def _slow(given: Mapping[str, Any]) -> bool:
    """Whether torch would not take oneDNN for it, and could."""
    x, weight = given["input"], given["weight"]
    return (
        isinstance(x, Tensor)
        and x.ndim == 4
        and 0 < len(x) < _MANY
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and tuple(weight.shape[2:]) == (1, 1)
        and _pair(given.get("stride", 1)) == (1, 1)
        and given.get("groups", 1) == 1
        and not isinstance(given.get("padding", 0), str)
        and torch.get_num_threads() == 1
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and not torch.is_autocast_enabled("cpu")
    )


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
