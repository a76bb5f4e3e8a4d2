"""Tables for other programs and documents: Markdown, LaTeX, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from wsod.comparison import Comparison
from wsod.report.lines import Line, difference_fields, heading, lines, percent, signed
from wsod.results import Result

__all__ = ["FORMATS", "format_comparison", "format_results"]

FORMATS = ("table", "markdown", "csv", "latex", "json")
LATEX = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "–": "--",
}
Grid = Sequence[Sequence[str]]


def format_results(results: Mapping[str, Result], style: str, *, published: bool = False) -> str:
    """Runs as text.

    Args:
        results: by the name they are shown under.
        style: `markdown` and `latex`, a line a row: per cent, with the 95 % interval and the counts; `csv`
            and `json`, a line a score: fractions in full precision.
        published: add what the protocols state as published, with its source.
    """
    found = lines(results, published)
    if style == "json":
        return _json([asdict(line) for line in found])
    if style == "csv":
        return _csv([asdict(line) for line in found])
    return (_markdown if style == "markdown" else _latex)(_grid(found))


def _grid(found: Sequence[Line]) -> Grid:
    """Rows of cells under a head, a column a metric."""
    metrics = list(dict.fromkeys(line.metric for line in found))
    several = len({line.run for line in found if not line.source}) > 1
    origins = len({line.origin for line in found if not line.source}) > 1
    head = ["run"] * several + ["data and protocol"] * origins + ["maps"]
    grid = [[*head, *map(heading, metrics), "cases", "supervision"]]
    for row in dict.fromkeys(line.row for line in found):
        own = {line.metric: line for line in found if line.row == row}
        first = next(iter(own.values()))
        scores = [_score(own.get(metric)) for metric in metrics]
        counts = [_count(own.get(metric)) for metric in metrics]
        cases = counts[0] if len(set(counts)) == 1 else " / ".join(counts)
        if first.images_skipped:
            cases += f" ({first.images_skipped} images skipped)"
        name = f"{first.maps} ({first.data})" if first.source else first.maps
        note = f"published, not measured here: {first.source}" if first.source else first.supervision
        where = [first.run or "–"] * several + ["–" if first.source else first.origin] * origins
        grid.append([*where, name, *scores, cases, note])
    return grid


def _score(line: Line | None) -> str:
    if line is None or line.value is None:
        return "–"
    interval = f" ({percent(line.low)}–{percent(line.high)})" if line.low is not None else ""
    return percent(line.value) + interval


def _count(line: Line | None) -> str:
    return "–" if line is None or line.count is None else str(line.count)


def format_comparison(comparison: Comparison, style: str, changes: Sequence[str] = ()) -> str:
    """A comparison as text.

    Args:
        comparison: of runs.
        style: as in `format_results`.
        changes: metrics whose changed cases are listed too (JSON only).

    Notes are a list below Markdown, and comments below LaTeX; CSV has no place for them.
    """
    fields = [difference_fields(one) for one in comparison.differences]
    if style == "json":
        for one, known in zip(comparison.differences, fields, strict=True):
            if one.metric in changes:
                known["changes"] = [change._asdict() for change in one.changes]
        return _json({"about": comparison.about, "differences": fields, "notes": list(comparison.notes)})
    if style == "csv":
        return _csv(fields)
    grid = [
        ["first", "second", "metric", "before", "after", "difference", "p", "p (Holm)", "raised", "lowered"]
    ]
    grid[0].append("cases")
    for one in comparison.differences:
        interval = f" ({signed(one.interval[0])} to {signed(one.interval[1])})" if one.interval else ""
        grid.append(
            [one.first, one.second, heading(one.metric), percent(one.before), percent(one.after)]
            + [signed(one.difference) + interval]
            + ["–" if p is None else f"{p:.4f}" for p in (one.p_value, one.adjusted)]
            + [str(number) for number in (one.raised, one.lowered, one.cases)]
        )
    if not comparison.notes:
        return (_markdown if style == "markdown" else _latex)(grid)
    if style == "markdown":
        return "\n".join([_markdown(grid), "", *map(_item, comparison.notes)])
    # in one line each: a name's line break would end the comment
    return "\n".join([_latex(grid), *(f"% {' '.join(note.split())}" for note in comparison.notes)])


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _markdown(grid: Grid) -> str:
    rule = ["---"] * len(grid[0])
    rows = [[_plain(cell).replace("\\", "\\\\").replace("|", "\\|") for cell in row] for row in grid]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def _item(note: str) -> str:
    # outside of a cell, a metric's underscores would be emphasis
    return "- " + re.sub(r"([\\`*_\[\]])", r"\\\1", _plain(note))


def _plain(cell: str) -> str:
    # names come from files: no line breaks, and no tags where the document becomes HTML
    return " ".join(cell.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _latex(grid: Grid) -> str:
    """A booktabs tabular."""
    rows = [
        " & ".join("".join(LATEX.get(mark, mark) for mark in cell) for cell in row) + r" \\" for row in grid
    ]
    numbers = [all(row[i][:1] in "0123456789–+-" for row in grid[1:]) for i in range(len(grid[0]))]
    columns = "".join("r" if number else "l" for number in numbers)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}"])
