"""The one place where the stages meet: data → maps → scores → result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wsod.board import Board
from wsod.config import bind, plain
from wsod.data import open_dataset
from wsod.data.dataset import Dataset
from wsod.errors import ConfigError, DataError, WsodError
from wsod.metrics.base import Scene
from wsod.pipeline import Fault, LabelRule, iterate_maps
from wsod.probe import ClassifierProbe
from wsod.protocols import load_protocol
from wsod.results import Result, provenance
from wsod.scoremaps import MapProcessing
from wsod.store import MapStore, expand_map_folders
from wsod.thresholds import ThresholdSource
from wsod.types import AttentionMaps, Sample

if TYPE_CHECKING:
    from wsod.maps import MapMethod
    from wsod.models import Classifier

__all__ = ["Request", "compute_maps", "evaluate"]

# pictures of maps that no protocol has chosen a threshold for: 20 % of the maximum, as heatmap_to_boxes
CLAIM = 0.2
Progress = Callable[[int, int], None]
Maps = str | Path | Sequence[str | Path]
Item = tuple[Sample, dict[str, AttentionMaps]]


@dataclass(frozen=True)
class Request:
    """What to evaluate: the options of `wsod evaluate`.

    Args:
        maps: method names or folders of maps, one row each.
        checkpoint: an ft.pt of `atcon finetune`, or a plain state dict (then with `arch`).
        arch: architecture of a plain state dict.
        target_layer: module path that overrides the architecture's own.
        size: input side in pixels that overrides the checkpoint's or the architecture's own.
        data: data set spec, such as `shapes` or `voc2012:ROOT`.
        split: the split; None = the data set's usual one for evaluation.
        config: protocol name or TOML file.
        metrics: names, to compute these instead of all of the protocol's.
        threshold_from: an earlier run (its directory or result.json): the threshold of every swept metric is
            the best one there instead of the best one here.
        labels: classes whose maps are scored: the true ones, the predicted one, the five best, or (of maps in
            a folder) those that are stored.
        limit: first N images only; 0 = all.
        on_error: stop at the first fault, or go on and list it.
        device: auto, cpu, cuda or cuda:N.
        tta: test-time augmentation of the maps: `flip` and scales, such as `flip,0.75,1.25`.
        batch_size: images a forward pass.
        threads: image decoding threads.
        save_maps: keep the maps under OUT/maps.
        save_overlays: pictures of the first N cases under OUT/overlays.
        seed: of the bootstrap.
    """

    maps: tuple[str, ...]
    checkpoint: Path | None = None
    arch: str | None = None
    target_layer: str | None = None
    size: int | None = None
    data: str = "shapes"
    split: str | None = None
    config: str = "default"
    metrics: tuple[str, ...] = ()
    threshold_from: Path | None = None
    labels: LabelRule = "truth"
    limit: int = 0
    on_error: Literal["fail", "skip"] = "fail"
    device: str = "auto"
    tta: str = ""
    batch_size: int = 16
    threads: int = 2
    save_maps: bool = False
    save_overlays: int = 0
    seed: int = 0


@dataclass
class _Run:
    """A request with everything it names opened and checked."""

    request: Request
    dataset: Dataset
    indices: Sequence[int]
    methods: dict[str, MapMethod] = field(default_factory=dict)
    stores: dict[str, MapStore] = field(default_factory=dict)
    classifier: Classifier | None = None
    probe: ClassifierProbe | None = None
    device: str = "cpu"

    @property
    def classes(self) -> tuple[str, ...]:
        """The data set's, or of bare photos the classifier's."""
        if self.dataset.classes or self.classifier is None:
            return self.dataset.classes
        return self.classifier.classes

    def supervision(self, name: str) -> tuple[str, ...]:
        if name in self.stores:
            return self.stores[name].supervision
        method = self.methods[name]
        used = method.supervision
        if self.classifier is not None and not method.is_control:
            used = (*used, *self.classifier.supervision)
        return tuple(dict.fromkeys(used))


def _request(maps: Maps, options: Mapping[str, Any]) -> Request:
    names = [maps] if isinstance(maps, str | Path) else maps
    given = {key: value for key, value in options.items() if value is not None}
    return bind(Request, {**given, "maps": [str(name) for name in names]}, "evaluate")


def _open(request: Request, needs: Set[str] = frozenset()) -> _Run:
    """Everything the request names, and what the metrics need."""
    dataset = open_dataset(request.data, request.split)
    count = min(request.limit or len(dataset), len(dataset))
    if not count:
        raise DataError(request.data, "at least one image", f"none in split {dataset.split!r}")
    run = _Run(request, dataset, range(count))
    for name in request.maps:
        folders = expand_map_folders(name)
        for folder in folders:
            short = len(folders) > 1 and folder.name not in run.stores
            run.stores[folder.name if short else str(folder)] = MapStore(folder, len(dataset.classes))
        if not folders:
            from wsod.maps import METHODS

            run.methods[name] = METHODS[name]
    if not run.methods and not run.stores:
        raise ConfigError("--maps", "a method's name or a folder of maps", "none", "See `wsod list maps`.")
    if request.labels == "truth" and not dataset.classes:
        raise DataError(
            request.data, "annotations, for the maps of the true classes", "none", "Use --labels predicted."
        )
    if request.labels == "stored" and run.methods:
        raise ConfigError("--labels stored", "folders of maps only", ", ".join(run.methods))
    if "rows" in needs and len(run.methods) + len(run.stores) < 2:
        raise ConfigError("--metrics map_stability", "two rows of maps or more", "one", "Repeat --maps.")
    asking = [f"--maps {name}" for name, method in run.methods.items() if not method.is_control]
    if "classifier" in needs:
        asking.append("metrics that ask the classifier")
    if asking:
        if request.checkpoint is None:
            raise ConfigError(
                ", ".join(asking),
                "a classifier",
                "no --checkpoint",
                "Pass --checkpoint ft.pt, or a state dict with --arch NAME.",
            )
        from wsod.device import pick_device
        from wsod.models import load_classifier

        run.device = pick_device(request.device)
        run.classifier = load_classifier(
            request.checkpoint,
            arch=request.arch,
            target_layer=request.target_layer,
            size=request.size,
            device=run.device,
        )
        if "classifier" in needs:
            run.probe = ClassifierProbe(
                run.classifier, run.dataset, device=run.device, batch_size=request.batch_size
            )
    return run


def _items(
    run: _Run, indices: Sequence[int], progress: Progress | None, frame: int = 0
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
        options: fields of `Request`.

    Returns:
        How many images were computed, and the faults (under `on_error="skip"`).
    """
    out, run = Path(out), _open(_request(maps, options))
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


def _keep(run: _Run, kept: list[Item], item: Item) -> None:
    """Keep an image for the pictures, while there are fewer cases than asked for."""
    cases = sum(len(next(iter(found.values())).labels) for _, found in kept)
    if cases < run.request.save_overlays and item[1]:
        kept.append(item)


def _draw(
    run: _Run, out: Path, kept: list[Item], thresholds: Mapping[str, float], processing: MapProcessing
) -> None:
    """Pictures of the images kept, in OUT/overlays."""
    if kept:
        from wsod.report.overlays import save_overlays

        pixels = ((sample, _pixels(run.dataset, sample), found) for sample, found in kept)
        limit = run.request.save_overlays
        save_overlays(out / "overlays", pixels, thresholds, processing, run.classes, limit)


def _finish_stores(run: _Run, stores: Mapping[str, MapStore]) -> None:
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
        options: the other fields of `Request`.

    Raises:
        WsodError: at the first fault, unless `on_error="skip"`.
    """
    request = _request(maps, options)
    out = None if out is None else Path(out)
    protocol = load_protocol(request.config)
    needs = {need for metric in protocol.build(1, request.metrics).values() for need in metric.needs}
    run = _open(request, needs)
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
        config={**plain(request), "split": run.dataset.split, "protocol": plain(protocol)},
        provenance=provenance(seed=request.seed, device=run.device, checkpoint=_about(run.classifier)),
        rows=tuple(rows),
        skipped=tuple(skipped),
        cases=tuple(cases),
    )
    if out is not None:
        _draw(run, out, kept, {name: board.threshold() for name, board in boards.items()}, protocol.maps)
        result.save(out)
    return result


def _prepared(
    items: Iterator[Item | Fault], boards: Mapping[str, Board], run: _Run
) -> Iterator[Item | Fault]:
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
