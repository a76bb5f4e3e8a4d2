"""From a data configuration to the sets of images a run draws from."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atcon.config import DataConfig
from atcon.data import Images
from atcon.subsets import Subset, label_matrix, load_subset, select
from wsod.data import open_dataset
from wsod.data.dataset import Dataset
from wsod.errors import ConfigError
from wsod.models.preprocess import Preprocess

__all__ = ["Sources", "open_sources"]

ONE_SPLIT = "--set data.train=all --set data.val=all --set data.val_images=10"


@dataclass(frozen=True)
class Sources:
    """The opened data of a run, before there is a classifier.

    Args:
        config: what was asked for.
        train, val: the data sets.
        labels, val_labels: their (N, C) label matrices.
        subset: which images are used.
    """

    config: DataConfig
    train: Dataset
    labels: NDArray[np.bool_]
    val: Dataset
    val_labels: NDArray[np.bool_]
    subset: Subset

    @cached_property
    def offered(self) -> frozenset[str]:
        """What the training images have: `labels`, and `masks` and `boxes` where at least one has."""
        index = {name: i for i, name in enumerate(self.train.ids)}
        rows = [index[name] for name in dict.fromkeys((*self.subset.train, *self.subset.unlabelled))]
        found = {"labels"}
        if any(self.train[row].masks is not None for row in rows):
            found.add("masks")
        if any(len(self.train[row].boxes) for row in rows):
            found.add("boxes")
        return frozenset(found)

    def pools(self, preprocess: Preprocess, seed: int, wants: Set[str] = frozenset()) -> dict[str, Images]:
        """`labelled`, `unlabelled` and `val` images as a classifier wants them.

        Args:
            preprocess: the classifier's.
            seed: of the augmentation.
            wants: `masks`, `boxes`: read for training images where named.
        """

        def images(dataset: Dataset, labels: NDArray[np.bool_], ids: tuple[str, ...], varied: bool) -> Images:
            index = {name: i for i, name in enumerate(dataset.ids)}
            rows = [index[name] for name in ids]
            augment = self.config if varied else None
            places = wants if varied else frozenset()
            return Images(dataset, rows, labels[rows], preprocess, augment, seed, places)

        return {
            "labelled": images(self.train, self.labels, self.subset.train, True),
            "unlabelled": images(self.train, self.labels, self.subset.unlabelled, True),
            "val": images(self.val, self.val_labels, self.subset.val, False),
        }


def open_sources(config: DataConfig) -> Sources:
    """Open the data and choose the images, reading annotations only.

    Raises:
        ConfigError, DataError: naming what is wrong with the configuration or the data.
    """
    train = _split(config, "train")
    val = train if config.val == config.train else _split(config, "val")
    labels = label_matrix(train, config.difficult)
    val_labels = labels if val is train else label_matrix(val, config.difficult)
    if config.subset is not None:
        subset = load_subset(config.subset, train, val)
    else:
        subset = select(config, train, labels, val, val_labels)
    return Sources(config, train, labels, val, val_labels, subset)


def _split(config: DataConfig, role: Literal["train", "val"]) -> Dataset:
    """The data set's split for a role; where there is none, the option that chooses it is named."""
    split: str = getattr(config, role)
    try:
        return open_dataset(config.spec, split)
    except ConfigError as error:
        if not error.where.endswith(": split"):
            raise
        hint = f"{error.hint} Say --set data.{role}=SPLIT; where there is only all: {ONE_SPLIT}."
        raise ConfigError(f"data.{role}", f"a split of {config.spec}", error.got, hint) from error
