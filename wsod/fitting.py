"""Map methods that learn something from images with labels before their first map: `wsod fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from wsod.config import convert
from wsod.data import open_dataset
from wsod.errors import ConfigError, DataError
from wsod.pipeline import class_columns

if TYPE_CHECKING:
    from torch import Tensor

    from wsod.data.dataset import Dataset
    from wsod.models import Classifier

__all__ = ["fit_method"]

Progress = Callable[[int, int], None]


def fit_method(
    name: str,
    out: str | Path,
    *,
    checkpoint: str | Path,
    arch: str | None = None,
    target_layer: str | None = None,
    size: int | None = None,
    data: str = "shapes",
    split: str = "train",
    limit: int = 0,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> None:
    """Fit a map method to a classifier and images with labels, and write what it learned.

    Args:
        name: of a method that needs a fit.
        out: the file.
        checkpoint: an ft.pt, or a plain state dict (with `arch`).
        arch, target_layer, size: as for `wsod evaluate`.
        data: data set spec.
        split: of it; images with labels, not those that will be scored.
        limit: first N images only; 0 = all.
        options: of the fit.
        device: auto, cpu, cuda or cuda:N.
        batch_size: images a forward pass.
        progress: called with (images done, images in all).

    Raises:
        WsodError: for a method that needs none, an option it has not, or a fault of data or weights.
    """
    from inspect import signature

    from wsod.device import pick_device
    from wsod.maps import METHODS
    from wsod.models import load_classifier
    from wsod.registry import nearest

    method = METHODS[name]
    if method.fit is None:
        fitted = ", ".join(key for key, one in METHODS.items() if one.fit is not None)
        raise ConfigError(f"fit {name}", f"a method that is fitted: {fitted}", "one that needs no fit")
    known = [key for key, p in signature(method.fit).parameters.items() if p.kind is p.KEYWORD_ONLY]
    hints, chosen = get_type_hints(method.fit), {}
    for key, value in (options or {}).items():
        if key not in known:
            raise ConfigError(f"fit {name}", "an option of the fit", repr(key), nearest(key, known))
        chosen[key] = convert(hints[key], value, f"fit {name}: {key}")
    dataset = open_dataset(data, split)
    device = pick_device(device)
    classifier = load_classifier(checkpoint, arch=arch, target_layer=target_layer, size=size, device=device)
    count = min(limit or len(dataset), len(dataset))
    if not count or not dataset.classes:
        raise DataError(data, "images with labels", f"none in split {dataset.split!r}")
    batches = _Batches(dataset, count, classifier, device, batch_size, progress)
    method.fit(classifier, batches, **chosen).save(out)


@dataclass(frozen=True)
class _Batches:
    """Preprocessed images and multi-hot labels in the order of the classifier's logits, again each time."""

    dataset: Dataset
    count: int
    classifier: Classifier
    device: str
    size: int
    progress: Progress | None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        import torch

        columns = class_columns(self.classifier.classes, self.dataset.classes)
        for first in range(0, self.count, self.size):
            rows = range(first, min(first + self.size, self.count))
            labels = np.zeros((len(rows), len(self.classifier.classes)), np.float32)
            images = []
            for place, row in enumerate(rows):
                labels[place, columns[list(self.dataset[row].classes)]] = 1
                images.append(self.classifier.preprocess(self.dataset.image(row))[0])
            yield torch.stack(images).to(self.device), torch.from_numpy(labels)
            if self.progress:
                self.progress(rows.stop, self.count)
