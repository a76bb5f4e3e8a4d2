"""Comparisons of ways to train over several seeds. Adding one: a file here and a line below."""

from __future__ import annotations

from atcon.experiments.attention import Attention
from atcon.experiments.background_bias import BackgroundBias
from atcon.experiments.base import Arm, Experiment, Measure
from atcon.experiments.heads import Heads
from atcon.experiments.outcome import Outcome
from atcon.experiments.runner import run_experiment
from atcon.experiments.small_sets import SmallSets
from atcon.experiments.stability import Stability
from atcon.experiments.views import View
from wsod.registry import Registry

__all__ = ["EXPERIMENTS", "Arm", "Experiment", "Measure", "Outcome", "View", "run_experiment"]

EXPERIMENTS: Registry[type[Experiment]] = Registry(
    "experiment", {entry.name: entry for entry in (SmallSets, BackgroundBias, Stability, Attention, Heads)}
)
