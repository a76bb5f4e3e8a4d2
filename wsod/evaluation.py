"""The one place where the stages meet: data → maps → scores → result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wsod.board import Board
from wsod.config import plain
from wsod.data.dataset import Dataset
from wsod.errors import ConfigError, WsodError
from wsod.pipeline import Fault, iterate_maps
from wsod.protocols import load_protocol
from wsod.request import Maps, Run, make_request, open_run
from wsod.results import Result, provenance
from wsod.scoremaps import MapProcessing
from wsod.scoring import Item, measured
from wsod.store import MapStore
from wsod.thresholds import ThresholdSource
from wsod.types import Sample

if TYPE_CHECKING:
    from wsod.models import Classifier

__all__ = ["compute_maps", "evaluate"]

# pictures of maps that no protocol has chosen a threshold for: 20 % of the maximum, as heatmap_to_boxes
CLAIM = 0.2
Progress = Callable[[int, int], None]
T = TypeVar("T")


def _items(run: Run, indices: Sequence[int], frame: int = 0) -> Iterator[Item | Fault]:
    """Every image with its computed maps."""
    request = run.request
    if not run.methods:
        return _annotations(run.dataset, indices)
    return iterate_maps(
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


def _checked(
    results: Iterable[T | Fault], run: Run, total: int, progress: Progress | None
) -> Iterator[T | Fault]:
    """The same, up to the first fault if that is to stop the run."""
    for done, result in enumerate(results, 1):
        if isinstance(result, Fault) and run.request.on_error == "fail":
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
    for item in _checked(_items(run, missing), run, len(missing), progress):
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
    items = measured(_items(run, run.indices, protocol.maps.frame), boards, run)
    for result in _checked(items, run, len(run.indices), progress):
        if isinstance(result, Fault):
            skipped.append({"image": result.image, "error": str(result.error)})
            continue
        item, found = result
        for name, one in item[1].items():
            boards[name].count(found[name], one, item[0])
            if name in stores:
                stores[name].write(one)
        _keep(run, kept, item)
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
    whole = Result(
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
        whole.save(out)
    return whole


def _pixels(dataset: Dataset, sample: Sample) -> Any:
    return dataset.image(dataset.ids.index(sample.image_id))


def _about(classifier: Classifier | None) -> dict[str, Any] | None:
    return None if classifier is None else classifier.about()
