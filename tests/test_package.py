"""What is installed: protocols, recipes, templates, commands; and what strangers look for in a repository."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from wsod import __version__

needs_setuptools = pytest.mark.skipif(
    importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed here"
)


def copied(folder: Path) -> Path:
    """The files under version control: building leaves its traces beside them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@needs_setuptools
@pytest.mark.slow
def test_the_wheel_has_everything_and_works_elsewhere(tmp_path: Path) -> None:
    source, target = copied(tmp_path / "source"), tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"wsod/eval_configs/{path.name}" for path in (ROOT / "eval_configs").glob("*.toml")}
    wanted |= {f"atcon/recipes/{path.name}" for path in (ROOT / "atcon/recipes").glob("*.toml")}
    for package in ("wsod", "atcon"):
        files = [
            path for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".html", ".css", ".js")
        ]
        tracked = [path for path in files if (source / path.relative_to(ROOT)).exists()]
        wanted |= {path.relative_to(ROOT).as_posix() for path in tracked} | {f"{package}/py.typed"}
    assert not wanted - names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    code = "import wsod, wsod.cli; assert 'installed' in wsod.__file__, wsod.__file__; wsod.cli.main()"
    command = [
        sys.executable,
        "-c",
        code,
        "evaluate",
        "--maps",
        "center",
        "--limit",
        "2",
        "--config",
        "corloc-voc",
    ]
    environment = {**os.environ, "PYTHONPATH": str(target), "COLUMNS": "200"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "center" in ended.stdout


def test_one_version_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {__version__}" in citation
    assert "license: MIT" in citation
    assert "MIT" in (ROOT / "LICENSE").read_text()


def test_the_workflow_runs_what_the_readme_says() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"run: make ([a-z-]+)", workflow):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert os.access(ROOT / ".ci/run", os.X_OK)
    lowest = re.search(r'python_requires=">=([\d.]+)"', (ROOT / "setup.py").read_text())
    assert lowest is not None
    versions = re.findall(r'"(3\.\d+)"', workflow.partition("matrix:")[2].partition("]")[0])
    assert versions[0] == lowest[1]
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["target-version"]
    assert ruff == "py" + lowest[1].replace(".", "")
