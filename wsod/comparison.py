"""Two runs, case by case: how much a score differs, how sure that is, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsod.config import plain
from wsod.errors import ConfigError
from wsod.metrics import Metric
from wsod.paired import holm, sign_flip_test
from wsod.results import Result, Row
from wsod.stats import bootstrap_interval
from wsod.thresholds import protocol_of

__all__ = ["Change", "Comparison", "Difference", "Resampling", "compare"]

Resampling = Literal["image", "class"]
Key = tuple[str, str]


class Change(NamedTuple):
    """A case whose score differs.

    Attributes:
        image: its id.
        label: its class.
        before: score in the first row.
        after: score in the second.
    """

    image: str
    label: str
    before: float
    after: float


@dataclass(frozen=True)
class Difference:
    """A metric's difference between two rows.

    Args:
        first: the row compared with, `RUN` or `RUN: MAPS`.
        second: the other.
        metric: its name.
        before: score of the first row over the cases both have.
        after: score of the second.
        interval: 95 % paired bootstrap interval of after − before; None for a score that is no mean of cases.
        p_value: of the sign flip test; None likewise, and where every case has the same score in both.
        adjusted: p-value after Holm's correction over all differences of the comparison.
        cases: number of cases both have.
        images: number of images these are of.
        changes: every case whose score differs, largest change first.
    """

    first: str
    second: str
    metric: str
    before: float
    after: float
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    adjusted: float | None = None
    cases: int = 0
    images: int = 0
    changes: tuple[Change, ...] = field(default=(), repr=False)

    @property
    def difference(self) -> float:
        """after − before."""
        return self.after - self.before

    @property
    def raised(self) -> int:
        """Number of cases with a higher score in the second row."""
        return sum(change.after > change.before for change in self.changes)

    @property
    def lowered(self) -> int:
        """Number of cases with a lower score in the second row."""
        return len(self.changes) - self.raised


@dataclass(frozen=True)
class Comparison:
    """All differences, and what a reader has to know of them.

    Args:
        about: data, split and protocol.
        differences: a metric of a pair of rows each.
        notes: such as cases that one side lacks.
    """

    about: str
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()


class _Side(NamedTuple):
    """A row with the run it is of."""

    name: str
    result: Result
    row: Row

    def cases(self) -> dict[Key, Mapping[str, float]]:
        found = (case for case in self.result.cases if case.maps == self.row.maps)
        return {(case.image, case.label): case.scores for case in found}


def compare(
    runs: Sequence[str | Path],
    *,
    metrics: Sequence[str] = (),
    resample: Resampling = "image",
    same_data: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Paired differences of every run to the first, or of every row of a single run to its first row.

        compare(["runs/start", "runs/atcon"])                  # rows of the same maps
        compare(["runs/a:gradcam", "runs/b:layercam"])         # these two rows
        compare(["runs/a"])                                    # gradcam, layercam, … of one run

    Args:
        runs: result directories, `RUN:MAPS` for a single row of one.
        metrics: these only.
        resample: what the bootstrap draws: images, or images within their class (whose numbers then stay as
            they are; needs one class an image).
        same_data: data specs that differ name the same images, such as a data set at another path.
        resamples: of the bootstrap and of the test.
        seed: of both.

    Raises:
        ConfigError: runs on other data, splits, labels or protocols, saying what differs; nothing in common,
            or only metrics that are no mean of cases, of other images.
        DataError: a run that cannot be read.
    """
    pairs = _pairs([_open(run) for run in runs])
    differences: list[Difference] = []
    notes: list[str] = []
    for first, second in pairs:
        shared = [name for name in first.row.scores if name in second.row.scores]
        wanted = [name for name in shared if not metrics or name in metrics]
        lacking = [name for name in metrics if name not in shared]
        if lacking or not wanted:
            got = f"{', '.join(first.row.scores)} and {', '.join(second.row.scores)}"
            what = ", ".join(lacking) or "at least one"
            raise ConfigError(f"{first.name}, {second.name}", f"metrics of both ({what})", got)
        _alike(first, second, wanted, same_data)
        some, more = _differences(first, second, wanted, resample, resamples, seed)
        differences += some
        notes += more
    known = [one.p_value for one in differences if one.p_value is not None]
    corrected = iter(holm(known))
    differences = [
        one if one.p_value is None else replace(one, adjusted=next(corrected)) for one in differences
    ]
    if not differences:
        names = ", ".join(map(str, runs))
        raise ConfigError(names, "a metric that can be compared", "; ".join(dict.fromkeys(notes)))
    about = "{data}, split {split}, protocol {config}".format(**pairs[0][0].result.config)
    return Comparison(about, tuple(differences), tuple(dict.fromkeys(notes)))


def _open(run: str | Path) -> list[_Side]:
    """The rows of a run, or the one it names after a colon."""
    text, maps = str(run), ""
    while not Path(text).exists() and ":" in text:
        text, _, last = text.rpartition(":")
        maps = f"{last}:{maps}" if maps else last
    path = Path(text) if Path(text).exists() else Path(run)
    result = Result.load(path)
    if not result.cases:
        if ((path if path.is_dir() else path.parent) / "cases.jsonl").exists():
            metrics = ", ".join(dict.fromkeys(name for row in result.rows for name in row.scores))
            hint = "Runs are paired by the scores of their cases; `wsod table` prints runs of other metrics."
            raise ConfigError(run, "a score of a single case", f"only {metrics}, without any", hint)
        hint = "Evaluate again with --out; a result.json alone has no cases to pair."
        raise ConfigError(run, "a run with cases.jsonl", "none", hint)
    rows = [row for row in result.rows if not maps or row.maps == maps]
    if not rows:
        names = ", ".join(row.maps for row in result.rows)
        raise ConfigError(run, "one of its rows after the colon", repr(maps), f"It has {names}.")
    return [_Side(text if len(result.rows) == 1 else f"{text}: {row.maps}", result, row) for row in rows]


def _pairs(runs: Sequence[Sequence[_Side]]) -> list[tuple[_Side, _Side]]:
    first, *others = runs
    if not others:
        if len(first) < 2:
            hint = "Give a second run, or evaluate with several --maps."
            raise ConfigError(first[0].name, "two rows to compare", "one", hint)
        return [(first[0], other) for other in first[1:]]
    pairs = []
    for other in others:
        if len(first) == len(other) == 1:
            pairs.append((first[0], other[0]))
            continue
        # folders of maps are called by their last name where their paths differ
        for key in (lambda side: side.row.maps, lambda side: Path(side.row.maps).name):
            rows = {key(side): side for side in other}
            found = [(side, rows[key(side)]) for side in first if key(side) in rows]
            if found:
                break
        else:
            left, right = (", ".join(side.row.maps for side in sides) for sides in (first, other))
            hint = "Say which rows: RUN:MAPS RUN:MAPS."
            raise ConfigError(other[0].name, f"a row of the same maps as one of {left}", right, hint)
        pairs += found
    return pairs


def _alike(first: _Side, second: _Side, metrics: Sequence[str], same_data: bool) -> None:
    """Refuse runs whose scores are not of the same thing."""
    here, there = (_settings(side.result, metrics) for side in (first, second))
    differs = {key: f"{key} = {here[key]} / {there[key]}" for key in here if here[key] != there[key]}
    if same_data:
        differs.pop("data", None)
    if differs:
        hint = "Evaluate both the same way."
        if list(differs) == ["data"]:
            hint = "If these are the same images at another path, pass --same-data."
        where, got = f"{first.name} / {second.name}", "; ".join(differs.values())
        raise ConfigError(where, "the same data, split, labels and protocol", got, hint)


def _settings(result: Result, metrics: Sequence[str]) -> dict[str, Any]:
    """Everything but the maps that a score depends on, by name."""
    protocol = protocol_of(result)
    settings = {key: result.config.get(key) for key in ("data", "split", "labels")}
    settings |= {f"protocol: maps.{key}": value for key, value in plain(protocol.maps).items()}
    for name, metric in protocol.build(1, metrics).items():
        own = {key: plain(value) for key, value in metric.options().items() if key != "processing"}
        settings |= {f"protocol: {name}.{key}": value for key, value in own.items()}
    return settings


def _differences(
    first: _Side,
    second: _Side,
    names: Sequence[str],
    resample: Resampling,
    resamples: int,
    seed: int,
) -> tuple[list[Difference], list[str]]:
    left, right = first.cases(), second.cases()
    notes = []
    other_images = _other_images(first.result, second.result)
    built = protocol_of(first.result).build(_classes(first.result), names)
    differences = []
    for name in names:
        notes += _other_thresholds(first, second, name)
        metric, base = built[name], Difference(first.name, second.name, name, *_values(first, second, name))
        if metric.average is None:
            # without cases, what only one side has cannot be left out of the other's value
            if other_images or _counts(first, name) != _counts(second, name):
                notes.append(f"{name} is of other images in the two rows: not compared ({second.name})")
                continue
            notes.append(f"{name} is no mean of cases: it has no paired interval")
            differences.append(base)
            continue
        here = {case: scores[name] for case, scores in left.items() if name in scores}
        there = {case: scores[name] for case, scores in right.items() if name in scores}
        common = [case for case in here if case in there]
        if not common:
            raise ConfigError(f"{first.name} / {second.name}", f"cases of {name} in common", "none")
        alone = len(here) + len(there) - 2 * len(common)
        if alone:
            notes.append(f"{name}: {alone} cases that only one side has are left out ({second.name})")
        before = np.array([here[case] for case in common], np.float64)
        after = np.array([there[case] for case in common], np.float64)
        differences.append(_paired(base, metric, common, before, after, resample, resamples, seed))
    return differences, notes


def _other_images(first: Result, second: Result) -> bool:
    """Whether the runs are of other first images of the split, or lost others to faults."""
    here, there = (
        (result.config.get("limit", 0), {str(fault.get("image", fault["error"])) for fault in result.skipped})
        for result in (first, second)
    )
    return here != there


def _counts(side: _Side, metric: str) -> tuple[Any, Any]:
    score = side.row.scores[metric]
    return score["count"], score["skipped"]


def _other_thresholds(first: _Side, second: _Side, metric: str) -> list[str]:
    """A note where one side took the metric's threshold from elsewhere: then equal maps can differ."""
    sources = [side.row.scores[metric].get("threshold_from") for side in (first, second)]
    if sources[0] == sources[1]:
        return []
    where = (f"from {one['data']}, split {one['split']}" if one else "of the run itself" for one in sources)
    here, there = (f"{text} ({side.name})" for text, side in zip(where, (first, second), strict=True))
    return [f"{metric}: threshold {here}, {there}"]


def _paired(
    base: Difference,
    metric: Metric,
    cases: Sequence[Key],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    resample: Resampling,
    resamples: int,
    seed: int,
) -> Difference:
    images, labels = zip(*cases, strict=True)
    average = metric.average or "cases"
    change = after - before
    order = np.argsort(-np.abs(change), kind="stable")
    options: dict[str, Any] = {"average": average, "resamples": resamples, "seed": seed}
    strata = labels if resample == "class" else None
    return replace(
        base,
        before=_mean(before, labels, metric),
        after=_mean(after, labels, metric),
        interval=bootstrap_interval(change, images, labels, divisor=metric.divisor, strata=strata, **options),
        # scores that are equal case by case need no test, and must not weigh on the others
        p_value=sign_flip_test(change, images, labels, **options) if change.any() else None,
        cases=len(cases),
        images=len(set(images)),
        changes=tuple(
            Change(images[i], labels[i], float(before[i]), float(after[i]))
            for i in order.tolist()
            if change[i]
        ),
    )


def _mean(values: NDArray[np.float64], labels: Sequence[str], metric: Metric) -> float:
    if metric.average == "cases":
        return float(values.mean())
    _, columns, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return float((np.bincount(columns, values) / counts).sum() / (metric.divisor or len(counts)))


def _values(first: _Side, second: _Side, metric: str) -> tuple[float, float]:
    found = [side.row.scores[metric]["value"] for side in (first, second)]
    before, after = (float("nan") if value is None else float(value) for value in found)
    return before, after


def _classes(result: Result) -> int:
    """Number of the data set's classes; of runs that do not say it, of those that were seen."""
    seen = [len(score["per_class"] or ()) for row in result.rows for score in row.scores.values()]
    return int(result.config.get("classes") or max(*seen, 1, 1))
