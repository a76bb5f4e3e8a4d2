"""Tables: whole at any width, and the same numbers in every format."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.report.runs import EVIL, METRICS, result, score
from wsod.cli import main
from wsod.comparison import compare
from wsod.report.formats import format_comparison, format_results
from wsod.report.lines import lines, percent
from wsod.report.tables import print_changes, print_comparison, print_results
from wsod.results import Result, Row

MANY = (
    "gradcam",
    "layercam",
    "guidedbackprop",
    "runs/some/where/maps/contrastiveexcitationbackprop",
    "center",
)


def printed(width: int, function: Any, *arguments: Any, **options: Any) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    function(console, *arguments, **options)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def runs(count: int) -> dict[str, Result]:
    return {f"runs/study/run-{i}": result(MANY, seed=i) for i in range(count)}


@pytest.mark.parametrize("width", range(80, 201, 10))
@pytest.mark.parametrize("count", [1, 3])
def test_results_are_whole_at_any_width(width: int, count: int) -> None:
    """No line is longer than the terminal, no number, name or heading is cut or broken."""
    found = runs(count)
    text = printed(width, print_results, found)
    lengths = [len(line) for line in text.splitlines()]
    assert max(lengths) <= width or len(text.splitlines()[0]) == max(lengths)
    assert "…" not in text
    for line in lines(found):
        assert percent(line.value) in text
        assert f"{percent(line.low)}–{percent(line.high)}" in text
    for name in ("gradcam", "guidedbackprop", "center", "Pointing", "MaxBoxAcc V2", "Mask IoU"):
        assert name in text
    assert "image labels, threshold: evaluated split" in " ".join(text.split())
    if count > 1:
        assert "runs in runs/study/" in text


@pytest.mark.parametrize("width", range(80, 201, 20))
def test_comparisons_are_whole_at_any_width(width: int, tmp_path: Path) -> None:
    result(MANY[:3]).save(tmp_path)
    comparison = compare([tmp_path], resamples=200)
    text = printed(width, print_comparison, comparison)
    table = [line for line in text.splitlines() if "→" in line and str(tmp_path) not in line]
    assert len(table) == len(comparison.differences) == 2 * len(METRICS)
    assert all(len(line) <= width for line in table)
    for one in comparison.differences:
        assert f"{percent(one.before)} → {percent(one.after)}" in text
    assert "…" not in text


def test_rows_of_other_data_say_so() -> None:
    text = printed(200, print_results, {"a": result(), "b": result(data="voc2012:elsewhere")})
    assert "shapes, split test" in text
    assert "voc2012:elsewhere, split test" in text


def test_scores_of_nothing_are_dashes_and_skipped_images_are_named() -> None:
    empty = replace(
        result(("center",)),
        rows=(Row("center", (), {"mask_iou": score(None, count=0, skipped=3)}),),
        skipped=tuple({"image": str(i), "error": f"image {i} is broken"} for i in range(12)),
    )
    text = printed(80, print_results, {"": empty})
    assert "–" in text
    assert "0 (3 skipped)" in text
    assert "no interval: Mask IoU" in text
    assert "12 images skipped" in text
    assert "image 9 is broken" in text
    assert "image 10 is broken" not in text


def test_csv_and_json_have_every_digit() -> None:
    found = runs(2)
    rows = list(csv.DictReader(io.StringIO(format_results(found, "csv"))))
    objects = json.loads(format_results(found, "json"))
    assert len(rows) == len(objects) == 2 * len(MANY) * len(METRICS)
    for row, one in zip(rows, objects, strict=True):
        value = found[row["run"]].rows[MANY.index(row["maps"])].scores[row["metric"]]["value"]
        assert float(row["value"]) == one["value"] == value
        assert float(row["low"]) == one["low"]
        assert row["count"] == str(one["count"]) == "40"


def test_markdown_and_latex_cannot_be_broken_by_names() -> None:
    found = {"a": result((f"{EVIL}|100%_x", "center"))}
    text = format_results(found, "markdown")
    head, rule, *rows = text.splitlines()
    assert "<script>" not in text
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in (head, rule, *rows)} == {9}
    latex = format_results(found, "latex")
    assert r"100\%\_x" in latex
    body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert all(len(re.findall(r"(?<!\\)&", line)) == 7 for line in body)
    assert latex.startswith(r"\begin{tabular}{lrrrrrrl}")


def test_published_numbers_are_said_to_be_published() -> None:
    found = {"a": result(metrics=("pointing_game",), protocol="pointing-voc07")}
    assert "not measured" not in printed(120, print_results, found)
    for width in (80, 200):
        text = " ".join(printed(width, print_results, found, published=True).split())
        assert "90.4" in text
        assert "published, not measured here: docs/pointing.csv of facebookresearch/TorchRay" in text
    rows = list(csv.DictReader(io.StringIO(format_results(found, "csv", published=True))))
    assert {row["source"] != "" for row in rows if row["maps"] == "Grad-CAM"} == {True}
    assert all(row["count"] == "" and row["low"] == "" for row in rows if row["source"])
    assert "published, not measured here" in format_results(found, "markdown", published=True)


def test_comparison_formats(tmp_path: Path) -> None:
    result().save(tmp_path)
    comparison = compare([tmp_path], resamples=200)
    told = json.loads(format_comparison(comparison, "json", ["mask_iou"]))
    by_name = {one["metric"]: one for one in told["differences"]}
    assert len(by_name["mask_iou"]["changes"]) == 40
    assert "changes" not in by_name["pointing_game"]
    rows = list(csv.DictReader(io.StringIO(format_comparison(comparison, "csv"))))
    assert [float(row["difference"]) for row in rows] == [one.difference for one in comparison.differences]
    assert format_comparison(comparison, "markdown").count("\n") == 1 + len(METRICS)
    assert "toprule" in format_comparison(comparison, "latex")
    text = printed(100, print_changes, comparison.differences[0], 3)
    assert "3 of 40 cases" in text
    assert comparison.differences[0].changes[0].image in text


def test_notes_of_a_comparison_stand_below_markdown_and_latex(tmp_path: Path) -> None:
    result().save(tmp_path)
    notes = ("mask_iou: 2 cases (<b>|x)", "a name of\ntwo lines")
    comparison = replace(compare([tmp_path], resamples=200), notes=notes)
    markdown = format_comparison(comparison, "markdown").splitlines()
    assert markdown[-3:] == ["", r"- mask\_iou: 2 cases (&lt;b&gt;|x)", "- a name of two lines"]
    latex = format_comparison(comparison, "latex").splitlines()
    assert latex[-3:] == [r"\end{tabular}", "% mask_iou: 2 cases (<b>|x)", "% a name of two lines"]
    assert json.loads(format_comparison(comparison, "json"))["notes"] == list(notes)


def test_every_format_counts_the_images_skipped() -> None:
    lost = tuple({"image": str(i), "error": f"image {i} is broken"} for i in range(2))
    found = {"a": replace(result(), skipped=lost), "b": result()}
    markdown = format_results(found, "markdown").splitlines()
    assert ["| 40 (2 images skipped) |" in line for line in markdown[2:]] == [True, True, False, False]
    assert format_results(found, "latex").count("& 40 (2 images skipped) &") == 2
    for style in ("csv", "json"):
        text = format_results(found, style)
        rows = json.loads(text) if style == "json" else list(csv.DictReader(io.StringIO(text)))
        assert {(row["run"], int(row["images_skipped"])) for row in rows} == {("a", 2), ("b", 0)}
        assert list(rows[0])[-3:] == ["settings", "labels", "images_skipped"]


def test_counts_of_metrics_that_a_row_has_not_are_dashes() -> None:
    whole = result(("gradcam", "center"), metrics=METRICS[:3])
    of_all, of_some = whole.rows
    scores = {name: {**of_some.scores[name], "count": 40 + i} for i, name in enumerate(METRICS[:3]) if i != 1}
    found = {"": replace(whole, rows=(of_all, replace(of_some, scores=scores)))}
    assert "| 40 / – / 42 |" in format_results(found, "markdown").splitlines()[-1]
    assert "& 40 / -- / 42 &" in format_results(found, "latex")
    assert "| 40 |" in format_results(found, "markdown").splitlines()[-2]


def test_runs_of_the_first_images_say_so() -> None:
    found = {"a": result(), "b": result(limit=3), "c": result(limit=0)}
    for style in ("markdown", "latex"):
        text = format_results(found, style)
        assert text.count("protocol default, first 3 images") == text.count("protocol default") / 3 > 0
    text = printed(200, print_results, found)
    assert "shapes, split test, protocol default, first 3 images" in text
    assert printed(80, print_results, {"": result(limit=3)}).startswith(
        "shapes, split test, protocol default, first 3 images, per cent"
    )
    assert [one["limit"] for one in json.loads(format_results(found, "json"))[:: 2 * len(METRICS)]] == [
        0,
        3,
        0,
    ]


def test_runs_of_other_settings_or_labels_say_so() -> None:
    changed = result(settings=["metrics.max_box_acc_v2.ious=[0.1]", "maps.frame=224"])
    found = {"a": result(settings=[]), "b": changed, "c": result(labels="predicted")}
    about = "shapes, split test, protocol default"
    put = f"{about}, --set metrics.max_box_acc_v2.ious=[0.1]; maps.frame=224"
    text = printed(250, print_results, found)
    assert put in text
    assert f"{about}, labels predicted" in text
    assert f"| a | {about} | gradcam |" in format_results(found, "markdown")
    assert printed(80, print_results, {"": changed}).startswith(f"{put}, per cent")
    for style in ("csv", "json"):
        text = format_results(found, style)
        rows = json.loads(text) if style == "json" else list(csv.DictReader(io.StringIO(text)))
        first = [row for row in rows if (row["maps"], row["metric"]) == ("gradcam", "mask_iou")]
        assert [row["settings"] for row in first] == ["", put.partition("--set ")[2], ""]
        assert [row["labels"] for row in first] == ["truth", "truth", "predicted"]


def test_no_number_is_published_for_a_protocol_with_settings() -> None:
    plain, changed = (
        result(metrics=("pointing_game",), protocol="pointing-voc07", settings=settings)
        for settings in ([], ["metrics.pointing_game.tolerance=3"])
    )
    assert any(line.source for line in lines({"a": changed, "b": plain}, published=True))
    assert not any(line.source for line in lines({"a": changed}, published=True))


def test_changes_of_an_unknown_metric_are_answered(tmp_path: Path) -> None:
    result().save(tmp_path)
    for style in ("table", "csv"):
        told = CliRunner().invoke(
            main, ["compare", str(tmp_path), "--changes", "mask_iuo", "--format", style]
        )
        assert (told.exit_code, told.stdout) == (1, "")
        assert "--changes: expected a metric that is compared, got 'mask_iuo'" in told.stderr
        assert "Did you mean 'mask_iou'?" in told.stderr


def test_commands_print_every_format_without_colour(tmp_path: Path) -> None:
    for name in ("a", "b"):
        result(seed=ord(name)).save(tmp_path / name)
    for command in ("table", "compare"):
        for style in ("table", "markdown", "csv", "latex", "json"):
            arguments = [command, str(tmp_path / "a"), str(tmp_path / "b"), "--format", style]
            got = CliRunner().invoke(main, arguments)
            assert got.exit_code == 0, got.output
            assert "\x1b" not in got.output
            if style == "json":
                json.loads(got.stdout)
    listed = CliRunner().invoke(main, ["compare", str(tmp_path / "a"), "--changes", "mask_iou", "--top", "2"])
    assert "2 of 40 cases that changed" in listed.output
    one = CliRunner().invoke(main, ["evaluate", "--maps", "center", "--limit", "3", "--format", "csv"])
    assert one.stdout.splitlines()[0].startswith("run,data,split,protocol,maps,metric,value")
