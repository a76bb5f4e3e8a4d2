"""The documentation tells the truth: commands and code run, the others are known to the command line."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from wsod.maps import METHODS
from wsod.protocols import protocol_names

PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCES = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FEW = {"finetune": ["--limit", "16"], "evaluate": ["--limit", "8"], "maps": ["--limit", "8"]}


def runnable(page: Path) -> list[tuple[str, str]]:
    """The page's commands and code, in order."""
    return [
        (kind, code) for kind, code in FENCES.findall(page.read_text("utf-8")) if kind in ("bash", "python")
    ]


def programs() -> dict[str, Any]:
    import atcon.cli
    import wsod.cli

    return {"wsod": wsod.cli.main, "atcon": atcon.cli.main}


def shown() -> list[tuple[str, list[str]]]:
    """Every other command, on whatever page: the line may go on after a backslash."""
    found = []
    for page in [ROOT / "README.md", *PAGES]:
        text = FENCES.sub(lambda m: "" if m[1] in ("bash", "python") else m[0], page.read_text("utf-8"))
        text = re.sub(r"\\\n\s*", " ", text)
        for line in re.findall(r"^(?: {4}|>? ?)((?:wsod|atcon) (?!\.)[a-z].*)$", text, re.MULTILINE):
            command = re.split(r"\s{2,}|\s>\s|\s#", line)[0]
            if page.name != "README.md" or "--" in command:
                found.append((page.name, shlex.split(command)))
    return found


def launched(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A command by torchrun, on a few images."""
    few = next(FEW[word] for word in arguments if word in FEW)
    command = [sys.executable, "-m", "torch.distributed.run", *arguments, *few]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.stem)
def test_commands_and_code_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, as printed, on a few images: one step's files are the next one's input."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for kind, code in runnable(page):
        if kind == "python":
            exec(compile(code, page.name, "exec"), names)
            continue
        for line in code.splitlines():
            if not line.strip():
                continue
            program, *arguments = shlex.split(line, comments=True)
            if program == "torchrun":
                done = launched(arguments)
                assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
                continue
            few = FEW.get(arguments[0], [])
            result = CliRunner().invoke(programs()[program], [*arguments, *few])
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.stderr}"


@pytest.mark.parametrize(
    ("page", "words"), shown(), ids=lambda value: value if isinstance(value, str) else None
)
def test_commands_that_need_other_data_are_known(page: str, words: list[str]) -> None:
    """Sub-command, options and choices exist, and so do the names of maps, metrics and protocols."""
    from wsod.metrics import METRICS
    from wsod.protocols import load_protocol

    program, *arguments = words
    command: click.Command = programs()[program]
    context = click.Context(command, info_name=program)
    while isinstance(command, click.Group) and arguments and command.get_command(context, arguments[0]):
        found = command.get_command(context, arguments.pop(0))
        assert found is not None
        command, context = found, click.Context(found, parent=context)
    assert not isinstance(command, click.Group) or not arguments, words
    values, _, _ = command.make_parser(context).parse_args(args=list(arguments))
    if program == "wsod" and command.name in ("evaluate", "maps"):
        for name in values.get("maps") or ():
            assert "/" in name or name.isupper() or "_" in name or METHODS[name], words
        for name in values.get("metrics") or ():
            assert METRICS[name]
        config = values.get("config") or "default"
        assert str(config).endswith(".toml") or load_protocol(config), words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", ["wsod", "atcon"])
def test_shell_completion_is_there(program: str, shell: str) -> None:
    """click's own: the script, and an answer to `wsod ev<tab>`, from the words the tour says."""
    tour = (ROOT / "docs" / "tour.md").read_text("utf-8")
    assert f"_{program.upper()}_COMPLETE={'fish' if shell == 'fish' else 'bash'}_source {program}" in tour
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    complete = kind(programs()[program], {}, program, f"_{program.upper()}_COMPLETE")
    assert program in complete.source_template % complete.source_vars()
    start, whole = ("ev", "evaluate") if program == "wsod" else ("fi", "finetune")
    assert [item.value for item in complete.get_completions([], start)] == [whole]


@pytest.mark.parametrize("page", ["protocols-each", "maps"])
def test_pages_made_from_the_code_are_up_to_date(page: str) -> None:
    script = ROOT / "docs" / f"make_{page.split('-')[0]}_page.py"
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    assert text == runpy.run_path(str(script))["page"](), f"run: python docs/{script.name}"
    for name in protocol_names() if page == "protocols-each" else METHODS:
        assert (f"\n## {name}\n" if page == "protocols-each" else f"| `{name}` |") in text


TABS = [
    ("wsod", "evaluate --maps gradc", {"gradcam", "gradcam++"}),
    ("wsod", "evaluate --maps runs/ma", {"runs/ma"}),
    ("wsod", "evaluate --metrics mio", {"miou", "miou_atcon"}),
    ("wsod", "evaluate --config voc", {"voc-ap-07", "voc-ap-area"}),
    ("wsod", "evaluate --data voc", {"voc2007:", "voc2012:"}),
    ("wsod", "maps --arch resnet5", {"resnet50"}),
    ("wsod", "evaluate --labels t", {"truth", "topk"}),
    ("wsod", "fit broad", {"broadcam"}),
    ("wsod", "show photo.jpg --maps legr", {"legrad"}),
    ("wsod", "report runs/a --metric max", {"max_box_acc", "max_box_acc_v2"}),
    ("wsod", "data check wso", {"wsol:"}),
    ("wsod", "list proto", {"protocols"}),
    ("wsod", "export --maps hires", {"hirescam"}),
    ("atcon", "finetune --recipe quick", {"quickstart"}),
    ("atcon", "finetune --objective gai", {"gain"}),
    ("atcon", "finetune --head lf", {"lfi"}),
    ("atcon", "finetune --arch small", {"smallnet"}),
    ("atcon", "finetune --data coc", {"coco:"}),
    ("atcon", "experiment small", {"small-sets"}),
]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_names_are_completed(shell: str) -> None:
    """By the protocol the shells speak: words in the environment, a line an answer."""
    for program, words, wanted in TABS:
        *_, last = line = [program, *words.split()]
        about = {f"_{program.upper()}_COMPLETE": f"{shell}_complete", "COMP_WORDS": " ".join(line)}
        about["COMP_CWORD"] = last if shell == "fish" else str(len(line) - 1)
        told = CliRunner().invoke(programs()[program], prog_name=program, env=about)
        parts = [part for answer in told.stdout.splitlines() for part in answer.split(",")]
        assert wanted <= set(parts), (words, told.output)
        others = {"gradient", "corloc", "center", "supervised"} - wanted
        assert not others & set(parts), words


def test_the_index_leads_to_every_how_to() -> None:
    text = (ROOT / "docs" / "index.md").read_text("utf-8")
    for page in PAGES:
        assert not page.name.startswith("howto-") or f"({page.name})" in text, page.name
