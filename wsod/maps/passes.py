"""A forward pass with hooks and function modes, which leaves the network as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wsod.errors import ConfigError
from wsod.models.classifier import Classifier

__all__ = ["Hook", "checked", "forward_pass"]

Hook = Callable[[nn.Module, Any, Any], Any]


def forward_pass(
    classifier: Classifier,
    images: Tensor,
    hooks: Iterable[tuple[str, Hook]],
    modes: Iterable[AbstractContextManager[Any]],
    *,
    graph: bool,
    twice: bool,
) -> Tensor:
    """Logits (N, C).

    Args:
        classifier: in the mode it is to run in.
        images: (N, 3, H, W); the network may begin with an operation in place, and gets a copy.
        hooks: paths in the network and forward hooks, gone afterwards, also after an exception.
        modes: what the pass runs inside of.
        graph: with autograd.
        twice: second derivatives will be taken; fused attention has none.
    """
    with ExitStack() as stack:
        for path, hook in hooks:
            handle = classifier.network.get_submodule(path).register_forward_hook(hook)
            stack.callback(handle.remove)
        stack.enter_context(torch.set_grad_enabled(graph))
        if twice:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for mode in modes:
            stack.enter_context(mode)
        return cast(Tensor, classifier(images.clone()))


def checked(cases: Tensor, rows: int, classes: int) -> list[tuple[int, int]]:
    """(M, 2) cases as pairs (row, label).

    Raises:
        ConfigError: where they are no rows and labels of logits (rows, classes).
    """
    if cases.ndim != 2 or cases.shape[1] != 2 or cases.is_floating_point():
        raise ConfigError("cases", "(M, 2) integers, rows of (row, label)", f"shape {tuple(cases.shape)}")
    pairs = [(row, label) for row, label in cases.tolist()]
    if not all(0 <= row < rows and 0 <= label < classes for row, label in pairs):
        raise ConfigError("cases", f"rows below {rows} and labels below {classes}", pairs)
    return pairs
