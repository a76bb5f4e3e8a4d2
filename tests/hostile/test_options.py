"""Options of map methods and fits of wrong types and values: one line, not the default, not a traceback."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest
from click.testing import CliRunner

from wsod.cli import main
from wsod.config import bind
from wsod.errors import ConfigError
from wsod.maps import METHODS
from wsod.maps.method import MapMethod
from wsod.metrics import METRICS

WRONG = ["abc", "nan", "inf", "-inf", "1e400", "[[1]]", "{a=1}", "''"]
NAMES = [
    (name, option)
    for name, method in METHODS.items()
    for option, p in inspect.signature(method.function).parameters.items()
    if p.kind is p.KEYWORD_ONLY and option not in ("create_graph", "image_id", "fit")
]


@pytest.mark.parametrize(("name", "option"), NAMES, ids=[f"{n}-{o}" for n, o in NAMES])
def test_options_of_methods_have_their_types(name: str, option: str) -> None:
    hint = str(inspect.signature(METHODS[name].function).parameters[option].annotation)
    words = "str" in hint  # any word will do until it is looked up
    for value in WRONG:
        if words and value in ("abc", "''", "[[1]]"):
            continue
        with pytest.raises(ConfigError):
            METHODS[f"{name}:{option}={value}"]


@pytest.mark.parametrize("value", ["False", "no", "0", "1", "off"])
def test_a_flag_is_not_true_for_being_a_word(value: str) -> None:
    with pytest.raises(ConfigError, match="relu: expected a value of type bool"):
        METHODS[f"gradcam:relu={value}"]
    assert METHODS["gradcam:relu=false"].options == {"relu": False}


@pytest.mark.parametrize(
    "maps", ["center:sigma=0", "center:sigma=-1", "random:cells=-1", "random:cells=100000"]
)
def test_controls_of_odd_values(maps: str) -> None:
    result = CliRunner().invoke(main, ["evaluate", "--maps", maps, "--data", "shapes:count=1,size=48"])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_no_metric_takes_what_is_no_number(name: str, value: float) -> None:
    """NaN is neither below nor above a limit: it would pass every check."""
    kind = METRICS[name]
    for option, hint in kind.__annotations__.items():
        if hint == "float":
            with pytest.raises(ConfigError, match=option):
                bind(kind, {"classes": 2, option: value}, "here")


@pytest.mark.parametrize("command", [["evaluate", "--maps", "center"], ["compare", "a"]])
def test_seeds_are_not_negative(command: list[str]) -> None:
    result = CliRunner().invoke(main, [*command, "--seed", "-1"])
    assert result.exit_code == 2
    assert "--seed" in result.output


def test_options_of_methods_that_annotate_for_type_checkers_alone() -> None:
    def mine(tape: Nowhere, cases: Nowhere, *, power: float = 1.0) -> None:  # type: ignore[name-defined]  # noqa: F821
        """As with imports under TYPE_CHECKING."""

    assert MapMethod(mine, "mine", "").configured({"power": 2}).options == {"power": 2}


def test_options_of_methods_of_other_types() -> None:
    def mine(
        tape: int,
        *,
        a: list[int],
        b: Callable[[int], int],
        c: np.ndarray,
        d: list[int] | None,
        e: float,
        f: int,  # type: ignore[type-arg]
    ) -> None:
        """Those that are known are converted, the others are the method's own business."""

    given = {"a": [1], "b": abs, "c": np.ones(2), "d": [2], "e": np.float32(0.5), "f": np.int64(3)}
    assert MapMethod(mine, "mine", "").configured(given).options == given
    for wrong in ({"a": 1}, {"d": ["x"]}, {"e": True}, {"f": 0.5}):
        with pytest.raises(ConfigError, match=f"a map method: {next(iter(wrong))}"):
            MapMethod(mine, "mine", "").configured(wrong)
