"""The commands that look at runs and pictures: table, compare, report, show."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import click

from wsod.errors import ConfigError
from wsod.registry import nearest
from wsod.report.complete import ARCHITECTURES, DATA, METHOD, METRICS, RUN
from wsod.report.console import console, progress_bar, warn

__all__ = ["ARCH", "COMMANDS", "FORMAT", "METRICS_ONLY", "PUBLISHED", "SIZE", "TARGET_LAYER"]

FILE = click.Path(path_type=Path)
FORMAT = click.option(
    "--format",
    "style",
    type=click.Choice(["table", "markdown", "csv", "latex", "json"]),
    default="table",
    show_default=True,
    help="csv and json: fractions in full precision.",
)
PUBLISHED = click.option(
    "--published", is_flag=True, help="Beside them, what others printed for this protocol, with its source."
)
METRICS_ONLY = click.option(
    "--metrics",
    multiple=True,
    metavar="NAME",
    shell_complete=METRICS,
    help="Only these metrics. Repeat it for several.",
)
ARCH = click.option(
    "--arch",
    shell_complete=ARCHITECTURES,
    help="Architecture of a plain state dict: a torchvision name, timm:NAME, module:factory.",
)
TARGET_LAYER = click.option(
    "--target-layer", metavar="PATH", help="Module whose output is mapped, such as layer3.1."
)
SIZE = click.option(
    "--size", type=click.IntRange(min=8), help="Input side in pixels, instead of the model's own."
)
RUNS = click.argument("runs", nargs=-1, required=True, type=FILE)


@click.command()
@RUNS
@FORMAT
@PUBLISHED
def table(runs: tuple[Path, ...], style: str, published: bool) -> None:
    """Print the results of earlier runs as one table.

    \b
    wsod table runs/a runs/b --format markdown
    """
    from wsod.report.formats import format_results
    from wsod.report.tables import print_results
    from wsod.results import Result

    results = {str(run): Result.load(run) for run in runs}
    if style == "table":
        print_results(console(), results, published=published)
    else:
        click.echo(format_results(results, style, published=published))


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN[:MAPS]...", shell_complete=RUN)
@METRICS_ONLY
@click.option(
    "--changes",
    multiple=True,
    metavar="METRIC",
    shell_complete=METRICS,
    help="List the cases whose score of it changed most.",
)
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="How many of them.")
@click.option(
    "--resample",
    type=click.Choice(["image", "class"]),
    default="image",
    show_default=True,
    help="What the bootstrap draws: images, or images within their class (needs one class an image).",
)
@click.option("--same-data", is_flag=True, help="Data specs that differ name the same images: go on.")
@click.option("--resamples", type=click.IntRange(min=100), default=10_000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@FORMAT
def compare(
    runs: tuple[str, ...],
    metrics: tuple[str, ...],
    changes: tuple[str, ...],
    top: int,
    resample: str,
    same_data: bool,
    resamples: int,
    seed: int,
    style: str,
) -> None:
    """Differences of runs to the first one, case by case, with intervals and p-values.

    \b
    wsod compare runs/start runs/atcon                      rows of the same maps
    wsod compare runs/a:gradcam runs/b:layercam             these two rows
    wsod compare runs/a                                     every row of a run with its first
    """
    from wsod.comparison import compare as run
    from wsod.report.formats import format_comparison
    from wsod.report.tables import print_changes, print_comparison

    how: dict[str, object] = {"resample": resample, "same_data": same_data}
    comparison = run(
        runs,
        metrics=[*dict.fromkeys([*metrics, *changes])] if metrics else (),
        resamples=resamples,
        seed=seed,
        **how,  # type: ignore[arg-type]
    )
    compared = list(dict.fromkeys(one.metric for one in comparison.differences))
    for name in changes:
        if name not in compared:
            raise ConfigError("--changes", "a metric that is compared", repr(name), nearest(name, compared))
    if style != "table":
        click.echo(format_comparison(comparison, style, changes))
        return
    print_comparison(console(), comparison)
    for one in comparison.differences:
        if one.metric in changes and one.changes:
            print_changes(console(), one, top)


@click.command()
@RUNS
@click.option("--out", type=FILE, required=True, metavar="FILE.html", help="The page, one file.")
@click.option(
    "--cases",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="How many are shown: the worst, the best, others at random.",
)
@click.option(
    "--metric",
    metavar="NAME",
    shell_complete=METRICS,
    help="By whose case scores; the first metric's if not given.",
)
@click.option(
    "--data",
    metavar="SPEC",
    shell_complete=DATA,
    help="Where the data set is now, if not where the run found it.",
)
@PUBLISHED
def report(
    runs: tuple[Path, ...], out: Path, cases: int, metric: str | None, data: str | None, published: bool
) -> None:
    """Write runs as one HTML page: scores, curves, classes, and a gallery of cases.

    Pictures need the maps, so evaluate with --save-maps; the page says which are missing.

    \b
    wsod report runs/a --out report.html                    after: wsod evaluate … --save-maps --out runs/a
    """
    from wsod.report.page import write_report

    with progress_bar("drawing cases") as progress:
        warnings = write_report(
            runs, out, cases=cases, metric=metric, data=data, published=published, progress=progress
        )
    for text in warnings:
        warn(text)
    console().print(f"written: {out} ({out.stat().st_size / 1e6:.1f} MB)", markup=False)


@click.command()
@click.argument("image", type=FILE)
@click.option(
    "--maps",
    "maps",
    multiple=True,
    required=True,
    metavar="NAME",
    shell_complete=METHOD,
    help="Map method, with its options if wanted, as in lrp:rule=gamma. Repeat it.",
)
@click.option("--checkpoint", type=FILE, help="ft.pt of `atcon finetune`, or a state dict (with --arch).")
@ARCH
@TARGET_LAYER
@SIZE
@click.option(
    "--label", "labels", multiple=True, metavar="CLASS", help="Class; the predicted one if not given."
)
@click.option("--threshold", default=0.2, show_default=True, help="Of the boxes, a fraction of the maximum.")
@click.option("--out", type=FILE, metavar="FILE.png", help="The sheet; IMAGE-maps.png here if not given.")
@click.option("--preview/--no-preview", default=None, help="In the terminal too; by default where it is one.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
def show(image: Path, maps: tuple[str, ...], out: Path | None, preview: bool | None, **options: Any) -> None:
    """Draw one picture's maps by many methods, as a PNG and in the terminal.

    \b
    wsod show photo.jpg --maps gradcam --maps layercam --checkpoint ft.pt
    """
    from PIL import Image

    from wsod.output import write_bytes
    from wsod.report.contact import contact_sheet, maps_of_image
    from wsod.report.contact import preview as drawn

    out = out or Path(f"{image.stem}-maps.png")
    kind = Image.registered_extensions().get(out.suffix.lower())
    if kind not in Image.SAVE:  # Pillow reads more than it writes
        raise ConfigError("--out", "a file to write, such as maps.png", repr(out.name))
    picture, tiles = maps_of_image(image, maps, **options)
    sheet = contact_sheet(picture, tiles)
    try:
        file = BytesIO()
        sheet.save(file, kind)
        write_bytes(out, file.getvalue())
    except (OSError, ValueError) as error:
        raise ConfigError("--out", "a file to write, such as maps.png", error) from error
    terminal = console()
    if preview or (preview is None and terminal.is_terminal and terminal.color_system):
        terminal.print(drawn(sheet, min(terminal.width, 160)))
    names = ", ".join(dict.fromkeys(tile.label for tile in tiles if tile.label))
    terminal.print(f"written: {out}{f' (class: {names})' if names else ''}", markup=False)


COMMANDS = (table, compare, report, show)
