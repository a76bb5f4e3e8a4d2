"""Result tables in the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wsod.results import Result

__all__ = ["markdown_results", "print_results", "simple_table"]

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


def simple_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table of text."""
    table = Table(
        title=Text(title, no_wrap=True), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold"
    )
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _cell(score: Mapping[str, Any] | None) -> Text:
    if score is None or score["value"] is None or math.isnan(score["value"]):
        return Text("–", style="dim")
    text = Text(f"{100 * score['value']:.1f}")
    if score["interval"]:
        low, high = (100 * bound for bound in score["interval"])
        text.append(f"\n{low:.1f}–{high:.1f}", style="dim")
    return text


def _count(score: Mapping[str, Any]) -> str:
    skipped = f" ({score['skipped']} skipped)" if score["skipped"] else ""
    return f"{score['count']}{skipped}"


def print_results(console: Console, results: Mapping[str, Result]) -> None:
    """One table of all rows of all runs: per cent, 95 % intervals below, counts and supervision.

    Args:
        console: where to print.
        results: runs by the name they are shown under; a single one is shown without its name.
    """
    metrics = list(dict.fromkeys(m for result in results.values() for row in result.rows for m in row.scores))
    origins = {
        run: "{data}, split {split}, protocol {config}".format(**result.config)
        for run, result in results.items()
    }
    several, alike = len(results) > 1, len(set(origins.values())) == 1
    console.print(
        Text(f"{next(iter(origins.values()))}, per cent" if alike else "per cent", style="bold"),
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD)
    if several:
        table.add_column("run", overflow="fold")
    if not alike:  # rows that must not be compared say so themselves
        table.add_column("data and protocol", overflow="fold")
    table.add_column("maps", overflow="fold")
    for metric in metrics:
        table.add_column(Text(HEADINGS.get(metric, metric)), justify="right")
    table.add_column("supervision", overflow="fold", min_width=12)
    for run, result in results.items():
        for row in result.rows:
            scores = [_cell(row.scores.get(metric)) for metric in metrics]
            head = [Text(run)] if several else []
            origin = [] if alike else [Text(origins[run])]
            table.add_row(*head, *origin, Text(row.maps), *scores, Text(", ".join(row.supervision) or "none"))
    console.print(table)
    notes = []
    for metric in metrics:
        counts = {
            _count(row.scores[metric]) for r in results.values() for row in r.rows if metric in row.scores
        }
        notes.append(f"{HEADINGS.get(metric, metric)} {' / '.join(sorted(counts))}")
    console.print(Text("cases: " + ", ".join(notes), style="dim"))
    console.print(Text("below each score: 95 % interval, images resampled", style="dim"))
    for run, result in results.items():
        if result.skipped:
            where = f"{run}: " if several else ""
            console.print(Text(f"{where}{len(result.skipped)} images skipped:", style="yellow"))
            for fault in result.skipped[:10]:
                console.print(Text(f"  {fault['error']}", style="yellow"))
            if len(result.skipped) > 10:
                console.print(Text("  … all of them in result.json", style="yellow"))


def markdown_results(results: Mapping[str, Result]) -> str:
    """The same rows as a Markdown table: per cent, with the 95 % interval in brackets and the count."""
    metrics = list(dict.fromkeys(m for result in results.values() for row in result.rows for m in row.scores))
    columns = ["run", "maps", *(HEADINGS.get(metric, metric) for metric in metrics), "supervision"]
    lines = [columns, ["---"] * len(columns)]
    for run, result in results.items():
        for row in result.rows:
            cells = [_cell(row.scores.get(metric)).plain.replace("\n", " (") for metric in metrics]
            cells = [cell + ")" if "(" in cell else cell for cell in cells]
            lines.append([run, f"`{row.maps}`", *cells, ", ".join(row.supervision) or "none"])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
