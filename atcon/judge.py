"""Evaluation during training, and which checkpoint is the best so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from atcon.data import Images, batches
from atcon.metrics import classification_scores
from atcon.stages import StageConfig
from atcon.world import World
from wsod.errors import ConfigError
from wsod.memory import room_for
from wsod.models import Classifier
from wsod.models.classifier import evaluation_mode

__all__ = ["Best", "evaluate_classifier", "selection"]


def evaluate_classifier(
    classifier: Classifier, images: Images, batch: int, *, workers: int = 0, world: World | None = None
) -> dict[str, float]:
    """Classification scores on a set of images, in evaluation mode and full precision.

    Args:
        classifier: what is judged; left as it was.
        images: all of them are used.
        batch: images a forward pass.
        workers: processes that load images.
        world: the processes that share the work; every one returns the scores of all images.
    """
    device = next(classifier.parameters()).device
    world = world or World(device)
    rows: list[int] = []
    logits: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    found = batches(images, batch, workers=workers, pin=device.type == "cuda", share=(world.rank, world.size))
    room = room_for(classifier, "images an evaluation pass")
    with evaluation_mode(classifier), torch.no_grad():
        for part in found:
            logits += [one.double().cpu() for one in room.over(part.to(device).images, classifier)]
            targets.append(part.targets)
            rows += part.rows
    empty = torch.zeros(0, len(classifier.classes)), images.targets[:0]
    here = (rows, torch.cat(logits or [empty[0]]).numpy(), torch.cat(targets or [empty[1]]).numpy())
    everyone = world.gather(here)
    order = np.argsort(np.concatenate([np.array(part[0], np.int64) for part in everyone]))
    scored, truth = (np.concatenate([part[k] for part in everyone])[order] for k in (1, 2))
    return classification_scores(scored, truth)


def selection(name: str, stage: StageConfig, task: str) -> str:
    """What chooses the checkpoint: a metric, or `last`.

    Raises:
        ConfigError: where data of this task has no such metric.
    """
    usual, other = ("mAP", "top1") if task == "multilabel" else ("top1", "mAP")
    if stage.select == other:
        raise ConfigError(f"stage {name}: select", f"a metric of {task} data", repr(other))
    return usual if stage.select == "auto" else stage.select


class Best:
    """The best evaluation of a stage so far.

    Args:
        chosen: from `selection`.
        state: of `state()`, to go on; empty = nothing evaluated yet.

    Attributes:
        metrics: of the best evaluation.
        stale: evaluations since.
    """

    def __init__(self, chosen: str, state: Mapping[str, Any]) -> None:
        self.chosen = chosen
        self.value: float = state.get("value", -np.inf)
        self.metrics: dict[str, float] = dict(state.get("metrics", {}))
        self.stale: int = state.get("stale", 0)

    def state(self) -> dict[str, Any]:
        """To be saved."""
        return {"value": self.value, "metrics": self.metrics, "stale": self.stale}

    def better(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take note of an evaluation; true where it is the best (the first one always is)."""
        value = float(step) if self.chosen == "last" else metrics[self.chosen]
        value = -np.inf if np.isnan(value) else value
        if self.metrics and not value > self.value:
            self.stale += 1
            return False
        self.value, self.metrics, self.stale = value, dict(metrics), 0
        return True
