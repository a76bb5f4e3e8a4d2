"""Which images are trained and judged on: chosen from annotations alone, no pixels read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atcon.config import DataConfig
from wsod.config import write_text
from wsod.data.dataset import Dataset
from wsod.errors import ConfigError, DataError
from wsod.textfiles import read_text

__all__ = ["Subset", "label_matrix", "load_subset", "save_subset", "select", "small_set"]

Bool = NDArray[np.bool_]


def label_matrix(dataset: Dataset, difficult: Literal["drop", "keep", "parity"] = "drop") -> Bool:
    """(N, C) bool: the classes each image shows, by the given policy on difficult objects.

    Raises:
        DataError: for a label beyond the data set's classes, or an image of several classes in
            single-label data.
    """
    labels = np.zeros((len(dataset), len(dataset.classes)), np.bool_)
    for i in range(len(dataset)):
        sample = dataset[i]
        present = sample.labels
        if difficult != "keep" and len(sample.difficult):
            present = present[~sample.difficult]
        if len(present) and present.max() >= len(dataset.classes):
            raise DataError(
                sample.image_path or sample.image_id,
                f"labels below {len(dataset.classes)}",
                int(present.max()),
            )
        labels[i, present] = True
        if dataset.task == "multiclass" and labels[i].sum() > 1:
            raise DataError(
                sample.image_path or sample.image_id,
                "one class",
                ", ".join(dataset.classes[k] for k in np.flatnonzero(labels[i])),
            )
    return labels


def small_set(labels: Bool, per_class: int, *, balanced: bool = False, seed: int = 0) -> list[int]:
    """Rows of a small training set: in random order, each taken if no class would exceed `per_class`.

    Args:
        labels: (N, C) bool.
        per_class: most images a class.
        balanced: only rows of exactly one class.
        seed: of the order.

    Returns:
        Row numbers, ascending.

    >>> labels = np.array([[1, 0], [1, 1], [0, 1], [1, 0]], bool)
    >>> small_set(labels, 1, balanced=True, seed=0)
    [2, 3]
    """
    taken: list[int] = []
    count = np.zeros(labels.shape[1], np.int64)
    for row in np.random.default_rng(seed).permutation(len(labels)):
        new = labels[row]
        if not new.any() or (balanced and new.sum() != 1) or (count[new] >= per_class).any():
            continue
        count += new
        taken.append(int(row))
    return sorted(taken)


@dataclass(frozen=True)
class Subset:
    """Image ids by use. The three lists share no image unless `train` and `unlabelled` are the same list.

    Args:
        spec: the data set.
        train_split, val_split: the splits the ids are of.
        train: images with labels.
        unlabelled: images used without labels.
        val: images evaluated and selected on.
    """

    spec: str
    train_split: str
    val_split: str
    train: tuple[str, ...]
    unlabelled: tuple[str, ...]
    val: tuple[str, ...]


def select(config: DataConfig, train: Dataset, labels: Bool, val: Dataset, val_labels: Bool) -> Subset:
    """The images a run uses, by its configuration, the same each time.

    Args:
        config: the rules.
        train: data set trained on.
        labels: its label matrix.
        val: data set evaluated on.
        val_labels: its label matrix.

    Raises:
        ConfigError: where nothing is left to train or evaluate on.
    """
    keep = np.ones(len(train), np.bool_) if config.difficult == "parity" else labels.any(1)
    if train.task == "multiclass":
        keep &= labels.any(1)
    pool = np.flatnonzero(keep)
    if config.val == config.train:
        order = np.random.default_rng((config.subset_seed, 1)).permutation(pool)
        chosen, pool = np.sort(order[: config.val_images]), np.sort(order[config.val_images :])
    else:
        chosen = np.flatnonzero(val_labels.any(1))
        chosen = chosen[: config.val_images or None]
    rows = pool
    if config.per_class:
        rows = pool[
            small_set(labels[pool], config.per_class, balanced=config.balanced, seed=config.subset_seed)
        ]
    rows, chosen = rows[: config.limit or None], chosen[: config.limit or None]
    rest = np.setdiff1d(pool, rows) if config.unlabelled == "rest" else rows
    for name, found in (("train", rows), ("unlabelled", rest), ("val", chosen)):
        if not len(found):
            raise ConfigError(f"data {config.spec!r}: {name}", "at least one usable image", "none")

    def ids(dataset: Dataset, found: Sequence[int] | NDArray[np.int64]) -> tuple[str, ...]:
        return tuple(dataset.ids[i] for i in found)

    return Subset(config.spec, config.train, config.val, ids(train, rows), ids(train, rest), ids(val, chosen))


def save_subset(path: Path, subset: Subset) -> None:
    """Write the lists as JSON."""
    write_text(path, json.dumps({"schema": 1, **vars(subset)}, indent=1) + "\n")


def load_subset(path: Path, train: Dataset, val: Dataset) -> Subset:
    """Read lists written by `save_subset`, and check them against the data.

    Raises:
        ConfigError: where the file cannot be read, names unknown images, or trains on what it judges on.
    """
    try:
        table: Any = json.loads(read_text(path))
        spec, train_split, val_split = (str(table[name]) for name in ("spec", "train_split", "val_split"))
        lists = {name: tuple(map(str, table[name])) for name in ("train", "unlabelled", "val")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(path, "an index list written by atcon finetune", error) from error
    for name, dataset in (("train", train), ("unlabelled", train), ("val", val)):
        missing = set(lists[name]) - set(dataset.ids)
        if missing or not lists[name]:
            got = f"{len(missing)} others, such as {min(missing)!r}" if missing else "none"
            raise ConfigError(f"{path}: {name}", f"images of {dataset.spec} {dataset.split}", got)
    if train.split == val.split and (both := {*lists["train"], *lists["unlabelled"]} & {*lists["val"]}):
        raise ConfigError(path, "no image both in train and val", f"{len(both)}, such as {min(both)!r}")
    return Subset(spec, train_split, val_split, **lists)
