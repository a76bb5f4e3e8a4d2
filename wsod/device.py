"""Which device to compute on."""

from __future__ import annotations

from wsod.errors import ConfigError

__all__ = ["pick_device"]


def pick_device(name: str = "auto") -> str:
    """`auto` is the GPU where there is one, else the CPU; `cpu`, `cuda` and `cuda:N` are taken at their word.

    Raises:
        ConfigError: for another name, or where the GPU asked for is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ConfigError("--device", "auto, cpu, cuda or cuda:N", repr(name))
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            raise ConfigError("--device", f"a GPU for {name!r}", f"{count} GPUs", "Use --device auto or cpu.")
    return name
