"""What a run logged, read back: as a table, as curves, for TensorBoard."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsod.errors import ConfigError, DataError

__all__ = ["Board", "draw_curves", "read_history", "write_csv"]

Entry = Mapping[str, Any]


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of `history.jsonl`: {"stage", "step", scalars…} a step, {"stage", "step", "evaluation"}.

    None where there is no such file: whoever deleted it goes on without what it said.

    Raises:
        DataError: naming the file, where it was damaged.
    """
    path = folder / "history.jsonl"
    try:
        return [_entry(json.loads(line)) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        hint = "Delete it to go on without what it said."
        raise DataError(path, "a line of JSON a step", error, hint) from error


def _entry(line: Any) -> dict[str, Any]:
    entry: dict[str, Any] = line if isinstance(line, dict) else {}
    placed = isinstance(entry.get("stage"), str) and type(entry.get("step")) is int
    if not placed or not isinstance(entry.get("evaluation", {}), dict):
        raise ValueError(f"{str(line)[:40]!r}")
    for name, value in _scalars(entry):
        if not isinstance(value, int | float):
            raise ValueError(f"{name} {str(value)[:40]!r}")
    return entry


def _scalars(entry: Entry) -> Iterator[tuple[str, float]]:
    """Names and numbers of a line; those of an evaluation under `val/`."""
    for name, value in entry.items():
        if name == "evaluation":
            yield from ((f"val/{metric}", number) for metric, number in value.items())
        elif name not in ("stage", "step"):
            yield name, value


def write_csv(entries: Sequence[Entry], path: Path) -> None:
    """One line an entry, one column a scalar; empty where an entry has none."""
    columns = dict.fromkeys(name for entry in entries for name, _ in _scalars(entry))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["stage", "step", *columns])
        writer.writeheader()
        for entry in entries:
            writer.writerow({"stage": entry["stage"], "step": entry["step"], **dict(_scalars(entry))})


def draw_curves(entries: Sequence[Entry], path: Path) -> None:
    """A PNG of every scalar against the steps of all stages; the part before the slash names the panel."""
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    starts: list[tuple[str, int]] = []
    before = last = 0
    for entry in entries:
        if not starts or entry["stage"] != starts[-1][0]:
            before += last
            starts.append((entry["stage"], before))
        last = entry["step"]
        for name, value in _scalars(entry):
            if name in ("seconds", "lr", "grad_norm"):
                panel = name
            elif "/" not in name:
                panel = "terms"
            else:
                panel = name.split("/")[0]
            x, y = curves.setdefault(panel, {}).setdefault(name.split("/", 1)[-1], ([], []))
            x.append(before + last)
            y.append(value)
    rows = max((len(curves) + 1) // 2, 1)
    figure = Figure(figsize=(11, 2.8 * rows), layout="constrained")
    for number, (panel, lines) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(rows, 2, number)
        for name, (x, y) in lines.items():
            axes.plot(x, y, label=name, linewidth=1, marker="o" if panel == "val" else "", markersize=3)
        for stage, start in starts:
            axes.axvline(start, color="0.8", linewidth=0.8)
            where = axes.get_xaxis_transform()
            axes.text(start, 1, f" {stage}", fontsize=7, va="top", color="0.4", transform=where)
        axes.set_title(panel, fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        if len(lines) > 1:
            axes.legend(fontsize=6)
    figure.savefig(path, format="png", dpi=110)


class Board:
    """A TensorBoard log in `DIR/tensorboard`, a run in it for each stage.

    Args:
        folder: DIR.

    Raises:
        ConfigError: where the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            hint = "pip install tensorboard."
            raise ConfigError("tensorboard", "the package tensorboard", error, hint) from error
        self.folder, self._open = folder / "tensorboard", SummaryWriter
        self._writers: dict[str, Any] = {}

    def add(self, entry: Entry) -> None:
        """Log a line of the history."""
        stage, step = entry["stage"], entry["step"]
        if stage not in self._writers:
            # what a run logged after the state it goes on from is taken back
            self._writers[stage] = self._open(str(self.folder / stage), purge_step=step)
        for name, value in _scalars(entry):
            self._writers[stage].add_scalar(name, value, step)
        self._writers[stage].flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
