"""Images → attention maps: decoding ahead of the forward passes, all methods of a batch at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from wsod.data.dataset import Dataset
from wsod.errors import ConfigError, ModelError, WsodError
from wsod.memory import ran_out, room_for
from wsod.types import AttentionMaps, Sample

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from wsod.maps import MapMethod
    from wsod.models import Classifier

__all__ = ["INPUT", "Fault", "LabelRule", "ahead", "class_columns", "iterate_maps"]

LabelRule = Literal["truth", "predicted", "topk", "stored"]
TOP = 5
T = TypeVar("T")
U = TypeVar("U")
RANKING_DEPTH = 10
#: what to do where one image alone does not fit in memory
ALONE = "Choose a smaller --size, fewer --maps at once, or another --device."
#: where a map's cache has the classifier's input and its region, for those who ask the classifier again
INPUT = "input"


@dataclass(frozen=True)
class Fault:
    """An image that could not be read or mapped, and why."""

    image: str
    error: WsodError


@dataclass(frozen=True)
class _Loaded:
    index: int
    sample: Sample
    tensor: torch.Tensor
    region: tuple[float, float, float, float] | None
    image: Image.Image | None = None


def class_columns(model_classes: Sequence[str], data_classes: Sequence[str]) -> np.ndarray[Any, Any]:
    """(C,) the classifier's output for each class of the data set, matched by name.

    Where the data set has only numbers for names (the WSOL lists), a class's number is its output.

    Raises:
        ConfigError: where a class of the data set is not among the classifier's.
    """
    if tuple(model_classes) == tuple(data_classes):
        return np.arange(len(data_classes))  # names may repeat: ImageNet has two cranes
    place = {name: i for i, name in enumerate(model_classes)}
    if all(name in place for name in data_classes):
        return np.array([place[name] for name in data_classes], np.int64)
    numbered = all(name.isdigit() for name in data_classes)
    if numbered and max(map(int, data_classes)) < len(model_classes):
        return np.array([int(name) for name in data_classes], np.int64)
    missing = [name for name in data_classes if name not in place]
    raise ConfigError(
        "--checkpoint",
        f"a classifier of the data set's {len(data_classes)} classes",
        f"{len(model_classes)} classes, without {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}",
        "Train one on it with `atcon finetune --data SPEC`.",
    )


def ahead(work: Callable[[T], U], items: Iterable[T], threads: int, depth: int) -> Iterator[U]:
    """`map(work, items)` in order, computed by threads at most `depth` items ahead."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        queue: deque[Future[U]] = deque()
        try:
            for item in items:
                queue.append(pool.submit(work, item))
                if len(queue) > depth:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:
                future.cancel()


def iterate_maps(
    dataset: Dataset,
    indices: Sequence[int],
    methods: Mapping[str, MapMethod],
    classifier: Classifier | None,
    *,
    labels: LabelRule = "truth",
    device: str = "cpu",
    batch_size: int = 16,
    threads: int = 2,
    frame: int = 0,
    tta: str = "",
) -> Iterator[tuple[Sample, dict[str, AttentionMaps]] | Fault]:
    """Every image's maps by every method, in the order of `indices`; a Fault for an image that fails.

    One forward pass of a batch serves all methods and all labels of its images. Without methods that need
    a classifier or the image none is decoded. Controls are made at the evaluation frame: `frame` pixels
    square, or the image's size where it is 0.
    """
    tape_methods = {name: method for name, method in methods.items() if not method.is_control}
    shown = any("image" in method.needs for method in methods.values())
    if not tape_methods:
        for index in indices:
            try:
                sample = dataset[index]
                image = dataset.image(index) if shown else None
                found = _controls(methods, sample, np.array(sample.classes, np.int64), frame, image)
            except WsodError as error:
                yield Fault(dataset.ids[index], error)
            else:
                yield sample, found
        return
    if classifier is None:
        raise ConfigError(
            "--maps",
            f"a checkpoint for {', '.join(tape_methods)}",
            "none",
            "Pass --checkpoint FILE (or --arch NAME).",
        )
    # bare photos have no classes of their own: the classifier's are meant
    columns = class_columns(classifier.classes, dataset.classes or classifier.classes)
    preprocess = classifier.preprocess

    def load(index: int) -> _Loaded | Fault:
        try:
            sample = dataset[index]
            image = dataset.image(index)
            tensor, region = preprocess(image)
        except WsodError as error:
            return Fault(dataset.ids[index], error)
        return _Loaded(index, sample, tensor, region, image if shown else None)

    def made(batch: list[_Loaded]) -> list[tuple[Sample, dict[str, AttentionMaps]] | Fault]:
        try:
            return list(
                _batch_maps(classifier, batch, methods, tape_methods, columns, labels, device, frame, tta)
            )
        except Exception as error:
            if len(batch) > 1 or not ran_out(error):
                raise
            where = f"{classifier.arch}, image {batch[0].sample.image_id}"
            got = f"out of memory on {device}"
            return [Fault(batch[0].sample.image_id, ModelError(where, "room for one image", got, ALONE))]

    loaded = ahead(load, indices, threads, depth=2 * batch_size)
    room = room_for(classifier, "images a batch")
    for group in _batches(loaded, batch_size):
        if isinstance(group, Fault):
            yield group
            continue
        for part in room.over(group, made):
            yield from part


def _batches(loaded: Iterator[_Loaded | Fault], batch_size: int) -> Iterator[list[_Loaded] | Fault]:
    """Runs of images of one tensor shape, at most `batch_size` long; order is kept.

    A batch lies within images n·batch_size to (n + 1)·batch_size of the data set, whichever were asked for:
    a run that goes on after a stop makes the batches it would have made.
    """
    number = iter(range(1 << 62))

    def shape(item: _Loaded | Fault) -> object:
        return (
            next(number) if isinstance(item, Fault) else (item.index // batch_size, tuple(item.tensor.shape))
        )

    for _, run in groupby(loaded, shape):
        batch: list[_Loaded] = []
        for item in run:
            if isinstance(item, Fault):
                yield item
                continue
            batch.append(item)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def _batch_maps(
    classifier: Classifier,
    batch: list[_Loaded],
    methods: Mapping[str, MapMethod],
    tape_methods: Mapping[str, MapMethod],
    columns: np.ndarray[Any, Any],
    rule: LabelRule,
    device: str,
    frame: int,
    tta: str,
) -> Iterator[tuple[Sample, dict[str, AttentionMaps]] | Fault]:
    import torch

    from wsod.maps import tape_for
    from wsod.maps.tta import fused_maps, views_of

    images = torch.stack([item.tensor for item in batch]).to(device, non_blocking=True)
    tape = tape_for(classifier, images, tape_methods.values())
    scores = tape.logits.detach().float().cpu().numpy()
    finite = np.isfinite(scores).all(1)
    if not finite.all():
        # what is derived from a batch, such as the head's weights, would be spoilt for the other images
        others = [item for item, good in zip(batch, finite, strict=True) if good]
        options = (methods, tape_methods, columns, rule, device, frame, tta)
        # all of them before the first is handed on: where memory runs out, the batch is made again
        found = iter(list(_batch_maps(classifier, others, *options)) if others else [])
        for item, good in zip(batch, finite, strict=True):
            where = f"{classifier.arch}, image {item.sample.image_id}"
            fault = Fault(item.sample.image_id, ModelError(where, "finite logits", "NaN or infinity"))
            yield next(found) if good else fault
        return
    chosen = [_labels(rule, item.sample, row[columns]) for item, row in zip(batch, scores, strict=True)]
    rows = [row for row, some in enumerate(chosen) for _ in some]
    flat = [columns[label] for some in chosen for label in some]
    cases = torch.tensor(np.array([rows, flat], np.int64).T, device=device)
    stacks = {}
    if len(cases):
        fused = fused_maps(tape, cases, tape_methods, views_of(tta))
        stacks = {name: maps.float().cpu().numpy() for name, maps in fused.items()}
    backward = np.full(scores.shape[1], -1, np.int64)
    backward[columns] = np.arange(len(columns))
    start = 0
    for item, some, row in zip(batch, chosen, scores, strict=True):
        stop = start + len(some)
        depth = max(RANKING_DEPTH, len(item.sample.classes))
        ranking = backward[np.argsort(-row, kind="stable")[:depth]]
        try:
            maps = _controls(methods, item.sample, some, frame, item.image)
            for name, stack in stacks.items():
                maps[name] = AttentionMaps(
                    item.sample.image_id, item.sample.size, some, stack[start:stop], ranking, item.region
                )
                maps[name].cache[INPUT] = item.tensor, item.region
            yield item.sample, {name: maps[name] for name in methods if name in maps}
        except WsodError as error:
            yield Fault(item.sample.image_id, error)
        start = stop


def _labels(rule: LabelRule, sample: Sample, scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if rule == "truth":
        return np.array(sample.classes, np.int64)
    return np.argsort(-scores, kind="stable")[: 1 if rule == "predicted" else TOP]


def _controls(
    methods: Mapping[str, MapMethod],
    sample: Sample,
    labels: np.ndarray[Any, Any],
    frame: int,
    image: Image.Image | None,
) -> dict[str, AttentionMaps]:
    """Maps that need no classifier: one an image, the same for every label."""
    maps = {}
    pixels = None if image is None else np.asarray(image, np.float64) / 255
    for name, method in methods.items():
        if method.is_control and len(labels):
            size = (frame, frame) if frame else sample.size
            one = method.control(size, image_id=sample.image_id, image=pixels)
            values = np.broadcast_to(one, (len(labels), *one.shape))
            point = method.point(sample.size) if method.point is not None else None
            maps[name] = AttentionMaps(sample.image_id, sample.size, labels, values, point=point)
    return maps
