"""The command line: thin. Every command imports what it needs when it runs, so `--help` is instant."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import wsod
from wsod.report.complete import ARCHITECTURES, DATA, HEADS, completer, of
from wsod.report.console import Group, console, progress_bar, stage_bars, warn

if TYPE_CHECKING:
    from atcon.config import DataConfig
    from atcon.train import Event

__all__ = ["main"]

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(wsod.__version__, prog_name="atcon")
def main() -> None:
    """Training that makes the attention of image classifiers better."""


@main.command()
@click.option(
    "--recipe",
    metavar="NAME|FILE.toml",
    shell_complete=completer(of("atcon.config", "recipes"), files=True),
    help="What to run; see `atcon list`. [default: quickstart]",
)
@click.option("--data", metavar="SPEC", shell_complete=DATA, help="Data set, as for `wsod evaluate --data`.")
@click.option(
    "--arch",
    shell_complete=ARCHITECTURES,
    help="A torchvision name, timm:NAME, module:factory, or smallnet.",
)
@click.option(
    "--weights", metavar="none|default|FILE", help="Where training starts from: FILE may be an ft.pt."
)
@click.option("--head", shell_complete=HEADS, help="Classification head; see `wsod list heads`.")
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    metavar="NAME",
    shell_complete=completer(of("atcon.objectives", "OBJECTIVES")),
    help="Instead of the recipe's.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any option of the recipe.")
@click.option("--compile", "compiled", is_flag=True, help="torch.compile, where the objectives allow it.")
@click.option("--limit", type=click.IntRange(min=0), default=None, help="First N images of each split only.")
@click.option("--out", type=FOLDER, help="Where the run is written. [default: runs/RECIPE]")
@click.option(
    "--resume", type=FOLDER, metavar="DIR", help="Go on with the run in DIR; takes no other option."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
def finetune(
    out: Path | None,
    resume: Path | None,
    device: str,
    compiled: bool,
    settings: tuple[str, ...],
    **said: Any,
) -> None:
    """Train a classifier by a recipe; leaves DIR/ft.pt for `wsod evaluate --checkpoint`.

    \b
    atcon finetune
    atcon finetune --recipe supervised --data voc2012:VOCdevkit --arch resnet50 --out runs/start
    atcon finetune --recipe atcon --data voc2012:VOCdevkit --weights runs/start/ft.pt --out runs/atcon
    atcon finetune --resume runs/atcon
    torchrun --nproc-per-node 4 -m atcon finetune --recipe combining --weights runs/start/ft.pt
    """
    from atcon import train
    from atcon.config import load_config
    from atcon.run import Run

    with stage_bars() as bars:
        if resume is not None:
            given = [
                name
                for name, value in {**said, "out": out, "set": settings, "compile": compiled}.items()
                if value
            ]
            if given:
                raise click.UsageError(f"--resume goes on with the run as it was; leave out --{given[0]}")
            config = Run.config_of(resume)
            path = train.resume(resume, device=device, progress=_shown(bars))
        else:
            config = load_config(
                said["recipe"],
                objectives=said["objectives"],
                settings=settings,
                overrides=_tables(said, compiled),
            )
            path = train.finetune(config, out, device=device, progress=_shown(bars))
    if os.environ.get("RANK", "0") != "0":
        return  # one process of `torchrun` speaks
    # soft_wrap: a line broken at the width of the terminal could not be copied
    console().print(
        f"checkpoint: {path}\nevaluate:   {_evaluation(path, config.data)}", markup=False, soft_wrap=True
    )


def _evaluation(path: Path, data: DataConfig) -> str:
    """The command that evaluates a run's checkpoint on its data, to be typed as it is."""
    words = ["wsod", "evaluate", "--maps", "gradcam", "--checkpoint", str(path)]
    if data.spec != type(data).spec:
        words += ["--data", data.spec]
    if data.val != type(data).val:
        words += ["--split", data.val]
    return shlex.join(words)


def _tables(said: dict[str, Any], compiled: bool) -> dict[str, Any]:
    """The options with names of their own, as recipe tables."""
    model = {key: said[key] for key in ("arch", "weights", "head") if said[key] is not None}
    data = {"spec": said["data"], "limit": said["limit"]}
    data = {key: value for key, value in data.items() if value is not None}
    return {"model": model, "data": data, **({"train": {"compile": True}} if compiled else {})}


def _shown(bars: Callable[[str, int, int, str], None]) -> Callable[[Event], None]:
    scores = ""

    def show(event: Event) -> None:
        nonlocal scores
        if event.kind == "note":
            warn(event.note)
            return
        if event.kind in ("evaluation", "end"):
            scores = "  ".join(f"{name} {100 * value:.1f} %" for name, value in event.values.items())
        loss = f"loss {event.values['loss']:.3f}  " if event.kind == "step" else ""
        bars(event.stage, event.step, event.steps, loss + (f"val: {scores}" if scores else ""))

    return show


@main.command()
@click.argument("name", shell_complete=completer(of("atcon.experiments", "EXPERIMENTS")))
@click.option("--data", metavar="SPEC", shell_complete=DATA, help="Data set, as for `wsod evaluate --data`.")
@click.option("--seeds", type=click.IntRange(min=1), default=None, help="Runs of each arm. [default: 5]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any option of the experiment.")
@click.option("--out", type=FOLDER, help="Where runs and tables are written. [default: runs/NAME]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
def experiment(
    name: str, data: str | None, seeds: int | None, settings: tuple[str, ...], out: Path | None, device: str
) -> None:
    """Train several ways with several seeds and compare; see `atcon list`. Called again, it goes on.

    \b
    atcon experiment small-sets
    atcon experiment small-sets --data voc2012:VOCdevkit --set arch=mobilenet_v2 --set weights=default
    """
    from atcon.experiments import EXPERIMENTS, run_experiment
    from wsod.config import bind, parse_settings
    from wsod.report.tables import print_table

    said = {key: value for key, value in (("data", data), ("seeds", seeds)) if value is not None}
    chosen = bind(EXPERIMENTS[name], {**parse_settings(settings), **said}, f"experiment {name}")
    with progress_bar(name) as progress:
        outcome = run_experiment(chosen, out, device=device, progress=progress)
    print_table(console(), f"{name}, {chosen.data}, {chosen.seeds} seeds", *outcome.table())
    console().print(
        "differences: mean over seeds, paired; in brackets 95 %, over images and seeds", style="dim"
    )


@main.command("list")
def list_command() -> None:
    """Show the recipes, objectives, transforms and experiments."""
    from atcon.config import recipes
    from atcon.experiments import EXPERIMENTS
    from atcon.objectives import OBJECTIVES
    from atcon.transforms import TRANSFORMS
    from wsod.report.tables import print_table

    heads = [(name, _head(path)) for name, path in recipes().items()]
    print_table(console(), "recipes", ["name", "what"], heads)
    rows = [
        (name, (kind.__doc__ or "").split("\n")[0], ", ".join(kind.supervision) or "none", kind.citation)
        for name, kind in OBJECTIVES.items()
    ]
    print_table(console(), "objectives", ["name", "what", "supervision", "source"], rows)
    changes = [
        (name, (kind.__doc__ or "").split("\n")[0], kind.citation) for name, kind in TRANSFORMS.items()
    ]
    print_table(console(), "transforms", ["name", "what", "source"], changes)
    about = [(name, (kind.__doc__ or "").split("\n")[0]) for name, kind in EXPERIMENTS.items()]
    print_table(console(), "experiments", ["name", "what"], about)


def _head(path: Path) -> str:
    """The first sentence of the comment a recipe begins with."""
    comment = takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines())
    return " ".join(line.strip("# ") for line in comment).split(". ")[0].rstrip(".")


if __name__ == "__main__":
    main()
