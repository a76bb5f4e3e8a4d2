"""What the commands say: hints that can be pasted, titles that are whole, help."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.data.files import write_folder
from wsod.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in arguments])


def hint(told: Result) -> list[str]:
    assert told.exit_code == 0, told.output
    return shlex.split(told.stdout.replace("\n", "").split("score them with: ")[1])


def test_the_hint_after_maps_scores_those_images(tmp_path: Path) -> None:
    out, data = tmp_path / "the maps", "shapes:count=6,size=48"
    told = run("maps", "--maps", "center", "--data", data, "--split", "train", "--limit", 3, "--out", out)
    command = hint(told)
    scored = ["--data", data, "--split", "train", "--limit", "3"]
    assert command == ["wsod", "evaluate", "--maps", str(out / "center"), *scored]
    assert run(*command[1:]).exit_code == 0


def test_the_hint_after_maps_names_all_methods(tmp_path: Path) -> None:
    data = ("--data", "shapes:count=6,size=48")
    two = ("maps", "--maps", "center", "--maps", "random", *data, "--on-error", "skip", "--out", tmp_path)
    assert hint(run(*two))[2:] == ["--maps", str(tmp_path), *data, "--on-error", "skip"]
    # the folder as a whole no longer, where there are other maps too
    assert run("maps", "--maps", "sobel", *data, "--out", tmp_path).exit_code == 0
    each = ["--maps", str(tmp_path / "center"), "--maps", str(tmp_path / "random")]
    assert hint(run(*two))[2:6] == each


def test_the_hint_after_maps_names_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = hint(run("maps", "--maps", "center", "--limit", 2, "--out", "."))
    assert command[:4] == ["wsod", "evaluate", "--maps", "./center"]
    assert run(*command[1:]).exit_code == 0
    command = hint(run("maps", "--maps", "center", "--maps", "random", "--limit", 2, "--out", "."))
    assert command[2:4] == ["--maps", "."]
    assert run(*command[1:]).exit_code == 0


def test_the_check_of_a_data_set_begins_with_all_it_found() -> None:
    spec = "shapes:count=6,size=48,seed=123456789,bias=0.25"
    title = run("data", "check", spec).stdout.splitlines()[0]
    assert title.startswith(f"{spec}, split test: 6 images, ")
    assert title.endswith(" 0 faults")


def test_labels_without_boxes_are_counted_in_images(tmp_path: Path) -> None:
    write_folder(tmp_path, labels_csv="image,label\na,dog\nsub/b,dog\n")
    told = run("data", "check", f"folder:{tmp_path}").stdout.split()
    assert told[told.index("class") + 1] == "images"
    assert told[told.index("dog") + 1] == "2"
    told = run("data", "check", "shapes:count=6,size=48").stdout.split()
    assert told[told.index("class") + 1] == "boxes"


@pytest.mark.parametrize("kind", ["maps", "architectures"])
def test_listings_begin_with_their_title(kind: str) -> None:
    titles = ("map methods\n", "architectures (and timm:NAME, module:factory)\n")
    assert run("list", kind).stdout.startswith(titles)


def test_a_data_set_that_is_not_there_is_answered_with_the_command_that_downloads_it() -> None:
    assert "`wsod data download`" in run("evaluate", "--maps", "center", "--data", "voc2012:/nowhere").stderr


@pytest.mark.parametrize("command", ["evaluate", "maps", "fit"])
def test_no_limit_is_said(command: str) -> None:
    assert "0 = all" in " ".join(run(command, "--help").stdout.split())
