from __future__ import annotations

import math

import pytest

from atcon.config import StageConfig, TermConfig, load_config
from atcon.schedules import learning_rate, shares, steps_of, weights

SIZES = {"labelled": 16, "unlabelled": 64}
ALTERNATING = {"supervised": TermConfig(share=2.0), "atcon": TermConfig(share=1.0, pool="unlabelled")}


def test_alternating_draws_match_their_probability():
    p = 2 * 16 / (2 * 16 + 64)
    assert shares(ALTERNATING, SIZES)["supervised"] == pytest.approx(p)
    n = 2000
    drawn = [weights(ALTERNATING, SIZES, step, seed=3) for step in range(n)]
    assert all(len(names) == 1 for names in drawn)
    count = sum("supervised" in names for names in drawn)
    assert abs(count - n * p) < 3 * math.sqrt(n * p * (1 - p))
    assert drawn[:50] == [weights(ALTERNATING, SIZES, step, seed=3) for step in range(50)]
    assert drawn[:50] != [weights(ALTERNATING, SIZES, step, seed=4) for step in range(50)]


def test_the_alternating_recipe_draws_as_the_public_code_does():
    """p = α·Ns/(α·Ns + Nu) a step, ⌊α·Ns/b + Nu/b⌋ steps an epoch."""
    stage = load_config("alternating").stages["alternating"]
    sizes, alpha = {"labelled": 160, "unlabelled": 1840}, stage.objectives["supervised"].share
    p = alpha * 160 / (alpha * 160 + 1840)
    steps, epoch = steps_of(stage, sizes)
    assert epoch == math.floor(alpha * 160 / stage.batch + 1840 / stage.batch) == 390
    assert steps == stage.epochs * epoch
    drawn = [weights(stage.objectives, sizes, step, seed=11) for step in range(steps)]
    count = sum(names == {"supervised": 1.0} for names in drawn)
    assert count + sum(names == {"atcon": 1.0} for names in drawn) == steps
    assert abs(count - steps * p) < 3 * math.sqrt(steps * p * (1 - p))


def test_a_ramp_starts_at_nothing():
    terms = {"a": TermConfig(weight=2.0, ramp=(10, 20)), "b": TermConfig(weight=0.5)}
    assert weights(terms, SIZES, 10, 0) == {"b": 0.5}
    assert weights(terms, SIZES, 15, 0) == {"a": 1.0, "b": 0.5}
    assert weights(terms, SIZES, 99, 0) == {"a": 2.0, "b": 0.5}


def stage(terms, **options):
    return StageConfig(objectives=terms, batch=5, **options)


def test_steps_an_epoch():
    both = {"supervised": TermConfig(), "atcon": TermConfig(weight=0.2, pool="unlabelled")}
    assert steps_of(stage(both, epochs=4.0), SIZES) == (12, 3)  # combining: ⌊Ns/b⌋
    assert steps_of(stage({"atcon": TermConfig(pool="unlabelled")}, epochs=0.5), SIZES) == (6, 12)
    # alternating: ⌊α·Ns/b + Nu/b⌋
    assert steps_of(stage(ALTERNATING, epochs=1.0), SIZES) == (math.floor(2 * 16 / 5 + 64 / 5), 19)
    assert steps_of(stage({"supervised": TermConfig()}, steps=7), SIZES) == (7, 3)
    assert steps_of(stage({"supervised": TermConfig()}), {"labelled": 2, "unlabelled": 0})[1] == 1


def test_learning_rate():
    cosine = stage({"supervised": TermConfig()}, schedule="cosine", warmup=4)
    assert [learning_rate(cosine, step, 24) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(cosine, 4, 24) == 1.0
    assert learning_rate(cosine, 14, 24) == pytest.approx(0.5)
    assert learning_rate(cosine, 24, 24) == pytest.approx(0.0)
    assert learning_rate(stage({"supervised": TermConfig()}), 9, 10) == 1.0
