"""Normalisation is asked for on the command line, and recorded with the result."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from wsod.cli import main
from wsod.protocols import load_protocol
from wsod.scoremaps import resize_map
from wsod.types import AttentionMaps

RAW = np.array([[-2.0, 0.5, 1.0], [0.0, 4.0, -1.0]])


def by_hand(values: np.ndarray, how: str) -> np.ndarray:
    """One value at a time."""
    flat = sorted(float(v) for v in values.ravel())
    if how == "none":
        return values
    if how in ("max", "relu-minmax"):
        values = np.array([[max(v, 0.0) for v in row] for row in values])
        flat = [max(v, 0.0) for v in flat]
    low, high = (0.0, flat[-1]) if how == "max" else (flat[0], flat[-1])
    if how == "percentile":
        place = 0.9 * (len(flat) - 1)
        below = int(place)
        high = flat[below] + (place - below) * (flat[min(below + 1, len(flat) - 1)] - flat[below])
    return np.array([[(min(v, high) - low) / (high - low) for v in row] for row in values])


@pytest.mark.parametrize("how", ["minmax", "max", "relu-minmax", "percentile", "none"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_presets(how, order):
    settings = [f"maps.normalise={how}", f"maps.order={order}", "maps.percentiles=[0.0, 90.0]"]
    processing = load_protocol("default", settings).maps
    maps = AttentionMaps("a", (5, 9), np.array([0]), RAW[None].astype(np.float32))
    if order == "before":
        expected = resize_map(by_hand(RAW, how), (5, 9))
    else:
        expected = by_hand(resize_map(RAW, (5, 9)), how)
    found = processing.score(maps, 0).scores
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    if how != "none":
        assert 0 <= found.min() < found.max() <= 1


def test_on_the_command_line(tmp_path):
    settings = ["--set", "maps.normalise=percentile", "--set", "maps.order=before"]
    options = ["--maps", "uniform", "--limit", "1", "--metrics", "pointing_game", "--quiet"]
    result = CliRunner().invoke(main, ["evaluate", *options, *settings, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "result.json").read_text("utf-8"))["config"]
    assert config["protocol"]["maps"]["normalise"] == "percentile"
    assert config["protocol"]["maps"]["order"] == "before"
    assert "maps.normalise=percentile" in json.dumps(config)
    wrong = CliRunner().invoke(main, ["evaluate", "--maps", "center", "--set", "maps.normalise=soft"])
    assert wrong.exit_code == 1
    assert "expected one of 'minmax'" in str(wrong.exception or wrong.output) + wrong.output
