"""A tiny data set in memory, with difficult objects, that notices when pixels are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from wsod.data.dataset import Dataset
from wsod.types import Sample


class Toy(Dataset):
    """Images of uniform colour noise; `labels[i]` are the classes of image i, `difficult[i]` their flags."""

    def __init__(
        self,
        labels: Sequence[Sequence[int]],
        difficult: Sequence[Sequence[bool]] | None = None,
        classes: int = 4,
        task: str = "multilabel",
        split: str = "train",
    ) -> None:
        self.spec, self.split, self.splits, self.task = "toy", split, ("train", "val"), task
        self.classes = tuple("abcdefgh"[:classes])
        self.ids = tuple(f"{split}{i:03d}" for i in range(len(labels)))
        self.labels, self.pixels_read = labels, 0
        self.flags = difficult or [[False] * len(row) for row in labels]

    def __getitem__(self, index: int) -> Sample:
        n = len(self.labels[index])
        return Sample(
            self.ids[index], None, (20, 24), [[1, 1, 9, 9]] * n, self.labels[index], self.flags[index]
        )

    def image(self, index: int) -> Image.Image:
        self.pixels_read += 1
        random = np.random.default_rng((len(self.split), index))
        return Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8))


def many(n: int, classes: int = 4, seed: int = 0, **options: object) -> Toy:
    """n images of one or two random classes."""
    random = np.random.default_rng(seed)
    rows = [sorted(random.choice(classes, random.integers(1, 3), replace=False).tolist()) for _ in range(n)]
    return Toy(rows, classes=classes, **options)
