"""The training loop: what it leaves, deterministic, resumed to the bit, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from atcon import consistency_loss, supervised_loss
from atcon.build import make_objectives
from atcon.config import FinetuneConfig, load_config
from atcon.data import Batch
from atcon.objectives import OBJECTIVES
from atcon.step import Stepper
from atcon.train import Event, finetune, resume
from atcon.world import World
from tests.atcon.networks import mini_classifier, photos
from wsod.config import merge
from wsod.errors import ConfigError, ModelError, WsodError
from wsod.models import load_classifier, read_checkpoint

DATA = {"spec": "shapes:count=20", "workers": 0}


def small(**over: Any) -> FinetuneConfig:
    """Two stages of a few steps on small images."""
    settings = [
        "model.size=40",
        "train.batch=5",
        "train.evaluate_every=2",
        "stages.start.epochs=1.0",
        "stages.start.warmup=0",
        "stages.atcon.steps=4",
    ]
    return load_config("quickstart", settings=settings, overrides=merge({"data": DATA}, over))


def single(objectives: dict[str, Any], tables: dict[str, Any] | None = None, **stage: Any) -> FinetuneConfig:
    body = {"steps": 4, "batch": 4, "batch_norm": "frozen", **stage, "objectives": objectives}
    from atcon.config import config_from_tables

    whole = {"data": DATA, "model": {"size": 40}, "stages": {"only": body}}
    return config_from_tables(merge(whole, tables or {}), {}, "test")


def state(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = read_checkpoint(path)["state"]
    return found


def same(a: Path, b: Path) -> bool:
    left, right = state(a), state(b)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "out"
    finetune(small(), folder, device="cpu")
    return folder


def test_what_a_run_leaves(finished: Path) -> None:
    for name in ("ft.pt", "start.pt", "last.pt", "history.jsonl", "config.toml", "subset.json"):
        assert (finished / name).is_file(), name
    assert not list(finished.glob(".*"))
    contents = torch.load(finished / "ft.pt", weights_only=True)
    assert contents["arch"] == "smallnet"
    assert contents["recipe"]["data"]["spec"] == DATA["spec"]
    assert contents["metrics"]["stage"] == "atcon"
    assert contents["provenance"]["seed"] == 0
    classifier = load_classifier(finished / "ft.pt")
    assert classifier.preprocess.size == 40
    assert not classifier.training
    lines = history(finished)
    assert [line["step"] for line in lines if line["stage"] == "start" and "loss" in line] == [1, 2, 3, 4]
    steps = [line for line in lines if line["stage"] == "atcon" and "loss" in line]
    assert all(line["atcon"] == pytest.approx(-line["atcon/consistency"]) for line in steps)
    assert [line["step"] for line in lines if line["stage"] == "atcon" and "evaluation" in line] == [0, 2, 4]


@pytest.mark.slow
def test_config_toml_makes_the_same_run(finished: Path, tmp_path: Path) -> None:
    finetune(load_config(finished / "config.toml"), tmp_path / "again", device="cpu")
    assert same(finished / "ft.pt", tmp_path / "again" / "ft.pt")
    other = finetune(small(seed=1), tmp_path / "other", device="cpu")
    assert not same(finished / "ft.pt", other)


class Killed(Exception):
    pass


def killer(stage: str, step: int) -> Callable[[Event], None]:
    def kill(event: Event) -> None:
        if (event.kind, event.stage, event.step) == ("step", stage, step):
            raise Killed

    return kill


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        ("start", 1),
        *(
            pytest.param(*at, marks=pytest.mark.slow)
            for at in (("start", 3), ("atcon", 1), ("atcon", 3), ("atcon", 4))
        ),
    ],
)
@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(finished: Path, tmp_path: Path, stage: str, step: int) -> None:
    with pytest.raises(Killed):
        finetune(small(), tmp_path / "out", device="cpu", progress=killer(stage, step))
    torch.manual_seed(99)  # another process has another state
    resume(tmp_path / "out", device="cpu")
    for name in ("start.pt", "last.pt", "ft.pt"):
        assert same(finished / name, tmp_path / "out" / name), name

    def plain(folder: Path) -> list[Any]:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in history(folder)]

    assert plain(tmp_path / "out") == plain(finished)


def test_a_finished_run_resumed_changes_nothing(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    resume(tmp_path / "copy", device="cpu")
    assert same(finished / "ft.pt", tmp_path / "copy" / "ft.pt")
    assert history(tmp_path / "copy") == history(finished)


def test_another_run_is_not_overwritten(finished: Path) -> None:
    before = (finished / "ft.pt").read_bytes()
    with pytest.raises(ConfigError, match="--resume"):
        finetune(small(), finished, device="cpu")
    assert (finished / "ft.pt").read_bytes() == before


@pytest.mark.slow
def test_the_start_can_win(tmp_path: Path) -> None:
    config = single({"supervised": {}}, lr=0.3, evaluate_every=1)
    path = finetune(config, tmp_path / "out", device="cpu")
    metrics = read_checkpoint(path)["metrics"]
    scores = [line["evaluation"]["mAP"] for line in history(tmp_path / "out") if "evaluation" in line]
    assert metrics["step"] == int(np.argmax(scores))
    assert metrics["mAP"] == max(scores)


def test_a_loss_that_is_not_finite_stops_with_the_weights_kept(tmp_path: Path) -> None:
    config = single({"supervised": {"weight": 1e38}}, lr=1e20, steps=30)
    with pytest.raises(ModelError, match="a finite loss"):
        finetune(config, tmp_path / "out", device="cpu")
    assert all(value.isfinite().all() for value in state(tmp_path / "out" / "ft.pt").values())


@pytest.mark.slow
def test_parts_of_a_batch_make_the_same_step(tmp_path: Path) -> None:
    terms = {"supervised": {}, "atcon": {"weight": 0.5}}
    for parts in (1, 2, 4):
        finetune(single(terms, accumulate=parts, steps=2), tmp_path / str(parts), device="cpu")
    whole = state(tmp_path / "1" / "last.pt")
    for parts in (2, 4):
        for key, value in state(tmp_path / str(parts) / "last.pt").items():
            assert torch.allclose(value, whole[key], atol=2e-4), key


@pytest.mark.slow
def test_combining_adds_the_weighted_terms(tmp_path: Path) -> None:
    config = single({"supervised": {}, "atcon": {"weight": 0.25, "pool": "unlabelled"}})
    finetune(config, tmp_path / "out", device="cpu")
    for line in history(tmp_path / "out"):
        if "loss" in line:
            assert line["loss"] == pytest.approx(line["supervised"] + 0.25 * line["atcon"], abs=1e-6)


def test_combining_has_the_gradient_of_the_sum() -> None:
    """∇BCE + α·∇ATCON, each of its own pool's images."""
    stage = single({"supervised": {}, "atcon": {"weight": 0.25, "pool": "unlabelled"}}, lr=1e-9).stages[
        "only"
    ]
    classifier = mini_classifier(task="multilabel")
    objectives = make_objectives("only", stage, classifier, {"labels"})
    labels = (torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    drawn = {
        "labelled": (Batch(photos(3), labels, (0, 1, 2)), 3),
        "unlabelled": (Batch(photos(2, seed=1), torch.full((2, 5), torch.nan), (0, 1)), 2),
    }
    parameters = list(classifier.parameters())
    terms = [
        supervised_loss(classifier(photos(3)).float(), labels),
        0.25 * consistency_loss(classifier, photos(2, seed=1))[0],
    ]
    apart = [torch.autograd.grad(term, parameters, allow_unused=True) for term in terms]
    take = Stepper("only", stage, 1, classifier, objectives, World(torch.device("cpu")))
    take(0, {"supervised": 1.0, "atcon": 0.25}, drawn, False)
    for parameter, *grads in zip(parameters, *apart, strict=True):
        expected = sum(torch.zeros_like(parameter) if g is None else g for g in grads)
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.slow
def test_alternating_draws_one_objective_a_step(tmp_path: Path) -> None:
    terms = {"supervised": {"share": 1.0}, "atcon": {"share": 1.0, "pool": "unlabelled"}}
    finetune(single(terms, steps=10), tmp_path / "out", device="cpu")
    drawn = [("supervised" in line, "atcon" in line) for line in history(tmp_path / "out") if "loss" in line]
    assert set(drawn) == {(True, False), (False, True)}


@pytest.mark.slow
def test_unsupervised_training_never_reads_a_label(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = single({"atcon": {}}, {"model": {"weights": str(finished / "ft.pt")}}, select="last")
    finetune(config, tmp_path / "a", device="cpu")
    from atcon.data import Images

    original = Images.__getitem__

    def mislabelled(self: Images, item: Any) -> Any:
        example = original(self, item)
        return example._replace(target=torch.zeros_like(example.target))

    monkeypatch.setattr(Images, "__getitem__", mislabelled)
    finetune(config, tmp_path / "b", device="cpu")
    assert same(tmp_path / "a" / "ft.pt", tmp_path / "b" / "ft.pt")


@pytest.mark.slow
def test_frozen_statistics_do_not_move_and_the_trunk_can_be_frozen(tmp_path: Path) -> None:
    starts: dict[str, Tensor] = {}

    def note(event: Event) -> None:
        if event.kind == "evaluation" and event.step == 0:
            starts.update(state(tmp_path / "out" / "last.pt"))

    config = single({"supervised": {}}, lr=0.0, head_lr=0.1)
    finetune(config, tmp_path / "out", device="cpu", progress=note)
    end = state(tmp_path / "out" / "last.pt")
    changed = {key for key in end if not torch.equal(starts[key], end[key])}
    assert changed
    assert len(changed) <= 2  # weight and bias of the linear layer


@pytest.mark.slow
def test_single_label_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for k in range(4):
                path = tmp_path / "d" / name / f"{split}{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (30, 30, 3), np.uint8)).save(path)
    tables = {"data": {"spec": f"folder:{tmp_path / 'd'}", "train": "all", "val": "all", "val_images": 2}}
    path = finetune(single({"supervised": {}}, tables, steps=2), tmp_path / "out", device="cpu")
    contents = read_checkpoint(path)
    assert (contents["task"], contents["classes"]) == ("multiclass", ["cat", "dog"])
    assert "top1" in contents["metrics"]


@pytest.mark.slow
def test_weights_of_other_classes_need_an_architecture(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "d" / "cat").mkdir(parents=True)
    (tmp_path / "d" / "dog").mkdir()
    for name in ("cat", "dog"):
        for k in range(3):
            Image.new("RGB", (30, 30), (k, 9, 9)).save(tmp_path / "d" / name / f"{name}{k}.png")
    data = {"spec": f"folder:{tmp_path / 'd'}", "train": "all", "val": "all", "val_images": 2}
    model = {"weights": str(finished / "ft.pt"), "size": 40}
    with pytest.raises(WsodError, match="Pass --arch smallnet"):
        finetune(single({"supervised": {}}, {"data": data, "model": model}), tmp_path / "a", device="cpu")
    assert not (tmp_path / "a").exists()
    tables = {"data": data, "model": {**model, "arch": "smallnet"}}
    path = finetune(single({"supervised": {}}, tables, steps=1), tmp_path / "b", device="cpu")
    trunk = [key for key, value in state(path).items() if value.shape == state(finished / "ft.pt")[key].shape]
    assert len(trunk) > 10


@pytest.mark.parametrize(
    ("model", "start"),
    [
        ({}, "random weights"),
        # weights for other classes: the trunk is trained, the layer that says which class is not
        ({"arch": "smallnet"}, "the layer fc is new"),
        ({"head": "lfi"}, "the head lfi is new"),
    ],
)
@pytest.mark.slow
def test_a_head_that_no_label_trains_is_noted(
    finished: Path, tmp_path: Path, model: dict[str, str], start: str
) -> None:
    if model:
        # the name of the file does not count
        path = shutil.copytree(finished, tmp_path / "what is new") / "ft.pt"
        model = {**model, "weights": str(path)}
    data = {"spec": "shapes:count=12,kinds=4"} if "arch" in model else {}
    notes = [list[str]() for _ in range(3)]

    def run(number: int, objective: str, model: dict[str, str], data: dict[str, str]) -> None:
        def show(event: Event) -> None:
            if event.kind == "note":
                notes[number].append(event.note)

        config = single({objective: {}}, {"data": data, "model": model}, steps=1)
        finetune(config, tmp_path / f"out{number}", device="cpu", progress=show)

    run(0, "atcon", model, data)
    assert len(notes[0]) == 1
    assert notes[0][0].startswith("stage only: no label trains the head")
    assert start in notes[0][0]
    run(1, "supervised", model, data)
    if model:
        run(2, "atcon", {"weights": model["weights"]}, {})
    assert notes[1:] == [[], []]


@pytest.mark.parametrize(
    ("objectives", "stage", "message"),
    [
        ({"atcon": {}}, {"batch_norm": "train"}, "batch_norm = 'frozen' or 'mixed'"),
        ({"atcom": {}}, {}, "Did you mean 'atcon'"),
        ({"atcon": {"mask_slop": 1.0}}, {}, "Did you mean 'mask_slope'"),
        ({"supervised": {}}, {"select": "top1"}, "a metric of multilabel data"),
    ],
)
def test_misfits_are_refused_before_anything_is_written(
    tmp_path: Path, objectives: dict[str, Any], stage: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune(single(objectives, **stage), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_trains(name: str, finished: Path, tmp_path: Path) -> None:
    """The contract: a scalar under its own name whose gradient reaches the weights."""
    tables: dict[str, dict[str, Any]] = {
        "likelihood": {"model": {"head": "calm"}, "data": {"spec": "shapes:count=12,simple=true"}},
        "atcon": {"model": {"weights": str(finished / "ft.pt")}},
    }
    config = single({name: {}}, tables.get(name), steps=1, lr=1e-3)
    starts: dict[str, Tensor] = {}

    def note(event: Event) -> None:
        if event.kind == "evaluation" and event.step == 0:
            starts.update(state(tmp_path / "out" / "last.pt"))

    finetune(config, tmp_path / "out", device="cpu", progress=note)
    line = next(line for line in history(tmp_path / "out") if "loss" in line)
    assert np.isfinite(line[name])
    end = state(tmp_path / "out" / "last.pt")
    assert any(not torch.equal(starts[key], end[key]) for key in end)
