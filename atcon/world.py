"""The processes that train together: one by itself, or those `torchrun` started.

Every process holds the whole network and sees its share of each batch. After the backward passes, one
all-reduce adds up gradients and logged numbers: inner derivatives, several forward passes a step, parameters
without a gradient need no care of their own. The result is that of one process with the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wsod.device import pick_device
from wsod.errors import ConfigError

__all__ = ["SharedStatistics", "World"]


@dataclass(frozen=True)
class World:
    """One process among `size`.

    Args:
        device: where this process computes.
        rank: which one it is.
        size: how many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str) -> World:
        """The processes of `torchrun`, as its environment variables tell; without them, this one alone.

        Args:
            device: `auto`, `cpu` or `cuda`; several processes take a GPU each.

        Raises:
            ConfigError: for an unknown device, or one GPU named for several processes.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(torch.device(pick_device(device)))
        kind, _, number = pick_device(device).partition(":")
        if number:
            raise ConfigError("--device", "cuda, of which each process takes its own", repr(device))
        local = os.environ.get("LOCAL_RANK", "0")
        place = torch.device(pick_device(f"cuda:{local}") if kind == "cuda" else "cpu")
        if place.type == "cuda":
            torch.cuda.set_device(place)
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        return cls(place, dist.get_rank(), size)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def leave(self) -> None:
        """Done with the others."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def broke(self, error: RuntimeError) -> bool:
        """Whether that is torch's word for another process that is gone."""
        words = str(error).lower()
        return self.size > 1 and any(word in words for word in ("gloo", "nccl", "connection", "timed out"))

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def random_states(self) -> list[Tensor]:
        """Of torch's random generators here: the processor's, and its GPU's where it has one."""
        gpu = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *gpu]

    def set_random_states(self, states: Sequence[Tensor]) -> None:
        """Go on from `random_states`; a GPU's is left out where there is none."""
        torch.set_rng_state(states[0])
        if self.device.type == "cuda" and len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.device)

    def add_up(self, gradients: Sequence[nn.Parameter], numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace every gradient by the sum over processes, and return the sums of numbers of the same names.

        A gradient no process has stays None, so that the optimiser leaves its parameter alone.
        """
        if self.size == 1:
            return dict(numbers)
        names = list(numbers)
        # one message: gradients, which of them there are, numbers
        for dtype in dict.fromkeys(parameter.dtype for parameter in gradients):
            kind = [parameter for parameter in gradients if parameter.dtype == dtype]
            pieces = [
                torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten().to(dtype) for p in kind
            ]
            there = torch.tensor([p.grad is not None for p in kind], dtype=dtype, device=self.device)
            whole = torch.cat([*pieces, there])
            dist.all_reduce(whole)
            *sums, there = torch.split(whole, [*(p.numel() for p in kind), len(kind)])
            for parameter, total, known in zip(kind, sums, there.tolist(), strict=True):
                parameter.grad = total.view_as(parameter).clone() if known else None
        values = torch.stack([numbers[name].detach().double() for name in names])
        dist.all_reduce(values)
        return dict(zip(names, values, strict=True))


class _SumOverProcesses(torch.autograd.Function):
    """y = Σ x over processes; each process's x moves every process's y, so the gradient is a sum as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


class SharedStatistics(TorchFunctionMode):
    """While active, batch normalisation in training mode takes mean and variance over all processes' images.

    torch's SyncBatchNorm does so on GPUs alone, and by exchanging modules.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and (args[5] if len(args) > 5 else kwargs.get("training", False)):
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` of the images of all processes, in training."""
    over = [0, *range(2, x.ndim)]
    wide = x if x.dtype == torch.float64 else x.float()
    here = torch.tensor(float(x.numel() // x.shape[1]), dtype=wide.dtype, device=x.device)
    counted = torch.cat([wide.sum(over), here[None]])
    counted = cast(Tensor, cast(Any, _SumOverProcesses.apply)(counted))
    count = counted[-1].detach()
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean = counted[:-1] / count
    centred = wide - mean.view(shape)
    spread = cast(Tensor, cast(Any, _SumOverProcesses.apply)(centred.square().sum(over)))
    variance = spread / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((spread / (count - 1)).to(running_var.dtype), momentum)
    y = centred * (variance + eps).rsqrt().view(shape)
    y = y if weight is None else y * weight.view(shape)
    return (y if bias is None else y + bias.view(shape)).to(x.dtype)
