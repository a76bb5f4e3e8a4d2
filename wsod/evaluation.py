"""The one place where the stages meet: data → maps → scores → result."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wsod.board import Board
from wsod.config import plain
from wsod.data.dataset import Dataset
from wsod.distributed import World, joined
from wsod.errors import ConfigError, DataError, WsodError
from wsod.kept import KeptMaps, computed_maps
from wsod.output import refuse_link, remove
from wsod.pipeline import Fault
from wsod.protocols import Protocol, load_protocol
from wsod.request import Maps, Request, Run, make_request, open_run
from wsod.results import Result, provenance
from wsod.scoremaps import MapProcessing
from wsod.scoring import Item, measured
from wsod.thresholds import ThresholdSource
from wsod.types import Sample

if TYPE_CHECKING:
    from wsod.models import Classifier

__all__ = ["compute_maps", "evaluate"]

# pictures of maps that no protocol has chosen a threshold for: 20 % of the maximum, as heatmap_to_boxes
CLAIM = 0.2
# where a run that keeps no maps has them while it lasts
UNFINISHED = ".maps"
# what metrics need of the images or the maps
EVIDENCE = {"boxes": "boxes", "masks": "masks", "ranking": "a classifier's ranking of the classes"}
Progress = Callable[[int, int], None]
Notice = Callable[[str], None]
T = TypeVar("T")


def _checked(
    results: Iterable[T | Fault], run: Run, world: World, progress: Progress | None, before: int = 0
) -> Iterator[T | Fault]:
    """The same, up to the first fault if that is to stop the run."""
    for done, result in enumerate(results, before + 1):
        if isinstance(result, Fault) and run.request.on_error == "fail":
            raise result.error
        yield result
        together = world.done(done)
        if progress and world.first:
            progress(together, len(run.indices))
    for together in world.waiting():
        if progress and world.first:
            progress(together, len(run.indices))


def _annotations(dataset: Dataset, indices: Sequence[int]) -> Iterator[Item | Fault]:
    for index in indices:
        try:
            yield dataset[index], {}
        except WsodError as error:
            yield Fault(dataset.ids[index], error)


def compute_maps(
    maps: Maps,
    out: Path | str,
    *,
    progress: Progress | None = None,
    notice: Notice | None = None,
    **options: Any,
) -> tuple[int, list[Fault]]:
    """Compute and store maps only; images whose maps are there already, undamaged, are not computed again.

    Args:
        maps: method names.
        out: folder; each method's maps go to OUT/METHOD.
        progress: called with (images done, images in all).
        notice: called with a sentence for each damaged file found.
        options: fields of `wsod.request.Request`.

    Returns:
        How many images were computed, and the faults (under `on_error="skip"`).
    """
    with joined() as world:
        run = open_run(make_request(maps, options), out=Path(out), notice=notice if world.first else None)
        return _compute(Path(out), run, world, progress, notice)


def _compute(
    out: Path, run: Run, world: World, progress: Progress | None, notice: Notice | None
) -> tuple[int, list[Fault]]:
    if run.stores or run.detections:
        raise ConfigError(
            "--maps",
            "method names",
            ", ".join([*run.stores, *run.detections]),
            "These maps are on disk already.",
        )
    faults: list[tuple[int, Fault]] = []
    shown: list[tuple[int, Item]] = []
    computed = 0
    with world.only_writers(out):
        kept = KeptMaps(run, out, run.methods, world, notice=notice)
        mine = world.share(run.indices, run.request.batch_size)
        missing = {i for i in mine if not kept.has(run.dataset.ids[i], run.methods)}
        computing = missing | kept.batches_to_make_again(mine)
        # the first images are drawn, whichever run made their maps
        wanted = [i for i in mine if i in computing or i < run.request.save_overlays]
        before = len(mine) - len(wanted)
        items = _checked(computed_maps(run, wanted, kept=kept), run, world, progress, before)
        for index, item in zip(wanted, items, strict=True):
            if isinstance(item, Fault):
                faults.append((index, item))
                continue
            _keep(run, shown, index, item)
            kept.add(index, item[1])
            computed += index in missing
        kept.finish()
        for number, more, others in world.others((computed, faults, shown)):
            computed += number
            faults += more
            shown += others
        if world.first:
            _draw(run, out, shown, dict.fromkeys(run.methods, CLAIM), MapProcessing())
        found: tuple[int, list[Fault]] = world.tell(
            (computed, [fault for _, fault in sorted(faults, key=_place)])
        )
    return found


def _place(item: tuple[int, Any]) -> int:
    return item[0]


def _keep(run: Run, shown: list[tuple[int, Item]], index: int, item: Item) -> None:
    """Keep an image for the pictures, while there are fewer cases than asked for."""
    cases = sum(len(next(iter(found.values())).labels) for _, (_, found) in shown)
    if cases < run.request.save_overlays and item[1]:
        shown.append((index, item))


def _draw(
    run: Run,
    out: Path,
    shown: Sequence[tuple[int, Item]],
    thresholds: Mapping[str, float],
    processing: MapProcessing,
) -> None:
    """Pictures of the first images kept, in OUT/overlays."""
    if shown:
        from wsod.report.overlays import save_overlays

        items = [item for _, item in sorted(shown, key=_place)]
        pixels = ((sample, _pixels(run.dataset, sample), found) for sample, found in items)
        limit = run.request.save_overlays
        save_overlays(out / "overlays", pixels, thresholds, processing, run.classes, limit)


def evaluate(
    maps: Maps,
    *,
    out: Path | str | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
    **options: Any,
) -> Result:
    """Make or read attention maps, score them by a protocol, and (with `out`) write the result directory.

        evaluate(["gradcam", "center"], checkpoint="ft.pt", data="voc2012:VOCdevkit", config="default")

    Args:
        maps: method names or folders of maps, a row each.
        out: result directory: result.json, cases.jsonl, and maps/ and overlays/ where asked for. A run
            that was stopped goes on from the maps it had computed when it is run again.
        progress: called with (images done, images in all).
        notice: called with a sentence for each damaged file found.
        options: the other fields of `wsod.request.Request`.

    Raises:
        WsodError: at the first fault, unless `on_error="skip"`.
    """
    with joined() as world:
        return _evaluate(
            make_request(maps, options), None if out is None else Path(out), world, progress, notice
        )


def _evaluate(
    request: Request, out: Path | None, world: World, progress: Progress | None, notice: Notice | None
) -> Result:
    protocol = load_protocol(request.config, request.settings)
    needs = {need for metric in protocol.build(1, request.metrics).values() for need in metric.needs}
    run = open_run(request, needs, out=out, notice=notice if world.first else None)
    if (request.save_maps or request.save_overlays) and out is None:
        raise ConfigError("--save-maps, --save-overlays", "a folder to write to", "no --out")
    source = None if request.threshold_from is None else ThresholdSource(request.threshold_from)
    count = max(len(run.classes), 1)
    boards = {
        name: Board(name, protocol.build(count, request.metrics), source, run.probe)
        for name in (*run.methods, *run.stores, *run.detections)
    }
    with ExitStack() as held:
        if out is not None:
            held.enter_context(world.only_writers(out))
            for folder in (out / "maps", out / UNFINISHED):
                refuse_link(folder)
            if request.save_maps:  # `wsod maps --out OUT/maps` writes there too
                held.enter_context(world.only_writers(out / "maps"))
        kept = None if out is None else _kept(run, out, protocol.maps.frame, world, notice)
        shown, skipped = _count(run, boards, protocol.maps.frame, kept, world, progress)
        whole = _finished(run, boards, protocol, skipped) if world.first else None
        if out is not None and whole is not None:
            _draw(run, out, shown, {name: board.threshold() for name, board in boards.items()}, protocol.maps)
            whole.save(out)
            shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        told: Result = world.tell(whole and replace(whole, cases=()))
    return whole or told


def _kept(run: Run, out: Path, frame: int, world: World, notice: Notice | None) -> KeptMaps:
    """The maps that a stopped run goes on from, in OUT/maps if they are asked for."""
    folder, names = out / "maps", list(run.methods)
    if not run.request.save_maps:
        folder = out / UNFINISHED
        names = [name for name, method in run.methods.items() if not method.is_control]

    def anew() -> None:
        if run.request.save_maps:
            remove(out / "result.json")  # it was scored on the maps that now go

    return KeptMaps(run, folder, names, world, frame=frame, anew=anew, notice=notice)


def _count(
    run: Run,
    boards: Mapping[str, Board],
    frame: int,
    kept: KeptMaps | None,
    world: World,
    progress: Progress | None,
) -> tuple[list[tuple[int, Item]], list[dict[str, str]]]:
    """This process's images counted, on the first one all; those to be drawn, and those left out."""
    shown: list[tuple[int, Item]] = []
    skipped: list[tuple[int, dict[str, str]]] = []
    mine = world.share(run.indices, run.request.batch_size)
    if run.methods:
        items = computed_maps(run, mine, frame=frame, kept=kept)
    else:
        items = _annotations(run.dataset, mine)
    results = _checked(measured(items, boards, run), run, world, progress)
    for index, result in zip(mine, results, strict=True):
        if isinstance(result, Fault):
            skipped.append((index, {"image": result.image, "error": str(result.error)}))
            continue
        item, found = result
        for name, (one, own) in found.items():
            boards[name].count(own, one, item[0])
        if kept is not None:
            kept.add(index, item[1])
        _keep(run, shown, index, item)
    if kept is not None:
        kept.finish()
    for counted, drawn, left in world.others((boards, shown, skipped)):
        for name, board in boards.items():
            board.merge(counted[name])
        shown += drawn
        skipped += left
    if world.first and world.size > 1:
        for board in boards.values():
            board.sort(run.dataset.ids)
    return shown, [entry for _, entry in sorted(skipped, key=_place)]


def _finished(
    run: Run, boards: Mapping[str, Board], protocol: Protocol, skipped: Sequence[dict[str, str]]
) -> Result:
    request = run.request
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
    if not any(row.scores for row in rows):
        metrics = next(iter(boards.values())).metrics
        needed = sorted({need for metric in metrics.values() for need in metric.needs} & EVIDENCE.keys())
        what = " and ".join(EVIDENCE[need] for need in needed)
        raise DataError(request.data, f"{what}, for {', '.join(metrics)}", "none")
    return Result(
        config={
            **plain(request),
            "split": run.dataset.split,
            "limit": len(run.indices) if len(run.indices) < len(run.dataset) else 0,
            "classes": len(run.classes),
            "protocol": plain(protocol),
        },
        provenance=provenance(seed=request.seed, device=run.device, checkpoint=_about(run.classifier)),
        rows=tuple(rows),
        skipped=tuple(skipped),
        cases=tuple(cases),
    )


def _pixels(dataset: Dataset, sample: Sample) -> Any:
    return dataset.image(dataset.ids.index(sample.image_id))


def _about(classifier: Classifier | None) -> dict[str, Any] | None:
    return None if classifier is None else classifier.about()
