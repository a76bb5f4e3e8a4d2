"""Logits of a checkpoint on a split, kept beside its evaluation."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atcon.data import Images, batches
from atcon.experiments.readings import F1, MeanAP
from atcon.metrics import macro_f1
from atcon.subsets import label_matrix
from wsod.data import open_dataset
from wsod.errors import DataError
from wsod.models import load_classifier
from wsod.output import write_bytes

__all__ = ["Predictions"]


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of images, and what they show.

    Args:
        images: (N,) ids.
        logits: (N, C).
        positive: (N, C) bool, the classes present (objects marked difficult make no label).
        multilabel: one sigmoid a class, else a softmax.
    """

    images: tuple[str, ...]
    logits: NDArray[np.float64]
    positive: NDArray[np.bool_]
    multilabel: bool

    @classmethod
    def of(cls, checkpoint: Path, data: str, split: str, limit: int, device: str) -> Predictions:
        """Run the classifier on the first `limit` images (0 = all) that show a class."""
        dataset = open_dataset(data, split)
        classifier = load_classifier(checkpoint, device=device)
        labels = label_matrix(dataset)
        rows = [row for row in range(min(limit or len(dataset), len(dataset))) if labels[row].any()]
        images = Images(dataset, rows, labels[rows], classifier.preprocess)
        with torch.inference_mode():
            found = [classifier(batch.to(torch.device(device)).images) for batch in batches(images, 16)]
        logits = torch.cat(found).double().cpu().numpy()
        ids = tuple(dataset.ids[row] for row in rows)
        return cls(ids, logits, labels[rows], dataset.task == "multilabel")

    def save(self, path: Path, key: Mapping[str, Any]) -> None:
        """Write an npz whole or not at all, with what it was made by."""
        file = io.BytesIO()
        np.savez(file, **{**vars(self), "images": np.array(self.images), "key": json.dumps(key)})
        write_bytes(path, file.getvalue())

    @classmethod
    def load(cls, path: Path, key: Mapping[str, Any] | None = None) -> Predictions | None:
        """Read them back; None where there is no file, or one made by anything else than `key`."""
        try:
            with np.load(path, allow_pickle=False) as file:
                if key is not None and json.loads(str(file["key"])) != json.loads(json.dumps(key)):
                    return None
                ids = tuple(map(str, file["images"]))
                return cls(ids, file["logits"], file["positive"], bool(file["multilabel"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            raise DataError(path, "logits written by atcon experiment", error) from error

    def only(self, images: set[str]) -> Predictions:
        """The same of some of the images."""
        rows = [i for i, image in enumerate(self.images) if image in images]
        ids = tuple(self.images[i] for i in rows)
        return Predictions(ids, self.logits[rows], self.positive[rows], self.multilabel)

    def f1(self, cut: float = 0.0) -> F1:
        """Macro F1 with the classes of a logit above `cut` (0 = probability 0.5), or the best one."""
        predicted = self.logits > cut
        if not self.multilabel:
            predicted = self.logits.argmax(1)[:, None] == np.arange(self.logits.shape[1])
        return F1(self.images, predicted, self.positive)

    def mean_ap(self) -> MeanAP:
        """Mean average precision."""
        return MeanAP(self.images, self.logits, self.positive)

    def best_cut(self) -> float:
        """The logit above which a class is said to be there, for the largest macro F1 on these images."""
        steps = np.unique(np.quantile(self.logits, np.linspace(0.0, 1.0, 201)))
        return float(max(steps, key=lambda cut: macro_f1(self.logits > cut, self.positive)))
