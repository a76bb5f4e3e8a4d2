"""What a report says of its cases: whose scores they are, how many were drawn, how to see their maps."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.runs import result
from wsod import evaluate
from wsod.report.figures import histograms
from wsod.report.gallery import report_rows
from wsod.report.page import write_report
from wsod.results import Result


def test_scores_of_the_whole_image_are_marked(tmp_path: Path) -> None:
    result(("gradcam",), metrics=("top1_loc", "corloc_image", "max_box_acc"), images=2).save(tmp_path)
    write_report([tmp_path], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    names = set(re.findall(r"<dt>(.*?)</dt>", text))
    assert names == {"Top-1 Loc (image)", "CorLoc (image)", "MaxBoxAcc"}
    assert {name for name in names if f">{name}</option>" in text} == names


def test_a_report_of_the_first_images_says_so(tmp_path: Path) -> None:
    result(limit=7).save(tmp_path)
    write_report([tmp_path], tmp_path / "report.html")
    assert "protocol default, first 7 images</p>" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize(("images", "said"), [(100, "(200 cases)"), (101, "(200 cases drawn at random)")])
def test_cases_are_said_to_be_drawn_where_some_were_not(tmp_path: Path, images: int, said: str) -> None:
    """A case is one of two classes."""
    rows = report_rows({tmp_path: result(("a",), images=images)}, {tmp_path: ""})
    assert said in next(histograms(rows, {0: [0.5] * 200})).title


@pytest.mark.parametrize("recorded", ["wsod evaluate --out a", "wsod evaluate --save-maps --out a"])
def test_the_command_that_keeps_maps_asks_for_them_once(tmp_path: Path, recorded: str) -> None:
    evaluate("center", data="shapes:count=2,size=48", out=tmp_path)
    run = Result.load(tmp_path)
    replace(run, provenance={**run.provenance, "command": recorded}).save(tmp_path)
    (warning,) = write_report([tmp_path], tmp_path / "report.html")
    assert f"To see them: {recorded}" in warning
    assert warning.count("--save-maps") == 1
