"""docs/write-a-method.md: its code runs, its table is the registry's. As a script it writes the table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from wsod.maps import METHODS, MapMethod, Tape
from wsod.models import build_classifier

PAGE = Path(__file__).resolve().parents[2] / "docs" / "write-a-method.md"
BEGIN, END = "<!-- methods: begin -->\n", "<!-- methods: end -->\n"

COSTS = {
    "nothing": "no pass",
    "image": "no pass",
    "forwards": "further passes",
    "relevance": "forward, rules down to the image",
    "probability": "forward, rules down to the target layer",
    "input_gradient": "forward, backward to the image",
    "attention_gradients": "forward, backward to the first block",
    "attentions": "forward",
    "hessian": "forward, two backward through the head",
    "gradient": "forward, backward through the head",
    "class_weights": "forward",
}


def cost(method: MapMethod) -> str:
    """The dearest thing it needs."""
    return next((words for need, words in COSTS.items() if need in method.needs), "forward")


def table() -> str:
    rows = ["| method | equation | cost | trained through | uses beyond the classifier | published |"]
    rows.append("| --- " * 6 + "|")
    for name, method in METHODS.items():
        trained = "yes" if method.differentiable else "–"
        used = ", ".join(method.supervision) or "–"
        summary = method.summary.replace("|", "\\|")
        rows.append(f"| `{name}` | {summary} | {cost(method)} | {trained} | {used} | {method.citation} |")
    return "\n".join(rows) + "\n"


def written(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def test_the_table_is_the_registrys():
    text = PAGE.read_text("utf-8")
    assert written(text) == text, f"run: python {Path(__file__).name}"


def test_the_code_runs(capsys):
    scope: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        exec(block, scope)
    assert capsys.readouterr().out.strip() == "[(3, 8, 8), (3, 8, 8), (3, 8, 8)]"
    method, tape, cases = scope["method"], scope["tape"], scope["cases"]
    torch.testing.assert_close(method(tape, cases, gamma=0), METHODS["gradcam"](tape, cases, relu=False))
    assert not torch.allclose(method(tape, cases), method(tape, cases, gamma=0.5))
    through = Tape(tape.classifier, tape.images, create_graph=True)
    assert method(through, cases, create_graph=True).requires_grad


def test_everything_named_is_there():
    tape = Tape(build_classifier("smallnet", ["a", "b"], size=32), torch.zeros(1, 3, 32, 32))
    names = set(re.findall(r"`tape\.(\w+)", PAGE.read_text("utf-8")))
    assert len(names) > 8
    for name in names:
        assert name in vars(tape) or hasattr(Tape, name), name


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
