"""Experiments: scores on drawn images against loops over them, runs done once, the table at the end."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import average_precision_score, f1_score

from atcon.cli import main
from atcon.config import config_from_tables
from atcon.experiments import EXPERIMENTS, Arm, Experiment, Measure, View, run_experiment
from atcon.experiments.boxes import box_rows
from atcon.experiments.outcome import difference
from atcon.experiments.predictions import Predictions
from atcon.experiments.readings import F1, Cases, MeanAP, Number
from atcon.experiments.runner import train_once
from atcon.experiments.small_sets import SmallSets
from atcon.experiments.views import scores_of, stored_maps
from wsod.config import parse_settings
from wsod.data import open_dataset
from wsod.errors import ConfigError
from wsod.stats import image_weights

pytestmark = pytest.mark.slow

TINY = "shapes:size=48,count=24"


def predictions(n: int = 30, classes: int = 4, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    positive = rng.random((n, classes)) < 0.4
    logits = np.round(rng.normal(size=(n, classes)) + positive, 1)  # some are equal
    return Predictions(tuple(f"i{k}" for k in range(n)), logits, positive, True)


def repeated(weights: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(weights)), weights.astype(int))


def test_drawn_f1_and_map_equal_scikit_learn_on_repeated_images() -> None:
    found = predictions()
    columns = {image: k for k, image in enumerate(reversed(found.images))}
    weights = image_weights(30, 5, 1)
    f1, ap = found.f1().draws(columns, weights), found.mean_ap().draws(columns, weights)
    for r in range(5):
        rows = repeated(weights[r, ::-1])
        positive, logits = found.positive[rows], found.logits[rows]
        assert positive.any(0).all()
        assert f1[r] == pytest.approx(f1_score(positive, logits > 0, average="macro"), abs=1e-12)
        assert ap[r] == pytest.approx(average_precision_score(positive, logits, average="macro"), abs=1e-12)


def test_classes_nobody_has_count_as_they_do_in_training() -> None:
    from atcon.metrics import classification_scores

    found = predictions()
    found.positive[:, 2] = False
    found.logits[:, 2] = -1.0
    scores = classification_scores(found.logits, found.positive.astype(np.float32))
    assert found.f1().value() == pytest.approx(scores["macro_f1"], abs=1e-12)
    assert found.mean_ap().value() == pytest.approx(scores["mAP"], abs=1e-12)


def test_best_cut_is_the_best_of_all() -> None:
    found = predictions(200, 3)
    best = found.f1(found.best_cut()).value()
    assert best >= found.f1().value()
    every = [found.f1(cut).value() for cut in np.quantile(found.logits, np.linspace(0, 1, 50))]
    assert best >= max(every) - 0.01


def test_single_label_f1_is_of_the_best_class() -> None:
    found = predictions()
    positive = np.eye(4, dtype=bool)[found.logits.argmax(1)]
    assert Predictions(found.images, found.logits, positive, False).f1(99.0).value() == 1.0


def test_a_difference_is_of_what_both_have() -> None:
    a = Cases({("x", "0"): 0.5, ("x", "1"): 0.7, ("y", "0"): 0.1})
    b = Cases({("x", "0"): 0.4, ("y", "0"): 0.3, ("z", "0"): 1.0})
    found = difference("a", "b", "m", [(a, b), (None, b), (a, a)])
    assert found.seeds == pytest.approx((-0.05, None, 0.0))
    assert found.difference == pytest.approx(-0.025)
    assert (found.value, found.baseline) == pytest.approx(((0.3 + 1.3 / 3) / 2, (0.35 + 1.3 / 3) / 2))
    assert found.units == 2.5


def test_a_difference_of_numbers_has_the_interval_of_student() -> None:
    from scipy import stats

    ours, theirs = (1.0, 2.0, 4.0), (0.5, 1.0, 1.5)
    found = difference("a", "b", "s", [(Number(x), Number(y)) for x, y in zip(ours, theirs, strict=True)])
    d = np.subtract(ours, theirs)
    assert found.interval == pytest.approx(stats.t.interval(0.95, 2, d.mean(), stats.sem(d)))


def test_pairing_takes_away_what_the_images_share() -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(4):
        hard = np.arange(50.0)
        a, b = hard + 1 + 0.1 * rng.normal(size=50), hard + 0.1 * rng.normal(size=50)
        pairs.append(tuple(Cases({(str(k), ""): float(v) for k, v in enumerate(x)}) for x in (a, b)))
    low, high = difference("a", "b", "m", pairs).interval  # type: ignore[arg-type]
    assert 0.8 < low < 1 < high < 1.2


def test_box_rows_equal_a_count_of_pixels() -> None:
    train, scored = open_dataset(TINY, "train"), open_dataset(TINY, "val")
    rows = box_rows(train, scored, 4)
    sample = scored[1]
    label = sample.classes[0]
    mask = sample.masks.of(label)  # type: ignore[union-attr]
    case = (sample.image_id, scored.classes[label])
    assert rows["whole image"]["mask_iou"].values[case] == pytest.approx(mask.mean())
    area = np.zeros(sample.size, bool)
    for x0, y0, x1, y1 in sample.boxes_of(label).astype(int):
        area[y0:y1, x0:x1] = True
    assert rows["whole image"]["miou_atcon_all"].values[case] == pytest.approx(area.mean())
    means = {name: row["mask_iou"].value() for name, row in rows.items()}
    assert 0 < means["whole image"] < 1
    assert rows["centre box"]["mask_iou"].units == rows["whole image"]["mask_iou"].units


class Two(Experiment):
    """Two steps against four, and something made of both."""

    name: ClassVar[str] = "two"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("pointing", "pointing"),
        Measure("alike", "maps alike"),
        Measure("steps", "steps", percent=False),
    )

    def arms(self) -> tuple[Arm, ...]:
        view = View("val", TINY, "val", 6, metrics=("pointing_game",), save_maps=True, predictions=True)
        return tuple(Arm(f"s{n}", partial(self._config, n), (view,)) for n in (1, 2))

    def _config(self, steps: int, seed: int, home: Path):  # type: ignore[no-untyped-def]
        stage = {"steps": steps, "batch": 4, "select": "last", "objectives": {"supervised": {}}}
        table = {"data": {"spec": TINY, "val_images": 4}, "model": {"size": 32}, "stages": {"only": stage}}
        return config_from_tables({**table, "seed": seed}, {}, "two")

    def read(self, folder: Path):  # type: ignore[no-untyped-def]
        rows = {}
        for n in (1, 2):
            found = scores_of(folder / f"s{n}" / "val", "pointing_game")
            rows[f"s{n}"] = {"pointing": found, "steps": Number(float(n))}
        first, second = (stored_maps(folder / f"s{n}" / "val", "gradcam") for n in (1, 2))
        alike = {(i, str(c)): float(np.allclose(m, second[i, c])) for (i, c), m in first.items()}
        rows["both"] = {"alike": Cases(alike)}
        return rows

    def contrasts(self) -> tuple[tuple[str, str], ...]:
        return (("s2", "s1"),)


def test_an_experiment_runs_once_and_goes_on(tmp_path: Path) -> None:
    outcome = run_experiment(Two(data=TINY, seeds=2), tmp_path, device="cpu")
    alike = outcome.values["both"]["alike"]
    assert len(alike) == 2
    assert all(0 <= value < 1 for value in alike if value is not None)
    assert outcome.values["s2"]["steps"] == (2.0, 2.0)
    (steps,) = [d for d in outcome.differences if d.measure == "steps"]
    assert (steps.difference, steps.interval) == (1.0, (1.0, 1.0))
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["values"]["s2"]["pointing"] == list(outcome.values["s2"]["pointing"])
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert "− s1" in (tmp_path / "table.md").read_text()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    written |= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    # as if the last arm had been interrupted in its last step
    (tmp_path / "seed1" / "s2" / "done.json").unlink()
    again = run_experiment(Two(data=TINY, seeds=2), tmp_path, device="cpu")
    assert again == outcome
    changed = {path for path, time in written.items() if path.stat().st_mtime_ns != time}
    assert {path.parent for path in changed} <= {tmp_path / "seed1" / "s2"}
    other = config_from_tables(
        {"stages": {"only": {"steps": 9, "objectives": {"supervised": {}}}}}, {}, "other"
    )
    with pytest.raises(ConfigError, match=r"same settings.*Choose another --out"):
        train_once(other, tmp_path / "seed0" / "s1", device="cpu")


@pytest.mark.slow
def test_small_sets_from_the_command_line(tmp_path: Path) -> None:
    arguments = ["experiment", "small-sets", "--data", TINY, "--seeds", "2", "--out", str(tmp_path)]
    for setting in (
        "sizes=[4]",
        'methods=["raw", "bce", "mine"]',
        "variants.mine.objectives.atcon.mask_scale=std",
        "size=48",
        "images=10",
        "start.steps=2",
        "train.steps=2",
    ):
        arguments += ["--set", setting]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "whole image" in done.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["values"]) >= {"4-raw", "4-bce", "4-mine", "center", "centre box"}
    for row in ("4-start", "4-mine"):
        for measure in SmallSets.measures:
            if measure.name != "miou_atcon":  # the top class may be wrong everywhere
                assert all(0 <= value <= 1 for value in results["values"][row][measure.name]), measure
    pairs = {(d["row"], d["against"]) for d in results["differences"]}
    assert pairs >= {("4-mine", "4-start"), ("4-mine", "4-bce"), ("4-start", "whole image")}
    configs = [(tmp_path / "seed1" / arm / "subset.json").read_text() for arm in ("4-start", "4-mine")]
    assert json.loads(configs[0])["train"] == json.loads(configs[1])["train"]


def test_small_sets_judges_on_images_that_chose_nothing() -> None:
    from zlib import crc32

    whole = SmallSets(data="shapes")
    assert [view.split for view in whole.arms()[1].views] == ["train", "val", "test"]
    tune = SmallSets(data="shapes", part="tune")
    assert [view.split for view in tune.arms()[1].views] == ["train", "val"]
    ids = [f"2008_{k:06d}" for k in range(200)]
    halves = [whole._half(ids, part) for part in ("tune", "report")]
    assert halves[0] | halves[1] == set(ids)
    assert not halves[0] & halves[1]
    assert min(map(len, halves)) > 70
    assert all((crc32(i.encode()) % 2 == 0) == (i in halves[0]) for i in ids)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('methods=["bcee"]', "way to fine-tune: expected a known name, got 'bcee'"),
        ("part=test", "expected one of 'tune', 'report'"),
        ("steps=3", "expected a known option, got 'steps'"),
    ],
)
def test_wrong_options_are_named(setting: str, message: str) -> None:
    done = CliRunner().invoke(main, ["experiment", "small-sets", "--set", setting])
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert CliRunner().invoke(main, ["experiment", "small-set"]).exit_code == 1
    assert parse_settings([setting])


def test_experiments_are_named_as_their_entries() -> None:
    for name, kind in EXPERIMENTS.items():
        assert kind.name == name
        assert kind.measures
        assert (kind.__doc__ or "").strip()


def test_readings_of_nothing_are_nan() -> None:
    for reading in (Cases({}), F1((), np.zeros((0, 2), bool), np.zeros((0, 2), bool))):
        assert np.isnan(reading.value())
    assert np.isnan(MeanAP((), np.zeros((0, 2)), np.zeros((0, 2), bool)).value())
