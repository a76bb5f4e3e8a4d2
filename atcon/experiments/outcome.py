"""Rows against rows, paired over images and seeds, as a table, a file and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atcon.experiments.base import Experiment, Measure
from atcon.experiments.readings import Reading
from wsod.config import plain, write_text
from wsod.results import provenance
from wsod.stats import image_weights, interval_of_runs

__all__ = ["Difference", "Outcome", "compare", "difference"]

RESAMPLES = 1000
Rows = Sequence[Mapping[str, Mapping[str, Reading]]]


@dataclass(frozen=True)
class Difference:
    """One measure of a row minus that of another, on what both have in the same seed.

    Args:
        row, against: the rows.
        measure: the measure's name.
        value, baseline: means over seeds, on the shared units.
        difference: value − baseline.
        interval: 95 %, over images and seeds (`wsod.stats.interval_of_runs`).
        seeds: (S,) the difference in each seed; None where nothing is shared.
        units: mean number of cases or images compared in a seed.
    """

    row: str
    against: str
    measure: str
    value: float
    baseline: float
    difference: float
    interval: tuple[float, float]
    seeds: tuple[float | None, ...]
    units: float


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Args:
        experiment: its options, and its name.
        measures: the columns.
        values: row → measure → the value of each seed, on all that the row has; None where it has none.
        differences: every contrast of every measure.
    """

    experiment: Mapping[str, Any]
    measures: tuple[Measure, ...]
    values: Mapping[str, Mapping[str, tuple[float | None, ...]]]
    differences: tuple[Difference, ...]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(columns, rows): means over seeds, and below each row its differences with their intervals."""
        measures = [m for m in self.measures if any(m.name in row for row in self.values.values())]
        found = {(d.row, d.against, d.measure): d for d in self.differences}
        rows = []
        for row, values in self.values.items():
            rows.append([row, *(_mean(values.get(measure.name, ()), measure) for measure in measures)])
            for against in dict.fromkeys(d.against for d in self.differences if d.row == row):
                cells = [found.get((row, against, measure.name)) for measure in measures]
                signed = ["–" if d is None else _signed(d, m) for d, m in zip(cells, measures, strict=True)]
                rows.append([f"  − {against}", *signed])
        return ["", *(measure.heading for measure in measures)], rows

    def markdown(self) -> str:
        """The same table in Markdown."""
        columns, rows = self.table()
        lines = [columns, ["---"] * len(columns), *rows]
        return "".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
        )

    def save(self, folder: Path) -> None:
        """Write `results.json`, `table.md` and `plot.png`."""
        from atcon.experiments.plot import plot_differences

        folder.mkdir(parents=True, exist_ok=True)
        table = {
            "schema": 1,
            "experiment": self.experiment,
            "provenance": provenance(),
            "values": self.values,
            "differences": [vars(d) for d in self.differences],
        }
        write_text(folder / "results.json", json.dumps(_jsonable(table), indent=1, ensure_ascii=False) + "\n")
        write_text(folder / "table.md", self.markdown())
        plot_differences(folder / "plot.png", self.measures, self.differences)


def compare(experiment: Experiment, rows: Rows) -> Outcome:
    """All values and contrasts.

    Args:
        experiment: its contrasts and measures.
        rows: what `read` gave, a mapping a seed.
    """
    values: dict[str, dict[str, tuple[float | None, ...]]] = {}
    for row in dict.fromkeys(row for seed in rows for row in seed):
        names = dict.fromkeys(name for seed in rows for name in seed.get(row, {}))
        values[row] = {name: tuple(_value(seed.get(row, {}).get(name)) for seed in rows) for name in names}
    differences = []
    for row, other in experiment.contrasts():
        for measure in experiment.measures:
            pairs = [(s.get(row, {}).get(measure.name), s.get(other, {}).get(measure.name)) for s in rows]
            if any(one is not None and two is not None for one, two in pairs):
                differences.append(difference(row, other, measure.name, pairs))
    about = {"name": experiment.name, **plain(experiment)}
    return Outcome(about, experiment.measures, values, tuple(differences))


def difference(
    row: str, against: str, measure: str, pairs: Sequence[tuple[Reading | None, Reading | None]]
) -> Difference:
    """One measure of two rows compared over seeds.

    Args:
        row, against, measure: their names.
        pairs: the two readings of each seed.
    """
    shared: list[tuple[Reading, Reading] | None] = []
    for one, two in pairs:
        if one is None or two is None:
            shared.append(None)
        else:
            units = set(one.units) & set(two.units)
            shared.append((one.only(units), two.only(units)))
    images = {image for pair in shared if pair is not None for image in pair[0].units.values()}
    columns = {image: i for i, image in enumerate(sorted(images))}
    n = max(len(columns), 1)
    weights = np.vstack([np.ones(n), image_weights(n, RESAMPLES)])
    scores = np.full((2, len(pairs), len(weights)), np.nan)
    for s, pair in enumerate(shared):
        if pair is not None:
            scores[:, s] = [reading.draws(columns, weights) for reading in pair]
    draws = (scores[0] - scores[1]).T
    points = draws[0]
    known = ~np.isnan(points)

    def mean(found: Any) -> float:
        return float(found[known].mean()) if known.any() else math.nan

    return Difference(
        row,
        against,
        measure,
        mean(scores[0, :, 0]),
        mean(scores[1, :, 0]),
        mean(points),
        interval_of_runs(points, draws[1:], images=n),
        tuple(None if math.isnan(x) else float(x) for x in points),
        float(np.mean([len(pair[0].units) for pair in shared if pair is not None] or [0])),
    )


def _value(reading: Reading | None) -> float | None:
    value = math.nan if reading is None else reading.value()
    return None if math.isnan(value) else value


def _mean(values: Sequence[float | None], measure: Measure) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = float(np.mean(known))
    return f"{100 * mean:.1f}" if measure.percent else f"{mean:.3g}"


def _signed(found: Difference, measure: Measure) -> str:
    numbers = (found.difference, *found.interval)
    if any(math.isnan(number) for number in numbers):
        return "–"
    shown = [f"{100 * n:+.1f}" if measure.percent else f"{n:+.3g}" for n in numbers]
    return f"{shown[0]} ({shown[1]} … {shown[2]})"


def _jsonable(value: Any) -> Any:
    """JSON has no NaN: a score of nothing is null."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
