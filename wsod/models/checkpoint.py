"""Weights and checkpoints on disk: tensors and plain values only, never anything that runs."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsod.config import plain
from wsod.errors import CheckpointError
from wsod.models.classifier import Classifier

__all__ = [
    "bare_state",
    "file_sha256",
    "fit_state",
    "is_checkpoint",
    "load_file",
    "read_checkpoint",
    "save_checkpoint",
    "save_file",
]

_FORMAT = "wsod-checkpoint-1"
_PARTS = {
    "arch": str,
    "head": str,
    "head_options": dict,
    "blocks": dict,
    "classes": list,
    "task": str,
    "target_layer": str,
    "preprocess": dict,
    "state": dict,
}


def save_checkpoint(
    path: str | Path,
    classifier: Classifier,
    *,
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write everything needed to rebuild `classifier`, whole or not at all.

    Args:
        path: the file, usually `ft.pt`.
        classifier: its weights, architecture, head and blocks with options, classes, task, target layer and
            preprocessing are kept.
        recipe: the resolved configuration of the training run.
        metrics: what was measured, for instance on the validation split.
        provenance: versions, seed, data, git.
        extra: further tensors and plain values, such as an optimiser's state.

    Raises:
        CheckpointError: where a value is neither tensor nor plain, or the file cannot be written.
    """
    path = Path(path)
    contents = {
        "format": _FORMAT,
        "arch": classifier.arch,
        "head": classifier.head,
        "head_options": plain(classifier.head_options),
        "blocks": plain(classifier.blocks),
        "classes": list(classifier.classes),
        "task": classifier.task,
        "target_layer": classifier.target_layer,
        "preprocess": plain(classifier.preprocess),
        "supervision": list(classifier.supervision),
        "state": {name: value.detach().cpu() for name, value in classifier.network.state_dict().items()},
        "recipe": plain(recipe),
        "metrics": plain(metrics),
        "provenance": plain({"torch": str(torch.__version__), **provenance}),
        "extra": dict(extra or {}),
    }
    save_file(_storable(contents, str(path)), path)


def save_file(contents: Mapping[str, Any], path: Path) -> None:
    """`torch.save`, whole or not at all: written aside, renamed once it is on the disk.

    Raises:
        CheckpointError: where it cannot be written, as on a full disk; what was there before still is.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            torch.save(dict(contents), file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        got = error.strerror if isinstance(error, OSError) else "a write that failed, as on a full disk"
        hint = "Make room, then --resume the run."
        raise CheckpointError(path, "a file that can be written", got or error, hint) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _storable(value: Any, where: str) -> Any:
    """`value` with numpy's scalars made Python's: `weights_only` loading knows no others."""
    if isinstance(value, Mapping):
        step = "." if ": " in where else ": "
        return {key: _storable(item, f"{where}{step}{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_storable(item, where) for item in value])
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor):
        return value
    raise CheckpointError(where, "tensors, numbers, text, lists and tables", type(value).__name__)


def load_file(path: str | Path) -> dict[str, Any]:
    """The contents of a .safetensors, .pt or .pth file, on the CPU; code in it is never run.

    Raises:
        CheckpointError: where the file is missing, damaged, no table, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        hint = "Train one with `atcon finetune --out runs/first`: it leaves runs/first/ft.pt."
        raise CheckpointError(path, "a checkpoint or weights file", "no such file", hint)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as load_safetensors

            return dict(load_safetensors(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.load, on TorchScript archives it then refuses
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise CheckpointError(
            path,
            "tensors and plain values only",
            f"a pickle that calls {culprit[1]}" if culprit else "a pickle that is not one of tensors",
            "Unpickling calls whatever the file names, so this file could run any code; it was not loaded. "
            "Save model.state_dict() instead of the model.",
        ) from error
    except Exception as error:  # torch and safetensors raise many kinds on a damaged file
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(path, "a readable checkpoint or weights file", first.rstrip(".")) from error
    if not isinstance(contents, dict):
        raise CheckpointError(path, "a table of tensors", type(contents).__name__)
    return contents


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_checkpoint(contents: Mapping[str, Any]) -> bool:
    """Whether `load_file` returned a checkpoint of ours rather than bare weights."""
    return str(contents.get("format", "")).startswith("wsod-checkpoint")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint that `save_checkpoint` wrote, as a table with its keys.

    Raises:
        CheckpointError: where it is something else, in particular a bare state dict.
    """
    contents = load_file(path)
    if not is_checkpoint(contents):
        raise CheckpointError(
            path, "a checkpoint of atcon", "weights without an architecture", "Pass --arch NAME as well."
        )
    if contents["format"] != _FORMAT:
        raise CheckpointError(
            path, _FORMAT, contents["format"], "It was written by a newer version; install that one."
        )
    missing = {"arch", "head", "classes", "task", "target_layer", "preprocess", "state"} - contents.keys()
    if missing:
        raise CheckpointError(path, "all parts of a checkpoint", "none of " + ", ".join(sorted(missing)))
    for key, kind in _PARTS.items():
        if key in contents and not isinstance(contents[key], kind):
            got = type(contents[key]).__name__
            raise CheckpointError(f"{path}: {key}", f"a value of type {kind.__name__}", got)
    if contents["task"] not in ("multiclass", "multilabel"):
        raise CheckpointError(f"{path}: task", "multiclass or multilabel", repr(contents["task"])[:60])
    if not contents["classes"] or not all(isinstance(name, str) for name in contents["classes"]):
        raise CheckpointError(f"{path}: classes", "names", repr(contents["classes"])[:60])
    return contents


def bare_state(contents: Mapping[str, Any], keys: Collection[str], where: object) -> dict[str, Tensor]:
    """The network's state dict inside a file: wrappers (`state_dict`, `model`) and key prefixes taken off.

    Args:
        contents: of the file.
        keys: the network's own; a prefix comes off only where none of them is in the file.
        where: names the file in messages.
    """
    for _ in range(4):  # a table may hold itself
        inner = [contents.get(key) for key in ("state", "state_dict", "model_state_dict", "model")]
        contents = next((table for table in inner if isinstance(table, Mapping)), contents)
    state = {str(key): value for key, value in contents.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(where, "weights", f"no tensors, but: {', '.join(map(str, contents))}"[:200])
    for key, value in state.items():
        odd = value.is_complex() or value.is_quantized or value.layout != torch.strided or value.is_meta
        if odd or not torch.isfinite(value).all():
            got = f"{value.dtype}" if odd else "NaN or infinity"
            raise CheckpointError(f"{where}: {key}"[:300], "finite real weights", got)
    for prefix in ("module.", "model.", "network.", "module."):
        if not any(key in keys for key in state) and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def fit_state(
    network: nn.Module, state: Mapping[str, Tensor], final: str, where: object, *, new_head: bool = False
) -> bool:
    """Load `state` into `network`; every key has to fit.

    Half-precision storage is converted. Auxiliary classifiers in the file are left out where the network
    has none, and DenseNet's key names from before 2018 are translated.

    Args:
        network: loaded in place, untouched on failure.
        state: from `bare_state`.
        final: path of the layer that gives the logits.
        where: names the file in messages.
        new_head: keep the network's own final layer where the file's has another number of classes.

    Returns:
        Whether the final layer was loaded too.

    Raises:
        CheckpointError: naming the keys that do not fit, and what to pass.
    """
    own = network.state_dict()
    renamed = {
        key if key in own else re.sub(r"(norm|conv)\.(\d)\.", r"\1\2.", key): value
        for key, value in state.items()
        if key in own or not key.startswith(("aux", "AuxLogits."))
    }
    head = [key for key in own if key.startswith(f"{final}.")]
    other_head = [key for key in head if key in renamed and renamed[key].shape != own[key].shape]
    # the same layer with another number of rows: another class count, not another architecture
    other_count = bool(other_head) and all(
        renamed[key].ndim == own[key].ndim and renamed[key].shape[1:] == own[key].shape[1:]
        for key in other_head
    )
    keep_head = new_head and other_count
    missing = [key for key in own if key not in renamed and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in renamed if key not in own]
    shapes = [
        key
        for key in own
        if key in renamed and renamed[key].shape != own[key].shape and not (other_count and key in head)
    ]
    if missing or unexpected or shapes:
        parts = (
            _some(missing, "missing"),
            _some(unexpected, "unknown"),
            _some(shapes, "of another shape"),
        )
        raise CheckpointError(
            where,
            f"the weights of {type(network).__name__}",
            "; ".join(part for part in parts if part),
            "Pass --arch with the architecture, size and head it was trained with.",
        )
    if other_count and not keep_head:
        found, expected = len(renamed[other_head[0]]), len(own[other_head[0]])
        raise CheckpointError(
            where,
            f"{expected} classes in {' and '.join(other_head)}",
            found,
            f"Pass the {found} class names it was trained with, or fine-tune it (a new head is made then).",
        )
    if keep_head:
        renamed |= {key: own[key] for key in head}
    try:
        # strict=False only for BatchNorm's num_batches_tracked, absent from old files; the rest is checked
        network.load_state_dict(renamed, strict=False)
    except RuntimeError as error:
        raise CheckpointError(where, f"the weights of {type(network).__name__}", error) from error
    return not keep_head


def _some(keys: list[str], kind: str) -> str:
    if not keys:
        return ""
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return f"{len(keys)} {kind} ({shown})"
