"""The command line: a run from end to end, and what it says to wrong input."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import wsod.cli
from atcon.cli import main
from tests.conftest import ROOT
from wsod.models import read_checkpoint

FEW = ["--data", "shapes:count=12", "--set", "model.size=40", "--set", "train.batch=4"]
SHORT = ["--set", "stages.start.epochs=1.0", "--set", "stages.atcon.steps=2"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_train_then_evaluate(tmp_path: Path) -> None:
    done = run("finetune", *FEW, *SHORT, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert f"wsod evaluate --maps gradcam --checkpoint {tmp_path / 'out' / 'ft.pt'}" in done.output
    arguments = [
        "evaluate",
        "--maps",
        "gradcam",
        "--checkpoint",
        str(tmp_path / "out" / "ft.pt"),
        "--limit",
        "4",
    ]
    scored = CliRunner().invoke(wsod.cli.main, arguments)
    assert scored.exit_code == 0, scored.output
    assert "gradcam" in scored.output
    again = run("finetune", *FEW, *SHORT, "--out", tmp_path / "out")
    assert again.exit_code == 1
    assert "--resume" in again.stderr


@pytest.mark.slow
def test_the_next_command_can_be_typed_as_it_is(tmp_path: Path) -> None:
    """It evaluates the checkpoint on the data trained on, whatever the names."""
    folder = tmp_path / ("a run " + 200 * "x")
    done = run("finetune", *FEW, *SHORT, "--set", "data.val=test", "--out", folder)
    assert done.exit_code == 0, done.output
    again = run("finetune", "--resume", folder)
    words = [shlex.split(result.output.splitlines()[-1].split(":", 1)[1]) for result in (done, again)]
    assert words[0] == words[1]
    assert words[0][:2] == ["wsod", "evaluate"]
    assert words[0][-4:] == ["--data", FEW[1], "--split", "test"]
    scored = CliRunner().invoke(wsod.cli.main, [*words[0][1:], "--limit", "2"])
    assert scored.exit_code == 0, scored.output


def test_list() -> None:
    listed = run("list")
    assert listed.exit_code == 0
    for word in ("quickstart", "atcon", "supervised", "2210.09705"):
        assert word in listed.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "quickstrat"], "Did you mean 'quickstart'"),
        (["--recipe", "nowhere.toml"], "nowhere.toml"),
        (["--data", "shaps"], "Did you mean 'shapes'"),
        (["--arch", "resnet5"], "resnet50"),
        (["--weights", "nowhere.pt"], "nowhere.pt"),
        (["--head", "linaer"], "Did you mean 'linear'"),
        (["--objective", "atcom"], "Did you mean 'atcon'"),
        (["--set", "train.lr=x"], "lr"),
        (["--set", "lr"], "key=value"),
        (["--resume", "nowhere"], "nowhere"),
        (["--device", "tpu"], "auto, cpu, cuda"),
        (["--set", "data.train=trian"], "data.train: expected a split of shapes"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [] if "--data" in arguments or "--resume" in arguments else FEW[:2]
    result = run("finetune", *data, *arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if "expected" in line]
    assert len(lines) == 1, result.stderr
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


def test_resume_takes_no_other_option(tmp_path: Path) -> None:
    result = run("finetune", "--resume", tmp_path, "--arch", "resnet18")
    assert result.exit_code == 2
    assert "--arch" in result.stderr


@pytest.mark.slow
def test_interrupted_by_the_keyboard_and_resumed(tmp_path: Path) -> None:
    """A real process, a real SIGINT; the resumed run equals one that was not interrupted."""
    command = [sys.executable, "-m", "atcon", "finetune", *FEW, "--set", "stages.start.epochs=6.0"]
    command += ["--set", "stages.atcon.steps=6", "--device", "cpu", "--out"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*command, whole], check=True, cwd=ROOT, capture_output=True)
    process = subprocess.Popen([*command, cut], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    history = cut / "history.jsonl"
    while time.monotonic() < deadline and not (history.exists() and '"step": 3' in history.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode != 0
    subprocess.run(
        [sys.executable, "-m", "atcon", "finetune", "--resume", cut, "--device", "cpu"],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    for name in ("start.pt", "ft.pt"):
        left, right = read_checkpoint(whole / name)["state"], read_checkpoint(cut / name)["state"]
        assert all(torch.equal(left[key], right[key]) for key in left), name


@pytest.mark.slow
def test_an_untrained_head_is_said(tmp_path: Path) -> None:
    steps = ["--set", "train.steps=1", "--set", "train.batch=2", "--data", "shapes:count=8"]
    said = CliRunner().invoke(main, ["finetune", "--recipe", "atcon", *steps, "--out", str(tmp_path / "a")])
    assert said.exit_code == 0, said.output
    assert "stage atcon: no label trains the head, which starts from random weights" in said.stderr
