"""Images as training batches. What a batch holds is a function of the seed and the number of the batch."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from atcon.config import DataConfig
from atcon.truth import Truth, read_truth
from wsod.data.dataset import Dataset
from wsod.errors import WsodError
from wsod.models.preprocess import Preprocess

__all__ = ["Batch", "Example", "Images", "Item", "augmentation", "batches", "stream"]


@dataclass(frozen=True)
class Batch:
    """Images and their labels.

    Args:
        images: (N, 3, H, W) float32, normalised as the classifier wants them.
        targets: (N, C) float32 multi-hot, or (N,) int64 class indices.
        rows: which images of the pool they are.
        masks: (N, C, H, W) bool, the pixels of each class, cropped and flipped with the image; None where no
            objective needs masks.
        void: (N, H, W) bool, pixels that count neither for nor against a class; with `masks`.
        has_mask: (N,) bool, whether the image has pixel truth (else its masks are empty); with `masks`.
        boxes: one (n, 5) float32 an image, rows x0, y0, x1, y1 in input pixels, half-open, and label; None
            where no objective needs boxes.
        partners: as `targets`, of the image that was mixed into each; None where none were mixed.
        share: (N,) float32, how much of each image is its own; with `partners`.
    """

    images: Tensor
    targets: Tensor
    rows: tuple[int, ...]
    masks: Tensor | None = None
    void: Tensor | None = None
    has_mask: Tensor | None = None
    boxes: tuple[Tensor, ...] | None = None
    partners: Tensor | None = None
    share: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def _each(self, change: Any) -> Batch:
        """The same with every tensor changed."""

        def changed(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            return tuple(map(change, value)) if isinstance(value, tuple) else value

        names = [field.name for field in fields(self) if field.name != "rows"]
        return replace(self, **{name: changed(getattr(self, name)) for name in names})

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; called by the DataLoader."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device, channels_last: bool = False) -> Batch:
        """The same on a device."""
        moved = self._each(lambda value: value.to(device, non_blocking=True))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return replace(moved, images=moved.images.contiguous(memory_format=layout))

    def parts(self, count: int) -> Iterator[Batch]:
        """Up to `count` consecutive parts of nearly equal length."""
        for rows in np.array_split(np.arange(len(self)), min(count, len(self))):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            cut: dict[str, Any] = {
                field.name: value[part]
                for field in fields(self)
                if (value := getattr(self, field.name)) is not None
            }
            yield Batch(**cut)


class Item(NamedTuple):
    """What the sampler asks for: an image, and the epoch that its augmentation is drawn for."""

    epoch: int
    row: int


class Example(NamedTuple):
    """One image with its target, and the places of its classes where they are wanted."""

    image: Tensor
    target: Tensor
    row: int
    truth: Truth


class Images(TorchDataset[Example]):
    """Chosen images of a data set, preprocessed, with their targets.

    Args:
        dataset: where they come from.
        indices: which of its images.
        labels: (N, C) bool, the classes of each of them.
        preprocess: the classifier's.
        augment: how images are varied; None = not at all.
        seed: of the augmentation, together with epoch and row.
        wants: `masks` and `boxes` are read only where they are named here.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: Sequence[int],
        labels: NDArray[np.bool_],
        preprocess: Preprocess,
        augment: DataConfig | None = None,
        seed: int = 0,
        wants: Set[str] = frozenset(),
    ) -> None:
        self.dataset, self.indices, self.preprocess, self.seed = dataset, list(indices), preprocess, seed
        self.wants = frozenset(wants)
        if dataset.task == "multilabel":
            self.targets = torch.from_numpy(labels.astype(np.float32))
        else:
            self.targets = torch.from_numpy(labels.argmax(1))
        if augment is not None and not dataset.mirrors:
            augment = replace(augment, flip=0.0)
        self.augment = augmentation(augment, preprocess) if augment is not None else None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: Item) -> Example:
        index = self.indices[item.row]
        image = self.dataset.image(index)
        truth = read_truth(self.dataset, index, self.wants) if self.wants else Truth()
        if self.augment is not None:
            # seeded by image and epoch: the same in any number of worker processes and after a resume
            with torch.random.fork_rng(devices=[]):
                seed = np.random.SeedSequence((self.seed, item.epoch, item.row))
                torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
                image, truth = truth.varied(self.augment, image)
        tensor, region = self.preprocess(image)
        region = region or (0.0, 0.0, float(image.width), float(image.height))
        height, width = tensor.shape[1:]
        return Example(tensor, self.targets[item.row], item.row, truth.seen(region, (height, width)))


def augmentation(config: DataConfig, preprocess: Preprocess) -> Any:
    """PIL image → varied PIL image, boxes and masks beside it likewise; None where nothing is varied."""
    steps: list[Any] = []
    if config.crop:
        steps.append(
            v2.RandomResizedCrop(
                preprocess.size, scale=(config.crop, 1.0), interpolation=v2.InterpolationMode.BILINEAR
            )
        )
    if config.flip:
        steps.append(v2.RandomHorizontalFlip(config.flip))
    if config.jitter:
        steps.append(v2.ColorJitter(config.jitter, config.jitter, config.jitter))
    return v2.Compose(steps) if steps else None


class _Order(Sampler[list[Item]]):
    """Batches without end: each epoch a new order, what does not fill a batch left out.

    Of several processes each takes every size-th image of a batch, so that the parts of their shares make up
    the parts of the whole.
    """

    def __init__(self, images: int, batch: int, seed: int, start: int, share: tuple[int, int]) -> None:
        self.images, self.batch, self.seed, self.start = images, min(batch, images), seed, start
        self.share = share

    def __iter__(self) -> Iterator[list[Item]]:
        epoch, i = divmod(self.start, self.images // self.batch)
        rank, size = self.share
        while True:
            order = np.random.default_rng((self.seed, 0x0DE5, epoch)).permutation(self.images)
            for first in range(i * self.batch, self.images - self.batch + 1, self.batch):
                rows = order[first : first + self.batch][rank::size]
                yield [Item(epoch, int(row)) for row in rows]
            epoch, i = epoch + 1, 0


def stream(
    images: Images,
    batch: int,
    *,
    seed: int,
    start: int = 0,
    workers: int = 0,
    pin: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Training batches without end, from batch number `start` on.

    Args:
        images: where they come from.
        batch: images of a whole batch.
        seed: of the order.
        start: batches taken before.
        workers: processes that load images.
        pin: page-locked memory.
        share: (rank, size): only this process's part of each batch.
    """
    order = _Order(len(images), batch, seed, start, share)
    return _loaded(images, order, workers, pin)


def batches(
    images: Images, batch: int, *, workers: int = 0, pin: bool = False, share: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """All images once, in order; with `share` = (rank, size), every size-th from the rank-th on."""
    rows = range(share[0], len(images), share[1])
    order = [[Item(0, row) for row in rows[i : i + batch]] for i in range(0, len(rows), batch)]
    return _loaded(images, order, workers, pin)


def _loaded(images: Images, order: Any, workers: int, pin: bool) -> Iterator[Batch]:
    loader = DataLoader(
        cast(Any, _Caught(images)),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin,
        worker_init_fn=_ignore_interrupt,
        # its own, or making the loader would draw from the global one
        generator=torch.Generator().manual_seed(0),
    )
    for batch in loader:
        if isinstance(batch, WsodError):
            raise batch
        yield batch


class _Caught(TorchDataset["Example | WsodError"]):
    """The same images, faults handed over as they are: torch would make a worker's into tracebacks."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, item: Item) -> Example | WsodError:
        try:
            return self.images[item]
        except WsodError as error:
            return error


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches every process; the training process finishes its step first, and needs the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(items: list[Example | WsodError]) -> Batch | WsodError:
    faults = [item for item in items if isinstance(item, WsodError)]
    if faults:
        return faults[0]
    images, targets, rows, truths = zip(*cast(list[Example], items), strict=True)
    places: dict[str, Any] = {}
    if truths[0].masks is not None:
        for name in ("masks", "void", "has_mask"):
            places[name] = torch.stack([getattr(truth, name) for truth in truths])
        places["masks"], places["void"] = places["masks"].bool(), places["void"].bool()
    if truths[0].boxes is not None:
        places["boxes"] = tuple(truth.rows() for truth in truths)
    return Batch(torch.stack(images), torch.stack(targets), tuple(rows), **places)
