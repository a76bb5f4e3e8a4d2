"""One step of training: the gradient of the weighted objectives over a batch, and the change it makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atcon.build import make_optimiser, make_transforms, set_mode
from atcon.data import Batch
from atcon.objectives import Objective
from atcon.schedules import learning_rate
from atcon.stages import StageConfig
from atcon.world import SharedStatistics, World
from wsod.errors import ModelError
from wsod.memory import free, ran_out, tell
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
        halved: how often `accumulate` was doubled because memory ran out.

    Attributes:
        halved: likewise, by now.
    """

    def __init__(
        self,
        name: str,
        stage: StageConfig,
        steps: int,
        classifier: Classifier,
        objectives: Mapping[str, Objective],
        world: World,
        halved: int = 0,
    ) -> None:
        self.name, self.stage, self.steps, self.world = name, stage, steps, world
        self.halved = halved
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
            ModelError: for a loss that is not finite, or a batch that does not fit in memory where its parts
                would be another batch; the weights are then those of the step before.
        """
        factor = learning_rate(self.stage, step, self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * factor
        nothing = torch.zeros((), device=self.world.device)
        batches = {pool: (self._varied(batch), whole) for pool, (batch, whole) in batches.items()}
        scalars = {"stop": nothing + stop, **self._fitted(step, active, batches)}
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

    def _fitted(
        self, step: int, active: Mapping[str, float], batches: Mapping[str, tuple[Batch, int]]
    ) -> dict[str, Tensor]:
        """`_gradients`, in smaller parts from here on where memory runs out: their sum is the same."""
        before, random = self.halved, self.world.random_states()
        while True:
            short = False
            try:
                found = self._gradients(step, active, batches)
            except Exception as error:
                short = ran_out(error)
                if not short:
                    raise
            if not short:
                break
            self.optimiser.zero_grad(set_to_none=True)
            free()
            largest = max(len(batch) for batch, _ in batches.values())
            self._check_halving(step, active, largest)
            self.halved += 1
            self.world.set_random_states(random)
        if self.halved > before:
            parts = self.stage.accumulate << self.halved
            tell(f"out of memory: stage {self.name} splits a batch into {parts} parts from here on")
        return found

    def _check_halving(self, step: int, active: Mapping[str, float], largest: int) -> None:
        """Refuse where a batch has no smaller parts, or they would not add up to it."""
        room = -(-largest // (self.stage.accumulate << self.halved))
        where, got = f"stage {self.name}, step {step + 1}", f"out of memory on {self.world.device.type}"
        if room <= 1:
            raise ModelError(where, "room for one image", got, "Choose a smaller model.size.")
        for key in active:
            set_mode(self.classifier, self.stage, self.objectives[key].requires)
            if any(isinstance(part, _BatchNorm) and part.training for part in self.classifier.modules()):
                hint = f"Smaller parts would have other batch statistics: set train.batch={room // 2}, "
                raise ModelError(where, f"room for {room} images", got, hint + "or train.batch_norm=frozen.")

    def _gradients(
        self, step: int, active: Mapping[str, float], batches: Mapping[str, tuple[Batch, int]]
    ) -> dict[str, Tensor]:
        """Gradients of the weighted objectives, in `.grad`, and this process's share of the scalars."""
        self.optimiser.zero_grad(set_to_none=True)
        nothing = torch.zeros((), device=self.world.device)
        scalars: dict[str, Tensor] = {}
        for key, weight in active.items():
            objective = self.objectives[key]
            batch, whole = batches[self.stage.objectives[key].pool]
            set_mode(self.classifier, self.stage, objective.requires)
            for found in self._backward(objective, batch, whole, weight, step):
                for label, value in found.items():
                    scalars[label] = scalars.get(label, nothing) + value
        return scalars

    def _varied(self, batch: Batch) -> Batch:
        for transform in self.transforms:
            batch = transform(batch)
        return batch

    def _backward(
        self, objective: Objective, batch: Batch, whole: int, weight: float, step: int
    ) -> Iterator[dict[str, Tensor]]:
        """Add the gradient of weight × objective, part by part; yields each part's share of the scalars."""
        device = self.world.device
        for part in batch.parts(self.stage.accumulate << self.halved):
            share = len(part) / whole
            precision = torch.autocast(device.type, torch.bfloat16, enabled=self.stage.amp == "bf16")
            with precision, SharedStatistics() if self.world.size > 1 else nullcontext():
                found = objective(cast(Classifier, self._called), part, step)
            # no derivative is computed that nothing is changed by: of the images, of what is not trained
            torch.autograd.backward(weight * share * found[objective.name], inputs=self.trained)
            yield {key: share * value.detach().float().to(device) for key, value in found.items()}
