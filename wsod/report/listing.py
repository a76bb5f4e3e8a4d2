"""What there is to choose from: tables made from the registries, for the terminal and for the README."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from wsod.report.tables import print_table

__all__ = ["LISTINGS", "Listing", "check_listing"]


@dataclass(frozen=True)
class Listing:
    """A table of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def print(self, console: Console) -> None:
        """For the terminal."""
        plain = [[cell.replace("`", "") for cell in row] for row in self.rows]
        print_table(console, self.title, self.columns, plain)

    def markdown(self) -> str:
        """For documents."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]


def _maps() -> Listing:
    from wsod.maps import METHODS

    rows = [
        (
            f"`{name}`",
            method.summary,
            "class" if method.class_specific else "image",
            ", ".join(method.supervision) or "none",
            method.citation,
        )
        for name, method in METHODS.items()
    ]
    return Listing("map methods", ["name", "what", "one a", "supervision", "source"], rows)


def _metrics() -> Listing:
    from wsod.metrics import METRICS

    rows = [
        (f"`{name}`", _first_line(metric), ", ".join(sorted(metric(classes=1).needs)))
        for name, metric in METRICS.items()
    ]
    return Listing("metrics", ["name", "what", "needs"], rows)


def _data() -> Listing:
    from wsod.data import DATASETS

    rows = [(f"`{name}`", _first_line(dataset)) for name, dataset in DATASETS.items()]
    return Listing("data sets", ["name", "what"], rows)


def _protocols() -> Listing:
    from wsod.protocols import load_protocol, protocol_names

    protocols = [load_protocol(name) for name in protocol_names()]
    rows = [(f"`{p.name}`", p.description, ", ".join(f"`{m}`" for m in p.metrics)) for p in protocols]
    return Listing("protocols", ["name", "what", "metrics"], rows)


def _architectures() -> Listing:
    from wsod.models.architectures import ARCHITECTURES

    rows = [(f"`{name}`", arch.target_layer or "found by a probe") for name, arch in ARCHITECTURES.items()]
    return Listing("architectures (and timm:NAME, module:factory)", ["name", "default target layer"], rows)


def _heads() -> Listing:
    from wsod.models.heads import HEADS

    return Listing(
        "heads", ["name", "what"], [(f"`{name}`", _first_line(head)) for name, head in HEADS.items()]
    )


def _blocks() -> Listing:
    from wsod.models.blocks import BLOCKS

    rows = [(f"`{name}`", _first_line(block)) for name, block in BLOCKS.items()]
    return Listing("blocks", ["name", "what"], rows)


LISTINGS: dict[str, Callable[[], Listing]] = {
    "maps": _maps,
    "metrics": _metrics,
    "data": _data,
    "protocols": _protocols,
    "architectures": _architectures,
    "heads": _heads,
    "blocks": _blocks,
}


def check_listing(dataset: Any, report: Any) -> Listing:
    """Counts of `wsod data check`, by class: of boxes, or of images where there are labels only."""
    rows = [(name, str(report.per_class.get(name, 0))) for name in dataset.classes]
    title = (
        f"{dataset.spec}, split {dataset.split}: {report.images} images, {report.boxes} boxes, "
        f"{len(dataset.classes)} classes, {len(report.faults)} faults"
    )
    return Listing(title, ["class", "boxes" if report.boxes else "images"], rows)
