"""One stretch of training: its objectives, when each counts, and how the weights are changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from wsod.errors import ConfigError

__all__ = ["StageConfig", "TermConfig", "require"]


def require(ok: bool, where: str, expected: str, got: object) -> None:
    """Raise a ConfigError unless `ok`."""
    if not ok:
        raise ConfigError(where, expected, got)


@dataclass(frozen=True)
class TermConfig:
    """One objective of a stage and when it counts. In a recipe, its options stand beside these keys.

    Args:
        weight: factor of the objective in the loss.
        ramp: (a, b): the weight rises linearly from 0 at step a to its full value at step b.
        share: with shares, every step draws one of the objectives that have one, with probability in
            proportion to share × pool size (the alternating regime); None = it counts at every step.
        pool: whose images it is computed on.
        options: of the objective itself.
    """

    weight: float = 1.0
    ramp: tuple[int, int] | None = None
    share: float | None = None
    pool: Literal["labelled", "unlabelled"] = "labelled"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ramp is not None:
            require(0 <= self.ramp[0] < self.ramp[1], "ramp", "steps 0 <= a < b", list(self.ramp))
        require(self.share is None or self.share > 0, "share", "above 0", self.share)


@dataclass(frozen=True)
class StageConfig:
    """One stretch of training. Its loss is the sum over objectives of weight(step) × term.

    Args:
        objectives: the objectives by name.
        epochs: passes over the images of the first objective.
        steps: number of steps instead of `epochs`; 0 = by `epochs`.
        batch: images a step.
        accumulate: parts a batch is split into to save memory; the gradient is that of the whole batch (but
            for batch statistics, which are those of each part).
        lr: learning rate (of the trunk, where `head_lr` is given); 0 = the trunk is not trained.
        head_lr: learning rate of the head; None = `lr`; 0 = the head is not trained.
        weight_decay: decoupled (AdamW); 0 = plain Adam.
        schedule: `constant`, or `cosine` to zero.
        warmup: steps over which the learning rate rises linearly.
        clip: largest gradient norm; 0 = not clipped.
        batch_norm: `train` (batch statistics); `frozen` (running statistics, affine still trained); `mixed`:
            frozen for objectives that need independent images, `train` for the others; `trunk`: frozen in the
            trunk, `train` in what a head of its own adds to it.
        amp: `bf16` runs the network under autocast; `off`.
        channels_last: memory layout of network and images.
        compile: run the network through `torch.compile`; refused for objectives that differentiate gradients.
        evaluate_every: steps between evaluations; 0 = once an epoch.
        save_every: steps between saved training states; 0 = at every evaluation.
        select: what chooses `ft.pt`: a metric (`auto` = mAP, or top1 for single-label data), or `last`.
        transforms: what is done to every batch before the objectives see it, by name, with options.
        patience: stop after so many evaluations in a row in which that metric did not rise; 0 = never.
    """

    objectives: dict[str, TermConfig]
    epochs: float = 10.0
    steps: int = 0
    batch: int = 16
    accumulate: int = 1
    lr: float = 1e-4
    head_lr: float | None = None
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    clip: float = 0.0
    batch_norm: Literal["train", "frozen", "mixed", "trunk"] = "train"
    amp: Literal["off", "bf16"] = "off"
    channels_last: bool = False
    compile: bool = False
    evaluate_every: int = 0
    save_every: int = 0
    select: Literal["auto", "mAP", "macro_f1", "top1", "last"] = "auto"
    patience: int = 0
    transforms: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(bool(self.objectives), "objectives", "at least one", "none")
        require(any(term.weight for term in self.objectives.values()), "weight", "one above 0", "only 0")
        for name in ("batch", "accumulate"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("epochs", "steps", "lr", "weight_decay", "warmup", "clip"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("evaluate_every", "save_every", "patience"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        require(self.head_lr is None or self.head_lr >= 0, "head_lr", "at least 0", self.head_lr)
        require(self.lr > 0 or bool(self.head_lr), "lr", "something to train", "lr = 0 for all parameters")
        require(self.accumulate <= self.batch, "accumulate", f"at most batch = {self.batch}", self.accumulate)
        require(not self.patience or self.select != "last", "patience", "a metric in select", "'last'")
