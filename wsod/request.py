"""What is asked of an evaluation, and everything it names opened and checked before work starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wsod.config import bind
from wsod.data import open_dataset
from wsod.data.dataset import Dataset
from wsod.detectionfiles import DetectionFiles, is_detections
from wsod.errors import ConfigError, DataError
from wsod.pipeline import LabelRule, class_columns
from wsod.probe import ClassifierProbe
from wsod.store import MapStore, expand_map_folders

if TYPE_CHECKING:
    from wsod.maps import MapMethod
    from wsod.models import Classifier

__all__ = ["Maps", "Request", "Run", "make_request", "open_run"]

Maps = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Request:
    """What to evaluate: the options of `wsod evaluate`.

    Args:
        maps: method names, folders of maps, or files of boxes (`wsod.detectionfiles`), one row each.
        checkpoint: an ft.pt of `atcon finetune`, or a plain state dict (then with `arch`).
        arch: architecture of a plain state dict.
        target_layer: module path that overrides the architecture's own.
        size: input side in pixels that overrides the checkpoint's or the architecture's own.
        data: data set spec, such as `shapes` or `voc2012:ROOT`.
        split: the split; None = the data set's usual one for evaluation.
        config: protocol name or TOML file.
        settings: values in place of the protocol's, such as `maps.normalise=percentile`.
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
    settings: tuple[str, ...] = ()
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
class Run:
    """A request with everything it names opened and checked."""

    request: Request
    dataset: Dataset
    indices: Sequence[int]
    methods: dict[str, MapMethod] = field(default_factory=dict)
    stores: dict[str, MapStore] = field(default_factory=dict)
    detections: dict[str, DetectionFiles] = field(default_factory=dict)
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
        """What the row's maps were made with, beyond images."""
        if name in self.stores:
            return self.stores[name].supervision
        if name in self.detections:
            return self.detections[name].supervision
        method = self.methods[name]
        used = method.supervision
        if self.classifier is not None and not method.is_control:
            used = (*used, *self.classifier.supervision)
        return tuple(dict.fromkeys(used))


def make_request(maps: Maps, options: Mapping[str, Any]) -> Request:
    """A request from method names or folders and the other options; options that are None are left out."""
    names = [maps] if isinstance(maps, str | Path) else maps
    given = {key: value for key, value in options.items() if value is not None}
    return bind(Request, {**given, "maps": [str(name) for name in names]}, "evaluate")


def _is_method(name: str) -> bool:
    from wsod.maps import METHODS

    return name in METHODS


def _stores(name: str, out: Path | None) -> list[Path]:
    """The folders of maps that are meant: none for a method, though a folder may be called as it is."""
    folders = expand_map_folders(name)
    if not folders or any(c in name for c in "./") or not _is_method(name):
        return folders
    mine = out is not None and Path(name).resolve() in (out.resolve(), (out / name).resolve())
    if not mine and any(path.suffix in (".npy", ".npz") for path in Path(name).rglob("*")):
        hint = f"Write ./{name} for the folder, {name}: for the method."
        raise ConfigError(f"--maps {name}", "a method or a folder", "both", hint)
    return []


def _reach(path: Path) -> None:
    """Refuse what is there and cannot be looked at."""
    try:
        path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"--maps {path}", "a path that can be read", error.strerror) from error


def open_run(
    request: Request,
    needs: Set[str] = frozenset(),
    *,
    out: Path | None = None,
    notice: Callable[[str], None] | None = None,
) -> Run:
    """Everything the request names, and what the metrics need.

    Args:
        request: what is asked for.
        needs: of the metrics.
        out: the output folder, which may be called as a method is.
        notice: called with a sentence for what may not be meant.

    Raises:
        WsodError: for a name, a file or a combination that will not do.
    """
    dataset = open_dataset(request.data, request.split)
    count = min(request.limit or len(dataset), len(dataset))
    if not count:
        raise DataError(request.data, "at least one image", f"none in split {dataset.split!r}")
    base = getattr(dataset, "base", None)
    if request.save_overlays and out is not None and base and out.resolve().is_relative_to(base.resolve()):
        expected = f"a folder outside of {base}: pictures in it are images of the data set"
        raise ConfigError("--save-overlays, --out", expected, out)
    run = Run(request, dataset, range(count))
    for name in request.maps:
        if is_detections(name):
            numbers = (getattr(dataset, key, None) for key in ("image_ids", "category_ids"))
            run.detections[name] = DetectionFiles(Path(name), dataset.ids, dataset.classes, *numbers)
            continue
        folders = _stores(name, out)
        for folder in folders:
            short = len(folders) > 1 and folder.name not in {*run.stores, *request.maps}
            store = MapStore(folder, len(dataset.classes), ids=dataset.ids)
            run.stores[folder.name if short else str(folder)] = store
        if not folders:
            from wsod.maps import METHODS

            if "/" in name.partition(":")[0]:
                _reach(Path(name))
                hint = "Methods: `wsod list maps`."
                raise ConfigError(
                    f"--maps {name}", "a folder of maps, a file of boxes or a method", "none", hint
                )
            run.methods[name] = METHODS[name]
    if not run.methods and not run.stores and not run.detections:
        raise ConfigError("--maps", "a method's name or a folder of maps", "none", "See `wsod list maps`.")
    if request.labels == "truth" and not dataset.classes:
        raise DataError(
            request.data, "annotations, for the maps of the true classes", "none", "Use --labels predicted."
        )
    if request.labels == "stored" and run.methods:
        raise ConfigError("--labels stored", "folders of maps only", ", ".join(run.methods))
    if "rows" in needs and len(run.methods) + len(run.stores) < 2:
        raise ConfigError("--metrics map_stability", "two rows of maps or more", "one", "Repeat --maps.")
    if request.tta:
        from wsod.maps.tta import views_of

        views_of(request.tta)
    asking = [f"--maps {name}" for name, method in run.methods.items() if not method.is_control]
    if "classifier" in needs:
        asking.append("metrics that ask the classifier")
    if asking and request.checkpoint is None:
        hint = "Pass --checkpoint ft.pt, or a state dict with --arch NAME."
        raise ConfigError(", ".join(asking), "a classifier", "no --checkpoint", hint)
    if asking or request.device not in ("auto", "cpu"):  # torch is slow to import, and controls need none
        from wsod.distributed import own_device

        run.device = own_device(request.device)
    if request.checkpoint is not None and asking:
        from wsod.models import load_classifier

        run.classifier = load_classifier(
            request.checkpoint,
            arch=request.arch,
            target_layer=request.target_layer,
            size=request.size,
            device=run.device,
        )
        if dataset.classes:
            _compare_classes(run.classifier.classes, dataset.classes, notice)
        if "classifier" in needs:
            run.probe = ClassifierProbe(
                run.classifier, run.dataset, device=run.device, batch_size=request.batch_size
            )
    return run


def _compare_classes(
    model_classes: Sequence[str], data_classes: Sequence[str], notice: Callable[[str], None] | None
) -> None:
    """Refuse a classifier of other classes before anything is written; say where mere numbers are matched."""
    column = class_columns(model_classes, data_classes)[0]
    number, name = data_classes[0], model_classes[column]
    if notice and len(model_classes) != len(data_classes) and number != name:
        notice(
            f"--data: {len(data_classes)} classes without names, taken by their number for the classifier's "
            f"{len(model_classes)}: {number} is {name!r}. Of other classes the scores mean nothing."
        )
