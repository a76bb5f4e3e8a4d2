"""Files of `wsod fit` that are none: one line, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wsod.data import open_dataset
from wsod.errors import WsodError
from wsod.fitting import fit_method
from wsod.maps import attention_maps
from wsod.models import Classifier, build_classifier, load_classifier, save_checkpoint

DATA = "shapes:count=4,size=48"


@pytest.fixture(scope="module", params=["broadcam", "lcam"])
def fitted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Classifier, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("fit")
    network = build_classifier("smallnet", open_dataset(DATA).classes, task="multilabel", size=64)
    save_checkpoint(folder / "ft.pt", network, recipe={}, metrics={}, provenance={})
    fit_method(request.param, folder / "a.pt", checkpoint=folder / "ft.pt", data=DATA, device="cpu")
    contents: dict[str, Any] = torch.load(folder / "a.pt", weights_only=True)
    return request.param, load_classifier(folder / "ft.pt"), contents


def _tensors(change: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda table: {**table, "tensors": {k: change(v) for k, v in table["tensors"].items()}}


FITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda table: [1],
    "of another method": lambda table: {**table, "method": "cam"},
    **{f"no {key}": lambda table, key=key: {k: v for k, v in table.items() if k != key}
       for key in ("format", "method", "classes", "layers", "tensors", "about")},
    **{f"{key} of numbers": lambda table, key=key: {**table, key: 3}
       for key in ("format", "method", "classes", "layers", "tensors", "about")},
    **{f"{key} in a list of numbers": lambda table, key=key: {**table, key: [3]}
       for key in ("classes", "layers", "tensors")},
    "no layer": lambda table: {**table, "layers": []},
    "a layer that is not there": lambda table: {**table, "layers": ["no.such"]},
    "fewer classes": lambda table: {**table, "classes": table["classes"][:2]},
    "no tensor": lambda table: {**table, "tensors": {}},
    "a tensor of words": _tensors(lambda value: "a"),
    "a tensor of NaN": _tensors(lambda value: value * float("nan")),
    "a complex tensor": _tensors(lambda value: value + 1j),
    "a sparse tensor": _tensors(lambda value: value.to_sparse()),
    "a tensor of nothing": _tensors(lambda value: value[:0]),
    "a tensor of no axes": _tensors(lambda value: value.sum()),
    "a tensor with an axis more": _tensors(lambda value: value[None]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FITS)
def test_fits(tmp_path: Path, fitted: tuple[str, Classifier, dict[str, Any]], kind: str) -> None:
    name, classifier, contents = fitted
    torch.save(FITS[kind](contents), tmp_path / "a.pt")
    with pytest.raises(WsodError) as caught:
        attention_maps(classifier, torch.zeros(1, 3, 64, 64), [[0]], [f"{name}:fit={tmp_path}/a.pt"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["3", "nan", "[1]", "''", "nowhere.pt"])
@pytest.mark.parametrize("name", ["broadcam", "lcam"])
def test_fits_that_are_no_file(name: str, value: str) -> None:
    classifier = build_classifier("smallnet", ["a"], size=64)
    with pytest.raises(WsodError):
        attention_maps(classifier, torch.zeros(1, 3, 64, 64), [[0]], [f"{name}:fit={value}"])
