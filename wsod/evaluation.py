"""The one place where the stages meet: data → maps → scores → result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wsod.board import Board
from wsod.config import plain
from wsod.data.dataset import Dataset
from wsod.errors import ConfigError, WsodError
from wsod.kept import KeptMaps, computed_maps
from wsod.output import only_writer
from wsod.pipeline import Fault
from wsod.protocols import Protocol, load_protocol
from wsod.request import Maps, Run, make_request, open_run
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
Progress = Callable[[int, int], None]
Notice = Callable[[str], None]
T = TypeVar("T")


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
    out, run = Path(out), open_run(make_request(maps, options))
    if run.stores or run.detections:
        raise ConfigError(
            "--maps",
            "method names",
            ", ".join([*run.stores, *run.detections]),
            "These maps are on disk already.",
        )
    faults, computed = [], 0
    shown: list[Item] = []
    with only_writer(out):
        kept = KeptMaps(run, out, run.methods, notice=notice)
        missing = {i for i in run.indices if not kept.has(run.dataset.ids[i], run.methods)}
        # the first images are drawn, whichever run made their maps
        wanted = [i for n, i in enumerate(run.indices) if i in missing or n < run.request.save_overlays]
        items = _checked(computed_maps(run, wanted, kept=kept), run, len(wanted), progress)
        for index, item in zip(wanted, items, strict=True):
            if isinstance(item, Fault):
                faults.append(item)
                continue
            _keep(run, shown, item)
            kept.add(index, item[1])
            computed += index in missing
        kept.finish()
        _draw(run, out, shown, dict.fromkeys(run.methods, CLAIM), MapProcessing())
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
    request = make_request(maps, options)
    out = None if out is None else Path(out)
    protocol = load_protocol(request.config, request.settings)
    needs = {need for metric in protocol.build(1, request.metrics).values() for need in metric.needs}
    run = open_run(request, needs)
    if (request.save_maps or request.save_overlays) and out is None:
        raise ConfigError("--save-maps, --save-overlays", "a folder to write to", "no --out")
    source = None if request.threshold_from is None else ThresholdSource(request.threshold_from)
    count = max(len(run.classes), 1)
    boards = {
        name: Board(name, protocol.build(count, request.metrics), source, run.probe)
        for name in (*run.methods, *run.stores, *run.detections)
    }
    with nullcontext() if out is None else only_writer(out):
        kept = None if out is None else _kept(run, out, notice)
        shown, skipped = _count(run, boards, protocol.maps.frame, kept, progress)
        whole = _finished(run, boards, protocol, skipped)
        if out is not None:
            _draw(run, out, shown, {name: board.threshold() for name, board in boards.items()}, protocol.maps)
            whole.save(out)
        if kept is not None and not request.save_maps:
            kept.remove()
    return whole


def _kept(run: Run, out: Path, notice: Notice | None) -> KeptMaps:
    """The maps that a stopped run goes on from, in OUT/maps if they are asked for."""
    if run.request.save_maps:
        return KeptMaps(run, out / "maps", run.methods, anew=True, notice=notice)
    costly = [name for name, method in run.methods.items() if not method.is_control]
    return KeptMaps(run, out / ".maps", costly, anew=True, notice=notice)


def _count(
    run: Run, boards: Mapping[str, Board], frame: int, kept: KeptMaps | None, progress: Progress | None
) -> tuple[list[Item], list[dict[str, str]]]:
    """Every image counted; the ones to be drawn, and the ones left out."""
    shown: list[Item] = []
    skipped: list[dict[str, str]] = []
    if run.methods:
        items = computed_maps(run, run.indices, frame=frame, kept=kept)
    else:
        items = _annotations(run.dataset, run.indices)
    results = _checked(measured(items, boards, run), run, len(run.indices), progress)
    for index, result in zip(run.indices, results, strict=True):
        if isinstance(result, Fault):
            skipped.append({"image": result.image, "error": str(result.error)})
            continue
        item, found = result
        for name, (one, own) in found.items():
            boards[name].count(own, one, item[0])
        if kept is not None:
            kept.add(index, item[1])
        _keep(run, shown, item)
    if kept is not None:
        kept.finish()
    return shown, skipped


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
    return Result(
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


def _pixels(dataset: Dataset, sample: Sample) -> Any:
    return dataset.image(dataset.ids.index(sample.image_id))


def _about(classifier: Classifier | None) -> dict[str, Any] | None:
    return None if classifier is None else classifier.about()
