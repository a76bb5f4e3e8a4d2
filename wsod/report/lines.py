"""Results and comparisons as flat lines of text and numbers, which every table format is made from."""

from __future__ import annotations

import math
import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsod.comparison import Difference
from wsod.metrics import METRICS
from wsod.results import Result
from wsod.thresholds import protocol_of

__all__ = [
    "HEADINGS",
    "Line",
    "case_heading",
    "difference_fields",
    "heading",
    "lines",
    "percent",
    "short_names",
    "signed",
]

HEADINGS = {
    "max_box_acc": "MaxBoxAcc",
    "max_box_acc_v2": "MaxBoxAcc V2",
    "gt_known_loc": "GT-known Loc",
    "top1_loc": "Top-1 Loc",
    "top5_loc": "Top-5 Loc",
    "corloc": "CorLoc",
    "corloc_image": "CorLoc (image)",
    "pointing_game": "Pointing",
    "energy_pointing_game": "Energy",
    "mask_iou": "Mask IoU",
    "miou": "mIoU",
    "miou_atcon": "mIoU (ATCON)",
    "pxap": "PxAP",
    "voc_ap": "VOC AP",
    "box_ap": "COCO AP",
    "average_drop": "Avg. drop ↓",
    "increase_in_confidence": "Increase",
    "insertion": "Insertion",
    "deletion": "Deletion ↓",
    "map_stability": "Stability",
}
IMAGE = " (image)"


def heading(metric: str) -> str:
    """A metric's name at the head of a column."""
    return HEADINGS.get(metric, metric)


def case_heading(metric: str) -> str:
    """Its name beside the score of an image and a class; marked where that is the whole image's.

    >>> case_heading("top1_loc"), case_heading("max_box_acc")
    ('Top-1 Loc (image)', 'MaxBoxAcc')
    """
    text = heading(metric)
    whole = metric in METRICS and METRICS[metric].cases == "images"
    return f"{text.removesuffix(IMAGE)}{IMAGE}" if whole else text


@dataclass(frozen=True)
class Line:
    """One score of one row.

    Args:
        run: the name its run is shown under; empty for a published number.
        data: data set spec, or what a published number is on.
        split: of the data set.
        protocol: its name.
        maps: the row.
        metric: name.
        value: fraction; None where nothing was counted.
        low: of the 95 % interval; None without one.
        high: likewise.
        count: cases counted; None for a published number.
        skipped: cases left out by the metric's rule.
        supervision: of maps and thresholds.
        source: of a number that was published and not measured here; empty for our own.
        limit: only that many images, the first; 0 = all.
        settings: what --set put in place of the protocol's, `; ` between them.
        labels: rule of the classes whose maps are scored; empty for a published number.
        images_skipped: images that were left out after a fault.
    """

    run: str
    data: str
    split: str
    protocol: str
    maps: str
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    skipped: int = 0
    supervision: str = ""
    source: str = ""
    limit: int = 0
    settings: str = ""
    labels: str = ""
    images_skipped: int = 0

    @property
    def row(self) -> tuple[str, str, str]:
        """What the scores of one row have in common."""
        return self.run, self.maps, self.data if self.source else ""

    @property
    def origin(self) -> str:
        """Data, split, protocol and what else makes scores those of another question, in a few words."""
        parts = [self.data, f"split {self.split}", f"protocol {self.protocol}"]
        if self.settings:
            parts.append(f"--set {self.settings}")
        if self.labels not in ("", "truth"):
            parts.append(f"labels {self.labels}")
        if self.limit:
            parts.append(f"first {self.limit} images")
        return ", ".join(parts)


def lines(results: Mapping[str, Result], published: bool = False) -> list[Line]:
    """A line a score, run by run, row by row.

    Args:
        results: by the name they are shown under.
        published: append the numbers that the runs' protocols state for their metrics, with their sources.
    """
    found: list[Line] = []
    for run, result in results.items():
        config = result.config
        about = str(config["data"]), str(config["split"]), str(config["config"])
        for row in result.rows:
            supervision = ", ".join(row.supervision) or "none"
            for metric, score in row.scores.items():
                low, high = score["interval"] or (None, None)
                found.append(
                    Line(
                        run,
                        *about,
                        row.maps,
                        metric,
                        _known(score["value"]),
                        _known(low),
                        _known(high),
                        score["count"],
                        score["skipped"],
                        supervision,
                        limit=config.get("limit", 0),
                        settings=_settings(result),
                        labels=str(config.get("labels", "truth")),
                        images_skipped=len(result.skipped),
                    )
                )
    return found + (_published(results) if published else [])


def _published(results: Mapping[str, Result]) -> list[Line]:
    found: dict[Line, None] = {}
    for result in results.values():
        if _settings(result):  # the numbers are of the protocol as it stands
            continue
        metrics = {metric for row in result.rows for metric in row.scores}
        for number in protocol_of(result).published:
            line = Line(
                "",
                str(number["on"]),
                "",
                str(result.config["config"]),
                str(number["maps"]),
                str(number["metric"]),
                float(number["value"]),
                source=str(number["source"]),
            )
            if line.metric in metrics:
                found[line] = None
    return list(found)


def _settings(result: Result) -> str:
    settings = result.config.get("settings") or ()
    return "; ".join(map(str, settings)) if isinstance(settings, list | tuple) else str(settings)


def _known(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def percent(value: float | None) -> str:
    """A fraction as per cent with one digit.

    >>> percent(0.4567), percent(None)
    ('45.7', '–')
    """
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """A difference of fractions in percentage points, with its sign.

    >>> signed(0.031), signed(-0.2), signed(0.0)
    ('+3.1', '-20.0', '0.0')
    """
    return f"{100 * value:+.1f}" if abs(value) >= 0.0005 else "0.0"


def difference_fields(difference: Difference) -> dict[str, Any]:
    """A difference without its cases, as the fields of CSV and JSON; fractions."""
    low, high = difference.interval or (None, None)
    return {
        "first": difference.first,
        "second": difference.second,
        "metric": difference.metric,
        "before": difference.before,
        "after": difference.after,
        "difference": difference.difference,
        "low": low,
        "high": high,
        "p_value": difference.p_value,
        "p_holm": difference.adjusted,
        "raised": difference.raised,
        "lowered": difference.lowered,
        "cases": difference.cases,
        "images": difference.images,
    }


def short_names(names: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that all names share, and each name without it.

    >>> short_names(["runs/a/start", "runs/a/atcon"])
    ('runs/a/', ['start', 'atcon'])
    >>> short_names(["runs/a"])
    ('', ['runs/a'])
    """
    parents = {os.path.dirname(name) for name in names}
    if len(names) < 2 or "" in parents or len({os.path.isabs(name) for name in names}) > 1:
        return "", list(names)
    shared = os.path.commonpath(list(parents))
    if not shared or shared == os.sep:
        return "", list(names)
    return f"{shared}{os.sep}", [os.path.relpath(name, shared) for name in names]
