"""What is on disk survives: a process killed at any moment, a full disk. And what a run leaves to look at."""

from __future__ import annotations

import csv
import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from atcon.config import FinetuneConfig, config_from_tables
from atcon.history import read_history
from atcon.train import Event, finetune, resume
from wsod.errors import CheckpointError, ConfigError, WsodError
from wsod.models import load_classifier, read_checkpoint

pytestmark = pytest.mark.slow


def made(stages: dict[str, Any] | None = None, **tables: Any) -> FinetuneConfig:
    stage = {"steps": 6, "batch": 4, "batch_norm": "frozen", "evaluate_every": 2, "lr": 1e-3}
    several = {"only": {}} if stages is None else stages
    table = {
        "data": {"spec": "shapes:count=12", "workers": 0},
        "model": {"size": 40},
        "stages": {name: {**stage, "objectives": {"supervised": {}}, **own} for name, own in several.items()},
        **tables,
    }
    return config_from_tables(table, {}, "test")


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def same(a: Path, b: Path) -> bool:
    left, right = read_checkpoint(a)["state"], read_checkpoint(b)["state"]
    return all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    ("room", "file"), [(300, "history.jsonl"), (200_000, "last.pt"), (5_000_000, "state.pt")]
)
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, room: int, file: str) -> None:
    """No file may grow beyond `room` from step 3 on."""
    finetune(made(), tmp_path / "whole", device="cpu")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(event: Event) -> None:
        if event.kind == "step" and event.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))

    try:
        with pytest.raises(
            CheckpointError, match=f"{file}: expected a file that can be written.*Make room, then --resume"
        ):
            finetune(made(), tmp_path / "full", device="cpu", progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "full").glob(".*"))
    for name in ("ft.pt", "last.pt"):
        assert read_checkpoint(tmp_path / "full" / name)["metrics"]["step"] <= 4
        load_classifier(tmp_path / "full" / name)
    saved = torch.load(tmp_path / "full" / "state.pt", weights_only=True)
    assert saved["step"] == 2
    resume(tmp_path / "full", device="cpu")
    assert same(tmp_path / "full" / "last.pt", tmp_path / "whole" / "last.pt")
    assert [line["step"] for line in history(tmp_path / "full")] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]


def test_a_killed_write_is_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    finetune(made(), folder, device="cpu")
    (folder / ".state.pt.99.tmp").write_bytes(b"half")
    with open(folder / "history.jsonl", "a") as file:
        file.write('{"stage": "on')
    resume(folder, device="cpu")
    assert not list(folder.glob(".*"))
    assert len(history(folder)) == 10


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its third step."""
    folder = tmp_path_factory.mktemp("stopped") / "out"

    def fail(event: Event) -> None:
        if (event.kind, event.step) == ("step", 3):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        finetune(made(), folder, device="cpu", progress=fail)
    return folder


STATE = r"state\.pt: expected the state of this run"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "config.toml",
            lambda text: text.replace(b'arch = ""', b'arch = "resnet18"'),
            "state.pt: expected the state of this run",
        ),
        (
            "config.toml",
            lambda text: text.replace(b"count=12", b"count=12,kinds=3"),
            "state.pt: expected the state of this run",
        ),
        ("state.pt", lambda text: text[: len(text) // 2], "state.pt: expected a readable checkpoint"),
        ("ft.pt", lambda text: text[: len(text) // 2], "ft.pt: expected a readable checkpoint"),
        ("history.jsonl", lambda text: b'{"st' + text, "history.jsonl: expected a line of JSON a step"),
    ],
)
def test_a_damaged_or_changed_run_is_one_line(
    tmp_path: Path, stopped: Path, file: str, change: Callable[[bytes], bytes], message: str
) -> None:
    shutil.copytree(stopped, tmp_path / "out")
    path = tmp_path / "out" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(WsodError, match=message):
        resume(tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    ("name", "value"),
    [("stage", "a"), ("stage", -1), ("step", None), ("step", 2**50), ("lines", [1]), ("halved", 10**6),
     ("halved", float("nan")), ("used", {}), ("used", {"labelled": "a", "unlabelled": 0}), ("best", [1]),
     ("network", []), ("optimiser", 3), ("random", torch.ones(2)), ("random", [{}]), ("random", None)],
)  # fmt: skip
def test_a_state_of_wrong_types_is_one_line(tmp_path: Path, stopped: Path, name: str, value: Any) -> None:
    shutil.copytree(stopped, tmp_path / "out")
    path = tmp_path / "out/state.pt"
    torch.save({**torch.load(path, weights_only=True), name: value}, path)
    with pytest.raises(WsodError, match=STATE):
        resume(tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    "line", ["[1]", "{}", "null", '{"stage": 1, "step": 1}', '{"stage": "a", "step": 1, "loss": [1]}',
             '{"stage": "a", "step": 1, "evaluation": 3}', "[" * 100_000],
    ids=range(7),
)  # fmt: skip
def test_a_history_of_something_else_is_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "history.jsonl").write_text(line + "\n")
    with pytest.raises(WsodError, match=r"history\.jsonl: expected a line of JSON a step"):
        read_history(tmp_path)


def test_a_deleted_history_begins_anew(tmp_path: Path, stopped: Path) -> None:
    shutil.copytree(stopped, tmp_path / "out")
    (tmp_path / "out/history.jsonl").unlink()
    resume(tmp_path / "out", device="cpu")
    assert [line["step"] for line in history(tmp_path / "out")] == [3, 4, 4, 5, 6, 6]
    # and a state counts the lines that are there
    assert torch.load(tmp_path / "out/state.pt", weights_only=True)["lines"] == 6


def test_a_history_deleted_after_the_last_step_is_empty(tmp_path: Path) -> None:
    def fail(event: Event) -> None:
        if event.kind == "end":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        finetune(made(), tmp_path / "out", device="cpu", progress=fail)
    (tmp_path / "out/history.jsonl").unlink()
    resume(tmp_path / "out", device="cpu")
    assert (tmp_path / "out/history.csv").read_text().splitlines() == ["stage,step"]


def test_early_stopping(tmp_path: Path) -> None:
    """The weights cannot change, so the first evaluation stays the best."""
    still = {"lr": 1e-12, "steps": 40, "patience": 3}
    finetune(made({"only": still}), tmp_path / "out", device="cpu")
    evaluated = [line["step"] for line in history(tmp_path / "out") if "evaluation" in line]
    assert evaluated == [0, 2, 4, 6]
    assert read_checkpoint(tmp_path / "out" / "ft.pt")["metrics"]["step"] == 0
    resume(tmp_path / "out", device="cpu")
    assert len(history(tmp_path / "out")) == 10
    with pytest.raises(ConfigError, match="a metric in select"):
        made({"only": {"patience": 2, "select": "last"}})


def test_a_stopped_stage_stays_stopped_when_resumed(tmp_path: Path) -> None:
    stages = {"a": {"lr": 1e-12, "steps": 40, "patience": 1}, "b": {"steps": 2}}

    def fail(event: Event) -> None:
        if (event.kind, event.stage) == ("end", "a"):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        finetune(made(stages), tmp_path / "out", device="cpu", progress=fail)
    resume(tmp_path / "out", device="cpu")
    finetune(made(stages), tmp_path / "whole", device="cpu")
    assert same(tmp_path / "out" / "ft.pt", tmp_path / "whole" / "ft.pt")
    steps = [(line["stage"], line["step"]) for line in history(tmp_path / "out") if "loss" in line]
    assert steps == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    finetune(made({"only": {"clip": 1e-9}}), tmp_path / "clipped", device="cpu")
    norms = [line["grad_norm"] for line in history(tmp_path / "clipped") if "loss" in line]
    assert all(norm > 0.01 for norm in norms)  # as it was before
    # far below Adam's epsilon nothing moves
    state = read_checkpoint(tmp_path / "clipped" / "last.pt")["state"]
    moved = read_checkpoint(finetune(made(), tmp_path / "free", device="cpu"))["state"]
    first = read_checkpoint(tmp_path / "clipped" / "ft.pt")["state"]
    assert max((state[key] - first[key]).abs().max() for key in state) < 1e-3
    assert max((moved[key] - first[key]).abs().max() for key in state) > 1e-3


@pytest.mark.parametrize(("amp", "channels_last"), [("bf16", False), ("off", True), ("bf16", True)])
def test_precision_and_layout_change_little(tmp_path: Path, amp: str, channels_last: bool) -> None:
    def losses(name: str, **stage: Any) -> list[float]:
        terms = {"supervised": {}, "atcon": {"mask_scale": "std", "mask_slope": 4.0}}
        stages = {"only": {"objectives": terms, "steps": 2, "lr": 1e-5, **stage}}
        finetune(made(stages), tmp_path / name, device="cpu")
        return [line["loss"] for line in history(tmp_path / name) if "loss" in line]

    plain, other = losses("plain"), losses("other", amp=amp, channels_last=channels_last)
    assert other == pytest.approx(plain, abs=0.05 if amp == "bf16" else 1e-3)
    assert amp == "off" or other != plain


def test_the_history_as_a_table_and_as_curves(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    finetune(made({"a": {"steps": 2}, "b": {"steps": 4, "clip": 1.0}}), folder, device="cpu")
    entries = history(folder)
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(entries)
    for row, entry in zip(rows, entries, strict=True):
        assert (row["stage"], int(row["step"])) == (entry["stage"], entry["step"])
        assert row["loss"] == ("" if "loss" not in entry else str(entry["loss"]))
        assert row["val/mAP"] == ("" if "evaluation" not in entry else str(entry["evaluation"]["mAP"]))
    assert (rows[1]["grad_norm"] == "") != (rows[-2]["grad_norm"] == "")
    with Image.open(folder / "history.png") as picture:
        assert picture.size[0] > 600
        assert len(picture.convert("L").getcolors(256) or []) > 20


@pytest.mark.slow
def test_tensorboard_shows_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "out"

    def fail(event: Event) -> None:
        if event.kind == "step" and event.step == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        finetune(made(tensorboard=True), folder, device="cpu", progress=fail)
    resume(folder, device="cpu")
    events = reader.EventAccumulator(str(folder / "tensorboard" / "only"))
    events.Reload()
    for name, key in (("loss", "loss"), ("supervised", "supervised")):
        expected = [(line["step"], line[key]) for line in history(folder) if key in line]
        # step 5 was logged, lost and logged again; what was lost is taken back
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3, 4, 5, 6]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(step, pytest.approx(value, rel=1e-5)) for step, value in expected]
    assert len(events.Scalars("val/mAP")) == 4


def test_compiling_second_derivatives_is_refused(tmp_path: Path) -> None:
    config = made({"only": {"compile": True, "objectives": {"supervised": {}, "atcon": {}}}})
    with pytest.raises(ConfigError, match="differentiates gradients of the network"):
        finetune(config, tmp_path / "out", device="cpu")


def test_a_compiled_network_trains_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, graphs = torch.compile, []

    def quick(module: torch.nn.Module) -> Any:
        """Traced and differentiated ahead of time, without the minutes of a C++ compiler."""
        graphs.append(module)
        return compiler(module, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", quick)
    for name, compiled in (("eager", False), ("compiled", True)):
        finetune(made({"only": {"compile": compiled, "lr": 1e-5}}), tmp_path / name, device="cpu")
    assert len(graphs) == 1
    for a, b in zip(history(tmp_path / "eager"), history(tmp_path / "compiled"), strict=True):
        assert b.get("loss") == pytest.approx(a.get("loss"), abs=1e-4)
    load_classifier(tmp_path / "compiled" / "ft.pt")


def test_sigint_is_the_default_again_afterwards(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    finetune(made({"only": {"steps": 1}}), tmp_path / "out", device="cpu")
    assert signal.getsignal(signal.SIGINT) == before
