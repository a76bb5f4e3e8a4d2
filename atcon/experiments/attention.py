"""Learn To Pay Attention against no attention: accuracy, segmentation, robustness, transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atcon.config import FinetuneConfig
from atcon.data import Batch, Images, batches
from atcon.experiments.base import Arm, Experiment, Measure
from atcon.experiments.fgsm import fgsm
from atcon.experiments.headed import trained
from atcon.experiments.readings import Cases, Reading
from atcon.experiments.views import View, scores_of
from atcon.subsets import Subset, label_matrix, save_subset
from wsod.config import merge
from wsod.data import open_dataset
from wsod.errors import ConfigError
from wsod.maps import Tape
from wsod.models import Classifier, load_classifier
from wsod.models.heads.ltpa import LTPANetwork

__all__ = ["Attention", "described", "linear_probe"]

STEPS = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Attention(Experiment):
    """Jetley et al., Learn To Pay Attention, ICLR 2018: the same trunk with attention and without.

    Trained on all but the last classes. On test images of the classes it knows: accuracy, also after FGSM of
    several strengths, and the Jaccard index of the map by Otsu's threshold (CAM, or the product of LTPA's
    levels). On the classes it never saw: accuracy of a linear classifier on its frozen features, fitted to
    training images by ridge regression (the paper: a linear SVM, on other data sets).

    Args:
        variants: options of the head by row; empty = `pc`, and `dp` scaled.
        unseen: number of classes held out.
        images: the first N images of a split only; 0 = all.
        arch, weights, size: of the classifier.
        ridge: of the linear classifier, beside a covariance of ones.
        train: what the stage sets otherwise.
        extra: what `[data]` sets otherwise.
    """

    name: ClassVar[str] = "ltpa"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("accuracy", "accuracy"),
        Measure("jaccard", "Jaccard, Otsu"),
        *(Measure(f"fgsm{step}", f"accuracy, FGSM {step}/255") for step in STEPS),
        Measure("transfer", "unseen classes, linear"),
    )

    data: str = "shapes:simple=true,count=400"
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    unseen: int = 3
    images: int = 0
    arch: str = "smallnet"
    weights: str = "none"
    size: int = 48
    ridge: float = 0.01
    train: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = open_dataset(self.data, "train")
        if data.task != "multiclass" or not 2 <= self.unseen <= len(data.classes) - 2:
            expected = "one class an image, two or more of them to hold out and to train on"
            got = f"{data.task}, {self.unseen} held out"
            raise ConfigError(f"experiment ltpa: {self.data}", expected, got)

    def _rows(self) -> dict[str, dict[str, Any] | None]:
        """Options of the head by row; None = the network's own."""
        return {"none": None, **(self.variants or {"pc": {}, "dp": {"compat": "dp", "scaled": True}})}

    @cached_property
    def _parts(self) -> dict[str, tuple[list[str], list[str]]]:
        """Images of known and of unseen classes, by split."""
        found = {}
        for split in ("train", "val", "test"):
            data = open_dataset(self.data, split)
            count = min(self.images or len(data), len(data))
            last = [bool(row.any()) for row in label_matrix(data)[:count, -self.unseen :]]
            ids = data.ids[:count]
            known = [name for name, unseen in zip(ids, last, strict=True) if not unseen]
            found[split] = known, [name for name, unseen in zip(ids, last, strict=True) if unseen]
        return found

    def arms(self) -> tuple[Arm, ...]:
        arms = []
        for row, options in self._rows().items():
            maps = "cam" if options is None else "attention"
            view = View("test", self.data, "test", self.images, (maps,), metrics=("jaccard",))
            arms.append(Arm(row, partial(self._config, options), (view,)))
        return tuple(arms)

    def _config(self, options: dict[str, Any] | None, seed: int, home: Path) -> FinetuneConfig:
        parts = self._parts
        path = home / "known.json"
        home.mkdir(parents=True, exist_ok=True)
        known = tuple(parts["train"][0])
        save_subset(path, Subset(self.data, "train", "val", known, known, tuple(parts["val"][0])))
        model: dict[str, Any] = {"arch": self.arch, "weights": self.weights, "size": self.size}
        if options is not None:
            model |= {"head": "ltpa", "head_options": options}
        data = {"spec": self.data, "train": "train", "val": "val", "subset": str(path)}
        return trained(self.name, seed, data=merge(data, self.extra), model=model, train=self.train)

    def read(self, folder: Path) -> Mapping[str, Mapping[str, Reading]]:
        return {row: self._readings(folder / row, options is None) for row, options in self._rows().items()}

    def _readings(self, home: Path, plain: bool) -> dict[str, Reading]:
        classifier = load_classifier(home / "ft.pt")
        known, unseen = self._parts["test"]
        jaccard = scores_of(home / "test", "jaccard", "cam" if plain else "attention")
        found: dict[str, Reading] = {
            "jaccard": jaccard.only({case for case in jaccard.units if case[0] in set(known)}),
            "transfer": self._transfer(classifier, unseen),
        }
        for key, step in (("accuracy", 0), *((f"fgsm{step}", step) for step in STEPS)):
            hits: list[bool] = []
            for batch in self._batches(classifier, "test", known):
                moved = fgsm(classifier, batch.images, batch.targets, step / 255) if step else batch.images
                with torch.no_grad():
                    hits += (classifier(moved).argmax(1) == batch.targets).tolist()
            found[key] = _cases(known, hits)
        return found

    def _batches(self, classifier: Classifier, split: str, ids: Sequence[str]) -> list[Batch]:
        data = open_dataset(self.data, split)
        labels, place = label_matrix(data), {name: i for i, name in enumerate(data.ids)}
        rows = [place[name] for name in ids]
        return list(batches(Images(data, rows, labels[rows], classifier.preprocess), 32))

    def _transfer(self, classifier: Classifier, unseen: list[str]) -> Cases:
        sets = []
        for split, ids in (("train", self._parts["train"][1]), ("test", unseen)):
            found = self._batches(classifier, split, ids)
            features = torch.cat([described(classifier, batch.images) for batch in found]).double().numpy()
            sets.append((features, torch.cat([batch.targets for batch in found]).numpy()))
        (x, y), (x_test, y_test) = sets
        return _cases(unseen, (linear_probe(x, y, x_test, self.ridge) == y_test).tolist())

    def contrasts(self) -> tuple[tuple[str, str], ...]:
        """Every kind of attention against none."""
        return tuple((row, "none") for row, options in self._rows().items() if options is not None)


def _cases(ids: Sequence[str], hits: Sequence[bool]) -> Cases:
    return Cases({(image, ""): float(hit) for image, hit in zip(ids, hits, strict=True)})


def described(classifier: Classifier, images: Tensor) -> Tensor:
    """(N, D) what the classifier's last layer sees: LTPA's contexts, else the mean features."""
    network = classifier.network
    with torch.no_grad():
        if isinstance(network, LTPANetwork):
            return network.look(images).described
        return Tape(classifier, images).features.detach().mean((2, 3))


def linear_probe(
    x: NDArray[np.float64], y: NDArray[np.int64], test: NDArray[np.float64], ridge: float
) -> NDArray[np.int64]:
    """Labels of `test` by ridge regression of one-hot labels on standardised features.

    Args:
        x: (N, D).
        y: (N,) labels.
        test: (M, D).
        ridge: added to the features' covariance.
    """
    mean, std = x.mean(0), np.maximum(x.std(0), 1e-12)
    a, b = (x - mean) / std, (test - mean) / std
    classes = np.unique(y)
    wanted = (y[:, None] == classes).astype(np.float64)
    weights = np.linalg.solve(
        a.T @ a / len(a) + ridge * np.eye(a.shape[1]), a.T @ (wanted - wanted.mean(0)) / len(a)
    )
    labels: NDArray[np.int64] = classes[(b @ weights + wanted.mean(0)).argmax(1)]
    return labels
