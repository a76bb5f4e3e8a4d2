"""The training loop: stages of weighted objectives, evaluated, selected, saved, resumable to the bit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from atcon.build import make_classifier, make_objectives, untrained
from atcon.config import FinetuneConfig
from atcon.data import Batch, batches, stream
from atcon.judge import Best, evaluate_classifier, selection
from atcon.pools import open_sources
from atcon.run import POOLS, Run, of_this_run
from atcon.schedules import steps_of, weights
from atcon.stages import StageConfig
from atcon.step import Stepper
from atcon.world import World
from wsod.config import bind, plain
from wsod.errors import ConfigError, DataError, ModelError, ProcessError
from wsod.memory import ran_out
from wsod.models import read_checkpoint
from wsod.output import only_writer

__all__ = ["Event", "Progress", "finetune", "resume"]

# batches that an objective may measure something on before its stage begins
MEASURED = 8


@dataclass(frozen=True)
class Event:
    """What a run tells while it goes.

    Args:
        kind: `start` of a stage, a `step` done, an `evaluation`, the `end` of a stage, or a `note`.
        stage: its name.
        step: steps done.
        steps: steps in all.
        values: scalars by name.
        note: what may not be meant.
    """

    kind: Literal["start", "step", "evaluation", "end", "note"]
    stage: str
    step: int
    steps: int
    values: Mapping[str, float]
    note: str = ""


Progress = Callable[[Event], None]


def finetune(
    config: FinetuneConfig,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> Path:
    """Train a classifier as configured.

    Leaves in `out`: `ft.pt` (the selected checkpoint of the last stage), `STAGE.pt` (that of each stage
    before), `last.pt`, `history.jsonl` (a line a step and evaluation), the same as `history.csv` and drawn as
    `history.png`, `config.toml`, `subset.json`, `state.pt`. Under `torchrun` its processes share each batch,
    and the first of them writes.

    Args:
        config: the run, for instance from `load_config`.
        out: its directory; None = `runs/RECIPE`. Must hold no other run.
        device: `auto`, `cpu` or `cuda`.
        progress: called with every `Event`.

    Returns:
        The path of `ft.pt`.

    Raises:
        WsodError: for a fault in configuration, data or weights, and for a loss that is not finite.
        KeyboardInterrupt: on SIGINT, after the step is finished and saved.
    """
    folder = Path("runs") / (config.recipe or "finetune") if out is None else Path(out)
    return _train(config, folder, device, progress, resumed=False)


def resume(out: str | Path, *, device: str = "auto", progress: Progress | None = None) -> Path:
    """Go on with a run from its saved state; on a CPU, to the same bits as if it had not stopped.

    Args: as `finetune`; configuration and images are those of the run.
    """
    return _train(Run.config_of(Path(out)), Path(out), device, progress, resumed=True)


def _train(
    config: FinetuneConfig, folder: Path, device: str, progress: Progress | None, *, resumed: bool
) -> Path:
    world = World.join(device)
    try:
        if world.first:
            with only_writer(folder) if folder.is_dir() else nullcontext():
                if not resumed:
                    Run.refuse_another(folder)
        show = progress if progress and world.first else (lambda event: None)
        training = _Training(config, world, show)
        # everything that can be wrong has been looked at: only now is anything written
        world.wait()
        with only_writer(folder) if world.first else nullcontext():
            return training.train(folder, resumed=resumed)
    except Exception as error:
        hint = f"What is saved is whole: go on with --resume {folder}."
        if ran_out(error):
            raise ModelError(folder, "room in memory", "out of memory", hint) from error
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            got = str(error).split("\n")[0].rstrip(". ")
            raise DataError("data.workers", "processes that load images", got, hint) from error
        if isinstance(error, RuntimeError) and world.broke(error):
            where, got = f"process {world.rank}", "no answer from another"
            raise ProcessError(where, "all processes to go on", got, hint) from error
        raise
    finally:
        world.leave()


class _Training:
    """One run in progress."""

    def __init__(self, config: FinetuneConfig, world: World, progress: Progress) -> None:
        self.config, self.progress, self.world = config, progress, world
        torch.manual_seed(config.seed)
        sources = open_sources(config.data)
        self.classifier = make_classifier(config.model, sources).to(world.device)
        self.objectives = {
            name: make_objectives(name, stage, self.classifier, sources.offered)
            for name, stage in config.stages.items()
        }
        first = next(iter(config.stages))
        if untrained(self.classifier, config.model, self.objectives[first]):
            note = f"stage {first}: no label trains the head, which starts from {self.classifier.loaded}: "
            note += "its maps mean nothing. Give --weights ft.pt, or a stage before it that has labels."
            self.progress(Event("note", first, 0, 0, {}, note))
        used = [o for objectives in self.objectives.values() for o in objectives.values()]
        told = [entry for objective in used for entry in objective.learned_from]
        self.classifier.supervision = tuple(dict.fromkeys((*self.classifier.supervision, *told)))
        places = {need for objective in used for need in objective.requires} & {"masks", "boxes"}
        self.pools = sources.pools(self.classifier.preprocess, config.seed, places)
        self.sizes = {pool: len(self.pools[pool]) for pool in POOLS}
        for name, stage in config.stages.items():
            selection(name, stage, self.classifier.task)
            _check_shares(name, stage, self.sizes, world.size)
        on_gpu = world.device.type == "cuda"
        self.workers = (8 if on_gpu else 0) if config.data.workers is None else config.data.workers
        self.subset = sources.subset
        self.stage_number, self.step, self.halved = 0, 0, 0
        self.used = dict.fromkeys(POOLS, 0)
        self.best_state: dict[str, Any] = {}
        self.optimiser_state: dict[str, Any] | None = None
        self.begun: dict[str, dict[str, Any]] = {}

    def _open(self, folder: Path, resumed: bool) -> None:
        """Make the run's directory, or go on from what is in it."""
        world = self.world
        if resumed:
            self.run = Run.opened(folder)
            self.run.writes = world.first
        else:
            self.run = Run(folder, self.config, self.subset, writes=world.first)
        world.wait()
        # what is drawn while training, such as dropout, differs between processes
        torch.manual_seed(self.config.seed + 7919 * world.rank)
        with of_this_run(folder):
            state = self.run.load_state() if resumed else None
            world.wait()
            if state is not None:
                self._restore(state)

    def train(self, folder: Path, *, resumed: bool) -> Path:
        self._open(folder, resumed)
        names = list(self.config.stages)
        with _interruptible() as interrupted:
            while self.stage_number < len(names):
                name = names[self.stage_number]
                self._stage(name, self.config.stages[name], interrupted)
                if self.stage_number + 1 < len(names):
                    self.run.keep(f"{name}.pt")
                    self.world.wait()
                    selected = read_checkpoint(self.run.folder / "ft.pt")["state"]
                    self.classifier.network.load_state_dict(selected)
                self.stage_number, self.step, self.best_state = self.stage_number + 1, 0, {}
                self.used = dict.fromkeys(POOLS, 0)
                self.optimiser_state, self.begun = None, {}
                # before the stage counts as done: killed in between, it is drawn again
                self.run.draw()
                self._save(None)
        self.world.wait()
        return self.run.folder / "ft.pt"

    def _stage(self, name: str, stage: StageConfig, interrupted: Callable[[], bool]) -> None:
        steps, epoch = steps_of(stage, self.sizes)
        evaluate_every = stage.evaluate_every or epoch
        self._begin(name, stage)
        take = Stepper(name, stage, steps, self.classifier, self.objectives[name], self.world, self.halved)
        if self.optimiser_state is not None:
            with of_this_run(self.run.folder):
                take.optimiser.load_state_dict(self.optimiser_state)
        best = Best(selection(name, stage, self.classifier.task), self.best_state)
        # another order of images in every stage
        seed = self.config.seed * 1009 + self.stage_number
        streams = self._streams(stage, seed)
        self._tell("start", name, steps, {})
        if not best.metrics:
            # the checkpoint a stage starts from may turn out to be the best
            self._evaluate(name, stage, steps, best)
            self._save(take.optimiser)
        while self.step < steps and not 0 < stage.patience <= best.stale:
            started = time.perf_counter()
            active = weights(stage.objectives, self.sizes, self.step, seed)
            drawn: dict[str, tuple[Batch, int]] = {}
            for pool in {stage.objectives[key].pool: None for key in active}:
                batch = next(streams[pool]).to(self.world.device, stage.channels_last)
                drawn[pool] = batch, min(stage.batch, self.sizes[pool])
                self.used[pool] += 1
            values, stop = take(self.step, active, drawn, interrupted())
            self.halved = take.halved
            values["seconds"] = time.perf_counter() - started
            self.step += 1
            self.run.log({"stage": name, "step": self.step, **values})
            self._tell("step", name, steps, values)
            evaluated = self.step % evaluate_every == 0 or self.step == steps
            if evaluated:
                self._evaluate(name, stage, steps, best)
            # several processes stop at the same step, the one after the signal
            stop = stop or (self.world.size == 1 and interrupted())
            if stop or (self.step % stage.save_every == 0 if stage.save_every else evaluated):
                self._save(take.optimiser)
            if stop:
                self.run.draw()
                raise KeyboardInterrupt(f"Go on with --resume {self.run.folder}.")
        self._tell("end", name, steps, best.metrics)

    def _begin(self, name: str, stage: StageConfig) -> None:
        """Objectives that measure something before they start do it now, or have done it before a pause."""
        for key, objective in self.objectives[name].items():
            if self.step:
                found = bind(type(objective), self.begun[key], "state.pt") if key in self.begun else objective
            else:
                pool = self.pools[stage.objectives[key].pool]
                first = islice(batches(pool, stage.batch), MEASURED)
                found = objective.begun(self.classifier, (batch.to(self.world.device) for batch in first))
                if found is not objective:
                    self.begun[key] = plain(found)
            self.objectives[name][key] = found

    def _streams(self, stage: StageConfig, seed: int) -> dict[str, Iterator[Batch]]:
        return {
            pool: stream(
                self.pools[pool],
                stage.batch,
                seed=seed * 2 + number,
                start=self.used[pool],
                workers=self.workers,
                pin=self.world.device.type == "cuda",
                share=(self.world.rank, self.world.size),
            )
            for number, pool in enumerate(POOLS)
            if any(term.pool == pool for term in stage.objectives.values())
        }

    def _evaluate(self, name: str, stage: StageConfig, steps: int, best: Best) -> None:
        metrics = evaluate_classifier(
            self.classifier, self.pools["val"], 2 * stage.batch, workers=self.workers, world=self.world
        )
        self.run.log({"stage": name, "step": self.step, "evaluation": metrics})
        described = {"stage": name, "step": self.step, "selected_by": best.chosen, **metrics}
        self.run.checkpoint("last.pt", self.classifier, described, self.world.device)
        if best.better(self.step, metrics):
            self.run.checkpoint("ft.pt", self.classifier, described, self.world.device)
        self.best_state = best.state()
        self._tell("evaluation", name, steps, metrics)

    def _tell(
        self, kind: Literal["start", "step", "evaluation", "end"], name: str, steps: int, values: Any
    ) -> None:
        self.progress(Event(kind, name, self.step, steps, values))

    def _save(self, optimiser: torch.optim.Optimizer | None) -> None:
        self.run.save_state(
            {
                "stage": self.stage_number,
                "step": self.step,
                "used": self.used,
                "best": self.best_state,
                "begun": self.begun,
                "halved": self.halved,
                "network": self.classifier.network.state_dict(),
                "optimiser": None if optimiser is None else optimiser.state_dict(),
                # one a process
                "random": self.world.gather(self.world.random_states()),
            }
        )

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.stage_number, self.step = state["stage"], state["step"]
        self.used, self.best_state = dict(state["used"]), dict(state["best"])
        self.begun, self.halved = dict(state.get("begun", {})), state.get("halved", 0)
        self.classifier.network.load_state_dict(state["network"])
        self.optimiser_state = state["optimiser"]
        rank = self.world.rank
        if rank < len(state["random"]):
            self.world.set_random_states(state["random"][rank])


def _check_shares(name: str, stage: StageConfig, sizes: Mapping[str, int], processes: int) -> None:
    for pool in {term.pool for term in stage.objectives.values()}:
        if min(stage.batch, sizes[pool]) < processes:
            raise ConfigError(
                f"stage {name}: batch", f"an image for each of {processes} processes", f"{sizes[pool]} {pool}"
            )


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C once: noted, so that the step can be finished and saved; twice: at once."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        noted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted.is_set
    finally:
        signal.signal(signal.SIGINT, before)
