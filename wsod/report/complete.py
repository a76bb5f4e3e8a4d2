"""What a shell completes: names from the registries, read when it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

import click
from click.shell_completion import CompletionItem

__all__ = [
    "ARCHITECTURES",
    "DATA",
    "HEADS",
    "MAPS",
    "METHOD",
    "METRICS",
    "PROTOCOLS",
    "RUN",
    "completer",
    "of",
]

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completer(names: Callable[[], Iterable[str]], *, files: bool = False) -> Completer:
    """An option's `shell_complete`.

    Args:
        names: what may stand there.
        files: a path may too; completed where no name begins like it.
    """

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")] * files

    return complete


def of(module: str, name: str) -> Callable[[], Iterable[str]]:
    """The names of a registry, or what a function of the module lists."""

    def names() -> Iterable[str]:
        found = getattr(import_module(module), name)
        return list(found() if callable(found) else found)

    return names


def _data() -> Iterable[str]:
    # what comes after the colon is the user's
    return [name if name == "shapes" else f"{name}:" for name in of("wsod.data", "DATASETS")()]


METHOD = completer(of("wsod.maps", "METHODS"))
MAPS = completer(of("wsod.maps", "METHODS"), files=True)
METRICS = completer(of("wsod.metrics", "METRICS"))
PROTOCOLS = completer(of("wsod.protocols", "protocol_names"), files=True)
DATA = completer(_data)
ARCHITECTURES = completer(of("wsod.models.architectures", "ARCHITECTURES"))
HEADS = completer(of("wsod.models.heads", "HEADS"))
RUN = completer(list, files=True)
