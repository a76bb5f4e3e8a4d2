"""How commands end: by Ctrl-C, by an output that is closed, full, or has too few letters."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from wsod.errors import WsodError
from wsod.report.console import Group, console
from wsod.report.tables import print_table

SCRIPT = """
import click, os, signal, sys
from wsod.report.console import Group, console

@click.group(cls=Group)
def main(): ...

@main.command()
def stop():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    os.kill(os.getpid(), signal.SIGINT)

@main.command()
def say():
    console().print("Σ 1–2")

main()
"""


def run(word: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", SCRIPT, word], stderr=subprocess.PIPE, **how)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals, /dev/full")
def test_no_end_is_a_traceback(tmp_path: Path) -> None:
    stopped = run("stop")
    assert (stopped.returncode, stopped.stderr) == (130, b"stopped.\n")
    closed = run("say", preexec_fn=lambda: os.close(1))
    assert (closed.returncode, closed.stderr) == (0, b"")
    ascii_only = run("say", stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (ascii_only.returncode, ascii_only.stderr) == (0, b"")
    assert ascii_only.stdout == b"\\u03a3 1\\u20132\n"
    with open("/dev/full", "wb") as full:
        ended = run("say", stdout=full)
    assert ended.returncode != 0
    assert ended.stderr.startswith(b"output: expected a file that can be read or written, got No space left")
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt("Go on with --resume a."), 130, "stopped. Go on with --resume a.\n"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 1, "a/b: expected a file that can be"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),
        (WsodError("a\x1b]0;x.png é", "an image", "none"), 1, r"a\x1b]0;x.png é: expected an image"),
    ],
)
def test_what_is_said_and_the_exit_code(error: BaseException, code: int, said: str) -> None:
    @click.group(cls=Group)
    def main() -> None: ...

    @main.command()
    def end() -> None:
        raise error

    result = CliRunner().invoke(main, ["end"])
    assert result.exit_code == code
    assert result.stderr.startswith(said)
    assert bool(result.stderr) == bool(said)


def test_names_in_tables_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(console(), "\x1b[31mtitle", ["\x9bname"], [["a\x1b]0;x\u202eé\nb"]])
    said = capsys.readouterr().out
    assert {r"\x1b[31mtitle", r"\x9bname", r"a\x1b]0;x\u202eé", "b"} <= set(said.split())
    assert said.replace("\n", "").isprintable()
