"""Everything of a run that depends on the step alone: weights, draws, learning rate, number of steps.

The training regimes differ in nothing else. Supervised and unsupervised training have one objective,
combining has two with weights, alternating has two with shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from atcon.config import StageConfig, TermConfig

__all__ = ["learning_rate", "shares", "steps_of", "weights"]

Sizes = Mapping[str, int]


def shares(terms: Mapping[str, TermConfig], sizes: Sizes) -> dict[str, float]:
    """Probability of each objective that is drawn: share × pool size, normalised.

    With supervised share α on Ns images and ATCON share 1 on Nu, p(supervised) = α·Ns / (α·Ns + Nu).

    >>> pools = {"labelled": 10, "unlabelled": 40}
    >>> drawn = {"supervised": TermConfig(share=4.0), "atcon": TermConfig(share=1.0, pool="unlabelled")}
    >>> shares(drawn, pools)
    {'supervised': 0.5, 'atcon': 0.5}
    """
    mass = {name: term.share * sizes[term.pool] for name, term in terms.items() if term.share is not None}
    return {name: value / sum(mass.values()) for name, value in mass.items()}


def weights(terms: Mapping[str, TermConfig], sizes: Sizes, step: int, seed: int) -> dict[str, float]:
    """Weight of each objective at a step; those of weight 0 are left out, and need not be computed."""
    probability = shares(terms, sizes)
    drawn = None
    if probability:
        # a function of seed and step alone, so that a resumed run draws the same
        random = np.random.default_rng((seed, 0xA17E, step))
        drawn = str(random.choice(list(probability), p=list(probability.values())))
    result = {}
    for name, term in terms.items():
        weight = term.weight
        if term.ramp is not None:
            start, stop = term.ramp
            weight *= min(max((step - start) / (stop - start), 0.0), 1.0)
        if weight and (term.share is None or name == drawn):
            result[name] = weight
    return result


def steps_of(stage: StageConfig, sizes: Sizes) -> tuple[int, int]:
    """(steps in all, steps an epoch).

    An epoch is ⌊N / batch⌋ steps over the first objective's images or, with shares, ⌊Σ share·N / batch⌋:
    each image of a pool is then seen `share` times an epoch in expectation. At least one step.
    """
    terms = list(stage.objectives.values())
    drawn = [term for term in terms if term.share is not None]
    if drawn:
        images = sum((term.share or 0.0) * sizes[term.pool] for term in drawn)
    else:
        images = float(sizes[terms[0].pool])
    epoch = max(int(images // stage.batch), 1)
    return (stage.steps or max(round(stage.epochs * epoch), 0)), epoch


def learning_rate(stage: StageConfig, step: int, steps: int) -> float:
    """Factor of the learning rates at a step: linear warm-up, then constant or half a cosine to zero."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    if stage.schedule == "constant":
        return 1.0
    done = (step - stage.warmup) / max(steps - stage.warmup, 1)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
