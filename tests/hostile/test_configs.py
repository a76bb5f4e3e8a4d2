"""Protocols, recipes, settings, checkpoints and results that are wrong: one line, by name."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from atcon.cli import main as atcon
from wsod.cli import main as wsod
from wsod.config import parse_settings
from wsod.errors import CheckpointError, ConfigError, ModelError, WsodError
from wsod.protocols import load_protocol

PROTOCOLS: dict[str, bytes | str] = {
    "nothing": "",
    "no TOML": "metrics = [",
    "bytes": b"\xff\xfe",
    "nested without end": "a = " + "[" * 100_000,
    "dotted without end": ".".join("a" * 50_000) + " = 1",
    "a key twice": 'description = "a"\ndescription = "b"',
    "description of numbers": "description = 3",
    "description of tables": "[description]",
    "an unknown key": 'description = "a"\nmetric = 1',
    "an unknown metric": 'description = "a"\n[metrics.no_such]',
    "metrics of a list": 'description = "a"\nmetrics = []',
    "a metric of a number": 'description = "a"\nmetrics = {pointing_game = 3}',
    "an unknown option": 'description = "a"\n[metrics.pointing_game]\nno_such = 1',
    "an option of words": 'description = "a"\n[metrics.pointing_game]\ntolerance = "15"',
    "a date": 'description = "a"\n[metrics.pointing_game]\ntolerance = 2020-01-01',
    "a frame of words": 'description = "a"\n[maps]\nframe = "224"',
    "a negative frame": 'description = "a"\n[maps]\nframe = -1',
    "a frame of true": 'description = "a"\n[maps]\nframe = true',
    "half a frame": 'description = "a"\n[maps]\nframe = 224.5',
    "an unknown resize": 'description = "a"\n[maps]\nresize = "sinc"',
    "a normalisation of numbers": 'description = "a"\n[maps]\nnormalise = 1',
    "percentiles of three": 'description = "a"\n[maps]\npercentiles = [0, 50, 100]',
    "percentiles of NaN": 'description = "a"\n[maps]\npercentiles = [nan, 100]',
    "percentiles turned": 'description = "a"\n[maps]\npercentiles = [99, 1]',
}


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_protocols(tmp_path: Path, kind: str) -> None:
    path, content = tmp_path / "a.toml", PROTOCOLS[kind]
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        load_protocol(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "nothing"])
def test_protocol_paths(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.toml"
    {"folder": os.mkdir, "loop": lambda p: os.symlink(p, p)}.get(kind, lambda p: None)(path)
    with pytest.raises(ConfigError, match=r"a\.toml"):
        load_protocol(path)


SETTINGS = ["", "=", "=1", "a", " =1", "a.b.=1\0", "a=" + "[" * 100_000, "a" + ".a" * 100_000 + "=1"]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda text: text[:8])
def test_settings(setting: str) -> None:
    """A wrong setting is refused; nested without end it is a word, or tables that nothing takes."""
    try:
        tables = parse_settings([setting])
    except ConfigError as error:
        assert "key=value" in str(error)  # noqa: PT017
    else:
        assert setting.partition("=")[0].strip()
        assert tables


@pytest.mark.parametrize("text", ["1\nb = 2", "1 # c", "'", "\x00", "é", "\ud800", "nan", "9" * 5000])
def test_values_of_settings_are_one_value(text: str) -> None:
    tables = parse_settings([f"a={text}"])
    assert list(tables) == ["a"]


# --- checkpoints -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    import torch

    from wsod.models import build_classifier, save_checkpoint

    path = tmp_path_factory.mktemp("model") / "ft.pt"
    save_checkpoint(
        path, build_classifier("smallnet", ["a", "b"], size=64), recipe={}, metrics={}, provenance={}
    )
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def _state(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    def apply(table: dict[str, Any]) -> Any:
        state = dict(table["state"])
        key = next(key for key, value in state.items() if value.is_floating_point())
        state[key] = change(state[key])
        return {**table, "state": state}

    return apply


def _cyclic(table: dict[str, Any]) -> dict[str, Any]:
    cycle: dict[str, Any] = {}
    cycle["state"] = cycle
    return {**table, "state": cycle}


CHECKPOINTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda table: [1, 2],
    "a number": lambda table: 3,
    "nothing in it": lambda table: {},
    "a tensor": lambda table: next(iter(table["state"].values())),
    "a format of the future": lambda table: {**table, "format": "wsod-checkpoint-99"},
    "a format of numbers": lambda table: {**table, "format": 1},
    **{f"no {key}": lambda table, key=key: {k: v for k, v in table.items() if k != key}
       for key in ("arch", "head", "classes", "task", "target_layer", "preprocess", "state")},
    **{f"{key} of numbers": lambda table, key=key: {**table, key: 3}
       for key in ("arch", "head", "classes", "task", "target_layer", "preprocess", "state")},
    "an unknown architecture": lambda table: {**table, "arch": "resnet51"},
    "a module to import": lambda table: {**table, "arch": "os:system"},
    "an unknown head": lambda table: {**table, "head": "no-such"},
    "an unknown task": lambda table: {**table, "task": "regression"},
    "a layer that is not there": lambda table: {**table, "target_layer": "layer99"},
    "a layer of magic": lambda table: {**table, "target_layer": "__class__"},
    "classes of numbers": lambda table: {**table, "classes": [1, 2]},
    "no classes": lambda table: {**table, "classes": []},
    "another number of classes": lambda table: {**table, "classes": ["a", "b", "c"]},
    "preprocessing of words": lambda table: {**table, "preprocess": {"size": "224"}},
    "preprocessing of the unknown": lambda table: {**table, "preprocess": {"sizes": 224}},
    "an interpolation of the unknown": lambda table: {**table, "preprocess": {"interpolation": "sinc"}},
    "a size of nothing": lambda table: {**table, "preprocess": {"size": 0}},
    "a table in itself": _cyclic,
    "a weight of another shape": _state(lambda value: value[:1]),
    "a weight of no axes": _state(lambda value: value.sum()),
    "a weight of NaN": _state(lambda value: value * float("nan")),
    "a weight of infinity": _state(lambda value: value + float("inf")),
    "a complex weight": _state(lambda value: value + 1j),
    "a sparse weight": _state(lambda value: value.to_sparse()),
    "a weight of numbers": _state(lambda value: 3),
    "a weight of words": _state(lambda value: "weights"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(tmp_path: Path, contents: dict[str, Any], kind: str) -> None:
    import torch

    from wsod.models import load_classifier

    path = tmp_path / "ft.pt"
    torch.save(CHECKPOINTS[kind](contents), path)
    with pytest.raises((CheckpointError, ConfigError, ModelError)) as caught:
        load_classifier(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def _files() -> dict[str, bytes]:
    import io

    import torch

    def saved(value: Any, **options: Any) -> bytes:
        file = io.BytesIO()
        torch.save(value, file, **options)
        return file.getvalue()

    sound = saved({"a": torch.ones(100)})
    cut = {f"cut at {tenth}/10": sound[: len(sound) * tenth // 10] for tenth in range(10)}
    old = saved({"a": torch.ones(100)}, _use_new_zipfile_serialization=False)
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("../../evil/data.pkl", pickle.dumps({}))
        archive.writestr("../../evil/version", b"3\n")
    return {
        **cut,
        "nothing but text": b"weights",
        "a program": pickle.dumps(Runs()),
        "a program in a table": saved({"state": {}, "x": Runs()}),
        "a program in the old format": saved({"x": Runs()}, _use_new_zipfile_serialization=False),
        "the old format cut short": old[: len(old) // 2],
        "a memo of gigabytes": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "a zip of something else": outer.getvalue(),
        "a NumPy array": b"\x93NUMPY\x01\x00",
        "a safetensors header of gigabytes": b"\xff" * 8 + b"{}",
    }


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", _files())
def test_files_that_are_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str
) -> None:
    from wsod.models import load_classifier

    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(_files()[kind])
    with pytest.raises(CheckpointError) as caught:
        load_classifier(path, arch="smallnet")
    assert str(caught.value).startswith(f"{path}: expected")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# --- command lines ---------------------------------------------------------------------------------------

COMMANDS: list[list[str]] = [
    ["evaluate", "--maps", "center", "--config", "bad.toml"],
    ["evaluate", "--maps", "center", "--data", "voc2012:bad"],
    ["evaluate", "--maps", "center", "--data", "coco:bad,bad.json"],
    ["evaluate", "--maps", "center", "--data", "wsol:bad"],
    ["evaluate", "--maps", "center", "--data", "folder:bad"],
    ["evaluate", "--maps", "gradcam", "--checkpoint", "bad.pt"],
    ["evaluate", "--maps", "gradcam", "--checkpoint", "bad.pt", "--arch", "smallnet"],
    ["evaluate", "--maps", "bad", "--limit", "2"],
    ["evaluate", "--maps", "center", "--threshold-from", "bad.json"],
    ["maps", "--maps", "center", "--limit", "2", "--out", "bad.toml/inside"],
    ["table", "bad.json"],
    ["table", "bad"],
    ["data", "check", "coco:bad,bad.json"],
    ["data", "export", "folder:bad", "out"],
    ["boxes", "bad.npy"],
    ["boxes", "bad.npz"],
    ["boxes", "bad.png"],
    ["boxes", "bad.txt"],
    ["boxes", "bad"],
    ["boxes", "sound.npy", "--format", "coco", "--annotations", "bad.json"],
]


@pytest.fixture
def bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/manifest.json").write_text("[")
    for name in ("bad.toml", "bad.json", "bad.pt", "bad.npy", "bad.npz", "bad.png", "bad.txt"):
        (tmp_path / name).write_bytes(b"[\xff\x00bad")
    np.save(tmp_path / "sound.npy", np.eye(5))
    return tmp_path


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_end_in_one_line(bad_files: Path, arguments: list[str]) -> None:
    before = sorted(bad_files.rglob("*"))
    result = CliRunner().invoke(wsod, arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len([line for line in lines if "expected" in line]) == 1, lines
    assert "bad" in lines[-1]
    assert "Traceback" not in result.output
    assert sorted(bad_files.rglob("*")) == before


@pytest.mark.parametrize("recipe", ["bad.toml", "bad", "bad.json", "nowhere.toml", "quickstartt"])
def test_recipes_end_in_one_line(bad_files: Path, recipe: str) -> None:
    result = CliRunner().invoke(atcon, ["finetune", "--recipe", recipe, "--out", "out"])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "expected" in result.stderr
    assert not (bad_files / "out").exists()


def test_results_that_are_nonsense_are_not_printed(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(
        json.dumps({"schema": 2, "rows": [{"scores": {"a": {"value": "b"}}}]})
    )
    result = CliRunner().invoke(wsod, ["table", str(tmp_path)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)


def test_every_error_says_where(tmp_path: Path) -> None:
    error = WsodError("a\ud800\nb", "x", "\udcff")
    assert "\n" not in str(error)
    str(error).encode("utf-8")
