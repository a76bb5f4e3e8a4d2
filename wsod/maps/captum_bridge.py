"""Any attribution of captum as a map method, where captum is installed."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsod.errors import ConfigError, ModelError
from wsod.maps.backprop import Reduce, over_colours
from wsod.maps.method import MapMethod
from wsod.maps.tape import Tape
from wsod.memory import ran_out
from wsod.models.classifier import evaluation_mode
from wsod.registry import nearest

__all__ = ["captum_method"]


def captum_method(name: str) -> MapMethod:
    """The map method of `captum.attr.NAME`; every keyword of its `attribute` is an option.

    Raises:
        ConfigError: where captum is not installed, or has no such attribution of a whole network or a layer.
    """
    try:
        import captum.attr
    except ImportError:
        raise ConfigError(
            f"captum:{name}", "captum to be installed", "no such module", "pip install 'wsod-atcon[captum]'"
        ) from None
    kinds = {
        key: kind
        for key, kind in vars(captum.attr).items()
        if inspect.isclass(kind)
        and _first(kind) in ("model", "forward_func")
        and not key.startswith("Neuron")
    }
    if name not in kinds:
        raise ConfigError("captum:NAME", "an attribution of captum", repr(name), nearest(name, kinds))
    return MapMethod(
        partial(_attribute, kinds[name]),
        f"captum's {name}",
        "Kokhlikyan et al. 2020",
        frozenset({"forwards"}),
        differentiable=False,
    )


def _first(kind: Any) -> str:
    """What an attribution is made from: the first argument of its own constructor."""
    if not inspect.isclass(kind) or not hasattr(kind, "attribute") or "__init__" not in vars(kind):
        return ""
    names = list(inspect.signature(kind).parameters)
    return names[0] if names else ""


@contextmanager
def _fork_numpy() -> Iterator[None]:
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _attribute(
    kind: Any,
    tape: Tape,
    cases: Tensor,
    *,
    create_graph: bool = False,
    reduce: Reduce = "signed",
    chunk: int = 4,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """captum's attribution of each case: at the target layer summed over channels, at the image over colours.

    Random attributions draw from torch's and numpy's global generators, which are seeded and put back.
    """
    classifier, where = tape.classifier, f"captum:{kind.__name__}"
    images, labels = tape.images.detach(), cases[:, 1].to(tape.images.device)
    layered = "layer" in inspect.signature(kind).parameters
    layer = classifier.network.get_submodule(classifier.target_layer)
    baselines = inspect.signature(kind.attribute).parameters.get("baselines")
    found = []
    devices = [images.device] if images.device.type == "cuda" else []
    with (
        evaluation_mode(classifier),
        torch.random.fork_rng(devices),
        _fork_numpy(),
        torch.inference_mode(False),
        torch.enable_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # captum says at each call that it sets hooks
        for some in (slice(start, start + chunk) for start in range(0, len(cases), chunk)):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            shown = images[cases[some, 0].to(images.device)].clone()
            if baselines is not None and baselines.default is inspect.Parameter.empty:
                options = {"baselines": torch.zeros_like(shown), **options}
            try:
                made = kind(classifier, layer) if layered else kind(classifier)
                one = made.attribute(shown, target=labels[some], **options)
            except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
                if ran_out(error):
                    raise
                line = str(error).strip().split("\n")[0]
                raise ModelError(where, "a network and options that captum accepts", line) from error
            if one.shape[1:] == shown.shape[1:]:
                found.append(over_colours(one.detach(), reduce))
            else:
                found.append(classifier.grid(one.detach()).sum(1))
    return torch.cat(found) if found else images.new_zeros(0, *images.shape[2:])
