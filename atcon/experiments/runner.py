"""Arms × seeds done one after the other; what is finished is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from atcon.config import FinetuneConfig, config_from_tables
from atcon.experiments.base import Experiment
from atcon.experiments.outcome import Outcome, compare
from atcon.experiments.readings import Reading
from atcon.experiments.views import look
from atcon.train import finetune, resume
from wsod.config import plain, read_toml, write_text
from wsod.device import pick_device
from wsod.errors import ConfigError

__all__ = ["run_experiment", "train_once"]

Progress = Callable[[int, int], None]


def run_experiment(
    experiment: Experiment,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> Outcome:
    """Train, evaluate and compare, going on where an earlier call stopped.

    Leaves in `out`: `seedN/ARM/` (a run of `atcon finetune`, and a result of `wsod evaluate` a view),
    `results.json`, `table.md` and `plot.png`.

    Args:
        experiment: with its options.
        out: None = `runs/NAME`.
        device: `auto`, `cpu` or `cuda`.
        progress: called with (arms done, arms in all).

    Raises:
        WsodError: for a fault of any run, and where `out` holds an arm trained otherwise.
    """
    folder = Path("runs") / experiment.name if out is None else Path(out)
    device = pick_device(device)
    arms = experiment.arms()
    done, total = 0, experiment.seeds * len(arms)
    rows: list[Mapping[str, Mapping[str, Reading]]] = []
    for seed in range(experiment.seeds):
        for arm in arms:
            home = folder / f"seed{seed}" / arm.name
            if arm.config is not None:
                train_once(arm.config(seed, home.parent), home, device=device)
            for view in arm.views:
                look(view, home, trained=arm.config is not None, device=device)
            done += 1
            if progress:
                progress(done, total)
        rows.append(experiment.read(folder / f"seed{seed}"))
    outcome = compare(experiment, rows)
    outcome.save(folder)
    return outcome


def train_once(config: FinetuneConfig, folder: Path, *, device: str) -> Path:
    """Train unless that is done; go on where it was interrupted.

    Returns:
        The path of `ft.pt`.

    Raises:
        ConfigError: where the folder holds a run of another configuration.
    """
    wanted = json.loads(json.dumps(plain(config)))
    marker, there = folder / "done.json", folder / "config.toml"
    if there.is_file():
        found = json.loads(json.dumps(plain(config_from_tables(read_toml(there), {}, there))))
        if found != wanted:
            raise ConfigError(folder, "a run of the same settings", "another", "Choose another --out.")
    if not marker.is_file():
        _ = resume(folder, device=device) if there.is_file() else finetune(config, folder, device=device)
        write_text(marker, json.dumps(wanted, indent=1) + "\n")
    return folder / "ft.pt"
