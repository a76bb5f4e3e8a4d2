"""What the scripts here share: taking turns, the table, the file."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Turns = Mapping[str, Callable[[], object]]


def options(doc: str | None) -> argparse.Namespace:
    """`--rounds N` and `--json FILE`."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def kilobytes(field: str) -> int:
    """Of this process's memory: VmRSS, now; VmHWM, at its peak so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def spent(work: Callable[[], object]) -> float:
    """CPU seconds of this process, so that a busy machine changes little."""
    start = time.process_time()
    work()
    return time.process_time() - start


def alternate(turns: Turns, rounds: int, at_least: float = 0.05) -> dict[str, float]:
    """Seconds of each turn: the fastest of so many rounds in which all take turns.

    Short ones are repeated within a round, so that each takes `at_least` so long.
    """
    repeats = {name: max(1, int(at_least / max(spent(work), 1e-6))) for name, work in turns.items()}
    best = dict.fromkeys(turns, float("inf"))
    for _ in range(rounds):
        for name, work in turns.items():
            taken = spent(lambda work=work, n=repeats[name]: [work() for _ in range(n)])  # type: ignore[misc]
            best[name] = min(best[name], taken / repeats[name])
    return best


def row(name: str, peer: str, seconds: Mapping[str, float], cases: int) -> Row:
    """A row from the seconds of "ours", "peer" and "floor" over so many cases."""
    ours, other, floor = (seconds[key] / cases for key in ("ours", "peer", "floor"))
    return {
        "name": name,
        "ours_s": ours,
        "peer": peer,
        "peer_s": other,
        "ratio": other / ours,
        "floor_s": floor,
    }


def report(rows: list[Row], file: Path | None) -> None:
    """The table, and the rows as JSON where a file is given."""
    width = max(len(row["name"]) for row in rows) + 2
    print(f"{'':<{width}}{'ours ms':>10}{'peer ms':>10}{'ratio':>8}{'floor ms':>10}{'over floor':>12}  peer")
    for each in rows:
        times = [1000 * each[key] for key in ("ours_s", "peer_s", "floor_s")]
        print(
            f"{each['name']:<{width}}{times[0]:>10.4f}{times[1]:>10.3f}{each['ratio']:>8.1f}"
            f"{times[2]:>10.4f}{each['ours_s'] / each['floor_s']:>12.1f}  {each['peer']}"
        )
    if file:
        file.write_text(json.dumps(rows, indent=1) + "\n")
