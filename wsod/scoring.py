"""Images with their maps → what their metrics measure: by threads, while the next maps are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from wsod.board import Board
from wsod.errors import ConfigError, DataError, ModelError, WsodError
from wsod.metrics.base import Scene
from wsod.pipeline import Fault, LabelRule, ahead
from wsod.request import Run
from wsod.types import AttentionMaps, Sample, ScoredBoxes

__all__ = ["Item", "Measured", "measured"]

Item = tuple[Sample, dict[str, AttentionMaps]]
Scored = AttentionMaps | ScoredBoxes
#: by row: what was scored, and what its metrics found
Measured = dict[str, tuple[Scored, dict[str, Any]]]
#: images a thread takes at once: handing over each by itself costs more than a quick metric
CHUNK = 8


def measured(
    items: Iterator[Item | Fault], boards: Mapping[str, Board], run: Run
) -> Iterator[tuple[Item, Measured] | Fault]:
    """Every image, in order, with the maps of the run's folders read, and what each row's metrics found.

    Nothing is counted yet: counting one image after the other makes scores that do not depend on the number
    of threads, to the last bit. Metrics that ask the classifier ask it here, batch by batch.
    """

    for name in run.detections:
        if not boards[name].scores_boxes:
            expected = "a protocol that scores boxes, such as coco-ap, voc-ap-07, corloc-voc"
            raise ConfigError(f"--maps {name}", expected, run.request.config)

    def work(item: Item | Fault) -> tuple[Item, Measured] | Fault:
        if isinstance(item, Fault):
            return item
        sample, maps = item
        try:
            if run.probe is None:
                _read(run, item)
                _prepare(boards, [item])
            scored: dict[str, Scored] = {
                **maps,
                **{n: files.read(sample) for n, files in run.detections.items()},
            }
            return item, {name: (one, boards[name].measure(one, sample)) for name, one in scored.items()}
        except ConfigError:
            raise  # no image's fault
        except WsodError as error:
            return Fault(sample.image_id, error)
        finally:
            for each in maps.values():
                each.cache.clear()

    prepared = items if run.probe is None else _asked(items, boards, run)
    chunks = iter(lambda: list(islice(prepared, CHUNK)), [])
    threads = run.request.threads
    # enough to do while the next batch is in the network
    depth = 2 * max(-(-run.request.batch_size // CHUNK), threads)
    for results in ahead(lambda chunk: list(map(work, chunk)), chunks, threads, depth):
        yield from results


def _asked(items: Iterator[Item | Fault], boards: Mapping[str, Board], run: Run) -> Iterator[Item | Fault]:
    """The same items, after the metrics have asked the classifier about them, a batch of images at a time."""
    assert run.probe is not None
    while batch := list(islice(items, run.request.batch_size)):
        for place, item in enumerate(batch):
            if isinstance(item, Fault):
                continue
            try:
                _read(run, item)
                run.probe.load(item[0], item[1].values())
            except WsodError as error:
                batch[place] = Fault(item[0].image_id, error)
        try:
            _prepare(boards, [item for item in batch if not isinstance(item, Fault)])
        except ModelError:
            batch = [_alone(boards, item) for item in batch]
        yield from batch
        run.probe.clear()


def _alone(boards: Mapping[str, Board], item: Item | Fault) -> Item | Fault:
    """The item once asked about by itself, or the fault that spoilt its batch."""
    if isinstance(item, Fault):
        return item
    try:
        _prepare(boards, [item])
    except ModelError as error:
        return Fault(item[0].image_id, error)
    return item


def _prepare(boards: Mapping[str, Board], batch: list[Item]) -> None:
    for name, board in boards.items():
        board.prepare(
            [
                Scene(found[name], sample, [maps for other, maps in found.items() if other != name])
                for sample, found in batch
                if name in found
            ]
        )


def _read(run: Run, item: Item) -> None:
    sample, maps = item
    for name, store in run.stores.items():
        maps[name] = _chosen(store.read(sample), sample, run.request.labels)


def _chosen(maps: AttentionMaps, sample: Sample, rule: LabelRule) -> AttentionMaps:
    """The stored maps that the label rule asks for."""
    if rule == "stored":
        return maps
    if rule == "truth":
        wanted = list(sample.classes)
    elif maps.ranking is None:
        raise ConfigError(
            f"--labels {rule}", "maps that say how the classifier ranks the classes", "maps without a ranking"
        )
    else:
        wanted = [int(label) for label in maps.ranking if label >= 0][: 1 if rule == "predicted" else 5]
    place = {int(label): k for k, label in enumerate(maps.labels)}
    missing = [label for label in wanted if label not in place]
    if missing:
        raise DataError(
            maps.image_id,
            f"maps of labels {wanted}",
            f"maps of {maps.labels.tolist()}",
            "Make the missing maps too.",
        )
    keep = [place[label] for label in wanted]
    return AttentionMaps(
        maps.image_id, maps.size, np.array(wanted), maps.values[keep], maps.ranking, maps.region
    )
