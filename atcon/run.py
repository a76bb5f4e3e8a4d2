"""A run on disk: config.toml, subset.json, history.*, state.pt, last.pt, ft.pt; none half-written.

`state.pt` holds all a run needs to go on as if it had never stopped. Lines of the history that were written
after it are taken back when the run goes on.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

import wsod
from atcon.config import FinetuneConfig, config_from_tables
from atcon.history import Board, draw_curves, read_history, write_csv
from atcon.subsets import Subset, save_subset
from wsod.config import dump_toml, plain, read_toml, write_text
from wsod.errors import CheckpointError, ConfigError
from wsod.models import Classifier, read_checkpoint, save_checkpoint
from wsod.models.checkpoint import load_file, save_file
from wsod.output import write_bytes

__all__ = ["POOLS", "Run", "of_this_run"]

POOLS = ("labelled", "unlabelled")
_FILES = ("config.toml", "history.jsonl", "state.pt", "ft.pt")


class Run:
    """A run directory.

    Args:
        folder: the directory; must hold no other run.
        config: what is run.
        subset: the images it uses.
        writes: whether this process writes; of several, one does.

    Raises:
        ConfigError: where another run is there, or the directory cannot be made.
    """

    def __init__(self, folder: Path, config: FinetuneConfig, subset: Subset, *, writes: bool = True) -> None:
        self.folder, self.config, self.writes = folder, config, writes
        self.lines = 0
        self._board: Board | None = None
        if not writes:
            return
        self.refuse_another(folder)
        if config.tensorboard:
            Board(folder)  # refused before anything is written, where it is not installed
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_subset(folder / "subset.json", subset)
            write_text(folder / "config.toml", dump_toml(config))
        except OSError as error:
            raise ConfigError(folder, "a directory that can be written", error) from error

    @staticmethod
    def refuse_another(folder: Path) -> None:
        """Raise where the directory holds a run."""
        found = [name for name in _FILES if (folder / name).exists()]
        if found:
            raise ConfigError(
                folder,
                "a directory without a run in it",
                ", ".join(found),
                f"Go on with it by --resume {folder}, or choose another --out.",
            )

    @staticmethod
    def config_of(folder: Path) -> FinetuneConfig:
        """The configuration of the run in a directory, with the images it chose.

        Raises:
            ConfigError: where there is none.
        """
        path = folder / "config.toml"
        if not path.is_file():
            raise ConfigError(folder, "the directory of a run", "no config.toml in it")
        said = {"data": {"subset": str(folder / "subset.json")}}
        return config_from_tables(read_toml(path), said, path)

    @classmethod
    def opened(cls, folder: Path) -> Run:
        """The run in a directory, to go on with it."""
        run = cls.__new__(cls)
        run.folder, run.config, run.lines, run.writes = folder, cls.config_of(folder), 0, True
        run._board = None
        return run

    def checkpoint(
        self, name: str, classifier: Classifier, metrics: Mapping[str, Any], device: torch.device
    ) -> None:
        """Write a checkpoint that `wsod` can evaluate."""
        if not self.writes:
            return
        provenance = {
            "wsod": wsod.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "seed": self.config.seed,
            "data": self.config.data.spec,
            "initial_weights": classifier.loaded,
        }
        save_checkpoint(
            self.folder / name,
            classifier,
            recipe=plain(self.config),
            metrics=metrics,
            provenance=provenance,
        )

    def keep(self, name: str) -> None:
        """Keep the selected checkpoint of a stage under another name."""
        if self.writes:
            with _aside(self.folder / name) as aside:
                shutil.copyfile(self.folder / "ft.pt", aside)

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one line to the history."""
        path = self.folder / "history.jsonl"
        if self.writes:
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
            except OSError as error:
                raise _unwritable(path, error) from error
            if self.config.tensorboard:
                self._board = self._board or Board(self.folder)
                self._board.add(entry)
        self.lines += 1

    def draw(self) -> None:
        """The history as a table, `history.csv`, and as curves, `history.png`."""
        if self.writes:
            entries = read_history(self.folder)
            with _aside(self.folder / "history.csv") as aside:
                write_csv(entries, aside)
            with _aside(self.folder / "history.png") as aside:
                draw_curves(entries, aside)
            if self._board is not None:
                self._board.close()
                self._board = None

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write the training state."""
        if self.writes:
            save_file({**state, "lines": self.lines}, self.folder / "state.pt")

    def load_state(self) -> dict[str, Any] | None:
        """The training state, the history taken back to it; None where the run had not saved one yet."""
        history = self.folder / "history.jsonl"
        path = self.folder / "state.pt"
        state = load_file(path) if path.exists() else None
        if state is not None:
            _check_state(state)
            self.lines = state["lines"]
            read_checkpoint(self.folder / "ft.pt")  # the best so far: nothing writes it again
        if not self.writes:
            return state
        for left in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        lines = history.read_bytes().splitlines(keepends=True) if history.exists() else []
        if lines:
            write_bytes(history, b"".join(lines[: self.lines]))
        # fewer where the file was deleted
        self.lines = min(self.lines, len(lines))
        return state


def _check_state(state: Mapping[str, Any]) -> None:
    """What the loop counts with is whole numbers, and the rest what is looked into."""
    kinds = {"used": dict, "best": dict, "network": dict, "optimiser": dict | None, "random": list}
    for name, kind in kinds.items():
        if not isinstance(state[name], kind):
            raise TypeError(f"{name} of type {type(state[name]).__name__}")
    counts = {name: state.get(name, 0) for name in ("stage", "step", "lines", "halved")}
    for name, count in {**counts, **{pool: state["used"][pool] for pool in POOLS}}.items():
        if type(count) is not int or not 0 <= count < (32 if name == "halved" else 1 << 40):
            raise ValueError(f"{name} {str(count)[:40]!r}")


@contextmanager
def of_this_run(folder: Path) -> Iterator[None]:
    """A saved state that does not fit the run is a fault of its folder, in one line."""
    try:
        yield
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        got = " ".join(f"{type(error).__name__} {error}".split())[:200]
        hint = "Put config.toml and the data set back as they were, or begin anew in another --out."
        raise CheckpointError(folder / "state.pt", "the state of this run", got, hint) from error


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A path to write to; renamed to `path` when whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        aside.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(path, "a file that can be written", error, "Make room, then --resume the run.")
