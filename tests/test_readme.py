"""The README tells the truth: its tables are the registries', its commands and code run.

`python tests/test_readme.py` writes the tables anew.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.conftest import ROOT

README = ROOT / "README.md"
MARKS = re.compile(r"<!-- listing: (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
FEW = ["--limit", "16"]


def with_tables(text: str) -> str:
    from wsod.report.listing import LISTINGS

    def table(match: re.Match[str]) -> str:
        return f"<!-- listing: {match[1]} -->\n\n{LISTINGS[match[1]]().markdown()}\n\n<!-- end -->"

    return MARKS.sub(table, text)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_tables_are_those_of_the_registries() -> None:
    text = README.read_text("utf-8")
    assert text == with_tables(text), "run: python tests/test_readme.py"


def test_links_lead_somewhere() -> None:
    for page in [README, *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"make ([a-z][a-z-]+)", README.read_text("utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.slow
def test_commands_and_code_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, as printed, on a few images: one run's files are the next one's input."""
    import atcon.cli
    import wsod.cli

    monkeypatch.chdir(tmp_path)
    programs: dict[str, Any] = {"wsod": wsod.cli.main, "atcon": atcon.cli.main}
    for program, *arguments in commands():
        few = FEW if arguments[0] in ("finetune", "evaluate", "maps") else []
        result = CliRunner().invoke(programs[program], [*arguments, *few])
        assert result.exit_code == 0, f"{program} {shlex.join(arguments)}\n{result.output}\n{result.stderr}"
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "runs/first/ft.pt").exists()
    assert (tmp_path / "runs/a/result.json").exists()


def test_the_three_uses_are_there() -> None:
    words = [" ".join(command) for command in commands()]
    assert any(word.startswith("atcon finetune") for word in words)
    assert any(word.startswith("wsod evaluate --maps gradcam --checkpoint") for word in words)
    assert any("wsod.heatmap_to_boxes(" in code for code in blocks("python"))


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text("utf-8")), "utf-8")
