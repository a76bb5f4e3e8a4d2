"""Ways to look at a trained classifier, and how to read what they left on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atcon.experiments.predictions import Predictions
from atcon.experiments.readings import Cases
from wsod.config import plain
from wsod.evaluation import evaluate
from wsod.mapfiles import read_arrays
from wsod.request import make_request
from wsod.results import Result

__all__ = ["View", "look", "scores_of", "stored_maps"]


@dataclass(frozen=True)
class View:
    """One way to look at a trained classifier: images, maps and scores.

    Args:
        name: of the folder the evaluation is written to, beside the checkpoint.
        data, split, limit, maps, config, metrics: as `wsod.evaluate` has them.
        threshold_from: another view of the same arm, whose best thresholds are taken.
        predictions: whether the classifier's logits on the images are kept too (`logits.npz`).
        save_maps: whether the maps are kept too (`maps/METHOD`).
    """

    name: str
    data: str
    split: str
    limit: int = 0
    maps: tuple[str, ...] = ("gradcam",)
    config: str = "default"
    metrics: tuple[str, ...] = ()
    threshold_from: str = ""
    predictions: bool = False
    save_maps: bool = False


def look(view: View, folder: Path, *, trained: bool, device: str) -> None:
    """Evaluate a run by a view, unless that is done.

    Args:
        view: how.
        folder: of the run, with its `ft.pt`.
        trained: whether there is one; else the view's maps are controls that need none.
        device: where.
    """
    out = folder / view.name
    options: dict[str, Any] = {
        name: getattr(view, name) for name in ("data", "split", "limit", "config", "metrics", "save_maps")
    }
    options["checkpoint"] = folder / "ft.pt" if trained else None
    options["threshold_from"] = folder / view.threshold_from if view.threshold_from else None
    request = replace(make_request(list(view.maps), options), device=device)
    wanted = json.loads(json.dumps(plain(request)))
    if not _same(out / "result.json", wanted):
        evaluate(list(view.maps), out=out, device=device, **options)
    key = {name: wanted[name] for name in ("data", "split", "limit")}
    path = out / "logits.npz"
    if view.predictions and trained and Predictions.load(path, key) is None:
        found = Predictions.of(folder / "ft.pt", view.data, view.split, view.limit, device)
        found.save(path, key)


def _same(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the result there was made by these options."""
    try:
        config = json.loads(path.read_text("utf-8"))["config"]
    except (OSError, ValueError, KeyError):
        return False
    return all(config.get(name) == value for name, value in wanted.items() if name != "device")


def scores_of(view: Path, metric: str, maps: str = "", *, top: bool = False) -> Cases:
    """A metric's case scores in a view.

    Args:
        view: its folder.
        metric: name.
        maps: the row; empty = all rows (there is one).
        top: only the image's predicted class, and only where the image shows it; then a case is an image.
    """
    found = {}
    for case in Result.load(view).cases:
        if metric in case.scores and maps in ("", case.maps) and (not top or case.rank == 1):
            found[case.image, "" if top else case.label] = case.scores[metric]
    return Cases(found)


def stored_maps(view: Path, maps: str) -> dict[tuple[str, int], NDArray[np.floating[Any]]]:
    """The (h, w) raw maps a view kept, by (image, label index)."""
    found = {}
    folder = view / "maps" / maps
    for path in sorted(folder.rglob("*.npz")):
        content = read_arrays(path)
        image = path.relative_to(folder).with_suffix("").as_posix()
        for label, values in zip(content["labels"].tolist(), content["values"], strict=True):
            found[image, label] = values
    return found
