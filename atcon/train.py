"""The training loop: stages of weighted objectives, evaluated, selected, saved, resumable to the bit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from atcon.build import make_classifier, make_objectives, make_optimiser, set_mode
from atcon.config import FinetuneConfig, StageConfig
from atcon.data import Batch, Images, batches, stream
from atcon.metrics import classification_scores
from atcon.objectives import Objective
from atcon.pools import open_sources
from atcon.run import Run
from atcon.schedules import learning_rate, steps_of, weights
from wsod.device import pick_device
from wsod.errors import ConfigError, ModelError
from wsod.models import Classifier, read_checkpoint

__all__ = ["Event", "Progress", "evaluate_classifier", "finetune", "resume"]

POOLS = ("labelled", "unlabelled")


@dataclass(frozen=True)
class Event:
    """What a run tells while it goes.

    Args:
        kind: `start` of a stage, a `step` done, an `evaluation`, or the `end` of a stage.
        stage: its name.
        step: steps done.
        steps: steps in all.
        values: scalars by name.
    """

    kind: Literal["start", "step", "evaluation", "end"]
    stage: str
    step: int
    steps: int
    values: Mapping[str, float]


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
    before), `last.pt`, `history.jsonl` (a line a step and evaluation), `config.toml`, `subset.json`,
    `state.pt`.

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
    Run.refuse_another(folder)
    return _Training(config, device, progress or (lambda event: None), folder, resumed=False).train()


def resume(out: str | Path, *, device: str = "auto", progress: Progress | None = None) -> Path:
    """Go on with a run from its saved state; on a CPU, to the same bits as if it had not stopped.

    Args: as `finetune`; configuration and images are those of the run.
    """
    folder = Path(out)
    config = Run.config_of(folder)
    return _Training(config, device, progress or (lambda event: None), folder, resumed=True).train()


def evaluate_classifier(
    classifier: Classifier, images: Images, batch: int, *, workers: int = 0
) -> dict[str, float]:
    """Classification scores on a set of images, in evaluation mode and full precision."""
    device = next(classifier.parameters()).device
    modes = {module: module.training for module in classifier.modules()}
    classifier.eval()
    logits, targets = [], []
    with torch.no_grad():
        for found in batches(images, batch, workers=workers, pin=device.type == "cuda"):
            logits.append(classifier(found.to(device).images).double().cpu())
            targets.append(found.targets)
    for module, training in modes.items():
        module.training = training
    return classification_scores(torch.cat(logits).numpy(), torch.cat(targets).numpy())


class _Training:
    """One run in progress."""

    def __init__(
        self, config: FinetuneConfig, device: str, progress: Progress, folder: Path, *, resumed: bool
    ) -> None:
        self.config, self.progress = config, progress
        self.device = torch.device(pick_device(device))
        torch.manual_seed(config.seed)
        sources = open_sources(config.data)
        self.classifier = make_classifier(config.model, sources).to(self.device)
        self.objectives = {
            name: make_objectives(name, stage, self.classifier, sources.offered)
            for name, stage in config.stages.items()
        }
        used = [o for objectives in self.objectives.values() for o in objectives.values()]
        told = [entry for objective in used for entry in objective.supervision]
        self.classifier.supervision = tuple(dict.fromkeys((*self.classifier.supervision, *told)))
        for name, stage in config.stages.items():
            _check_selection(name, stage, self.classifier.task)
        places = {need for objective in used for need in objective.requires} & {"masks", "boxes"}
        self.pools = sources.pools(self.classifier.preprocess, config.seed, places)
        self.sizes = {pool: len(self.pools[pool]) for pool in POOLS}
        on_gpu = self.device.type == "cuda"
        self.workers = (8 if on_gpu else 0) if config.data.workers is None else config.data.workers
        # everything that can be wrong has been looked at: only now is anything written
        self.run = Run.opened(folder) if resumed else Run(folder, config, sources.subset)
        self.stage_number, self.step = 0, 0
        self.used = dict.fromkeys(POOLS, 0)
        self.best: dict[str, Any] = {}
        self.optimiser_state: dict[str, Any] | None = None
        state = self.run.load_state() if resumed else None
        if state is not None:
            self._restore(state)

    def train(self) -> Path:
        names = list(self.config.stages)
        with _interruptible() as interrupted:
            while self.stage_number < len(names):
                name = names[self.stage_number]
                self._stage(name, self.config.stages[name], interrupted)
                if self.stage_number + 1 < len(names):
                    self.run.keep(f"{name}.pt")
                    selected = read_checkpoint(self.run.folder / "ft.pt")["state"]
                    self.classifier.network.load_state_dict(selected)
                self.stage_number, self.step, self.best = self.stage_number + 1, 0, {}
                self.used = dict.fromkeys(POOLS, 0)
                self.optimiser_state = None
                self._save(None)
        return self.run.folder / "ft.pt"

    def _stage(self, name: str, stage: StageConfig, interrupted: Callable[[], bool]) -> None:
        steps, epoch = steps_of(stage, self.sizes)
        evaluate_every = stage.evaluate_every or epoch
        optimiser = make_optimiser(stage, self.classifier)
        if self.optimiser_state is not None:
            optimiser.load_state_dict(self.optimiser_state)
        self.classifier.to(
            memory_format=torch.channels_last if stage.channels_last else torch.contiguous_format
        )
        # another order of images in every stage
        seed = self.config.seed * 1009 + self.stage_number
        streams = {
            pool: stream(
                self.pools[pool],
                stage.batch,
                seed=seed * 2 + number,
                start=self.used[pool],
                workers=self.workers,
                pin=self.device.type == "cuda",
            )
            for number, pool in enumerate(POOLS)
            if any(term.pool == pool for term in stage.objectives.values())
        }
        self._tell("start", name, steps, {})
        if not self.best:
            # the checkpoint a stage starts from may turn out to be the best
            self._evaluate(name, stage, steps)
            self._save(optimiser)
        while self.step < steps:
            started = time.perf_counter()
            values = self._step(name, stage, optimiser, streams, steps, seed)
            values["seconds"] = time.perf_counter() - started
            self.step += 1
            self.run.log({"stage": name, "step": self.step, **values})
            self._tell("step", name, steps, values)
            evaluated = self.step % evaluate_every == 0 or self.step == steps
            if evaluated:
                self._evaluate(name, stage, steps)
            stop = interrupted()
            if stop or (self.step % stage.save_every == 0 if stage.save_every else evaluated):
                self._save(optimiser)
            if stop:
                raise KeyboardInterrupt
        self._tell("end", name, steps, self.best["metrics"])

    def _step(
        self,
        name: str,
        stage: StageConfig,
        optimiser: torch.optim.Optimizer,
        streams: Mapping[str, Iterator[Batch]],
        steps: int,
        seed: int,
    ) -> dict[str, float]:
        active = weights(stage.objectives, self.sizes, self.step, seed)
        factor = learning_rate(stage, self.step, steps)
        for group in optimiser.param_groups:
            group["lr"] = group["base"] * factor
        drawn: dict[str, Batch] = {}
        for pool in {stage.objectives[key].pool: None for key in active}:
            drawn[pool] = next(streams[pool]).to(self.device, stage.channels_last)
            self.used[pool] += 1
        optimiser.zero_grad(set_to_none=True)
        scalars: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        for key, weight in active.items():
            objective, batch = self.objectives[name][key], drawn[stage.objectives[key].pool]
            set_mode(self.classifier, stage, objective.requires)
            for found in self._backward(objective, batch, stage, weight):
                for label, value in found.items():
                    scalars[label] = scalars.get(label, torch.zeros_like(value)) + value
            total = total + weight * scalars[key]
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        if stage.clip:
            scalars["grad_norm"] = nn.utils.clip_grad_norm_(parameters, stage.clip)
        labels = ["loss", *scalars]
        # one transfer from the device a step
        numbers = torch.stack([total, *scalars.values()]).double().tolist()
        values = dict(zip(labels, numbers, strict=True))
        if not np.isfinite([values["loss"], values.get("grad_norm", 0.0)]).all():
            raise ModelError(
                f"stage {name}, step {self.step + 1}",
                "a finite loss",
                f"{values['loss']:g}",
                "The weights of the step before are unchanged; lower lr, or set clip.",
            )
        optimiser.step()
        return {"lr": optimiser.param_groups[0]["lr"], **values}

    def _backward(
        self, objective: Objective, batch: Batch, stage: StageConfig, weight: float
    ) -> Iterator[dict[str, Tensor]]:
        """Add the gradient of weight × objective, part by part; yields each part's share of the scalars."""
        for part in batch.parts(stage.accumulate):
            share = len(part) / len(batch)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=stage.amp == "bf16"):
                found = objective(self.classifier, part, self.step)
            (weight * share * found[objective.name]).backward()  # type: ignore[no-untyped-call]
            yield {key: share * value.detach().float().to(self.device) for key, value in found.items()}

    def _evaluate(self, name: str, stage: StageConfig, steps: int) -> None:
        metrics = evaluate_classifier(
            self.classifier, self.pools["val"], 2 * stage.batch, workers=self.workers
        )
        self.run.log({"stage": name, "step": self.step, "evaluation": metrics})
        chosen = _selection(stage, self.classifier.task)
        value = self.step if chosen == "last" else metrics[chosen]
        described = {"stage": name, "step": self.step, "selected_by": chosen, **metrics}
        self.run.checkpoint("last.pt", self.classifier, described, self.device)
        if not self.best or value > self.best["value"]:
            self.best = {"value": value, "metrics": metrics, "step": self.step}
            self.run.checkpoint("ft.pt", self.classifier, described, self.device)
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
                "best": self.best,
                "network": self.classifier.network.state_dict(),
                "optimiser": None if optimiser is None else optimiser.state_dict(),
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            }
        )

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.stage_number, self.step = state["stage"], state["step"]
        self.used, self.best = dict(state["used"]), dict(state["best"])
        self.classifier.network.load_state_dict(state["network"])
        self.optimiser_state = state["optimiser"]
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["random_cuda"])


def _selection(stage: StageConfig, task: str) -> str:
    usual = "mAP" if task == "multilabel" else "top1"
    return usual if stage.select == "auto" else stage.select


def _check_selection(name: str, stage: StageConfig, task: str) -> None:
    missing = "top1" if task == "multilabel" else "mAP"
    if stage.select == missing:
        raise ConfigError(f"stage {name}: select", f"a metric of {task} data", repr(missing))


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
