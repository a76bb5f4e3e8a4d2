"""What both command lines share: errors as one red line, progress bars, the consoles."""

from __future__ import annotations

import errno
import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import rich.text
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from wsod.errors import WsodError

__all__ = ["Group", "Text", "console", "fail", "progress_bar", "stage_bars", "warn"]


# control characters but for the end of a line, and those that turn the direction of what follows
_STEERS = re.compile(r"[\0-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Text(rich.text.Text):
    """Control characters are shown as escapes: a name found in data must not steer the terminal."""

    def __init__(self, text: str = "", style: str = "", *, no_wrap: bool | None = None) -> None:
        shown = _STEERS.sub(lambda found: ascii(found[0])[1:-1], text)
        super().__init__(shown, style, no_wrap=no_wrap)


def console() -> Console:
    """For results: standard output, as wide as the terminal (wide where it is piped, so nothing wraps)."""
    terminal = sys.stdout is not None and sys.stdout.isatty()  # None where it was closed
    return Console(highlight=False) if terminal else Console(highlight=False, width=200)


def _stderr() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str) -> None:
    """One red line on standard error."""
    _stderr().print(Text(message, "red"))


def warn(message: str) -> None:
    """One yellow line on standard error."""
    _stderr().print(Text(message, "yellow"))


class Group(click.Group):
    """A command group whose bad input ends in one red line and exit code 1, and whose typos are answered.

    So do a full disk behind standard output, and Ctrl-C, with exit code 130.
    """

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")  # of letters that its encoding has not
        try:
            return super().invoke(ctx)
        except click.MissingParameter as error:
            example = _example(error.ctx.command if error.ctx else None)
            if example and error.ctx:
                raise click.UsageError(
                    f"{error.format_message()} For example: {example}", error.ctx
                ) from error
            raise
        except WsodError as error:
            fail(" ".join(str(error).split()))
            ctx.exit(1)
        except OSError as error:
            if error.errno == errno.EPIPE:  # `| head` has seen enough: click ends without a word
                raise
            where = error.filename or "output"
            fail(str(WsodError(where, "a file that can be read or written", error.strerror or error)))
            ctx.exit(1)
        except KeyboardInterrupt as error:
            fail(f"stopped. {error}".strip())
            ctx.exit(130)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from difflib import get_close_matches

        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            close = get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            ctx.fail(f"No such command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)


def _example(command: click.Command | None) -> str:
    """The first example of a command's help: the first line after a backspace, up to its explanation."""
    _, mark, examples = ((command.help if command else "") or "").partition("\b")
    return examples.strip().split("\n")[0].split("   ")[0].strip() if mark else ""


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error; call the yielded function with (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        # shown from the first step on: no empty bar stays above an error found before it
        task = progress.add_task(escape(description), total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)


@contextmanager
def stage_bars() -> Iterator[Callable[[str, int, int, str], None]]:
    """A bar a stage on standard error; call the yielded function with (stage, done, total, note)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(escape(stage), total=total, note="")
            progress.update(tasks[stage], completed=done, total=total, note=escape(note))

        yield update
