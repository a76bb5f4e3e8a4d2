"""Scores by size and given the class: printed from result.json's own fields."""

from __future__ import annotations

import io

from rich.console import Console

from wsod import evaluate
from wsod.report.strata import strata_table
from wsod.report.tables import print_results


def test_sizes_are_printed_with_their_counts() -> None:
    result = evaluate(["center", "random"], limit=20, metrics=["max_box_acc"])
    console = Console(width=100, record=True, file=io.StringIO())
    print_results(console, {"": result})
    text = console.export_text()
    assert "small" in text
    assert "class right" not in text  # nobody ranked the classes
    lines = [line.split() for line in text.splitlines()]
    for row in result.rows:
        cells = [
            cell
            for part in row.scores["max_box_acc"]["strata"].values()
            for cell in (f"{100 * part['value']:.1f}", str(part["count"]))
        ]
        assert [row.maps, "MaxBoxAcc", *cells] in lines


def test_no_cases_no_table() -> None:
    assert strata_table(evaluate("center", limit=3, metrics=["pxap"])) is None
