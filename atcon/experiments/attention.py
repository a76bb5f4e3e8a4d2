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
from atcon.data import Images, batches
from atcon.experiments.base import Arm, Measure
from atcon.experiments.fgsm import fgsm
from atcon.experiments.headed import HeadExperiment
from atcon.experiments.readings import Cases, Reading
from atcon.experiments.views import View, scores_of
from atcon.subsets import Subset, label_matrix, save_subset
from wsod.data import open_dataset
from wsod.errors import ConfigError
from wsod.maps import Tape
from wsod.models import Classifier, load_classifier
from wsod.models.heads.ltpa import LTPANetwork

__all__ = ["Attention", "described", "linear_probe"]

STEPS = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Attention(HeadExperiment):
    """Jetley et al., Learn To Pay Attention, ICLR 2018: the same trunk with attention and without.

    Trained on images without the last classes. On test images of the classes it knows: accuracy, also after
    FGSM of several strengths, and the Jaccard index of the map by Otsu's threshold (CAM, or the product of
    LTPA's levels). On the classes it never saw: accuracy of a linear classifier on its frozen features,
    fitted to training images by ridge regression (the paper: a linear SVM, on other data sets). A top class
    is right if the image shows it.

    Args:
        variants: options of the head by row; empty = `pc`, and `dp` scaled.
        unseen: number of classes held out.
        ridge: of the linear classifier, beside a covariance of ones.
    """

    name: ClassVar[str] = "ltpa"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("accuracy", "accuracy"),
        Measure("jaccard", "Jaccard, Otsu"),
        *(Measure(f"fgsm{step}", f"accuracy, FGSM {step}/255") for step in STEPS),
        Measure("transfer", "unseen classes, linear"),
    )

    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    unseen: int = 3
    ridge: float = 0.01

    def __post_init__(self) -> None:
        data = open_dataset(self.data, "train")
        if not 2 <= self.unseen <= len(data.classes) - 2:
            expected = "two or more classes to hold out, and to train on"
            got = f"{self.unseen} of {len(data.classes)} held out"
            raise ConfigError(f"experiment ltpa: {self.data}", expected, got)

    def _rows(self) -> dict[str, dict[str, Any] | None]:
        """Options of the head by row; None = the network's own."""
        return {"none": None, **(self.variants or {"pc": {}, "dp": {"compat": "dp", "scaled": True}})}

    @cached_property
    def _parts(self) -> dict[str, tuple[list[str], list[str]]]:
        """Images without and with unseen classes, by split; those that show nothing are in neither."""
        found = {}
        for split in {"train", "val", self.test}:
            data = open_dataset(self.data, split)
            count = self.images if split == self.test and self.images else len(data)
            rows = list(zip(data.ids, label_matrix(data), strict=True))[:count]
            held = [name for name, row in rows if row[-self.unseen :].any()]
            known = [name for name, row in rows if row.any() and not row[-self.unseen :].any()]
            found[split] = known, held
        return found

    def arms(self) -> tuple[Arm, ...]:
        arms = []
        for row, options in self._rows().items():
            maps = "cam" if options is None else "attention"
            view = View("test", self.data, self.test, self.images, (maps,), metrics=("jaccard",))
            arms.append(Arm(row, partial(self._config, options), (view,)))
        return tuple(arms)

    def _config(self, options: dict[str, Any] | None, seed: int, home: Path) -> FinetuneConfig:
        parts = self._parts
        path = home / "known.json"
        home.mkdir(parents=True, exist_ok=True)
        known = tuple(parts["train"][0])
        save_subset(path, Subset(self.data, "train", "val", known, known, tuple(parts["val"][0])))
        head = "linear" if options is None else "ltpa"
        return self.trained(seed, head, options or {}, data={"subset": str(path)})

    def read(self, folder: Path) -> Mapping[str, Mapping[str, Reading]]:
        return {row: self._readings(folder / row, options is None) for row, options in self._rows().items()}

    def _readings(self, home: Path, plain: bool) -> dict[str, Reading]:
        classifier = load_classifier(home / "ft.pt")
        known, unseen = self._parts[self.test]
        jaccard = scores_of(home / "test", "jaccard", "cam" if plain else "attention")
        found: dict[str, Reading] = {
            "jaccard": jaccard.only({case for case in jaccard.units if case[0] in set(known)}),
            "transfer": self._transfer(classifier, unseen),
        }
        images, labels = self._images(classifier, self.test, known)
        for key, step in (("accuracy", 0), *((f"fgsm{step}", step) for step in STEPS)):
            logits = []
            for batch in batches(images, 32):
                moved = fgsm(classifier, batch.images, batch.targets, step / 255) if step else batch.images
                with torch.no_grad():
                    logits.append(classifier(moved))
            found[key] = _hits(known, torch.cat(logits).numpy(), labels)
        return found

    def _images(
        self, classifier: Classifier, split: str, ids: Sequence[str]
    ) -> tuple[Images, NDArray[np.bool_]]:
        data = open_dataset(self.data, split)
        place = {name: i for i, name in enumerate(data.ids)}
        rows = [place[name] for name in ids]
        labels = label_matrix(data)[rows]
        return Images(data, rows, labels, classifier.preprocess), labels

    def _transfer(self, classifier: Classifier, unseen: list[str]) -> Cases:
        sets = []
        for split, ids in (("train", self._parts["train"][1]), (self.test, unseen)):
            images, labels = self._images(classifier, split, ids)
            features = torch.cat([described(classifier, batch.images) for batch in batches(images, 32)])
            sets.append((features.double().numpy(), labels[:, -self.unseen :]))
        (x, y), (x_test, y_test) = sets
        return _hits(unseen, linear_probe(x, y, x_test, self.ridge), y_test)

    def contrasts(self) -> tuple[tuple[str, str], ...]:
        """Every kind of attention against none."""
        return tuple((row, "none") for row, options in self._rows().items() if options is not None)


def _hits(ids: Sequence[str], scores: NDArray[Any], labels: NDArray[np.bool_]) -> Cases:
    """Whether the class of the highest score is one the image shows."""
    right = labels[np.arange(len(ids)), scores.argmax(1)]
    return Cases({(image, ""): float(hit) for image, hit in zip(ids, right, strict=True)})


def described(classifier: Classifier, images: Tensor) -> Tensor:
    """(N, D) what the classifier's last layer sees: LTPA's contexts, else the mean features."""
    network = classifier.network
    with torch.no_grad():
        if isinstance(network, LTPANetwork):
            return network.look(images).described
        return Tape(classifier, images).features.detach().mean((2, 3))


def linear_probe(
    x: NDArray[np.float64], y: NDArray[np.bool_], test: NDArray[np.float64], ridge: float
) -> NDArray[np.float64]:
    """Scores of `test` by ridge regression of labels on standardised features.

    Args:
        x: (N, D).
        y: (N, C) classes that are there.
        test: (M, D).
        ridge: added to the features' covariance.

    Returns:
        (M, C).
    """
    mean, std = x.mean(0), np.maximum(x.std(0), 1e-12)
    a, b, wanted = (x - mean) / std, (test - mean) / std, y.astype(np.float64)
    weights = np.linalg.solve(
        a.T @ a / len(a) + ridge * np.eye(a.shape[1]), a.T @ (wanted - wanted.mean(0)) / len(a)
    )
    scores: NDArray[np.float64] = b @ weights + wanted.mean(0)
    return scores
