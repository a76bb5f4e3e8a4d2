"""Scores within small, medium and large cases, and given that the class is predicted right, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rich.text
from rich import box
from rich.table import Table

from wsod.report.console import Text
from wsod.report.lines import heading, percent
from wsod.results import Result

__all__ = ["strata_table"]

COLUMNS = ("small", "medium", "large", "class right")


def strata_table(result: Result) -> Table | None:
    """A line a metric and row of maps, the number of cases beside each score; None where there is none."""
    found: list[tuple[str, str, list[Any]]] = []
    for row in result.rows:
        for metric, score in row.scores.items():
            sizes = list((score.get("strata") or {}).values()) or [None] * 3
            parts = [*sizes, score.get("given_predicted")]
            if any(parts):
                found.append((row.maps, metric, parts))
    shown = [i for i in range(len(COLUMNS)) if any(parts[i] for _, _, parts in found)]
    if not shown:
        return None
    several = len({name for name, _, _ in found}) > 1
    table = Table(box=box.SIMPLE_HEAD, title="by size, with counts and 95 % intervals", title_justify="left")
    table.title_style = "dim"
    for column in (["maps"] if several else []) + [""] + [COLUMNS[i] for i in shown]:
        table.add_column(column, overflow="fold", justify="right" if column in COLUMNS else "left")
    for name, metric, parts in found:
        head = [Text(name)] if several else []
        table.add_row(*head, Text(heading(metric)), *(_cell(parts[i]) for i in shown))
    return table


def _cell(part: Mapping[str, Any] | None) -> rich.text.Text:
    if not part or part["value"] is None:
        return Text("–", style="dim")
    text = Text(percent(part["value"])).append(f"  {part['count']}", style="dim")
    low, high = part.get("interval") or (None, None)
    return text if low is None else text.append(f"\n{percent(low)}–{percent(high)}", style="dim")
