"""What a map method learned from images before its first map: tensors on disk, and whose classes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsod.config import plain
from wsod.errors import CheckpointError, ConfigError
from wsod.models.checkpoint import bare_state, file_sha256, load_file
from wsod.models.classifier import Classifier
from wsod.output import write_bytes

__all__ = ["Fit", "Fitted"]

_FORMAT = "wsod-fit-1"
_PARTS = {"classes": list, "layers": list, "tensors": dict, "about": dict}

Fit = Callable[..., "Fitted"]
"""(classifier, batches of (images (N, 3, H, W), multi-hot labels (N, C)), **options) → what was learned."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """The state of a fitted map method.

    Args:
        method: its name in `METHODS`.
        classes: the classifier's classes, in the order of its logits.
        layers: paths of the layers whose features it reads.
        tensors: what it learned.
        about: options and counts, plain values.
        sha256: of the file it was read from; empty of one that was not.
    """

    method: str
    classes: tuple[str, ...]
    layers: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]
    sha256: str = ""

    def save(self, path: str | Path) -> None:
        """Write it whole or not at all.

        Raises:
            OutputError: where the file cannot be written.
        """
        contents = {
            "format": _FORMAT,
            "method": self.method,
            "classes": list(self.classes),
            "layers": list(self.layers),
            "tensors": {name: value.detach().cpu().contiguous() for name, value in self.tensors.items()},
            "about": plain(self.about),
        }
        file = io.BytesIO()
        torch.save(contents, file)
        write_bytes(Path(path), file.getvalue())

    @classmethod
    def load(cls, path: str | Path, method: str) -> Fitted:
        """What `save` wrote; nothing in the file is run.

        Raises:
            CheckpointError: where the file is missing, damaged, or of another method.
        """
        contents = load_file(path)
        if contents.get("format") != _FORMAT or contents.get("method") != method:
            got = contents.get("method", "something else")
            raise CheckpointError(path, f"a fit of {method}", got, f"Make one with `wsod fit {method}`.")
        for key, kind in _PARTS.items():
            if not isinstance(contents.get(key), kind):
                got = type(contents.get(key)).__name__
                raise CheckpointError(f"{path}: {key}", f"a value of type {kind.__name__}", got)
        for key in ("classes", "layers"):
            if not contents[key] or not all(isinstance(name, str) for name in contents[key]):
                raise CheckpointError(f"{path}: {key}", "names", repr(contents[key])[:60])
        return cls(
            method,
            tuple(contents["classes"]),
            tuple(contents["layers"]),
            bare_state(contents["tensors"], (), f"{path}: tensors"),
            contents["about"],
            file_sha256(path),
        )

    def tensor(self, name: str, *shape: int) -> Tensor:
        """One of the tensors, of that shape.

        Raises:
            CheckpointError: where there is no such.
        """
        found = self.tensors.get(name)
        if found is None or tuple(found.shape) != shape:
            got = "none" if found is None else "x".join(map(str, found.shape)) or "a number"
            hint = f"Fit it to this classifier with `wsod fit {self.method}`."
            raise CheckpointError(f"fit of {self.method}: {name}", "x".join(map(str, shape)), got, hint)
        return found

    @classmethod
    def given(cls, fit: str | Fitted, method: str, classifier: Classifier) -> Fitted:
        """What a map method's option `fit` names, for this classifier.

        Raises:
            ConfigError: without a fit.
            CheckpointError: where it is not one of this method, or of other classes.
        """
        if not fit:
            hint = f"Make one: wsod fit {method} --checkpoint ft.pt --data SPEC --out FILE."
            raise ConfigError(method, f"a fit: {method}:fit=FILE", "none", hint)
        fitted = fit if isinstance(fit, Fitted) else cls.load(fit, method)
        fitted.check(classifier)
        return fitted

    def check(self, classifier: Classifier) -> None:
        """Refuse a classifier of other classes.

        Raises:
            CheckpointError: naming the difference.
        """
        if tuple(classifier.classes) != self.classes:
            pairs = zip(self.classes, classifier.classes, strict=False)
            differ = [f", such as {got!r} for {wanted!r}" for wanted, got in pairs if wanted != got]
            first = differ[0] if differ else ""
            raise CheckpointError(
                f"fit of {self.method}",
                f"a classifier of the {len(self.classes)} classes it was fitted with, in their order",
                f"{len(classifier.classes)} classes{first}",
                f"Fit it to this classifier with `wsod fit {self.method}`.",
            )
