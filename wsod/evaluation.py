"""The one place where the stages meet: data → maps → scores → result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsod.board import Board
from wsod.config import plain
from wsod.data.dataset import Dataset
from wsod.errors import ConfigError, DataError, WsodError
from wsod.metrics.base import Scene
from wsod.pipeline import Fault, LabelRule, iterate_maps
from wsod.protocols import load_protocol
from wsod.request import Maps, Run, make_request, open_run
from wsod.results import Result, provenance
from wsod.scoremaps import MapProcessing
from wsod.store import MapStore
from wsod.thresholds import ThresholdSource
from wsod.types import AttentionMaps, Sample

if TYPE_CHECKING:
    from wsod.models import Classifier

__all__ = ["compute_maps", "evaluate"]

# pictures of maps that no protocol has chosen a threshold for: 20 % of the maximum, as heatmap_to_boxes
CLAIM = 0.2
Progress = Callable[[int, int], None]
Item = tuple[Sample, dict[str, AttentionMaps]]


def _items(
    run: Run, indices: Sequence[int], progress: Progress | None, frame: int = 0
) -> Iterator[Item | Fault]:
    """Every image with all its maps, computed and read; faults as the request says."""
    request, total = run.request, len(indices)
    if run.methods:
        computed: Iterator[Item | Fault] = iterate_maps(
            run.dataset,
            indices,
            run.methods,
            run.classifier,
            labels=request.labels,
            device=run.device,
            batch_size=request.batch_size,
            threads=request.threads,
            frame=frame,
            tta=request.tta,
        )
    else:
        computed = _annotations(run.dataset, indices)
    for done, item in enumerate(computed, 1):
        result = item
        if not isinstance(item, Fault):
            sample, maps = item
            try:
                for name, store in run.stores.items():
                    maps[name] = _chosen(store.read(sample), sample, request.labels)
                if run.probe is not None:
                    run.probe.load(sample, maps.values())
            except WsodError as error:
                result = Fault(sample.image_id, error)
        if isinstance(result, Fault) and request.on_error == "fail":
            raise result.error
        yield result
        if progress:
            progress(done, total)


def _annotations(dataset: Dataset, indices: Sequence[int]) -> Iterator[Item | Fault]:
    for index in indices:
        try:
            yield dataset[index], {}
        except WsodError as error:
            yield Fault(dataset.ids[index], error)


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


def compute_maps(
    maps: Maps, out: Path | str, *, progress: Progress | None = None, **options: Any
) -> tuple[int, list[Fault]]:
    """Compute and store maps only; images whose maps are there already are not computed again.

    Args:
        maps: method names.
        out: folder; each method's maps go to OUT/METHOD.
        progress: called with (images done, images in all).
        options: fields of `wsod.request.Request`.

    Returns:
        How many images were computed, and the faults (under `on_error="skip"`).
    """
    out, run = Path(out), open_run(make_request(maps, options))
    if run.stores:
        raise ConfigError("--maps", "method names", ", ".join(run.stores), "These maps are on disk already.")
    stores = {name: MapStore(out / name, len(run.classes)) for name in run.methods}
    ids = run.dataset.ids
    missing = [i for i in run.indices if not all(store.has(ids[i]) for store in stores.values())]
    faults, computed = [], 0
    kept: list[Item] = []
    for item in _items(run, missing, progress):
        if isinstance(item, Fault):
            faults.append(item)
            continue
        _keep(run, kept, item)
        for name, one in item[1].items():
            stores[name].write(one)
        computed += 1
    _finish_stores(run, stores)
    _draw(run, out, kept, dict.fromkeys(stores, CLAIM), MapProcessing())
    return computed, faults


def _keep(run: Run, kept: list[Item], item: Item) -> None:
    """Keep an image for the pictures, while there are fewer cases than asked for."""
    cases = sum(len(next(iter(found.values())).labels) for _, found in kept)
    if cases < run.request.save_overlays and item[1]:
        kept.append(item)


def _draw(
    run: Run, out: Path, kept: list[Item], thresholds: Mapping[str, float], processing: MapProcessing
) -> None:
    """Pictures of the images kept, in OUT/overlays."""
    if kept:
        from wsod.report.overlays import save_overlays

        pixels = ((sample, _pixels(run.dataset, sample), found) for sample, found in kept)
        limit = run.request.save_overlays
        save_overlays(out / "overlays", pixels, thresholds, processing, run.classes, limit)


def _finish_stores(run: Run, stores: Mapping[str, MapStore]) -> None:
    for name, store in stores.items():
        about = {"schema": 1, "maps": name, "supervision": run.supervision(name)}
        about |= {"images": len(run.indices), "classes": run.classes, "config": plain(run.request)}
        store.finish(about)


def evaluate(
    maps: Maps, *, out: Path | str | None = None, progress: Progress | None = None, **options: Any
) -> Result:
    """Make or read attention maps, score them by a protocol, and (with `out`) write the result directory.

        evaluate(["gradcam", "center"], checkpoint="ft.pt", data="voc2012:VOCdevkit", config="default")

    Args:
        maps: method names or folders of maps, a row each.
        out: result directory: result.json, cases.jsonl, and maps/ and overlays/ where asked for.
        progress: called with (images done, images in all).
        options: the other fields of `wsod.request.Request`.

    Raises:
        WsodError: at the first fault, unless `on_error="skip"`.
    """
    request = make_request(maps, options)
    out = None if out is None else Path(out)
    protocol = load_protocol(request.config)
    needs = {need for metric in protocol.build(1, request.metrics).values() for need in metric.needs}
    run = open_run(request, needs)
    if (request.save_maps or request.save_overlays) and out is None:
        raise ConfigError("--save-maps, --save-overlays", "a folder to write to", "no --out")
    source = None if request.threshold_from is None else ThresholdSource(request.threshold_from)
    count = max(len(run.classes), 1)
    boards = {
        name: Board(name, protocol.build(count, request.metrics), source, run.probe)
        for name in (*run.methods, *run.stores)
    }
    stores = {}
    if request.save_maps and out is not None:
        stores = {name: MapStore(out / "maps" / name, len(run.classes)) for name in run.methods}
    kept: list[Item] = []
    skipped: list[dict[str, str]] = []
    items = _items(run, run.indices, progress, protocol.maps.frame)
    for item in _prepared(items, boards, run):
        if isinstance(item, Fault):
            skipped.append({"image": item.image, "error": str(item.error)})
            continue
        sample, found = item
        for name, one in found.items():
            boards[name].update(one, sample)
            if name in stores:
                stores[name].write(one)
        _keep(run, kept, item)
        for one in found.values():
            one.cache.clear()
    _finish_stores(run, stores)
    rows, cases = [], []
    for name, board in boards.items():
        row, some = board.finish(
            run.supervision(name),
            run.classes,
            data=request.data,
            split=run.dataset.split,
            seed=request.seed,
        )
        rows.append(row)
        cases += some
    result = Result(
        config={
            **plain(request),
            "split": run.dataset.split,
            "classes": len(run.classes),
            "protocol": plain(protocol),
        },
        provenance=provenance(seed=request.seed, device=run.device, checkpoint=_about(run.classifier)),
        rows=tuple(rows),
        skipped=tuple(skipped),
        cases=tuple(cases),
    )
    if out is not None:
        _draw(run, out, kept, {name: board.threshold() for name, board in boards.items()}, protocol.maps)
        result.save(out)
    return result


def _prepared(items: Iterator[Item | Fault], boards: Mapping[str, Board], run: Run) -> Iterator[Item | Fault]:
    """The same items, after the metrics have seen them batch by batch."""
    size = 1 if run.probe is None else run.request.batch_size
    while batch := list(islice(items, size)):
        images = [item for item in batch if not isinstance(item, Fault)]
        for name, board in boards.items():
            board.prepare(
                [
                    Scene(found[name], sample, [maps for other, maps in found.items() if other != name])
                    for sample, found in images
                    if name in found
                ]
            )
        yield from batch
        if run.probe is not None:
            run.probe.clear()


def _pixels(dataset: Dataset, sample: Sample) -> Any:
    return dataset.image(dataset.ids.index(sample.image_id))


def _about(classifier: Classifier | None) -> dict[str, Any] | None:
    return None if classifier is None else classifier.about()
