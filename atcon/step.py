"""One step of training: the gradient of the weighted objectives over a batch, and the change it makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from atcon.build import make_optimiser, make_transforms, set_mode
from atcon.data import Batch
from atcon.objectives import Objective
from atcon.schedules import learning_rate
from atcon.stages import StageConfig
from atcon.world import SharedStatistics, World
from wsod.errors import ModelError
from wsod.models import Classifier

__all__ = ["Stepper"]


class Stepper:
    """What a stage does to the weights, step by step.

    Args:
        name: the stage's.
        stage: its configuration.
        steps: its length, for the schedule.
        classifier: what is trained.
        objectives: its objectives by name.
        world: the processes that train together.
    """

    def __init__(
        self,
        name: str,
        stage: StageConfig,
        steps: int,
        classifier: Classifier,
        objectives: Mapping[str, Objective],
        world: World,
    ) -> None:
        self.name, self.stage, self.steps, self.world = name, stage, steps, world
        self.classifier, self.objectives = classifier, objectives
        self.optimiser = make_optimiser(stage, classifier)
        self.trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.transforms = make_transforms(name, stage)
        layout = torch.channels_last if stage.channels_last else torch.contiguous_format
        cast(Any, classifier).to(memory_format=layout)
        self._called = torch.compile(classifier) if stage.compile else classifier

    def __call__(
        self, step: int, active: Mapping[str, float], batches: Mapping[str, tuple[Batch, int]], stop: bool
    ) -> tuple[dict[str, float], bool]:
        """Change the weights.

        Args:
            step: which one, from 0.
            active: weight of each objective that counts.
            batches: by pool, this process's share of the batch and the number of images of the whole.
            stop: this process was asked to stop.

        Returns:
            Loss, terms and diagnostics over the whole batch, and whether any process was asked to stop.

        Raises:
            ModelError: for a loss that is not finite; the weights are then those of the step before.
        """
        factor = learning_rate(self.stage, step, self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * factor
        self.optimiser.zero_grad(set_to_none=True)
        nothing = torch.zeros((), device=self.world.device)
        scalars: dict[str, Tensor] = {"stop": nothing + stop}
        batches = {pool: (self._varied(batch), whole) for pool, (batch, whole) in batches.items()}
        for key, weight in active.items():
            objective = self.objectives[key]
            batch, whole = batches[self.stage.objectives[key].pool]
            set_mode(self.classifier, self.stage, objective.requires)
            for found in self._backward(objective, batch, whole, weight, step):
                for label, value in found.items():
                    scalars[label] = scalars.get(label, nothing) + value
        scalars = self.world.add_up(self.trained, scalars)
        total = sum((weight * scalars[key] for key, weight in active.items()), nothing)
        if self.stage.clip:
            scalars["grad_norm"] = nn.utils.clip_grad_norm_(self.trained, self.stage.clip)
        labels = ["loss", *scalars]
        # one transfer from the device a step
        numbers = torch.stack([value.double() for value in (total, *scalars.values())]).tolist()
        values = dict(zip(labels, numbers, strict=True))
        if not np.isfinite([values["loss"], values.get("grad_norm", 0.0)]).all():
            raise ModelError(
                f"stage {self.name}, step {step + 1}",
                "a finite loss",
                f"{values['loss']:g}",
                "The weights of the step before are unchanged; lower lr, or set clip.",
            )
        self.optimiser.step()
        asked = values.pop("stop") > 0
        return {"lr": self.optimiser.param_groups[0]["lr"], **values}, asked

    def _varied(self, batch: Batch) -> Batch:
        for transform in self.transforms:
            batch = transform(batch)
        return batch

    def _backward(
        self, objective: Objective, batch: Batch, whole: int, weight: float, step: int
    ) -> Iterator[dict[str, Tensor]]:
        """Add the gradient of weight × objective, part by part; yields each part's share of the scalars."""
        device = self.world.device
        for part in batch.parts(self.stage.accumulate):
            share = len(part) / whole
            precision = torch.autocast(device.type, torch.bfloat16, enabled=self.stage.amp == "bf16")
            with precision, SharedStatistics() if self.world.size > 1 else nullcontext():
                found = objective(cast(Classifier, self._called), part, step)
            # no derivative is computed that nothing is changed by: of the images, of what is not trained
            torch.autograd.backward(weight * share * found[objective.name], inputs=self.trained)
            yield {key: share * value.detach().float().to(device) for key, value in found.items()}
