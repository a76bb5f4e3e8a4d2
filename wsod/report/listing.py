"""What there is to choose from: tables made from the registries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from wsod.report.tables import simple_table

__all__ = ["LISTINGS", "check_table"]


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0] if thing.__doc__ else ""


def _maps() -> Table:
    from wsod.maps import METHODS

    rows = (
        (
            name,
            _first_line(method.function),
            "class" if method.class_specific else "image",
            ", ".join(sorted(method.needs)) or "features",
            ", ".join(method.supervision) or "none",
            method.citation,
        )
        for name, method in METHODS.items()
    )
    return simple_table(
        "map methods", ["name", "what", "one a", "needs", "supervision", "source"], list(rows)
    )


def _metrics() -> Table:
    from wsod.metrics import METRICS

    rows = [(name, _first_line(metric), ", ".join(sorted(metric.needs))) for name, metric in METRICS.items()]
    return simple_table("metrics", ["name", "what", "needs"], rows)


def _data() -> Table:
    from wsod.data import DATASETS

    rows = [(name, _first_line(dataset)) for name, dataset in DATASETS.items()]
    return simple_table("data sets", ["name", "what"], rows)


def _protocols() -> Table:
    from wsod.protocols import load_protocol, protocol_names

    protocols = [load_protocol(name) for name in protocol_names()]
    rows = [(p.name, p.description, ", ".join(p.metrics)) for p in protocols]
    return simple_table("protocols", ["name", "what", "metrics"], rows)


def _architectures() -> Table:
    from wsod.models.architectures import ARCHITECTURES

    rows = [(name, arch.target_layer or "found by a probe") for name, arch in ARCHITECTURES.items()]
    return simple_table(
        "architectures (and timm:NAME, module:factory)", ["name", "default target layer"], rows
    )


def _heads() -> Table:
    from wsod.models.heads import HEADS

    return simple_table(
        "heads", ["name", "what"], [(name, _first_line(head)) for name, head in HEADS.items()]
    )


LISTINGS: dict[str, Callable[[], Table]] = {
    "maps": _maps,
    "metrics": _metrics,
    "data": _data,
    "protocols": _protocols,
    "architectures": _architectures,
    "heads": _heads,
}


def check_table(dataset: Any, report: Any) -> Table:
    """Counts of `wsod data check`, by class."""
    rows = [(name, str(report.per_class.get(name, 0))) for name in dataset.classes]
    title = (
        f"{dataset.spec}, split {dataset.split}: {report.images} images, {report.boxes} boxes, "
        f"{len(dataset.classes)} classes, {len(report.faults)} faults"
    )
    return simple_table(title, ["class", "boxes"], rows)
