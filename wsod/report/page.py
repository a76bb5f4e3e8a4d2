"""Runs → one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from wsod.config import write_text
from wsod.errors import ConfigError
from wsod.report.figures import curves, histograms, swatch
from wsod.report.gallery import Gallery, ReportRow, chosen_cases, gallery, report_rows
from wsod.report.lines import Line, case_heading, heading, lines, percent, short_names
from wsod.results import Result
from wsod.strata import SIZES

__all__ = ["write_report"]

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Column:
    """A score that cards are sorted and filtered by: a metric of a row."""

    row: int
    metric: str
    name: str
    lower: bool


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    cases: int = 200,
    metric: str | None = None,
    data: str | None = None,
    published: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Write the report of some runs.

    Args:
        runs: result directories.
        out: the HTML file.
        cases: how many are shown at most: the worst, the best, and others drawn at random.
        metric: by whose case scores; None = the first metric that has any.
        data: where the data set is now.
        published: add what the protocols state as published.
        progress: called with (cases done, cases in all).

    Returns:
        What could not be shown, and why.

    Raises:
        DataError: a run that cannot be read.
        ConfigError: a metric without case scores.
    """
    results = {path: Result.load(path) for path in dict.fromkeys(runs)}
    folder, short = short_names([str(path) for path in results])
    names = dict(zip(results, short, strict=True))
    rows = report_rows(results, names)
    known = list(dict.fromkeys(name for row in rows for some in row.scores.values() for name in some))
    if metric is not None and metric not in known:
        raise ConfigError("--metric", "a metric with case scores", repr(metric), ", ".join(known))
    sorting = metric or (known[0] if known else "")
    chosen = chosen_cases(rows, sorting, cases)
    found = gallery(rows, chosen, data=data, progress=progress)
    columns = [
        Column(
            i,
            name,
            f"{case_heading(name)}, {row.name}" if len(rows) > 1 else case_heading(name),
            "↓" in heading(name),
        )
        for name in known
        for i, row in enumerate(rows)
        if name in row.row.scores
    ]
    measured = lines({names[path]: result for path, result in results.items()}, published)
    total = len({case for row in rows for case in row.scores})
    context = {
        "title": f"wsod report: {', '.join(names.values())}",
        "folder": folder,
        "rows": rows,
        "metrics": list(dict.fromkeys(name for row in rows for name in row.row.scores)),
        "summary": _summary(measured),
        "origins": _origins(measured),
        "legend": [(row.name, *swatch(i)) for i, row in enumerate(rows)],
        "curves": list(curves(rows)),
        "histograms": list(histograms(rows, found.ious)),
        "classes": _classes(rows),
        "strata": _strata(rows),
        "gallery": found,
        "cards": _cards(found, columns),
        "columns": columns,
        "first": next((i for i, column in enumerate(columns) if column.metric == sorting), 0),
        "sorting": heading(sorting),
        "total": total,
        "labels": sorted({card.case[3] for card in found.cards}),
        "provenance": {names[path]: _about(result) for path, result in results.items()},
        "skipped": [(names[path], fault) for path, result in results.items() for fault in result.skipped],
    }
    write_text(out, _render(context))
    return found.warnings


def _render(context: Mapping[str, Any]) -> str:
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "heading": heading, "case_heading": case_heading}
    script = (TEMPLATES / "report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (TEMPLATES / "report.css").read_text("utf-8")
    template = environment.get_template("report.html")
    return template.render(**context, script=Markup(script), digest=digest, style=Markup(style))


def _summary(found: Sequence[Line]) -> list[tuple[Line, dict[str, Line]]]:
    table: dict[tuple[str, str, str], dict[str, Line]] = {}
    for line in found:
        table.setdefault(line.row, {})[line.metric] = line
    return [(next(iter(scores.values())), scores) for scores in table.values()]


def _origins(found: Sequence[Line]) -> list[tuple[str, list[str]]]:
    """Data, split and protocol, with the runs they are of."""
    runs: dict[str, dict[str, None]] = {}
    for line in found:
        if not line.source:
            runs.setdefault(line.origin, {})[line.run] = None
    return [(origin, list(names)) for origin, names in runs.items()]


def _classes(rows: Sequence[ReportRow]) -> list[dict[str, Any]]:
    """By metric: its classes with the number of cases of each, and a value with its interval a row."""
    tables = []
    for metric in dict.fromkeys(name for row in rows for name in row.row.scores):
        scored = [row.row.scores.get(metric) or {} for row in rows]
        values = [score.get("per_class") or {} for score in scored]
        intervals = [score.get("class_intervals") or {} for score in scored]
        names = dict.fromkeys(name for some in values for name in some)
        if not names:
            continue
        counts: dict[str, int] = dict.fromkeys(names, 0)
        widest = max(rows, key=lambda row: len(row.scores))
        for case, own in widest.scores.items():
            if metric in own and case[3] in counts:
                counts[case[3]] += 1
        table = [
            (
                name,
                counts[name],
                [(some.get(name), sure.get(name)) for some, sure in zip(values, intervals, strict=True)],
            )
            for name in names
        ]
        tables.append({"metric": metric, "classes": table})
    return tables


def _strata(rows: Sequence[ReportRow]) -> list[tuple[str, ReportRow, list[Mapping[str, Any]]]]:
    """By metric and row: value and count of small, medium and large cases."""
    found = []
    for metric in dict.fromkeys(name for row in rows for name in row.row.scores):
        for row in rows:
            strata = (row.row.scores.get(metric) or {}).get("strata")
            if strata:
                found.append((metric, row, [strata[size] for size in SIZES]))
    return found


def _cards(found: Gallery, columns: Sequence[Column]) -> list[dict[str, Any]]:
    cards = []
    for number, card in enumerate(found.cards):
        own = {(panel.row, name): value for panel in card.panels for name, value in panel.values}
        scores = [own.get((column.row, column.metric)) for column in columns]
        cards.append({"number": number, "card": card, "scores": json.dumps(scores)})
    return cards


def _about(result: Result) -> str:
    return json.dumps(
        {"provenance": dict(result.provenance), "config": dict(result.config)}, indent=1, ensure_ascii=False
    )
