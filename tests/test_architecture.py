"""The walls: who may import whom, what `import wsod` pulls in, how long a file may be, what is public."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# each room and the rooms it may import; within a room everything may
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "registry": {"errors"},
    "output": {"errors"},
    "config": {"errors", "registry", "output", "textfiles"},
    "textfiles": set(),
    "device": {"errors"},
    "distributed": {"errors", "output", "device"},
    "memory": set(),
    "scoremaps": {"errors", "types", "config"},
    "stats": {"errors"},
    "paired": {"stats"},
    "comparison": {"errors", "config", "metrics", "paired", "results", "stats", "thresholds"},
    "strata": {"stats", "types"},
    "data": {"errors", "types", "registry", "config"},
    "boxes": {"errors", "types", "registry", "config", "scoremaps"},
    "metrics": {"errors", "types", "registry", "config", "scoremaps", "boxes", "textfiles"},
    "protocols": {"errors", "registry", "config", "scoremaps", "metrics"},
    "models": {"errors", "types", "registry", "config"},
    "maps": {"errors", "types", "registry", "config", "memory", "models", "output"},
    "pickles": set(),
    "mapfiles": {"errors", "types", "data", "output", "pickles"},
    "store": {"errors", "types", "data", "mapfiles", "output"},
    "results": {"errors", "types", "output", "strata", "textfiles"},
    "thresholds": {"errors", "config", "data", "metrics", "protocols", "results"},
    "board": {"types", "metrics", "results", "stats", "strata", "thresholds"},
    "probe": {"errors", "types", "data", "memory", "metrics", "models", "pipeline"},
    "pipeline": {"errors", "types", "data", "memory", "models", "maps"},
    "detectionfiles": {"errors", "types", "data"},
    "scoring": {"errors", "types", "board", "metrics", "pipeline", "request"},
    "fitting": {"errors", "config", "registry", "device", "data", "models", "maps", "pipeline"},
    "request": {
        "errors",
        "config",
        "distributed",
        "data",
        "models",
        "maps",
        "pipeline",
        "probe",
        "store",
        "detectionfiles",
    },
    "kept": {"", "errors", "types", "config", "distributed", "pipeline", "request", "results", "store"},
}
EVERYTHING = {*ALLOWED, "evaluation"}
ALLOWED["evaluation"] = EVERYTHING | {"report"}  # pictures of a run are drawn where its maps are at hand
ALLOWED["report"] = EVERYTHING
ALLOWED["cli"] = EVERYTHING | {"report", ""}
NO_TORCH = {
    "errors",
    "types",
    "registry",
    "config",
    "scoremaps",
    "stats",
    "paired",
    "comparison",
    "strata",
    "data",
    "boxes",
    "metrics",
    "protocols",
}
SOURCES = sorted([*(ROOT / "wsod").rglob("*.py"), *(ROOT / "atcon").rglob("*.py")])


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether at import time) of every import statement, TYPE_CHECKING blocks left out."""
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    lazy = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node not in lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append((node.module or "", node not in lazy))
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    module = name_of(path)
    package, here = module.split(".")[0], room(module)
    for target, _ in imports(path):
        top = target.split(".")[0]
        if top == "atcon":
            assert package == "atcon", f"{module} imports {target}"
        if top in ("click", "rich"):
            allowed = here in ("cli", "report")
            assert allowed, f"{module} imports {target}: only the command line and reports may"
        if top == "wsod" and package == "wsod" and here not in ("", "__main__"):
            assert room(target) in ALLOWED[here] | {here}, f"{module} imports {target}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_without_torch(path: Path) -> None:
    module = name_of(path)
    if module.startswith("wsod") and room(module) in NO_TORCH:
        for target, at_import in imports(path):
            torch = target.split(".")[0] in ("torch", "torchvision")
            assert not (torch and at_import), f"{module} imports {target}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 420, "one file, one job"


HELP = """
import wsod.cli, atcon.cli
from click.testing import CliRunner
commands = [(wsod.cli, "--help"), (wsod.cli, "evaluate", "-h"), (atcon.cli, "finetune", "-h")]
for command, *arguments in commands:
    result = CliRunner().invoke(command.main, arguments)
    assert result.exit_code == 0, result.output
"""


@pytest.mark.parametrize(
    "code",
    [
        "import wsod",
        "import atcon",
        "from wsod import heatmap_to_boxes",
        "from wsod import open_dataset; open_dataset('shapes')",
        "import wsod.metrics",
        "from wsod.protocols import load_protocol; load_protocol('default')",
        HELP,
    ],
)
def test_light_imports_leave_torch_alone(code: str) -> None:
    check = f"{code}\nimport sys\nassert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)


@pytest.mark.parametrize("package", ["wsod", "atcon"])
def test_public_names_are_all(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name).__doc__, f"{package}.{name} has no docstring"
    assert set(module.__all__) == set(module._HOMES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_say_what_is_public(path: Path) -> None:
    """`__all__` names what other modules import, and nothing that does not exist."""
    module_name = name_of(path)
    if path.name == "__main__.py":
        return
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree), f"{module_name} has no docstring"
    defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)
    if not defines:
        return
    module = importlib.import_module(module_name)
    for name in module.__all__:
        assert hasattr(module, name), f"{module_name}.__all__ names {name}"


def test_private_names_stay_at_home() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("wsod", "atcon")):
                private = [
                    alias.name
                    for alias in node.names
                    if alias.name.startswith("_") and not alias.name.startswith("__")
                ]
                assert not private, f"{path}: imports {private} from {node.module}"
