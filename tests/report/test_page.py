"""The report: one file that asks for nothing else, safe against its data, and alive in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.report.browser import AXE_SCRIPT, browser, needs_axe, needs_browser
from tests.report.runs import EVIL, result
from wsod import evaluate
from wsod.cli import main
from wsod.errors import ConfigError
from wsod.report.gallery import chosen_cases, report_rows
from wsod.report.page import write_report
from wsod.results import Result


class Tags(HTMLParser):
    """Every element's name and attributes, and whether ends match starts."""

    VOID = frozenset({"meta", "link", "input", "br", "image", "rect", "use", "line", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of controls on generated scenes, their maps kept."""
    folder = tmp_path_factory.mktemp("runs")
    for name, maps in (("a", ["center", "random"]), ("b", ["random:seed=1"])):
        evaluate(maps, data="shapes:count=8,size=96", out=folder / name, save_maps=True)
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    assert write_report([runs / "a", runs / "b"], runs / "report.html") == []
    return runs / "report.html"


def evil_folder(folder: Path) -> str:
    """A data set whose class and files try to break out of the page."""
    (folder / "images").mkdir(parents=True)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"a'b&{i}.png")
    rows = "".join(f'a\'b&{i}.png,"{EVIL}",5,5,30,30\n' for i in range(3))
    (folder / "boxes.csv").write_text("image,label,x0,y0,x1,y1\n" + rows)
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evil")
    evaluate(["center"], data=evil_folder(folder / "data"), out=folder / "run", save_maps=True)
    write_report([folder / "run"], folder / "report.html")
    return folder / "report.html"


def test_it_is_well_formed_and_asks_for_nothing_else(page: Path) -> None:
    text = page.read_text("utf-8")
    tags = Tags(text)
    assert tags.open == []
    for tag, attributes in tags.found:
        for name in ("src", "href", "xlink:href", "action", "data"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), f"{tag} {name}={target}"
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_only_its_own_script_may_run(page: Path) -> None:
    text = page.read_text("utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_every_score_has_its_interval_and_count(page: Path, runs: Path) -> None:
    text = page.read_text("utf-8")
    for name in ("a", "b"):
        for row in Result.load(runs / name).rows:
            for score in row.scores.values():
                low, high = score["interval"]
                shown = f"<b>{100 * score['value']:.1f}</b> <small>{100 * low:.1f}–{100 * high:.1f}</small>"
                assert f"{shown} <small>n {score['count']}" in text
                parts = [*(score["strata"] or {}).values()]
                known = score["class_intervals"] or {}
                parts += [{"value": score["per_class"][c], "interval": known[c]} for c in known]
                for part in parts:
                    if part["interval"]:
                        low, high = (f"{100 * bound:.1f}" for bound in part["interval"])
                        assert f"{100 * part['value']:.1f} <small>{low}–{high}</small>" in text


def test_names_and_paths_from_data_are_text(evil: Path) -> None:
    text = evil.read_text("utf-8")
    assert text.count("<script") == 1
    assert EVIL not in text
    tags = Tags(text)
    labels = [attributes["data-label"] for _, attributes in tags.found if "data-label" in attributes]
    assert labels == [EVIL] * 3


def test_every_case_is_drawn(page: Path, runs: Path) -> None:
    tags = Tags(page.read_text("utf-8")).found
    cases = {(case.image, case.label) for case in Result.load(runs / "a").cases}
    assert sum(tag == "article" for tag, _ in tags) == len(cases)
    pictures = [a for tag, a in tags if tag == "image" and a.get("class") == "heat"]
    assert len(pictures) == 3 * len(cases)
    photos = [a for tag, a in tags if tag == "image" and "id" in a]
    assert len(photos) == len(cases)
    assert all(str(a["href"]).startswith("data:image/webp;base64,") for a in photos)


def test_maps_that_were_not_kept_are_said_with_the_way_to_keep_them(tmp_path: Path) -> None:
    evaluate(["center"], data="shapes:count=3,size=96", out=tmp_path)
    (warning,) = write_report([tmp_path], tmp_path / "report.html")
    assert "--save-maps" in warning
    assert "no map kept" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_maps_of_an_earlier_run_are_not_shown(tmp_path: Path) -> None:
    """A run in the same folder, other images, maps not kept."""
    for seed in (0, 1):
        evaluate(["center"], data=f"shapes:count=2,size=96,seed={seed}", out=tmp_path, save_maps=not seed)
    (warning,) = write_report([tmp_path], tmp_path / "report.html")
    assert "maps were not kept" in warning


def test_data_that_moved_is_said_and_found_again(tmp_path: Path, runs: Path) -> None:
    moved = Result.load(runs / "a")
    replace(moved, config={**moved.config, "data": "voc2012:nowhere"}).save(runs / "moved")
    warnings = write_report([runs / "moved"], tmp_path / "report.html")
    assert any("nowhere" in text and "--data" in text for text in warnings)
    write_report([runs / "moved"], tmp_path / "found.html", data="shapes:count=8,size=96")
    assert "data:image/webp" in (tmp_path / "found.html").read_text("utf-8")


def test_the_worst_the_best_and_a_fair_draw_of_the_others(tmp_path: Path) -> None:
    result(("a",), images=300).save(tmp_path)
    rows = report_rows({tmp_path: Result.load(tmp_path)}, {tmp_path: "run"})
    chosen = chosen_cases(rows, "mask_iou", 90)
    scores = [rows[0].scores[case]["mask_iou"] for case in chosen]
    every = sorted(some["mask_iou"] for some in rows[0].scores.values())
    assert len(set(chosen)) == 90
    assert scores[:30] == every[:30]
    assert scores[-30:] == every[-30:]
    assert 0.4 < float(np.mean(scores[30:60])) < 0.6
    assert chosen_cases(rows, "mask_iou", 600) == sorted(
        rows[0].scores, key=lambda case: rows[0].scores[case]["mask_iou"]
    )
    with pytest.raises(ConfigError, match="--metric"):
        write_report([tmp_path], tmp_path / "x.html", metric="pxap")


@pytest.mark.slow
def test_two_hundred_cases_by_four_methods_stay_below_15_mb(tmp_path: Path) -> None:
    """Noise, which compresses worst of all."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    lines = ["image,label,x0,y0,x1,y1"]
    for i in range(100):
        pixels = np.random.default_rng(i).integers(0, 255, (375, 500, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{i}.jpg", quality=90)
        lines += [f"{i}.jpg,{name},100,100,300,300" for name in ("one", "other")]
    (tmp_path / "data" / "boxes.csv").write_text("\n".join(lines))
    for k in range(4):
        (tmp_path / f"maps{k}").mkdir()
        for i in range(100):
            np.save(tmp_path / f"maps{k}" / f"{i}.npy", np.random.default_rng([k, i]).random((60, 80)))
    maps = [tmp_path / f"maps{k}" for k in range(4)]
    evaluate(maps, data=f"folder:{tmp_path / 'data'}", metrics=["energy_pointing_game"], out=tmp_path / "run")
    assert write_report([tmp_path / "run"], tmp_path / "report.html") == []
    text = (tmp_path / "report.html").read_text("utf-8")
    assert text.count('class="heat"') == 800
    assert len(text.encode()) < 15e6


@pytest.mark.slow
def test_command(tmp_path: Path, runs: Path) -> None:
    target = tmp_path / "x.html"
    told = CliRunner().invoke(main, ["report", str(runs / "a"), "--out", str(target), "--cases", "4"])
    assert told.exit_code == 0, told.output
    assert "written:" in told.stdout
    assert target.read_text("utf-8").count("<article") == 4
    wrong = CliRunner().invoke(main, ["report", "nowhere", "--out", str(target)])
    assert wrong.exit_code == 1
    assert "wsod evaluate --maps center --out nowhere" in wrong.stderr


def shown(driver: Any) -> list[str]:
    cards = driver.find_elements("css selector", ".card:not([hidden])")
    return [card.get_attribute("id") for card in cards]


@needs_browser
@pytest.mark.slow
def test_it_works_in_a_browser(page: Path, runs: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    with browser(tmp_path / "profile") as driver:
        driver.get(page.as_uri())
        every = shown(driver)
        cases = {(case.image, case.label) for case in Result.load(runs / "a").cases}
        assert len(every) == len(cases)

        # worst first by the chosen score, then best first
        def scores() -> list[float]:
            cards = "return [...document.querySelectorAll('.card:not([hidden])')]"
            read = cards + ".map(c => JSON.parse(c.dataset.scores)"
            chosen = "[Number(document.getElementById('score').value)])"
            return [value for value in driver.execute_script(read + chosen) if value is not None]

        assert scores() == sorted(scores())
        Select(driver.find_element("id", "order")).select_by_value("best")
        assert scores() == sorted(scores(), reverse=True)
        assert len(set(scores())) > 1

        # by class, by name, by score, and all back again
        label = next(iter(cases))[1]
        Select(driver.find_element("id", "class")).select_by_visible_text(label)
        assert len(shown(driver)) == sum(one == label for _, one in cases) < len(every)
        assert driver.find_element("id", "shown").text.startswith(str(len(shown(driver))))
        driver.find_element("css selector", "button[type=reset]").send_keys(Keys.ENTER)
        # a form's values are reset after its event
        WebDriverWait(driver, 10).until(lambda found: len(shown(found)) == len(every))
        driver.find_element("id", "text").send_keys("00003")
        assert len(shown(driver)) == sum("00003" in image for image, _ in cases)
        driver.find_element("id", "text").send_keys(Keys.BACKSPACE * 5)
        driver.find_element("id", "low").send_keys("50")
        assert all(value >= 0.5 for value in scores())
        assert 0 < len(shown(driver)) < len(every)
        driver.find_element("id", "low").send_keys(Keys.BACKSPACE * 2)

        # a method less, a layer more
        panel = driver.find_element("css selector", ".card:not([hidden]) .panel[data-row='1']")
        assert panel.is_displayed()
        driver.find_element("css selector", ".method[value='1']").send_keys(Keys.SPACE)
        assert not panel.is_displayed()
        mask = driver.find_element("css selector", ".card:not([hidden]) .panel[data-row='0'] .mask")
        assert not mask.is_displayed()
        driver.find_element("css selector", ".layer[value='mask']").send_keys(Keys.SPACE)
        assert mask.is_displayed()

        # tables sort by their heads, from the keyboard
        head = driver.find_element("css selector", "#scores th.number button")
        head.send_keys(Keys.ENTER)
        rows = "return [...document.querySelectorAll('#scores tbody tr')]"
        values = rows + ".map(r => Number(r.cells[2].dataset.value))"
        down = driver.execute_script(values)
        assert down == sorted(down, reverse=True)
        head.send_keys(Keys.ENTER)
        assert driver.execute_script(values) == sorted(down)

        # light and dark, remembered
        colour = "return getComputedStyle(document.body).backgroundColor"
        Select(driver.find_element("id", "theme")).select_by_value("dark")
        assert driver.execute_script(colour) == "rgb(22, 24, 27)"
        driver.refresh()
        assert driver.execute_script(colour) == "rgb(22, 24, 27)"
        Select(driver.find_element("id", "theme")).select_by_value("light")
        assert driver.execute_script(colour) == "rgb(255, 255, 255)"

        # no picture is broken, nothing is wider than the screen, the console is silent
        decoded = (
            "const done = arguments[0]; Promise.all([...document.querySelectorAll('image')].map(i => {"
            "const p = new Image(); p.src = i.getAttribute('href');"
            "return p.decode().then(() => p.naturalWidth)"
            "})).then(done)"
        )
        assert min(driver.execute_async_script(decoded)) > 8
        for width in (1400, 480):
            driver.set_window_size(width, 900)
            wide = driver.execute_script("return document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, width
        assert driver.get_log("browser") == []


@needs_browser
@pytest.mark.slow
def test_hostile_names_do_nothing_in_a_browser(evil: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as driver:
        driver.get(evil.as_uri())  # an alert would make every next call fail
        heads = [head.text for head in driver.find_elements("css selector", ".card h3")]
        assert all(head.startswith(EVIL) for head in heads)
        assert len(heads) == 3
        assert driver.execute_script("return document.scripts.length") == 1
        assert driver.get_log("browser") == []


@needs_browser
@pytest.mark.slow
def test_controls_have_names_and_focus_goes_through_them(page: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    with browser(tmp_path / "profile") as driver:
        driver.get(page.as_uri())
        driver.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true })")
        for element in driver.find_elements("css selector", "select, input, button"):
            assert element.accessible_name, element.get_attribute("outerHTML")[:200]
        # pictures far down the page are laid out when they are scrolled to: their label is what can be read
        for picture in driver.find_elements("css selector", "svg[role=img]"):
            assert picture.get_attribute("aria-label"), picture.get_attribute("outerHTML")[:200]
        driver.get(page.as_uri())  # sections closed again
        reached = []
        for _ in range(60):
            driver.switch_to.active_element.send_keys(Keys.TAB)
            reached.append(driver.switch_to.active_element.get_attribute("id"))
        assert [name for name in reached if name in {"class", "text", "score", "low", "high", "order"}] == [
            "class",
            "text",
            "score",
            "low",
            "high",
            "order",
        ]


@needs_browser
@needs_axe
@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_fault(page: Path, tmp_path: Path, theme: str) -> None:
    from selenium.webdriver.support.ui import Select

    assert AXE_SCRIPT is not None
    with browser(tmp_path / "profile") as driver:
        driver.get(page.as_uri())
        Select(driver.find_element("id", "theme")).select_by_value(theme)
        driver.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true })")
        driver.execute_script(AXE_SCRIPT.read_text("utf-8"))
        found = driver.execute_async_script("axe.run().then(arguments[0])")
    assert len(found["passes"]) > 30
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found["violations"]] == []


@needs_browser
@pytest.mark.slow
def test_everything_is_done_by_keyboard(page: Path, tmp_path: Path) -> None:
    """Skip to the cases, choose a class, hide a map, sort a table, open a fold; focus is always seen."""
    from selenium.webdriver.common.keys import Keys

    with browser(tmp_path / "profile") as driver:
        driver.get(page.as_uri())

        def press(*keys: str) -> Any:
            driver.switch_to.active_element.send_keys(*keys)
            return driver.switch_to.active_element

        def reach(wanted: str) -> Any:
            for _ in range(80):
                focused = press(Keys.TAB)
                outline = driver.execute_script("return getComputedStyle(arguments[0]).outlineStyle", focused)
                assert outline != "none", focused.get_attribute("outerHTML")[:200]
                if driver.execute_script(f"return arguments[0].matches({wanted!r})", focused):
                    return focused
            raise AssertionError(f"{wanted} is not reached")

        every = len(shown(driver))
        assert reach("a.skip").is_displayed()
        press(Keys.ENTER)
        reach("#class")
        press(Keys.ARROW_DOWN)
        assert 0 < len(shown(driver)) < every
        reach(".method[value='0']")
        press(Keys.SPACE)
        assert not driver.find_element(
            "css selector", ".card:not([hidden]) .panel[data-row='0']"
        ).is_displayed()
        driver.get(page.as_uri())
        head = reach("#scores th button")
        press(Keys.ENTER)
        assert head.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
        folded = reach("summary").find_element("xpath", "..")
        before = folded.get_attribute("open")
        press(Keys.ENTER)
        assert folded.get_attribute("open") != before
