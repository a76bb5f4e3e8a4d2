"""Reading a whole data set once: what is in it and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from wsod.data.dataset import Dataset
from wsod.data.masks import InstanceMasks
from wsod.errors import DataError

__all__ = ["CheckReport", "check"]


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Args:
        spec, split: the data set read.
        images: images listed, faulty ones included.
        boxes: boxes of the sound images.
        difficult, crowd: how many of the boxes are.
        masked: images with objects that have pixel truth.
        per_class: boxes of each class by name (images, where the data has labels without boxes).
        faults: one line each, with the file's name.
    """

    spec: str
    split: str
    images: int
    boxes: int
    difficult: int
    crowd: int
    masked: int
    per_class: dict[str, int]
    faults: list[str]


def check(
    dataset: Dataset,
    *,
    pixels: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every annotation, mask and image once, going on after a fault.

    Args:
        dataset: any data set.
        pixels: also decode the images and masks.
        progress: called with (done, total) at each image.
    """
    counts: Counter[str] = Counter()
    labels: Counter[int] = Counter()
    faults: list[str] = []
    for index in range(len(dataset)):
        if progress is not None:
            progress(index + 1, len(dataset))
        try:
            sample = dataset[index]
        except DataError as error:
            faults.append(str(error))
            continue
        counts.update(
            boxes=len(sample.boxes),
            difficult=int(sample.difficult.sum()),
            crowd=int(sample.crowd.sum()),
            masked=int(sample.masks is not None and len(sample.labels) > 0),
        )
        labels.update(sample.labels.tolist())
        if beyond := [label for label in sample.classes if label >= len(dataset.classes)]:
            faults.append(f"{sample.image_id}: label {beyond[0]} of {len(dataset.classes)} classes.")
        if pixels:
            faults += _pixel_faults(dataset, index)
    per_class: dict[str, int] = {}
    for label, name in enumerate(dataset.classes):
        # ImageNet has two cranes and two maillots
        per_class[name] = per_class.get(name, 0) + labels[label]
    return CheckReport(
        dataset.spec,
        dataset.split,
        len(dataset),
        counts["boxes"],
        counts["difficult"],
        counts["crowd"],
        counts["masked"],
        per_class,
        faults,
    )


def _pixel_faults(dataset: Dataset, index: int) -> list[str]:
    """What is wrong with one image's pixels and masks."""
    reads: list[Callable[[], object]] = [lambda: dataset.image(index)] if dataset.has_images else []
    masks = dataset[index].masks
    if masks is not None:
        reads.append(masks.semantic)
    if isinstance(masks, InstanceMasks) and len(dataset[index].boxes):
        objects = masks
        reads.append(lambda: objects.instance(0))
    faults = []
    for read in reads:
        try:
            read()
        except DataError as error:
            faults.append(str(error))
    return faults
