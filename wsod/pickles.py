"""Arrays, tensors and plain containers out of a pickle, by readers of our own.

Pickle's own machinery calls what a file names. Here every name but a handful is refused, and those stand for
functions below that check what they are given: NumPy's and torch's constructors trust their arguments.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_VALUES", "load_arrays"]

MAX_VALUES = 250_000_000
"""Values above this are refused before memory is set aside: a small file can claim any number."""

# whole numbers, floats, text; arrays of objects are how NumPy wraps a dictionary
_CODE = re.compile(r"[<>|=]?(b1|[iu][1248]|f(2|4|8|16)|[SU]\d{0,4}|O8?)")


def load_arrays(file: Any) -> Any:
    """The pickled value in a file at its position. Arrays come as arrays in the value itself, in a dictionary
    or in a list, or in such a one in a dictionary; nothing in the file is run.

    Raises:
        Exception: of any kind, for what is no such value.
    """
    return _unpacked(_Closed(io.BytesIO(file.read())).load(), 2, {})


def _unpacked(value: Any, depth: int, known: dict[tuple[int, int], Any]) -> Any:
    """Our stand-ins replaced by what they stand for; no deeper, for a list may hold itself.

    What is in several places is copied once (`known`): a small file may name a list a million times.
    """
    key = id(value), depth
    if key not in known:
        known[key] = _replaced(value, depth, known)
    return known[key]


def _replaced(value: Any, depth: int, known: dict[tuple[int, int], Any]) -> Any:
    if isinstance(value, _Array):
        if value.array is None:
            raise pickle.UnpicklingError("an array without content")
        if value.array.shape == () and value.array.dtype == object:
            return _unpacked(value.array.item(), depth, known)
        return value.array
    if depth and type(value) is dict:
        return {key: _unpacked(item, depth - 1, known) for key, item in value.items()}
    if depth and type(value) is list:
        return [_unpacked(item, depth - 1, known) for item in value]
    return value


class _Closed(pickle._Unpickler):
    """The one in Python: the one in C sets aside as much memory as a byte of the file says."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def load_bytearray8(self) -> None:
        """Of what is there, where the original makes room for what is claimed."""
        (length,) = struct.unpack("<Q", self.read(8))
        data = self.read(min(length, sys.maxsize))
        if len(data) != length:
            raise pickle.UnpicklingError("a bytearray cut short")
        self.append(bytearray(data))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        package = module.split(".")[0]
        known = _NUMPY if package == "numpy" else _OTHERS.get(module, {})
        if name not in known:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return _Name(known[name])


class _Name:
    """A function a pickle may call, and do nothing else with: not set its attributes, not make it a class."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it would change a function")


class _Dtype:
    __slots__ = ("dtype",)

    def __init__(self, code: Any, *flags: Any) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise pickle.UnpicklingError(f"arrays of type {str(code)[:40]}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">", "="):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _filled(data, dtype, shape, "F" if fortran else "C")


def _filled(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    """An array of exactly the values given."""
    if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise pickle.UnpicklingError("an array of no type")
    if dtype.dtype == object:
        if not isinstance(data, list) or len(data) != _count(shape):
            raise pickle.UnpicklingError("an array of other objects than it says")
        array = np.empty(len(data), object)
        for place, item in enumerate(data):
            array[place] = item
    else:
        length = len(data) if isinstance(data, bytes | bytearray) else -1
        if length != _count(shape) * dtype.dtype.itemsize or not dtype.dtype.itemsize:
            raise pickle.UnpicklingError("an array of another size than it says")
        array = np.frombuffer(bytes(data), dtype.dtype)
    return array.reshape(shape, order=order)


def _count(shape: Any) -> int:
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise pickle.UnpicklingError("an array without a shape")
    count = math.prod(shape)
    if count > MAX_VALUES:
        raise pickle.UnpicklingError(f"more than {MAX_VALUES} values")
    return count


def _scalar(dtype: Any, data: Any) -> Any:
    return _filled(data, dtype, (), "C").item()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    stand_in = _Array()
    stand_in.array = _filled(data, dtype, shape, order)
    return stand_in


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    # how old protocols write bytes
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes in another encoding than latin1")
    return text.encode("latin1")


def _load_storage(data: Any) -> Any:
    import torch

    return torch.load(io.BytesIO(data), weights_only=True)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Array:
    """A dense tensor as an array; its strides must stay within its storage."""
    import torch

    # as torch's own function does; the public name warns
    values = torch.tensor([], dtype=storage.dtype).set_(storage._untyped_storage).numpy()
    count, steps = _count(tuple(size)), _steps(stride, len(size))
    last = offset + sum((side - 1) * step for side, step in zip(size, steps, strict=True))
    if type(offset) is not int or offset < 0 or (count and last >= len(values)):
        raise pickle.UnpicklingError("a tensor beyond its storage")
    stand_in = _Array()
    width = values.itemsize
    stand_in.array = np.lib.stride_tricks.as_strided(
        values[offset:] if count else values[:0], size, [step * width for step in steps]
    ).copy()
    return stand_in


def _steps(stride: Any, axes: int) -> Sequence[int]:
    if len(stride) != axes or not all(type(step) is int and step >= 0 for step in stride):
        raise pickle.UnpicklingError("a tensor without strides")
    return tuple(stride)


_NUMPY: dict[str, Callable[..., Any]] = {
    "_reconstruct": lambda *_: _Array(),
    "_frombuffer": _from_buffer,
    "scalar": _scalar,
    "ndarray": lambda *_: _Array(),
    "dtype": _Dtype,
}
_OTHERS: dict[str, dict[str, Callable[..., Any]]] = {
    "_codecs": {"encode": _encode},
    "collections": {"OrderedDict": dict},
    "torch._utils": {"_rebuild_tensor_v2": _tensor},
    "torch.storage": {"_load_from_bytes": _load_storage},
}
